"""A segment's MTU is the smallest that its tunnels carry on all of its hosts (rule 13)."""

import pytest

from overlay_agent.document import Owner
from overlay_components.config import load_config
from overlay_components.errors import ConfigErrors
from overlay_components.plan import make_plan


def mtu_of(segment, *underlays, version=4):
    start = "192.0.2.1" if version == 4 else "2001:db8::1"
    hosts = {f"h{n}": {"address": f"{start}{n}", "mtu": mtu} for n, mtu in enumerate(underlays)}
    return make_plan(load_config({"hosts": hosts, "segments": {"app": segment}}), Owner("p", "s", "0")).segments["app"][
        "mtu"
    ]


MESH = {"m": {"kind": "vxlan", "vni": 1}}


@pytest.mark.parametrize(
    ("underlays", "version", "mtu"),
    [((1500, 1500), 4, 1450), ((1500, 1500), 6, 1430), ((9001, 9001), 4, 8951), ((9001, 1400, 1500), 4, 1350)],
)
def test_the_smallest_underlay_less_the_overhead(underlays, version, mtu):
    assert mtu_of({"tunnels": MESH}, *underlays, version=version) == mtu


#: As measured on Linux 6.1, between two hosts: the outer packet's length less the inner one's.
KINDS = [
    ({"kind": "gretap"}, 38, 58),
    ({"kind": "gretap", "key": 0}, 42, 62),
    ({"kind": "l2tp"}, 54, 74),
    ({"kind": "l2tp", "sequencing": True}, 54, 74),
    ({"kind": "l2tp", "cookie": "deadbeef"}, 58, 78),
    ({"kind": "l2tp", "cookie": "0123456789abcdef"}, 62, 82),
    ({"kind": "l2tp", "encap": "ip"}, 42, 62),
    ({"kind": "l2tp", "encap": "ip", "cookie": "deadbeef"}, 46, 66),
    ({"kind": "l2tp", "encap": "ip", "cookie": "0123456789abcdef"}, 50, 70),
]


@pytest.mark.parametrize(("tunnel", "over4", "over6"), KINDS, ids=str)
def test_what_each_encapsulation_takes(tunnel, over4, over6):
    for version, overhead in ((4, over4), (6, over6)):
        assert mtu_of({"tunnels": {"t": tunnel}}, 1500, 1500, version=version) == 1500 - overhead


def test_hosts_that_no_tunnel_touches_do_not_count():
    assert mtu_of({"tunnels": {"m": {"kind": "vxlan", "vni": 1, "endpoints": ["h0", "h1"]}}}, 9000, 9000, 1500) == 8950


def test_without_a_tunnel_it_is_the_hosts_own():
    assert mtu_of({}, 9000, 1500) == 1500
    assert mtu_of({"mtu": 9000}, 1500) == 9000


def test_the_smallest_of_several_tunnels():
    tunnels = {
        "x": {"kind": "vxlan", "vni": 1, "endpoints": ["h0", "h1"], "ifname": "x"},
        "y": {"kind": "vxlan", "vni": 2, "endpoints": ["h1", "h2"], "ifname": "y"},
    }
    assert mtu_of({"tunnels": tunnels}, 9000, 9000, 1600) == 1550


def test_less_than_the_most_is_taken_as_said():
    assert mtu_of({"tunnels": MESH, "mtu": 1300}, 1500, 1500) == 1300


@pytest.mark.parametrize("mtu", [1280, 1450])
def test_ipv6_needs_1280(mtu):
    assert mtu_of({"tunnels": MESH, "mtu": mtu, "subnets": ["fd00::/64"]}, 1500) == mtu
    with pytest.raises(ConfigErrors, match="IPv6 needs 1280"):
        mtu_of({"tunnels": MESH, "mtu": 1279, "subnets": ["fd00::/64"]}, 1500)
