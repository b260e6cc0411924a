"""The lab keeps its promises: hosts of their own, one operator, and no trace on the machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import Lab, LabError, _host, _sys, _sysctl

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the lab makes network namespaces"),
]
CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where these tests keep their labs: not the checkout's .lab, which is somebody's."""
    return tmp_path_factory.mktemp("labs")


@pytest.fixture(scope="module")
def lab(folder):
    began = time.monotonic()
    with Lab("shared", hosts=3, ipv6=True, mtu=9001, directory=folder) as running:
        print(f"3 hosts up in {time.monotonic() - began:.2f} s")
        yield running


def machine() -> dict[str, object]:
    """What of this machine a lab must not change (and nothing else on it changes by itself)."""

    def ip(*words: str) -> object:
        return json.loads(subprocess.run(["ip", "-j", *words], capture_output=True, check=True).stdout or "[]")

    found: dict[str, object] = {
        "links": ip("link"),
        "addresses": re.sub(r'"\w+_life_time": \d+', "", json.dumps(ip("addr"))),
        "routes": ip("route", "show", "table", "all"),
        "rules": ip("rule"),
        "mounts": sorted(Path("/proc/self/mountinfo").read_text().splitlines()),
        "netns": sorted(path.name for path in Path("/run/netns").glob("*")),
        "hostname": os.uname().nodename,
    }
    with _sysctl._locked() as record:  # another lab may be up, come up now, or have died without putting them back
        if not record["users"] and not record["old"]:
            found["sysctls"] = {name: Path("/proc/sys", name).read_text() for name in _sysctl.WANTED}
    return found


def everything_in(lab: Lab) -> list[tuple[int, int]]:
    """(pid, start time) of each process in one of the lab's network namespaces."""
    networks = {_sys.namespace(host.pid, "net") for host in lab._everyone().values()}
    networks.add(_sys.namespace(lab._keeper_pid(), "net"))
    found = [(pid, _sys.start_time(pid)) for pid in _sys.pids() if _sys.namespace(pid, "net") in networks]
    return [(pid, start) for pid, start in found if start is not None]


def wait_for(condition, what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.005)


def cli(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "lab", *words]
    return subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=check)


# ---------------------------------------------------------------------- no trace


def test_the_machine_is_the_same_before_and_after(folder):
    before = machine()
    with Lab("trace", hosts=2, bastion=True, ipv6=True, rate="1gbit", directory=folder) as lab:
        lab.run("h1", "ip link add br0 type bridge; nft add table inet mine; mkdir -p /run/x; mount -t tmpfs x /run/x")
        lab.run("h1", "setsid -f sleep 1000 >/dev/null 2>&1")
        lab.container("h1", "web", "br0", address="10.0.0.2/24")
        lab.ssh("h1")
        sleeper = lab.operator_popen(["sleep", "1000"])
        # keeper; first process and sshd of three; both sleeps
        wait_for(lambda: len(everything_in(lab)) >= 9, "all processes are where they belong")
        processes = everything_in(lab)
        assert all(int(Path("/proc/sys", name).read_text()) >= value for name, value in _sysctl.WANTED.items())
        during = machine()
        for aspect in ("links", "addresses", "routes", "rules", "mounts", "netns", "hostname"):
            assert during[aspect] == before[aspect], aspect
        root = lab.root
    assert not root.exists()
    assert [pid for pid, start in processes if _sys.is_alive(pid, start)] == []
    assert sleeper.wait(5) != 0
    after = machine()
    for aspect in before.keys() & after.keys():
        assert after[aspect] == before[aspect], aspect


