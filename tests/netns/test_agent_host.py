"""Bad input and faults: one clear error each, the host as it was, and the next apply simply works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest
from agent_support import MACHINE, bridge, document, usual, vxlan

AGENT = "/usr/local/sbin/overlay-agent"
NOTHING = "nothing was changed"


def refused(host, wanted, *errors, **more):
    """The apply is refused with exactly these errors, and nothing is changed."""
    state, files = host.state(), host.files()
    assert host.apply(wanted, code=1, **more).lines == [*errors, NOTHING]
    assert host.state() == state
    assert host.files() == files


def test_a_foreign_device_of_that_name(host):
    host.run("ip link add br-app type bridge")
    refused(
        host, usual(),
        "a br-app: a device of that name (bridge) is there and is not ours; give ours another name (ifname, or "
        "bridge.name), or remove that one: ip link delete br-app; adopt: true takes it over",
    )  # fmt: skip
    host.run("ip link delete br-app")
    host.apply(usual())


def test_a_device_of_another_stack(host):
    other = {"project": "p", "stack": "t", "id": "id-of-t"}
    host.apply(document(owner=other, br_app=bridge(mac="02:00:00:00:00:03")))
    refused(
        host, usual(),
        "a br-app: a device of that name (bridge) is there and belongs to overlay:p/t/br-app; give ours another name "
        "(ifname, or bridge.name), or remove that one: ip link delete br-app",
    )  # fmt: skip


def test_another_checkout_with_the_same_names(host):
    host.apply(usual())
    twin = {**usual(), "owner": {"project": "p", "stack": "s", "id": "another"}}
    refused(
        host, twin,
        "a: stack p/s on this host belongs to another checkout or state (id id-of-s, this one is another); give this "
        "stack another name, or remove the other's devices first: overlay-agent remove p/s",
    )  # fmt: skip


def test_another_machine(host):
    refused(
        host, {**usual(), "machine": "f" * 32},
        f"a: this machine's id is {MACHINE}, but a is {'f' * 32} in stack p/s; if the machine was replaced, raise "
        "overlay:hosts.a.generation; if its address is wrong, mend that; if it is another host, give it another name",
    )  # fmt: skip


def test_a_machine_without_an_id(new_host):
    host = new_host(machine="uninitialized")
    assert host.apply(usual(), code=1).lines == [
        "/etc/machine-id: 'uninitialized' is not a machine id; make one with systemd-machine-id-setup"
    ]


def test_local_is_not_here(host):
    refused(
        host, usual(local="198.18.0.99"),
        "a vx-app: local '198.18.0.99' is not an address of this host; set hosts.a.underlay.local (behind NAT it "
        "differs from the address that peers send to)",
    )  # fmt: skip


def test_the_underlays_device_is_not_here(host):
    refused(
        host, usual(device="eth7"),
        "a vx-app: device 'eth7' is not on this host; name the underlay's NIC in underlay.device",
    )  # fmt: skip


def test_the_underlays_mtu_is_too_small(host):
    host.run("ip link set u0 mtu 1400")
    refused(host, usual(), "a vx-app: mtu 1450 needs an underlay of 1500, but u0 has 1400; set hosts.a.mtu: 1400")


def test_the_vni_is_taken(host):
    host.run("ip link add vx-other type vxlan id 42 dstport 4789 local 198.18.0.11")
    refused(host, usual(), "a vx-app: vni 42 on port 4789 is taken on this host by vx-other; use another vni or port")


def test_a_bridge_of_the_host_that_is_not_there(host):
    refused(host, document(vx_app=vxlan(bridge="lxcbr0")), "a vx-app: bridge 'lxcbr0' is not on this host; declare it")


def test_a_bridge_with_containers_is_not_removed(host):
    host.apply(usual())
    host.run("ip link add c0 type veth peer name c1")
    host.run("ip link set c0 up master br-app")
    sentence = (
        "a br-app: still has ports that are not ours (c0), probably of running containers; stop those first, or set "
        "overlay:hosts.a.force: true"
    )
    refused(host, document(), sentence)
    state = host.state()
    assert host.agent("remove", "p/s", code=1).lines == [sentence, NOTHING]
    assert host.state() == state
    host.agent("remove", document={**usual(), "force": True})
    assert {row["ifname"] for row in host.json("ip -j link")} == {"lo", "u0", "u1", "c0", "c1"}


def test_all_reasons_at_once(host):
    host.run("ip link add br-app type bridge")
    done = host.apply({**usual(local="198.18.0.99", device="eth7"), "machine": "f" * 32}, code=1)
    assert len(done.lines) == 5


def test_a_document_that_is_none(host):
    big = host.run(AGENT, "apply", text=" " * (4 * 1024 * 1024 + 1), check=False)
    assert (big.code, big.err) == (1, "document: 4194305 bytes; at most 4194304 are taken\n")
    none = host.run(AGENT, "apply", text="nonsense", check=False)
    assert (none.code, none.lines) == (
        1, ["document: not JSON (Expecting value: line 1 column 1 (char 0)); send what the program wrote"],
    )  # fmt: skip


@pytest.mark.parametrize("words", [[], ["frobnicate"], ["apply", "p/s"], ["check", "p/s", "p/t"]])
def test_wrong_usage(host, words):
    done = host.run(AGENT, *words, check=False) if words else host.run("sh", "-c", AGENT, check=False)
    assert done.code == 64
    assert done.err.startswith("usage: overlay-agent VERB\n")


def test_only_root(host):
    done = host.run("setpriv", "--reuid=65534", "--clear-groups", AGENT, "check", check=False)
    assert (done.code, done.err) == (1, "overlay-agent: must run as root, not as uid 65534; use sudo -n\n")


@pytest.mark.parametrize("before", [None, usual()], ids=["from nothing", "a change"])
def test_the_session_is_gone_before_the_report(host, before):
    if before:
        host.apply(before)
    state, files = host.state(), host.files()
    receive, send = os.pipe()
    os.close(receive)
    agent = host.popen(AGENT, "apply", stdin=subprocess.PIPE, stdout=send, stderr=subprocess.PIPE)
    os.close(send)
    err = agent.communicate(json.dumps(usual(vni=43)).encode())[1].decode()
    assert agent.returncode == 1
    assert err.splitlines()[-1] == (
        "a: nobody took the report (the SSH session is gone); undone, the host is as it was"
    )
    assert host.state() == state
    assert host.files() == files
    host.apply(usual(vni=43))


@pytest.mark.parametrize("before", [None, usual()], ids=["from nothing", "a change"])
def test_the_session_is_gone_before_the_lines(host, before):
    """As Pulumi calls it: nobody asks for the report."""
    if before:
        host.apply(before)
    state, files = host.state(), host.files()
    receive, send = os.pipe()
    os.close(receive)
    agent = host.popen(AGENT, "apply", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=send)
    os.close(send)
    agent.communicate(json.dumps(usual(vni=43)).encode())
    assert agent.returncode == 1
    assert host.state() == state
    assert host.files() == files
    host.apply(usual(vni=43))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_in_the_middle(host, number):
    host.apply(usual())
    state, files = host.state(), host.files()
    many = usual(vni=43)
    many["devices"].update(
        {f"br-{i}": bridge(mac=f"02:00:00:00:01:{i:02x}", addresses={f"10.11.{i}.1/24": {}}) for i in range(150)}
    )
    agent = host.popen(AGENT, "apply", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    agent.stdin.write(json.dumps(many).encode())
    agent.stdin.close()
    while not any("journal" in path for path in host.files()):
        assert agent.poll() is None
    agent.send_signal(number)
    agent.wait(120)
    lines = agent.stderr.read().decode().splitlines()
    assert lines[-1] == f"a: the apply was ended by {number.name}; undone, the host is as it was"
    assert agent.stdout.read() == b""
    agent.stdout.close()
    agent.stderr.close()
    assert host.state() == state
    assert host.files() == files


def test_the_guard_is_killed_alone(host):
    """Its worker finds that nobody listens any more, and undoes."""
    host.apply(usual())
    state, files = host.state(), host.files()
    many = usual(vni=43)
    many["devices"].update({f"br-{i}": bridge(mac=f"02:00:00:00:01:{i:02x}") for i in range(100)})
    agent = host.popen(AGENT, "apply", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    agent.stdin.write(json.dumps(many).encode())
    agent.stdin.close()
    while not any("journal" in path for path in host.files()):
        assert agent.poll() is None
    agent.kill()
    lines = agent.stderr.read().decode().splitlines()  # ends with the worker
    agent.wait()
    agent.stdout.close()
    agent.stderr.close()
    assert lines == ["a: the agent's first process was killed; undone, the host is as it was"]
    assert host.state() == state
    assert host.files() == files


def test_the_disk_is_full(new_host):
    host = new_host(size="256k")
    host.apply(usual())
    host.run("sh", "-c", "dd if=/dev/zero of=/var/lib/overlay/filler bs=4k 2>/dev/null; true")
    state, files = host.state(), host.files()
    done = host.apply(usual(vni=43), code=1)
    assert done.lines == [
        (
            "a /var/lib/overlay/journal.json: cannot be written (No space left on device); make room or mend the disk; "
            "nothing had been changed"
        )
    ]
    assert (host.state(), host.files()) == (state, files)
    assert host.agent("check").report == {"drift": []}
    host.run("rm /var/lib/overlay/filler")
    host.apply(usual(vni=43))


def test_the_disk_is_full_after_the_journal(new_host):
    """The new document does not fit any more: undone, although nothing can be written."""
    host = new_host(size="128k")
    host.apply(usual())
    many = usual(peers=())
    many["devices"]["vx-app"]["peers"] = {f"h{i}": f"198.19.{i // 250}.{i % 250 + 1}" for i in range(1000)}
    size = len(json.dumps(many, indent=1)) // 4096 + 1
    # Room for the journal, which holds the new document too, but not for both; the history has a page.
    room = 36 - 2 * size
    host.run("sh", "-c", f"dd if=/dev/zero of=/var/lib/overlay/filler bs=4k count={room} 2>/dev/null; true")
    state, files = host.state(), host.files()
    done = host.apply(many, code=1)
    assert done.lines == [
        (
            "a /var/lib/overlay/stacks/p/s.json: cannot be written (No space left on device); make room or mend the "
            "disk; undone, the host is as it was"
        )
    ]
    assert (host.state(), host.files()) == (state, files)


def test_two_at_once_go_one_after_the_other(host):
    applies = [
        host.popen(AGENT, "apply", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for vni, apply in zip(range(40, 44), applies, strict=False):
        apply.stdin.write(json.dumps(usual(vni=vni)).encode())
        apply.stdin.close()
        apply.stdin = None
    for apply in applies:
        apply.communicate(timeout=60)
    assert [apply.returncode for apply in applies] == [0] * 4
    assert host.agent("check").report == {"drift": []}


def test_who_holds_the_lock_is_named(host):
    holder = host.popen(
        "sh", "-c", "exec 9>/run/overlay.lock; flock 9; echo 'stack p/t (pid 77)' >&9; echo held; exec sleep 60",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout.readline() == b"held\n"
    begun = time.monotonic()
    done = host.apply(usual(), code=1, OVERLAY_LOCK_SECONDS="0.5")
    assert time.monotonic() - begun < 30  # of the 60 that are usual
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert done.lines == [
        (
            "lock /run/overlay.lock: held by stack p/t (pid 77) for more than 0.5 s; wait until it has ended, then run "
            "`pulumi up` again"
        )
    ]
    host.apply(usual())


IN_PROCESS = """
import sys
sys.path.insert(0, {folder!r})
from overlay_agent import kernel
create = kernel.Kernel.create_link
def renamed(self, name, kind, **more):
    if kind == "vxlan":  # pyroute2 has no attributes for it either
        kind, more["data"] = "vxlanx", None
    create(self, name, kind, **more)
