"""The commands that ask hosts, or take one away from Pulumi: against real hosts, all on one stack.

The tests of one file share the hosts; each leaves them as declared.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from lab import Lab
from tests.e2e.conftest import installed_plugin
from tests.e2e.support import AGENT, Stack

pytestmark = pytest.mark.root
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
DHCP = {"host": "h1", "range": "10.10.0.100-10.10.0.199", "masquerade": True}


@pytest.fixture(scope="module")
def stack(tmp_path_factory, homes):
    folder = tmp_path_factory.mktemp("day2")
    with Lab("e2e-day2", 3, directory=folder / "labs") as lab:
        made = Stack(lab, folder / "stack", "lab", homes[installed_plugin()])
        made.hosts["h2"]["user"] = "ops"  # by sudo
        made.segments["app"].update(addresses={"h1": "10.10.0.1"}, dhcp=DHCP)
        made.up().ok()
        yield made


@pytest.fixture
def overlay(stack):
    """Runs `overlay …` as the operator, with the stack file as it is wanted now."""

    def run(*words: str, code: int = 0, said: str = "", path: str = "") -> subprocess.CompletedProcess[str]:
        stack.write()
        changed = ["env", f"PATH={path}"] if path else []
        done = stack.lab.operator_run(
            [*changed, sys.executable, "-m", "overlay_components.cli", *words],
            cwd=stack.directory, env=stack.environment, check=False, input=said,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, (done.stdout, done.stderr)
        return done

    return run


@pytest.fixture
def silent(stack):
    """A host whose cable is pulled, and which nobody waits long for."""

    def pull(host):
        stack.lab.operator_run(
            "for f in /proc/sys/net/ipv4/neigh/*/retrans_time_ms; do "
            "case $f in */default/*) ;; *) echo 50 >$f;; esac; done; ip neigh flush all"
        )
        stack.lab.kill(host)
        pulled.append(host)

    pulled: list[str] = []
    yield pull
    for host in pulled:
        stack.lab.revive(host)


def rows(text, title):
    """A table's rows, without its head."""
    lines = [line.strip() for line in text.splitlines()]
    if title not in lines:
        return []
    after = lines[lines.index(title) + 4 :]  # an empty line, the head and the rule below it
    return [re.split(r" {2,}", line) for line in after[: after.index("")]]


# -- drift -----------------------------------------------------------------------------------


#: What somebody does to a host, and how that reads.
FAULTS = {
    "h1": {
        "pkill -KILL -x dnsmasq": ["dhcp-app: running want on, is off"],
        "nft delete table inet $(nft list tables | grep -o 'overlay.*')": ["nat-app: is not there"],
    },
    "h2": {
        "ip link set vx-app mtu 1400": ["vx-app: mtu want 1450, is 1400"],
        "bridge fdb del 00:00:00:00:00:00 dev vx-ops dst 198.18.0.13": ["vx-ops: lacks peer h3 198.18.0.13"],
    },
    "h3": {
        "ip link delete vx-ops": ["vx-ops: is not there"],
        "ip link set br-app down; bridge link set dev vx-app learning off": [
            "br-app: up want on, is off", "vx-app: portLearning want on, is off",
        ],
    },
}  # fmt: skip


def test_drift_in_the_words_of_the_network(stack, overlay):
    assert overlay("drift").stdout == "3 hosts asked: all as applied\n"
    for host, faults in FAULTS.items():
        for command in faults:
            stack.lab.run(host, command)
    wanted = {host: sorted(line for lines in faults.values() for line in lines) for host, faults in FAULTS.items()}
    *lines, last = overlay("drift", code=2).stdout.splitlines()
    assert last == "3 hosts asked: 3 drifted"
    assert lines == [f"{host} {line}" for host, said in wanted.items() for line in said]
    found = json.loads(overlay("drift", "--json", "h2", code=2).stdout)
    assert found == {"drift": {"h2": wanted["h2"]}, "stopped": {}, "unreached": []}
    for host in FAULTS:
        stack.lab.run(host, [AGENT, "restore"])
    assert overlay("drift").stdout == "3 hosts asked: all as applied\n"


