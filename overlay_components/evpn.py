"""Segments whose hosts are told by BGP who else is there (RFC 7432, RFC 8365): FRR on every host.

A host talks to the route reflectors alone and hears of everybody from them. So its document names nobody else, and
stays as it is when hosts come and go: a mesh of N hosts has N-1 peers in each of N documents, this has none. Only a
reflector has to know whom it lets in: the networks of `range`, or, without one, each client by its name.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from overlay_agent import fields
from overlay_agent.kinds.evpn import Asn, Evpn, Target, auto_target
from overlay_components import errors, model, names
from overlay_components.model import Checked
from overlay_components.secrets import Secrets, Value
from overlay_components.tunnel import EVPN, End, Tunnel

if TYPE_CHECKING:
    from overlay_components.config import Config
    from overlay_components.plan import Rule

#: The service's name in documents, and the rule's in the outputs.
NAME = "evpn"
#: The first of those that RFC 6996 leaves to everybody's own use and are easy to read.
ASN = 65000
#: RFC 2385 in Linux: TCP_MD5SIG_MAXKEYLEN, bytes.
_LONGEST_PASSWORD = 80
#: Of a neighbour in the same network (RFC 5881), and of others (RFC 5883): FRR looks which it is.
_BFD_PORTS = {f"{NAME}-bfd": 3784, f"{NAME}-bfd-multihop": 4784}
_TWO = 2
_DEFAULT = {field.name: fields.default_of(field) for field in dataclasses.fields(Evpn)}


class RouteTarget(Target):
    """One route target: of what a host tells, and of what it takes."""

    def check(self, value: Any) -> str | None:
        """What is wrong, or None."""
        if isinstance(value, (list, tuple)):
            return f"{errors.shown(list(value))}: a VNI has one route target, for what is told and what is taken"
        return super().check(value)


class Password(model.SecretText):
    """What TCP's MD5 signature takes (RFC 2385), and FRR's configuration as one word."""

    form = f"1 to {_LONGEST_PASSWORD} letters, digits or signs of ASCII, without white space"
    longest = _LONGEST_PASSWORD


class EvpnOptions(model.Model):
    """BGP between the hosts of segments with `topology: evpn`."""

    asn: Annotated[int, Checked(Asn())] = pydantic.Field(
        default=ASN, description="The hosts' AS number; 65000 is one of those for private use"
    )
    route_reflectors: list[Annotated[str, Checked(model.Text())]] = pydantic.Field(
        default=[], description="Who passes on what each host says: hosts, peers, or addresses of others; take two"
    )
    range: Annotated[list[str], Checked(model.OneOrMore(model.Subnet()))] = pydantic.Field(
        default=[], description="Networks in which reflectors take any host; default: each host by its own address"
    )
    password: Annotated[Value | None, Checked(fields.optional(Password()))] = pydantic.Field(
        default=None, description="Password of all sessions (TCP MD5), a secret"
    )
    bfd: Annotated[bool, Checked(fields.Flag())] = pydantic.Field(
        default=_DEFAULT["bfd"], description="Whether the ends of sessions watch each other by BFD, within a second"
    )
    port: Annotated[int, Checked(fields.Integer(1, 65535))] = pydantic.Field(
        default=_DEFAULT["port"], description="TCP port of BGP"
    )
    keepalive: Annotated[int, Checked(fields.Integer(1, 65535))] = pydantic.Field(
        default=_DEFAULT["keepalive"], description="How often a session is shown to be alive, seconds"
    )
    hold: Annotated[int, Checked(fields.Integer(3, 65535))] = pydantic.Field(
        default=_DEFAULT["hold"], description="After how long without a sign a host is gone, seconds"
    )


class Controlled:
    """The BGP of a stack, as far as its tunnels were looked up."""

    def __init__(self, config: Config, ends: Mapping[str, End], secrets: Secrets) -> None:
        self._config, self._ends, self._secrets = config, ends, secrets
        #: What was found so far: of what is wrong no service is made, of which the agent would say the same again.
        self._wrong: list[str] = []
        self._options = config.evpn or EvpnOptions()
        self._tunnels: list[Tunnel] = []
        #: By a tunnel's place: the hosts that tell of their own addresses there.
        self._own: dict[str, Collection[str]] = {}
        #: By name, in the order written: hosts, peers, and others, whose name is their address.
        self.reflectors = self._reflectors() if config.evpn else {}

    def _reflectors(self) -> dict[str, str]:
        """Addresses of the reflectors by name. Adds to the errors."""
        out: dict[str, str] = {}
        holders = {end.address: end for end in self._ends.values() if names.known(end.address)}
        for number, text in enumerate(self._options.route_reflectors):
            where = f"evpn.routeReflectors[{number}]"
            if text in self._ends:
                name, address = text, self._ends[text].address
            elif model.HostAddress().check(text):
                near = errors.instead(text, self._ends)
                self._wrong.append(f"{where}: unknown host {errors.shown(text)}; give an address, or a host: {near}")
                continue
            elif text in holders:
                self._wrong.append(f"{where}: {text} is {holders[text].where}; write {holders[text].name}")
                continue
            else:
                name = address = str(ipaddress.ip_address(text))
            if name in out:
                self._wrong.append(f"{where}: {name} stands twice; name each reflector once")
            elif name not in self._ends and ":" in address:
                self._wrong.append(f"{where}: {address} is IPv6, and hosts speak from their IPv4 ends; give IPv4's")
            out[name] = address
        return out

    def note(self, tunnel: Tunnel, *, bridged: bool) -> None:
        """A tunnel that was looked up. Adds to the errors."""
        if tunnel.options.topology != EVPN:
            return
        self._tunnels.append(tunnel)
        if not bridged:
            self._wrong.append(
                f"{tunnel.where}.topology: 'evpn' with bridge: none; FRR tells what is behind a bridge: leave it out, "
                "or write mesh"
            )

    def tells(self, tunnels: Iterable[Tunnel], hosts: Collection[str]) -> None:
        """The hosts that have addresses of their own in the segment, which nobody else there has: they tell of them.
        Else every packet to one of them, such as the gateway, would go to all hosts."""
        self._own.update({one.where: hosts for one in tunnels})

    def facts(self, tunnel: Tunnel) -> dict[str, Any]:
        """What the outputs say beside the tunnel's own numbers."""
        if tunnel.options.topology != EVPN:
            return {}
        return {"asn": self._options.asn, "routeReflectors": list(self.reflectors), "routeTarget": self._target(tunnel)}

    def _target(self, tunnel: Tunnel) -> str:
        return str(tunnel.options.route_target or self._derived(tunnel))

    def _derived(self, tunnel: Tunnel) -> str:
        return auto_target(self._options.asn, str(tunnel.options.vni))

    @property
    def sources(self) -> dict[str, str]:
        """Where the tunnels' packets come from; empty: nobody says."""
        return {network.replace("/", "-"): network for network in self._options.range}

    # -- what is wrong ---------------------------------------------------------------------------

    def check(self, wrong: list[str], *, open_firewall: bool) -> list[str]:
        """Adds all that is wrong to the errors. Returns warnings."""
        warnings = self._check(open_firewall=open_firewall)
        wrong += self._wrong
        return warnings

    def _check(self, *, open_firewall: bool) -> list[str]:
        if not self._tunnels:
            lonely = "evpn: no tunnel has topology: evpn, so nobody speaks BGP; give it to one, or leave this out"
            return [lonely] if self._config.evpn else []
        first = self._tunnels[0]
        if not self._config.evpn:
            self._wrong.append(
                f"{first.where}.topology: 'evpn' without overlay:evpn; write evpn: {{routeReflectors: [a, b]}} "
                "with two of the hosts"
            )
            return []
        if not self._options.route_reflectors:
            known = [end.name for end in self._members() if end.managed][:_TWO]
            self._wrong.append(
                f"evpn.routeReflectors: missing; name two hosts, such as [{', '.join(known)}], or give addresses of "
                "others"
            )
        if self._options.hold < 3 * self._options.keepalive:
            self._wrong.append(
                f"evpn.hold: {self._options.hold} with keepalive {self._options.keepalive}; one lost packet must not "
                "end a session: write at least three times the keepalive (RFC 4271, 10)"
            )
        for end in self._members():
            self._check_end(end)
        self._check_ranges()
        self._check_networks()
        if open_firewall and not self._options.range:
            self._wrong.append(
                "evpn.range: missing; with openFirewall the tunnels take packets from known hosts alone, and with evpn "
                "no document names the others: give the hosts' network"
            )
        if len(self.reflectors) != 1 or len(self._members()) == 1:
            return []
        only = next(iter(self.reflectors))
        return [f"evpn.routeReflectors: only {only}; while that is gone nothing passes between hosts: name a second"]

    def _check_end(self, end: End) -> None:
        if not names.known(end.address):
            return
        where = f"{end.where}.{'underlay.' if end.managed and end.address != self._ssh(end) else ''}address"
        address = ipaddress.ip_address(end.address)
        if address.version != 4:
            way = "give an IPv4 underlay.address" if end.managed else "give an IPv4 address"
            self._wrong.append(
                f"{where}: {address} is IPv6; FRR tells the ends of IPv4 tunnels only: {way}, or take topology: mesh"
            )
        elif end.managed and names.known(end.local) and end.local != end.address:
            self._wrong.append(
                f"{end.where}.underlay.local: {end.local}, but the others send to {address}; BGP tells them where a "
                "host sends from, so with topology: evpn both are one"
            )
        elif self._options.range and end.name not in self.reflectors and not self._in_range(address):
            networks = errors.listed(self._options.range)
            self._wrong.append(
                f"{where}: {address} is not in evpn.range ({networks}), so no reflector would take it; add its network"
            )

    def _ssh(self, end: End) -> str:
        return self._config.hosts[end.name].address

    def _in_range(self, address: Any) -> bool:
        return any(address in ipaddress.ip_network(network) for network in self._options.range)

    def _check_ranges(self) -> None:
        found = [ipaddress.ip_network(network) for network in self._options.range]
        for number, net in enumerate(found):
            where = f"evpn.range[{number}]"
            other = next((o for o in found[:number] if o.version == net.version and o.overlaps(net)), None)
            if net.version != 4:
                self._wrong.append(f"{where}: {net} is IPv6; FRR tells the ends of IPv4 tunnels only: leave it out")
            elif other:
                self._wrong.append(f"{where}: {net} overlaps {other}; keep the larger of the two")

    def _check_networks(self) -> None:
        """BGP knows a network by its VNI and its route target wherever it stands."""
        vnis: dict[int, str] = {}
        targets: dict[str, str] = {}
        for one in self._tunnels:
            vni = one.options.vni
            if vni is None:
                continue
            other = vnis.setdefault(vni, one.where)
            if other != one.where:
                self._wrong.append(
                    f"{one.where}.vni: {vni} is {other}'s too; with topology: evpn a VNI is one network on all hosts, "
                    "and has one route target: give another vni"
                )
                continue
            target = self._target(one)
            other = targets.setdefault(target, one.where)
            if other != one.where:
                self._wrong.append(
                    f"{one.where}.routeTarget: {target} is {other}'s too, and BGP would join the two; give another"
                )

    # -- what comes of it ------------------------------------------------------------------------

    def _members(self) -> list[End]:
        """Everybody who speaks BGP: the tunnels' ends, and reflectors that are none."""
        found = {end.name: end for one in self._tunnels for end in one.ends.values()}
        found.update({name: self._ends[name] for name in self.reflectors if name in self._ends})
        return list(found.values())

    def services(self) -> Iterator[tuple[str, Evpn, dict[str, Rule]]]:
        """By host: the service, and what packet filters must let in for it."""
        options, members = self._options, self._members() if self._tunnels and not self._wrong else []
        networks: dict[str, dict[str, Any]] = {}
        for one in self._tunnels:
            target = self._target(one)
            said = target != self._derived(one)
            for host in one.hosts:
                more: dict[str, Any] = {"import": {target: {}}, "export": {target: {}}} if said else {}
                more |= {"svi": True} if host.name in self._own.get(one.where, ()) else {}
                networks.setdefault(host.name, {})[str(one.options.vni)] = more
        clients = {end.name: end.address for end in members if end.name not in self.reflectors}
        for end in members:
            if not end.managed:
                continue
            reflector = end.name in self.reflectors
            others = {name: address for name, address in self.reflectors.items() if name != end.name}
            listed = clients if reflector and not self._options.range else {}
            secret = options.password
            password = self._secrets.refer(end.name, "bgp-password", secret) if secret else None
            service = Evpn(
                asn=options.asn,
                router_id=end.local,
                local=end.local,
                neighbors={**others, **listed},
                reflector=reflector,
                clients={name: {} for name in listed},
                ranges={network: {} for network in options.range if reflector},
                password=password,
                bfd=options.bfd,
                port=options.port,
                keepalive=options.keepalive,
                hold=options.hold,
                vnis=networks.get(end.name, {}),
            )
            yield end.name, service, self._rules({**others, **listed, **(self.sources if reflector else {})})

    def _rules(self, peers: dict[str, str]) -> dict[str, Rule]:
        rules: dict[str, Rule] = {NAME: {"protocol": "tcp", "port": self._options.port, "peers": peers}}
        if self._options.bfd:
            rules.update({name: {"protocol": "udp", "port": port, "peers": peers} for name, port in _BFD_PORTS.items()})
        return rules
