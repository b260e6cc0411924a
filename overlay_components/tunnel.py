"""What all tunnel kinds share: which ends are joined how, what devices that makes, and that it cannot loop.

A kind adds its own options and says what one device looks like (`TunnelKind`); mesh, pairs and hub
are worked out here once. So a new kind is one file beside vxlan_tunnel.py and a line in config.py.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import ipaddress
import itertools
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import pydantic

from overlay_agent import fields
from overlay_agent.kinds import Device
from overlay_components import errors, model, names
from overlay_components.model import Checked

#: How ends are joined. mesh: all of them, by one device a host or one for each two ends, as the kind has it.
#: multicast: the same, found by the underlay's multicast; evpn: the same, told by BGP. pairs: two and two. hub: one end
#: with each other.
MESH, MULTICAST, EVPN, PAIRS, HUB = "mesh", "multicast", "evpn", "pairs", "hub"
_TWO = 2
#: From so many ends on another topology is suggested than a mesh that nobody asked for by name: 9,900 forwarding
#: entries in all, and 100 hosts to be visited when one more joins (docs/adr/0015).
MANY = 100


# -- what the user wrote ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Endpoints:
    """The ends of a tunnel as written: names, or named pairs of names."""

    names: tuple[str, ...] = ()
    pairs: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)


class EndpointsType(fields.Type):
    """`[a, b, c]`, `[[a, b], [b, c]]` or `{left: [a, b], right: [b, c]}`."""

    def check(self, value: Any) -> str | None:
        """What is wrong, or None."""
        if isinstance(value, Mapping):
            rows = [*value.values()]
            wrong = next((w for w in map(model.Name().check, value) if w), None)
            return wrong or next((w for w in map(self._pair, rows) if w), None) or self._twice(rows)
        if not isinstance(value, (list, tuple)):
            return (
                f"{errors.shown(value)} is not a list of hosts, such as [a, b], or of pairs, such as [[a, b], [b, c]]"
            )
        if any(isinstance(row, (list, tuple)) for row in value):
            wrong = next((w for w in map(self._pair, value) if w), None)
            return wrong or self._twice(value) or self._one_name(value)
        wrong = next((w for w in map(model.Name().check, value) if w), None)
        again = [name for name, count in collections.Counter(map(str, value)).items() if count > 1]
        return wrong or (f"{again[0]!r} stands twice; name each end once" if again else None)

    def _pair(self, row: Any) -> str | None:
        if not isinstance(row, (list, tuple)) or len(row) != _TWO or any(map(model.Name().check, row)):
            return f"{errors.shown(row)} is not a pair; write two names, such as [a, b]"
        return f"{errors.shown(list(row))} joins a host to itself; write two names" if row[0] == row[1] else None

    def _twice(self, rows: Sequence[Sequence[str]]) -> str | None:
        again = [row for row, count in collections.Counter(tuple(sorted(row)) for row in rows).items() if count > 1]
        return f"the pair {'-'.join(again[0])} stands twice; name each pair once" if again else None

    def _one_name(self, rows: Sequence[Sequence[str]]) -> str | None:
        first: dict[str, str] = {}
        for a, b in rows:
            if first.setdefault(f"{a}-{b}", a) != a:
                return f"two pairs come to one name, {a}-{b}; give them names: {{left: [{a}, {b}], ...}}"
        return None

    def normal(self, value: Any) -> Any:
        """The Endpoints."""
        if isinstance(value, Mapping):
            return Endpoints(pairs={label: (a, b) for label, (a, b) in value.items()})
        if any(isinstance(row, (list, tuple)) for row in value):
            return Endpoints(pairs={f"{a}-{b}": (a, b) for a, b in value})
        return Endpoints(names=tuple(value))


class HubsType(fields.Type):
    """`[a, b]`: the active one, and the standby."""

    def check(self, value: Any) -> str | None:
        """What is wrong, or None."""
        if not isinstance(value, (list, tuple)):
            return f"{errors.shown(value)} is not a list of two hosts, such as [a, b]; a single one is hub: a"
        wrong = next((w for w in map(model.Name().check, value) if w), None)
        if wrong:
            return wrong
        if len(value) != _TWO:
            return f"{errors.shown(list(value))} has {len(value)}; name two, the active and the standby, or one as hub"
        return f"{value[0]!r} stands twice; name two hosts" if value[0] == value[1] else None

    def normal(self, value: Any) -> Any:
        """The two."""
        return tuple(value)


_PAIR_SCHEMA = {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2}
ENDPOINTS_SCHEMA = {
    "anyOf": [
        {"type": "array", "items": {"anyOf": [{"type": "string"}, _PAIR_SCHEMA]}},
        {"type": "object", "additionalProperties": _PAIR_SCHEMA},
    ]
}


class TunnelOptions(model.Model):
    """Keys of every kind of tunnel. Each kind adds `topology` with the topologies it has."""

    kind: Annotated[str, Checked(model.Name())]
    topology: Annotated[str, Checked(fields.Choice([MESH, PAIRS, HUB]))] = pydantic.Field(
        default=MESH, description="How the ends are joined"
    )
    endpoints: Annotated[Endpoints | None, Checked(EndpointsType()), pydantic.WithJsonSchema(ENDPOINTS_SCHEMA)] = (
        pydantic.Field(
            default=None, description="The ends; default: all hosts of the segment. For pairs: [[a, b], ...]"
        )
    )
    hub: Annotated[str | None, Checked(model.Name())] = pydantic.Field(
        default=None, description="The end that all others are joined with (topology: hub)"
    )
    hubs: Annotated[tuple[str, ...], Checked(HubsType()), pydantic.WithJsonSchema(_PAIR_SCHEMA)] = pydantic.Field(
        default=(), description="In place of hub, two: the active one, and the standby (topology: hub)"
    )
    ifname: Annotated[str | None, Checked(fields.InterfaceName())] = pydantic.Field(
        default=None, description="The device's name; where a host has one device a peer, its beginning"
    )


# -- resolved --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class End:
    """A host or an unmanaged peer as tunnels see it."""

    name: str
    where: str
    #: What the other ends send to.
    address: str
    #: Where it sends from; differs from `address` behind NAT.
    local: str
    device: str | None = None
    #: Of the underlay. None: not managed, so not known.
    mtu: int | None = None
    managed: bool = True
    #: What encryption takes of that MTU (see encryption.py).
    encryption: int = 0

    @property
    def version(self) -> int | None:
        """4 or 6; None while the address is not known."""
        return ipaddress.ip_address(self.address).version if names.known(self.address) else None


@dataclasses.dataclass(frozen=True)
class Attachment:
    """One device that a tunnel makes on one host, and whom it reaches."""

    host: End
    device: str
    #: The pair (or the hub's spoke) that the device is for; empty where one serves all.
    label: str
    #: Their addresses by name.
    peers: dict[str, str] | Others


class Others(Mapping[str, str]):
    """All entries but one, not copied: of 1,000 hosts the others' addresses would be a million."""

    def __init__(self, everyone: Mapping[str, str], but: str) -> None:
        self._everyone, self._but = everyone, but

    def __getitem__(self, key: str) -> str:
        if key == self._but:
            raise KeyError(key)
        return self._everyone[key]

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._everyone if key != self._but)

    def __len__(self) -> int:
        return len(self._everyone) - 1

    def copy(self) -> dict[str, str]:
        """What is left, faster than one by one."""
        out = dict(self._everyone)
        del out[self._but]
        return out


