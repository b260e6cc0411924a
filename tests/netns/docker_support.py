"""A host as in agent_support.py, with a real dockerd of its own on it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from agent_support import Host, document, vxlan

NETWORK = "vxlan-net"
CGROUPS = "/sys/fs/cgroup"
#: What `docker run` starts in the tests: nothing but busybox.
_IMAGE = """
set -e
mkdir -p /run/image/bin && cp /bin/busybox /run/image/bin/
for name in sh sleep ping ip; do ln -s busybox /run/image/bin/$name; done
tar -C /run/image -c . | docker import - busybox
"""


class DockerHost(Host):
    """One such host; `close` ends its daemon and its containers."""

    def __init__(self, archive, installed, **more):
        super().__init__(archive, installed, **more)
        # Its store must not be on an overlay file system; /etc/docker would get its key.
        self.run("sh", "-ec", "mkdir -p /var/lib/docker /etc/docker; for folder in /var/lib/docker /etc/docker; do "
                              "mount -t tmpfs tmpfs $folder; done")  # fmt: skip
        self._daemon, self._cgroup = None, f"overlay-test-{os.getpid()}-{self._holder.pid}"
        try:
            self.start()
            self.run("sh", text=_IMAGE)
        except BaseException:
            self.close()
            raise

    def start(self):
        """Starts dockerd in a PID namespace of its own, so that whatever it starts ends with it."""
        words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "dockerd", "--cgroup-parent"]
        self._daemon = self.popen(*words, self._cgroup, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while self.run("docker version", check=False).code:
            assert self._daemon.poll() is None, "dockerd ended"
            assert time.monotonic() < end, "dockerd does not answer"
            time.sleep(0.05)

    def stop(self):
        """Ends dockerd as a shutdown does."""
        children = Path(f"/proc/{self._daemon.pid}/task/{self._daemon.pid}/children")
        os.kill(int(children.read_text().split()[0]), signal.SIGTERM)
        self._daemon.wait(30)

    def close(self):
        self._daemon.kill()
        self._daemon.wait()
        super().close()
        # The control groups are the machine's; their processes are on their way out.
        end = time.monotonic() + 10
        while left := [path for path, _, _ in os.walk(CGROUPS, topdown=False) if f"/{self._cgroup}" in path]:
            assert time.monotonic() < end, left
            subprocess.run(["rmdir", *left], stderr=subprocess.DEVNULL, check=False)

    def docker(self, *words, check=True):
        """Runs a docker command; returns its output without the line's end."""
        done = self.run("docker", *(" ".join(words).split() if len(words) == 1 else words), check=check)
        return done.out.strip() if check else done

    def network(self, name=NETWORK):
        """What Docker has of the network; None where there is none."""
        return self.json(f"docker network inspect {name}")[0] if self.has(name) else None

    def has(self, name):
        return name in self.docker("network ls --format {{.Name}}").split()

    def container(self, name, *words, network=NETWORK):
        words = ("--name", name, "--network", network, "--stop-signal", "KILL", *words)
        self.docker("run", "--detach", *words, "busybox", "sleep", "10000")

    def clean(self):
        """Leaves a host as it was at first: nothing of the stack, of Docker's networks, of bridges."""
        for path in self.files():
            if path.startswith("./stacks/"):
                self.agent("remove", path[len("./stacks/") : -len(".json")])
        names = self.docker("ps --all --quiet").split()
        if names:
            self.docker("rm", "--force", *names)
        for name in set(self.docker("network ls --format {{.Name}}").split()) - {"bridge", "host", "none"}:
            self.docker(f"network rm {name}")
        for row in self.json("ip -j link"):
            if row["ifname"] not in ("lo", "u0", "u1", "docker0"):
                self.run(f"ip link delete {row['ifname']}", check=False)


def attach(network=NETWORK, subnets=("172.18.0.0/16",), mtu=1450):
    """The service for a network that others made."""
    spec = {"kind": "docker-network", "subnets": {subnet: {} for subnet in subnets}, "mtu": mtu}
    return {f"docker:{network}": spec}


def create(network="app", **more):
    """The service for a network that the stack makes."""
    spec = {
        "kind": "docker-network", "create": True, "bridge": "br-app", "subnets": {"10.10.0.0/24": {}},
        "gateways": {"10.10.0.1": {}}, "ranges": {"10.10.0.128/26": {}}, "auxiliary": {"b": "10.10.0.2"}, "mtu": 1450,
        **more,
    }  # fmt: skip
    return {f"docker:{network}": spec}


def joined(services, **of_vxlan):
    """The service for a network, and a tunnel that is a port of the network's bridge."""
    (bridge,) = services
    return document(services=services, vx_app=vxlan(**{"bridge": bridge, "vni": 100, **of_vxlan}))
