"""The hosts of a stack, asked what is: side by side, each over one connection, by their own agents.

Pulumi has no Read for what commands have made (design, rule 4), so what is really there is asked for here. Nothing is
kept of an answer, and a host that does not answer is an answer like any other.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from typing_extensions import Self

from overlay_agent import COMMAND
from overlay_components import connection, ssh
from overlay_components.config import ResolvedHost
from overlay_components.connection import Connection, ConnectionProblem, Operator

#: So many hosts at a time. Each is a thread that waits for the other end, most of the time.
AT_ONCE = 32
#: sshd answers, but the shell does not find the agent (127), or may not start it (126).
_NO_COMMAND = (126, 127)
#: The agent does not know the verb: it is older than this program.
_USAGE = 64
#: What one says that takes the "-" of `check -` for a stack's name.
_NO_STDIN = "stack -: "


@dataclass(frozen=True)
class Request:
    """What an agent is asked: its verb and what follows, and what it reads on standard input."""

    words: str
    input: str = ""
    #: s, for the answer.
    timeout: float = 60.0
    #: Whether the answer is bytes as they are, and no JSON.
    binary: bool = False


@dataclass(frozen=True)
class Answer:
    """What a host said. `problem`: why it gave no answer, a finished sentence that begins with the host's name."""

    host: str
    code: int = 0
    #: What it reported, JSON (or bytes, where these were asked for); None where it did not.
    report: Any = None
    #: What it says to people.
    lines: tuple[str, ...] = ()
    problem: str = ""


