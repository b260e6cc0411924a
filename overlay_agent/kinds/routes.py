"""Static routes of one segment on one host (ip-route(8)), under a protocol number of our own.

A route has no alias. Whose it is shows in what it has instead: the protocol number says that it is
ours, the metric, which is derived from the service's mark, of which service. So `find` needs no
store, and a table of routes can be read by a person: `ip route show proto 95`.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import fields
from overlay_agent.kinds.base import Kind, Spec, attribute

if TYPE_CHECKING:
    from overlay_agent.document import Document
    from overlay_agent.kernel import Kernel, Route

#: Nobody's: not in linux/rtnetlink.h (whose numbers routing daemons have agreed on), not in iproute2's rt_protos.
PROTOCOL = 95
RTPROT_KERNEL = 2
#: Above what people and daemons use: their routes to the same destination win, and are refused by name.
METRIC, METRICS = 0x40000000, 0x01000000
#: How `Route.via` begins where there is none.
NO_NEXT_HOP = "no next hop"


class _NextHops(fields.Keyed):
    """The next hop by subnet. What was found may be in words (Route.via), which have no other spelling."""

    def normal(self, value: Any) -> Any:
        return {self.key.normal(key): self.value.normal(one) if _is_address(one) else one for key, one in value.items()}


@dataclasses.dataclass(frozen=True)
class Routes(Spec):
    """The next hop by subnet, in the main table; the next hop decides the interface."""

    KIND: ClassVar[str] = "routes"

    routes: dict[str, str] = attribute(_NextHops("route", fields.Subnet(), fields.Address()), default={})


class RoutesKind(Kind):
    """How they are made."""

    name = "routes"
    spec = Routes
    rank = 16

    def wrong(self, spec: Routes) -> list[str]:
        out = [] if spec.routes else ["routes: there are none; leave the service out"]
        for subnet, via in sorted(spec.routes.items()):
            if (":" in subnet) != (":" in via):
                out.append(f"routes: {subnet} via {via}: both must be of one IP version")
            elif ipaddress.ip_address(via).is_link_local:
                out.append(
                    f"routes: {subnet} via {via}: such an address is on every interface; name another of that router"
                )
        return out

    def commands(self, name: str, spec: Routes, mark: str) -> list[list[str]]:
        tail = ["proto", str(PROTOCOL), "metric", str(metric_of(mark))]
        return [
            ["ip", *(["-6"] if ":" in via else []), "route", "replace", subnet, "via", via, *tail]
            for subnet, via in sorted(spec.routes.items())
        ]

    def wrong_here(self, kernel: Kernel, name: str, spec: Routes, wanted: Document) -> list[str]:
        out = []
        there = [route for route in kernel.main_routes() if route.protocol not in (PROTOCOL, RTPROT_KERNEL)]
        networks = _networks(kernel, wanted)
        for subnet, via in sorted(spec.routes.items()):
            where, next_hop = f"route {subnet} via {via}", ipaddress.ip_address(via)
            out += [
                f"{where}: there is one to {subnet} already that is not ours and would be taken instead "
                f"(via {route.via}, proto {route.protocol}); remove that one, or leave this one out"
                for route in there
                if route.subnet == subnet
            ]
            if any(next_hop == network.ip for network in networks):
                out.append(f"{where}: {via} is this host itself; name the router that is next on the way")
            elif not any(next_hop in network.network for network in networks):
                out.append(f"{where}: this host is in no network with {via}; give its bridge an address there, "
                           "or name a router that it has a network in common with")  # fmt: skip
        return out

    def find(self, kernel: Kernel, name: str, mark: str) -> Routes | None:
        found = _ours(kernel, mark)
        return Routes({subnet: _text(routes) for subnet, routes in found.items()}) if found else None

    def image(self, kernel: Kernel, name: str, mark: str) -> dict[str, Any]:
        # What the spec cannot say, since somebody else has changed it, is kept word by word.
        odd = [routes for routes in _ours(kernel, mark).values() if not _is_address(_text(routes))]
        return {"mark": mark, "odd": [route.text for routes in odd for route in routes]}

    def create(self, kernel: Kernel, name: str, spec: Routes, mark: str, image: Mapping[str, Any]) -> None:
        self.change(kernel, name, spec, Routes(), mark)

    def change(self, kernel: Kernel, name: str, spec: Routes, found: Routes, mark: str) -> None:
        # Not by `found`: a bridge that was made anew since may have lost its routes, or got them back.
        there = {subnet: _text(routes) for subnet, routes in _ours(kernel, mark).items()}
        for subnet, via in spec.routes.items():
            if there.get(subnet) != via and _is_address(via):
                kernel.set_route(name, subnet, via, metric_of(mark), PROTOCOL)
        for subnet, routes in _ours(kernel, mark).items():
            for route in routes:
                if route.via != spec.routes.get(subnet):
                    kernel.delete_route(name, route.text)

    def delete(self, kernel: Kernel, name: str, mark: str) -> None:
        self.change(kernel, name, Routes(), Routes(), mark)

    def put_back(self, kernel: Kernel, name: str, image: Mapping[str, Any], *, exactly: bool) -> list[str]:
        there = {route.text for route in kernel.main_routes()} if exactly and image["odd"] else set()
        for text in image["odd"] if exactly else ():
            if text not in there:
                kernel.add_route(name, text)
        return []


def metric_of(mark: str) -> int:
    """The metric of a service's routes."""
    return METRIC + zlib.crc32(mark.encode()) % METRICS


def _ours(kernel: Kernel, mark: str) -> dict[str, list[Route]]:
    """The service's routes by subnet; one each, unless somebody added more."""
    found: dict[str, list[Route]] = {}
    for route in kernel.main_routes():
        if (route.protocol, route.metric) == (PROTOCOL, metric_of(mark)):
            found.setdefault(route.subnet, []).append(route)
    return found


def _text(routes: list[Route]) -> str:
    return ", ".join(route.via for route in routes)


def _is_address(via: str) -> bool:
    return fields.Address().check(via) is None


def _networks(kernel: Kernel, wanted: Document) -> list[Any]:
    """The networks that this host will be in, each as one of its addresses in it (ip_interface)."""
    mine = {name for name, link in kernel.links.items() if link.alias.startswith(wanted.owner.alias(""))}
    addresses = [address for spec in wanted.devices.values() for address in spec.addresses]
    addresses += [a for name, link in kernel.links.items() if name not in mine for a in kernel.addresses(link)]
    for spec in wanted.services.values():
        if spec.KIND == "docker-network" and spec.create:  # it is only now made
            addresses += [
                f"{gateway}/{ipaddress.ip_network(subnet).prefixlen}"
                for subnet in spec.subnets
                for gateway in spec.gateways
                if ipaddress.ip_address(gateway) in ipaddress.ip_network(subnet)
            ]
    # Networks that are only routed to an interface, without an address in them.
    addresses += [
        route.subnet
        for route in kernel.main_routes()
        if route.devices and mine.isdisjoint(route.devices) and route.via.startswith(NO_NEXT_HOP)
    ]
    return [ipaddress.ip_interface(address) for address in addresses]


KIND = RoutesKind()
