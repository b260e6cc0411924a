"""A NIC of the host as a port of a segment's bridge; in mode `host` its addresses and routes move along.

The service's name is `uplink-` and the NIC's name, so that a NIC cannot stand twice in a document. The order
in which things move is what keeps connections alive: an address is on the bridge before it leaves the NIC, a
route is replaced in place, and the bridge has the NIC's MAC address, so that nobody outside notices.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import fields, uplinks
from overlay_agent.errors import KernelError
from overlay_agent.fields import RECREATE
from overlay_agent.kinds.base import Kind, Spec, attribute
from overlay_agent.uplinks import HOST, PORT, PREFIX

if TYPE_CHECKING:
    from overlay_agent.document import Document
    from overlay_agent.kernel import Held, Kernel, Link

ARPHRD_ETHER = 1
#: Kinds of device that stand for a cable: a NIC itself has none, a VM's or a container's may be one of the others.
CABLES = ("", "veth", "vlan")
#: What of a NIC's settings is not for others, or follows by itself.
_NOT_COPIED = {"mtu", "stable_secret", "mc_forwarding", "addr_gen_mode", "forwarding"}
#: Where the NIC was a port, and is none any more.
_NO_BRIDGE = "(none)"
_CONF = "/proc/sys/net/{family}/conf/{device}"
CLASS = "/sys/class/net"
#: s, for which a bridge is waited for that has its first port.
_SENDS = 1.0
#: Of accept_ra: also where the host forwards packets.
_HEAR_AS_ROUTER = "2"


@dataclasses.dataclass(frozen=True)
class Uplink(Spec):
    """What becomes of the NIC."""

    KIND: ClassVar[str] = "uplink"

    #: The bridge whose port it is.
    bridge: str = attribute(fields.InterfaceName(), change=RECREATE)
    #: "host": the NIC's addresses and routes move to the bridge. "port": it has none.
    mode: str = attribute(fields.Choice((HOST, PORT)), change=RECREATE)
    #: Whether the NIC is up.
    up: bool = attribute(fields.Flag(), default=True)
    #: Whether networkd and NetworkManager, where they are, know that it is not theirs now.
    left_alone: bool = attribute(fields.Flag(), default=True)
    #: The NIC's addresses that are on the bridge.
    addresses: dict[str, Any] = attribute(fields.Others("address"), default={})
    #: Addresses that are on the NIC all the same.
    strays: dict[str, Any] = attribute(fields.Others("address on the NIC itself"), default={})


class UplinkKind(Kind):
    """How it is done, and taken back."""

    name = "uplink"
    spec = Uplink
    #: Once the bridge is there, and before all that needs the host's addresses.
    rank = 1

    def commands(self, name: str, spec: Uplink, mark: str) -> list[list[str]]:
        nic, bridge = uplinks.nic_of(name), spec.bridge
        out = [["ip", "link", "set", "dev", nic, "master", bridge, "up"]]
        if spec.mode == HOST:
            # One line: over SSH, what is typed after the first command of it would not arrive.
            steps = [f"r{v}=$(ip -{v} route show dev {nic} | grep -v 'proto kernel')" for v in (4, 6)]
            steps += [
                f"ip -{v} -o address show dev {nic} scope global | while read -r _ _ _ address _; "
                f"do ip address add $address dev {bridge} {more}; done"
                for v, more in ((4, "brd +"), (6, "nodad"))
            ]
            steps += [" ".join(out[0]), f"ip address flush dev {nic} scope global"]
            steps += [
                f'echo "$r{v}" | while read -r to; do test -z "$to" || ip -{v} route replace $to dev {bridge}; done'
                for v in (4, 6)
            ]
            moved = "; ".join(steps)
            out = [["sh", "-c", moved]]
        return out

    # -- what this host cannot have ----------------------------------------------------------

    def wrong_here(self, kernel: Kernel, name: str, spec: Uplink, wanted: Document) -> list[str]:
        nic, mark = uplinks.nic_of(name), wanted.owner.alias(name)
        bridge = wanted.devices.get(spec.bridge)
        if not name.startswith(PREFIX) or fields.InterfaceName().check(nic):
            return [f"a service of this kind is called {PREFIX}<NIC>"]
        if bridge is None or bridge.KIND != "bridge":
            return [f"bridge: {spec.bridge!r} is not a bridge of this document; declare it"]
        link = kernel.links.get(nic)
        if link is None:
            there = sorted(one.name for one in kernel.links.values() if not _no_cable(one))
            return [f"{nic} is not on this host; its NICs are {', '.join(there) or 'none'}"]
        record = uplinks.kept().get(nic)
        if record and record["mark"] != mark:
            return [f"{nic} is an uplink of {record['mark']} already; a NIC is a port of one bridge"]
        out = [why for why in (_no_cable(link), _joined(kernel, link, spec, record)) if why]
        if not out:
            out += _wrong_size(link, spec, bridge.mtu)
            out += _wrong_addresses(kernel, link, spec, record)
            out += [
                f"{nic}: a policy routing rule names it ({rule}) and would not see its packets any more; write the "
                f"rule by address (ip rule), or take another NIC"
                for rule in (kernel.rules_naming(nic) if spec.mode == HOST else [])
            ]
        return out

    # -- reading -----------------------------------------------------------------------------

    def find(self, kernel: Kernel, name: str, mark: str) -> Uplink | None:
        from overlay_agent import hands_off, host  # noqa: PLC0415 - of few documents

        nic = uplinks.nic_of(name)
        record, link = uplinks.kept().get(nic), kernel.links.get(nic)
        if record is None or record["mark"] != mark or link is None:
            return None
        if not link.master and record["boot"] != host.here().boot:
            return None
        on_nic: dict[str, Any] = {one.address: {} for one in uplinks.movable(kernel.held(nic)) if one.seconds is None}
        on_bridge: dict[str, Any] = {}
        if record["mode"] == HOST and record["bridge"] in kernel.links:
            there = [one.address for one in kernel.held(record["bridge"])]
            on_bridge = {a: {} for a in record["addresses"] if a in there and not uplinks.floats(a)}
        bridge = kernel.name_of.get(link.master, _NO_BRIDGE)
        told = hands_off.is_told(nic, record["bridge"])
        return Uplink(bridge, record["mode"], link.up, told, on_bridge, on_nic)

    def will_do(self, found: Uplink, wanted: Uplink) -> set[str]:
        # What was added to the bridge since, or is another service's, is not ours to take away.
        return {"addresses"} if wanted.addresses.keys() <= found.addresses.keys() else set()

    def image(self, kernel: Kernel, name: str, mark: str) -> dict[str, Any]:
        return {"mark": mark, "record": uplinks.kept().get(uplinks.nic_of(name))}

    # -- changing ----------------------------------------------------------------------------

    def create(self, kernel: Kernel, name: str, spec: Uplink, mark: str, image: Mapping[str, Any]) -> None:
        self.change(kernel, name, spec, None, mark)

    def change(self, kernel: Kernel, name: str, spec: Uplink, found: Uplink | None, mark: str) -> None:
        from overlay_agent import hands_off, host  # noqa: PLC0415 - of few documents
        from overlay_agent.kernel import reindexed  # noqa: PLC0415 - kinds are also imported where there is none

        nic = uplinks.nic_of(name)
        if spec.bridge == _NO_BRIDGE:  # an undo: somebody had taken it out, and `put_back` keeps what was kept
            if kernel.links[nic].up != spec.up:
                kernel.set_up(nic, spec.up)
            return
        link, boot = kernel.links[nic], host.here().boot
        held = uplinks.movable(kernel.held(nic)) if spec.mode == HOST else []
        routes = kernel.routes_to_move(link.index) if spec.mode == HOST else []
        was = uplinks.kept().get(nic) or {"addresses": {}, "routes": [], "boot": "", "index": 0, "bridge": ""}
        kept = {*spec.addresses, *(one.address for one in kernel.held(spec.bridge))}
        addresses = {address: text for address, text in was["addresses"].items() if address in kept}
        known = [] if held else [reindexed(text, was["index"], link.index) for text in was["routes"]]
        record = {
            "mark": mark,
            "bridge": spec.bridge,
            "mode": spec.mode,
            "boot": boot,
            "index": link.index,
            "up": was["up"] if was["boot"] == boot else link.up,
            "addresses": {**addresses, **{one.address: one.text for one in held}},
            "routes": list(dict.fromkeys([*known, *routes])),
        }
        if found is None and was["bridge"]:  # of an earlier boot: where this is undone, that is what is known
            record["before"] = {key: value for key, value in was.items() if key != "before"}
        uplinks.keep(kernel, nic, record)
        if spec.mode == HOST:
            self._move(kernel, nic, spec.bridge, record, held)
        else:
            for one in reversed(kernel.held(nic)):  # from router advertisements, which it hears no more
                kernel.let_go(nic, one.text)
            _join(kernel, link, spec.bridge)
        hands_off.put(kernel, nic, spec.bridge)

    def _move(self, kernel: Kernel, nic: str, bridge: str, record: Mapping[str, Any], held: list[Held]) -> None:
        _copy_settings(kernel, nic, bridge, learns=any(map(_is_learnt, held)))
        there = {one.address for one in kernel.held(bridge)}
        missing = [text for address, text in record["addresses"].items() if address not in there]
        for text in missing:
            kernel.hold(bridge, text, label=False)
        _join(kernel, kernel.links[nic], bridge)
        _wait_until_sends(kernel, nic, bridge)
        # What the host's owner has done to the bridge's routes since is left alone.
        routes = record["routes"] if missing or held else []
        refused = kernel.add_routes(routes, record["index"], kernel.index_of[bridge])
        # The first of a subnet would take the others along.
        for one in reversed(held):
            kernel.let_go(nic, one.text)
        kernel.drop_routes(nic)
        if refused:  # perhaps of what only stood by an address of the NIC
            refused = kernel.add_routes(routes, record["index"], kernel.index_of[bridge])
        if refused:
            raise KernelError(f"{nic}: move its routes to {bridge}", 0, "; ".join(refused))

    def delete(self, kernel: Kernel, name: str, mark: str) -> None:
        from overlay_agent import hands_off, host  # noqa: PLC0415 - of few documents

        nic = uplinks.nic_of(name)
        record, link = uplinks.kept().get(nic), kernel.links.get(nic)
        if record is None or record["mark"] != mark:
            return
        # After a boot it is as the host's own configuration has it, until it is a port again.
        if link is not None and record["boot"] == host.here().boot:
            if record["mode"] == HOST:
                _move_back(kernel, nic, record)
            if kernel.name_of.get(link.master) == record["bridge"]:
                kernel.set_master(nic, None)
                link.master = 0
            if link.up and not record["up"]:
                kernel.set_up(nic, False)
        # Last: whoever gets it back shall find it as it was, and not make it anew.
        hands_off.remove(kernel, nic)
        uplinks.keep(kernel, nic, record.get("before") if uplinks.is_undoing() else None)

    def put_back(self, kernel: Kernel, name: str, image: Mapping[str, Any], *, exactly: bool) -> list[str]:
        # A NIC that left its bridge and came back knows more of itself than we now see.
        if exactly and image.get("record"):
            uplinks.keep(kernel, uplinks.nic_of(name), image["record"])
        return []


def _join(kernel: Kernel, link: Link, bridge: str) -> None:
    if not link.up:
        kernel.set_up(link.name, True)
        link.up = True
    if kernel.name_of.get(link.master) != bridge:
        kernel.set_master(link.name, bridge)
        link.master = kernel.index_of[bridge]


def _wait_until_sends(kernel: Kernel, nic: str, bridge: str) -> None:
    """A bridge has its carrier at once with its first port, but drops what it is to send until the kernel gets round to
    setting up its queue. The NIC still has the host's addresses, so nothing is lost by waiting."""
    end = time.monotonic() + _SENDS
    kernel.refresh()
    while kernel.links[nic].running and not kernel.links[bridge].running and time.monotonic() < end:
        time.sleep(0.005)
        kernel.refresh()


