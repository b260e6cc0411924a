"""Packages that a document's services need and the host lacks, installed where the stack says `installPackages: true`.

The host's own package manager does it, and only Debian's is tried. Nothing else of the document has been touched by
then, and whatever else speaks against the document is said first. What was installed stays: others may use it by the
time the stack goes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from typing import Any

from overlay_agent.document import Document
from overlay_agent.kinds import KINDS
from overlay_agent.reconcile import Refused

_APT = "apt-get"
#: Another package manager's run is waited for, in seconds; no more is installed than was asked for; nothing is asked.
_OPTIONS = ["-q", "-y", "-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Options::=--force-confold"]
_MOST = 600.0


def lacking(wanted: Document) -> dict[str, Any]:
    """The kinds of which the host lacks the package, by service."""
    kinds = {name: KINDS[spec.KIND] for name, spec in wanted.services.items()}
    return {name: kind for name, kind in kinds.items() if kind.lacks(wanted.services[name])}


def install(host: str, kinds: list[Any]) -> str:
    """Installs what these kinds lack, and says so. Raises Refused."""
    names = sorted({kind.package for kind in kinds})
    said = f"{'package' if len(names) == 1 else 'packages'} {', '.join(names)}"
    if not shutil.which(_APT):
        raise Refused([f"{host}: installPackages: there is no {_APT} on this host; install the {said} by hand"])
    wrong = _run("install", "--no-install-recommends", *names)
    if wrong:  # lists that are old name versions that are gone
        wrong = _run("update") or _run("install", "--no-install-recommends", *names)
    if wrong:
        raise Refused([f"{host}: installPackages: {said}: {wrong}; mend that, or install the {said} by hand"])
    for unit in sorted({kind.unit for kind in kinds if kind.unit}):
        if os.path.isdir("/run/systemd/system"):
            subprocess.run(["systemctl", "-q", "disable", "--now", unit], check=False, capture_output=True)
    return f"{host}: installed the {said}"


def _run(verb: str, *words: str) -> str:
    """Runs apt-get. Returns why it failed, in its own words, or nothing."""
    # A session of its own and a file for what it says: it must not be cut off halfway when ours ends.
    with tempfile.TemporaryFile() as said:
        try:
            done = subprocess.run(
                [_APT, *_OPTIONS, verb, *words], stdin=subprocess.DEVNULL, stdout=said, stderr=said, check=False,
                start_new_session=True, timeout=_MOST, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"{_APT} {verb} took longer than {_MOST:.0f} s"
        said.seek(0)
        lines = said.read().decode(errors="replace").splitlines()
    if done.returncode == 0:
        return ""
    errors = [line[2:].strip() for line in lines if line.startswith("E:")] or lines[-1:]
    return f"{_APT} {verb}: {' '.join(errors) or f'exit code {done.returncode}'}"
