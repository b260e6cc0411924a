"""Live preview, and what goes wrong on hosts and between them: what the user sees, and that state and hosts agree
afterwards. More of the kind, each from the start of a stack, is in test_faults.py."""

from __future__ import annotations

import re
import time

import pytest

from lab import Lab
from tests.e2e.conftest import installed_plugin
from tests.e2e.support import Stack, hold, is_held, let_go, picture, pull_cable, wait_for

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def home(homes):
    """PULUMI_HOME, with the installed plugin."""
    return homes[installed_plugin()]


@pytest.fixture(scope="module")
def shared(tmp_path_factory, home):
    """One lab and one stack for all tests here: each leaves it as declared. Like `lab`, with `overlay:live`, a DHCP
    server, address translation and filters."""
    directory = tmp_path_factory.mktemp("live")
    with Lab(name="live", directory=directory / "labs", hosts=3) as lab:
        stack = Stack(lab, directory / "stack", "lab", home)
        stack.config |= {"overlay:live": True, "overlay:openFirewall": True}
        stack.segments["app"] |= {"addresses": {"h1": "10.10.0.1"}, "dhcp": {"host": "h1", "masquerade": True}}
        assert "overlay:live:" not in stack.up().ok(), "there is nobody to ask yet"
        yield stack


@pytest.fixture
def stack(shared):
    return shared


def updated(text: str) -> set[str]:
    """The hosts whose documents an `up` applied again."""
    return set(re.findall(r"lab-(\w+)-document updated", text))


def quiet(stack: Stack) -> None:
    """The hosts are as declared; `pulumi up` asks them, and has nothing to do."""
    stack.as_declared()
    text = stack.up().ok()
    assert re.search(r"Resources:\n    \d+ unchanged\n", text), text
    assert "drifted" not in text


def renumber(stack: Stack) -> None:
    """A change for every host."""
    stack.segments["app"]["tunnels"]["mesh"]["vni"] += 100


# -- live preview ------------------------------------------------------------------------------


def test_what_drifted_is_shown_and_repaired_each_time(stack):
    for _ in range(2):
        stack.lab.run("h2", "ip link set vx-app mtu 1400; bridge fdb del 00:00:00:00:00:00 dev vx-ops dst 198.18.0.13")
        index = stack.lab.links("h2")["vx-ops"]["ifindex"]
        preview = stack.preview().ok()
        assert "h2 has drifted; `pulumi up` repairs it:" in preview
        assert "h2 vx-app: mtu want 1450, is 1400" in preview
        assert "h2 vx-ops: lacks peer h3 198.18.0.13" in preview
        assert re.search(r"~ 1 to update\n    \d+ unchanged", preview), preview
        assert stack.lab.links("h2")["vx-app"]["mtu"] == 1400, "a preview changes nothing"

        text = stack.up().ok()
        assert updated(text) == {"h2"}
        assert "vx-app: mtu 1400 -> 1450" in text
        assert stack.lab.links("h2")["vx-ops"]["ifindex"] == index
        quiet(stack)

    # A document that changes after that; and without `live` nobody is asked, and nothing is to be done.
    renumber(stack)
    assert updated(stack.up().ok()) == {"h1", "h2", "h3"}
    stack.as_declared()
    stack.lab.run("h1", "ip link delete vx-app")
    stack.config["overlay:live"] = False
    stack.noop()
    text = stack.up(OVERLAY_LIVE="1").ok()
    assert "h1 vx-app: is not there" in text
    assert updated(text) == {"h1"}
    stack.config["overlay:live"] = True
    quiet(stack)


#: What somebody does on a host, and how that reads.
BROKEN = {
    "h1": (
        "kill $(cat /run/overlay/*dnsmasq*.pid); nft flush ruleset",
        ("dhcp-app: running want on, is off", "nat-app: is not there", "firewall: is not there"),
    ),
    "h2": (
        "ip link delete br-ops; ip link set vx-app alias mine",
        ("br-ops: is not there", "vx-ops: lacks bridge br-ops", "vx-app: alias want overlay:"),
    ),
    "h3": (
        "set -e; bridge fdb del 00:00:00:00:00:00 dev vx-app dst 198.18.0.11; rm -r /var/lib/overlay/stacks",
        (
            "vx-app: lacks peer h1 198.18.0.11",
            "stack overlay/lab: another document is kept here, or none; it would come back at boot",
        ),
    ),
}


