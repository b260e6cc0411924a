"""What the agent tells of a stack, what it remembers of what was done, and a stack that is stopped on purpose."""

from __future__ import annotations

import re

import pytest
from agent_support import MACHINE, OWNER, bridge, container, document, usual

OTHER = {**OWNER, "id": "another"}
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


@pytest.fixture
def host(new_host):
    return new_host()


@pytest.fixture
def bare(new_host):
    """With an agent of its own, that may be taken away."""
    host = new_host(agent=False)
    host.install()
    return host


@pytest.fixture
def applied(host):
    host.apply(usual())
    return host


def router(**more):
    """A bridge with an address and DHCP, and a tunnel in it."""
    out = usual(**more)
    out["devices"]["br-app"]["linkLocal"] = True
    out["devices"]["br-app"]["addresses"] = {"10.10.0.1/24": {}, "2001:db8:10::1/64": {}}
    dhcp = {"kind": "dnsmasq", "interface": "br-app", "addresses": {"10.10.0.1": {}}, "subnets": {"10.10.0.0/24": {}},
            "mtu": 1450, "hosts": {"web": {"mac": "02:00:00:00:01:01", "address": "10.10.0.11"}}}  # fmt: skip
    out["services"] = {"dhcp-app": dhcp, "forwarding": {"kind": "forwarding", "ipv4": True}}
    return out


# -- status ----------------------------------------------------------------------------------


def test_status_says_what_is_there(host):
    host.apply(router())
    host.run("ip link delete vx-app")
    box = container(host, "web", "br-app", "10.10.0.11/24")
    assert box.pings("10.10.0.1")
    found = host.agent("status", "p/s").report
    assert (found["id"], found["machine"], found["stopped"]) == (OWNER["id"], MACHINE, None)
    assert 0 <= found["now"] - found["applied"] < 600
    objects = found["objects"]
    assert {name: one["there"] for name, one in objects.items()} == {
        "br-app": True, "dhcp-app": True, "forwarding": True, "vx-app": False,
    }  # fmt: skip
    assert objects["br-app"]["up"]
    assert objects["br-app"]["rxPackets"] > 0
    assert 0 <= found["now"] - objects["dhcp-app"]["since"] < 600
    assert "since" not in objects["forwarding"]
    assert "rxBytes" not in objects["vx-app"]


def test_status_of_a_service_that_ended_and_of_leases(host):
    host.apply(router())
    [folder] = host.run("sh", "-c", "echo /var/lib/overlay/services/*").out.split()
    [pid] = host.run("sh", "-c", "cat /run/overlay/*.pid").out.split()
    host.kill(int(pid))
    rows = "1900000000 02:00:00:00:01:01 10.10.0.11 web *\n0 02:00:00:00:01:02 10.10.0.12 * *\nduid 00:01\n"
    host.run("sh", "-c", f"printf '{rows}' > {folder}/leases")
    found = host.agent("status", "p/s").report["objects"]["dhcp-app"]
    assert found == {
        "kind": "dnsmasq", "there": True, "since": None,
        "leases": [
            {"address": "10.10.0.11", "name": "web", "mac": "02:00:00:00:01:01", "until": 1900000000},
            {"address": "10.10.0.12", "name": "", "mac": "02:00:00:00:01:02", "until": 0},
        ],
    }  # fmt: skip


def test_status_where_nothing_was_applied(host):
    found = host.agent("status", "p/s").report
    assert (found["applied"], found["objects"]) == (None, {})
    # Nothing is known of it but the mark.
    marked(host)
    assert host.agent("status", "p/s").report["objects"]["br-old"]["there"]
    for label in ("p", "p/../s", "p/", ""):
        done = host.agent("status", label, code=1)
        assert done.lines == [f"STACK: {label!r} is not one; write project/stack"]


# -- history ---------------------------------------------------------------------------------


def history(host, label="p/s"):
    return [(one["verb"], one["result"], one["lines"]) for one in host.agent("history", label).report["history"]]


