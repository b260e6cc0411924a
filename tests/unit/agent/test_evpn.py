"""What FRR is told, what its running configuration means, and what is sent to get from one to the other."""

from __future__ import annotations

import dataclasses
import textwrap

import pytest

from overlay_agent import document, fields, frr
from overlay_agent.diff import diff
from overlay_agent.fields import EXTRA, MISSING
from overlay_agent.kinds import KINDS
from overlay_agent.kinds.evpn import KIND, Evpn
from overlay_agent.kinds.vxlan import Vxlan, filled_by_frr

SECRET = "bgp:0123456789abcdef"
CLIENT = Evpn(
    asn=65000, router_id="198.18.0.13", local="198.18.0.13", password=SECRET, vnis={"42": {}},
    neighbors={"a": "198.18.0.11", "b": "198.18.0.12"},
)  # fmt: skip
REFLECTOR = Evpn(
    asn=4200000001, router_id="198.18.0.11", local="2001:db8::11", neighbors={"b": "2001:db8::12", "x": "2001:db8::13"},
    reflector=True, clients={"x": {}}, ranges={"2001:db8::/64": {}}, bfd=True, port=1790, keepalive=10, hold=30,
    vnis={"7": {"rd": "198.18.0.11:7", "import": {"65000:1": {}}, "export": {"65000:1": {}, "59905:7": {}}}, "42": {}},
)  # fmt: skip
AS_CLIENT = """\
bgp route-map delay-timer 1
router bgp 65000
 bgp router-id 198.18.0.13
 no bgp default ipv4-unicast
 neighbor peers peer-group
 neighbor peers remote-as 65000
 neighbor peers password s3cret
 neighbor peers update-source 198.18.0.13
 neighbor peers timers 3 9
 neighbor peers timers connect 2
 neighbor 198.18.0.11 peer-group peers
 neighbor 198.18.0.11 description a
 neighbor 198.18.0.12 peer-group peers
 neighbor 198.18.0.12 description b
 address-family l2vpn evpn
  neighbor peers activate
  neighbor peers route-map told out
  advertise-all-vni
 exit-address-family
exit
bgp extcommunity-list standard told seq 4200 permit rt 65000:42
route-map told permit 10
 match extcommunity told
exit
"""


def reading(spec, lines, password=None):
    secrets = {b"s3cret": SECRET}
    return frr.parsed(lines, lambda value: secrets.get(value, "another"), running=True, port=spec.port)


def test_a_clients_configuration():
    assert frr.text(frr.paths(CLIENT, "s3cret")) == AS_CLIENT


@pytest.mark.parametrize(
    "line",
    [
        "bgp listen limit 65535",
        "bgp listen range 2001:db8::/64 peer-group clients",
        "neighbor 2001:db8::13 peer-group clients",
        "neighbor 2001:db8::12 peer-group peers",
        "neighbor 2001:db8::12 port 1790",
        "neighbor clients bfd",
        "neighbor clients route-reflector-client",
        "neighbor peers route-map heard in",
        "rd 198.18.0.11:7",
        # The one that FRR derives comes last: before another it is passed over. It has the lower two bytes of the ASN.
        "route-target export 65000:1\n    route-target export 59905:7",
        "bgp extcommunity-list standard told seq 4200 permit rt 59905:42",
        "bgp extcommunity-list standard told seq 701 permit rt 59905:7",
        "set large-community 4200000001:0:1 additive",
        "match large-community heard",
    ],
)
def test_a_reflectors_configuration(line):
    assert f" {line}\n" in " " + frr.text(frr.paths(REFLECTOR, None)).replace("\n", "\n ")


@pytest.mark.parametrize("spec", [CLIENT, REFLECTOR, dataclasses.replace(CLIENT, vnis={}, password=None)])
def test_what_is_written_is_read_as_what_was_meant(spec):
    password = "s3cret" if spec.password else None
    lines = frr.paths(spec, password)
    assert reading(spec, frr.lines_of(frr.text(lines, "! a comment"))) == spec
    # As `show running-config` frames it.
    shown = "Building configuration...\n\nCurrent configuration:\n!\nfrr version 8.4.4\nfrr defaults traditional\n"
    assert reading(spec, frr.lines_of(f"{shown}hostname x\n!\n{frr.text(lines)}!\nend\n")) == spec


