"""The registry of kinds: a new kind is a file beside this one and a line here."""

from __future__ import annotations

from overlay_agent.kinds import bridge, firewall, vxlan
from overlay_agent.kinds.base import DEVICES, SERVICES, Device, DeviceKind, Kind, Listens, Spec

KINDS: dict[str, Kind] = {kind.name: kind for kind in (bridge.KIND, vxlan.KIND, firewall.KIND)}

__all__ = ["DEVICES", "KINDS", "SERVICES", "Device", "DeviceKind", "Kind", "Listens", "Spec"]
