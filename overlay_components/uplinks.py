"""The hosts' own NICs in a segment's bridges: whose network it then is, and what must not meet there.

By `mode` the segment is the hosts' own (`nat`), the network that the hosts are in (`host`), or one that they only
pass on (`external`). A NIC of `uplinks` leads to a network that others run; one of `extraHosts` to machines that
this segment serves, as it does containers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from overlay_agent.fields import OF
from overlay_agent.kinds import Spec
from overlay_agent.kinds.uplink import HOST, PORT, PREFIX, Uplink
from overlay_components import tunnel
from overlay_components.tunnel import End

if TYPE_CHECKING:
    from overlay_components.bridge import BridgeOptions
    from overlay_components.config import Segment

NAT, EXTERNAL = "nat", "external"
MODES = (NAT, HOST, EXTERNAL)


@dataclasses.dataclass(frozen=True)
class Uplinks:
    """The NICs of one segment whose bridges are ours. Errors are added to `wrong`."""

    #: The segment's place in the stack file.
    where: str
    options: Segment
    bridge: BridgeOptions
    #: The bridge's name.
    name: str
    hosts: Sequence[str]
    #: (place, host) -> whether it is one of the segment's; adds an error when it is not.
    is_member: Callable[[str, str], bool]
    wrong: list[str]

    @property
    def moves(self) -> Mapping[str, str]:
        """The NICs whose addresses go to the bridge, by host."""
        return self.bridge.uplinks if self.bridge.mode == HOST else {}

    @property
    def nics(self) -> list[tuple[str, str, str]]:
        """All of them: the place in the stack file, the host, the NIC."""
        where = f"{self.where}.bridge"
        return [
            (f"{where}.{key}.{host}", host, nic)
            for key, nics in (("uplinks", self.bridge.uplinks), ("extraHosts", self.bridge.extra_hosts))
            for host, nic in nics.items()
        ]

    def check(self) -> None:
        """What contradicts itself in the keys."""
        where, mode = f"{self.where}.bridge", self.bridge.mode
        for place, host, _ in self.nics:
            self.is_member(place, host)
        if mode == NAT and self.bridge.uplinks:
            self.wrong.append(
                f"{where}.uplinks: stands beside mode: {NAT}, in which the host is the gateway and its NIC stays its "
                f"own; write mode: {HOST} (the NIC's addresses move to the bridge), mode: {EXTERNAL} (a router outside "
                "serves the segment), or extraHosts for a NIC behind which the segment has more machines"
            )
        if mode != NAT and not self.bridge.uplinks:
            first = self.hosts[0] if self.hosts else "a"
            self.wrong.append(f"{where}.uplinks: missing; mode: {mode} needs a NIC, such as uplinks: {{{first}: eth0}}")
        if mode != NAT and self.options.dhcp:
            self.wrong.append(
                f"{self.where}.dhcp: the network behind the uplinks has a DHCP server and a router of its own (mode: "
                f"{mode}); leave it out, or write mode: {NAT} without uplinks"
            )
        if self.moves and getattr(self.bridge, "stp", False):
            self.wrong.append(
                f"{where}.stp: true, with mode: {HOST}; a port with spanning tree is silent for twice forwardDelay, "
                "and the host could not be reached; leave it out"
            )

    def refuses_address(self, where: str, host: str) -> bool:
        """Whether that host can have no address of ours on the bridge; adds the error."""
        if self.bridge.mode == EXTERNAL:
            self.wrong.append(f"{where}: mode: {EXTERNAL}, in which hosts have no address on the bridge; leave it out")
        elif host in self.moves:
            self.wrong.append(
                f"{where}: the bridge gets the addresses of {self.moves[host]} there (mode: {HOST}); leave it out"
            )
        else:
            return False
        return True

    def joined(self, graph: dict[str, set[str]]) -> None:
        """Adds to the tunnels' graph what the networks outside join, after looking for loops (rule 12)."""
        with_nic = list(dict.fromkeys(host for _, host, _ in self.nics if host in self.hosts))
        if self.bridge.separate_lans:
            return
        for number, host in enumerate(with_nic):
            ring = tunnel.reached(graph, host) & set(with_nic[:number])
            if ring and not getattr(self.bridge, "stp", False):
                other = min(ring, key=with_nic.index)
                stp = "" if self.moves else f" set {self.where}.bridge.stp: true,"
                self.wrong.append(
                    f"{self.where}.bridge: would loop if the NICs of {other} and {host} are on one LAN, since tunnels "
                    f"join these hosts too; leave one of the NICs or the tunnel out,{stp} or write separateLans: true "
                    "if each is on a LAN of its own"
                )
                return
        uplinked = [host for host in self.bridge.uplinks if host in self.hosts]
        for one, other in itertools.pairwise(uplinked):
            graph.setdefault(one, set()).add(other)
            graph.setdefault(other, set()).add(one)

    def warning(self, size: int, hosts: Sequence[End], *, tunnelled: bool) -> str:
        """What machines outside have to know of the MTU; empty: nothing."""
        if not tunnelled or self.options.mtu is not None:
            return ""
        for host in hosts:
            nic = self.bridge.uplinks.get(host.name) or (
                None if self.options.dhcp else self.bridge.extra_hosts.get(host.name)
            )
            if nic and host.mtu and size < host.mtu:
                return (
                    f"{self.where}: machines behind {nic} of {host.name} may send packets of {host.mtu} bytes, and the "
                    f"tunnels carry {size}; set the MTU of those that talk through the tunnels to {size}, and write "
                    f"{self.where}.mtu: {size} to say so"
                )
        return ""

    def of_bridge(self, host: End) -> dict[str, Any]:
        """What the bridge on that host has of the NIC that it stands for."""
        nic = self.moves.get(host.name)
        return {"mac": f"{OF}{nic}", "mtu": host.mtu} if nic else {}

    def services(self, host: str) -> Iterator[tuple[str, Spec, str]]:
        """Each NIC's service on the host, with its place in the stack file."""
        for place, at, nic in self.nics:
            if at == host:
                mode = HOST if self.moves.get(host) == nic else PORT
                yield f"{PREFIX}{nic}", Uplink(bridge=self.name, mode=mode), place


def without_moved(ends: Mapping[str, End], segments: Mapping[str, Segment], me: str) -> dict[str, End]:
    """The ends as tunnels of segment `me` see them: where a NIC's addresses move to a bridge, the underlay's device
    is that bridge; for the bridge's own tunnels, which cannot be upon it and in it, what leads to the peers."""
    out = dict(ends)
    for name, segment in segments.items():
        options = segment.bridge
        if options is None or options.mode != HOST:
            continue
        for host, nic in options.uplinks.items():
            if host in out and out[host].device == nic:
                device = None if name == me else options.name or f"br-{name}"
                out[host] = dataclasses.replace(out[host], device=device)
    return out