def test_hosts_that_give_no_answer(stack, overlay, silent):
    command = stack.lab.path("h1", AGENT)
    kept = command.read_text()
    # One that takes the "-" of `check -` for a stack's name.
    old = "stack -: no document of it is here; run `pulumi up`"
    command.write_text(f"#!/bin/sh\necho '{{\"drift\": [\"x\"]}}'; echo '{old}' >&2; exit 2\n")
    silent("h2")
    stack.lab.run("h3", f"mv {AGENT} {AGENT}.away")
    try:
        done = overlay("drift", code=3)
        assert done.stdout == "0 hosts asked: all as applied\n"
        assert re.fullmatch(
            r"h1: the agent on this host is older than this program; run `pulumi up`\n"
            r"h2: 198.18.0.12 is not reached: .*; `pulumi up` needs it as well: see docs/connections.md\n"
            r"h3: the agent is not on this host; raise its generation, then run `pulumi up`\n",
            done.stderr,
        ), done.stderr
        command.write_text("#!/bin/sh\necho 'document.schema: 2; this agent reads 1 to 1' >&2; exit 1\n")
        assert overlay("drift", "h1", code=3).stderr == "h1: document.schema: 2; this agent reads 1 to 1\n"
        # Nothing of that is fatal to who only wants to see.
        shown = rows(overlay("status").stdout, "Hosts")
        assert [row[:3] for row in shown] == [[host, "no answer", "-"] for host in ("h1", "h2", "h3")]
        assert shown[2][3] == "the agent is not on this host; raise its generation, then run `pulumi up`"
    finally:
        command.write_text(kept)
        stack.lab.run("h3", f"mv {AGENT}.away {AGENT}")


def test_drift_needs_pulumi_and_its_state(stack, overlay):
    done = overlay("drift", code=1, path="/nowhere")
    assert done.stderr == "pulumi: is not on PATH; what was applied stands in its state\n"
    stack.file.with_name("Pulumi.new.yaml").write_text(stack.file.read_text())
    try:
        said = overlay("drift", "--stack", "new", code=1).stderr
        assert re.fullmatch(
            r"pulumi stack export --stack new --non-interactive: no stack named 'new' found; "
            r"log in \(pulumi login\), or apply the stack \(pulumi up\)\n",
            said,
        ), said
    finally:
        stack.file.with_name("Pulumi.new.yaml").unlink()
    assert overlay("drift", "h9", code=1).stderr == "HOST: unknown host 'h9'; known are h1, h2 and h3\n"


# -- status and history ----------------------------------------------------------------------


def test_status(stack, overlay):
    stack.lab.container("h1", "box", "br-app", address="10.10.0.50/24")
    assert stack.lab.ping("h1", "10.10.0.1", container="box", wait=3)
    text = overlay("status").stdout
    assert [row[:2] for row in rows(text, "Hosts")] == [["h1", "up"], ["h2", "up"], ["h3", "up"]]
    assert all(re.fullmatch(TIME, row[2]) for row in rows(text, "Hosts"))
    devices = {(row[0], row[1], row[2]): row[3:] for row in rows(text, "Devices")}
    assert devices.keys() == {
        (segment, host, f"{kind}-{segment}")
        for segment in ("app", "ops") for host in ("h1", "h2", "h3") for kind in ("br", "vx")
    }  # fmt: skip
    assert all(row[1] == "up" for row in devices.values())
    assert devices["app", "h1", "br-app"][2] != "0 B in 0"
    services = {row[2]: row for row in rows(text, "Services")}
    assert services["dhcp-app"][:5] == ["app", "h1", "dhcp-app", "dnsmasq", "runs"]
    assert re.fullmatch(TIME, services["dhcp-app"][5])
    assert services["nat-app"][3:] == ["nat", "there", "-"]
    assert not rows(text, "Leases")

    [folder] = stack.lab.run("h1", "echo /var/lib/overlay/services/overlay-dnsmasq-*").stdout.split()
    stack.lab.run("h1", f"cat > {folder}/leases", input="1900000000 02:00:00:00:01:02 10.10.0.120 box *\n")
    stack.lab.run("h1", "ip link set vx-app down")
    text = overlay("status", "h1").stdout
    assert rows(text, "Leases") == [["app", "h1", "10.10.0.120", "box", "02:00:00:00:01:02", "2030-03-17T17:46:40Z"]]
    [row] = rows(text, "Hosts")
    assert (row[1], row[3]) == ("not all up", "vx-app of 7 objects")
    found = json.loads(overlay("status", "h1", "--json").stdout)
    assert found["forgotten"] == []
    assert found["hosts"]["h1"]["objects"]["vx-app"]["up"] is False
    assert found["hosts"]["h1"]["objects"]["dhcp-app"]["leases"][0]["name"] == "box"
    stack.lab.run("h1", f": > {folder}/leases")
    stack.lab.run("h1", [AGENT, "restore"])
    stack.lab.remove_container("h1", "box")
    stack.healthy("h1")


