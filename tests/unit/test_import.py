"""What a stack file is made of what stands on hosts, as the agent's survey tells it; and what is said of the rest."""

from __future__ import annotations

import importlib

import pytest
import yaml
from typer.testing import CliRunner

from overlay_agent.document import Owner
from overlay_components import _found_dnsmasq, cli, config, live, ssh
from overlay_components.importer import Host, imported

#: The module; its package has the function under that name.
import_ = importlib.import_module("overlay_components.commands.import_")
OWNER = Owner("overlay", "imported", "0")
MTU = {"vxlan": 1450, "gretap": 1462, "l2tp": 1446, "bridge": 1450}


def link(kind, number, *, master=None, mtu=None, alias="", addresses=(), external=False, static=(), **spec):
    """A device as the survey has it; `number` makes its MAC address."""
    mac, mtu = f"02:00:00:00:00:{number:02x}", mtu or MTU.get(kind, 1500)
    row = {
        "kind": kind, "type": 1, "mac": mac, "mtu": mtu, "up": True, "alias": alias, "master": master,
        "addresses": list(addresses),
    }  # fmt: skip
    if kind in ("bridge", "vxlan", "gretap", "ip6gretap", "l2tp"):
        own = {"kind": kind, "mtu": mtu, "mac": mac, **({"bridge": master} if master else {})}
        row["spec"] = {**own, "addresses": {address: {} for address in addresses}, **spec}
    return {**row, "static": list(static), "external": external}


def vxlan(number, local, *remotes, **more):
    peers = {remote: remote for remote in remotes}
    return link("vxlan", number, **{"local": local, "vni": 42, "peers": peers, **more})


def gretap(number, local, remote, **more):
    return link("gretap", number, **{"master": "br0", "local": local, "remote": remote, **more})


def host(number, links, **more):
    """Host h<number> at 198.18.0.1<number>."""
    address = f"198.18.0.1{number}"
    nic = link("", 90 + number, addresses=[f"{address}/16"])
    survey = {"name": f"h{number}", "links": {"eth0": nic, **links}, "docker": {}, "lxd": {}, "dnsmasq": [], "nat": []}
    return Host(address, {**survey, **more}, {"user": "root"})


def pair(of_1, of_2, **more):
    """Two hosts."""
    return [host(1, of_1, **more), host(2, of_2, **more)]


A, B, C = (f"198.18.0.1{number}" for number in (1, 2, 3))


def plain(number, other, **of_bridge):
    """A bridge with a tunnel in it."""
    return {
        "br0": link("bridge", number, **of_bridge),
        "vx0": vxlan(16 + number, f"198.18.0.1{number}", other, master="br0"),
    }


def dnsmasq(**options):
    rows = [[key.replace("_", "-"), value] for key, value in options.items()]
    return {"pid": 7, "words": ["dnsmasq"], "options": rows}


