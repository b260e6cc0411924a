"""An Ethernet tunnel to one peer in GRE (RFC 2784, RFC 2890; ip-link(8), "GRE, IPIP, SIT Type Support"):
`gretap` over IPv4, `ip6gretap` over IPv6.

The kernel tells the tunnels of a host apart by local address, remote address and key, and takes no
packet that fits none of them.
"""

from __future__ import annotations

import dataclasses
import errno
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import fields
from overlay_agent.errors import KernelError
from overlay_agent.kinds.base import (
    Device,
    DeviceKind,
    Listens,
    attribute,
    optional,
    wrong_ends,
    wrong_underlay,
)

if TYPE_CHECKING:
    from overlay_agent.document import Document
    from overlay_agent.kernel import Kernel, Link

#: What encapsulation adds inside the underlay's MTU, by IP version of the underlay: the outer IP
#: header, GRE (4) and the inner Ethernet header (14); a key another KEY_BYTES.
OVERHEAD = {4: 38, 6: 58}
KEY_BYTES = 4

# linux/if_tunnel.h, linux/ip6_tunnel.h
_GRE_KEY = 0x2000
_IGN_ENCAP_LIMIT, _USE_ORIG_TCLASS = 0x1, 0x2
#: What ip(8) can set and no field of ours does, and the bits that the kernel sets itself in one of them.
_OTHERS = ("iflags", "oflags", "flags", "encap_limit", "fwmark", "ignore_df",
           "encap_type", "encap_flags", "encap_sport", "encap_dport")  # fmt: skip
_INTERNAL = ~0xFFFF


@dataclasses.dataclass(frozen=True)
class _Gre(Device):
    """What both have. Units: none."""

    #: On this host; source of what is sent.
    local: str = attribute(fields.Address())
    remote: str = attribute(fields.Address())
    #: Tells tunnels between the same two addresses apart; both ends have the same. Null: no key.
    key: int | None = attribute(optional(fields.Integer(0, 0xFFFFFFFF)), default=None)
    #: TTL (hop limit) of the outer header; 0: as in the packet inside.
    ttl: int = attribute(fields.Integer(0, 255), default=64)
    #: TOS (traffic class) of the outer header; 1: as in the packet inside.
    tos: int = attribute(fields.Integer(0, 255), default=0)
    #: The device that the underlay's packets leave by. Null: as the routing table says.
    device: str | None = attribute(optional(fields.InterfaceName()), default=None)
    #: Settings made by hand that have no field here.
    others: dict[str, Any] = attribute(fields.Others("setting"), default={})


@dataclasses.dataclass(frozen=True)
class Gretap(_Gre):
    """One tunnel over IPv4. Units: none."""

    KIND: ClassVar[str] = "gretap"

    #: Set "don't fragment", so that senders learn the path's MTU.
    pmtudisc: bool = attribute(fields.Flag(), default=True)


@dataclasses.dataclass(frozen=True)
class Ip6Gretap(_Gre):
    """One tunnel over IPv6, without the option that limits nested encapsulation. Units: none."""

    KIND: ClassVar[str] = "ip6gretap"

    flow_label: int = attribute(fields.Integer(0, 0xFFFFF), default=0)


