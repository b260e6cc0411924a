"""Tells systemd-networkd and NetworkManager what is not theirs: a NIC and its bridge while the NIC is an uplink, and
networkd every device of ours that a file of its owner may match. (NetworkManager only looks on where another made one.)

They would give the NIC its addresses again, at the next change of its carrier or of their files, and networkd takes
those away that it has not given. What is written is below /run: a reboot forgets it, so that the host comes up as its
own configuration says, reachable even when nothing of ours works, and only then does `overlay-agent restore` make the
NIC an uplink again. ifupdown acts at boot and when it is told to, and needs no word.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from overlay_agent.reconcile import NETWORKD

if TYPE_CHECKING:
    from overlay_agent.kernel import Kernel

#: Where networkd looks for files that are ours.
NETWORKD_FILES = "/run/systemd/network"
#: What NetworkManager(8) makes when it runs, and where it looks.
MANAGER, MANAGER_FILES = "/run/NetworkManager", "/run/NetworkManager/conf.d"
MANAGER_LEASES = "/var/lib/NetworkManager"
#: Where networkd's files are; of several of one name the first counts (systemd.network(5)).
NETWORKD_FOLDERS = ("/etc/systemd/network", NETWORKD_FILES, "/usr/lib/systemd/network", "/lib/systemd/network")
_MADE = "# Made by overlay-agent, and gone with the {}.\n"
#: What a [Match] may say that is true of no device of ours.
_OF_NICS = {"macaddress", "permanentmacaddress", "path", "ssid", "bssid", "wlaninterfacetype"}


def _networkd(*names: str, what: str = "device") -> dict[str, str]:
    """The text for networkd, by path, if it runs. 00: the first file that matches counts."""
    text = f"{_MADE.format(what)}[Match]\nName={' '.join(names)}\n\n[Link]\nUnmanaged=yes\n"
    return {f"{NETWORKD_FILES}/00-overlay-{names[0]}.network": text} if os.path.isdir(NETWORKD) else {}


def _of_uplink(nic: str, bridge: str) -> dict[str, str]:
    """The files' texts, by path, as far as there is somebody who reads them. The bridge too: files may match by MAC
    address, and it has the NIC's."""
    out = _networkd(nic, bridge, what="uplink")
    if os.path.isdir(MANAGER):
        # A section of its own: keyfile.unmanaged-devices, where a file below /etc sets it, is that file's alone.
        devices = f"interface-name:={nic};interface-name:={bridge}"
        text = f"{_MADE.format('uplink')}[device-overlay-{nic}]\nmatch-device={devices}\nmanaged=0\n"
        out[f"{MANAGER_FILES}/90-overlay-{nic}.conf"] = text
    return out


def is_told(nic: str, bridge: str) -> bool:
    """Whether everybody who is there has been told."""
    return all(_text(path) == text for path, text in _of_uplink(nic, bridge).items())


def shield(kernel: Kernel, name: str, kind: str) -> None:
    """Tells networkd of a device that is about to be made. It reads all of its files again then, also what its owner
    has not meant for now; so it is only told where a file of it may match."""
    if any(_claiming(name, kind)):
        _write(kernel, {path: text for path, text in _networkd(name).items() if _text(path) != text})


def put(kernel: Kernel, nic: str, bridge: str) -> None:
    """Tells whoever is there. After the addresses have moved: what they let go of then is no longer on the NIC."""
    if is_told(nic, bridge):
        return
    wanted = _of_uplink(nic, bridge)
    if os.path.isdir(MANAGER) and not _is_managers(nic):
        # It only looked on while another configured the NIC. Told that it is its own, it would configure it anew, so
        # it is not told: this file stays until the next boot.
        text = f"# Made by overlay-agent.\n[device-overlay-{nic}-of-another]\nmatch-device=interface-name:={nic}\n"
        wanted[_of_another(nic)] = f"{text}managed=0\n"
    _write(kernel, wanted)
    _manager_has(nic, yes=False)


def remove(kernel: Kernel, name: str) -> None:
    """Takes the word back, of a NIC or of a device that is gone."""
    gone = [path for path in _of_uplink(name, "") if os.path.exists(path)]
    for path in gone:
        os.unlink(path)
        kernel.reached()
    _read_again(gone)
    if any(path.startswith(MANAGER_FILES) for path in gone) and not os.path.exists(_of_another(name)):
        _manager_has(name, yes=True)


def _of_another(nic: str) -> str:
    return f"{MANAGER_FILES}/91-overlay-{nic}-of-another.conf"


def _manager_has(nic: str, *, yes: bool) -> None:
    """What it reads counts for devices that come; of the one that is there it has to be told."""
    if os.path.isdir(MANAGER):
        _run("nmcli", "device", "set", nic, "managed", "yes" if yes else "no")


def _write(kernel: Kernel, wanted: Mapping[str, str]) -> None:
    for path, text in wanted.items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(f"{path}.new", path)
        kernel.reached()
    _read_again(wanted)


def _claiming(name: str, kind: str) -> Iterator[str]:
    """Networkd's files that may match a device of that name and kind, our own aside. What is not known is a yes."""
    seen: set[str] = set()
    for folder in NETWORKD_FOLDERS if os.path.isdir(NETWORKD) else ():
        files = {file for file in (os.listdir(folder) if os.path.isdir(folder) else ()) if file.endswith(".network")}
        for file in sorted(files - seen):
            match = _match(_text(f"{folder}/{file}") or "")
            if not file.startswith("00-overlay-") and match is not None and _may_be(match, name, kind):
                yield f"{folder}/{file}"
        seen |= files


def _match(text: str) -> dict[str, list[str]] | None:
    """The section [Match] of a file of networkd's; None: it has none."""
    found: dict[str, list[str]] | None = None
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line
            found = {} if line == "[Match]" and found is None else found
        elif section == "[Match]" and found is not None and "=" in line and line[0] not in "#;":
            key, _, value = line.partition("=")
            found.setdefault(key.strip().lower(), []).extend(value.split())
    return found


def _may_be(match: Mapping[str, list[str]], name: str, kind: str) -> bool:
    if _OF_NICS & match.keys():
        return False
    for key, value in (("name", name), ("kind", kind)):
        patterns = match.get(key, [])
        inverted = patterns[:1] and patterns[0].startswith("!")
        hits = any(fnmatch.fnmatchcase(value, pattern.lstrip("!")) for pattern in patterns)
        if patterns and hits == bool(inverted):
            return False
    return True


def _is_managers(nic: str) -> bool:
    """Whether NetworkManager itself has configured the NIC."""
    return f"{nic}:connected" in _run("nmcli", "-t", "-f", "DEVICE,STATE", "device").splitlines()


def _read_again(files: Iterable[str]) -> None:
    """Whether they heard shows in what becomes of the addresses, which are read back."""
    heard = {NETWORKD_FILES: ["networkctl", "reload"], MANAGER_FILES: ["nmcli", "general", "reload", "conf"]}
    for folder, words in heard.items():
        if any(path.startswith(folder) for path in files):
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