@dataclasses.dataclass(frozen=True)
class Tunnel:
    """One tunnel of one segment with its ends looked up."""

    where: str
    segment: str
    name: str
    kind: TunnelKind
    options: Any
    ends: Mapping[str, End]
    #: By label; empty where one device serves all ends.
    pairs: Mapping[str, tuple[str, str]]
    #: What the kind worked out over all its tunnels: see TunnelKind.numbers.
    numbers: Mapping[Any, Any] = dataclasses.field(default_factory=dict)

    @property
    def version(self) -> int:
        """The underlay's IP version: of the first address that is known, else 4."""
        return next((end.version for end in self.ends.values() if end.version), 4)

    @property
    def base(self) -> str:
        """The device's name, or its beginning where a host has one device a peer."""
        return str(self.options.ifname or f"{self.kind.prefix}-{self.segment}")

    @property
    def hosts(self) -> list[End]:
        """The ends that we manage."""
        return [end for end in self.ends.values() if end.managed]

    @property
    def isolated(self) -> bool:
        """Whether its bridge ports must not hand frames on to each other: a mesh of devices for two ends each would
        loop (rule 12)."""
        return self.kind.pairwise and self.options.topology == MESH

    @property
    def hubs(self) -> tuple[str, ...]:
        """The hub, or the active one and the standby."""
        options = self.options
        return options.hubs or ((options.hub,) if options.topology == HUB and options.hub else ())

    @property
    def two_hubs(self) -> bool:
        """Whether there is a standby."""
        return len(self.hubs) == _TWO

    def isolates(self, host: str) -> bool:
        """Whether the ports on that host hand nothing on to each other. The spokes of two hubs: so a frame has one
        way alone between the hubs, and nothing can loop even if spanning tree fails."""
        return self.isolated or (self.two_hubs and host not in self.hubs)

    def device(self, host: str, peer: str) -> str:
        """The name of the device on `host` that reaches `peer`. A tunnel that may grow names every one by its peer,
        so that no device changes its name when it does; nor does one when a second hub comes."""
        topology, written = self.options.topology, self.options.endpoints
        if self.kind.pairwise and topology == PAIRS and not (written and written.pairs):
            return self.base  # two ends, and no more
        if topology == HUB:
            to_first = host != self.hubs[0] and peer in ("", self.hubs[0])
            return self.base if to_first else names.for_peer(self.base, peer)
        return names.for_peer(self.base, peer) if self.pairs or self.isolated else self.base

    def attachments(self) -> Iterator[Attachment]:
        """Every device that the tunnel makes on a managed host."""
        addresses = {name: end.address for name, end in self.ends.items()}
        for label, (a, b) in self.pairs.items():
            for host, peer in ((a, b), (b, a)):
                if self.ends[host].managed:
                    yield Attachment(self.ends[host], self.device(host, peer), label, {peer: addresses[peer]})
        # The first host of a mesh has no peer yet.
        for end in [] if self.pairs or self.kind.pairwise else self.hosts:
            # With EVPN nobody names all the others.
            yield Attachment(end, self.base, "", {} if self.options.topology == EVPN else Others(addresses, end.name))

    def edges(self) -> Iterator[tuple[str, str]]:
        """The tunnel as a graph for the loop check. One device a host is a switch between the hosts, and so are a
        mesh's isolated ports: what came out of the tunnel is never sent back into it (rule 12)."""
        if self.pairs and not self.isolated and not self.two_hubs:
            yield from ((b, a) for a, b in self.pairs.values())
        else:
            yield from ((name, self.switch) for name in self.ends)

    @property
    def hint(self) -> str:
        """What would do better than so large a mesh; empty: nothing, or it was asked for by name."""
        ends = len(self.ends)
        inside = any(end.encryption for end in self.ends.values())
        if self.options.topology != MESH or "topology" in self.options.model_fields_set or ends < MANY or inside:
            return ""
        if self.kind.pairwise:
            what = f"{ends - 1} devices on each"
            way = "kind: vxlan has one, and topology: hub (two may be hubs) one or two on all others"
        else:
            what = f"{ends * (ends - 1)} forwarding entries"
            way = "with topology: evpn, or multicast where the network carries it, it changes itself alone"
        return (
            f"{self.where}: a mesh of {ends} ends has {what}, and one end more changes all of them; {way}. Write "
            "topology: mesh if it shall be one"
        )

    @property
    def switch(self) -> str:
        """The node of the graph that stands for the tunnel; no host's name has a slash."""
        return f"tunnel/{self.name}"