def _move_back(kernel: Kernel, nic: str, record: Mapping[str, Any]) -> None:
    """What the bridge has of the host's comes back to the NIC, as the NIC had it, then what others added."""
    bridge = record["bridge"]
    held = uplinks.movable(kernel.held(bridge)) if bridge in kernel.links else []
    now = {one.address: one for one in held}
    there = {one.address for one in kernel.held(nic)}
    for address, text in record["addresses"].items():
        one = now.get(address)
        if address not in there and (one or bridge not in kernel.links):
            # Of a lease the bridge knows what is left of it.
            kernel.hold(nic, one.text if one and one.seconds is not None else text, label=True)
    for one in held:
        if one.address not in {*record["addresses"], *there}:
            kernel.hold(nic, one.text, label=False)
    index = kernel.index_of[nic]
    if bridge in kernel.links:
        routes = kernel.routes_to_move(kernel.index_of[bridge])
        kernel.add_routes(routes, kernel.index_of[bridge], index)
    else:
        kernel.add_routes(record["routes"], record["index"], index)
    for one in reversed(held):
        kernel.let_go(bridge, one.text)
    if bridge in kernel.links:
        kernel.drop_routes(bridge)


def _copy_settings(kernel: Kernel, nic: str, bridge: str, *, learns: bool) -> None:
    """The bridge treats packets as the NIC did: filters, whether it has IPv6 at all. `learns`: the NIC has some
    addresses from router advertisements. Whoever handled those, such as networkd, does not here: the kernel does."""
    also = {"accept_ra": _HEAR_AS_ROUTER, "autoconf": "1"} if learns else {}
    for family in ("ipv4", "ipv6"):
        here, there = (_CONF.format(family=family, device=device) for device in (nic, bridge))
        for setting in sorted(set(os.listdir(here)) - _NOT_COPIED) if os.path.isdir(here) else ():
            value = also.get(setting) or _read(f"{here}/{setting}")
            if value is None or _read(f"{there}/{setting}") in (None, value):
                continue
            try:
                with open(f"{there}/{setting}", "w", encoding="ascii") as file:
                    file.write(value)
            except OSError as error:
                raise KernelError(f"{there}/{setting}: write {value}", error.errno or 0, error.strerror) from None
            kernel.reached()


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None