kernel.Kernel.create_link = renamed
from overlay_agent.__main__ import main
sys.exit(main(["apply"]))
"""


def test_a_kernel_without_the_kind(host):
    """The kernel's own answer to a kind that it lacks; what was made before it is undone."""
    folder = host.run("sh", "-c", "echo /usr/local/lib/overlay-agent/0*").out.strip()
    state = host.state()
    done = host.run(
        "/usr/bin/python3", "-I", "-c", IN_PROCESS.format(folder=folder), text=json.dumps(usual()), check=False
    )
    assert (done.code, done.lines) == (1, [
        ("a vx-app: create vxlanx: Unknown device type; this kernel has no vxlan: load its module (modprobe vxlan; on "
        "some clouds it is in the package linux-modules-extra), or boot a kernel built with CONFIG_VXLAN; undone, the "
        "host is as it was")
    ])  # fmt: skip
    assert host.state() == state
    assert host.files() == {}


def test_the_reports_of_equal_documents_are_equal(host):
    reports = [host.apply(usual()).out for _ in range(2)]
    assert reports[0] == reports[1]
    assert json.loads(reports[0]) == {
        "host": "a", "machine": MACHINE,
        "devices": {"br-app": {"kind": "bridge", "mtu": 1450}, "vx-app": {"kind": "vxlan", "mtu": 1450}},
    }  # fmt: skip


def test_probe(host):
    report = host.agent("probe").report
    assert report["machine"] == MACHINE
    assert set(report) == {"machine", "hostname", "kernel", "python", "systemd", "commands"}


def test_check_and_explain_of_an_unknown_stack(host):
    assert host.agent("check", "p/s", code=2).lines == ["stack p/s: no document of it is here; run `pulumi up`"]
    assert host.agent("explain", "p/s", code=1).lines == ["stack p/s: has nothing here; nothing to explain"]
    assert host.agent("remove", "p/s").lines == ["stack p/s: has nothing here; already removed"]
