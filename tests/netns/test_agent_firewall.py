"""openFirewall: peers pass, strangers do not, other networks are left alone; what others drop is named."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
from agent_support import OWNER, document, usual, vxlan

PEER, STRANGER = "198.18.0.12", "198.18.0.66"
#: Sends a VXLAN packet (RFC 7348) with that VNI from that address.
SEND = """
import socket, struct, sys
source, target, vni = sys.argv[1], sys.argv[2], int(sys.argv[3])
with socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.bind((source, 0))
    s.sendto(struct.pack("!II", 0x08000000, vni << 8) + bytes(range(60)), (target, 4789))
"""
#: Says which source addresses and VNIs arrive on the port that it takes, until its input ends. What was sent by then
#: has arrived: a veth delivers at once.
RECEIVE = """
import select, socket, struct, sys
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
    s.bind(("::", 4789))
    print("ready", flush=True)
    while s in select.select([s, sys.stdin], [], [])[0]:
        data, source = s.recvfrom(2000)
        print(source[0].replace("::ffff:", ""), struct.unpack("!I", data[4:8])[0] >> 8, flush=True)
"""


def firewall(peers=None, vni=42, **more):
    entry = {"protocol": "udp", "port": 4789, "vni": vni, "peers": peers or {"b": PEER}}
    return {"firewall": {"kind": "firewall", "allow": {"vx-app": entry, **more}}}


def with_firewall(**more):
    return {**usual(), "services": firewall(**more)}


def only_firewall(**more):
    return document(services=firewall(**more))


def table(host):
    tables = [row["table"] for row in json.loads(host.run("nft -j list tables").out)["nftables"] if "table" in row]
    ours = [row["name"] for row in tables if row["name"].startswith("overlay-")]
    return ours[0] if ours else None


@pytest.fixture
def pair(host, new_host):
    """The host, and another one at the end of its wire with the peer's and a stranger's address."""
    other = new_host(machine="e" * 32)
    other.run("ip link delete u0")
    host.run("ip", "link", "set", "u1", "netns", str(other._holder.pid))
    for address in (f"{PEER}/24", f"{STRANGER}/24", "2001:db8::12/64", "2001:db8::66/64"):
        other.run("ip", "address", "add", address, "dev", "u1", *(["nodad"] if ":" in address else []))
    other.run("ip link set u1 up")
    return host, other


def arriving(host, other, *packets):
    receiver = host.popen(
        "/usr/bin/python3", "-c", RECEIVE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert receiver.stdout.readline() == "ready\n"
    for source, vni in packets:
        target = "2001:db8::11" if ":" in source else "198.18.0.11"
        other.run("/usr/bin/python3", "-c", SEND, source, target, str(vni))
    return {tuple(line.split()) for line in receiver.communicate()[0].splitlines()}


def test_a_whole_network_gets_in(pair):
    host, other = pair
    networks = {"near": "198.18.0.0/26", "one": "198.18.0.200/32", "far": "198.19.0.0/16"}
    host.apply(only_firewall(peers=networks))
    assert arriving(host, other, (PEER, 42), (STRANGER, 42)) == {(PEER, "42")}
    assert host.apply(only_firewall(peers=networks)).lines == ["a: nothing to do, 1 object as declared"]
    fewer = {key: value for key, value in networks.items() if key != "near"}
    host.apply(only_firewall(peers=fewer))
    assert arriving(host, other, (PEER, 42)) == set()


def test_who_gets_in(pair):
    host, other = pair
    packets = [(PEER, 42), (STRANGER, 42), (STRANGER, 43), ("2001:db8::66", 42)]
    everything = {(source, str(vni)) for source, vni in packets}
    assert arriving(host, other, *packets) == everything
    host.apply(only_firewall())
    assert arriving(host, other, *packets) == {(PEER, "42"), (STRANGER, "43")}
    host.agent("remove", "p/s")
    assert arriving(host, other, *packets) == everything


def test_who_gets_in_over_ipv6(pair):
    host, other = pair
    host.apply(only_firewall(peers={"b": "2001:db8::12"}))
    packets = [("2001:db8::12", 42), ("2001:db8::66", 42), ("2001:db8::66", 43), (STRANGER, 42)]
    assert arriving(host, other, *packets) == {("2001:db8::12", "42"), ("2001:db8::66", "43")}


#: The same of session ids: L2TP straight in IP.
RECEIVE_L2TP = """
import select, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_RAW, 115) as s:
    print("ready", flush=True)
    while s in select.select([s, sys.stdin], [], [])[0]:
        data, source = s.recvfrom(2000)
        print(source[0], struct.unpack("!I", data[20:24])[0], flush=True)
