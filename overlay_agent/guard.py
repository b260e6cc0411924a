"""Why an apply never stays halfway: one process works, another watches it and undoes.

The worker is forked from the guard. It acts and keeps the new document, and tells the guard what
came of it through a pipe. Only the guard speaks to the outside. So:

- the worker fails or is killed: the guard undoes and says why;
- the report cannot be written any more (the SSH session is gone): the guard undoes, and Pulumi's
  state, which never got the report, agrees;
- the guard is killed: the worker finds the pipe broken and undoes;
- both are killed, or the power fails: the journal stays, and whichever agent comes next (an
  apply, or `restore` at boot) ends the matter first.

A change of a NIC can do all that was asked and leave the host unreachable. Such a one is armed first: a process
of its own undoes it when guard and worker are gone (arming.py), and the guard itself undoes it unless those who
answered before answer again (evidence.py).
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from overlay_agent import faults, reconcile
from overlay_agent.document import Document
from overlay_agent.errors import KernelError, shortened
from overlay_agent.history import DONE, ENDED, FAILED, REFUSED, UNDONE
from overlay_agent.host import Here
from overlay_agent.kernel import Kernel
from overlay_agent.reconcile import Failed, Plan, Refused
from overlay_agent.store import Store, StoreError

if TYPE_CHECKING:
    from overlay_agent.evidence import Witnesses
    from overlay_agent.probes import Probes

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Interrupted(Exception):  # noqa: N818 - the agent was told to end, which is no error of its own
    """The guard got one of SIGNALS."""


def transaction(
    wanted: Document,
    store: Store,
    here: Here,
    out: Callable[[dict[str, Any]], None],
    *,
    forget: bool = False,
    probe: bool = False,
    packages: bool = False,
) -> int:
    """Applies the document and hands the report to `out`; returns the exit code. Lines for people
    go to standard error. For whom holds the store's lock. `probe`: undone unless those who answered before answer.
    `packages`: what its services need and the host lacks is installed first."""
    end_cut_short(store, here)
    fault = faults.from_environment()
    kernel = Kernel(fault)
    try:
        if packages:
            _provide(wanted, kernel, store, here)
        plan = reconcile.prepare(wanted, kernel, store, here.machine, forget=forget)
    except Refused as error:
        _say([*error.errors, "nothing was changed"])
        store.note(wanted.owner.label, REFUSED, error.errors)
        return 1
    lines = plan.lines()
    if not plan.quiet:
        try:
            witnesses = _armed(plan)
            probes = _probes(plan) if probe and plan.changes else None
        except (KernelError, OSError) as error:
            _say([f"{wanted.host}: {error}"])
            store.note(wanted.owner.label, REFUSED, [str(error)])
            return 1
        store.arm(bool(witnesses or probes))
        why, lines = _in_worker(plan, kernel, store, here, fault)
        why = why or (witnesses.lost() if witnesses else "") or (_lost(wanted.host, probes) if probes else "")
        if why:
            return _undone(store, why)
        if witnesses or probes:
            store.disarm()
        if witnesses:
            lines.append(f"{wanted.host}: {witnesses} answered after the change")
        if probes:
            lines += probes.lines()
    try:
        _tell(lines)
        out(plan.report())
    except OSError:
        why = f"{wanted.host}: nobody took the report (the SSH session is gone)"
        return 1 if plan.quiet else _undone(store, why)
    if not plan.quiet:
        store.write_journal(None)
        store.note(wanted.owner.label, DONE, lines)
    if forget:
        store.secrets(wanted.owner.label).keep(())
        store.forget_keys(wanted.owner.label)
    return 0


def _provide(wanted: Document, kernel: Kernel, store: Store, here: Here) -> None:
    """Installs what the services lack, unless something else speaks against the document. Raises Refused."""
    from overlay_agent import packages  # noqa: PLC0415 - few stacks say so

    lacking = packages.lacking(wanted)
    if lacking:
        services = {name: spec for name, spec in wanted.services.items() if name not in lacking}
        reconcile.prepare(dataclasses.replace(wanted, services=services), kernel, store, here.machine)
        line = packages.install(wanted.host, list(lacking.values()))
        _say([line])
        store.note(wanted.owner.label, DONE, [line])


def _armed(plan: Plan) -> Witnesses | None:
    """Who has to answer after the change; None where it is no risk, or nobody could tell."""
    uplinks = (spec for spec in plan.wanted.services.values() if spec.KIND == "uplink")
    if not any(uplinks) and all(getattr(change.found, "KIND", "") != "uplink" for change in plan.changes):
        return None
    from overlay_agent import arming  # noqa: PLC0415 - few hosts have uplinks

    if not arming.is_risky(plan):
        return None
    from overlay_agent.evidence import Witnesses  # noqa: PLC0415 - costs 5 ms

    witnesses = Witnesses(plan.wanted.host)
    if not witnesses:
        return None
    arming.arm()
    return witnesses


def _probes(plan: Plan) -> Probes:
    """Who answers before the change."""
    from overlay_agent.probes import Probes  # noqa: PLC0415 - rollouts alone

    return Probes(plan)


def _lost(host: str, probes: Probes) -> str:
    try:
        return probes.lost()
    except (KernelError, OSError) as error:
        return f"{host} rollout: whether those who answered before the change answer after it cannot be asked: {error}"


def end_cut_short(store: Store, here: Here, say: Callable[[Sequence[str]], None] | None = None) -> None:
    """Ends what an earlier agent left halfway, if one did. For whom holds the store's lock."""
    say = say or _say
    lost = store.drop_unreadable_journal()
    if lost:
        say([lost])
    journal = store.read_journal()
    if journal is None:
        return
    kernel, result = Kernel(), ENDED
    try:
        lines = reconcile.recover(kernel, store, here.boot)
    except (Failed, KernelError) as error:
        # What is declared now has the last word; holding on to what cannot be brought back would
        # block the host for ever.
        store.write_journal(None)
        lines = [f"an apply that was cut short could not be undone: {error}; going on with what is declared"]
        result = FAILED
    finally:
        kernel.close()
    say(lines)
    store.note(journal["label"], result, lines)


