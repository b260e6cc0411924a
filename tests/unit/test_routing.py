"""What a router gives out: never what is planned, and the same whatever else comes and goes."""

from __future__ import annotations

import copy
import ipaddress
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay_agent.document import Owner
from overlay_components import snippets
from overlay_components.config import load_config
from overlay_components.errors import ConfigErrors
from overlay_components.plan import make_lock, make_plan

OWNER = Owner("overlay", "test", "0")
HOSTS = {"a": {"address": "192.0.2.11"}, "b": {"address": "192.0.2.12"}}
OWN = {"a": ["10.10.0.2", "fd00:10::2"], "b": ["10.10.0.3", "fd00:10::3"]}


def stack(dhcp, **more):
    app = {"subnets": ["10.10.0.0/24", "fd00:10::/64"], "addresses": OWN, "gateway": "10.10.0.1", "dhcp": dhcp}
    return {"hosts": HOSTS, "segments": {"app": {**app, **more}}}


def routers(raw, lock=None):
    """The dnsmasq of each host that has one."""
    documents = make_plan(load_config(raw), OWNER, lock).documents
    found = {host: document.get("services", {}).get("dhcp-app") for host, document in documents.items()}
    return {host: service for host, service in found.items() if service}


def given_out(router):
    """The ranges as pairs of numbers; IPv6 ones lie far above IPv4."""
    ranges = [text.split("-") for text in router.get("ranges", {})]
    return sorted((int(ipaddress.ip_address(low)), int(ipaddress.ip_address(high))) for low, high in ranges)


def numbers(ranges):
    return {number for low, high in ranges for number in range(low, high + 1)}


@st.composite
def addresses(draw, taken=(1, 2, 3)):
    """Addresses of the segment that are nobody's yet, mostly where the range is derived."""
    last = st.integers(4, 254) | st.integers(120, 140)
    four = draw(st.lists(last, max_size=12, unique=True))
    six = draw(st.lists(st.integers(0xFF0, 0x1010) | st.integers(0x1FF0, 0x2010), max_size=6, unique=True))
    return [f"10.10.0.{n}" for n in four if n not in taken] + [f"fd00:10::{n:x}" for n in six]


@st.composite
def planned(draw, two):
    """A stack, its lock, and every address in it that is somebody's."""
    free = draw(addresses())
    containers, reservations, reserved, lock = {}, {}, [], {}
    for number, address in enumerate(free):
        kind = draw(st.sampled_from(["container", "reservation", "reserved", "locked", "gone"]))
        if kind == "container":
            containers[f"c{number}"] = {"host": "a", "address": address}
        elif kind == "reservation":
            reservations[f"r{number}"] = {"mac": f"02:00:00:00:01:{number:02x}", "address": address}
        elif kind == "reserved":
            reserved.append(address)
        else:
            lock[f"c{number}"] = address
            if kind == "locked":
                containers[f"c{number}"] = {"host": "b"}
    dhcp = {"reservations": reservations, **({"hosts": ["a", "b"]} if two else {"host": "a"})}
    raw = stack(dhcp, containers=containers, reserved=reserved)
    taken = [*free, "10.10.0.1", *OWN["a"], *OWN["b"]]
    return raw, {"app": lock}, {int(ipaddress.ip_address(address)) for address in taken}


@settings(max_examples=100, deadline=None)
@given(st.data(), st.booleans())
def test_a_derived_range_never_covers_what_is_planned(data, two):
    raw, lock, taken = data.draw(planned(two))
    found = routers(raw, lock)
    assert found.keys() == ({"a", "b"} if two else {"a"})
    ranges = [numbers(given_out(router)) for router in found.values()]
    everything = set().union(*ranges)
    half = set(range(int(ipaddress.ip_address("10.10.0.128")), int(ipaddress.ip_address("10.10.0.255"))))
    six = int(ipaddress.ip_address("fd00:10::1000"))
    assert everything == (half | set(range(six, six + 0x1000))) - taken, "and all of the rest"
    assert sum(map(len, ranges)) == len(everything), "no address is given out by two"
    assert len({str(router.get("hosts")) for router in found.values()}) == 1


@settings(max_examples=50, deadline=None)
@given(st.data(), st.booleans())
def test_another_container_moves_nobody_else(data, two):
    raw, lock, taken = data.draw(planned(two))
    number = next(n for n in range(4, 255) if int(ipaddress.ip_address(f"10.10.0.{n}")) not in taken)
    more = copy.deepcopy(raw)
    more["segments"]["app"]["containers"]["new"] = {"host": "a", "address": f"10.10.0.{number}"}
    before, after = routers(raw, lock), routers(more, lock)
    for host, router in after.items():
        assert router["hosts"]["new"]["address"] == f"10.10.0.{number}"
        others = {name: lease for name, lease in router["hosts"].items() if name != "new"}
        assert others == before[host].get("hosts", {})
        if number < 128:
            assert router.get("ranges") == before[host].get("ranges"), "dnsmasq is not restarted for it"


FOUR = {f"c{n}": {"host": "a"} for n in range(4)}


