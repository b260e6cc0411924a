"""In which order a rollout changes hosts."""

from __future__ import annotations

import itertools

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay_components import model, rollout
from overlay_components.rollout import Options, batches, order

SHARES = st.integers(1, 40) | st.integers(1, 100).map("{}%".format)
HOSTS = st.lists(st.from_regex(r"[a-z]{1,2}[0-9]{0,2}", fullmatch=True), min_size=1, max_size=40, unique=True)


def options(**keys):
    return Options.model_validate({key: value for key, value in keys.items() if value is not None})


@pytest.mark.parametrize(
    ("keys", "hosts", "expected"),
    [
        ({}, 1, "h1"),
        ({}, 4, "h1|h2|h3|h4"),
        ({}, 12, "h1|h2 h3|h4 h5|h6 h7|h8 h9|h10 h11|h12"),
        ({"canary": "h3", "batch": "40%"}, 5, "h3|h1 h2|h4 h5"),
        ({"batch": 3}, 6, "h1|h2 h3 h4|h5 h6"),
        ({"batch": 99}, 4, "h1|h2 h3 h4"),
        ({"batch": "100%"}, 4, "h1|h2 h3 h4"),
        ({"batch": "34%"}, 5, "h1|h2|h3|h4|h5"),
    ],
)
def test_batches(keys, hosts, expected):
    names = [f"h{number}" for number in range(hosts, 0, -1)]
    assert "|".join(map(" ".join, batches(options(**keys), names))) == expected


@pytest.mark.parametrize(
    "wrong", ["0%", "150%", "101%", "x", "", "20", "20 %", "-5%", "1.5%", "٢0%", 0, -1, 1.5, True, [1]]
)
@pytest.mark.parametrize("key", ["batch", "maxUnavailable"])
def test_what_is_no_share(key, wrong):
    with pytest.raises(pydantic.ValidationError) as caught:
        Options.model_validate({key: wrong})
    [((path,), sentence)] = model.wrongs(caught.value)
    assert path == key
    assert sentence.endswith("is neither a number of hosts, from 1, nor a part of them, from 1% to 100%, such as 20%")


@given(HOSTS, SHARES, SHARES, st.data())
def test_every_host_has_one_turn_and_waits_for_no_later_one(hosts, batch, most, data):
    canary = data.draw(st.none() | st.sampled_from(hosts))
    made = options(canary=canary, batch=batch, maxUnavailable=most)
    parts = batches(made, hosts)
    assert sorted(itertools.chain(*parts)) == sorted(hosts)
    assert parts[0] == [canary or parts[0][0]]
    assert parts == batches(made, list(reversed(hosts))), "whatever order the hosts are written in"
    sizes = {len(part) for part in parts[1:-1]}
    assert len(sizes) <= 1
    if isinstance(batch, int):
        assert max(len(part) for part in parts[1:]) <= batch if parts[1:] else True

    before = order(made, hosts)
    assert list(before) == list(itertools.chain(*parts))
    at = {host: number for number, host in enumerate(before)}
    assert all(at[earlier] < at[host] for host in before for earlier in before[host])
    for earlier, later in itertools.pairwise(parts):
        assert all(set(earlier) <= set(before[host]) for host in later)
    allowed = most if isinstance(most, int) else max(len(hosts) * int(most[:-1]) // 100, 1)
    for part in parts:
        # Those of a batch that wait for nobody of it may run at once; each of the others takes the turn of one.
        within = [set(before[host]) & set(part) for host in part]
        assert sum(not others for others in within) <= allowed
        taken = [host for others in within for host in others]
        assert len(taken) == len(set(taken))


@given(
    HOSTS, SHARES.filter(lambda share: isinstance(share, int)), st.from_regex(r"[a-z]{1,2}[0-9]{0,2}", fullmatch=True)
)
def test_a_host_that_joins_leaves_the_others_in_their_order(hosts, batch, joins):
    made = options(batch=batch)
    before, after = (list(order(made, names)) for names in (hosts, [*{*hosts, joins}]))
    assert [host for host in after if host in hosts] == before


def test_no_rollout_is_no_order():
    assert rollout.Rollout(None, ["b", "a"]).sorted(["b", "a"]) == ["b", "a"]
    assert rollout.Rollout({"batch": "x"}, ["b", "a"]).failed_before("a") is None
