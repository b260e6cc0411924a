"""Control groups of the containers on a lab's hosts: the one tree that hosts share with the machine.

Container runtimes make groups and, killed with their host, leave them. So all groups of a lab are below one of its
own name, which is on disk before the first is made, and is removed when the lab is.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from lab._error import LabError

TREE = Path("/sys/fs/cgroup")
_PATIENCE = 10.0


def claim(root: Path, lab_id: str, what: str) -> str:
    """The name of the lab's group for `what`, which `remove(root)` will remove from every hierarchy.

    Not one for all: LXC cannot use a cpuset that Docker has made.
    """
    name = f"overlay-lab-{lab_id}"
    (root / "cgroup").write_text(name)
    return f"{name}-{what}"


def remove(root: Path) -> None:
    """Remove what is left of the lab's groups; their processes have ended. LabError when one does not go."""
    try:
        name = (root / "cgroup").read_text()
    except FileNotFoundError:
        return
    deadline = time.monotonic() + _PATIENCE
    while left := [path for path, _, _ in os.walk(TREE, topdown=False) if f"/{name}-" in path]:
        for path in left:
            try:
                Path(path).rmdir()
            except OSError as error:  # noqa: PERF203 - a process may still be on its way out
                if time.monotonic() > deadline:
                    raise LabError(f"{path}: control group cannot be removed: {error.strerror}") from None
                time.sleep(0.02)
