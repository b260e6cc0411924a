"""Bridges that are somebody else's: attached ones, and those of networks that Docker makes for us.

Docker and LXD make their bridge, give it its address and hand out addresses on it. So such a bridge
is no device of ours: the tunnels become its ports, and what its owner does on each host by itself
(one gateway address everywhere, addresses out of one range) is planned for all hosts together.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from overlay_agent import fields
from overlay_agent.fields import json_name
from overlay_agent.kinds import Spec
from overlay_agent.kinds.docker_network import DockerNetwork
from overlay_agent.kinds.gateway_guard import GatewayGuard
from overlay_components import errors, model, names
from overlay_components.addressing import Address, Book, Network, Span
from overlay_components.model import Checked, Model

if TYPE_CHECKING:
    from overlay_components.bridge import BridgeOptions
    from overlay_components.config import Segment

_WAYS = "docker: NETWORK, lxd: BRIDGE and bridge: NAME"
#: On these Docker gives no container the address that it asks for.
_BUILT_IN = ("bridge", "host", "none")
#: Docker gives every bridge with IPv6 this address too, on each host (bridgeIPv6 in its driver; tried with 20.10).
_LINK_LOCAL = "fe80::1"
#: A suggested range is a sixteenth of its subnet (so many bits more), and no larger than a /24: room for more hosts.
_MORE_BITS, _LARGEST = 4, 24


# -- what the user wrote ---------------------------------------------------------------------


class AttachOptions(Model):
    """A bridge that is there already, by whoever made it."""

    docker: Annotated[str | None, Checked(fields.DOCKER_NETWORK)] = pydantic.Field(
        default=None, description="The Docker network whose bridge it is"
    )
    lxd: Annotated[str | None, Checked(fields.InterfaceName())] = pydantic.Field(
        default=None, description="The bridge of LXD or Incus, such as lxdbr0"
    )
    bridge: Annotated[str | None, Checked(fields.InterfaceName())] = pydantic.Field(
        default=None, description="Another bridge, by its name"
    )

    @pydantic.model_validator(mode="after")
    def _one(self) -> AttachOptions:
        given = [key for key in ("docker", "lxd", "bridge") if getattr(self, key) is not None]
        if len(given) != 1:
            raise model.stop(f"names {' and '.join(given) or 'no bridge'}; write one of {_WAYS}")
        return self


class DockerOptions(Model):
    """A Docker network that is made with the segment."""

    create: Annotated[bool, Checked(fields.Flag())] = pydantic.Field(description="true: the network is made")
    network: Annotated[str | None, Checked(fields.DOCKER_NETWORK)] = pydantic.Field(
        default=None, description="Its name; default: the segment's"
    )
    ranges: dict[Annotated[str, Checked(model.Name())], Annotated[str, Checked(model.Subnet())]] = pydantic.Field(
        default={}, description="By host, from what Docker takes an address for a container that names none"
    )

    @pydantic.model_validator(mode="after")
    def _made(self) -> DockerOptions:
        if not self.create:
            raise model.stop("false; write true, or attach: {docker: NETWORK} for a network that is there", "create")
        return self


# Their JSON Schema stands where they are used: the bridge's own is put into another.
Attach = Annotated[
    AttachOptions | None,
    pydantic.PlainValidator(lambda value: model.read(AttachOptions, value)),
    pydantic.WithJsonSchema(AttachOptions.model_json_schema()),
]
Docker = Annotated[
    DockerOptions | None,
    pydantic.PlainValidator(lambda value: model.read(DockerOptions, value)),
    pydantic.WithJsonSchema(DockerOptions.model_json_schema()),
]


def no_dhcp(options: BridgeOptions | None) -> str | None:
    """Why no DHCP server of ours may serve the bridge, as the end of a sentence; None where it may."""
    if options is not None and (options.docker or (options.attach and options.attach.docker)):
        return "Docker gives its containers their addresses; leave it out"
    return None


# -- for the planner -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ForeignBridge:
    """The bridge of one segment that is not this stack's. Errors are added to `wrong`."""

    segment: str
    #: The segment's place in the stack file.
    where: str
    options: Segment
    bridge: BridgeOptions
    hosts: Sequence[str]
    #: (place, host) -> whether it is one of the segment's; adds an error when it is not.
    is_member: Callable[[str, str], bool]
    wrong: list[str]

    @property
    def made(self) -> DockerOptions | None:
        """The network that Docker makes for us, or None: the bridge is attached."""
        return None if self.bridge.attach else self.bridge.docker

    @property
    def attached(self) -> AttachOptions:
        """What is attached; empty where Docker makes a network for us."""
        return self.bridge.attach or AttachOptions.model_construct()

    @property
    def network(self) -> str | None:
        """The Docker network's name; None where the bridge is not Docker's."""
        return (self.made.network or self.segment) if self.made else self.attached.docker

    @property
    def routes(self) -> bool:
        """Whether its owner gives it an address in the subnets, so that the host has a route to them."""
        return self.attached.bridge is None

    @property
    def spans(self) -> list[Span]:
        """From where Docker gives addresses to containers that name none: nobody is planned there."""
        ranges = [ipaddress.ip_network(text) for text in self.made.ranges.values()] if self.made else []
        return [(net[0], net[-1]) for net in ranges]

    def claims(self, name: str) -> list[str]:
        """What one segment has for itself on a host. `name`: the bridge's."""
        network = f"{fields.DOCKER}{self.network}" if self.network else name
        return list(dict.fromkeys([name, network]))

    @property
    def owner(self) -> str:
        """Whose it is, as the end of a sentence."""
        return "LXD's" if self.attached.lxd else "Docker's" if self.network else "somebody else's"

    @property
    def key(self) -> str:
        """The key that says whose the bridge is."""
        return f"{self.where}.bridge.{'docker' if self.made else 'attach'}"

    def check(self) -> None:
        """What contradicts itself in the keys."""
        where = f"{self.where}.bridge"
        if self.bridge.attach and self.bridge.docker:
            self.wrong.append(
                f"{where}.docker: stands beside attach; write attach for a network that is there, or docker for one "
                "that is made"
            )
        if self.bridge.attach and self.bridge.name:
            self.wrong.append(f"{where}.name: {self.bridge.name!r}, but attach names the bridge; leave one of them out")
        for name in sorted(self.bridge.model_fields_set - {"name", "attach", "docker"}):
            self.wrong.append(f"{where}.{json_name(name)}: set, but the bridge is {self.owner}; leave it out")
        network = f"{self.key}.{'network' if self.made else 'docker'}"
        if self.network in _BUILT_IN:
            self.wrong.append(
                f"{network}: {self.network!r} is Docker's own network, where containers cannot choose their address; "
                "take another"
            )
        elif self.network and fields.DOCKER_NETWORK.check(self.network):
            self.wrong.append(
                f"{network}: missing; the segment's name {fields.DOCKER_NETWORK.check(self.network)}: set it"
            )
        why = no_dhcp(self.bridge)
        if why and self.options.dhcp:
            self.wrong.append(f"{self.where}.dhcp: {why}")
        if self.network:
            self._check_subnets()

    def _check_subnets(self) -> None:
        where, subnets = f"{self.where}.subnets", self.options.subnets
        if not subnets:
            say = "write one for it, such as subnets: [172.18.0.0/16]" if self.made else "write those that it has"
            self.wrong.append(f"{where}: missing; Docker network {self.network} has its own: {say}")
        elif self.made and self._subnet is None:
            self.wrong.append(
                f"{where}: {', '.join(subnets)}; a Docker network that is made here has one IPv4 subnet: "
                "give it one, or attach a network of your own"
            )

    @property
    def _subnet(self) -> ipaddress.IPv4Network | None:
        """The one subnet of a network that is made here."""
        found = [ipaddress.ip_network(text) for text in self.options.subnets]
        return found[0] if len(found) == 1 and isinstance(found[0], ipaddress.IPv4Network) else None

    # -- addresses ---------------------------------------------------------------------------

    def refuses_address(self, where: str) -> bool:
        """Whether hosts cannot have addresses on it; adds the error."""
        if self.made:
            return False
        say = f"the bridge is {self.owner}, which gives it its address; leave it out"
        if self.network:
            say += f", or write it as {self.where}.gateway"
        self.wrong.append(f"{where}: {say}")
        return True

    def gateways(self, book: Book) -> dict[int, str] | None:
        """What all containers route through, by IP version; None: `gateway` means what it means on any bridge."""
        # An anycast one is refused where it is made.
        said = self.options.gateway if isinstance(self.options.gateway, str) else None
        where = f"{self.where}.gateway"
        if self.made:
            if said is not None:
                self.wrong.append(
                    f"{where}: {said!r}, but Docker routes containers through their own host's address; leave it out"
                )
            return {}
        if not self.network:
            if said in self.hosts:
                self.wrong.append(f"{where}: {said!r}, whose address on that bridge is not planned; write the address")
                return {}
            return None
        first: dict[int, str] = {}
        for net in book.subnets:
            first.setdefault(net.version, str(net[min(1, net.num_addresses - 1)]))
        if said is None:
            return first
        try:
            ipaddress.ip_address(said)
        except ValueError:
            suggested = errors.listed(first.values())
            self.wrong.append(
                f"{where}: {said!r}, but Docker gives each bridge an address for a gateway; write that address, or "
                f"leave it out{f' for {suggested}' if suggested else ''}"
            )
            return {}
        found = book.find(where, said)
        return {**first, found[0].version: str(found[0])} if found else {}

    def finish(
        self,
        book: Book,
        addresses: Mapping[str, list[str]],
        kept: Iterable[str],
        rows: Iterable[Any],
    ) -> None:
        """Checks each host's address and range, with what to write where they are missing, and fills the containers'
        rows of the IP plan. `book`: with all addresses entered; `kept`: addresses that the lock keeps."""
        own = {host: _plain(texts[0]) for host, texts in addresses.items() if texts}
        for row in rows:
            if self.network:
                row["network"] = self.network
            if self.made:
                row["gateway"] = own.get(row["host"])
        if self.made and self._subnet:
            taken = {*book.holders, *map(ipaddress.ip_address, kept)}
            taken |= self._check_addresses(book, addresses, taken)
            self._check_ranges(book, taken, self._subnet)

    def _check_addresses(
        self, book: Book, addresses: Mapping[str, list[str]], taken: Collection[Address]
    ) -> set[Address]:
        """Returns the addresses that it suggests."""
        where = f"{self.where}.addresses"
        for host, texts in addresses.items():
            if len(texts) > 1:
                self.wrong.append(f"{where}.{host}: {len(texts)} addresses; Docker gives its bridge one: leave one")
        missing = [host for host in self.hosts if host not in self.options.addresses]
        if not missing:
            return set()
        free = book.free(taken, self.spans)
        suggested = dict(zip(missing, free, strict=False))
        if len(suggested) < len(missing):
            self.wrong.append(
                f"{where}: missing for {errors.listed(missing)}, and {self._subnet} is full; take a larger"
            )
            return set()
        given = {host: _plain(texts[0]) for host, texts in self.options.addresses.items()}
        line = _flow({host: suggested.get(host) or given[host] for host in self.hosts})
        self.wrong.append(
            f"{where}: missing for {errors.listed(missing)}; Docker's bridge has an address on each host, its "
            f"containers' gateway: write addresses: {line}"
        )
        return set(suggested.values())

    def _check_ranges(self, book: Book, taken: Collection[Address], subnet: ipaddress.IPv4Network) -> None:
        assert self.made is not None  # noqa: S101 - finish() asked
        where = f"{self.key}.ranges"
        given: dict[str, ipaddress.IPv4Network] = {}
        for host, text in self.made.ranges.items():
            net = ipaddress.ip_network(text)
            if not self.is_member(f"{where}.{host}", host):
                continue
            if not isinstance(net, ipaddress.IPv4Network) or not net.subnet_of(subnet):
                self.wrong.append(f"{where}.{host}: {net} is not within {subnet}; take a part of it")
                continue
            self._check_range(f"{where}.{host}", net, given, book)
            given[host] = net
        missing = [host for host in self.hosts if host not in self.made.ranges]
        # One daemon alone can take any address of the subnet.
        if not missing or len(self.hosts) == 1:
            return
        found = _suggested(subnet, len(missing), given.values(), taken)
        if len(found) < len(missing):
            say = f"no room for them is left in {subnet}: take a larger one"
        else:
            chosen = {**self.made.ranges, **{host: str(net) for host, net in zip(missing, found, strict=True)}}
            say = f"write ranges: {_flow({host: chosen[host] for host in self.hosts})}"
        self.wrong.append(
            f"{where}: missing for {errors.listed(missing)}; without its own, two Docker daemons give out one address: "
            f"{say}"
        )

    def _check_range(self, where: str, net: Network, earlier: Mapping[str, Network], book: Book) -> None:
        other = next((host for host, one in earlier.items() if net.overlaps(one)), None)
        if other:
            self.wrong.append(f"{where}: {net} overlaps {earlier[other]} of {other}; take another part of the subnet")
        inside = [f"{address} ({holder})" for address, holder in book.holders.items() if address in net]
        if inside:
            self.wrong.append(
                f"{where}: {net} holds {errors.listed(inside)}, which Docker would give to another container; take a "
                "part without"
            )

    # -- on the hosts ------------------------------------------------------------------------

    def services(
        self,
        host: str,
        addresses: Mapping[str, list[str]],
        gateways: Mapping[int, str],
        ports: Iterable[str],
        size: int,
    ) -> Iterator[tuple[str, Spec]]:
        """What stands on that host beside the tunnels. `ports`: the tunnels' devices there."""
        if not self.network:
            return
        subnets: dict[str, Any] = {subnet: {} for subnet in self.options.subnets}
        name = f"{fields.DOCKER}{self.network}"
        if not self.made:
            yield name, DockerNetwork(subnets=subnets, mtu=size)
            guarded: dict[str, Any] = {address: {} for address in gateways.values()}
            if 6 in gateways:
                guarded[_LINK_LOCAL] = {}
            held: dict[str, Any] = {port: {} for port in ports}
            if held and guarded:
                yield f"guard-{self.segment}", GatewayGuard(ports=held, addresses=guarded)
            return
        # Where it is missing, finish() has said so.
        if not addresses.get(host):
            return
        ranges = self.made.ranges
        # Nobody's to ask for by `--ip`. (What else is reserved floats; with a range Docker takes none of it.)
        others = {other: _plain(own[0]) for other, own in addresses.items() if own and other != host}
        unguarded = [] if host in ranges else self.options.reserved
        yield (
            name,
            DockerNetwork(
                create=True,
                bridge=self.bridge.name or f"br-{self.segment}",
                subnets=subnets,
                gateways={_plain(addresses[host][0]): {}},
                ranges={ranges[host]: {}} if host in ranges else {},
                auxiliary={**others, **{f"reserved-{_plain(text)}": _plain(text) for text in unguarded}},
                mtu=size,
            ),
        )


