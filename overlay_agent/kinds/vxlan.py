"""A VXLAN tunnel endpoint (RFC 7348; ip-link(8), "VXLAN Type Support").

Unicast peers stand in the device's forwarding table as destinations of the all-zero MAC address
(head-end replication, bridge(8)). One device serves any number of peers: it cannot loop, because
it never forwards what it received from the tunnel back into it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import fields
from overlay_agent.kinds.base import RECREATE, Device, DeviceKind, Listens, attribute, optional, wrong_underlay

if TYPE_CHECKING:
    from overlay_agent.document import Document
    from overlay_agent.kernel import Kernel, Link

FLOOD = "00:00:00:00:00:00"
INHERIT = fields.Choice(["inherit"])
_DF = ["unset", "set", "inherit"]

#: What encapsulation adds inside the underlay's MTU, by IP version of the underlay: the outer IP
#: header, UDP (8), VXLAN (8) and the inner Ethernet header (14).
OVERHEAD = {4: 50, 6: 70}


@dataclasses.dataclass(frozen=True)
class Vxlan(Device):
    """One VXLAN device. Units: ageing in seconds."""

    KIND: ClassVar[str] = "vxlan"

    vni: int = attribute(fields.Integer(1, 16777215), change=RECREATE, nla="IFLA_VXLAN_ID")
    port: int = attribute(fields.Integer(1, 65535), default=4789, change=RECREATE)
    #: The VTEP address: source of what is sent; on this host. Its family is the tunnel's.
    local: str = attribute(fields.Address())
    #: The device that the underlay's packets leave by. Null: as the routing table says, for each
    #: packet, which outlives a change of the underlay's device; multicast needs one.
    device: str | None = attribute(optional(fields.InterfaceName()), default=None)
    #: Multicast group that stands for all peers, instead of `peers`.
    group: str | None = attribute(optional(fields.Address()), default=None, change=RECREATE)
    peers: dict[str, str] = attribute(fields.Peers(), default={})
    #: TTL of the outer header; 0: the kernel's own choice (1 for multicast).
    ttl: int | str = attribute(fields.Either(fields.Integer(0, 255), INHERIT), default=0)
    tos: int | str = attribute(fields.Either(fields.Integer(0, 255), INHERIT), default=0)
    df: str = attribute(fields.Choice(_DF), default="unset")
    flow_label: int = attribute(fields.Integer(0, 0xFFFFF), default=0, nla="IFLA_VXLAN_LABEL")
    #: Learn which peer a MAC address is behind from what arrives.
    learning: bool = attribute(fields.Flag(), default=True, nla="IFLA_VXLAN_LEARNING")
    ageing: int = attribute(fields.Integer(0, 0xFFFFFFFF), default=300, nla="IFLA_VXLAN_AGEING")
    #: The most forwarding entries to learn; 0: no limit.
    max_addresses: int = attribute(fields.Integer(0, 0xFFFFFFFF), default=0, change=RECREATE, nla="IFLA_VXLAN_LIMIT")
    #: UDP source ports, chosen by flow for the underlay's load balancing; 0-0: the kernel's range.
    source_ports: str = attribute(fields.Range(0, 65535), default="0-0", change=RECREATE)
    udp_checksum: bool = attribute(fields.Flag(), default=True, change=RECREATE, nla="IFLA_VXLAN_UDP_CSUM")
    udp6_zero_checksum_tx: bool = attribute(
        fields.Flag(), default=False, change=RECREATE, nla="IFLA_VXLAN_UDP_ZERO_CSUM6_TX"
    )
    udp6_zero_checksum_rx: bool = attribute(
        fields.Flag(), default=False, change=RECREATE, nla="IFLA_VXLAN_UDP_ZERO_CSUM6_RX"
    )
    proxy: bool = attribute(fields.Flag(), default=False, change=RECREATE, nla="IFLA_VXLAN_PROXY")
    l2miss: bool = attribute(fields.Flag(), default=False, change=RECREATE, nla="IFLA_VXLAN_L2MISS")
    l3miss: bool = attribute(fields.Flag(), default=False, change=RECREATE, nla="IFLA_VXLAN_L3MISS")
    rsc: bool = attribute(fields.Flag(), default=False, change=RECREATE, nla="IFLA_VXLAN_RSC")
    gbp: bool = attribute(fields.Flag(), default=False, change=RECREATE)


class VxlanKind(DeviceKind):
    """What is special about VXLAN devices."""

    name = "vxlan"
    spec = Vxlan
    modules = ("vxlan",)
    option = "CONFIG_VXLAN"
    always_sent = frozenset({"port"})

    def wrong(self, spec: Vxlan) -> list[str]:
        family = _version(spec.local)
        out: list[str] = []
        for peer, address in sorted(spec.peers.items()):
            if _version(address) != family:
                out.append(f"peers.{peer}: {address!r} is not IPv{family} like local {spec.local!r}")
            elif ipaddress.ip_address(address).is_multicast:
                out.append(f"peers.{peer}: {address!r} is a multicast address; that is what group is for")
        if len(set(spec.peers.values())) < len(spec.peers):
            out.append("peers: an address stands there twice; each peer has its own")
        if spec.local in spec.peers.values():
            out.append(f"peers: {spec.local!r} is this host's own address (local)")
        if spec.group and not ipaddress.ip_address(spec.group).is_multicast:
            out.append(f"group: {spec.group!r} is not a multicast address (224.0.0.0/4, ff00::/8)")
        if spec.group and _version(spec.group) != family:
            out.append(f"group: {spec.group!r} is not IPv{family} like local {spec.local!r}")
        if spec.group and not spec.device:
            out.append("group: a multicast group needs the device to join it on; name it in device")
        if spec.group and spec.peers:
            out.append("group: a device has either a multicast group or peers, not both")
        if spec.flow_label and family == 4:
            out.append("flowLabel: only an IPv6 underlay has flow labels; leave it out")
        if spec.tos == 1:
            out.append("tos: 1 is how the kernel spells 'inherit'; write \"inherit\"")
        return out

    def encode(self, field: str, value: Any, index: Mapping[str, int]) -> dict[str, Any]:
        if field in ("local", "group"):
            return {f"IFLA_VXLAN_{field.upper()}{_suffix(value)}": value} if value else {}
        if field == "device":
            return {"IFLA_VXLAN_LINK": index[value] if value else 0}
        if field == "ttl" and value == "inherit":
            return {"IFLA_VXLAN_TTL_INHERIT": b""}
        if field == "tos" and value == "inherit":
            return {"IFLA_VXLAN_TOS": 1}
        if field in ("port", "ttl", "tos"):
            return {f"IFLA_VXLAN_{field.upper()}": value}
        if field == "df":
            return {"IFLA_VXLAN_DF": _DF.index(value)}
        if field == "source_ports":
            low, high = (int(port) for port in value.split("-"))
            return {"IFLA_VXLAN_PORT_RANGE": {"low": low, "high": high}}
        return {"IFLA_VXLAN_GBP": b""} if field == "gbp" else {}  # peers are no attribute of the link

    def remake(self, found: Vxlan, wanted: Vxlan) -> set[str]:
        # The kernel keeps a device's address family, its way of choosing a TTL, and the device on
        # which it joined its group, for as long as it lives; nor can a device be taken back.
        out = {"local"} if _version(found.local) != _version(wanted.local) else set()
        if (found.ttl == "inherit") != (wanted.ttl == "inherit"):
            out.add("ttl")
        if found.device != wanted.device and (wanted.group or wanted.device is None):
            out.add("device")
        return out

    def will_do(self, found: Vxlan, wanted: Vxlan) -> set[str]:
        return {"peers"} if filled_by_frr(wanted) and filled_by_frr(found) else set()

    def from_link(self, link: Link, name_of: Mapping[int, str]) -> dict[str, Any]:
        found = super().from_link(link, name_of)
        data = link.data
        ports = data["IFLA_VXLAN_PORT_RANGE"]
        group = data.get("IFLA_VXLAN_GROUP") or data.get("IFLA_VXLAN_GROUP6")
        family_default = "::" if "IFLA_VXLAN_LOCAL6" in data else "0.0.0.0"  # noqa: S104 - none is set
        lower = data.get("IFLA_VXLAN_LINK", 0)
        inherits = any(data.get("IFLA_VXLAN_TTL_INHERIT", b""))
        found.update(
            port=data["IFLA_VXLAN_PORT"],
            local=data.get("IFLA_VXLAN_LOCAL") or data.get("IFLA_VXLAN_LOCAL6") or family_default,
            device=name_of.get(lower, f"if{lower}") if lower else None,
            group=group if group and ipaddress.ip_address(group).is_multicast else None,
            ttl="inherit" if inherits else data["IFLA_VXLAN_TTL"],
            tos="inherit" if data["IFLA_VXLAN_TOS"] == 1 else data["IFLA_VXLAN_TOS"],
            df=_DF[data.get("IFLA_VXLAN_DF", 0)],
            source_ports=f"{ports['low']}-{ports['high']}",
            gbp="IFLA_VXLAN_GBP" in data,
        )
        return found

    def overhead(self, spec: Vxlan) -> int:
        return OVERHEAD[_version(spec.local)]

    def ends(self, spec: Vxlan, learned: Iterable[str] = ()) -> dict[str, Any]:
        # Who learns from what arrives finds an end that has moved, too.
        alike = (spec.vni, spec.port, spec.group, spec.gbp, None if spec.learning else spec.local)
        return dict.fromkeys(spec.peers.values() or learned, alike)

    def listens(self, spec: Vxlan) -> list[Listens]:
        return [Listens("udp", spec.port, tuple(sorted(spec.peers.values())))]

    def wrong_here(self, kernel: Kernel, name: str, spec: Vxlan, wanted: Document) -> list[str]:
        out = super().wrong_here(kernel, name, spec, wanted)
        out += wrong_underlay(kernel, spec, wanted, self.overhead(spec))
        for other, link in kernel.links.items():
            same = link.kind == self.name and self._identity(link) == (spec.vni, spec.port)
            leaving = link.alias.startswith(wanted.owner.alias(""))
            if same and other != name and not leaving:
                out.append(
                    f"vni {spec.vni} on port {spec.port} is taken on this host by {other}; use another vni or port"
                )
        return out

    def _identity(self, link: Link) -> tuple[int, int]:
        return link.data["IFLA_VXLAN_ID"], link.data["IFLA_VXLAN_PORT"]

    def observe(self, kernel: Kernel, link: Link) -> Vxlan:
        spec: Vxlan = super().observe(kernel, link)
        flood = [entry.dst for entry in kernel.fdb(link) if entry.mac == FLOOD and entry.dst]
        return dataclasses.replace(spec, peers={dst: dst for dst in flood if dst != spec.group})

    def change_rest(self, kernel: Kernel, name: str, spec: Vxlan, found: Vxlan) -> None:
        super().change_rest(kernel, name, spec, found)
        have, want = set(found.peers.values()), set(spec.peers.values())
        if filled_by_frr(found):
            # Who filled it may just have emptied it; what is filled still is not ours to empty.
            flood = self.observe(kernel, kernel.links[name]).peers
            have = set() if filled_by_frr(spec) else set(flood.values())
        kernel.set_flood(name, FLOOD, add=sorted(want - have), remove=sorted(have - want))

    def words(self, name: str, spec: Vxlan) -> list[str]:
        out = ["type", "vxlan", "id", str(spec.vni), "dstport", str(spec.port), "local", spec.local]
        out += ["dev", spec.device] if spec.device else []
        out += ["group", spec.group] if spec.group else []
        if spec.source_ports != "0-0":
            out += ["srcport", *spec.source_ports.split("-")]
        out += [word for name_ in ("ttl", "tos") for word in _unless(name_, getattr(spec, name_), 0)]
        out += _unless("df", spec.df, "unset") + _unless("flowlabel", hex(spec.flow_label), "0x0")
        out += ["ageing", str(spec.ageing), *_unless("maxaddress", spec.max_addresses, 0)]
        switches = {
            "learning": (spec.learning, True),
            "udpcsum": (spec.udp_checksum, None),
            "udp6zerocsumtx": (spec.udp6_zero_checksum_tx, False),
            "udp6zerocsumrx": (spec.udp6_zero_checksum_rx, False),
            "proxy": (spec.proxy, False),
            "l2miss": (spec.l2miss, False),
            "l3miss": (spec.l3miss, False),
            "rsc": (spec.rsc, False),
        }
        out += [word if on else f"no{word}" for word, (on, usual) in switches.items() if on != usual]
        return out + (["gbp"] if spec.gbp else [])

    def more_commands(self, name: str, spec: Vxlan) -> list[list[str]]:
        return [
            ["bridge", "fdb", "append", FLOOD, "dev", name, "dst", address] for address in sorted(spec.peers.values())
        ]


def filled_by_frr(spec: Vxlan) -> bool:
    """Whether another program fills the device's forwarding table (kinds/evpn.py). Nothing in the kernel marks
    the flood entries of FRR 8; but neither device nor bridge port learns, which no other device of ours has."""
    return not spec.learning and not spec.port_learning and spec.neigh_suppress and not spec.group


def _version(address: str) -> int:
    return ipaddress.ip_address(address).version


def _suffix(address: str) -> str:
    return "6" if _version(address) == 6 else ""


def _unless(word: str, value: Any, usual: Any) -> list[str]:
    return [] if value == usual else [word, str(value)]


KIND = VxlanKind()
