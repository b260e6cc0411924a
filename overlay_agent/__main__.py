"""The agent's command line: `overlay-agent VERB`; a document on standard input, a JSON report on
standard output, words for people on standard error.

Exit codes: 0 done or as declared; 1 refused or failed, the host is as it was; 2 drifted (`check`);
64 wrong usage.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

USAGE = """usage: overlay-agent VERB
  apply              make the document on standard input true on this host, or change nothing
  remove [STACK]     remove what the stack (project/stack, or of the document on standard input) has here
  check [STACK]      compare what is with what was applied, or with `check -` with the document on standard
                     input; exit code 2 when it drifted
  check --repair [STACK]
                     makes true again what has drifted, of every stack with selfHeal, or of that one
  status STACK       what the stack has here, its counters, and since when, as JSON
  history STACK      what was done here for the stack, by whom and when, as JSON
  stop [STACK]       takes down what the stack has here until `start` or `apply`, also over a reboot
  start [STACK]      makes what was stopped true again
  purge STACK [force]  as `uninstall`, for a stack that no program knows any more
  show [STACK]       what the stacks have here, read from the kernel, as JSON
  explain [STACK]    the commands that do the same by hand; a document on standard input, or STACK
  restore [WHICH]    make every stack's document true again (at boot); WHICH: docker, those with networks
                     of Docker's, which has to run; own, those without
  watch PID          wait for the end of the apply that is that process, and undo it if it is not proven;
                     the agent starts it itself, before a change that could cut the host off
  verify             with the agents of other hosts: who reaches whom; a talk by lines of JSON
  capture            what passes a device, as pcap; which, how long and how much is said on standard input, as JSON
  probe              what this host offers, as JSON
  survey             what stands here, whoever made it, as JSON; for `overlay import`
  identity           make this host's WireGuard key, and tell its public half
  secrets            keep the secret values on standard input, for documents to refer to
  install            put this agent in place (run from the .pyz file)
  uninstall          remove the stack given on standard input, and the agent with the last one
  version            the version
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the verb and returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verb, takes = VERBS.get(arguments[0], (None, 0)) if arguments else (None, 0)
    if verb is None or len(arguments) - 1 > takes:
        print(USAGE, end="", file=sys.stderr)
        return 64
    return verb(*arguments[1:])


def _guarded(verb: Callable[..., int]) -> Callable[..., int]:
    """Turns every foreseen failure into one line and exit code 1."""

    def run(*arguments: str) -> int:
        from overlay_agent.document import DocumentError  # noqa: PLC0415 - see VERBS
        from overlay_agent.errors import KernelError, shortened  # noqa: PLC0415
        from overlay_agent.host import HostError  # noqa: PLC0415
        from overlay_agent.store import StoreError  # noqa: PLC0415

        if os.geteuid() != 0:
            print(f"overlay-agent: must run as root, not as uid {os.geteuid()}; use sudo -n", file=sys.stderr)
            return 1
        try:
            return verb(*arguments)
        except (DocumentError, HostError, KernelError, StoreError) as error:
            print(shortened(str(error)), file=sys.stderr)
        except BrokenPipeError:  # whoever asked is gone
            sys.stderr.close()
        except OSError as error:
            print(f"overlay-agent: {error.filename or arguments}: {error.strerror}", file=sys.stderr)
        except ValueError as error:
            print(f"overlay-agent: standard input is not JSON ({error})", file=sys.stderr)
        return 1

    return run


def _apply() -> int:
    from overlay_agent import document, guard, host, secrets, store  # noqa: PLC0415

    wanted = document.load(sys.stdin.buffer.read(document.MAX_BYTES + 1))
    host.load_modules(wanted.modules())
    store_ = store.Store()
    with store_.locked(f"stack {wanted.owner.label}"):
        code = guard.transaction(
            wanted, store_, host.here(), _report, probe=wanted.probe, packages=wanted.install_packages
        )
        if code == 0:
            # Not at `restore`, which may come between a new value and the document that has it.
            store_.secrets(wanted.owner.label).keep(secrets.references(wanted.objects.values()))
            store_.forget_keys(wanted.owner.label, but={getattr(o, "public_key", "") for o in wanted.devices.values()})
    return code