# -- what cannot be an uplink ----------------------------------------------------------------


def _no_cable(link: Link) -> str:
    """Why the device is nothing that a cable could be in; empty: it is."""
    if link.kind in ("bond", "team"):
        return f"{link.name} is a {link.kind}, which is not supported as an uplink; take a single NIC"
    if link.kind not in CABLES:
        return f"{link.name} is a {link.kind} itself; name a NIC"
    if link.type != ARPHRD_ETHER:
        return f"{link.name} is not Ethernet, and cannot be a port of a bridge; name another NIC"
    if any(os.path.isdir(f"{CLASS}/{link.name}/{sign}") for sign in ("wireless", "phy80211")):
        return f"{link.name} is Wi-Fi, whose access points take no frames of others; name a NIC with a cable"
    return ""


def _joined(kernel: Kernel, link: Link, spec: Uplink, record: Mapping[str, Any] | None) -> str:
    """Why it is somebody else's port; empty: it is not."""
    master = kernel.name_of.get(link.master)
    if master is None or (record and master in (spec.bridge, record["bridge"])):
        return ""
    kind = kernel.links[master].kind
    what = f"a part of {kind} {master}" if kind in ("bond", "team") else f"a port of {master} ({kind})"
    return f"{link.name} is {what} already, and not by us; take it out there: ip link set {link.name} nomaster"


