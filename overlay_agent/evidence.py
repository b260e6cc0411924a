"""Whether this host can still be reached: asked before a change and after it, of the same (rule 16).

A change of the NIC can leave the host as declared and unreachable, and only what comes in from outside tells.
The best witness is the SSH session itself: what is written to it must be acknowledged by the operator's machine.
The others are the default gateways and the operator's address, by ping, or by ARP or neighbour discovery.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import select
import socket
import struct
import sys
import time
from contextlib import suppress

from overlay_agent import sockets
from overlay_agent.kernel import Kernel

#: How long a probe is asked before the change, and after it. TCP sends again after 0.2 s, 0.6 s, 1.4 s, 3 s: an
#: answer that takes longer than the last is hardly one that was lost on the way. Who is dropped before the change,
#: since a busy machine answered late, does not protect it.
BEFORE, AFTER = 4.0, 5.0
#: Of the latter, what is left for the others when the SSH session has taken its time.
_LEAST = 1.0
_EVERY = 0.2
_ECHO, _ECHO_REPLY, _ECHO6, _ECHO6_REPLY = 8, 0, 128, 129


@dataclasses.dataclass(frozen=True)
class Session:
    """The TCP connection of an SSH session, as SSH_CONNECTION has it (ssh(1))."""

    client: str
    client_port: int
    server: str
    server_port: int

    def __str__(self) -> str:
        return "the SSH session's socket"

    def acked(self) -> int | None:
        """How many bytes the other side has acknowledged so far, if none is left waiting for it; -1 if one is; None
        where there is no such connection any more."""
        here = (self.server, self.server_port, self.client, self.client_port)
        found = sockets.established(*here)
        if found is None:
            return None
        return -1 if found.waiting else found.acked


def session() -> Session | None:
    """The SSH session in which this process runs; sudo hides it from us, not from our parents."""
    pid = os.getpid()
    while pid > 1:
        with suppress(OSError):
            for word in _bytes(pid, "environ").split(b"\0"):
                name, _, value = word.partition(b"=")
                words = value.decode(errors="replace").split()
                if name == b"SSH_CONNECTION" and len(words) == 4:
                    return Session(words[0].partition("%")[0], int(words[1]), words[2].partition("%")[0], int(words[3]))
        try:
            pid = int(_bytes(pid, "stat").rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return None
    return None


def _bytes(pid: int, file: str) -> bytes:
    with open(f"/proc/{pid}/{file}", "rb") as opened:
        return opened.read()


class Witnesses:
    """Who answers now, and is to answer after the change."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._session = session()
        others = _others(self._session)
        answered = self._asked(BEFORE, others, doubt=False)
        # Not in the order in which they answered: what is said is to be the same each time.
        self._others = {address: what for address, what in others.items() if address in answered}
        # It counts only if what we write does go through it.
        if self._session and not self._heard(f"{host}: asking who answers, since this changes a NIC", BEFORE):
            self._session = None

    def __bool__(self) -> bool:
        return bool(self._session or self._others)

    def __str__(self) -> str:
        found = [*([str(self._session)] if self._session else []), *self._others.values()]
        return _listed(found)

    def lost(self) -> str:
        """Who answers no more, as the reason for an undo; nothing: all do."""
        end = time.monotonic() + AFTER
        if self._session and self._session.acked() is None:
            return f"{self._host}: the SSH session ended before the change was proven"
        if self._session and not self._heard(f"{self._host}: asking {self} whether they still answer", AFTER):
            return self._cut_off(str(self._session))
        left = max(end - time.monotonic(), _LEAST)
        answered = self._asked(left, self._others, doubt=True)
        silent = [what for address, what in self._others.items() if address not in answered]
        return self._cut_off(_listed(silent)) if silent else ""

    def _cut_off(self, who: str) -> str:
        return f"{self._host}: the new configuration cut the host off: {who} got no answer for {AFTER:g} s"

    def _heard(self, line: str, seconds: float) -> bool:
        """Whether the line, written to the session, is acknowledged by the other side."""
        assert self._session is not None  # noqa: S101 - the callers asked
        before = self._session.acked()
        end = time.monotonic() + seconds
        while before == -1 and time.monotonic() < end:  # of what was written earlier
            time.sleep(0.02)
            before = self._session.acked()
        if before in (None, -1):
            return False
        try:
            print(line, file=sys.stderr, flush=True)
        except OSError:
            return False
        while time.monotonic() < end:
            now = self._session.acked()
            if now is None:
                return False
            if now > before:
                return True
            time.sleep(0.02)
        return False

    @staticmethod
    def _asked(seconds: float, others: dict[str, str], *, doubt: bool) -> dict[str, str]:
        """Those of them that answer within that time."""
        answered: dict[str, str] = {}
        if not others:
            return answered
        end, first = time.monotonic() + seconds, True
        with _Pings() as pings:
            while len(answered) < len(others) and time.monotonic() < end:
                kernel = Kernel()
                try:
                    devices = _devices(kernel)
                    for address in others.keys() - answered.keys():
                        device = devices.get(address, "")
                        if device and kernel.ask_neighbour(device, address, doubt=doubt and first):
                            answered[address] = others[address]
                        else:
                            pings.send(address, kernel.index_of.get(device, 0))
                finally:
                    kernel.close()
                first = False
                for address in pings.received(min(_EVERY, max(end - time.monotonic(), 0.01))):
                    if address in others:
                        answered[address] = others[address]
        return answered


