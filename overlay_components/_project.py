"""Which stack is meant on the command line, found as Pulumi finds it: Pulumi.yaml and its stackConfigDir."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from overlay_agent.document import Owner
from overlay_components import config, errors, lock, plan
from overlay_components.errors import ConfigErrors
from overlay_components.lock import Lock
from overlay_components.plan import Plan

_DEFAULT_PROJECT = "overlay"
#: s, for Pulumi to say which stack is selected.
_PATIENCE = 30


@dataclasses.dataclass(frozen=True)
class Stack:
    """A stack file that was read. `notes`: what its reader should know."""

    raw: Mapping[str, Any]
    owner: Owner
    #: Where its lock file is, or would be.
    lock_file: Path
    notes: tuple[str, ...] = ()
    #: The project's folder; None: the file belongs to none.
    folder: Path | None = None

    def plan(self) -> Plan:
        """Its plan, as `pulumi up` makes it. Raises ConfigErrors with every error of the file."""
        return plan.make_plan(config.load_config(self.raw), self.owner, self.lock())

    def lock(self) -> Lock:
        """What its lock file says. Raises ConfigErrors."""
        return lock.load(self.lock_file)

    def relocked(self, *, prune: bool) -> Lock:
        """Its lock, with an address for every container that needs one. Raises ConfigErrors."""
        return plan.make_lock(config.load_config(self.raw), self.owner, self.lock(), prune=prune)


def find(file: Path | None, name: str | None) -> Stack:
    """The stack of that file or name, or the project's only one. Raises ConfigErrors."""
    if file is not None and name is not None:
        raise ConfigErrors([f"--stack: {name!r} and a file, {file}; give one of them"])
    project = _near(Path.cwd() if file is None else file.resolve().parent)
    settings = _settings(project) if project else {}
    notes: tuple[str, ...] = ()
    if file is None:
        if project is None:
            raise ConfigErrors(
                [f"{Path.cwd()}: no Pulumi.yaml here or above; name a stack file, or write one: overlay init"]
            )
        file = _file(_configs(project.parent, settings), name, project.parent)
    elif project is None:
        notes = (f"{file}: no Pulumi.yaml beside it or above; MAC addresses are those of a project named overlay",)
    raw = config.read_stack_file(file)
    # Only Pulumi's state knows the stack's id, and nothing that is shown depends on it.
    owner = Owner(str(settings.get("name") or _DEFAULT_PROJECT), stack_name(file), "unknown")
    return Stack(raw, owner, lock.path_of(file.parent, owner.stack), notes, project.parent if project else None)


def project_name(folder: Path) -> str:
    """The name of the project that the folder is in, or the one that stack files outside of any have."""
    project = _near(folder)
    return str((_settings(project) if project else {}).get("name") or _DEFAULT_PROJECT)


def _near(folder: Path) -> Path | None:
    """The nearest Pulumi.yaml at or above the folder."""
    return next((p / "Pulumi.yaml" for p in (folder, *folder.parents) if (p / "Pulumi.yaml").is_file()), None)


def lock_of_program(root: str | None, stack: str) -> Lock:
    """What the lock file of a running Pulumi program's stack says. `root`: the folder of its Pulumi.yaml, as Pulumi
    says; older ones do not, and run the program in it. Raises ConfigErrors."""
    folders = [Path(root or "."), Path()]
    project = next((folder / "Pulumi.yaml" for folder in folders if (folder / "Pulumi.yaml").is_file()), None)
    settings = _settings(project) if project else {}
    folder = project.parent if project else Path()
    return lock.load(lock.path_of(_configs(folder, settings), stack))


def names() -> list[str]:
    """The stacks that the project here has a file of."""
    project = _near(Path.cwd())
    try:
        return list(_files(_configs(project.parent, _settings(project)))) if project else []
    except ConfigErrors:
        return []


def _configs(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Where the project's stack files are."""
    return folder / str(settings.get("stackConfigDir") or ".")


def _files(folder: Path) -> dict[str, Path]:
    return {stack_name(path): path for path in sorted(folder.glob("Pulumi.*.yaml"))}


def _selected(project: Path) -> str:
    """The stack that PULUMI_STACK or `pulumi stack select` chose; nothing where Pulumi cannot say."""
    words = ["pulumi", "stack", "--show-name", "--non-interactive"]
    if chosen := os.environ.get("PULUMI_STACK"):
        return chosen.rpartition("/")[2]
    try:
        done = subprocess.run(
            words, cwd=project, capture_output=True, text=True, check=False, timeout=_PATIENCE, stdin=subprocess.DEVNULL
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().rpartition("/")[2] if done.returncode == 0 else ""


def _file(folder: Path, name: str | None, project: Path) -> Path:
    files = _files(folder)
    if name is None and len(files) > 1:
        name = _selected(project) or None
    if name is not None:
        if name not in files:
            raise ConfigErrors([f"--stack: unknown stack {name!r} in {folder}; {errors.instead(name, files)}"])
        return files[name]
    if len(files) != 1:
        there = f"holds {len(files)} stack files" if files else "holds no stack file Pulumi.<stack>.yaml"
        what = f"say --stack {next(iter(files))}, or another of {', '.join(files)}" if files else "write one"
        raise ConfigErrors([f"{folder}: {there}; {what}"])
    return next(iter(files.values()))


def stack_name(path: Path) -> str:
    """The stack that the file is of."""
    return path.name.removeprefix("Pulumi.").removesuffix(".yaml") or path.name


def _settings(project: Path) -> Mapping[str, Any]:
    try:
        settings = yaml.safe_load(project.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigErrors([f"{project}: cannot be read ({' '.join(str(error).split())}); mend it"]) from None
    if not isinstance(settings, dict):
        raise ConfigErrors([f"{project}: is not an object; it has at least `name:` and `runtime: python`"])
    return settings
