"""`topology: evpn` on five hosts with two reflectors, and real FRR: they find each other, a sixth joins without a word
to the others, a container moves, a reflector dies, a host reboots, and nothing is left in the end.

One lab for all; each test leaves it as the next one finds it.
"""

from __future__ import annotations

import json
import re
import shutil
import time

import pytest

from lab import Lab
from tests.e2e.conftest import installed_plugin
from tests.e2e.support import AGENT, steady_ping, wait_for
from tests.e2e.test_verify import Verified, failing

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not shutil.which("vtysh"), reason="FRR is not installed (the VM lab's image has none)"),
]

FLOOD = "00:00:00:00:00:00"
#: s. The agent has FRR try again every 2 s, and a session that is silent ends after `hold`, 9 s.
_TOLD = 25


@pytest.fixture(scope="module")
def stack(homes, tmp_path_factory):
    """The stack as it is in stacks/, with a password."""
    with Lab(name="e2e-evpn", hosts=6, directory=tmp_path_factory.mktemp("labs")) as lab:
        stack = Verified(lab, tmp_path_factory.mktemp("evpn") / "stack", "evpn", homes[installed_plugin()])
        stack.config["overlay:evpn"]["password"] = "between-reflectors-and-clients"
        yield stack


@pytest.fixture
def lab(stack):
    return stack.lab


def fdb(lab, host, device="vx-app"):
    rows = json.loads(lab.run(host, ["bridge", "-j", "fdb", "show", "dev", device]).stdout)
    return {(row["mac"], row["dst"]) for row in rows if "dst" in row}


def flood(lab, host, device="vx-app"):
    return {address for mac, address in fdb(lab, host, device) if mac == FLOOD}


def documents(text):
    """What an `up` did to which host's document."""
    return dict(re.findall(r"evpn-(\w+)-document (created|updated|deleted) \(", text))


def processes(lab, host, program):
    return lab.run(host, ["pgrep", "-x", program], check=False).stdout.split()


def sessions(stack):
    """By host and neighbour how the session is, as `overlay status` tells it."""
    code, out, err = stack.overlay("status", "--json")
    assert code == 0, err
    rows = json.loads(out)["hosts"]
    return {host: rows[host]["objects"]["evpn"]["sessions"] for host in rows}


def plug(stack, name, host, place=None):
    row = stack.outputs()["containers"]["app"][name]
    stack.lab.container(host, place or f"app-{name}", row["bridge"], row["mac"], row["address"], mtu=row["mtu"])
    return row["address"].partition("/")[0], row["mac"]


def test_five_hosts_find_each_other(stack, lab):
    stack.remember()
    stack.up().ok()
    plugged = stack.plug_in()
    wait_for(lambda: stack.verify()[0] == 0, _TOLD)  # what one tells takes a moment to be with all
    stack.all_reach_all(plugged)
    stack.as_declared()
    stack.healthy(*stack.hosts)
    stack.noop()
    code, report = stack.verify()
    assert code == 0, report
    assert {name: len(row["pairs"]) for name, row in report["segments"].items()} == {"app": 5, "ops": 3}
    assert flood(lab, "h1", "vx-app") == {f"198.18.0.{n}" for n in (12, 13, 14, 15)}
    assert "vx-ops" not in lab.links("h1")


def test_a_sixth_host_changes_no_other(stack, lab):
    logins = {host: stack.logins(host) for host in stack.hosts}
    stack.hosts["h6"] = {"address": "198.18.0.16"}
    stack.segments["app"]["containers"]["c6"] = {"host": "h6", "address": "10.10.0.16"}
    with steady_ping(lab, "h3", "10.10.0.14", "app-c3"), steady_ping(lab, "h1", "10.10.0.12", "app-c1"):
        text = stack.up().ok()
        address, _ = plug(stack, "c6", "h6")
        for host, container in (("h1", "app-c1"), ("h5", "app-c5")):
            wait_for(lambda host=host, container=container: lab.ping(host, address, container=container), _TOLD)
    assert documents(text) == {"h6": "created"}
    assert {host: stack.logins(host) for host in logins} == logins, "nobody else was asked"
    wait_for(lambda: stack.verify()[0] == 0, _TOLD)
    stack.as_declared()


