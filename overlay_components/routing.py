"""What a segment's router becomes on its hosts: dnsmasq, NAT, forwarding, routes, a floating gateway.

Pure, as plan.py is, and called by it: a `Router` for each segment while its addresses are worked
out, and at the end one look across all of them, since ports, routes and IP forwarding are a host's.
"""

from __future__ import annotations

import bisect
import dataclasses
import ipaddress
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from overlay_agent import fields
from overlay_agent.kinds import KINDS, Spec
from overlay_agent.kinds.dnsmasq import NAME, Dnsmasq
from overlay_agent.kinds.forwarding import Forwarding
from overlay_agent.kinds.nat import Nat
from overlay_agent.kinds.routes import Routes
from overlay_agent.kinds.vrrp import Vrrp
from overlay_components import addressing, dhcp_router, errors, model, names
from overlay_components.addressing import Address, Book, Network, Span

if TYPE_CHECKING:
    from overlay_components.anycast import Anycast
    from overlay_components.config import Config, Segment
    from overlay_components.dhcp_router import DhcpOptions
    from overlay_components.plan import ContainerRow, Rule
    from overlay_components.tunnel import End

_TWO = 2
#: Of the two routers of a segment, in the order of `hosts`.
_PRIORITIES = (150, 100)
#: What a router gives out of an IPv6 subnet by itself: ::1000 to ::1fff.
_V6_FIRST, _V6_COUNT = 0x1000, 0x1000
_SSH = 22
#: DHCP options that come from other keys, by dnsmasq's name and number.
_OPTION_KEYS = {
    **dict.fromkeys(("1", "netmask", "28", "broadcast"), "subnets"),
    **dict.fromkeys(("3", "router"), "gateway"),
    **dict.fromkeys(("6", "dns-server"), "dhcp.dns, which dnsmasq asks for the containers"),
    **dict.fromkeys(("15", "domain-name"), "dhcp.domain"),
    **dict.fromkeys(("26", "mtu"), "mtu"),
    **dict.fromkeys(("51", "lease-time"), "dhcp.lease"),
    **dict.fromkeys(("121", "classless-static-route", "249"), "routes"),
    **dict.fromkeys(("option6:23", "option6:dns-server"), "dhcp.dns, which dnsmasq asks for the containers"),
}


class DhcpRow(TypedDict):
    """What the outputs say about a segment's DHCP router."""

    hosts: list[str]
    #: What is given to whoever asks, by host.
    ranges: dict[str, list[str]]
    #: How many have an address of their own: containers and reservations.
    leases: int
    domain: str | None


@dataclasses.dataclass(frozen=True)
class _Forward:
    """Ports of a host that are passed on."""

    host: str
    version: int
    protocol: str
    low: int
    high: int
    where: str


@dataclasses.dataclass(frozen=True)
class _Route:
    """A route on a host, and the key that asks for it."""

    host: str
    subnet: Network
    where: str


