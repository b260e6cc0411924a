"""What `overlay snippet` prints is pasted into the real tools, and the container is what the plan says.

Not here: Incus (no Debian 12 package), Compose (what it prints needs version 2.24; Debian has 1.29) and libvirt.
"""

from __future__ import annotations

import os
from functools import partial

import pytest

from lab import Lab
from overlay_agent.document import Owner
from overlay_components import config, snippets
from overlay_components.plan import make_plan

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the lab makes network namespaces"),
]

STACK = {
    "hosts": {"a": {"address": "192.0.2.11"}, "b": {"address": "192.0.2.12"}},
    "segments": {
        "app": {
            "subnets": ["10.10.0.0/24"],
            "gateway": "10.10.0.1",
            "tunnels": {"mesh": {"kind": "vxlan", "vni": 42}},
            "containers": {"web": {"host": "a", "address": "10.10.0.11"}},
        }
    },
}


@pytest.fixture(scope="module")
def plan():
    return make_plan(config.load_config(STACK), Owner("overlay", "snippets", "0"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Two hosts with the segment's bridge, as the agent makes it."""
    with Lab("snippets", hosts=2, directory=tmp_path_factory.mktemp("labs")) as running:
        for host in running.hosts:
            running.run(host, "ip link add br-app type bridge && ip link set br-app mtu 1450 up")
            running.run(host, "ip addr add 10.10.0.1/24 dev br-app")
        yield running


@pytest.fixture(scope="module")
def docker(lab):
    lab.start_docker("h1")
    return lab


def lines(plan, form):
    """The snippet of `web` without comments."""
    return [line for line in snippets.chosen(plan.containers, plan.segments, "web", form) if line[0] != "#"]


def facts(read):
    """What a container has for eth0; `read` gives what a command prints in it."""
    address, route = read("ip -o -4 addr show eth0").split(), read("ip route show default").split()
    return {
        "mac": read("cat /sys/class/net/eth0/address").strip(),
        "mtu": int(read("cat /sys/class/net/eth0/mtu")),
        "address": address[address.index("inet") + 1],
        "gateway": route[route.index("via") + 1],
    }


def expected(row):
    return {key: row[key] for key in ("mac", "mtu", "address", "gateway")}


def test_docker(docker, plan):
    row = plan.containers["app"]["web"]
    create, run = lines(plan, "docker")
    before = docker.run("h1", "ip -o -4 addr show br-app").stdout
    docker.run("h1", create)
    docker.run("h1", run.replace("IMAGE", "busybox"))
    assert facts(lambda command: docker.run("h1", f"docker exec web {command}").stdout) == expected(row)
    assert docker.ping("h1", "10.10.0.11")
    docker.run("h1", "docker rm --force web && docker network rm br-app")
    # Docker did not make the bridge, and leaves it
    assert "10.10.0.1/24" in before
    assert docker.run("h1", "ip -o -4 addr show br-app").stdout == before
    assert docker.links("h1")["br-app"]["mtu"] == 1450


def test_lxc(lab, plan):
    row = plan.containers["app"]["web"]
    lab.lxc("h2", "web", lines(plan, "lxc"))
    assert facts(lambda command: lab.run("h2", f"lxc-attach --name web -- {command}").stdout) == expected(row)
    assert lab.ping("h2", "10.10.0.11")
    lab.run("h2", "lxc-stop --name web")


def test_lxd(lab, plan):
    row = plan.containers["app"]["web"]
    lab.start_lxd("h2")
    [add, *as_yaml] = lines(plan, "lxd")
    lab.run("h2", "lxc init busybox web && lxc init busybox edited")
    lab.run("h2", add)
    # the YAML goes into what `lxc config edit` shows, where `devices: {}` stands
    shown = lab.run("h2", "lxc config show edited").stdout
    edited = shown.replace("devices: {}", "\n".join(as_yaml)).replace(row["mac"], "02:00:00:00:00:99")
    lab.run("h2", "lxc config edit edited", input=edited)
    for name, number, mac in (("web", 11, row["mac"]), ("edited", 12, "02:00:00:00:00:99")):
        address = f"10.10.0.{number}/24"
        lab.run("h2", f"lxc start {name} && lxc exec {name} -- ip addr add {address} dev eth0")
        lab.run("h2", f"lxc exec {name} -- ip route add default via 10.10.0.1")
        assert facts(partial(lab.lxd_read, "h2", name)) == {**expected(row), "mac": mac, "address": address}
        assert lab.ping("h2", f"10.10.0.{number}")
