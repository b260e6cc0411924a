"""Secret values reach the hosts by a command of their own, and stand nowhere else."""

from __future__ import annotations

import importlib
import json
import sys

import pulumi
import pytest
from pulumi import Output

from overlay_agent import document
from overlay_agent.kinds import KINDS
from overlay_components import Bridge, Host, Overlay, VxlanTunnel, config
from tests.components.world import COMMAND, KEY, MACHINE, STACK_ID, World, run

COOKIE, OTHER = "c00c1ec00c1ec00c", "0ddc00c1"
HMAC_KEY = "ab" * 32


@pytest.fixture(autouse=True)
def _sealed(monkeypatch):
    agent = importlib.import_module("tests.sealed.agent")
    monkeypatch.setitem(sys.modules, "overlay_agent.kinds.sealed", agent)
    program = importlib.import_module("tests.sealed.program")
    monkeypatch.setitem(config.TUNNELS, "vxlan", program.KIND)
    assert "vxlan" in KINDS
    monkeypatch.setitem(vars(KINDS)["_loaded"], "vxlan", agent.KIND)


def world(**more):
    return World(made={"prod-secrets-key": {"stdout": HMAC_KEY}}, **more)


def declare(cookie=COOKIE, address="192.0.2.11"):
    """Three hosts, of which two are joined by a tunnel with a cookie."""
    with Overlay("prod") as overlay:
        hosts = [
            Host(name, address=address if name == "a" else f"192.0.2.{number}", host_key=KEY, user="root")
            for number, name in enumerate("abc", 11)
        ]
        app = Bridge("app", hosts=hosts)
        VxlanTunnel("app-core", bridge=app, vni=42, endpoints=["a", "b"], cookie=cookie)
        VxlanTunnel("app-rest", bridge=app, vni=43, endpoints=["b", "c"], ifname="vx-rest")
    return overlay


def sent(made, host):
    """What the command that brings the values of a host gets."""
    command = made.resources[f"prod-{host}-secrets"]
    assert command.type == COMMAND
    assert command.inputs["create"] == "/usr/local/sbin/overlay-agent secrets >/dev/null"
    assert command.secrets >= {"stdin"}
    return json.loads(command.inputs["stdin"])


def hidden(made, *values):
    """The values stand in no input that is not secret."""
    for resource in made.resources.values():
        for key, value in resource.inputs.items():
            if key not in resource.secrets:
                text = json.dumps(value, default=lambda one: "" if type(one).__name__ == "RpcSecret" else vars(one))
                assert not [v for v in values if v in text], (resource.name, key, text)


def reference(made, host="a"):
    return made.document(f"prod-{host}")["devices"]["vx-app"]["cookie"]


def test_a_document_has_a_reference_and_the_value_comes_before_it():
    made = run(declare, world())
    assert reference(made) == reference(made, "b")
    assert reference(made).startswith("cookie-app-core:")
    assert sent(made, "a") == {
        "schema": 1,
        "owner": {"project": "shop", "stack": "dev.prod", "id": STACK_ID},
        "host": "a",
        "generation": 1,
        "machine": MACHINE,
        "secrets": {reference(made): COOKIE},
    }
    assert made.resources["prod-a-secrets"].depends_on >= {"prod-a-install"}
    assert made.resources["prod-a-document"].depends_on >= {"prod-a-secrets"}
    assert "stdin" not in made.resources["prod-a-document"].secrets, "the whole diff would read [secret]"
    document.load(made.resources["prod-a-document"].inputs["stdin"])
    hidden(made, COOKIE, HMAC_KEY)


def test_hosts_wait_for_the_key_and_not_for_each_other():
    made = run(declare, world())
    assert "prod-secrets-key" in made.resources["prod-a-document"].depends_on
    for name in made.of_type(COMMAND):
        hosts = {one[:6] for one in made.resources[name].depends_on} & {"prod-a", "prod-b", "prod-c"}
        assert hosts == {name[:6]}


def test_only_hosts_that_need_values_get_the_command():
    made = run(declare, world())
    assert {name for name in made.of_type(COMMAND) if name.endswith("-secrets")} == {"prod-a-secrets", "prod-b-secrets"}


def test_without_secrets_there_is_no_key():
    made = run(lambda: declare(cookie=None), world())
    assert not [name for name in made.resources if "secrets" in name]
    assert "cookie" not in made.document("prod-a")["devices"]["vx-app"]


def test_the_key_is_kept_secret_and_never_drawn_again():
    key = run(declare, world()).resources["prod-secrets-key"]
    assert key.inputs["create"] == "od -An -v -N32 -tx1 /dev/urandom | tr -d ' \\n'"
    assert key.ignore_changes == ["*"]
    assert key.secret_outputs == ["stdout"]


