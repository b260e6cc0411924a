"""`make bench-peers`, or `python -m bench.peers`: the same mesh by what people use today and by us, in one run.

ssh scripts host after host and eight at a time, Ansible as it comes and tuned, pyinfra, and `pulumi up`. After each
step all hosts' kernels are looked at: same devices, same peers. Ours runs with host keys, read-back, journal and lock.
Prints the tables of docs/scale.md: seconds, and ratios, which alone say something on a machine that others use too.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import functools
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence

from bench import others, ours
from bench.measure import Bench, Sample, measured_lab
from lab import Lab

#: All of a tool's steps; only what installs something on the hosts has the first.
STEPS = INSTALLED, FIRST, NO_OP, VNI, ADDED, GONE = (
    "first, installation included", "first", "no-op", "change of VNI", "one host added", "tear-down"
)  # fmt: skip
PYINFRA, OURS, TUNED = "pyinfra", "overlay", "Ansible, tuned"
#: At most so many times the other tool's time for the step.
AIMS = {(FIRST, PYINFRA): 1.5, (VNI, PYINFRA): 1.5, (ADDED, PYINFRA): 1.5, (FIRST, TUNED): 0.1}
#: With so many hosts and more no-op is to be faster than pyinfra's.
MANY = 200
Results = dict[str, dict[str, Sample]]


@dataclasses.dataclass(frozen=True)
class Tool:
    """One way to make the network. `deploy(vni, hosts)`; `remove()`: all of it."""

    name: str
    deploy: Callable[[int, Sequence[str]], None]
    remove: Callable[[], None]
    #: Makes the hosts ready, where that is an installation.
    prepare: Callable[[], None] | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables; the exit code says whether the aims were reached."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", type=int, default=50, help="lab hosts; default 50")
    parser.add_argument("--rounds", type=int, default=1, help="all tools so many times; the table has the medians")
    parser.add_argument("--tools", nargs="+", choices=[tool.name for tool in _tools(None, None)],
                        help="leave the others out")  # fmt: skip
    parser.add_argument("--only-no-op", action="store_true", help=f"as for {MANY} hosts, with --tools pyinfra overlay")
    options = parser.parse_args(arguments)
    for program in (others.PYINFRA, others.ANSIBLE):
        if not program.exists():
            parser.error(f"{program}: is not there; python3 tools/setup.py --bench installs it")
    load = os.getloadavg()[0]
    rounds: list[Results] = []
    with measured_lab("bench-peers", options.hosts) as (bench, scratch):
        for number in range(options.rounds):
            with ours.Project(bench.lab, scratch / f"project-{number}") as project:
                found = {
                    tool.name: _measured(bench, tool, only_no_op=options.only_no_op)
                    for tool in _tools(bench.lab, project)
                    if not options.tools or tool.name in options.tools
                }
            rounds.append(found)
        others.ansible_end(bench.lab)
    results = {tool: {step: _median([one[tool][step] for one in rounds]) for step in rounds[0][tool]}
               for tool in rounds[0]}  # fmt: skip
    now = dt.datetime.now(dt.timezone.utc)
    print(f"{now:%Y-%m-%d %H:%M} UTC, {options.hosts} lab hosts, rounds: {options.rounds}, "
          f"{os.cpu_count()} cores, Linux {platform.release()}, load {load:.1f} before")  # fmt: skip
    _print(results)
    missed = list(_missed(results, options.hosts))
    print("".join(f"\nmissed: {line}" for line in missed))
    return 1 if missed else 0


def _tools(lab: Lab | None, project: ours.Project | None) -> list[Tool]:
    """All tools; without a lab only for their names."""
    at_once = others.AT_A_TIME

    def up(vni: int | None, hosts: Sequence[str]) -> None:
        assert project is not None  # noqa: S101 - for mypy
        project.declare(hosts, vni)
        project.up()

    everyone = list(lab.hosts) if lab else []
    part = functools.partial
    rows: list[Tool] = [
        Tool("ssh, in turn", part(others.ssh_loop, lab), part(others.ssh_remove, lab)),
        Tool("ssh, 8 at a time", part(others.ssh_loop, lab, at_a_time=at_once),
             part(others.ssh_remove, lab, at_a_time=at_once)),
        Tool("Ansible", part(others.ansible, lab), part(others.ansible, lab, None, everyone)),
        Tool(TUNED, part(others.ansible, lab, tuned=True), part(others.ansible, lab, None, everyone, tuned=True)),
        Tool(PYINFRA, part(others.pyinfra, lab), part(others.pyinfra, lab, None, everyone)),
        Tool("pyinfra, tuned", part(others.pyinfra, lab, batch=True), part(others.pyinfra, lab, None, everyone)),
        Tool(OURS, up, part(ours.Project.destroy, project), part(up, None, everyone)),
    ]  # type: ignore[arg-type]  # fmt: skip
    return rows


def _measured(bench: Bench, tool: Tool, *, only_no_op: bool) -> dict[str, Sample]:
    everyone, samples = list(bench.lab.hosts), {}

    def step(name: str, work: Callable[[], None], vni: int | None) -> None:
        print(f"bench: {tool.name}, {name}", end="", file=sys.stderr, flush=True)
        samples[name] = bench.measure(lambda: work())  # noqa: PLW0108 - None to mypy
        print(f": {samples[name].seconds:.1f} s", file=sys.stderr)
        others.prove(bench.lab, vni, everyone)

    def deploy(name: str, vni: int) -> None:
        step(name, lambda: tool.deploy(vni, everyone), vni)

    if only_no_op:
        tool.deploy(42, everyone)
        deploy(NO_OP, 42)
        tool.remove()
        return samples
    if tool.prepare:
        deploy(INSTALLED, 42)
        tool.remove()
        tool.prepare()
    deploy(FIRST, 42)
    deploy(NO_OP, 42)
    deploy(VNI, 43)
    step(GONE, tool.remove, None)
    tool.deploy(43, everyone[:-1])
    deploy(ADDED, 43)
    tool.remove()
    return samples


def _median(samples: Sequence[Sample]) -> Sample:
    """One with the medians of what is printed."""
    cpu = [sample.cpu for sample in samples if sample.cpu is not None]
    seconds = statistics.median(sample.seconds for sample in samples)
    return dataclasses.replace(samples[0], seconds=seconds, cpu=statistics.median(cpu) if cpu else None)


def _print(results: Results) -> None:
    for beside in (None, PYINFRA, OURS):
        if beside and beside not in results:
            continue
        steps = [step for step in STEPS if any(step in row for row in results.values())]
        print(f"\n| {f'x {beside}' if beside else 'seconds'} | {' | '.join(steps)} |")
        print("|---" * (len(steps) + 1) + "|")
        for tool, row in results.items():
            print(f"| {tool} | " + " | ".join(_cell(results, row, step, beside) for step in steps) + " |")


def _cell(results: Results, row: dict[str, Sample], step: str, beside: str | None) -> str:
    if step not in row:
        return ""
    if beside is None:
        return f"{row[step].seconds:.1f}"
    other = results[beside].get(step) or results[beside].get(FIRST)
    return f"{row[step].seconds / other.seconds:.2f}" if other else ""


def _missed(results: Results, hosts: int) -> list[str]:
    aims = {**AIMS, **({(NO_OP, PYINFRA): 1.0} if hosts >= MANY else {})}
    out = []
    for (step, other), most in aims.items():
        mine, theirs = results.get(OURS, {}).get(step), results.get(other, {}).get(step)
        if mine and theirs and mine.seconds > most * theirs.seconds:
            out.append(f"{step}: {mine.seconds / theirs.seconds:.2f} times {other}'s; {most} at most")
    return out


if __name__ == "__main__":
    sys.exit(main())
