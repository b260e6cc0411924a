"""What the hosts' answers mean: a case for each reason that `overlay verify` gives."""

from __future__ import annotations

import copy
import struct

import pytest

from overlay_agent import capture as agents
from overlay_agent.document import Owner
from overlay_components.commands.capture import PROTOCOLS, filter_of, packets
from overlay_components.commands.capture import _devices as where
from overlay_components.commands.verify import failures, summary
from overlay_components.config import load_config
from overlay_components.errors import ConfigErrors
from overlay_components.plan import make_plan
from overlay_components.verify import Check, Verification

A, B, C = "198.18.0.11", "198.18.0.12", "198.18.0.13"
RAW = {
    "hosts": {"a": {"address": A}, "b": {"address": B}, "c": {"address": C}},
    "segments": {
        "app": {
            "subnets": ["10.10.0.0/24"],
            "addresses": {"a": "10.10.0.1"},
            "tunnels": {"mesh": {"kind": "vxlan", "vni": 42}},
            "dhcp": {"host": "a", "domain": "app.example", "masquerade": True},
            "containers": {"web": {"host": "b", "address": "10.10.0.11"}},
        }
    },
}


def verification(raw=RAW):
    config = load_config(raw)
    return Verification(make_plan(config, Owner("overlay", "test", "0")), config, "00" * 8)


def ready(run):
    """Every host says that all is up."""
    out = {}
    for host, request in run.requests().items():
        states = {}
        for name, segment in request["segments"].items():
            flood = [address for address in (A, B, C) if address != run.hosts[host].address]
            tunnels = {t: {"state": "up", "mtu": 1450, "flood": flood} for t in segment["tunnels"]}
            states[name] = {"device": segment["device"], "state": "up", "mtu": 1450, "tunnels": tunnels}
        out[host] = {"ready": states}
    return out


def found(run):
    """Every host says that all is well."""
    out = {}
    for host, request in run.requests().items():
        others = [name for name in run.hosts if name != host]
        segment = {"heard": others, "answered": others, "rtt": dict.fromkeys(others, 0.5), "full": others}
        underlay = {address: {"answers": True, "full": True} for address in request["underlay"]}
        segments = {name: copy.deepcopy(segment) for name in request["segments"]}
        out[host] = {"segments": segments, "underlay": underlay, "checks": {}, "docker": {}}
    by, _ = run.checks["app"]
    offer = {"address": "10.10.0.200", "server": ["10.10.0.1"], "router": ["10.10.0.1"], "dns": [], "mtu": 1450}
    dns = {"reached": True, "code": 0, "addresses": ["10.10.0.11"]}
    out[by]["checks"]["app"] = {"dhcp": offer, "dns": dns, "nat": {"reached": True, "answers": True}}
    return out


def result(change=lambda _ready, _found: None, raw=RAW):
    run = verification(raw)
    says = ready(run)
    run.go(says)
    answers = found(run)
    change(says, answers)
    return run.result(says, answers)["app"]


def test_what_is_asked():
    run = verification()
    requests = run.requests()
    assert requests["a"]["underlay"] == {B: 1500, C: 1500}
    assert requests["b"]["segments"]["app"] == {"number": 0, "device": "br-app", "mtu": 1450, "tunnels": ["vx-app"]}
    go = run.go(ready(run))
    assert go["a"]["there"] == {"app": ["b", "c"]}
    assert {host: list(what["checks"]) for host, what in go.items()} == {"a": [], "b": ["app"], "c": []}
    assert go["b"]["checks"]["app"] == {
        "source": "10.10.0.127",  # the last that is neither given to anybody nor anybody's
        "own": False,
        "dhcp": {"mac": None},
        "dns": {"server": "10.10.0.1", "name": "web.app.example", "wanted": "10.10.0.11"},
        "nat": {"gateway": "10.10.0.1", "target": B, "router": "a"},
    }


def test_who_is_cut_off_is_not_who_asks_the_router():
    run = verification()
    says = ready(run)
    says["b"]["ready"]["app"]["tunnels"]["vx-app"]["state"] = "down"
    assert list(run.go(says)["c"]["checks"]) == ["app"]


