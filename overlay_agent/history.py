"""What was done on this host, by whom and when: one line of JSON for each apply that changed something, or failed to.

Beside it one message in the journal, where journald is. Pulumi's state knows the last document alone, and the host is
where the question comes up. Nothing here may hinder an apply: what cannot be written is left out.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

#: So many entries are kept; they are thinned out when there are twice as many.
KEPT = 200
#: Of one entry, so that all of them are some hundred kilobytes at most: lines, and characters of each.
_LINES, _LONGEST = 40, 300
_JOURNAL = "/run/systemd/journal/socket"
_FAR = 12

#: The last: what an earlier agent had left halfway was brought to its end.
DONE, REFUSED, UNDONE, FAILED, ENDED = "done", "refused", "undone", "failed", "ended"


def note(path: str, stack: str, result: str, lines: Sequence[str]) -> None:
    """Adds an entry. `result`: DONE; REFUSED, nothing was touched; UNDONE, the host is as before; FAILED, it is not;
    ENDED."""
    entry: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "stack": stack,
        "verb": "".join(sys.argv[1:2]),
        "by": os.environ.get("SUDO_USER") or _user(),
        "from": _address(),
        "result": result,
        "lines": _short(lines),
    }
    with suppress(OSError):
        _append(path, json.dumps(entry, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    with suppress(OSError):
        _to_journal(entry)


def entries(path: str, stack: str | None = None) -> list[dict[str, Any]]:
    """The last entries, of one stack or of all, the oldest first; without what was cut short."""
    return [entry for line in _read(path) for entry in _parsed(line) if stack in (None, entry.get("stack"))][-KEPT:]


def told(entry: dict[str, Any]) -> str:
    """An entry as one line: `2026-11-21T20:00:00Z apply by ops from 198.18.0.1: done`."""
    whence = f" from {entry['from']}" if entry["from"] else ""
    return f"{entry['time']} {entry['verb']} by {entry['by']}{whence}: {entry['result']}"


def _append(path: str, line: bytes) -> None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.lseek(handle, 0, os.SEEK_END)
        if os.write(handle, line) != len(line):  # the disk is full
            os.ftruncate(handle, size)
    finally:
        os.close(handle)
    lines = _read(path)
    if len(lines) > 2 * KEPT:
        with open(f"{path}.new", "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(b"".join(lines[-KEPT:]))
        os.rename(f"{path}.new", path)


def _read(path: str) -> list[bytes]:
    try:
        with open(path, "rb") as file:
            return file.readlines()
    except OSError:
        return []


def _parsed(line: bytes) -> Iterator[dict[str, Any]]:
    with suppress(ValueError):
        entry = json.loads(line)
        if isinstance(entry, dict):
            yield entry


def _short(lines: Sequence[str]) -> list[str]:
    one_by_one = [part for line in lines for part in line.splitlines()]
    more = len(one_by_one) - _LINES
    kept = [line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..." for line in one_by_one[:_LINES]]
    return [*kept, f"and {more} more"] if more > 0 else kept


def _user() -> str:
    import pwd  # noqa: PLC0415 - without sudo alone

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _address() -> str:
    """Where the SSH session comes from; empty without one. sudo takes the variable away, so whoever called it is
    asked, as far up as there is one."""
    pid = os.getpid()
    for _ in range(_FAR):
        with suppress(OSError, IndexError, ValueError):
            with open(f"/proc/{pid}/environ", "rb") as file:
                for word in file.read().split(b"\0"):
                    if word.startswith(b"SSH_CONNECTION="):
                        return word.partition(b"=")[2].split()[0].decode(errors="replace")
            with open(f"/proc/{pid}/stat", "rb") as file:
                pid = int(file.read().rpartition(b")")[2].split()[1])
            continue
        break
    return ""


def _to_journal(entry: dict[str, Any]) -> None:
    """Systemd's native protocol: a line for each field, in one datagram."""
    if not os.path.exists(_JOURNAL):
        return
    import socket  # noqa: PLC0415 - as above

    what = "; ".join(entry["lines"])
    said = {
        "MESSAGE": f"{entry['stack']}: {told(entry).partition(' ')[2]}: {what}",
        "PRIORITY": "5" if entry["result"] == DONE else "4",
        "SYSLOG_IDENTIFIER": "overlay-agent",
        "OVERLAY_STACK": entry["stack"],
        "OVERLAY_RESULT": entry["result"],
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto("".join(f"{key}={value}\n" for key, value in said.items()).encode(), _JOURNAL)
