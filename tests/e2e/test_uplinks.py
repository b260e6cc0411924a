"""NICs as ports of bridges, over the very NIC that carries SSH: what works, and what happens when it does not."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import json
import re
import signal
import subprocess
import time

import pytest

from tests.e2e.support import AGENT, FALLBACK, once, wait_for

pytestmark = [pytest.mark.root, pytest.mark.lab(hosts=2)]
host_bridge = pytest.mark.stack("doc-004-host-bridge")

#: Breaks the network only once the NIC is a port of a bridge.
TRAP = "nft 'add table bridge trap; add chain bridge trap in { type filter hook prerouting priority 0; policy drop; }'"
#: In less than this a host that was cut off is to be back.
BACK = 15.0


def network(stack, host):
    """All that the host has of addresses, routes and rules, to be compared line by line."""
    out = []
    for command in ("ip -j addr", "ip -j route show table all", "ip -j -6 route show table all", "ip -j rule"):
        rows = json.loads(stack.lab.run(host, command).stdout or "[]")
        rows = [row for row in rows if row.get("ifname") not in FALLBACK]
        # A NIC that was up once has another queue than one that never was; the carrier follows a moment later.
        odd = r'"(qdisc|operstate)": "\w+", |"NO-CARRIER", |, "LOWER_UP"|"linkdown"'
        out += [re.sub(odd, "", json.dumps(row, sort_keys=True)) for row in rows]
    return out


def difference(before, now):
    return "\n".join(difflib.unified_diff(before, now, n=0, lineterm=""))


def master(stack, host, nic="eth0"):
    return stack.lab.links(host)[nic].get("master")


def addresses(stack, host, device):
    [row] = json.loads(stack.lab.run(host, f"ip -j -4 addr show {device}").stdout) or [{"addr_info": []}]
    return {f"{info['local']}/{info['prefixlen']}" for info in row.get("addr_info", [])}


@contextlib.contextmanager
def pinged(stack, host, report):
    """200 pings a second from the operator while the block runs. What is lost stands in `report`."""
    words = ["ping", "-n", "-i", "0.005", "-q", stack.lab.hosts[host].address]
    ping = stack.lab.operator_popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    time.sleep(0.1)
    try:
        yield
        time.sleep(0.1)
    finally:
        ping.send_signal(signal.SIGINT)
        text, _ = ping.communicate(timeout=10)
        sent, got = map(int, re.findall(r"(\d+) (?:packets transmitted|received)", text))
        report.append(sent - got)
        print(f"{host}: {sent - got} of {sent} pings lost")


@contextlib.contextmanager
def outage(stack, host):
    """Asserts that the host, seen from the operator, is away in the block, and each time not for longer than BACK."""
    address = stack.lab.hosts[host].address
    words = ["ping", "-n", "-D", "-i", "0.1", "-O", address]
    ping = stack.lab.operator_popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield
        wait_for(lambda: stack.lab.ping("op", host, wait=1))
    finally:
        time.sleep(0.3)
        ping.send_signal(signal.SIGINT)
        text, _ = ping.communicate(timeout=10)
    times = [float(stamp) for stamp in re.findall(r"^\[([\d.]+)\] \d+ bytes from", text, re.MULTILINE)]
    longest = max(b - a for a, b in itertools.pairwise(times))
    print(f"{host}: away for {longest:.1f} s")
    assert 1 < longest < BACK, text


# -- what works ----------------------------------------------------------------------------------


@host_bridge
@pytest.mark.lab(hosts=2, ipv6=True)
def test_a_host_bridge_over_the_nic_that_carries_ssh(stack, record_property):
    lab = stack.lab
    for gateway in ("198.18.255.254", "2001:db8:18::fffe"):  # who does not answer before is no witness after
        wait_for(lambda gateway=gateway: lab.ping("h1", gateway, wait=1))
    before = {host: network(stack, host) for host in stack.hosts}
    mac = lab.links("h1")["eth0"]["address"]
    routes = lab.run("h1", "ip route show default").stdout
    reads = ["ssh", "h1", "read word; echo got $word"]
    waits = lab.operator_popen(reads, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    preview = stack.preview().ok()
    assert re.search(r'mac *: "of eth0"', preview)
    lost = []
    with pinged(stack, "h1", lost):
        text = stack.up().ok()
    assert "uplink-eth0: created (uplink, bridge br0, mode host, 198.18.0.11/16, 2001:db8:18::11/64)" in text
    answered = "the SSH session's socket, gateway 198.18.255.254 and gateway 2001:db8:18::fffe"
    assert f"h1: {answered} answered after the change" in text

    for host in stack.hosts:
        assert (master(stack, host), addresses(stack, host, "eth0")) == ("br0", set())
        assert addresses(stack, host, "br0") == {f"{lab.hosts[host].address}/16"}
    assert lab.links("h1")["br0"]["address"] == mac == lab.links("h1")["eth0"]["address"]
    assert lab.run("h1", "ip route show default").stdout == routes.replace("eth0", "br0")
    stack.healthy()
    stack.noop()
    stack.all_reach_all(stack.plug_in())
    assert lab.ping("op", "198.18.1.11", wait=3), "a container in the hosts' own network"
    for host, name in (("h1", "lan-web"), ("h2", "lan-db")):
        lab.remove_container(host, name)

    with pinged(stack, "h1", lost):
        stack.destroy().ok()
    assert waits.communicate("hello\n", timeout=10)[0] == "got hello\n", "a session from before"
    stack.clean()
    for host, lines in before.items():
        assert difference(lines, network(stack, host)) == ""
    record_property("pings lost there and back, at 200/s", lost)
    assert max(lost) <= 5


@host_bridge
def test_after_a_reboot(stack):
    stack.up().ok()
    stack.lab.reboot("h1")
    assert master(stack, "h1") is None
    done = stack.lab.run("h1", [AGENT, "restore"])
    assert "gateway 198.18.255.254 answered after the change" in done.stderr
    assert (master(stack, "h1"), addresses(stack, "h1", "br0")) == ("br0", {"198.18.0.11/16"})
    stack.healthy()
    stack.noop()
    stack.destroy().ok()
    stack.clean()


# -- what does not -------------------------------------------------------------------------------


@host_bridge
def test_a_configuration_that_cuts_the_host_off(stack):
    """The host is back as before, `pulumi up` says what happened, and a correct next one works."""
    stack.lab.run("h1", TRAP)
    before = network(stack, "h1")
    with outage(stack, "h1"):
        text = stack.up().failed()
    why = "h1: the new configuration cut the host off: the SSH session's socket got no answer for 5 s"
    assert f"{why}; undone, the host is as it was" in text
    assert difference(before, network(stack, "h1")) == ""
    assert "lab-h1-document" not in stack.state()
    assert not [name for name in stack.state() if name.endswith("-h1-document")]
    assert master(stack, "h2") == "br0", "the other host is done"

    stack.lab.run("h1", "nft delete table bridge trap")
    stack.up().ok()
    assert master(stack, "h1") == "br0"
    stack.healthy()
    stack.noop()

    # A change of the bridge that stands for the NIC is one of those too.
    before = network(stack, "h1")
    stack.lab.run("h1", TRAP.replace("prerouting", "postrouting").replace("policy drop", "policy accept"))
    stack.segments["lan"]["bridge"]["ageing"] = 200
    assert "h1: the SSH session's socket and gateway 198.18.255.254" in stack.up().ok()
    assert difference(before, network(stack, "h1")) == ""


@host_bridge
def test_the_agent_is_killed_while_armed(stack):
    """Both of its processes, in the middle of the move: nobody has to come and help."""
    stack.segments["lan"]["bridge"]["uplinks"] = {"h2": "eth0"}
    stack.up().ok()
    before = network(stack, "h1")
    stack.segments["lan"]["bridge"]["uplinks"] = {"h1": "eth0", "h2": "eth0"}
    for point in (6, 9):
        once(stack, "h1", f"export OVERLAY_FAULT={point}:all")
        stack.up().failed()
        wait_for(lambda: not stack.lab.run("h1", ["pgrep", "-f", "overlay-agent watch"], check=False).stdout, 60)
        assert difference(before, network(stack, "h1")) == "", point
    stack.up().ok()
    assert master(stack, "h1") == "br0"
    stack.healthy()
    stack.noop()


@host_bridge
def test_the_ssh_session_dies_while_the_nic_moves(stack):
    stack.segments["lan"]["bridge"]["uplinks"] = {"h2": "eth0"}
    stack.up().ok()
    before = network(stack, "h1")
    stack.segments["lan"]["bridge"]["uplinks"] = {"h1": "eth0", "h2": "eth0"}
    # While its proof is not heard the agent asks on, for 5 s: so it cannot be done before.
    stack.lab.run("h1", TRAP)
    moves = "until grep -q uplinks /var/lib/overlay/shared.json 2>/dev/null; do sleep 0.05; done"
    once(stack, "h1", f"({moves}; kill -9 $sshd; nft delete table bridge trap) </dev/null >/dev/null 2>&1 &")
    text = stack.up().failed()
    assert "h1-document" in text
    wait_for(lambda: difference(before, network(stack, "h1")) == "", 60)
    wait_for(lambda: not stack.lab.run("h1", ["pgrep", "-f", "overlay-agent"], check=False).stdout, 60)
    stack.up().ok()
    assert master(stack, "h1") == "br0"
    stack.healthy()
    stack.noop()


def test_a_nic_that_is_not_there(stack):
    stack.segments["app"]["bridge"] = {"mode": "external", "uplinks": {"h1": "eth7"}}
    del stack.hosts["h3"], stack.segments["app"]["containers"]["db"]
    for segment in stack.segments.values():
        segment.get("addresses", {}).pop("h3", None)
    stack.segments["ops"].pop("containers", None)
    text = stack.up().failed()
    assert "h1 uplink-eth7: eth7 is not on this host; its NICs are eth0" in text
    assert "nothing was changed" in text
