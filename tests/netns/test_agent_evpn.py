"""BGP EVPN by FRR on five hosts, two of them reflectors: what is told, what is lost when, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agent_support import OWNER, Host, Node, bridge, container, document, kill_at_each_point, vxlan

pytestmark = pytest.mark.skipif(not shutil.which("vtysh"), reason="FRR is not installed (the VM lab's image has none)")
REFLECTORS, CLIENTS = "ab", "cde"
HOSTS = REFLECTORS + CLIENTS
RANGE = "198.18.0.0/24"
PASSWORD = "overlay-evpn:0123456789abcdef"
VTYSH = "vtysh -N overlay"
INTERVAL = 0.02
FIELDS = Path(__file__).parent / "evpn_fields.py"
AGENT = str(Path(__file__).parent.parent.parent)


def address(name):
    return f"198.18.0.{11 + ord(name) - ord('a')}"


def service(name, **more):
    others = {one: address(one) for one in REFLECTORS if one != name}
    own = {"reflector": True, "ranges": {RANGE: {}}} if name in REFLECTORS else {}
    spec = {"kind": "evpn", "asn": 65000, "routerId": address(name), "local": address(name), "neighbors": others,
            "password": PASSWORD, "vnis": {"42": {}}, **own, **more}  # fmt: skip
    return {key: value for key, value in spec.items() if value is not None}


def tunnel(name, vni=42, **more):
    rest = {"learning": False, "port_learning": False, "neigh_suppress": True, **more}
    mac = f"02:00:00:{vni % 256:02x}:00:{ord(name):02x}"
    spec = vxlan(vni=vni, local=address(name), bridge=f"br-{vni}", mac=mac, **rest)
    return {re.sub("_(.)", lambda m: m[1].upper(), key): value for key, value in spec.items()}


def switch(name, vni=42):
    return bridge(mac=f"02:00:01:{vni % 256:02x}:00:{ord(name):02x}")


def wanted(name, vnis=(42,), devices=None, **more):
    made = {f"{kind}-{vni}": make(name, int(vni)) for vni in vnis for kind, make in (("br", switch), ("vx", tunnel))}
    vnis = {"vnis": vnis if isinstance(vnis, dict) else {str(vni): {} for vni in vnis}}
    return document(services={"evpn": service(name, **{**vnis, **more})}, host=name, **{**made, **(devices or {})})


def until(done, seconds=60):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)


def send_password(host, value=b"s3cret", name="a"):
    given = {"schema": 1, "owner": OWNER, "host": name, "secrets": {PASSWORD: value.hex()}}
    return host.agent("secrets", document=given)


class Fabric:
    """The hosts on one underlay, each with a container in the segment."""

    def __init__(self, agent_archive, installed):
        self.switch = Host(agent_archive)
        # It is a cable, and must not answer for an address of the hosts.
        self.switch.run("ip address flush dev u0")
        self.switch.run("ip link add sw type bridge")
        self.switch.run("ip link set sw up")
        self.hosts = {name: Host(agent_archive, installed, machine=name * 32) for name in HOSTS}
        for name, host in self.hosts.items():
            self.add(name, host)
        self.containers = {}

    def add(self, name, host):
        """Puts the host on the underlay."""
        host.run("ip", "link", "set", "u1", "netns", str(self.switch._holder.pid), "name", f"to-{name}")
        self.switch.run(f"ip link set to-{name} master sw up")
        host.run("ip address flush dev u0")
        host.run(f"ip address add {address(name)}/24 dev u0")
        self.hosts[name] = host
        return host

    def drop(self, name):
        del self.hosts[name]

    def __getitem__(self, name):
        return self.hosts[name]

    def close(self):
        for host in [*self.hosts.values(), self.switch]:
            host.close()

    def vtysh(self, name, *commands):
        words = [word for command in commands for word in ("-c", command)]
        return self[name].run("vtysh", "-N", "overlay", *words, check=False).out

    def sessions(self, name):
        return self[name].agent("status", "p/s").report["objects"]["evpn"]["sessions"]

    def peers(self, name, vni=42):
        return self[name].peers(f"vx-{vni}")

    def is_whole(self, names=HOSTS, vni=42):
        return all(self.peers(name, vni) == {address(one) for one in names if one != name} for name in names)

    def kill(self, name, *programs):
        """Kills those daemons at once."""
        for pid in self[name].processes():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() in programs:
                    os.kill(pid, signal.SIGKILL)

    def ping(self, one, other, seconds):
        node, count = self.containers[one], str(round(seconds / INTERVAL))
        return node.host.popen(
            *node.enter, "ping", "-n", "-i", str(INTERVAL), "-W", "1", "-c", count, self.ip(other),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def ip(self, name):
        return f"10.10.0.{11 + ord(name) - ord('a')}"


def lost(ping):
    out = ping.communicate()[0]
    sent, heard = re.search(r"(\d+) packets transmitted, (\d+) received", out).groups()
    return int(sent) - int(heard)


@pytest.fixture(scope="module")
def fabric(agent_archive, installed):
    made = Fabric(agent_archive, installed)
    try:
        for name, host in made.hosts.items():
            send_password(host, name=name)
            host.apply(wanted(name))
            made.containers[name] = container(host, f"c{name}", "br-42", f"{made.ip(name)}/24")
        until(lambda: is_settled(made))
        yield made
    finally:
        made.close()


def program_names(host):
    names = []
    for pid in host.processes():
        with contextlib.suppress(OSError):
            names.append(Path(f"/proc/{pid}/comm").read_text().strip())
    return sorted(name for name in names if name in ("zebra", "bgpd", "bfdd"))


def is_settled(fabric):
    """Whether all have told all others, and `check` finds no difference and no session missing."""
    reports = (host.agent("check", code=None).report for host in fabric.hosts.values())
    return fabric.is_whole() and all(report == {"drift": []} for report in reports)


@pytest.fixture(autouse=True)
def _settled(request):
    """Each test of the fabric leaves it as it was."""
    yield
    if "fabric" in request.fixturenames:
        made = request.getfixturevalue("fabric")
        until(lambda: is_settled(made))


# -- what is told -----------------------------------------------------------------------------------


def test_each_tells_all_others_where_it_is(fabric):
    for name in HOSTS:
        assert program_names(fabric[name]) == ["bgpd", "zebra"]
        objects = fabric[name].agent("status", "p/s").report["objects"]
        assert objects["evpn"]["vnis"]["42"]["vteps"] == len(HOSTS) - 1
        assert objects["evpn"]["since"] is not None
        sessions = objects["evpn"]["sessions"]
        others = {one for one in REFLECTORS if one != name}
        # Who comes by a range is known by its address alone.
        others |= {address(one) for one in CLIENTS} if name in REFLECTORS else set()
        assert sessions.keys() == others
        assert {one["state"] for one in sessions.values()} == {"Established"}
        assert all(one["since"] and one["prefixes"] >= 1 for one in sessions.values())
        told = json.loads(fabric.vtysh(name, "show bgp l2vpn evpn route type multicast json"))
        heard = {key for rd in told.values() if isinstance(rd, dict) for key in rd if key.startswith("[3]")}
        assert heard == {f"[3]:[0]:[32]:[{address(one)}]" for one in HOSTS}
    for one in HOSTS:
        for other in HOSTS:
            assert one == other or fabric.containers[one].pings(fabric.ip(other)), (one, other)


def test_nobody_sees_the_password(fabric):
    host = fabric["c"]
    config = "/var/lib/overlay/services/overlay-evpn-*/bgpd.conf"
    assert " neighbor peers password s3cret\n" in host.run("sh", "-c", f"cat {config}").out
    assert host.run("sh", "-c", f"stat -c '%a %U %G' {config}").out == "640 root frr\n"
    for pid in host.processes():
        with contextlib.suppress(OSError):
            assert "s3cret" not in Path(f"/proc/{pid}/cmdline").read_text()
    for verb in (["show", "p/s"], ["status", "p/s"], ["explain", "p/s"]):
        assert "s3cret" not in host.agent(*verb).out


def test_a_mac_moves_from_host_to_host(fabric):
    mac, ip = "02:00:00:aa:aa:aa", "10.10.0.77"

    def arrive(name):
        node = container(fabric[name], "mover", "br-42")
        node.run("ip link set eth0 down")
        node.run(f"ip link set eth0 address {mac}")
        node.run("ip link set eth0 up")
        node.run(f"ip address add {ip}/24 dev eth0")
        return node

    def behind(mac):
        rows = fabric["c"].json("bridge -j fdb show dev vx-42")
        return [row["dst"] for row in rows if row["mac"] == mac and "dst" in row]

    other = fabric.containers["c"]
    for name in "ded":
        node = arrive(name)
        until(lambda node=node: node.pings(fabric.ip("c")))  # the mover sends
        assert other.pings(ip)
        until(lambda name=name: behind(mac) == [address(name)])
        fabric[name].run("ip netns del mover")
        until(lambda name=name: "p-mover" not in fabric[name].run("ip link").out)


def test_what_goes_to_a_hosts_own_address_goes_to_no_other_host(fabric):
    """A bridge's own MAC address is learned on no port; without `svi` it is in nobody's forwarding table."""
    mac, ip = switch("e")["mac"], "10.10.0.205"
    with_address = {"br-42": {**switch("e"), "addresses": {f"{ip}/24": {}}}}
    hook = "type filter hook prerouting priority 0"

    def heard():
        """By c, which has nothing to do with it."""
        return int(re.search(r"packets (\d+)", fabric["c"].run("nft list table bridge seen").out)[1])

    def known():
        rows = fabric["d"].json("bridge -j fdb show dev vx-42")
        return [row["dst"] for row in rows if row["mac"] == mac and "dst" in row]

    fabric["c"].run("nft", f"table bridge seen {{ chain in {{ {hook}; ether daddr {mac} counter; }}; }}")
    fabric["e"].apply(wanted("e", devices=with_address))
    assert fabric.containers["d"].pings(ip)
    assert (heard() > 0, known()) == (True, [])
    fabric["e"].apply(wanted("e", devices=with_address, vnis={"42": {"svi": True}}))
    until(lambda: known() == [address("e")])
    before = heard()
    assert " 0% packet loss" in fabric.containers["d"].run(f"ping -n -i 0.01 -c 50 {ip}").out
    assert heard() == before
    fabric["e"].apply(wanted("e"))
    until(lambda: known() == [])
    fabric["c"].run("nft delete table bridge seen")


def test_what_has_nothing_to_do_with_it_is_left_alone(fabric):
    """A mesh's VXLAN device, which FRR sees too: nobody tells of it, and nothing comes into its forwarding table."""

    def beside(name, *peers):
        mesh = tunnel(name, 100, learning=True, port_learning=True, neigh_suppress=False,
                      peers={one: address(one) for one in peers})  # fmt: skip
        return {"br-100": switch(name, 100), "vx-100": mesh}

    for name, peers in {"a": "c", "c": "d", "d": "c", "e": "c"}.items():
        fabric[name].apply(wanted(name, devices=beside(name, *peers)))
    fabric["d"].apply(wanted("d", vnis=(42, 43), devices=beside("d", "c")))
    fabric["e"].apply(wanted("e", vnis=(42, 43), devices=beside("e", "c")))
    until(lambda: fabric.peers("d", 43) == {address("e")})  # what is told now has arrived
    assert {name: fabric.peers(name, 100) for name in "acde"} == {
        "a": {address("c")}, "c": {address("d")}, "d": {address("c")}, "e": {address("c")},
    }  # fmt: skip
    for name in "acde":
        assert fabric[name].agent("check").report["drift"] == []
        fabric[name].apply(wanted(name))