STATIC = "02:aa:00:00:00:01 198.18.0.11"
COOKIE = (
    "h1 l2tpeth0: has a cookie, which is secret and not read: set it with pulumi config set --path --secret, "
    "see docs/stack-file.md"
)
#: name -> (hosts, what `segments` and what else come out, the notes)
CASES = {
    "one tunnel": (
        pair(plain(1, B), plain(2, A)),
        {"br0": {"bridge": {"name": "br0"}, "tunnels": {"vxlan": {"kind": "vxlan", "vni": 42, "ifname": "vx0"}}}},
        [],
    ),
    "an end that is not imported": (
        [host(1, plain(1, B))],
        {
            "br0": {
                "bridge": {"name": "br0"},
                "tunnels": {
                    "vxlan": {"kind": "vxlan", "vni": 42, "endpoints": ["h1", "peer-198.18.0.12"], "ifname": "vx0"}
                },
            }
        },
        [],
    ),
    "multicast": (
        pair(
            {"vx0": vxlan(1, A, group="239.1.1.1", device="eth0", addresses=["10.0.0.1/24"])},
            {"vx0": vxlan(2, B, group="239.1.1.1", device="eth0", addresses=["10.0.0.2/24"])},
        ),
        {
            "vx0": {
                "subnets": ["10.0.0.0/24"], "addresses": {"h1": "10.0.0.1/24", "h2": "10.0.0.2/24"}, "bridge": "none",
                "tunnels": {
                    "vxlan": {
                        "kind": "vxlan", "vni": 42, "topology": "multicast", "group": "239.1.1.1", "ifname": "vx0"
                    }
                },
            }
        },
        [],
    ),
    "gretap, with a ttl that is not ours": (
        pair(
            {"br0": link("bridge", 1, mtu=1462), "testgre": gretap(3, A, B, ttl=255)},
            {"br0": link("bridge", 2, mtu=1462), "testgre": gretap(4, B, A, ttl=255)},
        ),
        {
            "br0": {
                "bridge": {"name": "br0"},
                "tunnels": {"gretap": {"kind": "gretap", "topology": "pairs", "ttl": 255, "ifname": "testgre"}},
            }
        },
        [],
    ),
    "l2tp, mirrored": (
        pair(
            {
                "br0": link("bridge", 1, mtu=1446),
                "l2tpeth0": link(
                    "l2tp", 3, master="br0", local=A, remote=B, tunnelId=1000, peerTunnelId=2000, sessionId=3000,
                    peerSessionId=4000, localPort=6000, remotePort=5000, cookie=True,
                ),
            },
            {
                "br0": link("bridge", 2, mtu=1446),
                "l2tpeth0": link(
                    "l2tp", 4, master="br0", local=B, remote=A, tunnelId=2000, peerTunnelId=1000, sessionId=4000,
                    peerSessionId=3000, localPort=5000, remotePort=6000,
                ),
            },
        ),
        {
            "br0": {
                "bridge": {"name": "br0"},
                "tunnels": {
                    "l2tp": {
                        "kind": "l2tp", "topology": "pairs", "tunnelIds": {"h1": 1000, "h2": 2000},
                        "sessionIds": {"h1": 3000, "h2": 4000}, "ports": {"h1": 6000, "h2": 5000},
                        "ifname": "l2tpeth0",
                    }
                },
            }
        },
        [COOKIE],
    ),
    "Docker's network": (
        pair(
            {"br-0a": link("bridge", 1), "vx0": vxlan(3, A, B, master="br-0a")},
            {"br-0b": link("bridge", 2), "vx0": vxlan(4, B, A, master="br-0b")},
        ),
        {
            "net": {
                "bridge": {"attach": {"docker": "net"}}, "subnets": ["172.18.0.0/16"], "gateway": "172.18.0.254",
                "containers": {
                    "c1": {
                        "host": "h1", "address": "172.18.0.11", "mac": "02:42:ac:12:00:0b", "runtime": "docker"
                    }
                },
                "tunnels": {"vxlan": {"kind": "vxlan", "vni": 42, "ifname": "vx0"}},
            }
        },
        ["h2 c1: another container has that name too, so it is not in the IP plan"],
    ),
    "LXD's bridge, and one with a NIC": (
        pair(
            {"lxdbr0": link("bridge", 1), "vx0": vxlan(3, A, B, master="lxdbr0"), "br9": link("bridge", 5),
             "eth1": link("", 6, master="br9")},
            {"lxdbr0": link("bridge", 2), "vx0": vxlan(4, B, A, master="lxdbr0")},
            lxd={"lxdbr0": "lxd"}, dnsmasq=[dnsmasq(interface="lxdbr0", dhcp_range="10.0.0.2,10.0.0.9")],
        ),
        {
            "lxdbr0": {
                "bridge": {"attach": {"lxd": "lxdbr0"}},
                "tunnels": {"vxlan": {"kind": "vxlan", "vni": 42, "ifname": "vx0"}},
            }
        },
        [
            "h1 br9: a bridge with eth1 in it and no tunnel's; left out",
            "h1 lxdbr0: a bridge of LXD; it stays its owner's, and only tunnels are taken over",
            "h2 lxdbr0: a bridge of LXD; it stays its owner's, and only tunnels are taken over",
        ],
    ),
    "what differs between the ends, and what would change": (
        pair(plain(1, B, ageing=10, addresses=["10.0.0.1/24", "10.9.9.9/32"]),
             {**plain(2, A, ageing=20), "vx0": vxlan(18, "0.0.0.0", A, master="br0", mtu=1500, portLearning=False,
                                                      static=[STATIC])}),
        {
            "br0": {
                "subnets": ["10.0.0.0/24"], "addresses": {"h1": "10.0.0.1/24"},
                "bridge": {"name": "br0", "ageing": 10},
                "tunnels": {"vxlan": {"kind": "vxlan", "vni": 42, "ifname": "vx0"}},
            }
        },
        [
            f"h2 vx0: its forwarding entry {STATIC} is nobody's; it stays as long as the device does",
            "h1 br0: 10.9.9.9/32 is in no subnet; left out, and so removed by adopting it",
            "segment br0: ageing differs (h1 10 and h2 20), and a stack file has one of it",
            "h2 vx0: portLearning is in no stack file; adopting it sets the usual",
            "h2 vx0: mtu 1500 -> 1450, portLearning off -> on, local 0.0.0.0 -> 198.18.0.12",
            "h1 br0: - address 10.9.9.9/32",
            "h2 br0: ageing 20 -> 10",
        ],
    ),
    "told by BGP": (
        pair(*({"br0": link("bridge", n), "vx0": vxlan(16 + n, end, other, master="br0", learning=False,
                                                       portLearning=False, neighSuppress=True)}
               for n, end, other in ((1, A, B), (2, B, A)))),
        {
            "br0": {
                "bridge": {"name": "br0"},
                "tunnels": {"vxlan": {"kind": "vxlan", "vni": 42, "learning": False, "ifname": "vx0"}},
            }
        },
        [
            "h1 vx0: BGP tells it of its peers, it seems; write topology: evpn, and overlay:evpn",
            "h2 vx0: BGP tells it of its peers, it seems; write topology: evpn, and overlay:evpn",
            "h1 vx0: neighSuppress on -> off, portLearning off -> on",
            "h2 vx0: neighSuppress on -> off, portLearning off -> on",
        ],
    ),
    "a ring with spanning tree": (
        pair({**plain(1, B, stp=True, helloTime=1), "vx1": vxlan(5, A, B, vni=43, master="br0")},
             {**plain(2, A, stp=True), "vx1": vxlan(6, B, A, vni=43, master="br0")}),
        {
            "br0": {
                "bridge": {"name": "br0", "stp": True},
                "tunnels": {
                    "vxlan1": {"kind": "vxlan", "vni": 42, "ifname": "vx0"},
                    "vxlan2": {"kind": "vxlan", "vni": 43, "ifname": "vx1"},
                },
            }
        },
        [
            "h1 br0: helloTime is in no stack file (hubs sets it); it becomes as usual",
            "h1 br0: helloTime 1 -> 2",
        ],
    ),
    "smaller than it could be": (
        pair({"br0": link("bridge", 1, mtu=1400), "vx0": vxlan(3, A, B, master="br0", mtu=1400)},
             {"br0": link("bridge", 2, mtu=1400), "vx0": vxlan(4, B, A, master="br0", mtu=1400)}),
        {
            "br0": {
                "bridge": {"name": "br0"}, "mtu": 1400,
                "tunnels": {"vxlan": {"kind": "vxlan", "vni": 42, "ifname": "vx0"}},
            }
        },
        [],
    ),
    "dnsmasq": (
        [
            host(
                1, {"br0": link("bridge", 1, mtu=1500, addresses=["10.0.4.1/24"])},
                dnsmasq=[dnsmasq(interface="br0", dhcp_range="10.0.4.100,10.0.4.199,12h", domain="a.example",
                                 address="/x/10.0.4.9")],
                nat=["iptables -t nat -A POSTROUTING -s 10.0.4.0/24 ! -d 10.0.4.0/24 -j MASQUERADE",
                     "iptables -t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.0.4.5:80",
                     "nft table ip overlay-01234567 ip saddr 10.0.4.0/24 masquerade"],
            )
        ],
        {
            "br0": {
                "subnets": ["10.0.4.0/24"], "addresses": {"h1": "10.0.4.1/24"}, "bridge": {"name": "br0"},
                "dhcp": {
                    "host": "h1", "range": "10.0.4.100-10.0.4.199", "lease": 43200, "domain": "a.example",
                    "strictOrder": False, "noOverride": False, "masquerade": True,
                },
            }
        },
        [
            "h1 br0: dnsmasq's address=/x/10.0.4.9 is in no stack file",
            "h1 br0: dnsmasq (pid 7: dnsmasq) serves it until now; end it before `pulumi up`, which starts its own",
            ("h1 br0: iptables -t nat -A POSTROUTING -s 10.0.4.0/24 ! -d 10.0.4.0/24 -j MASQUERADE: dhcp.masquerade "
            "does it from now on, and the rule may go"),
            ("h1 br0: iptables -t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.0.4.5:80: it is not "
            "in the stack file and stays; dhcp.masquerade, forwards or publicAddresses say such"),
        ],
    ),
    "a stack's own": (
        pair(
            {"vx0": vxlan(1, A, B, alias="overlay:overlay/prod/vx0", addresses=["10.0.0.1/24"])},
            {"vx0": vxlan(2, B, A, alias="overlay:overlay/prod/vx0", addresses=["10.0.0.2/24"])},
        ),
        {
            "vx0": {
                "subnets": ["10.0.0.0/24"], "addresses": {"h1": "10.0.0.1/24", "h2": "10.0.0.2/24"}, "bridge": "none",
                "tunnels": {"vxlan": {"kind": "vxlan", "vni": 42, "ifname": "vx0"}},
            }
        },
        ["segment vx0: belongs to stack overlay/prod as it is; it is not adopted, only described"],
    ),
    "bridges of others, and what has no kind here": (
        [host(1, {"virbr0": link("bridge", 1), "wg0": link("wireguard", 2), "gnv": link("geneve", 3),
                  "gre0": link("gre", 4), "vx0": vxlan(5, A, external=True), "gt": gretap(6, A, "", master=None)})],
        {},
        [
            "h1 vx0: has settings that no stack file has (its ends come with each packet); left out",
            "h1 gt: sends to nobody; left out",
            "h1 virbr0: libvirt's and no tunnel's; left out",
            "h1 wg0: a device of kind wireguard, which is not imported; encryption: wireguard makes one of its own",
            "h1 gnv: a device of kind geneve, which is not imported",
        ],
    ),
}  # fmt: skip