class GretapKind(DeviceKind):
    """What both have in common, and what is special about IPv4."""

    name = "gretap"
    spec: type[Any] = Gretap
    modules = ("ip_gre",)
    option = "CONFIG_NET_IPGRE"
    version = 4
    whole = True

    def __init__(self) -> None:
        self.always_sent = frozenset(field.name for field in self.own_fields()) - {"others"}

    # -- pure -------------------------------------------------------------------------------

    def wrong(self, spec: Any) -> list[str]:
        return wrong_ends(spec, self.version)

    def remake(self, found: Any, wanted: Any) -> set[str]:
        # Whether a tunnel takes its ends from each packet's metadata is for as long as it lives.
        return {"others"} if ("external" in found.others) != ("external" in wanted.others) else set()

    def to_link(self, spec: Any, names: Iterable[str], index: Mapping[str, int]) -> dict[str, Any]:
        if not names:
            return {}
        key_in, key_out = _keys(spec.key)
        data = {
            "LINK": index[spec.device] if spec.device else 0,
            "IFLAGS": _GRE_KEY if key_in is not None else 0,
            "OFLAGS": _GRE_KEY if key_out is not None else 0,
            "IKEY": key_in or 0,
            "OKEY": key_out or 0,
            "LOCAL": spec.local,
            "REMOTE": spec.remote,
            "TTL": spec.ttl,
            **self.of_version(spec),
        }
        more = dict(other.split(" ") for other in spec.others if other != "external")
        for name in _OTHERS:
            if name.upper() in data or name in more or ("others" in names and self.has(name)):
                data[name.upper()] = data.get(name.upper(), 0) | int(more.get(name, 0))
        if "encap_limit" in more:
            data["FLAGS"] &= ~_IGN_ENCAP_LIMIT
        if "external" in spec.others:
            data["COLLECT_METADATA"] = True
        return {f"IFLA_GRE_{name}": value for name, value in data.items()}

    def of_version(self, spec: Any) -> dict[str, Any]:
        """The attributes that this IP version has alone."""
        return {"TOS": spec.tos, "PMTUDISC": int(spec.pmtudisc)}

    def has(self, other: str) -> bool:
        """Whether this IP version has that setting of _OTHERS."""
        return other not in ("flags", "encap_limit")

    def from_link(self, link: Link, name_of: Mapping[int, str]) -> dict[str, Any]:
        data = {name[len("IFLA_GRE_") :].lower(): value for name, value in link.data.items()}
        iflags, oflags = data.get("iflags", 0), data.get("oflags", 0)
        lower = data.get("link", 0)
        found = {
            "device": name_of.get(lower, f"if{lower}") if lower else None,
            "key": _key(data.get("ikey", 0) if iflags & _GRE_KEY else None,
                        data.get("okey", 0) if oflags & _GRE_KEY else None),
            "local": data.get("local", ""),
            "remote": data.get("remote", ""),
            "ttl": data.get("ttl", 0),
        }  # fmt: skip
        data.update(iflags=iflags & ~_GRE_KEY, oflags=oflags & ~_GRE_KEY)
        found.update(self.read_version(data))
        others = [f"{name} {data[name]}" for name in _OTHERS if data.get(name)]
        others += ["external"] if "collect_metadata" in data else []
        return {**found, "others": {other: {} for other in others}}

    def read_version(self, data: dict[str, Any]) -> dict[str, Any]:
        """The fields that this IP version has alone; takes from `data` what belongs to a field."""
        return {"tos": data.get("tos", 0), "pmtudisc": bool(data.get("pmtudisc", 0))}

    def words(self, name: str, spec: Any) -> list[str]:
        out = ["type", self.name, "remote", spec.remote, "local", spec.local, "ttl", str(spec.ttl or "inherit")]
        out += [] if spec.key is None else ["key", str(spec.key)]
        out += ["tos", "inherit" if spec.tos == 1 else hex(spec.tos)] if spec.tos else []
        out += ["dev", spec.device] if spec.device else []
        return out + self.words_of_version(spec)

    def words_of_version(self, spec: Any) -> list[str]:
        return [] if spec.pmtudisc else ["nopmtudisc"]

    def overhead(self, spec: Any) -> int:
        return OVERHEAD[self.version] + (0 if spec.key is None else KEY_BYTES)

    def ends(self, spec: Any, learned: Iterable[str] = ()) -> dict[str, Any]:
        return {spec.remote: (spec.local, spec.key)}

    def listens(self, spec: Any) -> list[Listens]:
        return [Listens("gre", None, (spec.remote,))]

    # -- on the host ------------------------------------------------------------------------

    def wrong_here(self, kernel: Kernel, name: str, spec: Any, wanted: Document) -> list[str]:
        out = super().wrong_here(kernel, name, spec, wanted)
        out += wrong_underlay(kernel, spec, wanted, self.overhead(spec))
        taken = self._holders(kernel, wanted).get((spec.local, spec.remote, spec.key), [])
        return out + [
            f"{_identity(spec)} are those of {other} on this host, too; {_OWN_KEY}" for other in taken if other != name
        ]

    def _holders(self, kernel: Kernel, wanted: Document) -> dict[Any, list[str]]:
        """Who will have which ends and key once the document is true: ours, and those of others that are here."""
        key, ours = f"{self.name} of {wanted.owner.label}", wanted.owner.alias("")
        if key not in kernel.listings:
            holders: dict[Any, list[str]] = {}
            for name, spec in wanted.devices.items():
                if isinstance(spec, self.spec):
                    holders.setdefault((spec.local, spec.remote, spec.key), []).append(name)
            for name, link in kernel.links.items():
                if link.kind == self.name and name not in wanted.devices and not link.alias.startswith(ours):
                    its = self.from_link(link, kernel.name_of)
                    holders.setdefault((its["local"], its["remote"], its["key"]), []).append(name)
            kernel.listings[key] = holders
        found: dict[Any, list[str]] = kernel.listings[key]
        return found

    def create(self, kernel: Kernel, name: str, spec: Any, mark: str, image: Mapping[str, Any]) -> None:
        make = super().create
        self._with_room(kernel, name, spec, mark, lambda: make(kernel, name, spec, mark, image))

    def change(self, kernel: Kernel, name: str, spec: Any, found: Any, mark: str) -> None:
        set_ = super().change
        self._with_room(kernel, name, spec, mark, lambda: set_(kernel, name, spec, found, mark))

    def _with_room(self, kernel: Kernel, name: str, spec: Any, mark: str, act: Callable[[], None]) -> None:
        """Where another one of the stack still has what this one is to have, it gets a key for the moment: two
        peers may have exchanged their addresses, and its own turn comes."""
        try:
            act()
        except KernelError as error:
            if error.code != errno.EEXIST:
                raise
            for other in self._in_the_way(kernel, name, spec, mark):
                link = kernel.links[other]
                aside = dataclasses.replace(self.observe(kernel, link), key=0xFFFFFFFF - link.index)
                kernel.change_link(other, self.name, self.to_link(aside, self.always_sent, kernel.index_of), link.mtu)
            try:
                act()
            except KernelError as again:
                if again.code != errno.EEXIST:
                    raise
                hint = f"; another tunnel on this host has {_identity(spec)}: {_OWN_KEY}"
                raise KernelError(again.what, again.code, again.sentence, hint) from None

    def _in_the_way(self, kernel: Kernel, name: str, spec: Any, mark: str) -> list[str]:
        kernel.refresh()
        stack, mine = mark[: len(mark) - len(name)], (spec.local, spec.remote, spec.key)
        return [
            other
            for other, link in kernel.links.items()
            if link.kind == self.name and other != name and link.alias == stack + other
            for its in [self.from_link(link, kernel.name_of)]
            if (its["local"], its["remote"], its["key"]) == mine
        ]


