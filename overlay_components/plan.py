"""From what was declared to what each host shall have: pure, all at once, nothing asked of anybody.

Everything that can only be seen across hosts is checked here, before any host is contacted: who
has which address, whether the tunnels loop, what they carry, and what would stand twice on a host.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import ipaddress
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from typing_extensions import NotRequired

from overlay_agent import document, fields
from overlay_agent.diff import NAMED, summary
from overlay_agent.document import Document, Owner
from overlay_agent.kinds import KINDS, Device, Spec
from overlay_agent.kinds.firewall import Firewall
from overlay_agent.kinds.host_guard import HostGuard
from overlay_agent.kinds.hub_guard import HubGuard
from overlay_agent.kinds.self_heal import SelfHeal
from overlay_agent.kinds.uplink import PREFIX
from overlay_components import (
    addressing,
    bridge,
    encryption,
    errors,
    evpn,
    model,
    mtu,
    names,
    rollout,
    routing,
    snippets,
    tunnel,
)
from overlay_components.addressing import Book, Span
from overlay_components.anycast import Anycast, GatewayOptions
from overlay_components.config import TUNNELS, Config, Segment
from overlay_components.errors import ConfigErrors
from overlay_components.foreign_bridge import ForeignBridge
from overlay_components.lock import Lock, updated
from overlay_components.secrets import NO_DIGITS, Secrets
from overlay_components.tunnel import Attachment, End, Tunnel
from overlay_components.uplinks import Uplinks, without_moved

#: Of DHCP and DHCPv6.
_DHCP_PORTS = (67, 547)


class ContainerRow(TypedDict):
    """One line of the IP plan."""

    segment: str
    name: str
    host: str
    #: One of config.RUNTIMES.
    runtime: str
    #: Its name on the host; `docker:NETWORK` where Docker chose it, on each host another.
    bridge: str
    #: With its subnet's prefix length; null in a segment without subnets.
    address: str | None
    mac: str
    gateway: str | None
    mtu: int
    #: The Docker network to plug it into, where the bridge is Docker's.
    network: NotRequired[str]
    #: What to paste for the container's runtime, where that is said; in the row of the first of its segments by name.
    paste: NotRequired[str]


class TunnelRow(TypedDict):
    """What the outputs say about a tunnel. `more`: what its kind adds, such as the VNIs."""

    kind: str
    topology: str
    ends: list[str]
    #: The active one and the standby, where there are two.
    hubs: NotRequired[list[str]]
    more: dict[str, Any]


class SegmentRow(TypedDict):
    """What the outputs say about a segment."""

    mtu: int
    #: As in ContainerRow; null: there is none.
    bridge: str | None
    hosts: list[str]
    subnets: list[str]
    addresses: dict[str, list[str]]
    #: Null also where each host is that of its own containers (docker.create).
    gateway: str | None
    #: The gateway's MAC address, where it is the same on all hosts.
    anycast: NotRequired[str]
    tunnels: dict[str, TunnelRow]
    dhcp: NotRequired[routing.DhcpRow]
    #: wireguard, where the tunnels are encrypted.
    encryption: NotRequired[str]


class Rule(TypedDict):
    """What a packet filter must let in. Without peers: from anywhere."""

    protocol: str
    #: A range of them as text; null where the protocol has none.
    port: int | str | None
    peers: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All documents of an environment, and what its outputs tell. Everything but `devices` is plain JSON data."""

    #: By host; without "machine", which only the running program knows.
    documents: dict[str, dict[str, Any]]
    #: The specs in the documents, by host and interface name.
    devices: dict[str, dict[str, Device]]
    segments: dict[str, SegmentRow]
    #: The IP plan, by segment and container.
    containers: dict[str, dict[str, ContainerRow]]
    #: By host and rule.
    underlay_rules: dict[str, dict[str, Rule]]
    warnings: tuple[str, ...]

    def with_keys(self, keys: Mapping[str, str]) -> Plan:
        """The same with the hosts' public keys, which only the running program knows, in their places."""
        documents = {host: encryption.with_keys(raw, keys) for host, raw in self.documents.items()}
        devices = {
            host: {name: encryption.spec_with_keys(spec, keys) for name, spec in specs.items()}
            for host, specs in self.devices.items()
        }
        return dataclasses.replace(self, documents=documents, devices=devices)

    def hosts(self, *, all_peers: bool = False) -> dict[str, dict[str, Any]]:
        """For the stack's outputs: each host's devices, and what must reach it through packet filters. Of many peers
        only how many there are, unless `all_peers`."""
        return {
            # In a line each: Pulumi prints all outputs after every run, and the documents have the rest.
            host: {
                "devices": {name: summary(spec) for name, spec in devices.items()},
                "underlayRules": {
                    name: _rule_row(rule, all_peers) for name, rule in self.underlay_rules.get(host, {}).items()
                },
            }
            for host, devices in self.devices.items()
        }


def _rule_row(rule: Rule, all_peers: bool) -> dict[str, Any]:
    """Of 1,000 hosts that all hear each other the addresses would be a million, in each state and each answer."""
    row = {"protocol": rule["protocol"], "port": rule["port"]}
    if all_peers or len(rule["peers"]) <= NAMED:
        return {**row, "peers": dict(rule["peers"])}
    return {**row, "peerCount": len(rule["peers"])}


def make_plan(config: Config, owner: Owner, lock: Lock | None = None, secrets: Secrets | None = None) -> Plan:
    """The plan of a checked configuration. `lock`: the addresses of containers that say none. `secrets` makes the
    references to secret values and gets the values; none are in the plan. Raises ConfigErrors with everything that
    does not fit together."""
    return _Planner(config, owner, lock or {}, secrets or Secrets()).plan()