def test_files_of_a_host_are_its_own(lab):
    for path in (
        "/etc/mine",
        "/usr/local/bin/mine",
        "/var/lib/mine",
        "/opt/mine",
        "/root/mine",
        "/run/mine",
        "/tmp/mine",  # noqa: S108  (that it is not shared is the point)
    ):
        lab.run("h1", f"echo h1 > {path}")
        assert lab.run("h2", ["test", "-e", path], check=False).returncode == 1, path
        assert not Path(path).exists(), path
        assert lab.path("h1", path).read_text() == "h1\n"
    lab.run("h1", "rm /etc/debconf.conf /usr/bin/ssh-agent")
    assert Path("/usr/bin/ssh-agent").exists()
    assert lab.run("h2", "ls /usr/bin/ssh-agent").stdout
    assert lab.run("h1", f"touch {CHECKOUT}/mine", check=False).returncode != 0  # read-only
    seen = lab.run("h1", ["test", "-e", f"{CHECKOUT}/lab/__init__.py"], check=False).returncode == 0
    # Read-only, or, where the checkout lies in a folder that each host has to itself, not at all.
    own = [Path("/") / folder for folder in (*_host._FRESH, "tmp", "run")]
    assert seen != any(CHECKOUT.is_relative_to(folder) for folder in own)
    assert lab.run("h1", "ls -A /root /home").stdout.split() == ["/home:", "ops", "/root:", ".ssh", "mine"]


def test_each_host_is_a_machine_of_its_own(lab):
    facts = {}
    for name, host in lab.hosts.items():
        out = lab.run(name, "hostname; cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id; echo $HOME")
        hostname, file, machine_id, boot_id, home = out.stdout.split()
        assert hostname == file == name
        assert machine_id == host.machine_id
        assert home == "/root"
        facts[name] = {machine_id, boot_id, *host.keys}
        assert lab.run(name, "ls /sys/class/net").stdout.split() == ["eth0", "lo"]
        assert lab.run(name, "cat /proc/1/comm").stdout.strip() == f"lab-{name}"
        assert lab.run(name, "command -v python3").stdout.strip() == "/usr/bin/python3"
        assert lab.run(name, "findmnt -no FSTYPE /").stdout.strip() == "overlay"
    assert len(set.union(*facts.values())) == 4 * len(facts)
    assert Path("/etc/machine-id").read_text().strip() not in set.union(*facts.values())
    lab.run("h1", "sysctl -qw net.ipv4.ip_forward=1")
    assert lab.run("h2", "cat /proc/sys/net/ipv4/ip_forward").stdout.strip() == "0"
    lab.run("h1", "nft add table inet only_h1")
    assert "only_h1" not in lab.run("h2", "nft list tables").stdout


# ---------------------------------------------------------------------- SSH


def test_ssh_checks_the_key_of_the_host(lab, tmp_path):
    assert lab.ssh("h1", "id -un; hostname").stdout.split() == ["root", "h1"]
    assert lab.ssh("h2", "id -un; sudo -n id -un; hostname", user="ops").stdout.split() == ["ops", "root", "h2"]
    assert lab.ssh("h3-v6", "hostname; echo $SSH_CONNECTION").stdout.split()[:2] == ["h3", "2001:db8:18::fffe"]
    assert lab.ssh("h1", "echo $HOME; ls -A", user="ops").stdout.split() == ["/home/ops", ".ssh"]
    # each name with the key of another host
    known = (
        lab.known_hosts.read_text().replace("h1,", "hX,").replace("h2,", "h1,").replace("198.18.0.12", "198.18.0.11")
    )
    wrong = tmp_path / "known_hosts"
    wrong.write_text("".join(line for line in known.splitlines(keepends=True) if not line.startswith("hX,")))
    argv = ["ssh", "-o", f"UserKnownHostsFile={wrong}", "h1", "true"]
    assert "verification failed" in lab.operator_run(argv, check=False).stderr
    argv = ["ssh", "-o", "UserKnownHostsFile=/dev/null", "h1", "true"]
    assert "verification failed" in lab.operator_run(argv, check=False).stderr
    (tmp_path / "file").write_text("through sftp\n")
    lab.operator_run(["scp", "-q", str(tmp_path / "file"), "ops@h1:"])
    assert lab.path("h1", "/home/ops/file").read_text() == "through sftp\n"


