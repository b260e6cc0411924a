"""What this machine is: which one, since which boot, and what it offers."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

MACHINE_ID_DIGITS = 32


class HostError(Exception):
    """The machine lacks something without which nothing can be done."""


UDEV = "/run/udev"


@dataclasses.dataclass(frozen=True)
class Here:
    """`machine`: the machine-id (machine-id(5)). `boot`: differs after each reboot, and in each
    network namespace, since what the kernel forgets is tied to both."""

    machine: str
    boot: str


def here() -> Here:
    """What this machine is. Raises HostError when it has no id."""
    machine = _line("/etc/machine-id")
    if len(machine) != MACHINE_ID_DIGITS:
        raise HostError(f"/etc/machine-id: {machine!r} is not a machine id; make one with systemd-machine-id-setup")
    namespace = os.stat("/proc/self/ns/net").st_ino
    return Here(machine, f"{_line('/proc/sys/kernel/random/boot_id')}-{namespace}")


def has_systemd() -> bool:
    """Whether systemd is PID 1 (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def wait_for_udev(index: int, seconds: float = 5.0) -> None:
    """Returns when udev, where it runs, is done with a network device that was just made. One whose MAC address the
    kernel chose is given another by it (systemd.link(5), MACAddressPolicy), also when ours is there by then."""
    end = time.monotonic() + seconds
    while os.path.exists(f"{UDEV}/control") and not os.path.exists(f"{UDEV}/data/n{index}") and time.monotonic() < end:
        time.sleep(0.01)


def load_modules(modules: set[str]) -> None:
    """Loads kernel modules that are not there. A failure shows where a device cannot be made, and
    the kernel loads most by itself, so none is an error here."""
    missing = [m for m in sorted(modules) if not os.path.isdir(f"/sys/module/{m}")]
    if missing and os.path.isdir(f"/lib/modules/{os.uname().release}"):
        import shutil  # noqa: PLC0415 - needed once after a boot; costs 8 ms at each start
        import subprocess  # noqa: PLC0415

        if shutil.which("modprobe"):
            subprocess.run(["modprobe", "-qa", *missing], check=False)


def offers() -> dict[str, Any]:
    """What `probe` reports."""
    import platform  # noqa: PLC0415 - as above
    import shutil  # noqa: PLC0415

    return {
        "machine": here().machine,
        "hostname": platform.node(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "systemd": has_systemd(),
        "commands": {name: bool(shutil.which(name)) for name in ("nft", "dnsmasq", "modprobe")},
    }


def _line(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.readline().strip()
    except OSError:
        return ""
