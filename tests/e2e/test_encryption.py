"""Document 001 encrypted, by the real CLI; the hosts are in the VM where this kernel has no WireGuard.

What passes between the hosts is WireGuard's, no key is anywhere but on its host, and a host gets a new one while the
others go on.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import time

import pytest
import yaml

from tests.e2e.test_secrets import places_with, process_lists

pytestmark = [pytest.mark.root, pytest.mark.timeout(1500)]

SHARED = base64.b64encode(bytes(range(100, 132))).decode()
KEYS = "/var/lib/overlay/keys/overlay/doc-001-encrypted"
#: What is no segment's: SSH, WireGuard, and who asks for whose MAC address.
_OTHERS = "not tcp port 22 and not udp port 51820 and not arp and not icmp6"


def set_shared_key(stack):
    stack.run("config", "set", "--path", "--secret", "overlay:encryption.presharedKey", SHARED).ok()
    stack.config = yaml.safe_load(stack.file.read_text())["config"]
    assert set(stack.config["overlay:encryption"]["presharedKey"]) == {"secure"}


def wireguard(lab, host):
    """Of the host's one device: the public key; and by peer's key its shared key and its address."""
    lines = lab.run(host, ["wg", "show", "all", "dump"]).stdout.splitlines()
    mine, *peers = (line.split("\t") for line in lines)
    return mine[2], {row[1]: (row[2], row[4]) for row in peers}


def private_keys(stack):
    """Of every host, in all their generations."""
    return {host: stack.lab.run(host, ["sh", "-c", f"cat {KEYS}/*"]).stdout.split() for host in stack.hosts}


def seen_on_the_wire(lab, host, what, seconds):
    words = ["timeout", str(seconds), "tcpdump", "-nn", "-l", "-i", "eth0", what]
    return lab.popen(host, words, stdout=-1, stderr=-3)


def in_the_clear(value):
    """The ways in which a key might turn up."""
    raw = base64.b64decode(value)
    return {value.rstrip("=").encode(), raw, raw.hex().encode(), base64.b64encode(value.encode()).rstrip(b"=")}


@pytest.mark.lab(hosts=5, kinds=["wireguard"])
@pytest.mark.stack("doc-001-encrypted")
def test_doc_001_encrypted(stack, record_property):
    lab = stack.lab
    stack.config["overlay:encryption"] = {"kind": "wireguard"}
    set_shared_key(stack)
    preview = stack.preview().ok()
    assert "<public key of h2>" in preview, "a key that is yet to be made is a word, not [unknown]"
    with process_lists(lab, in_the_clear(SHARED)):
        first = stack.up().ok()
    for host in stack.hosts:
        assert re.search(rf"-{host}-document creating .*: created \(wireguard, ", first)
    assert {stack.logins(host) for host in stack.hosts} == {5}, "agent, installation, key, secret, document"
    told = stack.outputs()["publicKeys"]
    for host in stack.hosts:
        key, peers = wireguard(lab, host)
        assert key == told[host]
        assert set(peers) == set(told.values()) - {key}
        assert {shared for shared, _ in peers.values()} == {SHARED}
        inside = {allowed for _, allowed in peers.values()}
        assert len(inside) == 4
        assert all(re.fullmatch(r"fd[0-9a-f:]+/128", one) for one in inside)
    links = lab.links("h1")
    assert {name: links[name]["mtu"] for name in ("vxbr0", "vx-lxd")} == {"vxbr0": 1370, "vx-lxd": 1370}
    stack.healthy()

    plugged = stack.plug_in()
    assert {row["mtu"] for row in stack.outputs()["containers"]["lxd"].values()} == {1370}
    [_, (h2, c2, _), (_, _, a3), *_] = plugged["lxd"]
    watch = [seen_on_the_wire(lab, "h1", what, 60) for what in (_OTHERS, "udp port 51820")]
    stack.all_reach_all(plugged)
    full = ["ip", "netns", "exec", c2, "ping", "-c", "1", "-W", "5", "-M", "do", "-s", str(1370 - 28), a3]
    assert lab.run(h2, full, check=False).returncode == 0, "a packet of the MTU passes whole"
    for process in watch:
        process.terminate()
    plain, ours = (process.communicate()[0] for process in watch)
    assert plain == ""
    assert ours.count("51820: UDP") >= 8, "what c1 and the four others said to each other"
    stack.noop()

    new_key_of_h3(stack, plugged["lxd"], record_property)
    secrets = {key for keys in private_keys(stack).values() for key in keys}
    assert len(secrets) == 5
    nowhere_but_there(stack, secrets | {SHARED})

    for rows in plugged.values():
        for host, name, _ in rows:
            lab.remove_container(host, name)
    stack.destroy().ok()
    stack.clean()


def answers(lab, host, container, address):
    """Pings the address ten times a second until the function that is returned is called, which gives the numbers of
    those that were answered, and when. (A signal would end the connection to the VM, and not a ping that counts.)"""
    words = ["ip", "netns", "exec", container, "ping", "-n", "-i", "0.1", "-D", address]
    ping = lab.popen(host, words, stdout=-1, stderr=-2)
    time.sleep(3)

    def end():
        ping.terminate()
        rows = re.findall(r"\[([\d.]+)\] \d+ bytes .*icmp_seq=(\d+) ", ping.communicate()[0])
        return [int(number) for _, number in rows], [float(when) for when, _ in rows]

    return end


def new_key_of_h3(stack, rows, record_property):
    """Only what goes to h3 is lost, and only until its peers know the key."""
    lab, told = stack.lab, stack.outputs()["publicKeys"]
    (h1, c1, _), (_, _, a2), (_, _, a3), *_ = rows
    old = private_keys(stack)
    stack.hosts["h3"]["wireguard"] = {"keyGeneration": 2}
    assert re.search(r"~ publicKey *: .* => \"<public key of h3>\"", stack.preview().ok())
    to_h2, to_h3 = (answers(lab, h1, c1, address) for address in (a2, a3))
    text = stack.up().ok()
    assert lab.ping(h1, a3, container=c1, wait=15)  # WireGuard repeats a handshake after 5 s
    (sent_to_h2, _), (_, times) = to_h2(), to_h3()
    assert sent_to_h2 == [*range(1, len(sent_to_h2) + 1)], "nothing to another host was lost"
    record_property("seconds without h3", round(max(b - a for a, b in itertools.pairwise(times)), 2))
    now = stack.outputs()["publicKeys"]
    assert {host for host in now if now[host] != told[host]} == {"h3"}
    new = private_keys(stack)
    assert {host for host in new if new[host] != old[host]} == {"h3"}
    assert lab.run("h3", ["ls", KEYS]).stdout.split() == ["2"], "the old key is gone"
    assert re.search(rf"-h1-document updating .*: peer h3 publicKey {re.escape(told['h3'])} -> ", text)
    nowhere_but_there(stack, {key for keys in old.values() for key in keys})


def nowhere_but_there(stack, secrets):
    """No key in the state, in what was printed, in Pulumi's own log, in sshd's, in a list of processes."""
    spelled = {one for secret in secrets for one in in_the_clear(secret)}
    # Pulumi's own log at its most talkative has whatever its program was given, the operator's SSH key for one, so
    # the shared key is not looked for there; what never left its host is.
    log, _ = stack.popen("up", "--yes", "--skip-preview", "-v=9", "--logtostderr").communicate()
    assert "unchanged" in log
    made = {one for secret in secrets - {SHARED} for one in in_the_clear(secret)}
    assert not [one for one in made if one in log.encode()]
    texts = {
        "transcript": stack.transcript,
        "export": stack.run("stack", "export").ok(),
        **{f"sshd of {host}": stack.lab.log(host) for host in stack.hosts},
        **{
            f"processes of {host}": stack.lab.run(host, ["sh", "-c", "cat /proc/[0-9]*/cmdline"], check=False).stdout
            for host in stack.hosts
        },
        "documents": json.dumps([row.get("inputs") for row in stack.state().values()]),
    }
    found = [place for place, text in texts.items() for one in spelled if one in text.encode()]
    assert not found
    assert places_with(spelled, stack.directory) == []
