"""The real command plugin and our stand-in (tools/command_plugin) do the same, and each can take over from the other.

Every scenario runs on both, with the real pulumi and a real sshd. Where the real plugin cannot be had it is skipped,
unless OVERLAY_REQUIRE_REAL_PLUGIN=1 or PULUMI_BUNDLE says that it must be there.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import time

import pytest

from tests.e2e.plugin_support import (
    ROOT,
    Project,
    Sshd,
    make_home,
    make_key,
    make_project,
    running_sshd,
    sshd_unavailable,
)

KINDS = ("real", "stand-in")

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(sshd_unavailable() is not None, reason=str(sshd_unavailable())),
]


def real_plugin() -> bool:
    provenance = json.loads((ROOT / ".tools/provenance.json").read_text())
    return provenance["command_plugin"]["kind"] == "real"


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """PULUMI_HOME by kind of plugin; the real one is missing where it cannot be had."""
    if not real_plugin() and (os.environ.get("OVERLAY_REQUIRE_REAL_PLUGIN") == "1" or os.environ.get("PULUMI_BUNDLE")):
        pytest.fail("the real command plugin must be there (PULUMI_BUNDLE, OVERLAY_REQUIRE_REAL_PLUGIN), but is not")
    base = tmp_path_factory.mktemp("homes")
    return {kind: make_home(base / kind, kind) for kind in KINDS if kind != "real" or real_plugin()}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with running_sshd(tmp_path_factory.mktemp("sshd") / "host") as sshd:
        yield sshd


@pytest.fixture
def sshd(running):
    """The host, its home directory empty."""
    for left in running.home.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return running


@pytest.fixture
def empty_project(tmp_path, record_property):
    project = make_project(tmp_path / "project")
    yield project
    assert "PRIVATE KEY" not in project.transcript, "a private key was printed"


@pytest.fixture(params=KINDS)
def kind(request, homes, record_property):
    if request.param not in homes:
        pytest.skip("the real command plugin cannot be had on this machine (make setup says why)")
    record_property("command plugin", request.param)
    print("command plugin:", request.param)
    return request.param


@pytest.fixture
def project(empty_project, homes, kind):
    empty_project.use(homes[kind])
    return empty_project


def command(sshd: Sshd, **arguments) -> tuple[str, dict]:
    return "Command", {"connection": sshd.connection, "add_previous_output_in_env": False} | arguments


def test_life_of_a_command(project: Project, sshd: Sshd):
    log = sshd.home / "life"
    texts = {"create": "(echo created; cat) >> life; echo made; echo aside >&2", "delete": "echo deleted >> life"}
    document = {"vni": 42, "peers": {"a": "192.0.2.1"}}

    project.declare(one=command(sshd, stdin=json.dumps(document, indent=2), **texts))
    first = project.up().ok()
    assert "+ 3 created" in first or "+ 2 created" in first
    assert project.outputs() == {"one": "made"}
    assert log.read_text() == "created\n" + json.dumps(document, indent=2)
    [row] = project.state()
    assert row["outputs"]["stderr"] == "aside"
    assert re.fullmatch(r"one[0-9a-f]{8}", row["id"])

    assert "2 unchanged" in project.up().ok()
    assert log.read_text().count("created") == 1, "a no-op runs nothing"

    # What the document's change looks like is the engine's work, and rests on the path of the change.
    document["vni"] = 43
    document["peers"]["b"] = "192.0.2.2"
    project.declare(one=command(sshd, stdin=json.dumps(document, indent=2), **texts))
    preview = project.preview().ok()
    assert re.search(r"~ stdin\s*: \(json\)", preview)
    assert re.search(r"~ vni\s*: 42 => 43", preview)
    assert re.search(r'\+ b\s*: "192.0.2.2"', preview)
    assert log.read_text().count("created") == 1, "neither does a preview"

    # Without `update`, a change runs `create` again, with the new stdin.
    assert "~ 1 updated" in project.up().ok()
    assert log.read_text().count("created") == 2
    assert '"vni": 43' in log.read_text()

    project.declare(one=command(sshd, stdin="x", update="echo updated >> life; echo better", **texts))
    project.up().ok()
    assert log.read_text().endswith("updated\n")
    assert project.outputs() == {"one": "better"}

    # A changed connection, too, is an update.
    connection = sshd.connection | {"perDialTimeout": 6}
    project.declare(one=command(sshd, connection=connection, stdin="x", update="echo again >> life", **texts))
    assert "~ 1 updated" in project.up().ok()
    assert log.read_text().endswith("again\n")

    project.destroy().ok()
    assert log.read_text().endswith("again\ndeleted\n")
    assert project.state() == []


def test_without_delete_nothing_is_run(project: Project, sshd: Sshd):
    project.declare(one=command(sshd, create="true"))
    project.up().ok()
    before = sshd.log.count("Connection from ")
    assert before, "they are counted"
    project.destroy().ok()
    assert sshd.log.count("Connection from ") == before, "no connection was made"


def test_triggers_replace(project: Project, sshd: Sshd):
    texts = {"create": "echo made >> triggers", "update": "echo updated >> triggers", "delete": "echo gone >> triggers"}
    project.declare(one=command(sshd, triggers=["1"], **texts))
    project.up().ok()
    project.declare(one=command(sshd, triggers=["2"], **texts))
    preview = project.preview().ok()
    assert "+-command:remote:Command" in preview.replace(" ", "")
    project.up().ok()
    assert (sshd.home / "triggers").read_text() == "made\nmade\ngone\n"


def test_previous_output_in_environment(project: Project, sshd: Sshd):
    texts = {"create": "echo made", "update": "echo was $PULUMI_COMMAND_STDOUT"}
    project.declare(one=("Command", {"connection": sshd.connection, "stdin": "1", **texts}))
    project.up().ok()
    project.declare(one=("Command", {"connection": sshd.connection, "stdin": "2", **texts}))
    project.up().ok()
    assert project.outputs() == {"one": "was made"}


def test_failures(project: Project, sshd: Sshd):
    project.declare(one=command(sshd, create="echo out; echo why >&2; exit 3"))
    text = project.up().failed()
    assert 'Process exited with status 3: running "echo out; echo why >&2; exit 3":' in text
    assert re.search(r"^\s*why$", text, re.MULTILINE)
    assert project.state() == [], "a failed create is not in the state"

    project.declare(one=command(sshd, create="cat", stdin="good", delete="exit 7"))
    project.up().ok()
    project.declare(one=command(sshd, create="cat >&2; exit 4", stdin="bad", delete="exit 7"))
    assert "Process exited with status 4" in project.up().failed()
    [row] = project.state()
    assert row["inputs"]["stdin"] == "good", "a failed update leaves the state as it was"

    assert "Process exited with status 7" in project.destroy().failed()
    assert len(project.state()) == 1, "a failed delete stays in the state"


def test_a_host_that_is_not_the_one(project: Project, sshd: Sshd, tmp_path):
    other = make_key(tmp_path / "other")
    project.declare(one=command(sshd, connection=sshd.connection | {"hostKey": other}, create="touch intruder"))
    text = project.up().failed()
    assert "host key mismatch" in text
    assert "after 1 failed attempts" in text
    assert not (sshd.home / "intruder").exists()


def test_nobody_there(project: Project, sshd: Sshd):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    project.declare(one=command(sshd, connection=sshd.connection | {"port": port}, create="true"))
    text = project.up().failed()
    assert f"after 1 failed attempts: dial tcp 127.0.0.1:{port}: connect: connection refused" in text


def test_a_key_that_the_host_does_not_take(project: Project, sshd: Sshd, tmp_path):
    make_key(tmp_path / "stranger")
    key = (tmp_path / "stranger").read_text()
    project.declare(one=command(sshd, connection=sshd.connection | {"privateKey": key}, create="true"))
    assert "unable to authenticate" in project.up().failed()


def test_a_key_that_is_none(project: Project, sshd: Sshd):
    broken = sshd.private_key.replace("b3BlbnNzaC1rZXktdjE", "AAAA")
    project.declare(one=command(sshd, connection=sshd.connection | {"privateKey": broken}, create="true"))
    assert "one creating" in project.up().failed()


def test_through_a_bastion(project: Project, sshd: Sshd, tmp_path):
    with running_sshd(tmp_path / "bastion") as bastion:
        connection = sshd.connection | {"proxy": bastion.connection}
        project.declare(
            one=command(sshd, connection=connection, create="cat", stdin="through"),
            two=("CopyToRemote", {"connection": connection, "text": "copied", "remote_path": "bastion-file"}),
        )
        project.up().ok()
        assert project.outputs() == {"one": "through"}
        assert (sshd.home / "bastion-file").read_text() == "copied"
        assert "Accepted publickey" in bastion.log

        wrong = bastion.connection | {"hostKey": sshd.host_key}
        project.declare(one=command(sshd, connection=sshd.connection | {"proxy": wrong}, create="touch intruder"))
        assert "host key mismatch" in project.up().failed()
        assert not (sshd.home / "intruder").exists()


@pytest.fixture
def agent(sshd, tmp_path):
    """The socket of an ssh-agent that holds the key."""
    path = str(tmp_path / "agent")
    with subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + 30
        while True:
            done = subprocess.run(
                ["ssh-add", "-q", sshd.directory / "user_key"],
                check=False,
                capture_output=True,
                env=os.environ | {"SSH_AUTH_SOCK": path},
            )
            if done.returncode == 0:
                break
            assert time.monotonic() < end, done.stderr
            time.sleep(0.05)
        yield path
        process.terminate()


def test_with_an_ssh_agent_no_key_is_in_the_state(project: Project, sshd: Sshd, agent: str):
    connection = {key: value for key, value in sshd.connection.items() if key != "privateKey"}
    project.declare(one=command(sshd, connection=connection, create="echo by agent"))
    project.up(SSH_AUTH_SOCK=agent).ok()
    assert project.outputs() == {"one": "by agent"}
    shown = project.pulumi("stack", "export", "--show-secrets").ok()
    assert "privateKey" not in shown
    # Another operator's agent has another path: no change.
    assert "2 unchanged" in project.up(SSH_AUTH_SOCK="/nowhere").ok()


def test_copy(project: Project, sshd: Sshd, tmp_path):
    source = tmp_path / "agent.pyz"
    source.write_bytes(os.urandom(300_000))

    def declare(triggers: str, path: str = "deep/er/agent.pyz", **more) -> None:
        arguments = {"connection": sshd.connection | more, "file": str(source), "remote_path": path}
        project.declare(one=("CopyToRemote", arguments | {"triggers": [triggers]}))

    copied = sshd.home / "deep/er/agent.pyz"  # a relative path begins at the home of the user
    declare("1")
    project.up().ok()
    assert copied.read_bytes() == source.read_bytes()
    assert "2 unchanged" in project.up().ok()

    # It copies when the content or the path changes, and not for the connection's sake.
    copied.unlink()
    declare("1", perDialTimeout=6)
    assert "~ 1 updated" in project.up().ok()
    assert not copied.exists()
    source.write_bytes(b"newer")
    declare("1", perDialTimeout=6)
    assert "~ 1 updated" in project.up().ok()
    assert copied.read_bytes() == b"newer"

    copied.unlink()
    declare("2", perDialTimeout=6)
    assert "1 replaced" in project.up().ok()
    assert copied.read_bytes() == b"newer"

    # An existing directory takes the file in under its own name.
    (sshd.home / "directory").mkdir()
    declare("2", "directory", perDialTimeout=6)
    project.up().ok()
    assert (sshd.home / "directory/agent.pyz").read_bytes() == b"newer"

    project.destroy().ok()
    assert copied.exists(), "a copy is never removed"


def test_secrets_stay_secret(project: Project, sshd: Sshd):
    arguments = {"create": "cat > secret-file", "stdin": "hush-hush-1", "secret": ["stdin"]}
    project.declare(one=command(sshd, **arguments))
    project.up().ok()
    project.declare(one=command(sshd, **arguments | {"stdin": "hush-hush-2"}))
    assert "[secret]" in project.preview().ok()
    project.up().ok()
    assert (sshd.home / "secret-file").read_text() == "hush-hush-2"
    assert "hush-hush" not in project.transcript
    state = json.dumps(project.state())
    assert "hush-hush" not in state
    assert "PRIVATE KEY" not in state
    assert "ciphertext" in state


def test_many_at_once(project: Project, sshd: Sshd):
    """Pulumi runs independent resources side by side; long input and output must not block either.

    In lines: pulumi-resource-command waits for ever after one of over 64 KiB, where it is to log it.
    """
    long = "\n".join(["x" * 60_000] * 6)
    project.declare(**{f"c{i}": command(sshd, create="cat; echo 2 >&2", stdin=long) for i in range(8)})
    project.up().ok()
    assert project.outputs() == {f"c{i}": long for i in range(8)}


def test_a_line_of_any_length_that_is_not_logged(project: Project, sshd: Sshd):
    project.declare(one=command(sshd, create="cat", stdin="x" * 300_000, logging="stderr"))
    project.up().ok()
    assert project.outputs() == {"one": "x" * 300_000}


def test_local_command(project: Project):
    project.declare(one=("Local", {"create": "cat; exit $CODE", "stdin": "here", "environment": {"CODE": "0"}}))
    project.up().ok()
    assert project.outputs() == {"one": "here"}
    project.declare(one=("Local", {"create": "cat; exit $CODE", "stdin": "here", "environment": {"CODE": "5"}}))
    assert "exit status 5: running" in project.up().failed()


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(KINDS)))
def test_one_takes_over_from_the_other(empty_project: Project, homes, sshd: Sshd, tmp_path, before: str, after: str):
    if "real" not in homes:
        pytest.skip("the real command plugin cannot be had on this machine (make setup says why)")
    project = empty_project
    source = tmp_path / "file"
    source.write_text("content")
    marker = f"taken-over-{before}"
    proxied = sshd.connection | {"proxy": sshd.connection}
    project.declare(
        one=command(sshd, create=f"touch {marker}", stdin="1", delete=f"rm {marker}", triggers=["t"], logging="stderr"),
        two=("CopyToRemote", {"connection": sshd.connection, "file": str(source), "remote_path": f"{marker}-file"}),
        three=command(sshd, connection=proxied, create="cat", stdin="s", secret=["stdin"]),
        four=("Local", {"create": "true", "environment": {"A-B": "1"}}),
    )
    project.use(homes[before])
    project.up().ok()
    project.use(homes[after])
    for operation in ("preview", "up"):
        text = project.pulumi(operation, "--diff", *(["--yes", "--skip-preview"] if operation == "up" else [])).ok()
        assert "5 unchanged" in text
        assert "~" not in text
    assert (sshd.home / marker).exists()
    project.pulumi("refresh", "--yes", "--skip-preview", "--expect-no-changes").ok()
    project.destroy().ok()
    assert not (sshd.home / marker).exists()
    assert project.state() == []


def test_the_stand_in_refuses_a_connection_without_host_key(empty_project: Project, homes, sshd: Sshd):
    empty_project.use(homes["stand-in"])
    connection = {key: value for key, value in sshd.connection.items() if key != "hostKey"}
    empty_project.declare(one=command(sshd, connection=connection, create="touch intruder"))
    assert "hostKey of 127.0.0.1 is not set" in empty_project.up().failed()
    assert not (sshd.home / "intruder").exists()
