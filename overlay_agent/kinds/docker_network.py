"""A Docker network on this host: made by us, or made by others and only looked at.

Docker is asked by its own API on its socket, so what is compared is what the daemon has, and the
daemon stays the owner of the bridge and its address. The service is named as bridges in the same
document refer to it: `docker:NETWORK`.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import fields
from overlay_agent.fields import DOCKER, Difference
from overlay_agent.kinds.base import PORT_FIELDS, RECREATE, Kind, Spec, attribute, optional

if TYPE_CHECKING:
    from overlay_agent.document import Document
    from overlay_agent.kernel import Kernel


@dataclasses.dataclass(frozen=True)
class DockerNetwork(Spec):
    """One network of the driver bridge; the service's name is `docker:<its name>`. Units: mtu in bytes.

    `create`: the network is ours: made, compared in every field, removed. Without, it has to be
    there; its subnets are compared, and its MTU must not be above `mtu`.
    """

    KIND: ClassVar[str] = "docker-network"

    create: bool = attribute(fields.Flag(), default=False)
    #: The bridge's name (com.docker.network.bridge.name), where the network is ours.
    bridge: str | None = attribute(optional(fields.InterfaceName()), default=None, change=RECREATE)
    subnets: dict[str, Any] = attribute(fields.Keyed("subnet", fields.Subnet(), fields.Empty()), change=RECREATE)
    #: This host's own gateway addresses, one a subnet.
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
    """How Docker is asked. It has no way to change a network, so what differs is made anew."""

    name = "docker-network"
    spec = DockerNetwork
    #: Before the devices that become ports of its bridge.
    rank = 1

    # -- pure -------------------------------------------------------------------------------

    def wrong(self, spec: DockerNetwork) -> list[str]:
        own = ("bridge", "gateways", "ranges", "auxiliary")
        if not spec.create:
            return [f"{field}: only for a network that is made here (create)" for field in own if getattr(spec, field)]
        out = [] if spec.bridge else ["bridge: missing; a network that is made here has a bridge of a fixed name"]
        inside = {"gateways": spec.gateways, "ranges": spec.ranges, "auxiliary": spec.auxiliary.values()}
        for field, values in inside.items():
            out += [
                f"{field}: {value} is in none of {_listed(spec.subnets)}" for value in values if not _in(value, spec)
            ]
        for field in ("gateways", "ranges"):
            of = [_in(value, spec) for value in getattr(spec, field)]
            out += [
                f"{field}: {subnet} has several; Docker takes one" for subnet in spec.subnets if of.count(subnet) > 1
            ]
            if field == "gateways":
                out += [
                    f"gateways: {subnet} has none; name one, or Docker takes an address of its own choice"
                    for subnet in spec.subnets
                    if subnet not in of
                ]
        return out

    def will_do(self, found: DockerNetwork, wanted: DockerNetwork) -> set[str]:
        if wanted.create:
            # Docker cannot change a network, nor make it anew while containers are on it. Outside of its range it
            # gives out nothing by itself: so a host may come or go, and with it an address that was not to be had.
            changed = {*found.auxiliary.values()} ^ {*wanted.auxiliary.values()}
            apart = wanted.ranges and not any(_within(one, range_) for one in changed for range_ in wanted.ranges)
            return {"auxiliary"} if apart else set()
        lower = {"mtu"} if found.mtu <= wanted.mtu else set()
        return {"create", "bridge", "gateways", "ranges", "auxiliary"} | lower

    def device(self, spec: DockerNetwork) -> str | None:
        return spec.bridge

    def commands(self, name: str, spec: DockerNetwork, mark: str) -> list[list[str]]:
        from overlay_agent import docker_api  # noqa: PLC0415 - socket and json, where there is a network

        if not spec.create:
            return []
        words = [*_create_words(spec.subnets), "--driver", "bridge"]
        words += [word for gateway in spec.gateways for word in ("--gateway", gateway)]
        words += [word for range_ in spec.ranges for word in ("--ip-range", range_)]
        words += [word for key, address in spec.auxiliary.items() for word in ("--aux-address", f"{key}={address}")]
        words += ["--opt", f"{docker_api.BRIDGE_NAME}={spec.bridge}", "--opt", f"{docker_api.MTU}={spec.mtu}"]
        return [[*words, "--label", f"{docker_api.LABEL}={mark}", _network(name)]]

    # -- on the host ------------------------------------------------------------------------

    def find(self, kernel: Kernel, name: str, mark: str) -> DockerNetwork | None:
        raw = _found(name)
        return _spec(raw, mark) if raw else None

    def still_ours(self, kernel: Kernel, name: str, stored: Mapping[str, Any]) -> bool:
        from overlay_agent import docker_api  # noqa: PLC0415 - as above

        raw = _found(name) if stored.get("create") else None
        return bool(raw) and docker_api.label(raw).startswith("overlay:")  # type: ignore[arg-type]

    def stays(self, kernel: Kernel, name: str, stored: Mapping[str, Any], mark: str, *, force: bool) -> str:
        from overlay_agent import docker_api  # noqa: PLC0415 - as above

        network = _network(name)
        if not stored.get("create"):
            return f"network {network} stays: it was attached, not made"
        if docker_api.missing():
            return f"network {network} stays: {docker_api.missing()}; docker network rm {network} when it is"
        raw = _found(name)
        if raw and docker_api.label(raw) != mark:
            return f"network {network} stays: somebody made it anew; it is not ours"
        on = sorted(docker_api.containers(network)) if raw and not force else []
        if on:
            return f"network {network} stays: {_containers(on)} on it; docker network rm {network} when they are gone"
        return ""

    def beside(self, kernel: Kernel, name: str, mark: str) -> list[Difference]:
        from overlay_agent import docker_api  # noqa: PLC0415 - as above

        raw = _found(name)
        if not raw:
            return []
        bridge = docker_api.bridge_of(raw)
        rows: list[Difference] = [("driver", raw["Driver"], "bridge")] if raw["Driver"] != "bridge" else []
        return rows + ([] if rows or bridge in kernel.links else [("device", None, bridge)])

    def wrong_here(self, kernel: Kernel, name: str, spec: DockerNetwork, wanted: Document) -> list[str]:
        from overlay_agent import docker_api  # noqa: PLC0415 - as above

        if docker_api.missing():
            return [f"{docker_api.missing()}; start it, or leave out {'docker' if spec.create else 'bridge.attach'}"]
        raw = _found(name)
        if spec.create:
            return self._cannot_be_made(kernel, name, spec, wanted, raw)
        return self._cannot_be_attached(kernel, name, spec, raw)

    def _cannot_be_attached(
        self, kernel: Kernel, name: str, spec: DockerNetwork, raw: dict[str, Any] | None
    ) -> list[str]:
        from overlay_agent import docker_api  # noqa: PLC0415 - as above

        network = _network(name)
        where = f"docker network {network!r}"
        words = [*_create_words(spec.subnets), "--opt", f"{docker_api.MTU}={spec.mtu}", network]
        command = " ".join(words)
        if raw is None:
            return [f"{where} is not on this host; make it: {command}, or write docker: {{create: true}}"]
        if raw["Driver"] != "bridge":
            return [f"{where} has the driver {raw['Driver']}, which has no bridge; name one of the driver bridge"]
        out, found = self._no_device(kernel, network, raw), _spec(raw, "")
        if found.subnets.keys() != spec.subnets.keys():
            out.append(
                f"{where} has {_listed(found.subnets)}, but the segment has {_listed(spec.subnets)}; write that in "
                f"subnets, or make the network anew: {command}"
            )
        if found.mtu > spec.mtu:
            out.append(
                f"{where} has an MTU of {found.mtu}, but the tunnels carry {spec.mtu}; make it anew: {command}, or "
                f"raise the underlay's by {found.mtu - spec.mtu} (mtu of every host on the segment)"
            )
        return out

    def _cannot_be_made(
        self, kernel: Kernel, name: str, spec: DockerNetwork, wanted: Document, raw: dict[str, Any] | None
    ) -> list[str]:
        from overlay_agent import docker_api  # noqa: PLC0415 - as above

        network, stack = _network(name), wanted.owner.alias("")
        where = f"docker network {network!r}"
        if raw and docker_api.label(raw) != wanted.owner.alias(name):
            whose = f"belongs to {docker_api.label(raw)}" if docker_api.label(raw) else "is not ours"
            way = f"attach it (bridge.attach: {{docker: {network}}}), or give ours another name"
            return [f"{where} is there and {whose}; {way}"]
        out = self._no_device(kernel, network, raw) if raw else []
        on = self._cut_off(kernel, name, spec, wanted, raw) if raw else []
        if on:
            out.append(
                f"{where} would be made anew, but {_containers(on)} on it; disconnect those first, or set "
                f"overlay:hosts.{wanted.host}.force: true"
            )
        link = kernel.links.get(spec.bridge or "")
        if link and not (raw and docker_api.bridge_of(raw) == spec.bridge) and not link.alias.startswith(stack):
            out.append(f"bridge: a device {spec.bridge!r} is there and is not of this network; give ours another name")
        for other in docker_api.networks():
            going = docker_api.label(other).startswith(stack) and DOCKER + other["Name"] not in wanted.services
            if other["Name"] != network and not going:
                out += [
                    f"subnet {subnet} overlaps with {taken} of the docker network {other['Name']!r}; take another, "
                    f"or remove that one: docker network rm {other['Name']}"
                    for subnet in spec.subnets
                    for taken in _subnets(other)
                    if _overlap(subnet, taken)
                ]
        return out

    def _cut_off(
        self, kernel: Kernel, name: str, spec: DockerNetwork, wanted: Document, raw: dict[str, Any]
    ) -> list[str]:
        """The containers that would lose their network for a moment, if that is not allowed."""
        from overlay_agent import docker_api  # noqa: PLC0415 - as above
        from overlay_agent.diff import diff  # noqa: PLC0415 - imports this one

        mark = wanted.owner.alias(name)
        changes = diff({name: spec}, {name: _spec(raw, mark)}, {name: self.beside(kernel, name, mark)})
        return sorted(docker_api.containers(_network(name))) if changes and not wanted.force else []

    def _no_device(self, kernel: Kernel, network: str, raw: dict[str, Any]) -> list[str]:
        from overlay_agent import docker_api  # noqa: PLC0415 - as above

        bridge = docker_api.bridge_of(raw)
        if bridge in kernel.links:
            return []
        return [f"docker network {network!r}: its bridge {bridge} is gone; restart docker, which makes it again"]

    def image(self, kernel: Kernel, name: str, mark: str) -> dict[str, Any]:
        from overlay_agent import docker_api  # noqa: PLC0415 - as above

        raw = _found(name)
        bridge = docker_api.bridge_of(raw) if raw else ""
        link = kernel.links.get(bridge)
        return {
            "mark": mark,
            "bridge": bridge,
            "containers": docker_api.containers(_network(name)),
            # They go with the bridge, and a port's flags go with its being one.
            "ports": {port: _flags(kernel, port) for port in kernel.ports(bridge)},
            "addresses": kernel.addresses(link) if link else [],
            "routes": kernel.routes(link.index) if link else [],
            "index": link.index if link else 0,
        }

    def create(self, kernel: Kernel, name: str, spec: DockerNetwork, mark: str, image: Mapping[str, Any]) -> None:
        from overlay_agent import docker_api  # noqa: PLC0415 - as above

        network = _network(name)
        body = {
            "Name": network,
            "CheckDuplicate": True,
            "Driver": "bridge",
            "EnableIPv6": any(":" in subnet for subnet in spec.subnets),
            "IPAM": {"Driver": "default", "Config": [_config(subnet, spec) for subnet in spec.subnets]},
            "Options": {docker_api.BRIDGE_NAME: spec.bridge, docker_api.MTU: str(spec.mtu)},
            "Labels": {docker_api.LABEL: mark},
        }
        docker_api.request("POST", "/networks/create", f"docker network {network}: create", body)
        kernel.reached()
        kernel.refresh()

    def change(self, kernel: Kernel, name: str, spec: DockerNetwork, found: DockerNetwork, mark: str) -> None:
        self.delete(kernel, name, mark)
        self.create(kernel, name, spec, mark, {})

    def delete(self, kernel: Kernel, name: str, mark: str) -> None:
        from overlay_agent import docker_api  # noqa: PLC0415 - as above

        network, raw = _network(name), _found(name)
        if raw is None or docker_api.label(raw) != mark:
            return
        for container in docker_api.containers(network):
            what = f"docker network {network}: disconnect {container}"
            docker_api.request(
                "POST", f"/networks/{raw['Id']}/disconnect", what, {"Container": container, "Force": True}
            )
            kernel.reached()
        docker_api.request("DELETE", f"/networks/{raw['Id']}", f"docker network {network}: remove")
        kernel.reached()
        kernel.refresh()

    def put_back(self, kernel: Kernel, name: str, image: Mapping[str, Any], *, exactly: bool) -> list[str]:
        raw = _found(name)
        if not raw:
            return []
        notes = self._reconnect(kernel, name, raw, image["containers"])
        kernel.refresh()
        from overlay_agent import docker_api  # noqa: PLC0415 - as above

        bridge = docker_api.bridge_of(raw)
        for port, flags in image["ports"].items():
            if port in kernel.links and not kernel.links[port].master:
                kernel.set_master(port, bridge)
                kernel.set_port(port, flags)
        have = kernel.addresses(kernel.links[bridge])
        lost = [address for address in image["addresses"] if address not in have] if exactly else []
        kernel.set_addresses(bridge, have, [*have, *lost])
        refused = kernel.add_routes(image["routes"], image["index"], kernel.index_of[bridge])
        return notes + [f"{bridge}: {refusal}" for refusal in refused]

    def _reconnect(self, kernel: Kernel, name: str, raw: dict[str, Any], containers: Mapping[str, Any]) -> list[str]:
        from overlay_agent import docker_api  # noqa: PLC0415 - as above
        from overlay_agent.errors import KernelError  # noqa: PLC0415 - as above

        notes, network = [], _network(name)
        there = docker_api.containers(network)
        for container, endpoint in containers.items():
            if container not in there:
                wish = {key: endpoint.get(key) for key in ("IPAMConfig", "Links", "Aliases", "DriverOpts")}
                body = {"Container": container, "EndpointConfig": wish}
                what = f"docker network {network}: connect {container}"
                try:
                    docker_api.request("POST", f"/networks/{raw['Id']}/connect", what, body)
                except KernelError as error:
                    notes.append(str(error))
                kernel.reached()
        return notes


def _network(name: str) -> str:
    return name.removeprefix(DOCKER)


def _found(name: str) -> dict[str, Any] | None:
    """What Docker has of that network; None also where it cannot be asked: `wrong_here` says so."""
    from overlay_agent import docker_api  # noqa: PLC0415 - as above

    return None if docker_api.missing() else docker_api.network(_network(name))


def _spec(raw: dict[str, Any], mark: str) -> DockerNetwork:
    from overlay_agent import docker_api  # noqa: PLC0415 - as above

    rows = raw["IPAM"]["Config"] or []
    return DockerNetwork(
        create=bool(mark) and docker_api.label(raw) == mark,
        bridge=docker_api.bridge_of(raw),
        subnets={subnet: {} for subnet in _subnets(raw)},
        gateways={row["Gateway"].partition("/")[0]: {} for row in rows if row.get("Gateway")},
        ranges={row["IPRange"]: {} for row in rows if row.get("IPRange")},
        auxiliary={key: address for row in rows for key, address in (row.get("AuxiliaryAddresses") or {}).items()},
        mtu=int((raw["Options"] or {}).get(docker_api.MTU) or docker_api.DEFAULT_MTU),
    )


def _subnets(raw: dict[str, Any]) -> list[str]:
    return [row["Subnet"] for row in raw["IPAM"]["Config"] or [] if row.get("Subnet")]


def _config(subnet: str, spec: DockerNetwork) -> dict[str, Any]:
    """The subnet and what of the spec is in it, as IPAM configuration."""
    gateway = next((address for address in spec.gateways if _in(address, spec) == subnet), None)
    range_ = next((range_ for range_ in spec.ranges if _in(range_, spec) == subnet), None)
    auxiliary = {key: address for key, address in spec.auxiliary.items() if _in(address, spec) == subnet}
    row = {"Subnet": subnet, "Gateway": gateway, "IPRange": range_, "AuxiliaryAddresses": auxiliary}
    return {key: value for key, value in row.items() if value}


def _in(value: str, spec: DockerNetwork) -> str | None:
    """The subnet that holds the address or range."""
    inner = ipaddress.ip_network(value)
    for subnet in spec.subnets:
        outer = ipaddress.ip_network(subnet)
        if inner.version == outer.version and inner.subnet_of(outer):  # type: ignore[arg-type]
            return subnet
    return None


def _overlap(one: str, other: str) -> bool:
    return ipaddress.ip_network(one).overlaps(ipaddress.ip_network(other))


def _create_words(subnets: Iterable[str]) -> list[str]:
    words = ["docker", "network", "create"]
    words += ["--ipv6"] if any(":" in subnet for subnet in subnets) else []
    return words + [word for subnet in subnets for word in ("--subnet", subnet)]


def _flags(kernel: Kernel, port: str) -> dict[str, int]:
    there = kernel.links[port].port
    return {nla: int(there[nla]) for nla in PORT_FIELDS.values() if nla in there}


def _listed(values: Iterable[str]) -> str:
    return ", ".join(values) or "no subnet"


def _containers(names: list[str]) -> str:
    return f"containers {', '.join(names)} are" if len(names) > 1 else f"container {names[0]} is"


def _within(address: str, network: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(network)


KIND = DockerNetworkKind()
