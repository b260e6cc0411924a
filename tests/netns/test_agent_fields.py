"""Every field of every device: the kernel gets it, a change by hand is seen and mended."""

from __future__ import annotations

import dataclasses

import pytest
from agent_support import MAC_VX, bridge, document, vxlan

from overlay_agent.fields import json_name
from overlay_agent.kinds.bridge import Bridge
from overlay_agent.kinds.vxlan import Vxlan

OTHER = "02:00:00:00:00:99"


@dataclasses.dataclass
class Case:
    """One field: its other value, where `ip -j -d link` shows that value, and the command that sets it by hand.

    `hand` None: only by making the device anew. `shown`: path in the JSON and value there.
    """

    device: str
    field: str
    value: object
    shown: tuple
    hand: str | None = None
    more: dict = dataclasses.field(default_factory=dict)
    recreate: bool = False
    lacks: str = ""
    drift: list[str] | None = None
    port: bool = False

    def __str__(self):
        return f"{self.device}-{self.field}-{self.value}"


def info(key):
    return ("linkinfo", "info_data", key)


def port(key):
    return ("linkinfo", "info_slave_data", key)


BR = "br-app"
VX = "vx-app"
V6 = {"local": "2001:db8::11", "mtu": 1430}
CASES = [
    Case(BR, "mtu", 1400, (("mtu",), 1400), "ip link set br-app mtu 1400"),
    Case(BR, "mac", OTHER, (("address",), OTHER), f"ip link set br-app address {OTHER}"),
    Case(BR, "up", False, (("flags",), "UP", False), "ip link set br-app down"),
    Case(BR, "addresses", {"10.10.0.9/24": {}}, None, "ip address add 10.10.0.9/24 brd + dev br-app",
         drift=["br-app: has address 10.10.0.9/24 that is not declared"]),
    Case(BR, "addresses", {"fd00::9/64": {}}, None, "ip address add fd00::9/64 dev br-app nodad",
         drift=["br-app: has address fd00::9/64 that is not declared"]),
    Case(BR, "link_local", True, (("inet6_addr_gen_mode",), "eui64"), "ip link set br-app addrgenmode eui64"),
    Case(BR, "stp", True, (info("stp_state"), 1), "ip link set br-app type bridge stp_state 1"),
    Case(BR, "priority", 4096, (info("priority"), 4096), "ip link set br-app type bridge priority 4096"),
    Case(BR, "forward_delay", 4, (info("forward_delay"), 400), "ip link set br-app type bridge forward_delay 400"),
    Case(BR, "hello_time", 1, (info("hello_time"), 100), "ip link set br-app type bridge hello_time 100"),
    Case(BR, "max_age", 6, (info("max_age"), 600), "ip link set br-app type bridge max_age 600"),
    Case(BR, "ageing", 60, (info("ageing_time"), 6000), "ip link set br-app type bridge ageing_time 6000"),
    Case(BR, "vlan_filtering", True, (info("vlan_filtering"), 1), "ip link set br-app type bridge vlan_filtering 1",
         lacks="a br-app: change bridge: Operation not supported; this kernel was built without vlanFiltering: leave "
               "it out, or boot another kernel; undone, the host is as it was"),
    Case(BR, "multicast_snooping", False, (info("mcast_snooping"), 0),
         "ip link set br-app type bridge mcast_snooping 0",
         lacks="a br-app: change bridge: Operation not supported; this kernel was built without multicastSnooping: "
               "leave it out, or boot another kernel; undone, the host is as it was"),
    Case(BR, "deprecated", {"fd00::9/64": {}}, None, "ip address change fd00::9/64 dev br-app preferred_lft 0",
         more={"addresses": {"fd00::9/64": {}}},
         drift=["br-app: has deprecated address fd00::9/64 that is not declared"]),
    Case(VX, "mtu", 1400, (("mtu",), 1400), "ip link set vx-app mtu 1400"),
    Case(VX, "mac", OTHER, (("address",), OTHER), f"ip link set vx-app address {OTHER}"),
    Case(VX, "up", False, (("flags",), "UP", False), "ip link set vx-app down"),
    Case(VX, "bridge", BR, (("master",), BR), "ip link set vx-app master br-app",
         drift=["vx-app: has bridge br-app that is not declared"]),
    Case(VX, "isolated", True, (port("isolated"), True), "bridge link set dev vx-app isolated on", port=True),
    Case(VX, "neigh_suppress", True, (port("neigh_suppress"), True), "bridge link set dev vx-app neigh_suppress on",
         port=True),
    Case(VX, "port_learning", False, (port("learning"), False), "bridge link set dev vx-app learning off", port=True),
    Case(VX, "addresses", {"10.10.0.9/24": {}}, None, "ip address add 10.10.0.9/24 brd + dev vx-app",
         drift=["vx-app: has address 10.10.0.9/24 that is not declared"]),
    Case(VX, "link_local", True, (("inet6_addr_gen_mode",), "eui64"), "ip link set vx-app addrgenmode eui64"),
    Case(VX, "vni", 43, (info("id"), 43), recreate=True),
    Case(VX, "port", 4790, (info("port"), 4790), recreate=True),
    Case(VX, "local", "198.18.0.21", (info("local"), "198.18.0.21"),
         "ip link set vx-app type vxlan id 42 local 198.18.0.21"),
    Case(VX, "local", "2001:db8::11", (info("local6"), "2001:db8::11"), recreate=True, more={"mtu": 1430}),
    Case(VX, "device", "u0", (info("link"), "u0"), "ip link set vx-app type vxlan id 42 dev u0"),
    Case(VX, "group", "239.1.1.1", (info("group"), "239.1.1.1"), recreate=True, more={"device": "u0"}),
    Case(VX, "peers", {"b": "198.18.0.12"}, None, "bridge fdb append 00:00:00:00:00:00 dev vx-app dst 198.18.0.12",
         drift=["vx-app: has peer 198.18.0.12 that is not declared"]),
    Case(VX, "ttl", 64, (info("ttl"), 64), "ip link set vx-app type vxlan id 42 ttl 64"),
    # (iproute2 6.1 does not print ttl inherit; the agent reads it back)
    Case(VX, "ttl", "inherit", None, recreate=True),
    Case(VX, "tos", 16, (info("tos"), "0x10"), "ip link set vx-app type vxlan id 42 tos 0x10"),
    Case(VX, "tos", "inherit", (info("tos"), "0x1"), "ip link set vx-app type vxlan id 42 tos inherit"),
    Case(VX, "df", "set", (info("df"), "set"), "ip link set vx-app type vxlan id 42 df set"),
    Case(VX, "df", "inherit", (info("df"), "inherit"), "ip link set vx-app type vxlan id 42 df inherit"),
    Case(VX, "flow_label", 0x12345, (info("label"), "0x12345"), "ip link set vx-app type vxlan id 42 flowlabel 0x12345",
         more=V6),
    Case(VX, "learning", False, (info("learning"), False), "ip link set vx-app type vxlan id 42 nolearning"),
    Case(VX, "ageing", 60, (info("ageing"), 60), "ip link set vx-app type vxlan id 42 ageing 60"),
    Case(VX, "max_addresses", 10, (info("limit"), 10), recreate=True),
    Case(VX, "source_ports", "1000-2000", (info("port_range"), {"low": 1000, "high": 2000}), recreate=True),
    Case(VX, "udp_checksum", False, (info("udp_csum"), False), recreate=True),
    Case(VX, "udp6_zero_checksum_tx", True, (info("udp_zero_csum6_tx"), True), recreate=True),
    Case(VX, "udp6_zero_checksum_rx", True, (info("udp_zero_csum6_rx"), True), recreate=True),
    Case(VX, "proxy", True, (info("proxy"), True), recreate=True),
    Case(VX, "l2miss", True, (info("l2miss"), True), recreate=True),
    Case(VX, "l3miss", True, (info("l3miss"), True), recreate=True),
    Case(VX, "rsc", True, (info("rsc"), True), recreate=True),
    Case(VX, "gbp", True, (info("gbp"), True), recreate=True),
]  # fmt: skip
#: What a bridge does not have: it is no port itself.
NOT_ON_A_BRIDGE = {"bridge", "isolated", "neigh_suppress", "port_learning"}


