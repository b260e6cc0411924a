"""Docker networks of several hosts as one, as in the articles 002 and 003, with a real dockerd on each; and LXD's."""

from __future__ import annotations

import json
import re

import pytest

from lab import web_server
from tests.e2e.support import AGENT, steady_ping
from tests.e2e.test_containers import commands

pytestmark = pytest.mark.root

NET = "vxlan-net"


def with_docker(stack):
    """Starts a dockerd on each host; the host with it is how the stack has to leave it."""
    for host in stack.lab.hosts:
        stack.lab.start_docker(host)
    stack.remember()


def docker(stack, host, words):
    return stack.lab.run(host, f"docker {words}").stdout.strip()


def network(stack, host, name=NET):
    """What Docker has of the network, without what changes as containers come and go; None where there is none."""
    found = stack.lab.run(host, f"docker network inspect {name}", check=False)
    return None if found.returncode else {**json.loads(found.stdout)[0], "Containers": None}


def run(stack, *names, segment=NET):
    """Starts the containers as the outputs have them to paste, and gives their rows of the IP plan."""
    rows = stack.outputs()["containers"][segment]
    for name in names:
        for line in commands(rows[name]["paste"]):
            stack.lab.run(rows[name]["host"], re.sub(r"\bIMAGE$", "busybox", line))
        enter(stack, rows[name]["host"], name)
    return rows


def enter(stack, host, name):
    """Makes the running container's network reachable to `ip netns exec`, and so to Lab.ping and steady_ping."""
    stack.lab.run(host, f"ip netns delete {name} 2>/dev/null; "
                        f"ip netns attach {name} $(docker inspect --format '{{{{.State.Pid}}}}' {name})")  # fmt: skip


def remove(stack, host, *names):
    for name in names:
        stack.lab.run(host, f"ip netns delete {name} 2>/dev/null; docker rm --force {name}")


def inside(stack, host, name, command):
    return stack.lab.run(host, ["docker", "exec", name, "sh", "-c", command]).stdout


def reaches(stack, host, name, address, mtu=None):
    """Whether the container gets an answer; with `mtu`, to a packet of that size which may not be cut."""
    return stack.lab.ping(host, address, container=name, wait=3, size=mtu and mtu - 28, df=mtu is not None)


def page(stack, host, name, address):
    return inside(stack, host, name, f"timeout 5 wget -q -O - http://{address}/")


def serve(stack, host, name):
    inside(stack, host, name, web_server(f"page of {name}"))


def gateway_mac(stack, host, name, address):
    """The MAC address that the container has for its gateway, asked anew."""
    stack.lab.run(host, f"ip -n {name} neigh flush all")
    assert reaches(stack, host, name, address)
    return re.search(r"lladdr (\S+)", stack.lab.run(host, f"ip -n {name} neigh show {address}").stdout)[1]


def mac_of(stack, host, device):
    return stack.lab.links(host)[device]["address"]


def own_address(stack, host, name):
    return re.search(r" inet ([\d.]+)/", inside(stack, host, name, "ip -o -4 addr show eth0"))[1]


def restart_docker(stack, host):
    stack.lab.run(host, "pid=$(cat /run/docker.pid); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.02; done")
    stack.lab.start_docker(host)


# -- document 003: networks that the stack makes -------------------------------------------------


