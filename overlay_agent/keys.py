"""WireGuard's private keys: made on this host, and never anywhere else.

Each is a file that only root reads, in the form that `wg set … private-key FILE` takes, named by its generation. The
program asks for one by the verb `identity` and is told the public key. Documents name the public key, so an undo
across a change of keys finds the old one, which goes only once an apply has succeeded without it.
"""

from __future__ import annotations

import base64
import errno
import os
from collections.abc import Callable, Container
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from overlay_agent.errors import KernelError
from overlay_agent.secrets import PrivateFolder, check_machine, check_owner
from overlay_agent.x25519 import KEY_BYTES, clamped, x25519

if TYPE_CHECKING:
    from overlay_agent.host import Here
    from overlay_agent.store import Store

MOST_GENERATIONS = 1_000_000
#: Of a device's own key that no file has: somebody set it by hand. Kept while an apply might be undone.
_FOUND = "found"


class Keys:
    """The private keys of the stack `label` ("<project>/<stack>"), under `state` (overlay_agent.STATE)."""

    def __init__(self, state: str, label: str) -> None:
        self._files = PrivateFolder(state, "keys", label)
        self.folder = self._files.path

    def private(self, public: str) -> bytes | None:
        """The private key of that public key; None when it is not on this host."""
        return self._by_public().get(public)

    def wanted(self, public: str) -> bytes:
        """The same. Raises KernelError when it is not on this host."""
        key = self.private(public)
        if key is None:
            raise KernelError(f"private key of {public}", errno.ENOENT, "is not on this host")
        return key

    def make(self, generation: int) -> str:
        """The public key of that generation, which is made unless it is there."""
        path = os.path.join(self.folder, str(generation))
        if not os.path.exists(path):
            self._write(str(generation), clamped(os.urandom(KEY_BYTES)))
        return public_key(_read(path))

    def keep_found(self, private: bytes) -> None:
        """Keeps a key that was found on a device, for an undo."""
        if private not in self._by_public().values():
            self._write(_FOUND, private)

    def keep(self, public: Container[str]) -> None:
        """Removes every key but those."""
        gone = []
        for name in self._files.names():
            with suppress(KernelError):  # one that is no key goes, too
                if public_key(_read(os.path.join(self.folder, name))) in public and not name.endswith(".new"):
                    continue
            gone.append(name)
        self._files.remove(gone)

    def _by_public(self) -> dict[str, bytes]:
        keys = [_read(os.path.join(self.folder, name)) for name in self._files.names() if not name.endswith(".new")]
        return {public_key(key): key for key in keys}

    def _write(self, name: str, private: bytes) -> None:
        self._files.write(name, base64.b64encode(private) + b"\n")


def public_key(private: bytes) -> str:
    """The public key, as WireGuard's tools write it."""
    return base64.b64encode(x25519(private)).decode()


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        text = file.read(100)
    try:
        key = base64.b64decode(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:  # what it holds is not said: it may be most of a key
        hint = "is not a private key; remove the file, and raise the host's keyGeneration"
        raise KernelError(path, errno.EINVAL, hint)
    return key


# -- the verb ------------------------------------------------------------------------------------


def identity(raw: Any, store: Store, here: Here, report: Callable[[dict[str, Any]], None]) -> int:
    """Makes the private key of the generation in the request unless it is there, and reports the public one.
    Raises DocumentError with every error found."""
    from overlay_agent import document  # noqa: PLC0415 - wireguard.py imports this module
    from overlay_agent.fields import Integer, Label  # noqa: PLC0415

    errors: list[str] = []
    if not isinstance(raw, dict) or raw.keys() - {"schema", "owner", "host", "machine", "generation"}:
        raise document.DocumentError(["identity: standard input is not what the program sends"])
    owner = document.read_owner(raw.get("owner"), errors)
    checks = {"host": Label(), "generation": Integer(1, MOST_GENERATIONS)}
    for key, type_ in checks.items():
        wrong = type_.check(raw.get(key))
        errors += [f"identity.{key}: {wrong}"] if wrong else []
    if errors or owner is None:
        raise document.DocumentError(errors)
    name, generation = raw["host"], raw["generation"]
    check_machine(name, owner, raw.get("machine", here.machine), here)
    with store.locked(f"identity for stack {owner.label}"):
        check_owner(name, owner, store)
        public = store.keys(owner.label).make(generation)
    # No words for people beside the report: see docs/adr/0012.
    report({"host": name, "machine": here.machine, "publicKey": public, "generation": generation})
    return 0
