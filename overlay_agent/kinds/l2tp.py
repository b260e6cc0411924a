"""An Ethernet tunnel to one peer in L2TPv3 without its control protocol (RFC 3931; ip-l2tp(8)): a tunnel
and its one session, which is the network device.

Both ends are told the same by one declaration, so nothing is negotiated. As with `ip l2tp add session`
there is always the L2-specific sublayer (4 bytes): the kernel does not tell whether there is one, so a
choice of it could not be verified.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from overlay_agent import fields
from overlay_agent.fields import RECREATE
from overlay_agent.kinds.base import Device, DeviceKind, attribute, optional

ID = fields.Integer(1, 0xFFFFFFFF)
PORT = fields.Integer(1, 65535)


def overhead(version: int, encap: str, cookie_bytes: int = 0) -> int:
    """What encapsulation adds inside the underlay's MTU: the outer IP header, with `udp` UDP (8) and the word
    that tells data from control (4), session id (4), cookie, sublayer (4) and the inner Ethernet header (14)."""
    return {4: 20, 6: 40}[version] + {"udp": 12, "ip": 0}[encap] + 4 + cookie_bytes + 4 + 14


@dataclasses.dataclass(frozen=True)
class L2tp(Device):
    """One tunnel with its session and device. Units: none."""

    KIND: ClassVar[str] = "l2tp"

    #: On this host; source of what is sent.
    local: str = attribute(fields.Address(), change=RECREATE)
    remote: str = attribute(fields.Address(), change=RECREATE)
    #: In UDP, or straight in IP (protocol 115).
    encap: str = attribute(fields.Choice(["udp", "ip"]), default="udp", change=RECREATE)
    #: Each end has its own ids, and knows its peer's.
    tunnel_id: int = attribute(ID, change=RECREATE)
    peer_tunnel_id: int = attribute(ID, change=RECREATE)
    session_id: int = attribute(ID, change=RECREATE)
    peer_session_id: int = attribute(ID, change=RECREATE)
    #: UDP ports; null with encap ip.
    local_port: int | None = attribute(optional(PORT), default=None, change=RECREATE)
    remote_port: int | None = attribute(optional(PORT), default=None, change=RECREATE)
    #: What stands in each packet sent, so that the peer can tell it from a forged one.
    cookie: str | None = attribute(optional(fields.Secret()), default=None, change=RECREATE)
    #: What has to stand in each packet that comes.
    peer_cookie: str | None = attribute(optional(fields.Secret()), default=None, change=RECREATE)
    #: Number the packets, and drop what comes out of order or without a number.
    sequencing: bool = attribute(fields.Flag(), default=False)
    udp_checksum: bool = attribute(fields.Flag(), default=True, change=RECREATE)


class L2tpKind(DeviceKind):
    """How it is made, by generic netlink."""

    name = "l2tp"
    spec = L2tp
    modules = ("l2tp_eth",)
    option = "CONFIG_L2TP_ETH"


KIND = L2tpKind()