def _wrong_size(link: Link, spec: Uplink, mtu: int) -> list[str]:
    or_nic = f"or the NIC's: ip link set {link.name} mtu {mtu}"
    if spec.mode == HOST and link.mtu != mtu:
        why = f"{link.name} has MTU {link.mtu}, and the bridge that takes its place would have {mtu}"
        return [f"{why}; set the host's mtu to {link.mtu}, {or_nic}"]
    if link.mtu < mtu:
        return [f"{link.name} has MTU {link.mtu}, and the segment {mtu}; set the segment's mtu to {link.mtu}, {or_nic}"]
    return []


def _is_learnt(one: Held) -> bool:
    """Whether it comes from a router's advertisement (RFC 4862); what DHCPv6 gives is one address alone."""
    return one.seconds is not None and ":" in one.address and not one.address.endswith("/128")


def _wrong_addresses(kernel: Kernel, link: Link, spec: Uplink, record: Mapping[str, Any] | None) -> list[str]:
    """Addresses that cannot move, or that must not be there."""
    held = [one for one in kernel.held(link.name) if not one.temporary]
    learnt = [one for one in held if _is_learnt(one)]
    if spec.mode == PORT:
        moved = list(record["addresses"]) if record and record["mode"] == HOST else []
        standing = [*(one.address for one in held if one not in learnt), *moved]
        if standing:
            why = f"{link.name} has {', '.join(standing)}, and a NIC that is only a port has no address"
            ways = "remove it from the host's network configuration, or let it move to the bridge (bridge.mode: host)"
            return [f"{why}; {ways}"]
        return []
    leased = [one for one in held if one.seconds is not None and one not in learnt]
    if not leased:
        return []
    from overlay_agent import hands_off  # noqa: PLC0415 - only to refuse

    owner = hands_off.owner_of(link.name, link.index)
    return [
        f"{link.name} has {one.address} by a lease of {owner}, which would renew it on the NIC and not on the bridge; "
        "give the host a fixed address there, or take another NIC"
        for one in leased
    ]


KIND = UplinkKind()

__all__ = ["HOST", "KIND", "PORT", "PREFIX", "Uplink"]
