"""WireGuard devices on a real kernel: keys, every field, peers one by one, and what is kept where."""

from __future__ import annotations

import base64
import re

import pytest
from agent_support import MACHINE, OWNER, bridge, document, kill_at_each_point, vxlan

pytestmark = pytest.mark.kinds("wireguard")

KEYS = "/var/lib/overlay/keys/p/s"
PSK = "psk-a-b:0123456789abcdef"
SHARED = base64.b64encode(bytes(range(32))).decode()
HERE, THERE, THIRD = "fd00:5::a", "fd00:5::b", "fd00:5::c"
#: Of nobody: no private key of it is known to the tests.
NOBODY, OTHER = (base64.b64encode(bytes([n]) * 32).decode() for n in (7, 9))


def identity(host, generation=1, code=0, **more):
    request = {"schema": 1, "owner": OWNER, "host": "a", "generation": generation, **more}
    return host.agent("identity", document=request, code=code)


def private(host, generation=1):
    return host.run("cat", f"{KEYS}/{generation}").out.strip()


def peer(key, address, inside, **more):
    return {"publicKey": key, "endpoint": f"{address}:51820", "allowedIps": [f"{inside}/128"], **more}


def wireguard(key, peers, **more):
    return {"kind": "wireguard", "mtu": 1420, "listenPort": 51820, "publicKey": key, "peers": peers,
            "addresses": {f"{HERE}/64": {}}, **more}  # fmt: skip


def usual(host, generation=1, key=None, peers=None, **more):
    """A document with a device that has the host's key, and peer b."""
    mine = key or identity(host, generation).report["publicKey"]
    peers = {"b": peer(NOBODY, "198.18.0.12", THERE)} if peers is None else peers
    return document(wg_s=wireguard(mine, peers, **more))


def shown(host, *what):
    return host.run("wg", "show", "wg-s", *what).out


def dump(host):
    """All that the device is, without handshakes and counters."""
    rows = [line.split("\t") for line in shown(host, "dump").splitlines()]
    return [rows[0], *([*row[:4], row[7]] for row in rows[1:])]


def files(host):
    return host.run("sh", "-c", f"ls {KEYS} 2>/dev/null || :").out.split()


def other_end(host):
    """A namespace behind u1 with an end that is typed by hand; returns its public key."""
    host.run("ip netns add other")
    host.run("ip link set u1 netns other")
    script = """
        ip link set lo up; ip link set u1 up; ip address add 198.18.0.12/24 dev u1
        umask 077; wg genkey > /run/other.key; ip link add wg0 type wireguard
        wg set wg0 listen-port 51820 private-key /run/other.key; ip address add fd00:5::b/64 dev wg0; ip link set wg0 up
        wg pubkey < /run/other.key
    """
    return host.run("ip", "netns", "exec", "other", "sh", "-ec", script).out.strip()


def in_other(host, command, **more):
    return host.run(f"ip netns exec other {command}", **more)


# -- keys ----------------------------------------------------------------------------------------


def test_a_key_is_made_once_for_root_alone_and_only_its_public_half_is_told(host):
    done = identity(host)
    key = private(host)
    assert done.report == {"host": "a", "machine": MACHINE, "generation": 1,
                           "publicKey": host.run("wg pubkey", text=key).out.strip()}  # fmt: skip
    again = identity(host)
    assert (again.out, again.err, done.err) == (done.out, "", "")
    assert key not in done.out
    modes = host.run("sh", "-c", f"stat -c %a {KEYS} {KEYS}/.. {KEYS}/../.. {KEYS}/1").out.split()
    assert modes == ["700", "700", "700", "600"]
    second = identity(host, 2).report
    assert (second["generation"], files(host)) == (2, ["1", "2"])
    assert second["publicKey"] != done.report["publicKey"]
    assert private(host) == key


def test_what_identity_refuses(host):
    done = host.agent("identity", document={"owner": OWNER, "host": "a b", "generation": 0}, code=1)
    assert done.lines == [
        "identity.host: 'a b' is not a name (letters, digits, '_', '.', '-'; at most 128)",
        "identity.generation: 0 is not a whole number from 1 to 1000000",
    ]
    done = host.agent("identity", document=[], code=1)
    assert done.lines == ["identity: standard input is not what the program sends"]
    host.apply(document(br_app=bridge()))
    done = identity(host, owner={**OWNER, "id": "another"}, code=1)
    assert done.err.startswith("a: stack p/s on this host belongs to another checkout or state (id id-of-s, this one ")
    host.run(f"mkdir -p {KEYS}")
    host.run("sh", "-c", f"echo no key > {KEYS}/3")
    done = identity(host, 3, code=1)
    assert done.lines == [f"{KEYS}/3: is not a private key; remove the file, and raise the host's keyGeneration"]


def test_a_key_that_is_not_here_is_told(host):
    done = host.apply(usual(host, key=OTHER), code=1)
    why = f"a wg-s: the private key of publicKey {OTHER} is not on this host ({KEYS}); raise "
    assert done.lines == [f"{why}hosts.a.wireguard.keyGeneration, which makes a new one", "nothing was changed"]


