"""What all commands of `overlay` share: which stack is meant, how wrong input is told, how a table looks.

Everything but typer is imported where it is needed: `overlay --help` must not wait for Pulumi.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

# ruff: noqa: PLC0415 - see above

if TYPE_CHECKING:
    from overlay_components._project import Stack
    from overlay_components.config import ResolvedHost
    from overlay_components.live import Answer, Fleet, Request

#: Exit codes. 2 is no usage error, as it is elsewhere: scripts want to know drift from a typing error.
WRONG, DIFFERS, UNREACHED, USAGE = 1, 2, 3, 64

StackFile = Annotated[
    Path | None,
    typer.Argument(metavar="FILE", help="The stack file; default: the project's only one.", show_default=False),
]


def _stacks() -> list[str]:
    """For the shell's completion."""
    from overlay_components import _project

    return _project.names()


def _hosts(context: typer.Context) -> list[str]:
    """The same of hosts."""
    from overlay_components import _project
    from overlay_components.errors import ConfigErrors

    try:
        return sorted(_project.find(None, context.params.get("stack")).raw.get("hosts") or {})
    except ConfigErrors:
        return []


StackName = Annotated[
    str | None,
    typer.Option(
        "--stack", "-s", metavar="NAME", help="The stack, by name.", show_default=False, autocompletion=_stacks
    ),
]
HostNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="HOST", help="Only these hosts; default: all.", show_default=False, autocompletion=_hosts),
]
AsJson = Annotated[bool, typer.Option("--json", help="The same as JSON.")]


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Wrong input becomes its sentences, one a line, and exit code 1."""
    from overlay_components.errors import ConfigErrors

    try:
        yield
    except ConfigErrors as error:
        for line in error.errors:
            typer.echo(line, err=True)
        raise typer.Exit(WRONG) from None


def find(file: Path | None, name: str | None) -> Stack:
    """The stack that is meant; see _project.find."""
    from overlay_components import _project

    found = _project.find(file, name)
    warn(found.notes)
    return found


def chosen(known: Mapping[str, Any], names: Iterable[str] | None, what: str = "host") -> list[str]:
    """Those hosts (or `what` they are) of the stack, or all. Raises ConfigErrors with every unknown name."""
    from overlay_components.errors import ConfigErrors, instead

    asked = list(names or known)
    wrong = [f"{what.upper()}: unknown {what} {name!r}; {instead(name, known)}" for name in asked if name not in known]
    if wrong:
        raise ConfigErrors(wrong)
    return list(dict.fromkeys(asked))


@contextlib.contextmanager
def fleet(hosts: Mapping[str, ResolvedHost]) -> Iterator[Fleet]:
    """The hosts, to be asked; on a terminal with a line of progress that goes when they have answered."""
    from overlay_components.live import Fleet

    show = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        typer.echo(f"\r\033[K{done} of {total} hosts" if done < total else "\r\033[K", nl=False, err=True)

    with Fleet(hosts) as made:
        if show:
            made.told = progress
        yield made


def ask(made: Fleet, requests: Mapping[str, Request]) -> tuple[dict[str, Answer], list[str]]:
    """The answers of those that gave one, and why the others gave none."""
    answers = made.ask(requests)
    problems = [answer.problem for answer in answers.values() if answer.problem]
    return {host: answer for host, answer in answers.items() if not answer.problem}, problems


def write(path: Path, content: str | bytes) -> None:
    """Writes the file; what cannot be is wrong input, see `told`."""
    from overlay_components.errors import ConfigErrors

    with told():
        try:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        except OSError as error:
            raise ConfigErrors([f"{path}: cannot be written ({error.strerror}); name another file"]) from None


def of_host(host: str, line: str) -> str:
    """What its agent says, with the host's name before it."""
    return line if line.startswith(f"{host}: ") else f"{host} {line}"


def say(lines: Iterable[str], data: Any, *, json: bool, problems: Iterable[str] = ()) -> None:
    """Prints the lines, and on standard error the problems; or the same as JSON, which has both."""
    if json:
        import json as json_

        typer.echo(json_.dumps(data, indent=2))
        return
    for line in lines:
        typer.echo(line)
    for problem in problems:
        typer.echo(problem, err=True)


def warn(sentences: Iterable[str]) -> None:
    """Says what is no error, on standard error."""
    for sentence in sentences:
        typer.echo(f"warning: {sentence}", err=True)


def show(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Prints a table, unless it has no rows."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    if table.row_count:
        console = Console()
        # In a file or a pipe lines are as long as they are: a folded address cannot be searched for.
        width = console.width if console.is_terminal else 1000
        # Nothing in it is markup: of the MAC address 00:16:3e:ab:f9:65 `:ab:` would be a picture.
        Console(highlight=False, emoji=False, markup=False, width=width).print(table)
