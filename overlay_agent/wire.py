"""Asks what a container would ask, from a bridge, without being one: DHCP, ARP, DNS, and a ping through the router.

The host may have no address in the segment, and must get none for this, so packets are made here and sent with a MAC
address of their own from a packet socket (packet(7)). No lease is taken: an offer is not accepted.
"""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any

IPV4, ARP = 0x0800, 0x0806
_UDP, _ICMP = 17, 1
_BROADCAST = b"\xff" * 6
#: s. How long an answer may take, also from somebody who should not be there, and how often it is asked for.
ANSWER, PROBE, _EVERY = 5.0, 0.6, 0.25
_SOL_PACKET, _ADD_MEMBERSHIP, _PROMISC = 263, 1, 1
_MAGIC = b"\x63\x82\x53\x63"
_DISCOVER, _OFFER = 1, 2


def checked(device: str, mac: bytes, check: Mapping[str, Any]) -> dict[str, Any]:
    """What was answered on this device to what `check` asks for: dhcp, dns, nat; gateway: who else has that address, by
    MAC address. `source`: the address to ask from; `own`: the host has it. `taken`: somebody else has."""
    own = bool(check["own"])
    with Wire(device, mac if own else b"\x02" + os.urandom(5), check.get("source") or "0.0.0.0", own=own) as asking:  # noqa: S104 - none
        out: dict[str, Any] = {}
        if "gateway" in check:
            other = asking.where(check["gateway"], PROBE)
            out["gateway"] = other.hex(":") if other else None
        if "dhcp" in check:
            out["dhcp"] = asking.discover(check["dhcp"].get("mac"))
        if not own and ("dns" in check or "nat" in check) and asking.is_taken():
            return {**out, "taken": True}
        if "dns" in check:
            out["dns"] = asking.resolve(check["dns"]["server"], check["dns"]["name"])
        if "nat" in check:
            out["nat"] = asking.ping_through(check["nat"]["gateway"], check["nat"]["target"])
        return out


