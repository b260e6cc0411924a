"""Secret values: kept for root alone, as long as a document refers to them, and shown to nobody."""

from __future__ import annotations

import json

import pytest
from agent_support import MACHINE, OWNER, document, usual

FOLDER = "/var/lib/overlay/secrets/p/s"
COOKIE, KEY = "cookie-app-core:0123456789abcdef", "psk-app:fedcba9876543210"
#: So that they can be looked for in whatever the agent says.
VALUES = {COOKIE: "c00c1ec00c1ec00c", KEY: "5ec2e75ec2e75ec2" * 4}


def request(secrets=VALUES, **more):
    return {"schema": 1, "owner": OWNER, "host": "a", "machine": MACHINE, "secrets": secrets, **more}


def send(host, secrets=VALUES, code=0, **more):
    done = host.agent("secrets", document=request(secrets, **more), code=code)
    for value in [*VALUES.values(), *map(str, secrets.values() if isinstance(secrets, dict) else ())]:
        assert len(value) < 4 or value not in done.out + done.err, done
    return done


def kept(host):
    """What is there: mode and value by path."""
    script = (
        "cd /var/lib/overlay && test ! -d secrets || find secrets -mindepth 0 | sort | "
        'while read -r path; do test -d "$path" && value=- || value=$(od -An -v -tx1 "$path" | tr -d " \\n"); '
        'echo "$(stat -c %a "$path") $path $value"; done'
    )
    rows = [line.split() for line in host.run("sh", "-c", script).out.splitlines()]
    return {path: (mode, value) for mode, path, value in rows}


def names(host):
    return sorted(path.rsplit("/", 1)[1] for path, (_, value) in kept(host).items() if value != "-")


def test_kept_for_root_alone(host):
    done = send(host)
    assert done.report == {"host": "a", "machine": MACHINE, "secrets": [COOKIE, KEY]}
    assert done.lines == ["a: 2 secrets, 2 of them new"]
    assert kept(host) == {
        "secrets": ("700", "-"),
        "secrets/p": ("700", "-"),
        "secrets/p/s": ("700", "-"),
        f"secrets/p/s/{COOKIE}": ("600", VALUES[COOKIE]),
        f"secrets/p/s/{KEY}": ("600", VALUES[KEY]),
    }


def test_again_is_quiet(host):
    first = send(host)
    host.run("chmod", "644", f"{FOLDER}/{COOKIE}")
    again = send(host)
    assert (again.out, again.lines) == (first.out, ["a: 2 secrets, 1 of them new"])
    assert send(host).lines == ["a: 2 secrets here already"]
    assert kept(host)[f"secrets/p/s/{COOKIE}"] == ("600", VALUES[COOKIE])


def test_what_nothing_refers_to_goes(host):
    send(host)
    send(host, {KEY: VALUES[KEY]})
    assert names(host) == [KEY]
    host.apply(document())
    assert kept(host) == {}


def test_restore_keeps_what_the_next_document_needs(host):
    host.apply(usual())
    send(host)
    host.agent("restore")
    assert names(host) == [COOKIE, KEY]


def test_remove_and_a_stack_without_document(host):
    host.apply(usual())
    send(host)
    host.agent("remove", "p/s")
    assert host.files() == {}
    send(host)
    done = host.agent("remove", "p/s")
    assert done.lines == ["stack p/s: has nothing here; already removed"]
    assert kept(host) == {}


def test_uninstall_takes_them(new_host):
    host = new_host(agent=False)
    assert host.install().code == 0
    send(host)
    host.agent("uninstall", document={"owner": OWNER, "host": "a"})
    assert host.run("ls -A /var/lib/overlay").out == ""


def test_another_stack_keeps_its_own(host):
    other = {"project": "p", "stack": "t", "id": "id-of-t"}
    send(host)
    send(host, {KEY: "aa"}, owner=other)
    host.agent("remove", "p/s")
    assert [path for path, (_, value) in kept(host).items() if value != "-"] == [f"secrets/p/t/{KEY}"]


