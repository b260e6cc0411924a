"""`python -m bench.tunnels`: what a kind of tunnel leaves of the wire, adds to a round trip, loses when a host comes.

All as ratios to the bare wire of the same run: TCP goodput by iperf3 between two hosts' addresses on the overlay's
bridges, as the planner and the agents make them. The wire is to be the limit and not the processor, so the ratio is
what encapsulation costs. Kinds that this kernel lacks are measured in a VM, whose processor is emulated.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lab import Lab, _vm
from overlay_agent.document import Owner, dump
from overlay_components import agent
from overlay_components.config import load_config
from overlay_components.plan import make_plan
from overlay_components.secrets import Secrets

#: By row the tunnel's keys, and its segment's encryption.
KINDS: dict[str, dict[str, Any]] = {
    "VXLAN": {"kind": "vxlan", "vni": 42},
    "GRETAP": {"kind": "gretap"},
    "L2TPv3, UDP": {"kind": "l2tp"},
    "L2TPv3, IP": {"kind": "l2tp", "encap": "ip"},
    "L2TPv3, UDP, cookie": {"kind": "l2tp", "cookie": "c00c1ec00c1ec00c"},
    "VXLAN in WireGuard": {"kind": "vxlan", "vni": 42, "encryption": "wireguard"},
}
HERE, IN_VM = ["VXLAN"], [row for row in KINDS if row != "VXLAN"]
#: What is to be left of the bare wire's goodput.
AIMS = {"VXLAN": 0.96, "GRETAP": 0.96, "L2TPv3, UDP": 0.95, "L2TPv3, IP": 0.95}
#: The bare wire is full with so much of it in payload: a packet of 1,514 bytes has 1,448.
FILLED = 0.9
#: What a shaped cable carries, in tc's words. A VM's emulated processor can fill no more (docs/adr/0004).
WIRE, WIRE_IN_VM = "1gbit", "20mbit"
#: Of a packet of the wire's MTU, 1,500 bytes, headers of IP and TCP with time stamps; the rest is payload.
TCP_HEADERS, BARE_MTU = 52, 1500
#: Whether tbf, our wire, counts all headers of an encapsulated packet that is cut up after it. Linux 6.1's does not (a
#: VXLAN then seems to carry more than headers leave), 6.18's does. Else packets are sent as small as the wire has them.
COUNTS_WELL = tuple(int(number) for number in platform.release().split(".")[:2]) >= (6, 18)
#: So many times each, one kind after the other; the medians count.
ROUNDS, SECONDS, PINGS = 3, 4, 400
AGENT = "/usr/local/sbin/overlay-agent"
OWNER = Owner("bench", "tunnels", "bench")
ADDRESSES = {"h1": "10.10.0.1", "h2": "10.10.0.2", "h3": "10.10.0.3"}
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables; the exit code says whether the aims were reached and no ping was lost."""
    parser = argparse.ArgumentParser(prog="python -m bench.tunnels", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=KINDS, help="leave the other kinds out")
    parser.add_argument("--wire", help=f"what the wire carries; default {WIRE}, in the VM {WIRE_IN_VM}")
    parser.add_argument("--quick", action="store_true", help="one round in place of three, and no hub")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # measure here, print JSON
    options = parser.parse_args(arguments)
    chosen = options.only or list(KINDS)
    quick: bool = options.quick
    if options.inside:
        print(json.dumps(measured(chosen, options.wire, quick=quick)))
        return 0
    rows: dict[str, Row] = {}
    here, there = [row for row in HERE if row in chosen], [row for row in IN_VM if row in chosen]
    if here:
        rows |= _shown(measured(here, options.wire or WIRE, quick=quick))
    if there and _vm.why_not():
        print(f"bench: {', '.join(there)}: not measured; {_vm.why_not()}", file=sys.stderr)
    elif there:
        rows |= _shown(_in_vm(there, options.wire or WIRE_IN_VM, quick=quick))
    missed = [row for row, aim in AIMS.items() if row in rows and rows[row]["goodput"] < aim]
    lossy = [row for row, found in rows.items() if any(found["lost"].values())]
    return 1 if missed or lossy else 0


def _in_vm(rows: Sequence[str], wire: str, *, quick: bool) -> dict[str, Any]:
    with _vm.Vm() as vm:
        words = ["env", "-C", str(_vm.CHECKOUT), f"{_vm.CHECKOUT}/.venv/bin/python", "-m", "bench.tunnels"]
        words += ["--inside", "--wire", wire, *(["--quick"] if quick else []), "--only", *rows]
        return dict(json.loads(vm.run(words, timeout=3600).stdout))


