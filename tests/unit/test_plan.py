"""The planner's promises: what it makes the agent takes, and nothing moves when others come and go."""

import copy
import dataclasses
import itertools
import time

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from overlay_agent import document
from overlay_agent.document import Owner
from overlay_components import names
from overlay_components.config import load_config
from overlay_components.errors import ConfigErrors
from overlay_components.plan import make_plan

OWNER = Owner("overlay", "test", "0")
NAMES = ["alpha", "beta", "gamma", "delta", "epsilon", "a-host.example.org", "h1"]
TOPOLOGIES = ["mesh", "multicast", "hub", "pairs"]
KINDS = ["vxlan", "gretap", "l2tp"]
#: What spanning tree with two hubs sets on a bridge.
FAST = ["stp", "priority", "forward_delay", "hello_time", "max_age"]


def plan_of(raw):
    return make_plan(load_config(raw), OWNER)


@st.composite
def stacks(draw):
    """A stack that is right, of any shape that there is."""
    version = draw(st.sampled_from([4, 6]))
    chosen = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=6, unique=True))
    prefix = "198.18.0." if version == 4 else "2001:db8::"
    hosts = {
        name: {"address": f"{prefix}{NAMES.index(name) + 11}", "mtu": draw(st.sampled_from([1500, 1400, 9000]))}
        for name in chosen
    }
    segments = {}
    for number in range(draw(st.integers(1, 3))):
        members = draw(st.lists(st.sampled_from(chosen), min_size=1, unique=True))
        segment = {"hosts": members, "subnets": [f"10.{number}.0.0/24", f"fd00:{number}::/64"]}
        if draw(st.booleans()):
            segment["bridge"] = draw(
                st.fixed_dictionaries({}, optional={"ageing": st.integers(0, 99), "stp": st.booleans()})
            )
        segment["addresses"] = {
            name: [f"10.{number}.0.{place + 1}", f"fd00:{number}::{place + 1}"]
            for place, name in enumerate(members)
            if draw(st.booleans())
        }
        segment["containers"] = {
            f"c{number}-{place}": {"host": draw(st.sampled_from(members)), "address": f"10.{number}.0.{place + 100}"}
            for place in range(draw(st.integers(0, 3)))
        }
        kind = draw(st.sampled_from(KINDS))
        topology = draw(st.sampled_from([t for t in TOPOLOGIES if (kind, t) == ("vxlan", t) or t != "multicast"]))
        tunnel = {"kind": kind, "topology": topology, "ifname": f"vx{number}"}
        if kind == "gretap":
            tunnel["key"] = number
        if kind == "l2tp":
            tunnel["encap"] = draw(st.sampled_from(["udp", "ip"]))
        if topology == "multicast":
            tunnel["group"] = "239.1.1.1" if version == 4 else "ff05::1"
        if topology in {"hub", "pairs"}:
            if kind == "vxlan":
                tunnel["vniRange"] = f"{number * 1000000 + 1}-{number * 1000000 + 900000}"
            if topology == "hub" and len(members) > 2 and draw(st.booleans()):
                tunnel["hubs"] = members[:2]
                segment["bridge"] = {"ageing": 9}
            elif topology == "hub":
                tunnel["hub"] = members[0]
            else:
                tunnel["endpoints"] = [list(pair) for pair in itertools.pairwise(members)]
        elif kind == "vxlan":
            tunnel["vni"] = number + 1
        if len(members) > 1 or topology in {"mesh", "multicast"}:
            segment["tunnels"] = {"t": tunnel}
        segments[f"s{number}"] = segment
    return {
        "defaults": {"underlay": {"device": "eth0"}},
        "hosts": hosts,
        "segments": segments,
        "openFirewall": draw(st.booleans()),
    }


SLOW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


#: Devices that join two ends, and what each says of itself and of its peer.
MIRRORED = {
    "gretap": (["local", "key"], ["remote", "key"]),
    "ip6gretap": (["local", "key"], ["remote", "key"]),
    "l2tp": (
        ["local", "encap", "tunnel_id", "session_id", "local_port", "cookie"],
        ["remote", "encap", "peer_tunnel_id", "peer_session_id", "remote_port", "peer_cookie"],
    ),
}


