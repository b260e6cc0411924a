"""`overlay verify` and `overlay capture` on real hosts: what is right is proven, and what is wrong is named."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys

import pytest

from lab import Lab
from tests.e2e.conftest import installed_plugin
from tests.e2e.support import AGENT, Stack, wait_for

pytestmark = pytest.mark.root


class Verified(Stack):
    """A stack with the command beside it."""

    def popen_overlay(self, *words):
        return self.lab.operator_popen(
            [sys.executable, "-m", "overlay_components.cli", *words],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def overlay(self, *words):
        process = self.popen_overlay(*words)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        return process.returncode, out, err

    def verify(self, *words):
        code, out, err = self.overlay("verify", "--json", *words)
        assert out, err
        return code, json.loads(out)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with Lab(name="e2e-verify", hosts=3, ipv6=True, directory=tmp_path_factory.mktemp("labs")) as lab:
        yield lab


@pytest.fixture(scope="module")
def stack(lab, homes, tmp_path_factory):
    """Segments with a router, without addresses, and straight on the tunnel's device."""
    stack = Verified(lab, tmp_path_factory.mktemp("v") / "stack", "lab", homes[installed_plugin()])
    mesh = {"kind": "vxlan"}
    stack.segments.clear()
    stack.segments.update(
        app={
            "subnets": ["10.10.0.0/24"],
            "addresses": {"h1": "10.10.0.1"},
            "tunnels": {"mesh": {**mesh, "vni": 42}},
            "dhcp": {"host": "h1", "domain": "app.example", "masquerade": True},
            "containers": {"web": {"host": "h2", "address": "10.10.0.11"}},
        },
        own={
            "hosts": ["h1", "h2"],
            "subnets": ["10.20.0.0/24"],
            "addresses": {"h1": "10.20.0.1", "h2": "10.20.0.2"},
            "tunnels": {"mesh": {**mesh, "vni": 45}},
            "dhcp": {"host": "h1", "range": "none", "masquerade": True},
            "containers": {"db": {"host": "h2", "address": "10.20.0.11"}},
        },
        l2={"tunnels": {"mesh": {**mesh, "vni": 43}}},
        link={
            "hosts": ["h1", "h2"],
            "subnets": ["10.30.0.0/24"],
            "addresses": {"h1": "10.30.0.1", "h2": "10.30.0.2"},
            "bridge": "none",
            "tunnels": {"mesh": {**mesh, "vni": 44}},
        },
    )
    stack.up().ok()
    return stack


@contextlib.contextmanager
def changed(lab, *commands):
    """(host, what breaks it, what mends it)."""
    try:
        for host, wrong, _ in commands:
            lab.run(host, wrong)
        yield
    finally:
        for host, _, right in commands:
            lab.run(host, right)


def failing(report, segment):
    """Every pair that is not good: what is said of it."""
    pairs = report["segments"][segment]["pairs"]
    return {f"{a}-{b}": cell.get("why") for a, row in pairs.items() for b, cell in row.items() if not cell["good"]}


def listening(lab, host):
    """Who listens to what is not for him."""
    return {name: link["promiscuity"] for name, link in lab.links(host).items()}


def checks(report, segment="app"):
    return {check["what"]: (check["good"], check["says"]) for check in report["segments"][segment]["checks"]}


def test_all_is_well(stack, lab):
    page = stack.directory / "page.html"
    before = {host: listening(lab, host) for host in lab.hosts}
    code, report = stack.verify("--html", str(page))
    assert code == 0, report
    assert {name: len(row["pairs"]) for name, row in report["segments"].items()} == {
        "app": 3,
        "own": 2,
        "l2": 3,
        "link": 2,
    }
    cells = [c for row in report["segments"].values() for r in row["pairs"].values() for c in r.values()]
    assert all(cell["good"] and cell["rtt"] > 0 and "why" not in cell for cell in cells)
    assert len(cells) == 6 + 2 + 6 + 2
    found = checks(report)
    assert re.fullmatch(r"10\.10\.0\.\d+ offered to h2 by 10\.10\.0\.1", found["DHCP"][1])
    assert found["DNS"] == (True, "web.app.example is 10.10.0.11, says 10.10.0.1 to h2")
    assert found["NAT"] == (True, f"{lab.hosts['h2'].address} answers h2 through 10.10.0.1")
    # From an address of the host's own, and where nobody gets an address but those who have one.
    assert checks(report, "own") == {
        "DHCP": (True, "10.20.0.11 offered to h2 by 10.20.0.1"),
        "DNS": (True, "db is 10.20.0.11, says 10.20.0.1 to h2"),
        "NAT": (True, f"{lab.hosts['h2'].address} answers h2 through 10.20.0.1"),
    }
    text = page.read_text()
    assert text.count('class="good"') == len(cells) + 6
    assert "<svg" in text
    # It leaves nothing behind: no lease, no address, and what was applied is what is there.
    leases = lab.run("h1", "find /var/lib/overlay /run -name leases").stdout.split()
    assert len(leases) == 2
    assert lab.run("h1", ["cat", *leases]).stdout == ""
    assert {host: listening(lab, host) for host in lab.hosts} == before
    stack.healthy()


