"""Container runtimes as users have them, on lab hosts: Debian's own packages, started by hand as there is no systemd.

A host has all namespaces that they need, and `/var/lib/docker` on a plain tmpfs; what is left to do here is to start
them, to give them an image (no registry can be reached), and to have their control groups removed with the lab.
"""

from __future__ import annotations

import functools
import io
import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from lab import _cgroups
from lab._error import LabError

if TYPE_CHECKING:
    from lab._lab import Lab

_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # what a host has

# Ends at once when it is told to, which a first process without a handler never does.
_IDLE = """CMD ["/bin/sh", "-c", "trap 'exit 0' TERM INT; sleep infinity & wait"]"""


def need(tool: str, package: str) -> str:
    """Where the tool is, on this machine as on its hosts; LabError names the Debian package that brings it."""
    path = shutil.which(tool, path=_SYSTEM_PATH)
    if path is None:
        raise LabError(f"missing on this machine: apt-get install {package}")
    return path


# ---- the one image


@functools.cache
def busybox_root() -> bytes:
    """A root file system as a tar: a static busybox under all its names, and what it needs to be a DHCP client."""
    busybox = need("busybox", "busybox-static")
    program = Path(busybox).read_bytes()
    if b"/lib/ld-" in program or b"/lib64/ld-" in program:
        raise LabError(f"{busybox} needs libraries that a container has not: apt-get install busybox-static")
    names = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for folder in ("bin", "dev", "etc", "etc/udhcpc", "proc", "root", "run", "sbin", "sys", "tmp", "var"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        files = {
            "bin/busybox": program,
            "etc/group": b"root:x:0:\n",
            "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
            "etc/resolv.conf": b"",
        }
        if (script := Path("/etc/udhcpc/default.script")).exists():
            files["etc/udhcpc/default.script"] = script.read_bytes()
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755 if content.startswith((b"#!", b"\x7fELF")) else 0o644
            tar.addfile(entry, io.BytesIO(content))
        for name in sorted({*names, "init"} - {"busybox"}):
            entry = tarfile.TarInfo(f"sbin/{name}" if name == "init" else f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "/bin/busybox"
            tar.addfile(entry)
    return out.getvalue()


# ---- Docker

_START_DOCKER = """\
docker version >/dev/null 2>&1 && exit
setsid dockerd --cgroup-parent={group} </dev/null >>/var/log/dockerd.log 2>&1 &
i=0
until docker version >/dev/null 2>&1; do
    i=$((i + 1))
    kill -0 $! && test $i -lt 600 || {{ tail -n 5 /var/log/dockerd.log >&2; exit 1; }}
    sleep 0.05
done
"""
_GIVE_IMAGE = f"""\
docker image inspect busybox >/dev/null 2>&1 || docker import --change {shlex.quote(_IDLE)} {{file}} busybox
rm {{file}}
"""


def start_docker(lab: Lab, host: str) -> None:
    """See Lab.start_docker."""
    need("dockerd", "docker.io")
    group = f"/{_cgroups.claim(lab.root, lab.id)}/{host}"
    file = "/run/busybox.tar"
    lab.path(host, file).write_bytes(busybox_root())
    lab.run(host, _START_DOCKER.format(group=group))
    lab.run(host, _GIVE_IMAGE.format(file=file))
