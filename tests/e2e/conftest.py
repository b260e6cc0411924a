"""Labs and stacks for the end-to-end tests, and which command plugin they ran on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lab import Lab, Vm, _vm
from tests import vm_plugin
from tests.e2e import support
from tests.e2e.plugin_support import make_home
from tests.e2e.support import ROOT, Stack
from tests.e2e.vm_lab import VmLab

_PROVENANCE = ROOT / ".tools/provenance.json"


def pytest_configure(config):
    """The marks that say what a test works on."""
    config.addinivalue_line("markers", "lab(**options): options of the test's Lab")
    config.addinivalue_line("markers", "stack(name): the stack file that the test starts from")


def installed_plugin() -> str:
    """`real` or `stand-in`: what `make setup` found."""
    return str(json.loads(_PROVENANCE.read_text())["command_plugin"]["kind"])


def pytest_report_header() -> list[str]:
    """Which plugin the tests ran on."""
    if not _PROVENANCE.exists():
        return ["command plugin: none; run `make setup`"]
    found = json.loads(_PROVENANCE.read_text())["command_plugin"]
    return [f"command plugin: {found['kind']} {found['version']}, from {found['source']}"]


@pytest.fixture(scope="session", autouse=True)
def _source():
    yield
    if support.source.cache_info().currsize:
        shutil.rmtree(support.source())


@pytest.fixture
def plugin(request) -> str:
    """The plugin that the test runs on: the installed one, unless the test is parametrised over both."""
    return getattr(request, "param", installed_plugin())


@pytest.fixture(scope="session")
def homes(tmp_path_factory):
    """PULUMI_HOME by kind of plugin; the real one is missing where it cannot be had."""
    if installed_plugin() == "real":
        return {"real": ROOT / ".tools", "stand-in": make_home(tmp_path_factory.mktemp("home") / "other", "stand-in")}
    if os.environ.get("OVERLAY_REQUIRE_REAL_PLUGIN") == "1" or os.environ.get("PULUMI_BUNDLE"):
        pytest.fail("the real command plugin must be there (PULUMI_BUNDLE, OVERLAY_REQUIRE_REAL_PLUGIN), but is not")
    return {"stand-in": ROOT / ".tools"}


@pytest.fixture
def home(plugin, homes, record_property) -> Path:
    """PULUMI_HOME with the test's plugin."""
    record_property("command plugin", plugin)
    if plugin not in homes:
        pytest.skip("the real command plugin cannot be had on this machine (make setup says why)")
    return homes[plugin]


@pytest.fixture
def other_home(plugin, homes) -> Path:
    """PULUMI_HOME with the other plugin; where there is one alone, with that."""
    return next((home for kind, home in homes.items() if kind != plugin), homes[plugin])


@pytest.fixture
def lab_options(request) -> dict:
    """Options of the test's lab: `@pytest.mark.lab(hosts=2)`."""
    mark = request.node.get_closest_marker("lab")
    return mark.kwargs if mark else {}


@pytest.fixture(scope="session")
def vm():
    """One VM for all labs that need another kernel, booted when the first asks for it."""
    with contextlib.ExitStack() as stack:
        made: list[Vm] = []

        def get() -> Vm:
            if not made:
                made.append(stack.enter_context(Vm()))
            return made[0]

        yield get


@pytest.fixture
def lab(tmp_path, lab_options, vm, record_property):
    """Fresh hosts for each test: they are up in 0.2 s. `lab(kinds=[...])`: hosts that have these kinds of device, in
    the VM lab where this machine's kernel lacks one."""
    if os.geteuid() != 0:
        pytest.skip("needs root: the lab makes network namespaces")
    options = {**lab_options}
    missing = [kind for kind in options.pop("kinds", []) if vm_plugin.lacks(kind)]
    if missing and (reason := _vm.why_not()):
        pytest.fail(reason, pytrace=False)
    if missing:
        record_property("kernel", vm().release)
        record_property("lacking", ", ".join(missing))
    place: dict[str, Any] = {"name": "e2e", "directory": tmp_path / "labs"}
    with VmLab(vm(), **place, **options) if missing else Lab(**place, **options) as lab:
        yield lab


@pytest.fixture
def stack(lab, tmp_path, home, request):
    """Stack `lab`, or the one that the test names: `@pytest.mark.stack("doc-001-mesh")`."""
    mark = request.node.get_closest_marker("stack")
    return Stack(lab, tmp_path / "stack", mark.args[0] if mark else "lab", home)
