"""How the agent reads a dnsmasq that is not its own: its command line and its files (dnsmasq(8))."""

from __future__ import annotations

import pytest

from overlay_agent import survey

WORDS = [
    (
        "--strict-order --pid-file=/x.pid --listen-address 10.0.4.1 --dhcp-range 10.0.4.2,10.0.4.9 --dhcp-no-override",
        [("strict-order", ""), ("pid-file", "/x.pid"), ("listen-address", "10.0.4.1"),
         ("dhcp-range", "10.0.4.2,10.0.4.9"), ("dhcp-no-override", "")],
    ),
    ("-C /etc/x.conf -ibr0 -F10.0.4.2,10.0.4.9", [("conf-file", "/etc/x.conf"), ("interface", "br0"),
                                                  ("dhcp-range", "10.0.4.2,10.0.4.9")]),
    ("-zk -u nobody", [("bind-interfaces", ""), ("keep-in-foreground", ""), ("user", "nobody")]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "options"), WORDS)
def test_command_lines(words, options):
    assert list(survey._words(words.split())) == options


def test_files(tmp_path):
    (tmp_path / "main.conf").write_text(
        "# comment\n\ninterface=br0  # which\n conf-dir=/d,*.conf\nbind-interfaces\nconf-file=/main.conf\n"
    )
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.conf").write_text("dhcp-range = 10.0.4.2,10.0.4.9\n")
    for name in ("b.bak", ".hidden.conf", "c.conf~"):
        (tmp_path / "d" / name).write_text("domain=wrong\n")
    (tmp_path / "hosts").write_text("# names\n52:54:00:12:34:56,10.0.4.5\n")
    options = [("conf-file", "/main.conf"), ("dhcp-hostsfile", "/hosts"), ("conf-file", "/not-there")]
    once = [("interface", "br0"), ("dhcp-range", "10.0.4.2,10.0.4.9"), ("bind-interfaces", "")]
    found = list(survey._whole(str(tmp_path), options, 1))
    # At that depth only the first file is read.
    assert found == [("interface", "br0"), ("conf-dir", "/d,*.conf"), ("bind-interfaces", ""),
                     ("conf-file", "/main.conf"), ("dhcp-host", "52:54:00:12:34:56,10.0.4.5")]  # fmt: skip
    found = list(survey._whole(str(tmp_path), options[:1], 5))
    assert found[:3] == once
    assert len(found) < 20, "a file that names itself ends"


@pytest.mark.parametrize(
    ("file", "endings", "read"),
    [("a", "", True), ("a.conf", ",*.conf", True), ("a.x", ",*.conf", False), ("a.bak", ",.bak", False),
     ("a.conf", ",.bak", True)],
)  # fmt: skip
def test_which_files_of_a_folder(file, endings, read):
    assert survey._matches(file, endings) == read


def test_what_is_no_rule_of_translation():
    assert survey._NAT.search("-A POSTROUTING -s 10.0.4.0/24 -j MASQUERADE")
    assert not survey._NAT.search("-A FORWARD -j ACCEPT")
    assert survey._NFT.search("\t\tip saddr 10.0.4.0/24 masquerade")
    assert survey._NFT.search("\t\ttcp dport 80 dnat to 10.0.4.5")
    assert not survey._NFT.search("\t\ttcp dport 80 accept")
