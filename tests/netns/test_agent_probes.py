"""`probe: true`: an apply after which somebody is silent who answered before is undone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from agent_support import usual, wire

from overlay_agent import daemon

NEW_PORTS = {"sourcePorts": "10000-10999"}
#: What the peer's packet filter does not let in; no tunnel had these so far.
TRAP = "nft 'table inet trap { chain in { type filter hook input priority 0; udp sport 10000-10999 drop; }; }'"
LOST = "b (198.18.0.12) answered before this change and does not after it"


@pytest.fixture
def pair(new_host):
    """Two hosts with a tunnel between them; the second one's bridge has no address."""
    a, b = new_host(), new_host(agent=False)
    wire(a, b)
    for command in (
        "ip link add br0 type bridge",
        "ip link add vx0 mtu 1450 type vxlan id 42 dstport 4789 local 198.18.0.12",
        "ip link set br0 addrgenmode none",
        "ip link set vx0 addrgenmode none master br0",
        "ip link set br0 up",
        "ip link set vx0 up",
        "bridge fdb append 00:00:00:00:00:00 dev vx0 dst 198.18.0.11",
    ):
        b.run(command)
    a.apply(probed())
    return a, b


def probed(**of_vxlan):
    return {**usual(peers=("b",), **of_vxlan), "probe": True}


def seen(host):
    return host.state(), host.files()


def test_what_answers_still_stays(pair):
    a, _ = pair
    done = a.apply(probed(**NEW_PORTS))
    assert "a rollout: 3 probes were answered before the change, and again after it" in done.lines
    assert "rollout" not in a.apply(probed(**NEW_PORTS)).err, "nothing to do, nobody to ask"


def test_what_does_not_is_undone(pair):
    a, b = pair
    b.run("sh", "-c", TRAP)
    before = seen(a)
    done = a.apply(probed(**NEW_PORTS), code=1)
    assert done.lines == [f"a rollout: {LOST} over vx-app; undone, the host is as it was"]
    assert seen(a) == before
    # Whoever is silent before is not asked, and who says no probe asks nobody.
    b.run("ip link set vx0 down")
    assert "a rollout: 2 probes were answered before" in a.apply(probed(**NEW_PORTS)).err
    assert "rollout" not in a.apply({**usual(peers=("b",)), "probe": False}).err


def test_packets_as_large_as_the_tunnel_gets_them(pair):
    a, b = pair
    # Somewhere on the way 1490 is all that passes.
    a.apply(probed(mtu=1400))
    b.run(
        "sh", "-c", "nft 'table inet hop { chain in { type filter hook input priority 0; ip length > 1490 drop; }; }'"
    )
    done = a.apply(probed(mtu=1450), code=1)
    assert f"a rollout: {LOST} to packets of 1500 bytes over the underlay; undone" in done.err
    a.apply(probed(mtu=1440))


def test_the_agent_is_killed_while_it_asks(pair):
    """Nothing is proven then, and whoever comes next undoes it."""
    a, b = pair
    b.run("sh", "-c", TRAP)
    before = seen(a)
    agent = a.popen("/usr/local/sbin/overlay-agent", "apply", stdin=subprocess.PIPE, stderr=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL)  # fmt: skip
    agent.stdin.write(json.dumps(probed(**NEW_PORTS)).encode())
    agent.stdin.close()
    end = time.monotonic() + 60
    while a.files().get("./stacks/p/s.json", "") == before[1].get("./stacks/p/s.json", ""):
        assert time.monotonic() < end, a.files()
    os.kill(agent.pid, signal.SIGSTOP)  # it has 4 s
    [worker] = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split() or [None]
    while worker and not daemon._has_ended(int(worker)):  # who did it
        assert time.monotonic() < end
    os.kill(agent.pid, signal.SIGKILL)
    agent.wait()
    assert "an apply was cut short; undone" in a.agent("restore").err
    assert seen(a) == before