def test_the_store_is_not_read(stack, lab):
    with changed(lab, ("h1", "mv /var/lib/overlay /var/lib/overlay-away", "mv /var/lib/overlay-away /var/lib/overlay")):
        code, report = stack.verify("l2")
    assert (code, list(report["segments"])) == (0, ["l2"])


def test_a_lost_entry_a_device_that_is_down_and_a_dead_server(stack, lab):
    there = lab.hosts["h3"].address
    flood = f"00:00:00:00:00:00 dev vx-app dst {there}"
    with changed(
        lab,
        ("h1", f"bridge fdb del {flood}", f"bridge fdb append {flood}"),
        ("h3", "ip link set vx-l2 down", "ip link set vx-l2 up"),
        ("h2", "ip link set vx-link down", "ip link set vx-link up"),
        ("h1", "kill $(pgrep -x dnsmasq)", f"{AGENT} restore"),
    ):
        code, report = stack.verify()
    assert code == 2
    assert failing(report, "app") == {"h1-h3": f"no FDB entry for {there} on h1's vx-app"}
    assert failing(report, "l2") == dict.fromkeys(["h1-h3", "h2-h3", "h3-h1", "h3-h2"], "h3's vx-l2 is down")
    assert failing(report, "link") == dict.fromkeys(["h1-h2", "h2-h1"], "h2's vx-link is down")
    found = checks(report)
    assert found["DHCP"] == (False, "h1 offers no address to h2; is its dnsmasq running?")
    assert found["DNS"] == (False, "10.10.0.1 does not answer h2 on port 53")
    assert found["NAT"][0]


def test_a_firewall_in_between_and_a_smaller_underlay(stack, lab):
    hook = "add chain inet v i { type filter hook input priority -5; }"
    drop = f"add table inet v; {hook}; add rule inet v i udp dport 4789 drop"
    tables = lab.run("h1", "nft list tables").stdout.splitlines()
    nat = next(table for table in tables if "10.10.0.0/24" in lab.run("h1", f"nft list {table}").stdout)
    with changed(
        lab,
        ("h3", f"nft '{drop}'", "nft delete table inet v"),
        ("h2", "ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500"),
        ("h1", f"nft delete {nat}", f"{AGENT} restore"),
    ):
        code, report = stack.verify("app", "l2")
        shown = stack.overlay("verify", "l2")
    h2, h3 = (lab.hosts[name].address for name in ("h2", "h3"))
    blocked = "underlay blocked on UDP 4789 from {} to h3 (" + f"{h3}, which answers a ping)"
    assert code == 2
    for segment in ("app", "l2"):
        assert failing(report, segment) == {
            "h1-h2": f"MTU too big at hop {h2} (h2): it takes 1400, and 1450 here needs 1500",
            "h2-h1": "MTU too big at hop h2 itself: it takes 1400, and 1450 here needs 1500",
            "h1-h3": blocked.format("h1"),
            "h2-h3": blocked.format("h2"),
            "h3-h1": f"h1 hears h3, but its answers do not come back: {blocked.format('h1')}",
            "h3-h2": f"h2 hears h3, but its answers do not come back: {blocked.format('h2')}",
        }
    assert checks(report)["NAT"] == (
        False,
        f"no answer from {h2} through 10.10.0.1: h1 does not translate, or does not pass it on",
    )
    code, out, _ = shown
    assert code == 2
    assert "l2: 0 of 6 pairs reach each other with packets of 1450" in out
    assert f"l2 h1 -> h3: {blocked.format('h1')}" in out
    assert re.search(r"from h1 +- +FAILS +FAILS", out), out