#: What no stack file can say: (hosts, the note). Nothing of it is in the file.
LEFT_OUT = {
    "other bridge names": (
        pair({"br0": link("bridge", 1), "vx0": vxlan(3, A, B, master="br0")},
             {"br1": link("bridge", 2), "vx0": vxlan(4, B, A, master="br1")}),
        ("h1 br0, h2 br1, h1 vx0, h2 vx0: the bridge has another name on each host, and a segment's has one; "
        "give it one name; left out"),
    ),
    "other device names": (
        pair({"br0": link("bridge", 1), "vx0": vxlan(3, A, B, master="br0")},
             {"br0": link("bridge", 2), "vx1": vxlan(4, B, A, master="br0")}),
        ("h1 br0, h2 br0, h1 vx0, h2 vx1: one tunnel has 2 names, and a stack file gives it one; give it one name; "
        "left out"),
    ),
    "a bridge at one end": (
        pair({"br0": link("bridge", 1), "vx0": vxlan(3, A, B, master="br0")}, {"vx0": vxlan(4, B, A)}),
        ("h1 br0, h2 vx0, h1 vx0: some ends are ports of a bridge and some have addresses themselves; give all of them "
        "a bridge; left out"),
    ),
    "a ring, as vxlansetup.sh makes it": (
        [
            host(1, {"vxbr0": link("bridge", 1), "vx12": vxlan(4, A, B, vni=12, master="vxbr0"),
                     "vx13": vxlan(5, A, C, vni=13, master="vxbr0")}),
            host(2, {"vxbr0": link("bridge", 2), "vx12": vxlan(6, B, A, vni=12, master="vxbr0"),
                     "vx23": vxlan(7, B, C, vni=23, master="vxbr0")}),
            host(3, {"vxbr0": link("bridge", 3), "vx13": vxlan(8, C, A, vni=13, master="vxbr0"),
                     "vx23": vxlan(9, C, B, vni=23, master="vxbr0")}),
        ],
        ("h1 vxbr0, h2 vxbr0, h3 vxbr0, h1 vx12, h2 vx12, h1 vx13, h3 vx13, h2 vx23, h3 vx23: the tunnels form rings, "
        "and something else, such as ebtables, keeps them from looping; one VXLAN mesh joins all of them (topology: "
        "mesh): remove these devices, and write it; left out"),
    ),
    "what a host says is one line": (
        [host(1, {"docker0": link("bridge", 1), "v\n\x1b": vxlan(3, A, B, master="docker0")})],
        "h1 docker0, h1 v??: containers on docker0 cannot choose their address; take a network of your own; left out",
    ),
    "docker0": (
        [host(1, {"docker0": link("bridge", 1), "vx0": vxlan(3, A, B, master="docker0")})],
        "h1 docker0, h1 vx0: containers on docker0 cannot choose their address; take a network of your own; left out",
    ),
    "two bridges of one host": (
        pair({"br0": link("bridge", 1), "br1": link("bridge", 5), "vx0": vxlan(3, A, B, master="br0"),
              "vx1": vxlan(6, A, B, vni=43, master="br1")},
             {**plain(2, A), "vx1": vxlan(7, B, A, vni=43, master="br0")}),
        ("h1 br0, h2 br0, h1 br1, h1 vx0, h2 vx0, h1 vx1, h2 vx1: tunnels join two switches of h1 to one network; a "
        "segment has one bridge on a host; left out"),
    ),
}  # fmt: skip


