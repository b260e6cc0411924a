"""Hosts that are asked: by whom they are believed, what they can answer, and what is said when they do not.

The server is paramiko's, on this machine, and runs what it is asked by a real shell; keys and ssh-agent are real.
"""

# ruff: noqa: ARG002 -- paramiko's signatures

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import paramiko
import pytest

from overlay_agent import COMMAND
from overlay_components import ssh
from overlay_components.config import load_config
from overlay_components.connection import Operator
from overlay_components.live import Answer, Fleet, Request

NOT_REACHED = "a: 127.0.0.1 is not reached: {}; `pulumi up` needs it as well: see docs/connections.md"
AGAIN = "a: 127.0.0.1 is not reached: {}; run it again when the host answers"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name in ("host", "other", "mine", "stranger"):
        words = ["ssh-keygen", "-q", "-C", "", "-N", "", "-t", "ed25519", "-f", str(folder / name)]
        subprocess.run(words, check=True)
    return folder


def public(path):
    return " ".join(path.with_name(f"{path.name}.pub").read_text().split()[:2])


class Asked(paramiko.ServerInterface):
    """Lets `mine` in, runs commands, and passes on to anywhere."""

    def __init__(self, server):
        self.server = server

    def get_allowed_auths(self, username):
        return "publickey"

    def check_auth_publickey(self, username, key):
        self.server.users.append(username)
        good = f"{key.get_name()} {key.get_base64()}" == public(self.server.keys / "mine")
        return paramiko.AUTH_SUCCESSFUL if good else paramiko.AUTH_FAILED

    def check_channel_request(self, kind, chanid):
        return paramiko.OPEN_SUCCEEDED

    def check_channel_direct_tcpip_request(self, chanid, origin, destination):
        self.server.passed.append(destination)
        threading.Thread(target=self.server.pass_on, args=[chanid, destination], daemon=True).start()
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel, command):
        self.server.commands.append(command.decode())
        threading.Thread(target=self.server.execute, args=[channel, command.decode()], daemon=True).start()
        return True


class Server:
    """An SSH server. `agent`: the script that is there for the agent's command; None: it is not there."""

    def __init__(self, keys, key="host"):
        self.keys, self.key = keys, ssh.private_key((keys / key).read_text())
        self.users, self.commands, self.passed, self.transports = [], [], [], []
        self.agent: str | None = "exit 0"
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                transport = paramiko.Transport(self.listener.accept()[0])
                transport.add_server_key(self.key)
                self.transports.append(transport)
                transport.start_server(threading.Event(), Asked(self))

    def execute(self, channel, command):
        define = "" if self.agent is None else f"agent() {{\n{self.agent}\n}}\n"
        script = define + command.replace(COMMAND, COMMAND if self.agent is None else "agent")
        done = subprocess.run(
            ["sh", "-c", script], input=channel.makefile("rb").read(), capture_output=True, check=False
        )
        with contextlib.suppress(OSError):
            channel.sendall_stderr(done.stderr)
            channel.sendall(done.stdout)
            channel.send_exit_status(done.returncode)
            channel.close()

    def pass_on(self, number, destination):
        end = time.monotonic() + 5
        while number not in self.transports[-1]._channels._map:
            assert time.monotonic() < end
        channel = self.transports[-1]._channels.get(number)
        way = socket.create_connection(destination)

        def copy(read, write):
            with contextlib.suppress(OSError):
                while data := read(65536):
                    write(data)

        threading.Thread(target=copy, args=[way.recv, channel.sendall], daemon=True).start()
        copy(channel.recv, way.sendall)

    def close(self):
        with contextlib.suppress(OSError):  # closed already; it wakes up who waits in accept()
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for transport in self.transports:
            transport.close()


@pytest.fixture
def new_server(keys):
    made = []

    def make(*arguments):
        made.append(Server(keys, *arguments))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def server(new_server):
    return new_server()


@pytest.fixture
def agent(tmp_path):
    """A real ssh-agent: the function adds keys to it."""
    path = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    environment = {**os.environ, "SSH_AUTH_SOCK": str(path)}
    end = time.monotonic() + 5
    while subprocess.run(["ssh-add", "-l"], env=environment, check=False, capture_output=True).returncode == 2:
        assert time.monotonic() < end

    def add(*keys):
        for key in keys:
            subprocess.run(["ssh-add", "-q", str(key)], env=environment, check=True, capture_output=True)
        return {"SSH_AUTH_SOCK": str(path)}

    yield add
    os.kill(process.pid, signal.SIGTERM)
    process.wait(5)