def _shown(found: Mapping[str, Any]) -> dict[str, Row]:
    """Prints what was measured on one kernel."""
    bare = found["bare"]
    first, last = found["load"]
    print(f"\nLinux {found['kernel']}, a wire of {found['wire']}: bare {bare['mbit']:.1f} Mbit/s of TCP, "
          f"a round trip of {bare['rtt']:.3f} ms; load {first:.1f} before, {last:.1f} after")  # fmt: skip
    print(f"{'':22} {'goodput':>8} {'aim':>5} {'headers leave':>14} {'Mbit/s':>8} {'MTU':>5} {'round trip':>11}"
          "   a host added: pings lost")  # fmt: skip
    for name, row in found["rows"].items():
        lost = ", ".join(f"{what} {count} of {row['sent'][what]}" for what, count in row["lost"].items())
        leave = (row["mtu"] - TCP_HEADERS) / (BARE_MTU - TCP_HEADERS)
        print(f"{name:22} {row['goodput']:8.3f} {AIMS.get(name) or '':>5} {leave:14.3f} {row['mbit']:8.1f} "
              f"{row['mtu']:5} {row['rtt'] - bare['rtt']:+8.3f} ms   {lost}", flush=True)  # fmt: skip
    if bare["mbit"] < FILLED * _mbit(found["wire"]):
        print("The processor was the limit and not the wire, so these ratios are not those of encapsulation; run it "
              "when the machine has nothing else to do, or with a smaller --wire")  # fmt: skip
    return dict(found["rows"])


def _mbit(wire: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([mg])bit", wire).groups()  # type: ignore[union-attr]
    return int(number) * {"m": 1, "g": 1000}[unit]


def measured(rows: Sequence[str], wire: str, *, quick: bool) -> dict[str, Any]:
    """The kinds' figures on the running kernel."""
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="overlay-bench-") as scratch, Lab(
        "bench-tunnels", 3, rate=wire, directory=scratch
    ) as lab:
        install(lab)
        if not COUNTS_WELL:
            for host in lab.hosts:
                _plain(lab, host, "eth0")
        found = _measured(lab, rows, 1 if quick else ROUNDS, ["mesh"] if quick else ["mesh", "hub"])
    about = {"kernel": platform.release(), "wire": wire, "load": [before, os.getloadavg()[0]]}
    return {**about, **found}


def _measured(lab: Lab, rows: Sequence[str], rounds: int, topologies: Sequence[str]) -> dict[str, Any]:
    bare: list[float] = []
    bare_trips: list[float] = []
    out: dict[str, Row] = {row: {"all": [], "trips": [], "lost": {}, "sent": {}} for row in rows}
    underlay = lab.hosts["h2"].address
    for number in range(rounds):
        bare.append(goodput(lab, underlay))
        bare_trips += round_trips(lab, underlay)
        for name, row in out.items():
            row["mtu"] = _apply(lab, KINDS[name], "mesh", ["h1", "h2"])
            row["all"].append(goodput(lab, ADDRESSES["h2"]))
            row["trips"] += round_trips(lab, ADDRESSES["h2"])
            if number == 0:
                for topology in topologies:
                    row["sent"][topology], row["lost"][topology] = _join(lab, KINDS[name], topology)
    for row in out.values():
        row["mbit"] = statistics.median(row["all"])
        row["goodput"] = row["mbit"] / statistics.median(bare)
        row["rtt"] = statistics.median(row["trips"])
        del row["all"], row["trips"]
    return {"bare": {"mbit": statistics.median(bare), "rtt": statistics.median(bare_trips)}, "rows": out}


# -- what is measured ----------------------------------------------------------------------------


def goodput(lab: Lab, address: str, *, here: str = "h1", there: str = "h2") -> float:
    """Mbit/s of TCP payload from one host to that address of another."""
    return float(_iperf(lab, address, here, there, ["-O", "1"])["bits_per_second"]) / 1e6


def packets(lab: Lab, address: str, *, here: str = "h1", there: str = "h2") -> float:
    """Packets that arrive in a second, of 64 bytes of UDP payload each and as many as the processor can send."""
    found = _iperf(lab, address, here, there, ["-u", "-b", "0", "-l", "64"])
    return float(found["packets"] - found["lost_packets"]) / float(found["seconds"])