def documents(case):
    """The document before, and the one with the field changed."""
    more = {name: value for name, value in case.more.items() if name != "device"}
    if case.port:
        more["bridge"] = BR
    own = case.device == BR
    base = {BR: bridge(**(more if own else {})), VX: vxlan(**({} if own else more))}
    wanted = {**base, case.device: {**base[case.device], **case.more, json_name(case.field): case.value}}
    return document(**base), document(**wanted)


def get(link, path):
    for key in path:
        link = link.get(key) if isinstance(link, dict) else None
    return link


#: What the fields hold that no document names, where that is not "off".
USUAL = {
    "up": True, "portLearning": True, "learning": True, "udpChecksum": True, "multicastSnooping": True,
    "priority": 32768, "forwardDelay": 15, "helloTime": 2, "maxAge": 20,
    "ageing": 300, "port": 4789, "device": None, "group": None, "df": "unset",
    "sourcePorts": "0-0", "ttl": 0, "tos": 0, "flowLabel": 0, "maxAddresses": 0,
}  # fmt: skip


def _drift(device, key, want, is_):
    if want is None:
        return f"{device}: has {key} {is_} that is not declared"
    return f"{device}: {key} want {text(want)}, is {text(is_)}"


def text(value):
    return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def test_no_field_is_forgotten():
    assert {c.field for c in CASES if c.device == VX} == {f.name for f in dataclasses.fields(Vxlan)}
    assert {c.field for c in CASES if c.device == BR} == {f.name for f in dataclasses.fields(Bridge)} - NOT_ON_A_BRIDGE


