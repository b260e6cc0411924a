"""Tells systemd-networkd and NetworkManager that a NIC and its bridge are not theirs while the NIC is an uplink.

They would give the NIC its addresses again, at the next change of its carrier or of their files. What is written
is below /run: a reboot forgets it, so that the host comes up as its own configuration says, reachable even when
nothing of ours works, and only then does `overlay-agent restore` make the NIC an uplink again. ifupdown acts at
boot and when it is told to, and needs no word.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from overlay_agent.kernel import Kernel

#: What networkd makes when it runs (systemd-networkd.service(8)), and where it looks for files.
NETWORKD, NETWORKD_FILES = "/run/systemd/netif", "/run/systemd/network"
#: The same of NetworkManager(8).
MANAGER, MANAGER_FILES = "/run/NetworkManager", "/run/NetworkManager/conf.d"
MANAGER_LEASES = "/var/lib/NetworkManager"
_MADE = "# Made by overlay-agent, and gone with the uplink.\n"


def _wanted(nic: str, bridge: str) -> dict[str, str]:
    """The files' texts, by path, as far as there is somebody who reads them."""
    out = {}
    if os.path.isdir(NETWORKD):
        # 00: the first file that matches counts. The bridge too: files may match by MAC address, and it has the NIC's.
        out[f"{NETWORKD_FILES}/00-overlay-{nic}.network"] = (
            f"{_MADE}[Match]\nName={nic} {bridge}\n\n[Link]\nUnmanaged=yes\n"
        )
    if os.path.isdir(MANAGER):
        text = f"{_MADE}[keyfile]\nunmanaged-devices+=interface-name:={nic};interface-name:={bridge}\n"
        out[f"{MANAGER_FILES}/90-overlay-{nic}.conf"] = text
    return out


def is_told(nic: str, bridge: str) -> bool:
    """Whether everybody who is there has been told."""
    return all(_text(path) == text for path, text in _wanted(nic, bridge).items())


def put(kernel: Kernel, nic: str, bridge: str) -> None:
    """Tells whoever is there. After the addresses have moved: what they let go of then is no longer on the NIC."""
    if is_told(nic, bridge):
        return
    wanted = _wanted(nic, bridge)
    if os.path.isdir(MANAGER) and not _is_managers(nic):
        # It only looked on while another configured the NIC. Told that it is its own, it would configure it anew, so
        # it is not told: this file stays until the next boot.
        path = f"{MANAGER_FILES}/91-overlay-{nic}-of-another.conf"
        wanted[path] = f"# Made by overlay-agent.\n[keyfile]\nunmanaged-devices+=interface-name:={nic}\n"
    for path, text in wanted.items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(f"{path}.new", path)
        kernel.reached()
    _read_again()


def remove(kernel: Kernel, nic: str) -> None:
    """Takes the word back."""
    gone = [path for path in _wanted(nic, "") if os.path.exists(path)]
    for path in gone:
        os.unlink(path)
        kernel.reached()
    if gone:
        _read_again()


def _is_managers(nic: str) -> bool:
    """Whether NetworkManager itself has configured the NIC."""
    return f"{nic}:connected" in _run("nmcli", "-t", "-f", "DEVICE,STATE", "device").splitlines()


def _read_again() -> None:
    """Whether they heard shows in what becomes of the addresses, which are read back."""
    heard = {NETWORKD: ["networkctl", "reload"], MANAGER: ["nmcli", "general", "reload", "conf"]}
    for words in [words for folder, words in heard.items() if os.path.isdir(folder)]:
        _run(*words)


def _run(*words: str) -> str:
    import subprocess  # noqa: PLC0415 - costs 5 ms where there is none of them

    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(words, check=False, capture_output=True, stdin=subprocess.DEVNULL, text=True, timeout=10)
        return done.stdout
    return ""


def owner_of(nic: str, index: int) -> str:
    """Whose lease an address of the NIC is, in words."""
    if os.path.exists(f"{NETWORKD}/leases/{index}"):
        return "systemd-networkd"
    leases = os.listdir(MANAGER_LEASES) if os.path.isdir(MANAGER_LEASES) else []
    if any(name.endswith(f"-{nic}.lease") for name in leases):
        return "NetworkManager"
    for process in os.listdir("/proc"):
        words = (_text(f"/proc/{process}/cmdline") or "").split("\0") if process.isdigit() else []
        program = os.path.basename(words[0]) if words else ""
        if program in ("dhclient", "dhcpcd", "udhcpc") and (nic in words or program == "dhcpcd"):
            by = ", which ifupdown started" if _in_interfaces(nic) else ""
            return f"{program} (pid {process}{by})"
    return "a DHCP client"


def _in_interfaces(nic: str) -> bool:
    """Whether ifupdown configures the NIC (interfaces(5))."""
    files = ["/etc/network/interfaces"]
    folder = "/etc/network/interfaces.d"
    files += [f"{folder}/{name}" for name in sorted(os.listdir(folder))] if os.path.isdir(folder) else []
    lines = [line.split() for file in files for line in (_text(file) or "").splitlines()]
    return any(words[:2] == ["iface", nic] for words in lines)


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None