TOP = "router bgp 65000"


@pytest.mark.parametrize(
    ("old", "new", "rows"),
    [
        (" neighbor peers timers 3 9\n", " neighbor peers timers 5 15\n", [("keepalive", 5, 3), ("hold", 15, 9)]),
        (" password s3cret", " password other", [("password", "another", SECRET)]),
        (" advertise-all-vni\n", "\n", [(f"line {TOP} / address-family l2vpn evpn / advertise-all-vni", None, {})]),
        (" bgp router-id 198.18.0.13\n", " bgp router-id 198.18.0.9\n", [("routerId", "198.18.0.9", "198.18.0.13")]),
        (" bgp router-id 198.18.0.13\n", "", [("routerId", "0.0.0.0", "198.18.0.13")]),
        (" neighbor peers update-source 198.18.0.13\n", "", [("local", "0.0.0.0", "198.18.0.13")]),
        (" neighbor peers timers connect 2\n", " neighbor peers timers connect 2\n neighbor peers shutdown\n",
         [(f"line {TOP} / neighbor peers shutdown", {}, None)]),
        (" neighbor peers timers connect 2\n",
         " neighbor peers timers connect 2\n neighbor 198.18.0.9 password s3cret\n",
         [(f"line {TOP} / neighbor 198.18.0.9 password <secret>", {}, None)]),
        (" neighbor 198.18.0.11 peer-group peers\n neighbor 198.18.0.11 description a\n", "",
         [("peer a", None, "198.18.0.11")]),
        ("bgp extcommunity-list standard told seq 4200 permit rt 65000:42\n", "", [("vni 42", None, {})]),
        ("match extcommunity told", "match extcommunity x",
         [("line route-map told permit 10 / match extcommunity told", None, {}),
          ("line route-map told permit 10 / match extcommunity x", {}, None)]),
    ],
)  # fmt: skip
def test_what_was_typed_by_hand_shows_as_what_it_changes(old, new, rows):
    assert old in AS_CLIENT
    found = reading(CLIENT, frr.lines_of(AS_CLIENT.replace(old, new)))
    changes = diff({"evpn": CLIENT}, {"evpn": found})
    assert [row for change in changes for row in change.rows] == rows
    assert "s3cret" not in str(changes)


@pytest.mark.parametrize(
    ("change", "sent"),
    [
        ({}, ""),
        ({"vnis": {"42": {}, "43": {}}}, "bgp extcommunity-list standard told seq 4300 permit rt 65000:43\n"),
        ({"vnis": {}}, "no bgp extcommunity-list standard told seq 4200 permit rt 65000:42\n"),
        ({"neighbors": {"a": "198.18.0.11"}}, "router bgp 65000\n no neighbor 198.18.0.12\nexit\n"),
        ({"neighbors": {"a": "198.18.0.11", "c": "198.18.0.12"}},
         "router bgp 65000\n neighbor 198.18.0.12 description c\nexit\n"),
        ({"password": None}, "router bgp 65000\n no neighbor peers password s3cret\nexit\n"),
        ({"keepalive": 5, "hold": 15}, "router bgp 65000\n neighbor peers timers 5 15\nexit\n"),
        ({"vnis": {"42": {"rd": "198.18.0.13:1"}}},
         """\
         router bgp 65000
          address-family l2vpn evpn
           vni 42
          exit-address-family
         exit
         router bgp 65000
          address-family l2vpn evpn
           vni 42
            rd 198.18.0.13:1
           exit-vni
          exit-address-family
         exit
         """),
        ({"vnis": {"42": {"svi": True}}},
         """\
         router bgp 65000
          address-family l2vpn evpn
           vni 42
          exit-address-family
         exit
         router bgp 65000
          address-family l2vpn evpn
           vni 42
            advertise-svi-ip
           exit-vni
          exit-address-family
         exit
         """),
        ({"reflector": True, "clients": {"b": {}}}, None),
        ({"asn": 65001}, None),
    ],
)  # fmt: skip
def test_no_more_is_sent_than_what_differs(change, sent):
    spec = dataclasses.replace(CLIENT, **change)
    old, new = frr.paths(CLIENT, "s3cret"), frr.paths(spec, "s3cret" if spec.password else None)
    if sent is not None:
        assert frr.changes(old, new) == textwrap.dedent(sent)
    there = frr.changes(old, new)
    back = frr.changes(new, old)
    assert (there == "") == (back == "") == (old == new)
    if change.get("asn"):
        assert "no router bgp 65000\n" in there
        assert "no neighbor" not in there
    if change.get("reflector"):  # who changes the group is made anew, and is there first as a neighbor of the new one
        assert there.index("no neighbor 198.18.0.12\n") < there.index("neighbor 198.18.0.12 peer-group clients\n")
        assert "198.18.0.11" not in there
        assert back.index("no neighbor 198.18.0.12\n") < back.index("no neighbor clients peer-group\n")
        assert "no route-map told permit 20\n" in back


