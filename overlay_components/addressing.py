"""The IP plan of one segment: every address has one holder, inside one subnet.

A clash would show only as two machines that answer for one address, hours later and on another
host; so all addresses of a segment are entered in one book, and the second holder is an error.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TypeAlias

from overlay_components import errors, names

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
#: The first and the last of some addresses in a row.
Span: TypeAlias = tuple[Address, Address]
#: Of an IPv4 subnet with more than this prefix length every address is a host's (RFC 3021).
_POINT_TO_POINT = 31
_ADDRESS: dict[int, type[Address]] = {4: ipaddress.IPv4Address, 6: ipaddress.IPv6Address}


@dataclasses.dataclass
class Book:
    """The addresses of one segment. Errors are added to `wrong`."""

    where: str
    subnets: Sequence[Network]
    wrong: list[str]
    holders: dict[Address, str] = dataclasses.field(default_factory=dict)

    def enter(self, where: str, holder: str, text: str) -> str | None:
        """The address with its subnet's prefix length, held by `holder` from now on; None when it is wrong."""
        if not names.known(text):
            return text
        found = self.find(where, text)
        if found is None:
            return None
        address, subnet = found
        other = self.holders.setdefault(address, holder)
        if other != holder:
            self.wrong.append(f"{where}: {address} is given to {other} already; take another address")
        return f"{address}/{subnet.prefixlen}"

    def find(self, where: str, text: str) -> tuple[Address, Network] | None:
        """The address and its subnet, or None after adding what is wrong."""
        interface = ipaddress.ip_interface(text)
        address = interface.ip
        subnet = next((net for net in self.subnets if address in net), None)
        if subnet is None:
            there = errors.listed(map(str, self.subnets)) if self.subnets else "none"
            more = "" if self.subnets or "/" not in text else f", such as subnets: [{interface.network}]"
            self.wrong.append(
                f"{where}: {address} is in no subnet of {self.where} ({there}); take one within, or add its own{more}"
            )
            return None
        if "/" in text and interface.network.prefixlen != subnet.prefixlen:
            self.wrong.append(f"{where}: {text} is in subnet {subnet}; write {address}/{subnet.prefixlen} or {address}")
            return None
        what = special(address, subnet)
        if what:
            self.wrong.append(f"{where}: {address} is the {what} of {subnet}; take an address between the two ends")
            return None
        return address, subnet

    def free(self, avoid: Collection[Address], spans: Sequence[Span] = ()) -> Iterator[Address]:
        """The addresses that nobody holds, the lowest first, without those to avoid and those in `spans`; each subnet
        in turn."""
        for subnet in self.subnets:
            ends = {int(low): int(high) for low, high in spans if low.version == subnet.version}
            # Not hosts(): of a large subnet that would be a list.
            number, last = int(subnet.network_address), int(subnet.broadcast_address)
            while number <= last:
                over = [high for low, high in ends.items() if low <= number <= high]
                if over:
                    number = max(over) + 1
                    continue
                address = _ADDRESS[subnet.version](number)
                if address not in self.holders and address not in avoid and not special(address, subnet):
                    yield address
                number += 1


def special(address: Address, subnet: Network) -> str | None:
    """What the address is in its subnet where it is nobody's, or None."""
    if subnet.version == 4 and subnet.prefixlen < _POINT_TO_POINT:
        if address == subnet.network_address:
            return "network address"
        if address == subnet.broadcast_address:
            return "broadcast address"
    if subnet.version == 6 and subnet.prefixlen < 127 and address == subnet.network_address:
        return "subnet-router anycast address"
    return None


def overlaps(rows: Iterable[tuple[str, Network, frozenset[str]]]) -> list[str]:
    """Errors for subnets that overlap: `rows` are (where, subnet, its segment's hosts). Two segments without a
    common host may use the same addresses."""
    out: list[str] = []
    earlier: list[tuple[str, Network, frozenset[str]]] = []
    for where, net, hosts in rows:
        for other_where, other, other_hosts in earlier:
            common = hosts & other_hosts
            if net.version == other.version and net.overlaps(other) and common:
                same = other_where.split(".subnets")[0] == where.split(".subnets")[0]
                why = "" if same else f", and both are on {errors.listed(sorted(common))}"
                out.append(f"{where}: {net} overlaps {other} of {other_where}{why}; give each its own range")
        earlier.append((where, net, hosts))
    return out