#: Two claims on one key are refused, unless both have the same value that is not None.
Claim = tuple[Hashable, Hashable]


def udp_claim(port: int, shared_by: str | None = None) -> dict[Claim, str]:
    """That the device listens on the UDP port: alone, or together with others that say the same of `shared_by`."""
    return {(("udp", port), shared_by): f"UDP port {port} is taken on {{hosts}} by {{earlier}}; give another port"}


class TunnelKind(abc.ABC):
    """How one kind of tunnel becomes devices. `KIND` of each kind's file, listed in config.TUNNELS."""

    #: The word after `kind:`.
    name: str
    #: Beginning of derived device names.
    prefix: str
    #: Its keys in stack files.
    options: type[TunnelOptions]
    #: Whether a device joins exactly two ends. A mesh then has one for each two of its ends.
    pairwise: bool = False

    def __init__(self, component: type[Any]) -> None:
        #: The Pulumi component that declares one.
        self.component = component

    @abc.abstractmethod
    def overhead(self, options: Any, version: int) -> int:
        """Bytes that encapsulation takes from the underlay's MTU, by the underlay's IP version."""

    @abc.abstractmethod
    def devices(
        self, tunnel: Tunnel, common: Callable[[Attachment], dict[str, Any]], wrong: list[str]
    ) -> Iterator[tuple[Attachment, Device]]:
        """The agent's specs. `common` gives the arguments that every device has. Adds errors to `wrong`."""

    @abc.abstractmethod
    def claims(self, spec: Any) -> dict[Claim, str]:
        """What the device needs for itself on its host; each with the sentence about a second one, in which {hosts}
        and {earlier} stand for where they meet and for the first one's place."""

    @abc.abstractmethod
    def facts(self, tunnel: Tunnel, specs: Sequence[Any]) -> dict[str, Any]:
        """What the stack's outputs say about the tunnel, such as its VNIs. "ends": by pair with an unmanaged end, what
        each end of it needs, for who sets that end up."""

    def udp_ports(self, tunnel: Tunnel) -> Mapping[str, set[int]]:  # noqa: ARG002 - most kinds have none
        """The UDP ports that were said for the tunnel, by end: what is derived for others keeps off them."""
        return {}

    def numbers(
        self, tunnels: Sequence[Tunnel], label: str, ports: Mapping[str, set[int]]  # noqa: ARG002 - as above
    ) -> Mapping[str, Mapping[Any, Any]]:
        """Numbers that stand once on a host, worked out over all tunnels of the kind; by their `where`. `label`: the
        stack's; `ports`: the UDP ports that are taken, by end."""
        return {}

    def told_by(self, spec: Any) -> dict[str, Any] | None:  # noqa: ARG002 - of most kinds nothing
        """What tells the device's packets from another's on one port, as the agent's firewall names it. None: the
        kernel itself takes its peers' only, so there is nothing to guard."""
        return {}

    @abc.abstractmethod
    def listens(self, spec: Any) -> tuple[str, int | None]:
        """What a packet filter must let through: the protocol, and the port if it has ports."""

    def port_each(self, options: Any) -> bool:  # noqa: ARG002 - of most kinds one port serves all
        """Whether each device of a host listens on a port of its own."""
        return False


