"""What ran in a VM is reported as if it had run here: results, texts, and what became of a guest that gave none.

The guest is a stand-in: the same commands, run here. That a VM runs them is tests/netns/test_kinds.py's matter.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

pytest_plugins = ("pytester",)
ROOT = Path(__file__).resolve().parents[2]
KERNEL = os.uname().release

CONFTEST = """
import os, subprocess
import tests.vm_plugin as vm_plugin
from lab import LabError, _vm

pytest_plugins = ("tests.vm_plugin",)

class Here:
    release = "none"
    def __enter__(self):
        open("boots", "a").write("boot\\n")
        if REFUSES:
            raise LabError(REFUSES)
        return self
    def close(self):
        pass
    def run(self, command, input=""):
        subprocess.run(["sh", "-c", command], input=input, text=True, check=True)
    def popen(self, command, **more):
        return subprocess.Popen(["sh", "-c", command], text=True, **more)
    def console(self):
        return "Kernel panic - not syncing"

REFUSES = os.environ.get("REFUSES", "")
_vm.Vm = Here
_vm.why_not = lambda: os.environ.get("WHY_NOT", "")
vm_plugin.lacks = lambda kind: kind == "gretap" and (vm_plugin.INSIDE not in os.environ or "BOTH" in os.environ)
if "NOT_ROOT" in os.environ:
    os.geteuid = lambda: 1000
else:
    os.geteuid = lambda: 0
"""
INI = """
[pytest]
timeout_method = thread
filterwarnings = error::pytest.PytestUnhandledThreadExceptionWarning
markers =
    kinds(*names): as in pyproject.toml
    slow: as there
"""
FIRST = """
import os, pytest

def inside():
    return "OVERLAY_VM_REPORTS" in os.environ

@pytest.fixture(scope="module")
def once():
    open("fixtures", "a").write("made\\n")

@pytest.mark.kinds("gretap")
def test_passes(once):
    assert inside()

def test_needs_nothing():
    assert not inside()

@pytest.mark.kinds("gretap", "vlan")
@pytest.mark.parametrize("number", [1, 2])
def test_fails_with_two(once, number):
    assert number == 1, "two is too many"

@pytest.mark.kinds("gretap")
def test_is_skipped():
    pytest.skip("not on a Saturday")

@pytest.mark.kinds("vlan")
def test_of_a_kind_that_is_here():
    assert not inside()

@pytest.mark.kinds("gretap")
class TestClass:
    def test_errs(self, request):
        request.getfixturevalue("no_such")
"""
SECOND = """
import os, pytest
pytestmark = pytest.mark.kinds("gretap")

def test_second():
    assert "OVERLAY_VM_REPORTS" in os.environ
"""


@pytest.fixture
def project(pytester, monkeypatch):
    """Runs pytest on these files, in a process of its own, and returns its result."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("OVERLAY_VM", "OVERLAY_VM_REPORTS", "OVERLAY_VM_PATIENCE", "PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("CI", raising=False)  # with it pytest repeats whole texts in its summary
    pytester.makeconftest(CONFTEST)
    pytester.makeini(INI)

    def run(*options, files=None, **environment):
        for name, text in (files or {"test_first": FIRST}).items():
            path = pytester.path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return pytester.runpytest_subprocess(*options, timeout=120)

    return run


def test_each_test_is_reported_as_its_own(project, pytester):
    result = project("-v", "-rs")
    result.assert_outcomes(passed=4, failed=2, skipped=1)
    lines = result.stdout.str()
    assert "AssertionError: two is too many" in lines
    assert "fixture 'no_such' not found" in lines
    assert "SKIPPED [1] test_first.py:25: not on a Saturday" in lines
    # Four that went, and no more: the line is to be believed.
    assert f"VM lab: 5 tests ran on Linux {KERNEL} (gretap: not in this machine's {KERNEL})" in lines
    assert (pytester.path / "boots").read_text() == (pytester.path / "fixtures").read_text().replace("made", "boot")
    assert (pytester.path / "boots").read_text() == "boot\n"


def test_the_kernel_is_in_the_reports(project, pytester):
    project("--junitxml=out.xml", "-o", "junit_family=xunit1")
    text = (pytester.path / "out.xml").read_text()
    assert text.count(f'<property name="kernel" value="{KERNEL}"') == 5


def test_nothing_to_do_says_nothing(project, pytester):
    result = project(files={"test_plain": "def test_here():\n    pass\n"})
    assert "VM lab" not in result.stdout.str()
    assert not (pytester.path / "boots").exists()


def test_a_choice_of_tests(project):
    project("-k", "passes or is_skipped").assert_outcomes(passed=1, skipped=1, deselected=5)
    project("test_first.py::test_fails_with_two[2]").assert_outcomes(failed=1)


def test_stops_at_the_first_failure(project):
    result = project("-x")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*stopping after 1 failures*"])