def test_what_somebody_broke_by_hand(stack):
    """Devices deleted or changed, forwarding entries and rules lost, a daemon killed, the store gone."""
    for host, (command, _) in BROKEN.items():
        stack.lab.run(host, command)
    text = stack.up().ok()
    for host, (_, lines) in BROKEN.items():
        for line in lines:
            assert f"{host} {line}" in text, text
    assert updated(text) == BROKEN.keys()
    stack.healthy()
    quiet(stack)


def test_a_host_that_cannot_be_asked(stack):
    stack.lab.run("h2", "ip link set vx-app mtu 1400")
    stack.lab.run("h3", "mv /usr/local/sbin/overlay-agent /run/away")
    pull_cable(stack.lab, "h1")
    preview = stack.preview().ok()
    stack.lab.revive("h1")
    stack.lab.run("h3", "mv /run/away /usr/local/sbin/overlay-agent")
    assert re.search(r"warning: overlay:live: h1: 198.18.0.11 is not reached: .*; not compared", preview), preview
    assert "overlay:live: h3: the agent is not on this host" in preview
    assert re.search(r"~ 1 to update\n    \d+ unchanged", preview), preview
    assert updated(stack.up().ok()) == {"h2"}
    quiet(stack)
    assert "OVERLAY_LIVE: 'yes' is neither 1 nor 0" in stack.up(OVERLAY_LIVE="yes").failed()


# -- faults while `pulumi up` runs --------------------------------------------------------------


def test_two_ups_on_one_stack(stack):
    renumber(stack)
    hold(stack, "h2")
    stack.config["overlay:live"] = False  # which would be that once
    first = stack.popen("up", "--yes", "--skip-preview")
    wait_for(lambda: is_held(stack, "h2"), 60)
    text = stack.up().failed()
    assert "the stack is currently locked by 1 lock(s)" in text
    let_go(stack, "h2")
    assert updated(stack.end(first).ok()) == {"h1", "h2", "h3"}
    stack.config["overlay:live"] = True
    quiet(stack)


def test_a_link_that_flaps(stack):
    """Frames are lost for moments, not connections."""
    renumber(stack)
    hold(stack, "h2")
    stack.config["overlay:live"] = False  # which would be that once
    process = stack.popen("up", "--yes", "--skip-preview")
    wait_for(lambda: is_held(stack, "h2"), 60)
    for flap in range(20):
        if flap == 5:  # now the agent, which was there all the time, goes on
            let_go(stack, "h2")
        stack.lab.cable("h2", up=False)
        time.sleep(0.05)
        stack.lab.cable("h2", up=True)
        time.sleep(0.2)
        if process.poll() is not None:
            break
    text = stack.end(process).ok()
    assert flap >= 5
    stack.config["overlay:live"] = True
    assert updated(text) == {"h1", "h2", "h3"}
    quiet(stack)


def test_a_full_disk(stack):
    state = "/var/lib/overlay"
    stack.lab.run("h2", f"cp -a {state} /run/kept; mount -t tmpfs -o size=64k tmpfs {state}; cp -a /run/kept/. {state}")
    stack.lab.run("h2", f"dd if=/dev/zero of={state}/fill 2>/dev/null || true")
    before = picture(stack, "h2")
    renumber(stack)
    text = stack.up().failed()
    assert re.search(r"h2 .*cannot be written \(No space left on device\); make room or mend the disk", text), text
    assert picture(stack, "h2") == before
    assert updated(text) == {"h1", "h3"}
    stack.lab.run("h2", f"rm {state}/fill")
    assert updated(stack.up().ok()) == {"h2"}
    quiet(stack)


def test_a_tenth_of_fifty_hosts_is_unreachable(tmp_path, home):
    with Lab(name="live50", directory=tmp_path / "labs", hosts=50) as lab:
        stack = Stack(lab, tmp_path / "stack", "lab", home)
        stack.config["overlay:hosts"] = {name: {"address": host.address} for name, host in lab.hosts.items()}
        mesh = {"tunnels": {"mesh": {"kind": "vxlan", "vni": 42}}}
        stack.config["overlay:segments"] = {"app": mesh}
        dead = {f"h{number}" for number in range(5, 51, 10)}
        for host in dead:
            pull_cable(lab, host)
        text = stack.up().failed()
        named = re.findall(r"\(lab-(h\d+)-agent\):\n +error: after 2 failed attempts: dial tcp ", text)
        assert sorted(named) == sorted(dead)
        stack.healthy(*(lab.hosts.keys() - dead))
        for host in dead:
            lab.revive(host)
        stack.up().ok()
        stack.healthy()
        stack.noop()
