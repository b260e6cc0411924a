"""Values that are not there yet: what other resources will make, and what our own commands will.

Pulumi has unknown values in a preview, so a document with one unknown address would be shown as
unknown as a whole. Here each unknown leaf becomes readable text instead, in previews only, and the
document stays known around it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping
from typing import Any, Generic, TypeVar, cast

import pulumi
from pulumi import Output

from overlay_components.names import Placeholder

T = TypeVar("T")
Path = tuple[str, ...]


def leaves(value: Any, path: Path = ()) -> dict[Path, Output[Any]]:
    """Every Output within plain data, by its path."""
    if isinstance(value, Output):
        return {path: value}
    if isinstance(value, Mapping):
        rows: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple)):
        rows = enumerate(value)
    else:
        return {}
    return {p: o for key, inner in rows for p, o in leaves(inner, (*path, str(key))).items()}


def known_text(
    value: Any,
    describe: Callable[[Path], str],
    missing: Callable[[str], BaseException] | None = None,
    guarded: Callable[[Path], bool] = lambda _: False,
) -> Output[Any]:
    """The plain data with every Output in it resolved; in a preview what is unknown becomes a
    Placeholder with `describe(path)` as its text. Depends on whatever its parts depend on.

    Secret when a part is secret, except for those at `guarded` paths, which whoever uses it does not let out.
    With --target something may be unknown in a real run too: then all is, or it fails with `missing(text)`."""
    outputs = leaves(value)

    async def resolved() -> Any:
        found: dict[Path, Any] = {}
        for path, output in outputs.items():
            known = await output.is_known()
            if missing and not known and not pulumi.runtime.is_dry_run():
                raise missing(describe(path))
            found[path] = await output.future() if known else Placeholder(describe(path))
        return _filled(value, found, ())

    async def all_known() -> bool:
        return pulumi.runtime.is_dry_run() or all([await output.is_known() for output in outputs.values()])

    async def resources() -> set[pulumi.Resource]:
        return {r for output in outputs.values() for r in await output.resources()}

    async def secret() -> bool:
        return any([await output.is_secret() for path, output in outputs.items() if not guarded(path)])

    return _output(resources, resolved, all_known, secret)


class _Later(Generic[T]):
    """Awaitable that begins when somebody awaits it. Output awaits its parts one after another, and a coroutine
    that is left over when one fails is a warning on the user's screen."""

    def __init__(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._begin = begin

    def __await__(self) -> Generator[Any, Any, T]:
        return self._begin().__await__()


def _output(
    resources: Callable[[], Coroutine[Any, Any, set[pulumi.Resource]]],
    value: Callable[[], Coroutine[Any, Any, T]],
    known: Callable[[], Coroutine[Any, Any, bool]],
    secret: Callable[[], Coroutine[Any, Any, bool]],
) -> Output[T]:
    return Output(_Later(resources), _Later(value), _Later(known), _Later(secret))


def later(value: Callable[[], Coroutine[Any, Any, T]]) -> Output[T]:
    """What the coroutine gives, depending on nothing. The program waits for it, and fails with it."""

    async def none() -> set[pulumi.Resource]:
        return set()

    async def yes() -> bool:
        return True

    async def no() -> bool:
        return False

    return _output(none, value, yes, no)


def with_placeholders(value: Any, describe: Callable[[Path], str]) -> Any:
    """The plain data with a Placeholder for every Output in it, whether it is known or not."""
    return _filled(value, {path: Placeholder(describe(path)) for path in leaves(value)}, ())


def _filled(value: Any, found: Mapping[Path, Any], path: Path) -> Any:
    if path in found:
        return found[path]
    if isinstance(value, Mapping):
        return {key: _filled(inner, found, (*path, str(key))) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_filled(inner, found, (*path, str(n))) for n, inner in enumerate(value)]
    return value


def then(value: Any, make: Callable[[Any], Any]) -> Any:
    """`make(value)`, at once where the value is known. An Output is four tasks of the event loop, and with many hosts
    they are most of the program's time."""
    return value.apply(make) if isinstance(value, Output) else make(value)


def part(whole: Output[Mapping[str, Any]], key: str, depends: Iterable[Output[Any]]) -> Output[Any]:
    """One entry of `whole`, unknown where that is None, and depending only on what `depends`
    depends on: not on what all other entries need."""
    depends = list(depends)

    async def entry() -> Any:
        value = (await whole.future()) or {}
        return value.get(key)

    async def known() -> bool:
        return await whole.is_known() and await entry() is not None

    async def resources() -> set[pulumi.Resource]:
        return {r for output in depends for r in await output.resources()}

    return _output(resources, entry, known, whole.is_secret)


class Promise(Generic[T]):
    """An Output that is given its value later: by `keep`, or never by `reject`."""

    def __init__(self) -> None:
        self._slot: asyncio.Future[Output[T]] = _loop().create_future()

        async def of(method: Callable[[Output[T]], Awaitable[Any]]) -> Any:
            return await method(await self._slot)

        self.output: Output[T] = _output(
            lambda: of(lambda o: o.resources()),
            lambda: of(lambda o: o.future()),
            lambda: of(lambda o: o.is_known()),
            lambda: of(lambda o: o.is_secret()),
        )

    def keep(self, value: Output[T]) -> None:
        """Gives it its value."""
        self._slot.set_result(value)

    def reject(self, error: BaseException) -> None:
        """Whoever waits for it gets the error."""
        if not self._slot.done():
            self._slot.set_exception(error)


def _loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:  # under pulumi.runtime.test, which runs programs outside of a task
        return asyncio.get_event_loop()


async def _value(output: Output[T]) -> T:
    return cast("T", await output.future())


def unless_stuck(output: Output[T], error: Callable[[], BaseException]) -> Output[T]:
    """The same, failing with `error()` where it waits and nothing in the program can ever go on."""

    async def resources() -> set[pulumi.Resource]:
        # What an Output is awaited for first; the rest comes with it.
        waiting = asyncio.ensure_future(output.resources())
        watch = asyncio.ensure_future(_stuck(asyncio.get_running_loop()))
        await asyncio.wait([waiting, watch], return_when=asyncio.FIRST_COMPLETED)
        watch.cancel()
        if not waiting.done():
            raise error()
        return await waiting

    return _output(resources, lambda: _value(output), output.is_known, output.is_secret)


async def _stuck(loop: asyncio.AbstractEventLoop) -> None:
    """Returns when nothing in the program can ever go on: nothing is ready to run, no timer is
    set, no file is watched and no thread works. Where Python does not let that be seen, never."""
    quiet = 0
    while quiet < 5:  # seen idle that many times in a row
        await asyncio.sleep(0.05)
        quiet = quiet + 1 if _idle(loop) else 0


def _idle(loop: Any) -> bool:
    # ruff: noqa: SLF001 - asyncio tells nobody whether it has anything left to do
    try:
        executor = loop._default_executor
        # The loop watches the pipe by which threads wake it, always.
        files = len(loop._selector.get_map()) - 1
        threads = executor is not None and (
            executor._work_queue.qsize() or executor._idle_semaphore._value < len(executor._threads)
        )
        busy = loop._ready or loop._scheduled or files or threads
    except AttributeError:  # another event loop, or a later Python
        return False
    return not busy
