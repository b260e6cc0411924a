"""Three hosts with one gateway, address and MAC address: each serves its own containers, whatever the others do.

What docs/adr/0007 measured of the plain way must not be: forwarding entries that flap, hosts that do not reach each
other, a gateway that is gone for half a minute when some other host dies.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import time

import pytest
from agent_support import Host, Node, container

from overlay_agent import fields
from overlay_agent.document import Owner
from overlay_components.config import load_config
from overlay_components.plan import make_plan

HOSTS = ("a", "b", "c")
WEB = "02:00:00:00:01:01"
STACK = {
    "hosts": {name: {"address": f"198.18.0.{number}"} for number, name in enumerate(HOSTS, 21)},
    "segments": {
        "app": {
            "subnets": ["10.10.0.0/24", "fd00:10::/64"],
            "gateway": "anycast",
            "addresses": {n: [f"10.10.0.{i}", f"fd00:10::{i}"] for i, n in enumerate(HOSTS, 2)},
            "tunnels": {"mesh": {"kind": "vxlan", "vni": 42}},
            "dhcp": {"masquerade": True},
            "containers": {"web": {"host": "b", "address": "10.10.0.11", "mac": WEB}},
        },
        # No host has an address of its own here.
        "db": {
            "subnets": ["10.20.0.0/24", "fd00:20::/64"],
            "gateway": {"anycast": True, "address": ["10.20.0.254", "fd00:20::fe"]},
            "tunnels": {"mesh": {"kind": "vxlan", "vni": 43, "learning": False}},
        },
    },
}
GATEWAY, GATEWAY6, GATEWAY_DB, GATEWAY6_DB = "10.10.0.1", "fd00:10::1", "10.20.0.254", "fd00:20::fe"


def planned(stack=STACK):
    return make_plan(load_config(stack), Owner("p", "s", "id-of-s"))


def documents(stack=STACK):
    """As plain data, by host."""
    return json.loads(json.dumps(planned(stack).documents))


MAC = planned().segments["app"]["anycast"]


class Lab:
    """Hosts a, b and c at one switch, with the stack applied, and on each a container in each segment."""

    def __init__(self, archive, installed):
        self.switch = Host(archive)
        self.switch.run("ip link delete u0")
        self.switch.run("ip link add sw type bridge")
        self.switch.run("ip link set sw up")
        self.hosts = {name: Host(archive, installed, machine=name * 32) for name in HOSTS}
        for number, (name, host) in enumerate(self.hosts.items(), 21):
            host.run("ip", "link", "set", "u1", "netns", str(self.switch._holder.pid))
            self.switch.run(f"ip link set u1 name p{number} master sw up")
            host.run(f"ip address add 198.18.0.{number}/24 dev u0")
            host.run("ip address delete 198.18.0.11/24 dev u0")
            host.run(f"ip address add 198.18.0.{number}/24 dev u0", check=False)
            host.run("ip address delete 2001:db8::11/64 dev u0")
            host.apply(documents()[name])
        self.app, self.db = {}, {}
        for number, (name, host) in enumerate(self.hosts.items(), 21):
            self.app[name] = container(host, "app", "br-app", f"10.10.0.{number}/24", gateways=[GATEWAY])
            self.db[name] = container(host, "db", "br-db", f"10.20.0.{number}/24", f"fd00:20::{number}/64",
                                      gateways=[GATEWAY_DB, GATEWAY6_DB])  # fmt: skip
        self.app6 = {name: until(lambda n=node: slaac(n)) for name, node in self.app.items()}

    def close(self):
        for host in (*self.hosts.values(), self.switch):
            host.close()


@pytest.fixture(scope="module")
def lab(agent_archive, installed):
    made = Lab(agent_archive, installed)
    yield made
    made.close()


def until(check, seconds=15):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = check()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it does not come")


def slaac(node):
    """The address that a container made itself by a router advertisement."""
    rows = json.loads(node.run("ip -6 -j address show dev eth0 scope global -tentative").out or "[]")
    return next((a["local"] for row in rows for a in row.get("addr_info", ()) if a.get("dynamic")), None)


def lost(node, *targets, count=5):
    """Of so many pings of 1,000 bytes to each, at the same time, who lost how many."""
    words = ["ping", "-q", "-n", "-s", "1000", "-i", "0.05", "-W", "1", "-c", str(count)]
    running = {t: node.host.popen(*node.enter, *words, t, stdout=subprocess.PIPE, text=True) for t in targets}
    said = {target: process.communicate()[0] for target, process in running.items()}
    found = {t: re.search(r"(\d+) packets transmitted, (\d+) received", text) for t, text in said.items()}
    return {f"{node.name} -> {t}": int(m[1]) - int(m[2]) for t, m in found.items() if m[1] != m[2]}


def known(node, address):
    found = re.search(r"lladdr (\S+)", node.run(f"ip neigh show {address}").out)
    return found and found[1]


def sent(host, device):
    """How many bytes went out by it."""
    return host.json(f"ip -j -s link show {device}")[0]["stats64"]["tx"]["bytes"]


def test_everybody_reaches_everybody(lab):
    containers = {name: [f"10.10.0.{n}", lab.app6[name], f"10.20.0.{n}", f"fd00:20::{n}"]
                  for n, name in enumerate(HOSTS, 21)}  # fmt: skip
    everyone = [address for addresses in containers.values() for address in addresses]
    own = [address for addresses in STACK["segments"]["app"]["addresses"].values() for address in addresses]
    missing = {}
    for name, host in lab.hosts.items():
        # Each segment's container goes by the gateway into the other one, on its host and on the others.
        missing |= lost(lab.app[name], *everyone, *own, GATEWAY, GATEWAY6)
        missing |= lost(lab.db[name], *everyone, *own, GATEWAY_DB, GATEWAY6_DB)
        # And the host from its own address.
        missing |= lost(Node(host, name), *own, *(a for a in everyone if a.startswith(("10.10.", "fd00:10:"))))
    assert missing == {}
    for name, host in lab.hosts.items():
        assert known(lab.app[name], GATEWAY) == known(lab.app[name], GATEWAY6) == MAC
        router = fields.link_local_of(MAC)
        assert f"default via {router} " in lab.app[name].run("ip -6 route").out
        # The gateway's address is behind no tunnel; the other hosts' own ones are.
        entries = host.run("bridge fdb show dev vx-app").out
        others = [planned().documents[n]["services"]["anycast-app"]["own"] for n in HOSTS if n != name]
        assert MAC not in entries
        assert all(mac in entries for mac in others)
        # Nobody took another host for its gateway.
        for node in (lab.app[name], lab.db[name]):
            assert {known(node, a) for a in (GATEWAY, GATEWAY6, GATEWAY_DB)} <= {
                MAC, planned().segments["db"]["anycast"], None,
            }  # fmt: skip
        assert host.agent("check").report == {"drift": []}


def test_what_is_routed_on_a_host_stays_there(lab):
    host = lab.hosts["c"]
    before = sent(host, "vx-app"), sent(host, "vx-db")
    assert lost(lab.app["c"], "10.20.0.23", "fd00:20::23", GATEWAY, count=50) == {}
    after = sent(host, "vx-app"), sent(host, "vx-db")
    # Of 150,000 bytes each way none; what is left room for is the kernel's own (MLD, neighbours' probes).
    assert [there - was < 20_000 for there, was in zip(after, before, strict=True)] == [True, True]


def test_the_death_of_another_host_is_not_noticed(lab):
    node = lab.app["c"]
    words = ["ping", "-q", "-n", "-i", "0.02", "-W", "1", "-c", "150"]
    pings = [node.host.popen(*node.enter, *words, t, stdout=subprocess.PIPE, text=True) for t in
             (GATEWAY, GATEWAY6, "10.20.0.23")]  # fmt: skip
    time.sleep(1)
    for name in ("a", "b"):
        lab.switch.run(f"ip link set p{21 + HOSTS.index(name)} down")
    said = [process.communicate()[0] for process in pings]
    for name in ("a", "b"):
        lab.switch.run(f"ip link set p{21 + HOSTS.index(name)} up")
    assert ["150 received" in text for text in said] == [True, True, True], said
    assert known(node, GATEWAY) == MAC
    assert until(lambda: lost(node, "10.10.0.21", count=1) == {})


def test_a_lease_comes_from_the_own_host_and_goes_along(lab, tmp_path):
    script, out = tmp_path / "script", tmp_path / "out"
    script.write_text('#!/bin/sh\n[ "$1" = bound ] && env > "$OUT"\nexit 0\n')
    script.chmod(0o755)
    web = container(lab.hosts["b"], "web", "br-app")
    web.run(f"ip link set eth0 address {WEB}")

    def ask():
        web.run(f"udhcpc -f -q -n -i eth0 -s {script}", env={"OUT": str(out)})
        return dict(line.split("=", 1) for line in out.read_text().splitlines() if "=" in line)

    told = ask()
    wish = {"ip": "10.10.0.11", "router": GATEWAY, "dns": GATEWAY, "serverid": "10.10.0.3", "mtu": "1450"}
    assert {key: told[key] for key in wish} == wish
    assert [name for name, host in lab.hosts.items() if "10.10.0.11" in leases(host)] == ["b"]
    web.run("ip address add 10.10.0.11/24 dev eth0")
    web.run(f"ip route add default via {GATEWAY}")
    assert lost(web, "10.20.0.22", "10.20.0.23") == {}

    moved = copy.deepcopy(STACK)
    moved["segments"]["app"]["containers"]["web"]["host"] = "c"
    # Nobody's address or lease depends on where it runs.
    assert documents(moved) == documents()
    there, entry = lab.hosts["c"], known(web, GATEWAY)
    lab.hosts["b"].run("ip", "link", "set", "p-web", "netns", str(there._holder.pid))
    there.run("ip link set p-web addrgenmode none master br-app up")
    # What it knew of its gateway: it lost that with the carrier, as in a migration it would not.
    web.run(f"ip neigh replace {GATEWAY} lladdr {entry} nud permanent dev eth0")
    before = sent(there, "vx-app")
    assert until(lambda: lost(web, GATEWAY, count=1) == {})
    assert lost(web, GATEWAY, "10.20.0.23", count=20) == {}
    assert sent(there, "vx-app") - before < 20_000
    assert lost(web, "10.20.0.22", "10.10.0.22") == {}
    told = ask()
    assert (told["ip"], told["serverid"]) == ("10.10.0.11", "10.10.0.4")


def leases(host):
    return host.run("sh", "-c", "cat /var/lib/overlay/services/*/leases 2>/dev/null || true").out


# -- one host ------------------------------------------------------------------------------------

ALONE = {
    **STACK,
    "hosts": {"a": {"address": "198.18.0.11"}, "b": {"address": "198.18.0.12"}},
    "segments": {"app": {**STACK["segments"]["app"], "addresses": {"a": ["10.10.0.2", "fd00:10::2"]}, "dhcp": None}},
}


def alone(gateway):
    stack = copy.deepcopy(ALONE)
    del stack["segments"]["app"]["dhcp"]
    stack["segments"]["app"]["gateway"] = gateway
    return documents(stack)["a"]


def look(host):
    """The host's state; whether the kernel made a link-local address or the agent makes no difference."""
    state = host.state()
    for link in state["ip -j -d address"]:
        for address in link["addr_info"]:
            if address["scope"] == "link":
                address.pop("nodad", None)
                address.pop("protocol", None)
    return state