def _iperf(lab: Lab, address: str, here: str, there: str, options: Sequence[str]) -> dict[str, Any]:
    server = lab.popen(there, ["iperf3", "-s"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        words = ["iperf3", "-c", address, "-t", str(SECONDS), "-J", *options]
        end = time.monotonic() + 20
        while True:
            done = lab.run(here, words, check=False)
            received = "sum_received" in done.stdout and json.loads(done.stdout)["end"].get("sum_received")
            if received:  # it ends with 0 also where it could not connect
                return dict(received)
            if time.monotonic() > end:
                raise RuntimeError(f"iperf3 to {address}: {done.stdout[-500:]}{done.stderr}")
            time.sleep(0.2)  # the server is not there yet
    finally:
        server.kill()
        server.wait()


def round_trips(lab: Lab, address: str, *, here: str = "h1") -> list[float]:
    """Of a small packet, in ms."""
    text = lab.run(here, ["ping", "-n", "-i", "0.005", "-c", str(PINGS), address]).stdout
    return [float(found) for found in re.findall(r"time=([\d.]+) ms", text)]


def _join(lab: Lab, keys: Mapping[str, Any], topology: str) -> tuple[int, int]:
    """How many pings, 200 a second, were sent and lost between h1 and h2 while h3 joined. h1 is the hub."""
    _apply(lab, keys, topology, ["h1", "h2"])
    with _pinging(lab) as found:
        time.sleep(0.3)
        _apply(lab, keys, topology, ["h1", "h2", "h3"])
        time.sleep(0.3)
    text = lab.run("h1", ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "2", ADDRESSES["h3"]], check=False).stdout
    if " 0 received" in text:
        raise RuntimeError(f"{keys['kind']} {topology}: h3 is not reached: {text}")
    _send(lab, "h3", [], None, {})
    return found["sent"], found["sent"] - found["got"]


@contextlib.contextmanager
def _pinging(lab: Lab) -> Iterator[dict[str, int]]:
    words = ["ping", "-n", "-i", "0.005", "-W", "2", ADDRESSES["h2"]]
    lab.run("h1", ["ping", "-n", "-c", "2", "-W", "5", ADDRESSES["h2"]])
    ping = lab.popen("h1", words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    found: dict[str, int] = {}
    try:
        yield found
    finally:
        ping.send_signal(2)
        text, _ = ping.communicate(timeout=20)
    seen = {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", text)}
    # What was on its way at the end is no loss.
    found["sent"], found["got"] = max(seen), len(seen)


# -- the hosts -----------------------------------------------------------------------------------


def install(lab: Lab) -> None:
    """The agent on all hosts, without SSH."""
    archive = agent.archive()
    for host in lab.hosts:
        request = {"owner": vars(OWNER), "host": host}
        shutil.copy(archive, lab.path(host, "/root/agent.pyz"))
        lab.run(host, ["/usr/bin/python3", "/root/agent.pyz", "install"], input=json.dumps(request))


def _plain(lab: Lab, host: str, device: str) -> None:
    """Sends packets of the wire's size through the device."""
    lab.run(host, ["ip", "link", "set", "dev", device, "gso_max_segs", "1"])


def _apply(lab: Lab, keys: Mapping[str, Any], topology: str, hosts: Sequence[str]) -> int:
    """Makes the segment on these hosts, one after the other; returns its MTU."""
    public = {host: _public_key(lab, host) for host in hosts} if "encryption" in keys else {}
    return max(_send(lab, host, hosts, {**keys, "topology": topology}, public) for host in reversed(hosts))


def _send(
    lab: Lab, host: str, hosts: Sequence[str], tunnel: Mapping[str, Any] | None, public: Mapping[str, str]
) -> int:
    raw: dict[str, Any] = {"hosts": {name: {"address": lab.hosts[name].address} for name in lab.hosts}}
    if tunnel is not None:
        keys = dict(tunnel)
        if keys["topology"] == "hub":
            keys["hub"] = "h1"
            if keys.pop("vni", None):
                keys["vniRange"] = "100-199"
        raw["segments"] = {
            "app": {
                "hosts": list(hosts),
                "subnets": ["10.10.0.0/24"],
                "addresses": {name: ADDRESSES[name] for name in hosts},
                "encryption": keys.pop("encryption", "none"),
                "tunnels": {"t": keys},
            }
        }
    secrets = Secrets("bench")
    plan = make_plan(load_config(raw), OWNER, secrets=secrets).with_keys(public)
    if secrets.of.get(host):
        request = {"schema": 1, "owner": vars(OWNER), "host": host, "secrets": secrets.of[host]}
        lab.run(host, [AGENT, "secrets"], input=json.dumps(request))
    lab.run(host, [AGENT, "apply"], input=dump(plan.documents[host]))
    for device in () if COUNTS_WELL else plan.documents[host]["devices"]:
        _plain(lab, host, device)
    return plan.segments["app"]["mtu"] if tunnel else 0


def _public_key(lab: Lab, host: str) -> str:
    request = {"schema": 1, "owner": vars(OWNER), "host": host, "generation": 1}
    return str(json.loads(lab.run(host, [AGENT, "identity"], input=json.dumps(request)).stdout)["publicKey"])


if __name__ == "__main__":
    sys.exit(main())
