"""A stand-in for pulumi-resource-command 1.2.1, for machines that can reach no place which serves that.

It has the same resources, in so far as this project uses them, and keeps the same state: one can take over from the
other. Its gRPC methods are on Pulumi's provider protocol itself, because `pulumi.provider.experimental` adds Python
tracebacks to every error that a user reads, and hides what a Diff needs (the old inputs).
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import wire
from connection import ConnectionFailedError
from google.protobuf.empty_pb2 import Empty
from pulumi.runtime.proto import engine_pb2, engine_pb2_grpc, plugin_pb2, provider_pb2, provider_pb2_grpc
from resources import RESOURCES, CommandFailedError, Resource
from wire import Change

VERSION = "1.2.1"
# pulumi-resource-command's framework leaves its own version in the state of the provider. Without it, changing from
# one plugin to the other would show as a change of the provider.
FRAMEWORK = {"__pulumi-go-provider-version": "1.3.0"}
LARGEST_MESSAGE = 400 * 1024 * 1024  # as every Pulumi plugin
# Operations wait for hosts, not for a processor; the engine's --parallel is what bounds them.
WORKERS = 256

Kind = provider_pb2.PropertyDiff
KINDS = {
    (Change.ADD, False): Kind.ADD,
    (Change.ADD, True): Kind.ADD_REPLACE,
    (Change.DELETE, False): Kind.DELETE,
    (Change.DELETE, True): Kind.DELETE_REPLACE,
    (Change.UPDATE, False): Kind.UPDATE,
    (Change.UPDATE, True): Kind.UPDATE_REPLACE,
}
REPLACING = frozenset({"triggers"})  # the path itself only: pulumi-resource-command does not look at its elements


class Provider(provider_pb2_grpc.ResourceProviderServicer):
    """Pulumi's provider protocol; what it does not define here answers "unimplemented", which the engine knows."""

    def __init__(self, engine: str | None) -> None:
        self._engine: Any = None if engine is None else self._dial(engine)
        self.ended = threading.Event()

    @staticmethod
    def _dial(engine: str) -> Any:
        return engine_pb2_grpc.EngineStub(grpc.insecure_channel(engine))

    def Attach(self, request: Any, context: Any) -> Empty:  # noqa: N802, ARG002 - the protocol's names
        """Talk to this engine from now on."""
        self._engine = self._dial(request.address)
        return Empty()

    def GetPluginInfo(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        """Who we are."""
        return plugin_pb2.PluginInfo(version=VERSION)

    def GetSchema(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        """Our SDK is pulumi-command's, made from its schema."""
        return provider_pb2.GetSchemaResponse(schema='{"name": "command", "version": "' + VERSION + '"}')

    def CheckConfig(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        """Nothing can be configured."""
        return provider_pb2.CheckResponse(inputs=wire.to_struct(wire.from_struct(request.news) | FRAMEWORK))

    def DiffConfig(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        """No configuration, no change of it."""
        return provider_pb2.DiffResponse(changes=provider_pb2.DiffResponse.DIFF_NONE)

    def Configure(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        """What the engine may send us."""
        return provider_pb2.ConfigureResponse(acceptSecrets=True, supportsPreview=True)

    def Cancel(self, request: Any, context: Any) -> Empty:  # noqa: N802, ARG002
        """End: Pulumi has sent this on Ctrl-C, and waits for us. Open connections end with us."""
        self.ended.set()
        return Empty()

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Inputs with their defaults, or what is wrong with them."""
        inputs = wire.from_struct(request.news)
        failures = self._resource(request.urn, context).check(inputs)
        rows = [provider_pb2.CheckFailure(property=name, reason=reason) for name, reason in failures]
        return provider_pb2.CheckResponse(inputs=wire.to_struct(inputs), failures=rows)

    def Diff(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        """Every change is made in place, except of `triggers`: of those within it, the SDK asks for replacement."""
        changed = wire.changes(wire.from_struct(request.old_inputs), wire.from_struct(request.news))
        response = provider_pb2.DiffResponse
        return response(
            changes=response.DIFF_SOME if changed else response.DIFF_NONE,
            diffs=sorted({re.split(r"[.[]", path, maxsplit=1)[0] for path in changed}),
            replaces=[path for path in changed if path in REPLACING],
            detailedDiff={path: Kind(kind=KINDS[change, path in REPLACING]) for path, change in changed.items()},
            hasDetailedDiff=True,
        )

    def Create(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Make it."""
        resource = self._resource(request.urn, context)
        inputs = wire.from_struct(request.properties)
        identity = resource.new_id(request.urn.rsplit("::", 1)[-1])
        if request.preview:
            outputs = resource.preview(None, inputs)
        else:
            outputs = self._do(context, lambda: resource.create(inputs, self._log(request.urn)))
        return provider_pb2.CreateResponse(id=identity, properties=wire.to_struct(outputs))

    def Update(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Change it in place."""
        resource = self._resource(request.urn, context)
        old, inputs = wire.from_struct(request.olds), wire.from_struct(request.news)
        if request.preview:
            outputs = resource.preview(old, inputs)
        else:
            outputs = self._do(context, lambda: resource.update(old, inputs, self._log(request.urn)))
        return provider_pb2.UpdateResponse(properties=wire.to_struct(outputs))

    def Delete(self, request: Any, context: Any) -> Empty:  # noqa: N802
        """Remove it."""
        resource = self._resource(request.urn, context)
        old = wire.from_struct(request.properties)
        self._do(context, lambda: resource.delete(old, self._log(request.urn)))
        return Empty()

    def Read(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        """A refresh sees nothing: what a command did cannot be read back."""
        return provider_pb2.ReadResponse(id=request.id, properties=request.properties, inputs=request.inputs)

    @staticmethod
    def _resource(urn: str, context: Any) -> Resource:
        kind = urn.split("::")[2].rsplit("$", 1)[-1]
        if kind not in RESOURCES:
            message = f"{kind} is not supported by this stand-in plugin, only {', '.join(RESOURCES)}"
            context.abort(grpc.StatusCode.UNIMPLEMENTED, message)
        return RESOURCES[kind]

    @staticmethod
    def _do(context: Any, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (CommandFailedError, ConnectionFailedError) as error:
            context.abort(grpc.StatusCode.UNKNOWN, str(error))
        except OSError as error:
            context.abort(grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}")

    def _log(self, urn: str) -> Callable[[str], None]:
        """Show lines beside the resource while it is worked on."""

        def log(line: str) -> None:
            if self._engine is not None:
                request = engine_pb2.LogRequest(severity=engine_pb2.INFO, message=line, urn=urn, ephemeral=True)
                with contextlib.suppress(grpc.RpcError):  # the engine is ending: nobody is left to read it
                    self._engine.Log(request)

        return log


def main() -> None:
    """Serve until told to end. The first line of stdout is the port, by which the engine finds us."""
    provider = Provider(sys.argv[1] if len(sys.argv) > 1 else None)
    options = [(f"grpc.max_{way}_message_length", LARGEST_MESSAGE) for way in ("receive", "send")]
    server = grpc.server(ThreadPoolExecutor(max_workers=WORKERS), options=options)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(provider, server)
    port = server.add_insecure_port("127.0.0.1:0")
    parent = os.getppid()
    server.start()
    print(port, flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches us too
        while not provider.ended.wait(timeout=2) and os.getppid() == parent:
            pass  # an engine that was killed leaves us behind without a word
    server.stop(grace=1).wait()
    os._exit(0)  # not after the threads: one may wait for a host that never answers


if __name__ == "__main__":
    main()
