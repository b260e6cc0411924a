"""`overlay import`: hosts that were set up by hand are looked at, and a stack file is written that reproduces them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overlay_components.commands.common import UNREACHED, AsJson, told, warn

# ruff: noqa: PLC0415 - see common.py

if TYPE_CHECKING:
    from overlay_agent.document import Owner
    from overlay_components.config import ResolvedHost
    from overlay_components.importer import Host

#: Runs the agent's archive, which comes on standard input, from memory: nothing is written on the host.
_READER = """\
import os, runpy, sys
if sys.version_info < (3, 9):
    sys.exit("python3 is %d.%d here; 3.9 or newer is needed" % sys.version_info[:2])
file = os.memfd_create("overlay-survey")
with open(file, "wb", closefd=False) as out:
    out.write(sys.stdin.buffer.read())
sys.argv = ["overlay-agent", "survey"]
runpy.run_path("/proc/self/fd/%d" % file, run_name="__main__")
"""
_NO_PYTHON = 127
#: [user@]host[:port], where an IPv6 address with a port stands in brackets.
_HOST = r"(?:([^@\s]+)@)?(?:\[([0-9A-Fa-f:.]+)\]|([^@\s\[\]:]+)|([0-9A-Fa-f:]+))(?::(\d{1,5}))?"


def import_(
    hosts: Annotated[list[str], typer.Argument(metavar="USER@HOST...", help="The hosts: [user@]host[:port].")],
    stack: Annotated[
        str | None,
        typer.Option("--stack", "-s", metavar="NAME", help="The stack's name; default: imported.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to write; default: standard output.", show_default=False
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Write the stack file of what was set up on hosts by hand; changes nothing there.

    Bridges, VXLAN, GRETAP and L2TP tunnels, addresses, dnsmasq, Docker's and LXD's networks. What a stack file cannot
    say is named in comments. Needs python3 on the hosts, and no agent.
    """
    with told():
        from overlay_components import importer
        from overlay_components.errors import ConfigErrors

        if output is not None and output.exists():
            raise ConfigErrors([f"{output}: is there already; name another file, or move that one away"])
        owner = _owner(stack, output)
        wanted = _wanted(hosts)
    surveys, problems = _ask(wanted)
    if problems:
        for problem in problems:
            typer.echo(problem, err=True)
        raise typer.Exit(UNREACHED)
    found = importer.imported(surveys, owner)
    if json:
        import json as json_

        read = {host.address: host.survey for host in surveys}
        typer.echo(json_.dumps({"hosts": read, "stack": found.raw, "notes": found.notes}, indent=2))
        return
    if output is None:
        typer.echo(found.text(hosts), nl=False)
        return
    output.write_text(found.text(hosts), encoding="utf-8")
    warn(found.notes)
    segments = found.raw["segments"]
    counted = f"{len(surveys)} host{_s(surveys)} and {len(segments)} segment{_s(segments)}"
    typer.echo(f"{output}: written, {counted}")


def _s(rows: Any) -> str:
    return "" if len(rows) == 1 else "s"


def _owner(stack: str | None, output: Path | None) -> Owner:
    """Whose MAC addresses are derived; as the project's, where one is near."""
    from overlay_agent.document import Owner
    from overlay_components import _project

    name = stack or (_project.stack_name(output) if output else "imported")
    return Owner(_project.project_name(output.resolve().parent if output else Path.cwd()), name, "unknown")


def _wanted(hosts: list[str]) -> dict[str, ResolvedHost]:
    """By what was typed. Raises ConfigErrors."""
    from overlay_components.config import ResolvedHost
    from overlay_components.errors import ConfigErrors

    out: dict[str, ResolvedHost] = {}
    wrong = []
    for text in hosts:
        match = re.fullmatch(_HOST, text)
        address = next((part for part in match.groups()[1:4] if part), "") if match else ""
        if not match:
            wrong.append(f"{text}: is not a host; write user@host, user@host:port or user@[address]:port")
        elif text in out:
            wrong.append(f"{text}: stands twice; name each host once")
        else:
            port = int(match[5]) if match[5] else None
            out[text] = ResolvedHost(text, address, match[1], port, None, None, None, None, 0, address, address, None)
    if wrong:
        raise ConfigErrors(wrong)
    return out


def _ask(wanted: dict[str, ResolvedHost]) -> tuple[list[Host], list[str]]:
    """What the hosts say, and why others say nothing."""
    import shlex
    from concurrent.futures import ThreadPoolExecutor

    from overlay_components import agent
    from overlay_components.commands.common import fleet
    from overlay_components.live import AT_ONCE

    archive, command = agent.archive().read_bytes(), f"python3 -IS -c {shlex.quote(_READER)}"
    with fleet(wanted) as made, ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda name: _one(made, wanted[name], command, archive), wanted))
    return [one for one in answers if not isinstance(one, str)], [one for one in answers if isinstance(one, str)]


def _one(made: Any, host: ResolvedHost, command: str, archive: bytes) -> Host | str:
    """The host, or why it said nothing."""
    import ipaddress
    import json
    import socket

    from overlay_components import live, ssh
    from overlay_components.connection import DEFAULT_PORT, ConnectionProblem
    from overlay_components.importer import Host

    try:
        found = live.reached(host, made.operator)
        done = made.run(host.name, command, archive)
    except ConnectionProblem as error:
        return "\n".join(error.problems)
    except ssh.SshError as error:
        return str(error)
    if done.code:
        said = done.stderr.decode(errors="replace").strip() or f"exit code {done.code}"
        if done.code == _NO_PYTHON:
            said = "python3 is missing on this host; install it, such as: apt-get install python3"
        return f"{host.name}: {said}"
    try:
        survey = json.loads(done.stdout)
    except ValueError:
        return f"{host.name}: what it answers is no report ({done.stdout[:80]!r}); look at its log-in scripts"
    keys: dict[str, Any] = {"user": found.user}
    if found.port != DEFAULT_PORT:
        keys["port"] = found.port
    if found.proxy:
        keys["proxy"] = f"{found.proxy.user}@{found.proxy.host}:{found.proxy.port}"
    try:
        ipaddress.ip_address(host.address)
        address = host.address
    except ValueError:
        # known_hosts has it by that name, and the stack file needs the address.
        keys["hostKey"] = found.host_key
        try:
            address = str(socket.getaddrinfo(found.host, None, type=socket.SOCK_STREAM)[0][4][0])
        except OSError as error:
            return f"{host.name}: {found.host!r} has no address here ({error.strerror}); name the host by its address"
    return Host(address, survey, keys)
