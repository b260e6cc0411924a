"""Hosts that have to work at the same time: nobody begins before all are ready, and who drops out holds nobody up."""

from __future__ import annotations

import contextlib
import threading

import pytest

from overlay_agent import COMMAND
from overlay_components import live, ssh
from overlay_components.config import load_config
from overlay_components.live import Fleet, Request


class Talk:
    """An agent: what it says, line by line; an error or an end instead of one."""

    def __init__(self, *lines, done=None):
        self.lines, self.done = list(lines), done or ssh.Done(0, b"", b"")
        self.heard = []
        self.closed = False

    def say(self, line):
        self.heard.append(line)

    def line(self, _timeout):
        said = self.lines.pop(0) if self.lines else b""
        if isinstance(said, Exception):
            raise said
        return said() if callable(said) else said

    def end(self, _timeout):
        return self.done


class Session:
    def __init__(self, talk):
        self._talk = talk

    @contextlib.contextmanager
    def talk(self, command):
        if isinstance(self._talk, Exception):
            raise self._talk
        self.command = command
        yield self._talk
        self._talk.closed = True


def meet(monkeypatch, talks, go=lambda ready: {host: {"for": host} for host in ready}):
    hosts = load_config({"hosts": {h: {"address": f"198.18.0.{n}"} for n, h in enumerate(talks, 1)}}).resolved_hosts()
    fleet = Fleet(hosts)
    sessions = {host: talk if isinstance(talk, str) else Session(talk) for host, talk in talks.items()}
    monkeypatch.setattr(fleet, "_session", sessions.__getitem__)
    fleet._sudo = dict.fromkeys(talks, "sudo -n ")
    with fleet:
        answers = fleet.meet({host: Request("verify", f"input of {host}", 1) for host in talks}, go)
    return answers, sessions


def test_all_begin_when_all_are_ready(monkeypatch):
    together = threading.Barrier(40, timeout=20)

    def ready():
        together.wait()  # more than AT_ONCE at the same time
        return b'{"ready": 1}'

    talks = {f"h{n}": Talk(ready, b'{"found": 2}') for n in range(40)}
    assert len(talks) > live.AT_ONCE
    answers, sessions = meet(monkeypatch, talks)
    assert list(answers) == list(talks)
    assert all((answer.report, answer.problem) == ({"found": 2}, "") for answer in answers.values())
    assert talks["h3"].heard == ["input of h3", '{"for": "h3"}']
    assert all(talk.closed for talk in talks.values())
    assert sessions["h3"].command == f"sudo -n {COMMAND} verify"


@pytest.mark.parametrize(
    ("talk", "problem"),
    [
        ("h1: 198.18.0.1 is not reached: timed out", "h1: 198.18.0.1 is not reached: timed out"),
        (ssh.SshError("no"), "h1: 198.18.0.1 is not reached: no; run it again when the host answers"),
        (
            Talk(ssh.SshError("no answer within 1 s")),
            "h1: 198.18.0.1 is not reached: no answer within 1 s; run it again when the host answers",
        ),
        (
            Talk(done=ssh.Done(127, b"", b"")),
            "h1: the agent is not on this host; raise its generation, then run `pulumi up`",
        ),
        (
            Talk(done=ssh.Done(64, b"", b"usage: ...")),
            "h1: the agent on this host is older than this program; run `pulumi up`",
        ),
        (Talk(b"Welcome!"), "h1: what it answers is no report; look at its log-in scripts"),
        (Talk(done=ssh.Done(1, b"", b"no\nroot")), "h1: the agent gave up (no; root); run it again"),
        (Talk(done=ssh.Done(1, b"", b"")), "h1: the agent gave up (exit code 1); run it again"),
    ],
)
def test_who_drops_out_before(monkeypatch, talk, problem):
    told = []

    def go(ready):
        told.append(dict(ready))
        return {host: {} for host in ready}

    answers, _ = meet(monkeypatch, {"h1": talk, "h2": Talk(b'{"ready": 1}', b"{}")}, go)
    assert answers["h1"].problem == problem
    assert answers["h2"].problem == ""
    assert told == [{"h2": {"ready": 1}}]


def test_who_drops_out_after(monkeypatch):
    gone = ssh.SshError("Connection reset by peer")
    answers, _ = meet(monkeypatch, {"h1": Talk(b"{}", gone), "h2": Talk(b"{}", b'{"found": 2}')})
    why = "h1: 198.18.0.1 is not reached: Connection reset by peer; run it again when the host answers"
    assert answers["h1"].problem == why
    assert answers["h2"].report == {"found": 2}