# -- looking up ------------------------------------------------------------------------------


def resolve(
    where: str,
    segment: str,
    kind: TunnelKind,
    options: TunnelOptions,
    members: Collection[str],
    ends: Mapping[str, End],
    wrong: list[str],
) -> Tunnel | None:
    """The tunnel with its ends, or None after adding every error to `wrong`. `members`: who is in the segment."""
    before = len(wrong)
    written = options.endpoints or Endpoints()
    chosen = _chosen(where, segment, options, written, members, ends, wrong)
    if len(wrong) > before:
        return None
    _count(where, options, chosen, wrong)
    pairs = _pairs(where, options, written, chosen, wrong)
    if kind.pairwise and options.topology == MESH:
        # A name has no slash: no two pairs come to one label.
        pairs = {f"{a}/{b}": (a, b) for a, b in itertools.combinations(sorted(chosen), _TWO)}
    found = {name: ends[name] for name in chosen}
    _addresses(where, list(found.values()), wrong)
    for label, (a, b) in pairs.items():
        if not (found[a].managed or found[b].managed) and options.topology != MESH:
            wrong.append(f"{where}.endpoints: {label}: neither end is a host of this stack; name one of overlay:hosts")
    tunnel = Tunnel(where, segment, where.rsplit(".", 1)[-1], kind, options, found, pairs)
    uses_base = any(tunnel.device(host.name, "") == tunnel.base for host in tunnel.hosts)
    if uses_base and fields.InterfaceName().check(tunnel.base):
        wrong.append(f"{where}.ifname: {too_long(tunnel.base, 'ifname')}")
    return tunnel if len(wrong) == before else None


