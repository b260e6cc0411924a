"""Hosts for the agent's tests (see agent_support.py)."""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _load(name):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


# So that `import agent_support` works in every test here (pytest runs with importmode=importlib).
for support in ("agent_support", "docker_support"):
    if support not in sys.modules:
        _load(support)

from agent_support import Host  # noqa: E402 - after the line above


def _why_not() -> str:
    if os.geteuid() != 0:
        return "not root"
    missing = [tool for tool in ("ip", "bridge", "unshare", "nsenter", "nft") if not shutil.which(tool)]
    if missing:
        return f"{', '.join(missing)} not installed"
    probe = subprocess.run(["unshare", "--net", "ip", "link", "add", "type", "vxlan", "id", "1", "dstport", "1"],
                           capture_output=True, check=False)  # fmt: skip
    return f"no vxlan in this kernel: {probe.stderr.decode().strip()}" if probe.returncode else ""


def pytest_assertrepr_compare(op, left, right):
    """Of two states of a host what differs: whole they are some hundreds of lines, and CI cuts those."""
    if op != "==" or type(left) is not type(right) or not isinstance(left, (dict, list, tuple)):
        return None
    texts = [json.dumps(value, indent=1, sort_keys=True, default=str).splitlines() for value in (right, left)]
    if max(map(len, texts)) < 100:
        return None
    return ["two states are not the same", *difflib.unified_diff(*texts, "wanted", "found", n=8, lineterm="")]


@pytest.fixture(scope="session")
def agent_archive(tmp_path_factory):
    why = _why_not()
    if why:
        pytest.skip(why)
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    from overlay_components import agent

    return agent.archive()


@pytest.fixture(scope="session")
def installed(agent_archive, tmp_path_factory):
    """An agent installed once; each host gets its files by a bind mount."""
    folder = tmp_path_factory.mktemp("installed")
    host = Host(agent_archive)
    try:
        done = host.install()
        assert done.code == 0, done
        host.run("cp", "-a", "/usr/local/lib/overlay-agent", folder / "lib")
        host.run("cp", "-a", "/usr/local/sbin", folder / "sbin")
    finally:
        host.close()
    return folder


@pytest.fixture
def new_host(agent_archive, installed):
    """Makes hosts; `agent=False`: without the agent."""
    hosts = []

    def make(*, agent=True, **more):
        hosts.append(Host(agent_archive, installed if agent else None, **more))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


@pytest.fixture
def host(new_host):
    """A host with the agent on it, and an underlay: u0 with 198.18.0.11/24 and 2001:db8::11/64."""
    return new_host()
