"""What a stack's devices are on a real kernel: families, groups, many peers, and what is left alone."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import time

import pytest
from agent_support import MAC_VX, OWNER, bridge, document, usual, vxlan


def addresses(host, name):
    rows = host.json(f"ip -j address show {name}")[0]["addr_info"]
    return {f"{row['local']}/{row['prefixlen']}" for row in rows}


def peers_document(count):
    peers = {f"h{i}": f"198.19.{i // 250}.{i % 250 + 1}" for i in range(count)}
    return document(br_app=bridge(), vx_app=vxlan(bridge="br-app", peers=peers))


def test_ipv6_underlay(host):
    wanted = document(vx_app=vxlan(mtu=1430, local="2001:db8::11", peers={"b": "2001:db8::12", "c": "2001:db8::13"}))
    host.apply(wanted)
    data = host.link("vx-app")["linkinfo"]["info_data"]
    assert (data["local6"], data["id"]) == ("2001:db8::11", 42)
    assert host.peers("vx-app") == {"2001:db8::12", "2001:db8::13"}
    assert "nothing to do" in host.apply(wanted).err


@pytest.mark.parametrize(
    ("local", "group", "mtu"), [("198.18.0.11", "239.1.1.1", 1450), ("2001:db8::11", "ff05::42", 1430)]
)
def test_multicast_group(host, local, group, mtu):
    wanted = document(vx_app=vxlan(local=local, group=group, device="u0", ttl=5, mtu=mtu))
    host.apply(wanted)
    joined = {row.get("address") for row in host.json("ip -j maddress show dev u0")[0]["maddr"]}
    assert group in joined
    assert host.peers("vx-app") == {group}
    assert "nothing to do" in host.apply(wanted).err
    assert host.agent("check").report == {"drift": []}


class Monitor:
    """What changes from now on, by a program that says a line of each. A device that comes and goes marks both ends."""

    def __init__(self, host, *words):
        self.host, self.text = host, ""
        self.process = host.popen(*words, stdout=subprocess.PIPE)
        self._mark("begun")  # until it says that, it may not listen yet

    def _mark(self, name):
        end = time.monotonic() + 30
        while name not in self.text:
            assert time.monotonic() < end, "it says nothing"
            self.host.run(f"ip link add {name} type bridge")
            self.host.run(f"bridge fdb add 02:00:00:00:ff:ff dev {name} self local")
            self.host.run(f"ip link delete {name}")
            while select.select([self.process.stdout], [], [], 0.1)[0]:
                self.text += os.read(self.process.stdout.fileno(), 1 << 16).decode()

    def end(self):
        """The lines that were said."""
        self._mark("ended")
        self.process.kill()
        self.process.communicate()
        return [line for line in self.text.splitlines() if not re.search(r"\b(begun|ended)\b", line)]


def test_a_thousand_peers_and_one_more(host):
    host.apply(peers_document(1000))
    index = host.index("vx-app")
    assert len(host.peers("vx-app")) == 1000
    monitor = Monitor(host, "ip", "-o", "monitor", "link", "address", "route")
    flood = Monitor(host, "bridge", "monitor", "fdb")
    done = host.apply(peers_document(1001))
    assert done.lines == ["vx-app: + peer h1000 198.19.4.1"]
    assert monitor.end() == []
    changed = flood.end()
    assert len(changed) == 1, changed
    assert "198.19.4.1" in changed[0]
    assert (host.index("vx-app"), len(host.peers("vx-app"))) == (index, 1001)
    assert host.apply(peers_document(1000)).lines == ["vx-app: - peer 198.19.4.1"]


def test_addresses_straight_on_the_tunnel(host):
    wanted = document(
        vx_app=vxlan(addresses={"10.10.0.1/30": {}, "fd00::1/64": {}}, linkLocal=True, peers={"b": "198.18.0.12"})
    )
    host.apply(wanted)
    assert {"10.10.0.1/30", "fd00::1/64"} < addresses(host, "vx-app")
    assert any(address.startswith("fe80::") for address in addresses(host, "vx-app"))
    assert "nothing to do" in host.apply(wanted).err
    rows = host.json("ip -j -d address show vx-app")[0]["addr_info"]
    assert not any(row.get("tentative") for row in rows if row["local"] == "fd00::1")


def test_an_address_is_replaced_within_its_subnet(host):
    """And what others route through the bridge stays."""
    host.apply(document(br_app=bridge(addresses={"10.10.0.1/24": {}, "10.10.0.5/24": {}})))
    host.run("ip route add 10.99.0.0/24 via 10.10.0.77 metric 5 mtu 1300")
    index = host.index("br-app")
    done = host.apply(document(br_app=bridge(addresses={"10.10.0.2/24": {}, "10.10.0.5/24": {}})))
    assert done.lines == ["br-app: - address 10.10.0.1/24", "br-app: + address 10.10.0.2/24"]
    assert addresses(host, "br-app") == {"10.10.0.2/24", "10.10.0.5/24"}
    (route,) = host.json("ip -j -d route show 10.99.0.0/24")
    assert (route["gateway"], route["metric"], route["metrics"]) == ("10.10.0.77", 5, [{"mtu": 1300}])
    assert host.index("br-app") == index


def test_a_route_that_cannot_stay_is_named(host):
    host.apply(document(br_app=bridge(addresses={"10.10.0.1/24": {}})))
    host.run("ip route add 10.99.0.0/24 via 10.10.0.77")
    done = host.apply(document(br_app=bridge(addresses={"10.20.0.1/24": {}})))
    assert done.lines == [
        "br-app: - address 10.10.0.1/24", "br-app: + address 10.20.0.1/24",
        "br-app: route 10.99.0.0/24 is gone (Nexthop has invalid gateway)",
    ]  # fmt: skip


def test_a_tunnel_made_anew_keeps_its_routes_and_its_index(host):
    def at(vni):
        return document(vx_app=vxlan(vni=vni, addresses={"10.10.0.1/24": {}, "fd00::1/64": {}}))

    host.apply(at(42))
    host.run("ip route add 10.99.0.0/24 via 10.10.0.77 metric 5 mtu lock 1300")
    host.run("ip route add 10.97.0.0/24 nexthop via 10.10.0.78 dev vx-app nexthop via 198.18.0.1 dev u0")
    host.run("ip -6 route add fd99::/64 via fd00::77")
    routes, routes6, index = host.json("ip -j -d route"), host.json("ip -j -d -6 route"), host.index("vx-app")
    done = host.apply(at(43))
    assert done.lines == ["vx-app: vni 42 -> 43 (recreated)"]
    key = json.dumps
    assert sorted(map(key, host.json("ip -j -d route"))) == sorted(map(key, routes))
    # The kernel's own ff00::/8 and fe80::/64 may come later.
    kept = [row for row in routes6 if row.get("protocol") != "kernel"]
    assert [row for row in host.json("ip -j -d -6 route") if row.get("protocol") != "kernel"] == kept
    assert host.index("vx-app") == index


def test_ports_of_others_stay_on_the_bridge(host):
    host.apply(usual())
    host.run("ip link add c0 type veth peer name c1")
    host.run("ip link set c0 up master br-app")
    index = host.index("br-app")
    changed = usual(vni=43)
    changed["devices"]["br-app"].update(ageing=60, mtu=1400, stp=True)
    changed["devices"]["vx-app"]["mtu"] = 1400
    host.apply(changed)
    assert host.link("c0")["master"] == "br-app"
    assert (host.index("br-app"), host.link("vx-app")["master"]) == (index, "br-app")


def test_the_bridges_mtu_does_not_follow_a_containers(host):
    """A bridge takes its ports' least MTU unless its own was set; a container often comes with 1500."""
    host.apply(document(br_app=bridge(mtu=1450), br_big=bridge(mtu=1500, mac="02:00:00:00:00:05")))
    for name, master, mtu in (("c0", "br-app", 1500), ("d0", "br-big", 1400)):
        host.run(f"ip link add {name} mtu {mtu} type veth peer name {name}x")
        host.run(f"ip link set {name} up master {master}")
    assert (host.link("br-app")["mtu"], host.link("br-big")["mtu"]) == (1450, 1500)
    assert host.agent("check").report == {"drift": []}