@pytest.mark.stack("doc-003")
def test_networks_that_the_stack_makes(stack):
    lab = stack.lab
    with_docker(stack)
    stack.up().ok()
    for host, gateway, range_, others in (
        ("h1", "172.18.0.1", "172.18.128.0/24", {"h2": "172.18.0.2"}),
        ("h2", "172.18.0.2", "172.18.129.0/24", {"h1": "172.18.0.1"}),
    ):
        made = network(stack, host)
        wanted = {"Subnet": "172.18.0.0/16", "Gateway": gateway, "IPRange": range_, "AuxiliaryAddresses": others}
        assert made["IPAM"]["Config"] == [wanted]
        assert made["Options"]["com.docker.network.driver.mtu"] == "1450"
        assert lab.links(host)["br-vxlan-net"]["linkinfo"]["info_kind"] == "bridge"
        assert lab.links(host)["vxlan-demo"]["master"] == "br-vxlan-net"

    taken = f"docker run --rm --network {NET} --ip 172.18.0.2 busybox true"
    assert "Address already in use" in lab.run("h1", taken, check=False).stderr, "it is the other host's"

    # The article's containers, as the outputs have them to paste; and one a host that asks for no address.
    rows = run(stack, "c1", "c2")
    for host in ("h1", "h2"):
        docker(stack, host, f"run --detach --name any --network {NET} busybox")
        enter(stack, host, "any")
    assert own_address(stack, "h1", "any").startswith("172.18.128.")
    assert own_address(stack, "h2", "any").startswith("172.18.129.")
    for host, name, address, gateway in (
        ("h1", "c1", "172.18.0.11/16", "172.18.0.1"), ("h2", "c2", "172.18.0.12/16", "172.18.0.2"),
    ):  # fmt: skip
        serve(stack, host, name)
        assert address in inside(stack, host, name, "ip -o -4 addr show eth0")
        link = inside(stack, host, name, "cat /sys/class/net/eth0/mtu /sys/class/net/eth0/address").split()
        assert link == ["1450", rows[name]["mac"]]
        for container in (name, "any"):
            assert f"default via {gateway} " in inside(stack, host, container, "ip route")
            assert gateway_mac(stack, host, container, gateway) == mac_of(stack, host, "br-vxlan-net")
    for host, name, other in (("h1", "c1", "172.18.0.12"), ("h1", "any", "172.18.0.12"), ("h2", "any", "172.18.0.11")):
        assert reaches(stack, host, name, other, mtu=1450)
        assert lab.run(host, "iptables -S FORWARD").stdout.startswith("-P FORWARD DROP"), "Docker's rules are on"
    assert page(stack, "h1", "c1", "172.18.0.12") == "page of c2"
    assert page(stack, "h2", "any", "172.18.0.11") == "page of c1"
    stack.noop()
    stack.healthy("h1", "h2")

    networks = {host: network(stack, host) for host in ("h1", "h2")}
    a_host_comes_and_goes(stack)
    assert {host: network(stack, host) for host in ("h1", "h2")} == networks, "neither is made anew"
    docker_is_restarted(stack)

    # The stack goes; the network that a container is on stays, until it is wanted again.
    remove(stack, "h1", "any")
    remove(stack, "h2", "any", "c2")
    said = stack.destroy().ok()
    assert f"network {NET} stays: container c1 is on it; docker network rm {NET} when they are gone" in said
    assert (network(stack, "h1"), network(stack, "h2")) == (networks["h1"], None)
    assert "vxlan-demo" not in lab.links("h1")
    stack.clean("h2")
    assert reaches(stack, "h1", "c1", "172.18.0.1")
    stack.up().ok()
    assert network(stack, "h1") == networks["h1"]
    run(stack, "c2")
    assert reaches(stack, "h1", "c1", "172.18.0.12", mtu=1450)
    stack.healthy("h1", "h2")
    remove(stack, "h1", "c1")
    remove(stack, "h2", "c2")
    stack.destroy().ok()
    stack.clean()


def a_host_comes_and_goes(stack):
    """While containers run on the others: no ping is lost."""
    lab, segment = stack.lab, stack.segments[NET]
    stack.hosts["h3"] = {"address": "198.18.0.13"}
    refused = stack.up().failed()
    assert "addresses: {h1: 172.18.0.1, h2: 172.18.0.2, h3: 172.18.0.3}" in refused, "what to write"
    segment["addresses"]["h3"] = "172.18.0.3"
    segment["bridge"]["docker"]["ranges"]["h3"] = "172.18.130.0/24"
    segment["containers"]["c3"] = {"host": "h3", "address": "172.18.0.13", "runtime": "docker"}
    with steady_ping(lab, "h1", "172.18.0.12", "c1"):
        stack.up().ok()
    run(stack, "c3")
    for host, name in (("h1", "c1"), ("h2", "any")):
        assert reaches(stack, host, name, "172.18.0.13", mtu=1450)
    assert page(stack, "h3", "c3", "172.18.0.11") == "page of c1"
    stack.healthy()
    remove(stack, "h3", "c3")
    del stack.hosts["h3"], segment["addresses"]["h3"], segment["containers"]["c3"]
    del segment["bridge"]["docker"]["ranges"]["h3"]
    with steady_ping(lab, "h2", "172.18.0.11", "c2"):
        stack.up().ok()
    stack.clean("h3")


