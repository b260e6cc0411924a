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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lab import _cgroups
from lab._error import LabError

if TYPE_CHECKING:
    from lab._lab import Lab

_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # what a host has

# The first process of containers. Ends when it is told to, which a first process without a handler never does.
_INIT = """\
#!/bin/sh
trap 'exit 0' TERM INT
ip link set lo up
test ! -e /etc/rc || . /etc/rc
sleep infinity &
wait $!
"""


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
            "sbin/init": _INIT.encode(),
        }
        if (script := Path("/etc/udhcpc/default.script")).exists():
            files["etc/udhcpc/default.script"] = script.read_bytes()
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755 if content.startswith((b"#!", b"\x7fELF")) else 0o644
            tar.addfile(entry, io.BytesIO(content))
        for name in sorted({*names} - {"busybox", "init"}):
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "/bin/busybox"
            tar.addfile(entry)
    return out.getvalue()


# ---- Docker and LXD

_START = """\
{answers} >/dev/null 2>&1 && exit
setsid {daemon} </dev/null >>{log} 2>&1 &
i=0
until {answers} >/dev/null 2>&1; do
    i=$((i + 1))
    kill -0 $! && test $i -lt 600 || {{ tail -n 5 {log} >&2; exit 1; }}
    sleep 0.05
done
"""


def start_docker(lab: Lab, host: str) -> None:
    """See Lab.start_docker."""
    need("dockerd", "docker.io")
    daemon = f"dockerd --cgroup-parent=/{_cgroups.claim(lab.root, lab.id, 'docker')}/{host}"
    lab.run(host, _START.format(answers="docker version", daemon=daemon, log="/var/log/dockerd.log"))
    if lab.run(host, "docker image inspect busybox", check=False).returncode:
        lab.path(host, "/run/root.tar").write_bytes(busybox_root())
        lab.run(host, "docker import --change 'CMD [\"/sbin/init\"]' /run/root.tar busybox; rm /run/root.tar")


_LXD_PROFILE = """\
storage_pools: [{{name: default, driver: dir}}]
profiles:
- name: default
  config: {{raw.lxc: lxc.cgroup.dir = {group}}}
  devices: {{root: {{type: disk, path: /, pool: default}}}}
"""
_LXD_METADATA = "{architecture: x86_64, creation_date: 1, properties: {os: busybox}}\n"
# The kernel lets a container without privileges mount /proc only where a whole one is to be seen: proc(5) of the
# host itself has the lab's boot id on it (mount_namespaces(7), "mount point locking").
_WHOLE_PROC = "mkdir -p /run/proc && { mountpoint -q /run/proc || mount -t proc proc /run/proc; }"


def start_lxd(lab: Lab, host: str) -> None:
    """See Lab.start_lxd."""
    need("lxd", "lxd")
    group = f"{_cgroups.claim(lab.root, lab.id, 'lxc')}/{host}"
    lab.run(host, _WHOLE_PROC)
    lab.run(host, _START.format(answers="lxc query /internal/ready", daemon="lxd", log="/var/log/lxd.log"))
    if lab.run(host, "lxc image info busybox", check=False).returncode:
        lab.run(host, "lxd init --preseed", input=_LXD_PROFILE.format(group=group))
        lab.path(host, "/run/root.tar").write_bytes(busybox_root())
        lab.path(host, "/run/metadata.yaml").write_text(_LXD_METADATA)
        lab.run(host, "cd /run && tar -cf metadata.tar metadata.yaml")
        lab.run(host, "cd /run && lxc image import metadata.tar root.tar --alias busybox; rm metadata.* root.tar")


def lxd_read(lab: Lab, host: str, name: str, command: str) -> str:
    """See Lab.lxd_read."""
    for _ in range(10):
        out = lab.run(host, ["lxc", "exec", name, "--", "sh", "-c", f"{command} && echo complete"]).stdout
        if out.endswith("complete\n"):
            return out.removesuffix("complete\n")
    raise LabError(f"{host}: lxc exec {name}: ten times without what it printed")


