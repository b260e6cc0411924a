"""Beside a real dockerd, whose FORWARD drops and through whose FORWARD br_netfilter sends every frame."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from agent_support import Node, bridge, container, document

NAT = {
    "nat": {
        "kind": "nat",
        "interface": "br-app",
        "subnets": {"10.10.0.0/24": {}},
        "masquerade": {"10.10.0.0/24": {}},
        "forwards": {"tcp/8080": {"address": "10.10.0.5", "ports": "80"}},
    }
}
OURS = ["-i br-app -o br-app", "-i br-app ! -o br-app", "-o br-app -m conntrack --ctstate RELATED,ESTABLISHED,DNAT"]


def wanted(services=NAT, **more):
    return document(services=services, br_app=bridge(addresses={"10.10.0.1/24": {}}, **more))


@pytest.fixture
def dockerd():
    """Starts a host's own dockerd, and ends it."""
    running = {}

    def start(host):
        with Path(os.devnull).open("wb") as nothing:
            running[host] = host.popen(
                "dockerd", "--data-root", "/run/docker-data", "--exec-root", "/run/docker", "--storage-driver", "vfs",
                "--host", "unix:///run/docker.sock", "--pidfile", "/run/docker.pid", stdout=nothing, stderr=nothing,
            )  # fmt: skip
        for _ in range(300):
            if host.run("docker version", check=False).code == 0:
                return
            assert running[host].poll() is None
            time.sleep(0.1)
        raise AssertionError("dockerd does not answer")

    def stop(host):
        process = running.pop(host)
        process.terminate()
        process.wait()

    start.stop = stop
    yield start
    for host in list(running):
        stop(host)


@pytest.fixture
def place(host, new_host):
    """The host, two containers on its bridge and somebody outside."""
    other = new_host(agent=False, machine="e" * 32)
    other.run("ip link delete u0")
    host.run("ip", "link", "set", "u1", "netns", str(other._holder.pid))
    other.run("ip address add 198.18.0.99/24 dev u1")
    other.run("ip link set u1 up")
    host.run("sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1")
    host.apply(wanted())
    c5, c6 = (container(host, f"c{n}", "br-app", f"10.10.0.{n}/24", gateways=["10.10.0.1"]) for n in (5, 6))
    running = [c5.answer("tcp/80"), Node(other, "outside").answer("tcp/90")]
    yield host, c5, c6, Node(other, "outside")
    for process in running:
        process.kill()
        process.communicate()


def flows(c5, c6, outside, wanted):
    """Whether frames pass within the bridge, packets leave it, and a forward comes in. Who is to answer may be busy."""
    _, leave, come = (10 if one else 0.5 for one in wanted)
    return (
        c6.pings("10.10.0.5"),
        c5.ask("198.18.0.99", "tcp/90", leave) == "outside tcp/90 198.18.0.11",
        outside.ask("198.18.0.11", "tcp/8080", come) == "c5 tcp/80 198.18.0.99",
    )


ALL, NONE = (True, True, True), (False, False, False)


def saved(host):
    out = host.run("sh", "-c", "iptables-save; ip6tables-save").out
    return [line for line in out.splitlines() if not line.startswith("#")]


def steady(host):
    """The host's state; the order of accepts in DOCKER-USER says nothing."""
    state = host.state()
    return {**state, "nft": sorted("\n".join(state["nft"]).splitlines())}


def lacking(*rules):
    return [f"{'br-app' if rule == OURS[0] else 'nat'}: lacks rule of DOCKER-USER iptables {rule}" for rule in rules]


