"""VMs for tests of what a network namespace cannot do: boot with systemd, reboot, lose its power."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab import _vm


@pytest.fixture(scope="session", autouse=True)
def _possible():
    """Who may not install what a test needs is told so. Where it should be there, its lack is an error."""
    if reason := _vm.why_not():
        if os.geteuid() != 0 or not Path("/usr/bin/apt-get").exists():
            pytest.skip(reason)
        pytest.fail(reason, pytrace=False)
