"""What Pulumi's Python SDK does at each resource and nobody sees, left out for ours.

With 50 hosts it is a third of the program's time and, through the engine's own log, a sixth of a no-op
(docs/adr/0004-speed.md). All of it is the SDK's inside: where a later SDK has it no longer, nothing is left out.
"""

# ruff: noqa: SLF001 - see above

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
from collections.abc import Iterator
from typing import Any

from pulumi import log
from pulumi.runtime import resource as sdk
from pulumi.runtime import settings
from pulumi.runtime.proto import source_pb2

#: Inherited by the tasks that are started while it is set: a resource is registered in one of its own.
_ours: contextvars.ContextVar[bool] = contextvars.ContextVar("overlay_components", default=False)


@contextlib.contextmanager
def light() -> Iterator[None]:
    """Registers resources without the SDK's debug messages, each of which it sends to the engine and waits for an
    answer, and without the stack's trace, which stands in the state with each resource and leads to this package."""
    token = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(token)


def _quiet(debug: Any) -> Any:
    def when_not_ours(*arguments: Any, **named: Any) -> None:
        if not _ours.get():
            debug(*arguments, **named)

    return when_not_ours


def _without_trace(get_stack_trace: Any) -> Any:
    def of_others() -> Any:
        return source_pb2.StackTrace() if _ours.get() else get_stack_trace()

    return of_others


log.debug = _quiet(log.debug)
with contextlib.suppress(AttributeError):
    sdk._get_stack_trace = _without_trace(sdk._get_stack_trace)


#: After so many new objects; then what is older, after so many times.
_RARE = (20_000, 50, 100)


def collect_rarely() -> None:
    """Has Python look less often for objects that only hold each other, unless it does not look at all. It does after
    700 new ones or so; a program that registers resources makes a million, keeps most to its end, and spent two fifths
    of its time on looking."""
    if 0 < gc.get_threshold()[0] < _RARE[0]:
        gc.set_threshold(*_RARE)


def await_together() -> None:
    """Has the SDK wait for all outputs that are open now as for one. By itself it looks through all of them whenever
    one comes, which takes longer with the square of their number. The first error ends the waiting, as ever."""
    with contextlib.suppress(AttributeError):
        outputs = settings.SETTINGS.outputs
        with settings.SETTINGS.lock:
            waiting = list(outputs)
            outputs.clear()
            if waiting:
                outputs.add(asyncio.ensure_future(_all_of(waiting)))


async def _all_of(tasks: list[asyncio.Task[Any]]) -> None:
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        await task
