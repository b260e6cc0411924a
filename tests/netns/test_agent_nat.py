"""Masquerade, forwards and public addresses: real traffic, what others change by hand, what cannot be."""

from __future__ import annotations

import copy
import json
import re

import pytest
from agent_support import PYTHON, Node, bridge, container, document

S4, S6 = "10.10.0.0/24", "fd00::/64"
FORWARDS = {
    "tcp/8080": {"address": "10.10.0.5", "address6": "fd00::5", "ports": "80"},
    "tcp/7000-7002": {"address": "10.10.0.5"},
    "udp/5000-5002": {"address": "10.10.0.5", "ports": "6000-6002"},
    "udp/5353": {"address": "fd00::5", "ports": "53"},
}
PUBLIC = {"198.18.0.50": "10.10.0.6", "2001:db8::50": "fd00::6"}
BOTH = {S4: {}, S6: {}}
FULL = {"subnets": BOTH, "masquerade": BOTH, "forwards": FORWARDS, "publicAddresses": PUBLIC, "mssClamp": True}


def nat(**more):
    return {"nat": {"kind": "nat", "interface": "br-app", **more}}


def with_nat(owner=None, **more):
    addresses = {"10.10.0.1/24": {}, "fd00::1/64": {}}
    return document(owner, br_app=bridge(addresses=addresses), services=nat(**more))


def table(host):
    rows = [row["table"] for row in json.loads(host.run("nft -j list tables").out)["nftables"] if "table" in row]
    return next(row["name"] for row in rows if row["name"].startswith("overlay-"))


@pytest.fixture
def place(host, new_host):
    """The host with two containers, c5 and c6, and somebody outside at the end of its wire."""
    other = new_host(agent=False, machine="e" * 32)
    other.run("ip link delete u0")
    host.run("ip", "link", "set", "u1", "netns", str(other._holder.pid))
    for address in ("198.18.0.99/24", "2001:db8::99/64"):
        other.run("ip", "address", "add", address, "dev", "u1", *(["nodad"] if ":" in address else []))
    other.run("ip link set u1 up")
    # Forwarding is another kind's.
    host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    host.apply(document(br_app=with_nat()["devices"]["br-app"]))
    c5, c6 = (
        container(host, f"c{n}", "br-app", f"10.10.0.{n}/24", f"fd00::{n}/64", gateways=("10.10.0.1", "fd00::1"))
        for n in (5, 6)
    )
    running = [
        Node(other, "outside").answer("tcp/90", "udp/90"),
        c5.answer("tcp/80", "tcp/7001", "udp/6001", "udp/53"),
        c6.answer("tcp/81"),
    ]
    yield host, Node(other, "outside"), c5, c6
    for process in running:
        process.kill()
        process.communicate()


#: Who asks what of whom, and the answer: who answered, on which port, and whom it saw.
TRAFFIC = [
    # out of the segment
    ("c5", "198.18.0.99", "tcp/90", "outside tcp/90 198.18.0.11"),
    ("c5", "2001:db8::99", "udp/90", "outside udp/90 2001:db8::11"),
    # forwards, from outside
    ("outside", "198.18.0.11", "tcp/8080", "c5 tcp/80 198.18.0.99"),
    ("outside", "2001:db8::11", "tcp/8080", "c5 tcp/80 2001:db8::99"),
    ("outside", "198.18.0.11", "tcp/7001", "c5 tcp/7001 198.18.0.99"),
    ("outside", "198.18.0.11", "udp/5001", "c5 udp/6001 198.18.0.99"),
    ("outside", "2001:db8::11", "udp/5353", "c5 udp/53 2001:db8::99"),
    ("outside", "198.18.0.11", "udp/5353", "no answer"),
    ("outside", "198.18.0.11", "tcp/8081", "no answer"),
    # from the host itself
    ("host", "198.18.0.11", "tcp/8080", "c5 tcp/80 198.18.0.11"),
    ("host", "2001:db8::11", "tcp/8080", "c5 tcp/80 2001:db8::11"),
    ("host", "127.0.0.1", "tcp/8080", "no answer"),
    # from the segment
    ("c6", "198.18.0.11", "tcp/8080", "c5 tcp/80 10.10.0.1"),
    ("c6", "10.10.0.1", "udp/5001", "c5 udp/6001 10.10.0.1"),
    ("c6", "2001:db8::11", "tcp/8080", "c5 tcp/80 fd00::1"),
    # public addresses, both ways
    ("outside", "198.18.0.50", "tcp/81", "c6 tcp/81 198.18.0.99"),
    ("outside", "2001:db8::50", "tcp/81", "c6 tcp/81 2001:db8::99"),
    ("c6", "198.18.0.99", "tcp/90", "outside tcp/90 198.18.0.50"),
    ("c6", "2001:db8::99", "tcp/90", "outside tcp/90 2001:db8::50"),
    ("host", "198.18.0.50", "tcp/81", "c6 tcp/81 198.18.0.50"),
    ("c5", "198.18.0.50", "tcp/81", "c6 tcp/81 10.10.0.1"),
    # within the segment nothing is translated
    ("c6", "10.10.0.5", "tcp/80", "c5 tcp/80 10.10.0.6"),
]


