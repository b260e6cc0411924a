"""Tests that need another kernel than this machine's run in a VM (vm_plugin.py); the longest files begin first."""

import collections
from pathlib import Path

import pytest

pytest_plugins = ("tests.vm_plugin",)

#: The files that take longest, the longest first: a worker that begins one of them last works on alone.
LONGEST = (
    "vm/test_reboot.py", "e2e/test_tunnels.py", "netns/test_agent_evpn.py", "netns/test_agent_faults.py",
    "vm/test_hands_off.py", "e2e/test_encryption.py", "e2e/test_secrets.py", "netns/test_agent_wireguard.py",
    "e2e/test_live.py", "e2e/test_docker.py", "netns/test_agent_l2tp.py", "e2e/test_demo.py",
    "netns/test_agent_gretap.py", "e2e/test_faults.py", "e2e/test_stacks.py", "e2e/test_changes.py",
    "e2e/test_wheel.py", "e2e/test_day2.py", "e2e/test_uplinks.py", "vm/test_vm.py", "netns/test_agent_dnsmasq.py",
    "e2e/test_routers.py", "netns/test_agent_adopt_tunnels.py",
)  # fmt: skip


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Long files first, then those of many tests. `make test` has xdist keep this order."""
    here = Path(__file__).parent
    long = {here / name: number for number, name in enumerate(LONGEST)}
    tests = collections.Counter(item.path for item in items)
    items.sort(key=lambda item: (long.get(item.path, len(long)), -tests[item.path]))
