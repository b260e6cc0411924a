"""Bridges of others: what is suggested for a Docker network holds, and what was chosen stays clear of it.

The exact sentences are in tests/cases (attach-*, docker-*).
"""

from __future__ import annotations

import ipaddress
import itertools
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay_agent.document import Owner
from overlay_components import _explain, config, foreign_bridge, snippets
from overlay_components.config import load_config
from overlay_components.errors import ConfigErrors
from overlay_components.plan import make_lock, make_plan

OWNER = Owner("overlay", "test", "0")
STACKS = Path(__file__).parents[2] / "stacks"


def stack(bridge, hosts=2, containers=(), **more):
    members = {f"h{n}": {"address": f"192.0.2.{n}"} for n in range(1, hosts + 1)}
    segment = {"subnets": ["172.18.0.0/16"], "bridge": bridge, **more}
    segment["tunnels"] = {"mesh": {"kind": "vxlan", "vni": 100}}
    segment["containers"] = {name: {"host": "h1", **options} for name, options in dict(containers).items()}
    return {"hosts": members, "segments": {"app": segment}}


def planned(raw, lock=None):
    return make_plan(load_config(raw), OWNER, lock)


def errors(raw, lock=None):
    with pytest.raises(ConfigErrors) as caught:
        planned(raw, lock)
    return caught.value.errors


def copied(sentence, key):
    """What the sentence says to write."""
    return yaml.safe_load(sentence.partition(f"write {key}: ")[2])


# -- what is suggested -------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    prefix=st.integers(20, 27),
    hosts=st.integers(2, 5),
    taken=st.sets(st.integers(1, 30), max_size=8),
    gone=st.sets(st.integers(1, 30), max_size=3),
)
def test_what_is_suggested_can_be_copied_and_is_right(prefix, hosts, taken, gone):
    subnet = ipaddress.ip_network(f"172.18.0.0/{prefix}")
    containers = {f"c{n}": {"address": str(subnet[n])} for n in taken}
    raw = stack({"docker": {"create": True}}, hosts, containers, subnets=[str(subnet)])
    lock = {"app": {f"gone{n}": str(subnet[n]) for n in gone - taken}}
    addresses, ranges = errors(raw, lock)
    if "no room" in ranges or "is full" in addresses:
        assert prefix > 25, "only of small subnets"
        return
    segment = raw["segments"]["app"]
    segment["addresses"] = copied(addresses, "addresses")
    segment["bridge"]["docker"]["ranges"] = copied(ranges, "ranges")
    planned(raw, lock)
    found = [ipaddress.ip_network(text) for text in segment["bridge"]["docker"]["ranges"].values()]
    assert len({net.prefixlen for net in found}) == 1
    assert not any(one.overlaps(other) for one, other in itertools.combinations(found, 2))
    locked = [ipaddress.ip_address(text) for text in lock["app"].values()]
    assert not any(address in net for net in found for address in locked), "they may come back"


def test_a_host_that_comes_gets_its_own_and_the_others_keep_theirs():
    ranges = {"h1": "172.18.128.0/24", "h2": "172.18.129.0/24"}
    addresses = {"h1": "172.18.0.1", "h2": "172.18.0.2"}
    raw = stack({"docker": {"create": True, "ranges": ranges}}, 3, addresses=addresses)
    first, second = errors(raw)
    assert copied(first, "addresses") == {**addresses, "h3": "172.18.0.3"}
    assert copied(second, "ranges") == {**ranges, "h3": "172.18.130.0/24"}


def test_an_address_is_not_chosen_where_docker_gives_them_out():
    ranges = {"h1": "172.18.0.0/30", "h2": "172.18.0.4/30"}
    raw = stack(
        {"docker": {"create": True, "ranges": ranges}},
        containers={"web": {}, "db": {}},
        addresses={"h1": "172.18.0.8", "h2": "172.18.0.10"},
    )
    lock = make_lock(load_config(raw), OWNER, {})
    assert lock["app"] == {"web": "172.18.0.9", "db": "172.18.0.11"}
    planned(raw, lock)
    raw["segments"]["app"]["bridge"]["docker"]["ranges"]["h1"] = "172.18.0.8/31"
    assert any("172.18.0.9 (container web)" in sentence for sentence in errors(raw, lock))


def test_what_docker_gives_out_is_not_chosen_even_when_nothing_else_is_left():
    docker = {"create": True, "ranges": {"h1": "172.18.0.2/32"}}
    raw = stack({"docker": docker}, 1, {"web": {}}, subnets=["172.18.0.0/30"], addresses={"h1": "172.18.0.1"})
    with pytest.raises(ConfigErrors) as caught:
        make_lock(load_config(raw), OWNER, {})
    assert "none is free in 172.18.0.0/30 outside of what bridge.docker.ranges gives out" in caught.value.errors[0]


@pytest.mark.parametrize(
    ("bridge", "refused"),
    [
        ({"docker": {"create": True}}, True),
        ({"attach": {"docker": "net"}}, True),
        ({"attach": {"lxd": "lxdbr0"}}, False),
        ({"attach": {"bridge": "br0"}}, False),
        ({}, False),
        ("none", False),
    ],
)
def test_where_docker_gives_addresses_nobody_else_does(bridge, refused):
    options = load_config(stack(bridge)).segments["app"].bridge
    why = "Docker gives its containers their addresses; leave it out"
    assert foreign_bridge.no_dhcp(options) == (why if refused else None)


