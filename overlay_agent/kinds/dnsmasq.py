"""DHCP, DNS and router advertisements for one segment, by one dnsmasq (dnsmasq(8)).

It is bound to the segment's bridge alone and serves whoever is on it, on this host or behind the
tunnels. What comes and goes, the static leases and names, stands in files of their own that
dnsmasq reads again at a SIGHUP: a new reservation restarts nothing and loses no lease.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from overlay_agent import fields
from overlay_agent.kinds.base import Kind, Spec, attribute, optional

#: A static lease: who has that MAC address always gets that address, and its key as name.
LEASE = fields.Record({"mac": fields.Mac(), "address": fields.Address()})
NAME = fields.Pattern(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", "a host name (RFC 1123), such as web-1")
DOMAIN = fields.Pattern(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?", "a domain, such as app.example")
#: What dnsmasq calls the option (`dnsmasq --help dhcp`), or its number; `option6:` for DHCPv6.
OPTION = fields.Pattern(r"(option6?:)?[a-z0-9][a-z0-9-]*", "an option's name or number, such as ntp-server or 42")
VALUE = fields.Pattern(r"[^\x00-\x1f\x7f]*", "one line of text")


@dataclasses.dataclass(frozen=True)
class Dnsmasq(Spec):
    """One dnsmasq. Units: lease in seconds, mtu in bytes."""

    KIND: ClassVar[str] = "dnsmasq"

    #: The bridge it is bound to, and nothing else.
    interface: str = attribute(fields.BridgeName())
    #: This host's own addresses in the segment: DNS is answered there.
    addresses: dict[str, Any] = attribute(fields.Keyed("address", fields.Address(), fields.Empty()))
    #: The segment's subnets. One without a range gives out static leases only.
    subnets: dict[str, Any] = attribute(fields.Keyed("subnet", fields.Subnet(), fields.Empty()))
    #: What may be given to whoever asks; each within a subnet.
    ranges: dict[str, Any] = attribute(fields.Keyed("range", fields.AddressRange(), fields.Empty()), default={})
    #: Static leases, by name; an address of either IP version.
    hosts: dict[str, Any] = attribute(fields.Keyed("host", NAME, LEASE), default={})
    lease: int = attribute(fields.Integer(120, 0xFFFFFFFF), default=3600)
    lease_max: int = attribute(fields.Integer(1, 1_000_000), default=1000)
    domain: str | None = attribute(optional(DOMAIN), default=None)
    #: Servers to ask for other names, in this order; empty: those of the host's resolv.conf.
    dns: list[str] = attribute(fields.Items(fields.Address()), default=[])
    #: What containers route through over IPv4 (option 3); null: nothing.
    router: str | None = attribute(optional(fields.Address()), default=None)
    #: Name servers that containers are told of (options 6 and 23); empty: `addresses`.
    name_servers: list[str] = attribute(fields.Items(fields.Address()), default=[])
    #: Other ways than through the router (option 121, RFC 3442): the next hop by subnet. IPv4.
    routes: dict[str, str] = attribute(fields.Keyed("route", fields.Subnet(), fields.Address()), default={})
    #: Option 26 and the MTU of router advertisements.
    mtu: int = attribute(fields.Integer(68, 65535))
    #: Router advertisements for the IPv6 subnets (RFC 4861).
    ra: bool = attribute(fields.Flag(), default=False)
    #: Whether they name this host as default router; else their router lifetime is 0.
    ra_router: bool = attribute(fields.Flag(), default=False)
    #: Further DHCP options, by name or number.
    options: dict[str, str] = attribute(fields.Keyed("option", OPTION, VALUE), default={})
    #: Ask the servers of `dns` strictly in their order.
    strict_order: bool = attribute(fields.Flag(), default=True)
    #: Never put options into the file and server name fields of old clients' packets.
    no_override: bool = attribute(fields.Flag(), default=True)
    #: The only DHCP server of the segment, which may say no to addresses that it does not know.
    authoritative: bool = attribute(fields.Flag(), default=True)


class DnsmasqKind(Kind):
    """How it is run."""

    name = "dnsmasq"
    spec = Dnsmasq
    rank = 19


KIND = DnsmasqKind()