class Ip6GretapKind(GretapKind):
    """What is special about IPv6: the traffic class and the flow label are one number, and there are flags."""

    name = "ip6gretap"
    spec = Ip6Gretap
    modules = ("ip6_gre",)
    option = "CONFIG_IPV6_GRE"
    version = 6

    def of_version(self, spec: Any) -> dict[str, Any]:
        tclass = 0 if spec.tos == 1 else spec.tos
        flags = _IGN_ENCAP_LIMIT | (_USE_ORIG_TCLASS if spec.tos == 1 else 0)
        return {"FLOWINFO": tclass << 20 | spec.flow_label, "FLAGS": flags}

    def has(self, other: str) -> bool:
        return other not in ("ignore_df", "encap_limit")

    def read_version(self, data: dict[str, Any]) -> dict[str, Any]:
        flags, info = data.get("flags", 0) & ~_INTERNAL, data.get("flowinfo", 0)
        inherits = flags & _USE_ORIG_TCLASS
        if flags & _IGN_ENCAP_LIMIT:
            data.pop("encap_limit", None)
        data["flags"] = flags & ~(_IGN_ENCAP_LIMIT | _USE_ORIG_TCLASS)
        return {"tos": 1 if inherits else info >> 20 & 0xFF, "flow_label": info & 0xFFFFF}

    def words_of_version(self, spec: Any) -> list[str]:
        return ["encaplimit", "none", *(["flowlabel", hex(spec.flow_label)] if spec.flow_label else [])]


_OWN_KEY = "give one of them a key of its own (key)"


def _identity(spec: Any) -> str:
    return f"local {spec.local}, remote {spec.remote} and {'no key' if spec.key is None else f'key {spec.key}'}"


def _key(key_in: int | None, key_out: int | None) -> Any:
    """The key of both ways; where they differ, that in words."""
    return key_in if key_in == key_out else f"in {key_in}, out {key_out}"


def _keys(key: Any) -> tuple[int | None, int | None]:
    """The inverse of `_key`."""
    if not isinstance(key, str):
        return key, key
    key_in, key_out = (None if word == "None" else int(word) for word in re.findall(r"None|\d+", key))
    return key_in, key_out


KINDS = {kind.name: kind for kind in (GretapKind(), Ip6GretapKind())}
