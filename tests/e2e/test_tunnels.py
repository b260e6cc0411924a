"""Document 004's tunnels, GRETAP and L2TPv3, by the real CLI; the hosts are in the VM where this kernel has neither."""

from __future__ import annotations

import json

import pytest

from tests.e2e.test_stacks import whole_life
from tests.e2e.test_uplinks import addresses, difference, master, network

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]
KINDS = ["gretap", "l2tp"]


@pytest.mark.lab(hosts=2, kinds=KINDS)
@pytest.mark.stack("doc-004-gretap")
def test_doc_004_gretap(stack):
    whole_life(stack)


@pytest.mark.lab(hosts=2, kinds=KINDS)
@pytest.mark.stack("doc-004-l2tp")
def test_doc_004_l2tp(stack):
    whole_life(stack)


@pytest.mark.lab(hosts=3, kinds=KINDS)
@pytest.mark.stack("doc-004-several")
def test_doc_004_several(stack):
    whole_life(stack)


@pytest.mark.lab(hosts=3, ipv6=True, kinds=[*KINDS, "ip6gretap"])
@pytest.mark.stack("doc-004-several")
def test_doc_004_several_over_ipv6(stack):
    for number, host in enumerate(stack.hosts.values(), 11):
        host["address"] = f"2001:db8:18::{number}"
    whole_life(stack)


# -- with other networks on the bridge -----------------------------------------------------------


@pytest.mark.lab(hosts=3, nics=2, kinds=KINDS)
@pytest.mark.stack("doc-004-external")
def test_a_router_outside(stack):
    """h3 is that router: it has no part in the stack."""
    lab = stack.lab
    before = {host: network(stack, host) for host in stack.hosts}
    lab.run("h3", "ip link set eth1 up; ip addr add 10.0.6.1/24 dev eth1; ip link set eth1 mtu 1462")
    stack.up().ok()
    assert (master(stack, "h1", "eth1"), addresses(stack, "h1", "superbr0")) == ("superbr0", set())
    stack.healthy(*stack.hosts)
    plugged = stack.plug_in()
    stack.all_reach_all(plugged)
    for host, name, _ in plugged["super"]:
        assert lab.ping(host, "10.0.6.1", container=name, wait=3)
        lab.remove_container(host, name)
    stack.noop()
    stack.destroy().ok()
    for host, lines in before.items():
        assert difference(lines, network(stack, host)) == ""


@pytest.mark.lab(hosts=3, nics=2, kinds=KINDS)
@pytest.mark.stack("doc-004-extra-hosts")
def test_more_machines_behind_a_second_nic(stack):
    """h3 is such a machine, plugged into eth1's switch: h1 serves it as it serves containers."""
    lab = stack.lab
    before = {host: network(stack, host) for host in stack.hosts}
    stack.up().ok()
    stack.healthy(*stack.hosts)
    plugged = stack.plug_in()
    # A network of its own on that machine, so that the client does not take the lab host's own default route away.
    lab.run("h3", "ip netns add extra && ip link set eth1 netns extra name eth0 && ip -n extra link set eth0 up")
    lab.run("h3", "mkdir -p /etc/netns/extra && : > /etc/netns/extra/resolv.conf")
    lab.dhcp("h3", "extra")
    [card] = [row for row in json.loads(lab.exec_container("h3", "extra", "ip -j -4 addr show eth0").stdout) if row]
    assert card["mtu"] == 1462
    assert card["addr_info"][0]["local"].startswith("10.0.5.")
    for _, _, address in plugged["super"]:
        assert lab.ping("h3", address, container="extra", wait=3)
    assert lab.ping("h3", lab.operator, container="extra", wait=3), "by NAT of h1"
    for host, name, _ in plugged["super"]:
        lab.remove_container(host, name)
    stack.noop()
    stack.destroy().ok()
    for host, lines in before.items():
        assert difference(lines, network(stack, host)) == ""
