"""Devices made by hand become a stack's: as they are, with nothing made anew and no packet lost, or not at all."""

from __future__ import annotations

import pytest
from agent_support import bridge, document, vxlan

MAC = "02:00:00:00:00:99"
WAY = "write what it has, or change that on the host first"
#: As in the source documents: defaults are the kernel's, not ours.
BY_HAND = """
ip link add vxlan0 type vxlan id 42 remote 198.18.0.12 local 198.18.0.11 dev u0
ip link set up dev vxlan0
ip link add superbr0 type bridge
ip link set up superbr0
ip link set vxlan0 master superbr0
ip address add 10.0.4.1/24 dev superbr0
ip link add c0 type veth peer name c1
ip link set c0 master superbr0 up
"""


def by_hand(host, commands=BY_HAND):
    for command in filter(None, commands.splitlines()):
        host.run(command)


def wanted(host, adopt=("superbr0", "vxlan0"), *, of_bridge=(), of_vxlan=()):
    """What reproduces BY_HAND on that host."""
    out = document(
        superbr0=bridge(mac=host.link("superbr0")["address"], addresses={"10.0.4.1/24": {}}, **dict(of_bridge)),
        vxlan0=vxlan(
            **{"mac": host.link("vxlan0")["address"], "port": 8472, "device": "u0", "bridge": "superbr0",
               "peers": {"b": "198.18.0.12"}, **dict(of_vxlan)}
        ),
    )  # fmt: skip
    return {**out, "adopt": {name: {} for name in adopt}} if adopt else out


def identity(host):
    return {name: (host.link(name)["ifindex"], host.link(name)["address"]) for name in ("superbr0", "vxlan0")}


def test_taken_over_as_it_is(host):
    by_hand(host)
    before = identity(host)
    monitor = host.popen("ip", "monitor", "link", "address", stdout=-1, text=True)
    document_ = wanted(host)
    done = host.apply(document_)
    monitor.kill()
    seen = monitor.communicate()[0]
    # Where there is Docker, its chain gets a rule, too.
    assert [line for line in done.lines if "DOCKER" not in line] == [
        "superbr0: taken over", "superbr0: linkLocal on -> off", "vxlan0: taken over", "vxlan0: linkLocal on -> off",
    ]  # fmt: skip
    assert "Deleted" not in seen
    assert "state DOWN" not in "".join(line for line in seen.splitlines() if "superbr0:" in line)
    assert identity(host) == before
    assert host.link("superbr0")["ifalias"] == "overlay:p/s/superbr0"
    assert host.agent("check").report == {"drift": []}
    assert "nothing to do" in host.apply(document_).err
    # It may go again.
    done = host.apply({key: value for key, value in document_.items() if key != "adopt"})
    assert done.lines == ["a: nothing to do, 2 devices as declared"]
    assert identity(host) == before


def test_the_bridge_is_its_own_from_then_on(host):
    """One made by hand takes the smallest MTU and MAC address of its ports."""
    by_hand(host)
    host.apply(wanted(host))
    before = identity(host)
    for command in (
        "ip link add d0 type veth peer name d1", "ip link set d0 address 02:00:00:00:00:01 mtu 1400",
        "ip link set d0 master superbr0 up",
    ):  # fmt: skip
        host.run(command)
    assert identity(host) == before
    assert host.agent("check").report == {"drift": []}


def test_what_can_be_set_is_set(host):
    by_hand(host)
    before = identity(host)
    peers = {"b": "198.18.0.12", "c": "198.18.0.13"}
    done = host.apply(wanted(host, of_bridge={"stp": True}, of_vxlan={"peers": peers}))
    assert "superbr0: stp off -> on" in done.lines
    assert "vxlan0: + peer c 198.18.0.13" in done.lines
    assert identity(host) == before
    assert host.peers("vxlan0") == {"198.18.0.12", "198.18.0.13"}


@pytest.mark.parametrize(
    ("of_vxlan", "error"),
    [
        ({"vni": 43}, f"vni 42 -> 43 would make it anew; {WAY} (vni is 42)"),
        ({"port": 4789}, f"port 8472 -> 4789 would make it anew; {WAY} (port is 8472)"),
        ({"bridge": None}, f"- bridge superbr0 would disturb what uses it; {WAY} (bridge is superbr0)"),
        ({"mac": MAC}, " would disturb what uses it; write overlay:hosts.a.macs: {vxlan0: "),
    ],
)
def test_what_cannot_be_set_is_named(host, of_vxlan, error):
    by_hand(host)
    before = host.state()
    done = host.apply(wanted(host, of_vxlan=of_vxlan), code=1)
    assert "a vxlan0: cannot be taken over as it is: " in done.err
    assert error in done.err
    assert host.state() == before
    assert host.files() == {}


def test_others_are_not_taken_over(host):
    """Without `adopt`, of another kind, or another stack's."""
    by_hand(host)
    there = "a device of that name (vxlan) is there and"
    way = "give ours another name (ifname, or bridge.name), or remove that one: ip link delete vxlan0"
    document_ = wanted(host, adopt=["superbr0"])
    assert f"a vxlan0: {there} is not ours; {way}; adopt: true takes it over\n" in host.apply(document_, code=1).err
    host.run("ip link set vxlan0 alias overlay:p/other/vxlan0")
    document_ = wanted(host)
    assert f"a vxlan0: {there} belongs to overlay:p/other/vxlan0; {way}\n" in host.apply(document_, code=1).err
    host.run("ip link delete vxlan0")
    host.run("ip link add vxlan0 type bridge")
    assert "a device of that name (bridge) is there and is not ours" in host.apply(document_, code=1).err


def test_a_failed_apply_gives_them_back(host):
    """Also at its last moment."""
    by_hand(host, BY_HAND.replace("local 198.18.0.11 ", ""))
    host.run("ip link set vxlan0 alias my-own-words")
    before = host.state()
    document_ = wanted(host)
    for fault in range(1, 30):
        done = host.apply(document_, code=None, OVERLAY_FAULT=str(fault))
        if done.code == 0:
            break
        assert "undone, the host is as it was" in done.err
        assert host.state() == before, fault
        assert host.files() == {}
    assert fault > 4
    host.run("ip link delete c0")
    host.agent("remove", "p/s")
    assert not any(name in host.run("ip link").out for name in ("superbr0", "vxlan0")), "they are the stack's"
