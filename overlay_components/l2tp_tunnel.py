"""L2TPv3 tunnels: Ethernet in UDP or straight in IP, a tunnel with one session for each two ends (RFC 3931).

Nothing is negotiated, so each end has to be told its own numbers and its peer's. Here they are said
once, by end, or not at all: then each is a hash of what it belongs to, and no two of one host are
the same. The attributes themselves are listed in overlay_agent.kinds.l2tp.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import pydantic
from pulumi import Input, ResourceOptions
from typing_extensions import Unpack

from overlay_agent import fields
from overlay_agent.kinds import Device
from overlay_agent.kinds.l2tp import ID, PORT, L2tp, overhead
from overlay_components import errors, model, names, tunnel
from overlay_components.bridge import Bridge
from overlay_components.component import TunnelArgs, TunnelComponent
from overlay_components.model import Checked
from overlay_components.secrets import SHOWN, Value
from overlay_components.tunnel import Attachment, Claim, Tunnel

#: Where ports are derived from: below what Linux gives to programs (ip_local_port_range, 32768 and up).
PORTS = (20000, 29999)
_IDS = (ID.low, ID.high)
#: Key of the stack file, attribute of the device, and where it is derived from.
_NUMBERS = {"tunnel_ids": ("tunnel_id", _IDS), "session_ids": ("session_id", _IDS), "ports": ("port", PORTS)}

#: What the planner fills in.
_PLANNED = [f.name for f in dataclasses.fields(Device)]
_PLANNED += ["local", "remote", "local_port", "remote_port", "cookie", "peer_cookie"]
_PLANNED += ["tunnel_id", "peer_tunnel_id", "session_id", "peer_session_id"]
_WORDS = {
    "encap": "udp, or ip: straight in IP (protocol 115), 12 bytes less",
    "sequencing": "Number the packets, and drop what comes out of order",
    "udp_checksum": "UDP checksum of what is sent",
}


#: Of a cookie whose length is not known yet: no packet is too large, whichever it turns out to be.
_COOKIE_BYTES = 8

_End = Annotated[str, Checked(model.Name())]


class L2tpOptions(tunnel.TunnelOptions):
    """An L2TPv3 tunnel's keys that are not one device's attributes."""

    tunnel_ids: dict[_End, Annotated[int, Checked(ID)]] = pydantic.Field(
        default={}, description="By end, where there are two: each one's tunnel id; default: derived"
    )
    session_ids: dict[_End, Annotated[int, Checked(ID)]] = pydantic.Field(
        default={}, description="By end, where there are two: each one's session id; default: derived"
    )
    ports: dict[_End, Annotated[int, Checked(PORT)]] = pydantic.Field(
        default={}, description="By end, where there are two: each one's UDP port; default: derived, 20000 to 29999"
    )
    cookie: Annotated[Value | None, Checked(fields.optional(model.SecretHex(4, 8)))] = pydantic.Field(
        default=None, description="A secret that every packet carries, both ways: 8 or 16 hexadecimal digits"
    )


class L2tpTunnelKind(tunnel.TunnelKind):
    """See tunnel.TunnelKind."""

    name = "l2tp"
    prefix = "l2"
    pairwise = True
    options = model.with_fields_of(L2tp, L2tpOptions, leave_out=_PLANNED, words=_WORDS)

    def overhead(self, options: Any, version: int) -> int:
        """By encapsulation: 42 (ip) or 54 (udp) bytes over IPv4, 20 more over IPv6; and the cookie."""
        cookie: Value | None = options.cookie
        return overhead(version, options.encap, (cookie.length or _COOKIE_BYTES) if cookie else 0)

    def udp_ports(self, tunnel: Tunnel) -> Mapping[str, set[int]]:
        """Those that were said."""
        return {end: {port} for end, port in tunnel.options.ports.items() if tunnel.options.encap == "udp"}

    def numbers(
        self, tunnels: Sequence[Tunnel], label: str, ports: Mapping[str, set[int]]
    ) -> dict[str, dict[tuple[str, str], dict[str, int]]]:
        """By pair and end its tunnel id, session id and, in UDP, port. What is derived depends on its own pair alone,
        unless another of the same host came to the same number before it."""
        taken: dict[tuple[str, str], set[int]] = collections.defaultdict(set)
        for end, said in ports.items():
            taken["port", end] |= said
        for one, (key, (what, _)) in itertools.product(tunnels, _NUMBERS.items()):
            for end, number in getattr(one.options, key).items():
                taken[what, end].add(number)
        out: dict[str, dict[tuple[str, str], dict[str, int]]] = {one.where: {} for one in tunnels}
        for one in sorted(tunnels, key=lambda one: (one.base, one.where)):
            for label_, pair in sorted(one.pairs.items(), key=lambda item: sorted(item[1])):
                for end in pair:
                    out[one.where][label_, end] = _numbers(one, pair, end, label, taken)
        return out

    def devices(
        self, tunnel: Tunnel, common: Callable[[Attachment], dict[str, Any]], wrong: list[str]
    ) -> Iterator[tuple[Attachment, L2tp]]:
        """One device for each attachment; what it knows of its peer is what the peer's device has."""
        before = len(wrong)
        _check(tunnel, wrong)
        if len(wrong) > before:
            return
        values = model.values_of(tunnel.options, L2tp, leave_out=_PLANNED)
        cookie: Any = tunnel.options.cookie
        for at in tunnel.attachments():
            [(peer, remote)] = at.peers.items()
            own, theirs = tunnel.numbers[at.label, at.host.name], tunnel.numbers[at.label, peer]
            yield (
                at,
                L2tp(
                    **common(at),
                    **values,
                    local=at.host.local,
                    remote=remote,
                    tunnel_id=own["tunnel_id"],
                    peer_tunnel_id=theirs["tunnel_id"],
                    session_id=own["session_id"],
                    peer_session_id=theirs["session_id"],
                    local_port=own.get("port"),
                    remote_port=theirs.get("port"),
                    # The planner puts references in their place.
                    cookie=cookie,
                    peer_cookie=cookie,
                ),
            )

    def claims(self, spec: L2tp) -> dict[Claim, str]:
        """Ids and port are one device's on its host."""
        out: dict[Claim, str] = {
            (("l2tp", what, number), None): (
                f"{what} id {number} is taken on {{hosts}} by {{earlier}}; give another in {what}Ids"
            )
            for what, number in (("tunnel", spec.tunnel_id), ("session", spec.session_id))
        }
        return out if spec.local_port is None else {**out, **tunnel.udp_claim(spec.local_port)}

    def facts(self, tunnel: Tunnel, specs: Sequence[L2tp]) -> dict[str, Any]:  # noqa: ARG002 - see Tunnel.numbers
        """The encapsulation, and what an unmanaged end and its peers need."""
        ends = {
            label: {end: {fields.json_name(k): n for k, n in tunnel.numbers[label, end].items()} for end in pair}
            for label, pair in tunnel.pairs.items()
            if not all(tunnel.ends[end].managed for end in pair) and tunnel.numbers
        }
        cookie = {"cookie": SHOWN} if tunnel.options.cookie else {}
        return {"encap": tunnel.options.encap, **cookie, **({"ends": ends} if ends else {})}

    def told_by(self, spec: L2tp) -> dict[str, Any]:
        """Straight in IP, the session."""
        return {} if spec.encap == "udp" else {"session": spec.session_id}

    def listens(self, spec: L2tp) -> tuple[str, int | None]:
        """UDP on the device's port, or IP protocol 115."""
        return ("udp", spec.local_port) if spec.encap == "udp" else ("l2tp", None)

    def port_each(self, options: Any) -> bool:
        """In UDP: the kernel binds each tunnel's socket for itself."""
        return bool(options.encap == "udp")


