"""The same network made by other means: nothing but a log-in, a loop over ssh scripts, and pyinfra."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab import Lab

ROOT = Path(__file__).resolve().parents[1]
PYINFRA = ROOT / ".venv-bench" / "bin" / "pyinfra"
#: What is asked for. The stack file, the scripts and pyinfra's deploy make devices that look alike.
BRIDGE, TUNNEL, MTU = "br-app", "vx-app", 1450
AT_A_TIME = 8


class FailedError(Exception):
    """A command that was to be measured failed; the message is its output's end."""


def run(command: Sequence[str | Path], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Runs it from the operator's place; its output. Raises FailedError."""
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise FailedError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout[-3000:]}")
    return done.stdout


def _ssh(lab: Lab, host: str, script: str) -> None:
    run([lab.bin / "ssh", host, script])


def floor(lab: Lab) -> None:
    """One log-in a host, eight at a time: nobody who asks each host can be faster."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(lambda host: _ssh(lab, host, "true"), lab.hosts))


def ssh_loop(lab: Lab, vni: int) -> None:
    """Host after host, as the how-to documents do it, made so that it may run again."""
    for name, host in lab.hosts.items():
        peers = [other.address for other in lab.hosts.values() if other.name != name]
        _ssh(lab, name, _script(host.address, peers, vni))


def _script(local: str, peers: Sequence[str], vni: int) -> str:
    return "\n".join(
        [
            "set -e",
            f"ip link show {BRIDGE} >/dev/null 2>&1 || ip link add {BRIDGE} type bridge",
            f"ip link set {BRIDGE} mtu {MTU} up",
            f"ip -d link show {TUNNEL} 2>/dev/null | grep -q 'vxlan id {vni} ' || {{",
            f"  ip link del {TUNNEL} 2>/dev/null || true",
            f"  ip link add {TUNNEL} type vxlan id {vni} dstport 4789 local {local} dev eth0",
            f"  ip link set {TUNNEL} mtu {MTU} master {BRIDGE} up",
            "}",
            f"known=$(bridge fdb show dev {TUNNEL})",
            f"for peer in {' '.join(peers)}; do",
            '  case "$known" in',
            '    *"00:00:00:00:00:00 dst $peer "*) ;;',
            f"    *) bridge fdb append 00:00:00:00:00:00 dev {TUNNEL} dst $peer ;;",
            "  esac",
            "done",
        ]
    )


def prove(lab: Lab, vni: int, hosts: Sequence[str]) -> None:
    """Looks at the hosts, without ssh: each must have the VNI, and each other host as a peer. Raises FailedError."""
    for name in hosts:
        found = lab.links(name).get(TUNNEL, {}).get("linkinfo", {}).get("info_data", {}).get("id")
        rows = json.loads(lab.run(name, f"bridge -j fdb show dev {TUNNEL}", check=False).stdout or "[]")
        peers = sum(1 for row in rows if "dst" in row and row["mac"] == "00:00:00:00:00:00")
        if (found, peers) != (vni, len(hosts) - 1):
            raise FailedError(f"{name}: VNI {found} with {peers} peers; wanted {vni} with {len(hosts) - 1}")


def ssh_clean(lab: Lab) -> None:
    """Takes the devices away, without ssh."""
    for name in lab.hosts:
        lab.run(name, f"ip link del {TUNNEL}; ip link del {BRIDGE}; true")


def pyinfra(lab: Lab, vni: int, hosts: Sequence[str], *, batch: bool = False) -> None:
    """bench/pyinfra_deploy/ on these hosts. `batch`: `bridge -batch`, instead of one `bridge fdb append` a peer."""
    folder = ROOT / "bench" / "pyinfra_deploy"
    env = {
        **os.environ,
        "HOME": str(lab.home),
        "BENCH_HOSTS": ",".join(f"{name}={lab.hosts[name].address}" for name in hosts),
        "BENCH_VNI": str(vni),
        "BENCH_BATCH": "1" if batch else "",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    run([PYINFRA, "-y", "inventory.py", "deploy.py"], cwd=folder, env=env)