def test_what_passes_beside_docker(place, dockerd):
    host, c5, c6, outside = place
    # As at boot: our rules first, then Docker.
    assert flows(c5, c6, outside, ALL) == ALL
    host.run("sysctl -qw net.ipv4.ip_forward=0")
    dockerd(host)  # sets the policy where it is the one who switches forwarding on
    assert "-P FORWARD DROP" in host.run("iptables -S FORWARD").out
    assert flows(c5, c6, outside, ALL) == ALL
    assert "nothing to do" in host.apply(wanted()).err

    # Somebody empties the chain.
    host.run("iptables -F DOCKER-USER")
    assert flows(c5, c6, outside, NONE) == NONE
    assert host.agent("check", code=2).lines == lacking(*OURS)
    assert host.apply(wanted()).lines == [line.replace("lacks", "+") for line in lacking(*OURS)]
    assert flows(c5, c6, outside, ALL) == ALL

    # Docker starts anew, and sets its policy once more.
    dockerd.stop(host)
    dockerd(host)
    host.run("iptables -P FORWARD DROP")
    assert flows(c5, c6, outside, ALL) == ALL
    assert host.agent("check").report == {"drift": []}

    # One rule of the three.
    host.run("iptables -D DOCKER-USER -i br-app -o br-app -m comment --comment overlay:p/s/br-app -j ACCEPT")
    assert host.agent("check", code=2).lines == lacking(OURS[0])
    assert flows(c5, c6, outside, (False, True, True)) == (False, True, True)
    host.apply(wanted())

    # The segment is not routed any longer: its frames still pass.
    assert host.apply(wanted(None)).lines == ["nat: removed"]
    assert flows(c5, c6, outside, (True, False, False)) == (True, False, False)


def test_docker_is_left_as_it_was(host, dockerd):
    dockerd(host)
    before, rules = saved(host), host.run("nft list tables").out
    host.apply(wanted())
    assert sum("overlay:p/s" in line for line in saved(host)) == 6
    # First, before Docker's own RETURN.
    assert host.run("iptables -S DOCKER-USER").out.splitlines()[-1] == "-A DOCKER-USER -j RETURN"
    host.agent("remove", "p/s")
    left = saved(host)
    # IPv6's chain, which Docker does not make, was ours.
    assert (left, host.run("nft list tables").out) == (before, rules)


def test_other_stacks_rules_stay(host):
    other = {"project": "p", "stack": "t", "id": "id-of-t"}
    host.apply({**document(br_t=bridge(mac="02:00:00:00:00:07")), "owner": other})
    before = saved(host)
    host.apply(wanted())
    host.agent("remove", "p/s")
    assert saved(host) == before
    host.agent("remove", "p/t")
    assert host.run("nft list ruleset").out == ""


def test_somebodys_rules_stay(host):
    host.run("iptables -N DOCKER-USER")
    host.run("iptables -A DOCKER-USER -s 192.0.2.1 -j DROP")
    before = saved(host)
    host.apply(wanted())
    host.agent("remove", "p/s")
    assert saved(host) == before


def test_from_where_one_is_routed_one_may_come_in(host):
    host.apply(wanted({"nat": {**NAT["nat"], "routed": {"10.20.0.0/24": {}}}}))
    ours = [line for line in saved(host) if "overlay:p/s/nat" in line]
    assert sum(" ! -i br-app -o br-app " in line for line in ours) == 2, ours
    assert host.agent("check").report == {"drift": []}


def test_the_rules_go_along_to_another_bridge(host):
    host.apply(wanted())
    moved = wanted({"nat": {**NAT["nat"], "interface": "br-b"}})
    moved["devices"]["br-b"] = bridge(mac="02:00:00:00:00:08")
    host.apply(moved)
    nat = [line for line in saved(host) if "overlay:p/s/nat" in line]
    assert len(nat) == 4
    assert all("br-b" in line for line in nat)
    assert host.agent("check").report == {"drift": []}


def test_killed_anywhere_it_is_as_before_or_as_wanted(new_host):
    for before, after in ((None, wanted()), (wanted(), None)):
        for point in range(1, 60):
            host = new_host()
            if before:
                host.apply(before)
            state, rules = steady(host), sorted(saved(host))
            words = {"document": after} if after else {}
            done = host.agent(
                *(["apply"] if after else ["remove", "p/s"]), **words, code=None, OVERLAY_FAULT=str(point)
            )
            if done.code == 0:
                break
            assert (steady(host), sorted(saved(host))) == (state, rules)
            host.close()
        assert point > 6


