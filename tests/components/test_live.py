"""`live`: who is asked what before anything is registered, and what becomes of the answers."""

from __future__ import annotations

import json
import re

import pulumi
import pytest
from pulumi import Output

from overlay_components import Bridge, Host, Overlay, VxlanTunnel, repair, state
from overlay_components.errors import ConfigErrors
from overlay_components.live import Answer
from tests.components.world import KEY, run

DRIFT = ["vx-app: mtu want 1450, is 1400", "vx-app: lacks peer b 192.0.2.12"]
REPAIR = re.compile(
    r"\$\(test \$\(id -u\) = 0 \|\| echo sudo -n\) /usr/local/sbin/overlay-agent apply >/dev/null"
    r"  # repair \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
)


@pytest.fixture
def hosts(monkeypatch):
    """What is asked, the hosts' answers, the documents in the state, and what is said to the user."""
    monkeypatch.delenv(repair.VARIABLE, raising=False)
    found = type("Hosts", (), {"asked": {}, "answers": {}, "applied": {}, "said": [], "stack": None})

    def applied(folder, stack, label):
        found.stack = (stack, label)
        if isinstance(found.applied, Exception):
            raise found.applied
        return found.applied

    def ask(fleet, requests):
        assert fleet.hosts.keys() == requests.keys()
        found.asked = {name: (request.words, json.loads(request.input)) for name, request in requests.items()}
        return {name: found.answers.get(name, Answer(name, 0, {"drift": []})) for name in requests}

    def said(text, resource=None):
        if "overlay:live:" in text or isinstance(resource, Host):  # not the plan's own warnings
            found.said.append(text)

    monkeypatch.setattr(state, "applied", applied)
    monkeypatch.setattr(repair.Fleet, "ask", ask)
    for level in ("info", "warn"):
        monkeypatch.setattr(pulumi.log, level, said)
    return found


def program(live=True, rollout=None, **more):
    def declare():
        with Overlay("dev", live=live, rollout=rollout):
            a, b = (
                Host(name, address=address, host_key=KEY, user="root")
                for name, address in {"a": "192.0.2.11", "b": "192.0.2.12", **more}.items()
            )
            app = Bridge("app", hosts=[a, b])
            VxlanTunnel("app-mesh", bridge=app, vni=42)

    return declare


def updates(world):
    """By host: its document's `update`, and what of it is ignored."""
    rows = {name: world.resources[f"dev-{name}-document"] for name in "ab"}
    return {name: (row.inputs.get("update"), row.ignore_changes) for name, row in rows.items()}


KEPT = (None, ["update"])


def test_a_host_that_drifted_is_an_update_and_the_others_keep_what_they_have(hosts):
    hosts.applied = {"a": {"host": "a"}, "b": {"host": "b"}, "gone": {}}
    hosts.answers["a"] = Answer("a", 2, {"drift": DRIFT})
    hosts.answers["b"] = Answer("b", problem="b: 192.0.2.12 is not reached: no route to host")
    found = updates(run(program()))
    assert hosts.stack == ("dev", "shop/dev")
    assert hosts.asked == {"a": ("check -", {"host": "a"}), "b": ("check -", {"host": "b"})}
    assert hosts.said == [
        "overlay:live: b: 192.0.2.12 is not reached: no route to host; not compared, and not repaired in this run",
        "a has drifted; `pulumi up` repairs it:\na vx-app: mtu want 1450, is 1400\na vx-app: lacks peer b 192.0.2.12",
    ]
    text, ignored = found["a"]
    assert REPAIR.fullmatch(text), text
    assert ignored == []
    assert found["b"] == KEPT


def test_repairs_are_rolled_out_too(hosts):
    hosts.applied = {"a": {"host": "a"}, "b": {"host": "b"}}
    hosts.answers = {name: Answer(name, 2, {"drift": DRIFT}) for name in "ab"}
    world = run(program(rollout={"canary": "b"}))
    assert [name for name in world.resources if name.endswith("-document")] == ["dev-b-document", "dev-a-document"]
    assert all(REPAIR.fullmatch(text) for text, _ in updates(world).values())


def test_an_agent_that_refuses(hosts):
    hosts.applied = {"a": {"host": "a"}}
    hosts.answers["a"] = Answer("a", 1, None, ("s.json: not readable",))
    assert updates(run(program())) == {"a": KEPT, "b": KEPT}
    assert hosts.said == ["overlay:live: a: s.json: not readable; not compared, and not repaired in this run"]


def test_whoever_is_new_or_not_known_yet_is_not_asked(hosts):
    hosts.applied = {"b": {"host": "b"}}
    assert updates(run(program(b=Output.from_input("192.0.2.12")))) == {"a": KEPT, "b": KEPT}
    assert hosts.asked == {}


def test_the_state_cannot_be_read(hosts):
    hosts.applied = ConfigErrors(["pulumi: is not on PATH; what was applied stands in its state"])
    assert updates(run(program())) == {"a": KEPT, "b": KEPT}
    assert hosts.said == [
        "overlay:live: pulumi: is not on PATH; what was applied stands in its state\noverlay:live: no host was asked"
    ]


@pytest.mark.parametrize(
    ("said", "variable", "asked"),
    [(None, "", False), (True, "", True), (True, "0", False), (False, "1", True), (None, "1", True)],
)
def test_the_variable_has_the_last_word(hosts, monkeypatch, said, variable, asked):
    monkeypatch.setenv(repair.VARIABLE, variable)
    run(program(said))
    assert (hosts.stack is not None) is asked


def test_a_variable_that_says_neither(monkeypatch):
    monkeypatch.setenv(repair.VARIABLE, "yes")
    with pytest.raises(pulumi.RunError, match="OVERLAY_LIVE: 'yes' is neither 1 nor 0; unset it, or write one of them"):
        run(program())


def test_a_stack_of_an_organization_is_called_by_its_whole_name(hosts, monkeypatch):
    monkeypatch.setattr(pulumi, "get_organization", lambda: "acme")
    run(program())
    assert hosts.stack == ("acme/dev", "shop/dev")