def test_its_life(host):
    host.apply(alone("a"))
    before = look(host)
    shared = alone("anycast")
    own = shared["services"]["anycast-app"]["own"]
    said = host.apply(shared).lines
    assert f"br-app: mac {own} -> {MAC}" in said
    assert "br-app: + deprecated address fd00:10::1/64" in said
    what = f"anycast-gateway, interface br-app, own {own}, 10.10.0.1, fd00:10::1, vx-app"
    assert f"anycast-app: created ({what})" in said
    assert host.agent("check").report == {"drift": []}
    assert host.apply(shared).lines == ["a: nothing to do, 4 objects as declared"]
    shown = host.agent("show").report["p/s"]
    assert {name: shown[name] for name in ("br-app", "anycast-app")} == {
        "br-app": shared["devices"]["br-app"], "anycast-app": shared["services"]["anycast-app"],
    }  # fmt: skip
    # The router's link-local address is that of its MAC address, at once and not at the next boot.
    there = host.run("ip -6 address show dev br-app scope link").out
    assert (fields.link_local_of(MAC) in there, fields.link_local_of(own) in there) == (True, False)
    host.apply(alone("a"))
    assert look(host) == before


def test_stopped_and_started_restored_and_removed(host):
    clean = look(host)
    shared = alone("anycast")
    host.apply(shared)
    container(host, "web", "br-app")  # so that the bridge stays
    whole = host.agent("show").report
    host.agent("stop", "p/s")
    assert "table bridge" not in host.run("nft list ruleset").out
    assert not host.json("ip -j address show br-app")[0]["addr_info"]
    host.agent("start", "p/s")
    assert host.agent("show").report == whole
    assert host.agent("check").report == {"drift": []}
    assert fields.link_local_of(MAC) in host.run("ip -6 address show dev br-app scope link").out
    host.run("ip link delete p-web")
    host.run("ip netns delete web")
    for device in ("vx-app", "br-app"):
        host.run(f"ip link delete {device}")
    host.run("nft flush ruleset")
    host.agent("restore")  # as at boot
    assert host.agent("check").report == {"drift": []}
    assert host.run("ip -o link show br-app").out.split("link/ether ")[1].startswith(MAC)
    host.agent("remove", "p/s")
    assert look(host) == clean


