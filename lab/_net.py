"""Who has which address: pure functions of the lab's options, so that stack files can name addresses beforehand."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

MAX_HOSTS = 250
MAX_MTU = 65535  # of a veth
OPERATOR = "op"
BASTION = "bastion"


@dataclass(frozen=True)
class Options:
    """What a lab looks like; two labs with equal options are alike."""

    hosts: int = 3
    ipv6: bool = False
    bastion: bool = False
    rate: str | None = None
    mtu: int = 1500
    max_startups: str | None = "100:30:200"
    nics: int = 1

    def problems(self) -> list[str]:
        """What is wrong with the options, in words for a person."""
        found = []
        if not 1 <= self.hosts <= MAX_HOSTS:
            found.append(f"hosts: {self.hosts} is not possible; 1 to {MAX_HOSTS} are")
        if self.nics not in (1, 2):
            found.append(f"nics: {self.nics} is not possible; 1 or 2 are")
        low = 1280 if self.ipv6 else 576
        if not low <= self.mtu <= MAX_MTU:
            found.append(f"mtu: {self.mtu} is not possible; {low} to {MAX_MTU} are")
        return found

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Port:
    """One network card: `device` in the host (or operator), `port` its other end on switch bridge `bridge`."""

    device: str
    port: str
    bridge: str
    mac: str
    address: str
    address6: str | None


@dataclass(frozen=True)
class Node:
    """A host or the operator, with its cards; the first is the one that SSH uses."""

    name: str
    ports: tuple[Port, ...]
    gateways: tuple[str, ...] = ()
    #: A second card, down and without an address.
    spare: tuple[Port, ...] = ()

    @property
    def cards(self) -> tuple[Port, ...]:
        return self.ports + self.spare


def host_address(number: int) -> str:
    """IPv4 underlay address of host h<number>: h1 is 198.18.0.11."""
    return f"198.18.{number // 200}.{number % 200 + 10}"


def host_address6(number: int) -> str:
    """IPv6 underlay address of host h<number>: h1 is 2001:db8:18::11 (the same digits)."""
    high, low = number // 200, number % 200 + 10
    return f"2001:db8:18::{high}:{low}" if high else f"2001:db8:18::{low}"


def mac(lab: str, node: str, device: str) -> str:
    """A MAC that a reboot does not change: peers keep theirs in their neighbour tables."""
    digest = hashlib.sha256(f"{lab}/{node}/{device}".encode()).digest()
    return ":".join(["02", *(f"{byte:02x}" for byte in digest[:5])])


def plan(lab: str, options: Options) -> tuple[Node, list[Node]]:
    """The operator and all hosts; with a bastion, the last of them is the bastion."""

    def port(node: str, device: str, bridge: str, name: str, address: str, address6: str) -> Port:
        return Port(device, name, bridge, mac(lab, node, device), address, address6 if options.ipv6 else None)

    hosts = []
    # real hosts have a default route (a multicast join without a device needs one); nothing is behind this one
    gateways: tuple[str, ...] = ("198.18.255.254", "2001:db8:18::fffe")
    if options.bastion:
        gateways = ("198.18.255.1", "2001:db8:18::ff01")
    if not options.ipv6:
        gateways = gateways[:1]
    for number in range(1, options.hosts + 1):
        name = f"h{number}"
        card = port(name, "eth0", "underlay", name, host_address(number), host_address6(number))
        more = Port("eth1", f"{name}-1", "lan", mac(lab, name, "eth1"), "", None)
        hosts.append(Node(name, (card,), gateways, (more,) if options.nics > 1 else ()))
    if not options.bastion:
        card = port(OPERATOR, "eth0", "underlay", OPERATOR, "198.18.255.254", "2001:db8:18::fffe")
        return Node(OPERATOR, (card,)), hosts
    outside = port(BASTION, "eth0", "outside", BASTION, "198.19.255.1", "2001:db8:19::ff01")
    inside = port(BASTION, "eth1", "underlay", f"{BASTION}-in", "198.18.255.1", "2001:db8:18::ff01")
    hosts.append(Node(BASTION, (outside, inside)))
    card = port(OPERATOR, "eth0", "outside", OPERATOR, "198.19.255.254", "2001:db8:19::fffe")
    return Node(OPERATOR, (card,)), hosts