def test_history_has_what_changed_and_what_failed(host):
    host.apply(usual(), SUDO_USER="")
    host.apply(usual())  # has nothing to do
    host.apply(usual(peers=("b",)), SUDO_USER="ops", SSH_CONNECTION="198.18.0.9 50000 198.18.0.11 22")
    host.apply({**usual(), "owner": OTHER}, code=1)
    host.apply(usual(), code=1, OVERLAY_FAULT="2")
    host.apply(usual(), code=None, OVERLAY_FAULT="2:all")
    host.agent("restore")
    told = history(host)
    assert [(verb, result) for verb, result, _ in told] == [
        ("apply", "done"), ("apply", "done"), ("apply", "refused"), ("apply", "undone"), ("restore", "ended"),
    ]  # fmt: skip
    assert told[1][2] == ["vx-app: - peer 198.18.0.13"]
    assert told[2][2][0].startswith("a: stack p/s on this host belongs to another checkout")
    assert told[3][2] == ["a: the apply was ended by signal 9 (SIGKILL); undone, the host is as it was"]
    assert told[4][2] == ["stack p/s: an apply was cut short; undone"]
    entries = host.agent("history", "p/s").report["history"]
    assert (entries[1]["by"], entries[1]["from"]) == ("ops", "198.18.0.9")
    assert entries[0]["by"] == "root"
    assert all(re.fullmatch(TIME, one["time"]) for one in entries)
    assert host.run("stat -c %a /var/lib/overlay/history.jsonl").out == "600\n"
    assert history(host, "p/other") == []


def test_history_is_bounded_and_survives_a_torn_line(applied):
    [line] = applied.run("cat /var/lib/overlay/history.jsonl").out.splitlines()
    many = "\n".join([*[line] * 400, line[:20]]) + "\n"
    applied.run("sh", "-c", "cat > /var/lib/overlay/history.jsonl", text=many)
    assert len(history(applied)) == 200
    applied.apply(usual(peers=("b",)))
    assert len(applied.run("cat /var/lib/overlay/history.jsonl").out.splitlines()) == 200
    assert history(applied)[-1][2] == ["vx-app: - peer 198.18.0.13"]
    assert applied.run("stat -c %a /var/lib/overlay/history.jsonl").out == "600\n"


def test_history_of_a_large_change_is_short(host):
    devices = {f"br{n}": bridge(mac=f"02:00:00:00:02:{n:02x}") for n in range(60)}
    host.apply(document(**devices))
    [(_, _, lines)] = history(host)
    assert (len(lines), lines[-1]) == (41, "and 20 more")


def test_history_goes_to_journald_too(host):
    """Its socket is a file in the host's /run, so that it can be listened to from here."""
    path = "/run/systemd/journal/socket"
    listen = f"import os, socket; os.makedirs(os.path.dirname({path!r})); s = socket.socket(socket.AF_UNIX, 2); "
    process = host.popen(
        "/usr/bin/python3", "-c", listen + f"s.bind({path!r}); print(flush=True); print(s.recv(9999).decode())",
        stdout=-1, text=True,
    )  # fmt: skip
    process.stdout.readline()
    host.apply(usual(), SUDO_USER="ops", SSH_CONNECTION="")
    said, _ = process.communicate(timeout=10)
    fields = dict(line.split("=", 1) for line in said.splitlines() if line)
    assert fields["MESSAGE"].startswith("p/s: apply by ops")
    assert "br-app: created (bridge" in fields["MESSAGE"]
    assert (fields["PRIORITY"], fields["SYSLOG_IDENTIFIER"]) == ("5", "overlay-agent")
    assert (fields["OVERLAY_STACK"], fields["OVERLAY_RESULT"]) == ("p/s", "done")


def test_a_full_disk_hinders_no_history_and_no_undo(new_host):
    host = new_host(size="64k")
    host.apply(usual())
    host.run("sh", "-c", "cat /dev/zero > /var/lib/overlay/full 2>/dev/null; true")
    host.apply(usual(peers=("b",)), code=1)
    assert host.agent("check", code=0).report == {"drift": []}
    host.run("rm /var/lib/overlay/full")
    host.apply(usual(peers=("b",)))
    assert history(host)[-1][:2] == ("apply", "done")


# -- stop and start --------------------------------------------------------------------------


