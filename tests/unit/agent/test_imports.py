"""The agent stands alone: no pulumi, nothing of the program, pyroute2 in one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import overlay_agent

ROOT = Path(overlay_agent.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
ALLOWED = {"overlay_agent", *getattr(sys, "stdlib_module_names", ())}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=[path.relative_to(ROOT).as_posix() for path in FILES])
def test_a_module_imports_only_what_is_on_every_host(path):
    names = set(imported(path))
    assert not names & {"overlay_components", "pulumi", "pydantic", "paramiko", "yaml"}
    assert ("pyroute2" in names) == (path.name in ("kernel.py", "genl.py"))
    if sys.version_info >= (3, 10):
        assert names <= ALLOWED | {"pyroute2"}


def test_what_the_program_uses_of_it_loads_no_netlink():
    code = (
        "import sys; from overlay_agent import diff, document, fields, kinds;"
        "print([m for m in ('pyroute2', 'overlay_agent.kernel', 'subprocess', 'pathlib') if m in sys.modules])"
    )
    root = str(ROOT.parent)
    path = f"import sys; sys.path.insert(0, {root!r});"
    out = subprocess.run([sys.executable, "-I", "-c", path + code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


def test_a_quiet_apply_loads_nothing_that_it_does_not_need():
    code = (
        "import sys; from overlay_agent import document, guard, host, store;"
        "document.KINDS['bridge'], document.KINDS['vxlan'];"
        "print([m for m in ('pathlib', 'shutil', 'hashlib', 'tempfile', 'overlay_agent.nft', 'overlay_agent.daemon',"
        " 'overlay_agent.kinds.dnsmasq', 'overlay_agent.kinds.nat') if m in sys.modules])"
    )
    paths = [str(ROOT.parent), *[p for p in sys.path if p.endswith("site-packages")]]
    path = f"import sys; sys.path[:0] = {paths!r};"
    out = subprocess.run([sys.executable, "-IS", "-c", path + code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"
