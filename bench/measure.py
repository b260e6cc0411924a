"""Seconds, processor seconds, memory and SSH connections of one command on the lab's hosts."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lab import Lab

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclasses.dataclass
class Sample:
    """What one step took. `cpu` is the operator's, `host_cpu` all hosts' together (both in seconds; None where the
    machine has no cgroup v2 to count in); `memory` the largest sum of resident memory, in bytes."""

    seconds: float = 0.0
    cpu: float | None = None
    host_cpu: float | None = None
    memory: int = 0
    connections: int = 0
    note: str = ""


class Group:
    """A control group that processes are born into, so that those which are gone are counted, too."""

    def __init__(self, name: str) -> None:
        root = next((p for p in map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")) if _is_cgroup2(p)), None)
        self.path = root and root / f"overlay-bench-{os.getpid()}-{name}"
        try:
            if self.path:
                self.path.mkdir()
        except OSError:
            self.path = None

    def enter(self) -> None:
        """Moves this process into it; later children are born there."""
        if self.path:
            (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def leave(self) -> None:
        """Moves this process back up."""
        if self.path:
            (self.path.parent / "cgroup.procs").write_text(str(os.getpid()))

    def cpu(self) -> float | None:
        """Processor seconds so far."""
        if not self.path:
            return None
        rows = dict(line.split() for line in (self.path / "cpu.stat").read_text().splitlines())
        return int(rows["usage_usec"]) / 1e6

    def resident(self) -> int:
        """Resident memory of all processes in it but this one, added up, in bytes."""
        total = 0
        for pid in (self.path / "cgroup.procs").read_text().split() if self.path else ():
            if int(pid) != os.getpid():
                with contextlib.suppress(OSError, IndexError):
                    total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        return total

    def remove(self) -> None:
        """Removes it once its processes are gone."""
        self.leave()
        for _ in range(50):
            if not self.path:
                return
            with contextlib.suppress(OSError):
                self.path.rmdir()
                return
            time.sleep(0.1)


def _is_cgroup2(path: Path) -> bool:
    return (path / "cgroup.controllers").exists()


class Bench:
    """A lab, and the means to measure what is done to it."""

    def __init__(self, lab: Lab, hosts: Group, operator: Group) -> None:
        self.lab, self.hosts, self.operator = lab, hosts, operator

    def measure(self, work: Callable[[], str | None]) -> Sample:
        """Runs it once. What it returns is the sample's note."""
        before, host_cpu = self.connections(), self.hosts.cpu()
        sample = watched(self.operator, work)
        time.sleep(0.3)  # the last sshd of each host ends after its client
        sample.host_cpu = _spent(host_cpu, self.hosts.cpu())
        sample.connections = self.connections() - before
        return sample

    def connections(self) -> int:
        """How often the hosts' sshd let somebody in."""
        return sum(self.lab.log(host).count("Accepted publickey for") for host in self.lab.hosts)


@contextlib.contextmanager
def measured_lab(name: str, hosts: int) -> Iterator[tuple[Bench, Path]]:
    """A lab whose hosts and operator are counted apart, and a folder that goes with it. This process is the operator,
    and in the lab's network from then on."""
    inside, outside = Group("hosts"), Group("operator")
    try:
        with tempfile.TemporaryDirectory(prefix="overlay-bench-") as scratch:
            inside.enter()
            with Lab(name, hosts, directory=scratch) as lab:
                outside.enter()
                lab.become_operator()
                yield Bench(lab, inside, outside), Path(scratch)
                outside.leave()
    finally:
        inside.remove()
        outside.remove()


def watched(group: Group, work: Callable[[], str | None]) -> Sample:
    """Runs it once: seconds, and what the processes of the group, which it starts, took."""
    sample, done = Sample(), threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            sample.memory = max(sample.memory, group.resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        before, begin = group.cpu(), time.monotonic()
        sample.note = work() or ""
        sample.seconds = time.monotonic() - begin
        sample.cpu = _spent(before, group.cpu())
    finally:
        done.set()
        thread.join()
    return sample


def _spent(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
