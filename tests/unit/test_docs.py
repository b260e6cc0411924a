"""The documentation is true: links lead somewhere, stack files plan, commands say what is shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from overlay_agent.document import Owner
from overlay_agent.kinds import KINDS
from overlay_components import config
from overlay_components.plan import make_plan
from tests import docs
from tests.docs import README, ROOT

PAGES = docs.pages()
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
#: README's shell blocks, by heading, and who runs each.
RUN_BY = {
    "## Try it": ["make demo", "make test"],  # tests/e2e/test_demo.py; .ci/run, by which this test runs too
    "## Two servers of your own": None,  # tests/e2e/test_wheel.py, as they stand
}


def each(pages=PAGES):
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


@each()
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        place, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        found = (page.parent / place).resolve() if place else page
        assert found.exists(), f"{target}: there is no such file"
        if anchor:
            assert anchor in docs.anchors(found), f"{target}: there is no such heading"


@each()
def test_make_targets_exist(page):
    targets = set(re.findall(r"(?m)^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text()))
    text = page.read_text()
    code = [*re.findall(r"`([^`\n]+)`", text), *(block for lang in ("sh", "") for block in docs.blocks(text, lang))]
    named = {name for piece in code for name in re.findall(r"(?m)^(?:\s*\$ )?make ([a-z][a-z0-9-]*)", piece)}
    assert named <= targets


@each()
def test_stack_files_plan(page):
    for block in docs.blocks(page.read_text(), "yaml"):
        values = yaml.safe_load(block)
        if "config" in values:
            checked = config.load_config(config.from_pulumi(values["config"]))
            make_plan(checked, Owner("overlay", "docs", "docs"))


@each([page for page in PAGES if "```console" in page.read_text()])
def test_commands_print_what_is_shown(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert page.read_text() == docs.refreshed(page.read_text()), "python -m tests.docs writes the present answers"


@each(sorted((ROOT / "docs/articles").glob("*.md")))
def test_articles_show_the_stack_that_the_tests_run(page):
    shown = [yaml.safe_load(block) for block in docs.blocks(page.read_text(), "yaml")]
    linked = re.findall(r"\(\.\./\.\./(stacks/[^)]+)\)", page.read_text())
    stacks = [yaml.safe_load((ROOT / path).read_text()) for path in linked]
    assert shown
    assert shown[0] == stacks[0]
    assert all(block in stacks for block in shown)


def test_every_shell_block_of_readme_is_run():
    headings = re.findall(r"(?m)^## .*$", README.read_text())
    found = {heading: docs.commands(README, heading) for heading in headings}
    found = {heading: lines for heading, lines in found.items() if lines}
    assert found.keys() == RUN_BY.keys()
    for heading, lines in RUN_BY.items():
        assert lines is None or found[heading] == lines
    assert re.search(r"(?m)^make test ", (ROOT / ".ci/run").read_text())


def test_readme_names_the_kinds_that_there_are():
    table = docs.section(README, "## What works today")
    rows = re.findall(r"(?m)^\| `([a-z0-9-]+)` \|", table)
    assert sorted(rows) == sorted(KINDS)
    assert config.TUNNELS.keys() <= set(rows)


def test_readme_shows_a_program_that_is_an_example():
    [shown] = docs.blocks(docs.section(README, "## As a library"), "python")
    compile(shown, "README.md", "exec")
    example = (ROOT / "examples/library/__main__.py").read_text()
    used = set(re.findall(r"\b[A-Z][A-Za-z]+(?=\()", shown))
    assert used <= set(re.findall(r"\b[A-Z][A-Za-z]+(?=\()", example)), "what README uses is run by the tests"


@pytest.mark.parametrize("folder", ["docs", "docs/adr"])
def test_the_index_has_every_page(folder):
    index = ROOT / folder / "README.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in LINK.findall(index.read_text())}
    pages = {path for path in (ROOT / folder).glob("*.md") if path != index}
    if folder == "docs":
        pages |= set((ROOT / "docs/articles").glob("*.md"))
    assert pages <= linked, sorted(Path(p).name for p in pages - linked)


def test_templates_are_the_projects_own():
    templates = ROOT / "overlay_components/templates"
    assert (templates / "main.py.txt").read_text() == (ROOT / "__main__.py").read_text()
    assert (templates / "Pulumi.yaml").read_text() == (ROOT / "Pulumi.yaml").read_text()
