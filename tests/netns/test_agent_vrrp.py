"""A floating address: on one host at a time, on another within 3 s, and never taken for a drift."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest
from agent_support import MAC_VX, bridge, document, kill_at_each_point, vxlan

from overlay_agent.kinds import vrrp as kind

FLOATING, FLOATING_6 = "10.10.0.254", "fd00::fe"
PING_SECONDS, MOST_LOST = 0.1, 30  # 3 s


def service(**more):
    spec = {"kind": "vrrp", "interface": "br-app", "group": 42, "priority": 100,
            "addresses": {f"{FLOATING}/24": {}, f"{FLOATING_6}/64": {}}, **more}  # fmt: skip
    return {"vrrp": spec}


def alone(services=None, **of_bridge):
    """One host, with a container so that its bridge has a carrier."""
    return document(services=services, br_app=bridge(**{"addresses": {"10.10.0.1/24": {}}, **of_bridge}))


def with_carrier(host):
    host.run("ip link add c0 type veth peer name c1")
    host.run("ip link set c0 addrgenmode none master br-app up")
    host.run("ip link set c1 addrgenmode none up")
    until(lambda: {host.link(name)["operstate"] for name in ("br-app", "c0", "c1")} == {"UP"})
    until(lambda: host.json("bridge -j link show dev c0")[0]["state"] == "forwarding")


def addresses(host):
    rows = host.json("ip -j address show dev br-app")
    return {a["local"] for row in rows for a in row["addr_info"] if a["scope"] == "global"}


def until(true, seconds=15):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    assert true()


def processes(host):
    """{process id: command line} of keepalived in the host."""
    found = {}
    for pid in host.processes():
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
        if words and words[0].endswith("/keepalived"):
            found[pid] = words
    return found


def kill(host):
    """Kills keepalived's processes; stopped first, so that none of them cleans up when another is gone."""
    for number in ("-STOP", "-KILL"):
        host.run("kill", number, *processes(host))


def configuration(host):
    return host.run("sh", "-c", "ls /var/lib/overlay/services/*/*.conf").out.strip()


def traces(host):
    """What must be gone with the service."""
    files = [f for f in host.files() if "stacks" not in f and "members" not in f]
    return files, processes(host), host.run("sh", "-c", "ls /run | grep -v machine-id || true").out.split()


def test_its_life(host):
    host.apply(alone())
    with_carrier(host)
    before, gone = host.state(), traces(host)
    done = host.apply(alone(service()))
    what = f"vrrp, interface br-app, group 42, priority 100, {FLOATING}/24, {FLOATING_6}/64"
    assert done.lines == [f"vrrp: created ({what})"]
    assert len(processes(host)) == 2
    until(lambda: {FLOATING, FLOATING_6} <= addresses(host))
    assert host.agent("check").report == {"drift": []}
    assert host.apply(alone(service())).lines == ["a: nothing to do, 2 objects as declared"]
    assert host.agent("show").report["p/s"] == alone(service())["devices"] | service()
    first = processes(host)
    # A change of the bridge does not touch the process, and the addresses are back by themselves.
    host.apply(alone(service(), addresses={"10.10.0.2/24": {}}))
    assert processes(host) == first
    until(lambda: addresses(host) == {"10.10.0.2", FLOATING, FLOATING_6})
    done = host.apply(alone(service(priority=90, interval=30, group=43, addresses={"10.10.0.253/24": {}})))
    assert [line for line in done.lines if line.startswith("vrrp")] == [
        "vrrp: group 42 -> 43",
        "vrrp: priority 100 -> 90",
        "vrrp: + address 10.10.0.253/24",
        "vrrp: - address 10.10.0.254/24",
        "vrrp: - address fd00::fe/64",
        "vrrp: interval 50 -> 30",
    ]
    until(lambda: addresses(host) == {"10.10.0.1", "10.10.0.253"})
    assert host.apply(alone()).lines == ["vrrp: removed"]
    assert host.state() == before
    assert traces(host) == gone