class Routing:
    """All routers of a plan, and what they need of each host together. Errors are added to `wrong`."""

    def __init__(
        self,
        config: Config,
        label: str,
        ends: Mapping[str, End],
        services: dict[str, dict[str, Spec]],
        wrong: list[str],
    ) -> None:
        self.config, self.label, self.ends, self.services, self.wrong = config, label, ends, services, wrong
        #: What asks for a service, by its name.
        self._keys: dict[str, str] = {}
        self._forwards: list[_Forward] = []
        self._routes: list[_Route] = []
        #: Public addresses and their places.
        self._public: dict[str, str] = {}
        #: Subnets that a host is in with an address of its own.
        self._local: dict[str, list[tuple[Network, str]]] = {}
        #: IP versions that a host passes on.
        self._passing: dict[str, set[int]] = {}
        #: Of segments with an anycast gateway: their hosts and subnets.
        self._anycast: dict[str, tuple[set[str], list[str]]] = {}
        #: VRRP groups by host and interface.
        self._groups: dict[tuple[str, str, int], str] = {}

    def add(self, host: str, name: str, spec: Spec, where: str) -> None:
        """One service on one host."""
        wrong = fields.Label().check(name)
        if wrong:
            wrong = wrong.replace(repr(name), errors.shown(name))
            self.wrong.append(f"{where}: the name of its service, {wrong}; give the segment a shorter name")
        self.services[host][name] = spec
        self._keys.setdefault(name, where)

    def passes(self, hosts: Iterable[str], versions: Iterable[int]) -> None:
        """These hosts forward packets of these IP versions."""
        for host in hosts:
            self._passing.setdefault(host, set()).update(versions)

    def forward(self, at: _Forward) -> None:
        """Notes ports that a host passes on."""
        self._forwards.append(at)

    def route(self, host: str, subnet: Network, where: str) -> None:
        """Notes a route on a host."""
        self._routes.append(_Route(host, subnet, where))

    def local(self, where: str, addresses: Mapping[str, Sequence[str]], subnets: Sequence[Network]) -> None:
        """Notes the subnets that hosts have addresses in."""
        for host, own in addresses.items():
            inside = [net for net in subnets if any(names.known(a) and _ip(a) in net for a in own)]
            self._local.setdefault(host, []).extend((net, where) for net in inside)

    def group(self, host: str, interface: str, number: int, where: str) -> None:
        """Notes a VRRP group: one number is one group on a network (RFC 5798, 5.2.3)."""
        other = self._groups.setdefault((host, interface, number), where)
        if other != where:
            self.wrong.append(
                f"{where}.group: {number} is the group of {other} too, on one bridge of {host}; give one of them "
                "another, from 1 to 255"
            )

    def meet(self, segment: str, hosts: Iterable[str], subnets: Iterable[Network]) -> None:
        """Notes a segment with an anycast gateway: its hosts route between it and others of the kind."""
        self._anycast[segment] = set(hosts), [str(subnet) for subnet in subnets]

    def _join_anycast(self) -> None:
        """What goes from one such segment to another of the host is not translated: the answer may come by another."""
        for segment, (hosts, _) in self._anycast.items():
            for host in hosts & self.services.keys():
                there = [nets for other, (on, nets) in self._anycast.items() if other != segment and host in on]
                spec = self.services[host].get(f"nat-{segment}")
                if isinstance(spec, Nat) and there:
                    routed = {**spec.routed, **{net: {} for nets in there for net in nets}}
                    self.services[host][f"nat-{segment}"] = dataclasses.replace(spec, routed=routed)

    def public(self, address: str, where: str) -> None:
        """Notes a public address: one machine answers for it."""
        other = self._public.setdefault(address, where)
        if other != where:
            self.wrong.append(f"{where}: {other} has {address} too; give it to one of them")

    def finish(self, made: Mapping[str, Iterable[str]], rules: Mapping[str, dict[str, Rule]]) -> None:
        """What is seen only of all segments. `made`: the devices' names by host; `rules`: what tunnels listen on, to
        which the forwarded ports are added."""
        self._join_anycast()
        self._check_ports(rules)
        self._check_routes()
        for host, versions in self._passing.items():
            if host in self.services:
                self.services[host]["forwarding"] = Forwarding(ipv4=4 in versions, ipv6=6 in versions)
        for host, services in self.services.items():
            for name in services.keys() & set(made.get(host, ())):
                where = self._keys.get(name, f"hosts.{host}")
                self.wrong.append(
                    f"{where}: its service {name} has the name of a device on {host}; set another bridge.name or ifname"
                )
        self._ask_kinds()

    def _ask_kinds(self) -> None:
        """What the agent would refuse. Only of segments in which nothing is wrong so far: of others it has mostly the
        same to say, in words that are further from the stack file."""
        places = [f"segments.{name}" for name in self.config.segments]
        told = {at for at in places if any(one.startswith((f"{at}.", f"{at}:")) for one in self.wrong)}
        for services in self.services.values():
            for name, spec in services.items():
                where = self._keys.get(name)
                if where is None or any(where.startswith(f"{at}.") for at in told) or _has_placeholder(spec):
                    continue
                self.wrong += [f"{where}: {sentence}" for sentence in KINDS[spec.KIND].wrong(spec)]

    def _check_ports(self, rules: Mapping[str, dict[str, Rule]]) -> None:
        resolved = self.config.resolved_hosts()
        by_place: dict[tuple[str, int, str], list[_Forward]] = {}
        for one in self._forwards:
            by_place.setdefault((one.host, one.version, one.protocol), []).append(one)
        for (host, _, protocol), forwards in by_place.items():
            taken = [
                (rule["port"], f"tunnel {name}")
                for name, rule in rules[host].items()
                if rule["protocol"] == protocol and isinstance(rule["port"], int)
            ]
            if protocol == "tcp":
                taken.append((resolved[host].port or _SSH, "SSH"))
            last: _Forward | None = None
            for one in sorted(forwards, key=lambda f: (f.low, f.high)):
                if last and one.low <= last.high:
                    self.wrong.append(f"{one.where}: {last.where} has it already on {host}; give one another port")
                last = one if last is None or one.high > last.high else last
                self.wrong += [
                    f"{one.where}: {protocol}/{port} is {what}'s own on {host}; take another port"
                    for port, what in taken
                    if one.low <= port <= one.high
                ]
        for one in self._forwards:
            port: int | str = one.low if one.low == one.high else f"{one.low}-{one.high}"
            rules[one.host][f"forward {one.protocol}/{port}"] = {"protocol": one.protocol, "port": port, "peers": {}}

    def _check_routes(self) -> None:
        seen: dict[tuple[str, Network], str] = {}
        for route in self._routes:
            other = seen.setdefault((route.host, route.subnet), route.where)
            if other != route.where:
                self.wrong.append(f"{route.where}: {other} leads there too on {route.host}; keep one of them")
            for net, where in self._local.get(route.host, ()):
                if net.version == route.subnet.version and net.overlaps(route.subnet):
                    self.wrong.append(
                        f"{route.where}: overlaps {net} of {where}, in which {route.host} has an address; it is there "
                        "already: leave the route out"
                    )


