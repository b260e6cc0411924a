"""What frames pass a device towards a hub: none, until spanning tree is heard there."""

from __future__ import annotations

import re
import time

import pytest
from agent_support import PYTHON, bridge, document, vxlan, wire

#: Says what spanning tree says, five times a second: a frame to where bridges listen.
HELLO = """
import socket, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("vx", 0))
while True:
    s.send(bytes.fromhex("0180c2000000" "020000000009" "0026424203") + bytes(35))
    time.sleep(0.2)
"""


def wanted(*ports, vni=42, services=True, stp=True):
    devices = {name: vxlan(bridge="br-app", vni=vni + n, mac=f"02:00:00:00:02:0{n}") for n, name in enumerate(ports)}
    return document(
        br_app=bridge(stp=stp, forwardDelay=2, helloTime=1, maxAge=6),
        services={"hubs": {"kind": "hub-guard", "ports": {name: {} for name in ports}}} if services else {},
        **devices,
    )


def table(host):
    return re.search(r"table netdev (\S+)", host.run("nft list tables").out)[1]


def test_its_life(host):
    host.apply(wanted("vx-a", services=False))
    rules = host.run("nft list ruleset").out
    assert host.apply(wanted("vx-a")).lines == ["hubs: created (hub-guard, vx-a)"]
    assert host.apply(wanted("vx-a")).lines == ["a: nothing to do, 3 objects as declared"]
    assert host.agent("show").report["p/s"]["hubs"] == {"kind": "hub-guard", "ports": {"vx-a": {}}}
    lines = host.apply(wanted("vx-a", "vx-b")).lines
    assert "hubs: + port vx-b" in lines
    # A device that is made anew has the guard again.
    lines = host.apply(wanted("vx-a", "vx-b", vni=50)).lines
    assert "vx-a: vni 42 -> 50 (recreated)" in lines
    assert {"hubs: + port vx-a", "hubs: + port vx-b"} < {*lines}
    assert host.agent("check").report == {"drift": []}
    host.apply(wanted("vx-a", services=False))
    assert host.run("nft list ruleset").out == rules


def test_what_explain_says_makes_the_same(host):
    host.run("sh", "-e", text=host.agent("explain", document=wanted("vx-a")).out)
    host.apply(wanted("vx-a"), code=None)
    assert "is not there" not in host.agent("check", code=None).err


DRIFT = {
    "delete table netdev {t}": ["is not there"],
    "delete chain netdev {t} egress-vx-a": ["lacks port vx-a"],
    "insert rule netdev {t} ingress-vx-a accept": ["has rule chain ingress-vx-a: accept that is not declared"],
}  # fmt: skip


@pytest.mark.parametrize("command", DRIFT)
def test_what_was_changed_by_hand_is_seen_and_mended(host, command):
    document_ = wanted("vx-a", stp=False)  # with it a port's state changes by itself
    host.apply(document_)
    before = host.state()
    host.run("nft", command.format(t=table(host)))
    found = host.agent("check", code=2).lines
    assert found[0] == f"hubs: {DRIFT[command][0]}"
    host.apply(document_)
    assert host.agent("check").report == {"drift": []}
    assert host.state() == before


def test_nothing_passes_until_spanning_tree_is_heard(host, new_host):
    other = new_host(machine="e" * 32)
    wire(host, other)
    raw = wanted("vx-a")
    raw["devices"]["vx-a"]["peers"] = {"b": "198.18.0.12"}
    raw["devices"]["br-app"].update(stp=False, addresses={"10.10.0.1/24": {}})
    host.apply(raw)
    other.run("ip link add vx type vxlan id 42 dstport 4789 local 198.18.0.12 remote 198.18.0.11")
    other.run("ip address add 10.10.0.2/24 dev vx")
    other.run("ip link set vx up")

    def answered():
        return other.run("ping -c 1 -W 0.2 10.10.0.1", check=False).code == 0

    def heard():
        return other.run("ip -j -s link show vx").out.split('"rx":{"bytes":')[1].split(",")[0] != "0"

    host.run("ping -c 1 -W 0.2 10.10.0.2", check=False)
    assert not answered()
    assert not heard(), "nor does anything get out"
    hello = other.popen(PYTHON, "-c", HELLO)
    try:
        begun = time.monotonic()
        time.sleep(1)
        passes = answered()
        # Where this machine was so busy that its time is over, nothing can be said.
        assert not passes or time.monotonic() > begun + 2.5, "the other hub may still pass frames on"
        end = time.monotonic() + 30
        while not answered():
            assert time.monotonic() < end
            time.sleep(0.1)
        assert host.agent("check").report == {"drift": []}, "what the sets hold is no drift"
    finally:
        hello.kill()
        hello.wait()


def test_a_host_without_nft(host, tmp_path):
    (tmp_path / "bin").mkdir()
    assert host.apply(wanted("vx-a"), code=1, PATH=str(tmp_path / "bin")).lines == [
        "a hubs: nft is not on this host; install the package nftables (installPackages: true does it)",
        "nothing was changed",
    ]  # fmt: skip