def mirror(spec):
    """What the device says of itself, and to whom it speaks."""
    own, peer = MIRRORED[spec.KIND]
    return [getattr(spec, name) for name in own], [getattr(spec, name) for name in peer]


def facing(spec):
    """The same of the device that it expects at its peer."""
    return mirror(spec)[::-1]


class TestProperties:
    @SLOW
    @given(stacks())
    def test_the_agent_takes_every_document(self, raw):
        plan = plan_of(raw)
        assert plan.documents.keys() == raw["hosts"].keys()
        for host, written in plan.documents.items():
            read = document.load(document.dump(written))
            assert read.host == host
            assert dict(read.devices) == plan.devices[host]
            guarded = {name for name, spec in read.devices.items() if spec.KIND in ("vxlan", "l2tp")}
            opened = read.services["firewall"].allow.keys() if "firewall" in read.services else set()
            assert opened == (guarded if raw["openFirewall"] else set())

    @SLOW
    @given(stacks())
    def test_macs_are_local_unicast_and_stand_once(self, raw):
        plan = plan_of(raw)
        macs = [spec.mac for devices in plan.devices.values() for spec in devices.values()]
        macs += [row["mac"] for rows in plan.containers.values() for row in rows.values()]
        assert len(set(macs)) == len(macs)
        assert all(mac.startswith("02:") for mac in macs)

    @SLOW
    @given(stacks(), st.data())
    def test_a_host_more_changes_no_other_device(self, raw, data):
        new = data.draw(st.sampled_from([*sorted(set(NAMES) - raw["hosts"].keys()), "zulu"]))
        more = copy.deepcopy(raw)
        number = [*NAMES, "zulu"].index(new) + 11
        more["hosts"][new] = {"address": ("198.18.0.{}" if "198" in str(raw) else "2001:db8::{}").format(number)}
        for segment in more["segments"].values():
            for tunnel in segment.get("tunnels", {}).values():
                if tunnel["topology"] == "pairs":
                    tunnel["endpoints"].append([segment["hosts"][-1], new])
            segment["hosts"].append(new)
        before = plan_of(raw)
        try:
            after = plan_of(more)
        except ConfigErrors as error:
            assume(not any("both come to" in text for text in error.errors))
            raise
        for host, devices in before.devices.items():
            for name, spec in devices.items():
                same = after.devices[host][name]
                # What one more host may change at all: the smallest MTU, and whom one device serves.
                grown = {"mtu": same.mtu, **({"peers": same.peers} if hasattr(same, "peers") else {})}
                assert dataclasses.replace(spec, **grown) == same
        for segment, rows in before.containers.items():
            for name, row in rows.items():
                assert (after.containers[segment][name]["mac"]) == row["mac"]

    @SLOW
    @given(stacks())
    def test_a_container_more_changes_nothing_else(self, raw):
        more = copy.deepcopy(raw)
        segment = next(iter(more["segments"].values()))
        segment["containers"]["new"] = {"host": segment["hosts"][0], "address": "10.0.0.200"}
        before, after = plan_of(raw), plan_of(more)
        assert after.documents == before.documents
        assert after.containers["s0"].pop("new")
        assert after.containers == before.containers

    @SLOW
    @given(stacks())
    def test_the_order_of_hosts_does_not_matter(self, raw):
        turned = {**raw, "hosts": dict(reversed(raw["hosts"].items()))}
        assert plan_of(turned).documents == plan_of(raw).documents

    @SLOW
    @given(stacks())
    def test_what_leaves_one_end_can_enter_the_other(self, raw):
        """Each peer of a device has a device of the same numbers that knows it back."""
        plan = plan_of(raw)
        for host, devices in plan.devices.items():
            others = [(h, spec) for h, specs in plan.devices.items() if h != host for spec in specs.values()]
            for spec in devices.values():
                if spec.KIND in MIRRORED:
                    [back] = [other for _, other in others if other.KIND == spec.KIND and mirror(other) == facing(spec)]
                    assert facing(back) == mirror(spec)
        for host, devices in plan.devices.items():
            for spec in devices.values():
                for peer in getattr(spec, "peers", {}):
                    assert any(
                        getattr(other, "vni", None) == spec.vni and host in other.peers
                        for other in plan.devices[peer].values()
                    )


    @SLOW
    @given(stacks())
    def test_no_number_stands_twice_on_a_host(self, raw):
        for devices in plan_of(raw).devices.values():
            ours = [spec for spec in devices.values() if spec.KIND == "l2tp"]
            for field in ("tunnel_id", "session_id", "local_port"):
                numbers = [getattr(spec, field) for spec in ours if getattr(spec, field) is not None]
                assert len(set(numbers)) == len(numbers)

    @SLOW
    @given(stacks())
    def test_ports_of_a_mesh_are_isolated_and_no_others(self, raw):
        plan = plan_of(raw)
        for name, segment in raw["segments"].items():
            tunnel = segment.get("tunnels", {}).get("t", {})
            for host, devices in plan.devices.items():
                for spec in devices.values():
                    if spec.bridge == f"br-{name}":
                        spoke = host not in tunnel.get("hubs", [host])
                        assert spec.isolated == (spoke or (spec.KIND != "vxlan" and tunnel["topology"] == "mesh"))


