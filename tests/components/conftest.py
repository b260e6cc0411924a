"""An operator's home with a key, and nothing of the machine's own ssh set-up."""

from __future__ import annotations

import subprocess

import pytest


@pytest.fixture(scope="session")
def operator_home(tmp_path_factory):
    home = tmp_path_factory.mktemp("operator")
    (home / ".ssh").mkdir()
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / ".ssh/id_ed25519"]
    subprocess.run(words, check=True)
    return home


@pytest.fixture(autouse=True)
def _as_operator(monkeypatch, operator_home):
    monkeypatch.setenv("HOME", str(operator_home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