@pytest.mark.parametrize("bridged", [0, 1], ids=["without br_netfilter", "with br_netfilter"])
def test_who_reaches_whom(place, bridged):
    host, outside, c5, c6 = place
    host.run(f"sysctl -qw net.bridge.bridge-nf-call-iptables={bridged} net.bridge.bridge-nf-call-ip6tables={bridged}")
    before = host.state()
    host.apply(with_nat(**FULL))
    nodes = {"outside": outside, "host": Node(host, "host"), "c5": c5, "c6": c6}
    # br_netfilter hands the frame back to the bridge, which sends none out of the port that it came by.
    itself = [("c5", "198.18.0.11", "tcp/8080", "no answer" if bridged else "c5 tcp/80 10.10.0.1")]
    wanted = TRAFFIC + itself
    # Who is to answer may be busy; who is not gets a second.
    patience = {"no answer": 1}
    found = [nodes[who].ask(where, port, patience.get(told, 10)) for who, where, port, told in wanted]
    assert [(*row[:3], told) for row, told in zip(wanted, found, strict=True)] == wanted
    assert outside.pings("198.18.0.50")
    host.apply(document(br_app=with_nat()["devices"]["br-app"]))
    assert outside.ask("198.18.0.11", "tcp/8080", 0.3) == "no answer"
    assert host.state() == before


