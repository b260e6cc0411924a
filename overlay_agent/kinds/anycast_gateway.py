"""The same gateway, address and MAC address, on all hosts of a segment, each for its own (nft(8), family bridge).

The bridge itself has the gateway's MAC address, so towards containers all is the kernel's own doing: ARP, neighbour
discovery, router advertisements, routing. What must not be is that the tunnels carry that address: forwarding entries
would flap between the hosts, and two hosts could not tell each other from themselves (docs/adr/0007). So at the
tunnels' ports the host goes by a MAC address of its own, in frames and in what ARP and neighbour discovery say, and
nothing that asks for the gateway, answers for it or is meant for it passes them (docs/adr/0016).
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import fields
from overlay_agent.kinds.base import Spec, attribute
from overlay_agent.kinds.gateway_guard import FIRST, LAST, TARGET_BITS, TARGET_OFFSET
from overlay_agent.kinds.table import TableKind

if TYPE_CHECKING:
    from overlay_agent.document import Document
    from overlay_agent.kernel import Kernel

#: Of a neighbour solicitation and advertisement, in bits from the ICMPv6 header on (RFC 4861, sections 4.3, 4.4 and
#: 4.6.1): the lower half of the reserved field, and the option with the sender's MAC address, where there is one.
_RESERVED, _OPTION = "@th,48,16", "@th,192,64"
_TARGET = f"@th,{TARGET_OFFSET},{TARGET_BITS}"
_ND = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"
#: All DHCPv6 relays and servers (RFC 8415, section 7.1), as a MAC address (RFC 2464, section 7).
_DHCP = ("ether daddr ff:ff:ff:ff:ff:ff udp dport 67", "ether daddr 33:33:00:01:00:02 udp dport 547")


@dataclasses.dataclass(frozen=True)
class AnycastGateway(Spec):
    """What stands at the tunnels' ports of a bridge whose MAC address other hosts' bridges have too."""

    KIND: ClassVar[str] = "anycast-gateway"

    #: The bridge, which has `mac` and `addresses`.
    interface: str = attribute(fields.InterfaceName())
    #: The gateway's, on all hosts.
    mac: str = attribute(fields.Mac())
    #: What this host goes by on the tunnels.
    own: str = attribute(fields.Mac())
    #: The gateway's addresses.
    addresses: dict[str, Any] = attribute(fields.Keyed("address", fields.Address(), fields.Empty()))
    #: The tunnels' devices.
    ports: dict[str, Any] = attribute(fields.Keyed("port", fields.InterfaceName(), fields.Empty()))
    #: Whether DHCP is answered on each host, so that no broadcast for it leaves.
    dhcp: bool = attribute(fields.Flag(), default=False)
    #: Rules of others in our table, as found.
    others: dict[str, Any] = attribute(fields.Others("rule"), default={})


class AnycastGatewayKind(TableKind):
    """How it stands in nftables: what comes in by a tunnel's port and what leaves by it has a chain each."""

    name = "anycast-gateway"
    spec = AnycastGateway
    #: After the bridge, before its ports are there: so that nothing slips through.
    rank = 2
    family = "bridge"
    instead = ", or leave out anycast"

    def wrong(self, spec: AnycastGateway) -> list[str]:
        return [f"own: {spec.own} is the gateway's MAC address; give another"] if spec.own == spec.mac else []

    def body(self, spec: AnycastGateway) -> list[str]:
        inward: list[str] = []
        outward: list[str] = []
        here: list[str] = []
        if spec.mac:  # else it is what was found, and nothing in it is ours
            said = f"{spec.interface}: {spec.mac} as {spec.own}"
            inward, outward, here = _rules(spec, said)
        chains = {"inward": inward, "outward": outward}
        lines: list[str] = []
        for name, rules in chains.items():
            lines += [f"\tchain {name} {{", *(f"\t\t{rule}" for rule in rules), "\t}"]
        for hook, word, chain, priority in (
            ("prerouting", "iifname", "inward", FIRST),
            ("postrouting", "oifname", "outward", LAST),
        ):
            lines += [f"\tchain {hook} {{", f"\t\ttype filter hook {hook} priority {priority}; policy accept;"]
            lines += [f'\t\t{word} "{port}" jump {chain} comment "port {port}"' for port in sorted(spec.ports)]
            lines += [f"\t\t{rule}" for rule in here if hook == "prerouting"]
            lines.append("\t}")
        return lines

    def wrong_here(self, kernel: Kernel, name: str, spec: AnycastGateway, wanted: Document) -> list[str]:
        out = super().wrong_here(kernel, name, spec, wanted)
        device = wanted.devices.get(spec.interface)
        if device is None:
            return [*out, f"interface {spec.interface!r} is not a bridge of this document; declare it"]
        if device.mac != spec.mac:
            out.append(f"mac: {spec.mac}, but {spec.interface} is to have {device.mac}; give both the same")
        held = {ipaddress.ip_interface(address).ip for address in device.addresses}
        out += [
            f"addresses: {address} is not on {spec.interface}; give it that"
            for address in sorted(spec.addresses)
            if ipaddress.ip_address(address) not in held
        ]
        return out

    def find(self, kernel: Kernel, name: str, mark: str) -> AnycastGateway | None:
        table = self.whole(mark, _spec)
        return dataclasses.replace(_spec(table.kept), others=table.others) if table else None