# -- changes ----------------------------------------------------------------------------------------


def test_a_vni_more_resets_no_session_and_loses_nothing(fabric):
    before = {name: fabric.sessions(name) for name in HOSTS}
    ping = fabric.ping("c", "d", 8)
    for name in HOSTS:
        done = fabric[name].apply(wanted(name, vnis=(42, 43)))
        assert "evpn: + vni 43" in done.lines
    until(lambda: fabric.is_whole(vni=43))
    for name in HOSTS:
        fabric[name].apply(wanted(name))
    assert lost(ping) == 0
    for name in HOSTS:
        now = fabric.sessions(name)
        assert now.keys() == before[name].keys()
        # bgpd rounds how long it is, and what the clock says.
        assert all(abs(now[who]["since"] - one["since"]) <= 1 for who, one in before[name].items()), (now, before)


def test_a_host_more_changes_nothing_on_the_others(fabric, new_host):
    files = {name: fabric[name].files() for name in HOSTS}
    host = fabric.add("f", new_host(machine="f" * 32))
    try:
        send_password(host, name="f")
        host.apply(wanted("f"))
        until(lambda: fabric.is_whole(HOSTS + "f"))
        assert {name: fabric[name].files() for name in HOSTS} == files
        host.agent("remove", "p/s")
        until(fabric.is_whole)
        assert program_names(host) == []
        assert host.files() == {}
        assert host.run("find /run/overlay /run/frr/overlay", check=False).out == ""
    finally:
        fabric.drop("f")