def test_all_is_well():
    segment = result()
    assert [cell.good for _, _, cell in segment.all()] == [True] * 6
    assert [(check.what, check.good) for check in segment.checks] == [("DHCP", True), ("DNS", True), ("NAT", True)]
    assert summary(segment) == "6 of 6 pairs reach each other with packets of 1450; 0.50 ms, at most 0.50 ms"


def deaf(found, a, b, *, heard=False):
    """No answer of b comes to a; `heard`: b heard a."""
    of = found[a]["segments"]["app"]
    of["answered"], of["full"] = ["c"], ["c"]
    of["rtt"].pop(b)
    if not heard:
        found[b]["segments"]["app"]["heard"].remove(a)


def tunnel(ready, host, **values):
    ready["ready" if "ready" in ready else host]["ready"]["app"]["tunnels"]["vx-app"].update(values)


def by_bgp():
    raw = copy.deepcopy(RAW)
    raw["evpn"] = {"routeReflectors": ["a", "b"], "range": "198.18.0.0/24"}
    raw["segments"]["app"]["tunnels"] = {"fabric": {"kind": "vxlan", "vni": 42, "topology": "evpn"}}
    return raw


@pytest.mark.parametrize(
    ("sessions", "why"),
    [
        ({}, ": a has no BGP session (its bgpd does not run)"),
        ({B: "Active"}, f": a has no BGP session ({B} (b) is Active)"),
        ({B: "Active", C: "Established"}, ": BGP has not told a of b"),
    ],
)
def test_what_bgp_did_not_tell(sessions, why):
    def untold(r, f):
        missing(r, f)
        r["a"]["sessions"], r["b"]["sessions"] = sessions, {A: "Established"}

    segment = result(untold, by_bgp())
    assert segment.cells["a"]["b"].why == f"no FDB entry for {B} on a's vx-app{why}"
    assert segment.cells["a"]["c"].good


def test_bgp_is_asked_for_where_it_is():
    assert {request["evpn"] for request in verification(by_bgp()).requests().values()} == {True}
    assert {request["evpn"] for request in verification().requests().values()} == {False}
    assert verification(by_bgp()).requests()["a"]["underlay"] == {B: 1500, C: 1500}


def missing(r, f):
    tunnel(r, "a", flood=[C])
    deaf(f, "a", "b")


def apart(r, f):
    tunnel(r, "a", state="apart")
    deaf(f, "a", "b")


def gone(r, f):
    tunnel(r, "b", state="missing")
    deaf(f, "a", "b")


def bridge_down(r, _):
    r["b"]["ready"]["app"]["state"] = "down"


def blocked(_, f):
    deaf(f, "a", "b")


def blocked_back(_, f):
    deaf(f, "a", "b", heard=True)


def unreachable(_, f):
    deaf(f, "a", "b")
    f["a"]["underlay"][B] = {"answers": False, "full": False}


def device_too_small(r, _):
    r["a"]["ready"]["app"]["mtu"] = 1400


def tunnel_too_small(r, _):
    tunnel(r, "b", mtu=1300)


def hop(_, f):
    f["a"]["underlay"][B] = {"answers": True, "full": False, "hop": "198.18.0.1", "mtu": 1420}


def own_link(_, f):
    f["a"]["underlay"][B] = {"answers": True, "full": False, "hop": "", "mtu": 1400}


def its_link(_, f):
    f["a"]["underlay"][B]["full"] = False
    f["b"]["underlay"][A].update(hop="", mtu=1400, full=False)


def lost(_, f):
    f["a"]["underlay"][B]["full"] = False


def frames_lost(_, f):
    f["a"]["segments"]["app"]["full"] = ["c"]


def silent_underlay(_, f):
    f["a"]["underlay"][B] = {"answers": False, "full": False}


