"""BGP EVPN (RFC 7432, RFC 8365) with FRR: whoever joins tells the others where its VTEP is.

The tunnels are VXLAN devices without peers; FRR's bgpd and zebra, in a pathspace of their own, fill
their forwarding tables. One such service a host, for all its VNIs. How it is run, what was measured,
and why FRR: docs/adr/0014.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, ClassVar

from overlay_agent import fields
from overlay_agent.kinds.base import Kind, Spec, attribute, optional

#: Numbers that are nobody's (RFC 7607, RFC 6793, RFC 5398, RFC 7300), with why.
_RESERVED = {
    23456: "stands for any larger one (AS_TRANS, RFC 6793)",
    65535: "is reserved (RFC 7300)",
    4294967295: "is reserved (RFC 7300)",
}
_DOCUMENTATION = ((64496, 64511), (65536, 65551))


class Asn(fields.Integer):
    """An autonomous system's number that may be used."""

    def __init__(self) -> None:
        super().__init__(1, 4294967295)

    def check(self, value: Any) -> str | None:
        wrong = super().check(value)
        if wrong:
            return wrong
        if value in _RESERVED:
            return f"{value} {_RESERVED[value]}; take one from 64512 to 65534"
        return None


class RouterId(fields.Address):
    """Four bytes, written as an IPv4 address."""

    def check(self, value: Any) -> str | None:
        good = super().check(value) is None and ":" not in value and value != "0.0.0.0"  # noqa: S104 - is refused
        return None if good else f"{value!r} is not a router ID, which is written as an IPv4 address"


class Vni(fields.Type):
    """A VNI as a key, hence text."""

    def check(self, value: Any) -> str | None:
        if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]{0,7}", value) and int(value) <= 16777215:
            return None
        return f"{value!r} is not a VNI, which is a number from 1 to 16777215"


class Target(fields.Type):
    """A route target or distinguisher (RFC 4360): number:number or address:number."""

    def check(self, value: Any) -> str | None:
        match = re.fullmatch(r"([0-9.]{1,15}):([0-9]{1,10})", value) if isinstance(value, str) else None
        if match:
            head, low = match[1], int(match[2])
            if "." in head and RouterId().check(head) is None and low <= 0xFFFF:
                return None
            # Two bytes and four, or four and two.
            if "." not in head and (int(head), low) <= (0xFFFF, 0xFFFFFFFF):
                return None
            if "." not in head and int(head) <= 0xFFFFFFFF and low <= 0xFFFF:
                return None
        return f"{value!r} is not a route target or distinguisher, such as 65000:42 or 192.0.2.1:42"


_TARGETS = fields.Keyed("target", Target(), fields.Empty())
VNI = fields.Record(
    {"rd": fields.optional(Target()), "import": _TARGETS, "export": _TARGETS}, frozenset({"rd", "import", "export"})
)


@dataclasses.dataclass(frozen=True)
class Evpn(Spec):
    """This host as a BGP speaker (iBGP). Units: keepalive and hold in seconds."""

    KIND: ClassVar[str] = "evpn"

    asn: int = attribute(Asn())
    #: Tells this speaker from all others.
    router_id: str = attribute(RouterId())
    #: The address that sessions come from: on this host.
    local: str = attribute(fields.Address())
    #: With whom it opens sessions, by name: of a client its reflectors; of a reflector the other reflectors, and
    #: those clients that are in none of its `ranges`.
    neighbors: dict[str, str] = attribute(fields.Peers(), default={})
    #: Whether it passes routes on from client to client (RFC 4456). Its router ID is its cluster's.
    reflector: bool = attribute(fields.Flag(), default=False)
    #: Which of `neighbors` are a reflector's clients.
    clients: dict[str, Any] = attribute(fields.Keyed("client", fields.Label(), fields.Empty()), default={})
    #: From where a reflector takes sessions of clients that it was not told of.
    ranges: dict[str, Any] = attribute(fields.Keyed("range", fields.Subnet(), fields.Empty()), default={})
    #: Of all sessions (TCP MD5, RFC 2385).
    password: str | None = attribute(optional(fields.Secret()), default=None)
    #: Notice the death of a neighbor within a second (RFC 5880).
    bfd: bool = attribute(fields.Flag(), default=False)
    port: int = attribute(fields.Integer(1, 65535), default=179)
    keepalive: int = attribute(fields.Integer(1, 65535), default=3)
    hold: int = attribute(fields.Integer(3, 65535), default=9)
    #: What is told and taken, by VNI. Null and empty: as FRR derives it.
    vnis: dict[str, Any] = attribute(fields.Keyed("vni", Vni(), VNI), default={})


class EvpnKind(Kind):
    """How it is run."""

    name = "evpn"
    spec = Evpn
    rank = 17
    program = True


KIND = EvpnKind()
