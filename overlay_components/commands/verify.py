"""`overlay verify`: who reaches whom through the segments, asked of all hosts at the same time."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overlay_components.commands.common import (
    DIFFERS,
    UNREACHED,
    AsJson,
    StackName,
    chosen,
    find,
    fleet,
    show,
    told,
    warn,
    write,
)

# ruff: noqa: PLC0415 - see common.py

if TYPE_CHECKING:
    from overlay_components.verify import Check, Segment

#: A matrix of more hosts is wider than a terminal; --html shows it.
_WIDEST = 12
#: s, for each of the two answers of a host.
_PATIENCE = 60.0
#: So many pairs are named for one reason.
_NAMED = 3
_MARKS = {True: "ok", False: "fails", None: "not asked"}


def verify(
    segments: Annotated[
        list[str] | None,
        typer.Argument(metavar="SEGMENT", help="Only these segments; default: all.", show_default=False),
    ] = None,
    stack: StackName = None,
    json: AsJson = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write matrix and topology as one page.", show_default=False),
    ] = None,
) -> None:
    """Prove that all hosts reach each other, with full packets, and that DHCP, DNS and NAT answer.

    Each pair of hosts is tried through the segment itself; where one fails, the reason is told. Exit code 2 when
    something fails; else 3 when a host could not be asked.
    """
    with told():
        import secrets

        from overlay_components import config, forgotten
        from overlay_components.live import Request
        from overlay_components.verify import Verification

        found = find(None, stack)
        made = found.plan()
        checked = config.load_config(found.raw)
        run = Verification(made, checked, secrets.token_hex(8))
        run.only(chosen(made.segments, segments, "segment"))
        gone = forgotten.load(found, checked.hosts)
    warn(made.warnings)
    ready: dict[str, Any] = {}

    def go(said: Mapping[str, Any]) -> Mapping[str, Any]:
        ready.update(said)
        return run.go(said)

    import json as json_

    with fleet({**checked.resolved_hosts(), **gone}) as asked:
        requests = {host: Request("verify", json_.dumps(what), _PATIENCE) for host, what in run.requests().items()}
        answers = asked.meet(requests, go)
        others = asked.ask(dict.fromkeys(gone, forgotten.request(found)))
    back = forgotten.back(found, gone, others)
    problems = [answer.problem for answer in answers.values() if answer.problem]
    result = run.result(ready, {host: answer.report for host, answer in answers.items() if not answer.problem})
    if html:
        from overlay_components import graph

        write(html, graph.verified(found.owner.label, made, checked, result, problems))
    if json:
        typer.echo(json_.dumps({**_json(result, problems), "forgotten": back}, indent=2))
    else:
        for name, segment in result.items():
            _tell(name, segment)
        for line in back:
            typer.echo(line)
        for problem in problems:
            typer.echo(problem, err=True)
    good = [cell.good for segment in result.values() for _, _, cell in segment.all()]
    good += [check.good for segment in result.values() for check in segment.checks]
    if False in good or problems:
        raise typer.Exit(DIFFERS if False in good else UNREACHED)


def _json(result: Mapping[str, Segment], problems: list[str]) -> dict[str, Any]:
    return {
        "segments": {
            name: {
                "mtu": segment.mtu,
                "pairs": {a: {b: cell.to_json() for b, cell in row.items()} for a, row in segment.cells.items()},
                "checks": [{"what": c.what, "good": c.good, "says": c.says} for c in segment.checks],
            }
            for name, segment in result.items()
        },
        "unreached": problems,
    }


def _tell(name: str, segment: Segment) -> None:
    if 1 < len(segment.hosts) <= _WIDEST:
        rows = ([f"from {a}", *(_shown(segment, a, b) for b in segment.hosts)] for a in segment.hosts)
        typer.echo(f"{name}: ms there and back")  # as a title of the table it would be folded to its width
        show("", ["", *(f"to {b}" for b in segment.hosts)], rows)
    typer.echo(f"{name}: {summary(segment)}")
    for line in failures(segment):
        typer.echo(f"{name} {line}")
    for check in segment.checks:
        typer.echo(f"{name} {check.what}: {_words(check)}")


def _shown(segment: Segment, a: str, b: str) -> str:
    if a == b:
        return "-"
    cell = segment.cells[a][b]
    if cell.good is None:
        return "?"
    return f"{cell.rtt:.2f}" if cell.good and cell.rtt is not None else "ok" if cell.good else "FAILS"


def summary(segment: Segment) -> str:
    """One line about all pairs."""
    cells = [cell for _, _, cell in segment.all()]
    if not cells:
        return "one host alone, there is no pair to try"
    good = sum(cell.good is True for cell in cells)
    out = f"{good} of {len(cells)} pairs reach each other with packets of {segment.mtu}"
    times = [cell.rtt for cell in cells if cell.rtt is not None]
    return f"{out}; {statistics.median(times):.2f} ms, at most {max(times):.2f} ms" if times else out


def failures(segment: Segment) -> list[str]:
    """Every reason once, with the pairs that it holds for, or the first of them."""
    pairs: dict[str, list[str]] = {}
    for a, b, cell in segment.all():
        if not cell.good:
            pairs.setdefault(cell.why, []).append(f"{a} -> {b}")
    rows = ((why, some[:_NAMED], len(some) - _NAMED) for why, some in pairs.items())
    return [f"{', '.join(some)}{f' and {more} more' if more > 0 else ''}: {why}" for why, some, more in rows]


def _words(check: Check) -> str:
    return f"{_MARKS[check.good]}, {check.says}"
