"""An Ethernet tunnel to one peer in GRE (RFC 2784, RFC 2890; ip-link(8), "GRETAP"): `gretap` over IPv4,
`ip6gretap` over IPv6.

The kernel tells the tunnels of a host apart by local address, remote address and key, and takes no
packet that fits none of them.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from overlay_agent import fields
from overlay_agent.kinds.base import Device, DeviceKind, attribute, optional

#: What encapsulation adds inside the underlay's MTU, by IP version of the underlay: the outer IP
#: header, GRE (4) and the inner Ethernet header (14); a key another KEY_BYTES.
OVERHEAD = {4: 38, 6: 58}
KEY_BYTES = 4


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
    others: dict[str, object] = attribute(fields.Others("setting"), default={})


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
    """What is special about them; the two differ in the words of netlink and of ip(8)."""

    modules = ("ip_gre",)
    option = "CONFIG_NET_IPGRE"
    name = "gretap"
    spec = Gretap


class Ip6GretapKind(GretapKind):
    """The same over IPv6."""

    modules = ("ip6_gre",)
    option = "CONFIG_IPV6_GRE"
    name = "ip6gretap"
    spec = Ip6Gretap


KINDS = {kind.name: kind for kind in (GretapKind(), Ip6GretapKind())}