BACK = "underlay blocked on UDP 4789 from b to a (198.18.0.11, which answers a ping)"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (missing, "no FDB entry for 198.18.0.12 on a's vx-app"),
        (apart, "a's vx-app is no port of br-app"),
        (gone, "b's vx-app is missing; run `pulumi up`"),
        (bridge_down, "b's br-app is down"),
        (blocked, "underlay blocked on UDP 4789 from a to b (198.18.0.12, which answers a ping)"),
        (
            blocked_back,
            f"b hears a, but its answers do not come back: {BACK}",
        ),
        (unreachable, "underlay: 198.18.0.12 (b) answers a neither on UDP 4789 nor a ping"),
        (device_too_small, "MTU too big at a: its br-app takes 1400, not 1450"),
        (tunnel_too_small, "MTU too big at b: its vx-app takes 1300, not 1450"),
        (hop, "MTU too big at hop 198.18.0.1: it takes 1420, and 1450 here needs 1500"),
        (own_link, "MTU too big at hop a itself: it takes 1400, and 1450 here needs 1500"),
        (its_link, "MTU too big at hop 198.18.0.12 (b): it takes 1400, and 1450 here needs 1500"),
        (lost, "MTU too big on the way to 198.18.0.12 (b): a ping of 1500 is lost, and no hop says where"),
        (frames_lost, "MTU too big: frames of 1450 get lost between a and b"),
        (silent_underlay, ""),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_why_a_pair_fails(change, why):
    cell = result(change).cells["a"]["b"]
    assert (cell.good, cell.why) == (not why, why)


def test_a_host_that_was_not_asked():
    segment = result(lambda _, f: f.pop("c"))
    assert segment.cells["a"]["c"].good is segment.cells["c"]["a"].good is None
    assert failures(segment) == ["a -> c, b -> c, c -> a and 1 more: c was not asked"]


def test_two_spokes_of_a_hub():
    raw = copy.deepcopy(RAW)
    raw["segments"]["app"]["tunnels"]["mesh"] = {"kind": "gretap", "topology": "hub", "hub": "c"}

    def cut(_, f):
        deaf(f, "a", "b")

    why = "no frame of a's gets to b, to which it has no tunnel of its own: look at "
    assert result(cut, raw).cells["a"]["b"].why == f"{why}c"
    pairs = {"kind": "gretap", "topology": "pairs", "endpoints": [["a", "c"], ["b", "c"]]}
    raw["segments"]["app"]["tunnels"]["mesh"] = pairs
    assert result(cut, raw).cells["a"]["b"].why == f"{why}who is between them"


def test_two_spokes_of_two_hubs():
    raw = copy.deepcopy(RAW)
    raw["hosts"]["d"] = {"address": "198.18.0.14"}
    raw["segments"]["app"]["tunnels"]["mesh"] = {"kind": "gretap", "topology": "hub", "hubs": ["c", "d"]}
    why = result(lambda _, f: deaf(f, "a", "b"), raw).cells["a"]["b"].why
    assert why == (
        "no frame of a's gets to b, to which it has no tunnel of its own: look at c and d; hubs take ten seconds to "
        "change places"
    )


@pytest.mark.parametrize(
    ("what", "answer", "says"),
    [
        ("dhcp", None, "a offers no address to b; is its dnsmasq running?"),
        (
            "dhcp",
            {"address": "10.10.0.9", "server": ["10.10.0.66"], "mtu": None},
            "10.10.0.9 offered to b by 10.10.0.66, which is not a: another DHCP server is in the segment",
        ),
        (
            "dhcp",
            {"address": "10.10.0.9", "server": ["10.10.0.1"], "mtu": 1500},
            "10.10.0.9 offered to b by 10.10.0.1 with an MTU of 1500, not 1450",
        ),
        ("dns", {"reached": False}, "10.10.0.1 does not answer b's ARP"),
        ("dns", {"reached": True, "code": None}, "10.10.0.1 does not answer b on port 53"),
        (
            "dns",
            {"reached": True, "code": 3, "addresses": []},
            "web.app.example is unknown, says 10.10.0.1 to b; the plan says 10.10.0.11",
        ),
        (
            "dns",
            {"reached": True, "code": 2, "addresses": []},
            "web.app.example is error 2, says 10.10.0.1 to b; the plan says 10.10.0.11",
        ),
        (
            "dns",
            {"reached": True, "code": 0, "addresses": ["10.10.0.9"]},
            "web.app.example is 10.10.0.9, says 10.10.0.1 to b; the plan says 10.10.0.11",
        ),
        ("nat", {"reached": False, "answers": False}, "the gateway 10.10.0.1 does not answer b's ARP"),
        (
            "nat",
            {"reached": True, "answers": False},
            "no answer from 198.18.0.12 through 10.10.0.1: a does not translate, or does not pass it on",
        ),
    ],
)
def test_what_a_router_does_not_do(what, answer, says):
    def change(_, f):
        f["b"]["checks"]["app"][what] = answer

    bad = [check for check in result(change).checks if not check.good]
    assert bad == [Check(what.upper(), False, says)]