HOSTS = {name: {"address": f"192.0.2.{n}"} for n, name in enumerate("abcd", 11)}


class TestTwoHubs:
    def plan(self, kind, **tunnel):
        more = {"vniRange": "1000-9999"} if kind == "vxlan" else {}
        star = {"kind": kind, "topology": "hub", **more, **tunnel}
        return plan_of({"hosts": HOSTS, "segments": {"app": {"tunnels": {"t": star}}}})

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_second_hub_renames_and_remakes_nothing(self, kind):
        before, after = self.plan(kind, hub="a"), self.plan(kind, hubs=["a", "b"])
        for host, devices in before.devices.items():
            for name, spec in devices.items():
                same = after.devices[host][name]
                if spec.KIND == "bridge":
                    grown = {key: getattr(same, key) for key in FAST}
                else:
                    grown = {"isolated": host in "cd"}
                assert dataclasses.replace(spec, **grown) == same
        assert not any(one.get("services") for one in before.documents.values())

    @pytest.mark.parametrize("kind", KINDS)
    def test_between_two_ends_there_is_one_way_that_spanning_tree_cannot_lose(self, kind):
        """Whatever passes on which port: what no spoke hands on has one way alone between any two hosts."""
        plan = self.plan(kind, hubs=["b", "d"])
        passing = {host: [s for s in devices.values() if s.bridge and not s.isolated]
                   for host, devices in plan.devices.items()}  # fmt: skip
        assert {host: len(found) for host, found in passing.items()} == {"a": 0, "b": 3, "c": 0, "d": 3}
        bridges = {host: devices["br-app"] for host, devices in plan.devices.items()}
        assert {host: one.priority for host, one in bridges.items()} == {"a": 32768, "b": 4096, "c": 32768, "d": 8192}
        times = {(one.stp, one.hello_time, one.max_age, one.forward_delay) for one in bridges.values()}
        assert times == {(True, 1, 6, 2)}

    @pytest.mark.parametrize("kind", KINDS)
    def test_each_end_is_guarded_towards_the_hubs_before_it(self, kind):
        plan = self.plan(kind, hubs=["b", "d"])
        prefix = {"vxlan": "vx", "gretap": "gt", "l2tp": "l2"}[kind]
        ports = {host: [*one.get("services", {}).get("hubs-app", {"ports": {}})["ports"]]
                 for host, one in plan.documents.items()}  # fmt: skip
        both = [f"{prefix}-app", f"{prefix}-app-d"]
        assert ports == {"a": both, "b": [], "c": both, "d": both[:1]}


