"""Secret values on the host: cookies, pre-shared keys. A document has only references to them.

A document stands readable in Pulumi's state and in previews, so a value never does. It comes by the
verb `secrets`, lies in a file that only root reads, and is found by its reference: a name for
people and, so that another value is another reference, an HMAC under a key of the stack's own.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from overlay_agent import fields
from overlay_agent.errors import KernelError

if TYPE_CHECKING:
    from overlay_agent.document import Owner
    from overlay_agent.host import Here
    from overlay_agent.store import Store

#: Of a value that is on the host and in none of the stack's files.
ANOTHER = "another"
MAX_VALUE = 4096


class PrivateFolder:
    """The files of the stack `label` under `state`/`what`, for root alone. There is no folder while there are none."""

    def __init__(self, state: str, what: str, label: str) -> None:
        self._top = os.path.join(state, what)
        self.path = os.path.join(self._top, *label.split("/")) if label else ""

    def names(self) -> list[str]:
        """All that is there, what a write that was cut short has left included."""
        try:
            return sorted(os.listdir(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def write(self, name: str, content: bytes) -> None:
        """Keeps the file, complete or not at all."""
        folder, path = self._top, os.path.join(self.path, name)
        for part in ("", *os.path.relpath(self.path, self._top).split(os.sep)):
            folder = os.path.join(folder, part)
            os.makedirs(folder, mode=0o700, exist_ok=True)
            os.chmod(folder, 0o700)
        with open(f"{path}.new", "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(f"{path}.new", path)
        self._sync()

    def remove(self, names: Iterable[str]) -> None:
        """Removes those files."""
        for name in (gone := list(names)):
            os.unlink(os.path.join(self.path, name))
        if gone:
            self._sync()
        for folder in (self.path, os.path.dirname(self.path), self._top):
            with suppress(OSError):
                os.rmdir(folder)

    def _sync(self) -> None:
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Secrets:
    """The secrets of the stack `label` ("<project>/<stack>"), under `state` (overlay_agent.STATE).

    `wanted`: the references of the document at hand. Two references of one value come about when
    the stack's key is made anew; then those are the ones that are meant.
    """

    def __init__(self, state: str = "", label: str = "", wanted: Iterable[str] = ()) -> None:
        self.state, self.label = state, label
        self._folder = PrivateFolder(state, "secrets", label)
        self._wanted = frozenset(wanted)

    def read(self, reference: str) -> bytes:
        """The value. Raises KernelError when it is not on this host."""
        value = self._read(reference)
        if value is None:
            raise KernelError(reference, errno.ENOENT, MISSING)
        return value

    def missing(self) -> list[str]:
        """The wanted references whose value is not on this host."""
        return sorted(reference for reference in self._wanted if self._read(reference) is None)

    def reference_of(self, value: bytes, wanted: str | None = None) -> str:
        """The reference of a value that was read from the kernel: `wanted` if that is one, else one of the
        document's, else any; ANOTHER when no file has the value."""
        there = [one for one in self.references() if self._read(one) == value]
        there.sort(key=lambda one: (one != wanted, one not in self._wanted, one))
        return there[0] if there else ANOTHER

    def references(self) -> list[str]:
        """The references whose values are here."""
        return [name for name in self._folder.names() if fields.Secret().check(name) is None]

    def write(self, reference: str, value: bytes) -> bool:
        """Keeps the value, complete or not at all, for root alone. Whether that changed anything."""
        path = os.path.join(self._folder.path, reference)
        if self._read(reference) == value and stat.S_IMODE(os.stat(path).st_mode) == 0o600:
            return False
        self._folder.write(reference, value)
        return True

    def keep(self, references: Iterable[str]) -> list[str]:
        """Removes every value but those; returns what went. With nothing left, the folder goes too."""
        gone = sorted({*self._folder.names()} - {*references})
        self._folder.remove(gone)
        return gone

    def _read(self, reference: str) -> bytes | None:
        if not self._folder.path or fields.Secret().check(reference):
            return None
        try:
            with open(os.path.join(self._folder.path, reference), "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None


MISSING = (
    "the secret is not on this host; raise the host's generation in the stack file, and `pulumi up` brings it again"
)


def references(specs: Iterable[Any]) -> set[str]:
    """The references in these specs."""
    return {
        reference
        for spec in specs
        for name, type_ in _secret_fields(spec.__class__)
        for reference in _within(type_, getattr(spec, name))
    }


@functools.cache
def _secret_fields(spec_class: type) -> list[tuple[str, Any]]:
    rows = [(field.name, field.metadata["type"]) for field in dataclasses.fields(spec_class)]
    return [(name, type_) for name, type_ in rows if _holds_secret(type_)]


def _holds_secret(type_: Any) -> bool:
    return isinstance(type_, fields.Secret) or any(map(_holds_secret, _parts(type_)))


def _parts(type_: Any) -> list[Any]:
    if isinstance(type_, fields.Either):
        return [type_.first, type_.second]
    if isinstance(type_, fields.Keyed):
        return [type_.value]
    if isinstance(type_, fields.Record):
        return list(type_.parts.values())
    return [type_.item] if isinstance(type_, fields.Items) else []


def _within(type_: Any, value: Any) -> list[str]:
    if isinstance(type_, fields.Secret):
        return [] if type_.check(value) else [value]
    if isinstance(type_, fields.Record) and isinstance(value, dict):
        rows = [(part, value.get(key)) for key, part in type_.parts.items()]
    elif isinstance(type_, fields.Keyed) and isinstance(value, dict):
        rows = [(type_.value, inner) for inner in value.values()]
    elif isinstance(type_, fields.Items) and isinstance(value, list):
        rows = [(type_.item, inner) for inner in value]
    else:
        rows = [(type_.first, value), (type_.second, value)] if isinstance(type_, fields.Either) else []
    return [reference for part, inner in rows for reference in _within(part, inner)]


# -- the verb ------------------------------------------------------------------------------------


def check_machine(host: str, owner: Owner, machine: str | None, here: Here) -> None:
    """Raises DocumentError where what was sent is meant for another machine."""
    if machine and machine != here.machine:
        from overlay_agent import document  # noqa: PLC0415 - kernel.py imports this module, which is to stay small

        why = (
            f"{host}: this machine's id is {here.machine}, but {host} is {machine} in stack {owner.label}; if the "
            f"machine was replaced, raise overlay:hosts.{host}.generation; if its address is wrong, mend that"
        )
        raise document.DocumentError([why])


def check_owner(host: str, owner: Owner, store: Store) -> None:
    """Raises DocumentError where the label is another checkout's on this host. For whom holds the store's lock."""
    known = [one for one in (store.read(owner.label), store.read_member(owner.label)) if one]
    theirs = next((one["owner"]["id"] for one in known if one["owner"]["id"] != owner.id), None)
    if theirs is not None:
        from overlay_agent import document, reconcile  # noqa: PLC0415 - seldom needed

        raise document.DocumentError([reconcile.foreign_stack(host, owner.label, theirs, owner.id)])


def receive(text: bytes, store: Store, here: Here, report: Callable[[dict[str, Any]], None]) -> int:
    """Keeps the values in the request and returns the exit code. Nothing that it says has a value in it.
    Raises DocumentError with every error found."""
    from overlay_agent import document  # noqa: PLC0415 - kernel.py imports this module, which is to stay small

    owner, host, machine, values = _request(text)
    check_machine(host, owner, machine, here)
    with store.locked(f"secrets of stack {owner.label}"):
        stored = store.read(owner.label)
        check_owner(host, owner, store)
        secrets = store.secrets(owner.label)
        written = sum(secrets.write(reference, value) for reference, value in sorted(values.items()))
        # What neither the next document will have nor the last one has. After an undo the next one's stay: the
        # program does not send them again. An apply that was cut short may need any.
        if store.read_journal() is None:
            with suppress(document.DocumentError):  # the next apply speaks of it
                used = references(document.parse(stored).objects.values()) if stored else set()
                secrets.keep(used | values.keys())
    count = f"{len(values)} secret{'' if len(values) == 1 else 's'}"
    print(f"{host}: {count}, {written} of them new" if written else f"{host}: {count} here already", file=sys.stderr)
    report({"host": host, "machine": here.machine, "secrets": sorted(values)})
    return 0


_KNOWN = ("schema", "owner", "host", "machine", "generation", "secrets")


def _request(text: bytes) -> tuple[Any, str, str | None, dict[str, bytes]]:
    from overlay_agent import document  # noqa: PLC0415 - as above

    if len(text) > document.MAX_BYTES:
        raise document.DocumentError([f"secrets: more than {document.MAX_BYTES} bytes; at most that are taken"])
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):  # what json says may hold a byte of it
        raw = None
    if not isinstance(raw, dict):
        raise document.DocumentError(["secrets: not a JSON object; send what the program wrote"])
    version = raw.get("schema")
    if type(version) is not int or not 1 <= version <= document.SCHEMA_VERSION:
        shown = version if type(version) is int else "not a number"
        why = f"secrets.schema: {shown}; this agent reads 1 to {document.SCHEMA_VERSION}: `pulumi up` updates it"
        raise document.DocumentError([why])
    errors = [
        f"secrets: {count} unknown field{'' if count == 1 else 's'}; known are {', '.join(_KNOWN)}"
        for count in [len(raw.keys() - set(_KNOWN))]
        if count
    ]
    owner = document.read_owner(raw.get("owner"), errors)
    label = fields.Label()
    checks = {"host": label, "machine": fields.optional(label), "generation": fields.optional(fields.Integer(1, 2**31))}
    for key, type_ in checks.items():
        if type_.check(raw.get(key)):
            errors.append(f"secrets.{key}: not what the program sends")
    values = _values(raw.get("secrets"), errors)
    if errors or owner is None:
        raise document.DocumentError(errors)
    return owner, raw["host"], raw.get("machine"), values


def _values(raw: Any, errors: list[str]) -> dict[str, bytes]:
    """The values by reference, after adding every error found to `errors`; none shows what was sent as a value."""
    out: dict[str, bytes] = {}
    if not isinstance(raw, dict):
        errors.append("secrets.secrets: not an object; values stand in it by reference")
        return out
    for reference, value in sorted(raw.items()):
        wrong = fields.Secret().check(reference)
        if wrong:
            errors.append(f"secrets.secrets: {wrong}")
            continue
        try:
            out[reference] = bytes.fromhex(value) if isinstance(value, str) else b""
        except ValueError:
            out[reference] = b""
        if not 1 <= len(out[reference]) <= MAX_VALUE:
            errors.append(f"secrets.secrets.{reference}: <secret> is not 1 to {MAX_VALUE} bytes as hexadecimal text")
    return out
