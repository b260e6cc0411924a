"""`python -m bench.day2`: how long `overlay status` and `overlay drift` take on 50 lab hosts, all there and with five
of them silent. To be reached: 8 s (issue 6)."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench import ours
from lab import Lab

HOSTS, SILENT, ROUNDS = 50, 5, 3


def main() -> int:
    with (
        tempfile.TemporaryDirectory(prefix="overlay-bench-") as scratch,
        Lab("bench-day2", HOSTS, directory=scratch) as lab,
    ):
        lab.become_operator()
        with ours.Project(lab, Path(scratch) / "project") as project:
            project.declare(list(lab.hosts), 42)
            project.up()
            _table(project, f"{HOSTS} hosts", 0)
            for host in list(lab.hosts)[:SILENT]:
                lab.kill(host)
            _table(project, f"{HOSTS} hosts, {SILENT} of them silent", 3)
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs")
    return 0


def _table(project: ours.Project, what: str, code: int) -> None:
    for command, expected in (("status", 0), ("drift", code)):
        times = []
        for _ in range(ROUNDS):
            begin = time.monotonic()
            done = project.overlay(command)
            times.append(time.monotonic() - begin)
            if done.returncode != expected:
                sys.exit(f"overlay {command}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        print(f"overlay {command:8} {what:32} {statistics.median(times):5.1f} s (of {ROUNDS}: "
              f"{', '.join(f'{one:.1f}' for one in sorted(times))})", flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