def test_the_components_input_is_secret():
    made = run(declare, world()).resources["prod-app-core"]
    assert made.inputs["vni"] == 42
    assert "cookie" in made.secrets
    assert "cookie" not in run(lambda: declare(None), world()).resources["prod-app-core"].inputs


def test_another_value_is_another_reference():
    first, second = run(declare, world()), run(lambda: declare(OTHER), world())
    assert reference(first) != reference(second)
    assert reference(first).partition(":")[0] == reference(second).partition(":")[0]
    assert reference(run(declare, world())) == reference(first)
    upper = run(lambda: declare(COOKIE.upper()), world())
    assert reference(upper) == reference(first)


def test_a_preview_before_the_key_is_made():
    made = run(declare, World(preview=True, made={"prod-a-install": {"stdout": json.dumps({"machine": MACHINE})}}))
    assert reference(made) == "cookie-app-core:<secret>"
    assert "stdin" not in made.resources["prod-a-document"].secrets
    hidden(made, COOKIE)


@pytest.mark.parametrize("make", [Output.secret, Output.from_input], ids=["secret", "plain"])
def test_a_value_may_be_an_output(make):
    made = run(lambda: declare(make(COOKIE)), world())
    assert list(sent(made, "a")["secrets"].values()) == [COOKIE]
    assert "stdin" not in made.resources["prod-a-document"].secrets
    assert "cookie" in made.resources["prod-app-core"].secrets
    hidden(made, COOKIE)


def test_a_value_that_is_yet_to_be_made():
    """In a preview the document stays readable around it."""

    def program():
        from pulumi_command import local

        declare(Output.secret(local.Command("cookie", create="x").stdout))

    made = run(program, world(preview=True))
    assert reference(made) == "cookie-app-core:<secret>"
    assert made.document("prod-a")["devices"]["vx-app"]["vni"] == 42
    assert sent(made, "a")["secrets"] == {"cookie-app-core:<secret>": "<secret>"}


def test_another_input_that_is_secret_stays_so():
    made = run(lambda: declare(address=Output.secret("192.0.2.11")), world())
    assert "stdin" in made.resources["prod-b-document"].secrets


def test_what_others_get_of_the_plan_has_no_value():
    seen = []

    def program():
        declare().plan.apply(seen.append)

    run(program, world())
    assert COOKIE not in repr(seen) + repr(vars(seen[0]))
    assert "cookie-app-core:" in repr(seen[0].hosts())


def test_from_a_stack_file():
    raw = {
        "overlay:hosts": {name: {"address": f"192.0.2.{ord(name)}", "hostKey": KEY, "user": "root"} for name in "ab"},
        "overlay:segments": {"app": {"tunnels": {"core": {"kind": "vxlan", "vni": 42, "cookie": COOKIE}}}},
    }

    def program():
        pulumi.runtime.set_all_config({key: json.dumps(value) for key, value in raw.items()})
        Overlay.from_stack("prod")

    made = run(program, world())
    assert sent(made, "a")["secrets"] == {reference(made): COOKIE}
    hidden(made, COOKIE)


@pytest.mark.parametrize(
    ("cookie", "sentence"),
    [
        ("c00c1ec00c", "5 bytes; give 4 or 8 bytes as hex"),
        ("c00c1ec0c", "9 digits; give 4 or 8 bytes as hex"),
        ("secretly", "<secret> is not hexadecimal; give 4 or 8 bytes as hex"),
        ("", "0 bytes; give 4 or 8 bytes as hex"),
        (12345678, "<secret> is not a text; put it in quotes"),
        (["c00c1ec0"], "<secret> is not a text; give 4 or 8 bytes as hex"),
        ({"value": "c00c1ec0"}, "<secret> is not a text; give 4 or 8 bytes as hex"),
    ],
)
def test_what_is_wrong_is_told_without_the_value(cookie, sentence):
    with pytest.raises(pulumi.RunError) as caught:
        run(lambda: declare(cookie), world())
    assert str(caught.value) == f"segments.app.tunnels.core.cookie: {sentence}"


def test_two_names_of_one_value_are_one_reference():
    def program():
        with Overlay("prod"):
            hosts = [Host(n, address=f"192.0.2.{i}", host_key=KEY, user="root") for i, n in enumerate("ab", 11)]
            for number, name in enumerate(("app", "lab")):
                bridge = Bridge(name, hosts=hosts)
                VxlanTunnel(f"{name}-core", bridge=bridge, vni=42 + number, cookie=COOKIE)

    made = run(program, world())
    assert made.document("prod-a")["devices"]["vx-lab"]["cookie"] == reference(made)
    assert sent(made, "a")["secrets"] == {reference(made): COOKIE}