def _remove(label: str | None = None) -> int:
    from overlay_agent import document, guard, host, store  # noqa: PLC0415

    store_ = store.Store()
    old = _document(store_, label)
    if old is None:
        old = _labelled(str(label))
    if old is None:
        if _is_label(label):
            store_.forget_keys(str(label))
            store_.secrets(str(label)).keep(())  # those that came before a document that never did
        print(f"stack {label}: has nothing here; already removed", file=sys.stderr)
        return 0
    with store_.locked(f"stack {old.owner.label}"):
        empty = document.Document(old.owner, old.host, force=old.force)
        code = guard.transaction(empty, store_, host.here(), _report, forget=True)
        if code == 0:
            store_.remove_empty()
    return code


def _labelled(label: str) -> Any:
    """A document for a stack that the store does not know, though devices carry its label."""
    from overlay_agent import document, kernel, reconcile  # noqa: PLC0415

    project, _, stack = label.partition("/")
    owner = document.Owner(project, stack, "")
    if stack and reconcile.ours(kernel.Kernel(), owner, None):
        return document.Document(owner, os.uname().nodename)
    return None


def _check(label: str | None = None, of: str | None = None) -> int:
    if label == "--repair":
        from overlay_agent import repair  # noqa: PLC0415

        return repair.repair(of, _report)
    if of is not None:
        print(USAGE, end="", file=sys.stderr)
        return 64
    import dataclasses  # noqa: PLC0415

    from overlay_agent import bridges, document, kernel, reconcile, store  # noqa: PLC0415
    from overlay_agent.errors import shortened  # noqa: PLC0415

    store_, drifted, stopped, waits = store.Store(), [], {}, []
    given = _document(store_, None) if label == "-" else None
    with store_.locked("check"):  # a look at an apply under way would find drift
        # Only said: to look must not change a host. Whatever changes something next ends it.
        if store_.is_cut_short():
            drifted.append("an apply was cut short; `overlay-agent restore` or the next `pulumi up` ends it")
        kernel_ = kernel.Kernel()
        for name in [given.owner.label] if given else [label] if label else store_.labels():
            kept = _document(store_, name)
            wanted = given or kept
            if wanted and kept and kept.stopped:
                stopped[name] = kept.stopped
                wanted = dataclasses.replace(wanted, stopped=kept.stopped)
            if wanted is None:
                drifted.append(f"stack {name}: no document of it is here; run `pulumi up`")
                continue
            if given and store_.is_other(name, document.to_json(given)):
                drifted.append(f"stack {name}: another document is kept here, or none; it would come back at boot")
            if bridges.networks(wanted):
                from overlay_agent import docker_api  # noqa: PLC0415 - costs 15 ms where there is no Docker

                drifted += [f"{wanted.host}: {why}" for why in [docker_api.missing()] if why]
            drifted += reconcile.drift(wanted, kernel_, store_)
            waits += [] if wanted.stopped else reconcile.wanting(wanted, wanted.objects, 0.0)
    for line in drifted:
        print(shortened(line), file=sys.stderr)
    for line in waits:
        print(line, file=sys.stderr)
    for name, since in stopped.items():
        print(f"stack {name}: stopped on purpose since {since}", file=sys.stderr)
    more = {"stopped": stopped, "waits": waits}
    _report({"drift": drifted, **{key: value for key, value in more.items() if value}})
    return 2 if drifted else 0


def _status(label: str = "") -> int:
    from overlay_agent import status, store  # noqa: PLC0415

    store_ = store.Store()
    with store_.locked("status"):
        _report(status.report(store_, _known(label)))
    return 0


def _history(label: str = "") -> int:
    from overlay_agent import store  # noqa: PLC0415

    _report({"history": store.Store().history(_known(label))})
    return 0