def test_stop_leaves_containers_plugged_in_and_start_makes_it_all_again(host):
    host.apply(router())
    container(host, "web", "br-app", "10.10.0.11/24")
    before = host.agent("show").report
    done = host.agent("stop", "p/s")
    assert done.lines[-1] == "a: stopped; `overlay start a` makes all of it again"
    assert {row["ifname"] for row in host.json("ip -j link")} - {"lo", "u0", "u1"} == {"br-app", "p-web"}
    link = host.link("br-app")
    assert "UP" not in link["flags"]
    assert not host.json("ip -j address show br-app")[0]["addr_info"]
    assert host.link("p-web")["master"] == "br-app"
    assert host.run("sh", "-c", "ls -d /run/overlay /var/lib/overlay/services", check=False).out == ""

    done = host.agent("stop", "p/s")
    assert done.lines == ["a: nothing to do, 1 device as declared"]
    assert host.agent("status", "p/s").report["stopped"]

    assert host.agent("start", "p/s").lines[-1].endswith("; started again")
    assert host.agent("show").report == before
    assert host.agent("check").report == {"drift": []}
    assert [verb for verb, _, _ in history(host)] == ["apply", "stop", "start"]


def test_what_is_stopped_is_no_drift_and_stays_so_at_boot(applied):
    applied.agent("stop", "p/s")
    done = applied.agent("check", "-", document=usual())
    [(label, since)] = done.report["stopped"].items()
    assert (label, done.report["drift"]) == ("p/s", [])
    assert re.fullmatch(TIME, since)
    assert done.lines == [f"stack p/s: stopped on purpose since {since}"]
    # A reboot takes the devices away; a bridge for containers comes back, and no more.
    applied.run("ip link delete br-app")
    applied.agent("restore")
    assert {row["ifname"] for row in applied.json("ip -j link")} == {"lo", "u0", "u1", "br-app"}
    assert "UP" not in applied.link("br-app")["flags"]
    assert applied.agent("check").report["stopped"] == {"p/s": since}
    applied.run("ip link set br-app up")
    assert applied.agent("check", code=2).report["drift"] == ["br-app: up want off, is on"]


def test_an_apply_starts_it_and_says_so(applied):
    applied.agent("stop", document=usual())
    lines = applied.apply(usual(peers=("b",))).lines
    assert re.fullmatch(rf"a: was stopped since {TIME}; started again", lines[-1])
    assert applied.agent("check").report == {"drift": []}
    assert applied.peers("vx-app") == {"198.18.0.12"}


def test_stop_is_refused_where_it_is_not_ours(applied, host):
    assert applied.agent("stop", "p/none", code=1).lines == [
        "stack p/none: no document of it is here; run `pulumi up`"
    ]
    before = applied.state()
    done = applied.agent("stop", document={**usual(), "owner": OTHER}, code=1)
    assert done.lines[0].startswith("a: stack p/s on this host belongs to another checkout or state")
    assert applied.state() == before


def test_a_stop_that_is_killed_is_undone(applied):
    before = applied.state()
    applied.agent("stop", "p/s", code=1, OVERLAY_FAULT="3")
    assert applied.state() == before
    assert applied.agent("check").report == {"drift": []}


def test_what_is_stopped_can_be_removed(applied):
    applied.agent("stop", "p/s")
    applied.agent("remove", "p/s")
    assert {row["ifname"] for row in applied.json("ip -j link")} == {"lo", "u0", "u1"}
    assert applied.run("sh", "-c", "ls -A /var/lib/overlay").out == ""


# -- purge -----------------------------------------------------------------------------------


def marked(host):
    """A device that nothing but its mark shows to be the stack's."""
    host.run("ip link add br-old type bridge")
    host.run("ip link set br-old alias overlay:p/s/br-old")


def test_purge_takes_the_agent_along_with_the_last_stack(bare):
    host = bare
    host.install(owner={**OWNER, "stack": "t"})
    host.apply(usual())
    assert host.agent("purge", "p/s").lines == ["br-app: removed", "vx-app: removed", "a: the agent stays, for p/t"]
    assert host.agent("purge", "p/none").report["removed"] is False
    assert host.agent("purge", "p/t").report["removed"]
    assert host.run("sh", "-c", "ls -A /var/lib/overlay /usr/local/sbin").out.split() == [
        "/usr/local/sbin:", "/var/lib/overlay:"
    ]  # fmt: skip


def test_purge_of_what_only_its_mark_shows(bare):
    marked(bare)
    assert bare.agent("purge", "p/s").lines[0] == "br-old: removed"
    assert "br-old" not in bare.run("ip link").out


def test_purge_with_containers_plugged_in(bare):
    bare.apply(usual())
    container(bare, "web", "br-app", "10.10.0.11/24")
    assert "br-app: still has ports that are not ours (p-web)" in bare.agent("purge", "p/s", code=1).err
    bare.agent("purge", "p/s", "force")
    assert "br-app" not in bare.run("ip link").out
