"""The set-up's own decisions: which source is taken, what is refused, when nothing is to be done."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTENT = {
    "bin/pulumi": b"#!/bin/sh\necho v3.259.0\n",
    "bin/pulumi-language-python": b"host",
    "bin/pulumi-language-python-exec": b"exec",
    "plugins/pulumi-resource-command": b"\x7fELF",
}


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    """tools/setup.py as it is."""
    spec = importlib.util.spec_from_file_location("overlay_setup", ROOT / "tools" / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def setup(script, tmp_path, monkeypatch) -> ModuleType:
    """tools/setup.py, working on an empty directory, on a machine without any Pulumi."""
    module = script
    monkeypatch.setattr(module, "TOOLS", tmp_path / ".tools")
    monkeypatch.setattr(module, "DOWNLOAD_SITE", "file:///nonexistent")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path / "no-home"))
    monkeypatch.delenv("PULUMI_BUNDLE", raising=False)
    monkeypatch.setattr(module, "cli_from_go", unavailable(module, "no go on PATH; install Go"))
    (tmp_path / ".tools").mkdir()
    return module


def unavailable(module, reason):
    def source(stage):
        raise module.UnavailableError(reason)

    return source


def make_bundle(path: Path, content: dict[str, bytes], sums: dict[str, bytes] | None = None) -> Path:
    rows = [f"{hashlib.sha256(data).hexdigest()}  ./{name}" for name, data in (sums or content).items()]
    with tarfile.open(path, "w:xz") as tar:
        for name, data in {"SHA256SUMS": "\n".join(rows).encode(), **content}.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
    return path


def make_programs(directory: Path, version: str) -> Path:
    directory.mkdir()
    for name in ("pulumi", "pulumi-language-python", "pulumi-language-python-exec"):
        (directory / name).write_text(f"#!/bin/sh\necho v{version}\n")
        (directory / name).chmod(0o755)
    return directory


def provenance(setup) -> dict:
    return json.loads((setup.TOOLS / "provenance.json").read_text())


def test_bundle(setup, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PULUMI_BUNDLE", str(make_bundle(tmp_path / "bundle.tar.xz", CONTENT)))
    setup.pulumi()
    for name in ("pulumi", "pulumi-language-python", "pulumi-language-python-exec"):
        assert (setup.TOOLS / "bin" / name).read_bytes() == CONTENT[f"bin/{name}"]
    assert (setup.TOOLS / setup.PLUGIN_FILE).read_bytes() == b"\x7fELF"
    assert provenance(setup)["pulumi"]["version"] == "3.259.0"
    assert provenance(setup)["command_plugin"]["kind"] == "real"
    assert setup.summary() == "Pulumi 3.259.0, command plugin 1.2.1 (real)"

    # Nothing is done twice, also when the bundle is not named any more.
    capsys.readouterr()
    setup.pulumi()
    monkeypatch.delenv("PULUMI_BUNDLE")
    setup.pulumi()
    assert capsys.readouterr().out == ""


def test_bundle_that_was_changed(setup, tmp_path, monkeypatch):
    changed = CONTENT | {"bin/pulumi-language-python": b"other"}
    monkeypatch.setenv("PULUMI_BUNDLE", str(make_bundle(tmp_path / "bundle.tar.xz", changed, sums=CONTENT)))
    with pytest.raises(setup.SetupError, match="bin/pulumi-language-python is not what the bundle's SHA256SUMS says"):
        setup.pulumi()
    assert not (setup.TOOLS / "bin").exists(), "all or nothing"
    assert [path.name for path in setup.TOOLS.iterdir()] == [], "no leftovers"


def test_bundle_that_is_not_there(setup, monkeypatch):
    monkeypatch.setenv("PULUMI_BUNDLE", "/nonexistent/bundle")
    with pytest.raises(setup.SetupError, match="PULUMI_BUNDLE: /nonexistent/bundle is not a file"):
        setup.pulumi()


def test_path_comes_first_and_is_copied(setup, tmp_path, monkeypatch):
    theirs = make_programs(tmp_path / "theirs", "3.260.1")
    monkeypatch.setenv("PATH", f"{theirs}:/usr/bin:/bin")
    monkeypatch.setenv("PULUMI_BUNDLE", str(make_bundle(tmp_path / "bundle.tar.xz", CONTENT)))
    setup.pulumi()
    assert provenance(setup)["pulumi"] | {"sha256": ""} == {
        "source": f"PATH ({theirs}/pulumi)",
        "version": "3.260.1",
        "sha256": "",
    }
    assert provenance(setup)["command_plugin"]["source"].startswith("bundle ")
    assert not (setup.TOOLS / "bin/pulumi").is_symlink()


@pytest.mark.parametrize("version", ["3.258.0", "4.0.0", "2.1.0", "nonsense"])
def test_path_with_a_pulumi_that_does_not_fit(setup, tmp_path, monkeypatch, version):
    monkeypatch.setenv("PATH", f"{make_programs(tmp_path / 'theirs', version)}:/usr/bin:/bin")
    with pytest.raises(setup.UnavailableError, match=re.escape(version)):
        setup.from_path(tmp_path)


def test_the_home_of_another_checkout_may_hold_a_stand_in(setup, tmp_path, monkeypatch):
    home = tmp_path / "home"
    setup.install_stand_in(home)
    monkeypatch.setenv("PULUMI_HOME", str(home))
    with pytest.raises(setup.UnavailableError):
        setup.plugin_from_home(tmp_path)
    (home / setup.PLUGIN_FILE).write_bytes(b"\x7fELF")
    assert setup.plugin_from_home(tmp_path).version == "1.2.1"


def test_download(setup, tmp_path, monkeypatch):
    site = tmp_path / "site"
    system, machine = setup.machine_names({"amd64": "x64"})
    archives = {
        f"sdk/pulumi-v3.259.0-{system}-{machine}.tar.gz": {
            f"pulumi/{Path(name).name}": data for name, data in CONTENT.items() if name.startswith("bin/")
        },
        "plugins/pulumi-resource-command-v1.2.1-{}-{}.tar.gz".format(*setup.machine_names({})): {
            "pulumi-resource-command": b"\x7fELF"
        },
    }
    for name, content in archives.items():
        (site / name).parent.mkdir(parents=True)
        with tarfile.open(site / name, "w:gz") as tar:
            for member, data in content.items():
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    monkeypatch.setattr(setup, "DOWNLOAD_SITE", site.as_uri())
    setup.pulumi()
    assert provenance(setup)["pulumi"]["source"].startswith("download (file://")
    assert provenance(setup)["command_plugin"]["kind"] == "real"


def test_stand_in_is_announced_and_given_up_for_a_bundle(setup, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{make_programs(tmp_path / 'theirs', '3.259.0')}:/usr/bin:/bin")
    setup.pulumi()
    assert "(stand-in)" in setup.summary()
    assert "tools/command_plugin" in (setup.TOOLS / setup.PLUGIN_FILE).read_text()
    monkeypatch.setenv("PULUMI_BUNDLE", str(make_bundle(tmp_path / "bundle.tar.xz", CONTENT)))
    setup.pulumi()
    assert provenance(setup)["command_plugin"]["kind"] == "real"


def test_no_source_at_all(setup):
    with pytest.raises(setup.SetupError) as error:
        setup.pulumi()
    message = str(error.value)
    assert message.startswith("Pulumi cannot be had on this machine:")
    for reason in ("no pulumi on PATH", "PULUMI_BUNDLE is not set", "file:///nonexistent", "no go on PATH"):
        assert reason in message


@pytest.mark.parametrize(("version", "fits"), [("go1.19.8", False), ("go1.21.0", True), ("go1.26.8", True)])
def test_go_that_is_too_old(script, tmp_path, monkeypatch, version, fits):
    go = tmp_path / "gobin" / "go"
    go.parent.mkdir()
    go.write_text(f"#!/bin/sh\ntest $1 = env && echo {version} && exit\necho built nothing; exit 1\n")
    go.chmod(0o755)
    monkeypatch.setenv("PATH", f"{go.parent}:/usr/bin:/bin")
    with pytest.raises(script.UnavailableError, match="built nothing" if fits else f"{version}; install Go 1.21"):
        script.cli_from_go(tmp_path / "stage")
    assert not (tmp_path / "stage" / "go").exists(), "no leftovers"


def test_system_packages_that_may_not_be_installed_are_named_in_one_line(setup, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(setup, "SYSTEM_PATH", str(tmp_path))
    monkeypatch.setattr(setup.os, "geteuid", lambda: 1000)
    setup.system_packages()
    line = capsys.readouterr().out.splitlines()[-1].strip()
    assert line.startswith("sudo apt-get install --yes --no-install-recommends ")
    assert {"iproute2", "openssh-server", "docker.io", "lxc"} <= set(line.split())


def test_busybox_must_be_the_one_without_libraries(setup, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(setup, "SYSTEM_COMMANDS", {})
    monkeypatch.setattr(setup, "BUSYBOX", tmp_path / "busybox-static")
    monkeypatch.setattr(setup.os, "geteuid", lambda: 1000)
    setup.system_packages()
    assert "missing: busybox-static;" in capsys.readouterr().out
    setup.BUSYBOX.mkdir()
    setup.system_packages()
    assert capsys.readouterr().out == ""


def test_system_packages_are_installed_with_lists_renewed_only_when_needed(setup, tmp_path, monkeypatch):
    ran = []
    units = tmp_path / "units"

    def run(what, command, **environment):
        ran.append([what, *command[2:]] if what == "systemctl disable" else [what])
        if ran == [["apt-get install"]]:
            raise setup.SetupError("Unable to locate package")
        if what == "apt-get install":  # as Debian's packages do, policy-rc.d or not
            for wanted in ("multi-user.target.wants/docker.service", "sockets.target.wants/docker.socket"):
                (units / wanted).parent.mkdir(exist_ok=True)
                (units / wanted).touch()
        return ""

    (units / "multi-user.target.wants").mkdir(parents=True)
    (units / "multi-user.target.wants" / "theirs.service").touch()
    monkeypatch.setattr(setup, "UNITS", units)
    monkeypatch.setattr(setup, "SYSTEM_PATH", str(tmp_path))
    monkeypatch.setattr(setup.os, "geteuid", lambda: 0)
    monkeypatch.setattr(setup, "run", run)
    monkeypatch.setattr(setup, "services_not_started", nullcontext)
    monkeypatch.setattr(setup.shutil, "which", lambda name, path=None: name if path is None else None)
    setup.system_packages()
    disabled = ["systemctl disable", "docker.service", "docker.socket"]
    assert ran == [["apt-get install"], ["apt-get update"], ["apt-get install"], disabled]


def image_maker(setup, tmp_path, monkeypatch, script: str) -> None:
    """Has the set-up find another maker of images, in a checkout of its own, on a machine where it may make one."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "vm_image.py").write_text(script)
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr(setup.os, "geteuid", lambda: 0)
    monkeypatch.setattr(setup.shutil, "which", lambda name: name)
    monkeypatch.delenv("OVERLAY_VM_DIR", raising=False)


