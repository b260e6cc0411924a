"""The agent's waits and decisions do not follow the wall clock, which jumps."""

from __future__ import annotations

import ast
from pathlib import Path

import overlay_agent

#: Where it is told to people when something was, and how long a round trip took, which the kernel stamps by that clock.
TOLD = {"history.py", "status.py", "capture.py", "paths.py"}
WALL = {"time", "time_ns", "localtime", "ctime", "now", "utcnow", "today"}


def test_nothing_waits_by_the_wall_clock():
    found = []
    for file in sorted(Path(overlay_agent.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WALL:
                owner = ast.unparse(node.func.value)
                if owner in ("time", "datetime", "datetime.datetime", "date") and file.name not in TOLD:
                    found.append(f"{file.name}:{node.lineno}: {ast.unparse(node)}")
    assert found == []
