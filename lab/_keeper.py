"""The one process that holds a lab: PID 1 of a PID namespace in which all its hosts run.

When it ends, for whatever reason, the kernel ends every process of the lab and with them its namespaces,
mounts and devices: there is nothing to clean up but files. It ends itself when the `up` that started it
goes away before it has said "commit", so a killed `up` leaves nothing behind either.

Its own network namespace is the operator's; the switch's is its file descriptor SWITCH_FD.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from lab import _host, _net, _sys

SWITCH_FD = 200
BOOT_TIMEOUT = 120.0


class Keeper:
    def __init__(self, setting: _host.Setting, up: int) -> None:
        self.setting = setting
        self.up: int | None = up  # readable or closed: `up` has something to say, or is gone
        self.operator, nodes = _net.plan(setting.lab, setting.options)
        self.nodes = {node.name: node for node in nodes}
        self.running: dict[str, int] = {}  # host: pid of its first process, in our PID namespace
        self.pid_ns = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self.operator_ns = -1

    # ---- what is there once

    def prepare(self) -> None:
        """Make the store, the switch and the operator's namespace."""
        setting = self.setting
        setting.store.mkdir(exist_ok=True)
        _sys.mount("tmpfs", setting.store, "tmpfs", 0, "mode=755,size=50%")
        _sys.unshare(_sys.CLONE_NEWNET)
        switch = os.open("/proc/self/ns/net", os.O_RDONLY)
        os.dup2(switch, SWITCH_FD, inheritable=False)
        os.close(switch)
        for path, value in (
            ("net/ipv6/conf/all/disable_ipv6", "1"),  # a switch has no address and sends no MLD
            ("net/ipv6/conf/default/disable_ipv6", "1"),
            ("net/bridge/bridge-nf-call-iptables", "0"),
            ("net/bridge/bridge-nf-call-ip6tables", "0"),
        ):
            with contextlib.suppress(OSError):
                Path("/proc/sys", path).write_text(value)
        lines = []
        for bridge in sorted({port.bridge for node in [*self.nodes.values(), self.operator] for port in node.cards}):
            # no snooping: without a querier a snooping bridge forgets who wants which group
            kind = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
            address = _net.mac(setting.lab, "switch", bridge)
            lines += [f"link add {bridge} address {address} {kind}", f"link set {bridge} up"]
        _host.ip_batch(lines)
        _sys.unshare(_sys.CLONE_NEWNET)
        self.operator_ns = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        # by path, for `plug` takes this very process to the switch
        self.plug([(self.operator, f"/proc/{_own_pid()}/fd/{self.operator_ns}")])
        _host.wire(self.operator, setting.options)

    @contextlib.contextmanager
    def at_the_switch(self) -> Iterator[None]:
        """Be in the switch's network namespace for a while."""
        _sys.setns(SWITCH_FD, _sys.CLONE_NEWNET)
        try:
            yield
        finally:
            _sys.setns(self.operator_ns, _sys.CLONE_NEWNET)

    def plug(self, places: list[tuple[_net.Node, str]]) -> None:
        """Lay a cable from the switch to each network namespace, given as `ip` names it: pid or path."""
        mtu = self.setting.options.mtu
        lines = []
        ports = []
        for node, place in places:
            for port in node.cards:
                peer = f"name {port.device} address {port.mac} mtu {mtu} netns {place}"
                lines.append(f"link add {port.port} mtu {mtu} type veth peer {peer}")
                lines.append(f"link set {port.port} master {port.bridge} up")
                ports.append(port.port)
        with self.at_the_switch():
            _host.ip_batch(lines)
            if self.setting.options.rate:
                _host.shape(ports, self.setting.options.rate)

    # ---- hosts

    def boot(self, names: list[str]) -> dict[str, Any]:
        """Start these hosts side by side; returns what each reported when its sshd listened."""
        report, report_in = os.pipe()
        barrier_out, barrier = os.pipe()
        started: dict[str, int] = {}
        try:
            for name in names:
                _sys.unshare(_sys.CLONE_NEWPID)
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for fd in sorted({int(entry.name) for entry in Path("/proc/self/fd").iterdir()}):
                        if fd not in (0, 1, 2, report_in, barrier_out):
                            with contextlib.suppress(OSError):
                                os.close(fd)
                    _host.run(self.nodes[name], self.setting, report_in, barrier_out)
                started[name] = pid
                self.running[name] = pid
                _sys.setns(self.pid_ns, _sys.CLONE_NEWPID)
            os.close(report_in)
            report_in = -1
            lines = _Lines(report, self)
            lines.collect("network", set(names))
            self.plug([(self.nodes[name], str(started[name])) for name in names])
            os.close(barrier)
            barrier = -1
            return lines.collect("ready", set(names))
        finally:
            for fd in (report, report_in, barrier_out, barrier):
                if fd >= 0:
                    os.close(fd)

    def reap(self) -> None:
        """Collect what ended; we are the parent of all that lost theirs."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self.running = {name: known for name, known in self.running.items() if known != pid}

    def reboot(self, name: str, wipe: bool) -> dict[str, Any]:
        """Pull the plug of a host and start it again; with `wipe`, from an empty disk."""
        self.halt(name)
        if wipe:
            for folder in (self.setting.store / name).iterdir():
                shutil.rmtree(folder)
        facts: dict[str, Any] = self.boot([name])[name]
        return facts

    def halt(self, name: str) -> None:
        node = self.nodes[name]
        self.reap()
        if (pid := self.running.pop(name, None)) is not None:
            os.kill(pid, signal.SIGKILL)  # our child and not yet waited for: the pid is still its own
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        with self.at_the_switch():
            for port in node.cards:
                # the host's namespace may take its devices away in its own time; not waiting for it
                subprocess.run(
                    ["ip", "link", "del", port.port], env=_host.ENVIRONMENT, capture_output=True, check=False
                )

    def cable(self, name: str, up: bool) -> None:
        with self.at_the_switch():
            _host.ip_batch([f"link set {port.port} {'up' if up else 'down'}" for port in self.nodes[name].cards])

    # ---- requests

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        what, name = request["op"], request.get("host", "")
        if what == "running":
            return {"running": sorted(self.running)}
        if name not in self.nodes:
            return {"error": f"{name}: no such host; there are {', '.join(self.nodes)}"}
        if what == "reboot":
            return self.reboot(name, bool(request.get("wipe")))
        if what == "cable":
            self.cable(name, bool(request["up"]))
            return {}
        return {"error": f"{what}: not something that a keeper can do"}

    def serve(self, listener: socket.socket, wakeup: int) -> NoReturn:
        while True:
            watched = [fd for fd in (listener.fileno(), wakeup, self.up) if fd is not None]
            ready, _, _ = select.select(watched, [], [])
            if wakeup in ready:
                os.read(wakeup, 4096)
            self.reap()
            if self.up is not None and self.up in ready:
                self.hear_up()
            if listener.fileno() in ready:
                with contextlib.suppress(OSError, ValueError), listener.accept()[0] as connection:
                    connection.settimeout(10)
                    with connection.makefile("rwb") as stream:
                        try:
                            reply = self.answer(json.loads(stream.readline()))
                        except Exception as error:  # noqa: BLE001  (whatever it is: the lab outlives it)
                            reply = {"error": str(error) or type(error).__name__}
                        stream.write(json.dumps(reply).encode() + b"\n")

    def end_without_up(self) -> None:
        """End here if `up` has gone; before it has our answer it says nothing, so any sign of it is its end."""
        if self.up is not None and select.select([self.up], [], [], 0)[0]:
            os._exit(1)

    def hear_up(self) -> None:
        """End at once unless `up` has said that it wants the lab to stay."""
        if self.up is not None:
            if not os.read(self.up, 64).startswith(b"commit"):
                os._exit(1)
            os.close(self.up)
            self.up = None


class _Lines:
    """What the hosts report, with an eye on those who die in silence and on an `up` that has gone."""

    def __init__(self, fd: int, keeper: Keeper) -> None:
        self.fd = fd
        self.keeper = keeper
        self.rest = b""
        self.deadline = time.monotonic() + BOOT_TIMEOUT

    def collect(self, stage: str, names: set[str]) -> dict[str, Any]:
        """Wait until each host has reported `stage`; raises RuntimeError with the first failure."""
        found: dict[str, Any] = {}
        keeper = self.keeper
        while names - set(found):
            watched = [fd for fd in (self.fd, keeper.up) if fd is not None]
            ready, _, _ = select.select(watched, [], [], 1.0)
            keeper.end_without_up()
            if self.fd in ready:
                data = os.read(self.fd, 65536)
                *lines, self.rest = (self.rest + data).split(b"\n")
                for line in lines:
                    fact = json.loads(line)
                    if fact["stage"] == "failed":
                        raise RuntimeError(f"{fact['host']}: {fact['error']}")
                    if fact["stage"] == stage:
                        found[fact["host"]] = fact
                if lines:
                    continue
            keeper.reap()
            missing = sorted(names - set(found))
            dead = [name for name in missing if name not in keeper.running]
            if dead:
                raise RuntimeError(f"{', '.join(dead)}: died before stage {stage!r}; see its log")
            if time.monotonic() > self.deadline:
                raise RuntimeError(f"{', '.join(missing)}: not at stage {stage!r} after {BOOT_TIMEOUT:.0f} s")
        return found


def main() -> None:
    """Read the setting (one JSON line) on stdin, leave for a new PID namespace, report on stdout."""
    up = os.dup(0)  # the same pipe goes on to say "commit", or closes
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(up, 1)
        if not byte:
            return
        line += byte
    request = json.loads(line)
    result = os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    _sys.unshare(_sys.CLONE_NEWNS | _sys.CLONE_NEWPID)
    _sys.mount("none", "/", None, _sys.MS_REC | _sys.MS_PRIVATE)
    if os.fork():
        os._exit(0)
    os.setsid()
    _sys.set_process_name("lab-keeper")
    os.chdir(request["directory"])
    os.umask(0o022)
    try:
        pid = _own_pid()
        start = _sys.start_time(pid)
        # Each run has files of its own: a killed `up` and the next one may be at work at the same moment.
        # `net` is the namespace that we come from and that nobody may take for the lab's.
        record = {"pid": pid, "start": start, "id": request["id"], "net": _sys.namespace(pid, "net")}
        _write_json(f"keeper-{request['id']}.json", record)
        options = _net.Options(**request.pop("options"))
        keeper = Keeper(
            _host.Setting(
                lab=request["lab"],
                options=options,
                store=Path(request["directory"], "store"),
                log_directory=Path(request["directory"], "log"),
                checkout=Path(request["checkout"]),
                operator_key=request["operator_key"],
                hosts_file=request["hosts_file"],
            ),
            up,
        )
        wakeup, wakeup_in = os.pipe()
        os.set_blocking(wakeup_in, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup_in, warn_on_full_buffer=False)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"control-{request['id']}")
        listener.listen(64)
        gc.collect()
        gc.freeze()  # pages that the garbage collector does not touch stay shared with 250 hosts
        keeper.end_without_up()
        keeper.prepare()
        keeper.end_without_up()
        reply = {"keeper": [pid, start], "hosts": keeper.boot(list(keeper.nodes))}
    except BaseException as error:
        _say(result, {"error": str(error) or type(error).__name__})
        if not isinstance(error, (RuntimeError, OSError)):
            raise
        os._exit(1)
    _say(result, reply)
    os.close(result)
    keeper.serve(listener, wakeup)


def _say(fd: int, reply: dict[str, Any]) -> None:
    data = json.dumps(reply).encode() + b"\n"
    with contextlib.suppress(BrokenPipeError):
        while data:
            data = data[os.write(fd, data) :]


def _write_json(name: str, value: dict[str, Any]) -> None:
    temporary = Path(name + ".new")
    temporary.write_text(json.dumps(value))
    temporary.rename(name)


def _own_pid() -> int:
    """Our pid as the machine sees it: /proc is the machine's, while os.getpid() says 1."""
    return int(Path("/proc/self").readlink().name)
