"""A virtual machine with Debian's stock kernel, for what this machine's own cannot do.

Why: some kernels have no gretap, L2TP or WireGuard, and a network namespace can neither boot nor lose its power. The
image is made by `make setup` (tools/vm_image.py); QEMU runs it without KVM, which not every machine has. What a guest
writes goes with it. docs/adr/0008-the-vm-lab.md has the reasons and the times.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lab._error import LabError

CHECKOUT = Path(__file__).resolve().parent.parent
Command = str | Sequence[str]
QEMU = "qemu-system-x86_64"
_PATIENCE = 600.0  # s, for a boot: it takes 10 to 30, but 140 were seen on a machine with much else to do
_LISTENS = b"Server listening on"  # sshd, on the guest's console
#: An emulated processor that is given too little time now and then locks up in its boot, and stays so.
_STUCK = b"BUG: soft lockup"
#: An emulated processor pays dearly for what protects a real one. The greatest by far is the first: QEMU compiles a
#: program's code for the addresses at which it lies, and anew for each process where these are chosen at random.
_CHEAP = "norandmaps mitigations=off init_on_alloc=0"
_PREFIX = "overlay-lab-vm-"
_PYTHON = "/usr/bin/python3"
_ALIVE = ["-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=12"]


def image_folder() -> Path:
    """Where the image lies; OVERLAY_VM_DIR lets several checkouts share one."""
    return Path(os.environ.get("OVERLAY_VM_DIR") or CHECKOUT / ".tools" / "vm")


def why_not() -> str:
    """Why no VM can be booted here, and what to do; empty when one can."""
    folder = image_folder()
    with contextlib.suppress(OSError):
        return f"the VM lab's image could not be made: {(folder / 'failed').read_text().strip()}; run `make setup`"
    missing = [name for name in (QEMU, "mksquashfs", "ssh", "setpriv") if shutil.which(name) is None]
    if missing:
        return f"the VM lab needs {', '.join(missing)}; run `make setup` as root"
    if not (folder / "stamp").exists():
        return f"the VM lab has no image in {folder}; run `make setup` as root on Debian"
    return ""


class Vm:
    """A booted guest. `with Vm() as vm:` starts a fresh one, waits for its sshd, and ends it.

    systemd   PID 1 is systemd, as on a real host; else a small script, up in a third of the time
    nics      network cards besides the one that carries our SSH session (eth1 …), all on one wire
    memory    MiB
    programs  the checkout, its Python packages and Pulumi are there, at the same paths as here

    Once up:
    release   the guest's `uname -r`
    """

    def __init__(self, *, systemd: bool = False, nics: int = 0, memory: int = 2048, programs: bool = True) -> None:
        self.systemd, self.nics, self.memory, self.programs = systemd, nics, memory, programs
        self.release = ""
        self._folder = Path()
        self._qemu: subprocess.Popen[bytes] | None = None
        self._master: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._lock: int | None = None  # held while the folder is in use

    def __enter__(self) -> Vm:  # noqa: PYI034  (Self is from 3.11)
        """Boot."""
        if reason := why_not():
            raise LabError(reason)
        _sweep()
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = _locked(self._folder)
        try:
            self._start()
            self._wait()
            if self.programs:
                self._unpack_checkout()
                self._mount_programs()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, at once."""
        self.close()

    def close(self) -> None:
        """End the guest; nothing of it is left."""
        self._hang_up()
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
            self._qemu = None
        if self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ---- what runs in it

    def argv(self, command: Command, *, env: Mapping[str, str] | None = None, terminal: bool = False) -> list[str]:
        """What to run here so that `command` runs there as root; text is for the shell."""
        words = command if isinstance(command, str) else shlex.join(command)
        if env:
            words = f"export {' '.join(f'{key}={shlex.quote(value)}' for key, value in env.items())}; {words}"
        return [*self._ssh(), *(["-t"] if terminal else []), "vm", words]

    def popen(self, command: Command, *, env: Mapping[str, str] | None = None, **more: Any) -> subprocess.Popen[str]:
        """Start a command in the guest; as subprocess.Popen of it (signals end the connection, not the command)."""
        return subprocess.Popen(self.argv(command, env=env), text=True, **more)

    def run(
        self,
        command: Command,
        *,
        input: str = "",  # noqa: A002 - subprocess.run calls it so
        check: bool = True,
        timeout: float | None = 300,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the guest as root; LabError with its words when it fails (unless check=False)."""
        try:
            done = subprocess.run(
                self.argv(command, env=env), input=input, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"vm: {command}: not done after {timeout:.0f} s\n{self.console()}") from None
        if check and done.returncode != 0:
            raise LabError(f"vm: {command} ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
        return done

    def put(self, source: Path, target: str) -> None:
        """Copy a file or a folder into the guest; `target` is its path there."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(source, target.lstrip("/"))
        subprocess.run(self.argv("tar -C / -xf -"), input=archive.getvalue(), check=True, capture_output=True)

    def read(self, path: str) -> str:
        """The text of a file in the guest."""
        return self.run(["cat", path]).stdout

    def console(self, lines: int = 25) -> str:
        """The end of what the guest has written to its console."""
        with contextlib.suppress(OSError):
            text = (self._folder / "console").read_text(errors="replace")
            text = re.sub(r"\x1b\[[0-9;?=]*[A-Za-z]|\x1bc", "", text)
            return "\n".join(line.rstrip() for line in text.splitlines()[-lines:])
        return ""

    # ---- power

    @property
    def boot_id(self) -> str:
        """Which boot of the guest this is."""
        return self.read("/proc/sys/kernel/random/boot_id").strip()

    def reboot(self) -> None:
        """Reboot it in good order and wait until it is back."""
        order = "systemctl reboot" if self.systemd else "sync; echo b > /proc/sysrq-trigger"
        self._come_back(lambda: self.run(f"({order}) >/dev/null 2>&1 &", check=False))

    def power_cut(self) -> None:
        """Take the power away (what was not on the disk is lost), give it back, and wait until it is back."""
        self._come_back(lambda: self._qmp("system_reset"))

    def is_running(self) -> bool:
        """Whether the guest's power is on."""
        return self._qemu is not None and self._qemu.poll() is None

    def _come_back(self, order: Any) -> None:
        before, said = self.boot_id, (self._folder / "console").stat().st_size
        order()
        self._wait(before, said)
        if self.programs:
            self._mount_programs()

    # ---- inside

    def _start(self) -> None:
        folder, image = self._folder, image_folder()
        disks = [(image / "disk", "snapshot=on")]
        if self.programs:
            disks += [(_programs(), "readonly=on"), (_checkout(folder), "readonly=on")]
        kernel = f"root=/dev/vda rw console=ttyS0 quiet rdinit=/lab-init net.ifnames=0 panic=-1 {_CHEAP}"
        if not self.systemd:
            kernel += " init=/usr/local/sbin/lab-init"
        argv = ["setpriv", "--pdeathsig", "KILL", "--", QEMU]  # a killed test leaves no guest behind
        argv += ["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", str(self.memory)]
        argv += ["-nodefaults", "-display", "none", "-serial", f"file:{folder}/console"]
        argv += ["-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
        argv += ["-kernel", str(image / "kernel"), "-initrd", str(image / "initrd"), "-append", kernel]
        for path, mode in disks:
            argv += ["-drive", f"file={path},format=raw,if=virtio,{mode}"]
        # No way out: the guest reaches nothing, and is reached at this one port of ours. No IPv6: its router's
        # advertisements would change the guest's routes by themselves.
        argv += ["-netdev", "user,id=n0,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22"]
        argv += ["-device", "virtio-net-pci,netdev=n0,romfile="]
        for number in range(1, self.nics + 1):
            argv += ["-netdev", f"hubport,id=n{number},hubid=1"]
            argv += ["-device", f"virtio-net-pci,netdev=n{number},romfile=,mac=52:54:00:00:01:{number:02x}"]
        log = (folder / "qemu").open("wb")
        self._qemu = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        log.close()

    def _qmp(self, command: str, **arguments: Any) -> Any:
        """One command to QEMU itself, and its answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(self._folder / "qmp"))
            with connection.makefile("rw") as stream:
                stream.readline()
                stream.write('{"execute": "qmp_capabilities"}\n')
                stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
                stream.flush()
                answers: list[dict[str, Any]] = []
                while len(answers) < 2:
                    answers += [said for said in [json.loads(stream.readline())] if "event" not in said]
                answer = answers[-1]
        if "error" in answer:
            raise LabError(f"vm: QEMU refused {command}: {answer['error']['desc']}")
        return answer["return"]

    def _wait(self, but_not: str = "", since: int = 0) -> None:
        """Wait for the guest's sshd (said on the console after byte `since`, of another boot than `but_not`)."""
        deadline = time.monotonic() + _PATIENCE
        self._hang_up()
        while True:
            self._still_there(deadline)
            with contextlib.suppress(OSError, LabError):
                if _STUCK in (self._folder / "console").read_bytes()[since:]:
                    since = (self._folder / "console").stat().st_size
                    self._qmp("system_reset")
                # Not by trying to connect: each try that comes too early costs the booting guest a process.
                if _LISTENS in (self._folder / "console").read_bytes()[since:] and self._connect(deadline, but_not):
                    return
            time.sleep(0.1)

    def _still_there(self, deadline: float) -> None:
        if not self.is_running():
            said = (self._folder / "qemu").read_text(errors="replace")
            raise LabError(f"vm: QEMU ended: {said.strip()}\n{self.console()}")
        if time.monotonic() > deadline:
            raise LabError(f"vm: did not come up within {_PATIENCE:.0f} s; the end of its console:\n{self.console()}")

    def _ssh(self) -> list[str]:
        image = image_folder()
        return [
            "ssh", "-q", "-F", "none", "-S", str(self._folder / "ssh"), "-i", str(image / "key"), "-l", "root",
            "-p", str(self._port), "-o", f"UserKnownHostsFile={image / 'known_hosts'}", "-o", "HostName=127.0.0.1",
            "-o", "HostKeyAlias=vm", "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes",
            "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", *_ALIVE,
        ]  # fmt: skip

    def _connect(self, deadline: float, but_not: str) -> bool:
        """Keep one connection for all that follows: each new one costs the guest a second of arithmetic."""
        if self._port == 0:
            shown = self._qmp("human-monitor-command", **{"command-line": "info usernet"})
            found = re.search(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", shown)
            if found is None:
                raise LabError(f"vm: QEMU names no forwarded port: {shown}")
            self._port = int(found[1])
        self._master = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *self._ssh(), "-M", "-N", "vm"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        while self._master.poll() is None and not (self._folder / "ssh").exists():
            self._still_there(deadline)
            time.sleep(0.05)
        said = self.run("cat /proc/sys/kernel/random/boot_id; uname -r", check=False, timeout=60).stdout.split()
        if len(said) == 2 and said[0] != but_not:
            self.release = said[1]
            return True
        self._hang_up()
        return False

    def _hang_up(self) -> None:
        if self._master is not None:
            self._master.kill()
            self._master.wait()
            self._master = None
            (self._folder / "ssh").unlink(missing_ok=True)

    def _unpack_checkout(self) -> None:
        self.run("tar -C / -xf /dev/vdc")

    def _mount_programs(self) -> None:
        venv, tools = _real(".venv"), _real(".tools")
        places = {".venv": venv, "bin": tools / "bin", "plugins": tools / "plugins"}
        lines = ["mkdir -p /opt/lab", "mount -t squashfs -o ro /dev/vdb /opt/lab"]
        for name, place in places.items():
            lines.append(f"mkdir -p {place}; test ! -e /opt/lab/{name} || mount --bind /opt/lab/{name} {place}")
        self.run("set -e; " + "; ".join(lines))


def _locked(folder: Path) -> int | None:
    """The lock on a folder, which ends with its process; None where another process has it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _sweep() -> None:
    """Remove the folders that killed processes have left; their guests went with them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > 60 and (handle := _locked(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(handle)


def _real(name: str) -> Path:
    return (CHECKOUT / name).resolve()


def _programs() -> Path:
    """A disk with the Python packages and Pulumi, made again when they have changed."""
    venv, tools = _real(".venv"), _real(".tools")
    settings = (venv / "pyvenv.cfg").read_text()
    if not re.search(r"^home = /usr/bin$", settings, re.MULTILINE):
        raise LabError(f"{venv}: is not made from Debian's own Python, which alone is in the VM: {settings!r}; "
                       f"run `make setup PYTHON={_PYTHON}`")  # fmt: skip
    total = hashlib.sha256()
    for part in (venv / ".stamp", tools / "provenance.json"):
        with contextlib.suppress(FileNotFoundError):
            total.update(part.read_bytes())
    folder = image_folder()
    disk = folder / f"programs-{total.hexdigest()[:16]}"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not disk.exists():
            for old in folder.glob("programs-*"):
                old.unlink()  # who has it open keeps it
            made = disk.with_name(f"new-{disk.name}")
            made.unlink(missing_ok=True)
            parts = [str(part) for part in (venv, tools / "bin", tools / "plugins") if part.exists()]
            options = ["-comp", "lz4", "-noappend", "-quiet", "-no-progress", "-all-root"]
            done = subprocess.run(["mksquashfs", *parts, made, *options], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise LabError(f"mksquashfs ended with {done.returncode}: {done.stderr}")
            made.rename(disk)
    return disk


def _checkout(folder: Path) -> Path:
    """A tar of the checkout, as it is now, with what Python has compiled of it; for the guest it is a disk."""
    listing = subprocess.run(
        ["git", "-C", CHECKOUT, "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard", "-z"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    disk = folder / "checkout"
    with tarfile.open(disk, "w") as tar:
        for path in _with_compiled(CHECKOUT / name for name in listing.split("\0") if name):
            if path.is_symlink() or path.exists():  # not: removed, but not yet so in git
                tar.add(path, str(path).lstrip("/"))
        for name in (".venv", ".tools"):
            if (CHECKOUT / name).is_symlink():
                tar.add(CHECKOUT / name, str(CHECKOUT / name).lstrip("/"))
        for name in ("provenance.json", "logs"):
            if (path := _real(".tools") / name).is_file():
                tar.add(path, str(path).lstrip("/"))
    return disk


def _with_compiled(paths: Iterator[Path]) -> Iterator[Path]:
    for path in paths:
        yield path
        if path.suffix == ".py":
            yield from path.parent.glob(f"__pycache__/{path.stem}.{sys.implementation.cache_tag}*.pyc")
