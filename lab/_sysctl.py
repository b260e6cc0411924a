"""Limits of the whole machine that labs need higher, put back after the last lab.

All network namespaces of one kernel share the neighbour table: a mesh of 50 hosts needs 2,450 rows of 1,024.
The old values are on disk (under /run: a machine's reboot resets both) before the first is changed, with the
labs that use them; a lab whose keeper no longer runs does not count. So kill -9 at any point costs nothing
but the raised limits until the next `lab up` or `lab down`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab import _sys

DIRECTORY = Path("/run/overlay-lab")

WANTED: dict[str, int] = {
    **{
        f"net/{family}/neigh/default/gc_thresh{level}": value
        for family in ("ipv4", "ipv6")
        # the highest first: no moment with thresh1 above thresh3
        for level, value in ((3, 262144), (2, 131072), (1, 65536))
    },
    "fs/inotify/max_user_instances": 8192,  # dnsmasq takes one; 128 for all root's processes is the default
}


def _read(name: str) -> int | None:
    try:
        return int(Path("/proc/sys", name).read_text())
    except (OSError, ValueError):
        return None


def _write(name: str, value: int) -> None:
    with contextlib.suppress(OSError):  # read-only /proc/sys in a container: the lab still works, if small
        Path("/proc/sys", name).write_text(f"{value}\n")


@contextlib.contextmanager
def _locked() -> Iterator[dict[str, Any]]:
    """The shared record under its lock; written back (or removed when empty) on leaving."""
    while True:
        DIRECTORY.mkdir(mode=0o755, exist_ok=True)
        fd = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if DIRECTORY.stat().st_ino == os.fstat(fd).st_ino:
                break
        except FileNotFoundError:
            pass  # the last lab removed it while we waited
        os.close(fd)
    path = DIRECTORY / "sysctl.json"
    try:
        try:
            record = json.loads(path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            record = {"users": {}, "old": {}}
        record["users"] = {
            key: user for key, user in record["users"].items() if _sys.is_alive(user["pid"], user["start"])
        }
        if not record["users"]:
            # what is no longer as we set it was set by somebody else since, or by a reboot of the machine
            record["old"] = {name: old for name, old in record["old"].items() if _read(name) == WANTED.get(name)}
        yield record
        if record["users"] or record["old"]:
            _save(record)
        else:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                DIRECTORY.rmdir()
    finally:
        os.close(fd)


def _save(record: dict[str, Any]) -> None:
    temporary = DIRECTORY / "sysctl.json.new"
    temporary.write_text(json.dumps(record))
    temporary.rename(DIRECTORY / "sysctl.json")


def acquire(key: str, pid: int, start: int) -> None:
    """Raise what is too low, for as long as the process (pid, start) lives or until `release(key)`."""
    with _locked() as record:
        record["users"][key] = {"pid": pid, "start": start}
        for name, value in WANTED.items():
            now = _read(name)
            if name not in record["old"] and now is not None and now < value:
                record["old"][name] = now
        _save(record)
        for name in record["old"]:
            if (now := _read(name)) is not None and now < WANTED.get(name, 0):
                _write(name, WANTED[name])


def release(key: str | None = None) -> None:
    """Take back `acquire(key)`; after the last one, restore each value that is still the one we set."""
    if not DIRECTORY.exists():
        return
    with _locked() as record:
        if key is not None:
            record["users"].pop(key, None)
        if not record["users"]:
            for name, old in reversed(record["old"].items()):
                if _read(name) == WANTED.get(name):
                    _write(name, old)
            record["old"] = {}


def users() -> list[str]:
    """The labs of this machine that are up."""
    if not DIRECTORY.exists():
        return []
    with _locked() as record:
        return sorted(record["users"])
