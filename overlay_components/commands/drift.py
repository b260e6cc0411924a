"""`overlay drift`: what hosts have, compared with what was applied to them, by their own agents."""

from __future__ import annotations

import typer

from overlay_components.commands.common import (
    DIFFERS,
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
    warn,
)

# ruff: noqa: PLC0415 - see common.py


def drift(hosts: HostNames = None, stack: StackName = None, json: AsJson = False) -> None:
    """Compare what hosts have with what was applied; changes nothing.

    Each line is one difference: `h2 vx-app: mtu want 1450, is 1400`. Exit code 2 when there is one; else 3 when a host
    could not be asked.
    """
    with told():
        from overlay_agent.document import dump
        from overlay_components import config, state
        from overlay_components.live import Request

        found = find(None, stack)
        wanted = state.documents(found)
        known = config.load_config(found.raw).resolved_hosts()
        names = chosen(known, hosts)
    warn(f"{host}: nothing was applied to it yet; run `pulumi up`" for host in names if host not in wanted)
    with fleet(known) as made:
        requests = {host: Request("check -", dump(wanted[host])) for host in names if host in wanted}
        answers, problems = ask(made, requests)
    drifted = {host: answer.report["drift"] for host, answer in answers.items() if answer.report["drift"]}
    stopped = {host: since for host, answer in answers.items() for since in answer.report.get("stopped", {}).values()}
    lines = [
        f"{host}: stopped on purpose since {since}; `overlay start {host}` makes it true again"
        for host, since in stopped.items()
    ]
    lines += [f"{host} {line}" for host, some in drifted.items() for line in some]
    asked = f"{len(answers)} host{'' if len(answers) == 1 else 's'}"
    lines.append(f"{asked} asked: {f'{len(drifted)} drifted' if drifted else 'all as applied'}")
    out = {"drift": {host: drifted.get(host, []) for host in answers}, "stopped": stopped, "unreached": problems}
    say(lines, out, json=json, problems=problems)
    if drifted or problems:
        raise typer.Exit(DIFFERS if drifted else UNREACHED)