def _suggested(
    subnet: ipaddress.IPv4Network, count: int, given: Collection[ipaddress.IPv4Network], taken: Collection[Address]
) -> list[ipaddress.IPv4Network]:
    """So many free parts of the subnet, all of one size; fewer where there is no room. They begin in its middle: the
    lower half is for addresses that are planned."""
    largest = max(subnet.prefixlen + _MORE_BITS, _LARGEST)
    sizes = [min(net.prefixlen for net in given)] if given else range(min(largest, 32), 33)
    # Looked up by their beginning: a subnet can have many parts, and a segment many addresses.
    for size in sizes:
        width = 1 << (32 - size)
        full = {int(address) // width for address in taken if address in subnet}
        # Of these two Docker gives out neither.
        full |= {int(end) // width for end in (subnet.network_address, subnet.broadcast_address) if width == 1}
        first, parts = int(subnet.network_address) // width, 1 << (size - subnet.prefixlen)
        found: list[ipaddress.IPv4Network] = []
        for number in (*range(parts // 2, parts), *range(parts // 2 - 1, -1, -1)):
            part = ipaddress.IPv4Network(((first + number) * width, size))
            if first + number not in full and not any(part.overlaps(net) for net in given):
                found.append(part)
            if len(found) == count:
                return found
    return []


def _plain(address: str) -> str:
    """The address without its prefix length."""
    return address.partition("/")[0] if names.known(address) else address


def _flow(values: Mapping[str, Any]) -> str:
    """A line of YAML to copy."""
    return f"{{{', '.join(f'{key}: {value}' for key, value in values.items())}}}"
