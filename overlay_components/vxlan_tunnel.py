"""VXLAN tunnels: which VNI each device has, and what must hold between them (RFC 7348).

The attributes themselves are listed in overlay_agent.kinds.vxlan. Here is what only a whole tunnel
shows: the kernel takes a VNI and port once on a host and never sends back into a device what came
out of it, so each pair that shares a host, and each spoke of a hub, needs a VNI of its own.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import pydantic
from pulumi import ResourceOptions
from typing_extensions import Unpack

from overlay_agent import fields
from overlay_agent.kinds import Device
from overlay_agent.kinds.vxlan import OVERHEAD, Vxlan
from overlay_components import errors, evpn, model, names, tunnel
from overlay_components.bridge import Bridge
from overlay_components.component import TunnelArgs, TunnelComponent
from overlay_components.model import Checked
from overlay_components.tunnel import EVPN, HUB, MESH, MULTICAST, PAIRS, Attachment, Claim, Tunnel

#: What the planner fills in.
_PLANNED = [*(f.name for f in dataclasses.fields(Device)), "vni", "local", "device", "peers"]
_VNI: fields.Integer = next(f.metadata["type"] for f in dataclasses.fields(Vxlan) if f.name == "vni")


#: What BGP tells is not to be learned once more from traffic.
_TOLD_BY_BGP = {"learning": False, "port_learning": False, "neigh_suppress": True}

_WORDS = {
    "port": "UDP port (Linux' own default, without the project, is 8472)",
    "group": "Multicast group that stands for all ends (topology: multicast)",
    "ttl": "TTL of the outer header; 0: the kernel's choice (1 for multicast); inherit: of the packet within",
    "tos": "TOS of the outer header; inherit: of the packet within",
    "df": "Don't Fragment of the outer header (IPv4)",
    "flow_label": "Flow label of the outer header (IPv6)",
    "learning": "Whether a host learns from traffic which end a MAC address is behind",
    "ageing": "After how long without traffic that is forgotten; seconds, 0: never",
    "max_addresses": "The most MAC addresses to learn; 0: no limit",
    "source_ports": 'UDP source ports, one chosen for each flow, "low-high"; "0-0": the kernel\'s range',
    "udp_checksum": "UDP checksum of what is sent over IPv4",
    "udp6_zero_checksum_tx": "Leave out the UDP checksum of what is sent over IPv6",
    "udp6_zero_checksum_rx": "Take packets without UDP checksum over IPv6",
    "proxy": "Answer ARP for what the neighbour table knows",
    "l2miss": "Tell netlink of unknown MAC addresses",
    "l3miss": "Tell netlink of unknown IP addresses (with proxy)",
    "rsc": "Route short circuit: send straight to where the neighbour table says",
    "gbp": "Group policy extension: carry the packet's mark",
}


class VxlanOptions(tunnel.TunnelOptions):
    """A VXLAN tunnel's keys that are not one device's attributes."""

    topology: Annotated[str, Checked(fields.Choice([MESH, PAIRS, HUB, MULTICAST, EVPN]))] = pydantic.Field(
        default=MESH,
        description="mesh: all ends, one device a host; pairs; hub; multicast: found by it; evpn: told by BGP",
    )
    vni: Annotated[int | None, Checked(_VNI)] = pydantic.Field(default=None, description="The network's number")
    vni_range: Annotated[tuple[int, int] | None, Checked(model.NumberRange(_VNI.low, _VNI.high))] = pydantic.Field(
        default=None, description='For hub and pairs: where each spoke or pair has its VNI derived from, "100-199"'
    )
    vnis: dict[Annotated[str, Checked(model.Name())], Annotated[int, Checked(_VNI)]] = pydantic.Field(
        default={}, description="For hub and pairs: VNIs given by hand, by spoke or pair"
    )
    route_target: Annotated[str | None, Checked(fields.optional(evpn.RouteTarget()))] = pydantic.Field(
        default=None, description="For evpn: what marks the network's routes, in and out; default: <asn>:<vni>"
    )


class VxlanTunnelKind(tunnel.TunnelKind):
    """See tunnel.TunnelKind."""

    name = "vxlan"
    prefix = "vx"
    options = model.with_fields_of(Vxlan, VxlanOptions, leave_out=_PLANNED, words=_WORDS)

    def overhead(self, options: VxlanOptions, version: int) -> int:  # noqa: ARG002 - no option changes it
        """50 bytes over IPv4, 70 over IPv6."""
        return OVERHEAD[version]

    def devices(
        self, tunnel: Tunnel, common: Callable[[Attachment], dict[str, Any]], wrong: list[str]
    ) -> Iterator[tuple[Attachment, Vxlan]]:
        """One device for each attachment."""
        before = len(wrong)
        vnis = _vnis(tunnel, wrong)
        _check_group(tunnel, wrong)
        _check_evpn(tunnel, wrong)
        if len(wrong) > before:
            return
        values = model.values_of(tunnel.options, Vxlan, leave_out=_PLANNED)
        by_group = tunnel.options.topology == MULTICAST
        for at in tunnel.attachments():
            yield (
                at,
                Vxlan(
                    **common(at),
                    **{**values, **(_TOLD_BY_BGP if tunnel.options.topology == EVPN else {})},
                    vni=vnis[at.label],
                    local=at.host.local,
                    device=at.host.device,
                    peers={} if by_group else at.peers.copy(),
                ),
            )

    def claims(self, spec: Vxlan) -> dict[Claim, str]:
        """A VNI and port are one device's. Devices of one port (and IP version, of which a host has one) share a
        socket and so its flags, VXLAN_F_RCV_FLAGS in the kernel's vxlan.h: one with others does not come up."""
        number = ("vxlan", spec.port, spec.vni)
        socket = ("vxlan", spec.port)
        flags = (spec.gbp, spec.udp6_zero_checksum_rx)
        return {
            **tunnel.udp_claim(spec.port, "vxlan"),
            (number, None): (
                f"VNI {spec.vni} on UDP port {spec.port} is taken on {{hosts}} by {{earlier}}; give another vni or port"
            ),
            (socket, flags): (
                f"UDP port {spec.port} is shared on {{hosts}} with {{earlier}}, whose gbp or udp6ZeroChecksumRx "
                "differs; the kernel wants both alike on one port: give another port"
            ),
        }

    def facts(self, tunnel: Tunnel, specs: Sequence[Vxlan]) -> dict[str, Any]:  # noqa: ARG002 - they say it all
        """The VNIs and the port."""
        return {"vnis": sorted({spec.vni for spec in specs}), "port": specs[0].port if specs else None}

    def told_by(self, spec: Vxlan) -> dict[str, Any]:
        """The VNI."""
        return {"vni": spec.vni}

    def listens(self, spec: Vxlan) -> tuple[str, int | None]:
        """UDP on the tunnel's port."""
        return "udp", spec.port

    def udp_ports(self, tunnel: Tunnel) -> Mapping[str, set[int]]:
        """One, on all ends."""
        return {name: {tunnel.options.port} for name in tunnel.ends}


