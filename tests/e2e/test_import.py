"""Hosts that were set up with the articles' own commands: read, written as a stack file, taken over under traffic."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys

import pytest
import yaml

from lab import Lab
from overlay_agent.document import Owner
from overlay_components.config import load_config
from overlay_components.plan import make_plan
from tests.e2e.support import TRACES, Stack

pytestmark = pytest.mark.root

ADDRESS = {"h1": "198.18.0.11", "h2": "198.18.0.12"}
OTHER = {"h1": "h2", "h2": "h1"}
#: Article 000 (this machine has no brctl; `ip link` makes the same), and 002's tunnel with an address straight on it.
BY_HAND = """
ip link add vxlan0 type vxlan id 42 remote {there} local {here} dev eth0
ip link set up dev vxlan0
ip link add name superbr0 type bridge
ip link set up superbr0
ip link set vxlan0 master superbr0
ip link add vxlan1 type vxlan id 1 remote {there} dstport 4789 dev eth0
ip link set vxlan1 up
ip addr add {own}/24 dev vxlan1
"""
#: Of article 000 and 004 what is on host 1 only.
MASQUERADE = "iptables -t nat -A POSTROUTING -s 10.0.4.0/24 ! -d 10.0.4.0/24 -j MASQUERADE"
ROUTER = f"""
ip addr add 10.0.4.1/24 dev superbr0
dnsmasq --strict-order --bind-interfaces --pid-file=/run/dnsmasq-superbr0.pid --listen-address 10.0.4.1 \
  --dhcp-range 10.0.4.100,10.0.4.199 --dhcp-lease-max=253 --dhcp-no-override --interface=superbr0 \
  --dhcp-host=52:54:00:12:34:56,printer,10.0.4.50
{MASQUERADE}
"""
OWN = {"h1": "10.0.0.106", "h2": "10.0.0.107"}
DEVICES = ("superbr0", "vxlan0", "vxlan1")


@pytest.fixture(scope="module")
def labs(tmp_path_factory):
    with Lab("e2e-import", hosts=2, directory=tmp_path_factory.mktemp("labs")) as lab:
        yield lab


def run(stack, *words, code=0, cwd=None):
    """Runs `overlay` as the operator."""
    process = stack.lab.operator_popen(
        [sys.executable, "-m", "overlay_components.cli", *map(str, words)], cwd=cwd or stack.directory,
        env=stack.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    return out, err


def picture(stack):
    """What tells whether a device is the same one."""
    found = {}
    for host in stack.lab.hosts:
        for name, link in stack.lab.links(host).items():
            if name in DEVICES:
                rows = stack.lab.run(host, f"bridge fdb show dev {name} | grep 'dst.*permanent'", check=False).stdout
                found[host, name] = (link["ifindex"], link["address"], rows)
    return found


@contextlib.contextmanager
def no_ping_lost(lab, *ways):
    """Of 100 a second on each way (host, words in front of ping, target)."""
    pings = [
        lab.popen(host, [*words, "ping", "-n", "-i", "0.01", "-q", target], stdout=subprocess.PIPE)
        for host, words, target in ways
    ]
    try:
        yield
    finally:
        for ping in pings:
            ping.send_signal(signal.SIGINT)
        texts = [ping.communicate(timeout=10)[0] for ping in pings]
    for text in texts:
        sent, got = map(int, re.findall(r"(\d+) (?:packets transmitted|received)", text))
        assert sent > 50
        # The last one may be on its way when ping is ended.
        assert got >= sent - 1, text


def adopted(stack, file):
    """From now on the stack is what the file says."""
    stack.config = yaml.safe_load(file.read_text())["config"]
    return stack


def test_the_articles_commands(labs, tmp_path, home):
    stack = Stack(labs, tmp_path / "stack", "doc-000-unicast", home, name="taken")
    for host in labs.hosts:
        text = BY_HAND.format(here=ADDRESS[host], there=ADDRESS[OTHER[host]], own=OWN[host])
        labs.run(host, ["sh", "-ex"], input=text + (ROUTER if host == "h1" else ""))
    for host, address in (("h1", "10.0.4.11/24"), ("h2", "10.0.4.12/24")):
        labs.container(host, f"c-{host}", "superbr0", None, address, (), 1450)
    assert labs.ping("h1", "10.0.4.12", container="c-h1", wait=3)
    before = picture(stack)

    # Read: nothing is left there, nothing is changed, and the file says what was typed.
    traces = f"find {TRACES} 2>/dev/null | sort; ls -A /tmp /root"
    there = {host: labs.run(host, traces, check=False).stdout for host in labs.hosts}
    file = stack.directory / "stacks" / "Pulumi.taken.yaml"
    file.unlink()
    out, err = run(stack, "import", *(f"root@{address}" for address in ADDRESS.values()), "-o", file)
    assert out == f"{file}: written, 2 hosts and 2 segments\n"
    assert {host: labs.run(host, traces, check=False).stdout for host in labs.hosts} == there
    assert picture(stack) == before
    said = err.replace("warning: ", "").splitlines()
    assert [line for line in said if "dnsmasq (pid" not in line] == [
        f"h1 superbr0: {MASQUERADE}: dhcp.masquerade does it from now on, and the rule may go",
        "h1 vxlan1: local 0.0.0.0 -> 198.18.0.11",
        "h2 vxlan1: local 0.0.0.0 -> 198.18.0.12",
    ]
    assert any(line.endswith("serves it until now; end it before `pulumi up`, which starts its own") for line in said)
    written = yaml.safe_load(file.read_text())["config"]
    assert written["overlay:segments"] == {
        "superbr0": {
            "subnets": ["10.0.4.0/24"], "addresses": {"h1": "10.0.4.1/24"}, "bridge": {"name": "superbr0"},
            "tunnels": {"vxlan": {"kind": "vxlan", "vni": 42, "port": 8472, "ifname": "vxlan0"}}, "adopt": True,
            "dhcp": {
                "host": "h1", "range": "10.0.4.100-10.0.4.199", "leaseMax": 253,
                "reservations": {"printer": {"mac": "52:54:00:12:34:56", "address": "10.0.4.50"}}, "masquerade": True,
            },
        },
        "vxlan1": {
            "subnets": ["10.0.0.0/24"], "addresses": {host: f"{own}/24" for host, own in OWN.items()},
            "bridge": "none", "tunnels": {"vxlan": {"kind": "vxlan", "vni": 1, "ifname": "vxlan1"}}, "adopt": True,
        },
    }  # fmt: skip
    _, err = run(stack, "import", "root@198.18.0.11", "-o", file, code=1)
    assert err == f"{file}: is there already; name another file, or move that one away\n"

    ways = [("h1", ["ip", "netns", "exec", "c-h1"], "10.0.4.12"), ("h1", [], OWN["h2"])]

    # The foreign dnsmasq is named, and nothing is touched.
    adopted(stack, file)
    with no_ping_lost(labs, *ways):
        text = stack.up().failed()
    assert re.search(r"h1 dhcp-superbr0: dnsmasq \(pid \d+\) has udp 53 and .* of superbr0; ", text), text
    assert picture(stack) == before
    labs.run("h1", "kill $(cat /run/dnsmasq-superbr0.pid); iptables -t nat -F POSTROUTING")

    # Taken over: no packet lost, nothing made anew.
    with no_ping_lost(labs, *ways):
        text = stack.up().ok()
    assert "superbr0: taken over" in text
    assert picture(stack) == before
    stack.healthy()
    assert run(stack, "drift", "--stack", "taken")[0] == "2 hosts asked: all as applied\n"
    stack.noop()

    # `adopt` may go; the devices are the stack's.
    for segment in stack.segments.values():
        del segment["adopt"]
    with no_ping_lost(labs, *ways):
        stack.up().ok()
    assert picture(stack) == before
    stack.noop()
    for host in labs.hosts:
        labs.remove_container(host, f"c-{host}")
    stack.destroy().ok()
    for host in labs.hosts:
        assert not set(DEVICES) & labs.links(host).keys()


def test_round_trip_of_our_own(labs, tmp_path, home):
    """What our own tool made is read as the stack that made it."""
    stack = Stack(labs, tmp_path / "stack", "doc-004-nat", home)
    for segment in stack.segments.values():
        segment.pop("containers")
        segment.get("dhcp", {}).pop("forwards", None)
        segment.get("dhcp", {}).pop("publicAddresses", None)
        segment.pop("routes", None)
    stack.up().ok()
    out, _ = run(stack, "import", "root@198.18.0.11", "root@198.18.0.12", "--json", "--stack", stack.stack)
    report = json.loads(out)
    stack.destroy().ok()

    owner = Owner("overlay", stack.stack, "0")
    raw = {key.partition(":")[2]: value for key, value in stack.config.items()}
    plans = [make_plan(load_config(one), owner).documents for one in (raw, report["stack"])]
    assert plans[1]["h1"]["devices"].keys() == {"superbr0", "vx-super", "lxcbr0"}
    for host in ADDRESS:
        assert plans[0][host]["devices"] == plans[1][host]["devices"]
        assert served(plans[0][host]) == served(plans[1][host])
    assert "macs" not in str(report["stack"]), "they are those that are derived"
    assert [note for note in report["notes"] if "belongs to stack" in note] == [
        f"segment {name}: belongs to stack overlay/doc-004-nat as it is; it is not adopted, only described"
        for name in report["stack"]["segments"]
    ]


def served(document):
    """The services by what they are; their names come from the segments'."""
    return sorted(json.dumps(spec, sort_keys=True) for spec in document.get("services", {}).values())