def test_what_explain_says_makes_the_same(host):
    shared = alone("anycast")
    del shared["services"]["forwarding"]  # which asks what was there before
    host.run("sh", "-e", text=host.agent("explain", document=shared).out)
    lines = host.apply(shared).lines
    assert lines == ["a: nothing to do, 3 objects as declared (first document)"]


DRIFT = {
    "nft delete table bridge {t}": ["anycast-app: is not there"],
    "nft flush chain bridge {t} prerouting": None,
    "nft flush chain bridge {t} outward": None,
    "nft insert rule bridge {t} inward accept": ["anycast-app: has rule chain inward: accept that is not declared"],
    "ip link set br-app address 02:00:00:00:00:99": [f"br-app: mac want {MAC}, is 02:00:00:00:00:99"],
    "ip address change fd00:10::1/64 dev br-app preferred_lft forever": [
        "br-app: lacks deprecated address fd00:10::1/64"
    ],
    "ip address delete 10.10.0.1/32 dev br-app": ["br-app: lacks address 10.10.0.1/32"],
}  # fmt: skip


def test_what_was_changed_by_hand_is_seen_and_mended(host):
    shared = alone("anycast")
    host.apply(shared)
    whole = look(host)
    for command, drift in DRIFT.items():
        rows = json.loads(host.run("nft -j list tables").out)["nftables"]
        name = next(r["table"]["name"] for r in rows if "table" in r and r["table"]["family"] == "bridge")
        host.run("sh", "-c", command.format(t=name))
        said = host.agent("check", code=2).report["drift"]
        assert said == drift if drift else all(line.startswith("anycast-app: ") for line in said), command
        host.apply(shared)
        assert host.agent("check").report == {"drift": []}
        assert look(host) == whole, command


