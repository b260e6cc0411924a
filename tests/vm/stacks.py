"""What a host has whose reboots are tested: for each kind a stack. A new kind adds one to STACKS."""

from __future__ import annotations

from tests.netns.agent_support import bridge, document, vxlan

#: The wire's end that is the host's, and the other one's address.
HERE, THERE = "198.18.0.11", "198.18.0.12"


def owner(name: str) -> dict[str, str]:
    """Each stack is one of its own."""
    return {"project": "p", "stack": name, "id": f"id-of-{name}"}


def _app():
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


def _second():
    """Another stack on the same host, over its own segment."""
    return document(
        owner("second"),
        br_second=bridge(mac="02:00:00:00:00:03", addresses={"10.11.0.1/24": {}}),
        vx_second=vxlan(mac="02:00:00:00:00:04", vni=43, bridge="br-second", peers={"b": THERE}),
    )


STACKS = {"app": _app, "second": _second}

_VXLAN = f"ip link add far0 type vxlan local {THERE} remote {HERE}"
#: The other end of the wire, by hand, as somebody else would have it: its device far0, its address, and whom it pings.
FAR_END = {
    "app": (f"{_VXLAN} id 42 dstport 4789", "10.10.0.12/24", "10.10.0.1"),
    "second": (f"{_VXLAN} id 43 dstport 4789", "10.11.0.12/24", "10.11.0.1"),
}
