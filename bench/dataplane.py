"""`python -m bench.dataplane`: what each topology leaves of the wire, and how soon a host is there or gone.

Goodput, packets a second and round trips between two hosts over a wire of 1 Gbit/s, each beside the bare wire of the
same run (bench/tunnels.py says why ratios). Then, through the whole of Pulumi and SSH: from the start of `pulumi up`
to the first answer of a new host; and with EVPN from a host's death to a flood list without it. Rows for docs/scale.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import generate, ours, tunnels
from lab import Lab
from overlay_agent.document import dump
from overlay_components.config import load_config
from overlay_components.plan import make_plan

#: s; the first answer or the last entry has to have come by then.
PATIENCE = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.dataplane", description=__doc__.partition("\n")[0])
    parser.add_argument("--topologies", nargs="+", choices=generate.TOPOLOGIES, default=list(generate.TOPOLOGIES))
    parser.add_argument("--hosts", type=int, default=10, help="lab hosts for the second table; default 10")
    parser.add_argument("--rounds", type=int, default=3, help="of the first table, whose medians count; default 3")
    options = parser.parse_args(arguments)
    print(f"{dt.datetime.now(dt.timezone.utc):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, Linux {platform.release()}, "
          f"load {os.getloadavg()[0]:.1f} before", flush=True)  # fmt: skip
    _traffic(options.topologies, options.rounds)
    # A process of its own: it moves into the lab's network, and does not come back.
    code = f"from bench import dataplane; dataplane.converge({options.topologies!r}, {options.hosts})"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode


def stack(hosts: dict[str, str], topology: str) -> dict[str, Any]:
    """A segment with an address on each host, and the topology's tunnel."""
    raw = generate.config(hosts, topology)
    raw["segments"]["s1"]["addresses"] = {name: inside(number) for number, name in enumerate(hosts, 1)}
    return raw


def inside(number: int) -> str:
    """The overlay address of the host of that number."""
    return f"10.0.0.{number}"


# -- traffic ---------------------------------------------------------------------------------


def _traffic(topologies: Sequence[str], rounds: int) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="overlay-bench-") as scratch,
        Lab("bench-data", 3, rate=tunnels.WIRE, directory=scratch) as lab,
    ):
        tunnels.install(lab)
        found: dict[str, list[tuple[float, float, float]]] = {}
        for _ in range(rounds):
            found.setdefault("underlay", []).append(_measured(lab, lab.hosts["h3"].address))
            for topology in topologies:
                _apply(lab, stack({name: host.address for name, host in lab.hosts.items()}, topology))
                _answers(lab, inside(3))
                found.setdefault(topology, []).append(_measured(lab, inside(3)))
                _apply(lab, {"hosts": {name: {"address": host.address} for name, host in lab.hosts.items()}})
    bare = [statistics.median(column) for column in zip(*found["underlay"], strict=True)]
    print(f"\nA wire of {tunnels.WIRE}. With the hub a packet crosses it twice, by h1.\n")
    print("| h2 to h3 | goodput, Mbit/s | of the underlay's | packets/s | of the underlay's | round trip, ms | more |")
    print("|---|---|---|---|---|---|---|")
    for name, rows in found.items():
        mbit, count, trip = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"| {name} | {mbit:.1f} | {mbit / bare[0]:.3f} | {count:.0f} | {count / bare[1]:.2f} | {trip:.3f} | "
              f"{trip - bare[2]:+.3f} |", flush=True)  # fmt: skip


def _measured(lab: Lab, address: str) -> tuple[float, float, float]:
    """Between spokes, where there is a hub."""
    trips = tunnels.round_trips(lab, address, here="h2")
    return (
        tunnels.goodput(lab, address, here="h2", there="h3"),
        tunnels.packets(lab, address, here="h2", there="h3"),
        statistics.median(trips),
    )


def _apply(lab: Lab, raw: dict[str, Any]) -> None:
    plan = make_plan(load_config(raw), tunnels.OWNER)
    for host in lab.hosts:
        lab.run(host, [tunnels.AGENT, "apply"], input=dump(plan.documents[host]))


def _answers(lab: Lab, address: str) -> None:
    _until(lambda: lab.run("h2", ["ping", "-n", "-c", "1", "-W", "1", address], check=False).returncode == 0, address)


def _until(what: Callable[[], bool], name: str) -> float:
    """Seconds until it is so. Raises RuntimeError."""
    begin = time.monotonic()
    while not what():
        if time.monotonic() > begin + PATIENCE:
            raise RuntimeError(f"{name}: nothing within {PATIENCE:.0f} s")
        time.sleep(0.02)
    return time.monotonic() - begin


# -- how soon --------------------------------------------------------------------------------


def converge(topologies: Sequence[str], count: int) -> None:
    """Prints the second table."""
    with (
        tempfile.TemporaryDirectory(prefix="overlay-bench-") as scratch,
        Lab("bench-conv", count, directory=scratch) as lab,
    ):
        lab.become_operator()
        addresses = {name: host.address for name, host in lab.hosts.items()}
        *old, new = addresses
        print(f"\n{count} lab hosts; seconds from the start of `pulumi up`\n\n| topology | a new host answers after | "
              "`pulumi up` | a dead host is off the flood list |\n|---|---|---|---|")  # fmt: skip
        for number, topology in enumerate(topologies):
            with ours.Project(lab, Path(scratch) / f"project-{number}") as project:
                project.write(stack({name: addresses[name] for name in old}, topology))
                project.up()
                project.write(stack(addresses, topology))
                first, whole = _joined(lab, project, inside(count))
                gone = f"{_died(lab, old[0], new):.1f}" if topology == "evpn" else "stays until it is taken out"
                print(f"| {topology} | {first:.1f} | {whole:.1f} | {gone} |", flush=True)
                project.destroy()


def _joined(lab: Lab, project: ours.Project, address: str) -> tuple[float, float]:
    """Seconds to the first answer, and of the whole."""
    found: list[float] = []
    begin = time.monotonic()

    def ping() -> None:
        try:
            _until(lambda: lab.run("h1", ["ping", "-n", "-c", "1", "-W", "0.2", address], check=False).returncode == 0,
                   address)  # fmt: skip
            found.append(time.monotonic() - begin)
        except RuntimeError as error:
            print(f"bench: {error}", file=sys.stderr)

    thread = threading.Thread(target=ping)
    thread.start()
    project.up()
    whole = time.monotonic() - begin
    thread.join()
    return (found or [float("nan")])[0], whole


def _died(lab: Lab, looks: str, dies: str) -> float:
    """Seconds from a host's death to a flood list without it; it is started again."""
    address = lab.hosts[dies].address

    def absent() -> bool:
        rows: list[dict[str, Any]] = json.loads(lab.run(looks, "bridge -j fdb show dev vx-s1").stdout)
        return all(row.get("dst") != address for row in rows)

    lab.kill(dies)
    seconds = _until(absent, f"{dies} on {looks}'s flood list")
    lab.revive(dies)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
