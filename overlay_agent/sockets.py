"""Who listens on a port of this host (sock_diag(7)): /proc/net/udp does not say which device a socket is
bound to, and that is what lets several DHCP servers live on one host."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _INET_DIAG_INFO, _INET_DIAG_SKV6ONLY = 4, 20, 2, 11
#: TCP_ESTABLISHED as a set of states, and so much of struct tcp_info (linux/tcp.h) as is read here (Linux 4.6).
_ESTABLISHED, _TCP_INFO = 1 << 1, 148
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
PROTOCOLS = {"udp": socket.IPPROTO_UDP, "tcp": socket.IPPROTO_TCP}
#: Of UDP sockets those without a peer, of TCP sockets those that listen.
_STATES = {socket.IPPROTO_UDP: 1 << 7, socket.IPPROTO_TCP: 1 << 10}


@dataclasses.dataclass(frozen=True)
class Socket:
    """One that takes packets. `device`: the index of the device that it is bound to, or 0. `only6`: an
    IPv6 wildcard that does not take IPv4 as well (ipv6(7), IPV6_V6ONLY)."""

    address: str
    port: int
    device: int
    inode: int
    only6: bool = False

    def overlaps(self, address: str) -> bool:
        """Whether what is sent to the address could reach it."""
        if ipaddress.ip_address(self.address).is_unspecified:
            return (":" in address) == (":" in self.address) or (":" in self.address and not self.only6)
        return ipaddress.ip_address(self.address) == ipaddress.ip_address(address)

    def is_reached_by(self, versions: Collection[int]) -> bool:
        """Whether others can send to it by one of these IP versions."""
        where = ipaddress.ip_address(self.address)
        where = getattr(where, "ipv4_mapped", None) or where
        takes = {4, 6} if self.address == "::" and not self.only6 else {where.version}
        return not takes.isdisjoint(versions) and not where.is_loopback


@dataclasses.dataclass(frozen=True)
class Program:
    """A process that has such a socket."""

    pid: int
    name: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def listening(protocol: int, low: int, high: int | None = None) -> list[Socket]:
    """The sockets of IPPROTO_UDP or IPPROTO_TCP on that port, or on those from `low` to `high`, of both
    IP versions."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        request = struct.pack("=BBBxI", family, protocol, 0, _STATES[protocol]) + bytes(48)
        for body in _dump(request):
            (sport,) = struct.unpack_from(">H", body, 4)
            (device,) = struct.unpack_from("=I", body, 40)
            (inode,) = struct.unpack_from("=I", body, 68)
            address = socket.inet_ntop(family, body[8 : 8 + (4 if family == socket.AF_INET else 16)])
            if low <= sport <= (high or low):
                found.append(Socket(address, sport, device, inode, _only6(body)))
    return found


@dataclasses.dataclass(frozen=True)
class Connection:
    """How far an established TCP connection has come: bytes that the other side has acknowledged, and how many
    segments and unsent bytes still wait for that."""

    acked: int
    waiting: int


def established(address: str, port: int, peer: str, peer_port: int) -> Connection | None:
    """The connection between these; None where there is none."""
    ends = (ipaddress.ip_address(address), port, ipaddress.ip_address(peer), peer_port)
    for family in (socket.AF_INET, socket.AF_INET6):
        size = 4 if family == socket.AF_INET else 16
        more = 1 << (_INET_DIAG_INFO - 1)
        request = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, more, _ESTABLISHED) + bytes(48)
        for body in _dump(request):
            ports = struct.unpack_from(">HH", body, 4)
            here, there = (ipaddress.ip_address(body[at : at + size]) for at in (8, 24))
            here, there = (getattr(one, "ipv4_mapped", None) or one for one in (here, there))
            info = _attributes(body).get(_INET_DIAG_INFO, b"")
            if (here, ports[0], there, ports[1]) == ends and len(info) >= _TCP_INFO:
                (unacked,) = struct.unpack_from("=I", info, 24)
                (acked,) = struct.unpack_from("=Q", info, 120)
                (unsent,) = struct.unpack_from("=I", info, 144)
                return Connection(acked, unacked + unsent)
    return None


def _attributes(body: bytes) -> dict[int, bytes]:
    """What comes after struct inet_diag_msg."""
    found, offset = {}, 72
    while offset + 4 <= len(body):
        length, type_ = struct.unpack_from("=HH", body, offset)
        found[type_] = body[offset + 4 : offset + length]
        offset += (max(length, 4) + 3) & ~3
    return found


def _only6(body: bytes) -> bool:
    return _attributes(body).get(_INET_DIAG_SKV6ONLY, b"\0")[:1] != b"\0"


def inodes(pid: int) -> set[int]:
    """The sockets that a process has open."""
    found = set()
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{name}")
                if target.startswith("socket:["):
                    found.add(int(target[len("socket:[") : -1]))
    return found


def owner(sock: Socket) -> Program | None:
    """The process that has the socket; None where it cannot be told (another container's)."""
    for name in os.listdir("/proc"):
        if name.isdigit() and sock.inode in inodes(int(name)):
            with suppress(OSError):
                return Program(int(name), _text(name, "comm").strip(), tuple(_text(name, "cmdline").split("\0")[:-1]))
    return None


def _text(pid: str, file: str) -> str:
    with open(f"/proc/{pid}/{file}", encoding="utf-8", errors="replace") as opened:
        return opened.read()


def _dump(request: bytes) -> Iterator[bytes]:
    """The answers, struct inet_diag_msg each; none where the kernel has no such dump."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as channel:
        head = struct.pack(
            "=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0
        )  # fmt: skip
        channel.send(head + request)
        while True:
            data = channel.recv(1 << 18)
            offset = 0
            while offset < len(data):
                length, type_ = struct.unpack_from("=IH", data, offset)
                if type_ in (_NLMSG_DONE, _NLMSG_ERROR):
                    return
                yield data[offset + 16 : offset + length]
                offset += (length + 3) & ~3
