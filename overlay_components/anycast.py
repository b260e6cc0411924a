"""A segment's anycast gateway: the same address and MAC address on each of its hosts, each for its own containers.

So routed packets leave by the host on which the container runs, and a container that moves finds its gateway, with the
ARP entry that it has, on the other host. What keeps the hosts apart is in overlay_agent/kinds/anycast_gateway.py.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from overlay_agent import fields
from overlay_agent.kinds.anycast_gateway import AnycastGateway
from overlay_components import errors, model, names
from overlay_components.model import Checked

if TYPE_CHECKING:
    from overlay_components.addressing import Book
    from overlay_components.config import Segment

#: The word in a stack file.
ANYCAST = "anycast"


class GatewayOptions(model.Model):
    """A gateway that all hosts of the segment are."""

    anycast: Annotated[bool, Checked(fields.Flag())] = pydantic.Field(
        description="true: each host is the gateway of its own containers, by one address and MAC address"
    )
    address: Annotated[list[str] | None, Checked(model.OneOrMore(model.OverlayAddress()))] = pydantic.Field(
        default=None, description="One IPv4 and one IPv6 address; default: the first of a subnet of each version"
    )


def read(value: Any) -> str | GatewayOptions:
    """`gateway` as the stack file has it. Raises what pydantic tells as an error of that key."""
    if value == ANYCAST:
        return GatewayOptions(anycast=True)
    if isinstance(value, Mapping):
        found = model.read(GatewayOptions, value)
        if not found.anycast:
            raise model.stop("false; write the address alone, as gateway: 10.10.0.1", "anycast")
        return found
    wrong = model.Text().check(value)
    if wrong:
        raise model.stop(wrong.replace(repr(value), errors.shown(value), 1))
    return str(value)


class Anycast:
    """The anycast gateway of one segment. Errors are added to `wrong`."""

    def __init__(self, where: str, options: Segment, bridge: str | None, label: str, name: str) -> None:
        self.where, self.bridge, self.segment = f"{where}.gateway", bridge, name
        #: By IP version, with prefix length.
        self.addresses: dict[int, str] = {}
        self.mac = names.mac(label, name, "anycast gateway")
        self._options = options

    def settle(self, book: Book, owner: str | None, wrong: list[str]) -> None:
        """Enters its addresses. `owner`: whose the bridge is, where it is not the stack's."""
        bridge, said = self._options.bridge, self._options.gateway
        if bridge is None:
            wrong.append(f"{self.where}: anycast, but there is no bridge to stand at; leave out bridge: none")
        elif owner:
            wrong.append(f"{self.where}: anycast, but the bridge is {owner}; let the stack make it, or leave it out")
        elif bridge.mode != "nat":
            wrong.append(
                f"{self.where}: anycast, but the network behind the uplinks has a router of its own (mode: "
                f"{bridge.mode}); leave it out, or write mode: nat without uplinks"
            )
        elif not book.subnets:
            such = "such as subnets: [10.10.0.0/24]"
            wrong.append(f"{self.where}: anycast, but the segment has no subnets; give it one, {such}")
        else:
            assert isinstance(said, GatewayOptions)  # noqa: S101 - whoever made this has asked
            self._enter(said.address or [], book, wrong)

    def _enter(self, said: Sequence[str], book: Book, wrong: list[str]) -> None:
        for text in said:
            entered = book.enter(f"{self.where}.address", "the gateway", text)
            if entered is None:
                continue
            version = ipaddress.ip_interface(entered).version
            if version in self.addresses:
                wrong.append(
                    f"{self.where}.address: {text} is the second of IPv{version}; give one of each version at most"
                )
            self.addresses.setdefault(version, entered)
        for subnet in book.subnets:
            if subnet.version not in self.addresses and not any(_version(text) == subnet.version for text in said):
                entered = book.enter(self.where, "the gateway", str(next(iter(subnet.hosts()))))
                self.addresses.update({subnet.version: entered} if entered else {})

    @property
    def gateways(self) -> dict[int, str]:
        """The addresses alone, by IP version."""
        return {version: address.partition("/")[0] for version, address in sorted(self.addresses.items())}

    def of_bridge(self, own: Sequence[str]) -> dict[str, Any]:
        """What the bridge has on a host with these addresses of its own."""
        given = [ipaddress.ip_interface(address) for address in own if names.known(address)]
        out: dict[str, Any] = {address: {} for address in own}
        deprecated: dict[str, Any] = {}
        for version, text in self.addresses.items():
            address = ipaddress.ip_interface(text)
            # Answers to what is sent from it come to each host itself; so a host with an own address sends from that.
            if not any(one.ip in address.network for one in given):
                out[text] = {}
            elif version == 4:
                out[f"{address.ip}/32"] = {}
            else:
                out[text] = deprecated[text] = {}
        link_local = any(":" in address for address in out)
        return {"mac": self.mac, "addresses": out, "deprecated": deprecated, "link_local": link_local}

    def service(self, own: str, ports: Sequence[str]) -> AnycastGateway:
        """What stands at the tunnels' ports on a host whose MAC address there is `own`."""
        return AnycastGateway(
            interface=self.bridge or "",
            mac=self.mac,
            own=own,
            addresses={address: {} for address in self.gateways.values()},
            ports={port: {} for port in ports},
            dhcp=self._options.dhcp is not None,
        )


def _version(text: str) -> int:
    return ipaddress.ip_interface(text).version
