"""What is left out of Pulumi's SDK is left out for our resources alone (_sdk.py)."""

from __future__ import annotations

import asyncio
import gc

import pytest
from pulumi.runtime.proto import source_pb2

from overlay_components import _sdk


def test_debug_messages_of_others_are_sent():
    sent = []
    debug = _sdk._quiet(sent.append)
    debug("before")
    with _sdk.light():
        debug("ours")
    debug("after")
    assert sent == ["before", "after"]


def test_resources_of_others_keep_their_stack_trace():
    trace = source_pb2.StackTrace(frames=[source_pb2.StackFrame()])
    get = _sdk._without_trace(lambda: trace)
    assert get() is trace
    with _sdk.light():
        assert get() == source_pb2.StackTrace()
    assert get() is trace


def test_a_task_that_is_started_for_ours_is_ours():
    sent = []
    debug = _sdk._quiet(sent.append)

    async def register(name):
        await asyncio.sleep(0)
        debug(name)

    async def program():
        with _sdk.light():
            ours = asyncio.ensure_future(register("ours"))
        await asyncio.gather(ours, register("theirs"))

    asyncio.run(program())
    assert sent == ["theirs"]


def test_the_first_error_of_many_outputs_ends_the_waiting():
    async def late():
        await asyncio.sleep(60)

    async def wrong():
        raise ValueError("of one output")

    async def program():
        tasks = [asyncio.ensure_future(late()), asyncio.ensure_future(wrong())]
        try:
            await _sdk._all_of(tasks)
        finally:
            tasks[0].cancel()

    with pytest.raises(ValueError, match="of one output"):
        asyncio.run(program())


@pytest.mark.parametrize(
    ("before", "after"),
    [((700, 10, 10), (20_000, 50, 100)), ((0, 10, 10), (0, 10, 10)), ((50_000, 5, 5), (50_000, 5, 5))],
)
def test_garbage_is_looked_for_rarely_and_never_more_often_than_the_program_says(before, after):
    own = gc.get_threshold()
    try:
        gc.set_threshold(*before)
        _sdk.collect_rarely()
        assert gc.get_threshold() == after
    finally:
        gc.set_threshold(*own)
