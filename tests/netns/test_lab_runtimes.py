"""Container runtimes and clients on lab hosts are the real ones, one of each a host, and go with the lab."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lab import Lab, LabError, _cgroups

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the lab makes network namespaces"),
]

MAC = "02:00:00:00:00:21"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with Lab("runtimes", hosts=2, directory=tmp_path_factory.mktemp("labs")) as running:
        yield running


def groups(lab: Lab) -> list[str]:
    """The lab's control groups, in any hierarchy."""
    return [path for path, _, _ in os.walk(_cgroups.TREE) if lab.id in path]


# ---------------------------------------------------------------------- Docker


@pytest.fixture(scope="module")
def docker(lab):
    """Both hosts with a dockerd and a network `net` on bridge `net0`."""
    for host in lab.hosts:
        lab.start_docker(host)
        create = "docker network create --subnet 172.18.0.0/24 --gateway 172.18.0.1"
        lab.run(host, f"{create} --opt com.docker.network.bridge.name=net0 net")
    return lab


def test_a_docker_container_has_its_address_and_mac(docker):
    run = f"docker run --detach --name web --network net --ip 172.18.0.11 --mac-address {MAC} busybox"
    docker.run("h1", run)
    inside = docker.run("h1", "docker exec web ip -o addr show eth0; docker exec web ip link show eth0").stdout
    assert "172.18.0.11/24" in inside
    assert MAC in inside
    assert docker.ping("h1", "172.18.0.11")
    assert docker.run("h2", "docker ps --all --quiet").stdout == "", "each host has its own dockerd"
    assert groups(docker)
    docker.run("h1", "docker stop --time 5 web")
    assert docker.run("h1", "docker inspect --format '{{.State.ExitCode}}' web").stdout.strip() == "0", "not killed"
    docker.run("h1", "docker rm web")


def test_docker_drops_what_is_forwarded_as_on_any_host(docker):
    assert docker.run("h1", "iptables -S FORWARD").stdout.splitlines()[0] == "-P FORWARD DROP"
    assert Path(docker.path("h1", "/proc/sys/net/bridge/bridge-nf-call-iptables")).read_text() == "1\n"
    # br_netfilter: even two ports of one bridge, which Docker does not know, do not hear each other
    docker.run("h1", "ip link add plain type bridge && ip link set plain up")
    docker.container("h1", "a", "plain", address="10.0.0.2/24")
    docker.container("h1", "b", "plain", address="10.0.0.3/24")
    assert not docker.ping("h1", "10.0.0.3", container="a", wait=0.3)
    docker.run("h1", "iptables -I DOCKER-USER -i plain -j ACCEPT")
    assert docker.ping("h1", "10.0.0.3", container="a")


def test_docker_after_a_reboot_knows_its_containers(docker):
    docker.run("h2", "docker create --name kept --network net busybox")
    docker.reboot("h2")
    assert docker.run("h2", "docker ps", check=False).returncode != 0
    docker.start_docker("h2")
    docker.start_docker("h2")  # nothing happens
    docker.run("h2", "docker start kept")
    [kept] = json.loads(docker.run("h2", "docker inspect kept").stdout)
    assert kept["State"]["Running"]
    assert docker.run("h2", "pgrep -c -x dockerd").stdout == "1\n"


def test_a_dockerd_that_does_not_start_says_why(docker):
    docker.run("h1", "pkill -x dockerd; while pgrep -x dockerd; do sleep 0.02; done; mkdir -p /etc/docker")
    docker.run("h1", "echo '{\"bridge\": 5}' > /etc/docker/daemon.json")
    with pytest.raises(LabError, match="bridge"):
        docker.start_docker("h1")
    docker.run("h1", "rm /etc/docker/daemon.json")
    docker.start_docker("h1")


def test_the_lab_takes_all_of_it_along(tmp_path):
    with Lab("runtimes-trace", hosts=1, directory=tmp_path) as lab:
        lab.start_docker("h1")
        lab.run("h1", "docker run --detach busybox")
        assert groups(lab)
        mounts = Path("/proc/self/mountinfo").read_text()
        assert str(tmp_path) not in mounts
    assert groups(lab) == []