def _vnis(tunnel: Tunnel, wrong: list[str]) -> dict[str, int]:
    """The VNI by pair or spoke; of the one device a host, by ""."""
    options: VxlanOptions = tunnel.options
    if not tunnel.pairs:
        for key, value in (("vniRange", options.vni_range), ("vnis", options.vnis)):
            if value:
                wrong.append(f"{tunnel.where}.{key}: only for topology hub or pairs; {options.topology} has one: vni")
        if options.vni is None:
            wrong.append(f"{tunnel.where}.vni: missing; give a whole number from {_VNI.low} to {_VNI.high}")
        return {"": options.vni or 0}
    if options.vni is not None:
        return _one_vni(tunnel, options, wrong)
    wrong += [
        f"{tunnel.where}.vnis: unknown name {label!r}; {errors.instead(label, tunnel.pairs)}"
        for label in options.vnis
        if label not in tunnel.pairs
    ]
    if options.vni_range is None and not options.vnis:
        wrong.append(f'{tunnel.where}.vni: missing; give it, or vniRange: "100-199" where a host has several of them')
        return {}
    return _derived(tunnel, options, wrong)


def _one_vni(tunnel: Tunnel, options: VxlanOptions, wrong: list[str]) -> dict[str, int]:
    for key, value in (("vniRange", options.vni_range), ("vnis", options.vnis)):
        if value:
            wrong.append(f"{tunnel.where}.{key}: there is vni {options.vni} too; keep one of them")
            return {}
    seen: dict[str, str] = {}
    for label, pair in tunnel.pairs.items():
        shared = next((name for name in pair if name in seen and tunnel.ends[name].managed), None)
        if shared:
            wrong.append(
                f"{tunnel.where}.vni: {options.vni} cannot serve {seen[shared]} and {label}, which share host "
                f'{shared}; a VNI and port can stand once on a host: give vniRange: "100-199" in its place'
            )
            break
        seen.update(dict.fromkeys(pair, label))
    return dict.fromkeys(tunnel.pairs, options.vni or 0)