@pytest.mark.parametrize(
    ("command", "drift"),
    [
        ("sh -c 'kill -STOP {pids}; kill -KILL {pids}'",
         ["vrrp: interface want br-app, is br-app (keepalived is not running)"]),
        ("sh -c 'rm {file}'", ["vrrp: is not there"]),
        ("sed -i s/100/101/ {file}", ["vrrp: interface want br-app, is br-app (its file was changed by hand)",
                                      "vrrp: priority want 100, is 101"]),
        ("sed -i s/br-app/br-no/ {file}", ["vrrp: interface want br-app, is br-no (its file was changed by hand)"]),
        ("sed -i 's/id 42/id 43/' {file}", ["vrrp: interface want br-app, is br-app (its file was changed by hand)",
                                            "vrrp: group want 42, is 43"]),
        ("sed -i 's/advert_int 0.5/advert_int x/' {file}",
         ["vrrp: interface want br-app, is br-app (its file was changed by hand)", "vrrp: interval want 50, is 0"]),
        ("sed -i s/nopreempt// {file}", ["vrrp: interface want br-app, is br-app (its file was changed by hand)"]),
        ("sed -i '/254/d' {file}", ["vrrp: interface want br-app, is br-app (its file was changed by hand)",
                                    "vrrp: lacks address 10.10.0.254/24"]),
        ("cp {file} {file}.conf", ["vrrp: interface want br-app, is br-app (its file was changed by hand)"]),
    ],
)  # fmt: skip
def test_what_somebody_changed_is_seen_and_mended(host, command, drift):
    host.apply(alone())
    with_carrier(host)
    host.apply(alone(service()))
    until(lambda: FLOATING in addresses(host))
    host.run(command.format(pids=" ".join(map(str, processes(host))), file=configuration(host)))
    if "kill" in command:
        assert FLOATING in addresses(host)  # a killed keepalived leaves it; that alone is no drift
    assert [line for line in host.agent("check", code=2).report["drift"] if line.startswith("vrrp")] == drift
    host.apply(alone(service()))
    assert host.agent("check").report == {"drift": []}
    assert len(processes(host)) == 2
    until(lambda: FLOATING in addresses(host))


def test_a_killed_one_is_removed_with_its_addresses(host):
    host.apply(alone())
    with_carrier(host)
    before, gone = host.state(), traces(host)
    host.apply(alone(service()))
    until(lambda: FLOATING in addresses(host))
    kill(host)
    host.apply(alone())
    assert host.state() == before
    assert traces(host) == gone


def test_an_address_removed_by_hand_comes_back_by_itself(host):
    host.apply(alone())
    with_carrier(host)
    host.apply(alone(service()))
    until(lambda: FLOATING in addresses(host))
    host.run(f"ip address delete {FLOATING}/24 dev br-app")
    until(lambda: FLOATING in addresses(host))


@pytest.mark.parametrize(
    ("services", "of_bridge", "before", "errors"),
    [
        (service(), {}, "mount --bind /dev/null /usr/sbin/keepalived",
         ["a vrrp: keepalived is not on this host; install the package keepalived (installPackages: true does it)"]),
        (service(interface="br-no"), {}, "true", ["a vrrp: interface 'br-no' is not on this host; declare it"]),
        (service(addresses={"fd00::fe/64": {}}), {}, "true",
         [("a vrrp: routers talk from link-local addresses over IPv6 (RFC 5798), and br-app has none; set its "
           "linkLocal, or give the segment an IPv4 subnet too")]),
        (service(addresses={"10.10.0.1/24": {}, "198.18.0.11/24": {}}), {}, "true",
         ["a vrrp: address 10.10.0.1/24 is on br-app for good, and cannot float; take it away there, or here",
          "a vrrp: address 198.18.0.11/24 is on u0 for good, and cannot float; take it away there, or here"]),
        (service(addresses={}), {}, "true", ["vrrp.addresses: there are none; leave the service out"]),
        (service(addresses={"224.0.0.18/24": {}}), {}, "true",
         ["vrrp.addresses: 224.0.0.18/24 cannot float; name an address of the segment's subnet"]),
    ],
    ids=["package", "interface", "link-local", "not free", "none", "multicast"],
)  # fmt: skip
def test_what_is_refused(host, services, of_bridge, before, errors):
    host.run(before)
    state = host.state()
    done = host.apply(alone(services, **of_bridge), code=1)
    assert [line for line in done.lines if line != "nothing was changed"] == errors
    assert host.state() == state
    assert host.files() == {}


