"""Static routes of one segment on one host (ip-route(8)), under a protocol number of our own."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from overlay_agent import fields
from overlay_agent.kinds.base import Kind, Spec, attribute


@dataclasses.dataclass(frozen=True)
class Routes(Spec):
    """The next hop by subnet, in the main table; the next hop decides the interface."""

    KIND: ClassVar[str] = "routes"

    routes: dict[str, str] = attribute(fields.Keyed("route", fields.Subnet(), fields.Address()), default={})


class RoutesKind(Kind):
    """How they are made."""

    name = "routes"
    spec = Routes
    rank = 16


KIND = RoutesKind()
