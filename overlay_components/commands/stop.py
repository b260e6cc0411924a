"""`overlay stop` and `overlay start`: a host leaves the stack's networks for a while, and comes back."""

from __future__ import annotations

from typing import Annotated

import typer

from overlay_components.commands.common import (
    UNREACHED,
    WRONG,
    AsJson,
    StackName,
    ask,
    chosen,
    find,
    fleet,
    of_host,
    say,
    told,
)

# ruff: noqa: PLC0415 - see common.py

_Hosts = Annotated[list[str], typer.Argument(metavar="HOST", help="These hosts.", show_default=False)]


def stop(hosts: _Hosts, stack: StackName = None, json: AsJson = False) -> None:
    """Take down what the stack has on hosts, and keep it so until `overlay start`.

    Tunnels, services and addresses go, also over a reboot; bridges stay, down, with the containers plugged in. `pulumi
    up` of a changed document starts it again, and says so.
    """
    _each("stop", hosts, stack, json)


def start(hosts: _Hosts, stack: StackName = None, json: AsJson = False) -> None:
    """Make all of the stack true again on hosts that were stopped."""
    _each("start", hosts, stack, json)


def _each(verb: str, hosts: list[str], stack: str | None, json: bool) -> None:
    with told():
        from overlay_agent.document import dump
        from overlay_components import config, state
        from overlay_components.live import Request

        found = find(None, stack)
        wanted = state.documents(found)
        known = config.load_config(found.raw).resolved_hosts()
        names = chosen({host: wanted[host] for host in known if host in wanted}, hosts)
    with fleet(known) as made:
        # The document says whose stack it is: a label alone may be another checkout's.
        answers, problems = ask(made, {host: Request(verb, dump(wanted[host])) for host in names})
    done = {host: list(answer.lines) for host, answer in answers.items()}
    lines = [of_host(host, line) for host, some in done.items() for line in some]
    say(lines, {"hosts": done, "problems": problems}, json=json, problems=problems)
    if problems:
        raise typer.Exit(UNREACHED if all("is not reached" in problem for problem in problems) else WRONG)
