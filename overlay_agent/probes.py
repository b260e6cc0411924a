"""Whether those who answered before a change answer after it: what a rollout proves on each host before the next.

Nothing of ours runs on the other hosts, so only what every kernel answers by itself is asked. Over the tunnels it is
ARP: Linux says for any address of its own, on any device, that it is there (`arp_ignore` 0 in the kernel's
ip-sysctl.rst), also to one who has no address (RFC 5227). So the other end's address on the underlay is asked for
inside of the tunnel, and it takes the frames' whole way there and back, whether bridges have addresses or not. Under
the tunnels it is ping, also with packets as large as a tunnel's get, which must not be fragmented. Whoever does not
answer before, for whatever reason, is not asked after.
"""

from __future__ import annotations

import ipaddress
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from overlay_agent.kernel import Kernel
from overlay_agent.kinds import KINDS
from overlay_agent.paths import Underlay

if TYPE_CHECKING:
    from overlay_agent.reconcile import Plan

#: s. How long is asked before the change, and after it; WireGuard repeats a handshake that was lost after 5 s.
BEFORE, AFTER, HANDSHAKE = 3.0, 4.0, 6.0
#: s, after which all sockets are made anew.
_ANEW = 1.0
#: Less than what an armed change is given in all (arming.py).
_LONGEST = 36.0
_EVERY = 0.25
#: Ends of a tunnel that are asked, of many: they take the same way.
_MOST = 64
_ARP = 0x0806
_BROADCAST = b"\xff" * 6
#: A probe: what is asked (a device's name, or one of these two), and the other end's address on the underlay.
_SMALL, _FULL = "", "/full"
Probe = tuple[str, str]
_NOBODY = ("", None)


class Targets:
    """Whom to ask: pure. `found` and `wanted`: the devices before and after the change, by name; `learned`: the other
    ends that a device has heard of, where nobody has listed them."""

    def __init__(
        self, host: str, found: Mapping[str, Any], wanted: Mapping[str, Any], learned: Callable[[str], Iterable[str]]
    ) -> None:
        self.host, self.names = host, _names(wanted)
        #: Who is not asked over a tunnel, and why.
        self.notes: list[str] = []
        #: By device: whom to ask for there, an IPv4 address, and the end that has it.
        self.over: dict[str, dict[str, str]] = {}
        #: By end: bytes of a tunnel's packets before the change, and after it.
        self.before: dict[str, int] = {}
        self.after: dict[str, int] = {}
        was, now = _inside(found.values()), _inside(wanted.values())
        for name, spec in wanted.items():
            old = found.get(name)
            old = old if old is not None and old.KIND == spec.KIND else None
            there = {} if old is None else KINDS[old.KIND].ends(old)
            if old is not None and not there and KINDS[old.KIND].overhead(old):  # a group
                there = KINDS[old.KIND].ends(old, learned(name))
            ends = KINDS[spec.KIND].ends(spec, there)
            # What WireGuard carries: until the other end has the new keys it does not even answer a ping.
            cut = {end for end in ends if was.get(end, _NOBODY)[1] != now.get(end, _NOBODY)[1]}
            for end in sorted(ends.keys() - cut)[:_MOST]:
                self.after[end] = max(self.after.get(end, 0), spec.mtu + KINDS[spec.KIND].overhead(spec))
                if old is not None and end in there:
                    self.before[end] = max(self.before.get(end, 0), old.mtu + KINDS[old.KIND].overhead(old))
            changed = {end for end in ends if end in there and (end in cut or there[end] != ends[end])}
            if changed:
                self.notes.append(
                    f"{host} rollout: {self.listed(changed)}: not asked over {name}: what both ends must have alike "
                    "changes, and until the other has it too it does not answer"
                )
            asked = {now.get(end, (end, None))[0]: end for end in sorted(there.keys() & ends.keys() - changed)}
            asked = {ask: end for ask, end in asked.items() if ":" not in ask}
            if asked and spec.mac:  # WireGuard's device has none, and takes no frames
                self.over[name] = dict(list(asked.items())[:_MOST])
        stp = (2 * spec.forward_delay for spec in wanted.values() if getattr(spec, "stp", False))
        #: s, for which those who answered are given time to answer again.
        self.patience = min(AFTER + (HANDSHAKE if now else 0) + max(stp, default=0), _LONGEST)

    def listed(self, ends: Iterable[str]) -> str:
        """`a (192.0.2.1), b and c`; of more than four the first three and how many more."""
        rest = [f"{self.names[end]} ({end})" if end in self.names else end for end in sorted(ends)]
        rest = rest if len(rest) <= 4 else [*rest[:3], f"{len(rest) - 3} more"]
        return " and ".join([*([", ".join(rest[:-1])] if rest[:-1] else []), *rest[-1:]])

    def lost(self, left: set[Probe]) -> str:
        """The sentence about probes that are answered no more."""
        out = []
        for what in sorted({what for what, _ in left}, key=lambda one: (one not in (_SMALL, _FULL), one)):
            ends = {end for one, end in left if one == what}
            if what == _FULL:
                ends = {end for end in ends if (_SMALL, end) not in left}
            if ends:
                does = "do" if len(ends) > 1 else "does"
                way = f"over {what}" if what else "over the underlay"
                if what == _FULL:
                    way = f"to packets of {max(self.after[end] for end in ends)} bytes over the underlay"
                out.append(f"{self.listed(ends)} answered before this change and {does} not after it {way}")
        return f"{self.host} rollout: {'; '.join(out)}"


