"""BGP EVPN by FRR on five hosts, two of them reflectors: what is told, what is lost when, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time

import pytest
from agent_support import OWNER, bridge, container, document, vxlan

REFLECTORS, CLIENTS = "ab", "cde"
HOSTS = REFLECTORS + CLIENTS
RANGE = "198.18.0.0/24"
PASSWORD = "overlay-evpn:0123456789abcdef"
VTYSH = "vtysh -N overlay"
INTERVAL = 0.02


def address(name):
    return f"198.18.0.{11 + ord(name) - ord('a')}"


def service(name, **more):
    others = {one: address(one) for one in REFLECTORS if one != name}
    own = {"reflector": True, "ranges": {RANGE: {}}} if name in REFLECTORS else {}
    spec = {"kind": "evpn", "asn": 65000, "routerId": address(name), "local": address(name), "neighbors": others,
            "password": PASSWORD, "vnis": {"42": {}}, **own, **more}  # fmt: skip
    return {key: value for key, value in spec.items() if value is not None}


def tunnel(name, vni=42, **more):
    rest = {"learning": False, "port_learning": False, "neigh_suppress": True, **more}
    spec = vxlan(vni=vni, local=address(name), bridge=f"br-{vni}", mac=f"02:00:00:{vni % 256:02x}:00:{ord(name):02x}", **rest)
    return {re.sub("_(.)", lambda m: m[1].upper(), key): value for key, value in spec.items()}


def switch(name, vni=42):
    return bridge(mac=f"02:00:01:{vni % 256:02x}:00:{ord(name):02x}")


def wanted(name, vnis=(42,), devices=None, **more):
    made = {f"{kind}-{vni}": make(name, vni) for vni in vnis for kind, make in (("br", switch), ("vx", tunnel))}
    vnis = {"vnis": {str(vni): {} for vni in vnis}}
    return document(services={"evpn": service(name, **{**vnis, **more})}, host=name, **made, **(devices or {}))


def until(done, seconds=20):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)


def send_password(host, value=b"s3cret", name="a"):
    given = {"schema": 1, "owner": OWNER, "host": name, "secrets": {PASSWORD: value.hex()}}
    return host.agent("secrets", document=given)


class Fabric:
    """The hosts on one underlay, each with a container in the segment."""

    def __init__(self, agent_archive, installed):
        from agent_support import Host

        self.switch = Host(agent_archive)
        self.switch.run("ip link add sw type bridge")
        self.switch.run("ip link set sw up")
        self.hosts = {name: Host(agent_archive, installed, machine=name * 32) for name in HOSTS}
        for name, host in self.hosts.items():
            host.run("ip", "link", "set", "u1", "netns", str(self.switch._holder.pid), "name", f"to-{name}")
            self.switch.run(f"ip link set to-{name} master sw up")
            host.run("ip address flush dev u0")
            host.run(f"ip address add {address(name)}/24 dev u0")
        self.containers = {}

    def __getitem__(self, name):
        return self.hosts[name]

    def close(self):
        for host in [*self.hosts.values(), self.switch]:
            host.close()

    def vtysh(self, name, *commands):
        words = [word for command in commands for word in ("-c", command)]
        return self[name].run("vtysh", "-N", "overlay", *words, check=False).out

    def sessions(self, name):
        return self[name].agent("status", "p/s").report["objects"]["evpn"]["sessions"]

    def peers(self, name, vni=42):
        return self[name].peers(f"vx-{vni}")

    def is_whole(self, names=HOSTS, vni=42):
        return all(self.peers(name, vni) == {address(one) for one in names if one != name} for name in names)

    def kill(self, name, *programs):
        """Kills those daemons at once."""
        for pid in self[name].processes():
            with contextlib.suppress(OSError):
                with open(f"/proc/{pid}/comm") as file:
                    program = file.read().strip()
                if program in programs:
                    os.kill(pid, signal.SIGKILL)

    def ping(self, one, other, seconds):
        return self.containers[one].host.popen(
            *self.containers[one].enter, "ping", "-n", "-i", str(INTERVAL), "-W", "1", "-c", str(round(seconds / INTERVAL)),
            self.ip(other), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def ip(self, name):
        return f"10.10.0.{11 + ord(name) - ord('a')}"


def lost(ping):
    out = ping.communicate()[0]
    sent, heard = re.search(r"(\d+) packets transmitted, (\d+) received", out).groups()
    return int(sent) - int(heard)


@pytest.fixture(scope="module")
def fabric(agent_archive, installed):
    made = Fabric(agent_archive, installed)
    try:
        for name, host in made.hosts.items():
            send_password(host, name=name)
            host.apply(wanted(name))
            made.containers[name] = container(host, f"c{name}", "br-42", f"{made.ip(name)}/24")
        yield made
    finally:
        made.close()


def test_each_tells_all_others_where_it_is(fabric):
    until(fabric.is_whole)
    for name in HOSTS:
        assert fabric[name].agent("check").report == {"drift": []}
