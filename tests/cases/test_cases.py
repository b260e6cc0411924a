"""Each file here is one case: a stack, and the exact errors or the devices that it makes.

`stack` is what stands below `overlay:` in a stack file. `errors` are all of them, word for word and in order; or
`wanted` is what is planned, devices' MAC addresses left out, and `warnings`. `lock`, where there is one, has the
addresses that were chosen. A new case is a new file.
"""

import base64
import hashlib
from pathlib import Path

import pytest
import yaml

from overlay_agent import document
from overlay_agent.document import Owner
from overlay_components.config import load_config
from overlay_components.encryption import with_keys
from overlay_components.errors import ConfigErrors
from overlay_components.plan import make_plan
from overlay_components.secrets import Secrets

OWNER = Owner("overlay", "cases", "0")
FILES = sorted(Path(__file__).parent.glob("*.yaml"))
ROW = ("host", "runtime", "bridge", "network", "address", "gateway", "mtu")


def planned(stack, lock=None):
    config = load_config(stack)
    plan = make_plan(config, OWNER, lock, Secrets("key of the cases"))
    keys = {host: base64.b64encode(hashlib.sha256(host.encode()).digest()).decode() for host in plan.documents}
    for raw in plan.documents.values():
        document.load(document.dump(with_keys(raw, keys)))  # the agent takes what the planner makes
    out = {"devices": {host: without_macs(raw["devices"]) for host, raw in plan.documents.items()}}
    if any(plan.containers.values()):
        out["containers"] = {
            segment: {name: shown(row) for name, row in rows.items()} for segment, rows in plan.containers.items()
        }
    if any("services" in raw for raw in plan.documents.values()):
        out["services"] = {host: raw["services"] for host, raw in plan.documents.items() if "services" in raw}
    return {**out, "rules": plan.underlay_rules}, list(plan.warnings)


def shown(row):
    return {key: row[key] for key in ROW if key in row and (key, row[key]) != ("runtime", "none")}


def without_macs(devices):
    return {name: {key: v for key, v in spec.items() if key != "mac"} for name, spec in devices.items()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_case(path):
    case = yaml.safe_load(path.read_text())
    assert set(case) - {"lock"} in ({"why", "stack", "errors"}, {"why", "stack", "wanted", "warnings"})
    if "wanted" in case:
        assert planned(case["stack"], case.get("lock")) == (case["wanted"], case["warnings"])
        return
    with pytest.raises(ConfigErrors) as caught:
        planned(case["stack"], case.get("lock"))
    assert caught.value.errors == case["errors"]


def test_the_cases_are_there():
    assert len(FILES) > 70