def test_a_device_set_down_by_hand_comes_up_with_its_addresses(host):
    wanted = document(br_app=bridge(addresses={"10.10.0.1/24": {}, "fd00::1/64": {}}))
    host.apply(wanted)
    host.run("ip link set br-app down")  # takes its IPv6 addresses along
    assert host.agent("check", code=2).lines == ["br-app: up want on, is off", "br-app: lacks address fd00::1/64"]
    host.apply(wanted)
    assert addresses(host, "br-app") == {"10.10.0.1/24", "fd00::1/64"}
    assert host.agent("check").report == {"drift": []}


def test_a_lost_label_is_put_back(host):
    host.apply(usual())
    host.run("ip", "link", "set", "br-app", "alias", "")
    host.run("ip", "link", "set", "vx-app", "alias", "a note of mine")
    assert host.agent("check", code=2).lines == [
        "br-app: lacks alias overlay:p/s/br-app", "vx-app: alias want overlay:p/s/vx-app, is a note of mine",
    ]  # fmt: skip
    host.apply(usual())
    assert host.link("br-app")["ifalias"] == "overlay:p/s/br-app"
    assert host.link("vx-app")["ifalias"] == "overlay:p/s/vx-app"


def test_a_device_renamed_by_hand_comes_back(host):
    host.apply(usual())
    host.run("ip link set vx-app down")
    host.run("ip link set vx-app name vx-mine")
    assert host.agent("check", code=2).lines == ["vx-app: is not there", "vx-mine: is there and should not be"]
    host.apply(usual())
    names = {row["ifname"] for row in host.json("ip -j link")}
    assert "vx-app" in names
    assert "vx-mine" not in names