def docker(hosts):
    """What Docker has on the hosts of that case."""
    for number, one in enumerate(hosts):
        one.survey["docker"]["net"] = {
            "bridge": f"br-0{'ab'[number]}", "label": "", "mtu": 1450, "subnets": {"172.18.0.0/16": "172.18.0.254"},
            "containers": {"c1": {"address": f"172.18.0.1{number + 1}", "mac": f"02:42:ac:12:00:0{'bc'[number]}"}},
        }  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_written(name):
    hosts, segments, notes = CASES[name]
    if name.startswith("Docker"):
        docker(hosts)
    found = imported(hosts, OWNER)
    assert found.notes == notes
    # What is taken over is said; what belongs to a stack, and a segment without devices of ours, is not.
    for segment in found.raw["segments"].values():
        assert segment.pop("adopt", False) == (name != "a stack's own")
    assert found.raw["segments"] == segments
    again = yaml.safe_load(found.text(["x"]))["config"]
    assert config.from_pulumi(again) == found.raw
    if segments:
        config.load_config(found.raw)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_cannot_be_written_is_named(name):
    hosts, note = LEFT_OUT[name]
    found = imported(hosts, OWNER)
    assert found.raw["segments"] == {}
    assert found.notes == [note]
    assert f"# - {note}\n" in found.text(["x"])