class TestLock:
    def chosen(self, dhcp, **more):
        raw = stack({"host": "a", **dhcp}, containers=FOUR, **more)
        return [*make_lock(load_config(raw), OWNER, {})["app"].values()]

    def test_it_chooses_none_that_is_given_to_whoever_asks(self):
        assert self.chosen({"range": "10.10.0.4-10.10.0.100"}) == [f"10.10.0.{n}" for n in (101, 102, 103, 104)]
        ranges = ["10.10.0.5-10.10.0.6", "10.10.0.8-10.10.0.250"]
        assert self.chosen({"range": ranges}) == ["10.10.0.4", "10.10.0.7", "10.10.0.251", "10.10.0.252"]
        assert self.chosen({"range": "none"}) == [f"10.10.0.{n}" for n in (4, 5, 6, 7)]

    def test_a_derived_range_is_no_choice_either(self):
        small = {"subnets": ["10.10.0.0/28"], "addresses": {"a": "10.10.0.2"}}
        assert self.chosen({}, **small) == [f"10.10.0.{n}" for n in (3, 4, 5, 6)]
        with pytest.raises(ConfigErrors) as caught:
            self.chosen({}, **{**small, "reserved": ["10.10.0.3", "10.10.0.4"]})
        assert "\n".join(caught.value.errors) == (
            "segments.app.containers.c3.address: none is free in 10.10.0.0/28 outside of what dhcp.range gives out; "
            "add a subnet, or run overlay lock --prune"
        )

    def test_the_routers_own_address_is_taken(self):
        raw = {"hosts": HOSTS, "segments": {"app": {"subnets": ["10.10.0.0/24"], "dhcp": {"host": "a"}}}}
        raw["segments"]["app"]["containers"] = {"web": {"host": "b"}}
        assert make_lock(load_config(raw), OWNER, {}) == {"app": {"web": "10.10.0.2"}}

    def test_a_container_that_is_the_gateway_may_be_locked(self):
        raw = stack({"host": "a"}, gateway="c1", containers=FOUR)
        lock = make_lock(load_config(raw), OWNER, {})
        rows = make_plan(load_config(raw), OWNER, lock).containers["app"]
        assert {row["gateway"] for row in rows.values()} == {lock["app"]["c1"]}
        assert routers(raw, lock)["a"]["router"] == lock["app"]["c1"]


@pytest.mark.parametrize(
    ("said", "seconds"), [(3600, 3600), ("120", 120), ("90s", None), ("30m", 1800), ("12h", 43200), ("7d", 604800)]
)
def test_the_time_of_a_lease(said, seconds):
    raw = stack({"host": "a", "lease": said})
    if seconds is None:
        with pytest.raises(ConfigErrors, match="'90s' is not the time of a lease, such as 3600"):
            routers(raw)
    else:
        assert routers(raw)["a"].get("lease", 3600) == seconds


@pytest.mark.parametrize("form", ["lxd", "incus"])
def test_a_snippet_says_where_the_address_comes_from(form):
    raw = stack({"host": "a"}, containers={"web": {"host": "a", "address": "10.10.0.11"}})
    del raw["segments"]["app"]["gateway"]

    def comment():
        made = make_plan(load_config(raw), OWNER)
        return snippets.chosen(made.containers, made.segments, "web", form)[2]

    assert comment() == "# DHCP gives it address, gateway, MTU and name servers."
    raw["segments"]["db"] = {"subnets": ["10.20.0.0/24"], "containers": {"web": {"host": "a", "address": "10.20.0.11"}}}
    made = make_plan(load_config(raw), OWNER)
    assert (
        "# The address and the gateway are set within it: overlay snippet --for netplan or ifupdown."
        in snippets.chosen(made.containers, made.segments, "web", form)
    )


def test_a_router_that_is_a_container_has_itself_as_no_gateway():
    raw = stack({"host": "a"}, gateway="rtr", containers={"rtr": {"host": "a", "address": "10.10.0.5"}})
    made = make_plan(load_config(raw), OWNER)
    assert [nic.gateway for nic in snippets.nics("rtr", made.containers, made.segments)] == [None]


def test_250_containers_on_10_hosts_are_planned_in_seconds():
    hosts = {f"h{n}": {"address": f"198.18.0.{n + 1}"} for n in range(10)}
    containers = {f"c{n}": {"host": f"h{n % 10}", "address": f"10.10.{n // 250}.{n % 250 + 2}"} for n in range(250)}
    reservations = {
        f"r{n}": {"mac": f"02:00:00:01:{n >> 8:02x}:{n & 255:02x}", "address": f"10.10.{8 + n // 250}.{n % 250 + 2}"}
        for n in range(1000)
    }
    forwards = {str(10000 + n): f"c{n}:80" for n in range(250)}
    app = {"subnets": ["10.10.0.0/16"], "tunnels": {"mesh": {"kind": "vxlan", "vni": 42}}, "containers": containers}
    app["dhcp"] = {"host": "h0", "masquerade": True, "forwards": forwards, "reservations": reservations}
    began = time.perf_counter()
    made = make_plan(load_config({"hosts": hosts, "segments": {"app": app}}), OWNER)
    print(f"250 containers, 1,000 reservations, 250 forwards: planned in {time.perf_counter() - began:.2f} s")
    services = made.documents["h0"]["services"]
    assert len(services["dhcp-app"]["hosts"]) == 1250
    assert len(services["nat-app"]["forwards"]) == 250
    assert all("services" not in made.documents[f"h{n}"] for n in range(1, 10)), "one host has it all"
