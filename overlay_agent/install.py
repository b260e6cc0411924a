"""Puts the agent in place, and takes it away with the last stack that uses this host.

The program copies one .pyz file and runs `install` from it. It is unpacked with bytecode, since
starting from a zip file costs 60 ms at every apply, into a folder named by its version, behind
the command /usr/local/sbin/overlay-agent that never changes its path (rule 3).
"""

from __future__ import annotations

import json
import os
import py_compile
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable
from typing import Any

from overlay_agent import COMMAND, __version__, document, host
from overlay_agent.document import Document, DocumentError, Owner
from overlay_agent.fields import Label
from overlay_agent.store import Store

LIBRARY = "/usr/local/lib/overlay-agent"
UNITS = "/etc/systemd/system"

LAUNCHER = """\
#!{python} -ISB
import gc, sys
gc.disable()  # ends before there is garbage worth looking for
sys.path.insert(0, {folder!r})
from overlay_agent.__main__ import main
sys.exit(main())
"""

UNIT_TEXT = """\
[Unit]
Description={description}
Wants=network-online.target
After=network-online.target{after}
Before={before}lxc.service lxc-net.service lxd.service incus.service
# For ten minutes; the limit of 5 starts would end it after one.
StartLimitIntervalSec=900
StartLimitBurst=120

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={command} restore {which}
# The underlay's address may come later than the target promises.
Restart=on-failure
RestartSec=5

[Install]
WantedBy=multi-user.target
"""

#: Docker's own networks are there once it runs; everything else has to be there before. (The first
#: must not ask Docker: its socket may be systemd's, and would not answer before the unit has ended.)
UNIT_TEXTS = {
    "overlay-restore.service": UNIT_TEXT.format(
        description="Bring back the overlay networks of this host",
        after="",
        before="docker.service ",
        command=COMMAND,
        which="own",
    ),
    "overlay-restore-docker.service": UNIT_TEXT.format(
        description="Bring back the overlay networks of this host that join networks of Docker",
        after=" docker.service overlay-restore.service",
        before="",
        command=COMMAND,
        which="docker",
    ),
}


def _request(raw: Any) -> tuple[Owner, str, int, bool]:
    """What `install` and `uninstall` are given. Raises DocumentError."""
    errors: list[str] = []
    if not isinstance(raw, dict) or raw.keys() - {"schema", "owner", "host", "generation", "force"}:
        raise DocumentError([f"install: {raw!r} is not what the program sends"])
    owner = document.read_owner(raw.get("owner"), errors)
    generation = raw.get("generation", 1)
    wrong = Label().check(raw.get("host"))
    if wrong:
        errors.append(f"install.host: {wrong}")
    if type(generation) is not int:
        errors.append(f"install.generation: {generation!r} is not a whole number")
    if errors or owner is None:
        raise DocumentError(errors)
    return owner, raw["host"], generation, bool(raw.get("force"))


def install(raw: Any, *, known: bool, report: Callable[[dict[str, Any]], None]) -> int:
    """Unpacks the archive this code runs from, and notes that the stack uses this host.

    `known`: the program has installed on this host before. Then a machine that has never seen the
    stack is another machine under the same name, and is refused (rule 2).
    """
    owner, name, generation, _ = _request(raw)
    store, here = Store(), host.here()
    with store.locked(f"install for stack {owner.label}"):
        if store.is_cut_short():
            from overlay_agent import guard  # noqa: PLC0415 - from the archive, without bytecode, it costs 80 ms

            guard.end_cut_short(store, here)
        member = store.read_member(owner.label)
        if known and (member is None or member["generation"] > generation):
            print(
                f"{name}: this machine (id {here.machine}) does not know stack {owner.label}, but {name} had it; "
                f"if the machine was replaced or reinstalled, raise overlay:hosts.{name}.generation (now "
                f"{generation}); if its address is wrong, mend that; if it is another host, give it another name",
                file=sys.stderr,
            )
            return 1
        if member and member["owner"]["id"] != owner.id:
            from overlay_agent import reconcile  # noqa: PLC0415 - as above

            print(reconcile.foreign_stack(name, owner.label, member["owner"]["id"], owner.id), file=sys.stderr)
            return 1
        kept = _put_in_place()
        if kept:
            print(kept, file=sys.stderr)
        store.write_member(owner.label, {"owner": vars(owner), "host": name, "generation": generation})
    report({"host": name, "machine": here.machine})
    return 0