def test_hosts_keys():
    """What all have stands once; an underlay of another address or size, and MAC addresses that are not derived."""
    hosts = [
        Host("192.0.2.1", host(1, plain(1, B)).survey, {"user": "ops", "port": 2222, "proxy": "ops@192.0.2.9:22"}),
        Host("192.0.2.2", host(2, plain(2, A)).survey, {"user": "root", "port": 2222, "proxy": "ops@192.0.2.9:22"}),
    ]
    for one in hosts:
        one.survey["links"]["eth0"]["mtu"] = 9000
        one.survey["links"]["br0"]["mtu"] = one.survey["links"]["br0"]["spec"]["mtu"] = 8950
        one.survey["links"]["vx0"]["mtu"] = one.survey["links"]["vx0"]["spec"]["mtu"] = 8950
    found = imported(hosts, OWNER)
    assert found.notes == []
    assert found.raw["defaults"] == {"port": 2222, "proxy": "ops@192.0.2.9:22", "mtu": 9000}
    assert found.raw["hosts"]["h1"] == {
        "address": "192.0.2.1", "user": "ops", "underlay": {"address": A},
        "macs": {"vx0": "02:00:00:00:00:11", "br0": "02:00:00:00:00:01"},
    }  # fmt: skip


def test_machines_of_one_name():
    one, two = pair(plain(1, B), plain(2, A))
    two.survey["name"] = "h1.example.org"
    assert list(imported([one, two], OWNER).raw["hosts"]) == [f"host-{A}", f"host-{B}"]


