"""One host from the inside: its root file system, its first process, its sshd.

The root is an overlayfs: the machine's own / below (so every Debian package of the machine is there), a tmpfs
of the lab above. The upper layer is written before it is mounted, which costs no copy-up. The first process
is PID 1 of a PID namespace: killing it ends everything that ever ran on the host, daemons included.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lab import _sys
from lab._net import Node, Options

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
}
KEY_TYPES = ("ed25519", "ecdsa")

# Folders that start empty, because what the machine has there is not part of a fresh Debian.
_FRESH: Mapping[str, int] = {
    "etc/docker": 0o755,
    "etc/overlay": 0o755,
    "etc/ssh": 0o755,
    "home": 0o755,
    "opt": 0o755,
    "root": 0o700,
    "srv": 0o755,
    "usr/local": 0o755,
    "var/lib/lxc": 0o755,
    "var/lib/lxd": 0o711,
    "var/lib/overlay": 0o700,
}
# hidden when the machine has them, else not made
_ONLY_IF_THERE = ("etc/docker", "etc/overlay", "var/lib/lxc", "var/lib/lxd", "var/lib/overlay")
_SYSTEM = ("usr", "etc", "var", "lib", "lib64", "bin", "sbin")
_SYSTEM_DEPTH = 2  # /var/lib, but not what Docker mounts below it
_USR_LOCAL = ("bin", "etc", "games", "include", "lib", "sbin", "share", "src")
# Bound from the tmpfs itself: an overlayfs (Docker's storage) cannot have its upper layer on an overlayfs.
_PLAIN = ("var/lib/docker", "var/lib/containerd")

_SSHD_CONFIG = """\
# of the lab; see docs/lab.md
Port 22
HostKey /etc/ssh/ssh_host_ed25519_key
HostKey /etc/ssh/ssh_host_ecdsa_key
PidFile /run/sshd.pid
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
AcceptEnv LANG LC_*
LogLevel VERBOSE
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class Setting:
    """What a host needs to know of its lab."""

    lab: str
    options: Options
    store: Path  # where the lab's tmpfs is mounted (in the keeper's mount namespace)
    log_directory: Path
    checkout: Path
    operator_key: str
    hosts_file: str

    def upper(self, host: str) -> Path:
        """Where the host's own files are kept, apart from what it has from the machine."""
        return self.store / host / "upper"


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.write_text(text)
    path.chmod(mode)


def _make_folders(upper: Path, path: str) -> Path:
    """Make `path` in the upper layer with the modes and owners that its folders have on the machine."""
    made = upper
    for part in Path(path).parts:
        made /= part
        if made.is_dir():
            continue
        made.mkdir()
        below = Path("/") / made.relative_to(upper)
        if below.is_dir():
            there = below.stat()
            os.chown(made, there.st_uid, there.st_gid)
            made.chmod(stat.S_IMODE(there.st_mode))
    return made


def _accounts(upper: Path) -> int:
    """Write passwd, group and shadow with the user `ops`; returns its uid and gid."""
    passwd = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith(("ops:", "root:"))]
    group = [line for line in Path("/etc/group").read_text().splitlines() if not line.startswith("ops:")]
    taken = {line.split(":")[2] for line in passwd + group if ":" in line}
    number = next(candidate for candidate in range(1000, 60000) if str(candidate) not in taken)
    passwd = ["root:x:0:0:root:/root:/bin/bash", *passwd]
    passwd.append(f"ops:x:{number}:{number}:operator:/home/ops:/bin/bash")
    group.append(f"ops:x:{number}:")
    # `*`: no password, but not locked (`!`), which sshd without PAM refuses
    shadow = "".join(f"{line.split(':')[0]}:*:19000:0:99999:7:::\n" for line in passwd)
    _write(upper / "etc/passwd", "\n".join(passwd) + "\n")
    _write(upper / "etc/group", "\n".join(group) + "\n")
    _write(upper / "etc/shadow", shadow, 0o600)
    _write(upper / "etc/gshadow", "".join(f"{line.split(':')[0]}:*::\n" for line in group), 0o600)
    return number