@pytest.fixture
def prepared(host):
    host.run("ip address add 198.18.0.21/24 dev u0")
    return host


def lacking(host, case, before, state):
    """Where this kernel lacks the field: a clear error, and the host as before."""
    if not case.lacks or host.run(*case.hand.split(), check=False).code == 0:
        host.apply(before)
        return False
    done = host.apply(documents(case)[1], code=1)
    assert done.lines == [case.lacks]
    assert host.state() == state
    assert host.agent("check").report == {"drift": []}
    assert host.apply(before).lines == ["a: nothing to do, 2 devices as declared"]
    return True


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_document_changes_it(prepared, case):
    host = prepared
    before, wanted = documents(case)
    host.apply(before)
    index, state = host.index(case.device), host.state()
    if lacking(host, case, before, state):
        return
    done = host.apply(wanted)
    assert all(line.endswith(" (recreated)") == case.recreate for line in done.lines), done.lines
    link = host.link(case.device)
    if case.shown is not None:
        path, value, *not_in = case.shown
        assert (value not in get(link, path)) if not_in else get(link, path) == value
    assert (link["ifindex"], link["ifalias"]) == (index, f"overlay:p/s/{case.device}")
    assert host.agent("check").report == {"drift": []}
    assert host.apply(wanted).lines == ["a: nothing to do, 2 devices as declared"]
    back = host.apply(before)
    # A device cannot be taken back from a tunnel, only given or exchanged.
    recreate = case.recreate or case.field == "device"
    assert all(line.endswith(" (recreated)") == recreate for line in back.lines), back.lines
    assert host.index(case.device) == index
    assert host.state() == state


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_change_by_hand_is_seen_and_mended(prepared, case):
    host = prepared
    before, wanted = documents(case)
    host.apply(before)
    index, state = host.index(case.device), host.state()
    if case.hand:
        done = host.run(*case.hand.split(), check=False)
        if done.code and case.lacks:
            return
        assert done.code == 0, done
    else:
        script = host.agent("explain", document=wanted).out
        mine = "\n".join(line for line in script.splitlines() if case.device in line)
        host.run("sh", "-ec", f"ip link delete {case.device}\n{mine}")
    name, was = json_name(case.field), before["devices"][case.device]
    expected = case.drift
    if expected is None:
        changed = {**{key: value for key, value in case.more.items() if was.get(key) != value}, name: case.value}
        expected = [_drift(case.device, key, was.get(key, USUAL.get(key, False)), is_) for key, is_ in changed.items()]
    check = host.agent("check", code=2)
    assert sorted(check.lines) == sorted(check.report["drift"]) == sorted(expected)
    mended = host.apply(before)
    assert {line.split(":")[0] for line in mended.lines} == {case.device}
    assert len(mended.lines) == len(expected)
    if case.hand:
        assert host.index(case.device) == index
        assert host.state() == state
    assert host.agent("check").report == {"drift": []}


def test_the_mac_of_a_device_is_the_documents_one(host):
    host.apply(document(vx_app=vxlan()))
    assert host.link("vx-app")["address"] == MAC_VX
