"""Two hosts with the same gateway on their bridges: each container keeps to its own host's, across the tunnel."""

from __future__ import annotations

import json
import re
import time

import pytest
from agent_support import PYTHON, Node, bridge, container, document, vxlan

GATEWAY, GATEWAY6 = "172.18.0.1", "fd00::1"
#: Says to all that the address has that MAC address: a request and a reply of ARP (RFC 826; RFC 5227, section 3).
CLAIM4 = """
import socket, sys
name, address, mac = sys.argv[1], socket.inet_aton(sys.argv[2]), bytes.fromhex(sys.argv[3].replace(":", ""))
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind((name, 0))
for operation in (1, 2):
    body = bytes([0, 1, 8, 0, 6, 4, 0, operation]) + mac + address + bytes(6) + address
    s.send(b"\\xff" * 6 + mac + bytes([8, 6]) + body)
"""
#: Sends a neighbour advertisement for the address with that MAC address to all nodes (RFC 4861), as a claim.
CLAIM6 = """
import socket, sys
name, address, mac = sys.argv[1:]
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.bind((address, 0))
body = bytes([136, 0, 0, 0, 0x20, 0, 0, 0]) + socket.inet_pton(socket.AF_INET6, address)
s.sendto(body + bytes([2, 1]) + bytes.fromhex(mac.replace(":", "")), ("ff02::1", 0, 0, socket.if_nametoindex(name)))
"""
#: Sends a router advertisement (RFC 4861, section 4.2) for 1800 s.
ADVERTISE = """
import socket, sys
name = sys.argv[1]
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.sendto(bytes([134, 0, 0, 0, 64, 0, 7, 8]) + bytes(8), ("ff02::1", 0, 0, socket.if_nametoindex(name)))
"""


def guard(ports=("vx-app",), addresses=(GATEWAY, GATEWAY6)):
    ports, addresses = ({name: {} for name in names} for names in (ports, addresses))
    return {"guard": {"kind": "gateway-guard", "ports": ports, "addresses": addresses}}


def wanted(number, services):
    other = 23 - number
    local = {"local": f"198.18.0.{number}", "mac": f"02:00:00:00:01:{number}"}
    return document(
        br_app=bridge(mac=mac(number), addresses={f"{GATEWAY}/16": {}, f"{GATEWAY6}/64": {}}, linkLocal=True),
        vx_app=vxlan(bridge="br-app", peers={"peer": f"198.18.0.{other}"}, **local),
        services=services,
    )


def mac(number):
    return f"02:00:00:00:00:{number}"


@pytest.fixture
def pair(host, new_host):
    """Two hosts at the ends of one wire, 11 and 12, each with a bridge, a tunnel to the other, a container."""
    other = new_host(machine="e" * 32)
    other.run("ip link delete u0")
    host.run("ip", "link", "set", "u1", "netns", str(other._holder.pid))
    other.run("ip address add 198.18.0.12/24 dev u1")
    other.run("ip link set u1 up")
    return {11: host, 12: other}


def run_containers(pair):
    made = {}
    for number, host in pair.items():
        assert eventually(lambda: "tentative" not in host.run("ip -6 address show dev br-app").out)  # noqa: B023
        made[number] = container(host, "c", "br-app", f"172.18.0.{number}/16", f"fd00::{number}/64")
        made[number].run("sysctl -qw net.ipv6.conf.eth0.accept_ra=1")
    return made


def neighbour(node, address):
    """The MAC address that the node has for it, asked anew."""
    node.run("ip neigh flush all")
    assert node.pings(address)
    return re.search(r"lladdr (\S+)", node.run(f"ip neigh show {address}").out)[1]


def known(node, address):
    found = re.search(r"lladdr (\S+)", node.run(f"ip neigh show {address}").out)
    return found and found[1]


def test_each_container_keeps_to_its_own_gateway(pair):
    for number, host in pair.items():
        host.apply(wanted(number, guard()))
    nodes = run_containers(pair)
    for number, node in nodes.items():
        # The tunnel is there for all else.
        other = 23 - number
        assert node.pings(f"172.18.0.{other}")
        assert node.pings(f"fd00::{other}")
        for _ in range(5):
            assert neighbour(node, GATEWAY) == mac(number)
            assert neighbour(node, GATEWAY6) == mac(number)
        # The other host claims the address, asks for it, and for our container; and says it were the router.
        foreign = pair[other]
        assert node.pings(GATEWAY)
        foreign.run(PYTHON, "-c", CLAIM4, "br-app", GATEWAY, mac(other))
        foreign.run(PYTHON, "-c", CLAIM6, "br-app", GATEWAY6, mac(other))
        foreign.run(f"ping -c 1 -W 1 172.18.0.{number}", check=False)
        foreign.run(f"ping -c 1 -W 1 fd00::{number}", check=False)
        foreign.run(PYTHON, "-c", ADVERTISE, "br-app")
        assert (known(node, GATEWAY), known(node, GATEWAY6)) == (mac(number), mac(number))
        assert f"default via fe80::ff:fe00:{other}" not in node.run("ip -6 route").out
        # No host takes the other for itself, and its own containers reach it all the time.
        assert known(Node(foreign, "host"), GATEWAY) is None
        assert node.pings(GATEWAY)
        assert node.pings(GATEWAY6)


