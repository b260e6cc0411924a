"""The command `overlay`, and those of its commands that need the stack file alone. The others are in commands/.

It shares the loader and the planner with the program, so it says what `pulumi up` would say. All
imports but typer's are made when they are needed: `overlay --help` must not wait for Pulumi.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from overlay_components import commands
from overlay_components.commands.common import USAGE, AsJson, StackFile, StackName, find, say, show, told, warn

# ruff: noqa: PLC0415 - see above

if TYPE_CHECKING:
    from overlay_components.plan import Plan

app = typer.Typer(
    help="Layer-2 overlay networks between Linux hosts, declared in a Pulumi stack file. `pulumi preview` and "
    "`pulumi up` make them; this says what is planned, and what is there.",
    epilog="Exit codes: 0 done; 1 the input is wrong (every error is told, one a line); 2 what is there differs from "
    "what was declared; 3 a host was not reached; 64 wrong usage.",
    no_args_is_help=True,
    # Plain text: the same on every terminal, so that the documentation can show it.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to write; default: here.", show_default=False)
    ] = Path(),
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=ADDRESS", help="A server; give it once for each.", show_default=False),
    ] = None,
    subnet: Annotated[str, typer.Option(metavar="SUBNET", help="The containers' subnet.")] = "10.10.0.0/24",
    vni: Annotated[int, typer.Option(metavar="NUMBER", help="The VXLAN's number.")] = 42,
    stack: Annotated[str, typer.Option("--stack", "-s", metavar="NAME", help="The first stack.")] = "dev",
    json: AsJson = False,
) -> None:
    """Write a Pulumi project with a first stack; overwrites nothing.

    Without --host it asks for two servers, or without a terminal takes a=192.0.2.11 and b=192.0.2.12, to be edited.
    """
    with told():
        from overlay_components import _init

        example = {"a": "192.0.2.11", "b": "192.0.2.12"}
        hosts = _init.hosts_of(host) if host else _ask(example)
        wanted = _init.files(_version(), stack, hosts, subnet, vni)
        _init.write(folder, wanted)
    step = f"cd {folder} && " if folder.resolve() != Path.cwd() else ""
    first = f"First put your servers' addresses into stacks/Pulumi.{stack}.yaml. Then:" if hosts == example else "Next:"
    lines = [
        f"Written to {folder.resolve()}: {', '.join(wanted)}",
        first,
        f"  {step}pulumi login --local      # or where your team keeps its state",
        f"  pulumi stack init {stack}",
        "  pulumi up                   # shows what would change, and asks",
    ]
    say(lines, {"folder": str(folder.resolve()), "files": list(wanted), "hosts": hosts}, json=json)


@app.command()
def plan(
    file: StackFile = None,
    stack: StackName = None,
    json: Annotated[bool, typer.Option("--json", help="The same as JSON, with all attributes.")] = False,
    hosts: Annotated[bool, typer.Option("--hosts", help="The containers as lines for /etc/hosts.")] = False,
    inventory: Annotated[
        bool, typer.Option("--inventory", help="The containers as an Ansible inventory, in JSON.")
    ] = False,
) -> None:
    """Show the IP plan, the devices, the services, and what must reach hosts."""
    if json + hosts + inventory > 1:
        raise typer.BadParameter("give one of --json, --hosts and --inventory")
    import json as json_

    with told():
        from overlay_components import snippets

        found = find(file, stack)
        made = found.plan()
    warn(made.warnings)
    if hosts:
        for line in snippets.hosts(made.containers):
            typer.echo(line)
        return
    if inventory:
        typer.echo(json_.dumps(snippets.inventory(made.containers), indent=2))
        return
    if json:
        out = {"containers": made.containers, "hosts": made.hosts(all_peers=True), "segments": made.segments}
        typer.echo(json_.dumps(out, indent=2))
        return
    show(
        "IP plan",
        ["segment", "container", "host", "runtime", "bridge", "address", "gateway", "MAC", "MTU"],
        _containers(made),
    )
    show("Devices", ["host", "device", "kind", "bridge", "addresses", "MTU", "more"], _devices(made))
    show("Services", ["host", "service", "kind", "what"], _services(made))
    show("To be let in by firewalls", ["host", "tunnel", "protocol", "port", "from"], _rules(made))


@app.command()
def explain(
    host: Annotated[
        str | None,
        typer.Argument(
            metavar="HOST",
            help="A host of the stack, or a peer that it does not manage; default: all its hosts.",
            show_default=False,
        ),
    ] = None,
    file: StackFile = None,
    stack: StackName = None,
    json: AsJson = False,
) -> None:
    """Print what one would type on a host to do it by hand; touches none."""
    with told():
        from overlay_components import _explain

        found = find(file, stack)
        commands_ = _explain.lines(found.raw, found.owner, host, found.lock())
    say([line for lines in commands_.values() for line in lines], commands_, json=json)


@app.command()
def snippet(
    container: Annotated[str, typer.Argument(metavar="CONTAINER", help="A container of the stack.")],
    file: StackFile = None,
    stack: StackName = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="FORM",
            help="lxc, lxc1, lxd, incus, docker, compose, libvirt, ifupdown or netplan; default: its runtime.",
            show_default=False,
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Print what to paste to plug a container in.

    ifupdown and netplan are for within the container, where nothing else gives it its address.
    """
    with told():
        from overlay_components import snippets

        made = find(file, stack).plan()
        lines = list(snippets.chosen(made.containers, made.segments, container, form))
    say(lines, {"container": container, "text": "\n".join(lines)}, json=json)