def _listed(words: list[str]) -> str:
    return " and ".join([*([", ".join(words[:-1])] if words[:-1] else []), *words[-1:]])


def _others(at: Session | None) -> dict[str, str]:
    """Who else could be asked, by address: what it is in words."""
    kernel = Kernel()
    try:
        out = {address: f"gateway {address}" for address in _devices(kernel)}
    finally:
        kernel.close()
    if at and at.client not in out:
        out[at.client] = f"the operator's address {at.client}"
    return out


def _devices(kernel: Kernel) -> dict[str, str]:
    """The device towards each default gateway."""
    out: dict[str, str] = {}
    for route in kernel.main_routes():
        gateway = route.via.partition(" ")[0]
        if route.subnet in ("0.0.0.0/0", "::/0") and _is_address(gateway) and route.devices:
            out[gateway] = route.devices[0]
    return out


def _is_address(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


class _Pings:
    """Echo requests and their replies (RFC 792, RFC 4443), of both IP versions."""

    def __enter__(self) -> _Pings:  # noqa: PYI034 - Self is from 3.11
        self._id, self._sockets = os.getpid() & 0xFFFF, {}
        for family, protocol in ((socket.AF_INET, socket.IPPROTO_ICMP), (socket.AF_INET6, socket.IPPROTO_ICMPV6)):
            with suppress(OSError):  # a kernel without IPv6
                self._sockets[family] = socket.socket(family, socket.SOCK_RAW, protocol)
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._sockets.values():
            channel.close()

    def send(self, address: str, device: int) -> None:
        """Asks the address; a link-local one on that device."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        head = struct.pack(">BBHHH", _ECHO6 if ":" in address else _ECHO, 0, 0, self._id, 1)
        target: tuple[object, ...] = (address, 0)
        if family == socket.AF_INET:
            head = head[:2] + struct.pack(">H", _checksum(head)) + head[4:]
        else:  # whose checksum the kernel makes
            target = (address, 0, 0, device if ipaddress.ip_address(address).is_link_local else 0)
        with suppress(OSError):  # no route, for the moment
            if family in self._sockets:
                self._sockets[family].sendto(head, socket.MSG_DONTWAIT, target)

    def received(self, seconds: float) -> list[str]:
        """Who has answered by the end of that time."""
        found: list[str] = []
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select(list(self._sockets.values()), [], [], left)
            if not ready and not found:
                continue
            for channel in ready:
                with suppress(OSError):
                    data, peer = channel.recvfrom(2048, socket.MSG_DONTWAIT)
                    data = data[(data[0] & 15) * 4 :] if channel.family == socket.AF_INET else data
                    type_, _, _, id_ = struct.unpack_from(">BBHH", data)
                    if (type_, id_) in ((_ECHO_REPLY, self._id), (_ECHO6_REPLY, self._id)):
                        found.append(peer[0].partition("%")[0])
            if found:
                break
        return found


def _checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
