"""A host for the agent's tests: a network and a mount namespace of its own on the real kernel.

What the agent writes to (/var/lib/overlay, /run, /usr/local/sbin, /usr/local/lib/overlay-agent,
/etc/systemd/system, /etc/machine-id) is mounted anew inside, so nothing of the machine is touched.
A process that sleeps holds the namespaces; when it is killed, all of it is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

from overlay_agent import daemon

MACHINE = "0123456789abcdef0123456789abcdef"
OWNER = {"project": "p", "stack": "s", "id": "id-of-s"}
MAC_BR, MAC_VX = "02:00:00:00:00:01", "02:00:00:00:00:02"
PYTHON = "/usr/bin/python3"

_SETUP = """
set -e
for folder in /var/lib/overlay /usr/local/lib/overlay-agent /usr/local/sbin /etc/systemd/system; do
  mkdir -p $folder
done
mount -t tmpfs -o size=16m tmpfs /run
mount -t tmpfs -o size={size} tmpfs /var/lib/overlay
mount -t tmpfs tmpfs /etc/systemd/system
mount -t tmpfs tmpfs /usr/local/lib/overlay-agent
mount -t tmpfs tmpfs /usr/local/sbin
if [ -n "{installed}" ]; then
  mount --bind {installed}/lib /usr/local/lib/overlay-agent
  mount --bind {installed}/sbin /usr/local/sbin
fi
echo {machine} > /run/machine-id.test
mount --bind /run/machine-id.test /etc/machine-id
ip link set lo up
ip link add u0 type veth peer name u1
ip address add 198.18.0.11/24 dev u0
ip address add 2001:db8::11/64 dev u0 nodad
ip link set u0 addrgenmode none; ip link set u1 addrgenmode none
ip link set u0 up; ip link set u1 up
# The kernel's own routes come when it has seen the carrier.
while ! ip -6 route show table local dev u0 | grep -q 2001:db8::11; do sleep 0.02; done
while ip link show u0 | grep -q NO-CARRIER; do sleep 0.02; done
echo ready
exec sleep 100000
"""


@dataclasses.dataclass
class Done:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def report(self):
        return json.loads(self.out)

    @property
    def lines(self):
        return self.err.splitlines()


class Host:
    """One such host. `installed`: a folder with an agent's files, or None for a host without."""

    def __init__(self, archive: Path, installed: Path | None = None, size: str = "16m", machine: str = MACHINE):
        self.archive = archive
        script = _SETUP.format(installed=installed or "", size=size, machine=machine)
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", script], stdout=subprocess.PIPE
        )
        assert self._holder.stdout.readline() == b"ready\n"
        self.enter = [shutil.which("nsenter"), "-t", str(self._holder.pid), "-n", "-m", "--"]

    def processes(self):
        """The ids of the processes in the host, without the one that holds its namespaces."""
        mine = Path(f"/proc/{self._holder.pid}/ns/net").stat()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "ns/net").stat().st_ino == mine.st_ino:
                    found.append(int(process.name))
        return sorted({*found} - {self._holder.pid})

    def kill(self, pid, number=signal.SIGKILL):
        """Sends the signal, and waits until the process has ended; until then it looks as if it ran."""
        os.kill(pid, number)
        end = time.monotonic() + 30
        while not daemon._has_ended(pid):
            assert time.monotonic() < end, f"process {pid} does not end"
            time.sleep(0.01)

    def close(self):
        if self._holder.poll() is not None:
            return
        # A daemon that is left would keep the namespaces.
        left = self.processes()
        for number in (signal.SIGSTOP, signal.SIGKILL):  # none of them starts another one meanwhile
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        self._holder.kill()
        self._holder.wait()
        self._holder.stdout.close()

    def popen(self, *words, **more):
        return subprocess.Popen([*self.enter, *words], **more)

    def run(self, *words, text="", check=True, env=None):
        """Runs a command in the host; one word alone is split as a shell does."""
        argv = shlex.split(words[0]) if len(words) == 1 else [str(word) for word in words]
        done = subprocess.run(
            [*self.enter, *argv], input=text, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": "", **(env or {})}, cwd="/",
        )  # fmt: skip
        assert done.returncode == 0 or not check, (argv, done.stderr)
        return Done(done.returncode, done.stdout, done.stderr)

    def json(self, command):
        out = self.run(command).out
        return json.loads(out) if out.strip() else []

    def agent(self, *words, document=None, code=0, **env):
        """Runs the installed agent and asserts its exit code (None: any)."""
        text = json.dumps(document) if document is not None else ""
        done = self.run("/usr/local/sbin/overlay-agent", *words, text=text, check=False, env=env)
        assert code is None or done.code == code, done
        assert "Traceback" not in done.err, done.err
        return done

    def apply(self, document, code=0, **env):
        return self.agent("apply", document=document, code=code, **env)

    def install(self, *words, owner=None, name="a", archive=None, env=None, **more):
        request = {"owner": owner or OWNER, "host": name, **more}
        return self.run(
            PYTHON, archive or self.archive, "install", *words, text=json.dumps(request), check=False, env=env
        )

    def link(self, name):
        return self.json(f"ip -j -d link show {name}")[0]

    def index(self, name):
        return self.link(name)["ifindex"]

    def peers(self, name):
        zero = "00:00:00:00:00:00"
        return {row["dst"] for row in self.json(f"bridge -j fdb show dev {name}") if row["mac"] == zero}

    def state(self):
        """All that the kernel has of the network here, without what changes by itself."""
        commands = [
            "ip -j -d address", "bridge -j -d link", "bridge -j fdb", "ip -j -d route show table all",
            "ip -j -d -6 route show table all",
        ]  # fmt: skip
        def look():
            return {command: _steady(self.json(command)) for command in commands}

        found, end = look(), time.monotonic() + 30
        # Tentative addresses are not there yet (RFC 4862); routes follow addresses and carriers a moment later.
        while "tentative" in self.run("ip -6 address show tentative").out or found != (found := look()):
            assert time.monotonic() < end, "it does not come to rest"
            time.sleep(0.05)
        # Which table was made first says nothing, nor what its rules have counted.
        return {**found, "nft": sorted(self.run("nft -s list ruleset").out.split("\n}\n"))}

    def files(self):
        """What the store holds, by path, without its history."""
        find = "find . -type f ! -name history.jsonl"
        out = self.run("sh", "-c", f"cd /var/lib/overlay && {find} -exec sha1sum {{}} + | sort -k2").out
        return {line.split()[1]: line.split()[0] for line in out.splitlines()}


