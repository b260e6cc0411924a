"""`rollout`: what is registered when, and what becomes of those after a host that failed."""

from __future__ import annotations

import re

import pulumi
import pytest

from overlay_components import Bridge, Host, Overlay, VxlanTunnel
from tests.components.world import KEY, World, run

HOSTS = ["h1", "h2", "h3", "h4", "h5"]


def program(rollout, encryption=None, live=None):
    def declare():
        with Overlay("dev", rollout=rollout, encryption=encryption, live=live):
            hosts = [Host(name, address=f"192.0.2.1{name[1:]}", host_key=KEY, user="root") for name in HOSTS]
            app = Bridge("app", hosts=hosts)
            VxlanTunnel("app-mesh", bridge=app, vni=42)

    return declare


def documents(world):
    """The hosts in the order in which their documents were registered."""
    return [name[4:6] for name in world.resources if re.fullmatch(r"dev-h\d-document", name)]


def between(world):
    """By host, the other hosts' documents that its own depends on."""
    rows = {host: world.resources[f"dev-{host}-document"].depends_on for host in documents(world)}
    return {host: {name[4:6] for name in rows[host] if name.endswith("-document")} for host in rows}


CANARY = {"canary": "h3", "batch": "40%", "max_unavailable": 2}


def test_one_after_the_other_and_no_dependency_in_the_state():
    world = run(program(CANARY))
    made = documents(world)
    assert (made[0], {*made[1:3]}, {*made[3:]}) == ("h3", {"h1", "h2"}, {"h4", "h5"})
    assert between(world) == {host: set() for host in HOSTS}
    assert all(world.document(f"dev-{host}")["probe"] is True for host in HOSTS)
    for host in HOSTS:
        assert world.resources[f"dev-{host}-document"].depends_on >= {f"dev-{host}-install"}


def test_all_defaults():
    assert documents(run(program({}))) == HOSTS
    assert "probe" not in run(program({"probe": False})).document("dev-h1")
    assert "probe" not in run(program(None)).document("dev-h1")


def test_a_preview_shows_all_of_them():
    world = run(program(CANARY), World(preview=True))
    assert sorted(documents(world)) == HOSTS
    assert between(world) == {host: set() for host in HOSTS}


@pytest.mark.parametrize(
    ("rollout", "failing", "skipped", "told"),
    [
        (CANARY, "h3", "h1 h2 h4 h5", "h3 failed; h1, h2, h4 and h5 were not changed"),
        (CANARY, "h2", "h4 h5", "h2 failed; h4 and h5 were not changed"),
        (CANARY, "h1 h2", "h4 h5", "h1 and h2 failed; h4 and h5 were not changed"),
        (CANARY, "h5", "", "h5 failed"),
        ({}, "h4", "h5", "h4 failed; h5 was not changed"),
        ({"batch": 4}, "h2", "h3 h4 h5", "h2 failed; h3, h4 and h5 were not changed"),
        # The other turn goes on.
        ({"batch": 4, "max_unavailable": 2}, "h2", "h4", "h2 failed; h4 was not changed"),
    ],
)
def test_after_a_failure_nobody_else(rollout, failing, skipped, told):
    world = World(failing={f"dev-{host}-document" for host in failing.split()})
    with pytest.raises(pulumi.RunError) as caught:
        run(program(rollout), world)
    assert str(caught.value) == f"rollout: stopped, {told}; mend what is said of it, and run it again"
    # The engine starts nothing that depends on what failed.
    assert {host for host, others in between(world).items() if others} == {*skipped.split()}
    assert world.skipped == {f"dev-{host}-document" for host in skipped.split()}


def test_a_failed_key_of_wireguard_stops_it_too():
    """Identity, keys, documents: the document needs the key, and the others' documents too."""
    world = run(program(CANARY, encryption="wireguard"), World(made={
        f"dev-{host}-identity": {"stdout": f'{{"publicKey": "{"A" * 42}{host[1:]}="}}'} for host in HOSTS
    }))  # fmt: skip
    at = list(world.resources).index
    assert max(at(f"dev-{host}-identity") for host in HOSTS) < at("dev-h3-document")
    assert documents(world)[0] == "h3"


def test_what_is_wrong_is_told_with_the_rest():
    with pytest.raises(pulumi.RunError) as caught:
        run(program({"canary": "h9", "batch": "20%"}))
    assert str(caught.value) == "rollout.canary: unknown host 'h9'; known are h1, h2, h3 and 2 more"


def late(kind="vxlan", canary="a"):
    """A host whose address another resource makes."""
    with Overlay("dev", rollout={"canary": canary}):
        a = Host("a", address="192.0.2.11", host_key=KEY, user="root")
        b = Host("b", address=pulumi.Output.from_input("192.0.2.12"), host_key=KEY, user="root")
        app = Bridge("app", hosts=[a, b])
        VxlanTunnel("app-mesh", bridge=app, vni=42 if kind == "vxlan" else 0)


def test_with_an_address_that_comes_later():
    assert [name for name in run(late).resources if name.endswith("-document")] == ["dev-a-document", "dev-b-document"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": ""}, "segments.app.tunnels.mesh.vni: 0 is not"),
        ({"canary": "c"}, "rollout.canary: unknown host 'c'"),
    ],
)
def test_what_is_wrong_with_an_address_that_comes_later(wrong, said):
    with pytest.raises(pulumi.RunError) as caught:
        run(lambda: late(**wrong))
    assert said in str(caught.value)
