"""What goes wrong in practice: one clear error that names the host and what to do, the host as it was, and the next
`pulumi up` simply works."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.e2e.support import Stack, once, picture, pull_cable, wait_for

pytestmark = pytest.mark.root


def ends_well(stack: Stack, *hosts: str) -> str:
    """After the cause is gone, `pulumi up` brings everything to what is declared, and then has nothing to do."""
    text = stack.up().ok()
    stack.as_declared()
    stack.healthy(*(hosts or stack.hosts))
    stack.noop()
    return text


# -- the stack file ----------------------------------------------------------------------------


@pytest.mark.lab(hosts=3)
def test_a_wrong_stack_file(stack):
    stack.segments["app"]["tunnels"]["mesh"]["vni"] = 1 << 24
    stack.segments["app"]["containers"]["web"]["host"] = "h9"
    stack.segments["ops"]["bridge"] = {"stpp": True}
    text = stack.up().failed()
    for sentence in (
        "segments.app.tunnels.mesh.vni: 16777216 is not a whole number from 1 to 16777215",
        "segments.ops.bridge.stpp: unknown key; did you mean stp?",
    ):
        assert text.partition("Diagnostics:")[2].count(sentence) == 1, text
    assert not any(stack.logins(host) for host in stack.hosts)

    stack.segments["app"]["tunnels"]["mesh"]["vni"] = 42
    del stack.segments["ops"]["bridge"]
    assert "segments.app.containers.web.host: unknown host 'h9'" in stack.up().failed()
    assert not any(stack.logins(host) for host in stack.hosts)
    stack.segments["app"]["containers"]["web"]["host"] = "h2"
    ends_well(stack)


# -- connections -------------------------------------------------------------------------------


def test_an_unreachable_host(stack):
    pull_cable(stack.lab, "h2")
    text = stack.up().failed()
    assert re.search(r"\(lab-h2-agent\):\n +error: after 2 failed attempts: dial tcp 198.18.0.12:22", text)
    stack.healthy("h1", "h3")
    assert stack.lab.links("h3")["vx-app"]
    stack.lab.revive("h2")
    ends_well(stack)


@pytest.mark.lab(hosts=2)
@pytest.mark.stack("doc-000-unicast")
def test_keys_that_are_unknown_wrong_or_not_ours(stack):
    known = stack.lab.known_hosts
    key = next(k for k in stack.lab.hosts["h2"].keys if k.startswith("ssh-ed25519"))
    other = next(k for k in stack.lab.hosts["h1"].keys if k.startswith("ssh-ed25519"))
    bare = " ".join(key.split()[:2])

    # Unknown: asked for, shown, with the two ways on; nothing is done on any host.
    known.write_text("".join(line for line in known.read_text().splitlines(True) if "198.18.0.12" not in line))
    text = stack.up().failed()
    assert f"hostKey: {bare}" in text, text
    assert "ssh-keyscan" in text
    assert "hosts.h2" in text
    assert not any(stack.logins(host) for host in stack.hosts)

    # The way on; but with another machine's key.
    stack.hosts["h2"]["hostKey"] = " ".join(other.split()[:2])
    text = stack.up().failed()
    assert re.search(r"-h2-agent\):\n +error: .*ssh: host key mismatch", text), text
    assert stack.logins("h2") == 0

    # A key that lets nobody in.
    stack.hosts["h2"]["hostKey"] = bare
    wrong = stack.directory / "wrong"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", wrong], check=True)
    stack.hosts["h2"]["identityFile"] = str(wrong)
    text = stack.up().failed()
    assert re.search(r"-h2-agent\):\n +error: .*unable to authenticate", text), text
    assert stack.logins("h2") == 0

    del stack.hosts["h2"]["identityFile"]
    ends_well(stack)


# -- hosts -------------------------------------------------------------------------------------


@pytest.mark.lab(hosts=2)
@pytest.mark.stack("doc-000-unicast")
def test_a_host_without_python(stack):
    stack.lab.run("h2", "for f in /usr/bin/python3*; do mv $f /var/hidden-${f##*/}; done")
    text = stack.up().failed()
    assert "h2: python3 is missing on this host; install it, such as: apt-get install python3" in text
    stack.healthy("h1")
    stack.lab.run("h2", "for f in /var/hidden-*; do mv $f /usr/bin/${f#/var/hidden-}; done")
    ends_well(stack)


def test_a_foreign_device_of_the_same_name(stack):
    """Also without --continue-on-error, as whoever has not read tools/env.sh calls pulumi."""
    stack.lab.run("h2", "ip link add br-app type bridge")
    before = stack.lab.links("h2")
    text = stack.up(PULUMI_CONTINUE_ON_ERROR="false").failed()
    assert "h2 br-app: a device of that name (bridge) is there and is not ours; give ours another name" in text
    assert "nothing was changed" in text
    assert stack.lab.links("h2") == before

    # Whatever the first try left is removed, and no more.
    stack.destroy().ok()
    stack.clean("h1", "h3")
    assert stack.lab.links("h2").keys() == {"lo", "eth0", "br-app"}

    stack.lab.run("h2", "ip link delete br-app")
    ends_well(stack)


@pytest.mark.lab(hosts=2)
@pytest.mark.stack("doc-000-unicast")
def test_an_apply_that_is_cut_short(stack):
    stack.up().ok()
    mesh = stack.segments["super"]["tunnels"]["unicast"]

    # The agent is killed between two changes.
    before = picture(stack, "h2")
    once(stack, "h2", "export OVERLAY_FAULT=2")
    mesh["vni"] = 43
    text = stack.up().failed()
    assert "h2: the apply was ended by signal 9 (SIGKILL); undone, the host is as it was" in text
    assert picture(stack, "h2") == before
    ends_well(stack)

    # Agent and guard are killed at once, as by a power cut: the next apply ends the matter first.
    once(stack, "h2", "export OVERLAY_FAULT=2:all")
    mesh["vni"] = 44
    stack.up().failed()
    text = ends_well(stack)
    assert "an apply was cut short; undone" in text

    # The SSH session goes away in the middle: Pulumi never got a report, so the host has to be as before.
    before = picture(stack, "h2")
    once(stack, "h2", "cat > /run/in; kill -9 $sshd; exec < /run/in")
    mesh["vni"] = 45
    text = stack.up().failed()
    assert "h2-document" in text
    wait_for(lambda: picture(stack, "h2") == before)
    ends_well(stack)


def test_two_stacks_at_once_on_the_same_hosts(stack, home, tmp_path):
    other = Stack(stack.lab, tmp_path / "other", "lab", home, name="second")
    other.segments.clear()
    other.segments["web"] = {"subnets": ["10.30.0.0/24"], "tunnels": {"mesh": {"kind": "vxlan", "vni": 77}}}
    runs = [(each, each.popen("up", "--yes", "--skip-preview")) for each in (stack, other)]
    for each, process in runs:
        each.end(process).ok()
    expected = {"lo", "eth0", "br-app", "br-ops", "br-web", "vx-app", "vx-ops", "vx-web"}
    assert stack.lab.links("h1").keys() == expected
    stack.healthy()
    stack.noop()
    other.noop()

    # The same names from another checkout, with a state of its own.
    text = Stack(stack.lab, tmp_path / "third", "lab", home).up().failed()
    assert "h1: stack overlay/lab on this host belongs to another checkout or state (id " in text
    stack.healthy()

    # One leaves: the other keeps its devices and the agent.
    stack.destroy().ok()
    other.as_declared()
    other.healthy()
    other.segments["web"]["tunnels"]["mesh"]["vni"] = 78
    ends_well(other)
    other.destroy().ok()
    stack.clean()


@pytest.mark.lab(hosts=3)
@pytest.mark.stack("doc-000-unicast")
def test_a_rebuilt_host_and_a_wrong_machine(stack):
    stack.up().ok()

    # The name now points to another machine.
    stack.hosts["h2"]["address"] = "198.18.0.13"
    text = stack.up().failed()
    assert "h2: this machine (id " in text
    assert "if the machine was replaced or reinstalled, raise overlay:hosts.h2.generation (now 1)" in text
    assert "if its address is wrong, mend that; if it is another host, give it another name" in text
    assert stack.lab.links("h3").keys() == {"lo", "eth0"}
    stack.hosts["h2"]["address"] = "198.18.0.12"
    ends_well(stack, "h1", "h2")

    # The same machine, made anew: another host key, another machine id, nothing of ours.
    stack.lab.reinstall("h2")
    text = stack.up().failed()
    assert "raise overlay:hosts.h2.generation (now 1)" in text
    stack.hosts["h2"]["generation"] = 2
    ends_well(stack, "h1", "h2")
    stack.destroy().ok()
    stack.clean("h1", "h2")


@pytest.mark.lab(hosts=2)
@pytest.mark.stack("doc-000-unicast")
def test_a_host_that_lost_its_agent(stack):
    stack.up().ok()
    stack.lab.run("h2", "rm -r /usr/local/sbin/overlay-agent /usr/local/lib/overlay-agent")
    stack.segments["super"]["tunnels"]["unicast"]["vni"] = 43
    text = stack.up().failed()
    assert "/usr/local/sbin/overlay-agent: No such file or directory" in text
    stack.hosts["h2"]["generation"] = 2
    ends_well(stack)
    # Destroy does not need it.
    stack.lab.run("h2", "ip link del vxlan0; ip link del superbr0; rm -r /usr/local/sbin/overlay-agent")
    stack.destroy().ok()
    stack.clean("h1")


# -- destroy -----------------------------------------------------------------------------------


@pytest.mark.lab(hosts=2)
@pytest.mark.stack("doc-000-unicast")
def test_destroy_while_containers_are_plugged_in(stack):
    stack.up().ok()
    stack.plug_in()
    text = stack.destroy().failed()
    assert "h1 superbr0: still has ports that are not ours (" in text
    assert "overlay:hosts.h1.force: true" in text
    stack.as_declared()
    stack.up().ok()
    for host in stack.hosts.values():
        host["force"] = True
    stack.up().ok()
    stack.destroy().ok()
    assert "superbr0" not in stack.lab.links("h1")


@pytest.mark.lab(hosts=2)
@pytest.mark.stack("doc-000-unicast")
def test_pulumi_killed_in_the_middle(stack):
    """Of the first up: devices stand on a host that the state does not know of."""
    for host in stack.hosts:
        go = stack.lab.path(host, "/run/go")
        go.parent.mkdir(exist_ok=True)
    process = stack.popen("up", "--yes", "--skip-preview")
    wait_for(lambda: "superbr0" in stack.lab.links("h1"), 30)
    process.kill()
    process.communicate()
    stack.run("cancel", "--yes").ok()
    ends_well(stack)
    stack.destroy().ok()
    stack.clean()