# -- the device ----------------------------------------------------------------------------------


def test_it_is_made_and_speaks_with_an_end_that_was_typed_by_hand(host):
    there = other_end(host)
    mine = identity(host).report["publicKey"]
    in_other(host, f"wg set wg0 peer {mine} endpoint 198.18.0.11:51820 allowed-ips {HERE}/128")
    wanted = usual(host, peers={"b": peer(there, "198.18.0.12", THERE)})
    done = host.apply(wanted)
    assert done.lines == [f"wg-s: created (wireguard, mtu 1420, {HERE}/64, listenPort 51820, publicKey {mine}, 1 peer)"]
    assert shown(host, "private-key").strip() == private(host)
    assert shown(host, "listen-port").strip() == "51820"
    assert shown(host, "allowed-ips").split() == [there, f"{THERE}/128"]
    assert shown(host, "endpoints").split() == [there, "198.18.0.12:51820"]
    link = host.link("wg-s")
    assert (link["mtu"], link["ifalias"], "UP" in link["flags"]) == (1420, "overlay:p/s/wg-s", True)
    assert host.run(f"ping -c 1 -W 3 {THERE}").code == 0
    assert host.agent("check").report == {"drift": []}
    again = host.apply(wanted)
    assert again.lines == ["a: nothing to do, 1 device as declared"]
    assert again.out == done.out


def test_a_tunnel_runs_in_a_device_of_the_same_document(host):
    wanted = usual(host)
    wanted["devices"]["vx-app"] = vxlan(mtu=1350, local=HERE, device="wg-s", peers={"b": THERE}, bridge="br-app")
    wanted["devices"]["br-app"] = bridge(mtu=1350)
    host.apply(wanted)
    assert host.link("vx-app")["linkinfo"]["info_data"]["link"] == "wg-s"
    host.run("ip link delete wg-s")
    assert "does not exist" in host.run("ip link show vx-app", check=False).err, "it would speak in the clear"
    host.apply(wanted)
    assert host.agent("check").report == {"drift": []}
    wanted["devices"]["vx-app"]["mtu"] = 1360
    assert host.apply(wanted, code=1).lines == [
        "a vx-app: mtu 1360 needs an underlay of 1430, but wg-s has 1420; set hosts.a.mtu: 1420",
        "nothing was changed",
    ]


BY_HAND = {
    "listen-port 5000": ["wg-s: listenPort want 51820, is 5000"],
    "fwmark 0x5": ["wg-s: fwmark want 0, is 5"],
    f"peer {NOBODY} endpoint 198.18.0.99:5": ["wg-s: peer b endpoint want 198.18.0.12:51820, is 198.18.0.99:5"],
    f"peer {NOBODY} persistent-keepalive 7": ["wg-s: peer b keepalive want 25, is 7"],
    f"peer {NOBODY} allowed-ips fd00:5::b/128,fd00:6::/64": [
        "wg-s: peer b allowedIps want fd00:5::b/128, is fd00:5::b/128, fd00:6::/64"
    ],
    f"peer {NOBODY} preshared-key /dev/null": [f"wg-s: lacks peer b presharedKey {PSK}"],
    f"peer {NOBODY} preshared-key /run/psk": [f"wg-s: peer b presharedKey want {PSK}, is another"],
    f"peer {NOBODY} remove": [f"wg-s: lacks peer b 198.18.0.12:51820 for {THERE}/128"],
    f"peer {OTHER} allowed-ips 10.0.0.0/8": [
        f"wg-s: has peer {OTHER} without an endpoint for 10.0.0.0/8 that is not declared"
    ],
}  # fmt: skip


def test_each_change_by_hand_is_seen_and_mended(host):
    host.agent("secrets", document={
        "schema": 1, "owner": OWNER, "host": "a", "machine": MACHINE, "secrets": {PSK: base64.b64decode(SHARED).hex()},
    })  # fmt: skip
    wanted = usual(host, peers={"b": peer(NOBODY, "198.18.0.12", THERE, keepalive=25, presharedKey=PSK)})
    host.apply(wanted)
    assert shown(host, "preshared-keys").split() == [NOBODY, SHARED]
    host.run("sh", "-c", "umask 077; wg genkey > /run/key; wg genpsk > /run/psk")
    before = dump(host)
    for change, drift in BY_HAND.items():
        host.run(f"wg set wg-s {change}")
        done = host.agent("check", code=2)
        assert done.report == {"drift": drift}, change
        host.apply(wanted)
        assert dump(host) == before, change
    host.run("wg set wg-s private-key /run/key")
    assert host.agent("check", code=2).report["drift"][0].startswith("wg-s: publicKey want ")
    done = host.apply(wanted)
    assert dump(host) == before
    assert files(host) == ["1"], "the key that was found is not kept"
    for secret in (SHARED, private(host), host.run("cat /run/key").out.strip()):
        assert secret not in done.out + done.err + host.agent("show").out + host.agent("explain", "p/s").out