def test_two_stacks_do_not_see_each_other(host):
    other = {"project": "p", "stack": "t", "id": "id-of-t"}
    mine = usual()
    theirs = document(owner=other, br_two=bridge(mac="02:00:00:00:00:03"), vx_two=vxlan(mac="02:00:00:00:00:04", vni=7))
    host.apply(mine)
    host.apply(theirs)
    assert "nothing to do" in host.apply(mine).err
    assert "nothing to do" in host.apply(theirs).err
    assert set(host.agent("show").report) == {"p/s", "p/t"}
    assert set(host.agent("show", "p/t").report["p/t"]) == {"br-two", "vx-two"}
    host.run("ip link set br-two mtu 1300")
    assert host.agent("check", "p/s").report == {"drift": []}
    assert host.agent("check", code=2).report == {"drift": ["br-two: mtu want 1450, is 1300"]}
    host.agent("remove", "p/t")
    assert {row["ifname"] for row in host.json("ip -j link")} >= {"br-app", "vx-app"}
    assert "nothing to do" in host.apply(mine).err


def test_show_says_what_the_kernel_has(host):
    host.apply(usual())
    shown = host.agent("show", "p/s").report["p/s"]["vx-app"]
    assert shown["peers"] == {"198.18.0.12": "198.18.0.12", "198.18.0.13": "198.18.0.13"}
    assert (shown["kind"], shown["mac"], shown["vni"]) == ("vxlan", MAC_VX, 42)


@pytest.mark.parametrize(
    "wanted",
    [
        usual(df="set", ttl=9, tos="inherit", sourcePorts="1000-2000", learning=False, isolated=True,
              portLearning=False),
        document(br_app=bridge(stp=True, ageing=9, forwardDelay=4, priority=1, up=False)),
        document(vx_app=vxlan(mtu=1430, local="2001:db8::11", flowLabel=77, udp6ZeroChecksumTx=True, linkLocal=True,
                              addresses={"10.10.0.1/24": {}, "fd00::1/64": {}}, peers={"b": "2001:db8::12"})),
        document(vx_app=vxlan(group="239.1.1.1", device="u0", gbp=True, udpChecksum=False, maxAddresses=5)),
    ],
)  # fmt: skip
def test_what_explain_says_makes_the_same(new_host, wanted):
    """On a host that has no agent's store: the agent finds everything as declared."""
    host = new_host()
    script = host.agent("explain", document=wanted).out
    assert script.startswith("# p/s on a, by hand\n")
    host.run("sh", "-e", text=script)
    (line,) = host.apply(wanted).lines
    assert line.startswith("a: nothing to do, ")
    assert line.endswith(" as declared (first document)")


