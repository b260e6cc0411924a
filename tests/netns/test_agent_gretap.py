"""Ethernet in GRE over both IP versions: every field, its ends, its neighbours, and an end typed by hand."""

from __future__ import annotations

import subprocess

import pytest
from agent_support import bridge, document, wire

pytestmark = pytest.mark.kinds("gretap", "ip6gretap")

MAC = "02:00:00:00:00:0"


def gretap(remote="198.18.0.12", **more):
    return {"kind": "gretap", "mtu": 1400, "mac": f"{MAC}4", "local": "198.18.0.11", "remote": remote, **more}


def ip6gretap(remote="2001:db8::12", **more):
    return {"kind": "ip6gretap", "mtu": 1400, "mac": f"{MAC}6", "local": "2001:db8::11", "remote": remote, **more}


def data(host, name):
    return host.link(name)["linkinfo"]["info_data"]


@pytest.fixture(autouse=True)
def loaded():
    """The modules make devices of their own in every namespace (gretap0, erspan0, ...): before any test looks."""
    script = "ip link add probe4 type gretap remote 192.0.2.1; ip link add probe6 type ip6gretap remote 2001:db8::1"
    subprocess.run(["unshare", "--net", "sh", "-ec", script], check=True)


V4 = {"local": "198.18.0.21", "remote": "198.18.0.22", "key": 7, "ttl": 5, "tos": 16, "pmtudisc": False, "device": "u0"}
V6 = {"local": "2001:db8::21", "remote": "2001:db8::22", "key": 8, "ttl": 0, "tos": 32, "flowLabel": 5, "device": "u0"}
BY_HAND = """
ip link set gt4 type gretap local 198.18.0.21 remote 198.18.0.22 key 7 ttl 5 tos 0x10 nopmtudisc dev u0 fwmark 9 csum
ip link set gt6 type ip6gretap local 2001:db8::21 remote 2001:db8::22 key 8 ttl 0 tclass 0x20 flowlabel 5 dev u0 \
 encaplimit 4
ip link set gt4 mtu 1300
ip link set gt6 nomaster
"""


def test_every_field_is_set_and_read_and_mended(host):
    host.run("ip address add 198.18.0.21/24 dev u0")
    host.run("ip address add 2001:db8::21/64 dev u0 nodad")
    before = document(br_app=bridge(), gt4=gretap(), gt6=ip6gretap(bridge="br-app"))
    host.apply(before)
    assert data(host, "gt4") == {"remote": "198.18.0.12", "local": "198.18.0.11", "ttl": 64, "pmtudisc": True}
    indexes, state = [host.index(name) for name in ("gt4", "gt6")], host.state()

    host.run("sh", "-ec", BY_HAND)
    found = [
        "gt4: mtu want 1400, is 1300",
        "gt4: local want 198.18.0.11, is 198.18.0.21",
        "gt4: remote want 198.18.0.12, is 198.18.0.22",
        "gt4: has key 7 that is not declared",
        "gt4: ttl want 64, is 5",
        "gt4: tos want 0, is 16",
        "gt4: has device u0 that is not declared",
        "gt4: has setting fwmark 9 that is not declared",
        "gt4: has setting iflags 32768 that is not declared",
        "gt4: has setting oflags 32768 that is not declared",
        "gt4: pmtudisc want on, is off",
        "gt6: mtu want 1400, is 1430",  # chosen by the kernel, as by hand it does
        "gt6: lacks bridge br-app",
        "gt6: local want 2001:db8::11, is 2001:db8::21",
        "gt6: remote want 2001:db8::12, is 2001:db8::22",
        "gt6: has key 8 that is not declared",
        "gt6: ttl want 64, is 0",
        "gt6: tos want 0, is 32",
        "gt6: has device u0 that is not declared",
        "gt6: has setting encap_limit 4 that is not declared",
        "gt6: flowLabel want 0, is 5",
    ]
    assert host.agent("check", code=2).report["drift"] == found
    drifted = host.state()
    # Undone, it is as it was found, with all that nobody declared.
    assert "undone, the host is as it was" in host.apply(before, code=1, OVERLAY_FAULT="4").err
    assert host.state() == drifted
    assert len(host.apply(before).lines) == len(found)
    assert host.state() == state

    wanted = document(br_app=bridge(), gt4=gretap(**{**V4, "mtu": 1300}), gt6=ip6gretap(**V6, bridge="br-app"))
    done = host.apply(wanted)
    assert not [line for line in done.lines if "recreated" in line]
    assert data(host, "gt4") == {
        "link": "u0", "remote": "198.18.0.22", "local": "198.18.0.21", "ttl": 5, "tos": "0x10", "pmtudisc": False,
        "ikey": "0.0.0.7", "okey": "0.0.0.7",
    }  # fmt: skip
    assert host.link("gt4")["mtu"] == 1300
    six = data(host, "gt6")
    assert (six["tclass"], six["flowlabel"], six["ikey"], six.get("hoplimit", 0)) == (
        "0x20", "0x00005", "0.0.0.8", 0,
    )  # fmt: skip
    assert [host.index(name) for name in ("gt4", "gt6")] == indexes
    assert host.agent("check").report == {"drift": []}


def test_what_explain_says_makes_the_same(new_host):
    wanted = document(
        br_app=bridge(),
        gt4=gretap(bridge="br-app", ttl=255, isolated=True),
        gt5=gretap(remote="198.18.0.13", mac=f"{MAC}5", key=5, tos=1, pmtudisc=False, ttl=0),
        gt6=ip6gretap(key=7, tos=1, flowLabel=9),
    )
    script = (by_hand := new_host()).agent("explain", document=wanted).out
    assert "type gretap remote 198.18.0.12 local 198.18.0.11 ttl 255\n" in script
    by_hand.run("sh", "-ec", script)
    host = new_host()
    host.apply(wanted)
    assert host.state() == by_hand.state()
    assert host.agent("remove", "p/s").lines == [f"{name}: removed" for name in ("br-app", "gt4", "gt5", "gt6")]


