"""`selfHeal`: a timer has the agent look, which repairs what has drifted, of the stacks that want it.
A stub takes systemctl's place; that the timer runs is tested in a VM (tests/vm/test_reboot.py)."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from agent_support import OWNER, document, kill_at_each_point, usual, vxlan

OTHER = {"project": "p", "stack": "t", "id": "id-of-t"}
UNITS = ["overlay-repair.service", "overlay-repair.timer"]
FOLDER = "/etc/systemd/system"
#: Knows whether the timer runs, and says what it was asked.
STUB = """#!/bin/sh
echo "$@" >> /run/systemctl.log
case "$*" in
    "-q restart overlay-repair.timer"|"enable --now overlay-repair.timer") touch /run/systemd/timer;;
    "-q disable --now overlay-repair.timer")
        test -e /etc/systemd/system/overlay-repair.timer || { echo "not loaded" >&2; exit 1; }
        rm -f /run/systemd/timer;;
    "is-active overlay-repair.timer") test -e /run/systemd/timer && echo active || { echo inactive; exit 3; };;
esac
"""
CHECK = ("check", "--repair")


def healing(owner=OWNER, **more):
    """A stack with selfHeal; that of another owner has other devices."""
    out = usual() if owner is OWNER else document(owner, vx_two=vxlan(vni=7, mac="02:00:00:00:00:04"))
    return {**out, "services": {"self-heal": {"kind": "self-heal", **more}}}


@pytest.fixture
def booted(new_host):
    """Makes hosts where PID 1 is systemd, as far as can be told."""

    def make():
        host = new_host()
        host.run("mkdir -p /run/systemd/system")
        host.run("sh", "-c", "cat > /usr/local/sbin/systemctl; chmod 755 /usr/local/sbin/systemctl", text=STUB)
        host.environment = {"PATH": "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"}
        return host

    return make


def units(host):
    return host.run(f"ls {FOLDER}").out.split()


def agent(host, *words, **more):
    return host.agent(*words, **more, **host.environment)


def test_what_drifted_is_mended(booted):
    host = booted()
    agent(host, "apply", document=healing())
    assert units(host) == UNITS
    assert host.run("cat /run/systemctl.log").out.splitlines()[-4:] == [
        "-q daemon-reload", "-q enable overlay-repair.timer", "-q restart overlay-repair.timer",
        "is-active overlay-repair.timer",
    ]  # fmt: skip
    if shutil.which("systemd-analyze"):
        paths = [f"{FOLDER}/{unit}" for unit in UNITS]
        assert "overlay-repair" not in host.run("systemd-analyze", "verify", "--man=no", *paths, check=False).err
    assert "nothing to do" in agent(host, "apply", document=healing()).err
    done = agent(host, *CHECK)
    assert (done.report, done.lines) == ({"drift": []}, []), "nothing is written to the journal"

    host.run("ip link set vx-app mtu 1300")
    host.run("bridge fdb del 00:00:00:00:00:00 dev vx-app dst 198.18.0.12")
    done = agent(host, *CHECK)
    assert done.lines == [
        "stack p/s: 2 drifted; repairing", "vx-app: mtu 1300 -> 1450", "vx-app: + peer b 198.18.0.12",
    ]  # fmt: skip
    assert done.report == {"drift": ["vx-app: mtu want 1450, is 1300", "vx-app: lacks peer b 198.18.0.12"]}
    assert agent(host, "check").report == {"drift": []}

    # The timer itself is looked after by whoever comes by.
    host.run("rm /run/systemd/timer")
    assert agent(host, "check", code=2).lines == ["self-heal: timer want on, is off"]
    host.run("sh", "-c", f"echo >> {FOLDER}/overlay-repair.timer")
    assert agent(host, "apply", document=healing()).lines == ["self-heal: timer off -> on"]
    assert agent(host, "check").report == {"drift": []}
    host.run(f"rm -r {FOLDER}/overlay-repair.timer /run/systemd/timer")
    text = agent(host, "explain", "p/s").out
    host.run("sh", check=False, text=text, env=host.environment)  # the devices are there
    assert agent(host, "check", code=None).report == {"drift": []}


def test_what_was_stopped_on_purpose_is_left_alone(booted):
    host = booted()
    agent(host, "apply", document=healing())
    agent(host, "stop", "p/s")
    for words in (CHECK, (*CHECK, "p/s")):
        done = agent(host, *words)
        assert (done.report, done.lines) == ({"drift": []}, [])
    assert "vx-app" not in host.run("ip -br link").out
    agent(host, "start", "p/s")
    host.run("ip link set vx-app mtu 1300")
    assert agent(host, *CHECK).lines == ["stack p/s: 1 drifted; repairing", "vx-app: mtu 1300 -> 1450"]


def test_only_stacks_that_want_it_and_the_last_takes_it_away(booted):
    host = booted()
    agent(host, "apply", document=healing())
    other = document(OTHER, vx_two=vxlan(vni=7, mac="02:00:00:00:00:04"))
    agent(host, "apply", document=other)
    host.run("ip link set vx-two mtu 1300")
    assert agent(host, *CHECK).lines == []
    assert agent(host, *CHECK, "p/t").lines == ["stack p/t: 1 drifted; repairing", "vx-two: mtu 1300 -> 1450"]

    agent(host, "apply", document=healing(OTHER))
    assert agent(host, "apply", document=usual()).lines == ["self-heal: removed"]
    assert units(host) == UNITS
    host.run("ip link set vx-two mtu 1300")
    host.run("ip link set vx-app mtu 1300")
    assert agent(host, *CHECK).lines == ["stack p/t: 1 drifted; repairing", "vx-two: mtu 1300 -> 1450"]
    agent(host, "remove", "p/t")
    assert units(host) == []
    assert not [path for path in host.files() if "shared" in path]
    assert agent(host, *CHECK, "p/x", code=1).lines == ["stack p/x: no document of it is here; run `pulumi up`"]
    assert "usage:" in agent(host, "check", "p/s", "--repair", code=64).err


def test_what_cannot_be_mended_is_undone_and_said(booted):
    """One stack's trouble keeps no other from being looked after."""
    host = booted()
    agent(host, "apply", document=healing())
    agent(host, "apply", document=healing(OTHER))
    host.run("ip link del vx-app")
    host.run("ip link add vx-app type bridge")
    host.run("ip link del vx-two")
    done = agent(host, *CHECK, code=1)
    assert "a vx-app: a device of that name (bridge) is there and is not ours; " in done.err
    assert "vx-two: created (" in done.err


