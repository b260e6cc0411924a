"""A segment's bridge: the switch that its containers and tunnels are plugged into, one on each host."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict

import pydantic
from pulumi import Input, Output, ResourceOptions
from typing_extensions import Unpack

from overlay_agent import fields
from overlay_agent.kinds import Device
from overlay_agent.kinds.bridge import Bridge as BridgeSpec
from overlay_components import foreign_bridge, model
from overlay_components.component import Component, applied, words
from overlay_components.model import Checked
from overlay_components.uplinks import MODES, NAT

_OF_PLAN = [*(f.name for f in dataclasses.fields(Device)), "deprecated", "hello_time", "max_age"]
#: Spanning tree with two hubs: the shortest times that the kernel takes. The standby takes over after max_age and
#: twice forward_delay.
_FAST = {"hello_time": 1, "max_age": 6, "forward_delay": 2}
#: The first hub becomes the root, and the second is the next; of bridges on which spanning tree was left at its
#: default none comes before them.
_HUB_PRIORITIES = (4096, 8192)
_Nics = dict[Annotated[str, Checked(model.Name())], Annotated[str, Checked(fields.InterfaceName())]]


class BridgeOptions(model.Model):
    """The bridge's keys that are not attributes of the device."""

    name: Annotated[str | None, Checked(fields.InterfaceName())] = pydantic.Field(
        default=None, description="The device's name; default br-<segment>"
    )
    mode: Annotated[str, Checked(fields.Choice(MODES))] = pydantic.Field(
        default=NAT,
        description="Whose network it is. nat: the hosts' own; host: the one that a NIC is in, whose addresses move to "
        "the bridge; external: one that a router outside serves, where hosts have no address",
    )
    uplinks: _Nics = pydantic.Field(
        default={}, description="By host, the NIC that leads to that network (mode: host, external)"
    )
    extra_hosts: _Nics = pydantic.Field(
        default={}, description="By host, a further NIC, behind which are machines that the segment serves too"
    )
    separate_lans: Annotated[bool, Checked(fields.Flag())] = pydantic.Field(
        default=False,
        description="true: no two of these NICs are on one LAN, so that tunnels between their hosts make no loop",
    )
    attach: foreign_bridge.Attach = pydantic.Field(default=None, description="A bridge that is there already")
    docker: foreign_bridge.Docker = pydantic.Field(default=None, description="A Docker network to make")


OPTIONS = model.with_fields_of(
    BridgeSpec,
    BridgeOptions,
    leave_out=_OF_PLAN,
    words={
        "stp": "Spanning tree; allows rings of tunnels. A new port then waits twice forwardDelay",
        "priority": "Spanning tree: the bridge with the lowest becomes the root",
        "forward_delay": "Spanning tree: how long a port listens, and then learns; seconds",
        "ageing": "After how long without traffic a MAC address is forgotten; seconds, 0: at once",
        "vlan_filtering": "Whether the bridge minds VLAN tags",
        "multicast_snooping": "Whether multicast goes only where it was asked for",
    },
)


def name_of(segment: str, options: BridgeOptions) -> str:
    """The bridge's name on every host; `docker:NETWORK` where Docker chose it, on each host another."""
    if options.attach:
        docker = options.attach.docker
        return f"{fields.DOCKER}{docker}" if docker else str(options.attach.lxd or options.attach.bridge)
    return options.name or f"br-{segment}"


def device(options: BridgeOptions, common: dict[str, Any]) -> BridgeSpec:
    """The agent's spec. `common`: the arguments that every device has."""
    return BridgeSpec(**common, **model.values_of(options, BridgeSpec, leave_out=_OF_PLAN))


def with_hubs(spec: BridgeSpec, options: BridgeOptions, hubs: Sequence[str], host: str) -> BridgeSpec:
    """The same where the segment has two hubs: spanning tree chooses which of them passes frames on."""
    fast: dict[str, Any] = {key: value for key, value in _FAST.items() if key not in options.model_fields_set}
    if host in hubs:
        fast["priority"] = _HUB_PRIORITIES[hubs.index(host)]
    return dataclasses.replace(spec, stp=True, **fast)


