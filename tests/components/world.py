"""Pulumi without an engine: runs a program and keeps what it registers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pulumi
from pulumi.runtime import mocks, rpc
from pulumi.runtime.proto import resource_pb2

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOlJu4uC35woP+j3Q0cZlG03aHqs757DGRQ0YW6UvrQY"
MACHINE = "0123456789abcdef0123456789abcdef"
STACK_ID = "feedfeedfeedfeed"
COMMAND = "command:remote:Command"


@dataclass
class Registration:
    """One resource as it was registered."""

    type: str
    name: str
    inputs: dict[str, Any]
    parent: str
    depends_on: set[str]
    ignore_changes: list[str]
    deleted_with: str
    secrets: set[str]
    secret_outputs: list[str]


@dataclass
class World(mocks.Mocks):
    """What the program registered, by resource name. `made`: outputs of other resources, by name; a name that
    is missing has not been made yet: its outputs are unknown in a preview."""

    preview: bool = False
    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    resources: dict[str, Registration] = field(default_factory=dict)
    #: Names of resources that fail, and those that the engine skips because of them.
    failing: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)

    def call(self, args: mocks.MockCallArgs) -> Any:
        """No program of ours calls functions."""
        raise AssertionError(args.token)

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        """What the resource becomes."""
        state = dict(args.inputs)
        if args.name in self.made:
            state |= self.made[args.name]
        elif not self.preview and args.typ.startswith("command:"):
            if args.name.endswith("-id"):
                state["stdout"] = STACK_ID
            elif args.name.endswith("-install"):
                state["stdout"] = json.dumps({"machine": MACHINE})
            else:
                state["stdout"] = ""
        return f"{args.name}-id", state

    def document(self, name: str) -> dict[str, Any]:
        """The document that a host's command gets, by the command's name without `-document`."""
        loaded: dict[str, Any] = json.loads(self.resources[f"{name}-document"].inputs["stdin"])
        return loaded

    def of_type(self, type_: str) -> list[str]:
        """Names of all resources of a type."""
        return [name for name, r in self.resources.items() if r.type == type_]


class Monitor(mocks.MockMonitor):
    """Keeps what MockMonitor drops."""

    world: World

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802 - the protocol's name
        """Called in a thread of the event loop's pool, as with the real engine."""
        if request.type != "pulumi:pulumi:Stack":
            inputs = rpc.deserialize_properties(request.object, keep_unknowns=True)
            self.world.resources[request.name] = Registration(
                request.type,
                request.name,
                {key: rpc.unwrap_rpc_secret(value) for key, value in inputs.items()},
                request.parent.rpartition("::")[2],
                {urn.rpartition("::")[2] for urn in request.dependencies},
                list(request.ignoreChanges),
                request.deletedWith.rpartition("::")[2],
                {key for key, value in inputs.items() if rpc.is_rpc_secret(value)},
                list(request.additionalSecretOutputs),
            )
        try:
            response = super().RegisterResource(request)
            on = {urn.rpartition("::")[2] for urn in request.dependencies}
            if on & (self.world.failing | self.world.skipped):
                self.world.skipped.add(request.name)
            if request.name in self.world.failing | self.world.skipped:
                response.result = resource_pb2.Result.FAIL
            return response
        finally:
            # MockMonitor makes a loop in each thread that it is called in, and closes none.
            with contextlib.suppress(RuntimeError):
                loop = asyncio.get_event_loop()
                if not loop.is_running():
                    loop.close()
                    asyncio.set_event_loop(None)


def run(program: Callable[[], Any], world: World | None = None) -> World:
    """Runs the program to its end. Raises what it raises. Names in it are the overlay's and the resource's own."""
    world = world or World()
    failed: list[BaseException] = []

    def body() -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        monitor = Monitor(world)
        monitor.world = world
        mocks.set_mocks(world, project="shop", stack="dev", preview=world.preview, monitor=monitor)
        try:
            pulumi.runtime.test(program)()
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            failed.append(error)
        finally:
            # A program that failed leaves tasks; collected later, they would be reported in another test.
            loop.set_exception_handler(lambda *_: None)
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
            gc.collect()

    # A thread, so that a program that hangs is a failure and not the end of the test run.
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "the program hangs"
    if failed:
        raise failed[0]
    return world