def _chosen(
    where: str,
    segment: str,
    options: TunnelOptions,
    written: Endpoints,
    members: Collection[str],
    ends: Mapping[str, End],
    wrong: list[str],
) -> list[str]:
    """The names of the ends, in the order written, after checking that there are such."""
    chosen = [*written.names, *dict.fromkeys(itertools.chain(*written.pairs.values()))]
    if not chosen:
        chosen = list(members)
        if options.hub is not None and options.hub in ends and options.hub not in chosen:
            chosen.append(options.hub)
    for name in chosen:
        if name not in ends:
            wrong.append(f"{where}.endpoints: unknown host {name!r}; {errors.instead(name, ends)}")
        elif ends[name].managed and name not in members:
            wrong.append(
                f"{where}.endpoints: host {name!r} is not in segment {segment}; add it to segments.{segment}.hosts"
            )
    if options.hubs:
        wrong += _wrong_hubs(where, options, chosen, ends)
    elif options.topology == HUB and options.hub is None:
        wrong.append(f"{where}.hub: missing; name one of {errors.listed(chosen)}")
    elif options.topology != HUB and options.hub is not None:
        wrong.append(f"{where}.hub: {options.hub!r}; only topology: hub has one")
    elif options.hub is not None and options.hub not in chosen:
        wrong.append(f"{where}.hub: unknown host {options.hub!r}; {errors.instead(options.hub, chosen)}")
    return chosen


def _wrong_hubs(
    where: str, options: TunnelOptions, chosen: Sequence[str], ends: Mapping[str, End]
) -> Iterator[str]:
    """What is wrong with two hubs."""
    place = f"{where}.hubs"
    if options.topology != HUB:
        yield f"{place}: {errors.shown(list(options.hubs))}; only topology: hub has them"
    if options.hub is not None:
        yield f"{where}.hub: {options.hub!r}, and there is hubs too; keep one of them"
    yield from (
        f"{place}: unknown host {hub!r}; {errors.instead(hub, chosen)}" for hub in options.hubs if hub not in chosen
    )
    yield from (
        f"{place}: {name!r} is not managed, and with two hubs every end runs spanning tree as the stack sets it; "
        "leave this end out, or write hub: with one"
        for name in chosen
        if name in ends and not ends[name].managed
    )
    spokes = [name for name in chosen if name not in options.hubs]
    labels = [f"{options.hubs[1]}-{name}" for name in spokes]
    yield from (
        f"{where}.endpoints: host {label!r} is called as what joins two others; with two hubs name one of them anew"
        for label in labels
        if label in chosen
    )


def too_long(name: str, key: str) -> str:
    """The sentence about a derived name that the kernel would not take."""
    return (
        f"missing; the derived name {name!r} has {len(name)} characters, an interface's name has 1 to "
        f"{names.LONGEST} letters, digits, '_', '.', '-': set {key}"
    )


def _count(where: str, options: TunnelOptions, chosen: Sequence[str], wrong: list[str]) -> None:
    may_grow = options.endpoints is None and options.topology in {MESH, MULTICAST, EVPN}
    if len(chosen) < (1 if may_grow else _TWO):
        say = f"only {chosen[0]!r}" if chosen else "none"
        wrong.append(f"{where}.endpoints: {say}; a tunnel has at least two ends")


