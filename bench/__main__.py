"""`make bench`: all on 50 lab hosts, beside the floor, an ssh loop and pyinfra; the agent; containers; tunnels."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import functools
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import agent, containers, others, ours, tunnels
from bench.measure import Bench, Sample, measured_lab
from lab import Lab

#: What is to be reached, as a multiple of pyinfra's time for the step (docs/adr/0004-speed.md).
AIMS = {
    "first, installation included": ("first", 2.5),
    "first, agents in place": ("first", 1.5),
    "no-op": ("no-op", 1.3),
    "change of VNI": ("change of VNI", 1.5),
}
Results = dict[str, dict[str, Sample]]
#: What is measured; it may return a note for the table.
Work = Callable[[], str | None]
Step = Callable[[str, str, Work], None]


def main() -> int:
    options = _options()
    hosts = 10 if options.quick else options.hosts
    load = os.getloadavg()
    results: Results = {}
    with measured_lab("bench", hosts) as (bench, scratch):
        _measure(bench, options, scratch, results)
    about = {
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "machine": _machine(),
        "load": [round(n, 1) for n in load],
        "load_after": [round(n, 1) for n in os.getloadavg()],
        "hosts": hosts,
        "rounds": options.rounds,
    }
    print(_table(results, about))
    if options.json:
        rows = {tool: {step: dataclasses.asdict(s) for step, s in steps.items()} for tool, steps in results.items()}
        options.json.write_text(json.dumps({**about, "results": rows}, indent=2) + "\n")
    if not options.no_agent:
        print(flush=True)
        agent.main()
        containers.main()
        tunnels.main([])
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--hosts", type=int, default=50, help="lab hosts (default 50)")
    parser.add_argument("--quick", action="store_true", help="10 lab hosts")
    parser.add_argument("--rounds", type=int, default=1, help="measure all so many times, one tool after the other; "
                        "the table has the medians")  # fmt: skip
    parser.add_argument("--only", choices=["ours", "others"], help="leave the rest out")
    parser.add_argument("--no-agent", action="store_true", help="without the agent's own times, containers and tunnels")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    return parser.parse_args()


def _measure(bench: Bench, options: argparse.Namespace, scratch: Path, results: Results) -> None:
    rounds: list[Results] = []
    for number in range(options.rounds):
        found: Results = {}

        def step(tool: str, name: str, work: Work, found: Results = found) -> None:
            print(f"bench: {tool}, {name}", end="", file=sys.stderr, flush=True)
            sample = bench.measure(work)
            print(f": {sample.seconds:.1f} s", file=sys.stderr)
            found.setdefault(tool, {})[name] = sample

        if options.only != "ours":
            _others(bench.lab, step)
        if options.only != "others":
            with ours.Project(bench.lab, scratch / f"project-{number}") as project:
                _ours(bench.lab, project, step)
        rounds.append(found)
    for tool, steps in rounds[0].items():
        results[tool] = {name: _median([r[tool][name] for r in rounds]) for name in steps}


def _others(lab: Lab, step: Step) -> None:
    everyone = list(lab.hosts)

    def made(tool: str, name: str, vni: int, work: Work) -> None:
        step(tool, name, work)
        others.prove(lab, vni, everyone)

    step("floor", "log-in", lambda: others.floor(lab))
    for name, vni in (("first", 42), ("no-op", 42), ("change of VNI", 43)):
        made("ssh loop", name, vni, functools.partial(others.ssh_loop, lab, vni))
    others.ssh_clean(lab)
    if not others.PYINFRA.exists():
        print("bench: no pyinfra here; python3 tools/setup.py --bench installs it", file=sys.stderr)
        return
    for tool, batch in (("pyinfra", False), ("pyinfra, tuned", True)):
        deploy = functools.partial(others.pyinfra, lab, batch=batch)
        for name, vni in (("first", 42), ("no-op", 42), ("change of VNI", 43)):
            made(tool, name, vni, functools.partial(deploy, vni, everyone))
        others.ssh_clean(lab)
        deploy(43, everyone[:-1])
        made(tool, "one host added", 43, functools.partial(deploy, 43, everyone))
        others.ssh_clean(lab)


def _ours(lab: Lab, project: ours.Project, step: Step) -> None:
    everyone = list(lab.hosts)

    def made(name: str, vni: int, work: Work = project.up) -> None:
        project.declare(everyone, vni)
        step("overlay", name, work)
        others.prove(lab, vni, everyone)

    made("first, installation included", 42)
    step("overlay", "destroy", project.destroy)
    project.declare(everyone, None)
    project.up()
    made("first, agents in place", 42)
    made("no-op", 42)
    step("overlay", "no-op preview", project.preview)
    step("overlay", "verify", project.verify)
    made("change of VNI", 43)
    project.declare(everyone[:-1], 43)
    project.up()

    def added() -> str:
        with ours.pinging(lab) as said:
            project.up()
        return said[0]

    made("one host added", 43, added)
    project.destroy()


def _median(samples: Sequence[Sample]) -> Sample:
    """The sample with the middle time; the notes of all."""
    middle = sorted(samples, key=lambda s: s.seconds)[len(samples) // 2]
    seconds = statistics.median(s.seconds for s in samples)
    notes = ", ".join(dict.fromkeys(s.note for s in samples if s.note))
    return dataclasses.replace(middle, seconds=seconds, note=notes)


def _table(results: Results, about: dict[str, object]) -> str:
    theirs, floor = results.get("pyinfra", {}), results.get("floor", {}).get("log-in")
    lines = [
        "",
        f"{about['hosts']} lab hosts, one segment, VXLAN mesh; {about['machine']}",
        f"{about['date']}; rounds: {about['rounds']}; load average {about['load']} before, {about['load_after']} after",
        "CPU in seconds of user and system: of the operator's processes + of the hosts'.",
        "",
        f"{'':44} {'seconds':>8} {'x floor':>8} {'x pyinfra':>10} {'aim':>5} {'CPU':>13} {'memory':>8} {'SSH':>5}",
    ]
    for tool, steps in results.items():
        for name, s in steps.items():
            like, aim = AIMS.get(name, (name, None)) if tool == "overlay" else (name, None)
            beside = theirs.get(like)
            lines.append(
                f"{tool:14} {name:29} {s.seconds:8.1f} {_ratio(s, floor):>8} {_ratio(s, beside):>10} "
                f"{aim or '':>5} {_cpu(s):>13} {f'{s.memory / 2**20:.0f} MiB' if s.memory else '-':>8} "
                f"{s.connections:5} {s.note}".rstrip()
            )
    return "\n".join(lines)


def _ratio(sample: Sample, other: Sample | None) -> str:
    return f"{sample.seconds / other.seconds:.2f}" if other else "-"


def _cpu(sample: Sample) -> str:
    if sample.cpu is None or sample.host_cpu is None:
        return "-"
    return f"{sample.cpu:.1f} + {sample.host_cpu:.1f}"


def _machine() -> str:
    names = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}, Linux {platform.release()}"


if __name__ == "__main__":
    sys.exit(main())
