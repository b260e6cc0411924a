"""`overlay forget`: the way out for a dead host, so that `pulumi up` and `pulumi destroy` go on without it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overlay_components.commands.common import AsJson, StackName, find, fleet, say, told

if TYPE_CHECKING:
    from overlay_components.config import ResolvedHost

# ruff: noqa: PLC0415 - see common.py

_YES = typer.Option("--yes", "-y", help="Do not ask.")


def forget(
    host: Annotated[str, typer.Argument(metavar="HOST", help="A host of the stack that will not come back.")],
    stack: StackName = None,
    yes: Annotated[bool, _YES] = False,
    force: Annotated[bool, typer.Option("--force", help="Also when the host answers.")] = False,
    json: AsJson = False,
) -> None:
    """Take a dead host out of Pulumi's state, so that `pulumi up` and `pulumi destroy` go on without it.

    Nothing is done on the host. Should it come back, `overlay status` names it.
    """
    with told():
        from overlay_components import config, forgotten, ssh, state
        from overlay_components.errors import ConfigErrors, instead

        found = find(None, stack)
        known = config.load_config(found.raw).resolved_hosts()
        exported = state.export(found)
        left, gone = state.without_host(exported, host)
        if not gone:
            there = state.hosts(exported)
            raise ConfigErrors([f"HOST: {host!r} is not in Pulumi's state; {instead(host, there)}"])
        way = known.get(host) or _last_known(host, gone)
    if way and not force:
        with fleet({host: way}) as made, told():
            try:
                made.run(host, "true", root=False)
            except ssh.SshError:
                pass
            else:
                what = "take it out of the stack file and run `pulumi up`, which removes what it has; or say --force"
                raise ConfigErrors([f"{host}: answers at {way.address}; {what}"])
    if not yes:
        what = f"{len(gone)} resources of {host} leave the state of {found.owner.stack}; nothing is done on {host}"
        typer.confirm(f"{what}. Go on?", abort=True, err=True)
    with told():
        # Anew: an answer may take its time, and somebody else's `pulumi up` must not be lost.
        left, gone = state.without_host(state.export(found), host)
        state.replace(found, left)
        if way:
            forgotten.add(found, way, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    lines = [f"{host}: {len(gone)} resources taken out of the state of {found.owner.stack}"]
    if way:
        lines.append(f"{forgotten.path_of(found)}: names {host}, so that it is noticed when it comes back; commit it")
    if host in known:
        lines.append(f"{host}: still in the stack file; take it out before `pulumi up` (not needed for a destroy)")
    say(lines, {"host": host, "resources": [row["urn"] for row in gone], "notes": lines}, json=json)


def _last_known(host: str, rows: list[dict[str, Any]]) -> ResolvedHost | None:
    """How Pulumi reached the host, as the state has it."""
    from overlay_components import forgotten

    for row in rows:
        at = (row.get("inputs") or {}).get("connection")
        if isinstance(at, dict) and isinstance(at.get("host"), str):
            port = at.get("port")
            return forgotten.at(
                host, at["host"], user=at.get("user"), port=int(port) if port else None, host_key=at.get("hostKey")
            )
    return None
