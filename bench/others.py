"""The same network made by other means: nothing but a log-in, scripts over ssh, Ansible, and pyinfra."""

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
ANSIBLE = ROOT / ".venv-bench" / "bin" / "ansible-playbook"
#: What people turn on when Ansible is slow; without it: five hosts at a time, and all facts of each.
ANSIBLE_TUNED = {"ANSIBLE_FORKS": "20", "ANSIBLE_PIPELINING": "1", "ANSIBLE_GATHERING": "explicit"}
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


def ssh_loop(lab: Lab, vni: int, hosts: Sequence[str] | None = None, *, at_a_time: int = 1) -> None:
    """Host after host, as the how-to documents do it, made so that it may run again; or several at a time."""
    address = {name: lab.hosts[name].address for name in hosts or lab.hosts}

    def one(name: str) -> None:
        _ssh(lab, name, _script(address[name], [a for other, a in address.items() if other != name], vni))

    with ThreadPoolExecutor(at_a_time) as pool:
        list(pool.map(one, address))


def ssh_remove(lab: Lab, *, at_a_time: int = 1) -> None:
    """Takes the devices away by ssh."""
    with ThreadPoolExecutor(at_a_time) as pool:
        list(pool.map(lambda name: _ssh(lab, name, f"ip link del {TUNNEL}; ip link del {BRIDGE}"), lab.hosts))


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


def prove(lab: Lab, vni: int | None, hosts: Sequence[str]) -> None:
    """Looks at the hosts' kernels, without ssh: each must have bridge and tunnel up, with VNI and MTU, and each other
    host's address as a peer; with None, neither. Raises FailedError."""
    for name in hosts:
        links = lab.links(name)
        found = {device: links[device] for device in (BRIDGE, TUNNEL) if device in links}
        if vni is None or len(found) < len((BRIDGE, TUNNEL)):
            if found or vni is not None:
                raise FailedError(f"{name}: has {', '.join(found) or 'neither device'}; VNI wanted: {vni}")
            continue
        tunnel = found[TUNNEL]
        is_up = all("UP" in link["flags"] and link["mtu"] == MTU for link in found.values())
        rows = json.loads(lab.run(name, f"bridge -j fdb show dev {TUNNEL}").stdout)
        peers = sorted(row["dst"] for row in rows if "dst" in row and row["mac"] == "00:00:00:00:00:00")
        wanted = sorted(lab.hosts[other].address for other in hosts if other != name)
        has = (tunnel["linkinfo"]["info_data"]["id"], tunnel.get("master"), is_up, peers)
        if has != (vni, BRIDGE, True, wanted):
            raise FailedError(f"{name}: VNI, bridge, up with the MTU, peers: {has}; wanted {vni} and {wanted}")


def ssh_clean(lab: Lab) -> None:
    """Takes the devices away, without ssh."""
    for name in lab.hosts:
        lab.run(name, f"ip link del {TUNNEL}; ip link del {BRIDGE}; true")


def pyinfra(lab: Lab, vni: int | None, hosts: Sequence[str], *, batch: bool = False) -> None:
    """bench/pyinfra_deploy/ on these hosts; without a VNI the devices are taken away. `batch`: `bridge -batch`, instead
    of one `bridge fdb append` a peer."""
    folder = ROOT / "bench" / "pyinfra_deploy"
    env = {
        **os.environ,
        "HOME": str(lab.home),
        "BENCH_HOSTS": ",".join(f"{name}={lab.hosts[name].address}" for name in hosts),
        "BENCH_VNI": str(vni or ""),
        "BENCH_BATCH": "1" if batch else "",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    run([PYINFRA, "-y", "inventory.py", "deploy.py"], cwd=folder, env=env)


def ansible(lab: Lab, vni: int | None, hosts: Sequence[str], *, tuned: bool = False) -> None:
    """bench/ansible/site.yml on these hosts; without a VNI the devices are taken away. Host keys are checked."""
    rows = [f"{name} ansible_host={lab.hosts[name].address} ansible_user=root" for name in hosts]
    inventory = lab.home / "inventory"
    inventory.write_text("\n".join([*rows, "", "[all:vars]", "ansible_python_interpreter=/usr/bin/python3", ""]))
    env = {
        **os.environ,
        "HOME": str(lab.home),
        "PATH": f"{lab.bin}{os.pathsep}{os.environ['PATH']}",
        "ANSIBLE_HOST_KEY_CHECKING": "1",
        **(ANSIBLE_TUNED if tuned else {}),
    }
    given = json.dumps({"vni": vni, "gone": vni is None})
    run([ANSIBLE, "-i", inventory, "-e", given, ROOT / "bench" / "ansible" / "site.yml"], cwd=lab.home, env=env)


def ansible_end(lab: Lab) -> None:
    """Ends the connections that Ansible keeps open for the next run."""
    for socket in (lab.home / ".ansible" / "cp").glob("*"):
        subprocess.run([lab.bin / "ssh", "-O", "exit", "-o", f"ControlPath={socket}", "any"], check=False,
                       capture_output=True)  # fmt: skip
