"""Each kind that a test may ask for is there when it runs: on this machine's kernel, or in the VM lab."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.vm_plugin import PROBES, lacks

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network devices"),
]


@pytest.mark.kinds(*PROBES)
def test_every_kind_is_to_be_had():
    assert [kind for kind in PROBES if lacks(kind)] == []


@pytest.mark.kinds("gretap", "wireguard")
def test_devices_of_kinds_that_are_rare(request):
    script = "ip link add w type wireguard && ip link add g type gretap local 192.0.2.1 remote 192.0.2.2 && ip -br link"
    done = subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, check=True)
    assert {"w", "g@NONE"} <= {line.split()[0] for line in done.stdout.splitlines()}
