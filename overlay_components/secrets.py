"""Secret values on their way from the stack file to the hosts (rule 6): never in a spec, which all can read.

A document holds a reference in the value's place, `<name>:<16 digits>`: of another value another one,
so that a rotation shows in the preview. The digits are an HMAC under a random key that only Pulumi's
state has, encrypted; who reads the state or a screen cannot try values out, short as they are.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

from overlay_components.names import Placeholder

#: What stands for a value wherever one would be shown.
SHOWN = "<secret>"
#: In place of the digits while the key is not known.
NO_DIGITS = "0" * 16
_LONGEST = 100


class Value:
    """A secret value as read from the stack file. It shows itself as `<secret>`.

    `content` is None where it is not known: encrypted, for the command line, or yet to be made, in a preview;
    `length` in bytes is None where that is not known either.
    """

    __slots__ = ("content", "length")

    def __init__(self, content: bytes | None, length: int | None = None) -> None:
        self.content = content
        self.length = length if content is None else len(content)

    def __repr__(self) -> str:
        return SHOWN

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Value) or self.content is None:
            return self is other
        return self.content == other.content

    def __hash__(self) -> int:
        return hash(self.content) if self.content is not None else id(self)


class Secrets:
    """The references of one plan, and which host needs which values.

    `key`: the stack's HMAC key; without, references are Placeholders that end in `unknown`.
    """

    def __init__(self, key: str | None = None, unknown: str = SHOWN) -> None:
        self._key, self._unknown = key, unknown
        self._references: dict[Value, str] = {}
        #: By host and reference the value, in hexadecimal digits.
        self.of: dict[str, dict[str, str]] = collections.defaultdict(dict)

    def refer(self, host: str, name: str, value: Value) -> str:
        """The reference to the value, which `host` gets. `name` is for people, such as `cookie-app-core`; of one value
        that has several the first is taken: the agent finds a value by its one reference."""
        # Cut off, it still tells: the digits are what a value is found by.
        name = name.replace(":", "-")[:_LONGEST].rstrip("-.")
        reference = self._references.setdefault(value, self._made(name, value))
        self.of[host][reference] = SHOWN if value.content is None else value.content.hex()
        return reference

    def refer_all(self, host: str, spec: Any, names: Mapping[Value, str]) -> Any:
        """The spec with a reference in place of every value."""
        found = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
        changed = {k: self._in_place(host, v, names) for k, v in found.items() if isinstance(v, (Value, dict, list))}
        return dataclasses.replace(spec, **changed)

    def _in_place(self, host: str, value: Any, names: Mapping[Value, str]) -> Any:
        if isinstance(value, Value):
            return self.refer(host, names[value], value)
        if isinstance(value, dict):
            return {key: self._in_place(host, inner, names) for key, inner in value.items()}
        return [self._in_place(host, inner, names) for inner in value] if isinstance(value, list) else value

    def _made(self, name: str, value: Value) -> str:
        if self._key is None or value.content is None:
            # Valid in form where it has to be taken for one.
            kind = str if self._unknown == NO_DIGITS else Placeholder
            return kind(f"{name}:{self._unknown}")
        return f"{name}:{hmac.new(self._key.encode(), value.content, hashlib.sha256).hexdigest()[:16]}"
