"""What Host, Bridge and the tunnels have in common: they are declared inside an Overlay's block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import pulumi
from pulumi import Output, ResourceOptions

from overlay_agent.fields import json_name
from overlay_components import _outputs
from overlay_components.errors import SECRET_KEYS

if TYPE_CHECKING:
    from overlay_components.overlay import Overlay

#: The Overlay whose `with` block runs now.
open_block: Overlay | None = None


def current(who: str) -> Overlay:
    """The Overlay whose block this is. Raises RunError outside of one."""
    if open_block is None:
        raise pulumi.RunError(f"{who}: declared outside of an Overlay; write it inside `with Overlay(...):`")
    return open_block


class Component(pulumi.ComponentResource):
    """What is declared inside an Overlay's block. Its inputs stand in the state and the preview."""

    def __init__(self, what: str, name: str, inputs: Mapping[str, Any], opts: ResourceOptions | None) -> None:
        self.overlay = current(f"{what} {name!r}")
        self.name = name
        self.opts = opts or ResourceOptions()
        parent = ResourceOptions(parent=self.opts.parent or self.overlay)
        super().__init__(
            f"overlay:index:{what}",
            f"{self.overlay.name}-{name}",
            _hidden(inputs),
            ResourceOptions.merge(self.opts, parent),
        )
        self._promises: dict[str, _outputs.Promise[Any]] = {}
        self._kept: dict[str, Callable[[], Output[Any]]] = {}
        self._rejected: BaseException | None = None
        self.overlay.components.append(self)

    def promised(self, name: str) -> Output[Any]:
        """An output that the plan will give its value: see `settle`. Made when somebody asks for it."""
        if name not in self._promises:
            promise = self._promises[name] = _outputs.Promise()
            if name in self._kept:
                promise.keep(self._kept[name]())
            elif self._rejected:
                promise.reject(self._rejected)
        return self._promises[name].output

    def keep(self, name: str, make: Callable[[], Output[Any]]) -> None:
        """Gives a promised output its value."""
        self._kept[name] = make
        if name in self._promises:
            self._promises[name].keep(make())

    def reject(self, error: BaseException) -> None:
        """Whoever waits for a promised output gets the error, now or later."""
        self._rejected = error
        for promise in self._promises.values():
            promise.reject(error)

    def settle(self, plan: Output[Any], commands: Mapping[str, Any]) -> None:
        """Gives the promised outputs their values. `plan`: a plan.Plan; `commands`: each host's
        document command."""


def words(values: Mapping[str, Any]) -> dict[str, Any]:
    """Python's keyword arguments in the words of a stack file: vlan_filtering is vlanFiltering,
    and a Host is its name. What is None was not said."""
    return {json_name(key): _plain(value) for key, value in values.items() if value is not None}


def _hidden(value: Any) -> Any:
    """The same with what is secret as Pulumi's secrets."""
    if isinstance(value, Mapping):
        return {
            key: Output.secret(inner) if key in SECRET_KEYS and inner is not None else _hidden(inner)
            for key, inner in value.items()
        }
    return [_hidden(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Component):
        return value.name
    if isinstance(value, Mapping):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def applied(commands: Iterable[Any]) -> Output[bool]:
    """True once these hosts' documents are applied."""
    return Output.all(*(command.stdout for command in commands)).apply(lambda _: True)


# -- tunnels ---------------------------------------------------------------------------------


class TunnelArgs(TypedDict, total=False):
    """Keys of every kind of tunnel (docs/stack-file.md). Ends are Host objects or names."""

    kind: str
    topology: str
    endpoints: Sequence[Any] | Mapping[str, Sequence[Any]]
    hub: Any
    hubs: Sequence[Any]
    ifname: str


class TunnelComponent(Component):
    """A tunnel of a segment. A kind's component says its KIND and types its arguments."""

    KIND: ClassVar[str]

    def __init__(
        self, what: str, name: str, bridge: Any, args: Mapping[str, Any], opts: ResourceOptions | None
    ) -> None:
        values = {"kind": self.KIND, **words(args)}
        self.bridge = bridge
        super().__init__(what, name, {"segment": bridge.name, **values}, opts)
        # In the stack file a tunnel's name stands below its segment's and need not repeat it.
        key = name.removeprefix(f"{bridge.name}-")
        self.overlay.declare("segments", bridge.name, "tunnels", key, value=values)
        self.register_outputs({})

    @property
    def ready(self) -> Output[bool]:
        """True once all hosts of the segment are as declared."""
        ready: Output[bool] = self.bridge.ready
        return ready