# -- dnsmasq ---------------------------------------------------------------------------------

DHCP = [
    ({"dhcp-range": "10.0.4.10,10.0.4.20,255.255.255.0,1h"}, {"range": "10.0.4.10-10.0.4.20", "lease": 3600}, []),
    ({"dhcp-range": "set:x,10.0.4.0,static"}, {"range": "none"}, []),
    ({"dhcp-range": "10.0.4.10,10.0.4.20,30"}, {"range": "10.0.4.10-10.0.4.20", "lease": 120}, []),
    ({"dhcp-range": "10.99.0.10,10.99.0.20"}, {}, []),
    (
        {"dhcp-range": "10.0.4.10,10.0.4.20,infinite"}, {"range": "10.0.4.10-10.0.4.20"},
        ["dnsmasq's dhcp-range=10.0.4.10,10.0.4.20,infinite gives addresses for ever; dhcp.lease says how long"],
    ),
    (
        {"dhcp-range": "10.0.4.10,proxy"}, {},
        ["dnsmasq's dhcp-range=10.0.4.10,proxy is no range of addresses; it is left out"],
    ),
    (
        {"dhcp-host": "52:54:00:12:34:56,10.0.4.50,12h"},
        {"reservations": {"host-10-0-4-50": {"mac": "52:54:00:12:34:56", "address": "10.0.4.50"}}}, [],
    ),
    (
        {"dhcp-host": "id:abc,10.0.4.50"}, {},
        ["dnsmasq's dhcp-host=id:abc,10.0.4.50 is not one MAC address with one address; it is left out"],
    ),
    ({"dhcp-host": "52:54:00:12:34:56,10.99.0.5"}, {}, []),
    ({"dhcp-option": "3,10.0.4.9"}, {"gateway": "10.0.4.9"}, []),
    ({"dhcp-option": "option:router"}, {"gateway": "none"}, []),
    ({"dhcp-option": "3,10.0.4.1"}, {}, []),
    (
        {"dhcp-option": "3,10.0.4.9,10.0.4.8"}, {"gateway": "10.0.4.9"},
        ["dnsmasq's dhcp-option=3,10.0.4.9,10.0.4.8 names several routers; the first is taken"],
    ),
    ({"dhcp-option": "option:ntp-server,10.0.4.5"}, {"options": {"ntp-server": "10.0.4.5"}}, []),
    (
        {"dhcp-option": "6,9.9.9.9"}, {},
        ["dnsmasq's dhcp-option=6,9.9.9.9: containers ask this dnsmasq, and dhcp.dns says whom it asks"],
    ),
    ({"dhcp-option": "26,1400"}, {}, ["dnsmasq's dhcp-option=26,1400: mtu says that"]),
    (
        {"dhcp-option": "tag:x,42,10.0.4.5"}, {},
        ["dnsmasq's dhcp-option=tag:x,42,10.0.4.5 is for some clients only, which no stack file says"],
    ),
    ({"server": "192.0.2.53", "dhcp-lease-max": "253", "enable-ra": ""},
     {"leaseMax": 253, "dns": ["192.0.2.53"], "ra": True}, []),
    ({"strict-order": "", "dhcp-no-override": "", "bind-interfaces": ""}, None, []),
]  # fmt: skip


