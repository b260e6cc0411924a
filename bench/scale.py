"""`python -m bench.scale`: what grows how with the number of hosts; rows for the tables of docs/scale.md.

Two tables, both through the real CLI. On lab hosts: first preview, up, no-op, one host added, destroy, the state's
size, the most memory of Pulumi, language host and plugin together. Of more hosts than a lab has: what plan and preview
take, whose hosts are asked nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import generate, ours
from bench.measure import Bench, Group, Sample, measured_lab, watched
from overlay_agent.document import Owner
from overlay_components.config import load_config
from overlay_components.plan import make_plan

MIB = 2**20
#: Pulumi hands the configuration to the program in one variable of its environment, which Linux limits to 128 KiB.
LONGEST_CONFIG = 128 * 1024 - len("PULUMI_CONFIG=") - 1
_USUAL = ["mesh", "evpn"]
#: What the issue asks for: (hosts, seconds, MiB).
EVPN_PREVIEW, NO_OP = (1000, 30.0, 1536), (200, 6.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables; the exit code says whether the aims were reached."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__.partition("\n")[0])
    parser.add_argument("--lab", type=int, nargs="*", default=[10, 50, 200], help="lab hosts; default 10 50 200")
    parser.add_argument("--dry", type=int, nargs="*", default=[200, 1000, 5000],
                        help="hosts that nobody asks; default 200 1000 5000")  # fmt: skip
    parser.add_argument("--topologies", nargs="+", choices=generate.TOPOLOGIES, default=_USUAL,
                        help=f"default {' '.join(_USUAL)}")  # fmt: skip
    parser.add_argument("--most-mesh", type=int, default=1000, help="no preview of a mesh of more hosts, whose "
                        "documents are as many as the square; default 1000")  # fmt: skip
    options = parser.parse_args(arguments)
    print(f"{dt.datetime.now(dt.timezone.utc):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, Linux {platform.release()}, "
          f"load {os.getloadavg()[0]:.1f} before. Seconds (of processor time).", flush=True)  # fmt: skip
    missed = _on_paper(options.dry, options.topologies, options.most_mesh) if options.dry else []
    if options.lab:
        missed += _in_labs(options.lab, options.topologies)
    print(f"\nload {os.getloadavg()[0]:.1f} after" + "".join(f"\nmissed: {line}" for line in missed))
    return 1 if missed else 0


# -- without hosts ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Nobody:
    """An operator without a lab."""

    home: Path
    identity: Path


def _on_paper(counts: Sequence[int], topologies: Sequence[str], most_mesh: int) -> list[str]:
    print("\n| hosts | topology | plan | preview | a host | memory |\n|---|---|---|---|---|---|")
    missed = []
    for topology in topologies:
        for count in counts:
            raw = generate.config(generate.addresses(count), topology)
            begin = time.process_time()
            make_plan(load_config(raw), Owner("overlay", "bench", "0"))
            plan = time.process_time() - begin
            row = f"| {count} | {topology} | ({plan:.2f}) |"
            if topology == "mesh" and count > most_mesh:
                print(f"{row} | | |", flush=True)
                continue
            sample = _previewed(raw)
            print(f"{row} {_seconds(sample)} | {sample.seconds / count * 1e3:.1f} ms | {_memory(sample)} |", flush=True)
            limit = EVPN_PREVIEW[0] == count and topology == "evpn"
            if limit and (sample.seconds > EVPN_PREVIEW[1] or sample.memory > EVPN_PREVIEW[2] * MIB):
                missed.append(f"preview of {count} hosts, evpn: {EVPN_PREVIEW[1]:.0f} s, {EVPN_PREVIEW[2]} MiB")
    return missed


def _previewed(raw: dict[str, Any]) -> Sample:
    with tempfile.TemporaryDirectory(prefix="overlay-bench-") as scratch:
        home = Path(scratch) / "home"
        identity = home / ".ssh" / "id_ed25519"
        identity.parent.mkdir(parents=True)
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(identity)]
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
        known = [f"{host['address']} {generate.HOST_KEY}" for host in raw["hosts"].values()]
        identity.with_name("known_hosts").write_text("\n".join([*known, ""]))
        with _grouped() as group, ours.Project(_Nobody(home, identity), Path(scratch) / "project") as project:
            handed = json.dumps({f"overlay:{key}": json.dumps(value) for key, value in raw.items()})
            if len(handed) < LONGEST_CONFIG:
                project.write(raw)
            else:
                _read_beside(project, handed)
            return watched(group, project.preview)


def _read_beside(project: ours.Project, handed: str) -> None:
    """Has the program read what Pulumi could not hand to it (docs/scale.md)."""
    (project.folder / "big.json").write_text(handed)
    program = project.folder / "__main__.py"
    lines = ["import json, pulumi.runtime", "pulumi.runtime.set_all_config(json.load(open('big.json')))"]
    program.write_text("\n".join([*lines, program.read_text()]))


@contextlib.contextmanager
def _grouped() -> Iterator[Group]:
    group = Group("scale")
    try:
        group.enter()
        yield group
    finally:
        group.remove()


# -- on lab hosts ----------------------------------------------------------------------------


def _in_labs(counts: Sequence[int], topologies: Sequence[str]) -> list[str]:
    print("\n| lab hosts | topology | preview | up, agents too | no-op | one host added | destroy | state | memory |")
    print("|---|---|---|---|---|---|---|---|---|")
    missed: list[str] = []
    for count in counts:
        for topology in topologies:
            # A process of its own: it moves into the lab's network, and does not come back.
            code = f"from bench import scale; scale.one({count}, {topology!r})"
            done = subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                raise RuntimeError(f"{count} hosts, {topology}: exit code {done.returncode}")
            no_op, row = done.stdout.strip().split("\t")
            print(row, flush=True)
            if count == NO_OP[0] and float(no_op) > NO_OP[1]:
                missed.append(f"no-op of {count} hosts, {topology}: {NO_OP[1]:.0f} s")
    return missed


def one(count: int, topology: str) -> None:
    """Measures one lab; prints the seconds of a no-op, a tab, the table's row."""
    with (
        measured_lab("bench-scale", count) as (bench, scratch),
        ours.Project(bench.lab, scratch / "project") as project,
    ):
        row, no_op = _row(bench, project, topology)
    print(f"{no_op}\t{row}")