def _numbers(
    one: Tunnel, pair: tuple[str, str], end: str, label: str, taken: Mapping[tuple[str, str], set[int]]
) -> dict[str, int]:
    """One end's numbers. Those that are derived are added to `taken`."""
    out: dict[str, int] = {}
    for key, (what, (low, high)) in _NUMBERS.items():
        said = getattr(one.options, key)
        if what == "port" and one.options.encap == "ip":
            continue
        if end in said:
            out[what] = said[end]
            continue
        tries = (names.number(low, high, label, one.base, *sorted(pair), end, what, str(n)) for n in itertools.count())
        out[what] = next(number for number in tries if number not in taken[what, end])
        taken[what, end].add(out[what])
    return out


def _check(tunnel: Tunnel, wrong: list[str]) -> None:
    """Adds what does not fit together to `wrong`."""
    options = tunnel.options
    if options.encap == "ip":
        for key in ("ports", "udp_checksum"):
            if key in options.model_fields_set:
                what = "ports" if key == "ports" else "UDP checksum"
                wrong.append(f"{tunnel.where}.{fields.json_name(key)}: encap ip has no {what}; leave it out")
    for key in _NUMBERS:
        said: Mapping[str, int] = getattr(options, key)
        place = f"{tunnel.where}.{fields.json_name(key)}"
        if not said or (key == "ports" and options.encap == "ip"):
            continue
        if len(tunnel.pairs) != 1:
            what = f"{len(tunnel.pairs)} pairs" if tunnel.pairs else "no pair yet"
            wrong.append(
                f"{place}: the tunnel has {what}; only one with one pair takes them: leave it out, and all are derived"
            )
            continue
        unknown = [end for end in said if end not in tunnel.ends]
        wrong += [f"{place}: unknown end {end!r}; {errors.instead(end, tunnel.ends)}" for end in unknown]
        missing = [end for end in tunnel.ends if end not in said]
        if missing:
            wrong.append(f"{place}: none for {errors.listed(missing)}; give one to each end, or leave it out")


# -- the component ---------------------------------------------------------------------------


class L2tpArgs(TunnelArgs, total=False):
    """Keys of a tunnel of kind l2tp (docs/stack-file.md). Ends are Host objects or names."""

    encap: str
    tunnel_ids: Mapping[Any, int]
    session_ids: Mapping[Any, int]
    ports: Mapping[Any, int]
    cookie: Input[str]
    sequencing: bool
    udp_checksum: bool


class L2tpTunnel(TunnelComponent):
    """L2TPv3 tunnels between the hosts of a segment (RFC 3931)."""

    KIND = "l2tp"

    def __init__(
        self, name: str, *, bridge: Bridge, opts: ResourceOptions | None = None, **args: Unpack[L2tpArgs]
    ) -> None:
        super().__init__("L2tpTunnel", name, bridge, args, opts)


KIND = L2tpTunnelKind(L2tpTunnel)