def test_over_ipv6(lab, homes, tmp_path):
    stack = Verified(lab, tmp_path / "stack", "lab", homes[installed_plugin()], name="six")
    stack.segments.clear()
    for name, host in lab.hosts.items():
        stack.hosts[name] = {"address": host.address, "underlay": {"address": host.address6, "local": host.address6}}
    stack.segments["six"] = {"hosts": ["h1", "h2"], "tunnels": {"mesh": {"kind": "vxlan", "vni": 66}}}
    stack.up().ok()
    try:
        assert stack.verify()[0] == 0
        with changed(lab, ("h1", "ip link set eth0 mtu 1450", "ip link set eth0 mtu 1500")):
            code, report = stack.verify()
        assert code == 2
        assert failing(report, "six") == {
            "h1-h2": "MTU too big at hop h1 itself: it takes 1450, and 1430 here needs 1500",
            "h2-h1": f"MTU too big at hop {lab.hosts['h1'].address6} (h1): it takes 1450, and 1430 here needs 1500",
        }
    finally:
        stack.destroy().ok()


def test_what_passes_is_written_down(stack, lab, tmp_path):
    inside, outside = tmp_path / "inside.pcap", tmp_path / "outside.pcap"
    for path in (inside, outside):  # the operator is another user
        path.touch()
        path.chmod(0o666)
    words = ["ping", "-i", "0.1", "10.30.0.2"]
    ping = lab.popen("h1", words, stdout=subprocess.DEVNULL)
    try:
        common = ["capture", "link", "--seconds", "5", "--json"]
        both = [
            stack.popen_overlay(*common, "--host", "h2", "-o", str(inside), "--filter", "icmp host 10.30.0.1"),
            stack.popen_overlay(*common, "--host", "h1", "-o", str(outside), "--underlay"),
        ]
        reports = [json.loads(one.communicate(timeout=60)[0])["captures"][0] for one in both]
    finally:
        ping.terminate()
        ping.wait()
    assert [(report["host"], report["device"]) for report in reports] == [("h2", "vx-link"), ("h1", "eth0")]
    for path, report, pattern in (
        (inside, reports[0], r"IP 10\.30\.0\.1 > 10\.30\.0\.2: ICMP echo request"),
        (outside, reports[1], r"\.4789: VXLAN, flags \[I\] \(0x08\), vni 44"),
    ):
        text = subprocess.run(["tcpdump", "-n", "-r", path], check=True, capture_output=True, text=True).stdout
        lines = [line for line in text.splitlines() if re.match(r"\d\d:\d\d:\d\d\.", line)]
        assert len(re.findall(pattern, text)) >= 5, text
        assert report["packets"] == len(lines)


def test_a_segment_that_is_not_there_yet(stack):
    stack.segments["ghost"] = {"hosts": ["h1", "h2"], "tunnels": {"mesh": {"kind": "vxlan", "vni": 99}}}
    stack.write()
    try:
        code, report = stack.verify("ghost")
        assert code == 2
        assert failing(report, "ghost") == {
            "h1-h2": "h1's br-ghost is missing; run `pulumi up`",
            "h2-h1": "h2's br-ghost is missing; run `pulumi up`",
        }
        code, out, err = stack.overlay("capture", "ghost", "--host", "h1", "--seconds", "1")
        assert (code, out, err) == (1, "", "h1: br-ghost: capture: No such device\n")
    finally:
        del stack.segments["ghost"]
        stack.write()


def test_a_host_that_is_not_there(stack, lab):
    code, _, err = stack.overlay("verify", "ap")
    assert (code, err) == (1, "SEGMENT: unknown segment 'ap'; did you mean app?\n")
    lab.kill("h3")
    try:
        code, out, err = stack.overlay("verify", "l2", "app")
        assert code == 3
        assert "l2 h1 -> h3, h2 -> h3, h3 -> h1 and 1 more: h3 was not asked" in out
        assert "app: 2 of 6 pairs reach each other with packets of 1450" in out
        gone = f"h3: {lab.hosts['h3'].address} is not reached: "
        assert err.startswith(gone)
        code, out, err = stack.overlay("capture", "l2", "--host", "h3", "--seconds", "1")
        assert (code, out, err.startswith(gone)) == (3, "", True)
    finally:
        lab.revive("h3")
    wait_for(lambda: stack.verify("l2")[0] != 3)