@pytest.mark.parametrize(("options", "keys", "notes"), DHCP)
def test_dnsmasq_as_keys(options, keys, notes):
    process = {"pid": 1, "words": [], "options": [list(option) for option in options.items()]}
    found = _found_dnsmasq.keys(process, ["10.0.4.0/24"], ["10.0.4.1/24"])
    assert found == ({} if keys is None else {**keys, "strictOrder": False, "noOverride": False}, notes)


@pytest.mark.parametrize(
    ("options", "serves"),
    [
        ({"interface": "br0", "dhcp-range": "10.0.4.2,10.0.4.9"}, True),
        ({"interface": "br1", "dhcp-range": "10.0.4.2,10.0.4.9"}, False),
        ({"interface": "br0"}, False),
        ({"listen-address": "127.0.0.1,10.0.4.1", "dhcp-range": "10.0.4.2,10.0.4.9"}, True),
        ({"dhcp-range": "10.0.4.2,10.0.4.9"}, True),
        ({"dhcp-range": "10.0.5.2,10.0.5.9"}, False),
        ({"except-interface": "br0", "dhcp-range": "10.0.4.2,10.0.4.9"}, False),
    ],
)
def test_which_dnsmasq_serves_a_bridge(options, serves):
    process = {"options": [list(option) for option in options.items()]}
    assert bool(_found_dnsmasq.serving([process], "br0", ["10.0.4.1/24"])) == serves


# -- the command -----------------------------------------------------------------------------


def test_wrong_words():
    done = CliRunner().invoke(cli.app, ["import", "a b", "root@198.18.0.11", "root@198.18.0.11"])
    assert (done.exit_code, done.stderr) == (
        1,
        ("a b: is not a host; write user@host, user@host:port or user@[address]:port\n"
        "root@198.18.0.11: stands twice; name each host once\n"),
    )


@pytest.mark.parametrize(
    ("text", "user", "address", "port"),
    [
        ("198.18.0.11", None, "198.18.0.11", None),
        ("ops@server-1:2222", "ops", "server-1", 2222),
        ("ops@2001:db8::11", "ops", "2001:db8::11", None),
        ("ops@[2001:db8::11]:2222", "ops", "2001:db8::11", 2222),
    ],
)
def test_hosts_as_they_are_typed(text, user, address, port):
    found = import_._wanted([text])[text]
    assert (found.user, found.address, found.port) == (user, address, port)


@pytest.mark.parametrize(
    ("done", "sentence"),
    [
        (
            ssh.Done(127, b"", b"sh: python3: not found"),
            "root@198.18.0.11: python3 is missing on this host; install it, such as: apt-get install python3",
        ),
        (ssh.Done(1, b"", b"sudo: a password is required\n"), "root@198.18.0.11: sudo: a password is required"),
        (ssh.Done(3, b"", b""), "root@198.18.0.11: exit code 3"),
        (
            ssh.Done(0, b"welcome", b""),
            "root@198.18.0.11: what it answers is no report (b'welcome'); look at its log-in scripts",
        ),
    ],
)
def test_answers_that_are_none(monkeypatch, done, sentence):
    class Fleet:
        operator = None

        def run(self, *_words):
            return done

    monkeypatch.setattr(live, "reached", lambda *_words: None)
    name = "root@198.18.0.11"
    assert import_._one(Fleet(), import_._wanted([name])[name], "", b"") == sentence