def test_what_keepalived_refuses_is_in_its_own_words(host):
    many = service(addresses={f"10.10.{number // 250}.{number % 250 + 2}/16": {} for number in range(256)})
    done = host.apply(alone(many, addresses={}), code=1)
    assert done.lines[0].startswith("a vrrp: keepalived refuses its configuration: (overlay-vrrp-")
    assert "Number of VIPs (256) exceeds maximum/space available in packet" in done.lines[0]
    assert host.files() == {}
    assert kind.refusal("vrrp_instance a {\n virtual_router_id 1\n advert_int x\n}\n").startswith(
        "Line 3: invalid number 'x'; Line 3: (a) Advert interval (x) not valid! Must be > 0 - ignoring"
    )


def test_ipv6_alone(host):
    wanted = alone(service(addresses={f"{FLOATING_6}/64": {}}), link_local=True, addresses={"fd00::1/64": {}})
    wanted["devices"]["br-app"]["linkLocal"] = wanted["devices"]["br-app"].pop("link_local")
    host.apply({**wanted, "services": {}})
    with_carrier(host)
    host.apply(wanted)
    until(lambda: FLOATING_6 in addresses(host))
    assert host.agent("check").report == {"drift": []}


def test_typed_by_hand_it_is_the_same(host, new_host):
    other = new_host()
    host.apply(alone(service()))
    other.run("sh", "-eu", text=host.agent("explain", "p/s").out)
    with_carrier(other)
    until(lambda: {FLOATING, FLOATING_6} <= addresses(other))


# -- three hosts over VXLAN ------------------------------------------------------------------------