_VOLATILE = {
    "valid_life_time", "preferred_life_time", "updated", "used", "promiscuity", "allmulti", "operstate", "mcast_rtr",
    "expires", "stats", "stats64", "tso_max_size", "topology_change", "topology_change_detected", "fdb_n_learned",
    "permaddr",  # of ip6gre0 and its like, made up for each namespace
}  # fmt: skip


def _steady(value):
    if isinstance(value, list):
        cleaned = [_steady(item) for item in value if not _comes_and_goes(item)]
        is_addresses = value and isinstance(value[0], dict) and "local" in value[0] and "prefixlen" in value[0]
        return cleaned if is_addresses else sorted(cleaned, key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, dict):
        return {k: _steady(v) for k, v in value.items() if k not in _VOLATILE and not k.endswith("_timer")}
    return value


def _comes_and_goes(item):
    """The kernel's own multicast routes and groups, and flags of the carrier, follow a moment later; what is learned
    goes again."""
    if not isinstance(item, dict):
        return item in ("LOWER_UP", "NO-CARRIER")
    # Whom a bridge or a tunnel heard of lately depends on who spoke; nobody wrote that down.
    heard = "mac" in item and item.get("state") in ("", "stale") and "extern_learn" not in item.get("flags", [])
    return heard or item.get("dst") == "ff00::/8" or item.get("mac", "").startswith(("33:33:", "01:00:5e:"))


def wire(a, b):
    """Makes u0 of the two hosts the ends of one wire; b has the addresses .12."""
    b.run("ip link delete u0")
    a.run("ip", "link", "set", "u1", "netns", str(b._holder.pid))
    b.run("ip link set u1 name u0")
    b.run("ip link set u0 addrgenmode none up")
    b.run("ip address add 198.18.0.12/24 dev u0")
    b.run("ip address add 2001:db8::12/64 dev u0 nodad")


def bridge(**more):
    return {"kind": "bridge", "mtu": 1450, "mac": MAC_BR, **more}


def vxlan(**more):
    return {"kind": "vxlan", "mtu": 1450, "mac": MAC_VX, "vni": 42, "local": "198.18.0.11", **more}


