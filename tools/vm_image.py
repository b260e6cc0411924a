#!/usr/bin/env python3
"""Make the image of the kernel lab: Debian's stock kernel and a small system, for QEMU. tools/setup.py calls it.

Some machines' kernels have no gretap, L2TP or WireGuard; the tests that need one run in this image (lab/_vm.py).
Everything is the machine's own Debian release, from the machine's own package sources. What is made lies in one folder:
`disk` (ext4), `kernel`, `initrd`, `key` (of whoever enters), `known_hosts` (so that the guest's key is checked) and
`stamp`. docs/adr/0008-the-vm-lab.md has the reasons.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

RELEASE = Path("/etc/os-release")
SOURCES = ("sources.list", "sources.list.d/*.list", "sources.list.d/*.sources")  # below /etc/apt
DISK_SIZE = "3G"  # sparse; what a guest writes is thrown away with it
PACKAGES = """
    bridge-utils busybox-static curl dbus dnsmasq-base ethtool ifupdown initramfs-tools iperf3 iproute2 iptables
    iputils-ping isc-dhcp-client keepalived kmod libpam-systemd linux-image-amd64 network-manager nftables
    openssh-server procps python3 sudo systemd-sysv tcpdump udev udhcpc util-linux-extra wireguard-tools
"""
# Most of a stock kernel's 300 MB is for hardware that no virtual machine has.
WITHOUT = """
    /usr/share/doc /usr/share/man /usr/share/info /usr/share/locale
"""
WITHOUT_MODULES = """
    arch/x86/kvm sound net/bluetooth net/ceph net/mac80211 net/sunrpc net/wireless
    drivers/accessibility drivers/ata drivers/bluetooth drivers/char/ipmi drivers/comedi drivers/crypto drivers/cxl
    drivers/edac drivers/firewire drivers/gpu drivers/hid drivers/hwmon drivers/i2c drivers/iio drivers/infiniband
    drivers/input drivers/isdn drivers/leds drivers/md drivers/media drivers/memstick drivers/message drivers/mfd
    drivers/misc drivers/mmc drivers/mtd drivers/net/can drivers/net/ethernet drivers/net/phy drivers/net/usb
    drivers/net/wireless drivers/nvme drivers/parport drivers/pcmcia drivers/platform drivers/power drivers/scsi
    drivers/soundwire drivers/spi drivers/staging drivers/target drivers/thermal drivers/thunderbolt drivers/tty
    drivers/ufs drivers/usb drivers/vfio drivers/video drivers/w1 drivers/watchdog
    fs/afs fs/btrfs fs/ceph fs/cachefiles fs/dlm fs/f2fs fs/gfs2 fs/jfs fs/nfs fs/nfsd fs/nilfs2 fs/ocfs2 fs/smb
    fs/ubifs fs/xfs
"""
KEEP = "/usr/share/doc/busybox-static/*"  # says which busybox it is that lies in /bin (tools/setup.py)

# PID 1 where a test does not ask for systemd: up in a third of the time.
LIGHT_INIT = """\
#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mountpoint -q /run || mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/sshd /run/netns /run/lock
modprobe -a virtio_net squashfs
hostname vm
ip link set lo up
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
exec /usr/local/sbin/lab-reaper
"""
# As PID 1 it also has to collect the processes that lost their parents, which an sshd does not.
REAPER = """\
#!/usr/bin/python3 -IS
import os, signal
PATH = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
sshd = os.posix_spawn("/usr/sbin/sshd", ["/usr/sbin/sshd", "-D", "-e"], PATH)
while True:
    os.wait()
