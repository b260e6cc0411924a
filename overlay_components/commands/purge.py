"""`overlay purge`: removes one stack's devices from any host, whether or not anybody still knows of it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from overlay_components.commands.common import UNREACHED, WRONG, AsJson, find, fleet, of_host, say, told

if TYPE_CHECKING:
    from overlay_components.config import ResolvedHost

# ruff: noqa: PLC0415 - see common.py

#: USER@ADDRESS:PORT; an IPv6 address with a port stands in brackets.
_TARGET = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?"
    r"(?:\[(?P<six>[0-9A-Fa-f:.%]+)\]|(?P<address>[A-Za-z0-9][A-Za-z0-9.-]*|[0-9A-Fa-f:.]+:[0-9A-Fa-f:.]*))"
    r"(?::(?P<port>\d{1,5}))?"
)


def purge(
    target: Annotated[
        str, typer.Argument(metavar="[USER@]HOST", help="An address, or a host of the stack, or one it has forgotten.")
    ],
    stack: Annotated[
        str | None,
        typer.Option("--stack", "-s", metavar="NAME", help="The stack, by name, or PROJECT/STACK.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also bridges with containers on them.")] = False,
    json: AsJson = False,
) -> None:
    """Remove what one stack has on any host, and the agent with the last stack; Pulumi's state stays as it is.

    For hosts that were forgotten, or whose state is lost. With PROJECT/STACK it needs no stack file.
    """
    with told():
        from overlay_components import config, forgotten, ssh
        from overlay_components.errors import listed
        from overlay_components.live import Request

        if stack and "/" in stack:
            found, label, hosts, declared = None, stack, {}, {}
            _check(label)
        else:
            found = find(None, stack)
            label = found.owner.label
            declared = config.load_config(found.raw).resolved_hosts()
            hosts = {**forgotten.load(found), **declared}
        name, host = _named(target, hosts)
    with fleet({name: host}) as made:
        seen = made.ask({name: Request(f"status {label}")})[name]
        if seen.problem:
            typer.echo(seen.problem, err=True)
            raise typer.Exit(UNREACHED)
        there = [one for one, row in seen.report["objects"].items() if row["there"]]
        if not yes:
            what = f"{name}: {listed(there) or 'nothing'} of {label} will be removed"
            typer.confirm(f"{what}. Go on?", abort=True, err=True)
        done = made.ask({name: Request(f"purge {label}{' force' if force else ''}")})[name]
        if not done.problem:
            # What Pulumi copied there, in the user's home.
            with contextlib.suppress(ssh.SshError):
                made.run(name, f"rm -f .overlay-agent-{label.replace('/', '-')}.pyz", root=False)
    if found and not done.problem:
        with told():
            forgotten.drop(found, {one for one, known in hosts.items() if known.address == host.address})
    notes = [f"{name}: stands in the stack file; to make it again, raise its generation"] if name in declared else []
    # The agent speaks to a stack file, which need not know the host.
    problem = re.sub(r"set overlay:hosts\.[^ ;]+\.force: true", "say --force", done.problem)
    lines = [] if problem else [*done.lines, *notes]
    out = {"host": name, "lines": lines, "problem": problem or None}
    say([of_host(name, line) for line in lines], out, json=json)
    if problem:
        typer.echo(problem, err=True)
        raise typer.Exit(WRONG)


def _check(label: str) -> None:
    from overlay_agent.fields import Label
    from overlay_components.errors import ConfigErrors

    if label.count("/") != 1 or any(Label().check(part) for part in label.split("/")):
        raise ConfigErrors([f"--stack: {label!r} is not a stack; write its name, or PROJECT/STACK"])


def _named(target: str, hosts: Mapping[str, ResolvedHost]) -> tuple[str, ResolvedHost]:
    """The host that is meant, and what it is called. Raises ConfigErrors."""
    from overlay_components import forgotten
    from overlay_components.errors import ConfigErrors

    if target in hosts:
        return target, hosts[target]
    match = _TARGET.fullmatch(target)
    if match is None:
        raise ConfigErrors([f"HOST: {target!r} is no host; write user@address, such as root@192.0.2.12"])
    user, address = match["user"], match["six"] or match["address"]
    port = int(match["port"]) if match["port"] else None
    # What is known of it, such as its host key, counts here too.
    for name, one in hosts.items():
        if (one.address, one.port or port) == (address, port or one.port):
            return name, dataclasses.replace(one, user=user or one.user)
    return address, forgotten.at(address, address, user=user, port=port)