def test_a_host_without_docker_gets_no_rules(host, tmp_path):
    for tool in ("nft", "iptables", "ip6tables", "iptables-restore", "ip6tables-restore", "unshare", "sh"):
        (tmp_path / tool).symlink_to(f"/usr/sbin/{tool}" if Path(f"/usr/sbin/{tool}").exists() else f"/usr/bin/{tool}")
    host.apply(wanted(), PATH=str(tmp_path))
    assert "DOCKER-USER" not in host.run("nft list ruleset").out
    assert host.agent("check", PATH=str(tmp_path)).report == {"drift": []}
    # Docker is installed later.
    assert len(host.agent("check", code=2).lines) == 6
    host.apply(wanted())
    assert host.agent("check").report == {"drift": []}


def test_a_table_that_iptables_cannot_read_is_left_alone(host):
    host.run("nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; }; "
                    "add rule ip filter FORWARD meta skuid 7 drop")  # fmt: skip
    rules = host.run("nft list table ip filter").out
    host.apply(wanted())
    assert host.run("nft list table ip filter").out == rules
    assert host.agent("check").report == {"drift": []}


# -- what others drop ----------------------------------------------------------------------------

HEAD = "a: {} drops what it does not know of what is passed on, and br-app is not in it, so {}; type: {}"
FRAMES = "no frame may pass within the bridge, since br_netfilter sends them through it"
ROUTED = "no packet may get out of the bridge"
PLACE = "inet mine passing"


def nft_forward(host):
    host.run(
        "nft", "add table inet mine; add chain inet mine passing { type filter hook forward priority 0; policy drop; }"
    )


def ufw(host):
    host.run("nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy "
                    "drop; }; add chain ip filter ufw-user-forward")  # fmt: skip


def firewalld(host):
    host.run("nft", "add table inet firewalld; add chain inet firewalld filter_FORWARD { type filter hook forward "
                    "priority 10; }")  # fmt: skip


@pytest.mark.parametrize(
    ("who", "services", "line"),
    [
        (nft_forward, None, HEAD.format(f"the nftables chain {PLACE}", FRAMES,
                                        f"nft insert rule {PLACE} iifname br-app oifname br-app accept")),
        (nft_forward, NAT, HEAD.format(
            f"the nftables chain {PLACE}", ROUTED,
            f"nft insert rule {PLACE} iifname br-app accept; nft insert rule {PLACE} oifname br-app ct state "
            f"established,related accept; nft insert rule {PLACE} oifname br-app ct status dnat accept")),
        (ufw, None, HEAD.format("ufw", FRAMES, "ufw route allow in on br-app out on br-app")),
        (ufw, NAT, HEAD.format("ufw", ROUTED, "ufw route allow in on br-app; ufw route allow out on br-app")),
        (firewalld, NAT, HEAD.format("firewalld", ROUTED, "firewall-cmd --permanent --zone=trusted "
                                                          "--add-interface=br-app; firewall-cmd --reload")),
    ],
)  # fmt: skip
def test_others_that_drop_are_named(place, who, services, line):
    host, c5, c6, outside = place
    host.apply(wanted(services))
    who(host)
    host.run("iptables -F DOCKER-USER", check=False)
    done = host.apply(wanted(services, ageing=100))
    assert line in done.lines
    if who is nft_forward:
        assert flows(c5, c6, outside, NONE) == NONE
        host.run("sh", "-ec", line.partition("type: ")[2])
        wanted_ = ALL if services else (True, False, False)
        assert flows(c5, c6, outside, wanted_) == wanted_
        assert line not in host.apply(wanted(services, ageing=200)).lines


def test_a_policy_that_somebody_set_is_named(place):
    """Docker is not running, so nothing leads from FORWARD to its chain."""
    host, c5, c6, outside = place
    host.run("iptables -P FORWARD DROP")
    assert flows(c5, c6, outside, NONE) == NONE
    (line,) = [line for line in host.apply(wanted(ageing=100)).lines if "type: " in line]
    assert line.startswith("a: the nftables chain ip filter FORWARD drops what it does not know of what is passed on")
    host.run("sh", "-ec", line.partition("type: ")[2])
    assert flows(c5, c6, outside, ALL) == ALL


def test_without_br_netfilter_frames_are_not_hindered(host):
    host.run("sysctl -qw net.bridge.bridge-nf-call-iptables=0")
    nft_forward(host)
    assert host.apply(wanted(None)).lines == ["br-app: created (bridge, mtu 1450, 10.10.0.1/24)"]
