"""What stands on a host, whoever made it, as plain data: what `overlay import` makes a stack file of.

Reads and changes nothing, not even the store or its lock: the host may have no agent, and gets none.
Secret values are not read: of a cookie it is only told that there is one.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from overlay_agent import docker_api, fields
from overlay_agent.kinds import KINDS
from overlay_agent.kinds.vxlan import FLOOD

if TYPE_CHECKING:
    from overlay_agent.kernel import Kernel, Link

#: Of these every attribute is read. (A WireGuard device would show its private key.)
READ = ("bridge", "vxlan", "gretap", "ip6gretap", "l2tp")
#: Where LXD and Incus keep a folder for each bridge of theirs.
_LXD = {
    "lxd": ("/var/snap/lxd/common/lxd/networks", "/var/lib/lxd/networks"),
    "incus": ("/var/lib/incus/networks",),
}
#: dnsmasq's short options that are of use here (dnsmasq(8)), and which of them take no value.
_SHORT = {
    "C": "conf-file", "7": "conf-dir", "i": "interface", "I": "except-interface", "F": "dhcp-range", "G": "dhcp-host",
    "O": "dhcp-option", "a": "listen-address", "X": "dhcp-lease-max", "s": "domain", "S": "server", "x": "pid-file",
    "o": "strict-order", "z": "bind-interfaces", "K": "dhcp-authoritative", "k": "keep-in-foreground",
    "l": "dhcp-leasefile", "u": "user", "g": "group", "R": "no-resolv", "r": "resolv-file", "H": "addn-hosts",
    "h": "no-hosts", "E": "expand-hosts", "q": "log-queries", "d": "no-daemon", "p": "port", "2": "no-dhcp-interface",
}  # fmt: skip
_FLAGS = "ozkRhEqdK"
_CONFIG = "/etc/dnsmasq.conf"
_NAT = re.compile(r" -j (MASQUERADE|SNAT|DNAT)\b")
_NFT = re.compile(r" (masquerade|[sd]nat (ip6? )?to) ?")
#: So deep may files name files.
_DEPTH = 5


def survey(kernel: Kernel) -> dict[str, Any]:
    """Everything that is of use for a stack file."""
    return {
        "name": os.uname().nodename,
        "links": {name: _link(kernel, link) for name, link in sorted(kernel.links.items())},
        "docker": _docker(),
        "lxd": {
            bridge: owner for owner, folders in _LXD.items() for folder in folders for bridge in _names(folder)
        },
        "dnsmasq": list(_dnsmasq()),
        "nat": _nat(),
    }


def _link(kernel: Kernel, link: Link) -> dict[str, Any]:
    out: dict[str, Any] = {
        "kind": link.kind,
        "type": link.type,
        "mac": link.mac,
        "mtu": link.mtu,
        "up": link.up,
        "alias": link.alias,
        "master": kernel.name_of.get(link.master),
        "addresses": kernel.addresses(link),
    }
    if link.kind in READ:
        kind: Any = KINDS[link.kind]
        out["spec"] = fields.to_json(kind.observe(kernel, link))
        for cookie in {"cookie", "peerCookie"} & out["spec"].keys():
            out["spec"][cookie] = True
    if link.kind == "vxlan":
        out["static"] = [
            f"{entry.mac} {entry.dst}"
            for entry in kernel.fdb(link)
            if entry.permanent and entry.mac != FLOOD and entry.dst
        ]
        out["external"] = bool(link.data.get("IFLA_VXLAN_COLLECT_METADATA"))
    return out


# -- Docker ----------------------------------------------------------------------------------


def _docker() -> dict[str, Any]:
    """Its networks with a bridge, by name."""
    if not os.path.exists("/var/run/docker.sock") or docker_api.missing():
        return {}
    return {raw["Name"]: _network(raw) for raw in docker_api.networks() if raw["Driver"] == "bridge"}


def _network(raw: dict[str, Any]) -> dict[str, Any]:
    options = raw["Options"] or {}
    ends = docker_api.containers(raw["Name"])
    return {
        # That of the network `bridge` is named by an option, too.
        "bridge": docker_api.bridge_of(raw),
        "label": docker_api.label(raw),
        "mtu": int(options.get(docker_api.MTU) or docker_api.DEFAULT_MTU),
        "subnets": {row["Subnet"]: row.get("Gateway") for row in (raw["IPAM"] or {}).get("Config") or ()},
        "containers": {
            name: {"address": end["IPAddress"], "mac": end["MacAddress"]}
            for name, end in ends.items()
            if end.get("IPAddress")
        },
    }


# -- dnsmasq ---------------------------------------------------------------------------------


def _dnsmasq() -> Iterator[dict[str, Any]]:
    """Each process in this network namespace, with its options as [name, value]."""
    here = os.stat("/proc/self/ns/net").st_ino
    for process in sorted(_names("/proc"), key=lambda name: (len(name), name)):
        with suppress(OSError):
            if not process.isdigit() or _text(f"/proc/{process}/comm").strip() != "dnsmasq":
                continue
            if os.stat(f"/proc/{process}/ns/net").st_ino != here:
                continue
            words = _text(f"/proc/{process}/cmdline").split("\0")[:-1]
            options = list(_words(words[1:]))
            if not any(name in ("conf-file", "conf-dir") for name, _ in options):
                options += [("conf-file", _CONFIG)]
            found = [list(option) for option in _whole(f"/proc/{process}/root", options, _DEPTH)]
            # A second process of the same words only runs scripts for the first.
            parent = _text(f"/proc/{process}/stat").rpartition(")")[2].split()[1]
            if _text(f"/proc/{parent}/comm").strip() != "dnsmasq":
                yield {"pid": int(process), "words": words, "options": found}


def _words(words: list[str]) -> Iterator[tuple[str, str]]:
    """The options of a command line (getopt_long(3))."""
    left = list(words)
    while left:
        word = left.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            takes = not equals and left and not left[0].startswith("-")
            yield name, left.pop(0) if takes else value
        elif word.startswith("-") and len(word) > 1:
            flags = word[1:] if word[1] in _FLAGS else ""
            yield from ((_SHORT.get(flag, flag), "") for flag in flags)
            if not flags:
                takes = not word[2:] and left and not left[0].startswith("-")
                yield _SHORT.get(word[1], word[1]), left.pop(0) if takes else word[2:]


def _whole(root: str, options: list[tuple[str, str]], depth: int) -> Iterator[tuple[str, str]]:
    """The options, with those of the files that they name."""
    for name, value in options:
        if name == "conf-file" and depth:
            yield from _whole(root, list(_lines(root + value.partition(",")[0])), depth - 1)
        elif name == "conf-dir" and depth:
            folder, _, endings = value.partition(",")
            for file in sorted(_names(root + folder)):
                if not file.startswith((".", "#")) and not file.endswith("~") and _matches(file, endings):
                    yield from _whole(root, list(_lines(f"{root}{folder}/{file}")), depth - 1)
        elif name == "dhcp-hostsfile":
            with suppress(OSError):
                for line in _text(root + value).splitlines():
                    if line.strip() and not line.startswith("#"):
                        yield "dhcp-host", line.strip()
        else:
            yield name, value


def _matches(file: str, endings: str) -> bool:
    """As conf-dir has it: `,*.conf` takes those only, `,.bak` leaves those out."""
    listed = [one for one in endings.split(",") if one]
    wanted = [one[1:] for one in listed if one.startswith("*")]
    unwanted = [one for one in listed if not one.startswith("*")]
    return (not wanted or file.endswith(tuple(wanted))) and not (unwanted and file.endswith(tuple(unwanted)))


def _lines(path: str) -> Iterator[tuple[str, str]]:
    with suppress(OSError):
        for line in _text(path).splitlines():
            # What follows white space and a # is a comment (dnsmasq(8)).
            name, _, value = f" {line}".partition(" #")[0].strip().partition("=")
            if name.strip() and not name.startswith("#"):
                yield name.strip(), value.strip()


# -- the rest --------------------------------------------------------------------------------


def _nat() -> list[str]:
    """The rules that translate addresses, each as a person would see it listed."""
    # Only of tables that are there: iptables-save -t would make one.
    rules = [line for line in _listed("iptables-save") if line.startswith("-A ") and _NAT.search(line)]
    out = [f"iptables -t nat {rule}" for rule in rules]
    table = ""
    for line in _listed("nft", "-s", "list", "ruleset"):
        table = line if line.startswith("table ") else table
        if _NFT.search(line) and table.split()[1:3] not in (["ip", "nat"], ["ip6", "nat"]):  # iptables' own
            out.append(f"nft {' '.join(table.split()[:3])} {line.strip()}")
    return out


def _listed(*words: str) -> list[str]:
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=10)
        return done.stdout.splitlines()
    return []


def _names(folder: str) -> list[str]:
    with suppress(OSError):
        return os.listdir(folder)
    return []


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
