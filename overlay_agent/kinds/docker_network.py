"""A Docker network on this host: made by us, or made by others and only looked at.

Docker is asked by its own API on its socket (Docker Engine API 1.41, "Networks"), so what is
compared is what the daemon has, and the daemon stays the owner of the bridge and its address.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from overlay_agent import fields
from overlay_agent.kinds.base import RECREATE, Kind, Spec, attribute, optional


@dataclasses.dataclass(frozen=True)
class DockerNetwork(Spec):
    """One network of the driver bridge; the service's name is `docker:<its name>`. Units: mtu in bytes.

    `create`: the network is ours: made, compared in every field, removed. Without, it has to be
    there; its subnets are compared, and its MTU must not be above `mtu`.
    """

    KIND: ClassVar[str] = "docker-network"

    create: bool = attribute(fields.Flag(), default=False)
    #: The bridge's name (com.docker.network.bridge.name); null: whatever Docker called it.
    bridge: str | None = attribute(optional(fields.InterfaceName()), default=None, change=RECREATE)
    subnets: dict[str, Any] = attribute(fields.Keyed("subnet", fields.Subnet(), fields.Empty()), change=RECREATE)
    #: This host's own gateway addresses, one a subnet at most.
    gateways: dict[str, Any] = attribute(
        fields.Keyed("gateway", fields.Address(), fields.Empty()), default={}, change=RECREATE
    )
    #: From what Docker takes an address for a container that names none (--ip-range), one a subnet.
    ranges: dict[str, Any] = attribute(
        fields.Keyed("range", fields.Subnet(), fields.Empty()), default={}, change=RECREATE
    )
    #: Addresses that Docker must not give out (--aux-address), by name.
    auxiliary: dict[str, str] = attribute(
        fields.Keyed("auxiliary address", fields.Label(), fields.Address()), default={}, change=RECREATE
    )
    mtu: int = attribute(fields.Integer(68, 65535), change=RECREATE)


class DockerNetworkKind(Kind):
    """How Docker is asked."""

    name = "docker-network"
    spec = DockerNetwork
    #: Before the devices that become ports of its bridge.
    rank = 1


KIND = DockerNetworkKind()
