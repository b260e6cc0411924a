"""Keeps each host's own gateway to itself where several hosts have the same one (nft(8), family bridge).

Docker gives every host's bridge the same gateway address. Joined by a tunnel, each container would
reach whichever host answers its ARP first; so ARP and neighbour discovery for those addresses do
not pass the tunnel's ports.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from overlay_agent import fields
from overlay_agent.kinds.base import Kind, Spec, attribute


@dataclasses.dataclass(frozen=True)
class GatewayGuard(Spec):
    """Addresses that are not asked for, answered or claimed through these ports of a bridge."""

    KIND: ClassVar[str] = "gateway-guard"

    ports: dict[str, Any] = attribute(fields.Keyed("port", fields.InterfaceName(), fields.Empty()))
    addresses: dict[str, Any] = attribute(fields.Keyed("address", fields.Address(), fields.Empty()))


class GatewayGuardKind(Kind):
    """How it stands in nftables."""

    name = "gateway-guard"
    spec = GatewayGuard
    #: Before the ports are there, so that nothing slips through.
    rank = 2


KIND = GatewayGuardKind()