def test_history_says_who_did_what(stack, overlay):
    stack.segments["ops"]["tunnels"]["mesh"]["vni"] = 44
    stack.up().ok()
    text = overlay("history", "h2").stdout
    assert re.search(
        rf"(?m)^h2 {TIME} apply by ops from {re.escape(stack.lab.operator)}: done\n  vx-ops: vni 43 -> 44 ", text
    ), text
    first = json.loads(overlay("history", "h2", "--json").stdout)["history"][0]
    assert (first["verb"], first["result"], first["stack"], first["host"]) == ("apply", "done", "overlay/lab", "h2")
    assert any(line.startswith("br-app: created") for line in first["lines"])


# -- stop and start --------------------------------------------------------------------------


def test_stop_and_start(stack, overlay):
    stack.lab.container("h2", "box", "br-app", address="10.10.0.51/24")
    said = overlay("stop", "h2").stdout
    assert said.splitlines()[-1] == "h2: stopped; `overlay start h2` makes all of it again"
    assert "h2 vx-app: removed" in said
    assert stack.lab.links("h2").keys() == {"lo", "eth0", "br-app", "br-ops", "vethbox"}
    assert not stack.lab.ping("h2", "10.10.0.1", container="box", wait=0)

    assert re.fullmatch(
        rf"h2: stopped on purpose since {TIME}; `overlay start h2` makes it true again\n"
        "3 hosts asked: all as applied\n",
        overlay("drift").stdout,
    )
    [row] = rows(overlay("status", "h2").stdout, "Hosts")
    assert (row[1], row[3]) == ("stopped", "on purpose; overlay start h2")
    # As at boot, and as of a `pulumi up` that has nothing for this host.
    stack.lab.run("h2", [AGENT, "restore"])
    stack.noop()
    assert "vx-app" not in stack.lab.links("h2")

    assert re.search(rf"(?m)^h2: was stopped since {TIME}; started again$", overlay("start", "h2").stdout)
    assert stack.lab.ping("h2", "10.10.0.1", container="box", wait=3)
    stack.healthy("h2")

    # What changes is applied whole.
    overlay("stop", "h2", "h3")
    stack.segments["ops"]["tunnels"]["mesh"]["vni"] = 45
    text = stack.up().ok()
    assert re.search(rf"h2: was stopped since {TIME}; started again", text), text
    assert overlay("drift").stdout == "3 hosts asked: all as applied\n"
    stack.lab.remove_container("h2", "box")


def test_stop_of_a_host_that_is_silent(overlay, silent):
    silent("h3")
    said = overlay("stop", "h3", "--json", code=3)
    assert json.loads(said.stdout)["hosts"] == {}
    assert "h3: 198.18.0.13 is not reached" in json.loads(said.stdout)["problems"][0]
    assert "h3: 198.18.0.13 is not reached" in overlay("start", "h3", code=3).stderr
    assert "h3: 198.18.0.13 is not reached" in overlay("history", "h3", code=3).stderr
    assert "198.18.0.13 is not reached" in overlay("purge", "h3", "--yes", code=3).stderr


# -- forget and purge ------------------------------------------------------------------------