def test_what_is_typed_into_vtysh_is_drift_and_is_mended(fabric):
    since = {who: one["since"] for who, one in fabric.sessions("c").items()}
    fabric.vtysh("c", "configure terminal", "router bgp 65000", "bgp cluster-id 192.0.2.9",
                 "neighbor peers timers 5 15", f"no neighbor {address('b')} description", "no bgp router-id",
                 "address-family l2vpn evpn",
                 "no advertise-all-vni")  # fmt: skip
    drift = fabric["c"].agent("check", code=2).report["drift"]
    top = "router bgp 65000"
    assert {
        "evpn: keepalive want 3, is 5",
        "evpn: hold want 9, is 15",
        f"evpn: has line {top} / bgp cluster-id 192.0.2.9 that is not declared",
        f"evpn: lacks line {top} / address-family l2vpn evpn / advertise-all-vni",
        "evpn: routerId want 198.18.0.13, is 0.0.0.0",
        "evpn: file want the one that bgpd runs with, is another configuration",
    } <= {*drift}
    fabric["c"].apply(wanted("c"))
    assert fabric["c"].agent("check").report["drift"] == []
    assert since  # a changed router ID resets them, which is why they are not compared


def test_a_wrong_password_is_seen_on_both_sides(fabric):
    send_password(fabric["c"], b"another", "c")
    done = fabric["c"].apply(wanted("c"))
    assert "evpn: password another -> overlay-evpn:0123456789abcdef" in done.lines
    said = [line for line in done.lines if line.startswith("evpn: no session")]
    assert re.fullmatch(rf"evpn: no session with a \({re.escape(address('a'))}\): \w+", said[0]), done
    assert len(said) == 2
    until(lambda: address("c") not in {one["address"] for one in fabric.sessions("a").values()})
    assert {one["state"] for one in fabric.sessions("c").values()} <= {"Connect", "Active", "Idle"}
    assert {one["since"] for one in fabric.sessions("c").values()} == {None}
    send_password(fabric["c"], name="c")
    fabric["c"].apply(wanted("c"))