@app.command()
def lock(
    file: StackFile = None,
    stack: StackName = None,
    prune: Annotated[bool, typer.Option("--prune", help="Drop what no container needs any more.")] = False,
    json: AsJson = False,
) -> None:
    """Choose addresses for containers that have none, and keep them in the stack's lock file.

    Each gets the lowest address that is free. What was chosen before stays; also that of a container that is gone,
    until --prune.
    """
    with told():
        from overlay_components import lock as lock_

        found = find(file, stack)
        before, after = found.lock(), found.relocked(prune=prune)
        if before != after:
            lock_.write(found.lock_file, after)
    lines = list(lock_.changes(before, after))
    end = f"{found.lock_file}: {'written; commit it' if lines else 'nothing to change'}"
    say([*lines, end], {"file": str(found.lock_file), "changes": lines, "addresses": after}, json=json)


@app.command()
def schema() -> None:
    """Print the JSON Schema of stack files, for editors. It is JSON itself."""
    from overlay_components import config

    typer.echo(config.schema_text(), nl=False)


@app.command()
def version(json: AsJson = False) -> None:
    """Print the version."""
    say([f"overlay-networks {_version()}"], {"version": _version()}, json=json)


# UsageError, which typer does not export.
typer.BadParameter.__base__.exit_code = USAGE  # type: ignore[union-attr]
for _command in commands.ALL:
    app.command(_command.__name__.rstrip("_"))(_command)


def main() -> None:
    """Entry point of the command."""
    app(prog_name="overlay")


# -- input -----------------------------------------------------------------------------------


def _ask(example: Mapping[str, str]) -> dict[str, str]:
    if not sys.stdin.isatty():
        return dict(example)
    return {name: typer.prompt(f"Address of server {name}", default=address) for name, address in example.items()}


def _version() -> str:
    from overlay_agent import __version__

    return __version__


# -- output ----------------------------------------------------------------------------------


#: So many of a service's leases, ports or subnets are named in a table.
_NAMED = 3
_COMMON = ("kind", "mtu", "mac", "bridge", "addresses", "peers")


def _containers(made: Plan) -> Iterator[list[str]]:
    for rows in made.containers.values():
        for row in rows.values():
            address, gateway = row["address"] or "-", row["gateway"] or "-"
            yield [
                row["segment"],
                row["name"],
                row["host"],
                "-" if row["runtime"] == "none" else row["runtime"],
                row["bridge"],
                address,
                gateway,
                row["mac"],
                str(row["mtu"]),
            ]


def _devices(made: Plan) -> Iterator[list[str]]:
    for host, document in made.documents.items():
        for name, device in document["devices"].items():
            more = [f"{key} {value}" for key, value in device.items() if key not in _COMMON]
            if "peers" in device:
                more.append(f"{len(device['peers'])} peer{'s' if len(device['peers']) != 1 else ''}")
            addresses = ", ".join(device.get("addresses", ())) or "-"
            yield [
                host,
                name,
                device["kind"],
                device.get("bridge") or "-",
                addresses,
                str(device["mtu"]),
                ", ".join(more),
            ]


def _services(made: Plan) -> Iterator[list[str]]:
    for host, document in made.documents.items():
        for name, service in document.get("services", {}).items():
            yield [host, name, service["kind"], ", ".join(_words(service))]


def _words(service: Mapping[str, object]) -> Iterator[str]:
    """A service's attributes; of what comes by name how many, where it is more than a few."""
    for key, value in service.items():
        if isinstance(value, Mapping):
            few = " ".join(f"{name}{_arrow(inner)}" for name, inner in value.items())
            yield f"{key} {few if len(value) <= _NAMED else len(value)}"
        elif isinstance(value, list):
            yield f"{key} {' '.join(map(str, value))}"
        elif isinstance(value, bool):
            yield key if value else f"{key} off"
        elif key != "kind":
            yield f"{key} {value}"


def _arrow(value: object) -> str:
    """Where something leads: `->10.10.0.11:80`."""
    if isinstance(value, Mapping) and "address" in value:
        return f"->{value['address']}" + (f":{value['ports']}" if "ports" in value else "")
    return f"->{value}" if isinstance(value, str) else ""


def _rules(made: Plan) -> Iterator[list[str]]:
    from overlay_components.errors import listed

    for host, rules in made.underlay_rules.items():
        for name, rule in rules.items():
            port = "-" if rule["port"] is None else str(rule["port"])
            yield [host, name, rule["protocol"], port, listed(rule["peers"].values()) or "anywhere"]


if __name__ == "__main__":
    main()