def test_several_workers_boot_a_guest_for_each_file(project, pytester):
    result = project("-n", "2", "--dist", "loadfile", files={"test_first": FIRST, "test_second": SECOND})
    result.assert_outcomes(passed=5, failed=2, skipped=1)
    assert (pytester.path / "boots").read_text() == "boot\nboot\n"
    assert f"VM lab: 6 tests ran on Linux {KERNEL}" in result.stdout.str()


def test_what_stays_set_up_for_the_next_test_ends_where_that_ran_in_the_guest(project, pytester):
    """Pytest leaves a folder set up for the next test of it: which is the guest's, and the one after it elsewhere."""
    scoped = """
import pytest

@pytest.fixture(scope="package")
def whole():
    yield
    open("ended", "a").write("ended\\n")

def test_here(whole):
    pass
"""
    files = {"a/__init__": "", "a/test_1": scoped, "a/test_2": SECOND, "b/__init__": "", "b/test_3": "def test_(): 1"}
    project(files=files).assert_outcomes(passed=3)
    assert (pytester.path / "ended").read_text() == "ended\n"


def test_an_end_that_fails_after_a_test_in_the_guest_is_an_error(project):
    scoped = """
import pytest

@pytest.fixture(scope="package")
def whole():
    yield
    raise OSError("cannot end")

def test_here(whole):
    pass
"""
    result = project(files={"a/__init__": "", "a/test_1": scoped, "a/test_2": SECOND})
    result.assert_outcomes(passed=2, errors=1)
    assert "OSError: cannot end" in result.stdout.str()


def test_a_guest_that_dies_fails_the_rest_with_its_last_words(project):
    text = """
import os, sys, pytest
pytestmark = pytest.mark.kinds("gretap")
def test_before(): pass
def test_dies():
    os.write(2, b"goodbye")
    os.kill(os.getpid(), 9)
def test_after(): pass
"""
    result = project(files={"test_dies": text})
    result.assert_outcomes(passed=1, errors=2)
    lines = result.stdout.str()
    for name in ("dies", "after"):
        assert f"test_dies.py::test_{name} has no result from the VM lab: its pytest ended too early (" in lines
    assert lines.count("Kernel panic - not syncing") == 2


def test_a_test_that_hangs_in_the_guest(project):
    text = """
import time, pytest
pytestmark = pytest.mark.kinds("gretap")
def test_hangs():
    time.sleep(100)
"""
    result = project(files={"test_hangs": text}, OVERLAY_VM_PATIENCE="2")
    result.assert_outcomes(errors=1)
    assert re.search(r"\+{3,} Timeout \+{3,}", result.stdout.str())


def test_no_image_is_a_failure(project):
    reason = "the VM lab has no image in /x; run `make setup` as root on Debian"
    result = project(WHY_NOT=reason)
    result.assert_outcomes(passed=2, errors=5)
    assert f"test_first.py::test_passes has no result from the VM lab: {reason}" in result.stdout.str()


def test_who_may_not_make_one_is_told_so(project):
    result = project("-rs", WHY_NOT="the VM lab has no image", NOT_ROOT="1")
    result.assert_outcomes(passed=2, skipped=5)
    assert "the VM lab has no image" in result.stdout.str()


def test_a_vm_that_does_not_come_up(project, pytester):
    result = project(REFUSES="vm: did not come up within 600 s")
    result.assert_outcomes(passed=2, errors=5)
    assert "has no result from the VM lab: vm: did not come up within 600 s" in result.stdout.str()
    assert (pytester.path / "boots").read_text() == "boot\n"


def test_a_file_that_cannot_be_imported_in_the_guest(project):
    text = "import os\nif 'OVERLAY_VM_REPORTS' in os.environ:\n    raise RuntimeError('no such thing here')\n" + SECOND
    result = project(files={"test_second": text})
    result.assert_outcomes(errors=1)
    assert "RuntimeError: no such thing here" in result.stdout.str()


def test_a_kind_that_the_guest_lacks_too(project):
    result = project(files={"test_second": SECOND}, BOTH="1")
    result.assert_outcomes(errors=1)
    assert f"the VM's kernel {KERNEL} lacks gretap too" in result.stdout.str()


def test_a_kind_that_nobody_knows(project):
    result = project(files={"test_second": SECOND.replace("gretap", "token-ring")})
    assert result.ret != 0
    assert ("test_second.py::test_second: kinds: token-ring: there are dummy, gretap, ip6gretap, l2tp, vlan, wireguard"
            in result.stderr.str() + result.stdout.str())  # fmt: skip


def test_everything_of_the_host_tiers_on_demand(project):
    where = "import os\ndef test_it():\n    assert ('OVERLAY_VM_REPORTS' in os.environ) == {}\n"
    files = {"tests/netns/test_a": where.format(True), "tests/e2e/test_b": where.format(True),
             "tests/unit/test_c": where.format(False), "tests/vm/test_d": where.format(False)}  # fmt: skip
    result = project(files=files, OVERLAY_VM="1")
    result.assert_outcomes(passed=4)
    assert f"VM lab: 2 tests ran on Linux {KERNEL}" in result.stdout.str()
