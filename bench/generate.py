"""`python -m bench.generate --hosts N`: a stack file of any size, for trying what grows how.

What it writes is a stack like those in `stacks/`: hosts from 198.18.0.0/15, K segments over all of them, each with a
VXLAN tunnel of the topology, an address on the first two hosts (for pings), and containers if asked for.
"""

from __future__ import annotations

import argparse
import ipaddress
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

#: How the hosts of a generated stack may be joined.
TOPOLOGIES = ("mesh", "hub", "multicast", "evpn")
#: Not asked of anybody: so a stack of hosts that are nowhere can be previewed.
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOlJu4uC35woP+j3Q0cZlG03aHqs757DGRQ0YW6UvrQY"
_UNDERLAY = ipaddress.ip_network("198.18.0.0/15")
#: VNIs of the first segment begin here; each segment has as many of its own as its hub may have spokes.
_FIRST_VNI, _VNIS = 1000, 10_000
MOST_HOSTS, MOST_SEGMENTS = _VNIS, 200


def addresses(count: int) -> dict[str, str]:
    """Underlay addresses of hosts h1, h2, ..."""
    return {f"h{number}": str(_UNDERLAY[number]) for number in range(1, count + 1)}


def config(
    hosts: Mapping[str, str], topology: str = "mesh", *, segments: int = 1, containers: int = 0, vni: int | None = None
) -> dict[str, Any]:
    """A stack file's `overlay:` keys without the prefix. `hosts`: addresses by name; `containers`: of each segment;
    `vni`: of the first segment, where its tunnel has one."""
    out: dict[str, Any] = {
        "defaults": {"user": "root", "underlay": {"device": "eth0"}},
        "hosts": {name: {"address": address} for name, address in hosts.items()},
    }
    if topology == "evpn":
        reflectors = list(hosts)[:2]
        out["evpn"] = {"asn": 64512, "routeReflectors": reflectors, "range": str(_UNDERLAY)}
    if segments:
        out["segments"] = {
            f"s{number + 1}": _segment(list(hosts), topology, number, containers, vni) for number in range(segments)
        }
    return out


def _segment(hosts: Sequence[str], topology: str, number: int, containers: int, vni: int | None) -> dict[str, Any]:
    net = ipaddress.ip_network(f"10.{number}.0.0/16")
    first = _FIRST_VNI + number * _VNIS
    tunnel: dict[str, Any] = {"kind": "vxlan", "topology": topology}
    if topology == "hub":
        # By hand: of so many derived ones some would fall together.
        tunnel |= {"hub": hosts[0], "vnis": {name: first + place for place, name in enumerate(hosts) if place}}
    else:
        tunnel["vni"] = vni if vni is not None and number == 0 else first
    if topology == "multicast":
        tunnel["group"] = f"239.1.1.{number + 1}"
    segment: dict[str, Any] = {
        "subnets": [str(net)],
        "addresses": {name: str(net[place + 1]) for place, name in enumerate(hosts[:2])},
        "tunnels": {"t": tunnel},
    }
    if containers:
        segment["containers"] = {
            f"c{number + 1}-{place + 1}": {"host": hosts[place % len(hosts)], "address": str(net[place + 256])}
            for place in range(containers)
        }
    return segment


def text(raw: Mapping[str, Any]) -> str:
    """The stack file."""
    keys = {f"overlay:{key}": value for key, value in raw.items()}
    return yaml.safe_dump({"config": keys}, sort_keys=False, width=120)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the stack file to standard output."""
    parser = argparse.ArgumentParser(prog="python -m bench.generate", description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", type=_number(1, MOST_HOSTS), required=True, help=f"1 to {MOST_HOSTS}")
    parser.add_argument("--topology", choices=TOPOLOGIES, default="mesh", help="default mesh")
    parser.add_argument("--segments", type=_number(0, MOST_SEGMENTS), default=1, help="how many; default 1")
    parser.add_argument("--containers", type=_number(0, 50_000), default=0, help="of each segment; default 0")
    parser.add_argument("--host-keys", action="store_true", help="give all hosts a made-up host key, so that "
                        "`pulumi preview` asks none for its own")  # fmt: skip
    options = parser.parse_args(arguments)
    raw = config(
        addresses(options.hosts), options.topology, segments=options.segments, containers=options.containers
    )
    if options.host_keys:
        with_host_keys(raw)
    sys.stdout.write(text(raw))
    return 0


def with_host_keys(raw: dict[str, Any]) -> None:
    """Gives all hosts a host key that nobody has."""
    for host in raw["hosts"].values():
        host["hostKey"] = HOST_KEY


def _number(low: int, high: int) -> Any:
    def read(written: str) -> int:
        if not written.isdecimal() or not low <= int(written) <= high:
            raise argparse.ArgumentTypeError(f"{written!r} is not possible; {low} to {high} are")
        return int(written)

    return read


if __name__ == "__main__":
    sys.exit(main())
