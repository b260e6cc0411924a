"""Live preview: the hosts are asked first, and what has drifted, and nothing else, is shown and repaired."""

from __future__ import annotations

import re

import pytest

from lab import Lab
from tests.e2e.conftest import installed_plugin
from tests.e2e.support import Stack, pull_cable

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def shared(tmp_path_factory, homes):
    """One lab and one stack, `lab` with `overlay:live`, for all tests here: each leaves it as declared."""
    directory = tmp_path_factory.mktemp("live")
    with Lab(name="live", directory=directory / "labs", hosts=3) as lab:
        stack = Stack(lab, directory / "stack", "lab", homes[installed_plugin()])
        stack.config["overlay:live"] = True
        text = stack.up().ok()
        assert "overlay:live:" not in text, "there is nobody to ask yet"
        yield stack


@pytest.fixture
def stack(shared):
    yield shared
    shared.config["overlay:live"] = True


def updated(text: str) -> set[str]:
    """The hosts whose documents an `up` applied again."""
    return set(re.findall(r"lab-(\w+)-document updated", text))


def quiet(stack: Stack) -> None:
    """`pulumi up` asks, and has nothing to do."""
    text = stack.up().ok()
    assert re.search(r"Resources:\n    \d+ unchanged\n", text), text
    assert "drifted" not in text


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
        stack.as_declared()
        quiet(stack)

    # An update of a document that changes, too; and without `live` nobody is asked, and nothing is to be done.
    stack.segments["app"]["tunnels"]["mesh"]["vni"] = 45
    assert updated(stack.up().ok()) == {"h1", "h2", "h3"}
    stack.as_declared()
    stack.config["overlay:live"] = False
    stack.noop()
    stack.lab.run("h1", "ip link delete vx-app")
    stack.noop()
    text = stack.up(OVERLAY_LIVE="1").ok()
    assert "h1 vx-app: is not there" in text
    assert updated(text) == {"h1"}
    stack.as_declared()
    stack.noop()


def test_a_host_that_cannot_be_asked(stack):
    stack.lab.run("h2", "ip link set vx-app mtu 1400")
    stack.lab.run("h3", "mv /usr/local/sbin/overlay-agent /run/away")
    pull_cable(stack.lab, "h1")
    preview = stack.preview().ok()
    stack.lab.revive("h1")
    assert re.search(r"warning: overlay:live: h1: 198.18.0.11 is not reached: .*; not compared", preview), preview
    assert "overlay:live: h3: the agent is not on this host" in preview
    assert re.search(r"~ 1 to update\n    \d+ unchanged", preview), preview
    stack.lab.run("h3", "mv /run/away /usr/local/sbin/overlay-agent")
    assert updated(stack.up().ok()) == {"h2"}
    quiet(stack)
    assert "OVERLAY_LIVE: 'yes' is neither 1 nor 0" in stack.up(OVERLAY_LIVE="yes").failed()
