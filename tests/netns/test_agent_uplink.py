"""A NIC as a port of a bridge: what moves, what is refused, and the host back as it was when nobody answers any more."""

from __future__ import annotations

import difflib
import json
import time

import pytest
from agent_support import MAC_BR, Node, bridge, document

GATEWAY, GATEWAY6 = "198.18.0.1", "2001:db8::1"


def host_bridge(nic="u0", mode="host", **more):
    """A document in which the NIC's addresses move to br-app, or in which it is a mere port."""
    mac = f"of {nic}" if mode == "host" else MAC_BR
    uplink = {"kind": "uplink", "bridge": "br-app", "mode": mode}
    return document(services={f"uplink-{nic}": uplink}, br_app=bridge(mac=mac, mtu=1500), **more)


@pytest.fixture
def new_wired(new_host):
    """Makes hosts whose u0 leads to a network of its own, with a gateway."""

    def make():
        host = new_host()
        wire(host)
        return host

    return make


def wire(host):
    host.run("ip netns add lan")
    host.run("ip link set u1 netns lan")
    lan = Node(host, "lan", "lan")
    host.run("ip link set u0 down")
    host.run("ip link set u0 up")
    host.run("ip address replace 2001:db8::11/64 dev u0 nodad")
    lan.run("ip link set u1 addrgenmode none up")
    lan.run(f"ip address add {GATEWAY}/24 dev u1")
    lan.run(f"ip address add {GATEWAY6}/64 dev u1 nodad")
    host.run("sh", "-c", "while ip link show u0 | grep -q NO-CARRIER; do sleep 0.02; done")
    host.run("ip address add 198.18.0.20/24 dev u0")
    host.run("ip address add 203.0.113.9/32 dev u0 label u0:x noprefixroute")
    host.run(f"ip route add default via {GATEWAY} metric 100 proto static")
    host.run(f"ip route add 192.0.2.0/24 via {GATEWAY} src 198.18.0.20 mtu 1400")
    host.run(f"ip route add 192.0.2.0/24 via {GATEWAY} table 77")
    host.run(f"ip -6 route add default via {GATEWAY6} metric 50")
    assert lan.pings("198.18.0.11")
    return lan


@pytest.fixture
def wired(new_wired):
    """Such a host."""
    return new_wired()


def lan_of(host):
    return Node(host, "lan", "lan")


def everything(host):
    """What the kernel has of the host, to be compared line by line."""
    found = {**host.state(), "rule": host.json("ip -j rule")}
    # What a bridge learns from traffic has no state.
    rows = [(what, row) for what, rows in found.items() for row in rows if '"state": ""' not in json.dumps(row)]
    return [f"{what}: {json.dumps(row, sort_keys=True)}" for what, row in rows]


def difference(before, now):
    return "\n".join(difflib.unified_diff(before, now, n=0, lineterm=""))


def test_addresses_and_routes_move_and_come_back(wired):
    before, mac = everything(wired), wired.link("u0")["address"]
    routes = {r for t in ("main", "77") for r in wired.run(f"ip route show table {t}").out.splitlines() if "via" in r}
    done = wired.apply(host_bridge())
    assert "uplink-u0: created (uplink, bridge br-app, mode host" in done.err
    assert "a: gateway 198.18.0.1 and gateway 2001:db8::1 answered after the change" in done.err

    assert wired.link("br-app")["address"] == mac
    assert wired.link("u0")["master"] == "br-app"
    texts = [
        {(row["local"], row["prefixlen"]) for row in wired.json(f"ip -j address show {device}")[0]["addr_info"]
         if row["scope"] == "global"}
        for device in ("u0", "br-app")
    ]  # fmt: skip
    wanted = {("198.18.0.11", 24), ("198.18.0.20", 24), ("203.0.113.9", 32), ("2001:db8::11", 64)}
    assert texts == [set(), wanted]
    now = {r for t in ("main", "77") for r in wired.run(f"ip route show table {t}").out.splitlines() if "via" in r}
    assert {r.strip() for r in now} == {r.replace("dev u0", "dev br-app").strip() for r in routes}
    assert not wired.run("ip route show dev u0").out
    for address in ("198.18.0.11", "198.18.0.20", "2001:db8::11"):
        assert lan_of(wired).pings(address)

    state = everything(wired)
    assert "a: nothing to do, 2 objects as declared" in wired.apply(host_bridge()).err
    assert wired.agent("check").report == {"drift": []}
    assert difference(state, everything(wired)) == ""
    assert wired.agent("remove", "p/s").code == 0
    assert difference(before, everything(wired)) == ""
    assert wired.files() == {}


# -- armed ---------------------------------------------------------------------------------------

#: What breaks the network only once the NIC is a port.
TRAP = "add table bridge trap; add chain bridge trap in { type filter hook prerouting priority 0; policy drop; }"


def wait_for(what, seconds=15.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_host_that_is_cut_off_is_as_it_was(wired):
    wired.run("nft", TRAP)
    before = everything(wired)
    done = wired.apply(host_bridge(), code=1)
    said = "a: the new configuration cut the host off: gateway 198.18.0.1 and gateway 2001:db8::1 got no answer for 5 s"
    assert f"{said}; undone, the host is as it was" in done.lines
    assert difference(before, everything(wired)) == ""
    assert wired.files() == {}
    wired.run("nft delete table bridge trap")
    wired.apply(host_bridge())


def test_both_processes_killed_while_armed(wired):
    """The one that waits apart from them undoes it, and nobody has to call anything."""
    before = everything(wired)
    wired.apply(host_bridge(), code=None, OVERLAY_FAULT="9:all")
    wait_for(lambda: wired.files() == {})
    assert difference(before, everything(wired)) == ""
    wired.apply(host_bridge())
    assert wired.agent("check").report == {"drift": []}
    wait_for(lambda: wired.processes() == [])


def test_what_nobody_can_prove_is_not_armed(wired):
    """A host without a gateway, at its console."""
    for family in ("-4", "-6"):
        wired.run(f"ip {family} route del default")
    done = wired.apply(host_bridge())
    assert "answered" not in done.err


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["", ":all"])
@pytest.mark.parametrize("way", ["there", "back"])
def test_killed_at_each_point(new_wired, scope, way):
    def prepare(host):
        wire(host)
        if way == "back":
            host.apply(host_bridge())

    for point in range(2 if scope else 1, 200, 4):
        host = new_wired()
        if way == "back":
            host.apply(host_bridge())
        before, files = everything(host), host.files()
        words = ["apply"] if way == "there" else ["remove", "p/s"]
        more = {"document": host_bridge()} if way == "there" else {}
        done = host.agent(*words, **more, code=None, OVERLAY_FAULT=f"{point}{scope}")
        if done.code == 0:
            break
        wait_for(lambda host=host, files=files: host.files() == files and host.processes() == [])
        assert difference(before, everything(host)) == "", point
        host.agent(*words, **more)
        host.close()
    assert point > 10