def uninstall(raw: Any, report: Callable[[dict[str, Any]], None]) -> int:
    """Removes whatever the stack left here, and the agent when no other stack uses this host.
    An agent or a stack that is gone already is no error."""
    from overlay_agent import guard  # noqa: PLC0415 - as above

    owner, name, generation, force = _request(raw)
    store, here = Store(), host.here()
    with store.locked(f"uninstall of stack {owner.label}"):
        guard.end_cut_short(store, here)
        member = store.read_member(owner.label)
        if member and (member["owner"]["id"] != owner.id or member["generation"] > generation):
            print(f"{name}: stack {owner.label} was installed here anew since; left alone", file=sys.stderr)
            return 0
        empty = Document(owner, name, force=force)
        code = guard.transaction(empty, store, here, lambda _: None, forget=True)
        if code:
            return code
        store.write_member(owner.label, None)
        others = sorted(set(store.members()) | set(store.labels()))
        if others:
            print(f"{name}: the agent stays, for {', '.join(others)}", file=sys.stderr)
        else:
            _take_away()
            store.remove_empty()
            store.remove_lock()
            print(f"{name}: agent removed", file=sys.stderr)
    report({"host": name, "removed": not others})
    return 0


def _put_in_place() -> str:
    """Unpacks this archive unless it is there; says it where a newer version is."""
    archive = sys.argv[0]
    with zipfile.ZipFile(archive) as bundle:
        digest = json.loads(bundle.read("digest.json"))["digest"]
        folder = os.path.join(LIBRARY, f"{__version__}-{digest}")
        current = _current()
        if current == folder and os.path.isdir(folder):
            return ""
        if current and os.path.isdir(current) and _version_of(current) > _version_of(folder):
            return f"agent {os.path.basename(current)} is newer than {__version__}; kept"
        os.makedirs(LIBRARY, mode=0o755, exist_ok=True)
        temporary = os.path.join(LIBRARY, ".new")
        shutil.rmtree(temporary, ignore_errors=True)  # of an installation that was cut short; we hold the lock
        os.mkdir(temporary)
        try:
            bundle.extractall(temporary)
            for name in bundle.namelist():
                if name.endswith(".py"):
                    py_compile.compile(os.path.join(temporary, name), dfile=os.path.join(folder, name), doraise=True)
            _readable(temporary)
            _to_disk(temporary)
            if os.path.isdir(folder):
                shutil.rmtree(folder)
            os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    _sync(LIBRARY)
    os.makedirs(os.path.dirname(COMMAND), exist_ok=True)
    # Not its real path: /usr/bin/python3 survives an upgrade of the system, python3.11 does not.
    _write(COMMAND, LAUNCHER.format(python=sys.executable, folder=folder), 0o755)
    for other in os.listdir(LIBRARY):
        if os.path.join(LIBRARY, other) != folder:
            shutil.rmtree(os.path.join(LIBRARY, other))
    if host.has_systemd():
        for unit, text in UNIT_TEXTS.items():
            _write(os.path.join(UNITS, unit), text, 0o644)
        _systemctl("daemon-reload")
        _systemctl("enable", *UNIT_TEXTS)
    return ""


def _take_away() -> None:
    units = [unit for unit in UNIT_TEXTS if os.path.exists(os.path.join(UNITS, unit))]
    if units:
        # After a boot they are active, and would be listed as "not-found active" once their files are gone.
        _systemctl("disable", "--now", *units)
        for unit in units:
            os.unlink(os.path.join(UNITS, unit))
        _systemctl("daemon-reload")
    if os.path.exists(COMMAND):
        os.unlink(COMMAND)
    shutil.rmtree(LIBRARY, ignore_errors=True)


def _current() -> str | None:
    """The folder that the command uses now."""
    try:
        with open(COMMAND, encoding="utf-8") as file:
            for line in file:
                if line.startswith("sys.path.insert(0, "):
                    return line.split("'")[1]
    except OSError:
        pass
    return None


def _version_of(folder: str) -> tuple[int, ...]:
    number = os.path.basename(folder).split("-")[0]
    return tuple(int(part) for part in number.split(".") if part.isdigit())


def _readable(folder: str) -> None:
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = os.path.join(root, name)
            os.chmod(path, 0o755 if stat.S_ISDIR(os.stat(path).st_mode) else 0o644)
    os.chmod(folder, 0o755)  # noqa: S103 - the command is started by whoever may use sudo


def _to_disk(folder: str) -> None:
    """Has the files outlast a loss of power: without, they come back empty, and nothing restores the host."""
    for root, _, files in os.walk(folder):
        for path in [*(os.path.join(root, name) for name in files), root]:
            _sync(path)


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: str, text: str, mode: int) -> None:
    """Writes the file whole or not at all, also where the power is lost a moment later."""
    temporary = f"{path}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(temporary, mode)
    os.rename(temporary, path)
    _sync(os.path.dirname(path))


def _systemctl(*arguments: str) -> None:
    import subprocess  # noqa: PLC0415 - costs 5 ms where there is no systemd

    subprocess.run(["systemctl", "-q", *arguments], check=False, stdout=subprocess.DEVNULL)
