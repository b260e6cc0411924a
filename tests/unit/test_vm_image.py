"""The maker of the VM lab's image: when it has nothing to do, what decides that, and what a failure leaves."""

from __future__ import annotations

import importlib.util
import lzma
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def maker(tmp_path, monkeypatch):
    """tools/vm_image.py, on a Debian with one file of package sources, asked for an image in tmp_path/vm."""
    spec = importlib.util.spec_from_file_location("overlay_vm_image", ROOT / "tools" / "vm_image.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    (tmp_path / "debian.sources").write_text("Types: deb\n")
    monkeypatch.setattr(module, "RELEASE", tmp_path / "os-release")
    monkeypatch.setattr(module, "sources", lambda: [tmp_path / "debian.sources"])
    monkeypatch.setattr(sys, "argv", ["vm_image.py", str(tmp_path / "vm")])
    return module


def test_what_is_there_is_not_made_again(maker, tmp_path, monkeypatch):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "stamp").write_text(maker.wanted())

    monkeypatch.setattr(maker, "make", make)
    assert maker.main() == 0
    assert maker.main() == 0
    assert made == [tmp_path / "vm"]
    (tmp_path / "debian.sources").write_text("Types: deb deb-src\n")
    assert maker.main() == 0
    assert len(made) == 2


def test_a_failure_is_kept_for_the_tests_to_say(maker, tmp_path, monkeypatch, capsys):
    def make(_):
        raise maker.ImageError("mmdebstrap ended with 25:\nE: no such package")

    monkeypatch.setattr(maker, "make", make)
    assert maker.main() == 1
    assert capsys.readouterr().err == "mmdebstrap ended with 25:\nE: no such package\n"
    monkeypatch.setenv("OVERLAY_VM_DIR", str(tmp_path / "vm"))
    from lab import _vm

    assert _vm.why_not() == (
        "the VM lab's image could not be made: mmdebstrap ended with 25:\nE: no such package; run `make setup`"
    )


def test_another_system_than_debian(maker, tmp_path, monkeypatch, capsys):
    (tmp_path / "os-release").write_text("ID=fedora\n")
    monkeypatch.setattr(maker.shutil, "which", lambda name: name)
    assert maker.main() == 1
    assert capsys.readouterr().err == (
        "the VM lab is made from Debian's packages, and this machine is fedora\n"
    )
    assert not list((tmp_path / "vm").glob("stage-*"))


def test_a_tool_that_is_missing(maker, monkeypatch, capsys):
    monkeypatch.setattr(maker.shutil, "which", lambda name: None if name == "mmdebstrap" else name)
    assert maker.main() == 1
    assert capsys.readouterr().err == "mmdebstrap not installed\n"


def test_a_venv_of_another_python_is_refused(tmp_path, monkeypatch):
    from lab import LabError, _vm

    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "pyvenv.cfg").write_text("home = /opt/python/bin\nversion = 3.13.1\n")
    monkeypatch.setattr(_vm, "CHECKOUT", tmp_path)
    with pytest.raises(LabError, match=r"is not made from Debian's own Python, which alone is in the VM: "
                       r"'home = /opt/python/bin.*; run `make setup PYTHON=/usr/bin/python3`"):  # fmt: skip
        _vm._programs()


def test_an_image_or_a_program_that_is_not_there(tmp_path, monkeypatch):
    from lab import _vm

    monkeypatch.setenv("OVERLAY_VM_DIR", str(tmp_path))
    monkeypatch.setattr(_vm.shutil, "which", lambda name: None if name == _vm.QEMU else name)
    assert _vm.why_not() == "the VM lab needs qemu-system-x86_64; run `make setup` as root"
    monkeypatch.setattr(_vm.shutil, "which", lambda name: name)
    assert _vm.why_not() == f"the VM lab has no image in {tmp_path}; run `make setup` as root on Debian"
    (tmp_path / "stamp").touch()
    assert _vm.why_not() == ""


def test_the_kernel_is_unpacked_where_that_is_possible(maker):
    packed, unpacked = lzma.compress(b"\x7fELF and more"), b"\x7fELF and more"
    cases = {
        b"head" + packed + b"tail": unpacked,
        b"head" + lzma.compress(b"no ELF") + b"tail": None,
        b"head" + packed[:6] + b"no xz": None,
        b"head" + packed[:-8]: None,
        b"head, and zstd": None,
    }
    for kernel, wanted in cases.items():
        assert maker.unpacked(kernel) == (wanted or kernel)