def make_lock(config: Config, owner: Owner, lock: Lock, *, prune: bool = False) -> Lock:
    """The lock with an address for every container that needs one: what it has stays, unless no subnet holds it any
    more; the rest get the lowest that are free. `prune` drops what no container needs. Raises ConfigErrors as
    make_plan does."""
    planner = _Planner(config, owner, lock, Secrets(), choose=True)
    planner.plan()
    wanted = {
        name: [c for c, options in segment.containers.items() if options.address is None]
        for name, segment in config.segments.items()
    }
    return updated(lock, planner.chosen, wanted, prune=prune)


@dataclasses.dataclass(frozen=True)
class _Made:
    """A device, and the key of the stack file that made it."""

    where: str
    spec: Device
    claims: Mapping[tunnel.Claim, str]


@dataclasses.dataclass
class _Members:
    """A segment with its hosts and tunnels looked up."""

    name: str
    where: str
    options: Segment
    hosts: list[End]
    tunnels: list[Tunnel]
    #: What stands on the hosts: the bridge's name, or None.
    bridge: str | None
    #: Where the bridge is not this stack's.
    foreign: ForeignBridge | None = None
    #: Where it is, with the NICs that are its ports.
    uplinks: Uplinks | None = None

    @functools.cached_property
    def host_names(self) -> list[str]:
        return [host.name for host in self.hosts]

    @property
    def with_hubs(self) -> list[Tunnel]:
        """The tunnels with two hubs, of which there may be one."""
        return [one for one in self.tunnels if one.two_hubs]

    @functools.cached_property
    def members(self) -> frozenset[str]:
        """The same to look names up in."""
        return frozenset(self.host_names)


