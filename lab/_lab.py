"""A lab as its users see it: start, look, run something, stop.

Everything that a lab is on disk is `.lab/<name>/`; everything else is processes below its keeper
(lab/_keeper.py), so that stopping is: end the keeper, remove the folder, put the shared limits back.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lab import _cgroups, _net, _runtimes, _sys, _sysctl
from lab._error import LabError
from lab._host import ENVIRONMENT, listens
from lab._keeper import SWITCH_FD

CHECKOUT = Path(__file__).resolve().parent.parent
Command = str | Sequence[str]
_MARK = ".overlay-lab"  # says that we made this folder and may remove it

_LONGEST_NAME = 11  # with "veth" before it: the kernel's 15

_TOOLS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "nsenter": "util-linux",
    "pkill": "procps",
    "sudo": "sudo",
    "ping": "iputils-ping",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "/usr/sbin/sshd": "openssh-server",
}


class HostProcess(subprocess.Popen[str]):
    """A Popen whose signals reach the command on the host, not only the nsenter in front of it."""

    def send_signal(self, sig: int) -> None:
        """Signal the whole process group (the child is its leader)."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, sig)


@dataclass(frozen=True)
class Host:
    """One host, from the machine's point of view.

    `address` (and `address6`) is its underlay address, which SSH uses; of the bastion it is the one on the
    operator's side, `inside` the one on the hosts' side (of other hosts the two are the same).
    `pid` (with `start`, in clock ticks) is its first process, by which `nsenter` finds its namespaces; a
    reboot changes both. `keys` are its public host keys as sshd has them. `address6` is None in a lab
    without IPv6. `machine_id` changes only with `reinstall`.
    """

    name: str
    address: str
    address6: str | None
    inside: str
    mac: str
    pid: int
    start: int
    keys: tuple[str, ...]
    machine_id: str


