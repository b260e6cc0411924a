"""The agent comes with the first stack, is never downgraded, and goes with the last."""

from __future__ import annotations

import shutil
import subprocess
import zipfile

import pytest
from agent_support import MACHINE, OWNER, PYTHON, bridge, document, usual, vxlan

OTHER = {"project": "p", "stack": "t", "id": "id-of-t"}
FOLDERS = ("/usr/local/sbin", "/usr/local/lib/overlay-agent", "/var/lib/overlay", "/etc/systemd/system", "/run")
STUB = '#!/bin/sh\necho "$@" >> /run/systemctl.log\n'


@pytest.fixture
def bare(new_host):
    return new_host(agent=False)


def left(host):
    """Every file of the agent's on the host."""
    listing = host.run("sh", "-c", f"find {' '.join(FOLDERS)} -type f | sort").out.split()
    return [path for path in listing if not path.startswith(("/run/machine-id", "/run/systemctl", "/run/systemd"))]


def uninstall(host, owner=OWNER, **more):
    import json

    request = {"owner": owner, "host": "a", **more}
    return host.run("/usr/local/sbin/overlay-agent", "uninstall", text=json.dumps(request), check=False)


def of_version(archive, version, folder):
    """The same archive with another version in it."""
    changed = folder / f"agent-{version}.pyz"
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(changed, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename == "overlay_agent/__init__.py":
                content = content.replace(b'__version__ = "0.1.0"', f'__version__ = "{version}"'.encode())
                assert version.encode() in content
            if info.filename == "digest.json":
                content = content.replace(b'"digest": "', b'"digest": "' + version[0].encode())
            new.writestr(info, content)
    return changed


def test_install_use_uninstall_leaves_nothing(bare):
    before = left(bare)
    done = bare.install()
    assert (done.code, done.report, done.lines) == (0, {"host": "a", "machine": MACHINE}, [])
    assert bare.install().out == done.out
    bare.apply(usual())
    done = uninstall(bare)
    assert (done.code, done.report) == (0, {"host": "a", "removed": True})
    assert done.lines == ["br-app: removed", "vx-app: removed", "a: agent removed"]
    assert left(bare) == before == []
    assert {row["ifname"] for row in bare.json("ip -j link")} == {"lo", "u0", "u1"}


def test_it_starts_from_bytecode(bare):
    bare.install()
    folder = bare.run("sh", "-c", "echo /usr/local/lib/overlay-agent/0*").out.strip()
    code = "import sys; sys.path.insert(0, sys.argv[1]); import overlay_agent.kernel as k; print(k.__cached__)"
    cached = bare.run(PYTHON, "-ISB", "-c", code, folder).out.strip()
    bare.run("test", "-f", cached)
    # Its names for files are those of where it is, and not of where it was unpacked.
    error = bare.run(
        PYTHON,
        "-ISB",
        "-c",
        code.replace("print(k.__cached__)", "print(k.Kernel.__init__.__code__.co_filename)"),
        folder,
    )
    assert error.out.strip() == f"{folder}/overlay_agent/kernel.py"


def test_the_second_stack_keeps_the_agent(bare):
    bare.install()
    bare.install(owner=OTHER)
    bare.apply(usual())
    bare.apply(
        document(owner=OTHER, br_two=bridge(mac="02:00:00:00:00:03"), vx_two=vxlan(vni=7, mac="02:00:00:00:00:04"))
    )
    done = uninstall(bare)
    assert (done.report, done.lines[-1]) == ({"host": "a", "removed": False}, "a: the agent stays, for p/t")
    assert {row["ifname"] for row in bare.json("ip -j link")} == {"lo", "u0", "u1", "br-two", "vx-two"}
    assert uninstall(bare, OTHER).report == {"host": "a", "removed": True}
    assert left(bare) == []


def test_it_is_never_downgraded(bare, agent_archive, tmp_path):
    newer = of_version(agent_archive, "9.0.0", tmp_path)
    assert bare.install(archive=newer).lines == []
    done = bare.install(owner=OTHER)
    assert done.code == 0
    assert done.lines[0].startswith("agent 9.0.0-9")
    assert done.lines[0].endswith(" is newer than 0.1.0; kept")
    assert bare.agent("version").out == "9.0.0\n"


def test_it_is_updated(bare, agent_archive, tmp_path):
    bare.install(archive=of_version(agent_archive, "0.0.9", tmp_path))
    bare.apply(usual())
    assert bare.install().code == 0
    assert bare.agent("version").out == "0.1.0\n"
    assert bare.run("ls /usr/local/lib/overlay-agent").out.count("\n") == 1
    assert "nothing to do" in bare.apply(usual()).err


def test_a_machine_that_never_saw_the_stack(bare):
    done = bare.install("known")
    assert (done.code, done.lines) == (1, [
        (f"a: this machine (id {MACHINE}) does not know stack p/s, but a had it; if the machine was replaced or "
        "reinstalled, raise overlay:hosts.a.generation (now 1); if its address is wrong, mend that; if it is another "
        "host, give it another name")
    ])  # fmt: skip
    assert left(bare) == ["/run/overlay.lock"]
    assert bare.install("new").code == 0
    assert bare.install("known").code == 0


def test_generations(bare):
    assert bare.install("new", generation=2).code == 0
    assert bare.install("known", generation=1).code == 1
    # The replaced machine's delete comes late, and to the new machine: left alone.
    done = uninstall(bare, generation=1)
    assert (done.code, done.lines) == (0, ["a: stack p/s was installed here anew since; left alone"])
    assert bare.agent("version").out == "0.1.0\n"
    assert uninstall(bare, generation=2).report == {"host": "a", "removed": True}


def test_another_checkout(bare):
    bare.install()
    done = bare.install(owner={**OWNER, "id": "another"})
    assert (done.code, done.lines) == (1, [
        ("a: stack p/s on this host belongs to another checkout or state (id id-of-s, this one is another); give this "
        "stack another name, or remove the other's devices first: overlay-agent remove p/s")
    ])  # fmt: skip
    assert uninstall(bare, {**OWNER, "id": "another"}).lines == [
        "a: stack p/s was installed here anew since; left alone"
    ]


def test_uninstall_is_refused_while_containers_are_on_the_bridge(bare):
    bare.install()
    bare.apply(usual())
    bare.run("ip link add c0 type veth peer name c1")
    bare.run("ip link set c0 master br-app")
    assert uninstall(bare).code == 1
    assert bare.agent("version").out == "0.1.0\n"
    assert uninstall(bare, force=True).report == {"host": "a", "removed": True}


def test_what_was_cut_short_is_ended_first(bare):
    bare.install()
    bare.apply(usual())
    for verb in ("install", "uninstall"):
        bare.apply(usual(vni=43), code=None, OVERLAY_FAULT="3:all")
        done = bare.install() if verb == "install" else uninstall(bare)
        assert done.lines[0] == "stack p/s: an apply was cut short; undone"
    assert left(bare) == []


def test_rubbish_for_install(bare):
    done = bare.run(PYTHON, bare.archive, "install", text="{", check=False)
    assert done.code == 1
    assert done.err.startswith("overlay-agent: standard input is not JSON (")
    done = bare.run(PYTHON, bare.archive, "install", text='{"a": 1}', check=False)
    assert (done.code, done.lines) == (1, ["install: {'a': 1} is not what the program sends"])


#: What is restored, by which unit, and what that one follows and precedes.
RESTORE_UNITS = [
    ("own", "overlay-restore.service", "", "docker.service "),
    ("docker", "overlay-restore-docker.service", " docker.service overlay-restore.service", ""),
]


def test_under_systemd_it_is_started_at_boot(bare, tmp_path):
    bare.run("mkdir -p /run/systemd/system")
    stub = tmp_path / "systemctl"
    stub.write_text(STUB)
    stub.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin"}
    bare.install(env=path)
    assert bare.run("cat /run/systemctl.log").out.splitlines() == [
        "-q daemon-reload", "-q enable overlay-restore.service overlay-restore-docker.service",
    ]  # fmt: skip
    for which, unit, after, before in RESTORE_UNITS:
        text = bare.run(f"cat /etc/systemd/system/{unit}").out
        for line in (
            f"ExecStart=/usr/local/sbin/overlay-agent restore {which}", "Type=oneshot", "Restart=on-failure",
            "RestartSec=5", f"After=network-online.target{after}",
            f"Before={before}lxc.service lxc-net.service lxd.service incus.service", "WantedBy=multi-user.target",
        ):  # fmt: skip
            assert line in text.splitlines()
        if shutil.which("systemd-analyze"):
            done = bare.run("systemd-analyze", "verify", "--man=no", f"/etc/systemd/system/{unit}", check=False)
            assert "overlay-restore" not in done.err, done.err
    bare.run("rm /run/systemctl.log")
    import json

    done = bare.run(
        "/usr/local/sbin/overlay-agent", "uninstall", text=json.dumps({"owner": OWNER, "host": "a"}), env=path
    )
    assert done.report == {"host": "a", "removed": True}
    assert bare.run("cat /run/systemctl.log").out.splitlines() == [
        "-q disable --now overlay-restore.service overlay-restore-docker.service", "-q daemon-reload",
    ]  # fmt: skip
    assert left(bare) == []


def test_no_systemd_no_unit(bare):
    bare.install()
    assert bare.run("ls /etc/systemd/system").out == ""


def test_the_lock_of_an_agent_that_was_removed_keeps_nobody_out(bare):
    """Whoever waited for it sees that its file is gone, and takes the new one."""
    bare.install()
    waiting = bare.popen(
        "sh", "-c", "exec 9>/run/overlay.lock; flock 9; echo held; sleep 0.5; rm /run/overlay.lock",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert waiting.stdout.readline() == b"held\n"
    bare.apply(usual())
    waiting.wait()
    waiting.stdout.close()
    bare.run("test -f /run/overlay.lock")