def _stop(label: str | None = None) -> int:
    import time  # noqa: PLC0415

    return _again(label, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def _start(label: str | None = None) -> int:
    return _again(label, None)


def _again(label: str | None, stopped: str | None) -> int:
    """Makes the kept document true, or what is left of it when it is stopped."""
    import dataclasses  # noqa: PLC0415

    from overlay_agent import guard, host, store  # noqa: PLC0415

    store_ = store.Store()
    given = _document(store_, label)
    name = given.owner.label if given else label
    with store_.locked(f"stack {name}"):
        kept = _document(store_, name)
        if kept is None:
            print(f"stack {name}: no document of it is here; run `pulumi up`", file=sys.stderr)
            return 1
        # Who asks is compared with whose it is; what is stopped already keeps its time.
        wanted = dataclasses.replace(kept, owner=given.owner, stopped=stopped and (kept.stopped or stopped))
        host.load_modules(wanted.modules())
        return guard.transaction(wanted, store_, host.here(), _report)


def _purge(label: str = "", force: str = "") -> int:
    from overlay_agent import install, store  # noqa: PLC0415

    store_, (project, stack) = store.Store(), _known(label).split("/")
    member = store_.read_member(label) or {}
    known = store_.read(label) or member
    owner = known.get("owner", {"project": project, "stack": stack, "id": "unknown"})
    name = known.get("host", os.uname().nodename)
    request = {"owner": owner, "host": name, "generation": member.get("generation", 1), "force": force == "force"}
    return install.uninstall(request, report=_report)


def _known(label: str) -> str:
    """The label. Raises DocumentError where it is none."""
    from overlay_agent.document import DocumentError  # noqa: PLC0415
    from overlay_agent.fields import Label  # noqa: PLC0415

    if not _is_label(label) or any(Label().check(part) for part in label.split("/")):
        raise DocumentError([f"STACK: {label!r} is not one; write project/stack"])
    return label


def _show(label: str | None = None) -> int:
    from overlay_agent import fields, kernel, reconcile, store  # noqa: PLC0415

    store_ = store.Store()
    out: dict[str, Any] = {}
    with store_.locked("show"):
        kernel_ = kernel.Kernel()
        for name in [label] if label else store_.labels():
            wanted, out[name] = _document(store_, name), {}
            if wanted:
                kernel_.secrets = reconcile.secrets_of(wanted, store_)
            names = wanted.objects.keys() | reconcile.ours(kernel_, wanted.owner, store_.read(name)) if wanted else ()
            for one in sorted(names):
                kinds = {wanted.objects[one].KIND} if one in wanted.objects else set()
                spec = reconcile.found(kernel_, one, wanted.owner.alias(one), kinds)
                out[name][one] = spec and fields.to_json(spec)
    _report(out)
    return 0


def _explain(label: str | None = None) -> int:
    from overlay_agent import bridges, kinds, store  # noqa: PLC0415

    wanted = _document(store.Store(), label)
    if wanted is None:
        print(f"stack {label}: has nothing here; nothing to explain", file=sys.stderr)
        return 1
    wanted = bridges.resolved(wanted)
    print(f"# {wanted.owner.label} on {wanted.host}, by hand")
    for name, spec in sorted(wanted.objects.items(), key=lambda item: kinds.KINDS[item[1].KIND].rank):
        for command in kinds.KINDS[spec.KIND].commands(name, spec, wanted.owner.alias(name)):
            print(kinds.typed(command))
    return 0


def _restore(which: str = "all") -> int:
    from overlay_agent import bridges, document, errors, guard, host, store  # noqa: PLC0415

    if which not in ("all", "own", "docker"):
        print(USAGE, end="", file=sys.stderr)
        return 64
    store_, here, code = store.Store(), host.here(), 0
    with store_.locked("restore"):
        guard.end_cut_short(store_, here)
        for label in store_.labels():
            try:
                wanted = document.parse(store_.read(label))
                if which == ("own" if bridges.networks(wanted) else "docker"):
                    continue
                host.load_modules(wanted.modules())
                code |= guard.transaction(wanted, store_, here, lambda _: None)
            # The other stacks' networks come back all the same.
            except (document.DocumentError, errors.KernelError, store.StoreError) as error:
                print(f"stack {label}: {error}", file=sys.stderr)
                code = 1
    return code


def _watch(guard_: str) -> int:
    from overlay_agent import arming, host, store  # noqa: PLC0415

    arming.watch(store.Store(), host.here(), int(guard_))
    return 0


def _verify() -> int:
    from overlay_agent import paths  # noqa: PLC0415

    paths.verify()
    return 0


def _capture() -> int:
    from overlay_agent import capture  # noqa: PLC0415

    capture.capture(json.load(sys.stdin))
    return 0


def _probe() -> int:
    from overlay_agent import host  # noqa: PLC0415

    _report(host.offers())
    return 0


def _survey() -> int:
    from overlay_agent import kernel, survey  # noqa: PLC0415

    _report(survey.survey(kernel.Kernel()))
    return 0


def _identity() -> int:
    from overlay_agent import host, keys, store  # noqa: PLC0415

    return keys.identity(_asked("identity"), store.Store(), host.here(), _report)


def _secrets() -> int:
    from overlay_agent import document, host, secrets, store  # noqa: PLC0415

    return secrets.receive(sys.stdin.buffer.read(document.MAX_BYTES + 1), store.Store(), host.here(), _report)


def _install(mode: str = "new") -> int:
    from overlay_agent import install  # noqa: PLC0415

    return install.install(_asked("install"), known=mode == "known", report=_report)


def _uninstall() -> int:
    from overlay_agent import install  # noqa: PLC0415

    return install.uninstall(_asked("uninstall"), report=_report)


def _asked(verb: str) -> Any:
    from overlay_agent import document  # noqa: PLC0415

    return document.request(sys.stdin.buffer.read(document.MAX_BYTES + 1), verb)


def _version() -> int:
    from overlay_agent import __version__  # noqa: PLC0415

    print(__version__)
    return 0


def _document(store_: Any, label: str | None) -> Any:
    """The stored document of the stack, or without a label the one on standard input."""
    from overlay_agent import document  # noqa: PLC0415

    if label is None:
        return document.load(sys.stdin.buffer.read(document.MAX_BYTES + 1))
    raw = store_.read(label) if _is_label(label) else None
    return document.parse(raw) if raw else None


def _is_label(label: str | None) -> bool:
    return label is not None and label.count("/") == 1 and ".." not in label


def _report(report: dict[str, Any]) -> None:
    """Writes the report. Raises OSError when nobody takes it."""
    left = (json.dumps(report, sort_keys=True) + "\n").encode()
    while left:  # not through sys.stdout, which would try again at exit what could not be written
        left = left[os.write(sys.stdout.fileno(), left) :]


#: The verbs, and how many words each takes. Each imports what it needs itself: the start of the
#: agent is most of a quiet apply's time.
VERBS: dict[str, tuple[Callable[..., int], int]] = {
    "apply": (_guarded(_apply), 0),
    "remove": (_guarded(_remove), 1),
    "check": (_guarded(_check), 2),
    "status": (_guarded(_status), 1),
    "history": (_guarded(_history), 1),
    "stop": (_guarded(_stop), 1),
    "start": (_guarded(_start), 1),
    "purge": (_guarded(_purge), 2),
    "show": (_guarded(_show), 1),
    "explain": (_guarded(_explain), 1),
    "restore": (_guarded(_restore), 1),
    "watch": (_guarded(_watch), 1),
    "verify": (_guarded(_verify), 0),
    "capture": (_guarded(_capture), 0),
    "probe": (_guarded(_probe), 0),
    "survey": (_guarded(_survey), 0),
    "identity": (_guarded(_identity), 0),
    "secrets": (_guarded(_secrets), 0),
    "install": (_guarded(_install), 1),
    "uninstall": (_guarded(_uninstall), 0),
    "version": (_version, 0),
}

if __name__ == "__main__":
    sys.exit(main())