def test_of_another_checkout_is_refused(host):
    host.apply(usual())
    done = send(host, code=1, owner={**OWNER, "id": "another"})
    assert "stack p/s on this host belongs to another checkout or state (id id-of-s, this one is another)" in done.err
    assert kept(host) == {}


def test_of_another_machine_is_refused(host):
    done = send(host, code=1, machine="f" * 32)
    assert done.err == (
        f"a: this machine's id is {MACHINE}, but a is {'f' * 32} in stack p/s; if the machine was replaced, raise "
        "overlay:hosts.a.generation; if its address is wrong, mend that\n"
    )
    assert kept(host) == {}


def test_waits_for_the_lock(host):
    holder = host.popen("sh", "-c", "exec 9<>/run/overlay.lock; flock 9; echo held; sleep 100", stdout=-1)
    assert holder.stdout.readline() == b"held\n"
    done = host.agent("secrets", document=request(), code=1, OVERLAY_LOCK_SECONDS="0.1")
    assert "wait until it has ended" in done.err
    assert kept(host) == {}
    holder.kill()
    holder.wait()
    holder.stdout.close()


OF_THE_PROGRAM = "secrets: 1 unknown field; known are schema, owner, host, machine, generation, secrets"
WRONG = {
    "schema-newer": ({"schema": 2}, ["secrets.schema: 2; this agent reads 1 to 1: `pulumi up` updates it"]),
    "schema-text": (
        {"schema": "c00c1ec00c1ec00c"},
        ["secrets.schema: not a number; this agent reads 1 to 1: `pulumi up` updates it"],
    ),
    "unknown": ({"c00c1ec00c1ec00c": 1}, [OF_THE_PROGRAM]),
    "host": ({"host": "c00c1e c00c1e"}, ["secrets.host: not what the program sends"]),
    "generation": ({"generation": "c00c1ec00c1ec00c"}, ["secrets.generation: not what the program sends"]),
    "no-object": (
        {"secrets": ["c00c1ec00c1ec00c"]},
        ["secrets.secrets: not an object; values stand in it by reference"],
    ),
    "reference": (
        {"secrets": {"c00c1ec00c1ec00c": COOKIE}},
        ["secrets.secrets: <secret> is not a reference to a secret (a name, a colon, 16 hexadecimal digits)"],
    ),
    "path": (
        {"secrets": {"../x:0123456789abcdef": "00"}},
        ["secrets.secrets: <secret> is not a reference to a secret (a name, a colon, 16 hexadecimal digits)"],
    ),
    "value": (
        {"secrets": {COOKIE: "c00c1ec00c1ec00", KEY: 5}},
        [
            f"secrets.secrets.{COOKIE}: <secret> is not 1 to 4096 bytes as hexadecimal text",
            f"secrets.secrets.{KEY}: <secret> is not 1 to 4096 bytes as hexadecimal text",
        ],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_without_values(host, name):
    change, lines = WRONG[name]
    done = host.agent("secrets", document={**request(), **change}, code=1)
    assert done.lines == lines
    assert done.out == ""
    assert kept(host) == {}


NO_JSON = ["c00c1ec00c1ec00c", '["c00c1ec00c1ec00c"]', '{"secrets": {"c00c1ec00c1ec00c', '"\\ud800']


@pytest.mark.parametrize("text", NO_JSON)
def test_no_json(host, text):
    done = host.run("/usr/local/sbin/overlay-agent", "secrets", text=text, check=False)
    assert (done.code, done.lines) == (1, ["secrets: not a JSON object; send what the program wrote"])


def test_a_value_in_place_of_a_reference_is_not_shown(host):
    raw = json.dumps(request())
    done = host.run("/usr/local/sbin/overlay-agent", "secrets", text=raw.replace(COOKIE, VALUES[COOKIE]), check=False)
    assert done.code == 1
    assert VALUES[COOKIE] not in done.out + done.err
