"""The one file that is copied to hosts: complete, the same wherever it is built, clear on old hosts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from overlay_components import agent

ROOT = Path(__file__).parents[2]
OLD = sorted(
    path
    for version in ("3.6", "3.7", "3.8")
    for path in (Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python3")
)


@pytest.fixture
def archive(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return agent.archive()


def run(python, *arguments):
    return subprocess.run(
        [str(python), "-I", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"PATH": ""},
    )


def test_it_is_the_same_to_the_byte_wherever_it_is_built(archive, tmp_path, monkeypatch):
    copy = tmp_path / "elsewhere"
    for package in ("overlay_agent", "overlay_components"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from overlay_components import agent; print(agent.archive())"
    env = {**os.environ, "PYTHONPATH": str(copy), "XDG_CACHE_HOME": str(tmp_path / "other"), "TZ": "Asia/Tokyo"}
    out = subprocess.run(
        [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code],
        env=env, cwd=copy, check=True, capture_output=True, text=True,
    )  # fmt: skip
    other = Path(out.stdout.strip())
    assert other.name == archive.name
    assert other.read_bytes() == archive.read_bytes()
    with zipfile.ZipFile(archive) as bundle:
        assert {info.date_time for info in bundle.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_it_is_built_once(archive):
    before = archive.stat()
    assert agent.archive() == archive
    assert (archive.stat().st_mtime_ns, archive.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_its_name_follows_its_contents():
    files = agent.contents()
    assert agent.digest(files) != agent.digest({**files, "overlay_agent/x.py": b""})


def test_it_needs_nothing_but_a_plain_python(archive):
    done = run("/usr/bin/python3", archive, "version")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0.1.0\n", "")


def test_it_holds_no_byte_of_pulumi(archive):
    with zipfile.ZipFile(archive) as bundle:
        assert {name.split("/")[0] for name in bundle.namelist()} == {
            "__main__.py", "digest.json", "overlay_agent", "pyroute2",
        }  # fmt: skip


def test_what_it_holds_of_pyroute2_is_what_is_loaded_and_no_more(archive):
    code = (
        f"import sys; sys.path.insert(0, {str(archive)!r}); from overlay_agent import genl;"
        "[genl._message_class(name) for name in genl.FAMILIES];"
        "print('\\n'.join(m.__file__ for n, m in sys.modules.items()"
        # For those two kernel.py and genl.py have stand-ins.
        " if n.startswith('pyroute2.') and n not in ('pyroute2.config', 'pyroute2.netlink.generic')))"
    )
    done = run("/usr/bin/python3", "-S", "-c", code)
    assert done.returncode == 0, done.stderr
    loaded = {path.split(".pyz/", 1)[1] for path in done.stdout.split()}
    packed = {name for name in agent.contents() if name.startswith("pyroute2/")} - {"pyroute2/__init__.py"}
    assert loaded == packed


@pytest.mark.skipif(not OLD, reason="no Python 3.6 to 3.8 from pyenv on this machine")
@pytest.mark.parametrize("python", OLD, ids=[path.parts[-3] for path in OLD])
def test_an_old_python_is_told_what_is_missing(archive, python):
    done = run(python, archive, "version")
    short = ".".join(python.parts[-3].split(".")[:2])
    assert (done.returncode, done.stdout, done.stderr) == (
        1, "", f"overlay-agent: python3 is {short} here; 3.9 or newer is needed\n",
    )  # fmt: skip
