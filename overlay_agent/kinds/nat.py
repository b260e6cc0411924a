"""Address translation for one segment: masquerade, forwarded ports, public addresses (nft(8)).

One table of our own a segment, replaced as a whole in one transaction of the kernel.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from overlay_agent import fields
from overlay_agent.kinds.base import Kind, Spec, attribute

PORTS = r"[0-9]{1,5}(-[0-9]{1,5})?"
#: What arrives: protocol, a slash, a port or a range of ports.
LISTEN = fields.Pattern(
    rf"(tcp|udp)/{PORTS}", "a protocol and a port or range of ports, such as tcp/8080 or udp/5000-5009"
)
#: Where it goes. `ports`: as many as arrive; left out: the same.
TARGET = fields.Record(
    {"address": fields.Address(), "ports": fields.Pattern(PORTS, "a port or range of ports, such as 80 or 5000-5009")},
    may=frozenset({"ports"}),
)


@dataclasses.dataclass(frozen=True)
class Nat(Spec):
    """What one host translates for one segment. Needs a `forwarding` service beside it."""

    KIND: ClassVar[str] = "nat"

    #: The segment's bridge on this host.
    interface: str = attribute(fields.BridgeName())
    #: Subnets of the segment whose packets leave it under this host's own address.
    masquerade: dict[str, Any] = attribute(fields.Keyed("subnet", fields.Subnet(), fields.Empty()), default={})
    #: What arrives at this host's addresses and is passed on into the segment.
    forwards: dict[str, Any] = attribute(fields.Keyed("forward", LISTEN, TARGET), default={})
    #: One address outside for one inside, both ways: the address inside, by the one outside, which
    #: is put on the NIC whose network it belongs to.
    public_addresses: dict[str, str] = attribute(
        fields.Keyed("public address", fields.Address(), fields.Address()), default={}
    )


class NatKind(Kind):
    """How it stands in nftables."""

    name = "nat"
    spec = Nat
    rank = 17


KIND = NatKind()
