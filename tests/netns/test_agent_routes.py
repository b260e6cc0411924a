"""Static routes: made, found again by their own number and metric, and nobody else's touched."""

from __future__ import annotations

import zlib

import pytest
from agent_support import MAC_VX, OWNER, bridge, document, kill_at_each_point, vxlan

OTHER = {"project": "p", "stack": "t", "id": "id-of-t"}
WANTED = {"10.20.0.0/24": "10.10.0.77", "10.30.0.0/16": "10.10.0.78", "fd00:20::/64": "fd00::77"}
ADDRESSES = {"10.10.0.1/24": {}, "fd00::1/64": {}}


def routed(routes=None, owner=OWNER, **of_bridge):
    services = {"routes": {"kind": "routes", "routes": routes}} if routes else None
    bridges = {"br_app": bridge(**{"addresses": ADDRESSES, **of_bridge})} if owner is OWNER else {}
    return document(owner=owner, services=services, **bridges)


def metric(mark="overlay:p/s/routes"):
    return 0x40000000 + zlib.crc32(mark.encode()) % 0x01000000


def ours(host):
    """{subnet: next hop} of the protocol number, by `ip`."""
    rows = host.json("ip -j route show proto 95") + host.json("ip -j -6 route show proto 95")
    assert all(row["metric"] == metric() for row in rows)
    return {row["dst"]: row["gateway"] for row in rows}


@pytest.fixture
def applied(host):
    host.apply(routed(WANTED))
    return host


def test_its_life(host):
    before = host.state()
    done = host.apply(routed(WANTED))
    assert "routes: created (routes, 10.20.0.0/24, 10.30.0.0/16, fd00:20::/64)" in done.lines
    assert ours(host) == WANTED
    assert host.apply(routed(WANTED)).lines == ["a: nothing to do, 2 objects as declared"]
    assert host.agent("show").report["p/s"]["routes"] == {"kind": "routes", "routes": WANTED}
    changed = {"10.20.0.0/24": "10.10.0.99", "fd00:20::/64": "fd00::99", "10.40.0.0/24": "10.10.0.77"}
    assert host.apply(routed(changed)).lines == [
        "routes: route 10.20.0.0/24 10.10.0.77 -> 10.10.0.99",
        "routes: - route 10.30.0.0/16 10.10.0.78",
        "routes: + route 10.40.0.0/24 10.10.0.77",
        "routes: route fd00:20::/64 fd00::77 -> fd00::99",
    ]
    assert ours(host) == changed
    assert host.apply(routed()).lines == ["routes: removed"]
    assert ours(host) == {}
    host.agent("remove", "p/s")
    assert host.state() == before


