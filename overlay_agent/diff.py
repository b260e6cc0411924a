"""What differs between the wished and the found, and what to do about it. Pure.

Apply, preview of drift and undo all go through `diff`: there is one opinion of what "as declared"
means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping, Sequence
from typing import Any

from overlay_agent import fields
from overlay_agent.fields import RECREATE, Difference
from overlay_agent.kinds import KINDS

CREATE, SET, REMOVE = "create", "set", "remove"
#: Of more than these it is only said how many there are: a router may have a thousand static leases.
NAMED = 6


@dataclasses.dataclass(frozen=True)
class Change:
    """What to do with one object; `rows` are the differences that are the reason."""

    name: str
    action: str  # CREATE, SET, RECREATE or REMOVE
    found: Any
    wanted: Any
    rows: Sequence[Difference] = ()

    def lines(self) -> list[str]:
        """The change as lines a person reads: `vx-app: vni 42 -> 43 (recreated)`."""
        if self.action == CREATE:
            return [f"{self.name}: created ({summary(self.wanted)})"]
        if self.action == REMOVE:
            return [f"{self.name}: removed"]
        tail = " (recreated)" if self.action == RECREATE else ""
        return [f"{self.name}: {row_text(row)}{tail}" for row in self.rows]

    def drift(self) -> list[str]:
        """The same as a finding: `vx-app: mtu want 1450, is 1400`."""
        if self.action == CREATE:
            return [f"{self.name}: is not there"]
        if self.action == REMOVE:
            return [f"{self.name}: is there and should not be"]
        return [f"{self.name}: {_drift_text(row)}" for row in self.rows]


def diff(
    wanted: Mapping[str, Any], found: Mapping[str, Any], beside: Mapping[str, Sequence[Difference]] | None = None
) -> list[Change]:
    """The changes that turn `found` into `wanted`, by name; None or absent means "not there".
    `beside`: differences of an object that are in none of its fields."""
    changes = []
    for name in sorted(wanted.keys() | found.keys()):
        change = _change(name, found.get(name), wanted.get(name), (beside or {}).get(name, ()))
        if change:
            changes.append(change)
    return changes


def _change(name: str, found: Any, wanted: Any, beside: Sequence[Difference]) -> Change | None:
    if found is None and wanted is None:
        return None
    if found is None:
        return Change(name, CREATE, None, wanted)
    if wanted is None:
        return Change(name, REMOVE, found, None)
    if found.KIND != wanted.KIND:
        return Change(name, RECREATE, found, wanted, [("kind", found.KIND, wanted.KIND)])
    rows = [*_rows(found, wanted), *beside]
    if not rows:
        return None
    return Change(name, RECREATE if remaking(found, wanted) else SET, found, wanted, rows)


def remaking(found: Any, wanted: Any) -> list[Difference]:
    """The differences between two of a kind that only making the object anew can mend."""
    recreate = KINDS[wanted.KIND].remake(found, wanted)
    names = {f.name for f in dataclasses.fields(wanted) if f.metadata["change"] == RECREATE or f.name in recreate}
    return _rows(found, wanted, names)


def _rows(found: Any, wanted: Any, names: Container[str] | None = None) -> list[Difference]:
    will_do = KINDS[wanted.KIND].will_do(found, wanted)
    return [
        row
        for field in dataclasses.fields(wanted)
        if field.name not in will_do and (names is None or field.name in names)
        for row in field.metadata["type"].differences(
            fields.json_name(field.name), getattr(found, field.name), getattr(wanted, field.name)
        )
    ]


def summary(spec: Any) -> str:
    """A spec in a few words: its kind and what it had no default for."""
    words = [spec.KIND]
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if getattr(field.metadata["type"], "word", "") == "peer":
            words.append(f"{len(value)} peer{'' if len(value) == 1 else 's'}")
        elif isinstance(value, dict):
            words += [str(key) for key in value] if len(value) <= NAMED else [f"{len(value)} {field.name}"]
        elif field.name != "mac" and value != fields.default_of(field):
            words.append(f"{fields.json_name(field.name)} {_text(value)}")
    return ", ".join(words)


def row_text(row: Difference) -> str:
    """A difference as what happens: `vni 42 -> 43`, `+ peer c 192.0.2.13`."""
    what, is_, want = row
    if is_ is None or want is None:
        sign, value = ("+", want) if is_ is None else ("-", is_)
        return f"{sign} {what}" + (f" {_text(value)}" if value not in ({}, None) else "")
    return f"{what} {_text(is_)} -> {_text(want)}"


def _drift_text(row: Difference) -> str:
    what, is_, want = row
    if is_ is None or want is None:
        value = want if is_ is None else is_
        tail = f" {_text(value)}" if value not in ({}, None) else ""
        return f"lacks {what}{tail}" if is_ is None else f"has {what}{tail} that is not declared"
    return f"{what} want {_text(want)}, is {_text(is_)}"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