def test_an_offer_that_does_not_get_there():
    def change(r, f):
        tunnel(r, "a", flood=[C])
        deaf(f, "a", "b")
        f["b"]["checks"]["app"]["dhcp"] = None

    assert result(change).checks[0] == Check("DHCP", False, "no offer of a gets to b; see a -> b")


def test_the_address_to_ask_from_is_taken():
    def change(_, f):
        f["b"]["checks"]["app"] = {"dhcp": f["b"]["checks"]["app"]["dhcp"], "taken": True}

    says = "10.10.0.127, from which b would ask, is somebody's; put it under reserved"
    assert result(change).checks[1:] == [Check("DNS", None, says), Check("NAT", None, says)]


def test_nobody_can_ask():
    def gone(_, f):
        del f["b"]["checks"]["app"]

    assert {(check.good, check.says) for check in result(gone).checks} == {(None, "b was not asked")}
    run = verification()
    run.go({"a": ready(run)["a"]})
    says = "no host of the segment is there to ask, other than its router"
    assert run.unasked["app"] == [Check(what, None, says) for what in ("DHCP", "DNS", "NAT")]


def test_no_free_address():
    raw = copy.deepcopy(RAW)
    raw["segments"]["app"].update(subnets=["10.10.0.0/29"], reserved=[f"10.10.0.{n}" for n in (2, 3, 4)])
    raw["segments"]["app"]["dhcp"]["range"] = "10.10.0.6-10.10.0.6"
    raw["segments"]["app"]["containers"]["web"]["address"] = "10.10.0.5"
    run = verification(raw)
    run.go(ready(run))
    says = "there is no free IPv4 address to ask from, or nothing to ask for"
    assert run.unasked["app"] == [Check("DNS", None, says), Check("NAT", None, says)]


def test_docker_has_another_address():
    raw = copy.deepcopy(RAW)
    app = raw["segments"]["app"]
    del app["dhcp"]
    app.update(addresses={h: f"10.10.0.{n}" for n, h in enumerate("abc", 1)}, bridge={"docker": {"create": True}})
    app["bridge"]["docker"]["ranges"] = {h: f"10.10.0.{64 * n}/26" for n, h in enumerate("abc", 1)}
    app["containers"]["web"]["runtime"] = "docker"
    app["containers"]["db"] = {"host": "b", "address": "10.10.0.12", "runtime": "docker"}
    run = verification(raw)
    says = ready(run)
    run.go(says)
    run.checks["app"] = ("b", {})
    answers = found(run)
    [network] = run.requests()["b"]["docker"]
    answers["b"]["docker"] = {network: {"web": "10.10.0.77"}}
    answers["b"]["checks"] = {"app": {}}
    bad = run.result(says, answers)["app"].checks
    assert bad == [Check("Docker", False, "web on b has 10.10.0.77, the plan says 10.10.0.11")]
    answers["b"]["docker"] = {network: {"web": "10.10.0.11"}}
    assert run.result(says, answers)["app"].checks == [Check("Docker", True, "web on b has 10.10.0.11")]


# -- overlay capture -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (None, {}),
        ("arp", {"protocol": "arp"}),
        ("udp port 53 host 10.10.0.1", {"protocol": "udp", "port": 53, "host": "10.10.0.1"}),
        ("host FD00::0001", {"host": "fd00::1"}),
    ],
)
def test_a_filter(words, expected):
    assert filter_of(words) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("vlan", "vlan"),
        ("udp tcp", "tcp"),
        ("port", "port"),
        ("port http", "port http"),
        ("port 65536", "port 65536"),
        ("host web", "host web"),
    ],
)
def test_a_filter_that_is_wrong(words, said):
    with pytest.raises(ConfigErrors) as error:
        filter_of(words)
    allowed = f"{', '.join(PROTOCOLS)}, host ADDRESS, port NUMBER"
    assert error.value.errors == [f"--filter: {said!r} is not understood; write each once of {allowed}"]


