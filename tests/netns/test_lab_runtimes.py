"""Container runtimes and clients on lab hosts are the real ones, one of each a host, and go with the lab."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from lab import Lab, LabError, _cgroups, web_server
from lab import __main__ as cli

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the lab makes network namespaces"),
]

MAC = "02:00:00:00:00:21"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with Lab("runtimes", hosts=3, directory=tmp_path_factory.mktemp("labs")) as running:
        yield running


def groups(word: str) -> set[str]:
    """The machine's control groups with the word in their path, in any hierarchy."""
    return {path for path, _, _ in os.walk(_cgroups.TREE) if word in path}


# ---------------------------------------------------------------------- Docker


@pytest.fixture(scope="module")
def docker(lab):
    """h1 and h2 with a dockerd and a network `net` on bridge `net0`."""
    for host in ("h1", "h2"):
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
    assert groups(docker.id)
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


# ---------------------------------------------------------------------- LXC, DHCP clients, web server


@pytest.fixture(scope="module")
def dhcp(lab):
    """h3 with a bridge `lan`, and a dnsmasq as one would type it, which has a lease for MAC."""
    lab.run("h3", "ip link add lan type bridge && ip addr add 10.9.0.1/24 dev lan && ip link set lan up")
    lab.run("h3", "ip addr add 2001:db8:9::1/64 dev lan nodad")
    words = [
        "dnsmasq --interface=lan --bind-interfaces --except-interface=lo --no-resolv --no-ping --domain=lan.example",
        "--dhcp-range=10.9.0.100,10.9.0.199,1h --dhcp-option=option:mtu,1450",
        "--dhcp-range=2001:db8:9::100,2001:db8:9::1ff,64,1h",
        f"--dhcp-host={MAC},10.9.0.50,fixed",
    ]
    lab.run("h3", " ".join(words))
    return lab


def reading(lab: Lab, prefix: str) -> Callable[[str], str]:
    """What a command prints on h3 with these words before it."""
    return lambda command: lab.run("h3", f"{prefix} {command}").stdout


def config_of(read: Callable[[str], str]) -> tuple[str, int, str]:
    """Address, MTU and gateway of eth0; `read` gives what a command prints in the container."""
    out = read("busybox ip -o -4 addr show eth0") + read("busybox ip route show default")
    mtu = read("cat /sys/class/net/eth0/mtu")
    return out.split(" inet ")[1].split()[0], int(mtu), out.partition("default via ")[2].split()[0]


def test_an_lxc_container_has_what_its_config_says(dhcp):
    network = {
        "type": "veth",
        "link": "lan",
        "name": "eth0",
        "hwaddr": "02:00:00:00:00:22",
        "mtu": "1400",
        "flags": "up",
        "ipv4.address": "10.9.0.60/24",
        "ipv4.gateway": "10.9.0.1",
    }
    dhcp.lxc("h3", "plain", [f"lxc.net.0.{key} = {value}" for key, value in network.items()])
    assert config_of(reading(dhcp, "lxc-attach --name plain --")) == ("10.9.0.60/24", 1400, "10.9.0.1")
    assert "02:00:00:00:00:22" in dhcp.run("h3", "lxc-attach --name plain -- ip link show eth0").stdout
    assert dhcp.run("h3", "lxc-attach --name plain -- hostname").stdout == "plain\n"
    dhcp.run("h3", "lxc-stop --name plain --timeout 20 && lxc-destroy --name plain")
    with pytest.raises(LabError, match=r'Failed to attach ".*" to bridge "no-such"'):
        dhcp.lxc("h3", "wrong", ["lxc.net.0.type = veth", "lxc.net.0.link = no-such"])


def test_an_lxc_container_leases_its_address(dhcp):
    network = ["lxc.net.0.type = veth", "lxc.net.0.link = lan", "lxc.net.0.name = eth0", f"lxc.net.0.hwaddr = {MAC}"]
    dhcp.lxc("h3", "leased", network, start="udhcpc -i eth0 -O mtu &")
    inside = "lxc-attach --name leased --"
    dhcp.run("h3", f"i=0; until {inside} ip route | grep default; do i=$((i+1)); test $i -lt 200; sleep 0.05; done")
    assert config_of(reading(dhcp, inside)) == ("10.9.0.50/24", 1450, "10.9.0.1")
    dhcp.run("h3", f"{inside} sh -c {shlex.quote(web_server('a page'))}")
    assert dhcp.run("h3", "curl -sSf http://10.9.0.50/").stdout == "a page"
    assert dhcp.run("h3", f"{inside} wget -q -O - http://fixed.lan.example/").stdout == "a page", "by its name"
    dhcp.run("h3", "lxc-stop --kill --name leased && lxc-destroy --name leased")


