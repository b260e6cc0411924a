"""`overlay:live`: before anything is registered the hosts are asked what is; those that have drifted become updates.

Pulumi has no Read for what commands have made (design, rule 4). What it says was applied is in its state, and the
difference to that is drift; a document that changes runs anyway. An update needs another text than last time, or the
same drift twice would be repaired once; what must not run keeps the text that it has (`ignore_changes`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pulumi

from overlay_agent import COMMAND
from overlay_agent.document import Owner, dump
from overlay_components import config, state
from overlay_components.errors import ConfigErrors
from overlay_components.live import Fleet, Request
from overlay_components.names import Placeholder

#: What Pulumi calls the organization where its backend has none.
_NONE = "organization"
#: Has the last word: 1 for one run, 0 for one without.
VARIABLE = "OVERLAY_LIVE"
#: Becomes root if it has to: it stays in the state, also when another user logs in some day.
_APPLY = f"$(test $(id -u) = 0 || echo sudo -n) {COMMAND} apply >/dev/null"


def is_wanted(said: bool | None) -> bool:
    """Whether the hosts are asked; `said`: by the program or the stack file. Raises RunError."""
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise pulumi.RunError(f"{VARIABLE}: {value!r} is neither 1 nor 0; unset it, or write one of them")
    return value == "1" if value else bool(said)


def update_text() -> str:
    """The command that repairs, which is another one each time."""
    return f"{_APPLY}  # repair {datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


def drifted(raw: Mapping[str, Any], owner: Owner) -> dict[str, list[str]]:
    """What differs on each host from what was applied to it last, by host: only those that differ, in the agents' own
    words. A host that cannot be asked is a warning, and one whose address is not known yet is not asked. `raw`: the
    stack file's keys, with Placeholders in them."""
    try:
        hosts = config.load_config(raw).resolved_hosts()
    except ConfigErrors:
        return {}  # the plan tells
    try:
        applied = state.applied(Path(pulumi.get_root_directory() or "."), _stack(), owner.label)
    except ConfigErrors as error:
        pulumi.log.warn("\n".join(f"overlay:live: {sentence}" for sentence in [*error.errors, "no host was asked"]))
        return {}
    known = {
        name: host
        for name, host in hosts.items()
        if name in applied and not isinstance(host.address, Placeholder) and not isinstance(host.host_key, Placeholder)
    }
    with Fleet(known) as fleet:
        answers = fleet.ask({name: Request("check -", dump(applied[name])) for name in known})
    for answer in answers.values():
        refused = f"{answer.host}: {'; '.join(answer.lines)}" if answer.report is None else ""
        why = answer.problem or refused
        if why:
            pulumi.log.warn(f"overlay:live: {why}; not compared, and not repaired in this run")
    found = {name: answer.report["drift"] for name, answer in answers.items() if answer.report}
    return {name: lines for name, lines in found.items() if lines}


def _stack() -> str:
    """The stack, as the command `pulumi` is told of it."""
    organization = pulumi.get_organization()
    return pulumi.get_stack() if organization in (None, _NONE) else f"{organization}/{pulumi.get_stack()}"
