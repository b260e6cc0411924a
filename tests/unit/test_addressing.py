"""Every address of a segment has one holder, in one subnet."""

import ipaddress

import pytest

from overlay_components.addressing import Book, overlaps
from overlay_components.names import Placeholder


def book(*subnets):
    return Book("segments.app", [ipaddress.ip_network(subnet) for subnet in subnets], [])


@pytest.mark.parametrize("text", ["10.10.0.1", "10.10.0.1/24"])
def test_an_address_gets_its_subnets_prefix_length(text):
    page = book("10.10.0.0/24")
    assert page.enter("x", "host a", text) == "10.10.0.1/24"
    assert not page.wrong


def test_each_version_has_its_subnet():
    page = book("10.10.0.0/24", "fd00:10::/64")
    assert page.enter("x", "host a", "fd00:10::1") == "fd00:10::1/64"


def test_one_holder_may_say_it_again():
    page = book("10.10.0.0/24")
    page.enter("x", "host a", "10.10.0.1")
    page.enter("y", "host a", "10.10.0.1")
    assert not page.wrong


def test_what_is_not_known_yet_is_left_as_it_is():
    page = book("10.10.0.0/24")
    assert page.enter("x", "host a", Placeholder("<address>")) == "<address>"
    assert not page.holders


@pytest.mark.parametrize("text", ["10.0.0.0", "10.0.0.1"])
def test_both_addresses_of_a_31_are_hosts(text):
    assert book("10.0.0.0/31").enter("x", "host a", text) == f"{text}/31"


@pytest.mark.parametrize("text", ["fd00::", "fd00::1"])
def test_both_addresses_of_a_127_are_hosts(text):
    assert book("fd00::/127").enter("x", "host a", text) == f"{text}/127"


def test_the_last_ipv6_address_is_no_broadcast():
    assert book("fd00::/120").enter("x", "host a", "fd00::ff") == "fd00::ff/120"


def test_subnets_overlap_only_where_a_host_sees_both():
    net = ipaddress.ip_network
    rows = [
        ("segments.x.subnets[0]", net("10.0.0.0/8"), frozenset("ab")),
        ("segments.y.subnets[0]", net("10.1.0.0/16"), frozenset("c")),
        ("segments.z.subnets[0]", net("fd00::/8"), frozenset("ab")),
    ]
    assert overlaps(rows) == []
    assert len(overlaps([*rows, ("segments.v.subnets[0]", net("10.1.1.0/24"), frozenset("bc"))])) == 2
