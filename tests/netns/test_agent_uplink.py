"""A NIC as a port of a bridge: what moves, what is refused, and the host as it was when nobody answers any more."""

from __future__ import annotations

import difflib
import json
import re
import time

import pytest
from agent_support import MAC_BR, PYTHON, Node, bridge, document, usual, vxlan

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
    texts = (f"{what}: {json.dumps(row, sort_keys=True)}" for what, row in rows)
    return [re.sub(r'"qdisc": "\w+", |"linkdown"', "", text) for text in texts]


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
    wired.agent("remove", "p/s")
    assert difference(before, everything(wired)) == ""
    assert wired.files() == {}


def test_stop_gives_the_nic_back_and_start_takes_it(wired):
    before = everything(wired)
    wired.apply(host_bridge())
    applied = wired.agent("show").report
    done = wired.agent("stop", "p/s")
    assert "answered after the change" in done.err
    assert difference(before, everything(wired)) == ""
    assert wired.agent("check").report["drift"] == []
    wired.agent("start", "p/s")
    assert wired.agent("show").report == applied
    assert lan_of(wired).pings("198.18.0.11")


def test_a_port_has_no_address_and_comes_back_down(wired):
    """A second NIC, which was down."""
    wired.run("ip link add eth1 type veth peer name eth1p")
    wired.run("ip link set eth1p addrgenmode none up")
    wired.run("ip link set eth1 addrgenmode none")
    before = everything(wired)
    wanted = host_bridge("eth1", "port")
    wired.apply(wanted)
    link = wired.link("eth1")
    assert (link["master"], "UP" in link["flags"]) == ("br-app", True)
    assert wired.link("br-app")["address"] == MAC_BR
    wired.run("ip link set eth1 down")
    assert wired.agent("check", code=2).report == {"drift": ["uplink-eth1: up want on, is off"]}
    wired.run("ip link set eth1 nomaster")
    wired.run("ip address add 192.0.2.1/24 dev eth1")
    done = wired.apply(wanted, code=1)
    assert ("a uplink-eth1: eth1 has 192.0.2.1/24, and a NIC that is only a port has no address; remove it from the "
            "host's network configuration, or let it move to the bridge (bridge.mode: host)") in done.lines  # fmt: skip
    wired.run("ip address flush dev eth1")
    pulled = everything(wired), wired.files()
    for fault in ("4", "4:all"):
        wired.apply(wanted, code=None, OVERLAY_FAULT=fault)
        wait_for(lambda: wired.processes() == [])
        assert difference(pulled[0], everything(wired)) == "", fault
        assert wired.files() == pulled[1]
    assert "uplink-eth1: bridge (none) -> br-app (recreated)" in wired.apply(wanted).err
    assert wired.agent("check").report == {"drift": []}
    wired.agent("remove", "p/s")
    assert difference(before, everything(wired)) == ""


def test_what_is_on_the_nic_again_moves_again(wired):
    """As after `ifup`; and what was taken from the bridge comes back."""
    before = everything(wired)
    wired.apply(host_bridge())
    wired.run("ip address add 198.18.0.30/24 dev u0")
    wired.run("ip address del 2001:db8::11/64 dev br-app")
    drift = wired.agent("check", code=2).report["drift"]
    assert drift == [
        "uplink-u0: lacks address 198.18.0.30/24",
        "uplink-u0: lacks address 2001:db8::11/64",
        "uplink-u0: has address on the NIC itself 198.18.0.30/24 that is not declared",
    ]
    done = wired.apply(host_bridge())
    assert "uplink-u0: + address 2001:db8::11/64" in done.lines
    assert "uplink-u0: - address on the NIC itself 198.18.0.30/24" in done.lines
    assert wired.agent("check").report == {"drift": []}
    assert lan_of(wired).pings("198.18.0.30")
    # What the host's owner does with the bridge is left alone, and comes along in the end.
    wired.run("ip address add 198.18.0.40/24 dev br-app")
    wired.run(f"ip route replace 192.0.2.0/24 via {GATEWAY} dev br-app")
    wired.run(f"ip route add 203.0.113.128/25 via {GATEWAY}")
    assert wired.agent("check").report == {"drift": []}
    wired.agent("remove", "p/s")
    assert "203.0.113.128/25 via 198.18.0.1 dev u0" in wired.run("ip route").out
    wired.run("ip route del 203.0.113.128/25")
    for address in ("198.18.0.30", "198.18.0.40"):
        wired.run(f"ip address del {address}/24 dev u0")
    wired.run(f"ip route replace 192.0.2.0/24 via {GATEWAY} src 198.18.0.20 mtu 1400")
    assert difference(before, everything(wired)) == ""


