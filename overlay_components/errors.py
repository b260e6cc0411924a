"""Wrong input is told all at once, in sentences of one form, so that one run mends one stack file.

Each error reads `<where>: <what is wrong, with the value>; <what is allowed or what to do>`. The
helpers here are the small words those sentences share.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

_LONGEST = 60
_SHOWN = 4


#: Keys of stack files whose values are secret and never shown; models add theirs (model.Model).
SECRET_KEYS: set[str] = set()


class ConfigErrors(Exception):  # noqa: N818 - it holds all errors of a stack, not one
    """A stack that cannot be planned; `errors` holds every reason, each a finished sentence."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


def shown(value: Any) -> str:
    """The value as a stack file's reader knows it (null and true, not None and True), at most 60 characters."""
    if isinstance(value, (str, bytes)):
        text = repr(str(value) if isinstance(value, str) else value)
    else:
        try:
            text = json.dumps(_without_secrets(value), default=str)
        except (TypeError, ValueError, RecursionError):
            text = type(value).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: "<secret>" if key in SECRET_KEYS else _without_secrets(inner) for key, inner in value.items()}
    return [_without_secrets(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def listed(names: Iterable[str]) -> str:
    """`a, b and c`; of more than four names the first three and how many more."""
    rest = list(names)
    if len(rest) > _SHOWN:
        return f"{', '.join(rest[: _SHOWN - 1])} and {len(rest) - _SHOWN + 1} more"
    return " and ".join(filter(None, [", ".join(rest[:-1]), *rest[-1:]]))


def instead(wrong: str, known: Iterable[str], *, all_of_them: bool = False) -> str:
    """What to write in place of an unknown name: the nearest known one, else those that there are."""
    names = list(known)
    near = difflib.get_close_matches(wrong, names, n=1)
    if near:
        return f"did you mean {near[0]}?"
    if not names:
        return "none are declared"
    text = ", ".join(sorted(names)) if all_of_them else listed(sorted(names))
    return f"known {'is' if len(names) == 1 else 'are'} {text}"
