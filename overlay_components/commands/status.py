"""`overlay status`: what is up on each host and since when, what it carries, and who leases what."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

from overlay_components.commands.common import AsJson, HostNames, StackName, chosen, find, fleet, show, told

if TYPE_CHECKING:
    from overlay_components.live import Answer

# ruff: noqa: PLC0415 - see common.py

_UNITS = ("kB", "MB", "GB", "TB")


def status(hosts: HostNames = None, stack: StackName = None, json: AsJson = False) -> None:
    """Show what is up on each host, since when, what it carries, and who leases what.

    A host that does not answer is a row like the others. Nothing is compared; `overlay drift` does that.
    """
    with told():
        from overlay_components import config, forgotten
        from overlay_components.live import Request

        found = find(None, stack)
        known = config.load_config(found.raw).resolved_hosts()
        names = chosen(known, hosts)
        gone = {} if hosts else forgotten.load(found, known)
        segments = found.plan().segments
    with fleet({**known, **gone}) as made:
        requests = {host: Request(f"status {found.owner.label}") for host in names}
        answers = made.ask({**requests, **{host: forgotten.request(found) for host in gone}})
    back = forgotten.back(found, gone, answers)
    rows = {host: _host(answers[host], segments) for host in names}
    if json:
        import json as json_

        typer.echo(json_.dumps({"hosts": rows, "forgotten": back}, indent=2))
        return
    show("Hosts", ["host", "state", "since", "what"], (_summary(host, row) for host, row in rows.items()))
    show("Devices", ["segment", "host", "device", "kind", "state", "received", "sent", "lost"], _sorted(_devices(rows)))
    show("Services", ["segment", "host", "service", "kind", "state", "since"], _sorted(_services(rows)))
    show("BGP", ["host", "neighbour", "address", "state", "since", "routes"], list(_sessions(rows)))
    show("Leases", ["segment", "host", "address", "name", "MAC", "until"], _sorted(_leases(rows)))
    for line in back:
        typer.echo(line)


def _host(answer: Answer, segments: Mapping[str, Any]) -> dict[str, Any]:
    """What one host said, with the segment of each object; or why it said nothing."""
    if answer.problem:
        return {"problem": answer.problem.removeprefix(f"{answer.host}: ")}
    report = answer.report
    objects = {name: {**one, "segment": _segment(name, one, segments)} for name, one in report["objects"].items()}
    return {**{key: report[key] for key in ("applied", "stopped", "agent", "machine")}, "objects": objects}


def _segment(name: str, one: Mapping[str, Any], segments: Mapping[str, Any]) -> str | None:
    """Whose it is: by its bridge, by its addresses, or as services are called."""
    for segment, row in segments.items():
        subnets = [ipaddress.ip_network(subnet) for subnet in row["subnets"]]
        if row["bridge"] and row["bridge"] in (name, one.get("bridge")):
            return segment
        if not row["bridge"] and any(
            ipaddress.ip_interface(address).ip in subnet for address in one.get("addresses", ()) for subnet in subnets
        ):
            return segment
    return next((segment for segment in segments if name.endswith(f"-{segment}")), None)


def _summary(host: str, row: Mapping[str, Any]) -> list[str]:
    if "problem" in row:
        return [host, "no answer", "-", row["problem"]]
    missing = [name for name, one in row["objects"].items() if _state(one) not in ("up", "runs", "there")]
    if row["stopped"]:
        return [host, "stopped", row["stopped"], f"on purpose; overlay start {host}"]
    if row["applied"] is None:
        return [host, "empty", "-", "nothing was applied; pulumi up"]
    count = f"{len(row['objects'])} object{'' if len(row['objects']) == 1 else 's'}"
    state = "not all up" if missing else "up"
    return [host, state, _time(row["applied"]), f"{', '.join(missing)} of {count}" if missing else count]


def _state(one: Mapping[str, Any]) -> str:
    if not one["there"]:
        return "is not there"
    if "up" in one:
        return "up" if one["up"] else "down"
    return "there" if "since" not in one else "runs" if one["since"] else "does not run"


def _objects(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    for host, row in rows.items():
        for name, one in row.get("objects", {}).items():
            yield one["segment"] or "-", host, name, one


def _devices(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    for segment, host, name, one in _objects(rows):
        if "up" in one:
            yield [segment, host, name, one["kind"], _state(one), *_traffic(one)]


def _services(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    for segment, host, name, one in _objects(rows):
        if "up" not in one:
            yield [segment, host, name, one["kind"], _state(one), _time(one.get("since"))]


def _leases(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    for segment, host, _, one in _objects(rows):
        for lease in one.get("leases", ()):
            until = _time(lease["until"]) if lease["until"] else "for ever"
            yield [segment, host, lease["address"], lease["name"] or "-", lease["mac"] or "-", until]


def _sessions(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    for _, host, _, one in _objects(rows):
        for name, its in one.get("sessions", {}).items():
            yield [host, name, its["address"], its["state"] or "-", _time(its["since"]), str(its["prefixes"])]


def _sorted(rows: Iterator[list[str]]) -> list[list[str]]:
    """By segment; within one the hosts as they are declared."""
    return sorted(rows, key=lambda row: (row[0] == "-", row[0]))


def _traffic(one: Mapping[str, Any]) -> list[str]:
    """Received and sent in bytes and packets, and what was dropped or wrong."""
    if "rxBytes" not in one:
        return ["-", "-", "-"]
    lost = sum(one[key] for key in ("rxErrors", "rxDropped", "txErrors", "txDropped"))
    return [f"{_size(one[f'{way}Bytes'])} in {one[f'{way}Packets']}" for way in ("rx", "tx")] + [str(lost)]


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    size = float(count)
    for unit in _UNITS:
        size /= 1000
        if size < 1000 or unit == _UNITS[-1]:
            break
    return f"{size:.1f} {unit}"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