"""
SEND_L2TP = """
import socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_RAW, 115) as s:
    s.bind((sys.argv[1], 0))
    s.sendto(struct.pack("!I", int(sys.argv[2])) + bytes(40), ("198.18.0.11", 0))
"""


def test_who_gets_in_where_there_are_no_ports(pair):
    host, other = pair
    allow = {"l2-app": {"protocol": "l2tp", "session": 3000, "peers": {"b": PEER}}}
    wanted = document(services={"firewall": {"kind": "firewall", "allow": allow}})
    assert host.apply(wanted).lines == ["firewall: created (firewall, l2-app)"]
    assert host.agent("show").report["p/s"]["firewall"]["allow"]["l2-app"]["session"] == 3000
    receiver = host.popen(
        "/usr/bin/python3", "-c", RECEIVE_L2TP, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert receiver.stdout.readline() == "ready\n"
    for source, session in ((PEER, 3000), (STRANGER, 3000), (STRANGER, 3001)):
        other.run("/usr/bin/python3", "-c", SEND_L2TP, source, session)
    got = [line.split() for line in receiver.communicate()[0].splitlines()]
    assert got == [[PEER, "3000"], [STRANGER, "3001"]]  # another session is another network's
    allow["l2-app"]["session"] = 3001
    assert host.apply(wanted).lines == ["firewall: l2-app session 3000 -> 3001"]
    assert host.agent("check").report == {"drift": []}


_DROP = "add table ip filter; add chain ip filter INPUT { type filter hook input priority 0; policy drop; }"
DROPS = {
    "the nftables chain ip filter INPUT": _DROP,
    "ufw": f"{_DROP}; add chain ip filter ufw-user-input",
    "firewalld": "add table inet firewalld; add chain inet firewalld in { type filter hook input priority 10; }",
}
_BEFORE = "sed -i '/^COMMIT/i -A ufw-before-input -p 115 -s 198.18.0.12 -j ACCEPT' /etc/ufw/before.rules; ufw reload"
_RICH = (
    'for peer in 198.18.0.12; do firewall-cmd --permanent --add-rich-rule="rule family=ipv4 source address=$peer '
    'protocol value=gre accept"; done; firewall-cmd --reload'
)


@pytest.mark.parametrize(
    ("filter_", "protocol", "command"),
    [
        ("the nftables chain ip filter INPUT", "gre",
         "nft insert rule ip filter INPUT ip saddr '{ 198.18.0.12 }' meta l4proto 47 accept"),
        ("the nftables chain ip filter INPUT", "l2tp",
         "nft insert rule ip filter INPUT ip saddr '{ 198.18.0.12 }' meta l4proto 115 accept"),
        ("ufw", "gre", "ufw allow proto gre from 198.18.0.12"),
        ("ufw", "l2tp", _BEFORE),
        ("firewalld", "gre", _RICH),
    ],
)  # fmt: skip
def test_a_policy_that_drops_what_has_no_port_is_named(host, filter_, protocol, command):
    host.run("nft", DROPS[filter_])
    code = (
        f"import sys; sys.path.insert(0, {str(host.archive)!r}); from overlay_agent import nft;"
        f"from overlay_agent.kinds import Listens;"
        f"print(*nft.warnings('a', [Listens('{protocol}', None, ('198.18.0.12',))]), sep='\\n')"
    )
    assert host.run("/usr/bin/python3", "-c", code).out.strip() == (
        f"a: {filter_} drops what it does not know, and {protocol} is not in it, so no packet of the tunnel may come "
        f"in; type: {command}"
    )
    if filter_.startswith("the nftables"):
        host.run("sh", "-c", command)
        assert host.run("/usr/bin/python3", "-c", code).out.strip() == ""


def test_whether_a_filter_may_drop_is_told_without_nft(host):
    code = (
        f"import sys; sys.path.insert(0, {str(host.archive)!r}); from overlay_agent.kernel import may_drop_packets;"
        "print(may_drop_packets())"
    )
    hook = "type filter hook forward priority 0; policy"
    for words, said in {
        "add table ip6 theirs": "False",
        f"add chain ip6 theirs passes {{ {hook} accept; }}": "False",
        "add chain ip6 theirs jumped-to": "False",
        f"add chain ip6 theirs drops {{ {hook} drop; }}": "True",
        "delete table ip6 theirs": "False",
        f"table inet overlay-0 {{ chain drops {{ {hook} drop; }}; }}": "False",  # ours are known
        "add table inet firewalld": "False",
        "add chain inet firewalld one": "True",  # drops by its rules
    }.items():
        host.run("nft", words)
        assert host.run("/usr/bin/python3", "-c", code).out.strip() == said, words


def test_its_life(host):
    wanted = with_firewall()
    done = host.apply(wanted)
    assert "firewall: created (firewall, vx-app)" in done.lines
    assert 'comment "overlay:p/s/firewall"' in host.run("nft", "list", "table", "inet", table(host)).out
    assert host.apply(wanted).lines == ["a: nothing to do, 3 objects as declared"]
    assert host.agent("check").report == {"drift": []}
    assert host.agent("show").report["p/s"]["firewall"]["allow"]["vx-app"]["vni"] == 42
    more = with_firewall(peers={"b": PEER, "c": "198.18.0.13"})
    assert host.apply(more).lines == ["firewall: + vx-app peer c 198.18.0.13"]
    assert host.apply(usual()).lines == ["firewall: removed"]
    assert table(host) is None


@pytest.mark.parametrize(
    ("command", "drift"),
    [
        ("flush chain inet {t} input", ["firewall: lacks vx-app udp 4789 vni 42 from 1 peers"]),
        ("delete table inet {t}", ["firewall: is not there"]),
        ("insert rule inet {t} input udp dport 53 accept",
         ["firewall: has rule # unknown 0 from 0 peers that is not declared"]),
        ("add chain inet {t} extra", ["firewall: has chain extra unknown 0 from 0 peers that is not declared"]),
        ("add set inet {t} s {{ type ipv4_addr; }}", ["firewall: has set unknown 0 from 0 peers that is not declared"]),
        ("delete rule inet {t} input handle {accept}",
         ["firewall: lacks vx-app peer b 198.18.0.12"]),
        ("delete rule inet {t} input handle {drop}", ["firewall: vx-app protocol want udp, is no drop of others,"]),
        (('replace rule inet {t} input handle {accept} udp dport 4789 @th,96,24 42 ip saddr {{ 198.18.0.12, 1.2.3.4 }} '
         'accept comment "vx-app"'), ["firewall: has vx-app peer 1.2.3.4 that is not declared"]),
    ],
)  # fmt: skip
def test_what_was_changed_by_hand_is_seen_and_mended(host, command, drift):
    host.apply(with_firewall())
    listing = host.run("nft", "-a", "list", "table", "inet", table(host)).out
    handles = {
        verdict: re.search(rf"{verdict} comment .* # handle (\d+)", listing)[1] for verdict in ("accept", "drop")
    }
    before = host.run("nft", "list", "ruleset").out
    host.run("nft", command.format(t=table(host), **handles))
    assert [re.sub(r"rule \d+", "rule #", line) for line in host.agent("check", code=2).lines] == drift
    host.apply(with_firewall())
    assert host.run("nft", "list", "ruleset").out == before
    assert host.agent("check").report == {"drift": []}


def test_what_somebody_added_comes_back_with_an_undo(host):
    host.apply(with_firewall())
    host.run("nft", f"insert rule inet {table(host)} input udp dport 53 accept")
    state = host.state()
    done = host.apply(with_firewall(vni=43), code=1, OVERLAY_FAULT="2")
    assert done.lines[-1].endswith("undone, the host is as it was")
    assert host.state() == state


def test_a_thousand_peers(host):
    peers = {f"h{i}": f"198.19.{i // 250}.{i % 250 + 1}" for i in range(1000)}
    wanted = only_firewall(peers=peers)
    host.apply(wanted)
    assert "nothing to do" in host.apply(wanted).err


def test_two_stacks_have_a_table_each(host):
    other = {"project": "p", "stack": "t", "id": "id-of-t"}
    host.apply(only_firewall())
    host.apply({**only_firewall(vni=7), "owner": other})
    assert host.run("nft list tables").out.count("overlay-") == 2
    host.agent("remove", "p/t")
    assert host.run("nft list tables").out.count("overlay-") == 1
    assert "nothing to do" in host.apply(only_firewall()).err


def test_what_explain_says_makes_the_same(new_host, host):
    script = host.agent("explain", document=only_firewall()).out
    host.run("sh", "-e", text=script)
    assert host.apply(only_firewall()).lines == ["a: nothing to do, 1 object as declared (first document)"]


def without_nft(host, tmp_path):
    """The environment of a host without nft: only what else the agent may call."""
    (tmp_path / "bin").mkdir()
    return {"PATH": str(tmp_path / "bin")}


def test_a_host_without_nft(host, tmp_path):
    env = without_nft(host, tmp_path)
    assert host.apply(only_firewall(), code=1, **env).lines == [
        (
            "a firewall: nft is not on this host; install the package nftables (installPackages: true does it), or set "
            "openFirewall: false"
        ),
        "nothing was changed",
    ]
    assert host.apply(usual(), **env).code == 0


def test_a_policy_that_drops_is_named_with_the_command_to_type(host):
    host.run(
        "nft", "add table ip filter; add chain ip filter INPUT { type filter hook input priority 0; policy drop; }"
    )
    warning = (
        "a: the nftables chain ip filter INPUT drops what it does not know, and udp 4789 is not in it, so no packet of "
        "the tunnel may come in; type: nft insert rule ip filter INPUT ip saddr '{ 198.18.0.12, 198.18.0.13 }' udp "
        "dport 4789 accept"
    )
    done = host.apply(usual())
    assert done.lines[-1] == warning
    assert warning not in host.apply(usual()).lines  # nothing changed
    host.run("sh", "-c", warning.partition("type: ")[2])
    assert warning not in host.apply(usual(vni=43)).lines  # it stands there now


def test_ufw_is_named(host):
    for family in ("ip", "ip6"):
        host.run("nft", f"add table {family} filter; add chain {family} filter INPUT {{ type filter hook input "
                        f"priority 0; policy drop; }}; add chain {family} filter ufw-user-input")  # fmt: skip
    done = host.apply(usual())
    assert done.lines[-1] == (
        "a: ufw drops what it does not know, and udp 4789 is not in it, so no packet of the tunnel may come in; type: "
        "for peer in 198.18.0.12 198.18.0.13; do ufw allow proto udp from $peer to any port 4789; done"
    )
    assert (
        host.apply(usual(peers=("b",)))
        .lines[-1]
        .endswith("type: ufw allow proto udp from 198.18.0.12 to any port 4789")
    )


def test_firewalld_is_named(host):
    host.run(
        "nft", "add table inet firewalld; add chain inet firewalld filter_INPUT { type filter hook input priority 10; }"
    )
    assert (
        "a: firewalld drops what it does not know, and udp 4789 is not in it, so no packet of the tunnel may come in; "
        'type: for peer in 198.18.0.12 198.18.0.13; do firewall-cmd --permanent --add-rich-rule="rule family=ipv4 '
        'source address=$peer port port=4789 protocol=udp accept"; done; firewall-cmd --reload'
    ) in host.apply(usual()).lines


def test_no_tunnel_no_warning(host):
    host.run(
        "nft", "add table ip filter; add chain ip filter INPUT { type filter hook input priority 0; policy drop; }"
    )
    assert host.apply(only_firewall()).lines == ["firewall: created (firewall, vx-app)"]


def test_an_ipv6_tunnel_is_not_hindered_by_an_ipv4_table(host):
    host.run(
        "nft", "add table ip filter; add chain ip filter INPUT { type filter hook input priority 0; policy drop; }"
    )
    done = host.apply(document(vx_app=vxlan(mtu=1430, local="2001:db8::11", peers={"b": "2001:db8::12"})))
    assert len(done.lines) == 1


def test_a_kernel_that_refuses_the_rules(host, tmp_path):
    """Nft's own sentence stands in the error, and all is undone."""
    stub = tmp_path / "nft"
    stub.write_text(
        '#!/bin/sh\nif [ "$*" = "-f -" ]; then\nscript=$(cat)\ncase "$script" in *overlay-*)\n'
        'echo "/dev/stdin:1:1-5: Error: Operation not supported" >&2; exit 1;;\nesac\n'
        'echo "$script" | exec /usr/sbin/nft -f -\nfi\nexec /usr/sbin/nft "$@"\n'
    )
    stub.chmod(0o755)
    state = host.state()
    done = host.apply(with_firewall(), code=1, PATH=f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
    assert done.lines == ["a firewall: nft: Error: Operation not supported; undone, the host is as it was"]
    assert host.state() == state


def test_the_owner_of_the_table_is_in_it(host):
    host.apply(only_firewall())
    assert f"overlay:{OWNER['project']}/{OWNER['stack']}/firewall" in host.run("nft list ruleset").out
