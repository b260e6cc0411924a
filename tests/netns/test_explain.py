"""What `overlay explain` prints, typed on hosts that no agent has touched, makes the declared network."""

from __future__ import annotations

import itertools

import pytest
from typer.testing import CliRunner

from lab import Lab
from lab._lab import CHECKOUT
from overlay_components import _project, cli

pytestmark = pytest.mark.root

STACK = """\
config:
  overlay:hosts:
    h1: {address: 198.18.0.11}
    h2: {address: 198.18.0.12}
  overlay:peers:
    h3: {address: 198.18.0.13}
  overlay:openFirewall: true
  overlay:segments:
    app:
      subnets: [10.10.0.0/24, "fd00:10::/64"]
      addresses: {h1: [10.10.0.1, "fd00:10::1"]}
      tunnels: {mesh: {kind: vxlan, vni: 42, endpoints: [h1, h2, h3]}}
"""


def overlay(*words):
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_typed_by_hand_it_works(tmp_path):
    file = tmp_path / "Pulumi.hand.yaml"
    file.write_text(STACK)
    plan = _project.find(file, None).plan()
    with Lab("explain", hosts=3, directory=tmp_path) as lab:
        for number, host in enumerate(lab.hosts, 11):
            # The kernel's modules are the machine's; modprobe may not be there in its namespaces.
            script = overlay("explain", host, file).replace("modprobe ", "true ")
            lab.run(host, ["sh", "-eux", "-c", script])
            lab.container(host, "c", "br-app", None, [f"10.10.0.{number}/24"], (), 1450)
        for (source, _), (_, target) in itertools.permutations(zip(lab.hosts, range(11, 14), strict=True), 2):
            assert lab.ping(source, f"10.10.0.{target}", container="c", wait=3), f"{source} -> {target}"
        assert lab.ping("h3", "10.10.0.1", container="c", wait=3)
        for host in ("h1", "h2"):
            links = lab.links(host)
            for name, spec in plan.devices[host].items():
                assert (links[name]["mtu"], links[name]["address"]) == (spec.mtu, spec.mac)
        assert "ifalias" not in lab.links("h3")["vx-app"]


def test_a_host_bridge_typed_at_the_console(tmp_path):
    file = CHECKOUT / "stacks/Pulumi.doc-004-host-bridge.yaml"
    with Lab("explain-nic", hosts=1, ipv6=True, directory=tmp_path) as lab:
        host = lab.hosts["h1"]
        default = lab.run("h1", "ip route show default").stdout
        script = overlay("explain", "h1", file).replace("modprobe ", "true ")
        lab.run("h1", ["sh", "-eux", "-c", script])
        links = lab.links("h1")
        assert (links["eth0"]["master"], links["br0"]["address"]) == ("br0", host.mac)
        assert lab.run("h1", "ip route show default").stdout == default.replace("eth0", "br0")
        for address in (host.address, host.address6):
            assert f" {address}/" in lab.run("h1", "ip -o address show br0").stdout
            assert lab.ping("op", address, wait=3)
        assert lab.ssh("h1").returncode == 0
