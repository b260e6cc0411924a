"""Which bridge is meant by `docker:NETWORK`.

The kept document says the network, since Docker names a bridge by the network's id: a network
that was made anew has another, and the device that was a port of the old one is to become one of
the new. Everything that compares or acts sees the real name, as `resolved` gives it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from overlay_agent.document import Document
from overlay_agent.fields import DOCKER, holds_bridge

if TYPE_CHECKING:
    from overlay_agent.kernel import Kernel


def networks(document: Document) -> dict[str, Any]:
    """The document's Docker networks, by the name with which bridges refer to them."""
    return {name: spec for name, spec in document.services.items() if spec.KIND == "docker-network"}


def standing_still(document: Document) -> Document:
    """What a stopped stack has on its host: bridges that are down and have no addresses, so that containers stay
    plugged in, and networks that are Docker's. No tunnel, no service; a NIC that was a port is as it was before, and
    its bridge, which had its addresses, is gone."""
    of_nics = {spec.bridge for spec in document.services.values() if spec.KIND == "uplink"}
    none: Any = {"addresses": {}, "deprecated": {}}
    return dataclasses.replace(
        document,
        devices={
            name: dataclasses.replace(spec, up=False, **none)
            for name, spec in document.devices.items()
            if spec.KIND == "bridge" and name not in of_nics
        },
        services=networks(document),
    )


def resolved(document: Document, kernel: Kernel | None = None) -> Document:
    """The document with each bridge by its real name, and, as `kernel` shows them, with what uplinks take from
    their NICs. Where Docker has no such network or does not run, the name stays as it is: the network's own kind
    says so. Docker is asked only where the document does not know itself. Of one that is stopped, what is left."""
    if document.stopped:
        document = standing_still(document)
    if kernel and any(spec.KIND == "uplink" for spec in document.services.values()):
        from overlay_agent import uplinks  # noqa: PLC0415 - of few documents

        document = uplinks.resolved(document, kernel)
    names = {name: spec.bridge for name, spec in networks(document).items()}
    if not names:
        return document
    if not all(names.values()):
        from overlay_agent import docker_api  # noqa: PLC0415 - costs 15 ms where there is no Docker

        there = [] if docker_api.missing() else docker_api.networks()
        found = {DOCKER + raw["Name"]: docker_api.bridge_of(raw) for raw in there}
        names = {name: bridge or found.get(name) for name, bridge in names.items()}

    def real(name: str, spec: Any) -> Any:
        if name in names:
            return dataclasses.replace(spec, bridge=names[name])
        fields = (f.name for f in dataclasses.fields(spec) if holds_bridge(f))
        values = {field: names.get(getattr(spec, field)) for field in fields}
        return dataclasses.replace(spec, **{field: bridge for field, bridge in values.items() if bridge})

    return dataclasses.replace(
        document,
        devices={name: real(name, spec) for name, spec in document.devices.items()},
        services={name: real(name, spec) for name, spec in document.services.items()},
    )