def install(node: Node, setting: Setting) -> None:
    """Fill the host's empty upper layer: what makes it a machine of its own."""
    store = setting.store / node.name
    upper = store / "upper"
    upper.mkdir(parents=True)
    for path, mode in _FRESH.items():
        below = Path("/", path)
        if below.is_symlink() or (path in _ONLY_IF_THERE and not below.exists()):
            continue
        made = _make_folders(upper, path)
        made.chmod(mode)
        os.setxattr(made, "trusted.overlay.opaque", b"y")
    for name in _USR_LOCAL:
        (upper / "usr/local" / name).mkdir(parents=True)
    for path in _PLAIN:
        _make_folders(upper, path)
        (store / "plain" / path).mkdir(parents=True)
    _make_folders(upper, "etc/sudoers.d")

    uid = _accounts(upper)
    _write(upper / "etc/hostname", f"{node.name}\n")
    _write(upper / "etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {node.name}\n::1 localhost\n{setting.hosts_file}")
    (upper / "etc/resolv.conf").write_text("# the lab has no name server\n")
    _write(upper / "etc/machine-id", f"{uuid.uuid4().hex}\n", 0o444)
    _write(upper / "etc/sudoers.d/ops", "ops ALL=(ALL:ALL) NOPASSWD: ALL\n", 0o440)
    limit = setting.options.max_startups
    _write(upper / "etc/ssh/sshd_config", _SSHD_CONFIG + (f"MaxStartups {limit}\n" if limit else ""))
    for home, owner in ((upper / "root", 0), (upper / "home/ops", uid)):
        (home / ".ssh").mkdir(mode=0o700, parents=True)
        _write(home / ".ssh/authorized_keys", f"{setting.operator_key}\n", 0o600)
        for made in (home, home / ".ssh", home / ".ssh/authorized_keys"):
            os.chown(made, owner, owner)
    makers = [
        subprocess.Popen(
            ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", node.name, "-f", str(_key(upper, kind))],
            stdin=subprocess.DEVNULL,
            env=ENVIRONMENT,
        )
        for kind in KEY_TYPES
    ]
    results = [maker.wait(60) for maker in makers]
    if any(results):
        raise RuntimeError("ssh-keygen failed; its words are in the host's log")


def _key(root: Path, kind: str) -> Path:
    return root / f"etc/ssh/ssh_host_{kind}_key"


def _lower_mounts() -> list[Path]:
    """The root and what else of the machine's installed system is a file system of its own."""
    found = [Path("/")]
    with Path("/proc/self/mountinfo").open() as file:
        for line in file:
            point = Path(line.split()[4])
            parts = point.parts[1:]
            is_system = parts[:1] and parts[0] in _SYSTEM and len(parts) <= _SYSTEM_DEPTH
            if is_system and point not in found and point.is_dir() and not point.is_symlink():
                found.append(point)
    return found


def _escaped(path: Path) -> str:
    """As overlayfs wants a path in its options."""
    return str(path).replace("\\", "\\\\").replace(",", "\\,")


def _mount_root(node: Node, setting: Setting) -> Path:
    """Mount the host's file systems under its folder of the store; returns the new root."""
    base = setting.store / node.name
    root = base / "root"
    root.mkdir(exist_ok=True)
    for point in _lower_mounts():
        inner = point.relative_to("/")
        upper = base / "upper" / inner
        work = base / "-".join(["work", *inner.parts])
        upper.mkdir(parents=True, exist_ok=True)
        work.mkdir(exist_ok=True)
        options = f"lowerdir={point},upperdir={_escaped(upper)},workdir={_escaped(work)}"
        _sys.mount("overlay", root / inner, "overlay", 0, options)
    for path in _PLAIN:
        _sys.mount(base / "plain" / path, root / path, None, _sys.MS_BIND)

    # the checkout, read-only: a test may run its files on the host, and write none
    checkout = root / setting.checkout.relative_to("/")
    checkout.mkdir(parents=True, exist_ok=True)
    _sys.mount(setting.checkout, checkout, None, _sys.MS_BIND)
    _sys.mount("none", checkout, None, _sys.MS_BIND | _sys.MS_REMOUNT | _sys.MS_RDONLY)

    proc, sys, dev, run, tmp = (root / name for name in ("proc", "sys", "dev", "run", "tmp"))
    for folder in (proc, sys, dev, run, tmp):
        folder.mkdir(exist_ok=True)
    quiet = _sys.MS_NOSUID | _sys.MS_NODEV
    _sys.mount("proc", proc, "proc", quiet | _sys.MS_NOEXEC)
    _sys.mount("sysfs", sys, "sysfs", quiet | _sys.MS_NOEXEC)
    if (cgroups := Path("/sys/fs/cgroup")).is_dir():
        _sys.mount(cgroups, sys / "fs/cgroup", None, _sys.MS_BIND | _sys.MS_REC)
    _sys.mount("/dev", dev, None, _sys.MS_BIND)
    if (dev / "pts").is_dir():
        # in the group tty, as login programs expect
        _sys.mount("devpts", dev / "pts", "devpts", 0, "newinstance,gid=5,mode=620,ptmxmode=666")
    if (dev / "shm").is_dir():
        _sys.mount("tmpfs", dev / "shm", "tmpfs", quiet, "mode=1777,size=256m")
    _sys.mount("tmpfs", run, "tmpfs", quiet, "mode=755,size=256m")
    _sys.mount("tmpfs", tmp, "tmpfs", quiet, "mode=1777,size=50%")
    (run / "sshd").mkdir()
    (run / "lock").mkdir()
    (run / "lock").chmod(0o1777)
    # each boot has its own id, as on a real host: programs tell a reboot by it
    boot_id = run / ".boot_id"
    _write(boot_id, f"{uuid.uuid4()}\n", 0o444)
    _sys.mount(boot_id, proc / "sys/kernel/random/boot_id", None, _sys.MS_BIND)
    return root


