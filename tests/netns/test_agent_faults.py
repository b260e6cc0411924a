"""The agent is killed after each of its requests: the host is as before or as wanted, never between.

How many points there are is found out: the agent is killed at the first, the second, … until it
gets through.
"""

from __future__ import annotations

import copy

import pytest
from agent_support import bridge, document, usual, vxlan

pytestmark = pytest.mark.slow

FIREWALL = {
    "firewall": {
        "kind": "firewall",
        "allow": {"vx-app": {"protocol": "udp", "port": 4789, "vni": 42, "peers": {"b": "198.18.0.12"}}},
    }
}


def readdressed():
    out = usual()
    out["devices"]["br-app"]["addresses"] = {"10.10.0.2/24": {}, "10.10.0.3/24": {}, "fd00::2/64": {}}
    return out


def with_firewall(vni):
    out = usual(vni=vni)
    out["services"] = copy.deepcopy(FIREWALL)
    out["services"]["firewall"]["allow"]["vx-app"]["vni"] = vni
    return out


#: By name: what is there before (None: nothing), and what is wanted (None: nothing).
SCENARIOS = {
    "create": (None, usual()),
    "recreate": (usual(), usual(vni=43)),
    "peers": (usual(), usual(peers=("b", "d", "e"))),
    "addresses": (usual(), readdressed()),
    "one for another": (
        usual(),
        document(
            br_new=bridge(addresses={"10.10.0.1/24": {}}), vx_app=vxlan(bridge="br-new", peers={"b": "198.18.0.12"})
        ),
    ),
    "firewall": (with_firewall(42), with_firewall(43)),
    "remove": (usual(), None),
}


def prepare(host, before):
    """The state before, with what hangs on it: a container's port, routes, a second address."""
    if before is None:
        return
    host.apply(before)
    host.run("ip link add c0 type veth peer name c1")
    host.run("ip link set c0 addrgenmode none")
    host.run("ip link set c0 up master br-app")
    host.run("ip route add 10.99.0.0/24 via 10.10.0.77 mtu lock 1400")
    host.run("ip route add 10.98.0.0/24 dev br-app src 10.10.0.1 metric 7")


def leave_the_bridge(host, before, wanted):
    """The container goes before its bridge does: else that is refused."""
    if before and "br-app" not in (wanted or {"devices": {}})["devices"]:
        host.run("ip link set c0 nomaster")


def go(host, wanted, code, **env):
    if wanted is not None:
        return host.apply(wanted, code=code, **env)
    return host.agent("remove", "p/s", code=code, **env)


def points(new_host, before, wanted, scope, check):
    """Kills at each point in turn; `check(host, state, files, done)` after each. Returns how many there were."""
    for point in range(1, 100):
        host = new_host()
        prepare(host, before)
        leave_the_bridge(host, before, wanted)
        state, files = host.state(), host.files()
        done = go(host, wanted, None, OVERLAY_FAULT=f"{point}{scope}")
        if done.code == 0:
            host.close()
            return point - 1
        check(host, state, files, done)
        host.close()
    raise AssertionError("no end of points")


def then_it_works(host, wanted):
    """After all that a plain apply does it, and the next has nothing to do."""
    go(host, wanted, 0)
    if wanted is not None:
        assert "nothing to do" in host.apply(wanted).err
        assert host.agent("check").report == {"drift": []}
    else:
        assert host.agent("remove", "p/s").lines == ["stack p/s: has nothing here; already removed"]
    assert not [path for path in host.files() if "journal" in path or "undo" in path or path.endswith(".new")]


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_worker_is_killed_and_the_guard_undoes_at_once(new_host, name):
    before, wanted = SCENARIOS[name]

    def check(host, state, files, done):
        assert done.code == 1
        assert done.lines == ["a: the apply was ended by signal 9 (SIGKILL); undone, the host is as it was"]
        assert host.state() == state
        assert host.files() == files
        then_it_works(host, wanted)

    assert points(new_host, before, wanted, "", check) >= 3


@pytest.mark.parametrize("name", SCENARIOS)
def test_both_are_killed_and_the_next_agent_ends_it(new_host, name):
    before, wanted = SCENARIOS[name]
    goal = {}
    if wanted is not None:
        host = new_host()
        prepare(host, before)
        leave_the_bridge(host, before, wanted)
        go(host, wanted, 0)
        goal = host.files()
        host.close()

    def check(host, state, files, done):
        assert done.code < 0 or done.code > 128, done
        if any("journal" in path for path in host.files()):
            look = host.agent("check", code=2)
            assert "an apply was cut short; `overlay-agent restore` or the next `pulumi up` ends it" in look.lines
        restored = host.agent("restore")
        after = host.files()
        assert after in (files, goal)
        if after == files:
            assert host.state() == state
            assert "stack p/s: an apply was cut short; undone" in restored.lines
        else:
            assert "stack p/s: an apply was cut short after it was done; nothing to undo" in restored.lines
            if wanted is not None:
                assert host.agent("check").report == {"drift": []}
        then_it_works(host, wanted)

    assert points(new_host, before, wanted, ":all", check) >= 3


@pytest.mark.parametrize(("name", "at"), [("recreate", 3), ("addresses", 5), ("one for another", 6)])
def test_the_undo_is_killed_too(new_host, name, at):
    before, wanted = SCENARIOS[name]
    points = 0
    for point in range(1, 60):
        host = new_host()
        prepare(host, before)
        leave_the_bridge(host, before, wanted)
        state, files = host.state(), host.files()
        done = go(host, wanted, None, OVERLAY_FAULT=str(at), OVERLAY_FAULT_UNDO=str(point))
        if done.code == 1 and "undone" in done.err:
            host.close()
            break
        points += 1
        assert any("undo" in path for path in host.files()), done
        assert "stack p/s: an apply was cut short; undone" in host.agent("restore").lines
        assert host.state() == state
        assert host.files() == files
        then_it_works(host, wanted)
        host.close()
    assert points >= 3


def test_a_drift_is_mended_or_left_but_not_half(new_host):
    wanted = usual()
    for point in range(1, 30):
        host = new_host()
        host.apply(wanted)
        host.run("ip link set br-app mtu 1300 address 02:00:00:00:00:77")
        host.run("bridge fdb del 00:00:00:00:00:00 dev vx-app dst 198.18.0.12")
        state = host.state()
        done = host.apply(wanted, code=None, OVERLAY_FAULT=f"{point}:all")
        if done.code == 0:
            break
        host.agent("restore", OVERLAY_FAULT="99")
        assert host.agent("check").report == {"drift": []}  # restore makes every document true
        assert host.state() != state
        host.close()
    else:
        raise AssertionError("no end of points")