@pytest.mark.parametrize(
    ("command", "drift"),
    [
        ("ip route delete 10.20.0.0/24", ["routes: lacks route 10.20.0.0/24 10.10.0.77"]),
        ("ip -6 route delete fd00:20::/64", ["routes: lacks route fd00:20::/64 fd00::77"]),
        ("ip route flush proto 95",
         ["routes: lacks route 10.20.0.0/24 10.10.0.77", "routes: lacks route 10.30.0.0/16 10.10.0.78"]),
        ("sh -c 'ip route flush proto 95; ip -6 route flush proto 95'", ["routes: is not there"]),
        ("ip route replace 10.20.0.0/24 via 10.10.0.9 proto 95 metric {m}",
         ["routes: route 10.20.0.0/24 want 10.10.0.77, is 10.10.0.9"]),
        ("ip route replace 10.20.0.0/24 dev br-app proto 95 metric {m}",
         ["routes: route 10.20.0.0/24 want 10.10.0.77, is no next hop and more"]),
        ("ip route replace 10.20.0.0/24 via 10.10.0.77 mtu 1300 proto 95 metric {m}",
         ["routes: route 10.20.0.0/24 want 10.10.0.77, is 10.10.0.77 and more"]),
        ("ip route replace blackhole 10.20.0.0/24 proto 95 metric {m}",
         ["routes: route 10.20.0.0/24 want 10.10.0.77, is no next hop and more"]),
        ("ip route add 10.20.0.0/24 via 10.10.0.9 tos 4 proto 95 metric {m}",
         ["routes: route 10.20.0.0/24 want 10.10.0.77, is 10.10.0.9 and more, 10.10.0.77"]),
        ("ip route append 10.20.0.0/24 via 10.10.0.9 proto 95 metric {m}",
         ["routes: route 10.20.0.0/24 want 10.10.0.77, is 10.10.0.77, 10.10.0.9"]),
        ("ip -6 route append fd00:20::/64 via fd00::9 proto 95 metric {m}",
         ["routes: route fd00:20::/64 want fd00::77, is no next hop and more"]),
        ("ip -6 route replace fd00:20::/64 via fd00::77 pref low proto 95 metric {m}",
         ["routes: route fd00:20::/64 want fd00::77, is fd00::77 and more"]),
        ("ip route add 10.50.0.0/24 via 10.10.0.9 proto 95 metric {m}",
         ["routes: has route 10.50.0.0/24 10.10.0.9 that is not declared"]),
        ("ip link set br-app down",
         ["br-app: up want on, is off", "br-app: lacks address fd00::1/64", "routes: is not there"]),
        ("ip link delete br-app", ["br-app: is not there", "routes: is not there"]),
    ],
)  # fmt: skip
def test_what_somebody_changed_is_seen_and_mended(applied, command, drift):
    applied.run(command.format(m=metric()))
    found = applied.agent("check", code=2).report["drift"]
    assert found == drift
    applied.apply(routed(WANTED))
    assert ours(applied) == WANTED
    assert applied.agent("check").report == {"drift": []}


def test_others_routes_are_left_alone(applied):
    others = [f"10.60.0.0/24 via 10.10.0.9 proto 95 metric {metric() + 1}", "10.70.0.0/24 via 10.10.0.9 proto static"]
    for route in others:
        applied.run(f"ip route add {route}")
    assert applied.agent("check").report == {"drift": []}
    applied.apply(routed({"10.20.0.0/24": "10.10.0.77"}))
    applied.apply(routed())
    left = applied.run("ip route show").out
    assert "10.60.0.0/24 via 10.10.0.9 dev br-app proto 95" in left
    assert "10.70.0.0/24 via 10.10.0.9 dev br-app proto static" in left


def test_two_stacks_do_not_see_each_other(applied):
    applied.apply(routed({"10.20.0.0/24": "10.10.0.88", "10.80.0.0/24": "10.10.0.88"}, owner=OTHER))
    assert len(applied.json("ip -j route show proto 95")) == 4
    assert applied.agent("check").report == {"drift": []}
    applied.agent("remove", "p/t")
    assert ours(applied) == WANTED


def test_all_at_once_new_addresses_and_the_routes_that_need_them(applied):
    # The bridge is readdressed first, though it only changes and the routes are new.
    applied.apply(routed())
    done = applied.apply(routed({"10.20.0.0/24": "10.11.0.77"}, addresses={"10.11.0.1/24": {}}))
    assert "routes: created (routes, 10.20.0.0/24)" in done.lines
    assert ours(applied) == {"10.20.0.0/24": "10.11.0.77"}


def straight(vni, routes):
    services = {"routes": {"kind": "routes", "routes": routes}} if routes else None
    device = vxlan(vni=vni, mac=MAC_VX, addresses=ADDRESSES, peers={"b": "198.18.0.12"})
    return document(services=services, vx_app=device)


@pytest.mark.parametrize("routes", [WANTED, {"10.20.0.0/24": "10.10.0.99"}, None], ids=["same", "other", "none"])
def test_a_device_that_is_made_anew_gets_its_routes_back_and_no_others(host, routes):
    host.apply(straight(42, WANTED))
    done = host.apply(straight(43, routes))
    assert "vx-app: vni 42 -> 43 (recreated)" in done.lines
    assert ours(host) == (routes or {})
    assert host.agent("check").report == {"drift": []}


