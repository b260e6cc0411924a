"""Ethernet in L2TPv3: every field of tunnel and session, what is half made, and an end typed by hand."""

from __future__ import annotations

import subprocess

import pytest
from agent_support import MACHINE, OWNER, Node, bridge, document, wire

pytestmark = pytest.mark.kinds("l2tp")

COOKIES = {"cookie-a:0123456789abcdef": "c00c1e01", "cookie-b:0123456789abcdef": "c00c1e02c00c1e02"}
SHORT, LONG = COOKIES
THREE = "cookie-c:0123456789abcdef"


def l2tp(number=1, **more):
    """The tunnel of that number: source document 004 with the number added to each id and port."""
    return {
        "kind": "l2tp", "mtu": 1400, "mac": f"02:00:00:00:02:{number:02x}",
        "local": "198.18.0.11", "remote": "198.18.0.12",
        "tunnelId": 1000 + number, "peerTunnelId": 2000 + number,
        "sessionId": 3000 + number, "peerSessionId": 4000 + number,
        "localPort": 6000 + number, "remotePort": 5000 + number, **more,
    }  # fmt: skip


def in_ip(number=1, **more):
    spec = l2tp(number, encap="ip", **more)
    return {key: value for key, value in spec.items() if key not in ("localPort", "remotePort")}


def send(host, secrets=COOKIES):
    request = {"schema": 1, "owner": OWNER, "host": "a", "machine": MACHINE, "secrets": secrets}
    host.agent("secrets", document=request)


def tunnels(host):
    """What ip-l2tp(8) has to say."""
    return host.run("ip l2tp show tunnel").out + host.run("ip l2tp show session").out


def state(host):
    """All of it without the indexes, which a session's device cannot be given anew."""
    out = host.state()
    for key in ("ip -j -d address", "bridge -j -d link"):
        out[key] = sorted(({k: v for k, v in link.items() if k != "ifindex"} for link in out[key]), key=str)
    return {**out, "tunnels": tunnels(host)}


SIX = {"local": "2001:db8::11", "remote": "2001:db8::12"}
#: What is declared, and what is found or wanted instead; each field at least once.
#: The kernel takes tunnels down in its own time.
UNTIL_GONE = (
    "until [ -z \"$(ip l2tp show tunnel)\" ] && ! ip -br link | grep -q '^t[1-5]@\\?[^ ]* '; do sleep 0.05; done"
)
BEFORE = {"t1": l2tp(1), "t2": l2tp(2, cookie=SHORT), "t3": l2tp(3), "t4": l2tp(4, **SIX), "t5": l2tp(5)}
OTHER = {
    "t1": l2tp(1, tunnelId=1101, peerTunnelId=2101, localPort=6101, remotePort=5101, udpChecksum=False),
    "t2": l2tp(2, sessionId=3102, peerSessionId=4102, cookie=LONG, peerCookie=SHORT),
    "t3": in_ip(3),
    "t4": l2tp(4, local="2001:db8::21", remote="2001:db8::22", udpChecksum=False),
    "t5": l2tp(5, sequencing=True),
}
DRIFT = [
    "t1: lacks bridge br-app",
    "t1: tunnelId want 1001, is 1101",
    "t1: peerTunnelId want 2001, is 2101",
    "t1: localPort want 6001, is 6101",
    "t1: remotePort want 5001, is 5101",
    "t1: udpChecksum want on, is off",
    "t2: sessionId want 3002, is 3102",
    "t2: peerSessionId want 4002, is 4102",
    f"t2: cookie want {SHORT}, is {LONG}",
    f"t2: has peerCookie {SHORT} that is not declared",
    "t3: encap want udp, is ip",
    "t3: lacks localPort 6003",
    "t3: lacks remotePort 5003",
    "t4: local want 2001:db8::11, is 2001:db8::21",
    "t4: remote want 2001:db8::12, is 2001:db8::22",
    "t4: udpChecksum want on, is off",
    "t5: sequencing want off, is on",
]


