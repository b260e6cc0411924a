"""Programs that a service needs running: dnsmasq, keepalived. They are others' programs, not ours.

Where systemd is PID 1 it keeps them: a unit for each, not enabled, since the boot unit of the
agent starts it when its devices are there. Elsewhere each is a process in a session of its own,
which outlives the agent and the SSH session that it was started from, and nothing restarts it by
itself: `check` finds it gone, `apply` and `restore` start it.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from overlay_agent import SERVICES_FOLDER, STATE, host
from overlay_agent.errors import KernelError

if TYPE_CHECKING:
    from overlay_agent.kernel import Kernel

#: A service's own files are in a folder of its id below; the program, which may have dropped root, can read them.
FOLDER = SERVICES_FOLDER
#: Process ids, and what a program wrote to its standard error since it was started.
RUN = "/run/overlay"
UNITS = "/etc/systemd/system"

#: How long a program may take to do what it was asked.
SECONDS = 10.0
_PAUSE = 0.01
#: Without `ready`, a program that has lived so long is taken to have started.
_SETTLED = 0.15
_LAST_WORDS = 400
#: What a process passes on to the program that it becomes, and should not (the agent's worker ignores SIGHUP).
_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD)
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
#: The shell notes its own process id before it becomes the program, so that no kill of the agent comes in between.
_SCRIPT = 'umask 022; cd /; echo $$ > "$0" && exec "$@"'

UNIT = """\
# Made by overlay-agent. Not enabled: overlay-restore.service starts it at boot, when its devices are there.
[Unit]
Description={description}

[Service]
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=1
"""


def identity(kind: str, mark: str) -> str:
    """What a service's unit, folder and process id file are called: overlay-dnsmasq-1a2b3c4d."""
    return f"overlay-{kind}-{zlib.crc32(mark.encode()):08x}"


@dataclasses.dataclass(frozen=True)
class Daemon:
    """One program, by its id. `argv` starts it in the foreground, by its absolute path; a word of it
    holds the id (a file in its folder), which is what tells the process from another with its
    process id. `ready`: whether it serves by now; it is asked until it is, and None means never.
    """

    id: str
    argv: Sequence[str]
    description: str
    ready: Callable[[], bool] | None = None

    @property
    def folder(self) -> str:
        """Where the service's files are."""
        return f"{FOLDER}/{self.id}"

    def pid(self) -> int | None:
        """The process that runs exactly this command line; None where there is none."""
        pid, argv = running(self.id)
        return pid if argv == list(self.argv) else None

    def unit(self) -> str:
        """The unit's text (systemd.service(5))."""
        # A specifier would be replaced there too (systemd.unit(5)).
        description = self.description.replace("%", "%%")
        return UNIT.format(description=description, command=" ".join(_quoted(word) for word in self.argv))

    def start(self, kernel: Kernel) -> None:
        """Has the program running with this command line, and no other of its id. Raises KernelError with
        the program's last words where it ends, or is not ready in time."""
        if self.pid() is None:
            self._start_unit(kernel) if host.has_systemd() else self._start_process(kernel)
            kernel.reached()
        self._wait()

    def reload(self, kernel: Kernel) -> None:
        """Tells the program to read its files again (SIGHUP), and waits until it is ready."""
        pid = self.pid()
        if pid is None:
            raise KernelError(f"{self.id}: reload", errno.ESRCH, "it is not running")
        os.kill(pid, signal.SIGHUP)
        kernel.reached()
        self._wait()

    def stop(self, kernel: Kernel) -> None:
        """Ends what runs under the id, with whatever command line, and leaves nothing of it but its
        folder. What is gone already is no error."""
        if host.has_systemd():
            self._stop_unit(kernel)
        self._stop_process(kernel)

    # -- under systemd ----------------------------------------------------------------------

    def _start_unit(self, kernel: Kernel) -> None:
        write(f"{UNITS}/{self.id}.service", self.unit())
        kernel.reached()
        systemctl("daemon-reload")
        refusal = systemctl("restart", f"{self.id}.service")
        if refusal:
            raise KernelError(f"{self.id}: start", errno.EIO, refusal)
        # systemd says that it is started when it has forked; what it runs may not be there yet (systemd.service(5)).
        _until(lambda: self.pid() is not None or running(self.id)[0] is None)

    def _stop_unit(self, kernel: Kernel) -> None:
        unit = f"{UNITS}/{self.id}.service"
        if not os.path.exists(unit):
            return
        systemctl("stop", f"{self.id}.service")
        kernel.reached()
        os.unlink(unit)
        systemctl("daemon-reload")
        systemctl("reset-failed", f"{self.id}.service")
        kernel.reached()

    # -- elsewhere --------------------------------------------------------------------------

    def _start_process(self, kernel: Kernel) -> None:
        self._stop_process(kernel)
        os.makedirs(RUN, mode=0o755, exist_ok=True)
        log = f"{RUN}/{self.id}.log"
        # Nothing of the agent's stays open in it: not the SSH session's pipes, not the lock.
        files = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)]
        files += [(os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)]
        actions = [*files, (os.POSIX_SPAWN_DUP2, 1, 2)]
        actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2]
        os.posix_spawn(
            "/bin/sh", ["sh", "-c", _SCRIPT, _pid_file(self.id), *self.argv], _ENVIRONMENT, file_actions=actions,
            setsid=True, setsigmask=(), setsigdef=_SIGNALS,
        )  # fmt: skip
        _until(lambda: self.pid() is not None or self._last_words() != "")

    def _stop_process(self, kernel: Kernel) -> None:
        if not os.path.exists(_pid_file(self.id)):
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            pid, _ = _process(self.id)
            if pid is None:
                break
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            if _until(lambda pid=pid: _has_ended(pid)):  # type: ignore[misc]
                break
        kernel.reached()
        for path in (f"{RUN}/{self.id}.log", _pid_file(self.id)):
            with suppress(FileNotFoundError):
                os.unlink(path)
        with suppress(OSError):  # another service's files are there
            os.rmdir(RUN)
        kernel.reached()

    # -- both -------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Until it is ready. Raises KernelError."""
        end = time.monotonic() + SECONDS
        settled = time.monotonic() + _SETTLED
        while self.pid() is not None:
            if self.ready() if self.ready else time.monotonic() > settled:
                return
            if time.monotonic() > end:
                raise KernelError(
                    f"{self.id}: start", errno.ETIMEDOUT, f"not ready after {SECONDS:.0f} s; {self._last_words()}"
                )
            time.sleep(_PAUSE)
        raise KernelError(f"{self.id}: start", errno.EIO, self._last_words() or "it ended at once and said nothing")

    def _last_words(self) -> str:
        """What the program said last, as one line."""
        if host.has_systemd():
            said = output("journalctl", "-q", "-n", "5", "-o", "cat", "-u", f"{self.id}.service")
        else:
            said = _read(f"{RUN}/{self.id}.log")
        return "; ".join(line.strip() for line in said.splitlines() if line.strip())[-_LAST_WORDS:]


