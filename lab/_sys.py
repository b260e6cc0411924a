"""The few Linux calls that Python 3.10 has no name for, and processes named by (pid, start time).

A pid alone is never enough to kill by: it may have been given to another process since.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18

_MNT_DETACH = 2
_PR_SET_NAME = 15

_libc = ctypes.CDLL(None, use_errno=True)


def _call(what: str, name: str, *args: Any) -> None:
    if getattr(_libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces in `flags` for new ones."""
    _call(f"unshare({flags:#x})", "unshare", ctypes.c_int(flags))


def setns(fd: int, kind: int) -> None:
    """Enter the namespace that `fd` refers to."""
    _call(f"setns({kind:#x})", "setns", ctypes.c_int(fd), ctypes.c_int(kind))


def mount(source: str | Path, target: str | Path, fstype: str | None, flags: int = 0, data: str | None = None) -> None:
    """Mount one file system; the error names source and target."""
    _call(
        f"mount {source} on {target}",
        "mount",
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode() if fstype else None,
        ctypes.c_ulong(flags),
        os.fsencode(data) if data else None,
    )


def change_root(new_root: Path) -> None:
    """Make `new_root` (a mount point) the root of this mount namespace and drop the old one for good."""
    os.chdir(new_root)
    _call(f"pivot_root {new_root}", "pivot_root", b".", b".")
    _call("umount of the old root", "umount2", b".", ctypes.c_int(_MNT_DETACH))
    os.chdir("/")


def set_process_name(name: str) -> None:
    """Set what `ps -o comm` shows (15 bytes)."""
    _libc.prctl(ctypes.c_int(_PR_SET_NAME), name.encode()[:15], 0, 0, 0)


def start_time(pid: int) -> int | None:
    """Clock ticks since boot at which the process started; None if there is none or only a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def is_alive(pid: int, start: int) -> bool:
    """Whether just this process still runs."""
    return start_time(pid) == start


def kill(processes: Iterable[tuple[int, int]], sig: int = signal.SIGKILL, timeout: float = 30.0) -> list[int]:
    """Signal each (pid, start time) that is still that process and wait for them; returns the pids still there."""
    waiting: dict[int, int] = {}
    try:
        for pid, start in processes:
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            if start_time(pid) == start:  # asked while we hold the pidfd: it is the process that we signal
                waiting[fd] = pid
                signal.pidfd_send_signal(fd, sig)
            else:
                os.close(fd)
        deadline = time.monotonic() + timeout
        poll = select.poll()
        for fd in waiting:
            poll.register(fd, select.POLLIN)
        while waiting and (left := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                poll.unregister(fd)
                os.close(fd)
                del waiting[fd]
        return list(waiting.values())
    finally:
        for fd in waiting:
            os.close(fd)


def pids() -> Iterator[int]:
    """Every process that this /proc shows."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            yield int(entry.name)


def namespace(pid: int, kind: str) -> str | None:
    """The namespace's name as the kernel prints it (`net:[4026531840]`), None if the process is gone."""
    try:
        return str(Path(f"/proc/{pid}/ns/{kind}").readlink())
    except OSError:
        return None


def ancestors() -> set[int]:
    """The calling process and all its parents."""
    found: set[int] = set()
    pid = os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            break
    return found