def test_the_vm_image_is_made_beside_all_else(setup, tmp_path, monkeypatch, capsys):
    """It runs while the block does: it waits for the block's file."""
    script = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[1])
while not (folder.parent / "meanwhile").exists():
    time.sleep(0.01)
print("VM lab: made in", folder.name)
"""
    image_maker(setup, tmp_path, monkeypatch, script)
    with setup.vm_image():
        (setup.TOOLS / "meanwhile").touch()
    assert capsys.readouterr().out == "setup: VM lab: made in vm\n"


def test_a_vm_image_that_cannot_be_made_is_said_and_no_more(setup, tmp_path, monkeypatch, capsys):
    image_maker(setup, tmp_path, monkeypatch, "import sys\nprint('mmdebstrap ended with 25')\nsys.exit(1)\n")
    with setup.vm_image():
        pass
    said = "setup: the VM lab's image could not be made; the tests that need it will fail:\n    mmdebstrap ended with 25\n"
    assert capsys.readouterr().out == said


def test_no_vm_image_for_those_who_may_not_make_one(setup, tmp_path, monkeypatch):
    image_maker(setup, tmp_path, monkeypatch, "raise SystemExit('must not run')")
    monkeypatch.setattr(setup.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(setup.subprocess, "Popen", None)
    with setup.vm_image():
        pass


def test_an_answer_that_does_not_come(setup):
    event = threading.Event()
    with pytest.raises(setup.UnavailableError, match="no answer within 0 s"):
        setup.within(0.05, event.wait)
    event.set()


SHELLS = [shell for shell in ("bash", "dash", "zsh", "busybox ash") if shutil.which(shell.split()[0])]


@pytest.mark.parametrize("shell", SHELLS)
def test_env_in_every_shell_and_directory(tmp_path, shell):
    checkout = tmp_path / "check out"  # a name with a space, too
    (checkout / "tools").mkdir(parents=True)
    (checkout / "tools/env.sh").write_text((ROOT / "tools/env.sh").read_text())

    def source(text: str) -> subprocess.CompletedProcess[str]:
        command = [*shell.split(), "-c", f". '{checkout}/tools/env.sh'{text}"]
        bare = {"PATH": "/usr/bin:/bin"}
        return subprocess.run(command, check=False, capture_output=True, text=True, cwd="/", env=bare)

    missing = source(" || echo refused")
    assert "is not set up; run: make" in missing.stderr
    assert "refused" in missing.stdout

    for name in (".tools/bin/pulumi", ".venv/bin/python"):
        (checkout / name).parent.mkdir(parents=True)
        (checkout / name).write_text("#!/bin/sh\n")
        (checkout / name).chmod(0o755)
    once = source("; echo $PATH; env | grep ^PULUMI_ | sort; set | grep ^_overlay")
    assert once.stderr == ""
    assert once.stdout.startswith(f"{checkout}/.venv/bin:{checkout}/.tools/bin:/usr/bin:/bin\n")
    assert f"PULUMI_BACKEND_URL=file://{checkout}/.lab/state\n" in once.stdout
    assert f"PULUMI_HOME={checkout}/.tools\n" in once.stdout
    assert "_overlay" not in once.stdout
    passphrase = checkout / ".lab/passphrase"
    assert passphrase.stat().st_mode & 0o777 == 0o600
    assert len(passphrase.read_text()) == 48

    secret = passphrase.read_text()
    twice = source(f"; . '{checkout}/tools/env.sh'; echo $PATH")
    assert twice.stdout == f"{checkout}/.venv/bin:{checkout}/.tools/bin:/usr/bin:/bin\n"
    assert passphrase.read_text() == secret


def test_locks_name_no_site_and_hash_everything():
    for lock in ROOT.glob("requirements*.txt"):
        text = lock.read_text()
        assert "://" not in text
        assert "index-url" not in text
        pinned = re.split(r"\n(?=\S)", text.strip())
        assert all("--hash=sha256:" in entry for entry in pinned), lock.name
