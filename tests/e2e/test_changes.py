"""Changes to a running network: only what has to change does, and what did not change loses no packet."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.e2e.support import AGENT, steady_ping, wait_for

pytestmark = pytest.mark.root


def indices(lab, host):
    """The ifindex of every device: a device that was made anew has another."""
    return {name: link["ifindex"] for name, link in lab.links(host).items()}


def test_a_changed_vni_is_shown_and_done(stack):
    stack.up().ok()
    stack.segments["app"]["tunnels"]["mesh"]["vni"] = 45

    preview = stack.preview().ok()
    assert len(re.findall(r"~ vni *: 42 => 45", preview)) >= 1 + len(stack.hosts), "on the tunnel and in each document"
    assert "[unknown]" not in preview
    assert re.search(r"~ 4 to update\n    \d+ unchanged", preview), preview
    assert stack.lab.links("h1")["vx-app"]["linkinfo"]["info_data"]["id"] == 42

    text = stack.up().ok()
    assert "vx-app: vni 42 -> 45" in text
    stack.as_declared()
    stack.noop()


@pytest.mark.lab(hosts=4)
def test_a_host_joins_and_leaves(stack):
    stack.up().ok()
    rows = {name: (host, address) for host, name, address in stack.plug_in()["app"]}
    (from_, _), (_, target) = rows["app-cache"], rows["app-web"]
    before = {host: indices(stack.lab, host) for host in stack.hosts}

    stack.hosts["h4"] = {"address": "198.18.0.14"}
    stack.segments["app"]["containers"]["new"] = {"host": "h4", "address": "10.10.0.14"}
    preview = stack.preview().ok()
    assert preview.count('+ h4: "198.18.0.14"') >= 3, "one line a peer"
    with steady_ping(stack.lab, from_, target, "app-cache"):
        text = stack.up().ok()
    assert "recreated" not in text
    assert {host: indices(stack.lab, host) for host in before} == before
    stack.as_declared()
    row = stack.outputs()["containers"]["app"]["new"]
    stack.lab.container("h4", "new", row["bridge"], row["mac"], row["address"], mtu=row["mtu"])
    assert stack.lab.ping("h1", "10.10.0.14", container="app-cache", wait=3)

    stack.lab.remove_container("h4", "new")
    del stack.hosts["h4"], stack.segments["app"]["containers"]["new"]
    with steady_ping(stack.lab, from_, target, "app-cache"):
        stack.up().ok()
    assert {host: indices(stack.lab, host) for host in before} == before
    stack.as_declared()
    stack.clean("h4")
    stack.noop()


def test_names_and_addresses_move_without_a_new_device(stack):
    stack.up().ok()
    before = {host: indices(stack.lab, host) for host in stack.hosts}
    logins = stack.logins("h1")

    # Another name for a segment whose devices keep theirs: nothing to do for the hosts.
    segment = stack.segments.pop("app")
    stack.segments["shop"] = {**segment, "bridge": {"name": "br-app"}}
    segment["tunnels"]["mesh"]["ifname"] = "vx-app"
    text = stack.up().ok()
    assert "remote:Command" not in text
    assert stack.logins("h1") == logins

    # The bridge address of two hosts changes sides; containers and tunnels do not notice.
    addresses = stack.segments["ops"]["addresses"]
    addresses["h1"], addresses["h2"] = addresses["h2"], addresses["h1"]
    stack.up().ok()
    stack.as_declared()
    assert {host: indices(stack.lab, host) for host in stack.hosts} == before
    stack.noop()


def test_targets_and_refresh(stack):
    # Also the first time, when most of what the program asks for is not made in this run.
    names = ("**::overlay:index:Overlay::lab", "**::lab-id", "**::lab-h1*")
    stack.up(*(word for name in names for word in ("--target", name))).ok()
    stack.healthy("h1")
    stack.clean("h2", "h3")

    stack.up().ok()
    stack.segments["app"]["tunnels"]["mesh"]["vni"] = 45
    stack.up("--target", "**::lab-h1*").ok()
    vnis = {host: stack.lab.links(host)["vx-app"]["linkinfo"]["info_data"]["id"] for host in stack.hosts}
    assert vnis == {"h1": 45, "h2": 42, "h3": 42}
    assert "~ 3 updated" in stack.up("--refresh").ok()
    stack.as_declared()

    stack.destroy("--target", "**::lab-h3*", "--target-dependents").ok()
    stack.clean("h3")
    stack.healthy("h1", "h2")
    stack.up().ok()
    stack.as_declared()
    stack.noop()


@pytest.mark.lab(hosts=3, bastion=True)
def test_plain_user_behind_a_bastion_with_the_key_in_an_agent(stack):
    """Key, user and way that larger sites have; no private key gets into the state."""
    assert stack.lab.bastion
    stack.defaults.update(user="ops", proxy=f"root@{stack.lab.bastion.address}")
    listen = stack.directory / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", listen], stdout=subprocess.DEVNULL)
    try:
        env = {**stack.environment, "SSH_AUTH_SOCK": str(listen)}
        add = ["ssh-add", "-q", stack.lab.identity]
        wait_for(lambda: subprocess.run(add, env=env, check=False, capture_output=True).returncode == 0, 30)
        stack.environment = env
        text = stack.up().ok()
        stack.as_declared()
        stack.noop()
        exported = stack.run("stack", "export", "--show-secrets").ok()
        assert "sudo -n /usr/local/sbin/overlay-agent apply >/dev/null" in exported
        assert "privateKey" not in exported
        assert "agentSocketPath" not in exported
        for place in (text, exported):
            assert "PRIVATE KEY" not in place
        stack.destroy().ok()
        stack.clean()
    finally:
        agent.kill()
        agent.wait()


@pytest.mark.lab(hosts=2, mtu=9001)
@pytest.mark.stack("doc-000-unicast")
def test_large_frames(stack):
    stack.defaults["mtu"] = 9001
    stack.up().ok()
    stack.as_declared()
    plugged = stack.plug_in()["super"]
    stack.all_reach_all({"super": plugged})
    [host, name, _], target = plugged[0], plugged[-1][2]
    assert stack.lab.ping(host, target, container=name, size=8951 - 28, df=True)
    assert not stack.lab.ping(host, target, container=name, size=8951 - 27, df=True)


def test_what_a_reboot_takes_comes_back(stack):
    stack.up().ok()
    stack.lab.reboot("h2")
    assert "vx-app" not in stack.lab.links("h2")
    # What systemd does at boot.
    stack.lab.run("h2", [AGENT, "restore"])
    stack.as_declared()
    stack.healthy()
    stack.noop()