def document(owner=None, services=None, host="a", **devices):
    """A document; `br_app` is the device br-app."""
    out = {"schema": 1, "owner": owner or OWNER, "host": host}
    out["devices"] = {name.replace("_", "-"): spec for name, spec in devices.items()}
    return {**out, **({"services": services} if services else {})}


def usual(peers=("b", "c"), **of_vxlan):
    """A bridge with an address, and a tunnel in it."""
    others = {name: f"198.18.0.{11 + ord(name) - ord('a')}" for name in peers}
    return document(
        br_app=bridge(addresses={"10.10.0.1/24": {}}), vx_app=vxlan(bridge="br-app", peers=others, **of_vxlan)
    )


#: Answers on TCP and UDP ports with its name, the port and whom it sees; both IP versions.
ANSWER = """
import selectors, socket, sys
name, ports, found = sys.argv[1], sys.argv[2:], selectors.DefaultSelector()
for port in ports:
    protocol, _, number = port.partition("/")
    s = socket.socket(socket.AF_INET6, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("::", int(number)))
    if protocol == "tcp":
        s.listen()
    found.register(s, selectors.EVENT_READ, port)
print("ready", flush=True)
while True:
    for key, _ in found.select():
        said = lambda peer: f"{name} {key.data} {peer[0].replace('::ffff:', '')}".encode()
        if key.data.startswith("tcp"):
            connection, peer = key.fileobj.accept()
            connection.sendall(said(peer))
            connection.close()
        else:
            _, peer = key.fileobj.recvfrom(100)
            key.fileobj.sendto(said(peer), peer)
"""
#: Prints the answer of address and protocol/port, or that there is none.
ASK = """
import socket, sys
address, (protocol, number) = sys.argv[1], sys.argv[2].split("/")
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM) as s:
    s.settimeout(float(sys.argv[3]))
    try:
        s.connect((address, int(number)))
        if protocol == "udp":
            s.send(b"?")
        print(s.recv(100).decode())
    except OSError:
        print("no answer")
"""


class Node:
    """Where packets come from and go to: a host, or a network namespace on it, such as a container's."""

    def __init__(self, host, name, netns=None):
        self.host, self.name = host, name
        self.enter = ["ip", "netns", "exec", netns] if netns else []

    def run(self, command, **more):
        return self.host.run(*self.enter, *shlex.split(command), **more)

    def answer(self, *ports):
        """Starts a program that answers on these ports."""
        process = self.host.popen(*self.enter, PYTHON, "-c", ANSWER, self.name, *ports, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        return process

    def ask(self, address, port, patience=1):
        return self.host.run(*self.enter, PYTHON, "-c", ASK, address, port, str(patience)).out.strip()

    def pings(self, address):
        return self.run(f"ping -c 1 -W 1 {address}", check=False).code == 0


def container(host, name, bridge, *addresses, gateways=()):
    """A network namespace with a port on the bridge."""
    host.run(f"ip netns add {name}")
    host.run(f"ip link add p-{name} type veth peer name eth0 netns {name}")
    host.run(f"ip link set p-{name} addrgenmode none up master {bridge}")
    node = Node(host, name, name)
    node.run("ip link set lo up")
    node.run("ip link set eth0 up")
    for address in addresses:
        node.run(f"ip address add {address} dev eth0 {'nodad' if ':' in address else ''}")
    for gateway in gateways:
        node.run(f"ip route add default via {gateway}")
    return node


def kill_at_each_point(new_host, scope, prepare, go, look):
    """Kills the agent at one point after another until it gets through, each time on a new host that
    `prepare(host)` made ready. `scope`: "" kills the worker at the first, third, … point, and its guard
    undoes; ":all" kills both at the second, fourth, …, and `restore` does. Asserts that what `look(host)`
    sees and the store are as before, or, where all was done, that nothing has drifted; then that `go` does
    it. Returns at least how many points there were."""
    for point in range(2 if scope else 1, 200, 2):
        host = new_host()
        try:
            prepare(host)
            before, files = look(host), host.files()
            done = go(host, code=None, OVERLAY_FAULT=f"{point}{scope}")
            if done.code == 0:
                return point - 1
            if scope:
                done = host.agent("restore")
            if host.files() == files:
                assert "undone" in done.err, done
                assert look(host) == before, point
            else:
                assert "an apply was cut short after it was done; nothing to undo" in done.err, (point, done)
            go(host, code=0)
            assert host.agent("check").report["drift"] == []
        finally:
            host.close()
    raise AssertionError("no end of points")