class TestHints:
    def warnings(self, count, **tunnel):
        hosts = {f"h{n}": {"address": f"198.18.{n // 250}.{n % 250 + 1}"} for n in range(count)}
        return plan_of({"hosts": hosts, "segments": {"app": {"tunnels": {"t": tunnel}}}}).warnings

    def test_a_large_mesh_that_nobody_asked_for(self):
        assert self.warnings(99, kind="vxlan", vni=42) == ()
        [hint] = self.warnings(100, kind="vxlan", vni=42)
        assert hint == (
            "segments.app.tunnels.t: a mesh of 100 ends has 9900 forwarding entries, and one end more changes all of "
            "them; with topology: evpn, or multicast where the network carries it, it changes itself alone. Write "
            "topology: mesh if it shall be one"
        )
        assert self.warnings(100, kind="vxlan", vni=42, topology="mesh") == ()

    def test_a_large_mesh_of_devices_for_two_ends(self):
        [hint] = self.warnings(100, kind="gretap")
        assert hint == (
            "segments.app.tunnels.t: a mesh of 100 ends has 99 devices on each, and one end more changes all of them; "
            "kind: vxlan has one, and topology: hub (two may be hubs) one or two on all others. Write topology: mesh "
            "if it shall be one"
        )
        assert self.warnings(100, kind="gretap", topology="hub", hub="h0") == ()

    def test_an_encrypted_mesh_is_one_anyway(self):
        hosts = {f"h{n}": {"address": f"198.18.0.{n + 1}"} for n in range(100)}
        segments = {"app": {"encryption": "wireguard", "tunnels": {"t": {"kind": "vxlan", "vni": 42}}}}
        assert plan_of({"hosts": hosts, "segments": segments}).warnings == ()


class TestL2tpNumbers:
    def numbers(self, **segments):
        plan = plan_of({"hosts": HOSTS, "segments": segments})
        return {
            (host, name): (spec.tunnel_id, spec.session_id, spec.local_port)
            for host, devices in plan.devices.items()
            for name, spec in devices.items()
            if spec.KIND == "l2tp"
        }

    def test_each_is_derived_from_its_own_pair(self):
        mesh = {"tunnels": {"m": {"kind": "l2tp"}}}
        before = self.numbers(app=mesh | {"hosts": ["b", "c"]}, ops={"hosts": ["d"], "tunnels": {}})
        after = self.numbers(app=mesh, ops=mesh)
        assert before.items() <= after.items()

    def test_what_falls_together_is_parted(self, monkeypatch):
        """With a hash that knows few numbers; ports of other tunnels and said ones are kept off."""
        few = names.number
        monkeypatch.setattr(names, "number", lambda low, _, *key: few(low, low + 7, *key))
        app = {"hosts": ["a", "b"], "tunnels": {"m": {"kind": "l2tp", "ports": {"a": 20001, "b": 20001},
               "tunnelIds": {"a": 3, "b": 3}}}}  # fmt: skip
        vx = {"hosts": ["a", "c"], "tunnels": {"x": {"kind": "vxlan", "vni": 1, "port": 20002}}}
        star = {"tunnels": {"m": {"kind": "l2tp", "topology": "hub", "hub": "a", "ifname": "star"}}}
        made = self.numbers(app=app, vx=vx, star=star)
        of_a = [numbers for (host, _), numbers in made.items() if host == "a"]
        assert len(of_a) == 4
        for at in range(3):
            assert len({numbers[at] for numbers in of_a}) == 4
        derived = [numbers for (host, name), numbers in made.items() if host == "a" and name.startswith("star")]
        assert not {numbers[2] for numbers in derived} & {20001, 20002}
        assert not {numbers[0] for numbers in derived} & {3}

    def test_other_stacks_have_other_numbers(self):
        raw = {"hosts": HOSTS, "segments": {"app": {"tunnels": {"m": {"kind": "l2tp"}}}}}
        one, two = (
            {spec.tunnel_id for spec in make_plan(load_config(raw), Owner("p", stack, "0")).devices["a"].values()
             if spec.KIND == "l2tp"}
            for stack in "xy"
        )  # fmt: skip
        assert not one & two