@dataclass
class Fleet:
    """Connections to the hosts, made when they are first needed: `with Fleet(config.resolved_hosts()) as fleet`.

    `told` hears how many of how many have answered, from several threads but never at once.
    """

    hosts: Mapping[str, ResolvedHost]
    told: Callable[[int, int], None] = lambda _done, _total: None
    operator: Operator = field(default_factory=Operator)

    def __post_init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._sessions: dict[str, ssh.Session | str] = {}
        self._sudo: dict[str, str] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def ask(self, requests: Mapping[str, Request]) -> dict[str, Answer]:
        """Every host's answer, in the order of the requests. Raises nothing for a host that gives none."""
        answers: dict[str, Answer] = {}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            waiting = [pool.submit(self._ask, host, request) for host, request in requests.items()]
            for one in as_completed(waiting):
                answer = one.result()
                answers[answer.host] = answer
                self.told(len(answers), len(requests))
        return {host: answers[host] for host in requests}

    def run(
        self, host: str, command: str, input: bytes = b"", timeout: float = 60.0, *, root: bool = True  # noqa: A002
    ) -> ssh.Done:
        """Runs any command on one host, by the user's shell, as root or as that user. Raises ssh.SshError with the
        whole sentence."""
        session = self._session(host)
        if isinstance(session, str):
            raise ssh.SshError(session)
        try:
            return session.run(self._sudo[host] * root + command, input, timeout)
        except ssh.SshError as error:
            raise ssh.SshError(f"{self._at(host)}: {error}; run it again when the host answers") from error

    def meet(
        self, requests: Mapping[str, Request], go: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    ) -> dict[str, Answer]:
        """Asks hosts that have something to do at the same time. Each gets the request's input as a line, and says a
        line when it is ready. When all have, or given up, `go` makes of these a line for each, and each answers with
        one more. Only when all have done so are they let go. Raises nothing for a host that gives no answer."""
        answers: dict[str, Answer] = {}
        with contextlib.ExitStack() as talks, ThreadPoolExecutor(max(len(requests), 1)) as pool:
            begun = {host: pool.submit(self._begin, host, request, talks) for host, request in requests.items()}
            talking = {host: one.result() for host, one in begun.items()}
            hearing = {h: pool.submit(self._heard, h, talk, requests[h].timeout) for h, talk in talking.items()}
            ready = {host: one.result() for host, one in hearing.items()}
            said = go({host: answer.report for host, answer in ready.items() if not answer.problem})
            for host, answer in ready.items():
                talk = talking[host]
                if host in said and not isinstance(talk, Answer):
                    with contextlib.suppress(ssh.SshError):  # which is seen when it should answer
                        talk.say(json.dumps(said[host]))
                else:
                    answers[host] = answer
            waiting = [pool.submit(self._heard, h, talking[h], requests[h].timeout) for h in said]
            for one in as_completed(waiting):
                answers[one.result().host] = one.result()
                self.told(len(answers), len(requests))
        return {host: answers[host] for host in requests}

    def _begin(self, host: str, request: Request, talks: contextlib.ExitStack) -> ssh.Talk | Answer:
        """The talk with the host, or why there is none."""
        session = self._session(host)
        if isinstance(session, str):
            return Answer(host, problem=session)
        try:
            making = session.talk(f"{self._sudo[host]}{COMMAND} {request.words}")
            talk = making.__enter__()
            with self._lock:
                talks.push(making)
            talk.say(request.input)
        except ssh.SshError as error:
            return Answer(host, problem=f"{self._at(host)}: {error}; run it again when the host answers")
        return talk

    def _heard(self, host: str, talk: ssh.Talk | Answer, timeout: float) -> Answer:
        """The next line of the talk."""
        if isinstance(talk, Answer):
            return talk
        try:
            line = talk.line(timeout)
            if line:
                return Answer(host, report=_plain(json.loads(line)))
            return self._read(host, talk.end(timeout), Request(""))
        except ssh.SshError as error:
            return Answer(host, problem=f"{self._at(host)}: {error}; run it again when the host answers")
        except ValueError:
            return Answer(host, problem=f"{host}: what it answers is no report; look at its log-in scripts")

    def _ask(self, host: str, request: Request) -> Answer:
        try:
            done = self.run(host, f"{COMMAND} {request.words}", request.input.encode(), request.timeout)
        except ssh.SshError as error:
            return Answer(host, problem=str(error))
        return self._read(host, done, request)

    @staticmethod
    def _read(host: str, done: ssh.Done, request: Request) -> Answer:
        """What the agent's end of words means."""
        lines = tuple(_plain(done.stderr.decode(errors="replace")).splitlines())
        if done.code in _NO_COMMAND or (done.code == 1 and not done.stdout and "command not found" in str(lines)):
            why = "the agent is not on this host; raise its generation, then run `pulumi up`"
            return Answer(host, problem=f"{host}: {why}")
        if done.code == 1 and lines and lines[0].startswith("sudo: "):
            return Answer(host, problem=f"{host}: {lines[0]}; allow what docs/connections.md says in sudoers")
        if done.code == _USAGE or any(line.startswith(_NO_STDIN) for line in lines):
            return Answer(host, problem=f"{host}: the agent on this host is older than this program; run `pulumi up`")
        if request.binary:
            return Answer(host, done.code, done.stdout, lines)
        try:
            report = _plain(json.loads(done.stdout)) if done.stdout.strip() else None
        except (ValueError, RecursionError):
            what = done.stdout[:80].decode(errors="replace")
            return Answer(host, problem=f"{host}: what it answers is no report ({what!r}); look at its log-in scripts")
        # It begins with the host's name where the agent knows it.
        words = (line.removeprefix(f"{host}: ").removeprefix(f"{host} ") for line in lines)
        said = "; ".join(words) or f"exit code {done.code}"
        problem = f"{host}: {said}" if done.code and report is None else ""
        if report is None and not request.words:
            problem = f"{host}: the agent gave up ({said}); run it again"
        return Answer(host, done.code, report, lines, problem)

    def _session(self, host: str) -> ssh.Session | str:
        """The host's session, or why there is none."""
        if host not in self._sessions:  # one thread a host
            self._sessions[host] = self._connect(host)
        return self._sessions[host]

    def _connect(self, host: str) -> ssh.Session | str:
        try:
            found = reached(self.hosts[host], self.operator)
            sudo = self.hosts[host].sudo
            self._sudo[host] = "sudo -n " if (found.user != "root" if sudo is None else sudo) else ""
            making = ssh.session(found, self.operator)
            session = making.__enter__()
        except ConnectionProblem as error:
            return error.problems[0]
        except ssh.SshError as error:
            return f"{self._at(host)}: {error}; `pulumi up` needs it as well: see docs/connections.md"
        with self._lock:
            self._open.push(making)
        return session

    def _at(self, host: str) -> str:
        return f"{host}: {self.hosts[host].address} is not reached"


def _plain(said: Any) -> Any:
    """The same with what a terminal would obey spelt out: a host's words are shown as they come."""
    if isinstance(said, str):
        return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in said)
    if isinstance(said, dict):
        return {_plain(key): _plain(value) for key, value in said.items()}
    return [_plain(value) for value in said] if isinstance(said, list) else said


def reached(host: ResolvedHost, operator: Operator) -> Connection:
    """How `pulumi up` reaches the host. Raises ConnectionProblem."""
    wanted = connection.Wanted(
        address=host.address,
        user=host.user,
        port=host.port,
        identity_file=host.identity_file,
        host_key=host.host_key,
        proxy=host.proxy,
    )
    return connection.resolve(f"hosts.{host.name}", wanted, operator)