def test_a_container_moves(stack, lab):
    """Its MAC address is told by another host, and forwarding follows, though nobody learns from traffic."""
    address, mac = "10.10.0.15", stack.outputs()["containers"]["app"]["c5"]["mac"]
    assert lab.ping("h1", address, container="app-c1", wait=3)
    wait_for(lambda: (mac, "198.18.0.15") in fdb(lab, "h1"), _TOLD)
    lab.remove_container("h5", "app-c5")
    assert plug(stack, "c5", "h4", "moved-c5") == (address, mac)
    # As the runtime of a container that moves does (arping -U).
    wait_for(lambda: lab.ping("h4", "10.10.0.11", container="moved-c5"), _TOLD)
    for host, container in (("h1", "app-c1"), ("h6", "app-c6"), ("h4", "app-c4")):
        wait_for(lambda host=host, container=container: lab.ping(host, address, container=container), _TOLD)
    wait_for(lambda: (mac, "198.18.0.14") in fdb(lab, "h1"), _TOLD)
    assert (mac, "198.18.0.15") not in fdb(lab, "h1")


def test_a_reflector_dies(stack, lab):
    """Traffic between the others goes on, and so does what they tell each other, by way of the second."""
    mac = stack.outputs()["containers"]["app"]["c5"]["mac"]
    with steady_ping(lab, "h3", "10.10.0.14", "app-c3"), steady_ping(lab, "h6", "10.10.0.12", "app-c6"):
        for program in ("bgpd", "zebra"):
            lab.run("h1", ["pkill", "-KILL", "-x", program])
        wait_for(lambda: "Established" not in {one["h1"]["state"] for one in sessions(stack).values() if "h1" in one})
        lab.remove_container("h4", "moved-c5")
        plug(stack, "c5", "h5")
        wait_for(lambda: lab.ping("h5", "10.10.0.13", container="app-c5"), _TOLD)
        wait_for(lambda: (mac, "198.18.0.15") in fdb(lab, "h3"), _TOLD)
        time.sleep(1)
    code, _, _ = stack.overlay("drift")
    assert code == 2, "somebody ended it"
    assert "h1" in documents(stack.up(OVERLAY_LIVE="1").ok())
    wait_for(lambda: stack.verify()[0] == 0, _TOLD)
    stack.healthy(*stack.hosts)


def test_verify_names_what_is_missing(stack, lab):
    lab.run("h3", ["pkill", "-KILL", "-x", "bgpd"])
    wait_for(lambda: "198.18.0.13" not in flood(lab, "h4"), _TOLD)
    code, report = stack.verify("app")
    assert code == 2
    why = failing(report, "app")
    assert why["h4-h3"] == "no FDB entry for 198.18.0.13 on h4's vx-app: h3 has no BGP session (its bgpd does not run)"
    assert not [pair for pair in why if "h3" not in pair], why
    stack.up(OVERLAY_LIVE="1").ok()
    wait_for(lambda: stack.verify()[0] == 0, _TOLD)


def test_a_host_reboots(stack, lab):
    with steady_ping(lab, "h3", "10.10.0.15", "app-c3"):
        lab.reboot("h4")
        # What systemd does at boot.
        lab.run("h4", [AGENT, "restore"])
        plug(stack, "c4", "h4")
        wait_for(lambda: lab.ping("h3", "10.10.0.14", container="app-c3"), _TOLD)
    wait_for(lambda: stack.verify()[0] == 0, _TOLD)
    stack.as_declared()
    stack.healthy(*stack.hosts)
    stack.noop()


def test_nothing_is_left(stack, lab):
    for number in range(1, 7):
        lab.remove_container(f"h{number}", f"app-c{number}")
    stack.destroy().ok()
    stack.clean()