def test_a_home_of_the_operator_has_all_that_ssh_needs(lab):
    assert sorted(path.name for path in (lab.home / ".ssh").iterdir()) == [
        "config",
        "id_ed25519",
        "id_ed25519.pub",
        "known_hosts",
    ]
    assert lab.operator_run(["/usr/bin/ssh", "-F", str(lab.home / ".ssh/config"), "h1", "hostname"]).stdout == "h1\n"
    assert lab.identity.stat().st_mode & 0o777 == 0o600


def test_the_operator_has_the_files_of_the_machine_and_another_network(lab, tmp_path):
    script = f"ip -br link; pwd; echo $LAB_NAME; touch {tmp_path}/made"
    words = lab.operator_run(script, cwd=tmp_path).stdout.split()
    assert words[0] == "lo"
    assert words[1] in ("UP", "UNKNOWN")
    assert words[-2:] == [str(tmp_path), "shared"]
    assert (tmp_path / "made").exists()
    assert lab.ping("op", "h1")
    assert not lab.ping("op", "192.0.2.2", wait=0.2)


# ---------------------------------------------------------------------- the underlay


def test_underlay_v4_v6_and_mtu(lab):
    assert lab.hosts["h1"].address == "198.18.0.11"
    assert lab.hosts["h1"].address6 == "2001:db8:18::11"
    for target in ("h2", "2001:db8:18::13", "198.18.255.254", "2001:db8:18::fffe"):
        assert lab.ping("h1", target), target
    assert lab.ping("h1", "h2", size=9001 - 28, df=True)
    assert not lab.ping("h1", "h2", size=9001 - 27, df=True, wait=0.2)
    eth0 = lab.links("h1")["eth0"]
    assert (eth0["mtu"], eth0["address"]) == (9001, lab.hosts["h1"].mac)


def test_a_host_behind_a_bastion(folder):
    with Lab("inner", hosts=2, bastion=True, ipv6=True, directory=folder) as lab:
        assert not lab.ping("op", "h1", wait=0.2)
        assert not lab.ping("op", "2001:db8:18::11", wait=0.2)
        assert lab.ping("op", "bastion")
        assert lab.ping("bastion", "h1")
        assert lab.ping("h1", "h2")
        assert not lab.ping("h1", "198.19.255.254", wait=0.2)  # the bastion does not route
        client = lab.ssh("h2", "hostname; echo $SSH_CLIENT").stdout.split()
        assert client[:2] == ["h2", lab.bastion.inside]
        assert lab.ssh("bastion", "hostname").stdout == "bastion\n"


def test_a_wire_of_a_rate(folder):
    with Lab("wire", hosts=2, rate="100mbit", directory=folder) as lab:
        server = lab.popen("h2", ["iperf3", "-s", "-1"], stdout=subprocess.PIPE)
        wait_for(lambda: lab.run("h2", "ss -Hltn 'sport = :5201'").stdout, "iperf3 listens")
        done = lab.run("h1", ["iperf3", "-J", "-t", "4", "-i", "0.5", "-c", lab.hosts["h2"].address])
        server.wait(10)
        told = json.loads(done.stdout)
        sent = told["end"]["sum_received"]["bits_per_second"]
        best = max(part["sum"]["bits_per_second"] for part in told["intervals"])
        print(f"a wire of 100 Mbit/s carries {sent / 1e6:.0f}, in the best half second {best / 1e6:.0f}")
        assert best > 50e6
        assert sent < 110e6


def test_two_labs_do_not_see_each_other(lab, folder):
    with Lab("other", hosts=1, directory=folder) as other:
        assert other.hosts["h1"].address == lab.hosts["h1"].address
        assert set(other.hosts["h1"].keys).isdisjoint(lab.hosts["h1"].keys)
        other.run("h1", "echo other > /etc/which")
        assert lab.run("h1", "ls /etc/which", check=False).returncode
        assert not other.ping("op", "198.18.0.12", wait=0.2)
        assert other.ssh("h1", "hostname").stdout == "h1\n"
    assert lab.ping("op", "h2")


# ---------------------------------------------------------------------- power


