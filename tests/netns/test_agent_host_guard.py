"""isolateHost: what is on the segment reaches DHCP, DNS and ping of its host, and nothing else of it."""

from __future__ import annotations

import shlex
import time

import pytest
from agent_support import PYTHON, Node, bridge, container, document

#: The host's own services, also one at its address elsewhere, and one at the ports of the guard's exceptions.
PORTS = ("tcp/22", "tcp/8080", "udp/9000")
ADDRESSES = ("10.10.0.1", "fd00:10::1", "198.18.0.11", "2001:db8::11")
ALLOW = ("udp/67", "udp/547", "udp/53", "tcp/53")
GUARD = {"kind": "host-guard", "interface": "br-app", "allow": {one: {} for one in ALLOW}}
DHCP = {
    "kind": "dnsmasq", "interface": "br-app", "mtu": 1450, "router": "10.10.0.1", "domain": "app.example",
    "addresses": {"10.10.0.1": {}, "fd00:10::1": {}}, "subnets": {"10.10.0.0/24": {}, "fd00:10::/64": {}},
    "ranges": {"10.10.0.100-10.10.0.199": {}},
    "hosts": {"web": {"mac": "02:00:00:00:01:01", "address": "10.10.0.11"}},
}  # fmt: skip
#: The link-local address of a bridge with MAC address 02:00:00:00:00:01.
LINK_LOCAL = "fe80::ff:fe00:1%eth0"


#: Answers over UDP come from the address of the bridge, also where another was asked.
EVERYTHING = {(address, port) for address in ADDRESSES for port in ("tcp/22", "tcp/8080")}
EVERYTHING |= {(address, "udp/9000") for address in ("10.10.0.1", "fd00:10::1")}
#: Prints what answers at an address, also a link-local one with its zone.
CONNECT = (
    "import socket, sys; address, port, patience = sys.argv[1:]; "
    "print(socket.create_connection((address, int(port)), float(patience)).recv(99).decode())"
)
#: Asks a name server for the address of web.app.example.
RESOLVE = """
import socket, sys
server, protocol = sys.argv[1:]
question = bytes([7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3]) + b"web\\x03app\\x07example\\x00" + bytes([0, 1, 0, 1])
kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, kind) as s:
    s.settimeout(2)
    s.connect((server, 53))
    s.sendall(len(question).to_bytes(2, "big") + question if protocol == "tcp" else question)
    print(socket.inet_ntoa(s.recv(600)[-4:]))
"""


def wanted(*, guarded=True, **more):
    services = {"dhcp-app": DHCP, **({"guard-app": {**GUARD, **more}} if guarded else {})}
    device = bridge(addresses={"10.10.0.1/24": {}, "fd00:10::1/64": {}}, linkLocal=True)
    return document(br_app=device, services=services)


@pytest.fixture
def there(host):
    """A host without a guard, its services, and a container on the bridge."""
    host.apply(wanted(guarded=False))
    node = container(host, "web", "br-app", "10.10.0.11/24", "fd00:10::11/64", gateways=("10.10.0.1", "fd00:10::1"))
    Node(host, "host").answer(*PORTS)  # ends with the host
    end = time.monotonic() + 20
    while not node.pings(LINK_LOCAL):  # the kernel takes a moment with it (RFC 4862)
        assert time.monotonic() < end
    return host, node


def reached(node, patience=0.3):
    """(address, port) of the host's services that the container gets an answer of."""
    return {(address, port) for address, port in EVERYTHING if node.ask(address, port, patience) != "no answer"}


def connects(node, address, patience="10"):
    said = node.run(shlex.join([PYTHON, "-c", CONNECT, address, "22", patience]), check=False).out
    return said.startswith("host tcp/22")


def dns(node, server, tcp=""):
    return node.run(shlex.join([PYTHON, "-c", RESOLVE, server, tcp or "udp"]), check=False).out.strip()