# -- what is pasted ----------------------------------------------------------------------------


def text(raw, name, form):
    made = planned(raw)
    return "\n".join(snippets.chosen(made.containers, made.segments, name, form))


def made_by_docker():
    ranges = {"h1": "172.18.128.0/24", "h2": "172.18.129.0/24"}
    return stack(
        {"docker": {"create": True, "network": "vxlan-net", "ranges": ranges}},
        containers={"web": {"address": "172.18.0.11", "mac": "02:00:00:00:00:11"}},
        addresses={"h1": "172.18.0.1", "h2": "172.18.0.2"},
    )


def attached(**bridge):
    containers = {"web": {"address": "172.18.0.11", "mac": "02:00:00:00:00:11"}}
    return stack({"attach": bridge}, containers=containers)


@pytest.mark.parametrize("raw", [made_by_docker(), attached(docker="vxlan-net")])
def test_docker_finds_its_network(raw):
    *comments, command = text(raw, "web", "docker").splitlines()
    assert all(line.startswith("# web on app: ") for line in comments), "the network is there: nothing makes it"
    assert command == (
        "docker run --detach --name web --network vxlan-net --ip 172.18.0.11 --mac-address 02:00:00:00:00:11 IMAGE"
    )
    read = yaml.safe_load(text(raw, "web", "compose"))
    assert read["networks"] == {"vxlan-net": {"external": True}}
    assert "overlay snippet" not in text(raw, "web", "compose")


def test_others_find_the_bridge():
    assert "parent=lxdbr0" in text(attached(lxd="lxdbr0"), "web", "lxd")
    assert "lxc.net.0.link = br-app\n" in text(made_by_docker(), "web", "lxc")
    assert "lxc.net.0.ipv4.gateway = 172.18.0.1" in text(made_by_docker(), "web", "lxc")


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("lxc", "lxc.net.0.link = BRIDGE"),
        ("lxc1", "lxc.network.link = BRIDGE"),
        ("lxd", "parent=BRIDGE"),
        ("incus", "parent=BRIDGE"),
        ("libvirt", "<source bridge='BRIDGE'/>"),
    ],
)
def test_a_bridge_that_docker_named_is_asked_for(form, line):
    found = text(attached(docker="vxlan-net"), "web", form)
    assert line in found.replace('"', "'")
    assert "For BRIDGE write what this prints on h1: docker network inspect" in found


@pytest.mark.parametrize("gateway", ["172.18.0.1", "172.18.0.9"])
def test_a_dhcp_server_on_lxds_bridge(gateway):
    """The gateway is that host, as LXD has it by default, or another machine."""
    raw = stack({"attach": {"lxd": "lxdbr0"}}, containers={"web": {}}, gateway=gateway, dhcp={"host": "h1"})
    found = planned(raw, {"app": {"web": "172.18.0.5"}}).documents["h1"]["services"]["dhcp-app"]
    assert (found["interface"], found["addresses"]) == ("lxdbr0", {"172.18.0.1": {}})
    assert found["router"] == gateway


# -- the stacks of the articles ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "network", "mtu", "gateways"),
    [
        ("doc-002-docker", "mynetwork", 1450, ["172.18.0.1", "172.18.0.1"]),
        ("doc-003", "vxlan-net", 1450, ["172.18.0.1", "172.18.0.2"]),
        ("doc-003-9001", "vxlan-net", 8951, ["172.18.0.1", "172.18.0.2"]),
        ("doc-003-attach", "vxlan-net", 8951, ["172.18.0.1", "172.18.0.1"]),
    ],
)
def test_articles(name, network, mtu, gateways):
    made = planned(config.read_stack_file(STACKS / f"Pulumi.{name}.yaml"))
    rows = made.containers[network].values()
    assert [row["gateway"] for row in rows] == gateways
    assert {(row["network"], row["mtu"]) for row in rows} == {(network, mtu)}
    for raw in made.documents.values():
        assert raw["services"][f"docker:{network}"]["mtu"] == mtu
        assert (f"guard-{network}" in raw["services"]) == (len(set(gateways)) == 1)
        [device] = raw["devices"].values()
        assert device["kind"] == "vxlan"
        assert device["mtu"] == mtu


@pytest.mark.parametrize("bridge", [made_by_docker()["segments"]["app"]["bridge"], {"attach": {"docker": "net"}}])
def test_a_peer_is_told_to_make_a_bridge_of_its_own(bridge):
    raw = made_by_docker()
    segment = raw["segments"]["app"]
    segment.update(bridge=bridge, hosts=["h1", "h2", "other"])
    if "attach" in bridge:
        del segment["addresses"]
    raw["peers"] = {"other": {"address": "192.0.2.99"}}
    lines = _explain.lines(raw, OWNER, "other", {})["other"]
    assert any(line.startswith("ip link add br-app ") for line in lines)
    assert not any("docker" in line for line in lines)