def test_every_field_is_set_and_read_and_mended(host):
    host.run("ip address add 2001:db8::21/64 dev u0 nodad")
    send(host)
    host.apply(document(br_app=bridge(), **{**BEFORE, "t1": l2tp(1, bridge="br-app")}))
    first = state(host)
    assert "Session 3001 in tunnel 1001\n  Peer session 4001, tunnel 2001\n  interface name: t1\n" in first["tunnels"]
    send(host)  # what no document refers to is gone
    # By hand: away with them, and the others in their place.
    script = host.agent("explain", document=document(**OTHER)).out
    away = "".join(f"ip l2tp del session tunnel_id {1000 + n} session_id {3000 + n}\n" for n in range(1, 6))
    away += "".join(f"ip l2tp del tunnel tunnel_id {1000 + n}\n" for n in range(1, 6))
    host.run("sh", "-ec", f"{away}{UNTIL_GONE}\n{script}")
    assert host.agent("check", code=2).report["drift"] == DRIFT
    mended = host.apply(document(br_app=bridge(), **{**BEFORE, "t1": l2tp(1, bridge="br-app")}))
    assert [line for line in mended.lines if "recreated" not in line] == ["t5: sequencing on -> off"]
    assert state(host) == first
    # By document.
    send(host)
    index = host.index("t5")
    host.apply(document(br_app=bridge(), **OTHER))
    assert host.index("t5") == index
    said = tunnels(host)
    for line in (
        "  cookie c00c1e02c00c1e02  peer cookie c00c1e01\n", "  UDP source / dest ports: 6101/5101\n",
        "Tunnel 1003, encap IP\n", "  From 2001:db8::21 to 2001:db8::22\n", "  sequence numbering: send recv\n",
    ):  # fmt: skip
        assert line in said
    assert not host.agent("check").report["drift"]
    assert all(value not in host.agent("show").out for value in COOKIES.values())
    host.agent("remove", "p/s")
    assert tunnels(host) == ""


def test_what_is_half_made_is_repaired_and_what_is_renamed_comes_back(host):
    wanted = document(br_app=bridge(), t1=l2tp(1, bridge="br-app"), t2=l2tp(2), t3=in_ip(3))
    host.apply(wanted)
    host.run("ip link add c0 type veth peer name c1")
    first = state(host)
    host.run("ip l2tp del session tunnel_id 1001 session_id 3001")
    host.run("sh", "-ec", "ip link set t2 down; ip link set t2 name other; ip link set other up")
    host.run("sh", "-ec", "ip l2tp del session tunnel_id 1003 session_id 3003; ip l2tp del tunnel tunnel_id 1003")
    assert host.agent("check", code=2).report["drift"] == [
        "other: is there and should not be",
        "t1: lacks sessionId 3001",
        "t1: lacks peerSessionId 4001",
        "t2: is not there",
        "t3: is not there",
    ]
    half = tunnels(host)
    undone = host.apply(wanted, code=1, OVERLAY_FAULT="6")
    assert "undone, the host is as it was" in undone.err, undone
    assert tunnels(host).replace("name: other", "name: t2") == half
    done = host.apply(wanted)
    assert "t1: + sessionId 3001 (recreated)" in done.lines
    assert state(host) == first
    # Half made, and no longer wanted.
    host.run("ip l2tp del session tunnel_id 1001 session_id 3001")
    host.apply(document(br_app=bridge(), t2=l2tp(2)))
    assert [line for line in tunnels(host).splitlines() if line.startswith("Tunnel")] == ["Tunnel 1002, encap UDP"]


FOREIGN = """
ends="encap udp local 198.18.0.11 remote 198.18.0.99"
ip l2tp add tunnel tunnel_id 1001 peer_tunnel_id 1 $ends udp_sport 7001 udp_dport 1
ip l2tp add tunnel tunnel_id 7 peer_tunnel_id 1 $ends udp_sport 6002 udp_dport 1
ip l2tp add session name theirs tunnel_id 7 session_id 3003 peer_session_id 1
"""


def test_what_others_have_is_refused(host):
    send(host, {THREE: "c00c1e"})
    host.run("sh", "-ec", FOREIGN)
    before = tunnels(host)
    taken = (
        "which is not ours; give each its own ({}), or remove that one: ip l2tp del tunnel tunnel_id {} "
        "(ip l2tp show tunnel lists them)"
    )
    program = Node(host, "host").answer("udp/6004")
    named_so = "a device of that name (l2tp) is there and is not ours; give ours another name (ifname, or bridge.name)"
    named = f"python3 (pid {program.pid}); stop that, or set another (ports)"
    done = host.apply(
        document(
            t1=l2tp(1), t2=l2tp(2), t3=in_ip(3), t4=l2tp(4), t5=l2tp(5, cookie=THREE), t6=l2tp(6, mtu=1460),
            t7=l2tp(7, tunnelId=1006, localPort=6006), theirs=l2tp(8),
        ),
        code=1,
    )  # fmt: skip
    assert done.lines == [
        f"a t1: tunnel id 1001 is taken on this host by tunnel 1001 (no device), {taken.format('tunnelIds', 1001)}",
        f"a t2: UDP port 6002 of 198.18.0.11 is taken on this host by tunnel 7 (theirs), {taken.format('ports', 7)}",
        f"a t3: session id 3003 is taken on this host by tunnel 7 (theirs), {taken.format('sessionIds', 7)}",
        f"a t4: UDP port 6004 of 198.18.0.11 is taken on this host by {named}",
        "a t5: cookie: <secret> has 3 bytes; a cookie has 4 or 8",
        "a t6: mtu 1460 needs an underlay of 1514, but u0 has 1500; set hosts.a.mtu: 1500",
        "a t6: tunnel id 1006 is t7's, too; give each its own (tunnelIds)",
        "a t6: UDP port 6006 of 198.18.0.11 is t7's, too; give each its own (ports)",
        f"a theirs: {named_so}, or remove that one: ip l2tp del tunnel tunnel_id 7; adopt: true takes it over",
        "nothing was changed",
    ]
    assert tunnels(host) == before
    # Two exchange their ids and ports: what one has the other had a moment before.
    host.run("ip l2tp del tunnel tunnel_id 1001")
    host.apply(document(t1=l2tp(1), t5=l2tp(5)))
    host.apply(document(t1=l2tp(5, mac=l2tp(1)["mac"]), t5=l2tp(1, mac=l2tp(5)["mac"])))
    assert host.agent("check").report == {"drift": []}
    # No way to the peer: the kernel says so, and nothing is left.
    done = host.apply(document(t1=l2tp(1, remote="203.0.113.1")), code=1)
    why = "create tunnel 1001: Network is unreachable; this host has no route to 203.0.113.1"
    assert done.lines == [f"a t1: {why}; undone, the host is as it was"]
    assert host.agent("check").report == {"drift": []}