def test_after_a_reboot_restore_brings_all_back(host, new_host):
    host.apply(usual())
    other = {"project": "p", "stack": "t", "id": "id-of-t"}
    host.apply(document(owner=other, br_two=bridge(mac="02:00:00:00:00:03")))
    state = host.state()
    stored = host.run("tar", "-C", "/var/lib/overlay", "-c", "stacks").out
    rebooted = new_host()
    rebooted.run("tar", "-C", "/var/lib/overlay", "-x", text=stored)
    done = rebooted.agent("restore")
    assert done.out == ""
    assert {line.split(":")[0] for line in done.lines} == {"br-app", "vx-app", "br-two"}
    mine = {"br-app", "vx-app", "br-two"}

    def ours(state):
        rows = [row for row in state["ip -j -d address"] if row["ifname"] in mine]
        return [{k: v for k, v in row.items() if k != "ifindex"} for row in rows]

    assert sorted(map(json.dumps, ours(rebooted.state()))) == sorted(map(json.dumps, ours(state)))
    assert [line.endswith("as declared") for line in rebooted.agent("restore").lines] == [True, True]


def test_a_stack_that_cannot_be_restored_does_not_hold_up_the_others(host):
    first = {"project": "p", "stack": "a", "id": "id-of-a"}
    host.apply(document(owner=first, vx_a=vxlan(vni=9, local="198.18.0.11", mac="02:00:00:00:00:06")))
    host.apply(usual())
    for name in ("vx-a", "vx-app", "br-app"):
        host.run(f"ip link delete {name}")
    host.run("ip address replace 198.18.0.12/24 dev u0")
    host.run("ip address delete 198.18.0.11/24 dev u0")
    usual_elsewhere = usual()
    usual_elsewhere["devices"]["vx-app"].update(local="198.18.0.12", peers={"c": "198.18.0.13"})
    host.run("ip address add 198.18.0.12/24 dev u0", check=False)
    host.apply(usual_elsewhere)
    host.run("ip link delete br-app")
    done = host.agent("restore", code=1)
    assert done.lines[:2] == [
        (
            "a vx-a: local '198.18.0.11' is not an address of this host; set hosts.a.underlay.local (behind NAT it "
            "differs from the address that peers send to)"
        ),
        "nothing was changed",
    ]
    assert host.link("br-app")
    # The unit tries again until the underlay's address is there.
    host.run("ip address add 198.18.0.11/24 dev u0")
    host.agent("restore")
    assert host.link("vx-a")


def test_a_stack_whose_stored_document_is_from_the_future(host):
    host.apply(usual())
    host.run("sh", "-c", "sed 's/\"schema\": 1/\"schema\": 9/; s/\"s\"/\"r\"/' /var/lib/overlay/stacks/p/s.json "
                         "> /var/lib/overlay/stacks/p/r.json")  # fmt: skip
    host.run("ip link delete br-app")
    done = host.agent("restore", code=1)
    assert done.lines[0] == "stack p/r: document.schema: 9; this agent reads 1 to 1: run `pulumi up`, which updates it"
    assert host.link("br-app")


def test_removing_what_the_store_has_forgotten(host):
    host.apply(usual())
    host.run("rm -r /var/lib/overlay/stacks")
    host.agent("remove", "p/s")
    assert {row["ifname"] for row in host.json("ip -j link")} == {"lo", "u0", "u1"}
    assert host.files() == {}


def test_the_documents_owner_is_kept(host):
    host.apply(usual())
    assert json.loads(host.run("cat /var/lib/overlay/stacks/p/s.json").out)["owner"] == OWNER
