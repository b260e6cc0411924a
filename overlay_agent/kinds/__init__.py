"""The registry of kinds: a new kind is a file beside this one and a name here."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping

from overlay_agent.kinds.base import DEVICES, SERVICES, Device, DeviceKind, Kind, Listens, Passes, Spec, typed

#: What documents call them; a hyphen is an underscore in the file's name.
_NAMES = (
    "bridge", "uplink", "docker-network", "host-guard", "gateway-guard", "hub-guard", "anycast-gateway", "wireguard",
    "vxlan", "gretap", "ip6gretap", "l2tp", "forwarding", "routes", "nat", "evpn", "vrrp", "dnsmasq", "firewall",
    "self-heal",
)  # fmt: skip
#: Of those whose file has another's name.
_FILES = {"ip6gretap": "gretap"}


class _Kinds(Mapping[str, Kind]):
    """Each is loaded when it is first asked for: a host has a few of them, and each costs the agent's start 1 ms."""

    def __init__(self) -> None:
        self._loaded: dict[str, Kind] = {}

    def __getitem__(self, name: str) -> Kind:
        if name not in self._loaded:
            if name not in _NAMES:
                raise KeyError(name)
            module = importlib.import_module(f"{__name__}.{_FILES.get(name, name).replace('-', '_')}")
            # A file has one kind, or several by name.
            self._loaded[name] = module.KINDS[name] if hasattr(module, "KINDS") else module.KIND
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in _NAMES

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)


KINDS: Mapping[str, Kind] = _Kinds()

__all__ = ["DEVICES", "KINDS", "SERVICES", "Device", "DeviceKind", "Kind", "Listens", "Passes", "Spec", "typed"]