class Segment:
    """Hosts a, b and c on one underlay with a VXLAN mesh; a container on c; a and b float the address."""

    def __init__(self, new_host):
        self.switch = new_host(agent=False)
        self.switch.run("ip link add sw type bridge")
        self.switch.run("ip link set sw up")
        self.hosts = {name: new_host(machine=name * 32) for name in "abc"}
        for name, host in self.hosts.items():
            number = ord(name) - ord("a") + 11
            host.run("ip", "link", "set", "u1", "netns", str(self.switch._holder.pid), "name", f"to-{name}")
            self.switch.run(f"ip link set to-{name} master sw up")
            host.run("ip address flush dev u0")
            host.run(f"ip address add 198.18.0.{number}/24 dev u0")
        self.container = new_host(agent=False)
        self.container.run("ip", "link", "set", "u1", "netns", str(self.hosts["c"]._holder.pid), "name", "c0")
        self.container.run("ip address flush dev u0")
        self.container.run("ip address add 10.10.0.100/24 dev u0")
        self.container.run("ip address add fd00::100/64 dev u0 nodad")
        self.container.run("ip link set u0 mtu 1450")

    def mac(self, name):
        return f"02:00:00:00:0{name}:01"

    def document(self, name, services=None, floating=(), mac=None):
        number = ord(name) - ord("a") + 11
        peers = {other: f"198.18.0.{ord(other) - ord('a') + 11}" for other in self.hosts if other != name}
        tunnel = vxlan(bridge="br-app", local=f"198.18.0.{number}", peers=peers, mac=f"{MAC_VX[:-1]}{name}")
        own = {f"10.10.0.{number}/24": {}, f"fd00::{number}/64": {}, **{one: {} for one in floating}}
        switch = bridge(addresses=own, mac=mac or self.mac(name))
        return document(services=services, host=name, br_app=switch, vx_app=tunnel)

    def apply(self, **services):
        for name, host in self.hosts.items():
            host.apply(self.document(name, services.get(name)))
        self.hosts["c"].run("ip link set c0 master br-app up")

    def holders(self, address=FLOATING):
        return {name for name, host in self.hosts.items() if address in addresses(host)}

    def arp(self, address=FLOATING):
        rows = self.container.json(f"ip -j neigh show {address} dev u0")
        return rows[0].get("lladdr") if rows else None

    def ping(self, address, seconds):
        count = round(seconds / PING_SECONDS)
        return self.container.popen(
            "ping", "-n", "-i", str(PING_SECONDS), "-W", "1", "-c", str(count), address,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def unplug(self, name):
        """The host is dead for all others: no carrier is lost anywhere else."""
        self.switch.run(f"ip link set to-{name} nomaster")


def longest_gap(ping):
    """How many pings in a row were not answered."""
    out = ping.communicate()[0]
    sent = int(re.search(r"(\d+) packets transmitted", out)[1])
    heard = {int(number) for number in re.findall(r"bytes from .*icmp_seq=(\d+)", out)}
    longest = run = 0
    for number in range(1, sent + 1):
        run = 0 if number in heard else run + 1
        longest = max(longest, run)
    return longest, out


def settled_segment(new_host):
    made = Segment(new_host)
    made.apply(a=service(priority=200), b=service(priority=100))
    until(lambda: len(made.holders()) == 1 and len(made.holders(FLOATING_6)) == 1)
    for host in made.hosts.values():
        assert host.agent("check").report == {"drift": []}
    return made


@pytest.mark.parametrize("address", [FLOATING, FLOATING_6])
@pytest.mark.parametrize("death", ["keepalived is killed", "the host is gone", "it is removed"])
def test_the_address_answers_again_within_3_seconds(new_host, death, address):
    for _ in range(3):  # a machine that was busy for a second makes it longer, and nothing makes it shorter
        lost, out = failed_over(settled_segment(new_host), death, address)
        print(f"{death}, {address}: {lost} pings in a row of {PING_SECONDS} s not answered")
        if lost < MOST_LOST:
            break
    assert lost < MOST_LOST, out


def failed_over(segment, death, address):
    """How many pings in a row the other one does not answer, and what ping said."""
    (first,) = segment.holders(address)
    (second,) = {"a", "b"} - {first}
    until(lambda: segment.container.run("ping", "-n", "-c1", "-W1", address, check=False).code == 0)
    assert segment.arp(address) == segment.mac(first)
    ping = segment.ping(address, 8)
    time.sleep(1)
    if death == "keepalived is killed":
        kill(segment.hosts[first])
    elif death == "the host is gone":
        segment.unplug(first)
    else:
        segment.hosts[first].apply(segment.document(first))
    lost, out = longest_gap(ping)
    until(lambda: segment.arp(address) == segment.mac(second))
    assert address in addresses(segment.hosts[second])
    return lost, out


def test_a_host_that_comes_back_does_not_take_it_away(new_host):
    for _ in range(3):  # as above
        lost, out = came_back(settled_segment(new_host))
        if lost < MOST_LOST:
            break
    assert lost < MOST_LOST, out


def came_back(segment):
    (first,) = segment.holders()
    (second,) = {"a", "b"} - {first}
    until(lambda: segment.container.run("ping", "-n", "-c1", "-W1", FLOATING, check=False).code == 0)
    kill(segment.hosts[first])
    until(lambda: segment.arp() == segment.mac(second))
    ping = segment.ping(FLOATING, 5)
    segment.hosts[first].apply(segment.document(first, service(priority=200)))
    lost, out = longest_gap(ping)
    if lost < MOST_LOST:  # else the second one itself was not heard for so long that another had to be
        assert segment.holders() == {second}
        assert segment.arp() == segment.mac(second)
    return lost, out


# -- killed ----------------------------------------------------------------------------------------

#: What is there before, and what is wanted.
SCENARIOS = {
    "create": (alone(), alone(service())),
    "change": (alone(service()), alone(service(priority=50))),
    "remove": (alone(service()), alone()),
}


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["", ":all"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_each_point(new_host, name, scope):
    before, wanted = SCENARIOS[name]

    def prepare(host):
        host.apply(before)

    def look(host):  # without carrier it stays a backup
        return host.state(), sorted(processes(host).values()), traces(host)[2]

    def go(host, code, **env):
        return host.apply(wanted, code=code, **env)

    assert kill_at_each_point(new_host, scope, prepare, go, look) >= 4
