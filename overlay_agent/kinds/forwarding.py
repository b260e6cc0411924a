"""Whether this host passes packets on between its interfaces (ip-sysctl: ip_forward, all/forwarding).

A switch of the whole host that several stacks, and others, may want on: the first of ours that
needs it notes how it was, the last one out puts that back.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from overlay_agent import fields
from overlay_agent.kinds.base import Kind, Spec, attribute


@dataclasses.dataclass(frozen=True)
class Forwarding(Spec):
    """What one stack needs switched on. False: this stack does not need it."""

    KIND: ClassVar[str] = "forwarding"

    ipv4: bool = attribute(fields.Flag(), default=False)
    ipv6: bool = attribute(fields.Flag(), default=False)


class ForwardingKind(Kind):
    """How it is switched."""

    name = "forwarding"
    spec = Forwarding
    rank = 15


KIND = ForwardingKind()
