"""The addresses that were chosen for containers, kept in a file that is committed beside the stack file.

What is chosen must not change when others come and go (rule 18), so it cannot be derived from what
stands in the stack file today: it is chosen once, by `overlay lock`, and only read from then on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from overlay_agent import fields
from overlay_components import errors
from overlay_components.errors import ConfigErrors

#: Addresses by segment and container.
Lock: TypeAlias = Mapping[str, Mapping[str, str]]

COMMAND = "overlay lock"
_VERSION = 1
_ADDRESS = fields.Address()
_MEND = f"delete it there, then run {COMMAND}"


def path_of(folder: Path, stack: str) -> Path:
    """The lock file of the stack whose file lies in that folder."""
    return folder / f"Pulumi.{stack}.lock.json"


def load(path: str | Path) -> Lock:
    """What the file says; nothing when there is none. Raises ConfigErrors."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigErrors([f"{path}: cannot be read ({error}); it is written by {COMMAND}"]) from None
    return parse(text, str(path))


def parse(text: str, where: str) -> Lock:
    """What the file's text says. Raises ConfigErrors with all that is wrong, `where` in front."""
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        # Most often two branches that were merged.
        raise ConfigErrors([f"{where}: cannot be read ({error}); mend it, or take its last committed form"]) from None
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        said = errors.shown(content.get("version")) if isinstance(content, dict) else "none"
        raise ConfigErrors([f"{where}: version {said} is not {_VERSION}; it takes another version of overlay-networks"])
    return checked(content.get("addresses", {}), f"{where}: addresses")


def checked(raw: Any, where: str) -> Lock:
    """Plain data as a lock. Raises ConfigErrors with all that is wrong, `where` in front."""
    wrong: list[str] = []
    out: dict[str, dict[str, str]] = {}
    rows = raw.items() if isinstance(raw, Mapping) else ()
    if not isinstance(raw, Mapping):
        wrong.append(f"{where}: {errors.shown(raw)} is not an object of segments; {_MEND}")
    for segment, addresses in rows:
        if not isinstance(addresses, Mapping):
            wrong.append(f"{where}.{segment}: {errors.shown(addresses)} is not an object of containers; {_MEND}")
            continue
        out[segment] = {}
        for name, text in addresses.items():
            if _ADDRESS.check(text):
                wrong.append(f"{where}.{segment}.{name}: {errors.shown(text)} is not an IP address; {_MEND}")
            else:
                out[segment][name] = _ADDRESS.normal(text)
    if wrong:
        raise ConfigErrors(wrong)
    return out


def dump(lock: Lock) -> str:
    """The file's text: one form for one content, a line a container, sorted, so that it merges well."""
    return json.dumps({"addresses": lock, "version": _VERSION}, indent=2, sort_keys=True) + "\n"


def write(path: Path, lock: Lock) -> None:
    """Replaces the file as a whole. Raises ConfigErrors."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(dump(lock), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ConfigErrors([f"{path}: cannot be written ({error}); make its folder writable"]) from None


def changes(before: Lock, after: Lock) -> Iterator[str]:
    """What changed, a line a container."""
    for segment in sorted({*before, *after}):
        old, new = before.get(segment, {}), after.get(segment, {})
        for name in sorted({*old, *new}):
            if name not in new:
                yield f"- {segment}.{name}: {old[name]}"
            elif name not in old:
                yield f"+ {segment}.{name}: {new[name]}"
            elif old[name] != new[name]:
                yield f"~ {segment}.{name}: {old[name]} -> {new[name]}"


def updated(old: Lock, chosen: Lock, wanted: Mapping[str, Iterable[str]], *, prune: bool) -> Lock:
    """The old lock with what was chosen. `wanted`: the containers, by segment, that need one; others keep their
    entries, so that they get their addresses again, unless `prune`."""
    needed = {segment: set(names) for segment, names in wanted.items()}
    merged = {segment: {**old.get(segment, {}), **chosen.get(segment, {})} for segment in {**old, **chosen}}
    if prune:
        merged = {
            segment: {name: text for name, text in rows.items() if name in needed.get(segment, ())}
            for segment, rows in merged.items()
        }
    return {segment: rows for segment, rows in merged.items() if rows}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return out
