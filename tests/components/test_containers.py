"""What a program knows of its containers: locked addresses."""

from __future__ import annotations

import json

import pulumi
import pytest

from overlay_components import Bridge, Host, Overlay, lock
from tests.components.world import KEY, run

HOST = {"address": "192.0.2.11", "hostKey": KEY, "user": "root"}
SEGMENT = {"subnets": ["10.10.0.0/24"], "containers": {"web": {"host": "a"}}}


def address(**options):
    seen = []

    def program():
        with Overlay("prod", **options) as overlay:
            Host("a", address="192.0.2.11", host_key=KEY, user="root")
            Bridge("app", **SEGMENT)
        overlay.plan.apply(lambda plan: seen.append(plan.containers["app"]["web"]["address"]))

    run(program)
    return seen[0]


def test_a_program_hands_its_lock_over(tmp_path):
    assert address(lock={"app": {"web": "10.10.0.7"}}) == "10.10.0.7/24"
    path = lock.path_of(tmp_path, "prod")
    path.write_text(lock.dump({"app": {"web": "10.10.0.8"}}))
    assert address(lock=path) == address(lock=str(path)) == "10.10.0.8/24"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "segments.app.containers.web.address: missing and not locked; run overlay lock, or give an address in"),
        ({"app": {"web": "x"}}, "lock.app.web: 'x' is not an IP address; delete it there, then run overlay lock"),
        ("nowhere.json", "lock: 'nowhere.json' is no file; name a lock file, or leave it out"),
    ],
)
def test_a_lock_that_is_wrong(given, said):
    with pytest.raises(pulumi.RunError, match=said):
        address(lock=given)


@pytest.mark.parametrize("folder", ["stacks", "."])
def test_the_stacks_own_lock_file_is_found(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stacks").mkdir()
    settings = "stackConfigDir: stacks\n" if folder == "stacks" else ""
    (tmp_path / "Pulumi.yaml").write_text(f"name: shop\nruntime: python\n{settings}")
    kept = lock.path_of(tmp_path / folder, "dev")
    seen = []

    def program():
        values = {"overlay:hosts": json.dumps({"a": HOST}), "overlay:segments": json.dumps({"app": SEGMENT})}
        monkeypatch.setattr(pulumi.runtime.config, "get_config_env", lambda: values)
        overlay = Overlay.from_stack()
        overlay.plan.apply(lambda plan: seen.append(plan.containers["app"]["web"]["address"]))

    with pytest.raises(pulumi.RunError, match="run overlay lock"):
        run(program)
    kept.write_text(lock.dump({"app": {"web": "10.10.0.9"}}))
    run(program)
    assert seen == ["10.10.0.9/24"]


@pytest.mark.parametrize("dhcp", [None, {}, {"masquerade": True}], ids=["nothing below", "empty", "keys"])
def test_the_stack_file_declares_a_router(monkeypatch, tmp_path, dhcp):
    monkeypatch.chdir(tmp_path)

    def program():
        segments = {"app": {"subnets": ["10.10.0.0/24"], "dhcp": dhcp}, "db": {}}
        values = {"overlay:hosts": json.dumps({"a": HOST}), "overlay:segments": json.dumps(segments)}
        monkeypatch.setattr(pulumi.runtime.config, "get_config_env", lambda: values)
        Overlay.from_stack()

    world = run(program)
    assert world.of_type("overlay:index:DhcpRouter") == ["dev-app-dhcp"]
    assert world.resources["dev-app-dhcp"].inputs == {"segment": "app", **(dhcp or {})}
    assert "dhcp-app" in world.document("dev-a")["services"]