@pytest.mark.parametrize("configured", [True, False], ids=["configured", "bare"])
def test_restored_after_a_boot(wired, configured):
    """With what the host's own configuration put on the NIC, or, where there is none, with what was there."""
    wired.apply(host_bridge())
    state = everything(wired)
    routes = wired.run("ip route").out
    record = json.loads(wired.run("cat /var/lib/overlay/shared.json").out)
    record["uplinks"]["u0"]["boot"] = "another"
    wired.run("tee /var/lib/overlay/shared.json", text=json.dumps(record))
    # As the kernel has it after a boot, with another interface index for the NIC.
    wired.run("ip link del br-app")
    mac = wired.link("u0")["address"]
    wired.run("ip link del u0")
    wired.run(f"ip link add u0 address {mac} type veth peer name u1 netns lan")
    wired.run("ip link set u0 addrgenmode none up")
    lan = lan_of(wired)
    lan.run("ip link set u1 addrgenmode none up")
    lan.run(f"ip address add {GATEWAY}/24 dev u1")
    lan.run(f"ip address add {GATEWAY6}/64 dev u1 nodad")
    if configured:
        wired.run("ip address add 198.18.0.99/24 dev u0")
        wired.run(f"ip route add default via {GATEWAY} metric 7")
    wired.agent("restore")
    assert wired.agent("check").report == {"drift": []}
    if configured:
        assert "default via 198.18.0.1 dev br-app metric 7" in wired.run("ip route").out
        held = wired.json("ip -j -4 address show br-app")[0]["addr_info"]
        assert [row["local"] for row in held] == ["198.18.0.99"]
        assert lan.pings("198.18.0.99")
    else:
        held = wired.json("ip -j -4 address show br-app")[0]["addr_info"]
        assert [row["local"] for row in held] == ["198.18.0.11", "198.18.0.20"]
        assert set(wired.run("ip route").out.splitlines()) == set(routes.splitlines())
    assert state


def test_an_ipv6_address_that_a_router_advertised_moves(wired):
    """With what is left of its time; the router's next advertisement finds it on the bridge."""
    wired.run("sysctl -qw net.ipv6.conf.u0.accept_ra=0")  # networkd does it
    wired.run("ip address add 2001:db8::abcd/64 dev u0 valid_lft 1000 preferred_lft 900 nodad")
    wired.run(f"ip -6 route add default via {GATEWAY6} proto ra metric 1024 expires 600")
    wired.apply(host_bridge())
    [row] = [r for r in wired.json("ip -j -6 address show br-app")[0]["addr_info"] if r["local"] == "2001:db8::abcd"]
    assert 900 < row["valid_life_time"] <= 1000
    assert wired.run("sysctl -n net.ipv6.conf.br-app.accept_ra").out == "2\n"
    [route] = [r for r in wired.json("ip -j -6 route show default") if r.get("protocol") == "ra"]
    assert (route["metric"], 500 < route["expires"] <= 600) == (1025, True)
    wired.agent("remove", "p/s")
    [row] = [r for r in wired.json("ip -j -6 address show u0")[0]["addr_info"] if r["local"] == "2001:db8::abcd"]
    assert 900 < row["valid_life_time"] <= 1000