def test_peers_come_change_and_go_one_by_one(host):
    there = other_end(host)
    mine = identity(host).report["publicKey"]
    in_other(host, f"wg set wg0 peer {mine} endpoint 198.18.0.11:51820 allowed-ips {HERE}/128")
    peers = {"b": peer(there, "198.18.0.12", THERE)}
    host.apply(usual(host, peers=peers))
    assert host.run(f"ping -c 1 -W 3 {THERE}").code == 0
    session = int(shown(host, "latest-handshakes").split()[1])
    steps = [
        ({**peers, "c": peer(NOBODY, "198.18.0.13", THIRD)}, f"wg-s: + peer c 198.18.0.13:51820 for {THIRD}/128"),
        ({**peers, "c": peer(NOBODY, "198.18.0.14", THIRD)},
         "wg-s: peer c endpoint 198.18.0.13:51820 -> 198.18.0.14:51820"),
        ({**peers, "c": peer(OTHER, "198.18.0.14", THIRD)}, f"wg-s: peer c publicKey {NOBODY} -> {OTHER}"),
        ({**peers, "d": peer(OTHER, "198.18.0.14", "fd00:5::d")},
         f"wg-s: peer d allowedIps {THIRD}/128 -> fd00:5::d/128"),
        (peers, f"wg-s: - peer {OTHER} 198.18.0.14:51820 for fd00:5::d/128"),
    ]  # fmt: skip
    ping = host.popen("ping", "-i", "0.02", THERE, stdout=-1, text=True)
    for wanted, line in steps:
        assert host.apply(usual(host, peers=wanted)).lines == [line]
        assert int(dict(map(str.split, shown(host, "latest-handshakes").splitlines()))[there]) >= session
    ping.send_signal(2)
    answered = sorted(int(one) for one in re.findall(r"icmp_seq=(\d+)", ping.communicate()[0]))
    assert answered == [*range(1, len(answered) + 1)], "each was answered, but for those under way at the end"


def test_a_new_key_and_an_undo_across_it(host):
    first = usual(host)
    host.apply(first)
    old = private(host)
    second = usual(host, generation=2)
    before = host.state()
    done = host.apply(second, code=1, OVERLAY_FAULT="2")
    assert done.lines[-1].endswith("undone, the host is as it was")
    assert (shown(host, "private-key").strip(), files(host), host.state()) == (old, ["1", "2"], before)
    done = host.apply(second)
    one, two = (document["devices"]["wg-s"]["publicKey"] for document in (first, second))
    assert done.lines == [f"wg-s: publicKey {one} -> {two}"]
    assert (shown(host, "private-key").strip(), files(host)) == (private(host, 2), ["2"])
    host.run("ip link delete wg-s")
    host.agent("restore")
    assert shown(host, "private-key").strip() == private(host, 2)
    host.agent("remove", "p/s")
    assert host.files() == {}
    assert "does not exist" in host.run("ip link show wg-s", check=False).err


@pytest.mark.parametrize("scope", ["", ":all"])
def test_killed_at_each_point_of_a_change(new_host, scope):
    def prepare(host):
        host.apply(usual(host))
        identity(host, 2)

    def go(host, **more):
        peers = {"b": peer(OTHER, "198.18.0.12", THERE), "c": peer(NOBODY, "198.18.0.13", THIRD)}
        return host.apply(usual(host, generation=2, peers=peers, listenPort=5000), **more)

    points = kill_at_each_point(new_host, scope, prepare, go, lambda host: (host.state(), dump(host)))
    assert points >= 3


def test_its_commands_typed_by_hand_do_the_same(new_host):
    one, two = new_host(), new_host()
    wanted = usual(one, peers={"b": peer(NOBODY, "198.18.0.12", THERE, keepalive=25)})
    one.apply(wanted)
    commands = one.agent("explain", "p/s").out
    assert private(one) not in commands
    two.run(f"mkdir -p {KEYS}")
    two.run("sh", "-c", f"umask 077; cat > {KEYS}/1", text=private(one))
    two.run("sh", "-ec", commands)
    assert dump(two) == dump(one)
    keys = ("mtu", "ifalias", "flags", "inet6_addr_gen_mode")
    assert [two.link("wg-s")[key] for key in keys] == [one.link("wg-s")[key] for key in keys]


def test_a_port_that_is_taken_is_told(host):
    host.run("ip link add foreign type wireguard")
    host.run("wg set foreign listen-port 51820")
    host.run("ip link set foreign up")
    done = host.apply(usual(host), code=1)
    assert done.lines == [
        "a wg-s: listenPort: UDP port 51820 is taken on this host; set another: hosts.a.wireguard.port",
        "nothing was changed",
    ]


def test_a_host_without_ipv6_is_told(host):
    host.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")
    assert host.apply(usual(host), code=1).lines == [
        "a wg-s: addresses: this host has no IPv6; set net.ipv6.conf.default.disable_ipv6=0",
        "nothing was changed",
    ]
