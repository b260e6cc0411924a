"""`overlay graph`: the topology of the plan as a picture; no host is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from overlay_components.commands.common import AsJson, StackFile, StackName, find, told, warn, write

# ruff: noqa: PLC0415 - see common.py

#: By the end of the file's name.
_SUFFIXES = {".svg": "svg", ".mmd": "mermaid", ".mermaid": "mermaid", ".html": "html", ".htm": "html"}


def graph(
    file: StackFile = None,
    stack: StackName = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORM",
            help="svg, mermaid or html; default: as the output file is named, else svg.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Write it there and not to the screen.", show_default=False
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Draw the topology: hosts, segments, tunnels, containers, MTU, encryption; asks no host."""
    with told():
        from overlay_components import config
        from overlay_components import graph as graph_
        from overlay_components.errors import ConfigErrors, instead

        if form is not None and form not in graph_.FORMATS:
            raise ConfigErrors([f"--format: unknown form {form!r}; {instead(form, graph_.FORMATS)}"])
        found = find(file, stack)
        made = found.plan()
        checked = config.load_config(found.raw)
    warn(made.warnings)
    form = form or _SUFFIXES.get(output.suffix if output else "", "svg")
    if json:
        import json as json_

        text = json_.dumps({"segments": made.segments, "containers": made.containers}, indent=2) + "\n"
    elif form == "mermaid":
        text = graph_.mermaid(made, checked)
    else:
        text = (graph_.svg if form == "svg" else graph_.html)(found.owner.label, made, checked)
    if output:
        write(output, text)
    else:
        typer.echo(text, nl=False)
