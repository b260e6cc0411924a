"""`make demo`, as README says: without a terminal, twice in a row, and when something goes wrong."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import time

import pytest

from lab import Lab
from tests.docs import README, blocks, section
from tests.e2e.support import ROOT, environment

#: Beside the demo that somebody may be looking at.
NAME = "demo-test"
PROJECT = ROOT / ".lab" / f"{NAME}-project"

pytestmark = [pytest.mark.root, pytest.mark.slow]


def make(target):
    words = ["make", "--no-print-directory", target]
    env = {**os.environ, "OVERLAY_DEMO": NAME}
    done = subprocess.run(
        words,
        cwd=ROOT,
        env=env,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=240,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.fixture(autouse=True)
def _ended():
    if os.geteuid() != 0:
        pytest.skip("needs root: the lab makes network namespaces")
    yield
    code, text = make("demo-down")
    assert code == 0, text
    assert NAME not in Lab.names()
    assert not PROJECT.exists()
    shutil.rmtree(PROJECT.with_suffix(".old"), ignore_errors=True)


@pytest.fixture
def demo(monkeypatch):
    """tools/demo.py as a module."""
    for key, value in environment().items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("OVERLAY_DEMO", NAME)
    spec = importlib.util.spec_from_file_location("demo", ROOT / "tools/demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def watched():
    """What a demo must leave alone."""
    files = ["Pulumi.yaml", "__main__.py", *(f"stacks/{p.name}" for p in (ROOT / "stacks").iterdir())]
    return {name: (ROOT / name).read_bytes() for name in files}


def without_figures(line):
    """The line without times and counts that differ from run to run."""
    line = re.sub(r"[\d.]+s\b", "Ns", " ".join(re.sub("─+", "─", line).split()))
    return re.sub(r"\b\d+\.\d\d\b|[\d.]+(?= offered)", "N", line)


def test_demo_from_nothing_to_ping_and_again(demo):
    before = watched()
    code, text = make("demo")
    assert code == 0, text
    assert watched() == before
    ignored = subprocess.run(["git", "check-ignore", "-q", str(PROJECT)], cwd=ROOT, check=False).returncode
    assert ignored == 0, "git status stays clean"
    assert text.count("2 packets transmitted, 2 received, 0% packet loss") == 4
    assert "PING db.app.example (10.10.0.12)" in text
    assert "PING web.app.example (10.10.0.11)" in text
    assert text.count("2 packets transmitted, 2 packets received, 0% packet loss") == 2, "LXC containers, by name"
    assert len(re.findall(r"(?m)^ +~ vni +: 42 => 142$", text)) == 4, "the tunnel's, and one for each host"
    assert "\033[" not in text, "no colours without a terminal"
    assert text.count("6 of 6 pairs reach each other with packets of 1450") == 2
    assert "app DNS: ok, cache.app.example is 10.10.0.10, says 10.10.0.1 to h2" in text
    assert text.rindex("$ overlay verify") > text.rindex("$ overlay graph") > text.rindex("$ pulumi")
    for page in (demo.TOPOLOGY, demo.VERIFIED):
        assert "<svg" in (PROJECT / page).read_text()

    # README shows what it really says, for one host of three.
    lines = {without_figures(line) for line in text.splitlines()}
    shown = [line for block in blocks(section(README, "## What it looks like"), "text") for line in block.splitlines()]
    missing = [line for line in shown if without_figures(line) not in lines]
    assert not missing, "README shows it otherwise; make demo > OUTPUT; python -m tests.docs OUTPUT"

    # What it says about looking around works.
    commands = [line.strip() for line in demo.NEXT.splitlines() if line.strip().startswith("python -m lab")]
    assert len(commands) == 2
    for command in commands:
        script = f". tools/env.sh; {command.replace('-- ping', '-- ping -c 1')}"
        subprocess.run(["bash", "-euc", script], cwd=ROOT, check=True, capture_output=True)
    shell = subprocess.run(
        ["make", "demo-shell"],
        cwd=ROOT,
        env={**os.environ, "OVERLAY_DEMO": NAME, "SHELL": "/bin/bash"},
        input="set -e\nssh -n h1 hostname\noverlay explain h2\npulumi preview --diff --suppress-outputs\n",
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert shell.returncode == 0, shell.stdout + shell.stderr
    assert "# overlay/demo on h2, by hand" in shell.stdout
    assert re.search(r"\d+ unchanged", shell.stdout)

    # An edited stack file is kept, and the second run begins afresh.
    file = PROJECT / "stacks/Pulumi.demo.yaml"
    file.write_text(file.read_text() + "# mine\n")
    began = time.monotonic()
    code, text = make("demo")
    assert code == 0, text
    assert time.monotonic() - began < 120, "far above what it takes, for machines under load"
    assert "An earlier demo is there; it goes first." in text
    assert (ROOT / f".lab/{NAME}-project.old/Pulumi.demo.yaml").read_text().endswith("# mine\n")


def test_a_ping_without_answer_fails_the_demo(demo, capfd, monkeypatch):
    real = demo.pings

    def cut(rows):
        with_cable = Lab.open(NAME)
        if rows[0]["segment"] == "app":
            with_cable.run(rows[0]["host"], "ip link set vx-app down")
        real(rows)

    monkeypatch.setattr(demo, "pings", cut)
    assert demo.main(["up"]) == 1
    said = capfd.readouterr()
    assert re.search(r"demo: \w+ on h\d does not reach \w+ on h\d \(10\.10\.0\.1\d\)", said.err)
    assert "what is up stays, to be looked at" in said.err


def test_a_failing_step_says_which(demo, capfd, monkeypatch):
    monkeypatch.setattr(demo, "stack_text", lambda: "config:\n  overlay:hosts: {}\n")
    assert demo.main(["up"]) == 1
    said = capfd.readouterr()
    assert "hosts: missing; declare at least one" in said.out + said.err
    assert "demo: `overlay plan --stack demo` failed with exit code 1" in said.err


def test_one_at_a_time(demo, capfd):
    with demo.alone():
        assert demo.main(["down"]) == 1
    assert "another `make demo` of this checkout is at work; wait for its end" in capfd.readouterr().err


def test_wrong_usage(demo):
    assert demo.main([]) == 2
    assert demo.main(["sideways"]) == 2
