"""A service's unit, as systemd reads it."""

from __future__ import annotations

import zlib

from overlay_agent import daemon
from overlay_agent.daemon import Daemon


def test_the_id_is_the_kind_and_a_digest_of_the_mark():
    mark = "overlay:p/s/dhcp-app"
    assert daemon.identity("dnsmasq", mark) == f"overlay-dnsmasq-{zlib.crc32(mark.encode()):08x}"
    assert daemon.identity("dnsmasq", mark) != daemon.identity("dnsmasq", "overlay:p/t/dhcp-app")


def test_the_units_text():
    assert (
        Daemon("overlay-x-1", ["/usr/sbin/x", "-n", "-f", "/var/x.conf"], "x of app").unit()
        == """\
# Made by overlay-agent. Not enabled: overlay-restore.service starts it at boot, when its devices are there.
[Unit]
Description=x of app

[Service]
ExecStart=/usr/sbin/x -n -f /var/x.conf
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=1
"""
    )


def test_what_means_something_to_systemd_is_quoted():
    unit = Daemon("overlay-x-1", ["/x", "a b", 'c"d', "50%", "$e", "f\\g", ""], "100% of x").unit()
    assert 'ExecStart=/x "a b" "c\\"d" 50%% $$e "f\\\\g" ""\n' in unit
    assert "Description=100%% of x\n" in unit