# -- faults -----------------------------------------------------------------------------------------


def test_one_reflector_down_loses_nothing_between_the_clients(fabric):
    ping = fabric.ping("c", "d", 5)
    time.sleep(0.5)
    fabric.kill("a", "bgpd", "zebra")
    until(lambda: fabric["c"].agent("check").report.get("waits"))
    done = fabric["c"].agent("check")
    assert re.fullmatch(rf"evpn: no session with a \({re.escape(address('a'))}\): \w+", done.report["waits"][0])
    assert done.lines == done.report["waits"]
    assert fabric["a"].agent("check", code=2).report["drift"] == ["evpn: running want on, is off"]
    fabric["a"].apply(wanted("a"))
    assert lost(ping) == 0


def test_both_reflectors_down_empties_the_flood_lists_until_one_is_back(fabric):
    for name in REFLECTORS:
        fabric.kill(name, "bgpd")
    until(lambda: not fabric.peers("c") | fabric.peers("d"))
    assert len(fabric["c"].agent("check").report["waits"]) == 2
    assert not fabric.containers["c"].pings(fabric.ip("d"))
    fabric["b"].apply(wanted("b"))
    until(lambda: fabric.is_whole(CLIENTS + "b"))
    until(lambda: fabric.containers["c"].pings(fabric.ip("d")))
    fabric["a"].apply(wanted("a"))