class _Planner:
    def __init__(
        self, config: Config, owner: Owner, lock: Lock, secrets: Secrets, *, choose: bool = False
    ) -> None:
        self.config, self.owner, self.lock, self.secrets = config, owner, lock, secrets
        #: Whether containers without an address get one. What they got, by segment and container.
        self.choose = choose
        self.chosen: dict[str, dict[str, str]] = {name: {} for name in config.segments}
        self.ends = config.ends()
        self.wrong: list[str] = []
        self.warnings: list[str] = []
        self.made: dict[str, dict[str, _Made]] = {name: {} for name in config.hosts}
        #: What is no device, by host and name.
        self.services: dict[str, dict[str, Spec]] = {name: {} for name in config.hosts}
        #: (earlier place, later place, what is wrong) -> the hosts on which it is.
        self.clashes: dict[tuple[str, str, str], list[str]] = collections.defaultdict(list)
        #: By host and what is claimed: the first claim's value and place.
        self.claims: dict[str, dict[Any, tuple[Any, str]]] = {name: {} for name in config.hosts}
        #: By host: devices that are taken over where they are there already.
        self.adopt: dict[str, set[str]] = {name: set() for name in config.hosts}
        #: By host and name: bridges that are not this stack's, and the places that name them.
        self.foreign: dict[str, dict[str, str]] = {name: {} for name in config.hosts}
        #: By host and service: the place that names the NIC.
        self.nics: dict[str, dict[str, str]] = {name: {} for name in config.hosts}
        self.rules: dict[str, dict[str, Rule]] = {name: {} for name in config.hosts}
        #: The same for the host's own firewall, by device: it can tell apart what shares a port.
        self.allowed: dict[str, dict[str, Any]] = {name: {} for name in config.hosts}
        self.encryption = encryption.Encryption(config, owner.label, secrets, self.wrong)
        self.evpn = evpn.Controlled(config, self.ends, secrets)
        self.routing = routing.Routing(config, owner.label, self.ends, self.services, self.wrong)

    def plan(self) -> Plan:
        self._check_hosts()
        rollout.check(self.config.rollout, self.config.hosts, self.wrong)
        runtimes = self._runtimes()
        segments = [self._members(name, options) for name, options in self.config.segments.items()]
        self._number(segments)
        rows: dict[str, SegmentRow] = {}
        containers: dict[str, dict[str, ContainerRow]] = {}
        for segment in segments:
            rows[segment.name], containers[segment.name] = self._segment(segment, runtimes)
        self.wrong += addressing.overlaps(
            (f"{segment.where}.subnets[{number}]", ipaddress.ip_network(subnet), frozenset(segment.host_names))
            for segment in segments
            for number, subnet in enumerate(segment.options.subnets)
        )
        self._encrypt()
        self._control()
        self._check_names()
        self._check_macs()
        self._check_service_ports()
        self.routing.finish(self.made, self.rules)
        self._warn_of_peers(segments)
        self.wrong += [
            f"{later}: {why.format(hosts=errors.listed(hosts), earlier=earlier)}"
            for (earlier, later, why), hosts in self.clashes.items()
        ]
        if self.wrong:
            raise ConfigErrors(list(dict.fromkeys(self.wrong)))
        _add_snippets(containers, rows)
        devices = {host: {name: made.spec for name, made in made.items()} for host, made in self.made.items()}
        return Plan(
            {host: self._document(host, specs) for host, specs in devices.items()},
            devices,
            rows,
            containers,
            self.rules,
            tuple(self.warnings),
        )

    def _document(self, host: str, devices: dict[str, Device]) -> dict[str, Any]:
        rows = self.allowed[host].items() if self.config.open_firewall else ()
        allowed = {name: {**row, "peers": dict(row["peers"])} for name, row in rows}
        firewall = {"firewall": Firewall(allow=allowed)} if allowed else {}
        services = {**self.services[host], **firewall}
        adopt = frozenset(self.adopt[host])
        probe = bool(self.config.rollout and self.config.rollout.probe)
        return document.to_json(
            Document(
                self.owner,
                host,
                devices=devices,
                services=services,
                adopt=adopt,
                probe=probe,
                install_packages=self.config.install_packages and bool(services),
            )
        )

    # -- hosts and segments ------------------------------------------------------------------

    def _check_hosts(self) -> None:
        seen: dict[tuple[str, int | None], str] = {}
        for name, host in self.config.resolved_hosts().items():
            place = f"hosts.{name}"
            if host.self_heal:
                self.services[name][SelfHeal.KIND] = SelfHeal()
            other = seen.setdefault((host.address, host.port), name)
            if other != name and names.known(host.address):
                self.wrong.append(f"{place}.address: {host.address} is host {other}'s too; each host has its own")
                # Told here: no check of the tunnels shall tell it again.
                told = names.Placeholder(host.address)
                self.ends[name] = dataclasses.replace(self.ends[name], address=told, local=told)
            versions = {
                ipaddress.ip_address(a).version for a in (host.underlay_address, host.underlay_local) if names.known(a)
            }
            if len(versions) > 1:
                self.wrong.append(
                    f"{place}.underlay.local: {host.underlay_local} is of another IP version than the address that "
                    f"others send to, {host.underlay_address}; give both of one version"
                )
                self.ends[name] = dataclasses.replace(self.ends[name], local=host.underlay_address)
        for name in self.config.peers.keys() & self.config.hosts.keys():
            self.wrong.append(f"peers.{name}: {name!r} is a host too; give the peer another name")

    def _warn_of_peers(self, segments: Iterable[_Members]) -> None:
        used = {end for segment in segments for one in segment.tunnels for end in one.ends}
        used |= self.evpn.reflectors.keys()
        if not self.wrong:
            self.warnings += [
                f"peers.{name}: no tunnel has this end; name it in a tunnel's endpoints, or leave it out"
                for name in self.config.peers
                if name not in used
            ]

    def _members(self, name: str, options: Segment) -> _Members:
        where = f"segments.{name}"
        members: dict[str, None] = {}  # in this order, and each looked up at once
        for number, host in enumerate(options.hosts if options.hosts is not None else self.config.hosts):
            if host not in self.ends:
                near = errors.instead(host, self.ends)
                self.wrong.append(f"{where}.hosts[{number}]: unknown host {host!r}; {near}")
            elif host in members:
                self.wrong.append(f"{where}.hosts[{number}]: {host!r} stands twice; name each host once")
            else:
                members[host] = None
        if options.hosts == []:
            self.wrong.append(f"{where}.hosts: empty; name hosts, or leave the key out for all of them")
        ends = without_moved(self.ends, self.config.segments, name)
        tunnels = [
            tunnel.resolve(f"{where}.tunnels.{key}", name, TUNNELS[o.kind], o, members, ends, self.wrong)
            for key, o in options.tunnels.items()
        ]
        encrypted = self.encryption.of(options) != encryption.NONE
        for number, one in enumerate(tunnels):
            if one and encrypted:
                tunnels[number] = self.encryption.inside(one)
            elif one:
                self.encryption.plain(one)
                self.evpn.note(one, bridged=options.bridge is not None)
        hosts = [self.ends[host] for host in members if self.ends[host].managed]
        bridge_name = None if options.bridge is None else bridge.name_of(name, options.bridge)
        made = _Members(name, where, options, hosts, [t for t in tunnels if t], bridge_name)
        if options.bridge is not None and (options.bridge.attach or options.bridge.docker):
            made.foreign = ForeignBridge(
                name,
                where,
                options,
                options.bridge,
                made.host_names,
                lambda place, host: self._is_member(place, host, made),
                self.wrong,
            )
        elif options.bridge is not None:
            made.uplinks = Uplinks(
                where,
                options,
                options.bridge,
                bridge_name or "",
                made.host_names,
                lambda place, host: self._is_member(place, host, made),
                self.wrong,
            )
        return made

    def _number(self, segments: Sequence[_Members]) -> None:
        """Gives the tunnels the numbers that depend on all of them."""
        tunnels = [one for segment in segments for one in segment.tunnels]
        ports: dict[str, set[int]] = collections.defaultdict(set)
        for one in tunnels:
            for end, said in one.kind.udp_ports(one).items():
                ports[end] |= said
        numbers: dict[str, Mapping[Any, Any]] = {}
        for kind in TUNNELS.values():
            mine = [one for one in tunnels if one.kind is kind]
            numbers.update(kind.numbers(mine, self.owner.label, ports) if mine else {})
        for segment in segments:
            segment.tunnels = [
                dataclasses.replace(one, numbers=numbers.get(one.where, one.numbers)) for one in segment.tunnels
            ]

    def _segment(self, segment: _Members, runtimes: Mapping[str, str]) -> tuple[SegmentRow, dict[str, ContainerRow]]:
        options, where = segment.options, segment.where
        self._check_shape(segment)
        subnets = [ipaddress.ip_network(subnet) for subnet in options.subnets]
        versions: set[int] = {subnet.version for subnet in subnets}
        size = options.mtu or 0
        if segment.hosts:
            budget = mtu.smallest(segment.tunnels, segment.hosts)
            size = mtu.check(where, options.mtu, budget, bool(segment.tunnels), versions, self.wrong)
        warning = segment.uplinks and segment.uplinks.warning(size, segment.hosts, tunnelled=bool(segment.tunnels))
        self.warnings += [warning] if warning else []
        foreign = segment.foreign
        book = Book(where, subnets, self.wrong)
        if segment.uplinks and segment.uplinks.moves:
            # The hosts are in that network themselves.
            known = {ipaddress.ip_address(end.address): end for end in self.ends.values() if names.known(end.address)}
            book.holders.update({a: f"host {end.name}" for a, end in known.items() if any(a in net for net in subnets)})
        addresses = self._addresses(segment, book)
        anycast = self._anycast(segment, book)
        router = routing.Router(self.routing, segment.name, options, segment.host_names, segment.bridge, anycast)
        router.settle(addresses, book, lambda place, host: self._is_member(place, host, segment))
        if addresses or anycast or (foreign and foreign.routes):
            self._check_underlay(segment, book)
        gateways = anycast.gateways if anycast else foreign.gateways(book) if foreign else None
        if gateways is None:
            gateways = self._gateways(segment, book, addresses, router.gateway)
        for number, address in enumerate(options.reserved):
            book.enter(f"{where}.reserved[{number}]", f"reserved[{number}]", address)
        containers = self._containers(segment, book, gateways, size, runtimes, router)
        dhcp = router.services(addresses, gateways, containers, book, self.lock.get(segment.name, {}), size)
        self._add_bridge(segment, addresses, size, anycast)
        tunnels = self._tunnels(segment, addresses, size)
        self.evpn.tells(segment.tunnels, () if anycast or foreign else addresses)
        if anycast:
            self._add_anycast(segment, anycast)
        if options.isolate_host:
            self._isolate(segment, router)
        if foreign:
            foreign.finish(book, addresses, self.lock.get(segment.name, {}).values(), containers.values())
            self._add_foreign(segment, foreign, addresses, gateways, size)
        row = SegmentRow(
            mtu=size,
            bridge=segment.bridge,
            hosts=segment.host_names,
            subnets=list(options.subnets),
            addresses=addresses,
            gateway=next(iter(gateways.values()), None),
            tunnels=tunnels,
        )
        if anycast and anycast.addresses:
            row["anycast"] = anycast.mac
        if dhcp is not None:
            row["dhcp"] = dhcp
        if any(end.encryption for one in segment.tunnels for end in one.ends.values()):
            row["encryption"] = encryption.WIREGUARD
        return row, containers

    def _anycast(self, segment: _Members, book: Book) -> Anycast | None:
        """The gateway that each host is, where there is one."""
        if not isinstance(segment.options.gateway, GatewayOptions):
            return None
        made = Anycast(segment.where, segment.options, segment.bridge, self.owner.label, segment.name)
        made.settle(book, segment.foreign.owner if segment.foreign else None, self.wrong)
        key = next((f"{one.where}.hubs" for one in segment.with_hubs), None)
        if getattr(segment.options.bridge, "stp", False):
            key = f"{segment.where}.bridge.stp"
        if key:
            self.wrong.append(
                f"{made.where}: anycast, but spanning tree ({key}) tells bridges apart by their MAC addresses, and "
                "these have one; leave one of them out"
            )
        peers = sorted({name for one in segment.tunnels for name, end in one.ends.items() if not end.managed})
        if peers and made.addresses:
            self.warnings.append(
                f"{made.where}: anycast, so nobody behind {errors.listed(peers)} reaches it; give them another gateway "
                "there"
            )
        return made

    def _check_shape(self, segment: _Members) -> None:
        """Loops, islands, and what `bridge: none` needs."""
        where, options = segment.where, segment.options
        # Without a bridge nothing is handed on, so nothing loops.
        stp = options.bridge is None or bool(getattr(options.bridge, "stp", False))
        stp_key = None if segment.foreign else f"{where}.bridge.stp"
        graph = tunnel.loops(segment.tunnels, stp, stp_key, self.wrong)
        tunnel.split(segment.tunnels, self.wrong)
        for one in segment.with_hubs:
            self._check_hubs(segment, one)
        self.warnings += [one.hint for one in segment.tunnels if one.hint]
        if segment.uplinks:
            segment.uplinks.check()
            segment.uplinks.joined(graph)
        if segment.hosts and len(segment.tunnels) == len(options.tunnels):
            alone = set(segment.host_names) - tunnel.reached(graph, segment.hosts[0].name)
            if alone:
                self.warnings.append(
                    f"{where}: no tunnel joins {errors.listed(sorted(alone))} with {segment.hosts[0].name}; "
                    "add a tunnel with these ends"
                )
        if segment.bridge is not None:
            if fields.BridgeName().check(segment.bridge):
                self.wrong.append(f"{where}.bridge.name: {tunnel.too_long(segment.bridge, 'bridge.name')}")
            if segment.foreign:
                segment.foreign.check()
            return
        if len(options.tunnels) != 1:
            self.wrong.append(
                f"{where}.bridge: none, with {len(options.tunnels)} tunnels; without a bridge a segment has one"
            )
        for one in segment.tunnels:
            count = collections.Counter(end for pair in one.pairs.values() for end in pair)
            if any(n > 1 and one.ends[end].managed for end, n in count.items()):
                most = max(count, key=lambda end: count[end])
                way = "two ends" if one.kind.pairwise else "two ends, or topology: mesh"
                self.wrong.append(
                    f"{where}.bridge: none, but {one.where} makes several devices on {most}; "
                    f"without a bridge a host has one: {way}"
                )
        if options.containers:
            self.wrong.append(f"{where}.containers: there is no bridge to plug them into; leave out bridge: none")

    def _check_hubs(self, segment: _Members, one: Tunnel) -> None:
        """Two hubs need spanning tree on a bridge that is ours alone."""
        bridge, where = segment.options.bridge, f"{segment.where}.bridge"
        if bridge is None:
            return  # told: a host has one device then
        said = bridge.model_fields_set
        if segment.foreign:
            key = "attach" if bridge.attach else "docker"
            self.wrong.append(
                f"{one.where}.hubs: two need spanning tree, and {where}.{key} is a bridge on which the stack sets "
                f"none; write hub: {one.hubs[0]}"
            )
        elif "stp" in said and not getattr(bridge, "stp", False):
            self.wrong.append(f"{where}.stp: false, but {one.where}.hubs needs spanning tree; leave it out")
        if "priority" in said:
            self.wrong.append(
                f"{where}.priority: {getattr(bridge, 'priority', '')}, but {one.where}.hubs says which bridge is the "
                "root; leave it out"
            )
        nics = {"uplinks": bridge.uplinks, "extraHosts": bridge.extra_hosts}
        self.wrong += [
            f"{where}.{key}: beside {one.where}.hubs, whose spanning tree would meet that of the network outside; "
            f"write hub: {one.hubs[0]}, or leave the NICs out"
            for key, named in nics.items()
            if named
        ]
        if one is not segment.with_hubs[0]:
            self.wrong.append(
                f"{one.where}.hubs: {segment.with_hubs[0].where} has hubs too, and a segment has one root; give one of "
                "them a single hub"
            )

    # -- addresses ---------------------------------------------------------------------------

    def _addresses(self, segment: _Members, book: Book) -> dict[str, list[str]]:
        out: dict[str, list[str]] = {}
        for host, texts in segment.options.addresses.items():
            where = f"{segment.where}.addresses.{host}"
            if not self._is_member(where, host, segment):
                continue
            refuses = segment.foreign.refuses_address(where) if segment.foreign else False
            if refuses or (segment.uplinks and segment.uplinks.refuses_address(where, host)):
                continue
            entered = (book.enter(where, f"host {host}", text) for text in texts)
            out[host] = [address for address in entered if address is not None]
            if len(set(out[host])) < len(out[host]):
                self.wrong.append(f"{where}: an address stands twice; write it once")
        return out

    def _check_underlay(self, segment: _Members, book: Book) -> None:
        """An address in a subnet makes a route to it; the underlay, and SSH, would be sent into the tunnel."""
        for end in self.ends.values():
            if not names.known(end.address):
                continue
            address = ipaddress.ip_address(end.address)
            inside = next((subnet for subnet in book.subnets if address in subnet), None)
            if inside:
                self.wrong.append(
                    f"{segment.where}.subnets: {inside} holds {end.name}'s underlay address {address}, which the hosts "
                    "would then look for inside the overlay; take another subnet"
                )
                return

    def _is_member(self, where: str, host: str, segment: _Members) -> bool:
        if host not in self.config.hosts:
            self.wrong.append(
                f"{where}: unknown host {errors.shown(host)}; {errors.instead(host, self.config.hosts)}"
            )
        elif host not in segment.members:
            self.wrong.append(
                f"{where}: host {host!r} is not in segment {segment.name}; add it to {segment.where}.hosts"
            )
        return host in segment.members

    def _gateways(
        self, segment: _Members, book: Book, addresses: Mapping[str, list[str]], value: str
    ) -> dict[int, str]:
        """The gateway by IP version. A container's is not known yet: see _gateway_container."""
        where = f"{segment.where}.gateway"
        if value == "none":
            return {}
        try:
            ipaddress.ip_address(value)
        except ValueError:
            if isinstance(value, names.Placeholder):
                return {net.version: value for net in book.subnets}
            if value in segment.options.containers:
                if value in self.config.hosts:
                    self.wrong.append(f"{where}: {value!r} is a host and a container; give the address")
                return {}
            if not self._is_member(where, value, segment):
                return {}
            if not addresses.get(value):
                self.wrong.append(
                    f"{where}: host {value!r} has no address in the segment; add {segment.where}.addresses.{value}"
                )
            known = [ipaddress.ip_interface(a) for a in reversed(addresses.get(value, [])) if names.known(a)]
            return dict(sorted((a.version, str(a.ip)) for a in {a.version: a for a in known}.values()))
        found = book.find(where, value)
        if found is None:
            return {}
        return {found[0].version: str(found[0])}

    def _containers(
        self,
        segment: _Members,
        book: Book,
        gateways: dict[int, str],
        size: int,
        runtimes: Mapping[str, str],
        router: routing.Router,
    ) -> dict[str, ContainerRow]:
        out: dict[str, ContainerRow] = {}
        macs: dict[str, str] = {}
        for gateway in filter(names.known, gateways.values()):
            book.holders.setdefault(ipaddress.ip_address(gateway), "the gateway")
        spans = [*router.spans, *(segment.foreign.spans if segment.foreign else ())]
        addresses = self._container_addresses(segment, book, spans)
        gateways.update(self._gateway_container(segment, addresses))
        for name, container in segment.options.containers.items():
            where = f"{segment.where}.containers.{name}"
            address = addresses[name]
            self._is_member(f"{where}.host", container.host, segment)
            mac = container.mac or names.mac(self.owner.label, segment.name, name)
            other = macs.setdefault(mac, name)
            if other != name and names.known(mac):
                self.wrong.append(f"{where}.mac: {mac} is container {other}'s too; take another, or leave it out")
            version = ipaddress.ip_interface(address).version if names.known(address) and address else None
            out[name] = ContainerRow(
                segment=segment.name,
                name=name,
                host=container.host,
                runtime=runtimes[name],
                bridge=segment.bridge or "",
                address=address,
                mac=mac,
                gateway=gateways.get(version) if version else next(iter(gateways.values()), None),
                mtu=size,
            )
        return out

    def _gateway_container(self, segment: _Members, addresses: Mapping[str, str | None]) -> dict[int, str]:
        """The gateway by IP version, where it is a container of the segment."""
        said = segment.options.gateway
        address = addresses.get(said) if isinstance(said, str) else None
        if address is None or said in self.config.hosts:
            return {}
        if not names.known(address):
            return {ipaddress.ip_network(subnet).version: address for subnet in segment.options.subnets}
        found = ipaddress.ip_interface(address)
        return {found.version: str(found.ip)}

    def _container_addresses(
        self, segment: _Members, book: Book, spans: Sequence[Span]
    ) -> dict[str, str | None]:
        """First what is said, then what is locked, and only then what is left: so nobody's address is taken. `spans`
        are given to whoever asks, by DHCP or Docker."""
        out: dict[str, str | None] = dict.fromkeys(segment.options.containers)
        unsaid: list[str] = []
        for name, container in segment.options.containers.items():
            if container.address is not None:
                where = f"{segment.where}.containers.{name}.address"
                out[name] = book.enter(where, f"container {name}", container.address)
            elif book.subnets:
                unsaid.append(name)
        locked = self.lock.get(segment.name, {})
        kept = [name for name in unsaid if name in locked and self._enter_locked(segment, book, name, out)]
        left = [name for name in unsaid if name not in kept]
        # Also those of containers that are gone: they may come back.
        free = book.free({ipaddress.ip_address(text) for text in locked.values()}, spans)
        subnets = errors.listed(map(str, book.subnets))
        for name in left:
            where = f"{segment.where}.containers.{name}.address"
            address = next(free, None) if self.choose else None
            if address is not None:
                self.chosen[segment.name][name] = str(address)
                out[name] = book.enter(where, f"container {name}", str(address))
            elif self.choose:
                giver = "dhcp.range" if segment.options.dhcp else "bridge.docker.ranges"
                outside = f" outside of what {giver} gives out" if spans else ""
                self.wrong.append(
                    f"{where}: none is free in {subnets}{outside}; add a subnet, or run overlay lock --prune"
                )
            elif name not in locked:
                self.wrong.append(f"{where}: missing and not locked; run overlay lock, or give an address in {subnets}")
        return out

    def _enter_locked(self, segment: _Members, book: Book, name: str, out: dict[str, str | None]) -> bool:
        """Whether the container's locked address is one of the segment's."""
        where = f"{segment.where}.containers.{name}.address"
        address = ipaddress.ip_address(self.lock[segment.name][name])
        subnet = next((net for net in book.subnets if address in net), None)
        if subnet is None or addressing.special(address, subnet):
            if not self.choose:
                there = errors.listed(map(str, book.subnets))
                self.wrong.append(
                    f"{where}: locked as {address}, which is no container's address in {there}; run overlay lock, "
                    "which chooses another, or give an address"
                )
            return False
        other = book.holders.setdefault(address, f"container {name}")
        if other != f"container {name}":
            # Not chosen anew even by `overlay lock`: it may be in use.
            self.wrong.append(
                f"{where}: locked as {address}, which {other} has too; change that one, or delete "
                f"{segment.name}.{name} in the lock file and run overlay lock"
            )
        out[name] = f"{address}/{subnet.prefixlen}"
        return True

    def _runtimes(self) -> dict[str, str]:
        """What runs each container. One name is one container, also on several segments."""
        out: dict[str, str] = {}
        hosts: dict[str, tuple[str, str]] = {}
        said: dict[str, tuple[str, str]] = {}
        for segment, options in self.config.segments.items():
            for name, container in options.containers.items():
                where = f"segments.{segment}.containers.{name}"
                out.setdefault(name, "none")
                for key, value, seen in (("host", container.host, hosts), ("runtime", container.runtime, said)):
                    if value is None:
                        continue
                    first, there = seen.setdefault(name, (value, f"segments.{segment}"))
                    if value != first:
                        self.wrong.append(
                            f"{where}.{key}: {value!r}, but {first!r} in {there}; a container has one {key} in all its "
                            "segments: write the same, or give it another name"
                        )
                    elif key == "runtime":
                        out[name] = value
        return out

    # -- devices -----------------------------------------------------------------------------

    def _common(self, host: str, name: str, own: Sequence[str], size: int) -> dict[str, Any]:
        """What every device has that the stack makes; `own`: the addresses on it."""
        return {
            "mtu": size,
            "mac": self.config.hosts[host].macs.get(name) or names.mac(self.owner.label, host, name),
            "addresses": {address: {} for address in own},
            # IPv6 needs a link-local address on every interface that has another (RFC 4291, 2.1).
            "link_local": any(":" in address for address in own),
        }

    def _add_bridge(
        self, segment: _Members, addresses: Mapping[str, list[str]], size: int, anycast: Anycast | None
    ) -> None:
        if segment.bridge is None or segment.options.bridge is None or segment.foreign is not None:
            return
        for host in segment.hosts:
            own = addresses.get(host.name, [])
            values = self._common(host.name, segment.bridge, own, size)
            values.update(segment.uplinks.of_bridge(host) if segment.uplinks else {})
            values.update(anycast.of_bridge(own) if anycast else {})
            switch = bridge.device(segment.options.bridge, values)
            for one in segment.with_hubs[:1]:
                switch = bridge.with_hubs(switch, segment.options.bridge, one.hubs, host.name)
            self._add(host.name, segment.bridge, _Made(f"{segment.where}.bridge", switch, {}))
            self._adopt(host.name, segment.bridge, segment.options)
            self._add_nics(segment, host.name)

    def _add_anycast(self, segment: _Members, anycast: Anycast) -> None:
        """What keeps the gateways of the hosts apart; it stands at the ports, so all devices are there already."""
        if not anycast.addresses or segment.bridge is None:
            return
        for host in segment.host_names:
            own_mac = self._common(host, segment.bridge, [], 0)["mac"]
            ports = [device for device, made in self.made[host].items() if made.spec.bridge == segment.bridge]
            self.routing.add(host, f"anycast-{segment.name}", anycast.service(own_mac, ports), anycast.where)

    def _tunnels(
        self, segment: _Members, addresses: Mapping[str, list[str]], size: int
    ) -> dict[str, TunnelRow]:
        rows: dict[str, TunnelRow] = {}
        for one in segment.tunnels:

            def of_tunnel(at: Attachment, one: Tunnel = one) -> dict[str, Any]:
                held = [] if segment.bridge else addresses.get(at.host.name, [])
                own = self._common(at.host.name, at.device, held, size)
                isolated = one.isolates(at.host.name) and segment.bridge is not None
                return {**own, "bridge": segment.bridge, "isolated": isolated}

            specs: list[Device] = []
            wrong: dict[str, str] = {}
            secret = {
                value: f"{key}-{segment.name}-{one.name}" for key, value in model.secrets_in(one.options).items()
            }
            for at, spec in one.kind.devices(one, of_tunnel, self.wrong):
                to_check = Secrets(unknown=NO_DIGITS).refer_all(at.host.name, spec, secret) if secret else spec
                if secret:
                    spec = self.secrets.refer_all(at.host.name, spec, secret)  # noqa: PLW2901 - as it will stand
                specs.append(spec)
                for sentence in _contradictions(to_check):
                    wrong.setdefault(sentence.partition(":")[0], sentence)
                self._add(at.host.name, at.device, _Made(one.where, spec, one.kind.claims(spec)))
                self._adopt(at.host.name, at.device, segment.options)
                self._allow(at, one, spec)
            self.wrong += [f"{one.where}.{sentence}" for sentence in wrong.values()]
            rows[one.name] = TunnelRow(
                kind=one.options.kind,
                topology=one.options.topology,
                ends=list(one.ends),
                more={**one.kind.facts(one, specs), **self.evpn.facts(one)},
            )
            if one.two_hubs:
                rows[one.name]["hubs"] = list(one.hubs)
                self._guard_hubs(segment, one)
        return rows

    def _guard_hubs(self, segment: _Members, one: Tunnel) -> None:
        """On each end, that nothing passes by a port to a hub from which spanning tree is not heard. The first hub
        hears none while all is well: it is the root."""
        for end in one.hosts:
            before = one.hubs[: one.hubs.index(end.name)] if end.name in one.hubs else one.hubs
            if before:
                ports: dict[str, Any] = {one.device(end.name, hub): {} for hub in before}
                self.routing.add(end.name, f"hubs-{segment.name}", HubGuard(ports=ports), one.where)

    def _add(self, host: str, name: str, made: _Made) -> None:
        others = self.made[host]
        if name in others:
            why = f"device {name} is made on {{hosts}} by {{earlier}} too; set another {_name_key(made.where)}"
            self.clashes[others[name].where, made.where, why].append(host)
            return
        for (key, value), sentence in made.claims.items():
            first, where = self.claims[host].setdefault(key, (value, made.where))
            if (first, where) != (value, made.where) and (value is None or value != first):
                self.clashes[where, made.where, sentence].append(host)
        others[name] = made

    def _adopt(self, host: str, name: str, options: Segment) -> None:
        if options.adopt or self.config.hosts[host].adopt:
            self.adopt[host].add(name)

    def _check_macs(self) -> None:
        for host, options in self.config.hosts.items():
            made = self.made[host]
            self.wrong += [
                f"hosts.{host}.macs.{name}: unknown device {name!r}; {errors.instead(name, made)}"
                for name in options.macs
                if name not in made
            ]

    def _add_foreign(
        self,
        segment: _Members,
        foreign: ForeignBridge,
        addresses: Mapping[str, list[str]],
        gateways: Mapping[int, str],
        size: int,
    ) -> None:
        bridge_name = segment.bridge or ""
        for host in segment.host_names:
            for name in foreign.claims(bridge_name):
                first = self.foreign[host].setdefault(name, foreign.key)
                if first != foreign.key:
                    why = f"bridge {name} is used on {{hosts}} by {{earlier}} too; a bridge is one segment's"
                    self.clashes[first, foreign.key, why].append(host)
            ports = [name for name, made in self.made[host].items() if made.spec.bridge == bridge_name]
            for name, spec in foreign.services(host, addresses, gateways, ports, size):
                self.routing.add(host, name, spec, foreign.key)

    def _add_nics(self, segment: _Members, host: str) -> None:
        for name, spec, where in segment.uplinks.services(host) if segment.uplinks else ():
            first = self.nics[host].setdefault(name, where)
            if first == where:
                self.services[host][name] = spec
            else:
                nic = name[len(PREFIX) :]
                self.wrong.append(f"{where}: {nic} is named by {first} too; a NIC is a port of one bridge")

    def _check_names(self) -> None:
        """No device of ours has the name of somebody else's bridge, whichever is declared first."""
        for host, names_ in self.foreign.items():
            for name, where in names_.items():
                made = self.made[host].get(name)
                if made:
                    key = _name_key(made.where)
                    why = f"device {name} is made on {{hosts}} by {{earlier}}; set another {key} there"
                    self.clashes[made.where, where, why].append(host)
        for host, services in self.nics.items():
            for name, where in services.items():
                made = self.made[host].get(name[len(PREFIX) :])
                if made:
                    self.wrong.append(f"{where}: {name[len(PREFIX) :]} is a device that {made.where} makes; name a NIC")

    def _isolate(self, segment: _Members, router: routing.Router) -> None:
        """Keeps what is on the segment off its hosts."""
        where = f"{segment.where}.isolateHost"
        if segment.bridge is None:
            self.wrong.append(f"{where}: true, but there is no bridge to stand at; leave out bridge: none")
        elif segment.options.bridge and segment.options.bridge.attach:
            self.wrong.append(
                f"{where}: true, but {segment.bridge} is not the stack's own, and its owner's services on the host "
                "would be cut off; leave one of them out"
            )
        elif segment.uplinks and segment.uplinks.moves:
            self.wrong.append(
                f"{where}: true, with mode: host; by that bridge the host itself is reached, also by SSH, and would "
                "be cut off; leave one of them out"
            )
        else:
            subnets = [ipaddress.ip_network(subnet) for subnet in segment.options.subnets]
            for host in segment.host_names:
                ssh = self.config.hosts[host].address
                inside = next((net for net in subnets if names.known(ssh) and ipaddress.ip_address(ssh) in net), None)
                if inside:
                    self.wrong.append(
                        f"{where}: true, but {host} is reached by SSH at {ssh}, in the segment's own {inside}, and "
                        "would be cut off; reach it at another address"
                    )
                spec = HostGuard(interface=segment.bridge, allow={one: {} for one in router.heard(host)})
                self.routing.add(host, f"guard-host-{segment.name}", spec, where)

    def _encrypt(self) -> None:
        """The devices that encrypted tunnels run in, which alone the underlay sees."""
        for host, spec in self.encryption.devices().items():
            name, rule = self.encryption.device, self.encryption.rule(host)
            self._add(host, name, _Made("encryption", spec, tunnel.udp_claim(spec.listen_port)))
            self.rules[host][name] = rule
            self.allowed[host][name] = {**rule}

    def _control(self) -> None:
        """BGP, for the tunnels whose hosts do not know each other."""
        self.warnings += self.evpn.check(self.wrong, open_firewall=self.config.open_firewall)
        for host, spec, rules in self.evpn.services():
            self.routing.add(host, evpn.NAME, spec, "evpn")
            self.rules[host].update(rules)

    def _check_service_ports(self) -> None:
        """No tunnel has a port that the segments' DHCP servers hear on, at all addresses of their hosts."""
        for host, services in self.services.items():
            serves = any(spec.KIND == "dnsmasq" for spec in services.values())
            for port in _DHCP_PORTS if serves else ():
                _, where = self.claims[host].get(("udp", port), (None, None))
                if where:
                    why = f"UDP port {port} is the DHCP server's on {{hosts}}; give another port"
                    self.clashes["", where, why].append(host)

    def _allow(self, at: Attachment, one: Tunnel, spec: Device) -> None:
        peers = self.evpn.sources if one.options.topology == tunnel.EVPN else at.peers
        protocol, port = one.kind.listens(spec)
        told_by = one.kind.told_by(spec)
        if told_by is not None:
            own = {} if port is None else {"port": port}
            self.allowed[at.host.name][at.device] = {"protocol": protocol, **own, **told_by, "peers": peers}
        if at.host.encryption:
            return
        name = at.device if one.kind.port_each(one.options) else one.base
        # Where one device serves all it is the tunnel's own view of them: 1,000 hosts have a million peers.
        peers = dict(peers) if at.label else peers
        rule = self.rules[at.host.name].setdefault(name, Rule(protocol=protocol, port=port, peers=peers))
        if isinstance(rule["peers"], dict):
            rule["peers"].update(peers)


