"""The programs under examples/ run as they stand."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from tests.e2e.support import Project, source

pytestmark = pytest.mark.root


@pytest.fixture
def example(request, lab, home, tmp_path):
    directory = tmp_path / "example"
    shutil.copytree(source() / "examples" / request.param, directory)
    project = Project(lab, directory, "dev", home)
    project.start()
    return project


@pytest.mark.lab(hosts=2)
@pytest.mark.parametrize("example", ["library"], indirect=True)
def test_library(example):
    first = example.up().ok()
    assert re.search(r"mtu *: 1450", first)
    assert example.lab.ping("h1", "10.10.0.2", wait=3)
    assert "10.10.0.1:53 " in example.lab.run("h1", "ss -lun").stdout
    example.healthy()
    example.noop()
    example.destroy().ok()
    example.clean()


@pytest.mark.parametrize("example", ["new-vm"], indirect=True)
def test_new_vm(example):
    """A host whose address and key another resource has yet to make, when the preview runs."""
    example.up().ok()
    example.healthy("h1", "h2")

    machine = example.directory / "machine"
    machine.mkdir()
    (machine / "address").write_text("198.18.0.13\n")
    # Nobody knows this host's key but the cloud that made it.
    known = example.lab.known_hosts
    known.write_text("".join(line for line in known.read_text().splitlines(True) if "198.18.0.13" not in line))
    (machine / "key").write_text(next(k for k in example.lab.hosts["h3"].keys if "ed25519" in k))
    example.run("config", "set", "machine", str(machine)).ok()

    preview = example.preview().ok()
    assert preview.count('+ c: "<address of c>"') == 2, "one line a peer, for each of the two"
    assert '"<machine id of c>"' in preview
    updated = re.findall(r"Command: \(update\)\n.*\[id=.*\n.*::example-(\w+)-document", preview)
    assert sorted(updated) == ["a", "b"]

    # Of what is not made yet nothing reaches a host, also where its document is asked for alone.
    text = example.up("--target", "**::example-a*").failed()
    assert "error: <address of c>: not known, since what makes it takes no part in this run" in text
    example.healthy("h1", "h2")

    # What the cloud answers is checked like a stack file, and nobody's document is touched by a wrong answer.
    (machine / "address").write_text("198.18.0.300\n")
    assert "error: hosts.c.address: '198.18.0.300' is not an IP address" in example.up().failed()
    assert "vx-app" in example.lab.links("h1")
    (machine / "address").write_text("198.18.0.13\n")
    example.up("--replace", "**::server").ok()
    assert example.outputs()["web"]["host"] == "c"
    fdb = example.lab.run("h1", "bridge fdb show dev vx-app").stdout
    assert "dst 198.18.0.13" in fdb
    example.healthy()
    example.noop()
    example.destroy().ok()
    example.clean()


@pytest.mark.lab(hosts=4)
@pytest.mark.parametrize("example", ["two-stacks"], indirect=True)
def test_two_stacks(example):
    """Each stack reads the other's outputs, and their hosts are on one network."""
    sites = {"east": ("west", ["h1", "h2"]), "west": ("east", ["h3", "h4"])}
    for example.stack, (_, hosts) in sites.items():
        example.run("stack", "init", example.stack, "--no-select", stack=False).ok()
        example.run("config", "set", "hosts", json.dumps({h: example.lab.hosts[h].address for h in hosts})).ok()
        example.up().ok()
    for example.stack, (other, _) in sites.items():
        example.run("config", "set", "other", f"organization/overlay-two-stacks/{other}").ok()
        example.up().ok()
    assert example.lab.ping("h2", "10.10.2.2", wait=5), "from one stack's last host to the other's"
    assert not set(example.lab.links("h2")) & {"vl"}, "only the first hosts are joined"
    for example.stack in sites:
        example.noop()
    for example.stack in sites:
        example.destroy().ok()
    example.clean()


CIRCLE = """
from pulumi_command import local
from overlay_components import Bridge, Host, Overlay, VxlanTunnel

with Overlay("example"):
    hosts = [Host("a", address="198.18.0.11", user="root"), Host("b", address="198.18.0.12", user="root")]
    app = Bridge("app", hosts=hosts)
    VxlanTunnel("app-mesh", bridge=app, vni=42)
    server = local.Command("server", create=app.mtu.apply(lambda mtu: f"echo {mtu}"))
    Host("c", address=server.stdout, user="root")
"""


@pytest.mark.lab(hosts=2)
@pytest.mark.parametrize("example", ["library"], indirect=True)
def test_a_program_that_waits_for_itself(example):
    (example.directory / "__main__.py").write_text(CIRCLE)
    text = example.up().failed()
    assert "error: hosts.c.address: depends on an output of Overlay 'example' itself, which waits for it;" in text
    assert example.logins("h1") == 0
