"""Keeps each host's own gateway to itself where several hosts have the same one (nft(8), family bridge).

Docker gives every host's bridge the same gateway address. Joined by a tunnel, each container would
reach whichever host answers its ARP first; so ARP and neighbour discovery for those addresses do
not pass the tunnel's ports.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import fields
from overlay_agent.kinds.base import Spec, attribute
from overlay_agent.kinds.table import TableKind

if TYPE_CHECKING:
    from overlay_agent.document import Document
    from overlay_agent.kernel import Kernel

#: Where the target's address stands in a neighbour solicitation and advertisement, in bits from
#: the ICMPv6 header on (RFC 4861, sections 4.3 and 4.4). nft has a name for it since 1.0.5 only.
TARGET_OFFSET, TARGET_BITS = 64, 128
#: As the bridge family's own translations: before it learns where a MAC address is, and after all else.
FIRST, LAST = -300, 300


@dataclasses.dataclass(frozen=True)
class GatewayGuard(Spec):
    """Addresses that are not asked for, answered or claimed through these ports of a bridge.

    With an IPv6 address among them no router advertisement passes either: it would come from a
    link-local address, and make its sender the default gateway.
    """

    KIND: ClassVar[str] = "gateway-guard"

    ports: dict[str, Any] = attribute(fields.Keyed("port", fields.InterfaceName(), fields.Empty()))
    addresses: dict[str, Any] = attribute(fields.Keyed("address", fields.Address(), fields.Empty()))
    #: Rules of others in our table, as found.
    others: dict[str, Any] = attribute(fields.Others("rule"), default={})


class GatewayGuardKind(TableKind):
    """How it stands in nftables: what enters and what leaves by a port goes through one chain."""

    name = "gateway-guard"
    spec = GatewayGuard
    #: Before the ports are there, so that nothing slips through.
    rank = 2
    family = "bridge"

    def body(self, spec: GatewayGuard) -> list[str]:
        lines: list[str] = []
        for hook, word, priority in (("prerouting", "iifname", FIRST), ("postrouting", "oifname", LAST)):
            lines += [f"\tchain {hook} {{", f"\t\ttype filter hook {hook} priority {priority}; policy accept;"]
            lines += [f'\t\t{word} "{port}" jump guard comment "port {port}"' for port in sorted(spec.ports)]
            lines.append("\t}")
        # nft takes a chain's name only after the chain: it is declared before it is jumped to.
        guard = ["\tchain guard {"]
        for address in sorted(spec.addresses):
            guard += [f'\t\t{match} drop comment "address {address}"' for match in _matches(address)]
        return [*guard, "\t}", *lines]

    def wrong_here(self, kernel: Kernel, name: str, spec: GatewayGuard, wanted: Document) -> list[str]:
        out = super().wrong_here(kernel, name, spec, wanted)
        bridges = {wanted.devices[port].bridge for port in spec.ports if port in wanted.devices}
        # Of a bridge that this document makes, the addresses are known; of one that is not there, its own kind speaks.
        for link in [kernel.links[bridge] for bridge in bridges - wanted.devices.keys() if bridge in kernel.links]:
            out += _not_its_gateways(link.name, kernel.addresses(link), spec)
        return out

    def find(self, kernel: Kernel, name: str, mark: str) -> GatewayGuard | None:
        table = self.whole(mark, _spec)
        return dataclasses.replace(_spec(table.kept), others=table.others) if table else None


def _not_its_gateways(bridge: str, held: Iterable[str], spec: GatewayGuard) -> list[str]:
    """What a guard for these addresses would let through in silence: those that the bridge really has."""
    real = [ipaddress.ip_interface(text).ip for text in held]
    out = []
    for address in map(ipaddress.ip_address, spec.addresses):
        if address.is_link_local or address in real:  # the kernel does not tell link-local ones among `held`
            continue
        others = [str(one) for one in real if one.version == address.version]
        has = ", ".join(others) or f"no IPv{address.version} address"
        ways = [f"write gateway: {others[0]} on its segment"] if others else []
        ways.append(f"give it that address on this host (docker network create --gateway {address})")
        out.append(f"addresses: {address} is to be the gateway, but bridge {bridge} has {has}; {', or '.join(ways)}")
    return out


def _matches(address: str) -> list[str]:
    if ":" not in address:
        return [f"arp {field} ip {address}" for field in ("saddr", "daddr")]
    target = int(ipaddress.ip_address(address))
    both = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"
    return [
        f"{both} @th,{TARGET_OFFSET},{TARGET_BITS} {target:#x}",
        f"ip6 saddr {address} {both}",  # whoever is asked learns the asker's MAC address
        "icmpv6 type nd-router-advert",
    ]


def _spec(comments: Iterable[str]) -> GatewayGuard:
    """What rules with these comments stand for."""
    said: dict[str, dict[str, Any]] = {"port": {}, "address": {}}
    for comment in comments:
        match = re.fullmatch(r"(port|address) (\S+)", comment)
        type_ = fields.InterfaceName() if match and match[1] == "port" else fields.Address()
        if match and not type_.check(match[2]):
            said[match[1]][match[2]] = {}
    return GatewayGuard(said["port"], said["address"])


KIND = GatewayGuardKind()
