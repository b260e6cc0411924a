"""What of Pulumi's progress the demo shows: its lines differ with how long a step takes."""

import importlib.util
from pathlib import Path

import pytest

DEMO = Path(__file__).parent.parent.parent / "tools/demo.py"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (" +  command:remote:Command demo-h1-install created (0.55s) ", True),
        (" +  command:remote:Command demo-h1-install created (1s) ", True),  # of a second and more without decimals
        (" ~  command:remote:Command demo-h1-document updated (12s) ", True),
        (" +  command:remote:Command demo-h1-install creating (0s) ", False),
        (" ~  command:remote:Command demo-h1-document updating (3s) ", False),
        (" +  command:remote:Command demo-h1-document creating (0s) vx-app: created (vxlan, mtu 1450)", True),
        (" +  command:remote:Command demo-h1-document created (0.62s) vx-app: created (vxlan, mtu 1450)", False),
        ("@ updating.....", False),
        ("", False),
        (" +  overlay:index:Host demo-h1 created (0.01s) ", False),
        (" +  pulumi:pulumi:Stack overlay-demo creating (0s) ", False),
        ("    error: h1: no route", True),
    ],
)
def test_each_resource_once(demo, line, shown):
    assert demo.readable_progress()(line) is shown
