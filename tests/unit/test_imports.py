"""Operators also sit at Macs: nothing that they import needs Linux. And who may import whom."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Of the agent, the program uses what is pure (docs: Layout); the rest is for Linux hosts.
PURE = {"document", "kinds", "diff", "fields", "__init__"}

#: What is not there on macOS, or is Linux' kernel interface.
ON_A_MAC = """
import importlib, importlib.abc, os, socket, select, sys

class NotHere(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {blocked!r}:
            raise ImportError(f"no module named {{name!r}} on this machine")
        return None

sys.meta_path.insert(0, NotHere())
for module, names in [
    (socket, ["AF_NETLINK", "AF_PACKET", "AF_VSOCK", "SO_BINDTODEVICE", "SO_MARK", "SOCK_CLOEXEC", "SOCK_NONBLOCK"]),
    (os, ["setns", "unshare", "pidfd_open", "memfd_create", "sched_getaffinity", "O_PATH", "O_TMPFILE", "getrandom"]),
    (select, ["epoll"]),
]:
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
"""

#: pyroute2 itself installs on macOS; but only its files are packed, it is never imported there. `host` is, by the
#: kinds, and imports nothing of Linux.
BLOCKED = {
    *(f"overlay_agent.{name}" for name in ("kernel", "store", "guard", "reconcile", "install", "nft")),
    "pyroute2",
}


def on_a_mac(script: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", f"{ON_A_MAC.format(blocked=BLOCKED)}\n{script}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, env=env, cwd=ROOT, text=True, capture_output=True, check=False)


def modules() -> list[str]:
    return sorted(path.stem for path in (ROOT / "overlay_components").glob("*.py") if path.stem != "__init__")


def test_everything_imports_on_a_mac():
    lines = [f"importlib.import_module('overlay_components.{name}')" for name in modules()]
    done = on_a_mac("\n".join([*lines, "from overlay_components import Overlay, Host, Bridge, VxlanTunnel"]))
    assert done.returncode == 0, done.stderr


def test_a_mac_plans_explains_and_packs_the_agent(tmp_path):
    script = f"""
os.environ["XDG_CACHE_HOME"] = {str(tmp_path)!r}
from overlay_components import agent, cli
for words in ("plan -s lab", "explain h1 -s lab", "explain h1 -s two-routers", "explain h1 -s doc-003",
              "explain h1 -s doc-003-attach", "schema"):
    try:
        cli.app(words.split())
    except SystemExit as end:
        assert not end.code, words
print(agent.archive())
"""
    done = on_a_mac(script)
    assert done.returncode == 0, done.stderr
    for program in ("bridge fdb append", "dnsmasq", "keepalived", "nft", "docker network create", "sysctl -w"):
        assert program in done.stdout
    assert list(tmp_path.glob("overlay-networks/overlay-agent-*.pyz"))


def imported(path: Path) -> set[str]:
    out: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return out


@pytest.mark.parametrize("name", modules())
def test_the_program_takes_only_what_is_pure_of_the_agent(name):
    for what in imported(ROOT / "overlay_components" / f"{name}.py"):
        package, _, rest = what.partition(".")
        inner = rest.split(".", maxsplit=1)[0]
        if package == "overlay_agent" and (ROOT / "overlay_agent" / f"{inner}.py").exists():
            assert inner in PURE, f"{name} imports {what}"


def test_the_agent_knows_nothing_of_the_program():
    for path in (ROOT / "overlay_agent").rglob("*.py"):
        roots = {what.partition(".")[0] for what in imported(path)}
        assert not roots & {"overlay_components", "pulumi", "pulumi_command", "paramiko", "pydantic", "yaml"}, path
