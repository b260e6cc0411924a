"""`evpn` as an argument of Overlay: in the documents, and its password in none of them."""

from __future__ import annotations

import json

import pytest
from pulumi import Output
from pulumi_command import local

from overlay_components import Bridge, Host, Overlay, VxlanTunnel
from tests.components.world import KEY, World, run

PASSWORD = "p4ssw0rd"


def program():
    evpn = {"route_reflectors": ["a", "b"], "range": "192.0.2.0/24", "password": Output.secret(PASSWORD)}
    with Overlay("prod", evpn=evpn):
        hosts = [Host(n, address=f"192.0.2.{i}", host_key=KEY, user="root") for i, n in enumerate("abc", 11)]
        VxlanTunnel("app-fabric", bridge=Bridge("app", hosts=hosts), vni=42, topology="evpn", route_target="65000:7")


def test_a_program_says_the_same_as_a_stack_file():
    world = run(program)
    services = {host: world.document(f"prod-{host}")["services"]["evpn"] for host in "abc"}
    assert services["c"]["neighbors"] == {"a": "192.0.2.11", "b": "192.0.2.12"}
    assert services["c"]["vnis"] == {"42": {"import": {"65000:7": {}}, "export": {"65000:7": {}}}}
    assert services["a"]["ranges"] == {"192.0.2.0/24": {}}
    assert world.document("prod-c")["devices"]["vx-app"]["learning"] is False
    texts = {name: json.dumps(row.inputs, default=str) for name, row in world.resources.items()}
    holders = [name for name, text in texts.items() if PASSWORD.encode().hex() in text]
    assert sorted(holders) == ["prod-a-secrets", "prod-b-secrets", "prod-c-secrets"]
    assert {"stdin"} <= world.resources["prod-a-secrets"].secrets
    assert not [name for name, text in texts.items() if PASSWORD in text]
    references = {service["password"] for service in services.values()}
    assert len(references) == 1
    assert references.pop().startswith("bgp-password:")


@pytest.mark.parametrize("new", ["b", "c"])
def test_with_an_address_that_is_not_known_yet(new):
    def with_a_new_host():
        with Overlay("prod", evpn={"route_reflectors": ["a", "b"], "range": "192.0.2.0/24"}):
            late = local.Command("server", create="make").stdout
            addresses = {n: f"192.0.2.{i}" for i, n in enumerate("abc", 11)} | {new: late}
            hosts = [Host(n, address=addresses[n], host_key=KEY, user="root") for n in "abc"]
            VxlanTunnel("app-fabric", bridge=Bridge("app", hosts=hosts), vni=42, topology="evpn")

    world = run(with_a_new_host, World(preview=True))
    services = {host: world.document(f"prod-{host}")["services"]["evpn"] for host in "abc"}
    assert services[new]["routerId"] == f"<address of {new}>"
    assert f"<address of {new}>" in services["a"].get("neighbors", {}).values() or new == "c"
    made = run(with_a_new_host, World(made={"server": {"stdout": "192.0.2.77"}}))
    assert made.document(f"prod-{new}")["services"]["evpn"]["local"] == "192.0.2.77"
