"""The network of others.py declared in a stack file, and `pulumi up` run on it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bench.others import ROOT, FailedError, run
from lab import Lab

#: Addresses in the segment, for pings between old hosts while a new one comes.
ADDRESSES = {"h1": "10.10.0.1", "h2": "10.10.0.2"}
_INTERVAL = 0.04


class Operator(Protocol):
    """What a Project needs of a Lab."""

    @property
    def home(self) -> Path:
        """HOME of what is run."""

    @property
    def identity(self) -> Path:
        """The private key."""


class Project:
    """A copy of the checkout's project with a stack and a state of its own. Used as `with Project(...)`."""

    def __init__(self, lab: Operator, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        # Keys by an ssh-agent, as docs/connections.md has it: else each resource in the state holds one, encrypted.
        socket = folder / "agent.sock"
        self._agent = ["ssh-agent", "-D", "-a", str(socket)]
        self._env = {
            **os.environ,
            "HOME": str(lab.home),
            "PULUMI_BACKEND_URL": f"file://{folder}/state",
            "SSH_AUTH_SOCK": str(socket),
        }

    def __enter__(self) -> Project:  # noqa: PYI034 - Self is from 3.11
        (self.folder / "state").mkdir(parents=True)
        (self.folder / "stacks").mkdir()
        for name in ("Pulumi.yaml", "__main__.py"):
            shutil.copy(ROOT / name, self.folder)
        self._running = subprocess.Popen(self._agent, stdout=subprocess.DEVNULL)
        while not Path(self._env["SSH_AUTH_SOCK"]).exists():
            time.sleep(0.02)
        run(["ssh-add", "-q", self.lab.identity], env=self._env)
        self.pulumi("stack", "init", "bench")
        return self

    def __exit__(self, *_: object) -> None:
        self._running.terminate()
        self._running.wait()
        shutil.rmtree(self.folder)

    def pulumi(self, *arguments: str) -> str:
        """Its output. Raises FailedError."""
        return run(["pulumi", "--non-interactive", *arguments], cwd=self.folder, env=self._env)

    def overlay(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs `overlay …` in the project's folder."""
        argv = [sys.executable, "-m", "overlay_components.cli", *words]
        return subprocess.run(argv, cwd=self.folder, env=self._env, capture_output=True, text=True, check=False)

    def declare(self, hosts: Sequence[str], vni: int | None) -> None:
        """Writes the stack file: these hosts, and unless `vni` is None the segment on all of them."""
        assert isinstance(self.lab, Lab)  # noqa: S101 - for mypy
        raw: dict[str, Any] = {
            "defaults": {"user": "root", "underlay": {"device": "eth0"}},
            "hosts": {name: {"address": self.lab.hosts[name].address} for name in hosts},
        }
        if vni is not None:
            segment = {"subnets": ["10.10.0.0/16"], "addresses": ADDRESSES}
            raw["segments"] = {"app": {**segment, "tunnels": {"mesh": {"kind": "vxlan", "vni": vni}}}}
        self.write(raw)

    def write(self, raw: Mapping[str, Any]) -> None:
        """Writes the stack file. `raw`: its `overlay:` keys without the prefix."""
        path = self.folder / "stacks" / "Pulumi.bench.yaml"
        salt = [line for line in path.read_text().splitlines() if line.startswith("encryptionsalt")]
        config = {f"overlay:{key}": value for key, value in raw.items()}
        path.write_text("\n".join([*salt, f"config: {json.dumps(config)}", ""]))

    def state_size(self) -> int:
        """Bytes of the stack's state."""
        return sum(path.stat().st_size for path in (self.folder / "state/.pulumi/stacks").rglob("*.json"))

    def up(self) -> None:
        """`pulumi up` as scripts call it. Raises FailedError."""
        self.pulumi("up", "--yes", "--skip-preview")

    def preview(self) -> None:
        """`pulumi preview`. Raises FailedError."""
        self.pulumi("preview")

    def verify(self) -> None:
        """`overlay verify`: all pairs of hosts. Raises FailedError, also when a pair fails."""
        run([sys.executable, "-m", "overlay_components.cli", "verify"], cwd=self.folder, env=self._env)

    def destroy(self) -> None:
        """`pulumi destroy`. Raises FailedError."""
        self.pulumi("destroy", "--yes", "--skip-preview")


@contextlib.contextmanager
def pinging(lab: Lab) -> Iterator[list[str]]:
    """Pings h2 from h1 through the overlay, 25 times a second; at the end the list has a line that says how many
    answers were missing. Raises FailedError when one was."""
    said: list[str] = []
    ping = lab.popen(
        "h1", ["ping", "-n", "-i", str(_INTERVAL), ADDRESSES["h2"]], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield said
    finally:
        ping.send_signal(signal.SIGINT)
        output, _ = ping.communicate(timeout=10)
    seen = {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", output)}
    lost = set(range(1, max(seen, default=1) + 1)) - seen
    said.append(f"{len(lost)} of {max(seen, default=0)} pings lost")
    if lost or not seen:
        raise FailedError(f"pings between two old hosts: {said[0]}\n{output[-1000:]}")
