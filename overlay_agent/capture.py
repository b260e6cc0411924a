"""What passes a device, as a pcap file (draft-ietf-opsawg-pcap), read from a packet socket: it needs no program.

Bounded in time and in bytes, since it goes through an SSH session into a file of somebody's.
"""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from overlay_agent import paths
from overlay_agent.errors import KernelError
from overlay_agent.fields import DOCKER
from overlay_agent.kernel import Kernel

_ALL = 0x0003
_SOL_PACKET, _ADD_MEMBERSHIP, _PROMISC = 263, 1, 1
_ETHERNET, _RAW = 1, 101
_SNAP = 1 << 16
_IP, _IP6, _ARP, _VLAN = 0x0800, 0x86DD, 0x0806, 0x8100
#: By name: the protocol's number in IP headers.
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "gre": 47, "icmp6": 58, "l2tp": 115}


def capture(request: Mapping[str, Any]) -> None:
    """Writes pcap to standard output until so many seconds or bytes are over, or nobody reads it any more. Raises
    KernelError where there is no such device."""
    device = _device(request["device"])
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as reading:
        try:
            reading.bind((device, _ALL))
        except OSError as error:
            raise KernelError(f"{device}: capture", error.errno or 0, error.strerror or "") from None
        member = struct.pack("=iHH8s", socket.if_nametoindex(device), _PROMISC, 0, b"")
        reading.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, member)
        kind = _ETHERNET if reading.getsockname()[3] == 1 else _RAW  # ARPHRD_ETHER; others have no such header here
        _write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, _SNAP, kind))
        end, left = time.monotonic() + request["seconds"], request["bytes"]
        while (wait := end - time.monotonic()) > 0 and left > 0:
            ready, _, _ = select.select([reading], [], [], wait)
            if not ready:
                continue
            packet = reading.recv(_SNAP)
            if not taken(packet, request["filter"], ethernet=kind == _ETHERNET):
                continue
            now = time.time_ns()
            row = struct.pack("=IIII", now // 10**9, now // 1000 % 10**6, len(packet), len(packet)) + packet
            _write(row)
            left -= len(row)


def _device(name: str) -> str:
    """The device: by its own name, by Docker's network, or `to:ADDRESS`, by which packets to that address leave."""
    if name.startswith(DOCKER):
        return paths.docker_bridges([name]).get(name, name)
    if not name.startswith("to:"):
        return name
    with socket.socket(socket.AF_INET6 if name.count(":") > 1 else socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect((name[3:], 9))  # sends nothing
        link = Kernel().device_with(asking.getsockname()[0])
    return link.name if link else name


def taken(packet: bytes, wanted: Mapping[str, Any], *, ethernet: bool = True) -> bool:
    """Whether the packet has all that is wanted: `protocol`, `host` (either end), `port` (either end)."""
    if not wanted:
        return True
    type_, at = _IP if packet[:1] and packet[0] >> 4 == 4 else _IP6, 0
    if ethernet:
        type_, at = struct.unpack_from(">H", packet, 12)[0], 14
        if type_ == _VLAN and len(packet) >= 18:
            type_, at = struct.unpack_from(">H", packet, 16)[0], 18
    protocol, ends, after = _ends(type_, packet[at:])
    names = {_ARP: "arp", _IP: "ip", _IP6: "ip6"}
    if wanted.get("protocol") not in (
        None,
        names.get(type_),
        *(n for n, number in PROTOCOLS.items() if number == protocol),
    ):
        return False
    if "host" in wanted and ipaddress.ip_address(wanted["host"]).packed not in ends:
        return False
    if "port" in wanted:
        has_ports = protocol in (PROTOCOLS["udp"], PROTOCOLS["tcp"]) and len(after) >= 4
        return has_ports and wanted["port"] in struct.unpack_from(">HH", after)
    return True


def _ends(type_: int, data: bytes) -> tuple[int, tuple[bytes, bytes], bytes]:
    """Protocol, source and target, and what follows the header. Extension headers of IPv6 are not followed."""
    if type_ == _IP and len(data) >= 20:
        first = not struct.unpack_from(">H", data, 6)[0] & 0x1FFF
        return data[9], (data[12:16], data[16:20]), data[(data[0] & 15) * 4 :] if first else b""
    if type_ == _IP6 and len(data) >= 40:
        return data[6], (data[8:24], data[24:40]), data[40:]
    if type_ == _ARP and len(data) >= 28:
        return -1, (data[14:18], data[24:28]), b""
    return -1, (b"", b""), b""


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]