def test_reboot_keeps_files_and_loses_the_rest(lab):
    lab.run(
        "h3", "echo kept > /var/lib/kept; echo lost > /run/lost; echo lost > /tmp/lost; ip link add br0 type bridge"
    )
    lab.run("h3", "setsid -f sleep 1000 >/dev/null 2>&1; nft add table inet lost")
    processes = [
        process
        for process in everything_in(lab)
        if _sys.namespace(process[0], "uts") == _sys.namespace(lab.hosts["h3"].pid, "uts")
    ]
    before, boot_id = lab.hosts["h3"], lab.run("h3", "cat /proc/sys/kernel/random/boot_id").stdout
    after = lab.reboot("h3")
    assert [pid for pid, start in processes if _sys.is_alive(pid, start)] == []
    assert (after.keys, after.mac, after.machine_id) == (before.keys, before.mac, before.machine_id)
    assert after.pid != before.pid
    assert lab.run("h3", "cat /proc/sys/kernel/random/boot_id").stdout != boot_id
    assert lab.run("h3", "cat /var/lib/kept; ls -A /tmp; ls /run").stdout.split() == [
        "kept",
        "lock",
        "sshd",
        "sshd.pid",
    ]
    assert sorted(lab.links("h3")) == ["eth0", "lo"]
    assert lab.run("h3", "nft list tables").stdout == ""
    assert lab.ssh("h3", "hostname").stdout == "h3\n"
    assert lab.ping("h1", "h3")


def test_reinstall_makes_another_machine_of_the_same_name(lab):
    lab.run("h3", "echo lost > /var/lib/lost")
    before = lab.hosts["h3"]
    after = lab.reinstall("h3")
    assert after.address == before.address
    assert after.machine_id != before.machine_id
    assert set(after.keys).isdisjoint(before.keys)
    assert lab.ssh("h3", "hostname; ls /var/lib/lost 2>/dev/null", check=False).stdout == "h3\n"


def test_kill_makes_unreachable_and_revive_undoes_it(lab):
    lab.run("h2", "ip link add keep type bridge")
    lab.kill("h2")
    assert not lab.ping("op", "h2", wait=0.2)
    assert lab.status()["hosts"]["h2"]["sshd"] is False
    assert lab.operator_run("ssh -o ConnectTimeout=1 h2 true", check=False).returncode == 255
    lab.revive("h2")
    assert lab.ssh("h2", "hostname").stdout == "h2\n"
    assert "keep" in lab.links("h2")
    lab.revive("h2")  # nothing to do


# ---------------------------------------------------------------------- stand-ins for containers


def test_container_stand_ins_on_a_bridge(lab):
    lab.run("h1", "ip link add br-test type bridge; ip link set br-test up; ip addr add 10.9.0.1/24 dev br-test")
    mac = "02:00:00:00:09:02"
    lab.container("h1", "web", "br-test", mac, ["10.9.0.2/24", "fd09::2/64"], "10.9.0.1", 1450)
    lab.container("h1", "a-rather-long-name", "br-test", address="10.9.0.3/24")
    assert lab.ping("h1", "10.9.0.3", container="web")
    assert lab.ping("h1", "10.9.0.1", container="a-rather-long-name")
    assert lab.ping("h1", "198.18.0.11", container="web")  # by its gateway
    eth0 = lab.links("h1", "web")["eth0"]
    assert (eth0["address"], eth0["mtu"]) == (mac, 1450)
    assert lab.links("h1")["vethweb"]["master"] == "br-test"
    assert lab.exec_container("h1", "web", "ls /sys/class/net").stdout.split() == ["eth0", "lo"]
    with pytest.raises(LabError, match="br-none"):
        lab.container("h1", "bad", "br-none", address="10.9.0.4/24")
    assert "bad" not in lab.run("h1", "ip netns").stdout
    lab.remove_container("h1", "web")
    lab.remove_container("h1", "web")
    assert "vethweb" not in lab.links("h1")


# ---------------------------------------------------------------------- up and down, in every order