def _in_worker(
    plan: Plan, kernel: Kernel, store: Store, here: Here, fault: Callable[[], None] | None
) -> tuple[str, list[str]]:
    """Carries the plan out in a child. Returns why that did not work, or nothing, and lines for people."""
    sys.stdout.flush()
    sys.stderr.flush()
    receive, send = os.pipe()
    # A signal before the handlers stand would end the guard and leave the worker alone.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        # The guard decides whether to stop; a signal to the whole group must not kill both at once.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        _work(plan, kernel, store, here, fault, send)
    os.close(send)
    text, cause = b"", ""
    try:
        for number in SIGNALS:
            signal.signal(number, _interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        with os.fdopen(receive, "rb") as pipe:
            text = pipe.read()
    except Interrupted as error:
        os.kill(pid, signal.SIGKILL)
        text, cause = b"", str(error)
    finally:
        for number in SIGNALS:  # an undo is not to be interrupted
            signal.signal(number, signal.SIG_IGN)
        _, status = os.waitpid(pid, 0)
    if not text:
        return f"{plan.wanted.host}: the apply was ended by {cause or _cause(status)}", []
    result = json.loads(text)
    return result.get("error", ""), result.get("lines", [])


def _work(
    plan: Plan, kernel: Kernel, store: Store, here: Here, fault: Callable[[], None] | None, send: int
) -> NoReturn:
    """The worker."""
    host = plan.wanted.host
    result: dict[str, Any]
    try:
        result = {"lines": reconcile.carry_out(plan, kernel, store, here.boot, fault)}
    except (Failed, KernelError, StoreError) as error:
        result = {"error": f"{host} {error}"}
    except BaseException as error:  # noqa: BLE001 - a defect of ours must be undone and told, too
        result = {"error": f"{host}: {type(error).__name__}: {error} (a defect of the agent)"}
    try:
        with os.fdopen(send, "wb") as pipe:
            pipe.write(json.dumps(result).encode())
    except OSError:  # the guard is gone; its part falls to us
        _undone(store, f"{host}: the agent's first process was killed")
    finally:
        os._exit(0)


def _undone(store: Store, why: str) -> int:
    """Undoes what the journal says, and tells."""
    journal = store.read_journal()
    if journal is None:
        _say([f"{why}; nothing had been changed"])
        return 1
    fault = faults.from_environment("OVERLAY_FAULT_UNDO")
    try:
        kernel = Kernel(fault)
        reconcile.undo(kernel, store, journal, fault)
        kernel.close()
    except (Failed, KernelError, StoreError) as error:
        result = FAILED
        said = f"{why}; the undo failed too: {error}; the next apply or `overlay-agent restore` takes it up again"
    else:
        result, said = UNDONE, f"{why}; undone, the host is as it was"
    _say([said])
    store.note(journal["label"], result, [said])
    return 1


def _cause(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)} ({signal.Signals(os.WTERMSIG(status)).name})"
    return f"exit code {os.WEXITSTATUS(status)}"


def _interrupt(number: int, frame: Any) -> None:  # noqa: ARG001 - what signal() calls with
    raise Interrupted(signal.Signals(number).name)


def _say(lines: Sequence[str]) -> None:
    """Lines for people, if anybody still reads them."""
    with suppress(OSError):
        _tell(lines)


def _tell(lines: Sequence[str]) -> None:
    """Lines for people. OSError where nobody reads them any more."""
    left = "".join(f"{shortened(line)}\n" for line in lines).encode()
    sys.stderr.flush()
    while left:  # not through sys.stderr, which would try again at exit what could not be written
        left = left[os.write(sys.stderr.fileno(), left) :]
