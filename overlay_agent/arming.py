"""A second one who undoes: for changes that can cut the host off from whoever asked for them (rule 16).

The guard undoes what it cannot prove (evidence.py). This is for when there is no guard any more, or it hangs: a
process of its own, in a session and, under systemd, a unit of its own, so that nothing that ends the SSH session
ends it. It waits for the host's lock, which the guard and its worker hold as long as one of them lives. If the
journal then still says that the change is armed, nobody has proven it, and it is undone.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from overlay_agent import COMMAND
from overlay_agent.errors import KernelError

if TYPE_CHECKING:
    from overlay_agent.host import Here
    from overlay_agent.reconcile import Plan
    from overlay_agent.store import Store

#: How long a guard may take for the change and its proof before it counts as hanging.
LONGEST = 45.0
#: How long the process may take to start.
_START = 10.0
_EVERY = 0.1
_READY = "/run/overlay-armed-{pid}"


def is_risky(plan: Plan) -> bool:
    """Whether the plan touches a NIC, or the bridge that has a NIC's addresses."""
    from overlay_agent.kinds.base import Device  # noqa: PLC0415 - loaded long since

    bridges = {spec.bridge for spec in plan.wanted.services.values() if spec.KIND == "uplink"}
    for change in plan.changes:
        specs = [spec for spec in (change.found, change.wanted) if spec is not None]
        if any(spec.KIND == "uplink" for spec in specs) or change.name in bridges:
            return True
        if any(isinstance(spec, Device) and spec.bridge in bridges for spec in specs):
            return True
    return False


def arm() -> None:
    """Starts the process; it is there when this returns. Raises KernelError."""
    from overlay_agent import host  # noqa: PLC0415 - loaded long since

    ready, me = _READY.format(pid=os.getpid()), str(os.getpid())
    with suppress(FileNotFoundError):
        os.unlink(ready)
    if host.has_systemd():
        import subprocess  # noqa: PLC0415 - costs 5 ms where there is no systemd

        # A unit of its own: ending a session, or sshd, ends all that is left in theirs.
        subprocess.run(
            ["systemd-run", "--quiet", "--collect", f"--unit=overlay-armed-{me}", COMMAND, "watch", me],
            check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    else:
        _start_process(me)
    end = time.monotonic() + _START
    while not os.path.exists(ready):
        if time.monotonic() > end:
            raise KernelError("arm the change", 0, "the process that would undo it does not start; nothing was changed")
        time.sleep(0.01)
    os.unlink(ready)


def _start_process(guard: str) -> None:
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        for one in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_IGN)
        # Anew, so that it has nothing of this process: neither the lock nor the SSH session's pipes.
        environment = {"PATH": os.environ.get("PATH", os.defpath)}
        os.execve(COMMAND, [COMMAND, "watch", guard], environment)  # noqa: S606 - no shell is the point
    finally:
        os._exit(1)


def watch(store: Store, here: Here, guard: int) -> None:
    """What that process does, until the change that `guard` (a process) makes is proven or undone."""
    from overlay_agent.store import StoreError  # noqa: PLC0415 - loaded long since

    os.close(os.open(_READY.format(pid=guard), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    end, born = time.monotonic() + LONGEST, _born(guard)
    while True:
        try:
            with store.locked("the undo of a change that was not proven", seconds=0, make=False):
                _end(store, here)
                return
        except FileNotFoundError:  # the last stack has left the host
            return
        except StoreError:  # somebody is at work
            pass
        if time.monotonic() > end:
            if not store.is_armed():
                return
            for pid in [guard, *_children(guard)] if born and _born(guard) == born else []:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(_EVERY)


def _end(store: Store, here: Here) -> None:
    if not store.is_armed():
        return
    from overlay_agent import guard  # noqa: PLC0415 - seldom comes so far

    guard.end_cut_short(store, here, say=_log)


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def _born(pid: int) -> str:
    """When the process started: its number may be another's by now."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _log(lines: Any) -> None:
    """Nobody is there to read it but the system's log."""
    import syslog  # noqa: PLC0415 - seldom comes so far

    for line in lines:
        syslog.syslog(syslog.LOG_WARNING, f"overlay-agent: {line}")
        with suppress(OSError):
            print(line, file=sys.stderr)
