"""What a NIC that became a port of a bridge had before, and what of it the bridge has now.

An address has no alias, and a NIC none of ours: whose port it is, and what it is to get back, is kept in
the store, before anything moves. A document only says that a NIC is to be a port, and whether its addresses
go along; which they are is the host's business, and `resolved` looks it up so that a diff and a read-back
compare real values.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from overlay_agent.fields import OF

if TYPE_CHECKING:
    from overlay_agent.document import Document
    from overlay_agent.kernel import Held, Kernel

#: What a service's name begins with; the NIC's name follows.
PREFIX = "uplink-"
#: The NIC's addresses and routes move to the bridge; or: it is a port, and has none.
HOST, PORT = "host", "port"


def nic_of(name: str) -> str:
    """The NIC that the service of this name is about."""
    return name[len(PREFIX) :]


def kept() -> dict[str, Any]:
    """What is kept of each NIC that is a port of ours, by its name."""
    from overlay_agent.store import Store  # noqa: PLC0415 - on hosts alone

    return dict(Store().read_shared().get("uplinks", {}))


def keep(kernel: Kernel, nic: str, record: Mapping[str, Any] | None) -> None:
    """Keeps that of the NIC; None: it is as it was."""
    from overlay_agent.store import Store  # noqa: PLC0415 - as above

    store = Store()
    shared = store.read_shared()
    before = shared.get("uplinks", {})
    after = {name: one for name, one in before.items() if name != nic}
    if record is not None:
        after[nic] = dict(record)
    if after != before:
        rest = {key: value for key, value in shared.items() if key != "uplinks"}
        store.write_shared({**rest, **({"uplinks": after} if after else {})})
        kernel.reached()


def is_undoing() -> bool:
    """Whether what is removed now is removed because its making failed."""
    from overlay_agent.store import Store  # noqa: PLC0415 - as above

    return Store().is_undoing()


def of_bridge(bridge: str) -> str | None:
    """The NIC whose addresses that bridge has; None where it has none's."""
    return next((n for n, one in kept().items() if (one["bridge"], one["mode"]) == (bridge, HOST)), None)


def resolved(document: Document, kernel: Kernel) -> Document:
    """The document with the addresses that its uplinks take along, and each bridge with what it has of its NIC."""
    records = kept()
    services = dict(document.services)
    for name, spec in document.services.items():
        if spec.KIND == "uplink" and spec.mode == HOST:
            record = records.get(nic_of(name))
            mine = record if record and record["mark"] == document.owner.alias(name) else None
            services[name] = dataclasses.replace(spec, addresses=_taken(kernel, nic_of(name), spec, mine))
    devices = {name: _with_mac(name, spec, kernel) for name, spec in document.devices.items()}
    return dataclasses.replace(document, devices=devices, services=services)


def _with_mac(name: str, spec: Any, kernel: Kernel) -> Any:
    nic = kernel.links.get(spec.mac[len(OF) :]) if spec.mac.startswith(OF) else None
    if nic is None:
        return spec
    # Whether the kernel gives it a link-local address is of one piece with that: it is made from the MAC address. Later
    # the NIC says nothing of it any more: NetworkManager turns it off on its own NICs, and on when it lets go of one.
    there = kernel.links.get(name)
    like = there if there and nic.master == there.index else nic
    return dataclasses.replace(spec, mac=nic.mac, link_local=like.link_local)


def _taken(kernel: Kernel, nic: str, spec: Any, record: Mapping[str, Any] | None) -> dict[str, Any]:
    """The addresses that the bridge is to have: those that stand on the NIC now, and those that it had when it
    became a port. After a boot the host's own configuration says which those are, where it says anything."""
    link = kernel.links.get(nic)
    now = movable(kernel.held(nic)) if link else []
    is_port = bool(link and kernel.name_of.get(link.master) == spec.bridge)
    counts = record and (is_port or not any(one.seconds is None for one in now))
    known = list(record["addresses"]) if record and counts else []
    stays = [one.address for one in now if one.seconds is None]
    return {address: {} for address in dict.fromkeys([*known, *stays]) if not floats(address)}


def movable(held: list[Held]) -> list[Held]:
    """Those of a NIC's addresses that go along with it."""
    return [one for one in held if not one.temporary]


def floats(address: str) -> bool:
    """Whether it may be one that comes and goes by itself, or by another service, since it is a network of its own.
    Such a one moves like the others; but nobody misses it later."""
    interface = ipaddress.ip_interface(address)
    return interface.network.prefixlen == interface.max_prefixlen