def test_what_hand_and_undo_put_beside_is_written_again():
    found = reading(CLIENT, [*frr.lines_of(AS_CLIENT), (TOP, "neighbor peers shutdown")])
    assert found.lines == {f"{TOP} / neighbor peers shutdown": EXTRA}
    lacking = reading(CLIENT, [path for path in frr.lines_of(AS_CLIENT) if "advertise" not in path[-1]])
    assert lacking.lines == {f"{TOP} / address-family l2vpn evpn / advertise-all-vni": MISSING}
    assert fields.as_found(Evpn, fields.to_json(found)) == found


@pytest.mark.parametrize(
    ("more", "is_filled"),
    [
        ({}, True),
        ({"learning": True}, False),
        ({"port_learning": True}, False),
        ({"neigh_suppress": False}, False),
        ({"group": "239.1.1.1"}, False),
    ],
)
def test_what_frr_put_into_a_tunnel_is_no_drift(more, is_filled):
    usual = {"learning": False, "port_learning": False, "neigh_suppress": True}
    spec = Vxlan(mtu=1450, mac="02:00:00:00:00:02", vni=42, local="198.18.0.11", **{**usual, **more})
    found = dataclasses.replace(spec, peers={"198.18.0.12": "198.18.0.12"})
    assert filled_by_frr(spec) is is_filled
    rows = [row for change in diff({"vx": spec}, {"vx": found}) for row in change.rows]
    assert rows == ([] if is_filled else [("peer 198.18.0.12", {}, None)])


def test_the_commands_by_hand_do_not_show_the_password():
    lines = [command[2] for command in KIND.commands("evpn", CLIENT, "overlay:p/s/evpn")]
    config = next(line for line in lines if "bgpd.conf <<END" in line)
    assert f" neighbor peers password $(cat /var/lib/overlay/secrets/p/s/{SECRET})\n" in config
    assert [line.split()[1:3] for line in lines if line.endswith(" -d")] == [["-N", "overlay"]] * 2
    assert len([1 for c in KIND.commands("evpn", REFLECTOR, "overlay:p/s/evpn") if c[2].endswith(" -d")]) == 3


def test_what_firewalls_must_let_in():
    assert [str(one) for one in KIND.listens(CLIENT)] == ["tcp 179"]
    peers = ("2001:db8::12", "2001:db8::13", "2001:db8::/64")
    assert [(str(one), one.peers) for one in KIND.listens(REFLECTOR)] == [("tcp 1790", peers), ("udp 3784", peers)]


def test_many_targets_are_refused():
    many = {f"65000:{number}": {} for number in range(1, 102)}
    assert KIND.wrong(dataclasses.replace(CLIENT, vnis={"42": {"export": many}})) == [
        "vnis.42.export: 101 route targets; at most 100 are taken"
    ]
    assert KIND.wrong(dataclasses.replace(CLIENT, lines={"x": EXTRA})) == [
        "lines: x; they are found on a host, and not to be asked for"
    ]


def test_one_evpn_as_a_document_holds_it():
    raw = {
        "schema": 1, "owner": {"project": "p", "stack": "s", "id": "i"}, "host": "a", "devices": {},
        "services": {"evpn": fields.to_json(CLIENT)},
    }  # fmt: skip
    assert document.to_json(document.parse(raw)) == raw
    assert KINDS["evpn"].program