"""
FILES: Mapping[str, tuple[str, int]] = {
    "usr/local/sbin/lab-init": (LIGHT_INIT, 0o755),
    "usr/local/sbin/lab-reaper": (REAPER, 0o755),
    # eth0 carries the SSH session into the guest; networkd has it, and nobody else touches it.
    "etc/systemd/network/10-lab.network": (
        "[Match]\nName=eth0\n[Network]\nAddress=10.0.2.15/24\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
        0o644,
    ),
    "etc/NetworkManager/conf.d/lab.conf": ("[keyfile]\nunmanaged-devices=interface-name:eth0\n", 0o644),
    "etc/hostname": ("vm\n", 0o644),
    "etc/hosts": ("127.0.0.1 localhost vm\n::1 localhost\n", 0o644),
    "etc/fstab": ("/dev/vda / ext4 defaults 0 0\n", 0o644),
    # Said where lab/_vm.py waits for it; the light init's sshd says so itself.
    "etc/systemd/system/ssh.service.d/lab.conf": (
        "[Service]\nExecStartPost=/bin/sh -c 'echo Server listening on port 22 > /dev/console'\n",
        0o644,
    ),
    "etc/ssh/sshd_config.d/lab.conf": ("UseDNS no\nMaxSessions 100\nMaxStartups 100\n", 0o644),
}
# First process, instead of initramfs-tools' own, which starts udev and looks for much: 2 s of an emulated processor.
FIRST_INIT = """\
#!/bin/busybox sh
PATH=/sbin:/usr/sbin:/bin:/usr/bin
busybox mkdir -p /proc /dev /root
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
modprobe -a virtio_pci virtio_blk ext4
until test -b /dev/vda; do busybox sleep 0.1; done
busybox mount -t ext4 -o rw /dev/vda /root
init=/sbin/init
for word in $(busybox cat /proc/cmdline); do
    case $word in init=*) init=${word#init=} ;; esac
done
busybox umount /proc
busybox mount --move /dev /root/dev
exec busybox switch_root /root $init
"""
FIRST_INIT_HOOK = f"""\
#!/bin/sh
test "$1" = prereqs && exit
cp /bin/busybox "$DESTDIR/bin/busybox"
cat > "$DESTDIR/lab-init" <<'END'
{FIRST_INIT}END
chmod 755 "$DESTDIR/lab-init"
"""
INITRAMFS = {
    "conf.d/lab": ("MODULES=list\nCOMPRESS=lz4\n", 0o644),
    "modules": ("virtio_pci\nvirtio_blk\next4\n", 0o644),
    "hooks/lab": (FIRST_INIT_HOOK, 0o755),
}
_XZ = b"\xfd7zXZ\0"
# systemd units that cost time at each boot and serve nobody in a machine that lives for minutes.
DISABLED = """
    NetworkManager.service NetworkManager-dispatcher.service NetworkManager-wait-online.service
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
    getty@tty1.service keepalived.service networking.service systemd-pstore.service
"""
MASKED = ("serial-getty@ttyS0.service", "systemd-udev-settle.service")
ENABLED = {
    "multi-user.target": "systemd-networkd.service",
    "network-online.target": "systemd-networkd-wait-online.service",
}


class ImageError(Exception):
    """Why there is no image, for a person."""


def sources() -> list[Path]:
    """The files that say where this machine's packages come from."""
    return sorted(path for pattern in SOURCES for path in Path("/etc/apt").glob(pattern))


def release() -> str:
    """The code name of this machine's Debian release."""
    words = dict(line.split("=", 1) for line in RELEASE.read_text().splitlines() if "=" in line)
    name = {key: value.strip('"') for key, value in words.items()}
    if name.get("ID") != "debian":
        raise ImageError(f"the VM lab is made from Debian's packages, and this machine is {name.get('ID', 'unknown')}")
    return name["VERSION_CODENAME"]


def wanted() -> str:
    """The hash of all that decides what is in the image."""
    total = hashlib.sha256(Path(__file__).read_bytes())
    for path in [RELEASE, *sources()]:
        total.update(path.read_bytes())
    return total.hexdigest()


def run(*command: str | Path) -> None:
    """Run a command; what it said is the error."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ImageError(f"{command[0]} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")


def make(folder: Path) -> None:
    """Fill `folder` with an image, all of it or nothing."""
    missing = [tool for tool in ("mmdebstrap", "mke2fs", "ssh-keygen") if shutil.which(tool) is None]
    if missing:
        raise ImageError(f"{', '.join(missing)} not installed")
    with tempfile.TemporaryDirectory(dir=folder, prefix="stage-") as name:
        stage = Path(name)
        root = stage / "root"
        bootstrap(root, stage)
        keys(root, stage)
        configure(root)
        for made, pattern in (("kernel", "vmlinuz-*"), ("initrd", "initrd.img-*")):
            (found,) = (root / "boot").glob(pattern)
            shutil.move(found, stage / made)
        (stage / "kernel").write_bytes(unpacked((stage / "kernel").read_bytes()))
        (folder / "stamp").unlink(missing_ok=True)
        run("mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", root, "-E", "lazy_itable_init=1", stage / "disk", DISK_SIZE)
        for made in ("kernel", "initrd", "key", "known_hosts", "disk"):
            (stage / made).replace(folder / made)
    (folder / "failed").unlink(missing_ok=True)
    (folder / "stamp").write_text(wanted())


def bootstrap(root: Path, stage: Path) -> None:
    """Unpack and configure the packages."""
    for name, (text, mode) in INITRAMFS.items():
        path = stage / "initramfs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
    unwanted = [*WITHOUT.split(), *(f"/lib/modules/*/kernel/{name}" for name in WITHOUT_MODULES.split())]
    options = [*(f"--dpkgopt=path-exclude={path}/*" for path in unwanted), f"--dpkgopt=path-include={KEEP}"]
    options += ["--dpkgopt=force-unsafe-io", "--aptopt=Acquire::Languages none"]
    # A machine whose clock is not that of its package lists says so in its own apt configuration.
    options += [f"--aptopt={line}" for line in apt_options()]
    run(
        "mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES.split())}", *options,
        "--essential-hook=mkdir -p $1/etc/initramfs-tools",
        f"--essential-hook=cp -r {stage}/initramfs/. $1/etc/initramfs-tools/",
        release(), root, *sources(),
    )  # fmt: skip


def unpacked(kernel: bytes) -> bytes:
    """The kernel as it is in memory, which spares each boot 3 s of unpacking; as it came, if that is not by xz."""
    start, unpacker = kernel.find(_XZ), lzma.LZMADecompressor()
    with contextlib.suppress(lzma.LZMAError):
        found = unpacker.decompress(kernel[start:]) if start >= 0 else b""
        if unpacker.eof and found.startswith(b"\x7fELF"):
            return found
    return kernel


def apt_options() -> list[str]:
    """What this machine says about how old package lists may be."""
    shown = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return [line for line in shown.splitlines() if line.startswith(("Acquire::Check-", "Acquire::http"))]


def keys(root: Path, stage: Path) -> None:
    """A key to enter with, and the guest's own, known beforehand."""
    for name in ("key", "host"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"vm-lab-{name}", "-f", stage / name)
    for old in (root / "etc/ssh").glob("ssh_host_*"):
        old.unlink()
    for suffix in ("", ".pub"):
        shutil.copy(stage / f"host{suffix}", root / f"etc/ssh/ssh_host_ed25519_key{suffix}")
    (stage / "known_hosts").write_text(f"vm {(stage / 'host.pub').read_text()}")
    allowed = root / "root/.ssh/authorized_keys"
    allowed.parent.mkdir(mode=0o700, exist_ok=True)
    allowed.write_text((stage / "key.pub").read_text())


def configure(root: Path) -> None:
    """What makes it a lab guest: the light PID 1, the network, and units that nobody needs switched off."""
    for name, (text, mode) in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(mode)
    # An empty one would make each start a first boot, at which systemd enables all that it finds.
    (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    system = root / "etc/systemd/system"
    for wants in system.glob("*.wants"):
        for unit in DISABLED.split():
            (wants / unit).unlink(missing_ok=True)  # a link that leads nowhere on this machine
    for unit in MASKED:
        (system / unit).unlink(missing_ok=True)
        (system / unit).symlink_to("/dev/null")
    for target, unit in ENABLED.items():
        link = system / f"{target}.wants" / unit
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(f"/lib/systemd/system/{unit}")


def main() -> int:
    """Make the image if it is not there or not as this file wants it."""
    parser = argparse.ArgumentParser(description="Make the VM lab's image, if it is not there.")
    parser.add_argument("folder", type=Path, help="where to")
    folder: Path = parser.parse_args().folder
    stamp = folder / "stamp"
    if stamp.exists() and stamp.read_text() == wanted():
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        make(folder)
    except (ImageError, OSError, subprocess.CalledProcessError) as error:
        (folder / "failed").write_text(f"{error}\n")
        print(error, file=sys.stderr)
        return 1
    print(f"VM lab: image of Debian {release()} made in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