def test_cut_short_all_of_it_is_undone(host):
    host.apply(alone("a"))
    before = look(host)
    for point in range(1, 40, 3):
        done = host.apply(alone("anycast"), code=None, OVERLAY_FAULT=str(point))
        if done.code == 0:
            break
        assert look(host) == before, point
    assert done.code == 0
    assert point > 3
    assert host.agent("check").report == {"drift": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["services"]["anycast-app"].update(mac="02:00:00:00:00:99"),
         f"a anycast-app: mac: 02:00:00:00:00:99, but br-app is to have {MAC}; give both the same"),
        (lambda d: d["services"]["anycast-app"].update(own=MAC),
         f"anycast-app.own: {MAC} is the gateway's MAC address; give another"),
        (lambda d: d["services"]["anycast-app"].update(addresses={"10.10.0.99": {}}),
         "a anycast-app: addresses: 10.10.0.99 is not on br-app; give it that"),
        (lambda d: d["services"]["anycast-app"].update(interface="br-no"),
         "a anycast-app: interface 'br-no' is not a bridge of this document; declare it"),
        (lambda d: d["devices"]["br-app"].update(deprecated={"10.10.0.2/24": {}}),
         "br-app.deprecated: 10.10.0.2/24 is not an IPv6 address in addresses; add it there"),
    ],
    ids=["mac", "own", "address", "interface", "deprecated"],
)  # fmt: skip
def test_what_is_refused(host, change, message):
    wanted = alone("anycast")
    change(wanted)
    assert message in host.apply(wanted, code=1).lines
    assert host.files() == {}


def test_a_host_without_nft(host, tmp_path):
    (tmp_path / "bin").mkdir()
    said = host.apply(alone("anycast"), code=1, PATH=str(tmp_path / "bin")).lines
    assert (
        "a anycast-app: nft is not on this host; install the package nftables (installPackages: true does it), or "
        "leave out anycast"
    ) in said