def running(id_: str) -> tuple[int | None, list[str]]:
    """The process of a service and its command line; (None, []) where it does not run."""
    if host.has_systemd() and os.path.exists(f"{UNITS}/{id_}.service"):
        said = output("systemctl", "show", "-p", "MainPID", "--value", f"{id_}.service").strip()
        pid = int(said) if said.isdigit() else 0
        argv = _command_line(pid)
        return (pid, argv) if argv else (None, [])
    return _process(id_)


def write(path: str, text: str, group: str | None = None) -> None:
    """Writes a file for all to read, or for root and that group alone, whole or not at all; its folder is made,
    and can be passed. Raises KernelError."""
    mode = 0o644 if group is None else 0o640
    temporary = f"{path}.new"
    try:
        _make_folder(os.path.dirname(path))
        with suppress(FileNotFoundError):
            os.unlink(temporary)  # an older one may be for all to read
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(handle, "w", encoding="utf-8") as file:
            if group is not None:
                shutil.chown(handle, group=group)
            os.fchmod(handle, mode)  # whatever the umask
            file.write(text)
            file.flush()
            os.fsync(handle)
        os.rename(temporary, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temporary)
        raise KernelError(path, error.errno or errno.EIO, f"cannot be written ({error.strerror})") from None


def texts(folder: str) -> dict[str, str]:
    """The files in a folder by name; nothing where it is not there."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return {name: _read(os.path.join(folder, name)) for name in names}


def replace(
    kernel: Kernel, folder: str, files: Mapping[str, str], keep: Sequence[str] = (), group: str | None = None
) -> None:
    """Has exactly those files in the folder, and those in `keep` as they are; no files: no folder. `group`: who
    may read them beside root; else all."""
    there = texts(folder)
    for name in there.keys() - files.keys() - set(keep):
        os.unlink(os.path.join(folder, name))
        kernel.reached()
    for name, text in files.items():
        if there.get(name) != text:
            write(os.path.join(folder, name), text, group)
            kernel.reached()
    if not files and os.path.isdir(folder) and not os.listdir(folder):
        os.rmdir(folder)
        with suppress(OSError):  # another service has a folder there
            os.rmdir(FOLDER)
        kernel.reached()


def _make_folder(folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    if folder.startswith(f"{FOLDER}/"):
        for path, mode in ((STATE, 0o711), (FOLDER, 0o755), (folder, 0o755)):
            now = os.stat(path).st_mode & 0o777
            if now | mode != now:  # made under a narrow umask
                os.chmod(path, now | mode)


def _process(id_: str) -> tuple[int | None, list[str]]:
    """The process that the process id file names, if it is still that one."""
    said = _read(_pid_file(id_)).strip()
    argv = _command_line(int(said)) if said.isdigit() else []
    return (int(said), argv) if any(id_ in word for word in argv) else (None, [])


def _pid_file(id_: str) -> str:
    return f"{RUN}/{id_}.pid"


def _command_line(pid: int) -> list[str]:
    """A process's command line; empty where there is none, or it has ended and nobody has asked how yet."""
    return _read(f"/proc/{pid}/cmdline").split("\0")[:-1]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _has_ended(pid: int) -> bool:
    """Whether the process is gone, and its ports are free: its command line goes before they are."""
    state = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()[:1]
    return state in ([], ["Z"], ["X"])


def _until(done: Callable[[], bool]) -> bool:
    """Waits for it, and returns whether it came."""
    end = time.monotonic() + SECONDS
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(_PAUSE)
    return True


def _quoted(word: str) -> str:
    """A word of ExecStart (systemd.service(5), "COMMAND LINES")."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if not word or set(word) & set(" \t\"';\\") else word


def output(*argv: str) -> str:
    """What it writes; nothing where there is no such command."""
    import subprocess  # noqa: PLC0415 - costs 5 ms where there is no systemd

    try:
        return subprocess.run(argv, check=False, capture_output=True, text=True).stdout
    except FileNotFoundError:
        return ""


def systemctl(*arguments: str) -> str:
    """Runs it, and returns what it says against it; nothing where it did it."""
    import subprocess  # noqa: PLC0415 - as above

    done = subprocess.run(["systemctl", "-q", *arguments], check=False, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip() or f"systemctl: exit code {done.returncode}"