def _rules(spec: AnycastGateway, said: str) -> tuple[list[str], list[str], list[str]]:
    """What happens to what comes in by a tunnel's port, to what leaves by it, and to what comes in by any."""
    mac, own = spec.mac, spec.own
    common, own_common = fields.link_local_of(mac), fields.link_local_of(own)
    dropped: list[tuple[str, str]] = []
    if spec.dhcp:
        dropped += [(match, "dhcp") for match in _DHCP]
    six = [address for address in sorted(spec.addresses) if ":" in address]
    if six:
        # A router of its own has each host; another's would lead away from it.
        dropped += [("icmpv6 type { nd-router-solicit, nd-router-advert }", f"address {six[0]}")]
    for address in six:
        dropped += [(f"{_ND} {_TARGET} {_number(address)}", f"address {address}")]
        dropped += [(f"ip6 saddr {address} {_ND}", f"address {address}")]
    four = [address for address in sorted(spec.addresses) if ":" not in address]
    inward = [(f"ether {way} {mac} drop", said) for way in ("saddr", "daddr")]
    inward += [(f"arp {way} ip {address} drop", f"address {address}") for address in four for way in ("saddr", "daddr")]
    inward += [(f"{match} drop", comment) for match, comment in dropped]
    inward += [
        (f"{_ND} {_TARGET} {_number(common)} drop", said),
        (f"ip6 saddr {common} {_ND} drop", said),
        # Who has heard from this host asks whether it is still there.
        (f"icmpv6 type nd-neighbor-solicit {_target(own_common, common)}", said),
        (f"ip6 daddr {own_common} ip6 daddr set {common}", said),
    ]
    outward = [(f"ether daddr {mac} drop", said)]
    for address in four:
        outward += [
            (f"arp daddr ip {address} drop", f"address {address}"),
            (f"arp operation reply arp saddr ip {address} drop", f"address {address}"),
            # Who is asked notes the asker's MAC address, unless it asks as nobody (RFC 5227, section 1.1).
            (f"arp operation request arp saddr ip {address} arp saddr ip set 0.0.0.0", f"address {address}"),
        ]
    outward += [(f"{match} drop", comment) for match, comment in dropped]
    outward += [
        (f"arp saddr ether {mac} arp saddr ether set {own}", said),
        (f"icmpv6 type nd-neighbor-solicit {_TARGET} {_number(common)} drop", said),
        (f"ether saddr != {mac} icmpv6 type nd-neighbor-advert {_TARGET} {_number(common)} drop", said),
        (f"icmpv6 type nd-neighbor-solicit {_option(1, mac, own)}", said),
        # An advertisement may be for this host's own link-local address, and may be without the option.
        (f"icmpv6 type nd-neighbor-advert {_both(mac, own)}", said),
        (f"icmpv6 type nd-neighbor-advert {_option(2, mac, own)}", said),
        (f"icmpv6 type nd-neighbor-advert {_target(common, own_common)}", said),
        (f"ip6 saddr {common} ip6 saddr set {own_common}", said),
        (f"ether saddr {mac} ether saddr set {own}", said),
    ]
    # By any port: a container that came from another host still has that in its ARP entry.
    here = [(f"ether daddr {own} ether daddr set {mac} meta pkttype set host", said)]
    return _written(inward), _written(outward), _written(here)