class Router:
    """One segment's router. The planner calls it in the order of the methods here."""

    def __init__(
        self,
        routing: Routing,
        name: str,
        options: Segment,
        hosts: Sequence[str],
        bridge: str | None,
        anycast: Anycast | None = None,
    ) -> None:
        #: All members are the gateway, each of its own containers.
        self.anycast = anycast
        self.routing, self.name, self.segment, self.members, self.bridge = routing, name, options, hosts, bridge
        self.where = f"segments.{name}"
        self.at = f"{self.where}.dhcp"
        self.wrong = routing.wrong
        self.dhcp: DhcpOptions | None = options.dhcp
        #: Where it runs; empty without dhcp, and after an error.
        self.hosts: list[str] = []
        #: What it gives to whoever asks, before planned addresses are taken out, and the stack file's word for it.
        self._spans: list[tuple[Span, str]] = []

    # -- before containers get addresses -----------------------------------------------------

    def settle(self, addresses: dict[str, list[str]], book: Book, is_member: Callable[[str, str], bool]) -> None:
        """Where it runs, and its own addresses, which are added to `addresses`."""
        if self.dhcp is None:
            return
        if self.bridge is None:
            self.wrong.append(f"{self.at}: there is no bridge to serve; leave out bridge: none")
            return
        if not book.subnets:
            self.wrong.append(f"{self.at}: the segment has no subnets; give it one, such as subnets: [10.10.0.0/24]")
            return
        self.hosts = self._hosts(self.dhcp, addresses, is_member)
        for host in self.hosts if self.anycast is None else ():
            for subnet in book.subnets:
                self._own_address(host, subnet, addresses, book)
        for name, reservation in self.dhcp.reservations.items():
            book.enter(f"{self.at}.reservations.{name}.address", f"reservation {name}", reservation.address)
        self._spans = self._wanted_spans(self.dhcp, book)

    def _hosts(
        self, dhcp: DhcpOptions, addresses: Mapping[str, list[str]], is_member: Callable[[str, str], bool]
    ) -> list[str]:
        if self.anycast is not None:
            self.wrong += [
                f"{self.at}.{key}: {said}; with an anycast gateway each host serves its own containers: leave it out"
                for key, said in (("host", dhcp.host), ("hosts", dhcp.hosts and errors.listed(dhcp.hosts)))
                if said is not None
            ]
            return list(self.members)
        if dhcp.host is not None and dhcp.hosts is not None:
            self.wrong.append(f"{self.at}.hosts: there is host {dhcp.host!r} too; keep one of them")
            return []
        if dhcp.hosts is not None:
            if len(set(dhcp.hosts)) != _TWO or len(dhcp.hosts) != _TWO:
                said = errors.listed(dhcp.hosts) or "none"
                self.wrong.append(f"{self.at}.hosts: {said}; name two hosts, or one: host")
                return []
            known = [is_member(f"{self.at}.hosts[{number}]", host) for number, host in enumerate(dhcp.hosts)]
            return list(dhcp.hosts) if all(known) else []
        if dhcp.host is not None:
            return [dhcp.host] if is_member(f"{self.at}.host", dhcp.host) else []
        candidates = list(self.members) if len(self.members) == 1 else [h for h in self.members if addresses.get(h)]
        if len(candidates) == 1:
            return candidates
        if self.members:
            self.wrong.append(f"{self.at}.host: missing; name one of {errors.listed(candidates or self.members)}")
        return []

    def _own_address(self, host: str, subnet: Network, addresses: dict[str, list[str]], book: Book) -> None:
        """The router serves where it has an address: one that was given, else the subnet's first."""
        own = addresses.get(host, [])
        if any(not names.known(address) or _ip(address) in subnet for address in own):
            return
        where = f"{self.where}.addresses.{host}"
        first = next(iter(subnet.hosts()))
        if len(self.hosts) == 1 and first not in book.holders and first not in self._spoken_for():
            entered = book.enter(where, f"host {host}", str(first))
            if entered:
                addresses.setdefault(host, []).append(entered)
            return
        why = f"and {first} is spoken for" if len(self.hosts) == 1 else "and two routers each need their own"
        self.wrong.append(f"{where}: none in {subnet}, which its DHCP router needs, {why}; give it one")

    def _spoken_for(self) -> set[Address]:
        """Addresses in the stack file that somebody else has, whoever it is."""
        options = self.segment
        said: list[str | None] = [*options.reserved, *(c.address for c in options.containers.values())]
        said += [r.address for r in self.dhcp.reservations.values()] if self.dhcp else []
        # That of an attached bridge may be this host, by its owner's choice.
        attached = options.bridge is not None and options.bridge.attach
        gateway = options.gateway if isinstance(options.gateway, str) else None
        said += [gateway] if gateway and _parsed(gateway) and not attached else []
        return {_ip(text) for text in said if text is not None and names.known(text)}

    def _wanted_spans(self, dhcp: DhcpOptions, book: Book) -> list[tuple[Span, str]]:
        if dhcp.range is None:
            return [(span, "") for subnet in book.subnets for span in _derived(subnet)]
        out: list[tuple[Span, str]] = []
        for text in dhcp.range:
            span = _span(text)
            subnet = next((net for net in book.subnets if span[0] in net and span[1] in net), None)
            if subnet is None:
                there = errors.listed(map(str, book.subnets))
                self.wrong.append(
                    f"{self.at}.range: {text} is not within a subnet of {self.where} ({there}); take both ends from one"
                )
                continue
            what = addressing.special(span[0], subnet) or addressing.special(span[1], subnet)
            if what:
                self.wrong.append(f"{self.at}.range: {text} takes in the {what} of {subnet}; leave that out")
            out.append((span, text))
        in_order = sorted(out, key=lambda row: (row[0][0].version, int(row[0][0])))
        for (one, text), (other, later) in itertools.pairwise(in_order):
            if one[0].version == other[0].version and int(other[0]) <= int(one[1]):
                self.wrong.append(f"{self.at}.range: {text} overlaps {later}; give each address once")
        return out

    @property
    def gateway(self) -> str:
        """What the stack file says that containers route through, or what it means by saying nothing."""
        said = self.segment.gateway
        if isinstance(said, str):
            return said
        if self.dhcp is None or not self.hosts:
            return "none"
        if len(self.hosts) > 1:
            self.wrong.append(
                f"{self.where}.gateway: missing; the two routers hold one address in turn: give it, one of its own, "
                "or none"
            )
            return "none"
        translates = self.dhcp.masquerade or self.dhcp.forwards or self.dhcp.public_addresses
        return self.hosts[0] if translates else "none"

    @property
    def spans(self) -> list[Span]:
        """Where no address is chosen for a container: these are given to whoever asks."""
        return [span for span, _ in self._spans]

    # -- afterwards --------------------------------------------------------------------------

    def services(
        self,
        addresses: Mapping[str, list[str]],
        gateways: Mapping[int, str],
        containers: Mapping[str, ContainerRow],
        book: Book,
        locked: Mapping[str, str],
        size: int,
    ) -> DhcpRow | None:
        """Adds what its hosts run. `locked`: chosen addresses, also of containers that are gone."""
        own = addresses
        if self.anycast is not None:
            shared = list(self.anycast.addresses.values())
            addresses = {host: [*addresses.get(host, ()), *shared] for host in self.members}
            self.routing.passes(self.members, gateways)
            self.routing.meet(self.name, self.members, book.subnets)
        self.routing.local(self.where, addresses, book.subnets)
        routes, routed = self._routes(addresses, own, gateways, containers, book)
        if self.bridge is None:
            return None
        if self.dhcp is None or not self.hosts:
            self._add_nat({host: {} for host in routed}, routed, book)
            return None
        leases = self._leases(self.dhcp, containers)
        ranges = self._ranges(self.dhcp, book, locked)
        self._check_options(self.dhcp, book)
        own = {host: [_bare(a) for a in addresses.get(host, [])] for host in self.hosts}
        if self.anycast is None:
            self._add_floating(gateways, own)
        ra = any(net.version == 6 for net in book.subnets) if self.dhcp.ra is None else self.dhcp.ra
        for host in self.hosts:
            spec = Dnsmasq(
                interface=self.bridge,
                addresses={address: {} for address in own[host]},
                subnets={str(net): {} for net in book.subnets},
                ranges={text: {} for text in ranges[host]},
                hosts=leases,
                lease=self.dhcp.lease,
                lease_max=self.dhcp.lease_max,
                domain=self.dhcp.domain,
                dns=self.dhcp.dns,
                router=gateways.get(4),
                name_servers=self._name_servers(gateways, own),
                routes=routes,
                mtu=size,
                ra=ra,
                ra_router=ra and self._is_gateway(host, 6, gateways, own[host]),
                options=self.dhcp.options,
                strict_order=self.dhcp.strict_order,
                no_override=self.dhcp.no_override,
            )
            self.routing.add(host, f"dhcp-{self.name}", spec, self.at)
        translated = self._nat(self.dhcp, containers, gateways, book)
        by_host = {host: translated if host in self.hosts else {} for host in {*self.hosts, *routed}}
        if self.anycast is not None and translated:
            by_host = {host: self._of_its_own(host, translated, containers) for host in by_host}
        self._add_nat(by_host, routed, book)
        for version in {net.version for net in book.subnets}:
            at = [host for host in self.hosts if self._is_gateway(host, version, gateways, own[host])]
            self.routing.passes(at, [version])
        return DhcpRow(hosts=self.hosts, ranges=ranges, leases=len(leases), domain=self.dhcp.domain)

    def _name_servers(self, gateways: Mapping[int, str], own: Mapping[str, list[str]]) -> list[str]:
        """What containers are told of; nothing: the one that tells them."""
        if self.anycast is not None:
            return list(gateways.values())
        return [a for name in self.hosts for a in own[name]] if len(self.hosts) > 1 else []

    def heard(self, host: str) -> list[str]:
        """The services by which that host serves the segment, as host-guard has them. After `services`."""
        if host not in self.hosts:
            return []
        six = any(":" in subnet for subnet in self.segment.subnets)
        floats = f"vrrp-{self.name}" in self.routing.services[host]
        return ["udp/67", "udp/53", "tcp/53", *(["udp/547"] if six else []), *(["vrrp"] if floats else [])]

    def _is_gateway(self, host: str, version: int, gateways: Mapping[int, str], own: Sequence[str]) -> bool:
        """Whether containers route through that host, always or in turn with another."""
        if self.anycast is not None:
            return version in gateways
        if len(self.hosts) == 1 or host not in self.hosts:
            return gateways.get(version) in own
        # Of two routers' advertisements a container takes the one that answers (RFC 4861, 7.3): nothing has to float.
        return version in gateways or (version == 6 and self.gateway != "none")

    def _check_options(self, dhcp: DhcpOptions, book: Book) -> None:
        self.wrong += [
            f"{self.at}.options.{name}: comes from {_OPTION_KEYS[name]}; leave it out"
            for name in dhcp.options
            if name in _OPTION_KEYS
        ]
        if dhcp.ra and all(net.version == 4 for net in book.subnets):
            self.wrong.append(f"{self.at}.ra: true, but the segment has no IPv6 subnet; add one, or leave it out")
        if dhcp.group is not None and (len(self.hosts) == 1 or self.anycast is not None):
            self.wrong.append(f"{self.at}.group: {dhcp.group}; only two routers, hosts: [a, b], form a group")

    def _leases(self, dhcp: DhcpOptions, containers: Mapping[str, ContainerRow]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        macs: dict[str, str] = {}
        lower: dict[str, str] = {}
        rows = [
            (name, row["mac"], row["address"], f"{self.where}.containers.{name}") for name, row in containers.items()
        ]
        rows += [(name, r.mac, r.address, f"{self.at}.reservations.{name}") for name, r in dhcp.reservations.items()]
        for name, mac, address, where in rows:
            other = lower.setdefault(name.lower(), where)
            if other != where:
                self.wrong.append(f"{where}: {other} has that name too, to DNS; give one of them another")
            if NAME.check(name):
                self.wrong.append(
                    f"{where}: {name!r} is not a host name (RFC 1123), which {self.at} gives it in DNS; "
                    "rename it: letters, digits and '-', at most 63"
                )
            holder = macs.setdefault(mac, where)
            if holder != where and names.known(mac) and where.startswith(self.at):
                self.wrong.append(f"{where}.mac: {mac} is {holder}'s too; take another")
            if address is not None:
                out[name] = {"mac": mac, "address": _bare(address)}
        return out

    def _ranges(self, dhcp: DhcpOptions, book: Book, locked: Mapping[str, str]) -> dict[str, list[str]]:
        """By host: each has its half of every range, the same whatever else is planned."""
        if dhcp.range is not None:
            self._check_held(book)
        taken = [*book.holders, *(ipaddress.ip_address(text) for text in locked.values())]
        planned = {version: sorted({int(a) for a in taken if a.version == version}) for version in (4, 6)}
        out: dict[str, list[str]] = {host: [] for host in self.hosts}
        for span, said in self._spans:
            for host, part in zip(self.hosts, _parts(span, len(self.hosts)), strict=True):
                if part is None:
                    continue
                # dnsmasq itself keeps static leases out of what it gives to others.
                pieces = [part] if said else _without(part, planned[part[0].version])
                out[host] += [f"{low}-{high}" for low, high in pieces]
        return out

    def _check_held(self, book: Book) -> None:
        for span, text in self._spans:
            held = [
                f"{address}, {holder}'s"
                for address, holder in book.holders.items()
                if not holder.startswith(("container ", "reservation ")) and _within(address, span)
            ]
            if held:
                self.wrong.append(f"{self.at}.range: {text} holds {errors.listed(held)}; leave that out")

    def _add_floating(self, gateways: Mapping[int, str], own: Mapping[str, list[str]]) -> None:
        """Of two routers: the services by which they hold the gateway in turn."""
        if self.dhcp is None or self.bridge is None or len(self.hosts) == 1 or not gateways:
            return
        said = self.gateway
        if not names.known(said) or not _parsed(said):
            self.wrong.append(
                f"{self.where}.gateway: {said!r}; with dhcp.hosts it is an address of its own, which they hold in "
                "turn, or none"
            )
            return
        for host, held in own.items():
            if said in held:
                self.wrong.append(
                    f"{self.where}.gateway: {said} is host {host}'s own; with dhcp.hosts it is an address of its own, "
                    "which they hold in turn"
                )
                return
        subnet = next((net for net in map(ipaddress.ip_network, self.segment.subnets) if _ip(said) in net), None)
        number = self.dhcp.group or names.number(1, 255, self.routing.label, self.name)
        for host, priority in zip(self.hosts, _PRIORITIES, strict=True):
            if subnet is not None:
                floating: dict[str, Any] = {f"{_ip(said)}/{subnet.prefixlen}": {}}
                spec = Vrrp(interface=self.bridge, group=number, priority=priority, addresses=floating)
                self.routing.add(host, f"vrrp-{self.name}", spec, self.at)
                self.routing.group(host, self.bridge, number, self.at)

    # -- address translation -----------------------------------------------------------------

    def _nat(
        self, dhcp: DhcpOptions, containers: Mapping[str, ContainerRow], gateways: Mapping[int, str], book: Book
    ) -> dict[str, Any]:
        """What its hosts translate, as fields of Nat."""
        targets = {name: _bare(row["address"]) for name, row in containers.items() if row["address"]}
        targets |= {name: _bare(reservation.address) for name, reservation in dhcp.reservations.items()}
        # An IPv6 subnet that others can route to needs no translation.
        masquerade = [net for net in book.subnets if dhcp.masquerade and (net.version == 4 or not net.is_global)]
        forwards = self._forwards(dhcp, targets, containers, book)
        public = self._public(dhcp, targets, book)
        if not (masquerade or forwards or public or dhcp.mss_clamp):
            return {}
        self._check_way_back(dhcp, gateways, book)
        inside = [*(target["address"] for target in forwards.values()), *public.values()]
        versions = {net.version for net in masquerade} | {_ip(text).version for text in inside if names.known(text)}
        self.routing.passes(self.hosts, versions)
        return {
            "masquerade": {str(net): {} for net in masquerade},
            "forwards": forwards,
            "public_addresses": public,
            "mss_clamp": dhcp.mss_clamp,
        }

    def _add_nat(
        self, translated: Mapping[str, Mapping[str, Any]], routed: Mapping[str, Sequence[str]], book: Book
    ) -> None:
        """`translated` and `routed` by host: fields of Nat, and the subnets that it routes to without translating."""
        for host, values in translated.items():
            ways = routed.get(host, ())
            if values or ways:
                subnets: dict[str, Any] = {str(net): {} for net in book.subnets}
                spec = Nat(interface=self.bridge or "", subnets=subnets, routed={way: {} for way in ways}, **values)
                self.routing.add(host, f"nat-{self.name}", spec, self.at if values else f"{self.where}.routes")

    def _of_its_own(
        self, host: str, translated: Mapping[str, Any], containers: Mapping[str, ContainerRow]
    ) -> dict[str, Any]:
        """The same without what is forwarded to containers elsewhere: they answer through their own hosts."""
        mine = {_bare(row["address"]) for row in containers.values() if row["address"] and row["host"] == host}
        forwards = {key: to for key, to in translated["forwards"].items() if to["address"] in mine}
        left = {**translated, "forwards": forwards}
        return left if any(left.values()) else {}

    def _check_way_back(self, dhcp: DhcpOptions, gateways: Mapping[int, str], book: Book) -> None:
        """What is translated has to come back by the translator: it does where the containers route through it."""
        mine = {"the gateway", *(f"host {host}" for host in self.hosts)}
        holders = (
            book.holders.get(_ip(gateway), "the gateway") for gateway in gateways.values() if names.known(gateway)
        )
        other = next((holder for holder in holders if holder not in mine), None)
        keys = {"masquerade": dhcp.masquerade, "forwards": dhcp.forwards, "publicAddresses": dhcp.public_addresses}
        if other:
            self.wrong += [
                f"{self.at}.{key}: needs {errors.listed(self.hosts)} as the containers' gateway, and that is {other}; "
                "leave out one of them"
                for key, value in keys.items()
                if value
            ]

    def _forwards(
        self, dhcp: DhcpOptions, targets: Mapping[str, str], containers: Mapping[str, ContainerRow], book: Book
    ) -> dict[str, Any]:
        out: dict[str, Any] = {}
        places: dict[str, str] = {}
        for key, text in dhcp.forwards.items():
            where = model.path_text(("segments", self.name, "dhcp", "forwards", key))
            arriving = dhcp_router.listen(key)
            if places.setdefault(arriving, where) != where:
                self.wrong.append(f"{where}: {places[arriving]} is the same port; keep one of them")
                continue
            name, to = dhcp_router.split_target(text)
            address = self._target(where, name, targets, book)
            if address is None:
                continue
            protocol, _, ports = arriving.partition("/")
            low, high = dhcp_router.ports(ports) or (0, 0)
            first, last = (dhcp_router.ports(to) if to else None) or (low, high)
            if last - first != high - low:
                self.wrong.append(
                    f"{where}: {ports} {_counted(high - low + 1)}, {to} {_counted(last - first + 1)}; give as many, or "
                    "leave the target's out"
                )
                continue
            out[arriving] = {"address": address, **({"ports": to} if to and (first, last) != (low, high) else {})}
            hosts = self.hosts
            if self.anycast is not None:
                hosts = [row["host"] for row in containers.values() if _bare(row["address"] or "") == address]
                if not hosts:
                    self.wrong.append(
                        f"{where}: {text} is no container, whose host would forward it; with an anycast gateway name a "
                        "container"
                    )
            for host in self.routing.services.keys() & hosts if names.known(address) else ():
                self.routing.forward(_Forward(host, _ip(address).version, protocol, low, high, where))
        return out

    def _public(self, dhcp: DhcpOptions, targets: Mapping[str, str], book: Book) -> dict[str, str]:
        if dhcp.public_addresses and len(self.hosts) > 1:
            self.wrong.append(
                f"{self.at}.publicAddresses: with hosts {errors.listed(self.hosts)}; an address outside stands on one "
                "host's NIC: name one host, or take forwards"
            )
            return {}
        out: dict[str, str] = {}
        for outside, name in dhcp.public_addresses.items():
            where = model.path_text(("segments", self.name, "dhcp", "publicAddresses", outside))
            before = len(self.wrong)
            address = self._target(where, name, targets, book)
            at = ipaddress.ip_address(outside)
            subnet = next((net for net in book.subnets if at in net), None)
            if subnet is not None:
                self.wrong.append(f"{where}: is in {subnet}, the segment's own subnet; it is an address outside of it")
            for end in self.routing.ends.values():
                if end.managed and names.known(end.address) and _ip(end.address) == at:
                    self.wrong.append(
                        f"{where}: is host {end.name}'s own address, by which it is reached; take another"
                    )
            if address is not None and names.known(address):
                if _ip(address).version != at.version:
                    self.wrong.append(f"{where}: {address} is of another IP version; take one of the same")
                twin = next((other for other, inner in out.items() if inner == address), None)
                if twin is not None:
                    self.wrong.append(f"{where}: {name} has {twin} already; one inside has one outside")
            if address is not None and len(self.wrong) == before:
                out[outside] = address
                self.routing.public(outside, where)
        return out

    def _target(self, where: str, name: str, targets: Mapping[str, str], book: Book) -> str | None:
        if _parsed(name):
            found = book.find(where, name)
            return str(found[0]) if found else None
        if name not in targets:
            self.wrong.append(f"{where}: unknown container {name!r}; {errors.instead(name, targets)}")
        return targets.get(name)

    # -- routes ------------------------------------------------------------------------------

    def _routes(
        self,
        addresses: Mapping[str, list[str]],
        own: Mapping[str, list[str]],
        gateways: Mapping[int, str],
        containers: Mapping[str, ContainerRow],
        book: Book,
    ) -> tuple[dict[str, str], dict[str, list[str]]]:
        """Adds the hosts' routes. Returns those that containers can take themselves (IPv4), and by host the subnets
        that it routes their packets to. `own`: the addresses that no other host has too."""
        for_containers: dict[str, str] = {}
        routed: dict[str, list[str]] = {}
        by_host: dict[str, dict[str, str]] = {}
        for text, said in self.segment.routes.items():
            where = model.path_text(("segments", self.name, "routes", text))
            subnet = ipaddress.ip_network(text)
            if self._is_bad_way(where, subnet, book):
                continue
            hop = self._next_hop(where, said, subnet.version, own, containers)
            if hop is None:
                continue
            via, host = hop
            on = [h for h, own in addresses.items() if h != host and any(_of(a, subnet.version) for a in own)]
            served = self.dhcp is not None and subnet.version == 4
            if not on and not served:
                self.wrong.append(
                    f"{where}: no host has an address in the segment to go there from; add {self.where}.addresses"
                )
            if host is not None:
                self.routing.passes([host], [subnet.version])
            for one in on:
                by_host.setdefault(one, {})[text] = via
                self.routing.route(one, subnet, where)
                if self._is_gateway(one, subnet.version, gateways, [_bare(a) for a in addresses[one]]):
                    self.routing.passes([one], [subnet.version])
                    routed.setdefault(one, []).append(text)
            # Of the segment's own addresses only: a container knows no other way to them.
            if served and names.known(via) and any(_ip(via) in net for net in book.subnets):
                for_containers[text] = via
        for one, routes in by_host.items():
            self.routing.add(one, f"routes-{self.name}", Routes(routes=routes), f"{self.where}.routes")
        return for_containers, routed

    def _is_bad_way(self, where: str, subnet: Network, book: Book) -> bool:
        before = len(self.wrong)
        for net in book.subnets:
            if net.version == subnet.version and net.overlaps(subnet):
                self.wrong.append(f"{where}: overlaps {net}, the segment's own subnet; it is there already")
        for end in self.routing.ends.values():
            if names.known(end.address) and _ip(end.address) in subnet:
                self.wrong.append(
                    f"{where}: holds {end.name}'s underlay address {end.address}, which the hosts would then look for "
                    "there; take a smaller subnet"
                )
                break
        return len(self.wrong) > before

    def _next_hop(
        self,
        where: str,
        said: str,
        version: int,
        addresses: Mapping[str, list[str]],
        containers: Mapping[str, ContainerRow],
    ) -> tuple[str, str | None] | None:
        """The next hop's address, and the host that it is; None after adding what is wrong."""
        config, ends = self.routing.config, self.routing.ends
        host: str | None = None
        if isinstance(said, names.Placeholder):
            return said, None
        if _parsed(said):
            via = str(_ip(said))
            host = next((h for h, own in addresses.items() if via in map(_bare, own)), None) or next(
                (end.name for end in ends.values() if end.managed and end.address == via), None
            )
        elif said in ends:
            host = said if said in config.hosts else None
            inside = [_bare(a) for a in addresses.get(said, []) if _of(a, version)]
            via = inside[0] if inside else ends[said].address
        elif said in containers:
            via = _bare(containers[said]["address"] or "")
        else:
            known = [*ends, *containers]
            self.wrong.append(f"{where}: unknown next hop {errors.shown(said)}; {errors.instead(said, known)}")
            return None
        if names.known(via) and (not _parsed(via) or _ip(via).version != version):
            self.wrong.append(f"{where}: {said} has no IPv{version} address to go by; name another next hop")
            return None
        return via, host


# -- spans -----------------------------------------------------------------------------------


def _derived(subnet: Network) -> list[Span]:
    """The upper half of an IPv4 subnet; ::1000 to ::1fff of an IPv6 one, or its upper half where it is too small."""
    first, last = int(subnet.network_address), int(subnet.broadcast_address)
    if subnet.version == 6 and last - first >= _V6_FIRST + _V6_COUNT - 1:
        low, high = first + _V6_FIRST, first + _V6_FIRST + _V6_COUNT - 1
    else:
        low, high = first + (last - first + 1) // 2, last
    kind = type(subnet.network_address)
    if addressing.special(kind(high), subnet):
        high -= 1
    return [] if low > high or addressing.special(kind(low), subnet) else [(kind(low), kind(high))]


def _span(text: str) -> Span:
    low, _, high = text.partition("-")
    return _ip(low), _ip(high)


def _within(address: Address, span: Span) -> bool:
    return address.version == span[0].version and int(span[0]) <= int(address) <= int(span[1])


def _parts(span: Span, count: int) -> list[Span | None]:
    """The span in as many parts of one size, the first ones the larger ones; None where nothing is left."""
    kind, low, high = type(span[0]), int(span[0]), int(span[1])
    edges = [low + -(-(high - low + 1) * number // count) for number in range(count + 1)]
    return [(kind(a), kind(b - 1)) if a < b else None for a, b in itertools.pairwise(edges)]


def _without(span: Span, planned: Sequence[int]) -> Iterator[Span]:
    """What is left of the span between planned addresses, which are in order."""
    kind, low, high = type(span[0]), int(span[0]), int(span[1])
    for number in planned[bisect.bisect_left(planned, low) : bisect.bisect_right(planned, high)]:
        if low < number:
            yield kind(low), kind(number - 1)
        low = number + 1
    if low <= high:
        yield kind(low), kind(high)


# -- texts -----------------------------------------------------------------------------------


def _ip(text: str) -> Address:
    return ipaddress.ip_interface(text).ip


def _bare(text: str) -> str:
    """An address without its prefix length; a placeholder stays one."""
    return text.partition("/")[0] if names.known(text) else text


def _of(text: str, version: int) -> bool:
    return not names.known(text) or _ip(text).version == version


def _parsed(text: str) -> bool:
    return not fields.Address().check(text)


def _counted(number: int) -> str:
    return f"is {number} port{'s' if number > 1 else ''}"


def _has_placeholder(value: Any) -> bool:
    if dataclasses.is_dataclass(value):
        return any(_has_placeholder(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, dict):
        return any(map(_has_placeholder, value)) or any(map(_has_placeholder, value.values()))
    if isinstance(value, list):
        return any(map(_has_placeholder, value))
    return isinstance(value, names.Placeholder)