class Probes:
    """Who answers now, and is to answer after the change."""

    def __init__(self, plan: Plan) -> None:
        found = {**plan.wanted.devices, **{change.name: change.found for change in plan.changes}}
        found = {name: found[name] for name in plan.wanted.devices}
        self._targets = targets = Targets(plan.wanted.host, found, plan.wanted.devices, _learned)
        self._answered = _ask(targets.over, {**targets.after, **targets.before}, BEFORE, None)

    def lost(self) -> str:
        """Who answers no more, as the reason for an undo; nothing: all do."""
        targets = self._targets
        left = self._answered - _ask(targets.over, targets.after, targets.patience, self._answered)
        return targets.lost(left) if left else ""

    def lines(self) -> list[str]:
        """What was asked, for people, when nobody is lost."""
        count, host = len(self._answered), self._targets.host
        said = f"{count} probes were answered before the change, and again after it"
        return [*self._targets.notes, f"{host} rollout: {said if count else 'nobody answered before the change'}"]


def _ask(
    over: Mapping[str, Mapping[str, str]], sizes: Mapping[str, int], seconds: float, wanted: set[Probe] | None
) -> set[Probe]:
    """What is answered within that time: all that can be asked, or what is `wanted`, and then no longer."""
    answered: set[Probe] = set()
    goal = {(device, end) for device, ends in over.items() for end in ends.values()}
    goal |= {(what, end) for end in sizes for what in (_SMALL, _FULL)}
    goal &= goal if wanted is None else wanted
    end_ = time.monotonic() + seconds
    while not goal <= answered and time.monotonic() < end_:
        # Anew each time: the change has just made devices anew, and what was asked too early counts for nothing.
        with _Wires(over) as wires, _pings(sizes) as under:
            until = min(time.monotonic() + _ANEW, end_)
            while not goal <= answered and time.monotonic() < until:
                wires.ask(goal - answered)
                for what, end in goal - answered:
                    if what in (_SMALL, _FULL):
                        under.send(end, full=what == _FULL)
                due, left = time.monotonic() + _EVERY, _EVERY
                while not goal <= answered and left > 0:
                    # What has come while this process had to wait is looked at, also when its time is up.
                    ready, _, _ = select.select([*wires.sockets, *under.sockets.values()], [], [], left)
                    left = due - time.monotonic()
                    for one in ready:
                        (wires if one in wires.sockets else under).received(one)
                    answered |= wires.answered
                    answered |= {(_SMALL, end) for end in under.answered[False]}
                    answered |= {(_FULL, end) for end in under.answered[True]}
    return answered


@contextmanager
def _pings(sizes: Mapping[str, int]) -> Iterator[Underlay]:
    made = Underlay(sizes)
    try:
        yield made
    finally:
        for one in made.sockets.values():
            one.close()


class _Wires:
    """ARP from the devices that are tunnels. The answers are taken from their bridges: there they have to come."""

    def __init__(self, over: Mapping[str, Mapping[str, str]]) -> None:
        self._over = over
        self.answered: set[Probe] = set()
        #: Each bridge's, and the devices that are asked there.
        self.sockets: dict[socket.socket, tuple[bytes, list[str]]] = {}

    def __enter__(self) -> _Wires:  # noqa: PYI034 - Self is from 3.11
        kernel = Kernel()
        by_bridge: dict[str, list[str]] = {}
        try:
            for name in self._over:
                link = kernel.links.get(name)
                if link:
                    by_bridge.setdefault(kernel.name_of.get(link.master, name), []).append(name)
            for holder, devices in by_bridge.items():
                with suppress(OSError):  # it is gone, or down
                    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                    self.sockets[one] = (bytes.fromhex(kernel.links[holder].mac.replace(":", "")), devices)
                    one.bind((holder, _ARP))
        finally:
            kernel.close()
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.sockets:
            one.close()

    def ask(self, probes: set[Probe]) -> None:
        """Asks these once more."""
        for one, (mac, devices) in self.sockets.items():
            for device in devices:
                for ask, end in self._over[device].items():
                    if (device, end) not in probes:
                        continue
                    there = socket.inet_aton(ask)
                    head = _BROADCAST + mac + struct.pack(">H", _ARP)
                    arp = struct.pack(">HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, b"\0" * 4, b"\0" * 6, there)
                    with suppress(OSError):
                        one.sendto((head + arp).ljust(60, b"\0"), socket.MSG_DONTWAIT, (device, _ARP))

    def received(self, from_: socket.socket) -> None:
        """Takes in what is there."""
        _, devices = self.sockets[from_]
        with suppress(OSError):  # no more
            while True:
                frame, about = from_.recvfrom(1 << 16, socket.MSG_DONTWAIT)
                data = frame[14:]
                if about[2] == socket.PACKET_OUTGOING or len(data) < 28 or data[6:8] != b"\0\x02":
                    continue
                who = socket.inet_ntoa(data[14:18])
                self.answered |= {(device, self._over[device][who]) for device in devices if who in self._over[device]}


def _inside(specs: Iterable[Any]) -> dict[str, tuple[str, Any]]:
    """Of all devices, see Kind.inside."""
    return {
        address: outside
        for spec in specs
        if spec is not None
        for address, outside in KINDS[spec.KIND].inside(spec).items()
    }


def _learned(name: str) -> set[str]:
    """The other ends that a device has heard of: where it is a group, nobody has listed them."""
    kernel = Kernel()
    try:
        link = kernel.links.get(name)
        entries = kernel.fdb(link) if link and link.kind == "vxlan" else []
        return {entry.dst for entry in entries if entry.dst and not ipaddress.ip_address(entry.dst).is_multicast}
    finally:
        kernel.close()


def _names(devices: Mapping[str, Any]) -> dict[str, str]:
    """The other ends as people call them, by address."""
    peers = (getattr(spec, "peers", {}) for spec in devices.values())
    return {peer: name for named in peers for name, peer in named.items() if isinstance(peer, str)}