def test_up_twice_and_with_other_options(folder):
    said: list[str] = []
    lab = Lab("twice", hosts=1, directory=folder, say=said.append)
    try:
        assert lab.up() is True
        pid = lab.hosts["h1"].pid
        assert Lab("twice", hosts=1, directory=folder).up() is False
        assert Lab.open("twice", folder).hosts["h1"].pid == pid
        said.clear()
        other = Lab("twice", hosts=2, directory=folder, say=said.append)
        assert other.up() is True
        assert "other options (hosts 1 -> 2)" in said[0]
        assert not _sys.is_alive(pid, lab.hosts["h1"].start)
    finally:
        assert lab.down() is True
        assert lab.down() is False
    with pytest.raises(LabError, match="is not up"):
        Lab.open("twice", folder)


@pytest.mark.parametrize(
    "moment",
    ["keeper-*.json", "log/h1.log", "log/h50.log", "state.json"],
    ids=["keeper", "first host", "later host", "nearly done"],
)
def test_a_killed_up_leaves_nothing_running(moment):
    name = f"killed-{os.getpid()}"
    root = CHECKOUT / ".lab" / name
    before = machine()
    process = subprocess.Popen(
        [sys.executable, "-m", "lab", "up", "--name", name, "--hosts", "60"], cwd=CHECKOUT, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: any(root.glob(moment)) or process.poll() is not None, moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        records = [json.loads(path.read_text()) for path in root.glob("keeper-*.json")]
        assert records
        if moment != "state.json":  # there it may have been quicker than we, and the lab be up
            assert process.returncode == -signal.SIGKILL
            wait_for(lambda: not any(_sys.is_alive(item["pid"], item["start"]) for item in records), "the keeper's end")
        cli("up", "--name", name, "--hosts", "2")
        lab = Lab.open(name)
        assert lab.ssh("h2", "hostname").stdout == "h2\n"
        processes = everything_in(lab)
    finally:
        process.kill()
        cli("down", "--name", name)
    assert not root.exists()
    assert not any(_sys.is_alive(*process) for process in processes)
    after = machine()
    for aspect in before.keys() & after.keys():
        assert after[aspect] == before[aspect], aspect


def test_a_killed_keeper_takes_all_with_it(folder):
    lab = Lab("keeper", hosts=2, directory=folder)
    lab.up()
    try:
        sleeper = lab.operator_popen(["sleep", "1000"])
        processes = [process for process in everything_in(lab) if process[0] != sleeper.pid]
        os.kill(lab._keeper_pid(), signal.SIGKILL)
        wait_for(lambda: not any(_sys.is_alive(*process) for process in processes), "end of its processes")
        with pytest.raises(LabError, match=r"not (run|up)"):
            lab.run("h1", "true")
        assert lab.up() is True
        assert sleeper.wait(5) != 0  # found by its mark
        assert lab.run("h1", "hostname").stdout == "h1\n"
    finally:
        lab.down()


def test_two_at_once_make_one_lab():
    name = f"race-{os.getpid()}"
    argv = [sys.executable, "-m", "lab", "up", "--name", name, "--hosts", "5"]
    try:
        both = [subprocess.Popen(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        said = sorted(process.communicate(timeout=60)[0].splitlines()[0] for process in both)
        assert "is up already" in said[0]
        assert "up in" in said[1]
    finally:
        cli("down", "--name", name)


def test_limits_of_the_machine_come_back_after_the_last_lab(tmp_path, monkeypatch):
    monkeypatch.setattr(_sysctl, "DIRECTORY", tmp_path / "record")
    values = {"a": 10, "b": 500}
    monkeypatch.setattr(_sysctl, "WANTED", {"a": 100, "b": 100})
    monkeypatch.setattr(_sysctl, "_read", values.get)
    monkeypatch.setattr(_sysctl, "_write", values.__setitem__)
    me = os.getpid(), _sys.start_time(os.getpid())
    _sysctl.acquire("one", *me)
    _sysctl.acquire("two", *me)
    assert values == {"a": 100, "b": 500}
    _sysctl.release("one")
    assert values["a"] == 100
    _sysctl.release("two")
    assert values == {"a": 10, "b": 500}
    assert not (tmp_path / "record").exists()
    # its user was killed, and then nobody asked for it again: the next lab still knows the old value
    _sysctl.acquire("killed", me[0], me[1] + 1)
    assert values["a"] == 100
    _sysctl.acquire("next", *me)
    _sysctl.release("next")
    assert values["a"] == 10
    # somebody changed it while we had it raised: theirs stays
    _sysctl.acquire("one", *me)
    values["a"] = 50
    _sysctl.release("one")
    assert values["a"] == 50


def test_a_pid_of_another_start_time_is_not_killed():
    with subprocess.Popen(["sleep", "1000"]) as process:
        start = _sys.start_time(process.pid)
        assert start is not None
        assert _sys.kill([(process.pid, start + 1)]) == []
        assert process.poll() is None
        assert _sys.kill([(process.pid, start)]) == []
        assert process.wait(5) == -signal.SIGKILL


def test_a_folder_of_somebody_else_is_left_alone(folder):
    (folder / "theirs").mkdir()
    (folder / "theirs" / "file").write_text("precious")
    for verb in ("up", "down"):
        with pytest.raises(LabError, match="not made by the lab"):
            getattr(Lab("theirs", hosts=1, directory=folder), verb)()
    assert (folder / "theirs" / "file").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "../x"}, "lab name"),
        ({"name": "x", "hosts": 251}, "hosts: 251 is not possible; 1 to 250 are"),
        ({"name": "x", "mtu": 1279, "ipv6": True}, "mtu: 1279"),
    ],
)
def test_impossible_wishes_are_refused(arguments, words):
    with pytest.raises(LabError, match=words):
        Lab(**arguments)


