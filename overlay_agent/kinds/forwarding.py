"""Whether this host passes packets on between its interfaces (ip-sysctl: ip_forward, all/forwarding).

A switch of the whole host that several stacks, and others, may want on: the first of ours that
needs it notes how it was, the last one out puts that back. The note is in the store (shared.json),
by IP version: `stacks` that need it, `was`, the values before by their path under /proc/sys, and
the `boot` that they are of: after a reboot the values are the boot's, and none of ours to put back.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import fields, host
from overlay_agent.errors import KernelError
from overlay_agent.kinds.base import Kind, Spec, attribute

if TYPE_CHECKING:
    from overlay_agent.document import Document
    from overlay_agent.kernel import Kernel

SYSCTL = "/proc/sys"
SWITCHES = {"ipv4": "net/ipv4/ip_forward", "ipv6": "net/ipv6/conf/all/forwarding"}
WORDS = {"ipv4": "IPv4", "ipv6": "IPv6"}
#: A router ignores router advertisements, and so does the kernel once it forwards, unless told so (ip-sysctl).
ACCEPT_RA, ALSO_AS_ROUTER = "accept_ra", "2"
#: Bridges of programs that switch IPv4 forwarding on when they start, and never look again.
OF_OTHERS = re.compile(r"docker0|br-[0-9a-f]{12}|lxcbr\d+|lxdbr\d+|incusbr\d+|virbr\d+|podman\d+")
#: linux/ipv6_route.h, linux/if_addr.h: a route made by a router advertisement; an address without an end.
RTF_ADDRCONF, IFA_F_PERMANENT = 0x00040000, 0x80
SCOPE_GLOBAL = "00"


@dataclasses.dataclass(frozen=True)
class Forwarding(Spec):
    """What one stack needs switched on. False: this stack does not need it."""

    KIND: ClassVar[str] = "forwarding"

    ipv4: bool = attribute(fields.Flag(), default=False)
    ipv6: bool = attribute(fields.Flag(), default=False)


class ForwardingKind(Kind):
    """How it is switched."""

    name = "forwarding"
    spec = Forwarding
    rank = 15

    def wrong(self, spec: Forwarding) -> list[str]:
        return [] if spec.ipv4 or spec.ipv6 else ["ipv4: neither ipv4 nor ipv6 is on; leave the service out"]

    def commands(self, name: str, spec: Forwarding, mark: str) -> list[list[str]]:
        out = []
        if spec.ipv6:
            # Before the switch, with which the kernel drops the routes that it has from router advertisements.
            devices = "$(ip -6 route show proto ra | grep -o 'dev [^ ]*' | cut -d' ' -f2 | sort -u)"
            value = f"{SYSCTL}/net/ipv6/conf/$device/{ACCEPT_RA}"
            out.append(["sh", "-c", f"for device in {devices}; do echo {ALSO_AS_ROUTER} > {value}; done"])
        versions = [version for version in SWITCHES if getattr(spec, version)]
        return out + [["sysctl", "-w", f"{SWITCHES[version].replace('/', '.')}=1"] for version in versions]

    def wrong_here(self, kernel: Kernel, name: str, spec: Forwarding, wanted: Document) -> list[str]:
        out = []
        for version, path in SWITCHES.items():
            value, file = _read(path), f"{SYSCTL}/{path}"
            if not getattr(spec, version):
                continue
            if value is None:
                out.append(f"{file} is not on this host: its kernel runs without {WORDS[version]}; "
                           "boot it without ipv6.disable=1, or give the segment no IPv6 subnet")  # fmt: skip
            elif value == "0" and not os.access(file, os.W_OK):
                out.append(f"{file} is 0 and cannot be written here; if this host is a container, "
                           f"switch it on from outside: sysctl -w {path.replace('/', '.')}=1")  # fmt: skip
        return out

    def find(self, kernel: Kernel, name: str, mark: str) -> Forwarding | None:
        noted = {version: note for version, note in _notes().items() if mark in note["stacks"]}
        return Forwarding(**{version: _state(version, note) for version, note in noted.items()}) if noted else None

    def image(self, kernel: Kernel, name: str, mark: str) -> dict[str, Any]:
        notes = _notes()
        paths = [*SWITCHES.values(), *(path for note in notes.values() for path in note["was"])]
        return {"mark": mark, "notes": notes, "values": {path: _read(path) for path in paths}}

    def create(self, kernel: Kernel, name: str, spec: Forwarding, mark: str, image: Mapping[str, Any]) -> None:
        for version in SWITCHES:
            if getattr(spec, version):
                _switch_on(kernel, version, mark)
            else:
                _leave(kernel, version, mark)

    def change(self, kernel: Kernel, name: str, spec: Forwarding, found: Forwarding, mark: str) -> None:
        self.create(kernel, name, spec, mark, {})

    def delete(self, kernel: Kernel, name: str, mark: str) -> None:
        for version in SWITCHES:
            _leave(kernel, version, mark)

    def put_back(self, kernel: Kernel, name: str, image: Mapping[str, Any], *, exactly: bool) -> list[str]:
        if exactly:
            _keep(kernel, image["notes"])
            _write(kernel, image["values"])
        return []


def _switch_on(kernel: Kernel, version: str, mark: str) -> None:
    """Notes how it was, if nobody of ours has since the boot, and that the stack needs it; then does it."""
    notes, boot = _notes(), host.here().boot
    note = notes.get(version)
    if note is None or note["boot"] != boot:
        again = [path for path in note["was"] if path.endswith(ACCEPT_RA)] if note else []
        stacks = note["stacks"] if note else []
        note = {"boot": boot, "stacks": stacks, "was": _now(version, again), "bridges": _bridges_of_others(kernel)}
    note["stacks"] = sorted({*note["stacks"], mark})
    _keep(kernel, {**notes, version: note})
    _write(kernel, dict.fromkeys(_accept_ra(note), ALSO_AS_ROUTER))
    _write(kernel, {SWITCHES[version]: "1"})


def _leave(kernel: Kernel, version: str, mark: str) -> None:
    """Notes that the stack does not need it any more; the last one puts back what was."""
    notes = _notes()
    note = notes.pop(version, None)
    if note is None or mark not in note["stacks"]:
        return
    others = [other for other in note["stacks"] if other != mark]
    if others:
        notes[version] = {**note, "stacks": others}
    elif note["boot"] == host.here().boot and set(_bridges_of_others(kernel)) <= set(note["bridges"]):
        _write(kernel, note["was"])
    _keep(kernel, notes)


def _state(version: str, note: Mapping[str, Any]) -> Any:
    """Whether it is on; where an uplink would not hear its router any more, that in words."""
    if _read(SWITCHES[version]) == "0":
        return False
    deaf = [path.split("/")[-2] for path in _accept_ra(note) if _read(path) not in (None, ALSO_AS_ROUTER)]
    return f"on without {ACCEPT_RA} {ALSO_AS_ROUTER} on {', '.join(deaf)}" if deaf else True


def _accept_ra(note: Mapping[str, Any]) -> list[str]:
    return [path for path in note["was"] if path.endswith(ACCEPT_RA)]


def _now(version: str, again: list[str]) -> dict[str, str]:
    """All that the switch, or we for its sake, will change, by path.
    `again`: the uplinks' `accept_ra` as known from before a reboot: their routers may not
    have spoken yet."""
    switch = SWITCHES[version]
    now = {switch: _read(switch) or "0"}
    if now[switch] != "0":
        return now
    folder = f"net/{version}/conf"
    single = {f"{folder}/{device}/forwarding": _read(f"{folder}/{device}/forwarding") for device in _devices(folder)}
    now.update({path: value for path, value in single.items() if value not in (None, now[switch])})
    if version == "ipv4":  # it follows the switch (inet_forward_change)
        now[f"{folder}/all/accept_redirects"] = _read(f"{folder}/all/accept_redirects") or "0"
        return now
    paths = dict.fromkeys([*again, *(f"{folder}/{device}/{ACCEPT_RA}" for device in _hear_routers())])
    return {**now, **{path: "1" for path in paths if _read(path) == "1"}}


def _hear_routers() -> list[str]:
    """The devices that have a route, or an address that ends some day, from a router advertisement."""
    found = set()
    for line in _lines("/proc/net/ipv6_route"):
        words = line.split()
        if int(words[8], 16) & RTF_ADDRCONF:
            found.add(words[9])
    for line in _lines("/proc/net/if_inet6"):
        _, _, _, scope, flags, device = line.split()
        if scope == SCOPE_GLOBAL and not int(flags, 16) & IFA_F_PERMANENT:
            found.add(device)
    return sorted(found)


def _bridges_of_others(kernel: Kernel) -> list[str]:
    return sorted(name for name in kernel.links if OF_OTHERS.fullmatch(name))


def _devices(folder: str) -> list[str]:
    return [device for device in sorted(os.listdir(f"{SYSCTL}/{folder}")) if device != "all"]


def _notes() -> dict[str, Any]:
    from overlay_agent.store import Store  # noqa: PLC0415 - only hosts that forward need it

    return dict(Store().read_shared().get("forwarding", {}))


def _keep(kernel: Kernel, notes: Mapping[str, Any]) -> None:
    from overlay_agent.store import Store  # noqa: PLC0415 - as above

    store = Store()
    shared = store.read_shared()
    if shared.get("forwarding", {}) != notes:
        rest = {key: value for key, value in shared.items() if key != "forwarding"}
        store.write_shared({**rest, **({"forwarding": dict(notes)} if notes else {})})
        kernel.reached()


def _write(kernel: Kernel, values: Mapping[str, str | None]) -> None:
    """Writes what differs, the switches first: they set others. A device that is gone has no value any more."""
    for path, value in sorted(values.items(), key=lambda one: one[0] not in SWITCHES.values()):
        if value is None or _read(path) in (None, value):
            continue
        try:
            with open(f"{SYSCTL}/{path}", "w", encoding="ascii") as file:
                file.write(value)
        except OSError as error:
            raise KernelError(f"{SYSCTL}/{path}: write {value}", error.errno or errno.EIO, error.strerror) from None
        kernel.reached()


def _read(path: str) -> str | None:
    """The value; None where there is no such switch."""
    return next((line.strip() for line in _lines(f"{SYSCTL}/{path}")), None)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().splitlines()
    except OSError:
        return []


KIND = ForwardingKind()
