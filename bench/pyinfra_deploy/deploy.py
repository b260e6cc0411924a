"""A VXLAN mesh as a user of pyinfra would write it: two facts, two operations, nothing done that is done already."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from typing import Any

from pyinfra import host, inventory
from pyinfra.api import FactBase, operation

#: Hands all peers to one process instead of starting `bridge` for each.
BATCH = bool(os.environ.get("BENCH_BATCH"))
ANY = "00:00:00:00:00:00"


class Links(FactBase):
    """Devices by name, as `ip -j -d link` has them."""

    def command(self) -> str:
        """What to run."""
        return "ip -j -d link show"

    def process(self, output: list[str]) -> dict[str, Any]:
        """What it says."""
        return {link["ifname"]: link for link in json.loads("".join(output))}


class Peers(FactBase):
    """Where a VXLAN device sends what it knows no address for."""

    def command(self, device: str) -> str:
        """What to run."""
        return f"bridge -j fdb show dev {device} 2>/dev/null || echo []"

    def process(self, output: list[str]) -> set[str]:
        """What it says."""
        return {row["dst"] for row in json.loads("".join(output)) if row["mac"] == ANY}


@operation()
def bridge(device: str, mtu: int) -> Iterator[str]:
    """A bridge that is up."""
    link = host.get_fact(Links).get(device)
    if link and link["mtu"] == mtu and "UP" in link["flags"]:
        host.noop(f"bridge {device} is there")
        return
    if not link:
        yield f"ip link add {device} type bridge"
    yield f"ip link set {device} mtu {mtu} up"


@operation()
def vxlan(device: str, vni: int, local: str, underlay: str, master: str, mtu: int, peers: list[str]) -> Iterator[str]:
    """A VXLAN device in a bridge, with exactly these peers."""
    link = host.get_fact(Links).get(device)
    known = host.get_fact(Peers, device=device)
    if link and link["linkinfo"]["info_data"]["id"] != vni:
        yield f"ip link del {device}"
        link, known = None, set()
    if not link:
        yield (
            f"ip link add {device} type vxlan id {vni} dstport 4789 local {local} dev {underlay} && "
            f"ip link set {device} mtu {mtu} master {master} up"
        )
    lines = [f"fdb append {ANY} dev {device} dst {peer}" for peer in sorted(set(peers) - known)]
    lines += [f"fdb del {ANY} dev {device} dst {peer}" for peer in sorted(known - set(peers))]
    if lines and BATCH:
        yield f"printf '%s\\n' {shlex.join(lines)} | bridge -batch -"
    elif lines:
        yield " && ".join(f"bridge {line}" for line in lines)
    else:
        host.noop(f"peers of {device} are known")


@operation()
def gone(device: str) -> Iterator[str]:
    """No such device."""
    if device in host.get_fact(Links):
        yield f"ip link del {device}"
    else:
        host.noop(f"{device} is not there")


if os.environ["BENCH_VNI"]:
    bridge(name="bridge", device="br-app", mtu=1450)
    vxlan(
        name="tunnel",
        device="vx-app",
        vni=int(os.environ["BENCH_VNI"]),
        local=host.data.ssh_hostname,
        underlay="eth0",
        master="br-app",
        mtu=1450,
        peers=[other.data.ssh_hostname for other in inventory if other.name != host.name],
    )
else:
    gone(name="no tunnel", device="vx-app")
    gone(name="no bridge", device="br-app")