class TestNames:
    def test_a_container_keeps_its_mac_when_it_moves(self):
        def mac(host):
            raw = {
                "hosts": {"a": {"address": "192.0.2.11"}, "b": {"address": "192.0.2.12"}},
                "segments": {
                    "app": {"subnets": ["10.0.0.0/24"], "containers": {"x": {"host": host, "address": "10.0.0.5"}}}
                },
            }
            return plan_of(raw).containers["app"]["x"]["mac"]

        assert mac("a") == mac("b")

    @pytest.mark.parametrize("peer", ["a", "a-host-with-a-very-long-name", "odd:name", "another-very-long-name"])
    def test_names_for_peers_fit(self, peer):
        name = names.for_peer("vx-app", peer)
        assert len(name) <= 15
        assert name == names.for_peer("vx-app", peer)
        assert (name == "vx-app-a") == (peer == "a")

    def test_long_names_with_one_beginning_differ(self):
        assert names.for_peer("vx-app", "rack-1-server-10") != names.for_peer("vx-app", "rack-1-server-11")

    def test_a_segment_renamed_with_its_ifname_kept_keeps_its_devices(self):
        def devices(segment):
            hosts = {name: {"address": f"192.0.2.{n}"} for n, name in enumerate("abc", 11)}
            tunnel = {"kind": "vxlan", "topology": "hub", "hub": "a", "vniRange": "1-100000", "ifname": "vx0"}
            segments = {segment: {"bridge": {"name": "br0"}, "tunnels": {"t": tunnel}}}
            return plan_of({"hosts": hosts, "segments": segments}).documents

        assert devices("old") == devices("new")


def test_other_stacks_have_other_macs():
    raw = {"hosts": {"a": {"address": "192.0.2.11"}}, "segments": {"app": {}}}
    macs = {make_plan(load_config(raw), Owner("p", stack, "0")).devices["a"]["br-app"].mac for stack in ("x", "y")}
    assert len(macs) == 2


def test_a_thousand_hosts_are_planned_in_seconds():
    hosts = {f"h{n}": {"address": f"198.18.{n // 250}.{n % 250 + 1}"} for n in range(1000)}
    began = time.perf_counter()
    plan = plan_of({"hosts": hosts, "segments": {"app": {"tunnels": {"mesh": {"kind": "vxlan", "vni": 42}}}}})
    took = time.perf_counter() - began
    print(f"1,000 hosts, one mesh: planned in {took:.2f} s")
    assert len(plan.documents["h0"]["devices"]["vx-app"]["peers"]) == 999
    assert took < 10


def test_what_is_taken_over():
    """What the host or the segment says, and MAC addresses that were said."""
    mac = "52:54:00:12:34:56"
    raw = {
        "hosts": {
            "a": {"address": "192.0.2.11", "adopt": True, "macs": {"br-app": mac}},
            "b": {"address": "192.0.2.12"},
        },
        "segments": {"app": {"tunnels": {"t": {"kind": "vxlan", "vni": 42}}}, "db": {"hosts": ["b"], "adopt": True}},
    }
    plan = plan_of(raw)
    found = {host: set(one.get("adopt", ())) for host, one in plan.documents.items()}
    assert found == {"a": {"br-app", "vx-app"}, "b": {"br-db"}}
    derived = names.mac(OWNER.label, "b", "br-app")
    assert (plan.devices["a"]["br-app"].mac, plan.devices["b"]["br-app"].mac) == (mac, derived)
    assert document.load(document.dump(plan.documents["a"])).adopt == {"br-app", "vx-app"}
    raw["hosts"]["a"]["macs"] = {"vx-ap": mac}
    with pytest.raises(ConfigErrors) as caught:
        plan_of(raw)
    assert caught.value.errors == ["hosts.a.macs.vx-ap: unknown device 'vx-ap'; did you mean vx-app?"]


def test_hosts_with_services_are_told_to_install_what_they_lack():
    hosts = {"a": {"address": "198.18.0.11"}, "b": {"address": "198.18.0.12"}}
    app = {"tunnels": {"mesh": {"kind": "vxlan", "vni": 42}}, "subnets": ["10.10.0.0/24"], "dhcp": {"host": "a"}}
    raw = {"hosts": hosts, "segments": {"app": {**app, "addresses": {"a": "10.10.0.1"}}}}
    for said in (True, False):
        documents = plan_of({**raw, "installPackages": said}).documents
        assert [document.parse(documents[host]).install_packages for host in hosts] == [said, False]