class Wire:
    """One address and one MAC address on a device, for as long as it is open."""

    def __init__(self, device: str, mac: bytes, source: str, *, own: bool) -> None:
        self.mac, self.source, self.own = mac, socket.inet_aton(source), own
        self._sockets = {}
        for protocol in (IPV4, ARP):
            one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            one.bind((device, protocol))
            # What is for our MAC address is for nobody's whom the bridge knows.
            member = struct.pack("=iHH8s", socket.if_nametoindex(device), _PROMISC, 0, b"")
            one.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, member)
            self._sockets[protocol] = one

    def __enter__(self) -> Wire:  # noqa: PYI034 - Self is from 3.11
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sockets.values():
            one.close()

    def discover(self, client: str | None) -> dict[str, Any] | None:
        """What a DHCP server offers (RFC 2131) to that MAC address, or to one of nobody's."""
        number = os.urandom(4)
        hardware = bytes.fromhex(client.replace(":", "")) if client else self.mac
        # Broadcast, please: whoever's address it is, the answer comes here.
        message = struct.pack(">BBBB4sHH", 1, 1, 6, 0, number, 0, 0x8000) + b"\0" * 16 + hardware.ljust(16, b"\0")
        message += b"\0" * 192 + _MAGIC + bytes([53, 1, _DISCOVER, 55, 5, 1, 3, 6, 26, 51, 255])
        packet = _ipv4(_UDP, b"\0" * 4, b"\xff" * 4, _udp(b"\0" * 4, b"\xff" * 4, 68, 67, message))

        def offer(_: bytes, data: bytes) -> dict[str, Any] | None:
            ports = struct.unpack_from(">HH", data, _header(data)) if len(data) > 28 else (0, 0)
            return offered(data[_header(data) + 8 :], number) if ports == (67, 68) else None

        found: dict[str, Any] | None = self._ask(IPV4, lambda: self._send(_BROADCAST, IPV4, packet), offer)
        return found

    def is_taken(self) -> bool:
        """Whether somebody has the address to ask from (RFC 5227)."""
        source, self.source = self.source, b"\0" * 4
        try:
            return self.where(socket.inet_ntoa(source), PROBE) is not None
        finally:
            self.source = source

    def where(self, address: str, seconds: float = ANSWER) -> bytes | None:
        """The MAC address that answers for the address (RFC 826)."""
        wanted = socket.inet_aton(address)
        request = struct.pack(">HHBBH6s4s6s4s", 1, IPV4, 6, 4, 1, self.mac, self.source, b"\0" * 6, wanted)

        def answer(_: bytes, data: bytes) -> bytes | None:
            found = len(data) >= 28 and data[6:8] == b"\0\x02" and data[14:18] == wanted
            return data[8:14] if found else None

        found: bytes | None = self._ask(ARP, lambda: self._send(_BROADCAST, ARP, request), answer, seconds)
        return found

    def resolve(self, server: str, name: str) -> dict[str, Any]:
        """What a DNS server says about the name (RFC 1035). `reached`: it answers to ARP. `code` None: no answer."""
        mac = self.where(server)
        out: dict[str, Any] = {"reached": mac is not None, "code": None, "addresses": []}
        if mac is None:
            return out
        number, port = os.urandom(2), 49152 + int.from_bytes(os.urandom(2), "big") % 16384
        question = number + struct.pack(">HHHHH", 0x0100, 1, 0, 0, 0) + _name(name) + struct.pack(">HH", 1, 1)
        target = socket.inet_aton(server)
        packet = _ipv4(_UDP, self.source, target, _udp(self.source, target, port, 53, question))

        def answer(_: bytes, data: bytes) -> dict[str, Any] | None:
            at = _header(data)
            if len(data) < at + 20 or data[9] != _UDP or struct.unpack_from(">HH", data, at) != (53, port):
                return None
            return answered(data[at + 8 :]) if data[at + 8 : at + 10] == number else None

        out.update(self._ask(IPV4, lambda: self._send(mac, IPV4, packet), answer) or {})
        return out

    def ping_through(self, gateway: str, target: str) -> dict[str, Any]:
        """Whether the target answers a ping that goes by way of the gateway."""
        mac = self.where(gateway)
        if mac is None:
            return {"reached": False, "answers": False}
        number, there = os.urandom(4), socket.inet_aton(target)
        echo = bytes([8, 0, 0, 0]) + number + b"overlay verify  "
        echo = echo[:2] + struct.pack(">H", checksum(echo)) + echo[4:]
        packet = _ipv4(_ICMP, self.source, there, echo)

        def answer(_: bytes, data: bytes) -> bool | None:
            at = _header(data)
            found = data[9] == _ICMP and data[12:16] == there and data[at : at + 1] == b"\0"
            return True if found and data[at + 4 : at + 8] == number else None

        return {"reached": True, "answers": bool(self._ask(IPV4, lambda: self._send(mac, IPV4, packet), answer))}

    def _send(self, to: bytes, protocol: int, data: bytes) -> None:
        frame = to + self.mac + struct.pack(">H", protocol) + data.ljust(46, b"\0")
        self._sockets[protocol].send(frame)

    def _ask(
        self, protocol: int, ask: Callable[[], None], read: Callable[[bytes, bytes], Any], seconds: float = ANSWER
    ) -> Any:
        """What `read` makes of the first answer that it takes."""
        end, due = time.monotonic() + seconds, 0.0
        while time.monotonic() < end:
            if time.monotonic() >= due:
                ask()
                due = time.monotonic() + _EVERY
            ready, _, _ = select.select(list(self._sockets.values()), [], [], max(due - time.monotonic(), 0.0))
            for one in ready:
                frame, about = one.recvfrom(1 << 16)
                if about[2] == socket.PACKET_OUTGOING:
                    continue
                which = struct.unpack_from(">H", frame, 12)[0]
                if which == ARP and not self.own:
                    self._be_there(frame[14:])
                found = read(frame[6:12], frame[14:]) if which == protocol and len(frame) >= 34 else None
                if found is not None:
                    return found
        return None

    def _be_there(self, data: bytes) -> None:
        """Says where our address is to whoever asks for it."""
        if len(data) >= 28 and data[6:8] == b"\0\x01" and data[24:28] == self.source and any(self.source):
            answer = struct.pack(">HHBBH6s4s", 1, IPV4, 6, 4, 2, self.mac, self.source) + data[8:18]
            self._send(data[8:14], ARP, answer)


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def offered(message: bytes, number: bytes) -> dict[str, Any] | None:
    """The offer in a DHCP message, if it is one and for that request."""
    if len(message) < 240 or message[0] != 2 or message[4:8] != number or message[236:240] != _MAGIC:
        return None
    options, at = {}, 240
    while at + 1 < len(message) and message[at] != 255:
        if message[at] == 0:
            at += 1
            continue
        options[message[at]] = message[at + 2 : at + 2 + message[at + 1]]
        at += 2 + message[at + 1]
    if options.get(53) != bytes([_OFFER]):
        return None
    mtu = options.get(26, b"")
    return {
        "address": socket.inet_ntoa(message[16:20]),
        "server": _addresses(options.get(54, b""))[:1],
        "router": _addresses(options.get(3, b"")),
        "dns": _addresses(options.get(6, b"")),
        "mtu": int.from_bytes(mtu, "big") if mtu else None,
    }


def answered(message: bytes) -> dict[str, Any] | None:
    """The code and the IPv4 addresses of a DNS answer."""
    try:
        flags, questions, answers = struct.unpack_from(">HHH", message, 2)
        at, found = 12, []
        for _ in range(questions):
            at = _after_name(message, at) + 4
        for _ in range(answers):
            at = _after_name(message, at)
            type_, _, _, size = struct.unpack_from(">HHIH", message, at)
            if type_ == 1 and size == 4:
                found.append(str(ipaddress.IPv4Address(message[at + 10 : at + 14])))
            at += 10 + size
    except (struct.error, IndexError, ValueError):
        return None
    return {"code": flags & 15, "addresses": sorted(found)}


def _after_name(message: bytes, at: int) -> int:
    while message[at]:
        if message[at] & 0xC0:
            return at + 2
        at += 1 + message[at]
    return at + 1


def _name(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def _addresses(data: bytes) -> list[str]:
    return [socket.inet_ntoa(data[at : at + 4]) for at in range(0, len(data) // 4 * 4, 4)]


def _header(packet: bytes) -> int:
    return (packet[0] & 15) * 4


def _ipv4(protocol: int, source: bytes, target: bytes, data: bytes) -> bytes:
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(data), 0, 0x4000, 64, protocol, 0, source, target)
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + data


def _udp(source: bytes, target: bytes, from_: int, to: int, data: bytes) -> bytes:
    size = 8 + len(data)
    head = struct.pack(">HHHH", from_, to, size, 0)
    pseudo = source + target + struct.pack(">BBH", 0, _UDP, size)
    return head[:6] + struct.pack(">H", checksum(pseudo + head + data) or 0xFFFF) + data
