"""A dozen hosts that find each other by multicast: all of them talk, and one more is nobody else's business."""

from __future__ import annotations

import itertools
import json
import subprocess

import pytest

from lab._keeper import SWITCH_FD
from tests.e2e.support import wait_for

pytestmark = pytest.mark.root
COUNT, GROUP = 12, "239.1.1.1"


def switch(lab, *words):
    """Runs a command at the lab's switch."""
    place = f"--net=/proc/{lab._keeper_pid()}/fd/{SWITCH_FD}"
    return subprocess.run(["nsenter", place, *words], check=True, capture_output=True, text=True).stdout


def declare(stack, count):
    hosts = {f"h{n}": {"address": stack.lab.hosts[f"h{n}"].address} for n in range(1, count + 1)}
    stack.hosts.clear()
    stack.hosts.update(hosts)
    stack.segments.clear()
    stack.segments["app"] = {
        "subnets": ["10.10.0.0/24"],
        "addresses": {host: f"10.10.0.{n}" for n, host in enumerate(hosts, 1)},
        "tunnels": {"group": {"kind": "vxlan", "vni": 42, "topology": "multicast", "group": GROUP}},
    }


def all_reach_all(stack):
    addresses = stack.segments["app"]["addresses"]
    for host in addresses:
        # Nothing of before may help: neither who has an address, nor behind which host a MAC address is.
        stack.lab.run(host, "ip neigh flush dev br-app; bridge fdb flush dev vx-app dynamic 2>/dev/null || true")
    for source, target in itertools.permutations(addresses, 2):
        assert stack.lab.ping(source, addresses[target], wait=3), f"{source} -> {target}"


@pytest.mark.lab(hosts=COUNT)
def test_a_dozen_hosts_and_one_more(stack):
    lab = stack.lab
    declare(stack, COUNT - 1)
    stack.up().ok()
    logins = {host: stack.logins(host) for host in stack.hosts}
    declare(stack, COUNT)
    text = stack.up().ok()
    assert {host: stack.logins(host) for host in logins} == logins, text
    stack.healthy(*stack.hosts)
    all_reach_all(stack)
    # A switch that knows who wants a group, as it is told when it asks: IGMP snooping, with a querier. In version 3
    # each host answers; in version 2 one that hears another's answer keeps silent, and here it hears it.
    # The version first: a querier asks as soon as it is one.
    for settings in ("mcast_igmp_version 3 mcast_query_response_interval 100", "mcast_snooping 1 mcast_querier 1"):
        switch(lab, "ip", "link", "set", "underlay", "type", "bridge", *settings.split())

    def joined():
        rows = json.loads(switch(lab, "bridge", "-j", "mdb", "show"))
        return {entry["port"] for row in rows for entry in row["mdb"] if entry["grp"] == GROUP}

    wait_for(lambda: joined() == {*stack.hosts}, 90)
    all_reach_all(stack)
