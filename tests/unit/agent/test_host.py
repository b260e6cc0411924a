"""What the agent finds out about the machine that it is on."""

from __future__ import annotations

import threading
import time

import pytest

from overlay_agent import host


@pytest.mark.parametrize("there", [[], ["control", "data/n7"]], ids=["no udev", "udev is done"])
def test_udev_is_not_waited_for(tmp_path, monkeypatch, there):
    monkeypatch.setattr(host, "UDEV", str(tmp_path))
    (tmp_path / "data").mkdir()
    for name in there:
        (tmp_path / name).touch()
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits"))
    host.wait_for_udev(7)


def test_udev_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "UDEV", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "control").touch()
    host.wait_for_udev(7, seconds=0.05)  # not for ever
    udev = threading.Timer(0.2, (tmp_path / "data" / "n7").touch)
    udev.start()
    host.wait_for_udev(7, seconds=60)
    assert (tmp_path / "data" / "n7").exists()
    udev.join()
