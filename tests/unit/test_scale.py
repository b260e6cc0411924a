"""Stacks of any size: the generator's are right, and the planner's work grows with the hosts, not with their square."""

import gc
import sys
import tracemalloc

import pytest

from bench import generate
from overlay_agent.document import Owner
from overlay_components.config import load_config, read_stack_file
from overlay_components.plan import make_plan

OWNER = Owner("overlay", "test", "0")
#: A mesh's documents name every other host: they are as many as the square, whatever we do.
LINEAR = [topology for topology in generate.TOPOLOGIES if topology != "mesh"]


def planned(raw):
    return make_plan(load_config(raw), OWNER)


def raw_of(hosts, topology):
    return generate.config(generate.addresses(hosts), topology, containers=hosts)


# -- the generator ---------------------------------------------------------------------------


@pytest.mark.parametrize("topology", generate.TOPOLOGIES)
@pytest.mark.parametrize(("hosts", "segments", "containers"), [(2, 1, 0), (9, 3, 20), (300, 2, 1)])
def test_what_is_generated_is_a_stack_file(topology, hosts, segments, containers, tmp_path, capsys):
    words = ["--hosts", hosts, "--topology", topology, "--segments", segments, "--containers", containers]
    assert generate.main(list(map(str, words))) == 0
    file = tmp_path / "Pulumi.big.yaml"
    file.write_text(capsys.readouterr().out)
    plan = planned(read_stack_file(file))
    assert len(plan.documents) == hosts
    assert len(plan.segments) == segments
    assert [len(rows) for rows in plan.containers.values()] == [containers] * segments
    assert {row["topology"] for segment in plan.segments.values() for row in segment["tunnels"].values()} == {topology}
    assert not plan.warnings or topology == "mesh"  # of which a large one has a hint


def test_host_keys_are_given_so_that_nobody_is_asked(capsys, tmp_path):
    generate.main(["--hosts", "3", "--host-keys"])
    (tmp_path / "s.yaml").write_text(capsys.readouterr().out)
    assert all(host.host_key for host in load_config(read_stack_file(tmp_path / "s.yaml")).hosts.values())


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--hosts", "0"], "argument --hosts: '0' is not possible; 1 to 10000 are"),
        (["--hosts", "many"], "argument --hosts: 'many' is not possible; 1 to 10000 are"),
        (["--hosts", "1", "--segments", "201"], "argument --segments: '201' is not possible; 0 to 200 are"),
    ],
)
def test_impossible_numbers_are_refused(words, error, capsys):
    with pytest.raises(SystemExit):
        generate.main(words)
    assert error in capsys.readouterr().err


# -- how the planner's work grows ------------------------------------------------------------


def steps(work):
    """How many of Python's own instructions it takes."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def memory(work):
    """What its result holds, in bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        kept = work()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        del kept


def growth(measure, make):
    """How much more the third 25 hosts take than the second: 1 where it is linear."""
    one, two, three = (measure(make(hosts)) for hosts in (25, 50, 75))
    return (three - two) / (two - one)


def times(measure, make):
    """How much more four times as many hosts take. (Dicts grow by steps, so `growth` says nothing of memory.)"""
    return measure(make(100)) / measure(make(25))


@pytest.mark.parametrize("topology", LINEAR)
def test_planning_grows_with_the_hosts(topology):
    def make(hosts):
        raw = raw_of(hosts, topology)
        return lambda: planned(raw)

    make(25)()  # what is made once and kept
    assert growth(steps, make) < 1.005
    assert times(memory, make) < 4.2


@pytest.mark.parametrize("topology", generate.TOPOLOGIES)
def test_the_outputs_grow_with_the_hosts(topology):
    def make(hosts):
        plan = planned(raw_of(hosts, topology))
        return lambda: repr((plan.hosts(), plan.segments, plan.containers))

    assert times(lambda work: len(work()), make) < 4.2


def test_the_measures_tell_a_square():
    def make(hosts):
        return lambda: [[2 * number for number in range(hosts)] for _ in range(hosts)]

    assert growth(steps, make) > 1.5
    assert times(memory, make) > 10


def test_many_peers_are_a_number_in_the_outputs_and_all_of_them_where_asked_for():
    plan = planned(raw_of(8, "multicast"))
    [rule] = plan.hosts()["h1"]["underlayRules"].values()
    assert rule == {"protocol": "udp", "port": 4789, "peerCount": 7}
    [rule] = plan.hosts(all_peers=True)["h1"]["underlayRules"].values()
    assert rule["peers"] == {name: address for name, address in generate.addresses(8).items() if name != "h1"}
    [rule] = planned(raw_of(7, "multicast")).hosts()["h1"]["underlayRules"].values()
    assert set(rule["peers"]) == {f"h{number}" for number in range(2, 8)}
