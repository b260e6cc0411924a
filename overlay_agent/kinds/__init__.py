"""The registry of kinds: a new kind is a file beside this one and a line here."""

from __future__ import annotations

from overlay_agent.kinds import (
    bridge,
    dnsmasq,
    docker_network,
    firewall,
    forwarding,
    gateway_guard,
    nat,
    routes,
    vrrp,
    vxlan,
)
from overlay_agent.kinds.base import DEVICES, SERVICES, Device, DeviceKind, Kind, Listens, Passes, Spec, typed

KINDS: dict[str, Kind] = {
    module.KIND.name: module.KIND
    for module in (
        bridge, docker_network, gateway_guard, vxlan, forwarding, routes, nat, vrrp, dnsmasq, firewall,
    )
}  # fmt: skip

__all__ = ["DEVICES", "KINDS", "SERVICES", "Device", "DeviceKind", "Kind", "Listens", "Passes", "Spec", "typed"]