# -- the component ---------------------------------------------------------------------------


class AttachArgs(TypedDict, total=False):
    """Keys of `bridge.attach`, of which one is given (docs/stack-file.md)."""

    docker: str
    lxd: str
    bridge: str


class DockerArgs(TypedDict, total=False):
    """Keys of `bridge.docker` (docs/stack-file.md). Hosts are given as Host objects or by name."""

    create: Literal[True]
    network: str
    ranges: Mapping[Any, str]


class BridgeDeviceArgs(TypedDict, total=False):
    """Keys of a segment's `bridge` (docs/stack-file.md)."""

    name: str
    mode: Literal["nat", "host", "external"]
    uplinks: Mapping[Any, str]
    extra_hosts: Mapping[Any, str]
    separate_lans: bool
    attach: AttachArgs
    docker: DockerArgs
    stp: bool
    priority: int
    forward_delay: int
    ageing: int
    vlan_filtering: bool
    multicast_snooping: bool


class ContainerArgs(TypedDict, total=False):
    """Keys of a segment's containers (docs/stack-file.md)."""

    host: Any
    address: Input[str]
    mac: Input[str]
    runtime: Literal["none", "lxc", "lxd", "incus", "docker"]


class SegmentArgs(TypedDict, total=False):
    """Keys of `overlay:segments.<name>` but its tunnels and dhcp (docs/stack-file.md). Hosts are given as
    Host objects or by name."""

    hosts: Sequence[Any]
    subnets: Sequence[str]
    addresses: Mapping[Any, Input[str] | Sequence[Input[str]]]
    bridge: BridgeDeviceArgs | Literal["none"]
    mtu: int
    encryption: Literal["wireguard", "none"]
    gateway: Any
    reserved: Sequence[str]
    containers: Mapping[str, ContainerArgs]
    isolate_host: bool
    routes: Mapping[str, Any]
    adopt: bool


class Bridge(Component):
    """A segment: one bridge on each of its hosts, and what is plugged into them.

    Outputs: `ready`, true once all its hosts are as declared; `mtu`, in bytes, what its containers
    may use; `plan`, the segment and its containers as in the stack's outputs.
    """

    def __init__(self, name: str, opts: ResourceOptions | None = None, **args: Unpack[SegmentArgs]) -> None:
        values = words(args)
        if isinstance(values.get("bridge"), dict):
            values["bridge"] = words(values["bridge"])
        super().__init__("Bridge", name, values, opts)
        self.overlay.declare("segments", name, value=values)

    @property
    def ready(self) -> Output[bool]:
        """True once all its hosts are as declared."""
        return self.promised("ready")

    @property
    def mtu(self) -> Output[int]:
        """What its containers may use, in bytes."""
        return self.promised("mtu")

    @property
    def plan(self) -> Output[dict[str, Any]]:
        """The segment and its containers as in the stack's outputs."""
        return self.promised("plan")

    def settle(self, plan: Output[Any], commands: Mapping[str, Any]) -> None:
        """See Component.settle."""
        hosts = self.overlay.raw["segments"][self.name].get("hosts") or commands
        mine = [commands[host] for host in hosts if host in commands]
        # `depends_on=[bridge]` waits for a component's children; these are its hosts' commands.
        self._childResources.update(mine)
        ready = applied(mine)
        row = Output.all(plan, ready).apply(
            lambda both: {**both[0].segments[self.name], "containers": both[0].containers[self.name]}
        )
        self.keep("ready", lambda: ready)
        self.keep("mtu", lambda: row.apply(lambda r: r["mtu"]))
        self.keep("plan", lambda: row)
        self.register_outputs({"ready": self.ready, "mtu": self.mtu})