@pytest.mark.parametrize(
    ("routes", "of_bridge", "before", "errors"),
    [
        ({"10.20.0.0/24": "10.99.0.1", "10.30.0.0/24": "10.10.0.1", "fd00:20::/64": "fd99::1"}, {}, "true",
         [("a routes: route 10.20.0.0/24 via 10.99.0.1: this host is in no network with 10.99.0.1; give its bridge an "
           "address there, or name a router that it has a network in common with"),
          ("a routes: route 10.30.0.0/24 via 10.10.0.1: 10.10.0.1 is this host itself; name the router that is next on "
           "the way"),
          ("a routes: route fd00:20::/64 via fd99::1: this host is in no network with fd99::1; give its bridge an "
           "address there, or name a router that it has a network in common with")]),
        ({"10.20.0.0/24": "10.10.0.77"}, {}, "ip route add 10.20.0.0/24 via 198.18.0.9 proto static metric 50",
         [("a routes: route 10.20.0.0/24 via 10.10.0.77: there is one to 10.20.0.0/24 already that is not ours and "
           "would be taken instead (via 198.18.0.9, proto 4); remove that one, or leave this one out")]),
        ({"10.20.0.0/24": "fd00::1", "fd00:20::/64": "fe80::1"}, {}, "true",
         ["routes.routes: 10.20.0.0/24 via fd00::1: both must be of one IP version",
          ("routes.routes: fd00:20::/64 via fe80::1: such an address is on every interface; name another of that "
           "router")]),
        ({"10.20.0.0/24": "10.10.0.77"}, {"up": False}, "true",
         ["a routes: add 10.20.0.0/24 via 10.10.0.77: Nexthop has invalid gateway; undone, the host is as it was"]),
    ],
    ids=["unreachable", "taken", "contradictions", "down"],
)  # fmt: skip
def test_what_is_refused(host, routes, of_bridge, before, errors):
    host.run(before)
    state = host.state()
    done = host.apply(routed(routes, **of_bridge), code=1)
    assert [line for line in done.lines if line != "nothing was changed"] == errors
    assert host.state() == state
    assert host.files() == {}


def test_no_routes_are_no_service(host):
    empty = document(services={"routes": {"kind": "routes"}})
    assert host.apply(empty, code=1).lines[0] == "routes.routes: there are none; leave the service out"


def test_a_next_hop_that_is_only_routed_to_an_interface(host):
    host.run("ip route add 10.99.0.0/24 dev u0")
    host.apply(routed({"10.20.0.0/24": "10.99.0.1"}))
    assert ours(host) == {"10.20.0.0/24": "10.99.0.1"}


def test_typed_by_hand_it_is_the_same(host, new_host):
    host.apply(routed(WANTED))
    other = new_host()
    other.run("sh", "-eux", text=host.agent("explain", "p/s").out)
    assert ours(other) == WANTED


#: What is there before, and what is wanted (None: nothing).
SCENARIOS = {
    "create": (routed(), routed(WANTED)),
    "change": (routed(WANTED), routed({"10.20.0.0/24": "10.10.0.99", "10.40.0.0/24": "10.10.0.77"})),
    "remove": (routed(WANTED), routed()),
    "with its device": (straight(42, WANTED), straight(43, None)),
}


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["", ":all"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_each_point(new_host, name, scope):
    before, wanted = SCENARIOS[name]

    def prepare(host):
        host.apply(before)
        if name == "change" and not scope:  # `restore` would mend that
            host.run(f"ip route add 10.20.0.0/24 via 10.10.0.9 tos 4 proto 95 metric {metric()}")

    def go(host, code, **env):
        return host.apply(wanted, code=code, **env)

    assert kill_at_each_point(new_host, scope, prepare, go, lambda host: host.state()) >= 5
