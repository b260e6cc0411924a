"""What a host has whose reboots are tested: for each kind a stack. A new kind adds one to STACKS."""

from __future__ import annotations

import base64

from overlay_agent import x25519
from tests.netns.agent_support import bridge, document, vxlan

#: The wire's end that is the host's, and the other one's address.
HERE, THERE = "198.18.0.11", "198.18.0.12"
#: What eth3 has by the host's own configuration.
OF_NIC = "192.0.2.11/24"
#: The private key at the other end.
_FAR_KEY = b"no secret: of a test's other end"


def owner(name: str) -> dict[str, str]:
    """Each stack is one of its own."""
    return {"project": "p", "stack": name, "id": f"id-of-{name}"}


def _app(_key: str):
    """All services in one segment: an address, DHCP and DNS, translation, routes, forwarding, the firewall."""
    subnets = {"10.10.0.0/24": {}, "fd00:10::/64": {}}
    services = {
        "dhcp": {
            "kind": "dnsmasq", "interface": "br-app", "mtu": 1400, "router": "10.10.0.1", "domain": "app.example",
            "addresses": {"10.10.0.1": {}, "fd00:10::1": {}}, "subnets": subnets,
            "ranges": {"10.10.0.100-10.10.0.199": {}},
            "hosts": {"web": {"mac": "02:00:00:00:01:01", "address": "10.10.0.11", "address6": "fd00:10::11"}},
        },
        "nat": {
            "kind": "nat", "interface": "br-app", "subnets": subnets, "masquerade": subnets,
            "forwards": {"tcp/8080": {"address": "10.10.0.11", "ports": "80"}},
        },
        "routes": {"kind": "routes", "routes": {"10.20.0.0/24": "10.10.0.77", "fd00:20::/64": "fd00:10::77"}},
    }  # fmt: skip
    return document(
        owner("app"), services,
        br_app=bridge(mtu=1400, addresses={"10.10.0.1/24": {}, "fd00:10::1/64": {}}, linkLocal=True),
        vx_app=vxlan(mtu=1400, bridge="br-app", peers={"b": THERE}),
    )  # fmt: skip


def _second(_key: str):
    """Another stack on the same host, over its own segment."""
    return document(
        owner("second"),
        br_second=bridge(mac="02:00:00:00:00:03", addresses={"10.11.0.1/24": {}}),
        vx_second=vxlan(mac="02:00:00:00:00:04", vni=43, bridge="br-second", peers={"b": THERE}),
    )


def _gre(_key: str):
    return document(
        owner("gre"),
        br_gre=bridge(mac="02:00:00:00:00:05", addresses={"10.12.0.1/24": {}}),
        testgre={
            "kind": "gretap", "mtu": 1450, "mac": "02:00:00:00:00:06", "bridge": "br-gre",
            "local": HERE, "remote": THERE, "ttl": 255,
        },
    )  # fmt: skip


def _l2tp(_key: str):
    """With the numbers of source document 004."""
    return document(
        owner("l2tp"),
        br_l2tp=bridge(mac="02:00:00:00:00:07", mtu=1446, addresses={"10.13.0.1/24": {}}),
        l2tpeth0={
            "kind": "l2tp", "mtu": 1446, "mac": "02:00:00:00:00:08", "bridge": "br-l2tp",
            "local": HERE, "remote": THERE,
            "tunnelId": 1000, "peerTunnelId": 2000, "sessionId": 3000, "peerSessionId": 4000,
            "localPort": 6000, "remotePort": 5000,
        },
    )  # fmt: skip


def _wg(key: str):
    peer = {
        "publicKey": base64.b64encode(x25519.x25519(_FAR_KEY)).decode(), "endpoint": f"{THERE}:51820",
        "allowedIps": ["fd00:14::12/128"],
    }  # fmt: skip
    return document(
        owner("wg"),
        wg0={
            "kind": "wireguard", "mtu": 1420, "listenPort": 51820, "publicKey": key,
            "addresses": {"fd00:14::11/64": {}}, "peers": {"b": peer},
        },
    )  # fmt: skip


def _lan(_key: str):
    return document(
        owner("lan"),
        {"uplink-eth3": {"kind": "uplink", "bridge": "br-lan", "mode": "host"}},
        br_lan=bridge(mac="of eth3", mtu=1500),
    )


#: By stack: its document, given the host's public key.
STACKS = {"app": _app, "second": _second, "gre": _gre, "l2tp": _l2tp, "wg": _wg, "lan": _lan}

_L2TP = (
    f"ip l2tp add tunnel tunnel_id 2000 peer_tunnel_id 1000 encap udp local {THERE} remote {HERE} udp_sport 5000 "
    "udp_dport 6000 && ip l2tp add session name far-l2tp tunnel_id 2000 session_id 4000 peer_session_id 3000"
)

_WG = (
    "ip link add far-wg type wireguard && wg set far-wg listen-port 51820 private-key /run/far.key "
    f"peer $(nsenter -t 1 -n wg show wg0 public-key) endpoint {HERE}:51820 allowed-ips fd00:14::11/128"
)
#: Before any of it: what the other end has in files.
PREPARE = f"umask 077; echo {base64.b64encode(_FAR_KEY).decode()} > /run/far.key"

_ENDS = f"local {THERE} remote {HERE}"
#: The other end of the wire, by hand, as somebody else would have it: its device, its address, and whom it pings.
FAR_END = {
    "app": (f"ip link add far-app type vxlan {_ENDS} id 42 dstport 4789", "10.10.0.12/24", "10.10.0.1"),
    "second": (f"ip link add far-second type vxlan {_ENDS} id 43 dstport 4789", "10.11.0.12/24", "10.11.0.1"),
    "gre": (f"ip link add far-gre type gretap {_ENDS} ttl 255", "10.12.0.12/24", "10.12.0.1"),
    "l2tp": (f"sh -c '{_L2TP}'", "10.13.0.12/24", "10.13.0.1"),
    "wg": (f"sh -c '{_WG}'", "fd00:14::12/64 nodad", "fd00:14::11"),
    "lan": ("ip link add far-lan link eth2 type macvlan", "192.0.2.12/24", OF_NIC.partition("/")[0]),
}
