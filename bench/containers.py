"""`python -m bench.containers`: 250 containers on 10 lab hosts, with one router that gives all of them addresses.

Through the whole: stack file, Pulumi, SSH with host keys, agent with journal and read-back, dnsmasq. Times are wall
seconds; beside them what the same machine took for a `pulumi up` that has nothing to do, as the machines are shared.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import ours
from bench.others import ROOT, run
from lab import Lab

HOSTS, CONTAINERS, RESERVATIONS = 10, 250, 1000
#: Discovers: so many a second, for so many seconds.
RATE, SECONDS = 200, 5
CLIENT = ROOT / "tests/dhcp_client.py"
STACK = "bench"
#: What the issue asks for, in seconds; discovers without an answer.
AIMS = {"plan": 5.0, "preview": 5.0, "above no-op": 1.5, "reload": 1.0, "lost": 0}


def main() -> int:
    """Prints the table; the exit code says whether the aims were reached."""
    with (
        tempfile.TemporaryDirectory(prefix="overlay-bench-") as scratch,
        Lab("bench-containers", HOSTS, directory=scratch) as lab,
    ):
        lab.become_operator()
        with ours.Project(lab, Path(scratch) / "project") as project:
            found = _measure(lab, project)
    table = Table(title=f"{CONTAINERS} containers on {HOSTS} hosts, one router (load {os.getloadavg()[0]:.1f} after)")
    for word in ("what", "measured", "aim"):
        table.add_column(word, justify="left" if word == "what" else "right")
    for what, key in (
        ("overlay plan", "plan"),
        ("pulumi preview, from nothing", "preview"),
        ("pulumi up, agents in place", "first"),
        ("pulumi up, nothing to do", "no-op"),
        ("pulumi up, one more reservation", "one more"),
        ("  the same after Pulumi's start: less the one with nothing to do", "above no-op"),
        ("  hosts that it asked", "asked"),
        (f"agent: {RESERVATIONS} reservations, one more: until dnsmasq has read them", "reload"),
        (f"{RATE} discovers a second for {SECONDS} s: without an offer", "lost"),
    ):
        aim = AIMS.get(key)
        table.add_row(what, _text(found[key]), "" if aim is None else _text(aim))
    Console(width=110).print(table)
    return 0 if all(found[key] <= aim for key, aim in AIMS.items()) else 1


def _measure(lab: Lab, project: ours.Project) -> dict[str, float]:
    found: dict[str, float] = {}
    project.declare(list(lab.hosts), None)
    project.up()
    segment = _segment(0)
    _declare(project, lab, segment)
    found["plan"] = _timed(lambda: run(["overlay", "plan", "--stack", STACK], cwd=project.folder))
    found["preview"] = _timed(project.preview)
    found["first"] = _timed(project.up)
    found["no-op"] = _timed(project.up)
    before = {host: lab.log(host).count("Accepted publickey") for host in lab.hosts}
    _declare(project, lab, _segment(1))
    found["one more"] = _timed(project.up)
    found["above no-op"] = found["one more"] - found["no-op"]
    found["asked"] = sum(lab.log(host).count("Accepted publickey") > count for host, count in before.items())
    _declare(project, lab, _segment(RESERVATIONS))
    project.up()
    document = json.loads(lab.run("h1", "cat /var/lib/overlay/stacks/*/*.json").stdout)
    document["services"]["dhcp-app"]["hosts"]["one-more"] = {"mac": "02:aa:00:00:ff:ff", "address": "10.10.127.1"}
    agent = ["/usr/local/sbin/overlay-agent", "apply"]
    found["reload"] = _timed(lambda: lab.run("h1", agent, input=json.dumps(document)))
    lab.container("h2", "clients", "br-app")
    lab.exec_container("h2", "clients", "ip link set eth0 up", check=False)
    client = ["/usr/bin/python3", str(CLIENT), "eth0", "discover", str(RATE), str(SECONDS)]
    said = json.loads(lab.exec_container("h2", "clients", client).stdout)
    found["lost"] = said["sent"] - said["answered"]
    lab.remove_container("h2", "clients")
    project.destroy()
    return found


def _segment(reservations: int) -> dict[str, Any]:
    def host(number: int) -> str:
        return f"h{number % HOSTS + 1}"

    return {
        "subnets": ["10.10.0.0/16"],
        "addresses": {"h1": "10.10.0.1"},
        "tunnels": {"mesh": {"kind": "vxlan", "vni": 42}},
        "dhcp": {
            "host": "h1",
            "leaseMax": 10000,
            "masquerade": True,
            "reservations": {
                f"r{n}": {"mac": f"02:aa:00:00:{n >> 8:02x}:{n & 255:02x}", "address": _address(64, n)}
                for n in range(reservations)
            },
        },
        "containers": {
            f"c{n}": {"host": host(n), "address": _address(1, n), "runtime": "lxc"}
            for n in range(CONTAINERS)
        },
    }


def _address(third: int, number: int) -> str:
    return f"10.10.{third + number // 250}.{number % 250 + 1}"


def _declare(project: ours.Project, lab: Lab, segment: dict[str, Any]) -> None:
    project.declare(list(lab.hosts), None)
    path = project.folder / f"stacks/Pulumi.{STACK}.yaml"
    head, _, config = path.read_text().partition("config: ")
    path.write_text(f"{head}config: {json.dumps({**json.loads(config), 'overlay:segments': {'app': segment}})}\n")


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _text(value: float) -> str:
    return f"{value:.2f} s" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