@pytest.mark.parametrize("client", ["udhcpc", "dhclient"])
def test_a_dhcp_client_configures_a_stand_in(dhcp, client):
    dhcp.container("h3", client, "lan")
    dhcp.dhcp("h3", client, client)
    address, mtu, gateway = config_of(reading(dhcp, f"ip netns exec {client}"))
    assert address.startswith("10.9.0.1")
    assert (mtu, gateway) == (1450, "10.9.0.1")
    resolver = dhcp.exec_container("h3", client, "cat /etc/resolv.conf").stdout
    assert "nameserver 10.9.0.1" in resolver
    assert "lan.example" in resolver
    assert dhcp.run("h3", "cat /etc/resolv.conf").stdout == "# the lab has no name server\n", "the host's is its own"
    # the name that it sent is known, and it finds itself by its own resolver
    assert address.split("/")[0] in dhcp.exec_container("h3", client, f"getent ahostsv4 {client}").stdout
    dhcp.remove_container("h3", client)
    gone = f"i=0; while pgrep -x {client}; do i=$((i+1)); test $i -lt 100; sleep 0.1; done"
    dhcp.run("h3", ["sh", "-ec", gone])
    assert not dhcp.path("h3", f"/etc/netns/{client}").exists()


def test_dhclient_leases_ipv6(dhcp):
    dhcp.container("h3", "six", "lan")
    dhcp.dhcp("h3", "six", "dhclient", ipv6=True)
    assert "2001:db8:9::1" in dhcp.exec_container("h3", "six", "ip -6 addr show eth0").stdout
    with pytest.raises(LabError, match="DHCP client 'udhcpc': one of udhcpc, dhclient"):
        dhcp.dhcp("h3", "six", ipv6=True)


def test_the_command_line(lab, dhcp, monkeypatch, capsys):
    monkeypatch.setattr(cli.Lab, "open", lambda name: {"runtimes": lab}[name])
    dhcp.container("h3", "typed", "lan")
    assert cli.main(["container", "dhcp", "--name", "runtimes", "h3", "typed", "--client", "dhclient"]) == 0
    assert "10.9.0.1" in dhcp.exec_container("h3", "typed", "ip route show default").stdout
    assert cli.main(["start", "--name", "runtimes", "lxd", "h3"]) == 0
    assert capsys.readouterr().out == "lab runtimes: h3: lxd runs\n"
    assert "busybox" in dhcp.run("h3", "lxc image list --format csv").stdout


def test_no_lease_is_an_error(dhcp):
    dhcp.run("h3", "ip link add silent type bridge && ip link set silent up")
    dhcp.container("h3", "alone", "silent")
    with pytest.raises(LabError, match="no lease, failing"):
        dhcp.dhcp("h3", "alone", wait=1)
    with pytest.raises(LabError, match="ended with 124"):
        dhcp.dhcp("h3", "alone", "dhclient", wait=1)


def test_a_page_of_one_stand_in_from_another_and_from_its_host(dhcp):
    for name, number in (("one", 71), ("two", 72)):
        dhcp.container("h3", name, "lan", address=f"10.9.0.{number}/24")
        dhcp.exec_container("h3", name, web_server(f"page of {name}\n", 8080))
    for run in (dhcp.run, lambda host, command: dhcp.exec_container(host, "two", command)):
        assert run("h3", "curl -sSf http://10.9.0.71:8080/").stdout == "page of one\n"


def test_an_lxd_container_leases_its_address(dhcp):
    dhcp.start_lxd("h3")
    dhcp.start_lxd("h3")  # nothing happens
    dhcp.run("h3", "lxc init busybox leased")
    dhcp.run("h3", f"lxc config device add leased eth0 nic nictype=bridged parent=lan hwaddr={MAC}")
    dhcp.run("h3", "lxc start leased && lxc exec leased -- udhcpc -n -i eth0 -O mtu")
    inside = partial(dhcp.lxd_read, "h3", "leased")
    assert config_of(inside) == ("10.9.0.50/24", 1450, "10.9.0.1")
    first, *_ = inside("cat /proc/self/uid_map").split()[1:]
    assert int(first) > 0, "without privileges, as LXD has it by default"
    dhcp.reboot("h3")
    dhcp.run("h3", "ip link add lan type bridge && ip link set lan up")
    dhcp.start_lxd("h3")
    dhcp.run("h3", "lxc exec leased -- true || lxc start leased")  # LXD starts again what ran
    assert MAC in inside("ip link show eth0")


def test_the_lab_takes_all_of_it_along(tmp_path):
    with Lab("runtimes-trace", hosts=1, directory=tmp_path) as lab:
        lab_id = lab.id
        lab.start_docker("h1")
        lab.run("h1", "docker run --detach busybox")
        lab.lxc("h1", "one", ["lxc.net.0.type = empty"])
        lab.start_lxd("h1")
        lab.run("h1", "lxc launch busybox two")
        for ours in ("docker", "lxc.payload.one", "lxc.payload.two"):
            assert groups(lab.id) & groups(ours), ours
        assert groups("payload.one") | groups("payload.two") <= groups(lab.id), "nowhere else"
        mounts = Path("/proc/self/mountinfo").read_text()
        assert str(tmp_path) not in mounts
    assert groups(lab_id) == set()
