"""Many DHCP clients in one process (RFC 2131), each with a MAC address of its own, on one interface.

    python3 dhcp_client.py INTERFACE lease COUNT [FIRST]        COUNT clients lease, all at once
    python3 dhcp_client.py INTERFACE discover RATE SECONDS      RATE discovers a second, each from a new client

It prints JSON: `leases` is the address by MAC address, `refused` who got a DHCPNAK, `sent` and `answered` count
discovers and offers, `seconds` is how long it took. Only the standard library, since it runs where a client is:
in a container's network namespace, as root. Used by the tests and by bench/.
"""

from __future__ import annotations

import dataclasses
import json
import select
import socket
import struct
import sys
import time

_COOKIE = b"\x63\x82\x53\x63"
_DISCOVER, _OFFER, _REQUEST, _ACK, _NAK = 1, 2, 3, 5, 6
_UDP_HEADERS = 14 + 20 + 8
_BROADCAST = b"\xff" * 6
#: Clients try again after 4 s (RFC 2131, section 4.1); here earlier, so that a loss costs a test little.
_AGAIN = 1.0


def mac_of(number: int) -> str:
    """The MAC address of the client with that number."""
    return f"02:dc:00:00:{number >> 8:02x}:{number & 255:02x}"


@dataclasses.dataclass
class Client:
    """One client: `wants` is the message that it has sent and waits to be answered."""

    mac: bytes
    xid: int
    wants: int = _DISCOVER
    offered: bytes = b""
    server: bytes = b""
    sent: float = 0.0


class Clients:
    """Clients on one interface. They take their packets from the wire, since they have no address yet."""

    def __init__(self, interface: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
        self._socket.bind((interface, 0))
        self.sent = self.answered = 0
        self.leases: dict[str, str] = {}
        self.refused: list[str] = []

    def lease(self, count: int, first: int = 0, seconds: float = 20.0) -> None:
        """Leases for that many clients, until each has one or time is up."""
        clients = {c.xid: c for c in (_client(number) for number in range(first, first + count))}
        end = time.monotonic() + seconds
        while clients and time.monotonic() < end:
            for client in clients.values():
                if time.monotonic() - client.sent > _AGAIN:
                    self._send(client)
            self._take(clients, 0.05)

    def discover(self, rate: int, seconds: float) -> None:
        """Discovers at that rate, none of them twice; then waits for the last answers."""
        clients, due = {}, time.monotonic()
        for number in range(int(rate * seconds)):
            client = _client(number)
            clients[client.xid] = client
            while time.monotonic() < due:
                self._take(clients, max(due - time.monotonic(), 0), only_offers=True)
            self._send(client)
            # Whoever was kept from running does not make up for it by a burst.
            due = max(due, time.monotonic() - 0.1) + 1 / rate
        last = time.monotonic() + 10.0
        while clients and time.monotonic() < last:
            self._take(clients, 0.05, only_offers=True)

    def _send(self, client: Client) -> None:
        options = bytes([53, 1, client.wants])
        if client.wants == _REQUEST:
            options += b"\x32\x04" + client.offered + b"\x36\x04" + client.server
        else:
            self.sent += 1
        client.sent = time.monotonic()
        message = struct.pack("!BBBBIHH16x6s10x192x", 1, 1, 6, 0, client.xid, 0, 0x8000, client.mac)
        message += _COOKIE + options + b"\x37\x02\x01\x03\xff"
        udp = struct.pack("!HHHH", 68, 67, 8 + len(message), 0) + message
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
        head = head[:10] + struct.pack("!H", _checksum(head)) + head[12:]
        self._socket.send(_BROADCAST + client.mac + b"\x08\x00" + head + udp)

    def _take(self, clients: dict[int, Client], seconds: float, *, only_offers: bool = False) -> None:
        """Takes what has come within that time."""
        while select.select([self._socket], [], [], seconds)[0]:
            seconds = 0
            frame = self._socket.recv(2048)
            message = frame[_UDP_HEADERS:]
            if frame[23:24] != b"\x11" or frame[36:38] != b"\x00\x44" or message[236:240] != _COOKIE:
                continue
            client = clients.get(struct.unpack_from("!I", message, 4)[0])
            if client:
                self._answered(clients, client, message, only_offers=only_offers)

    def _answered(self, clients: dict[int, Client], client: Client, message: bytes, *, only_offers: bool) -> None:
        options = _options(message[240:])
        kind = options.get(53, b"\0")[0]
        if kind == _OFFER and client.wants == _DISCOVER:
            self.answered += 1
            client.wants, client.offered, client.server = _REQUEST, message[16:20], options[54]
            if only_offers:
                del clients[client.xid]
            else:
                self._send(client)
        elif kind in (_ACK, _NAK) and client.wants == _REQUEST:
            mac = client.mac.hex(":")
            if kind == _NAK:
                self.refused.append(mac)
            else:
                self.leases[mac] = socket.inet_ntoa(message[16:20])
            del clients[client.xid]


def _client(number: int) -> Client:
    return Client(bytes.fromhex(mac_of(number).replace(":", "")), 0x5EED0000 + number)


def _options(data: bytes) -> dict[int, bytes]:
    found, offset = {}, 0
    while offset < len(data) and data[offset] != 255:
        if data[offset] == 0:
            offset += 1
            continue
        length = data[offset + 1]
        found[data[offset]] = data[offset + 2 : offset + 2 + length]
        offset += 2 + length
    return found


def _checksum(head: bytes) -> int:
    total = sum(struct.unpack("!10H", head))
    return ~(total + (total >> 16)) & 0xFFFF


if __name__ == "__main__":
    clients_ = Clients(sys.argv[1])
    begin = time.monotonic()
    if sys.argv[2] == "lease":
        clients_.lease(int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 0)
    else:
        clients_.discover(int(sys.argv[3]), float(sys.argv[4]))
    json.dump(
        {
            "leases": clients_.leases, "refused": clients_.refused, "sent": clients_.sent,
            "answered": clients_.answered, "seconds": time.monotonic() - begin,
        },
        sys.stdout,
    )  # fmt: skip