def test_the_agent_knows_the_same_protocols():
    assert set(PROTOCOLS) == {"arp", "ip", "ip6", *agents.PROTOCOLS}


def test_where_to_listen():
    run = verification()
    config = load_config(RAW)
    assert where(run.made, config, "app", "a", underlay=False) == ("br-app", {})
    wanted = {"protocol": "udp", "port": 4789}
    assert where(run.made, config, "app", "a", underlay=True) == (f"to:{B}", wanted)
    raw = copy.deepcopy(RAW)
    raw["defaults"] = {"underlay": {"device": "eth1"}}
    assert where(verification(raw).made, load_config(raw), "app", "a", underlay=True) == ("eth1", wanted)
    del raw["segments"]["app"]["tunnels"]
    raw["segments"]["app"]["hosts"] = ["a"]
    raw["segments"]["app"]["containers"] = {}
    with pytest.raises(ConfigErrors) as error:
        where(verification(raw).made, load_config(raw), "app", "a", underlay=True)
    assert error.value.errors == ["--underlay: app has no tunnel on a; leave --underlay out"]


@pytest.mark.parametrize(("order", "sizes"), [("<", [60, 1500]), (">", [60]), ("<", [])])
def test_packets_of_a_file_are_counted(order, sizes):
    head = struct.pack(f"{order}IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65536, 1)
    assert packets(head + b"".join(struct.pack(f"{order}IIII", 0, 0, n, n) + b"x" * n for n in sizes)) == len(sizes)


ANYCAST = {
    **RAW,
    "segments": {
        "app": {
            **{key: value for key, value in RAW["segments"]["app"].items() if key != "addresses"},
            "gateway": "anycast",
            "dhcp": {"masquerade": True},
        }
    },
}


@pytest.mark.parametrize(
    ("mac", "held", "other", "says"),
    [
        ("", [], None, "10.10.0.1 is on a and c, for the containers of each"),
        ("02:00:00:00:00:99", [], None,
         "b's br-app has MAC address 02:00:00:00:00:99, not the gateway's {mac}; run `pulumi up`"),
        ("", ["10.10.0.9"], None, "b's br-app lacks 10.10.0.1; run `pulumi up`"),
        ("", [], "02:00:00:00:00:98",
         "02:00:00:00:00:98 answers b's ARP for 10.10.0.1, which is b's own; take it away there"),
    ],
    ids=["good", "mac", "address", "another"],
)  # fmt: skip
def test_each_host_is_the_anycast_gateway(mac, held, other, says):
    run = verification(ANYCAST)
    gateway = run.segments["app"]["anycast"]
    assert run.requests()["b"]["segments"]["app"]["anycast"] is True
    answers = ready(run)
    for host in ("a", "b", "c"):
        state = {"mac": gateway, "addresses": ["10.10.0.1"]}
        answers[host]["ready"]["app"]["gateway"] = state
    if mac or held or other:
        answers["b"]["ready"]["app"]["gateway"] = {"mac": mac or gateway, "addresses": held or ["10.10.0.1"]}
    else:
        del answers["b"]["ready"]["app"]["gateway"]
    asked = run.go(answers)
    assert asked["b"]["checks"]["app"] == {"source": None, "own": False, "gateway": "10.10.0.1"}
    others = {"segments": {}, "underlay": {}, "docker": {}}
    results = {h: {**others, "checks": {"app": {"gateway": other if h == "b" else None}}} for h in ("a", "b", "c")}
    for host, one in results.items():
        peers = [name for name in results if name != host]
        one["segments"] = {"app": {"heard": peers, "answered": peers, "rtt": {}, "full": peers}}
    checks = run.result(answers, results)["app"].checks
    assert [(c.what, c.good, c.says) for c in checks if c.what == "gateway"] == [
        ("gateway", not (mac or held or other), says.format(mac=gateway))
    ]
    # The others are each host's own, whom no other can ask.
    assert {(c.what, c.good, c.says) for c in checks if c.what != "gateway"} == {
        (what, None, "each host serves the containers on it, so only they could ask") for what in ("DHCP", "DNS", "NAT")
    }