def test_forget_up_back_and_purge(stack, overlay, silent):
    said = overlay("forget", "h3", "--yes", code=1).stderr
    assert said == (
        "h3: answers at 198.18.0.13; take it out of the stack file and run `pulumi up`, which removes what it has; or "
        "say --force\n"
    )
    assert overlay("forget", "h7", code=1).stderr == "HOST: 'h7' is not in Pulumi's state; known are h1, h2 and h3\n"

    silent("h3")
    before = stack.state()
    said = overlay("forget", "h3", said="n\n", code=1).stderr
    assert "5 resources of h3 leave the state of lab; nothing is done on h3. Go on?" in said
    assert stack.state().keys() == before.keys()
    said = overlay("forget", "h3", said="y\n").stdout.strip().splitlines()
    file = stack.file.with_name("Pulumi.lab.forgotten.json")
    assert said == [
        "h3: 5 resources taken out of the state of lab",
        f"{file}: names h3, so that it is noticed when it comes back; commit it",
        "h3: still in the stack file; take it out before `pulumi up` (not needed for a destroy)",
    ]
    gone = {name for name in before if name == "lab-h3" or name.startswith("lab-h3-")}
    assert stack.state().keys() == before.keys() - gone

    # The others go on without it.
    host = stack.hosts.pop("h3")
    for segment in stack.segments.values():
        segment["containers"] = {n: c for n, c in segment["containers"].items() if c["host"] != "h3"}
        segment.get("addresses", {}).pop("h3", None)
    assert "vx-app: - peer 198.18.0.13" in stack.up().ok()
    stack.healthy("h1", "h2")
    stack.noop()
    assert "h3" not in overlay("status").stdout

    # It comes back.
    stack.lab.revive("h3")
    back = (
        "h3: was forgotten, and is back with br-app, br-ops, vx-app and vx-ops of overlay/lab; declare it again and "
        "run `pulumi up`, or remove what it has: overlay purge h3 --stack lab"
    )
    assert overlay("status").stdout.splitlines()[-1] == back
    assert json.loads(overlay("status", "--json").stdout)["forgotten"] == [back]
    said = overlay("purge", "root@198.18.0.13", "--stack", "lab", said="n\n", code=1).stderr
    assert "h3: br-app, br-ops, vx-app and vx-ops of overlay/lab will be removed. Go on?" in said
    assert stack.lab.links("h3").keys() > {"br-app"}
    said = overlay("purge", "root@198.18.0.13", "--stack", "lab", "--yes").stdout.splitlines()
    assert said[0] == "h3 br-app: removed"
    assert said[-1] == "h3: agent removed"
    stack.clean("h3")
    assert not file.exists()
    assert "h3" not in overlay("status").stdout
    # And is declared again.
    stack.hosts["h3"] = host
    stack.up().ok()
    stack.healthy()


def test_destroy_with_a_dead_host_after_forget(stack, overlay, silent):
    silent("h2")
    text = stack.destroy().failed()
    assert re.search(r"\(lab-h2-uninstall\):\n +error: .*dial tcp 198.18.0.12:22", text), text
    stack.clean("h1", "h3")
    overlay("forget", "h2", "--yes")
    stack.destroy().ok()
    assert not stack.state()
    stack.lab.revive("h2")
    # Without the stack's file, by its label.
    said = overlay("purge", "ops@198.18.0.12", "--stack", "overlay/lab", "--yes", "--json").stdout
    assert json.loads(said)["lines"][-1] == "h2: agent removed"
    stack.clean("h2")
    without = "h2: the agent is not on this host; raise its generation, then run `pulumi up`\n"
    assert overlay("purge", "h2", "--yes", code=3).stderr == without
    for target in ("root@", "-oProxyCommand=x", "a b"):
        assert "write user@address, such as root@192.0.2.12" in overlay("purge", "--yes", "--", target, code=1).stderr
    said = overlay("purge", "h2", "--stack", "a/b/c", code=1).stderr
    assert said == "--stack: 'a/b/c' is not a stack; write its name, or PROJECT/STACK\n"
