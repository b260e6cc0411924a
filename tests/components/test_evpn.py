"""`evpn` as an argument of Overlay: in the documents, and its password in none of them."""

from __future__ import annotations

import json

from pulumi import Output

from overlay_components import Bridge, Host, Overlay, VxlanTunnel
from tests.components.world import KEY, run

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
