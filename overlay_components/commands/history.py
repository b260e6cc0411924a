"""`overlay history`: what was done on hosts for this stack, by whom and when, as they remember it."""

from __future__ import annotations

import typer

from overlay_components.commands.common import (
    UNREACHED,
    AsJson,
    HostNames,
    StackName,
    ask,
    chosen,
    find,
    fleet,
    say,
    told,
)

# ruff: noqa: PLC0415 - see common.py


def history(hosts: HostNames = None, stack: StackName = None, json: AsJson = False) -> None:
    """Show who changed what on hosts for this stack, and when; the last is the newest.

    Applies that had nothing to do are not kept, failures are. Exit code 3 when a host could not be asked.
    """
    with told():
        from overlay_agent import history as kept
        from overlay_components import config
        from overlay_components.live import Request

        found = find(None, stack)
        known = config.load_config(found.raw).resolved_hosts()
        names = chosen(known, hosts)
    with fleet(known) as made:
        answers, problems = ask(made, {host: Request(f"history {found.owner.label}") for host in names})
    entries = [{"host": host, **one} for host, answer in answers.items() for one in answer.report["history"]]
    entries.sort(key=lambda one: one["time"])
    lines = []
    for one in entries:
        lines += [f"{one['host']} {kept.told(one)}", *(f"  {line}" for line in one["lines"])]
    say(lines, {"history": entries, "unreached": problems}, json=json, problems=problems)
    if problems:
        raise typer.Exit(UNREACHED)
