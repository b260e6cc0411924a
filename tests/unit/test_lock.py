"""Chosen addresses: written once, kept whatever else comes and goes."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay_agent.document import Owner
from overlay_components import lock
from overlay_components.config import load_config
from overlay_components.errors import ConfigErrors
from overlay_components.plan import make_lock, make_plan

OWNER = Owner("overlay", "test", "0")
HOSTS = {"a": {"address": "192.0.2.11"}, "b": {"address": "192.0.2.12"}}


def stack(containers, **more):
    return {"hosts": HOSTS, "segments": {"app": {"subnets": ["10.10.0.0/24"], "containers": containers, **more}}}


def locked(raw, before=None, **options):
    return make_lock(load_config(raw), OWNER, before or {}, **options)


def rows(raw, kept):
    return make_plan(load_config(raw), OWNER, kept).containers["app"]


def wrong(raw, before=None):
    with pytest.raises(ConfigErrors) as caught:
        locked(raw, before)
    return caught.value.errors


# -- what is chosen ----------------------------------------------------------------------------


def test_the_lowest_free_address_in_the_order_of_the_file():
    containers = {"x": {"host": "a"}, "said": {"host": "a", "address": "10.10.0.3"}, "y": {"host": "b"}}
    raw = stack(containers, gateway="10.10.0.1", addresses={"a": "10.10.0.2"}, reserved=["10.10.0.4"])
    assert locked(raw) == {"app": {"x": "10.10.0.5", "y": "10.10.0.6"}}
    assert {name: row["address"] for name, row in rows(raw, locked(raw)).items()} == {
        "x": "10.10.0.5/24",
        "said": "10.10.0.3/24",
        "y": "10.10.0.6/24",
    }


@pytest.mark.parametrize(
    ("subnet", "chosen"),
    [
        ("10.10.0.0/30", ["10.10.0.1", "10.10.0.2"]),
        ("10.10.0.0/31", ["10.10.0.0", "10.10.0.1"]),
        ("fd00:10::/64", ["fd00:10::1", "fd00:10::2"]),
    ],
)
def test_never_an_address_that_is_nobodys(subnet, chosen):
    raw = stack({"x": {"host": "a"}, "y": {"host": "a"}}, subnets=[subnet])
    assert list(locked(raw)["app"].values()) == chosen


def test_the_next_subnet_when_one_is_full():
    raw = stack({name: {"host": "a"} for name in "xyz"}, subnets=["10.10.0.0/30", "10.11.0.0/24"])
    assert list(locked(raw)["app"].values()) == ["10.10.0.1", "10.10.0.2", "10.11.0.1"]
    raw["segments"]["app"]["subnets"].pop()
    assert wrong(raw) == [
        "segments.app.containers.z.address: none is free in 10.10.0.0/30; add a subnet, or run overlay lock --prune"
    ]


def test_who_comes_back_gets_the_same_until_pruned():
    both = stack({"x": {"host": "a"}, "y": {"host": "a"}})
    one = stack({"y": {"host": "a"}, "z": {"host": "a"}})
    first = locked(both)
    second = locked(one, first)
    assert second == {"app": {"x": "10.10.0.1", "y": "10.10.0.2", "z": "10.10.0.3"}}
    assert locked(both, second)["app"]["x"] == "10.10.0.1"
    assert locked(one, second, prune=True) == {"app": {"y": "10.10.0.2", "z": "10.10.0.3"}}


def test_another_subnet_means_other_addresses():
    raw = stack({"x": {"host": "a"}}, subnets=["10.11.0.0/24"])
    assert locked(raw, {"app": {"x": "10.10.0.1"}}) == {"app": {"x": "10.11.0.1"}}


def test_what_is_locked_is_not_moved_for_what_is_said():
    raw = stack({"x": {"host": "a"}, "new": {"host": "a", "address": "10.10.0.1"}})
    assert wrong(raw, {"app": {"x": "10.10.0.1"}}) == [
        (
            "segments.app.containers.x.address: locked as 10.10.0.1, which container new has too; change that one, or "
            "delete app.x in the lock file and run overlay lock"
        )
    ]


def test_a_segment_without_subnets_needs_no_addresses():
    raw = stack({"x": {"host": "a"}}, subnets=[])
    assert locked(raw) == {}
    assert rows(raw, {})["x"]["address"] is None


NAMES = st.lists(st.sampled_from([f"c{n}" for n in range(12)]), unique=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NAMES, st.sampled_from("ab"), st.booleans()), min_size=2, max_size=5))
def test_nobodys_address_or_mac_changes_when_others_come_and_go(steps):
    """Rule 18, over any history of stack files, each locked anew."""
    kept, known = {}, {}
    for names, host, prune in steps:
        raw = stack({name: {"host": host} for name in names})
        kept = locked(raw, kept, prune=prune)
        now = {name: (row["address"], row["mac"]) for name, row in rows(raw, kept).items()}
        assert len(set(now.values())) == len(names)
        for name, value in now.items():
            assert known.get(name, value) == value
        # Pruned is forgotten, by wish.
        known = now if prune else {**known, **now}
        assert locked(raw, kept, prune=prune) == kept, "locking twice changes nothing"


# -- the file ----------------------------------------------------------------------------------


def test_one_content_has_one_text():
    one = {"b": {"y": "10.0.0.2", "x": "10.0.0.1"}, "a": {"z": "fd00::1"}}
    turned = dict(reversed(one.items()))
    assert lock.dump(one) == lock.dump(turned)
    assert lock.dump(one).splitlines()[2:4] == ['    "a": {', '      "z": "fd00::1"']
    assert lock.parse(lock.dump(one), "f") == {"a": one["a"], "b": one["b"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<<<<<<< HEAD", "f: cannot be read (Expecting value: line 1 column 1 (char 0)); mend it, or take its last"),
        ('{"version": 2}', "f: version 2 is not 1; it takes another version of overlay-networks"),
        ("[]", "f: version none is not 1; it takes another version of overlay-networks"),
        ('{"version": 1, "addresses": []}', "f: addresses: [] is not an object of segments; delete it there, then run"),
        ('{"version": 1, "addresses": {"a": 1}}', "f: addresses.a: 1 is not an object of containers; delete it there"),
        ('{"version": 1, "addresses": {"a": {"x": "10"}}}', "f: addresses.a.x: '10' is not an IP address; delete it"),
        ('{"version": 1, "addresses": {"a": {"x": "::1", "x": "::2"}}}', "f: cannot be read ('x' stands twice); mend"),
    ],
)
def test_a_file_that_is_wrong(text, said):
    with pytest.raises(ConfigErrors) as caught:
        lock.parse(text, "f")
    assert str(caught.value).startswith(said)


def test_addresses_of_two_branches_that_were_merged():
    raw = stack({"x": {"host": "a"}, "y": {"host": "a"}})
    merged = {"app": {"x": "10.10.0.1", "y": "10.10.0.1"}}
    assert wrong(raw, copy.deepcopy(merged)) == [
        (
            "segments.app.containers.y.address: locked as 10.10.0.1, which container x has too; change that one, or "
            "delete app.y in the lock file and run overlay lock"
        )
    ]
