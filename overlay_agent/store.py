"""What was applied on this host, and what an apply is about to touch.

Kept in files so that a reboot, a kill or another stack's agent finds it. Every write is complete
or absent: a temporary file, fsync, rename, fsync of the folder.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from overlay_agent import STATE, history
from overlay_agent.secrets import Secrets

if TYPE_CHECKING:
    from overlay_agent.keys import Keys

LOCK = "/run/overlay.lock"
#: How long an apply waits for another stack's apply on the same host; OVERLAY_LOCK_SECONDS sets it.
LOCK_SECONDS = 60.0


class StoreError(Exception):
    """The store cannot be read or written."""


class Store:
    """The files under `state`. One agent at a time uses them (`locked`)."""

    def __init__(self, state: str = STATE, lock: str = LOCK) -> None:
        self._state, self._lock = state, lock
        self._journal = os.path.join(state, "journal.json")
        self._undo = os.path.join(state, "undo.json")
        self._shared = os.path.join(state, "shared.json")
        self._history = os.path.join(state, "history.jsonl")
        self._armed = False

    # -- membership -------------------------------------------------------------------------

    def read_member(self, label: str) -> dict[str, Any] | None:
        """What `install` was told of the stack; None when it never installed here."""
        return self._read(self._path("members", label))

    def write_member(self, label: str, member: dict[str, Any] | None) -> None:
        """Keeps that; None: the stack has left this host."""
        self._write(self._path("members", label), member)

    def members(self) -> list[str]:
        """The stacks that installed the agent here and have not left."""
        return self._labels("members")

    # -- documents --------------------------------------------------------------------------

    def _path(self, folder: str, label: str) -> str:
        project, stack = label.split("/")
        return os.path.join(self._state, folder, project, f"{stack}.json")

    def read(self, label: str) -> dict[str, Any] | None:
        """The document last applied for the stack "<project>/<stack>"."""
        return self._read(self._path("stacks", label))

    def write(self, label: str, document: dict[str, Any] | None) -> None:
        """Keeps the document; None forgets the stack."""
        self._write(self._path("stacks", label), document)

    def is_other(self, label: str, document: dict[str, Any]) -> bool:
        """Whether another document than this is kept, or none. One that was stopped is the same."""
        return {k: v for k, v in (self.read(label) or {}).items() if k != "stopped"} != document

    def labels(self) -> list[str]:
        """The stacks that have a document here."""
        return self._labels("stacks")

    def _labels(self, folder: str) -> list[str]:
        root = os.path.join(self._state, folder)
        found = []
        for project in sorted(os.listdir(root)) if os.path.isdir(root) else []:
            files = sorted(os.listdir(os.path.join(root, project)))
            found += [f"{project}/{file[: -len('.json')]}" for file in files if file.endswith(".json")]
        return found

    def remove_empty(self) -> None:
        """Removes the store's folders when nothing is left in them; the history goes with the last stack."""
        if not self.labels() and not self.members():
            with suppress(FileNotFoundError):
                os.unlink(self._history)
        for folder, _, files in os.walk(self._state, topdown=False):
            for file in files:
                if file.endswith(".new"):  # of a write that was cut short
                    os.unlink(os.path.join(folder, file))
            try:
                os.rmdir(folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                    raise

    def applied(self, label: str) -> float | None:
        """When the stack's document was last made true here, in seconds since 1970; None: it has none."""
        try:
            return os.stat(self._path("stacks", label)).st_mtime
        except FileNotFoundError:
            return None

    # -- history ----------------------------------------------------------------------------

    def note(self, label: str, result: str, lines: Sequence[str]) -> None:
        """Adds to the history what came of an apply, or of what undid it; see history.py."""
        history.note(self._history, label, result, lines)

    def history(self, label: str) -> list[dict[str, Any]]:
        """What was done for the stack here, the oldest first."""
        return history.entries(self._history, label)

    # -- secrets and keys -------------------------------------------------------------------

    def secrets(self, label: str, wanted: Iterable[str] = ()) -> Secrets:
        """The stack's secret values; `wanted`: see Secrets."""
        return Secrets(self._state, label, wanted)

    def keys(self, label: str) -> Keys:
        """The stack's private keys."""
        from overlay_agent.keys import Keys  # noqa: PLC0415 - few hosts have any

        return Keys(self._state, label)

    def forget_keys(self, label: str, but: Container[str] = ()) -> None:
        """Removes the stack's private keys but those of these public ones."""
        if os.path.isdir(os.path.join(self._state, "keys")):
            self.keys(label).keep(but)

    # -- what stacks share ------------------------------------------------------------------

    def read_shared(self) -> dict[str, Any]:
        """What several stacks, and others, use of the host, and how it was before the first of ours."""
        return self._read(self._shared) or {}

    def write_shared(self, shared: dict[str, Any]) -> None:
        """Keeps that; with nothing in it no file is left."""
        self._write(self._shared, shared or None)

    # -- journal ----------------------------------------------------------------------------

    def read_journal(self) -> dict[str, Any] | None:
        """What an apply that has not ended was about to do; None when none was cut short."""
        return self._read(self._undo) or self._read(self._journal)

    def is_cut_short(self) -> bool:
        """Whether an apply has not ended, however much of its journal can be read."""
        return os.path.exists(self._undo) or os.path.exists(self._journal)

    def drop_unreadable_journal(self) -> str:
        """Removes a journal that the disk has lost in part, which nothing can be undone by. Why, or nothing."""
        try:
            self.read_journal()
        except StoreError:
            self.write_journal(None)
            return (
                f"{self._journal}: not readable; removed. What an apply was about to do when it was cut short is not "
                "undone; going on with what is declared"
            )
        return ""

    def arm(self, on: bool) -> None:
        """Whether what is about to be done counts only once `disarm` is called: it is kept with the journal."""
        self._armed = on

    def disarm(self) -> None:
        """What was done is proven: from here on it stays."""
        journal = self.read_journal()
        if journal is not None:
            self._write(self._journal, {key: value for key, value in journal.items() if key != "armed"})

    def is_armed(self) -> bool:
        """Whether something was done that nobody has proven yet."""
        return bool((self.read_journal() or {}).get("armed"))

    def write_journal(self, journal: dict[str, Any] | None) -> None:
        """Keeps the journal of the apply under way; None: it ended."""
        self._write(self._journal, {**journal, "armed": True} if journal and self._armed else journal)
        if journal is None:
            self._write(self._undo, None)

    def begin_undo(self) -> None:
        """Notes that the journal is being undone, so that an undo that is cut short is taken up as
        one. A rename: the disk may be full, which may be why."""
        if os.path.exists(self._journal):
            self._rename(self._journal, self._undo)

    def is_undoing(self) -> bool:
        """Whether `begin_undo` was called and the undo has not ended."""
        return os.path.exists(self._undo)

    # -- lock -------------------------------------------------------------------------------

    @contextmanager
    def locked(self, who: str, seconds: float | None = None, *, make: bool = True) -> Iterator[None]:
        """Holds the host's lock. Raises StoreError when another agent keeps it too long; FileNotFoundError where
        there is none, and `make` is not set."""
        if seconds is None:
            seconds = float(os.environ.get("OVERLAY_LOCK_SECONDS", LOCK_SECONDS))
        end = time.monotonic() + seconds
        while True:
            file = os.open(self._lock, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0), 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The last stack's `uninstall` removes the file; a lock on that one keeps nobody out.
                with suppress(FileNotFoundError):
                    if os.stat(self._lock).st_ino == os.fstat(file).st_ino:
                        break
            except BlockingIOError:
                if time.monotonic() > end:
                    holder = os.pread(file, 200, 0).decode(errors="replace").strip()
                    os.close(file)
                    raise StoreError(
                        f"lock {self._lock}: held by {holder or 'another agent'} for more than "
                        f"{seconds:g} s; wait until it has ended, then run `pulumi up` again"
                    ) from None
                time.sleep(0.05)
            os.close(file)
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, f"{who} (pid {os.getpid()})\n".encode(), 0)
            yield
        finally:
            os.close(file)

    def remove_lock(self) -> None:
        """Removes the lock's file; for whom holds the lock."""
        with suppress(FileNotFoundError):
            os.unlink(self._lock)

    # -- files ------------------------------------------------------------------------------

    def _read(self, path: str) -> dict[str, Any] | None:
        try:
            with open(path, encoding="utf-8") as file:
                found: dict[str, Any] = json.load(file)
                return found
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StoreError(
                f"{path}: not readable ({error}); move it away, then run `OVERLAY_LIVE=1 pulumi up`"
            ) from None

    def _write(self, path: str, content: dict[str, Any] | None) -> None:
        try:
            if content is None:
                if not os.path.exists(path):
                    return
                os.unlink(path)
                _sync_folder(path)
                return
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            temporary = f"{path}.new"
            try:
                with open(temporary, "w", encoding="utf-8", opener=_private) as file:
                    json.dump(content, file, indent=1, sort_keys=True)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            raise _unwritten(path, error) from None
        self._rename(temporary, path)

    def _rename(self, old: str, new: str) -> None:
        try:
            os.rename(old, new)
            _sync_folder(new)
        except OSError as error:
            raise _unwritten(new, error) from None


def _sync_folder(path: str) -> None:
    handle = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritten(path: str, error: OSError) -> StoreError:
    return StoreError(f"{path}: cannot be written ({error.strerror}); make room or mend the disk")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