def _written(rules: Iterable[tuple[str, str]]) -> list[str]:
    return [f'{rule} comment "{comment}"' for rule, comment in rules]


# nft mends the checksum for fields that it has a name for. Here what is taken away goes into the reserved field, which
# is 0 and which nobody reads (RFC 4861, 4.3 and 4.4); so the sum stays, and the checksum with it (RFC 1071).


def _option(type_: int, was: str, now: str) -> str:
    """Replaces the MAC address in the option of the type."""
    old, new = (f"{type_:#x}01{mac.replace(':', '')}" for mac in (was, now))
    balance = _balance((_bytes(was), _bytes(now)))
    return f"{_OPTION} {old} {_OPTION} set {new} {_RESERVED} set {balance:#x}"


def _target(was: str, now: str) -> str:
    """Replaces the address that it is about."""
    balance = _balance((_packed(was), _packed(now)))
    return f"{_TARGET} {_number(was)} {_TARGET} set {_number(now)} {_RESERVED} set {balance:#x}"


def _both(was: str, now: str) -> str:
    """Replaces the link-local address that it is about, and the MAC address in the option."""
    old, new = (f"0x201{mac.replace(':', '')}" for mac in (was, now))
    common, own = fields.link_local_of(was), fields.link_local_of(now)
    balance = _balance((_bytes(was), _bytes(now)), (_packed(common), _packed(own)))
    return (
        f"{_TARGET} {_number(common)} {_OPTION} {old} {_TARGET} set {_number(own)} {_OPTION} set {new} "
        f"{_RESERVED} set {balance:#x}"
    )


def _balance(*changes: tuple[bytes, bytes]) -> int:
    """What to add, in ones' complement, so that the sum is the same with each first one replaced by its second."""
    total = 0
    for was, now in changes:
        total += sum(_words(was)) + sum(0xFFFF - word for word in _words(now))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _words(data: bytes) -> list[int]:
    return [int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)]


def _bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def _number(address: str) -> str:
    return f"{int(ipaddress.ip_address(address)):#x}"


def _spec(comments: Iterable[str]) -> AnycastGateway:
    """What rules with these comments stand for."""
    interface = mac = own = ""
    said: dict[str, dict[str, Any]] = {"port": {}, "address": {}}
    dhcp = False
    for comment in comments:
        match = re.fullmatch(r"(port|address) (\S+)", comment)
        type_ = fields.InterfaceName() if match and match[1] == "port" else fields.Address()
        named = re.fullmatch(r"(\S+): ([0-9a-f:]{17}) as ([0-9a-f:]{17})", comment)
        if match and not type_.check(match[2]):
            said[match[1]][match[2]] = {}
        elif named and not mac and not any(map(fields.Mac().check, named.groups()[1:])):
            interface, mac, own = named.groups()
        dhcp |= comment == "dhcp"
    return AnycastGateway(interface, mac, own, said["address"], said["port"], dhcp)


KIND = AnycastGatewayKind()