def docker_is_restarted(stack):
    """Which ends its containers; started again, they are where they were."""
    lab = stack.lab
    restart_docker(stack, "h1")
    stack.healthy("h1", "h2")
    assert "nothing to do" in lab.run("h1", [AGENT, "restore"]).stderr
    docker(stack, "h1", "start c1")
    enter(stack, "h1", "c1")
    assert reaches(stack, "h1", "c1", "172.18.0.12", mtu=1450)


@pytest.mark.lab(hosts=2, mtu=9001)
@pytest.mark.stack("doc-003-9001")
def test_large_frames(stack):
    with_docker(stack)
    stack.up().ok()
    run(stack, "c1", "c2")
    for host, name in (("h1", "c1"), ("h2", "c2")):
        assert network(stack, host)["Options"]["com.docker.network.driver.mtu"] == "8951"
        assert inside(stack, host, name, "cat /sys/class/net/eth0/mtu") == "8951\n"
    assert reaches(stack, "h1", "c1", "172.18.0.12", mtu=8951)
    stack.healthy()
    remove(stack, "h1", "c1")
    remove(stack, "h2", "c2")
    stack.destroy().ok()
    stack.clean()


# -- document 003: networks that are there already -----------------------------------------------


@pytest.mark.lab(hosts=2, mtu=9001)
@pytest.mark.stack("doc-003-attach")
def test_networks_that_are_there_already(stack):
    lab = stack.lab
    for host in lab.hosts:
        lab.start_docker(host)
        docker(stack, host, f"network create --subnet 172.18.0.0/16 {NET}")
    stack.remember()
    networks = {host: network(stack, host) for host in lab.hosts}
    bridges = {host: f"br-{networks[host]['Id'][:12]}" for host in lab.hosts}
    stack.up().ok()
    run(stack, "c1", "c2")
    one, two = ("h1", "c1", "172.18.0.11"), ("h2", "c2", "172.18.0.12")
    for host, name, _ in (one, two):
        assert lab.links(host)["vxlan-demo"]["master"] == bridges[host]
        serve(stack, host, name)
    for (host, name, own), (other_host, other, address) in ((one, two), (two, one)):
        assert reaches(stack, host, name, address, mtu=1500), "Docker's own MTU"
        assert page(stack, host, name, address) == f"page of {other}"
        # Both hosts have this address. The other one claims it before the container, and asks it something.
        mine = mac_of(stack, host, bridges[host])
        for _ in range(3):
            assert gateway_mac(stack, host, name, "172.18.0.1") == mine
            lab.run(other_host, f"busybox arping -U -c 1 -I {bridges[other_host]} 172.18.0.1", check=False)
            assert not lab.ping(other_host, own, wait=0.3), "a host is not on the others' part"
            assert mine in lab.run(host, f"ip -n {name} neigh show 172.18.0.1").stdout
    stack.noop()
    stack.healthy()
    stack.destroy().ok()
    assert {host: network(stack, host) for host in lab.hosts} == networks
    for (host, name, _), (_, _, address) in ((one, two), (two, one)):
        assert lab.links(host)[bridges[host]]["mtu"] == 1500
        assert reaches(stack, host, name, "172.18.0.1")
        assert not lab.ping(host, address, container=name)
    for host, name, _ in (one, two):
        remove(stack, host, name)
    stack.clean()


# -- document 002, part 2 ------------------------------------------------------------------------