def test_nothing_but_what_is_allowed_is_reached(there):
    host, node = there
    assert reached(node, 10) == EVERYTHING
    assert connects(node, LINK_LOCAL)

    assert host.apply(wanted()).lines[0].startswith("guard-app: created (host-guard, interface br-app")
    assert reached(node) == set()
    assert not connects(node, LINK_LOCAL, "1")
    # What the segment is for still works.
    assert all(node.pings(address) for address in ADDRESSES)
    assert node.pings(LINK_LOCAL)
    assert dns(node, "10.10.0.1") == dns(node, "fd00:10::1") == dns(node, "10.10.0.1", "tcp") == "10.10.0.11"
    node.run("ip address flush dev eth0")
    leased = node.run("udhcpc -f -q -n -i eth0 -s /bin/true").err
    assert "lease of 10.10.0." in leased
    # The host itself is not cut off from the container, nor from anything else.
    node.run("ip address add 10.10.0.11/24 dev eth0")
    server = node.answer("tcp/80")
    assert host.run(PYTHON, "-c", CONNECT, "10.10.0.11", "80", "10").out.startswith("web tcp/80")
    server.kill()
    server.wait()

    assert host.apply(wanted(guarded=False)).lines == ["guard-app: removed"]
    node.run("ip address add fd00:10::11/64 dev eth0 nodad")
    assert ("10.10.0.1", "tcp/22") in reached(node, 10)


def test_its_life(host):
    before = host.state()
    host.apply(wanted())
    assert host.apply(wanted()).lines == ["a: nothing to do, 3 objects as declared"]
    assert host.agent("check").report == {"drift": []}
    assert host.agent("show").report["p/s"]["guard-app"] == GUARD
    assert host.apply(wanted(allow={"udp/67": {}})).lines == [
        "guard-app: - service tcp/53", "guard-app: - service udp/53", "guard-app: - service udp/547",
    ]  # fmt: skip
    host.agent("remove", "p/s")
    assert host.state() == before


@pytest.mark.parametrize(
    ("hand", "drift"),
    [
        ("nft delete table {}", "guard-app: is not there"),
        ("nft flush chain {} input", "guard-app:"),
        ("nft insert rule {} input iifname br-app accept", 'guard-app: has rule chain input: iifname "br-app" accept'),
    ],
)
def test_what_is_changed_by_hand_is_seen_and_mended(host, hand, drift):
    host.apply(wanted())
    before = host.run("nft list ruleset").out
    (table,) = [line.split()[2] for line in before.splitlines() if line.startswith("table inet overlay-")]
    host.run(*shlex.split(hand.format(f"inet {table}")))
    assert host.agent("check", code=None).report["drift"][0].startswith(drift)
    host.apply(wanted())
    assert host.run("nft list ruleset").out == before


def test_what_explain_says_makes_the_same(host):
    host.apply(wanted())
    made = host.run("nft list ruleset").out
    host.agent("remove", "p/s")
    host.apply(wanted(guarded=False))
    text = host.agent("explain", document=wanted()).out
    start = text.index("nft '")
    host.run("sh", "-c", text[start : text.index("}\n'", start) + 3])
    assert host.run("nft list ruleset").out == made


@pytest.mark.parametrize("ends", ["10.10.0.9 5000 10.10.0.1 22", "10.10.0.9 5000 198.18.0.11 22"])
def test_a_host_is_not_locked_against_whoever_comes_in_by_the_bridge(host, ends):
    client, _, server, _ = ends.split()
    before = host.state()
    done = host.apply(wanted(), code=1, SSH_CONNECTION=ends)
    assert (
        f"guard-app: interface: this SSH session, from {client} to {server}, comes in by br-app, and the next one "
        "could not; reach the host by another of its addresses, or leave out isolateHost"
    ) in done.err
    assert host.state() == before


def test_a_bridge_that_is_not_there(host):
    done = host.apply(document(services={"guard-x": {"kind": "host-guard", "interface": "br-x"}}), code=1)
    assert "guard-x: interface 'br-x' is not a bridge of this host; declare it" in done.err