@pytest.fixture
def fleet(tmp_path, keys, server):
    """The one host `a`; keys of a host in the stack file are said by name, environment of the operator by `environ`."""
    (tmp_path / ".ssh").mkdir()
    with contextlib.ExitStack() as stack:

        def make(environ=None, **said):
            host = {
                "address": "127.0.0.1", "port": server.port, "user": "root", "hostKey": public(keys / "host"),
                "identityFile": str(keys / "mine"), **said,
            }  # fmt: skip
            # A stack file refuses loopback addresses.
            said = {key: value for key, value in {**host, "address": "192.0.2.11"}.items() if value is not None}
            config = load_config({"hosts": {"a": said}})
            hosts = {"a": dataclasses.replace(config.resolved_hosts()["a"], address="127.0.0.1")}
            return stack.enter_context(Fleet(hosts, operator=Operator(tmp_path, {"LOGNAME": "me", **(environ or {})})))

        yield make


def asked(fleet, timeout=20.0, text=""):
    return fleet.ask({"a": Request("check -", text, timeout)})["a"]


def test_an_answer(fleet, server):
    server.agent = 'echo "a: look" >&2; read line; echo "{\\"said\\": \\"$line\\", \\"verb\\": \\"$1 $2\\"}"; exit 2'
    told = []
    one = fleet()
    one.told = lambda done, total: told.append((done, total))
    assert asked(one, text="word\n") == Answer("a", 2, {"said": "word", "verb": "check -"}, ("a: look",))
    asked(one)
    assert len(server.transports) == 1, "one connection a host"
    assert server.commands == [f"{COMMAND} check -"] * 2, "root needs no sudo"
    assert told == [(1, 1)] * 2


def test_sudo_is_for_others_than_root(fleet, server):
    asked(fleet(user="ops"))
    asked(fleet(user="ops", sudo=False))
    assert server.commands == [f"sudo -n {COMMAND} check -", f"{COMMAND} check -"]
    assert server.users == ["ops", "ops"]


# -- who is believed -----------------------------------------------------------------------------


def test_a_host_with_another_key_is_not_spoken_to(fleet, server, keys):
    answer = asked(fleet(hostKey=public(keys / "other")))
    assert answer.problem == NOT_REACHED.format("it shows another host key than the known one")
    assert (server.users, server.commands) == ([], []), "nothing was shown to it"


