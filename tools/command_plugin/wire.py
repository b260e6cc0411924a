"""Pulumi's property values as they travel, as plain Python, and what changed between two of them.

The engine sends properties as a protobuf Struct in which a few special objects stand for secrets, assets and values
that a preview does not know yet. Everything here keeps them as they came, because what a plugin echoes ends up in the
state: a state written by this plugin must be the one that pulumi-resource-command would have written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from google.protobuf.struct_pb2 import NULL_VALUE, ListValue, Struct, Value

# The protocol's own constants (pulumi.runtime.rpc has the same).
SIGNATURE = "4dabf18193072939515e22adb298388d"
SECRET = "1b47061264138c4ac30d75fd1eb44270"  # noqa: S105 - says that a secret follows
ASSET = "c44067f5952c0a294b673a41bacd8c17"
ARCHIVE = "0def7320c3a5731c473e5ecbe6d01bc7"
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"

Properties: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Secret:
    """A value that the state encrypts and the engine does not print."""

    value: Any

    def __repr__(self) -> str:
        return "[secret]"


class Change(Enum):
    """What happened to one property."""

    ADD = "add"
    DELETE = "delete"
    UPDATE = "update"


def from_struct(struct: Struct) -> Properties:
    """Properties out of a message; absent and null are the same, as in every Pulumi provider."""
    return {key: _from_value(value) for key, value in struct.fields.items() if value.WhichOneof("kind") != "null_value"}


def _from_value(value: Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        fields = from_struct(value.struct_value)
        return Secret(fields.get("value")) if fields.get(SIGNATURE) == SECRET else fields
    if kind == "list_value":
        return [_from_value(item) for item in value.list_value.values]
    if kind in {None, "null_value"}:
        return None
    return getattr(value, kind)


def to_struct(properties: Mapping[str, Any]) -> Struct:
    """The message for some properties."""
    return Struct(fields={key: _to_value(value) for key, value in properties.items() if value is not None})


def _to_value(value: Any) -> Value:
    match value:
        case Secret():
            return Value(struct_value=to_struct({SIGNATURE: SECRET, "value": value.value}))
        case bool():
            return Value(bool_value=value)
        case int() | float():
            return Value(number_value=value)
        case str():
            return Value(string_value=value)
        case dict():
            return Value(struct_value=to_struct(value))
        case list():
            return Value(list_value=ListValue(values=[_to_value(item) for item in value]))
        case None:
            return Value(null_value=NULL_VALUE)
    raise TypeError(f"{type(value).__name__} is no property value")


def reveal(value: Any) -> Any:
    """The value without its marks of secrecy, for use, never for output."""
    match value:
        case Secret():
            return reveal(value.value)
        case dict():
            return {key: reveal(item) for key, item in value.items()}
        case list():
            return [reveal(item) for item in value]
    return value


def is_file(value: Any) -> bool:
    """Whether this is an asset or an archive."""
    return isinstance(value, dict) and value.get(SIGNATURE) in {ASSET, ARCHIVE}


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Change]:
    """What changed, by property path, as the engine shows it (`environment.PATH`, `triggers[0]`)."""
    return dict(_object_changes("", old, new))


def _object_changes(prefix: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Change]]:
    for key in sorted(old.keys() | new.keys()):
        path = _member(prefix, key)
        if key not in new:
            yield path, Change.DELETE
        elif key not in old:
            yield path, Change.ADD
        else:
            yield from _value_changes(path, old[key], new[key])


def _value_changes(path: str, old: Any, new: Any) -> Iterator[tuple[str, Change]]:
    if is_file(old) and is_file(new) and old.get("hash") and old.get("hash") == new.get("hash"):
        return  # the same content, from wherever
    if isinstance(old, dict) and isinstance(new, dict) and not is_file(old) and not is_file(new):
        yield from _object_changes(path, old, new)
    elif isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            here = f"{path}[{index}]"
            if index >= len(new):
                yield here, Change.DELETE
            elif index >= len(old):
                yield here, Change.ADD
            else:
                yield from _value_changes(here, old[index], new[index])
    elif old != new:  # a secret is one value: what changed within it is not told
        yield path, Change.UPDATE


def _member(prefix: str, key: str) -> str:
    if not re.fullmatch(r"[A-Za-z_$][A-Za-z0-9_$]*", key):
        escaped = key.replace('"', '\\"')
        return f'{prefix}["{escaped}"]'
    return f"{prefix}.{key}" if prefix else key
