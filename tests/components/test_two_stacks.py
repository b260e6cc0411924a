"""A stack reads another's outputs: examples/two-stacks as it stands."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pulumi
import pytest

from tests.components.world import KEY, World, run

PROGRAM = Path(__file__).parents[2] / "examples/two-stacks/__main__.py"
OTHER = "organization/overlay-two-stacks/west"


HOSTS = {"h1": "198.18.0.11", "h2": "198.18.0.12"}


@pytest.fixture(autouse=True)
def _east(monkeypatch, operator_home):
    known = operator_home / ".ssh/known_hosts"
    known.write_text("".join(f"{address} {KEY}\n" for address in HOSTS.values()))
    monkeypatch.setattr(pulumi, "get_stack", lambda: "east")
    yield
    known.unlink()


def declared(world, other):
    values = {"shop:hosts": json.dumps(HOSTS), **({"shop:other": other} if other else {})}

    def program():
        pulumi.runtime.set_all_config(values)
        runpy.run_path(str(PROGRAM))

    return run(program, world)


def test_alone():
    world = declared(World(), None)
    assert set(world.document("site-h1")["devices"]) == {"br-app", "vx-app"}


@pytest.mark.parametrize("preview", [False, True])
def test_the_others_gateway_is_read_from_its_outputs(preview):
    outputs = {"outputs": {"gateway": "198.18.0.13"}, "secretOutputNames": []}
    world = declared(World(preview=preview, made={OTHER: outputs}), OTHER)
    first, second = (world.document(f"site-{host}")["devices"] for host in ("h1", "h2"))
    [name] = set(first) - {"br-app", "vx-app"}
    assert first[name]["peers"] == {"there": "198.18.0.13"}
    assert set(second) == {"br-app", "vx-app"}, "the others know nothing of it"
    assert not any(r.type.startswith("command:") and "there" in name for name, r in world.resources.items())
