"""What is asked of the package manager and of systemd; the real apt-get is asked in netns/test_agent_packages.py."""

from __future__ import annotations

import subprocess

import pytest

from overlay_agent import packages
from overlay_agent.kinds import KINDS
from overlay_agent.reconcile import Refused


@pytest.fixture
def asked(monkeypatch):
    """What is run, and what comes of it by verb: (exit code, text)."""
    ran, answers = [], {}

    def run(argv, stdout=None, **_):
        ran.append([str(word) for word in argv])
        code, text = answers.get(next((word for word in ran[-1] if word in answers), ""), (0, ""))
        if stdout is not None:
            stdout.write(text.encode())
        return subprocess.CompletedProcess(argv, code)

    monkeypatch.setattr(packages.subprocess, "run", run)
    monkeypatch.setattr(packages.shutil, "which", lambda _: "/usr/bin/apt-get")
    monkeypatch.setattr(packages.os.path, "isdir", lambda path: path == "/run/systemd/system")
    return ran, answers


def words(ran):
    return [" ".join(argv[len(packages._OPTIONS) + 1 :]) if argv[0] == "apt-get" else " ".join(argv) for argv in ran]


def test_each_package_once_and_what_it_starts_is_off_again(asked):
    ran, _ = asked
    kinds = [KINDS[name] for name in ("nat", "evpn", "host-guard")]
    assert packages.install("a", kinds) == "a: installed the packages frr, nftables"
    assert words(ran) == [
        "install --no-install-recommends frr nftables", "systemctl -q disable --now frr.service"
    ]  # fmt: skip


def test_old_lists_are_renewed(asked):
    ran, answers = asked
    answers["install"] = (100, "Reading package lists...\nE: Unable to locate package frr\nE: Aborting\n")
    with pytest.raises(Refused) as refused:
        packages.install("a", [KINDS["evpn"]])
    assert str(refused.value) == (
        "a: installPackages: package frr: apt-get install: Unable to locate package frr Aborting; mend that, or "
        "install the package frr by hand"
    )
    install = "install --no-install-recommends frr"
    assert words(ran) == [install, "update", install]


def test_lists_that_cannot_be_renewed_are_the_reason(asked):
    _, answers = asked
    answers.update(install=(100, "E: no"), update=(100, "E: Could not resolve 'deb.example'"))
    with pytest.raises(Refused, match=r"apt-get update: Could not resolve 'deb\.example'; mend that"):
        packages.install("a", [KINDS["evpn"]])


def test_a_run_without_end(asked, monkeypatch):
    def run(argv, **_):
        raise subprocess.TimeoutExpired(argv, 1)

    monkeypatch.setattr(packages.subprocess, "run", run)
    with pytest.raises(Refused, match="apt-get update took longer than 600 s"):
        packages.install("a", [KINDS["vrrp"]])
