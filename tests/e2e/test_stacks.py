"""Every stack of stacks/: preview, up, traffic, a second up that asks nobody, destroy without a trace."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.root


def whole_life(stack):
    preview = stack.preview().ok()
    assert re.search(r'machine *: "<machine id of h1>"', preview), "a new host's document is shown, not [unknown]"
    first = stack.up().ok()
    for host in stack.hosts:
        assert re.search(rf"-{host}-document creating .*: created \(", first), "people's words on what was done"
    logins = {host: stack.logins(host) for host in stack.hosts}
    assert set(logins.values()) == {3}, "the agent's file, its installation, the document"
    stack.as_declared()
    stack.healthy()
    plugged = stack.plug_in()
    stack.all_reach_all(plugged)
    stack.noop()
    for rows in plugged.values():
        for host, name, _ in rows:
            stack.lab.remove_container(host, name)
    stack.destroy().ok()
    assert {host: stack.logins(host) for host in stack.hosts} == {host: n + 1 for host, n in logins.items()}
    stack.clean()


@pytest.mark.parametrize("plugin", ["real", "stand-in"], indirect=True)
def test_lab(stack, other_home):
    """On both plugins; what one of them left is a no-op to the other, which can change and destroy it."""
    whole_life(stack)
    stack.up().ok()
    stack.environment["PULUMI_HOME"] = str(other_home)
    stack.noop()
    stack.segments["app"]["tunnels"]["mesh"]["vni"] = 4242
    logins = {host: stack.logins(host) for host in stack.hosts}
    stack.up().ok()
    assert {host: stack.logins(host) for host in stack.hosts} == {host: n + 1 for host, n in logins.items()}
    stack.as_declared()
    stack.destroy().ok()
    stack.clean()


@pytest.mark.lab(hosts=2)
@pytest.mark.stack("doc-000-unicast")
def test_doc_000_unicast(stack):
    whole_life(stack)


@pytest.mark.stack("doc-000-multicast")
def test_doc_000_multicast(stack):
    whole_life(stack)


@pytest.mark.lab(hosts=5)
@pytest.mark.stack("doc-001-mesh")
def test_doc_001_mesh(stack):
    whole_life(stack)


@pytest.mark.lab(hosts=2)
@pytest.mark.stack("doc-002-v4")
def test_doc_002_over_ipv4(stack):
    whole_life(stack)


@pytest.mark.lab(hosts=2, ipv6=True)
@pytest.mark.stack("doc-002-v6")
def test_doc_002_over_ipv6(stack):
    whole_life(stack)


@pytest.mark.lab(hosts=2)
@pytest.mark.stack("doc-004-nat")
def test_doc_004_nat(stack):
    whole_life(stack)


@pytest.mark.lab(hosts=2)
@pytest.mark.stack("doc-004-router")
def test_doc_004_router(stack):
    whole_life(stack)
