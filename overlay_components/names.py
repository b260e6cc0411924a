"""Names, MAC addresses and numbers that are derived, each from its own key alone.

Derived values must not depend on what else is declared: adding or removing a host or a container
never changes another's name, MAC address or VNI (rules 10 and 18). So each is a hash of what it
belongs to, and a clash is an error to be mended by hand, never probed away.
"""

from __future__ import annotations

import hashlib
import re

#: IFNAMSIZ - 1: the longest name the kernel gives an interface.
LONGEST = 15
_HASH = 5
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")


class Placeholder(str):
    """Readable stand-in for a value that another resource has yet to make, such as `<address of c>`.

    It is text and goes into documents as it is; checks that need the value leave it out.
    """

    __slots__ = ()


def known(value: object) -> bool:
    """Whether the value is there and final, so that it can be checked."""
    return value is not None and not isinstance(value, Placeholder)


def mac(*key: str) -> str:
    """The locally administered unicast MAC address (02:...) that belongs to the key."""
    return ":".join(["02", *(f"{byte:02x}" for byte in digest(*key)[:5])])


def number(low: int, high: int, *key: str) -> int:
    """The number from `low` to `high` that belongs to the key."""
    return low + int.from_bytes(digest(*key)[:8], "big") % (high - low + 1)


def for_peer(base: str, peer: str) -> str:
    """The name of a device that serves one peer: `<base>-<peer>`, or its beginning and a hash when it is too long."""
    name = _NOT_IN_NAMES.sub("-", f"{base}-{peer}")
    if len(name) <= LONGEST and name == f"{base}-{peer}":
        return name
    return f"{name[: LONGEST - _HASH - 1]}-{digest(base, peer).hex()[:_HASH]}"


def digest(*key: str) -> bytes:
    """32 bytes that belong to the key."""
    return hashlib.sha256("\0".join(key).encode()).digest()