def test_an_apply_that_was_cut_short_is_ended_first(booted):
    host = booted()
    agent(host, "apply", document=healing())
    changed = healing()
    changed["devices"]["vx-app"]["vni"] = 43
    agent(host, "apply", document=changed, code=None, OVERLAY_FAULT="3:all")
    assert agent(host, *CHECK).lines[0] == "stack p/s: an apply was cut short; undone"
    assert agent(host, "check").report == {"drift": []}


def test_it_waits_for_an_apply_under_way(booted):
    host = booted()
    agent(host, "apply", document=healing())
    holder = host.popen(
        "flock", "/run/overlay.lock", "sh", "-c", "echo held; exec cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    assert "held by " in agent(host, *CHECK, code=1, OVERLAY_LOCK_SECONDS="0.1").err
    holder.communicate()
    assert agent(host, *CHECK).report == {"drift": []}


def test_without_systemd_it_is_refused(host):
    done = host.apply(healing(), code=1)
    assert done.lines == [
        ("a self-heal: selfHeal needs systemd, which does not run here; leave selfHeal out of hosts.a, and have "
        "something else run `/usr/local/sbin/overlay-agent check --repair p/s` from time to time"),
        "nothing was changed",
    ]  # fmt: skip
    done = host.apply(healing(timer=False), code=1)
    assert "timer: off; leave the service out" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["", ":all"])
@pytest.mark.parametrize("verb", ["set", "take away"])
def test_killed_at_each_point(booted, scope, verb):
    before, wanted = (usual(), healing()) if verb == "set" else (healing(), usual())

    def go(host, **more):
        return agent(host, "apply", document=wanted, **more)

    def new_host():
        host = booted()
        real = host.agent
        host.agent = lambda *words, **more: real(*words, **{**host.environment, **more})
        return host

    assert kill_at_each_point(new_host, scope, lambda host: host.apply(before), go, lambda host: (
        units(host), host.run("test -e /run/systemd/timer", check=False).code)) >= 4  # fmt: skip