#: Connects, and prints how large a segment of TCP it may send (tcp(7), TCP_MAXSEG).
SEGMENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 3) as s:
    print(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
"""


def test_segments_fit_through_the_narrower_way(place):
    """Where nobody is told that a packet is too big, as behind many filters."""
    host, outside, c5, _ = place
    ways = [(c5, "198.18.0.99", 90), (c5, "2001:db8::99", 90), (outside, "198.18.0.11", 8080),
            (outside, "2001:db8::11", 8080)]  # fmt: skip

    def segments():
        return [int(node.run(f"{PYTHON} -c '{SEGMENT}' {address} {port}").out) for node, address, port in ways]

    host.run("ip link set u0 mtu 1300")
    host.apply(with_nat(**{**FULL, "mssClamp": False}))
    timestamps = 12  # bytes of each segment's header (RFC 7323)
    assert segments() == [1500 - 40 - timestamps, 1500 - 60 - timestamps] * 2
    host.apply(with_nat(**FULL))
    assert segments() == [1300 - 40 - timestamps, 1300 - 60 - timestamps] * 2


def test_a_new_forward_costs_no_packet_and_no_connection(place):
    host, outside, *_ = place
    host.apply(with_nat(**FULL))
    pings = outside.host.popen("ping", "-i", "0.01", "-c", "100", "198.18.0.50", stdout=-1, text=True)
    for port in range(9000, 9005):
        host.apply(with_nat(**{**FULL, "forwards": {**FORWARDS, f"tcp/{port}": {"address": "10.10.0.5"}}}))
    assert " 0% packet loss" in pings.communicate()[0]


def test_its_life(host):
    before = host.state()
    bare = document(br_app=with_nat()["devices"]["br-app"])
    host.apply(bare)
    there = host.state()
    wanted = with_nat(**FULL)
    assert host.apply(wanted).lines == [
        (
            "nat: created (nat, interface br-app, 10.10.0.0/24, fd00::/64, 10.10.0.0/24, fd00::/64, tcp/8080, "
            "tcp/7000-7002, udp/5000-5002, udp/5353, 198.18.0.50, 2001:db8::50, mssClamp on)"
        )
    ]
    assert host.apply(wanted).lines == ["a: nothing to do, 2 objects as declared"]
    assert host.agent("check").report == {"drift": []}
    assert host.agent("show").report["p/s"]["nat"] == {**nat(**FULL)["nat"]}
    less = {**FULL, "publicAddresses": {"198.18.0.50": "10.10.0.5"}, "masquerade": {S4: {}}, "mssClamp": False}
    assert host.apply(with_nat(**less)).lines == [
        "nat: - masquerade fd00::/64",
        "nat: public address 198.18.0.50 10.10.0.6 -> 10.10.0.5",
        "nat: - public address 2001:db8::50 fd00::6",
        "nat: mssClamp on -> off",
    ]
    assert "2001:db8::50" not in host.run("ip address show dev u0").out
    assert host.apply(bare).lines == ["nat: removed"]
    assert host.state() == there
    host.agent("remove", "p/s")
    assert host.state() == before


def test_what_explain_says_makes_the_same(host):
    wanted = with_nat(**FULL)
    host.run("sh", "-e", text=host.agent("explain", document=wanted).out)
    assert host.apply(wanted).lines == ["a: nothing to do, 2 objects as declared (first document)"]


def test_what_is_routed_is_not_translated(place):
    host, outside, c5, c6 = place
    outside.run("ip route add 10.10.0.0/24 via 198.18.0.11")
    outside.run("ip -6 route add fd00::/64 via 2001:db8::11")
    host.apply(with_nat(masquerade=BOTH, routed={"198.18.0.0/24": {}}, publicAddresses=PUBLIC))
    assert c5.ask("198.18.0.99", "tcp/90", 10) == "outside tcp/90 10.10.0.5"
    assert c6.ask("198.18.0.99", "tcp/90", 10) == "outside tcp/90 10.10.0.6", "nor to its public address"
    assert c5.ask("2001:db8::99", "tcp/90", 10) == "outside tcp/90 2001:db8::11"
    assert outside.ask("10.10.0.5", "tcp/80", 10) == "c5 tcp/80 198.18.0.99"
    host.run("nft", "flush", "chain", "inet", table(host), "postrouting")
    assert "nat: lacks routed 198.18.0.0/24" in host.agent("check", code=2).report["drift"]
    host.apply(with_nat(masquerade=BOTH, routed={"198.18.0.0/24": {}}, publicAddresses=PUBLIC))
    assert c5.ask("198.18.0.99", "udp/90", 10) == "outside udp/90 10.10.0.5"


#: What somebody does by hand ({t}: the table; {0}, {1}, …: handles of the rules in the chain that stands before), what
#: `check` says of it. All is mended by `apply`.
DRIFT = {
    "address gone": ("ip address del 198.18.0.50/32 dev u0", ["lacks public address 198.18.0.50 10.10.0.6"]),
    "address of IPv6 gone": ("ip address del 2001:db8::50/128 dev u0", ["lacks public address 2001:db8::50 fd00::6"]),
    "table gone": ("nft delete table inet {t}", ["is not there"]),
    "chain emptied": (
        "nft flush chain inet {t} postrouting",
        [
            "lacks subnet 10.10.0.0/24", "lacks subnet fd00::/64",
            "lacks masquerade 10.10.0.0/24", "lacks masquerade fd00::/64",
            "lacks public address 198.18.0.50 10.10.0.6", "lacks public address 2001:db8::50 fd00::6",
            ("has rule chain output: ip daddr 198.18.0.50 dnat ip to 10.10.0.6 comment "
            '"br-app: public 198.18.0.50 to 10.10.0.6" that is not declared'), "…",
        ],
    ),
    "a rule gone": (
        "nft delete rule inet {t} output handle {8080}",
        ["lacks forward tcp/8080 {{'address': '10.10.0.5', 'address6': 'fd00::5', 'ports': '80'}}", "…"],
    ),
    "a rule more": (
        "nft add rule inet {t} postrouting udp dport 53 accept",
        ["has rule chain postrouting: udp dport 53 accept that is not declared"],
    ),
    "a rule first": (
        "nft insert rule inet {t} prerouting tcp dport 8080 accept",
        ["has rule chain prerouting: tcp dport 8080 accept that is not declared"],
    ),
    "a chain more": ("nft add chain inet {t} extra", ["has rule chain extra that is not declared"]),
    "a set more": (
        "nft 'add set inet {t} s {{ type ipv4_addr; }}'",
        ["has rule set s that is not declared", "has rule set s: type ipv4_addr that is not declared"],
    ),
    "switched off": ("nft 'add table inet {t} {{ flags dormant; }}'", ["has rule flags dormant that is not declared"]),
    "a rule twice": (
        ("nft add rule inet {t} postrouting ip saddr 10.10.0.0/24 ip daddr != 10.10.0.0/24 oifname != br-app "
        "masquerade comment '\"br-app: masquerade 10.10.0.0/24\"'"),
        ["lacks masquerade 10.10.0.0/24", "…"],
    ),
    "the clamp gone": (
        "nft flush chain inet {t} forward", ["mssClamp want on, is off", "…"]
    ),
    "a mixed one": (
        "nft add rule inet {t} postrouting accept comment '\"br-app: public 198.18.0.9 to fd00::9\"'",
        ['has rule chain postrouting: accept comment "br-app: public 198.18.0.9 to fd00::9" that is not declared'],
    ),
    "somebody's comment": (
        "nft add rule inet {t} postrouting accept comment '\"br-app: forward tcp/0 to x\"'",
        ['has rule chain postrouting: accept comment "br-app: forward tcp/0 to x" that is not declared'],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DRIFT)
def test_what_was_changed_by_hand_is_seen_and_mended(host, name):
    command, drift = DRIFT[name]
    host.apply(with_nat(**FULL))
    before = host.state()
    listing = host.run("nft", "-a", "list", "chain", "inet", table(host), "output").out
    handle = re.search(r"ip daddr.* dport 8080 .* # handle (\d+)", listing)[1]
    host.run("sh", "-c", command.replace("{8080}", handle).format(t=table(host)))
    found = host.agent("check", code=2).lines
    wanted = [f"nat: {line.replace('{{', '{').replace('}}', '}')}" for line in drift]
    if wanted[-1] == "nat: …":
        wanted, found = wanted[:-1], found[: len(wanted) - 1]
    assert found == wanted
    host.apply(with_nat(**FULL))
    assert host.state() == before
    assert host.agent("check").report == {"drift": []}


def test_a_thousand_ports_are_moved(host):
    wanted = with_nat(forwards={"tcp/10000-10999": {"address": "10.10.0.5", "ports": "20000-20999"}})
    host.apply(wanted)
    assert "10999 : 20999" in host.run(f"nft list table inet {table(host)}").out
    assert "nothing to do" in host.apply(wanted).err


def test_the_order_of_rules_counts(host):
    host.apply(with_nat(**FULL))
    before = host.state()
    name = table(host)
    rules = host.run(f"nft list chain inet {name} postrouting").out.splitlines()
    moved = next(line for line in rules if " snat ip to" in line)
    text = host.run(f"nft list table inet {name}").out.replace(f"{moved}\n", "")
    at = text.rindex("\t}\n}")
    host.run("nft", "-f", "-", text=f"delete table inet {name}\n{text[:at]}{moved}\n{text[at:]}")
    assert host.agent("check", code=2).lines == ["nat: has rule not in our order that is not declared"]
    host.apply(with_nat(**FULL))
    assert host.state() == before


def test_what_somebody_added_comes_back_with_an_undo(host):
    host.apply(with_nat(**FULL))
    host.run("nft", f"insert rule inet {table(host)} prerouting udp dport 53 accept")
    host.run("ip address del 198.18.0.50/32 dev u0")
    state = host.state()
    fewer = with_nat(**{**FULL, "publicAddresses": {"198.18.0.51": "10.10.0.6"}})
    for point in range(2, 20):
        done = host.apply(fewer, code=None, OVERLAY_FAULT=str(point))
        if done.code == 0:
            break
        assert done.lines[-1].endswith("undone, the host is as it was")
        assert host.state() == state
    assert point > 4


SCENARIOS = {
    "create": ({}, FULL),
    "change": (FULL, {**FULL, "publicAddresses": {"198.18.0.50": "10.10.0.5", "198.18.0.51": "10.10.0.7"}}),
    "remove": (FULL, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("scope", ["", ":all"])
def test_killed_anywhere_it_is_as_before_or_as_wanted(new_host, name, scope):
    before, wanted = (
        with_nat(**fields) if fields else document(br_app=with_nat()["devices"]["br-app"])
        for fields in SCENARIOS[name]
    )  # fmt: skip
    for point in range(2 if scope else 1, 60, 2):
        host = new_host()
        host.apply(before)
        state, files = host.state(), host.files()
        done = host.apply(wanted, code=None, OVERLAY_FAULT=f"{point}{scope}")
        if done.code == 0:
            break
        if scope:
            host.agent("restore")
        if host.files() == files:
            assert host.state() == state
        else:
            assert host.agent("check").report == {"drift": []}
        host.apply(wanted)
        assert host.agent("check").report == {"drift": []}
        host.close()
    assert point > 4


def one(listen="tcp/80", **target):
    return {"forwards": {listen: {"address": "10.10.0.5", **target}}}


WRONG = [
    ({}, ("nat.interface: nothing is translated for br-app; give masquerade, routed, forwards, publicAddresses or "
         "mssClamp, or leave the service out")),
    ({"routed": {"10.20.0.0/16": {}, "10.20.1.0/24": {}}},
     "nat.routed: 10.20.0.0/16 and 10.20.1.0/24 overlap; give each address once"),
    (one("tcp/0"), "nat.forwards tcp/0: 0 is not within 1 to 65535"),
    (one("tcp/80-65536"), "nat.forwards tcp/80-65536: 80-65536 is not within 1 to 65535"),
    (one("tcp/90-80"), "nat.forwards tcp/90-80: 90-80 goes backwards; write 80-90"),
    (one(ports="0"), "nat.forwards tcp/80: ports: 0 is not within 1 to 65535"),
    (one("tcp/80-81", ports="90-80"), "nat.forwards tcp/80-81: ports: 90-80 goes backwards; write 80-90"),
    (one("tcp/80-85", ports="90-91"), ("nat.forwards tcp/80-85: 6 ports arrive and 2 are behind them (ports: 90-91); "
                                      "give as many, or leave ports out")),
    (one(address6="10.10.0.6"), ("nat.forwards tcp/80: address6: '10.10.0.6' beside address '10.10.0.5'; address6 is "
                                "an IPv6 address beside an IPv4 one")),
    (one("sctp/80"), ("nat.forwards: 'sctp/80' is not a protocol and a port or range of ports, such as tcp/8080 or "
                     "udp/5000-5009")),
    ({"forwards": {"tcp/80-90": {"address": "10.10.0.5"}, "tcp/85": {"address": "10.10.0.6"}}},
     "nat.forwards: tcp/80-90 and tcp/85 overlap; forward each port once"),
    ({"masquerade": {"10.10.0.0/16": {}, "10.10.1.0/24": {}}},
     "nat.masquerade: 10.10.0.0/16 and 10.10.1.0/24 overlap; give each address once"),
    ({"masquerade": {S4: {}}, "subnets": {"10.10.0.0/16": {}, "10.10.1.0/24": {}}},
     "nat.subnets: 10.10.0.0/16 and 10.10.1.0/24 overlap; give each address once"),
    ({"publicAddresses": {"198.18.0.50": "fd00::5"}},
     "nat.publicAddresses: 198.18.0.50 for fd00::5 mixes IPv4 and IPv6; give both of one version"),
    ({"publicAddresses": {"198.18.0.50": "10.10.0.5", "198.18.0.51": "10.10.0.5"}},
     ("nat.publicAddresses: 198.18.0.50 and 198.18.0.51 are both for 10.10.0.5; one can be what it sends from, so give "
     "one")),
    ({"publicAddresses": {"198.18.0.50": "198.18.0.51", "198.18.0.51": "10.10.0.5"}},
     "nat.publicAddresses: 198.18.0.51 is on both sides; an address is outside or inside"),
    ({"masquerade": {S4: {}}, "others": {"x": {}}},
     "nat.others: {'x': {}} is what only a look at the host can tell; leave it out"),
]  # fmt: skip


def test_what_contradicts_itself(host):
    state = host.state()
    for fields, message in WRONG:
        assert host.apply(with_nat(**fields), code=1).lines == [message]
    assert host.state() == state


def test_all_contradictions_are_said_at_once(host):
    fields = {**one("tcp/0"), "publicAddresses": {"198.18.0.50": "fd00::5"}}
    assert len(host.apply(with_nat(**fields), code=1).lines) == 2


def test_addresses_that_this_host_cannot_take(host):
    host.run("ip address add 198.18.0.60/24 dev u0")
    public = {
        "192.0.2.50": "10.10.0.5",
        "198.18.0.60": "10.10.0.6",
        "198.18.0.11": "10.10.0.7",
        "2001:db8:1::5": "fd00::5",
    }
    state = host.state()
    assert host.apply(with_nat(publicAddresses=public), code=1).lines == [
        (
            "a nat: publicAddresses: 192.0.2.50 is in no network of this host's NICs (u0: 198.18.0.11/24, u0: "
            "198.18.0.60/24); take one that is, or give the NIC an address of that network"
        ),
        (
            "a nat: publicAddresses: 198.18.0.60 is this host's already (on u0); take one that nobody has, or remove "
            "that one: ip address del 198.18.0.60/24 dev u0"
        ),
        (
            "a nat: publicAddresses: 198.18.0.11 is this host's already (on u0); take one that nobody has, or remove "
            "that one: ip address del 198.18.0.11/24 dev u0"
        ),
        (
            "a nat: publicAddresses: 2001:db8:1::5 is in no network of this host's NICs (u0: 2001:db8::11/64); take "
            "one that is, or give the NIC an address of that network"
        ),
        "nothing was changed",
    ]
    assert host.state() == state


def test_a_public_address_whose_table_is_gone_is_still_ours(host):
    host.apply(with_nat(**FULL))
    state = host.state()
    host.run(f"nft delete table inet {table(host)}")
    host.apply(with_nat(**FULL))
    assert host.state() == state


@pytest.mark.parametrize(
    ("listens", "wanted", "refused"),
    [
        ("tcp/8080", "tcp/8080", True), ("tcp/8080", "tcp/8000-9000", True), ("udp/8080", "udp/8080", True),
        ("udp/8080", "tcp/8080", False), ("tcp/8080", "tcp/8081", False),
    ],
)  # fmt: skip
def test_a_port_on_which_a_program_listens(host, listens, wanted, refused):
    program = Node(host, "host").answer(listens)
    document_ = with_nat(forwards={wanted: {"address": "10.10.0.5"}})
    done = host.apply(document_, code=int(refused))
    if refused:
        assert done.lines == [
            (
                f"a nat: forwards {wanted}: python3 (pid {program.pid}) listens on {listens.replace('/', ' ')} of "
                "this host, and would be cut off; take another port, or stop it"
            ),
            "nothing was changed",
        ]
    program.kill()
    program.communicate()
    # One that comes later is not reached, and hinders nothing.
    host.apply(document_)
    program = Node(host, "host").answer(listens)
    assert "nothing to do" in host.apply(document_).err
    program.kill()
    program.communicate()


LISTENERS = {"0.0.0.0": (True, False), "198.18.0.11": (True, False), "127.0.0.1": (False, False),
             "::": (True, True), "2001:db8::11": (False, True), "::1": (False, False)}  # fmt: skip
LISTEN = """
import socket, sys, time
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
s.bind((sys.argv[1], 8080)); s.listen(); print("ready", flush=True); time.sleep(1000)
"""


@pytest.mark.parametrize("address", LISTENERS)
def test_where_a_program_listens(host, address):
    program = host.popen("/usr/bin/python3", "-c", LISTEN, address, stdout=-1)
    assert program.stdout.readline() == b"ready\n"
    for target, refused in zip(("10.10.0.5", "fd00::5"), LISTENERS[address], strict=True):
        done = host.apply(with_nat(forwards={"tcp/8080": {"address": target}}), code=None)
        assert (done.code == 1 and f"(pid {program.pid}) listens on tcp 8080" in done.err) == refused
        host.agent("remove", "p/s", code=None)
    program.kill()
    program.communicate()


def test_what_another_segment_or_stack_has_already(host):
    other = {"project": "p", "stack": "t", "id": "id-of-t"}
    theirs = {"nat": {"kind": "nat", "interface": "br-t", **FULL}}
    host.apply(document(other, services=theirs, br_t=bridge(mac="02:00:00:00:00:07")))
    state = host.state()
    done = host.apply(with_nat(forwards={"tcp/7002-7010": {"address": "10.10.0.9"}}, publicAddresses=PUBLIC), code=1)
    assert done.lines == [
        "a nat: forwards tcp/7002-7010: tcp/7000-7002 goes to 10.10.0.5 already, by p/t/nat; take another port",
        "a nat: publicAddresses: 198.18.0.50 stands for 10.10.0.6 already, by p/t/nat; take another one",
        "a nat: publicAddresses: 2001:db8::50 stands for fd00::6 already, by p/t/nat; take another one",
        "nothing was changed",
    ]
    twice = with_nat(forwards={"tcp/80": {"address": "10.10.0.9"}})
    twice["services"]["web"] = copy.deepcopy(twice["services"]["nat"])
    assert host.apply(twice, code=1).lines == [
        "a web: forwards tcp/80: tcp/80 goes to 10.10.0.9 already, by nat; take another port", "nothing was changed",
    ]  # fmt: skip
    assert host.state() == state


def test_a_forward_can_change_hands_within_a_stack(host):
    first = with_nat(forwards={"tcp/80": {"address": "10.10.0.9"}, "tcp/81": {"address": "10.10.0.9"}})
    host.apply(first)
    second = with_nat(forwards={"tcp/81": {"address": "10.10.0.9"}})
    second["services"]["web"] = nat(forwards={"tcp/80": {"address": "10.10.0.7"}})["nat"]
    host.apply(second)
    assert host.agent("check").report == {"drift": []}


def test_a_bridge_that_is_not_here(host):
    assert host.apply(document(services=nat(masquerade={S4: {}})), code=1).lines == [
        "a nat: interface 'br-app' is not a bridge of this host; declare it", "nothing was changed",
    ]  # fmt: skip


def test_a_host_without_nft(host, tmp_path):
    (tmp_path / "bin").mkdir()
    assert host.apply(with_nat(**FULL), code=1, PATH=str(tmp_path / "bin")).lines == [
        (
            "a nat: nft is not on this host; install the package nftables (installPackages: true does it), or leave "
            "out masquerade, routes, forwards and publicAddresses"
        ),
        "nothing was changed",
    ]
