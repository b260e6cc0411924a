"""A Linux bridge: the switch of one segment on one host (ip-link(8), "BRIDGE Type Support")."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import docker_user, fields
from overlay_agent.fields import Difference
from overlay_agent.kinds.base import MTU_LEAST, Device, DeviceKind, Passes, attribute

if TYPE_CHECKING:
    from overlay_agent.kernel import Kernel, Link

#: The kernel counts these times in clock ticks; a tick (USER_HZ) is 10 ms on every architecture.
TICKS = 100
_MTU_MOST = 65535
_TIMES = {
    "ageing": "IFLA_BR_AGEING_TIME", "forward_delay": "IFLA_BR_FORWARD_DELAY", "hello_time": "IFLA_BR_HELLO_TIME",
    "max_age": "IFLA_BR_MAX_AGE",
}  # fmt: skip

#: ip-link(8)'s words where they are not ours.
_WORDS = {"stp": "stp_state", "ageing": "ageing_time", "multicast_snooping": "mcast_snooping"}


@dataclasses.dataclass(frozen=True)
class Bridge(Device):
    """One bridge. Units of all times: seconds. All of it can be set in place."""

    KIND: ClassVar[str] = "bridge"

    #: `of NIC` where the NIC's addresses move to the bridge: the network goes on seeing the same machine (rule 10).
    mac: str = attribute(fields.MacOf())
    #: Spanning tree (IEEE 802.1D). Off: a new port forwards at once instead of after 30 s.
    stp: bool = attribute(fields.Flag(), default=False, nla="IFLA_BR_STP_STATE")
    priority: int = attribute(fields.Integer(0, 65535), default=32768, nla="IFLA_BR_PRIORITY")
    #: The kernel refuses less than 2 s while spanning tree is on.
    forward_delay: int = attribute(fields.Integer(2, 30), default=15)
    #: How often the root speaks, and for how long the others believe it; the kernel takes these, as 802.1D says. Of
    #: a bridge that is not the root the kernel shows the root's times, so all of a segment have the same.
    hello_time: int = attribute(fields.Integer(1, 10), default=2)
    max_age: int = attribute(fields.Integer(6, 40), default=20)
    #: After how long without traffic a MAC address is forgotten; 0: at once (a hub).
    ageing: int = attribute(fields.Integer(0, 1_000_000), default=300)
    vlan_filtering: bool = attribute(fields.Flag(), default=False, nla="IFLA_BR_VLAN_FILTERING")
    multicast_snooping: bool = attribute(fields.Flag(), default=True, nla="IFLA_BR_MCAST_SNOOPING")
    #: Of `addresses` those of IPv6 that the host does not send from while it has others (RFC 4862, 5.5.4).
    deprecated: dict[str, Any] = attribute(
        fields.Keyed("deprecated address", fields.Prefixed(), fields.Empty()), default={}
    )


class BridgeKind(DeviceKind):
    """What is special about bridges."""

    name = "bridge"
    spec = Bridge
    modules = ("bridge",)
    option = "CONFIG_BRIDGE"
    rank = 0

    def first_mtu(self, spec: Bridge) -> int:
        # A bridge follows the MTU of its ports until its own was *set* (br_change_mtu): one given
        # at creation does not count, nor does setting what it has already.
        return spec.mtu - 1 if spec.mtu > MTU_LEAST else spec.mtu + 1

    def encode(self, field: str, value: Any, index: Mapping[str, int]) -> dict[str, Any]:
        if field == "deprecated":  # no netlink attribute of a link
            return {}
        return {_TIMES[field]: round(value * TICKS)}

    def from_link(self, link: Link, name_of: Mapping[int, str]) -> dict[str, Any]:
        found = super().from_link(link, name_of)
        for field, nla in _TIMES.items():
            seconds, ticks = divmod(link.data[nla], TICKS)
            found[field] = link.data[nla] / TICKS if ticks else seconds
        return found

    def will_do(self, found: Bridge, wanted: Bridge) -> set[str]:
        # While spanning tree changes the topology, addresses are forgotten sooner, and that is what the kernel shows
        # (__br_set_topology_change).
        changing = found.stp and wanted.stp and found.ageing == 2 * found.forward_delay
        return {"ageing"} if changing else set()

    def observe(self, kernel: Kernel, link: Link) -> Bridge:
        found: Bridge = super().observe(kernel, link)
        deprecated: dict[str, Any] = {address: {} for address in found.addresses if kernel.is_deprecated(link, address)}
        return dataclasses.replace(found, deprecated=deprecated)

    def words(self, name: str, spec: Bridge) -> list[str]:
        out = ["type", "bridge"]
        for field in self.own_fields():
            value = getattr(spec, field.name)
            # Some kernels refuse what they lack even when it is off.
            if field.name != "deprecated" and value != fields.default_of(field):
                number = round(value * TICKS) if field.name in _TIMES else int(value)
                out += [_WORDS.get(field.name, field.name), str(number)]
        return out

    def commands(self, name: str, spec: Bridge, mark: str) -> list[list[str]]:
        made = super().commands(name, spec, mark)
        if spec.mac.startswith(fields.OF):
            nic = spec.mac[len(fields.OF) :]
            address = f'"$(cat /sys/class/net/{nic}/address)"'
            made[0] = ["sh", "-c", " ".join([*made[0]]).replace(spec.mac, address)]
        for words in made:
            if words[:3] == ["ip", "address", "add"] and words[3] in spec.deprecated:
                words += ["preferred_lft", "0"]
        return made + docker_user.commands(mark, docker_user.within(name))

    def wrong(self, spec: Bridge) -> list[str]:
        unfit = [a for a in sorted(spec.deprecated) if a not in spec.addresses or ":" not in a]
        return [f"deprecated: {a} is not an IPv6 address in addresses; add it there" for a in unfit]

    def passes(self, name: str, spec: Bridge) -> list[Passes]:
        return [Passes(name)]

    def still_ours(self, kernel: Kernel, name: str, stored: Mapping[str, Any]) -> bool:
        mac = str(stored.get("mac"))
        if mac.startswith(fields.OF):
            nic = kernel.links.get(mac[len(fields.OF) :])
            stored = {**stored, "mac": nic.mac if nic else None}
        return super().still_ours(kernel, name, stored)

    def in_use(self, kernel: Kernel, name: str, going: set[str]) -> list[str]:
        if kernel.ports(name):
            from overlay_agent import uplinks  # noqa: PLC0415 - of few documents

            # A NIC that is one by us leaves before.
            going = {*going, *(nic for nic, one in uplinks.kept().items() if one["bridge"] == name)}
        return super().in_use(kernel, name, going)

    def image(self, kernel: Kernel, name: str, mark: str) -> dict[str, Any]:
        from overlay_agent import uplinks  # noqa: PLC0415 - of few documents

        found = super().image(kernel, name, mark)
        nics = {nic: one for nic, one in uplinks.kept().items() if one["bridge"] == name}
        # A NIC, and what the bridge has of it, is for the uplink to bring back, wherever that then belongs.
        found["ports"] = [port for port in found["ports"] if port not in nics]
        if any(one["mode"] == uplinks.HOST for one in nics.values()):
            found.update(addresses=[], routes=[])
        return found

    # -- on the host: its rule in Docker's chain ---------------------------------------------

    def beside(self, kernel: Kernel, name: str, mark: str) -> list[Difference]:
        lacking = docker_user.lacking(kernel, mark, docker_user.within(name))
        return super().beside(kernel, name, mark) + lacking

    def create(self, kernel: Kernel, name: str, spec: Bridge, mark: str, image: Mapping[str, Any]) -> None:
        super().create(kernel, name, spec, mark, image)
        for address in spec.deprecated:
            kernel.add_guest_address(name, address)
        docker_user.put(kernel, mark, docker_user.within(name))

    def change(self, kernel: Kernel, name: str, spec: Bridge, found: Bridge, mark: str) -> None:
        alias = kernel.links[name].alias
        if alias.startswith("overlay:") and alias != mark:  # an undo gives it back to whoever made it
            docker_user.remove(kernel, alias)
        if mark.startswith("overlay:") and alias != mark:
            # Made by hand it takes MTU and MAC address of its ports, until each is set; nothing is lost by a larger
            # MTU for a moment.
            kernel.set_link(name, mtu=found.mtu + (1 if found.mtu < _MTU_MOST else -1), mac=found.mac)
            kernel.set_link(name, mtu=found.mtu, mac=None)
        super().change(kernel, name, spec, found, mark)
        known = not spec.mac.startswith(fields.OF) and not found.mac.startswith(fields.OF)
        # One that somebody else made keeps what it has.
        if alias == mark and known and found.up and (spec.mac, spec.link_local) != (found.mac, found.link_local):
            # The kernel makes one when the device comes up, and keeps it for good. A router is known by it.
            was, now = map(fields.link_local_of, (found.mac, spec.mac))
            kernel.replace_link_local(name, was, now if spec.link_local else None)
        for address in spec.deprecated:
            kernel.add_guest_address(name, address)
        for address in found.deprecated.keys() & spec.addresses.keys() - spec.deprecated.keys():
            kernel.prefer_address(name, address)
        docker_user.put(kernel, mark, docker_user.within(name))

    def delete(self, kernel: Kernel, name: str, mark: str) -> None:
        super().delete(kernel, name, mark)
        docker_user.remove(kernel, mark)


KIND = BridgeKind()
