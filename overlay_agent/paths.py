"""Whether hosts reach each other through their segments, asked of all of them at the same time.

Each agent sends frames of its own Ethernet type (IEEE 802's local experimental one) from the segment's bridge and
answers those of the others: that needs no address, no program and no open port on any host, and takes the way that
a container's frames take. docs/adr/0013 has the reasons. Nothing here reads the store: what is, is what is asked.

The talk, a line each: the request comes in, `ready` goes out; who is ready comes in, what was found goes out; the end
of the input ends it. Until then others are answered.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from overlay_agent import wire
from overlay_agent.errors import KernelError
from overlay_agent.fields import DOCKER
from overlay_agent.kernel import Kernel
from overlay_agent.kinds.vxlan import FLOOD

ETHERTYPE = 0x88B5
#: What a frame is for: to be heard by whoever is there, to be timed, to prove the MTU. An answer has the highest bit.
_HELLO, _ECHO, _FULL, _ANSWER = 1, 2, 3, 0x80
_EVERYBODY = 0xFFFF
#: Nonce of the run, what for, segment, from, to, when it was sent by the asking host's clock, and for how long the
#: answering host had it (both ns).
_FRAME = struct.Struct(">8sBHHHQQ")
_LEAST = 46  # bytes in an Ethernet frame
_BROADCAST = b"\xff" * 6
#: s. How often those that have not answered are asked, how long nobody may have answered before that is the finding,
#: how long in all; and how long the others are waited for before, and answered after.
EVERY, PATIENCE, LIMIT, WAITING = 0.25, 4.0, 20.0, 90.0
#: Frames that are sent before what has come in is looked at.
_AT_ONCE = 16
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS, _BUFFER = 33, 35, 1 << 22
# linux/in.h, linux/in6.h, linux/errqueue.h
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE, _IPV6_DONTFRAG = 10, 23, 3, 62
_IP_RECVERR, _IPV6_RECVERR, _ORIGIN_LOCAL = 11, 25, 1
_ECHO_TYPES = {socket.AF_INET: (8, 0), socket.AF_INET6: (128, 129)}


def verify() -> None:
    """Holds the talk on standard input and output."""
    with os.fdopen(os.dup(0), "rb", buffering=0) as incoming:
        request = json.loads(_line(incoming))
        asked = Asked(request, Kernel())
        _say({"ready": asked.states, **({"sessions": _sessions()} if request.get("evpn") else {})})
        go = json.loads(_line(incoming) or b"null")
        if go is None:  # nobody asks any more
            return
        _say(asked.found(go["there"], go["checks"]))
        asked.answer_until_closed(incoming)


def _line(incoming: Any) -> bytes:
    """The next line; nothing at the end of the input, or when there is none for long."""
    out = bytearray()
    end = time.monotonic() + WAITING
    while not out.endswith(b"\n"):
        ready, _, _ = select.select([incoming], [], [], max(end - time.monotonic(), 0))
        data = os.read(incoming.fileno(), 1) if ready else b""
        if not data:
            return b""
        out += data
    return bytes(out)


def _say(report: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(report, sort_keys=True) + "\n")
    sys.stdout.flush()


class Asked:
    """One run on one host."""

    def __init__(self, request: Mapping[str, Any], kernel: Kernel) -> None:
        self.request = request
        self.nonce = bytes.fromhex(request["nonce"])
        self.names = {number: name for name, number in request["numbers"].items()}
        self.me = request["numbers"][request["host"]]
        self.states: dict[str, dict[str, Any]] = {}
        self.segments: dict[int, _Segment] = {}
        bridges = docker_bridges(s["device"] for s in request["segments"].values())
        for name, wanted in request["segments"].items():
            device = bridges.get(wanted["device"], wanted["device"])
            self.states[name] = state_of(kernel, device, wanted["tunnels"])
            if wanted.get("anycast") and device in kernel.links:
                link = kernel.links[device]
                held = [address.partition("/")[0] for address in kernel.addresses(link)]
                self.states[name]["gateway"] = {"mac": link.mac, "addresses": held}
            if self.states[name]["state"] == "up":
                self.segments[wanted["number"]] = _Segment(name, wanted, device, kernel.links[device].mac)
        kernel.close()
        self.underlay = Underlay(request["underlay"])
        self._files = {segment.socket: number for number, segment in self.segments.items()}

    def found(self, there: Mapping[str, Sequence[str]], checks: Mapping[str, Any]) -> dict[str, Any]:
        """What this host found out about those that are there, by segment, and asks of the segments' routers."""
        answers: dict[str, Any] = {"checks": {}, "docker": {}}
        checking = threading.Thread(target=self._check, args=[checks, answers], daemon=True)
        checking.start()
        for segment in self.segments.values():
            segment.waiting = {self.request["numbers"][name] for name in there.get(segment.name, ())}
        begun = last = due = time.monotonic()
        known = 0
        while True:
            now = time.monotonic()
            if now >= due:
                self._ask()
                due = now + EVERY
            self._receive(max(due - time.monotonic(), 0))
            if known != (known := self._known()):
                last = time.monotonic()
            over = now - last > PATIENCE or now - begun > LIMIT
            if (over or self._done()) and (not checking.is_alive() or now - begun > LIMIT):
                break
        segments = {s.name: s.report(self.names) for s in self.segments.values()}
        return {"segments": segments, "underlay": self.underlay.report(), **answers}

    def answer_until_closed(self, incoming: Any) -> None:
        """Answers the others until nobody asks any more."""
        end = time.monotonic() + WAITING
        while time.monotonic() < end:
            ready, _, _ = select.select([incoming, *self._files], [], [], 1.0)
            if incoming in ready and not os.read(incoming.fileno(), 1024):
                return
            for one in ready:
                if one is not incoming:
                    self._frames(one)

    def _known(self) -> int:
        """Of how much there is an answer so far."""
        segments = self.segments.values()
        return sum(len(s.macs) + len(s.rtt) + len(s.full) for s in segments) + self.underlay.known()

    def _done(self) -> bool:
        return self.underlay.done() and all(segment.done() for segment in self.segments.values())

    def _ask(self) -> None:
        for number, segment in self.segments.items():
            if segment.waiting - segment.macs.keys():
                self._send(segment, number, _HELLO, _EVERYBODY, _BROADCAST)
        for at, (number, segment, peer, kind) in enumerate(self._owed()):
            self._send(segment, number, kind, peer, segment.macs[peer])
            if at % _AT_ONCE == _AT_ONCE - 1:
                self._receive(0)
        for at, (address, full) in enumerate(self.underlay.owed()):
            self.underlay.send(address, full=full)
            if at % _AT_ONCE == _AT_ONCE - 1:
                self._receive(0)

    def _owed(self) -> list[tuple[int, _Segment, int, int]]:
        return [
            (number, segment, peer, kind)
            for number, segment in self.segments.items()
            for peer in sorted(segment.waiting & segment.macs.keys())
            for kind, have in ((_ECHO, segment.rtt.keys()), (_FULL, segment.full))
            if peer not in have
        ]

    def _send(
        self, segment: _Segment, number: int, kind: int, to: int, mac: bytes, stamp: int = 0, came: int = 0
    ) -> None:
        now = time.time_ns()
        payload = _FRAME.pack(self.nonce, kind, number, self.me, to, stamp or now, max(now - came, 0) if came else 0)
        size = segment.mtu if kind == _FULL else _LEAST
        frame = mac + segment.mac + struct.pack(">H", ETHERTYPE) + payload.ljust(size, b"\0")
        try:
            segment.socket.send(frame, socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                segment.too_big = True

    def _receive(self, seconds: float) -> None:
        """Takes in what is there, or comes within that time."""
        files = [*self._files, *self.underlay.sockets.values()]
        ready, _, _ = select.select(files, [], [], seconds)
        for one in ready:
            if one in self._files:
                self._frames(one)
            else:
                self.underlay.received(one)

    def _frames(self, from_: socket.socket) -> None:
        number = self._files[from_]
        segment = self.segments[number]
        for _ in range(4 * _AT_ONCE):
            try:
                frame, more, _, _ = from_.recvmsg(1 << 16, 64, socket.MSG_DONTWAIT)
            except OSError:  # no more, or the device is down
                break
            if len(frame) < 14 + _FRAME.size:
                continue
            nonce, kind, where, peer, to, stamp, held = _FRAME.unpack_from(frame, 14)
            if nonce != self.nonce or where != number or peer == self.me or to not in (self.me, _EVERYBODY):
                continue
            if not kind & _ANSWER:
                segment.heard.add(peer)
                self._send(segment, number, kind | _ANSWER, peer, frame[6:12], stamp, _came(more))
                continue
            segment.macs[peer] = frame[6:12]
            if kind == _ECHO | _ANSWER:
                rtt = max(_came(more) - stamp - held, 0) / 1e6
                segment.rtt[peer] = min(rtt, segment.rtt.get(peer, rtt))
            elif kind == _FULL | _ANSWER:
                segment.full.add(peer)

    def _check(self, checks: Mapping[str, Any], out: dict[str, Any]) -> None:
        """DHCP, DNS, NAT: what this host was told to ask for, and which Docker containers have which addresses."""
        for segment in self.segments.values():
            if segment.name in checks:
                with suppress(OSError):  # the device is gone
                    out["checks"][segment.name] = wire.checked(segment.device, segment.mac, checks[segment.name])
        for network in self.request["docker"]:
            with suppress(KernelError):
                out["docker"][network] = _docker_addresses(network)


class _Segment:
    """One segment on this host, and what is known of the others in it."""

    def __init__(self, name: str, wanted: Mapping[str, Any], device: str, mac: str) -> None:
        self.name, self.device, self.mtu = name, device, wanted["mtu"]
        self.mac = bytes.fromhex(mac.replace(":", ""))
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        with suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.socket.bind((device, ETHERTYPE))
        self.waiting: set[int] = set()
        self.heard: set[int] = set()
        self.macs: dict[int, bytes] = {}
        self.rtt: dict[int, float] = {}
        self.full: set[int] = set()
        self.too_big = False

    def done(self) -> bool:
        return self.waiting <= self.rtt.keys() and (self.too_big or self.waiting <= self.full)

    def report(self, names: Mapping[int, str]) -> dict[str, Any]:
        return {
            "heard": sorted(names[n] for n in self.heard if n in names),
            "answered": sorted(names[n] for n in self.macs if n in names),
            "rtt": {names[n]: round(ms, 3) for n, ms in sorted(self.rtt.items()) if n in names},
            "full": sorted(names[n] for n in self.full if n in names),
        }


def _came(more: Sequence[tuple[int, int, bytes]]) -> int:
    """When the kernel got a frame, ns: a busy machine's processes look at it much later."""
    for _, type_, data in more:
        if type_ == _SO_TIMESTAMPNS and len(data) == 16:
            seconds, rest = struct.unpack("=qq", data)
            return int(seconds) * 10**9 + int(rest)
    return time.time_ns()


def state_of(kernel: Kernel, device: str, tunnels: Sequence[str]) -> dict[str, Any]:
    """How the segment's device is, and its tunnels: up, down, missing, or apart (no port of the bridge)."""
    link = kernel.links.get(device)
    out: dict[str, Any] = {"device": device, "state": "missing", "tunnels": {}}
    if link:
        out.update(state="up" if link.up else "down", mtu=link.mtu)
    for name in tunnels:
        tunnel = kernel.links.get(name)
        row: dict[str, Any] = {"state": "missing"}
        if tunnel:
            apart = name != device and kernel.name_of.get(tunnel.master) != device
            row = {"state": "down" if not tunnel.up else "apart" if apart else "up", "mtu": tunnel.mtu}
            if tunnel.kind == "vxlan":
                row["flood"] = sorted(e.dst for e in kernel.fdb(tunnel) if e.mac == FLOOD and e.dst)
        out["tunnels"][name] = row
    return out


def _sessions() -> dict[str, str]:
    """How BGP's sessions are, by the neighbour's address."""
    from overlay_agent import frr  # noqa: PLC0415 - only where there is one

    return {address: str(one.get("state")) for address, one in frr.sessions().items()}


def docker_bridges(devices: Any) -> dict[str, str]:
    """The real names of bridges that are named by Docker's network."""
    wanted = {device for device in devices if device.startswith(DOCKER)}
    if not wanted:
        return {}
    from overlay_agent import docker_api  # noqa: PLC0415 - costs 15 ms where there is no Docker

    there = [] if docker_api.missing() else docker_api.networks()
    return {DOCKER + one["Name"]: docker_api.bridge_of(one) for one in there if DOCKER + one["Name"] in wanted}


def _docker_addresses(network: str) -> dict[str, str]:
    """The address that each running container has there."""
    from overlay_agent import docker_api  # noqa: PLC0415 - as above

    found = docker_api.containers(network)
    return {name: row["IPAddress"] for name, row in found.items() if row.get("IPAddress")}


# -- the underlay ----------------------------------------------------------------------------


class Underlay:
    """Echo requests to the peers' own addresses (RFC 792, RFC 4443), small, and as large as a tunnel's packets get:
    these must not be fragmented, so what does not fit comes back with the hop that says so (ip(7), IP_RECVERR)."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.addresses = sorted(sizes)
        self.sockets: dict[int, socket.socket] = {}
        self.answered: dict[bool, set[str]] = {False: set(), True: set()}
        self.hops: dict[str, dict[str, Any]] = {}
        self._tries: dict[tuple[str, bool], int] = {}
        self._id = os.getpid() & 0xFFFF
        for family in {_family(address) for address in sizes}:
            six = family == socket.AF_INET6
            protocol, level = (58, socket.IPPROTO_IPV6) if six else (1, socket.IPPROTO_IP)
            one = self.sockets[family] = socket.socket(family, socket.SOCK_RAW, protocol)
            one.setsockopt(level, _IPV6_MTU_DISCOVER if six else _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
            one.setsockopt(level, _IPV6_RECVERR if six else _IP_RECVERR, 1)
            if six:
                one.setsockopt(level, _IPV6_DONTFRAG, 1)
            with suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)

    def owed(self) -> list[tuple[str, bool]]:
        """What is yet to be sent, a few times each; a large one when a small one was answered."""
        wanted = [(a, full) for a in self.addresses for full in (False, True) if a not in self.answered[full]]
        return [
            (a, full)
            for a, full in wanted
            if self._tries.get((a, full), 0) < 4 and a not in self.hops and (not full or a in self.answered[False])
        ]

    def done(self) -> bool:
        """Whether there is nothing more to be sent. What was sent last has until the next time that one looks."""
        return not self.owed()

    def known(self) -> int:
        """How much was answered."""
        return len(self.hops) + sum(map(len, self.answered.values()))

    def send(self, address: str, *, full: bool) -> None:
        family = _family(address)
        overhead = 48 if family == socket.AF_INET6 else 28
        number = self.addresses.index(address) * 2 + full
        head = struct.pack(">BBHHH", _ECHO_TYPES[family][0], 0, 0, self._id, number & 0xFFFF)
        data = head + b"\0" * ((self.sizes[address] - overhead) if full else 8)
        if family == socket.AF_INET:  # of IPv6 the kernel makes the checksum
            data = data[:2] + struct.pack(">H", wire.checksum(data)) + data[4:]
        self._tries[address, full] = self._tries.get((address, full), 0) + 1
        try:
            self.sockets[family].sendto(data, socket.MSG_DONTWAIT, (address, 0))
        except OSError as error:
            if error.errno == errno.EMSGSIZE:  # this host's own device does not take it
                self.hops.setdefault(address, {"hop": "", "mtu": None})
        self._errors(self.sockets[family])

    def received(self, from_: socket.socket) -> None:
        """Takes in what is there."""
        self._errors(from_)
        for _ in range(4 * _AT_ONCE):
            try:
                data, _ = from_.recvfrom(1 << 16, socket.MSG_DONTWAIT)
            except OSError:
                break
            if from_.family == socket.AF_INET:
                data = data[(data[0] & 15) * 4 :]
            type_, _, _, id_, number = struct.unpack_from(">BBHHH", data) if len(data) >= 8 else (0, 0, 0, 0, 0)
            if type_ == _ECHO_TYPES[from_.family][1] and id_ == self._id and number // 2 < len(self.addresses):
                self.answered[bool(number & 1)].add(self.addresses[number // 2])

    def _errors(self, from_: socket.socket) -> None:
        """What was too large where (struct sock_extended_err, linux/errqueue.h)."""
        while True:
            try:
                _, control, _, peer = from_.recvmsg(64, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
            except OSError:
                return
            for _, _, data in control:
                if len(data) < 16:
                    continue
                code, origin, _, _, _, mtu, _ = struct.unpack_from("=IBBBBII", data)
                if code == errno.EMSGSIZE and peer and peer[0] in self.sizes:
                    hop = "" if origin == _ORIGIN_LOCAL else _address(data[16:])
                    self.hops[peer[0]] = {"hop": hop, "mtu": mtu or None}

    def report(self) -> dict[str, Any]:
        return {
            a: {"answers": a in self.answered[False], "full": a in self.answered[True], **self.hops.get(a, {})}
            for a in self.addresses
        }


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _address(data: bytes) -> str:
    """The address in a struct sockaddr."""
    family = struct.unpack_from("=H", data)[0] if len(data) >= 2 else 0
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, data[4:8])
    return socket.inet_ntop(socket.AF_INET6, data[8:24]) if family == socket.AF_INET6 and len(data) >= 24 else ""