def test_a_host_key_is_never_taken_blindly(labs, tmp_path, home):
    stack = Stack(labs, tmp_path / "stack", "doc-000-unicast", home)
    known = labs.known_hosts.read_text()
    try:
        labs.known_hosts.write_text("".join(x for x in known.splitlines(True) if "198.18.0.12" not in x))
        _, err = run(stack, "import", "root@198.18.0.11", "root@198.18.0.12", code=3)
        assert "ssh-keyscan" in err, err
    finally:
        labs.known_hosts.write_text(known)


def test_tunnels_in_a_docker_network(labs, tmp_path, home):
    """Article 003, with the MTU that its tunnel carries."""
    stack = Stack(labs, tmp_path / "stack", "doc-003-attach", home, name="attached")
    there = {"h1": "198.18.0.12", "h2": "198.18.0.11"}
    for number, host in enumerate(labs.hosts, 11):
        labs.start_docker(host)
        labs.run(
            host,
            f"""set -ex
docker network create --subnet 172.18.0.0/16 --opt com.docker.network.driver.mtu=1450 vxlan-net
docker run -d --name c{number} --net vxlan-net --ip 172.18.0.{number} busybox
ip link add vxlan-demo type vxlan id 100 remote {there[host]} dstport 4789 dev eth0
ip link set vxlan-demo up
ip link set vxlan-demo master br-$(docker network inspect --format '{{{{printf "%.12s" .Id}}}}' vxlan-net)
ip netns attach c{number} $(docker inspect --format '{{{{.State.Pid}}}}' c{number})
""",
        )
    stack.remember()
    before = {host: {n: (x["ifindex"], x["address"]) for n, x in labs.links(host).items()} for host in labs.hosts}
    file = stack.directory / "stacks" / "Pulumi.attached.yaml"
    file.unlink()
    _, err = run(stack, "import", "root@198.18.0.11", "root@198.18.0.12", "-o", file)
    adopted(stack, file)
    containers = stack.segments["vxlan-net"].pop("containers")
    assert {name: (row["host"], row["address"]) for name, row in containers.items()} == {
        "c11": ("h1", "172.18.0.11"), "c12": ("h2", "172.18.0.12")
    }  # fmt: skip
    assert stack.segments == {
        "vxlan-net": {
            "bridge": {"attach": {"docker": "vxlan-net"}}, "subnets": ["172.18.0.0/16"], "adopt": True,
            "tunnels": {"vxlan": {"kind": "vxlan", "vni": 100, "ifname": "vxlan-demo"}},
        }
    }  # fmt: skip
    assert "h1 docker0: the bridge of Docker's network bridge and no tunnel's; left out" in err
    stack.segments["vxlan-net"]["containers"] = containers
    with no_ping_lost(labs, ("h1", ["ip", "netns", "exec", "c11"], "172.18.0.12")):
        stack.up().ok()
    found = {host: {n: (x["ifindex"], x["address"]) for n, x in labs.links(host).items()} for host in labs.hosts}
    assert found == before
    stack.healthy()
    stack.noop()
    stack.destroy().ok()
    assert "vxlan-demo" not in labs.links("h1")
    assert labs.ping("h1", "172.18.0.1", container="c11", wait=3), "Docker's own stays"