def test_two_tunnels_are_told_apart(host):
    same = "are those of {} on this host, too; give one of them a key of its own (key)"
    ends = "local 198.18.0.11, remote 198.18.0.12 and"
    host.run("ip link add other type gretap remote 198.18.0.12 local 198.18.0.11 key 5")
    twice = document(gt1=gretap(), gt2=gretap(mac=f"{MAC}2"), gt3=gretap(key=5))
    assert host.apply(twice, code=1).lines == [
        f"a gt1: {ends} no key {same.format('gt2')}",
        f"a gt2: {ends} no key {same.format('gt1')}",
        f"a gt3: {ends} key 5 {same.format('other')}",
        "nothing was changed",
    ]
    host.apply(document(gt1=gretap(), gt2=gretap(mac=f"{MAC}2", key=2), gt3=gretap("198.18.0.13", mac=f"{MAC}3")))
    # Two peers exchange their addresses, and a key moves: what one has the other had a moment before.
    swapped = document(
        gt1=gretap("198.18.0.13"), gt2=gretap(mac=f"{MAC}2", key=3), gt3=gretap(mac=f"{MAC}3"),
        gt4=gretap(mac=f"{MAC}4", key=2),
    )  # fmt: skip
    done = host.apply(swapped)
    assert done.lines == [
        "gt1: remote 198.18.0.12 -> 198.18.0.13",
        "gt2: key 2 -> 3",
        "gt3: remote 198.18.0.13 -> 198.18.0.12",
        "gt4: created (gretap, mtu 1400, local 198.18.0.11, remote 198.18.0.12, key 2)",
    ]
    assert host.agent("check").report == {"drift": []}
    wrong = document(gt1=gretap(key=9, local="198.18.0.99"), gt2=gretap(device="u7"), gt3=gretap(key=9, mtu=1470))
    not_here = (
        "a gt1: local '198.18.0.99' is not an address of this host; set hosts.a.underlay.local (behind NAT it differs "
        "from the address that peers send to)"
    )
    assert host.apply(wrong, code=1).lines == [
        not_here,
        "a gt2: device 'u7' is not on this host; name the underlay's NIC in underlay.device",
        "a gt3: mtu 1470 needs an underlay of 1512, but u0 has 1500; set hosts.a.mtu: 1500",
        "nothing was changed",
    ]


#: As in source document 004, with addresses, and a bridge by the tools of today.
HAND = """
ip link add superbr0 type bridge
ip link set superbr0 up
ip link add testgre type gretap remote 198.18.0.11 local 198.18.0.12 ttl 255
ip link set testgre master superbr0
ip link set testgre up
ip address add 10.10.0.2/24 dev superbr0
"""


def test_with_an_end_typed_by_hand(new_host):
    a, b = new_host(), new_host()
    wire(a, b)
    b.run("sh", "-ec", HAND)
    tunnel = gretap(bridge="br-app", ttl=255, mtu=1462)
    one = document(br_app=bridge(addresses={"10.10.0.1/24": {}}, mtu=1462), gt4=tunnel)
    a.apply(one)
    a.run("ping -c 1 -W 5 -M do -s 1434 10.10.0.2")
    b.run("ping -c 1 -W 5 -M do -s 1434 10.10.0.1")
    # Another tunnel to the same peer, and another bridge: the first one loses nothing.
    ping = a.popen("ping", "-i", "0.005", "-c", "1000", "-q", "10.10.0.2", stdout=subprocess.PIPE, text=True)
    more = {
        "br_six": bridge(addresses={"10.20.0.1/24": {}}, mtu=1438, mac=f"{MAC}9"),
        "gt5": gretap(key=5, mac=f"{MAC}5"),
        "gt6": ip6gretap(bridge="br-six", mtu=1438, key=7),
    }
    a.apply(document(br_app=bridge(addresses={"10.10.0.1/24": {}}, mtu=1462), gt4=tunnel, **more))
    said = ping.communicate()[0]
    assert "1000 packets transmitted, 1000 received, 0% packet loss" in said
    # Over IPv6, with a key, the peer's end an agent's too.
    b.apply(
        document(
            host="b",
            br_six=bridge(addresses={"10.20.0.2/24": {}}, mtu=1438, mac="02:00:00:00:01:09"),
            gt6=ip6gretap(
                "2001:db8::11", local="2001:db8::12", bridge="br-six", mtu=1438, key=7, mac="02:00:00:00:01:06"
            ),
        )
    )
    a.run("ping -c 1 -W 5 -M do -s 1410 10.20.0.2")
    a.agent("remove", "p/s")
    assert [link["ifname"] for link in a.json("ip -j link show type gretap")] == ["gretap0"]


@pytest.mark.parametrize("fault", ["3", "5:all"])
def test_killed_halfway(host, fault):
    state, files = host.state(), host.files()
    wanted = document(br_app=bridge(), gt4=gretap(bridge="br-app"), gt6=ip6gretap(bridge="br-app"))
    host.apply(wanted, code=None, OVERLAY_FAULT=fault)
    if fault.endswith("all"):
        assert "stack p/s: an apply was cut short; undone" in host.agent("restore").lines
    assert (host.state(), host.files()) == (state, files)