def _derived(tunnel: Tunnel, options: VxlanOptions, wrong: list[str]) -> dict[str, int]:
    """Each from its own ends alone: with more or fewer spokes no other's VNI changes. What falls together is told,
    with what to write."""
    out = dict(options.vnis)
    given = set(options.vnis.values())
    holders: dict[int, str] = {}
    mend: dict[str, int] = {}
    for label in [label for label in tunnel.pairs if label not in options.vnis]:
        if options.vni_range is None:
            wrong.append(f"{tunnel.where}.vnis: none for {label!r}; add it, or give a vniRange to derive it from")
            continue
        low, high = options.vni_range
        out[label] = names.number(low, high, tunnel.base, *sorted(tunnel.pairs[label]))
        if holders.setdefault(out[label], label) != label or out[label] in given:
            mend[label] = out[label]
    if mend and options.vni_range is not None:
        low, high = options.vni_range
        taken = {*given, *out.values()}
        free = (n for n in range(low, high + 1) if n not in taken)
        say = ", ".join(f"{label}: {next(free, '?')}" for label in mend)
        first, number = next(iter(mend.items()))
        other = next(label for label, vni in out.items() if vni == number and label != first)
        wrong.append(
            f"{tunnel.where}.vniRange: {first} and {other} both come to {number}; keep the older one and add "
            f"vnis: {{{say}}}, or take a wider range"
        )
    uses = collections.Counter(options.vnis.values())
    again = [label for label, number in options.vnis.items() if uses[number] > 1]
    if again:
        wrong.append(f"{tunnel.where}.vnis: {errors.listed(again)} have one VNI; give each its own")
    return out


def _check_evpn(tunnel: Tunnel, wrong: list[str]) -> None:
    options = tunnel.options
    if options.topology != EVPN:
        if options.route_target is not None:
            wrong.append(f"{tunnel.where}.routeTarget: {options.route_target!r}; only topology: evpn has one")
        return
    if options.learning and "learning" in options.model_fields_set:
        wrong.append(f"{tunnel.where}.learning: true; with topology: evpn a host is told, and learns nothing by itself")


def _check_group(tunnel: Tunnel, wrong: list[str]) -> None:
    options = tunnel.options
    if options.topology != MULTICAST:
        if options.group is not None:
            wrong.append(f"{tunnel.where}.group: {options.group!r}; only topology: multicast has a group")
        return
    if options.group is None:
        wrong.append(f"{tunnel.where}.group: missing; topology: multicast needs its group, such as 239.1.1.1")
    wrong += [
        f"{host.where}.underlay.device: missing; {tunnel.where} needs the device to join its group on"
        for host in tunnel.hosts
        if host.device is None
    ]


# -- the component ---------------------------------------------------------------------------


class VxlanArgs(TunnelArgs, total=False):
    """Keys of a tunnel of kind vxlan (docs/stack-file.md)."""

    vni: int
    vni_range: str
    vnis: dict[str, int]
    route_target: str
    port: int
    group: str
    ttl: int | str
    tos: int | str
    df: str
    flow_label: int
    learning: bool
    ageing: int
    max_addresses: int
    source_ports: str
    udp_checksum: bool
    udp6_zero_checksum_tx: bool
    udp6_zero_checksum_rx: bool
    proxy: bool
    l2miss: bool
    l3miss: bool
    rsc: bool
    gbp: bool


class VxlanTunnel(TunnelComponent):
    """A VXLAN tunnel between the hosts of a segment (RFC 7348)."""

    KIND = "vxlan"

    def __init__(
        self, name: str, *, bridge: Bridge, opts: ResourceOptions | None = None, **args: Unpack[VxlanArgs]
    ) -> None:
        super().__init__("VxlanTunnel", name, bridge, args, opts)


KIND = VxlanTunnelKind(VxlanTunnel)