@pytest.mark.lab(hosts=2)
@pytest.mark.stack("doc-002-docker")
def test_an_mtu_that_does_not_fit_is_refused_with_what_to_type(stack):
    lab = stack.lab
    for host in lab.hosts:
        lab.start_docker(host)
        docker(stack, host, "network create --subnet 172.18.0.0/16 mynetwork")
    stack.remember()
    networks = {host: network(stack, host, "mynetwork") for host in lab.hosts}
    refused = stack.up().failed()
    for host in lab.hosts:
        where = f"{host} docker:mynetwork: docker network 'mynetwork'"
        assert f"{where} has an MTU of 1500, but the tunnels carry 1450" in refused
        assert network(stack, host, "mynetwork") == networks[host]
        assert lab.links(host).keys() == {"lo", "eth0", "docker0", f"br-{networks[host]['Id'][:12]}"}
    command = re.search(r"make it anew: (docker network create [^,]*),", refused)[1]
    for host in lab.hosts:
        docker(stack, host, "network rm mynetwork")
        lab.run(host, command)
    stack.remember()
    stack.up().ok()
    run(stack, "c1", "c2", segment="mynetwork")
    assert reaches(stack, "h1", "c1", "172.18.0.3", mtu=1450)
    assert reaches(stack, "h2", "c2", "172.18.0.2", mtu=1450)
    stack.healthy()
    remove(stack, "h1", "c1")
    remove(stack, "h2", "c2")
    stack.destroy().ok()
    stack.clean()


# -- LXD's bridge --------------------------------------------------------------------------------


def launch(stack, row):
    """An LXD container with the network device that the outputs have to paste."""
    [line] = [line for line in row["paste"].splitlines() if line.startswith("lxc config device add ")]
    stack.lab.run(row["host"], f"lxc init busybox {row['name']} && {line} && lxc start {row['name']}")


@pytest.mark.lab(hosts=2)
@pytest.mark.stack("doc-003")
def test_the_bridges_of_lxd(stack):
    """Each with its LXD's own addresses at first; then with one DHCP server for both, which is ours."""
    lab = stack.lab
    for host, more in (("h1", ""), ("h2", "ipv4.dhcp=false dns.mode=none")):
        lab.start_lxd(host)
        lab.run(host, f"lxc network create lxdbr0 ipv4.address=10.40.0.{host[1]}/24 ipv6.address=none {more}")
    stack.remember()
    stack.segments.clear()
    stack.segments["office"] = {
        "subnets": ["10.40.0.0/24"],
        "bridge": {"attach": {"lxd": "lxdbr0"}},
        "gateway": "10.40.0.1",
        "tunnels": {"mesh": {"kind": "vxlan", "vni": 300}},
        "containers": {
            "a": {"host": "h1", "address": "10.40.0.11", "runtime": "lxd"},
            "b": {"host": "h2", "address": "10.40.0.12", "runtime": "lxd"},
        },
    }
    stack.up().ok()
    for name, row in stack.outputs()["containers"]["office"].items():
        launch(stack, row)
        assert lab.links(row["host"])["vx-office"]["master"] == "lxdbr0"
        lab.run(row["host"], f"lxc exec {name} -- ip addr add {row['address']} dev eth0")
    assert " 0% packet loss" in lab.lxd_read("h1", "a", "ping -c 1 -W 3 -s 1422 10.40.0.12")
    # h1's LXD gives addresses to both.
    lab.run("h2", "lxc exec b -- ip addr flush dev eth0 && lxc exec b -- udhcpc -n -i eth0")
    stack.healthy()
    stack.noop()

    # Ours beside LXD's is refused, with what to type.
    stack.segments["office"]["dhcp"] = {"host": "h1"}
    refused = stack.up().failed()
    taken = r"h1 dhcp-office: dnsmasq \(pid \d+\) of lxd serves lxdbr0; one of the two has to go: (.*)"
    lab.run("h1", re.search(taken, refused)[1].strip())
    stack.up().ok()
    for host, name, address in (("h1", "a", "10.40.0.11/24"), ("h2", "b", "10.40.0.12/24")):
        lab.run(host, f"lxc exec {name} -- ip addr flush dev eth0 && lxc exec {name} -- udhcpc -n -i eth0 -O mtu")
        said = lab.lxd_read(host, name, "ip -o -4 addr show eth0; ip route")
        assert address in said
        assert "default via 10.40.0.1 " in said
    stack.healthy()
    lab.run("h1", "lxc delete --force a")
    lab.run("h2", "lxc delete --force b")
    stack.destroy().ok()
    lab.run("h1", "for key in ipv4.dhcp dns.mode raw.dnsmasq; do lxc network unset lxdbr0 $key; done")
    stack.clean()