def _row(bench: Bench, project: ours.Project, topology: str) -> tuple[str, float]:
    addresses = {name: host.address for name, host in bench.lab.hosts.items()}
    steps: dict[str, Sample] = {}

    def step(name: str, work: Callable[[], None]) -> None:
        print(f"bench: {len(addresses)} hosts, {topology}, {name}", end="", file=sys.stderr, flush=True)
        steps[name] = bench.measure(lambda: work())  # noqa: PLW0108 - None to mypy
        print(f": {steps[name].seconds:.1f} s", file=sys.stderr)

    project.write(generate.config(addresses, topology))
    step("preview", project.preview)
    step("up", project.up)
    step("no-op", project.up)
    if steps["no-op"].connections:
        raise RuntimeError(f"a no-op asked {steps['no-op'].connections} hosts")
    size = project.state_size()
    *_, last = addresses
    project.write(generate.config({name: a for name, a in addresses.items() if name != last}, topology))
    project.up()
    project.write(generate.config(addresses, topology))
    step("added", project.up)
    asked = steps["added"].connections
    step("destroy", project.destroy)
    memory = max(sample.memory for sample in steps.values())
    cells = [
        str(len(addresses)), topology, _seconds(steps["preview"]), _seconds(steps["up"]), _seconds(steps["no-op"]),
        f"{_seconds(steps['added'])}, {asked} log-ins", _seconds(steps["destroy"]), f"{size / MIB:.2f} MiB",
        f"{memory / MIB:.0f} MiB",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |", steps["no-op"].seconds


def _seconds(sample: Sample) -> str:
    return f"{sample.seconds:.1f}" + ("" if sample.cpu is None else f" ({sample.cpu:.1f})")


def _memory(sample: Sample) -> str:
    return f"{sample.memory / MIB:.0f} MiB" if sample.memory else "-"


if __name__ == "__main__":
    sys.exit(main())