def test_without_it_the_other_one_gets_in(pair):
    """What the guard is for: it is not there, and what it stops does happen."""
    for number, host in pair.items():
        host.apply(wanted(number, {}))
    nodes = run_containers(pair)
    assert neighbour(nodes[11], GATEWAY) in (mac(11), mac(12))
    assert neighbour(nodes[11], GATEWAY6) in (mac(11), mac(12))
    pair[12].run(PYTHON, "-c", CLAIM6, "br-app", GATEWAY6, mac(12))
    assert eventually(lambda: known(nodes[11], GATEWAY6) == mac(12))
    assert nodes[11].pings(GATEWAY)
    pair[12].run(PYTHON, "-c", CLAIM4, "br-app", GATEWAY, mac(12))
    assert eventually(lambda: known(nodes[11], GATEWAY) == mac(12))
    pair[12].run(PYTHON, "-c", ADVERTISE, "br-app")
    assert eventually(lambda: "default via fe80::ff:fe00:12" in nodes[11].run("ip -6 route").out)


def eventually(condition):
    for _ in range(300):
        if condition():
            return True
        time.sleep(0.02)
    return False


def table(host):
    rows = [row["table"] for row in json.loads(host.run("nft -j list tables").out)["nftables"] if "table" in row]
    return next(row["name"] for row in rows if row["family"] == "bridge")


def test_its_life(host):
    bare = wanted(11, {})
    host.apply(bare)
    rules = host.run("nft list ruleset").out
    assert host.apply(wanted(11, guard())).lines == ["guard: created (gateway-guard, vx-app, 172.18.0.1, fd00::1)"]
    assert host.apply(wanted(11, guard())).lines == ["a: nothing to do, 3 objects as declared"]
    assert host.agent("show").report["p/s"]["guard"] == guard()["guard"]
    assert host.apply(wanted(11, guard(("vx-app", "vx-b"), (GATEWAY, "172.19.0.1")))).lines == [
        "guard: + port vx-b", "guard: + address 172.19.0.1", "guard: - address fd00::1",
    ]  # fmt: skip
    assert host.apply(bare).lines == ["guard: removed"]
    assert host.run("nft list ruleset").out == rules


def test_what_explain_says_makes_the_same(host):
    only = document(services=guard())
    host.run("sh", "-e", text=host.agent("explain", document=only).out)
    assert host.apply(only).lines == ["a: nothing to do, 1 object as declared (first document)"]


DRIFT = {
    "delete table bridge {t}": ["is not there"],
    "flush chain bridge {t} guard": ["lacks address 172.18.0.1", "lacks address fd00::1"],
    "flush chain bridge {t} prerouting": [
        "lacks port vx-app",
        'has rule chain postrouting: oifname "vx-app" jump guard comment "port vx-app" that is not declared',
    ],
    "insert rule bridge {t} guard accept": ["has rule chain guard: accept that is not declared"],
    "add chain bridge {t} more": ["has rule chain more that is not declared"],
    'add rule bridge {t} guard accept comment "address x"': [
        'has rule chain guard: accept comment "address x" that is not declared'
    ],
}  # fmt: skip


@pytest.mark.parametrize("command", DRIFT)
def test_what_was_changed_by_hand_is_seen_and_mended(host, command):
    host.apply(document(services=guard()))
    before = host.state()
    host.run("nft", command.format(t=table(host)))
    assert host.agent("check", code=2).lines == [f"guard: {line}" for line in DRIFT[command]]
    for point in range(1, 10):
        state = host.state()
        done = host.apply(document(services=guard()), code=None, OVERLAY_FAULT=str(point))
        if done.code == 0:
            break
        assert host.state() == state
    assert point > 3
    assert host.state() == before
    assert host.agent("check").report == {"drift": []}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"addresses": {"172.18.0.0/16": {}}}, "guard.addresses: '172.18.0.0/16' is not an IP address"),
        (
            {"ports": {"a b": {}}},
            "guard.ports: 'a b' is not an interface name (1 to 15 letters, digits, '_', '.', '-')",
        ),
        ({"others": {"x": {}}}, "guard.others: {'x': {}} is what only a look at the host can tell; leave it out"),
    ],
)
def test_what_is_no_port_or_address(host, fields, message):
    services = guard()
    services["guard"].update(fields)
    assert host.apply(wanted(11, services), code=1).lines == [message]


def test_a_host_without_nft(host, tmp_path):
    (tmp_path / "bin").mkdir()
    assert host.apply(wanted(11, guard()), code=1, PATH=str(tmp_path / "bin")).lines == [
        "a guard: nft is not on this host; install the package nftables (installPackages: true does it)",
        "nothing was changed",
    ]  # fmt: skip
