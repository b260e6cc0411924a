"""The VM keeps its promises: a stock kernel, this checkout, the lab in it, and no trace on the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import LabError, Vm, _vm

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def vm():
    with Vm(nics=2) as running:
        yield running


def test_it_is_another_kernel_with_this_checkout(vm, record_property):
    record_property("kernel", vm.release)
    assert vm.release == vm.run("uname -r").stdout.strip() != os.uname().release
    code = "import lab, pulumi, sys; print(lab.__file__, sys.prefix)"
    said = vm.run([str(_vm.CHECKOUT / ".venv/bin/python"), "-c", code], env={"PYTHONPATH": str(_vm.CHECKOUT)}).stdout
    assert said.split() == [str(_vm.CHECKOUT / "lab/__init__.py"), str(_vm.CHECKOUT / ".venv")]
    assert vm.run(["cat", __file__]).stdout == Path(__file__).read_text()


def test_what_a_command_says_and_how_it_ends(vm):
    assert vm.run("cat; echo $A", input="x", env={"A": "it's"}).stdout == "xit's\n"
    with pytest.raises(LabError, match=r"^vm: echo no >&2; exit 3 ended with 3: no\n$"):
        vm.run("echo no >&2; exit 3")
    with pytest.raises(LabError, match=r"^vm: sleep 100: not done after 1 s\n"):
        vm.run("sleep 100", timeout=1)


def test_its_cards_are_on_one_wire_and_nowhere_else(vm):
    vm.run("ip netns add far; ip link set eth2 netns far; ip -n far address add 198.18.0.2/24 dev eth2; "
           "ip -n far link set eth2 up; ip address add 198.18.0.1/24 dev eth1; ip link set eth1 up")  # fmt: skip
    vm.run("for i in $(seq 30); do ping -qc 1 -W 1 198.18.0.2 && exit; done; exit 1")
    vm.run("ip route replace default via 10.0.2.2")
    # QEMU answers for its own gateway; what is behind it does not.
    assert vm.run("ping -qc 1 -W 2 192.0.2.1", check=False).returncode != 0


def test_namespaces_lab_in_it(vm):
    """lab/_lab.py, unchanged: hosts with an sshd each, and a tunnel of a kind that this machine may not have."""
    script = """
from lab import Lab
with Lab("inner", hosts=2) as lab:
    for here, there in (("h1", "h2"), ("h2", "h1")):
        local, remote = lab.hosts[here].address, lab.hosts[there].address
        lab.run(here, f"ip link add gt0 type gretap local {local} remote {remote} && ip link set gt0 up")
        lab.run(here, f"ip address add 10.0.0.{here[1]}/24 dev gt0")
    assert lab.ssh("h1", "hostname").stdout == "h1\\n"
    lab.run("h1", "for i in $(seq 30); do ping -qc 1 -W 1 10.0.0.2 && exit; done; exit 1")
print("the lab works")
"""
    python = str(_vm.CHECKOUT / ".venv/bin/python")
    done = vm.run([python, "-c", script], env={"PYTHONPATH": str(_vm.CHECKOUT)})
    assert done.stdout == "the lab works\n"


def test_a_killed_test_leaves_no_guest():
    code = (
        "from lab import Vm\n"
        "with Vm(programs=False) as vm:\n"
        "    print(vm._qemu.pid, vm._folder, flush=True)\n"
        "    input()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               cwd=_vm.CHECKOUT)  # fmt: skip
    pid, folder = process.stdout.readline().split()
    assert b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.utime(folder, (0, 0))
    _vm._sweep()
    assert not Path(folder).exists()