def test_a_host_whose_key_changed_after_it_was_known(tmp_path, fleet, server, keys):
    (tmp_path / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{server.port} {public(keys / 'other')}\n")
    assert asked(fleet(hostKey=None)).problem == NOT_REACHED.format("it shows another host key than the known one")
    assert server.commands == []


def test_a_host_that_nobody_knows(fleet, server):
    problem = asked(fleet(hostKey=None)).problem
    known = f"hosts.a: the host key of [127.0.0.1]:{server.port} is not known"
    assert problem.startswith(f"{known}; the host shows SHA256:")
    assert server.users == []


def test_a_key_that_the_host_refuses(fleet, keys):
    answer = asked(fleet(identityFile=str(keys / "stranger")))
    assert answer.problem == NOT_REACHED.format("Authentication failed.")


def test_by_an_ssh_agent(fleet, agent, keys, server):
    server.agent = "echo '{}'"
    environ = agent(keys / "stranger", keys / "mine")
    assert asked(fleet(environ, identityFile=None)).report == {}
    assert server.users == ["root"] * 2, "the stranger's was offered first"


def test_an_ssh_agent_whose_keys_are_refused(fleet, agent, keys):
    answer = asked(fleet(agent(keys / "stranger"), identityFile=None))
    assert answer.problem == NOT_REACHED.format("it refuses root's keys")


def test_through_a_bastion(tmp_path, fleet, new_server, keys, server):
    server.agent = "echo '{}'"
    bastion = new_server("other")
    (tmp_path / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{bastion.port} {public(keys / 'other')}\n")
    (tmp_path / ".ssh/config").write_text(f"Host 127.0.0.1\n IdentityFile {keys / 'mine'}\n")
    assert asked(fleet(proxy=f"jump@127.0.0.1:{bastion.port}")).report == {}
    assert (bastion.users[0], bastion.passed, bastion.commands) == ("jump", [("127.0.0.1", server.port)], [])


def test_a_bastion_with_another_key(tmp_path, fleet, new_server, keys, server):
    bastion = new_server("other")
    (tmp_path / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{bastion.port} {public(keys / 'host')}\n")
    (tmp_path / ".ssh/config").write_text(f"Host 127.0.0.1\n IdentityFile {keys / 'mine'}\n")
    answer = asked(fleet(proxy=f"jump@127.0.0.1:{bastion.port}"))
    assert answer.problem == NOT_REACHED.format("the bastion shows another host key than the known one")
    assert (bastion.users, server.users) == ([], [])


# -- what they answer ----------------------------------------------------------------------------


def test_a_host_without_the_agent(fleet, server):
    server.agent = None
    assert not Path(COMMAND).exists()
    assert asked(fleet()).problem == "a: the agent is not on this host; raise its generation, then run `pulumi up`"


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("exit 64", "a: the agent on this host is older than this program; run `pulumi up`"),
        ("exit 126", "a: the agent is not on this host; raise its generation, then run `pulumi up`"),
        (
            f"echo 'sudo: {COMMAND}: command not found' >&2; exit 1",
            "a: the agent is not on this host; raise its generation, then run `pulumi up`",
        ),
        (
            "echo 'sudo: a password is required' >&2; exit 1",
            "a: sudo: a password is required; allow what docs/connections.md says in sudoers",
        ),
        (
            "echo Welcome to this host; echo '{}'",
            "a: what it answers is no report ('Welcome to this host\\n{}\\n'); look at its log-in scripts",
        ),
        (
            "head -c 100000 /dev/zero | tr '\\0' '['",
            f"a: what it answers is no report ('{'[' * 80}'); look at its log-in scripts",
        ),
        (
            "printf '\\377\\376\\000\\033[2J'",
            "a: what it answers is no report ('��\\x00\\x1b[2J'); look at its log-in scripts",
        ),
    ],
)
def test_what_is_no_report(fleet, server, script, problem):
    server.agent = script
    answer = asked(fleet())
    assert (answer.problem, answer.report) == (problem, None)
    assert answer.problem.isprintable() or "�" in answer.problem


def test_nothing_that_a_host_says_moves_the_operators_cursor(fleet, server):
    report = r'{"drift": ["\u001b[2J", {"k\u0007": "a\nb\u202e"}]}'
    server.agent = rf"printf 'a: \033[2J\033]0;x\007 \302\205\n' >&2; printf %s '{report}'"
    answer = asked(fleet())
    assert answer.lines == (r"a: \x1b[2J\x1b]0;x\x07 \x85",)
    assert answer.report == {"drift": [r"\x1b[2J", {r"k\x07": "a\nb\\u202e"}]}
    server.agent = r"printf 'sudo: \033[2J\n' >&2; exit 1"
    assert asked(fleet()).problem == r"a: sudo: \x1b[2J; allow what docs/connections.md says in sudoers"


def test_more_than_a_window_on_each_stream(fleet, server):
    size = 5 << 20
    script = 'head -c {0} /dev/zero | tr "\\0" y >&2; printf "\\""; head -c {0} /dev/zero | tr "\\0" x; printf "\\""'
    server.agent = script.format(size)
    answer = asked(fleet())
    assert (answer.problem, len(answer.report), len(answer.lines[0])) == ("", size, size)


def test_a_host_that_does_not_stop(fleet, server, monkeypatch):
    monkeypatch.setattr(ssh, "MOST_BYTES", 1 << 20)
    server.agent = "head -c 3000000 /dev/zero"
    assert asked(fleet()).problem == AGAIN.format("it sends more than 1048576 bytes")


def test_a_host_that_takes_too_long(fleet, server):
    server.agent = "sleep 3"
    assert asked(fleet(), timeout=0.2).problem == AGAIN.format("no answer within 0.2 s")


def test_a_host_that_goes_away(fleet, server):
    one = fleet()
    asked(one)
    server.close()
    assert asked(one).problem.startswith("a: 127.0.0.1 is not reached: ")
    assert "Traceback" not in asked(one).problem


def test_a_host_where_nobody_listens(fleet, server):
    server.close()
    assert asked(fleet()).problem == NOT_REACHED.format("Connection refused")


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.0 400 Bad Request\r\n\r\n"])
def test_what_is_no_ssh_server(fleet, greeting, monkeypatch):
    monkeypatch.setattr(ssh, "STEP_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept = []

        def greet():
            kept.append(listener.accept()[0])
            kept[0].sendall(greeting)

        threading.Thread(target=greet, daemon=True).start()
        answer = asked(fleet(port=listener.getsockname()[1]))
        kept[0].close()
    assert answer.problem.startswith("a: 127.0.0.1 is not reached: ")
    assert answer.report is None


def test_any_command_and_why_it_did_not_run(fleet, server):
    assert fleet().run("a", "cat; exit 7", b"in").stdout == b"in"
    server.close()
    with pytest.raises(ssh.SshError) as caught:
        fleet().run("a", "true")
    assert str(caught.value) == NOT_REACHED.format("Connection refused")