#: As in source document 004, with addresses, and a bridge by the tools of today. Its "udp_port" is no word of
#: ip-l2tp(8): udp_dport.
HAND = """
ip l2tp add tunnel tunnel_id 2000 peer_tunnel_id 1000 encap udp local 198.18.0.12 remote 198.18.0.11 \
 udp_sport 5000 udp_dport 6000
ip l2tp add session tunnel_id 2000 session_id 4000 peer_session_id 3000
ip link add superbr0 type bridge
ip link set l2tpeth0 master superbr0
ip link set superbr0 up
ip link set l2tpeth0 up
ip address add 10.10.0.2/24 dev superbr0
"""


def test_with_an_end_typed_by_hand(new_host):
    a, b = new_host(), new_host()
    wire(a, b)
    b.run("sh", "-ec", HAND)
    assert b.link("l2tpeth0")["mtu"] == 1446
    tunnel = l2tp(0, bridge="br-app", mtu=1446)
    bridges = {"br_app": bridge(addresses={"10.10.0.1/24": {}}, mtu=1446)}
    a.apply(document(**bridges, t0=tunnel))
    a.run("ping -c 1 -W 5 -M do -s 1418 10.10.0.2")
    b.run("ping -c 1 -W 5 -M do -s 1418 10.10.0.1")
    # More tunnels to the same peer: the first one loses nothing.
    for host in (a, b):
        send(host)
    ping = a.popen("ping", "-i", "0.005", "-c", "1000", "-q", "10.10.0.2", stdout=subprocess.PIPE, text=True)

    def more(side, **swapped):
        """In UDP with cookies and numbers, and straight in IPv6."""
        mac = {"mac": f"02:00:00:00:03:{side:02x}"}
        udp = l2tp(1, mtu=1430, cookie=LONG, peerCookie=LONG, sequencing=True, addresses={f"10.20.0.{side}/24": {}})
        six = in_ip(2, mtu=1430, **SIX, addresses={f"10.30.0.{side}/24": {}})
        return {"t1": {**udp, **mac, **swapped.get("udp", {})}, "t2": {**six, **mac, **swapped.get("six", {})}}

    a.apply(document(**bridges, t0=tunnel, **more(1)))
    assert "1000 packets transmitted, 1000 received, 0% packet loss" in ping.communicate()[0]
    ids = {"tunnelId": 2001, "peerTunnelId": 1001, "sessionId": 4001, "peerSessionId": 3001}
    udp = {**ids, "localPort": 5001, "remotePort": 6001, "local": "198.18.0.12", "remote": "198.18.0.11"}
    six = {key: value + 1 for key, value in ids.items()} | {"local": "2001:db8::12", "remote": "2001:db8::11"}
    b.apply(document(host="b", **more(2, udp=udp, six=six)))
    a.run("ping -c 1 -W 5 -M do -s 1402 10.20.0.2")
    a.run("ping -c 1 -W 5 -M do -s 1402 10.30.0.2")
    for host, other in ((a, b), (b, a)):
        assert host.agent("check").report == {"drift": []}, other


def test_killed_after_the_tunnel_and_after_the_session(host):
    before, files, wanted = state(host), host.files(), document(t1=l2tp(1))
    # The journal, the tunnel: there it ends, and nobody is left to undo it.
    host.apply(wanted, code=None, OVERLAY_FAULT="2:all")
    assert [line for line in tunnels(host).splitlines() if not line.startswith(" ")] == ["Tunnel 1001, encap UDP"]
    assert "stack p/s: an apply was cut short; undone" in host.agent("restore").lines
    assert (state(host), host.files()) == (before, files)
    assert "undone, the host is as it was" in host.apply(wanted, code=1, OVERLAY_FAULT="3").err
    assert (state(host), host.files()) == (before, files)
