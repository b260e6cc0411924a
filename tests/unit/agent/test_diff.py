"""Given, wanted, changes: the rows and the lines that people read, as data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from overlay_agent import fields
from overlay_agent.diff import diff
from overlay_agent.kinds import KINDS

CASES = json.loads((Path(__file__).parent / "cases" / "changes.json").read_text())


def specs(raw):
    errors: list[str] = []
    out = {name: fields.from_json(KINDS[one["kind"]].spec, name, one, errors) for name, one in raw.items()}
    assert not errors
    return out


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_changes(case):
    changes = diff(specs(case["wanted"]), specs(case["given"]), case.get("beside"))
    assert [{"name": c.name, "action": c.action, "lines": c.lines(), "drift": c.drift()} for c in changes] == case[
        "changes"
    ]