@pytest.mark.parametrize("program", ["bgpd", "zebra"])
def test_a_client_whose_daemon_is_killed(fabric, program):
    """Of others nothing is lost; of the host itself as long as bgpd is away: zebra takes out what it had put in."""
    own, others = fabric.ping("c", "d", 6), fabric.ping("d", "e", 6)
    time.sleep(0.5)
    fabric.kill("c", program)
    assert "evpn: running want on, is off" in fabric["c"].agent("check", code=2).report["drift"]
    assert fabric["c"].agent("status", "p/s").report["objects"]["evpn"]["there"] is True
    fabric["c"].apply(wanted("c"))
    until(fabric.is_whole)
    away = lost(own)
    print(f"{program} killed and mended by apply: {away * INTERVAL:.1f} s of this host's packets lost")
    assert lost(others) == 0
    assert program == "bgpd" or away == 0


def test_zebra_that_was_started_anew_hears_all_of_it_again(fabric):
    fabric.kill("c", "zebra")
    fabric["c"].apply(wanted("c"))
    node = container(fabric["c"], "late", "br-42", "10.10.0.78/24")
    until(lambda: node.pings(fabric.ip("d")))
    mac = node.host.json("ip -j -n late link show eth0")[0]["address"]
    until(lambda: mac in {row["mac"] for row in fabric["d"].json("bridge -j fdb show dev vx-42")})
    fabric["c"].run("ip netns del late")


def test_a_host_that_is_cut_off_and_back(fabric):
    ping = fabric.ping("c", "d", 14)
    fabric.switch.run("ip link set to-e down")
    until(lambda: address("e") not in fabric.peers("c") | fabric.peers("a"))
    assert fabric["e"].agent("check", code=None).report["drift"] == []
    fabric.switch.run("ip link set to-e up")
    until(fabric.is_whole)
    until(lambda: fabric.containers["c"].pings(fabric.ip("e")))
    assert lost(ping) == 0


def test_bfd_runs_only_where_it_is_asked_for(fabric):
    for name in "abe":
        fabric[name].apply(wanted(name, bfd=True))
        assert program_names(fabric[name]) == ["bfdd", "bgpd", "zebra"]
    assert program_names(fabric["c"]) == ["bgpd", "zebra"]
    until(lambda: fabric.vtysh("e", "show bfd peers brief").count(" up") == 2)
    until(fabric.is_whole)
    fabric.switch.run("ip link set to-e nomaster")  # no carrier is lost
    start = time.monotonic()
    until(lambda: address("e") not in fabric.peers("a"))
    print(f"bfd: noticed after {time.monotonic() - start:.1f} s")
    fabric.switch.run("ip link set to-e master sw")
    until(fabric.is_whole)
    for name in "abe":
        fabric[name].apply(wanted(name))
        assert program_names(fabric[name]) == ["bgpd", "zebra"]