class Lab:
    """N hosts on one underlay. `with Lab(name="t", hosts=3) as lab:` makes a fresh one and removes it.

    name        letters, digits, `-`, `_`; labs of different names are independent of each other
    hosts       h1 … hN, at most 250
    ipv6        hosts have both an IPv4 and an IPv6 underlay address
    bastion     the operator reaches only host `bastion`; h1 … hN are on a second switch behind it
    rate        what each cable carries in each direction, in tc's words (`1gbit`)
    mtu         of the underlay, in bytes
    max_startups  sshd's MaxStartups; None leaves its own default
    nics        2: h1 … hN have a second card, eth1, down and without an address, on a switch of their own
    directory   where `<name>/` is made; default is `.lab` of the checkout

    Once up:
    hosts       dict of `Host` by name, without the bastion
    bastion     its `Host`, or None
    operator    the operator's underlay address (and `operator6`)
    home        a HOME for programs run as the operator: .ssh/config, known_hosts, id_ed25519
    ssh_config, known_hosts, identity    the same files by themselves, for `ssh -F`
    bin         folder with `ssh`, `scp`, `sftp` that use this config (OpenSSH ignores $HOME); operator_run
                has it first on PATH
    """

    def __init__(
        self,
        name: str = "lab",
        hosts: int = 3,
        *,
        ipv6: bool = False,
        bastion: bool = False,
        rate: str | None = None,
        mtu: int = 1500,
        max_startups: str | None = "100:30:200",
        nics: int = 1,
        directory: Path | str | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", name) or name == "state":
            raise LabError(f"lab name {name!r}: up to 32 letters, digits, - and _ (and not 'state')")
        self.name = name
        self.options = _net.Options(hosts, ipv6, bastion, rate, mtu, max_startups, nics)
        if problems := self.options.problems():
            raise LabError("; ".join(problems))
        self.root = (Path(directory).resolve() if directory else CHECKOUT / ".lab") / name
        self.home = self.root / "home"
        self.identity = self.root / "ssh" / "id_ed25519"
        self.ssh_config = self.root / "ssh" / "config"
        self.known_hosts = self.root / "ssh" / "known_hosts"
        self.bin = self.root / "bin"
        self.hosts: dict[str, Host] = {}
        self.bastion: Host | None = None
        self.id = ""
        self._keeper = (0, 0)
        self._say = say or (lambda _: None)
        operator, _ = _net.plan(name, self.options)
        self.operator = operator.ports[0].address
        self.operator6 = operator.ports[0].address6

    # ------------------------------------------------------------------ up and down

    @classmethod
    def open(cls, name: str = "lab", directory: Path | str | None = None) -> Lab:
        """The running lab of that name, with the options it was made with; LabError when there is none."""
        lab = cls(name, directory=directory)
        state = lab._state()
        if state is None or not _sys.is_alive(*state["keeper"]):
            raise LabError(f"lab {name}: is not up; `python -m lab up --name {name}` starts it")
        lab = cls(name, **state["options"], directory=directory)
        lab._take(state)
        return lab

    @staticmethod
    def names(directory: Path | str | None = None) -> list[str]:
        """The labs that are up, or have left something, in this checkout (or `directory`)."""
        root = Path(directory) if directory else CHECKOUT / ".lab"
        return sorted(mark.parent.name for mark in root.glob(f"*/{_MARK}"))

    def __enter__(self) -> Lab:  # noqa: PYI034  (Self is from 3.11)
        self.down()
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def up(self) -> bool:
        """Make sure that the lab is there with these options; True if it had to be made.

        Leftovers of a killed run and a lab with other options are removed first. When it returns, every
        sshd accepts connections. Killed at any point, it leaves nothing running.
        """
        self._check_machine()
        with self._locked(create=True):
            state = self._state()
            if state is not None and _sys.is_alive(*state["keeper"]):
                if state["options"] == self.options.as_dict():
                    self._take(state)
                    dead = [name for name in self._everyone() if not _sys.is_alive(*self._process(name))]
                    if not dead:
                        return False
                    self._say(f"lab {self.name}: {', '.join(dead)} no longer runs; making it again")
                else:
                    old, new = state["options"], self.options.as_dict()
                    change = ", ".join(f"{key} {old[key]} -> {new[key]}" for key in new if old.get(key) != new[key])
                    self._say(f"lab {self.name}: was up with other options ({change}); making it again")
            elif any(path.name != _MARK for path in self.root.iterdir()):
                self._say(f"lab {self.name}: removing what an earlier run left")
            self._remove()
            try:
                self._make()
            except BaseException:
                self._remove()
                raise
        return True

    def down(self) -> bool:
        """End and remove the lab and whatever an earlier run of this name left; True if there was something."""
        found = False
        if self.root.exists():
            self._check_machine()
            with self._locked(create=False) as exists:
                if exists:
                    self._remove()
                    found = True
                    with contextlib.suppress(FileNotFoundError):
                        self.root.rmdir()
        _sysctl.release(str(self.root))
        self.hosts, self.bastion = {}, None
        return found

    def _check_machine(self) -> None:
        if os.geteuid() != 0:
            raise LabError("the lab makes network namespaces: run it as root")
        missing = sorted({package for tool, package in _TOOLS.items() if shutil.which(tool) is None})
        if missing:
            raise LabError(f"missing on this machine: apt-get install {' '.join(missing)}")

    @contextlib.contextmanager
    def _locked(self, create: bool) -> Iterator[bool]:
        """Hold the lab's folder (the lock ends with this process); False if there is none and `create` is not set."""
        deadline = time.monotonic() + 300
        while True:
            if create:
                try:
                    self.root.mkdir(parents=True, exist_ok=True)
                except FileExistsError:
                    raise LabError(f"{self.root}: is not a folder; choose another --name") from None
            try:
                fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                if create:
                    continue
                yield False
                return
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self.root.stat().st_ino == os.fstat(fd).st_ino:
                    break
            except FileNotFoundError:
                pass  # removed while we waited
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(fd)
                    raise LabError(f"lab {self.name}: another process has been at work on it for 5 minutes") from None
                time.sleep(0.02)
            os.close(fd)
        try:
            yield True
        finally:
            os.close(fd)

    def _make(self) -> None:
        (self.root / _MARK).touch()
        for folder in ("ssh", "home/.ssh", "log", "bin"):
            (self.root / folder).mkdir(parents=True, mode=0o700)
        self.id = uuid.uuid4().hex
        _quiet(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lab-{self.name}", "-f", str(self.identity)])
        _, nodes = _net.plan(self.name, self.options)
        request = {
            "id": self.id,
            "lab": self.name,
            "directory": str(self.root),
            "checkout": str(CHECKOUT),
            "options": self.options.as_dict(),
            "operator_key": self.identity.with_suffix(".pub").read_text().strip(),
            "hosts_file": "".join(
                f"{address} {node.name}\n"
                for node in nodes
                for address in (node.ports[-1].address, node.ports[-1].address6)
                if address
            ),
        }
        self._say(f"lab {self.name}: starting {len(nodes)} hosts")
        log_file = self.root / "log" / "keeper.log"
        code = f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); from lab._keeper import main; main()"
        with log_file.open("wb") as log:
            launcher = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", code, "lab", self.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**ENVIRONMENT, "PYTHONDONTWRITEBYTECODE": "1"},
            )
        if launcher.stdin is None or launcher.stdout is None:
            raise AssertionError
        # While we hold this pipe the keeper lives; if we die before "commit", it ends the lab.
        with launcher.stdin as stdin, launcher.stdout as stdout:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
            reply = json.loads(_read_line(stdout.fileno(), timeout=180) or b"{}")
            launcher.wait(10)
            if "hosts" not in reply:
                words = reply.get("error") or log_file.read_text().strip() or "no answer"
                raise LabError(f"lab {self.name}: could not start: {words}{self._log_tails(words)}")
            _sysctl.acquire(str(self.root), *reply["keeper"])
            state = {
                "id": self.id,
                "options": self.options.as_dict(),
                "keeper": reply["keeper"],
                "hosts": reply["hosts"],
            }
            self._write_state(state)
            self._take(state)
            self._write_ssh_files()
            stdin.write(b"commit\n")

    def _log_tails(self, words: str) -> str:
        """The last lines of the log of the host that `words` begin with."""
        log = self.root / "log" / f"{words.partition(':')[0].partition(',')[0]}.log"
        if not log.is_file():
            return ""
        return "\n" + "\n".join(log.read_text(errors="replace").splitlines()[-5:])

    def _remove(self) -> None:
        """End what runs of this lab and empty its folder."""
        entries = list(os.scandir(self.root))
        if entries and not (self.root / _MARK).exists():
            raise LabError(f"{self.root}: was not made by the lab and is not removed; choose another --name")
        strangers: list[tuple[int, int]] = []
        for entry in entries:
            record = self._json(entry.name) if re.fullmatch(r"keeper-\w+\.json", entry.name) else None
            if record is None:
                continue
            pid, start = record["pid"], record["start"]
            strangers += self._inside(record)
            if _sys.kill([(pid, start)], timeout=60):
                raise LabError(f"lab {self.name}: its keeper (pid {pid}) does not end")
        if still := _sys.kill(strangers, signal.SIGTERM, timeout=2.0):
            _sys.kill([(pid, start) for pid, start in strangers if pid in still])
        _cgroups.remove(self.root)
        _sysctl.release(str(self.root))
        # the mark last: whoever is killed here leaves what the next one may remove
        for entry in sorted(os.scandir(self.root), key=lambda entry: entry.name == _MARK):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                Path(entry.path).unlink()

    @staticmethod
    def _inside(keeper: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Processes in the lab's networks that its keeper does not take along: `lab exec`, `nsenter`.

        Known by their network namespace, or, when the keeper is gone, by the mark that `lab exec` put into
        their environment. Never this process or its parents: `lab exec -- make test` may end its own lab.
        """
        mark = f"OVERLAY_LAB_ID={keeper['id']}".encode()
        networks: set[str | None] = set()
        pid: int = keeper["pid"]
        if _sys.is_alive(pid, keeper["start"]):
            networks.add(_sys.namespace(pid, "net"))
            with contextlib.suppress(OSError):
                networks.add(str(Path(f"/proc/{pid}/fd/{SWITCH_FD}").readlink()))
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                networks.update(_sys.namespace(int(child), "net") for child in children)
        # a keeper that has just begun is still where it was started: in the machine's own network
        networks -= {None, keeper["net"], _sys.namespace(1, "net")}
        spared = {*_sys.ancestors(), pid}
        found = []
        for candidate in _sys.pids():
            start = _sys.start_time(candidate)
            if candidate in spared or start is None:
                continue
            belongs = _sys.namespace(candidate, "net") in networks
            if not belongs:
                with contextlib.suppress(OSError):
                    belongs = mark in Path(f"/proc/{candidate}/environ").read_bytes().split(b"\0")
            if belongs:
                found.append((candidate, start))
        return found

    # ------------------------------------------------------------------ state on disk

    def _json(self, name: str) -> dict[str, Any] | None:
        try:
            value: dict[str, Any] = json.loads((self.root / name).read_text())
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None
        return value

    def _state(self) -> dict[str, Any] | None:
        return self._json("state.json")

    def _write_state(self, state: dict[str, Any]) -> None:
        _replace(self.root / "state.json", json.dumps(state, indent=1))

    def _take(self, state: dict[str, Any]) -> None:
        """Fill this object's fields from the state."""
        self.id = state["id"]
        self._keeper = (state["keeper"][0], state["keeper"][1])
        _, nodes = _net.plan(self.name, self.options)
        everyone = {}
        for node in nodes:
            fact = state["hosts"][node.name]
            card = node.ports[0]
            everyone[node.name] = Host(
                name=node.name,
                address=card.address,
                address6=card.address6,
                inside=node.ports[-1].address,
                mac=card.mac,
                pid=fact["pid"],
                start=fact["start"],
                keys=tuple(fact["keys"]),
                machine_id=fact["machine_id"],
            )
        self.bastion = everyone.pop(_net.BASTION, None)
        self.hosts = everyone

    def _everyone(self) -> dict[str, Host]:
        return {**self.hosts, **({_net.BASTION: self.bastion} if self.bastion else {})}

    def host(self, name: str) -> Host:
        """The host (or bastion) of that name; LabError names those there are."""
        everyone = self._everyone()
        if not everyone:
            raise LabError(f"lab {self.name}: is not up; `python -m lab up --name {self.name}` starts it")
        if name not in everyone:
            raise LabError(f"lab {self.name}: no host {name!r}; there are {', '.join(everyone)}")
        return everyone[name]

    def _process(self, name: str) -> tuple[int, int]:
        host = self.host(name)
        return host.pid, host.start

    # ------------------------------------------------------------------ SSH

    def _write_ssh_files(self) -> None:
        names: dict[str, list[str]] = {}
        entries = [
            "Host *",
            "  User root",
            f"  IdentityFile {_quoted(self.identity)}",
            "  IdentitiesOnly yes",
            f"  UserKnownHostsFile {_quoted(self.known_hosts)}",
            "  GlobalKnownHostsFile /dev/null",
            "  StrictHostKeyChecking yes",
            "  BatchMode yes",
            "  ConnectTimeout 10",
            "  LogLevel ERROR",
            "",
        ]
        blocks = []
        _, nodes = _net.plan(self.name, self.options)
        for node in nodes:
            card = node.ports[0]
            jump = self.options.bastion and node.name != _net.BASTION
            names[node.name] = [node.name]
            blocks += [f"Host {node.name}", f"  HostName {card.address}"]
            blocks += [f"  ProxyJump {_net.BASTION}"] if jump else []
            if card.address6:
                names[node.name].append(f"{node.name}-v6")
                blocks += [f"Host {node.name}-v6", f"  HostName {card.address6}"]
                blocks += [f"  ProxyJump {_net.BASTION}"] if jump else []
            for port in node.ports:
                names[node.name] += [address for address in (port.address, port.address6) if address]
        # ssh takes the first value that it finds: what is particular comes before what holds for all
        config = "\n".join([f"# lab {self.name}; written by `lab up`", *blocks, "", *entries])
        everyone = self._everyone()
        known = "".join(
            f"{','.join(names[name])} {' '.join(key.split()[:2])}\n"
            for name, host in everyone.items()
            for key in host.keys
        )
        _replace(self.ssh_config, config, 0o600)
        _replace(self.known_hosts, known, 0o600)
        folder = self.home / ".ssh"
        _replace(folder / "config", config, 0o600)
        _replace(folder / "known_hosts", known, 0o600)
        _replace(folder / "id_ed25519", self.identity.read_text(), 0o600)
        _replace(folder / "id_ed25519.pub", self.identity.with_suffix(".pub").read_text())
        for tool in ("ssh", "scp", "sftp"):
            real = shutil.which(tool, path="/usr/bin:/bin:/usr/local/bin") or tool
            script = f'#!/bin/sh\nexec {real} -F {shlex.quote(str(self.ssh_config))} "$@"\n'
            _replace(self.bin / tool, script, 0o755)

    # ------------------------------------------------------------------ running something

    def enter(self, name: str) -> list[str]:
        """The words to put before a command so that it runs on the host; LabError when that does not run."""
        if not _sys.is_alive(*self._process(name)):
            # another process may have rebooted it since we looked
            if (state := self._state()) is not None and state["options"] == self.options.as_dict():
                self._take(state)
            if not _sys.is_alive(*self._process(name)):
                raise LabError(f"{name}: does not run; lab.reboot({name!r}) starts it")
        return ["nsenter", f"--target={self.host(name).pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--"]

    def popen(
        self, host: str, command: Command, *, env: Mapping[str, str] | None = None, **options: Any
    ) -> HostProcess:
        """Start a command as root on a host, without ssh; a string goes to /bin/sh. `options` are Popen's."""
        options = {"text": True, "errors": "replace", "start_new_session": True, **options}
        argv = self.enter(host) + _argv(command)
        return HostProcess(argv, env={**ENVIRONMENT, **(env or {})}, **options)

    def run(
        self,
        host: str,
        command: Command,
        *,
        check: bool = True,
        input: str | None = None,  # noqa: A002  (subprocess calls it so)
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root on a host, in its namespaces, without ssh; a string goes to /bin/sh.

        Environment is a login's (HOME=/root, Debian's PATH) with `env` on top, the working directory is /.
        `timeout` in seconds. LabError if it fails (unless `check=False`) or takes longer.
        """
        process = self.popen(host, command, env=env, **_pipes(input))
        return _finish(process, host, command, check, input, timeout)

    def operator_popen(
        self, command: Command, *, env: Mapping[str, str] | None = None, cwd: Path | str | None = None, **options: Any
    ) -> HostProcess:
        """Start a command on this machine with the operator's network; see `operator_run`."""
        options = {"text": True, "errors": "replace", "start_new_session": True, **options}
        argv = ["nsenter", f"--net=/proc/{self._keeper_pid()}/ns/net", "--", *_argv(command)]
        return HostProcess(argv, env=self.operator_env(env), cwd=cwd, **options)

    def operator_env(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """`env` (default: this process's) plus what `lab exec` adds: lab's `bin` first on PATH, LAB_* and a mark.

        HOME is left alone; pass `{**os.environ, "HOME": str(lab.home)}` for a program that reads ~/.ssh.
        """
        base = dict(os.environ if env is None else env)
        return {
            **base,
            "PATH": f"{self.bin}:{base.get('PATH', ENVIRONMENT['PATH'])}",
            "OVERLAY_LAB_ID": self.id,
            "LAB_NAME": self.name,
            "LAB_HOME": str(self.home),
            "LAB_SSH_CONFIG": str(self.ssh_config),
        }

    def operator_run(
        self,
        command: Command,
        *,
        check: bool = True,
        input: str | None = None,  # noqa: A002  (subprocess calls it so)
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this machine (its files, its PATH) in the operator's network namespace.

        `env` replaces the environment, as in subprocess, but see `operator_env`. LabError as in `run`.
        """
        process = self.operator_popen(command, env=env, cwd=cwd, **_pipes(input))
        return _finish(process, "operator", command, check, input, timeout)

    def ssh(
        self, host: str, command: str = "true", *, user: str = "root", check: bool = True, timeout: float = 30.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command over SSH from the operator, host keys checked. LabError as in `run`."""
        return self.operator_run(["ssh", "-l", user, host, command], check=check, timeout=timeout)

    def _keeper_pid(self) -> int:
        if self._keeper[0] == 0 or not _sys.is_alive(*self._keeper):
            state = self._state()
            if state is None or not _sys.is_alive(*state["keeper"]):
                raise LabError(f"lab {self.name}: is not up; `python -m lab up --name {self.name}` starts it")
            self._take(state)
        return self._keeper[0]

    def become_operator(self) -> None:
        """Move this process (every later child too) into the operator's network namespace."""
        fd = os.open(f"/proc/{self._keeper_pid()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _sys.setns(fd, _sys.CLONE_NEWNET)
        finally:
            os.close(fd)

    # ------------------------------------------------------------------ looking

    def ping(
        self,
        source: str,
        target: str,
        *,
        count: int = 1,
        wait: float = 1.0,
        interval: float = 0.2,
        size: int | None = None,
        df: bool = False,
        container: str | None = None,
    ) -> bool:
        """Whether `source` (a host, or `op`) gets an answer to each of `count` pings of `target`.

        `target` is an address or a host's name, `wait` seconds for each answer, `size` bytes of payload,
        `df` forbids fragments; `container` pings from that stand-in on the host.
        """
        everyone = self._everyone()
        address = everyone[target].address if target in everyone else target
        argv = ["ping", "-n", "-q", "-c", str(count), "-W", str(wait), "-i", str(interval)]
        argv += ["-s", str(size)] if size is not None else []
        argv += ["-M", "do"] if df else []
        argv.append(address)
        limit = count * (wait + interval) + 10
        if source == _net.OPERATOR:
            done = self.operator_run(argv, check=False, timeout=limit)
        elif container is not None:
            done = self.exec_container(source, container, argv, check=False, timeout=limit)
        else:
            done = self.run(source, argv, check=False, timeout=limit)
        if done.returncode > 1 and "unreachable" not in done.stderr and "too long" not in done.stderr:
            raise LabError(f"{source}: {shlex.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
        received = re.search(r"(\d+) received", done.stdout)
        return received is not None and int(received[1]) == count

    def path(self, host: str, path: str) -> Path:
        """A file of a host as this machine reaches it, to read or write without a process.

        Absolute symbolic links in it are the machine's, not the host's.
        """
        self.enter(host)
        return Path(f"/proc/{self.host(host).pid}/root/{path.lstrip('/')}")

    def links(self, host: str, container: str | None = None) -> dict[str, dict[str, Any]]:
        """The devices of a host (or of a stand-in on it) by name, as `ip -j -d link` has them."""
        argv = ["ip", "-j", "-d", "link"]
        done = self.run(host, argv) if container is None else self.exec_container(host, container, argv)
        return {link["ifname"]: link for link in json.loads(done.stdout or "[]")}

    def log(self, host: str) -> str:
        """What the host's sshd has written."""
        self.host(host)
        return (self.root / "log" / f"{host}.log").read_text(errors="replace")

    # ------------------------------------------------------------------ power and cables

    def _ask_keeper(self, **request: Any) -> dict[str, Any]:
        self._keeper_pid()
        folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)  # its path may be too long for a socket's
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(180)
                connection.connect(f"/proc/self/fd/{folder}/control-{self.id}")
                with connection.makefile("rwb") as stream:
                    stream.write(json.dumps(request).encode() + b"\n")
                    stream.flush()
                    reply: dict[str, Any] = json.loads(stream.readline() or b'{"error": "the keeper hung up"}')
        except OSError as error:
            raise LabError(f"lab {self.name}: its keeper does not answer: {error}") from None
        finally:
            os.close(folder)
        if "error" in reply:
            raise LabError(f"lab {self.name}: {reply['error']}{self._log_tails(reply['error'])}")
        return reply

    def _restart(self, host: str, wipe: bool) -> Host:
        self.host(host)
        with self._locked(create=False):
            fact = self._ask_keeper(op="reboot", host=host, wipe=wipe)
            state = self._state()
            if state is None:
                raise LabError(f"lab {self.name}: has no state; `lab down` and `lab up` make it new")
            state["hosts"][host] = fact
            self._write_state(state)
            self._take(state)
            if wipe:
                self._write_ssh_files()
        return self.host(host)

    def reboot(self, host: str) -> Host:
        """Power-cycle a host: all its processes and devices, /run and /tmp are gone, its files are kept.

        There is no systemd: nothing but sshd starts by itself. Returns when sshd accepts connections, with
        address, MAC and host keys as before and a new boot id.
        """
        return self._restart(host, wipe=False)

    def reinstall(self, host: str) -> Host:
        """Replace a host by a fresh one of the same name and address: empty disk, new machine-id, new keys."""
        return self._restart(host, wipe=True)

    def kill(self, host: str) -> None:
        """Make a host unreachable: its cable is pulled, its sshd ended. What else runs there goes on."""
        self.cable(host, up=False)
        self.run(host, "pkill -KILL -x sshd || test $? = 1")  # the host's own PID namespace: only its sshd

    def cable(self, host: str, *, up: bool) -> None:
        """Pull a host's cable, or plug it in again. Connections last as long as both ends try again."""
        self.host(host)
        self._ask_keeper(op="cable", host=host, up=up)

    def revive(self, host: str) -> None:
        """Undo `kill`; returns when sshd accepts connections."""
        self.cable(host, up=True)
        listens = "ss -Hltn 'sport = :22' | grep -q ."
        if self.run(host, listens, check=False).returncode:
            with (self.root / "log" / f"{host}.log").open("ab") as log:
                argv = [*self.enter(host), "setsid", "--fork", "/usr/sbin/sshd", "-D", "-e"]
                streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
                subprocess.run(argv, env=ENVIRONMENT, timeout=30, check=True, **streams)
        self.run(host, f"i=0; until {listens}; do i=$((i+1)); test $i -lt 500 || exit 1; sleep 0.02; done")

    # ------------------------------------------------------------------ stand-ins for containers

    def container(
        self,
        host: str,
        name: str,
        bridge: str,
        mac: str | None = None,
        address: str | Sequence[str] = (),
        gateway: str | Sequence[str] = (),
        mtu: int | None = None,
    ) -> None:
        """Plug a network namespace `name` on `host` into `bridge`, as a container would be.

        Its card is eth0, the host's end `veth<name>` (a name over 11 characters is shortened to fit).
        `address` and `gateway`: one or several, `address/prefix`. Gone with the host's reboot or
        `remove_container`.
        """
        port = container_port(name)
        addresses = [address] if isinstance(address, str) else list(address)
        gateways = [gateway] if isinstance(gateway, str) else list(gateway)
        for text in addresses:
            if "/" not in text:
                raise LabError(f"{host}: container {name}: address {text!r} lacks its prefix length (10.1.0.2/24)")
            ipaddress.ip_interface(text)
        extra = f"{f' address {mac}' if mac else ''}{f' mtu {mtu}' if mtu else ''}"
        outside = [
            f"link add {port}{f' mtu {mtu}' if mtu else ''} type veth peer name eth0{extra} netns {name}",
            f"link set {port} master {bridge} up",
        ]
        inside = ["link set lo up", "link set eth0 up"]
        inside += [f"addr add {text} dev eth0{' nodad' if ':' in text else ''}" for text in addresses]
        inside += [f"route add default via {text} dev eth0" for text in gateways]
        quoted = shlex.quote(name)
        script = (
            f"ip netns add {quoted} || exit 1\n"
            # ip-netns(8): `ip netns exec` puts it in the place of the host's
            f"mkdir -p /etc/netns/{quoted} && : >/etc/netns/{quoted}/resolv.conf\n"
            f"ip -batch - <<'END' && ip -n {quoted} -batch - <<'END2' && exit 0\n"
            + "\n".join(outside)
            + "\nEND\n"
            + "\n".join(inside)
            + f"\nEND2\nip link del {port} 2>/dev/null; ip netns del {quoted}; exit 1\n"
        )
        self.run(host, script)

    def remove_container(self, host: str, name: str) -> None:
        """Unplug and remove a stand-in; nothing happens if it is not there."""
        quoted = shlex.quote(name)
        script = (
            f"test -e /run/netns/{quoted} || exit 0\n"
            f"ip netns pids {quoted} | xargs -r kill -KILL\n"
            f"ip link del {container_port(name)} 2>/dev/null\n"
            f"rm -r /etc/netns/{quoted}\n"
            f"ip netns del {quoted}"
        )
        self.run(host, script)

    def exec_container(
        self,
        host: str,
        name: str,
        command: Command,
        *,
        check: bool = True,
        input: str | None = None,  # noqa: A002  (subprocess calls it so)
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a stand-in (its network, /sys, resolv.conf; else the host's files). As `run`."""
        argv = ["ip", "netns", "exec", name, *_argv(command)]
        return self.run(host, argv, check=check, input=input, timeout=timeout)

    # ------------------------------------------------------------------ container runtimes

    def start_docker(self, host: str) -> None:
        """Start the host's own dockerd, if it does not run, and give it the image `busybox`; then use `docker`.

        `lab.run(host, "docker run --detach --name web busybox")`: the image's own command waits, until it is
        told to end. It holds a static busybox and nothing else. As on any host, Docker sets the policy of
        FORWARD to DROP. After a reboot call it again: containers, networks and image are still there. The log
        is /var/log/dockerd.log. LabError with its end when dockerd does not answer within 30 s.
        """
        _runtimes.start_docker(self, host)

    def start_lxd(self, host: str) -> None:
        """Start the host's own LXD, if it does not run, with a profile without a network and an image `busybox`.

        Then use `lxc`: `lxc init busybox web`, `lxc config device add web eth0 nic …`, `lxc start web`,
        `lxc exec web -- udhcpc -n -i eth0 -O mtu`. The log is /var/log/lxd.log. LabError as in `start_docker`.
        """
        _runtimes.start_lxd(self, host)

    def lxd_read(self, host: str, name: str, command: str) -> str:
        """What a shell command prints in an LXD container. Asked again where `lxc exec` loses it, as it does now and
        then on a busy machine (lxc/lxc issue 4282), so the command must bear that."""
        return _runtimes.lxd_read(self, host, name, command)

    def lxc(self, host: str, name: str, network: Sequence[str], *, start: str = "") -> None:
        """Make and start an LXC container with a busybox in it; then use `lxc-attach`, `lxc-stop`, `lxc-start`.

        `network` are lines of its config (`lxc.net.0.*`), as `overlay snippet --for lxc` prints them. `start` is
        a shell command for each start of the container, say `udhcpc -i eth0 -O mtu &`. After the host's
        reboot it is there, stopped. LabError with LXC's words.
        """
        _runtimes.start_lxc(self, host, name, network, start)

    def dhcp(self, host: str, container: str, client: str = "udhcpc", *, ipv6: bool = False, wait: float = 30) -> None:
        """Have a real DHCP client configure a stand-in's eth0, and keep its lease; LabError if none in `wait` seconds.

        `client` is `udhcpc` or `dhclient`, each with Debian's own script: address, MTU, routes, and resolv.conf,
        which is the stand-in's own: `exec_container` sees it. The stand-in's name is sent as its host name.
        """
        _runtimes.dhcp(self, host, container, client, ipv6, wait)

    # ------------------------------------------------------------------ status

    def status(self) -> dict[str, Any]:
        """What is up: options, operator, and for each host its addresses and whether it runs and listens."""
        running = set(self._ask_keeper(op="running")["running"])
        hosts = {}
        for name, host in self._everyone().items():
            runs = name in running
            hosts[name] = {**asdict(host), "runs": runs, "sshd": runs and listens(Path(f"/proc/{host.pid}"))}
        return {
            "name": self.name,
            "options": self.options.as_dict(),
            "operator": self.operator,
            "operator6": self.operator6,
            "keeper": self._keeper_pid(),
            "ssh_config": str(self.ssh_config),
            "hosts": hosts,
        }


def container_port(name: str) -> str:
    """The host's end of a stand-in's cable: at most 15 characters."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise LabError(f"container {name!r}: letters, digits, '.', '_' and '-' only")
    return (
        f"veth{name}" if len(name) <= _LONGEST_NAME else f"veth{name[:6]}{uuid.uuid5(uuid.NAMESPACE_OID, name).hex[:5]}"
    )


def _quoted(path: Path) -> str:
    return f'"{path}"' if re.search(r"\s", str(path)) else str(path)


def _argv(command: Command) -> list[str]:
    return ["/bin/sh", "-c", command] if isinstance(command, str) else [str(word) for word in command]


def _pipes(text: str | None) -> dict[str, Any]:
    stdin = subprocess.DEVNULL if text is None else subprocess.PIPE
    return {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def _finish(
    process: HostProcess, where: str, command: Command, check: bool, text: str | None, timeout: float
) -> subprocess.CompletedProcess[str]:
    shown = command if isinstance(command, str) else shlex.join(str(word) for word in command)
    try:
        stdout, stderr = process.communicate(text, timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, stderr = process.communicate()
        raise LabError(f"{where}: {shown}: not done after {timeout:g} s\n{stdout}{stderr}".rstrip()) from None
    except BaseException:
        process.kill()
        process.wait()
        raise
    if check and process.returncode:
        raise LabError(f"{where}: {shown}: ended with {process.returncode}\n{stdout}{stderr}".rstrip())
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def _quiet(argv: list[str]) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise LabError(f"{shlex.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")


def _replace(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that no reader ever sees half of it."""
    temporary = path.with_name(path.name + ".new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(fd, "w") as file:
        os.fchmod(fd, mode)
        file.write(text)
    temporary.rename(path)


def _read_line(fd: int, timeout: float) -> bytes:
    """Up to and with the first newline; what there is at the end of file or of the time."""
    data = b""
    deadline = time.monotonic() + timeout
    while not data.endswith(b"\n") and (left := deadline - time.monotonic()) > 0:
        if select.select([fd], [], [], left)[0]:
            chunk = os.read(fd, 65536)
            if not chunk:
                break
            data += chunk
    return data