def wire(node: Node, options: Options) -> None:
    """Configure the cards of `node` in the current network namespace."""
    lines = ["link set lo up"]
    for port in node.cards:
        # no wait for the underlay's addresses; what is made on a host later keeps the kernel's defaults
        knob, value = ("accept_dad", "0") if options.ipv6 else ("disable_ipv6", "1")
        path = Path(f"/proc/sys/net/ipv6/conf/{port.device}/{knob}")
        if path.exists():
            path.write_text(value)
        if not port.address:
            continue
        lines += [f"addr add {port.address}/16 brd + dev {port.device}", f"link set {port.device} up"]
        if port.address6:
            lines.append(f"addr add {port.address6}/64 dev {port.device} nodad")
    lines += [f"route add default via {gateway}" for gateway in node.gateways]
    ip_batch(lines)
    if options.rate:
        shape([port.device for port in node.cards], options.rate)


def ip_batch(lines: list[str]) -> None:
    """Run `ip` commands in one process; raises RuntimeError with ip's own words."""
    _batch("ip", lines)


def shape(devices: list[str], rate: str) -> None:
    """Let each device send no faster than `rate`, in tc's words (`1gbit`)."""
    _batch("tc", [f"qdisc replace dev {device} root tbf rate {rate} burst 128kb latency 20ms" for device in devices])


def _batch(tool: str, lines: list[str]) -> None:
    done = subprocess.run(
        [tool, "-batch", "-"],
        input="\n".join(lines).encode() + b"\n",
        capture_output=True,
        env=ENVIRONMENT,
        timeout=120,
        check=False,
    )
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()
        where = words.rpartition("Command failed -:")[2].strip()
        line = lines[int(where) - 1] if where.isdigit() and int(where) <= len(lines) else "?"
        raise RuntimeError(f"{tool} {line}: {words}")


def listens(proc: Path) -> bool:
    """Whether somebody listens on TCP port 22 in the network namespace that `proc` (a process's folder) shows."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (proc / "net" / table).read_text().splitlines():
                fields = line.split()
                if fields[3] == "0A" and fields[1].endswith(":0016"):
                    return True
    return False


def _start_sshd() -> None:
    sshd = subprocess.Popen(
        ["/usr/sbin/sshd", "-D", "-e"],
        stdin=subprocess.DEVNULL,
        env=ENVIRONMENT,
        cwd="/",
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not listens(Path("/proc/self")):
        if sshd.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("sshd does not listen; its words are in the host's log")
        time.sleep(0.005)


def run(node: Node, setting: Setting, report: int, barrier: int) -> NoReturn:
    """Be the host, from its first instruction to its end. Called in a fork, as PID 1 of a PID namespace.

    Writes to `report` one line when its network namespace is there, one when sshd accepts connections (or
    one with the error); reads `barrier` until its end to wait for its cables.
    """

    def tell(**fact: object) -> None:
        os.write(report, json.dumps({"host": node.name, **fact}).encode() + b"\n")

    try:
        _sys.set_process_name(f"lab-{node.name}")
        os.setsid()
        pid = int(Path("/proc/self").readlink().name)  # as the machine sees it: /proc is still the machine's
        start = _sys.start_time(pid)
        _sys.unshare(_sys.CLONE_NEWNS | _sys.CLONE_NEWUTS | _sys.CLONE_NEWIPC | _sys.CLONE_NEWNET)
        tell(stage="network")
        log = os.open(setting.log_directory / f"{node.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        socket.sethostname(node.name)
        if not setting.upper(node.name).exists():
            install(node, setting)
        _sys.change_root(_mount_root(node, setting))
        while os.read(barrier, 1):
            pass
        os.close(barrier)
        wire(node, setting.options)
        _start_sshd()
        keys = [_key(Path("/"), kind).with_suffix(".pub").read_text().strip() for kind in KEY_TYPES]
        machine_id = Path("/etc/machine-id").read_text().strip()
        tell(stage="ready", pid=pid, start=start, keys=keys, machine_id=machine_id)
        os.close(report)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        while True:
            signal.sigwait([signal.SIGCHLD])
            _reap()
    except BaseException as error:  # noqa: BLE001  (nobody is above us: whatever it is must be told)
        tell(stage="failed", error=f"{type(error).__name__}: {error}"[:2000])
        os._exit(1)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
