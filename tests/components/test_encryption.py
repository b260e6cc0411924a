"""Keys before documents: what is registered for an encrypted segment, and what a preview shows of keys to be made."""

from __future__ import annotations

import base64
import hashlib
import json

import pulumi
import pytest
from pulumi import Output

from overlay_components import Bridge, Host, Overlay, VxlanTunnel
from tests.components.world import KEY, World, run

SHARED = base64.b64encode(bytes(range(32))).decode()


def key_of(host):
    return base64.b64encode(hashlib.sha256(host.encode()).digest()).decode()


class Keys(World):
    """The hosts tell their keys."""

    def new_resource(self, args):
        id_, state = super().new_resource(args)
        if args.name.endswith("-identity") and not self.preview:
            state["stdout"] = json.dumps({"publicKey": key_of(args.name.split("-")[1])})
        return id_, state


def three(encryption=None, **more):
    """Segment app of a and b is encrypted, the other one of b and c is not."""
    with Overlay("prod", encryption=encryption) as overlay:
        a, b, c = (
            Host(n, address=f"192.0.2.{i}", host_key=KEY, user="root", **(more if n == "b" else {}))
            for i, n in enumerate("abc", 11)
        )
        app = Bridge("app", hosts=[a, b], encryption="wireguard")
        VxlanTunnel("app-mesh", bridge=app, vni=42)
        other = Bridge("other", hosts=[b, c])
        VxlanTunnel("other-mesh", bridge=other, vni=43)
    return overlay


def wireguard(world, host):
    return world.document(f"prod-{host}")["devices"]["wg-dev.prod"]


def test_keys_come_before_the_documents_that_name_them():
    world = run(lambda: three(wireguard={"key_generation": 3}), Keys())
    keys = ["prod-a-identity", "prod-b-identity"]
    assert sorted(name for name in world.resources if name.endswith("-identity")) == keys
    asked = json.loads(world.resources["prod-b-identity"].inputs["stdin"])
    assert (asked["host"], asked["generation"], asked["owner"]["id"]) == ("b", 3, "feedfeedfeedfeed")
    assert world.resources["prod-b-identity"].inputs["create"] == "/usr/local/sbin/overlay-agent identity"
    assert "prod-b-install" in world.resources["prod-b-identity"].depends_on
    for host in "ab":
        assert world.resources[f"prod-{host}-document"].depends_on >= {"prod-a-identity", "prod-b-identity"}
    assert not {name for name in world.resources["prod-c-document"].depends_on if name.endswith("-identity")}
    assert wireguard(world, "a")["publicKey"] == key_of("a")
    assert wireguard(world, "a")["peers"]["b"]["publicKey"] == key_of("b")
    assert "wg-dev.prod" not in world.document("prod-c")["devices"]
    assert world.resources["prod-b"].inputs["wireguard"] == {"keyGeneration": 3}
    assert world.resources["prod-app"].inputs["encryption"] == "wireguard"


def test_the_outputs_have_the_public_keys():
    found = {}

    def program():
        overlay = three()
        found["keys"] = overlay.public_keys
        return Output.all(overlay.public_keys, overlay.plan).apply(lambda both: found.update(told=both))

    run(program, Keys())
    keys, plan = found["told"]
    assert keys == {host: key_of(host) for host in "ab"}
    assert f"publicKey {key_of('a')}" in plan.hosts()["a"]["devices"]["wg-dev.prod"]


def test_a_preview_shows_a_key_to_be_made_as_a_word():
    world = run(three, Keys(preview=True))
    assert wireguard(world, "a")["publicKey"] == "<public key of a>"
    assert wireguard(world, "a")["peers"]["b"]["publicKey"] == "<public key of b>"


def test_with_an_address_that_is_not_known_yet():
    def program():
        with Overlay("prod", encryption="wireguard"):
            vm = pulumi.CustomResource("cloud:index:Machine", "vm", {"ip": None})
            address = Output.from_input(vm.id).apply(lambda _: "192.0.2.12")
            hosts = [Host("a", address="192.0.2.11", host_key=KEY), Host("b", address=address, host_key=KEY)]
            VxlanTunnel("app-mesh", bridge=Bridge("app", hosts=hosts), vni=42)

    world = run(program, Keys(preview=True))
    assert wireguard(world, "a")["peers"]["b"]["publicKey"] == "<public key of b>"
    world = run(program, Keys())
    assert wireguard(world, "a")["peers"]["b"]["endpoint"] == "192.0.2.12:51820"
    assert wireguard(world, "a")["peers"]["b"]["publicKey"] == key_of("b")


def test_a_shared_key_is_a_secret():
    world = run(lambda: three({"preshared_key": SHARED, "kind": "none"}), Keys())
    reference = wireguard(world, "a")["peers"]["b"]["presharedKey"]
    assert reference.startswith("presharedKey:")
    assert reference == wireguard(world, "b")["peers"]["a"]["presharedKey"]
    assert sorted(name for name in world.resources if name.endswith("-secrets")) == ["prod-a-secrets", "prod-b-secrets"]
    assert "stdin" in world.resources["prod-a-secrets"].secrets
    for name, row in world.resources.items():
        if name not in ("prod-a-secrets", "prod-b-secrets"):
            assert SHARED not in json.dumps(row.inputs, default=str)
            assert base64.b64decode(SHARED).hex() not in json.dumps(row.inputs, default=str)


def test_without_encryption_nothing_is_asked():
    def program():
        with Overlay("prod") as overlay:
            hosts = [Host(n, address=f"192.0.2.{i}", host_key=KEY, user="root") for i, n in enumerate("ab", 11)]
            VxlanTunnel("app-mesh", bridge=Bridge("app", hosts=hosts), vni=42)
        assert overlay.public_keys is None

    world = run(program)
    assert not [name for name in world.resources if name.endswith("-identity")]


def test_what_is_wrong_is_told():
    with pytest.raises(pulumi.RunError) as caught:
        run(lambda: three("tls"))
    assert str(caught.value) == "encryption: 'tls' is not one of none, wireguard"