def test_a_command_that_fails_or_hangs_is_an_error_that_names_the_host(lab):
    with pytest.raises(LabError, match=r"h1: echo said; false: ended with 1\nsaid"):
        lab.run("h1", "echo said; false")
    with pytest.raises(LabError, match=r"h1: sleep 1000.3: not done after 0.2 s"):
        lab.run("h1", ["sleep", "1000.3"], timeout=0.2)
    assert lab.run("h1", "pgrep -f 1000[.]3", check=False).returncode == 1
    assert lab.run("h1", "cat", input="in and out").stdout == "in and out"
    with pytest.raises(LabError, match="no host 'h9'; there are h1, h2, h3"):
        lab.run("h9", "true")


def test_the_command_line():
    name = f"cli-{os.getpid()}"
    try:
        assert "is not there" in cli("down", "--name", name).stdout
        assert "up in" in cli("up", "--name", name, "--hosts", "2").stdout
        assert "is up already" in cli("up", "--name", name, "--hosts", "2").stdout
        assert cli("status", "--name", name).stdout.count(" up\n") == 2
        assert name in cli("list").stdout.split()
        assert cli("exec", "--name", name, "--", "ssh", "ops@h2", "hostname").stdout == "h2\n"
        assert cli("exec", "--name", name, "--home", "--", "sh", "-c", "echo $HOME").stdout.endswith(f"{name}/home\n")
        assert cli("exec", "--name", name, "--host", "h1", "--", "hostname").stdout == "h1\n"
        assert cli("ssh", "--name", name, "h1", "hostname").stdout == "h1\n"
        assert cli("ssh", "--name", name, "-T", "-l", "ops", "h1", "id", "-un").stdout == "ops\n"
        cli("exec", "--name", name, "--host", "h1", "--", "ip", "link", "add", "br0", "type", "bridge")
        cli("container", "add", "--name", name, "h1", "web", "--bridge", "br0", "--address", "10.0.0.2/24")
        assert "10.0.0.2/24" in cli("container", "exec", "--name", name, "h1", "web", "--", "ip", "addr").stdout
        cli("container", "rm", "--name", name, "h1", "web")
        assert "reboot done" in cli("reboot", "--name", name, "h1").stdout
        failed = cli("ssh", "--name", name, "h7", "true", check=False)
        assert (failed.returncode, failed.stderr) == (1, f"lab: lab {name}: no host 'h7'; there are h1, h2\n")
    finally:
        assert "down in" in cli("down", "--name", name).stdout