def test_stopped_started_and_restored_at_boot(fabric):
    host = fabric["e"]
    host.agent("stop", "p/s")
    assert program_names(host) == []
    until(lambda: fabric.is_whole(HOSTS.replace("e", "")))
    host.agent("start", "p/s")
    until(fabric.is_whole)
    fabric.kill("e", "bgpd", "zebra")
    host.run("sh", "-c", "ip link delete vx-42; rm -rf /run/overlay /run/frr")
    host.agent("restore")


def test_typed_by_hand_it_is_the_same(fabric, new_host):
    host = fabric.add("f", new_host(machine="f" * 32))
    try:
        send_password(host, name="f")
        typed = host.run("/usr/local/sbin/overlay-agent", "explain", text=json.dumps(wanted("f"))).out
        # The daemons log to where the shell does.
        host.run("sh", "-c", "sh -eu > /run/said 2>&1 || { cat /run/said; false; }", text=typed)
        until(lambda: fabric.is_whole(HOSTS + "f"))
    finally:
        host.close()
        fabric.drop("f")
    until(fabric.is_whole)


# -- alone ------------------------------------------------------------------------------------------


def test_each_field_is_changed_while_it_runs_and_read_back(new_host):
    host = new_host(agent=False)
    done = host.run(sys.executable, FIELDS, "/var/lib/overlay", env={"PYTHONPATH": AGENT})
    assert done.report["wrong"] == {}
    assert done.report["tried"] > 20
    assert done.report["foreign"] == []


def alone(services=None, **more):
    made = {"br-42": switch("a"), "vx-42": tunnel("a")}
    own = {"evpn": {**service("a", password=None, neighbors={"b": address("b")}), **more}}
    return document(services={**own, **(services or {})}, **made)


def without(device, **more):
    out = alone()
    out["devices"][device].update(more)
    return {**out, "devices": {name: spec for name, spec in out["devices"].items() if more or name != device}}


FOREIGN = "mkdir -p /run/frr/x; chown frr:frr /run/frr /run/frr/x; /usr/lib/frr/zebra -d -N x -f /dev/null"
OLD = (
    "printf '#!/bin/sh\\necho bgpd version 7.5.1\\n' > /run/old; chmod +x /run/old; "
    "mount --bind /run/old /usr/lib/frr/bgpd"
)
REFUSES = (
    "printf '#!/bin/sh\\necho \"line 3: %% Unknown command[25]:  bgp router-id\"; exit 2\\n' > /run/vtysh; "
    "chmod +x /run/vtysh; mount --bind /run/vtysh /usr/bin/vtysh"
)
OFF = (
    "install the package frr, and have its own service off: systemctl disable --now frr "
    "(installPackages: true does both)"
)