def _add_snippets(containers: Mapping[str, dict[str, ContainerRow]], segments: Mapping[str, SegmentRow]) -> None:
    done: set[str] = set()
    for segment in sorted(containers):
        for name, row in containers[segment].items():
            if row["runtime"] != "none" and name not in done:
                done.add(name)
                form = snippets.FORMS[row["runtime"]]
                row["paste"] = "\n".join(form(snippets.nics(name, containers, segments))) + "\n"


def _name_key(where: str) -> str:
    return "bridge.name" if where.endswith(".bridge") else "ifname"


def _contradictions(spec: Device) -> Iterable[str]:
    """What the agent would refuse in the spec. Of its peers, which are checked for the tunnel as a whole, one stands
    for all: a mesh of 1,000 hosts has a million."""
    peers = getattr(spec, "peers", None)
    if peers:
        one_peer: Any = {"peers": dict(itertools.islice(peers.items(), 1))}
        spec = dataclasses.replace(spec, **one_peer)
    values = [getattr(spec, field.name) for field in dataclasses.fields(spec)]
    texts = itertools.chain(values, *(value.values() for value in values if isinstance(value, dict)))
    if any(isinstance(text, names.Placeholder) for text in texts):
        return []
    return KINDS[spec.KIND].wrong(spec)