def _pairs(
    where: str, options: TunnelOptions, written: Endpoints, chosen: Sequence[str], wrong: list[str]
) -> dict[str, tuple[str, str]]:
    hubs = options.hubs or ((options.hub,) if options.hub else ())
    if options.topology == HUB and hubs and not written.pairs:
        first, *standby = hubs
        out = {name: (first, name) for name in chosen if name != first}
        return out | {f"{hub}-{name}": (hub, name) for hub in standby for name in chosen if name not in hubs}
    if options.topology != PAIRS:
        if written.pairs:
            wrong.append(f"{where}.endpoints: pairs; only topology: pairs takes them, {options.topology} takes names")
        return {}
    if not written.pairs and len(chosen) > _TWO:
        wrong.append(f"{where}.endpoints: {len(chosen)} ends; say which are pairs: [[{chosen[0]}, {chosen[1]}], ...]")
        return {}
    return dict(written.pairs) if written.pairs else {"-".join(chosen): (chosen[0], chosen[-1])}


def _addresses(where: str, ends: Sequence[End], wrong: list[str]) -> None:
    """One IP version and no address twice. (The same SSH address of two hosts is told elsewhere.)"""
    first: dict[int | None, End] = {}
    seen: dict[str, End] = {}
    for end in ends:
        if end.version:
            first.setdefault(end.version, end)
        other = seen.setdefault(end.address, end)
        if other is not end and names.known(end.address):
            wrong.append(
                f"{where}.endpoints: {other.name} and {end.name} have one underlay address, {end.address}; "
                f"give each its own: {end.where}.{'underlay.' if end.managed else ''}address"
            )
    if len(first) > 1:
        four, six = first[4], first[6]
        wrong.append(
            f"{where}.endpoints: IPv4 and IPv6 mixed: {four.name} is {four.address}, {six.name} is {six.address}; one "
            "tunnel runs over one of them: give underlay.address"
        )


# -- loops -----------------------------------------------------------------------------------


def loops(tunnels: Sequence[Tunnel], stp: bool, stp_key: str | None, wrong: list[str]) -> dict[str, set[str]]:
    """Adds an error for each tunnel that closes a ring of bridges (rule 12). Returns the graph: neighbours by node.
    `stp_key`: where spanning tree can be set; None: the bridge is somebody else's."""
    graph: dict[str, set[str]] = collections.defaultdict(set)
    for tunnel in tunnels:
        for a, b in tunnel.edges():
            ring = _path(graph, a, b)
            if ring and not stp:
                ends, count = len(tunnel.ends), len(tunnel.pairs)
                full = tunnel.options.topology == PAIRS and ends > _TWO and count == ends * (ends - 1) // _TWO
                way = "topology: mesh joins all of them without a loop" if full else "leave one pair or tunnel out"
                text = " - ".join(node.removeprefix("tunnel/") for node in [*ring, a])
                more = f", or set {stp_key}: true" if stp_key else ""
                wrong.append(f"{tunnel.where}: would loop: {text}; {way}{more}")
                break
            graph[a].add(b)
            graph[b].add(a)
    return graph


def split(tunnels: Sequence[Tunnel], wrong: list[str]) -> None:
    """Adds an error for each two tunnels whose ports are isolated on one host: nothing passes from one to the other."""
    for first, second in itertools.combinations(tunnels, _TWO):
        both = [host.name for host in second.hosts if host.name in first.ends]
        shared = [host for host in both if first.isolates(host) and second.isolates(host)]
        if shared:
            whose = "meshes" if first.isolated and second.isolated else "meshes and of two hubs' spokes"
            wrong.append(
                f"{second.where}: meets {first.where} on {errors.listed(shared)}, and the ports of {whose} pass "
                "nothing to each other, so that nothing loops; join all ends in one mesh, or make one of them "
                "topology: hub or pairs"
            )


def reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """Every node that can be reached from `start`, itself included."""
    seen, todo = {start}, [start]
    while todo:
        new = graph.get(todo.pop(), set()) - seen
        seen |= new
        todo += new
    return seen


def _path(graph: Mapping[str, set[str]], start: str, goal: str) -> list[str]:
    """The nodes of a shortest way from start to goal; empty when there is none."""
    came: dict[str, str] = {start: start}
    todo = collections.deque([start])
    while todo and goal not in came:
        node = todo.popleft()
        for near in sorted(graph.get(node, ())):
            if near not in came:
                came[near] = node
                todo.append(near)
    if goal not in came:
        return []
    way = [goal]
    while way[-1] != start:
        way.append(came[way[-1]])
    return way[::-1]
