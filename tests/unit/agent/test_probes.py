"""Whom a rollout's probes ask, and what is said of those who answer no more."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from overlay_agent import guard, probes
from overlay_agent.kinds.bridge import Bridge
from overlay_agent.kinds.gretap import Gretap
from overlay_agent.kinds.l2tp import L2tp
from overlay_agent.kinds.vxlan import Vxlan
from overlay_agent.kinds.wireguard import Wireguard
from overlay_agent.probes import AFTER, HANDSHAKE, Targets

A, B, C = "192.0.2.11", "192.0.2.12", "192.0.2.13"
MAC = "02:00:00:00:00:01"
KEYS = ["{}{}=".format("A" * 42, letter) for letter in "ABCDEF"]
VXLAN = Vxlan(mtu=1450, mac=MAC, vni=42, local=A, peers={"b": B, "c": C})
#: As the kernel shows it: it knows no names.
SEEN = dataclasses.replace(VXLAN, peers={B: B, C: C})
GRETAP = Gretap(mtu=1462, mac=MAC, local=A, remote=B)
L2TP = L2tp(
    mtu=1446, mac=MAC, local=A, remote=B, tunnel_id=1, peer_tunnel_id=2, session_id=3, peer_session_id=4,
    local_port=1701, remote_port=1701,
)  # fmt: skip
INSIDE = {"b": "fd00::b", "c": "fd00::c"}
ENCRYPTED = Vxlan(mtu=1370, mac=MAC, vni=42, local="fd00::a", peers=INSIDE)


def wireguard(port=51820, own=KEYS[0], b=KEYS[1], c=KEYS[2]):
    peers = {
        name: {"publicKey": key, "endpoint": f"{address}:51820", "allowedIps": [f"{INSIDE[name]}/128"], "keepalive": 0}
        for name, key, address in (("b", b, B), ("c", c, C))
    }
    return Wireguard(mtu=1440, listen_port=port, public_key=own, peers=peers)


def targets(found, wanted, learned=()):
    return Targets("a", {"t": found}, {"t": wanted}, lambda _: learned)


def replaced(spec, **change):
    return dataclasses.replace(spec, **change)


@pytest.mark.parametrize(
    ("found", "wanted", "over", "under", "left_out"),
    [
        (SEEN, VXLAN, [B, C], [B, C], ""),
        (SEEN, replaced(VXLAN, mtu=1400, ttl=9, df="set", source_ports="1-9"), [B, C], [B, C], ""),
        (SEEN, replaced(VXLAN, local="192.0.2.99"), [B, C], [B, C], ""),
        (SEEN, replaced(VXLAN, peers={"c": C}), [C], [C], ""),
        (replaced(SEEN, peers={B: B}), VXLAN, [B], [B, C], ""),
        (SEEN, replaced(VXLAN, vni=43), [], [B, C], "b (192.0.2.12) and c (192.0.2.13)"),
        (SEEN, replaced(VXLAN, port=8472), [], [B, C], "b (192.0.2.12) and c (192.0.2.13)"),
        (
            replaced(SEEN, learning=False),
            replaced(VXLAN, learning=False, local="192.0.2.99"),
            [], [B, C], "b (192.0.2.12) and c (192.0.2.13)",
        ),
        (None, VXLAN, [], [B, C], ""),
        (Bridge(mtu=1450, mac=MAC), VXLAN, [], [B, C], ""),
        (VXLAN, Bridge(mtu=1450, mac=MAC), [], [], ""),
        (GRETAP, GRETAP, [B], [B], ""),
        (GRETAP, replaced(GRETAP, ttl=3), [B], [B], ""),
        (GRETAP, replaced(GRETAP, key=7), [], [B], B),
        (GRETAP, replaced(GRETAP, local=C), [], [B], B),
        (GRETAP, replaced(GRETAP, remote=C), [], [C], ""),
        (L2TP, L2TP, [B], [B], ""),
        (L2TP, replaced(L2TP, mtu=1400), [B], [B], ""),
        (L2TP, replaced(L2TP, cookie="hmac-1"), [], [B], B),
        (L2TP, VXLAN, [], [B, C], ""),
    ],
)  # fmt: skip
def test_who_is_asked(found, wanted, over, under, left_out):
    made = targets(found, wanted)
    assert made.over == ({"t": dict(zip(over, over))} if over else {})
    assert sorted(made.after) == under
    why = "what both ends must have alike changes, and until the other has it too it does not answer"
    assert made.notes == ([f"a rollout: {left_out}: not asked over t: {why}"] if left_out else [])
    assert made.patience == AFTER


def test_a_group_is_asked_as_far_as_it_was_heard_of():
    group = replaced(VXLAN, peers={}, group="239.1.1.1", device="eth0")
    made = targets(group, group, [B])
    assert (made.over, list(made.after)) == ({"t": {B: B}}, [B])
    assert targets(group, replaced(group, group="239.1.1.2"), [B]).over == {}


def test_packets_as_large_as_before_and_after():
    made = targets(replaced(SEEN, mtu=1400), VXLAN)
    assert (made.before, made.after) == ({B: 1450, C: 1450}, {B: 1500, C: 1500})
    made = targets(None, VXLAN)
    assert (made.before, made.after) == ({}, {B: 1500, C: 1500})


def inside(was, now, seen=ENCRYPTED, wanted=ENCRYPTED):
    return Targets("a", {"wg": was, "t": seen}, {"wg": now, "t": wanted}, lambda _: ())


def test_what_wireguard_carries():
    """The tunnel's ends are IPv6's, and so the ends outside are asked for in it."""
    made = inside(wireguard(), wireguard())
    assert made.over == {"t": {B: "fd00::b", C: "fd00::c"}}
    assert sorted(made.after) == [B, C, "fd00::b", "fd00::c"]
    assert made.notes == []
    assert made.patience == AFTER + HANDSHAKE


@pytest.mark.parametrize(
    ("now", "left"), [({"b": KEYS[3]}, [C]), ({"own": KEYS[4]}, []), ({"port": 51821}, [])], ids=["b's", "own", "port"]
)
def test_new_keys(now, left):
    made = inside(wireguard(), wireguard(**now))
    assert list(made.over.get("t", {})) == left
    assert sorted(made.after) == sorted([B, C, *(INSIDE["c"] for _ in left)]), "the underlay's own are asked"
    assert len(made.notes) == 1


def test_a_peer_that_has_moved_behind_its_nat():
    seen = wireguard()
    seen.peers["b"]["endpoint"] = f"{C}:4711"
    made = inside(seen, wireguard())
    assert (made.over, made.notes) == ({"t": {B: "fd00::b", C: "fd00::c"}}, [])


def test_encryption_comes_and_goes():
    came = inside(None, wireguard(), SEEN)
    went = Targets("a", {"t": ENCRYPTED}, {"t": VXLAN}, lambda _: ())
    assert (came.over, sorted(came.after)) == ({}, [B, C])
    assert (went.over, sorted(went.after)) == ({}, [B, C])


def test_spanning_tree_takes_its_time():
    bridge = Bridge(mtu=1450, mac=MAC, stp=True, forward_delay=4)
    assert Targets("a", {}, {"br": bridge, "t": VXLAN}, lambda _: ()).patience == AFTER + 8


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ({("t", B)}, "b (192.0.2.12) answered before this change and does not after it over t"),
        (
            {("t", B), ("t", C), ("", C), ("/full", C)},
            (
                "c (192.0.2.13) answered before this change and does not after it over the underlay; "
                "b (192.0.2.12) and c (192.0.2.13) answered before this change and do not after it over t"
            ),
        ),
        (
            {("/full", B)},
            (
                "b (192.0.2.12) answered before this change and does not after it to packets of 1500 bytes over the "
                "underlay"
            ),
        ),
    ],
)
def test_who_answers_no_more(left, said):
    assert targets(SEEN, VXLAN).lost(left) == f"a rollout: {said}"


def test_of_many_some_are_asked_and_fewer_named():
    peers = {f"h{n}": f"192.0.2.{n}" for n in range(100, 200)}
    many = replaced(VXLAN, peers=peers)
    made = targets(many, many)
    assert len(made.over["t"]) == len(made.after) == 64
    said = targets(many, replaced(many, vni=9)).notes[0]
    assert said.startswith(
        "a rollout: h100 (192.0.2.100), h101 (192.0.2.101), h102 (192.0.2.102) and 97 more: not asked"
    )


@pytest.fixture
def asked(monkeypatch):
    """What is answered, one set after the other, and what was asked."""
    made = SimpleNamespace(answers=[], rows=[])

    def ask(over, sizes, seconds, wanted):
        made.rows.append((over, sizes, seconds, wanted))
        return made.answers.pop(0)

    monkeypatch.setattr(probes, "_ask", ask)
    return made


def probed(found, wanted):
    changes = [SimpleNamespace(name="t", found=found), SimpleNamespace(name="t-gone", found=SEEN)]
    return probes.Probes(SimpleNamespace(wanted=SimpleNamespace(host="a", devices={"t": wanted}), changes=changes))


def test_before_and_after(asked):
    asked.answers = [{("t", B), ("", B), ("/full", B)}, {("", B), ("/full", B)}]
    made = probed(replaced(SEEN, mtu=1400), VXLAN)
    assert made.lost() == "a rollout: b (192.0.2.12) answered before this change and does not after it over t"
    over = {"t": {B: B, C: C}}
    assert asked.rows == [
        (over, {B: 1450, C: 1450}, probes.BEFORE, None),
        (over, {B: 1500, C: 1500}, AFTER, {("t", B), ("", B), ("/full", B)}),
    ]


def test_all_answer(asked):
    asked.answers = [{("t", B), ("", B)}] * 2
    made = probed(SEEN, VXLAN)
    assert made.lost() == ""
    assert made.lines() == ["a rollout: 2 probes were answered before the change, and again after it"]


def test_nobody_answers(asked):
    asked.answers = [set(), set()]
    made = probed(SEEN, replaced(VXLAN, vni=9, peers={"b": B}))
    assert made.lost() == ""
    why = "what both ends must have alike changes, and until the other has it too it does not answer"
    assert made.lines() == [
        f"a rollout: b (192.0.2.12): not asked over t: {why}",
        "a rollout: nobody answered before the change",
    ]


def test_asking_fails(asked):
    asked.answers = [{("t", B)}]
    made = probed(SEEN, VXLAN)
    made.lost = lambda: (_ for _ in ()).throw(OSError(24, "Too many open files"))
    said = "whether those who answered before the change answer after it cannot be asked"
    assert guard._lost("a", made) == f"a rollout: {said}: [Errno 24] Too many open files"
