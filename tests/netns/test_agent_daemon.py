"""Under systemd a service's program is a unit of its own. A stub takes systemctl's place, and starts real processes."""

from __future__ import annotations

import shutil
import signal

import pytest
from agent_support import bridge, document

STUB = """#!/bin/sh
echo "$@" >> /run/systemctl.log
for unit; do :; done
file=/run/systemd/$unit.pid
end() {
    [ -f "$file" ] || return
    kill "$(cat "$file")"
    while [ -d "/proc/$(cat "$file")" ] && ! grep -q "^State:.Z" "/proc/$(cat "$file")/status"; do sleep 0.01; done
    rm "$file"
}
case "$*" in
    *restart*) end; command=$(sed -n "s/^ExecStart=//p" "/etc/systemd/system/$unit")
        setsid sh -c "echo \\$\\$ > $file; exec $command" < /dev/null > /run/systemd/words 2>&1 &
        while ! [ -s "$file" ]; do sleep 0.01; done ;;
    *stop*) end ;;
    *MainPID*) [ -f "$file" ] && cat "$file" || echo 0 ;;
esac
exit 0
"""
#: journalctl: what the unit wrote.
JOURNAL = "#!/bin/sh\nexec cat /run/systemd/words\n"
CALLED = ["-q daemon-reload", "-q restart {}", "-q stop {}", "-q daemon-reload", "-q reset-failed {}"]


@pytest.fixture
def path(host, tmp_path):
    host.run("mkdir -p /run/systemd/system")
    for name, text in (("systemctl", STUB), ("journalctl", JOURNAL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return {"PATH": f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin"}


def wanted(**more):
    spec = {"kind": "dnsmasq", "interface": "br-app", "mtu": 1400, "addresses": {"10.10.0.1": {}},
            "subnets": {"10.10.0.0/24": {}}, **more}  # fmt: skip
    return document(br_app=bridge(addresses={"10.10.0.1/24": {}}), services={"dhcp": spec})


def called(host):
    lines = host.run("cat /run/systemctl.log").out.splitlines()
    return [line for line in lines if "MainPID" not in line]


def test_a_unit_is_made_started_and_taken_away(host, path):
    host.apply(wanted(), **path)
    (unit,) = host.run("ls /etc/systemd/system").out.split()
    assert unit.startswith("overlay-dnsmasq-")
    text = host.run("cat", f"/etc/systemd/system/{unit}").out.splitlines()
    folder = f"/var/lib/overlay/services/{unit[: -len('.service')]}"
    (command,) = [line for line in text if line.startswith("ExecStart=")]
    assert command.startswith(f"ExecStart=/usr/sbin/dnsmasq --keep-in-foreground --conf-file={folder}/dnsmasq-")
    for line in (
        "Restart=on-failure",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "Description=DHCP and DNS of overlay:p/s/dhcp",
    ):
        assert line in text
    assert "[Install]" not in text
    if shutil.which("systemd-analyze"):
        done = host.run("systemd-analyze", "verify", "--man=no", f"/etc/systemd/system/{unit}", check=False)
        assert unit not in done.err, done.err
    assert host.apply(wanted(), **path).lines == ["a: nothing to do, 2 objects as declared"]
    assert host.agent("check", **path).report == {"drift": []}
    host.agent("remove", "p/s", **path)
    assert called(host) == [line.format(unit) for line in CALLED]
    assert host.run("ls /etc/systemd/system").out == ""
    assert not host.run("sh", "-c", "ls /run/overlay", check=False).out


def test_a_unit_that_ended_is_seen_and_started(host, path):
    host.apply(wanted(), **path)
    host.kill(int(host.run("sh", "-c", "cat /run/systemd/*.pid").out), signal.SIGTERM)
    host.run("sh", "-c", "rm /run/systemd/*.pid")
    assert host.agent("check", code=2, **path).lines == ["dhcp: running want on, is off"]
    assert host.apply(wanted(), **path).lines == ["dhcp: running off -> on"]
    host.agent("remove", "p/s", **path)


def test_what_the_program_says_at_its_end_is_the_error(host, path):
    """A shadow of dnsmasq that takes the configuration, and then does not start."""
    host.apply(wanted(), **path)
    folder = path["PATH"].partition(":")[0]
    script = '#!/bin/sh\n[ "$1" = --test ] && exec /usr/sbin/dnsmasq "$@"\necho "dnsmasq: no luck" >&2; exit 3\n'
    host.run("sh", "-c", f"cat > {folder}/dnsmasq; chmod 755 {folder}/dnsmasq", text=script)
    done = host.apply(wanted(lease=7200), code=1, **path)
    assert "start: dnsmasq: no luck" in done.lines[-1]
    host.run("rm", f"{folder}/dnsmasq")
    host.agent("restore", **path)
    assert host.agent("check", **path).report == {"drift": []}
    host.agent("remove", "p/s", **path)
