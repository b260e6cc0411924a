"""What a plain user needs on a host, what lies there afterwards, and who may read it."""

from __future__ import annotations

import re

import pytest

from tests import docs
from tests.e2e.support import AGENT, ROOT

pytestmark = [pytest.mark.root, pytest.mark.lab(hosts=1)]

SUDOERS = "/etc/sudoers.d/ops"
[LINE] = docs.blocks((ROOT / "docs/connections.md").read_text(), "sudoers")
#: What of the agent's may be read by anybody: programs, and what dnsmasq and keepalived read without being root.
READABLE = re.compile(r"/usr/local/|/run/overlay|/var/lib/overlay$|/var/lib/overlay/services(/|$)")


@pytest.fixture
def stack(stack):
    for host in ("h2", "h3"):
        del stack.hosts[host]
    del stack.segments["ops"]
    stack.segments["app"].update(containers={}, tunnels={}, dhcp={"host": "h1", "masquerade": True}, isolateHost=True)
    stack.defaults["user"] = "ops"
    return stack


def may(lab, command):
    """Whether sudo lets the user run it."""
    return lab.ssh("h1", f"sudo -n -l {command}", user="ops", check=False).returncode == 0


def test_a_user_with_the_documented_line_and_no_other_right(stack):
    lab = stack.lab
    lab.path("h1", SUDOERS).write_text("")
    refused = stack.up().failed()
    assert "sudo: a password is required" in refused
    lab.run("h1", f"test ! -e {AGENT}")

    lab.path("h1", SUDOERS).write_text(LINE)
    lab.run("h1", ["visudo", "-c", "-f", SUDOERS])
    stack.up().ok()
    stack.noop()
    stack.healthy()
    stack.segments["app"]["dhcp"]["leaseMax"] = 50
    assert re.search(r"dhcp-app: .*1000 -> 50", stack.up().ok())
    file = ".overlay-agent-overlay-lab.pyz"
    assert may(lab, f"sh {file} install")
    assert may(lab, f"sh {file} install known"), "a newer agent"
    for command in ("id", "sh", "sh -c id", f"sh {file}", f"sh {file} apply", "sh /tmp/x.pyz install", f"cat {file}"):
        assert not may(lab, command), command

    written = lab.run("h1", r"find /usr/local/sbin/overlay-agent* /usr/local/lib/overlay-agent /var/lib/overlay "
                            r"/run/overlay* -printf '%u:%g %m %y %p\n'").stdout.splitlines()  # fmt: skip
    rows = [re.fullmatch(r"root:root (\d+) ([df]) (\S+)", row) for row in written]
    assert all(rows), written
    assert {row[3] for row in rows} >= {AGENT, "/var/lib/overlay"}
    for mode, kind, path in (row.groups() for row in rows):
        assert not int(mode, 8) & 0o022, (mode, path)
        if kind == "f" and not READABLE.match(path):
            assert mode == "600", (mode, path)
    assert any(not READABLE.match(row[3]) for row in rows if row[2] == "f")

    stack.destroy().ok()
    stack.clean()