def test_settings_of_the_nic_are_the_bridges(wired):
    for setting in ("ipv4.conf.u0.rp_filter=2", "ipv4.conf.u0.arp_ignore=1", "ipv6.conf.u0.use_tempaddr=1"):
        wired.run(f"sysctl -qw net.{setting}")
    wired.apply(host_bridge())
    names = ("ipv4.conf.br-app.rp_filter", "ipv4.conf.br-app.arp_ignore", "ipv6.conf.br-app.use_tempaddr")
    assert [wired.run(f"sysctl -n net.{name}").out.strip() for name in names] == ["2", "1", "1"]


# -- what is refused -----------------------------------------------------------------------------

REFUSED = {
    "missing": ("eth9", "", "eth9 is not on this host; its NICs are u0, x0, x1"),
    "a bridge": ("br9", "ip link add br9 type bridge", "br9 is a bridge itself; name a NIC"),
    "a tunnel": ("vx9", "ip link add vx9 type vxlan id 9 dstport 4790", "vx9 is a vxlan itself; name a NIC"),
    "not Ethernet": ("lo", "true", "lo is not Ethernet, and cannot be a port of a bridge; name another NIC"),
    "a port": ("x0", "ip link add br9 type bridge; ip link set x0 master br9",
               "x0 is a port of br9 (bridge) already, and not by us; take it out there: ip link set x0 nomaster"),
    "another MTU": ("x0", "ip link set x0 mtu 1400", (
        "x0 has MTU 1400, and the bridge that takes its place would have 1500; set the host's mtu to 1400, or the "
        "NIC's: ip link set x0 mtu 1500")),
    "a lease": ("x0", "ip address add 192.0.2.9/24 dev x0 valid_lft 1000 preferred_lft 900", (
        "x0 has 192.0.2.9/24 by a lease of a DHCP client, which would renew it on the NIC and not on the bridge; give "
        "the host a fixed address there, or take another NIC")),
    "a lease of DHCPv6": ("x0", "ip address add 2001:db8:9::9/128 dev x0 valid_lft 1000 preferred_lft 900 nodad", (
        "x0 has 2001:db8:9::9/128 by a lease of a DHCP client, which would renew it on the NIC and not on the bridge; "
        "give the host a fixed address there, or take another NIC")),
    "a rule": ("x0", "ip rule add iif x0 table 77", (
        "x0: a policy routing rule names it (iif x0) and would not see its packets any more; write the rule by address "
        "(ip rule), or take another NIC")),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_an_uplink(wired, what):
    nic, command, sentence = REFUSED[what]
    wired.run("ip link add x0 type veth peer name x1")
    wired.run("sh", "-c", command)
    before = everything(wired)
    wanted = host_bridge(nic)
    wanted["devices"]["br-app"]["mac"] = MAC_BR
    done = wired.apply(wanted, code=1)
    assert done.lines == [f"a uplink-{nic}: {sentence}", "nothing was changed"]
    assert difference(before, everything(wired)) == ""


def test_a_nic_that_is_too_small_for_a_segment(wired):
    wired.run("ip link add x0 type veth peer name x1")
    wired.run("ip link set x0 mtu 1400")
    done = wired.apply(host_bridge("x0", "port"), code=1)
    nic = "set the segment's mtu to 1400, or the NIC's: ip link set x0 mtu 1500"
    assert done.lines[0] == f"a uplink-x0: x0 has MTU 1400, and the segment 1500; {nic}"


def test_a_nic_of_another_stack_and_a_bridge_of_nobody(wired):
    wired.apply(host_bridge())
    other = host_bridge(nic="u0")
    other["owner"] = {"project": "p", "stack": "t", "id": "id-of-t"}
    other["devices"] = {"br-other": other["devices"]["br-app"]}
    other["services"]["uplink-u0"]["bridge"] = "br-other"
    done = wired.apply(other, code=1)
    assert done.lines[0] == (
        "a uplink-u0: u0 is an uplink of overlay:p/s/uplink-u0 already; a NIC is a port of one bridge"
    )
    other["services"]["uplink-u0"]["bridge"] = "br-app"
    done = wired.apply(other, code=1)
    assert done.lines[0] == "a uplink-u0: bridge: 'br-app' is not a bridge of this document; declare it"
    other["services"] = {"u0": other["services"]["uplink-u0"]}
    assert wired.apply(other, code=1).lines[0] == "a u0: a service of this kind is called uplink-<NIC>"


def test_who_is_told_to_leave_it_alone(wired):
    """Networkd and NetworkManager, where they run: here only their folders are."""
    wired.run("mkdir -p /run/systemd/netif /run/NetworkManager")
    wired.apply(host_bridge())
    networkd, manager = "/run/systemd/network/00-overlay-u0.network", "/run/NetworkManager/conf.d/90-overlay-u0.conf"
    assert "[Match]\nName=u0 br-app\n\n[Link]\nUnmanaged=yes\n" in wired.run(f"cat {networkd}").out
    devices = "interface-name:=u0;interface-name:=br-app"
    assert f"[device-overlay-u0]\nmatch-device={devices}\nmanaged=0\n" in wired.run(f"cat {manager}").out
    wired.run(f"rm {networkd}")
    assert wired.agent("check", code=2).report == {"drift": ["uplink-u0: leftAlone want on, is off"]}
    # Of a device of ours networkd hears where a file of its owner may match.
    greedy = "/run/systemd/network/90-greedy.network"
    wired.run("sh", "-c", f"printf '[Match]\\nName=vx-*\\n' > {greedy}")
    wired.apply(host_bridge(vx_app=vxlan(bridge="br-app")))
    assert "\nName=vx-app\n" in wired.run("cat /run/systemd/network/00-overlay-vx-app.network").out
    there = wired.run("ls /run/systemd/network").out.split()
    assert there == ["00-overlay-u0.network", "00-overlay-vx-app.network", "90-greedy.network"]
    wired.run(f"rm {greedy}")
    wired.agent("remove", "p/s")
    # NetworkManager had not configured it itself, and is not to begin now.
    left = wired.run("find /run/systemd/network /run/NetworkManager -type f").out
    assert left == "/run/NetworkManager/conf.d/91-overlay-u0-of-another.conf\n"


def test_what_the_nic_is_set_to_later_says_nothing_of_the_bridge(wired):
    """NetworkManager turns link-local addresses off on its own NICs, and on when it lets go of one."""
    wired.run("ip link set u0 addrgenmode none")
    wired.apply(host_bridge())
    wired.run("ip link set u0 addrgenmode eui64")
    assert wired.agent("check").report == {"drift": []}


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
    silent = "gateway 198.18.0.1 and gateway 2001:db8::1"
    said = f"a: the new configuration cut the host off: {silent} got no answer for 5 s"
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


def test_killed_where_the_bridge_was_there_before(wired):
    """Its MAC address changes and changes back."""
    wired.apply(document(br_app=bridge(mtu=1500, addresses={"10.10.0.1/24": {}})))
    before, files = everything(wired), wired.files()
    for point in (3, 6, 9):
        wired.apply(host_bridge(), code=None, OVERLAY_FAULT=f"{point}:all")
        wait_for(lambda: wired.processes() == [])
        assert difference(before, everything(wired)) == "", point
        assert wired.files() == files
    wired.apply(host_bridge())
    wired.apply(document(br_app=bridge(mtu=1500, addresses={"10.10.0.1/24": {}})))
    assert difference(before, everything(wired)) == ""


def test_what_nobody_can_prove_is_not_armed(wired):
    """A host without a gateway, at its console."""
    for family in ("-4", "-6"):
        wired.run(f"ip {family} route del default")
    done = wired.apply(host_bridge())
    assert "answered" not in done.err


def test_an_ordinary_apply_loads_nothing_for_it(wired):
    wired.apply(usual())
    words = [PYTHON, "-X", "importtime", "-ISB", "/usr/local/sbin/overlay-agent", "apply"]
    loaded = wired.run(*words, text=json.dumps(usual(vni=43))).err
    assert "overlay_agent.guard" in loaded
    for module in ("arming", "evidence", "hands_off", "sockets", "kinds.uplink"):
        assert f"overlay_agent.{module}\n" not in loaded


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
