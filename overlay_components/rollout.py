"""`overlay:rollout`: hosts are changed a few at a time, one of them first, and after a failure no more of them.

The order is no dependency of Pulumi's. In the state it would make `pulumi destroy --target` take other hosts along, and
one dead host would keep those before it from being destroyed (docs/adr/0017). So the program itself waits: it registers
a host's document when those before it are done, and only what must not run any more gets a dependency, on what failed:
the engine then skips it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import pulumi
import pydantic
from pulumi import Output
from typing_extensions import NotRequired

from overlay_agent import fields
from overlay_components import _outputs, errors, model
from overlay_components.model import Checked, Model

if TYPE_CHECKING:
    from pulumi_command import remote


@dataclasses.dataclass(frozen=True)
class Share(fields.Type):
    """A number of hosts, or a part of all of them: 5, "20%"."""

    def check(self, value: Any) -> str | None:
        """What is wrong, or None."""
        if type(value) is int and value >= 1:
            return None
        if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]?%|100%", value):
            return None
        return f"{value!r} is neither a number of hosts, from 1, nor a part of them, from 1% to 100%, such as 20%"


_PERCENT = {"type": "string", "pattern": "^([1-9][0-9]?|100)%$"}
_Share = Annotated[
    int | str,
    Checked(Share()),
    pydantic.WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, _PERCENT]}),
]


class Options(Model):
    """How changes are rolled out over the hosts."""

    canary: Annotated[str | None, Checked(fields.optional(model.Name()))] = pydantic.Field(
        default=None, description="The host that is changed first, alone; default: the first by name"
    )
    batch: _Share = pydantic.Field(
        default="20%", description="How many of the other hosts make a batch: a number, or a part of all hosts"
    )
    max_unavailable: _Share = pydantic.Field(
        default=1, description="How many hosts of a batch are changed at a time: a number, or a part of all hosts"
    )
    probe: Annotated[bool, Checked(fields.Flag())] = pydantic.Field(
        default=True, description="Whether a change is undone unless those who answered before it answer after it"
    )


class RolloutArgs(TypedDict):
    """Keys of `overlay:rollout` (docs/stack-file.md)."""

    canary: NotRequired[Any]
    batch: NotRequired[int | str]
    max_unavailable: NotRequired[int | str]
    probe: NotRequired[bool]


def check(options: Options | None, hosts: Iterable[str], wrong: list[str]) -> None:
    """Adds to `wrong` what does not fit the hosts."""
    if options and options.canary is not None and options.canary not in hosts:
        near = errors.instead(options.canary, hosts)
        wrong.append(f"rollout.canary: unknown host {options.canary!r}; {near}")


def batches(options: Options, hosts: Iterable[str]) -> list[list[str]]:
    """All hosts, each once: the canary alone, then the others by name, so many at a time. In names, numbers count as
    such: h2 comes before h10."""
    rest = sorted(hosts, key=_by_name)
    size = _number(options.batch, len(rest))
    canary = options.canary or rest[0]
    rest.remove(canary)
    return [[canary], *(rest[at : at + size] for at in range(0, len(rest), size))]


def order(options: Options, hosts: Iterable[str]) -> dict[str, list[str]]:
    """By host, in the order in which they are changed: those that have to be done before. They are all of the batch
    before; in its own batch it takes the turn of one, so that no more than maxUnavailable are on at a time."""
    made = batches(options, hosts)
    most = _number(options.max_unavailable, sum(map(len, made)))
    out: dict[str, list[str]] = {}
    for number, batch in enumerate(made):
        for at, host in enumerate(batch):
            out[host] = [*(made[number - 1] if number else []), *batch[max(at - most, 0) : max(at - most + 1, 0)]]
    return out


def _number(share: int | str, hosts: int) -> int:
    """How many hosts that is; of a part what is over is left out, and at the least it is one (as with Ansible)."""
    return share if isinstance(share, int) else max(hosts * int(share[:-1]) // 100, 1)


def _by_name(host: str) -> tuple[list[Any], str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", host)], host


class Rollout:
    """The order of one run. `raw`: the key as the user wrote it; what is wrong with it the plan tells."""

    def __init__(self, raw: Mapping[str, Any] | None, hosts: Sequence[str]) -> None:
        self._before: dict[str, list[str]] = {}
        self._commands: dict[str, remote.Command] = {}
        wrong: list[str] = []
        try:
            options = None if raw is None else Options.model_validate(raw)
        except pydantic.ValidationError:
            return
        check(options, hosts, wrong)
        if options and not wrong:
            self._before = order(options, hosts)

    def sorted(self, hosts: Iterable[str]) -> list[str]:
        """The hosts in the order in which they are registered."""
        return list(self._before or hosts)

    def failed_before(self, host: str) -> Output[list[pulumi.Resource]] | None:
        """What of those that have to be done before the host is not; known when they are through. None: there are
        none."""
        before = self._before.get(host)
        return _outputs.later(lambda: _not_done([self._commands[name] for name in before])) if before else None

    def add(self, host: str, command: remote.Command) -> None:
        """The command that changes the host."""
        self._commands[host] = command

    def end(self) -> None:
        """Has the program fail when all are through and one has failed: the engine then removes nothing either. Else
        what a stopped rollout no longer declares would be gone before the others know."""
        if self._before:
            _outputs.later(self._judge)

    async def _judge(self) -> None:
        failed = {name for name, command in self._commands.items() if await _not_done([command])}
        # Of those, the ones that were tried; the engine skipped the others.
        tried = [name for name in self._commands if name in failed and not failed & {*self._before[name]}]
        skipped = [name for name in self._commands if name in failed and name not in tried]
        if failed:
            rest = f"{errors.listed(skipped)} {'was' if len(skipped) == 1 else 'were'} not changed; " if skipped else ""
            raise pulumi.RunError(
                f"rollout: stopped, {errors.listed(tried)} failed; {rest}mend what is said of it, and run it again"
            )


async def _not_done(commands: Iterable[remote.Command]) -> list[pulumi.Resource]:
    """Those that failed or were skipped. What takes no part in this run (--target) is neither: of a command that
    failed nothing is known, not even what we said ourselves."""
    if pulumi.runtime.is_dry_run():
        return []
    return [command for command in commands if not await command.create.is_known()]
