"""A timer of systemd's that has the agent look every minute, and make true again what somebody changed.

One timer serves every stack on the host that wants it; `check --repair` looks at those alone. Which they are is noted
in the store (shared.json): the first starts the timer, the last one out takes it away. It counts the host's uptime, so
a clock that jumps does not matter.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import COMMAND, daemon, fields, host
from overlay_agent.errors import KernelError
from overlay_agent.kinds.base import Kind, Spec, attribute

if TYPE_CHECKING:
    from overlay_agent.document import Document
    from overlay_agent.kernel import Kernel
    from overlay_agent.store import Store

TIMER = "overlay-repair.timer"
#: After the boot units: what they are about to bring back is no drift. The report on stdout is for programs.
UNITS = {
    "overlay-repair.service": f"""\
# Made by overlay-agent for stacks with selfHeal, and gone with the last of them.
[Unit]
Description=Repair the overlay networks of this host where they have drifted
After=overlay-restore.service overlay-restore-docker.service

[Service]
Type=oneshot
ExecStart={COMMAND} check --repair
StandardOutput=null
""",
    TIMER: """\
# Made by overlay-agent for stacks with selfHeal, and gone with the last of them.
[Unit]
Description=Look after the overlay networks of this host

[Timer]
OnActiveSec=60
OnUnitInactiveSec=60
AccuracySec=5

[Install]
WantedBy=timers.target
""",
}
#: In shared.json.
_NOTE = "self-heal"


@dataclasses.dataclass(frozen=True)
class SelfHeal(Spec):
    """That one stack wants it."""

    KIND: ClassVar[str] = "self-heal"

    #: Whether the timer is set, with units as we write them.
    timer: bool = attribute(fields.Flag(), default=True)


class SelfHealKind(Kind):
    """How it is set and taken away."""

    name = "self-heal"
    spec = SelfHeal
    #: When all else is there.
    rank = 90

    def wrong(self, spec: SelfHeal) -> list[str]:
        return [] if spec.timer else ["timer: off; leave the service out"]

    def commands(self, name: str, spec: SelfHeal, mark: str) -> list[list[str]]:
        write = [["sh", "-c", f"cat > {daemon.UNITS}/{unit} <<'EOF'\n{text}EOF"] for unit, text in UNITS.items()]
        return [*write, ["systemctl", "daemon-reload"], ["systemctl", "enable", "--now", TIMER]]

    def wrong_here(self, kernel: Kernel, name: str, spec: SelfHeal, wanted: Document) -> list[str]:
        if host.has_systemd():
            return []
        repair = f"{COMMAND} check --repair {wanted.owner.label}"
        away = f"leave selfHeal out of hosts.{wanted.host}, and have something else run `{repair}` from time to time"
        return [f"selfHeal needs systemd, which does not run here; {away}"]

    def find(self, kernel: Kernel, name: str, mark: str) -> SelfHeal | None:
        return SelfHeal(_is_set()) if mark in _marks() else None

    def create(self, kernel: Kernel, name: str, spec: SelfHeal, mark: str, image: Mapping[str, Any]) -> None:
        _keep(kernel, {*_marks(), mark})
        self.change(kernel, name, spec, spec, mark)

    def change(self, kernel: Kernel, name: str, spec: SelfHeal, found: SelfHeal, mark: str) -> None:
        if not spec.timer:  # as it was found, in an undo
            _systemctl("disable", "--now", TIMER)
            return
        for unit, text in UNITS.items():
            daemon.write(f"{daemon.UNITS}/{unit}", text)
            kernel.reached()
        _systemctl("daemon-reload")
        _systemctl("enable", TIMER)
        _systemctl("restart", TIMER)  # one that runs already has the times of its old text
        kernel.reached()

    def delete(self, kernel: Kernel, name: str, mark: str) -> None:
        others = set(_marks()) - {mark}
        if not others and any(os.path.exists(f"{daemon.UNITS}/{unit}") for unit in UNITS):
            # Not its service, which may be who asks.
            with suppress(KernelError):  # the timer's unit is gone already
                _systemctl("disable", "--now", TIMER)
            kernel.reached()
            for unit in UNITS:
                with suppress(FileNotFoundError):
                    os.unlink(f"{daemon.UNITS}/{unit}")
                kernel.reached()
            _systemctl("daemon-reload")
        _keep(kernel, others)


def stacks(store: Store) -> list[str]:
    """The stacks on this host that want it."""
    marks = _marks()
    return [label for label in store.labels() if any(mark.startswith(f"overlay:{label}/") for mark in marks)]


def _marks() -> list[str]:
    """The marks of the services."""
    from overlay_agent.store import Store  # noqa: PLC0415 - of few documents

    return list(Store().read_shared().get(_NOTE, []))


def _keep(kernel: Kernel, wanted: Iterable[str]) -> None:
    from overlay_agent.store import Store  # noqa: PLC0415 - as above

    store, rows = Store(), sorted(wanted)
    shared = store.read_shared()
    if shared.get(_NOTE, []) != rows:
        rest = {key: value for key, value in shared.items() if key != _NOTE}
        store.write_shared({**rest, **({_NOTE: rows} if rows else {})})
        kernel.reached()


def _is_set() -> bool:
    there = daemon.texts(daemon.UNITS)
    return all(there.get(unit) == text for unit, text in UNITS.items()) and (
        daemon.output("systemctl", "is-active", TIMER).strip() == "active"
    )


def _systemctl(*words: str) -> None:
    refusal = daemon.systemctl(*words)
    if refusal:
        raise KernelError(f"{TIMER}: systemctl {words[0]}", errno.EIO, refusal)


KIND = SelfHealKind()
