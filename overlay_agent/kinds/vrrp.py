"""Addresses that one of several hosts has at a time, by VRRP (RFC 5798) with keepalived(8)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from overlay_agent import fields
from overlay_agent.kinds.base import Kind, Spec, attribute


@dataclasses.dataclass(frozen=True)
class Vrrp(Spec):
    """The host's part in one group of routers. Units: interval in hundredths of a second."""

    KIND: ClassVar[str] = "vrrp"

    #: The segment's bridge, over which the routers hear each other.
    interface: str = attribute(fields.BridgeName())
    #: The group's number, the same on its hosts (virtual_router_id).
    group: int = attribute(fields.Integer(1, 255))
    #: Of those that are alive the highest has the addresses.
    priority: int = attribute(fields.Integer(1, 254))
    #: The floating addresses, with prefix length; of one IP version.
    addresses: dict[str, Any] = attribute(fields.ADDRESSES)
    #: Between two advertisements; after three without one the next host takes over.
    interval: int = attribute(fields.Integer(10, 4095), default=50)


class VrrpKind(Kind):
    """How it is run."""

    name = "vrrp"
    spec = Vrrp
    rank = 18


KIND = VrrpKind()
