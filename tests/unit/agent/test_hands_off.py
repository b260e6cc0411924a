"""Which files of networkd's may match a device of ours, and what cannot be an uplink."""

from __future__ import annotations

import pytest

from overlay_agent import hands_off
from overlay_agent.kernel import Link
from overlay_agent.kinds import uplink


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two of networkd's folders, the first of which counts; it runs."""
    made = [tmp_path / "etc", tmp_path / "lib"]
    for folder in made:
        folder.mkdir()
    monkeypatch.setattr(hands_off, "NETWORKD_FOLDERS", tuple(map(str, made)))
    monkeypatch.setattr(hands_off, "NETWORKD", str(tmp_path))
    return made


@pytest.mark.parametrize(
    ("match", "claims"),
    [
        ("Name=br-app", True),
        ("Name=eth0 br-*", True),
        ("Name=en*\nName=br-app", True),
        ("Name=eth*", False),
        ("Name=!br-*", False),
        ("Name=!eth*", True),
        ("Kind=bridge", True),
        ("Kind=veth", False),
        ("Kind=bridge\nName=vz-*", False),
        ("Kind=!bridge", False),
        ("# Name=eth0\nType=ether", True),
        ("Name = *", True),
        ("MACAddress=02:00:00:00:00:01", False),
        ("", True),
    ],
)
def test_networkds_file_may_match(folders, match, claims):
    (folders[0] / "50-x.network").write_text(f"[Match]\n{match}\n[Network]\nName=br-app\n")
    assert any(hands_off._claiming("br-app", "bridge")) is claims


def test_networkds_files_that_do_not_count(folders):
    etc, lib = folders
    (lib / "80-all.network").write_text("[Match]\nName=*\n")
    assert list(hands_off._claiming("br-app", "bridge")) == [str(lib / "80-all.network")]
    (etc / "80-all.network").write_text("[Match]\nName=eth0\n")  # of one name the first counts
    (etc / "00-overlay-br-app.network").write_text("[Match]\nName=br-app\n")
    (etc / "10-none.network").write_text("[Network]\nDHCP=yes\n")
    (etc / "10-all.link").write_text("[Match]\nName=*\n")
    assert list(hands_off._claiming("br-app", "bridge")) == []


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({}, ""),
        ({"kind": "veth"}, ""),
        ({"kind": "team"}, "n0 is a team, which is not supported as an uplink; take a single NIC"),
        ({"kind": "bridge"}, "n0 is a bridge itself; name a NIC"),
        ({"type": 32}, "n0 is not Ethernet, and cannot be a port of a bridge; name another NIC"),
    ],
)
def test_what_cannot_be_an_uplink(about, why):
    assert uplink._no_cable(link(**about)) == why


@pytest.mark.parametrize("sign", ["wireless", "phy80211"])
def test_wifi_cannot_be_an_uplink(tmp_path, monkeypatch, sign):
    (tmp_path / "n0" / sign).mkdir(parents=True)
    monkeypatch.setattr(uplink, "CLASS", str(tmp_path))
    assert uplink._no_cable(link()) == (
        "n0 is Wi-Fi, whose access points take no frames of others; name a NIC with a cable"
    )


def link(**about) -> Link:
    plain = {"name": "n0", "index": 2, "kind": "", "mac": "02:00:00:00:00:01", "mtu": 1500, "up": True, "alias": "",
             "master": 0, "link_local": True, "data": {}, "port": {}}  # fmt: skip
    return Link(**{**plain, **about})