# ---- LXC


def start_lxc(lab: Lab, host: str, name: str, network: Sequence[str], start: str) -> None:
    """See Lab.lxc."""
    need("lxc-start", "lxc")
    word = shlex.quote(name)
    root = f"/var/lib/lxc/{name}/rootfs"
    config = [
        "lxc.include = /usr/share/lxc/config/common.conf",
        f"lxc.rootfs.path = dir:{root}",
        f"lxc.uts.name = {name}",
        "lxc.signal.halt = SIGTERM",
        # a host has no securityfs, by which profiles are loaded
        "lxc.apparmor.profile = unconfined",
        f"lxc.cgroup.dir = {_cgroups.claim(lab.root, lab.id, 'lxc')}/{host}",
        *network,
    ]
    folder = shlex.quote(f"/var/lib/lxc/{name}")
    lab.run(host, f"mkdir {folder} {folder}/rootfs")
    lab.path(host, f"{root}.tar").write_bytes(busybox_root())
    lab.run(host, f"tar -C {folder}/rootfs -xf {folder}/rootfs.tar && rm {folder}/rootfs.tar")
    lab.path(host, f"{root}/etc/rc").write_text(f"{start}\n")
    lab.path(host, f"/var/lib/lxc/{name}/config").write_text("".join(f"{line}\n" for line in config))
    log = shlex.quote(f"/var/log/lxc-{name}.log")
    lab.run(host, f"lxc-start --name {word} --logfile {log} || {{ head -n 5 {log} >&2; exit 1; }}")


# ---- DHCP clients

#: What each is started as; both go on in the background when they have a lease, and keep it.
_DHCP_CLIENTS = {
    # MTU is not among what it asks for by itself, and dnsmasq gives only what it is asked for
    "udhcpc": "udhcpc -n -t {wait:g} -T 1 -i eth0 -O mtu -x hostname:{name} -p /run/udhcpc-{name}.pid",
    "dhclient": "unshare --uts sh -c 'hostname {name} && exec timeout {wait:g} dhclient -1 {family}"
    " -pf /run/dhclient{family}-{name}.pid -lf /var/lib/dhcp/dhclient{family}-{name}.leases eth0'",
}
# dhclient cannot use a link-local address that may yet prove to be another's
_SETTLE = "until ip -6 addr show dev eth0 scope link -tentative | grep -q fe80; do sleep 0.1; done; "
_DHCP_PACKAGES = {"udhcpc": "udhcpc", "dhclient": "isc-dhcp-client"}


def dhcp(lab: Lab, host: str, container: str, client: str, ipv6: bool, wait: float) -> None:
    """See Lab.dhcp."""
    if client not in _DHCP_CLIENTS or (ipv6 and client != "dhclient"):
        raise LabError(f"DHCP client {client!r}: one of {', '.join(_DHCP_CLIENTS)} (for IPv6, dhclient)")
    need(client, _DHCP_PACKAGES[client])
    command = _DHCP_CLIENTS[client].format(name=container, family="-6" if ipv6 else "-4", wait=wait)
    log = f"/var/log/{client}-{container}.log"
    # what stays in the background would keep our pipes open
    script = f"{command} </dev/null >{log} 2>&1 || {{ code=$?; cat {log} >&2; exit $code; }}"
    lab.exec_container(host, container, (_SETTLE if ipv6 else "") + script, timeout=wait + 30)


# ---- a web server, for whatever has a busybox: hosts, stand-ins, containers


def web_server(text: str, port: int = 80) -> str:
    """The shell command that serves `text` as the page `/`, in the background; it returns when the port is open.

    A client is `curl -sSf` on hosts and in stand-ins, `wget -q -O -` in containers (whose `wget -T` crashes).
    """
    page = shlex.quote(text)
    return f'd=$(mktemp -d) && printf %s {page} >"$d/index.html" && busybox httpd -p {port} -h "$d"'
