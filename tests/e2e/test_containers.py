"""Real containers on a stack's segment: what its outputs say to paste is pasted, and the containers talk."""

from __future__ import annotations

import re
import shlex

import pytest

from lab import web_server

pytestmark = pytest.mark.root


def commands(paste):
    """The lines of a snippet that are for a shell."""
    return [line for line in paste.splitlines() if not line.startswith("#")]


def run_docker(lab, row):
    """Pastes a Docker snippet on the container's host."""
    lab.start_docker(row["host"])
    for line in commands(row["paste"]):
        lab.run(row["host"], re.sub(r"\bIMAGE$", "busybox", line))


def test_docker_and_lxc_containers_of_three_hosts_talk(stack):
    lab = stack.lab
    stack.segments["app"] |= {
        "subnets": ["172.18.0.0/16"],
        "addresses": {"h3": "172.18.0.1"},
        "gateway": "h3",
        "tunnels": {"mesh": {"kind": "vxlan", "vni": 100}},
        "containers": {
            "cache": {"host": "h1", "address": "172.18.0.11", "runtime": "docker"},
            "web": {"host": "h2", "address": "172.18.0.12", "runtime": "docker"},
            "db": {"host": "h3", "address": "172.18.0.13", "runtime": "lxc"},
        },
    }
    stack.up().ok()
    rows = stack.outputs()["containers"]["app"]
    run_docker(lab, rows["cache"])
    run_docker(lab, rows["web"])
    lab.lxc("h3", "db", commands(rows["db"]["paste"]))

    lab.run("h2", f"docker exec web sh -c {shlex.quote(web_server('a page of h2'))}")
    page = "wget -q -O - http://172.18.0.12/"
    assert lab.run("h1", f"docker exec cache {page}").stdout == "a page of h2"
    assert lab.run("h3", f"lxc-attach --name db -- {page}").stdout == "a page of h2"
    # a packet as large as the segment carries: 1450 with 28 of IPv4 and ICMP
    ping = "docker exec cache ping -c 1 -W 3 172.18.0.13"
    assert " 0% packet loss" in lab.run("h1", f"{ping} -s 1422").stdout
    assert lab.run("h1", "docker exec cache cat /sys/class/net/eth0/mtu").stdout == "1450\n"
    for name, inside in (("cache", "docker exec cache"), ("web", "docker exec web"), ("db", "lxc-attach --name db --")):
        host = rows[name]["host"]
        assert lab.run(host, f"{inside} cat /sys/class/net/eth0/address").stdout.strip() == rows[name]["mac"]
        assert "via 172.18.0.1 " in lab.run(host, f"{inside} ip route show default").stdout
    stack.healthy()
    stack.noop()
