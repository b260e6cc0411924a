"""What the documentation shows, taken out of it: tests run it and compare it."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

from typer.testing import CliRunner

from overlay_components import cli

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def section(path: Path, heading: str) -> str:
    """The text below a heading, up to the next of its level or above."""
    level = heading.partition(" ")[0]
    _, found, rest = path.read_text().partition(f"\n{heading}\n")
    assert found, f"{path.name}: has no {heading!r}"
    return re.split(rf"(?m)^#{{1,{len(level)}}} ", rest)[0]


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", text)


def commands(path: Path, heading: str) -> list[str]:
    """The shell commands of a section, a line each."""
    return [line for block in blocks(section(path, heading), "sh") for line in block.splitlines() if line.strip()]


def anchors(path: Path) -> set[str]:
    """What a link to that page may point to: its headings, as web forges write them."""
    plain = re.sub(r"(?ms)^```.*?^```", "", path.read_text())
    headings = re.findall(r"(?m)^#+ (.*)$", plain)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def pages() -> list[Path]:
    """All documentation."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def answer(command: str) -> str:
    """What `overlay …` prints in this checkout, 80 columns wide, without spaces at the ends of lines."""
    words = shlex.split(command)
    assert words[0] == "overlay", command
    done = CliRunner(env={"TERMINAL_WIDTH": "80", "COLUMNS": "80"}).invoke(cli.app, words[1:], prog_name="overlay")
    return "\n".join(line.rstrip() for line in done.output.splitlines()).strip() + "\n"


def refreshed(text: str) -> str:
    """The page with the present answers below its `$ overlay …` commands."""
    return re.sub(
        r"(?ms)^```console\n\$ ([^\n]*)\n.*?^```",
        lambda match: f"```console\n$ {match[1]}\n{answer(match[1])}```",
        text,
    )


def transcript(demo: str) -> list[str]:
    """README's transcripts, of what `make demo` printed: of its three hosts the first; `overlay verify` whole."""
    out = []
    for command in ("pulumi up", "pulumi preview"):
        whole = re.search(rf"(?m)^\$ {command} .*\n(?:(?!\$ |== |\n).*\n)*", demo)
        assert whole, f"no `$ {command}` in that output"
        kept: list[str] = []
        other = False
        for line in whole[0].splitlines():
            if re.search(r"demo-(h\d|id|ops)", line) or not line.startswith("      "):
                other = bool(re.search(r"demo-(h[2-9]|id|ops)", line))
            if not other and not re.match(r"  \(\d+ of", line):
                kept.append(line.rstrip())
        out.append("\n".join(kept) + "\n")
    whole = re.search(r"(?m)^\$ overlay verify .*\n(?:(?!\$ |== ).*\n)*", demo)
    assert whole, "no `$ overlay verify` in that output"
    lines = (line.rstrip() for line in whole[0].splitlines())
    return [*out, "\n".join(line for line in lines if line) + "\n"]


def main(arguments: list[str]) -> None:
    """`python -m tests.docs [OUTPUT]`: writes present answers into all pages, and into README what `make demo` said."""
    os.chdir(ROOT)
    for page in pages():
        text = refreshed(page.read_text())
        if page == README and arguments:
            head, *rest = re.split(r"(?ms)^```text\n.*?^```", text)
            said = transcript(Path(arguments[0]).read_text())
            text = head + "".join(f"```text\n{block}```{after}" for block, after in zip(said, rest, strict=True))
        page.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
