"""`overlay:rollout` on real hosts: in which order they are changed, and what is left of a change that breaks one."""

from __future__ import annotations

import pytest

from lab import Lab
from tests.e2e.conftest import installed_plugin
from tests.e2e.support import Stack, hold, is_held, let_go, picture, wait_for

pytestmark = pytest.mark.root
HOSTS = ["h1", "h2", "h3", "h4", "h5"]
#: A packet filter that knows the source ports that tunnels have had so far, and stops those that they are to get.
TRAP = (
    "nft 'add table inet trap; add chain inet trap out { type filter hook output priority 0; }; "
    "add rule inet trap out udp dport 4789 udp sport 10000-10999 drop'"
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory, homes):
    """Five hosts; of one segment they have no address. Batches: h3; h1 and h2; h4 and h5."""
    folder = tmp_path_factory.mktemp("rollout")
    with Lab("e2e-rollout", 5, directory=folder / "labs") as lab:
        made = Stack(lab, folder / "stack", "lab", homes[installed_plugin()])
        made.hosts.update({host: {"address": f"198.18.0.1{host[1:]}"} for host in HOSTS})
        made.config["overlay:rollout"] = {"canary": "h3", "batch": "40%", "maxUnavailable": 2}
        made.up().ok()
        yield made
        made.destroy().ok()
        made.clean()


def sent_from(stack, ports):
    stack.segments["app"]["tunnels"]["mesh"]["sourcePorts"] = ports


def pictures(stack, hosts=HOSTS):
    return {host: picture(stack, host) for host in hosts}


def kept(stack):
    """The documents that Pulumi's state says were applied."""
    state = stack.state()
    return {host: state[f"lab-{host}-document"]["inputs"]["stdin"] for host in HOSTS}


def test_one_batch_after_the_other(stack):
    """Each agent waits until it is let go: those of a batch are there at the same time, and nobody else is."""
    sent_from(stack, "20000-20999")
    for host in HOSTS:
        hold(stack, host)
    process = stack.popen("up", "--yes", "--skip-preview")
    for batch in ({"h3"}, {"h1", "h2"}, {"h4", "h5"}):
        wait_for(lambda batch=batch: {host for host in HOSTS if is_held(stack, host)} == batch, 60)
        for host in batch:
            let_go(stack, host)
    stack.end(process).ok()
    stack.as_declared()
    stack.noop()


def test_a_change_that_cuts_the_canary_off(stack):
    stack.lab.run("h3", TRAP)
    before = pictures(stack)
    state = kept(stack)
    sent_from(stack, "10000-10999")
    text = stack.up().failed()
    others = "h1 (198.18.0.11), h2 (198.18.0.12), h4 (198.18.0.14) and h5 (198.18.0.15)"
    why = f"h3 rollout: {others} answered before this change and do not after it over vx-app"
    assert f"{why}; undone, the host is as it was" in text
    told = "rollout: stopped, h3 failed; h1, h2, h4 and h5 were not changed; mend what is said of it, and run it again"
    assert told in text
    assert pictures(stack) == before
    assert kept(stack) == state
    stack.healthy()

    sent_from(stack, "22000-22999")
    assert "h3 rollout: 16 probes were answered before the change, and again after it" in stack.up().ok()
    stack.as_declared()
    stack.lab.run("h3", "nft delete table inet trap")


def test_a_host_of_the_second_batch(stack):
    """Those before it are done, those after it are not; nor is what the same run should have removed."""
    stack.config["overlay:rollout"]["maxUnavailable"] = 1  # or h1 may find h2 silent, before that is undone
    stack.lab.run("h2", TRAP)
    before = pictures(stack, ["h2", "h4", "h5"])
    sent_from(stack, "10000-10999")
    gone = stack.hosts.pop("h5")
    text = stack.up().failed()
    assert "h2 rollout: h1 (198.18.0.11), h3 (198.18.0.13) and h4 (198.18.0.14) answered before this change" in text
    assert "rollout: stopped, h2 failed; h4 was not changed" in text
    assert pictures(stack, before) == before
    ports = {host: stack.lab.run(host, "ip -d link show vx-app").stdout for host in HOSTS}
    assert {host for host, line in ports.items() if "10000 10999" in line} == {"h1", "h3"}

    stack.lab.run("h2", "nft delete table inet trap")
    stack.hosts["h5"] = gone
    stack.up().ok()
    stack.as_declared()


def test_what_both_ends_must_have_alike(stack):
    """Until the others have it too, they do not answer, and that is no failure."""
    stack.segments["app"]["tunnels"]["mesh"]["vni"] = 48
    text = stack.up().ok()
    assert (
        "h3 rollout: h1 (198.18.0.11), h2 (198.18.0.12), h4 (198.18.0.14) and h5 (198.18.0.15): not asked over vx-app: "
        "what both ends must have alike changes, and until the other has it too it does not answer"
    ) in text
    stack.as_declared()


def test_targets(stack):
    """One host alone, out of its turn; and its removal takes nobody along."""
    sent_from(stack, "23000-23999")
    before = pictures(stack, ["h1", "h2", "h3", "h5"])
    stack.up("--target", "**::lab-h4*").ok()
    assert pictures(stack, before) == before
    stack.destroy("--target", "**::lab-h3*", "--target-dependents").ok()
    stack.clean("h3")
    stack.healthy("h1", "h2", "h4", "h5")
    stack.up().ok()
    stack.as_declared()
    stack.noop()
