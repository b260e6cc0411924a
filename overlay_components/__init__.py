"""Declarative layer-2 overlay networks between Linux hosts, as Pulumi components.

with Overlay("prod"):
    a, b = Host("a", address="192.0.2.11"), Host("b", address="192.0.2.12")
    app = Bridge("app", hosts=[a, b], subnets=["10.10.0.0/24"])
    VxlanTunnel("app-mesh", bridge=app, vni=42)
    DhcpRouter("app-dhcp", bridge=app, host=a, masquerade=True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from overlay_components.bridge import Bridge
    from overlay_components.dhcp_router import DhcpRouter
    from overlay_components.gretap_tunnel import GreTapTunnel
    from overlay_components.host import Host
    from overlay_components.l2tp_tunnel import L2tpTunnel
    from overlay_components.overlay import Overlay
    from overlay_components.vxlan_tunnel import VxlanTunnel

__all__ = ["Bridge", "DhcpRouter", "GreTapTunnel", "Host", "L2tpTunnel", "Overlay", "VxlanTunnel"]

_MODULES = {
    "Bridge": "bridge",
    "DhcpRouter": "dhcp_router",
    "GreTapTunnel": "gretap_tunnel",
    "Host": "host",
    "L2tpTunnel": "l2tp_tunnel",
    "Overlay": "overlay",
    "VxlanTunnel": "vxlan_tunnel",
}


def __getattr__(name: str) -> Any:
    """The class of that name. Loaded when asked for: Pulumi takes 0.5 s, for which `overlay --help` need not wait."""
    import importlib  # noqa: PLC0415

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