@pytest.mark.parametrize(
    ("before", "wanted_", "errors"),
    [
        ("mount --bind /dev/null /usr/lib/frr/bgpd", alone(), [f"evpn: FRR's bgpd is not on this host; {OFF}"]),
        ("mount --bind /dev/null /usr/lib/frr/zebra; mount --bind /dev/null /usr/bin/vtysh", alone(),
         [f"evpn: FRR's zebra, vtysh are not on this host; {OFF}"]),
        ("mount --bind /dev/null /usr/lib/frr/bfdd", alone(bfd=True), [f"evpn: FRR's bfdd is not on this host; {OFF}"]),
        (OLD, alone(), ["evpn: FRR here is 7.5.1, and has to be 8.0 at the least; update it"]),
        (REFUSES, alone(), ["evpn: FRR refuses its configuration: line 3: % Unknown command: bgp router-id"]),
        (FOREIGN, alone(),
         [(r"evpn: FRR runs here already: zebra \(pid \d+\); a second zebra takes the first one's routes away when it "
           r"starts; stop that one \(systemctl disable --now frr\), or use another topology on this host")]),
        ("true", alone({"evpn2": service("a", password=None)}),
         ["evpn: evpn2 is an evpn too; one BGP speaker a host: put the VNIs of both into one",
          "evpn2: evpn is an evpn too; one BGP speaker a host: put the VNIs of both into one"]),
        ("true", alone(local="198.18.0.99"),
         ["evpn: local '198.18.0.99' is not an address of this host; set hosts.a.underlay.local"]),
        ("true", without("vx-42"), ["evpn: vnis: 42 has no VXLAN device in this document; declare it"]),
        ("true", without("vx-42", learning=True),
         [("evpn: vnis: 42: vx-42 is no device that FRR fills; set its learning and portLearning false, neighSuppress "
           "true, and leave out peers and group")]),
        ("true", without("vx-42", bridge=None),
         ["evpn: vnis: 42: vx-42 is in no bridge; FRR tells only of devices that are"]),
        ("true", without("vx-42", local="2001:db8::11", mtu=1430),
         ["evpn: vnis: 42: local '2001:db8::11' of vx-42: FRR fills only tunnels over IPv4; take an IPv4 underlay"]),
        ("true", alone(password=PASSWORD),
         ["evpn: password: the secret is not 1 to 80 printable characters without spaces; set another"]),
    ],
    ids=["bgpd", "zebra and vtysh", "bfdd", "old", "refused", "foreign", "two", "local", "no device", "learns",
         "no bridge", "IPv6", "password"],
)  # fmt: skip
def test_what_is_refused(new_host, before, wanted_, errors):
    host = new_host()
    host.run("sh", "-c", before)
    send_password(host, b"with spaces in it")
    state, files, programs = host.state(), host.files(), program_names(host)
    said = [line for line in host.apply(wanted_, code=1).lines if line != "nothing was changed"]
    assert len(said) == len(errors), said
    assert all(line == f"a {error}" or re.fullmatch(f"a {error}", line) for line, error in zip(said, errors)), said  # noqa: B905 - see above
    assert (host.state(), host.files(), program_names(host)) == (state, files, programs)


def test_one_speaker_a_host_and_a_port_of_its_own(host):
    taken = Node(host, "x").answer("tcp/179")
    said = host.apply(alone(), code=1).lines[0]
    assert re.fullmatch(r"a evpn: port: TCP 179 is taken by python3 \(pid \d+\); stop that, or set another port", said)
    taken.kill()
    taken.wait()
    taken.stdout.close()
    done = host.apply(alone())
    assert "a: nothing to do" not in done.err
    assert f"evpn: no session with b ({address('b')}): " in done.err
    other = alone()
    other["owner"] = {**OWNER, "stack": "t", "id": "id-of-t"}
    other["devices"] = {}
    other["services"]["evpn"]["vnis"] = {}
    assert host.apply(other, code=1).lines[0] == (
        "a evpn: stack p/s has an evpn on this host; one BGP speaker a host: put both into one stack"
    )
    assert host.agent("check").report["drift"] == []


#: Nobody is waited for: sessions come from the range.
LISTENING = {"neighbors": {}, "reflector": True, "ranges": {RANGE: {}}}


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["", ":all"])
def test_killed_at_each_point(new_host, scope):
    before, after = alone(**LISTENING), alone(**LISTENING, keepalive=5, hold=15, bfd=True)

    def prepare(host):
        host.apply(before)

    def look(host):
        return host.state(), program_names(host), host.run(f"{VTYSH} -c 'show running-config'", check=False).out

    def go(host, code, **env):
        return host.apply(after, code=code, **env)

    assert kill_at_each_point(new_host, scope, prepare, go, look) >= 4
