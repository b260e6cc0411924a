"""nft(8), and what other packet filters of the host do to packets that we need.

nft's own program and not its netlink protocol: its text form is what people know and can undo by
hand, and it is started only where a stack has rules, or once after a change.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from overlay_agent.errors import KernelError
from overlay_agent.kernel import FIREWALLD, OUR_TABLES

if TYPE_CHECKING:
    from overlay_agent.kernel import Kernel
    from overlay_agent.kinds import Listens, Passes

LEGACY = "/proc/net/ip_tables_names"
BRIDGED = "/proc/sys/net/bridge/bridge-nf-call-iptables"
#: How many peers a command to copy names; a mesh of 1,000 would fill the screen.
NAMED = 16
#: IP's numbers of what the tunnels use (/etc/protocols).
PROTOCOLS = {"udp": 17, "gre": 47, "l2tp": 115}


def missing() -> bool:
    """Whether this host has no nft."""
    return shutil.which("nft") is None


def has_table_comments() -> bool:
    """Whether this nft takes a comment on a table (from 0.9.7 on)."""
    version = re.search(r"v(\d+)\.(\d+)\.(\d+)", _read("--version") or "")
    return bool(version) and tuple(int(part) for part in version.groups()) >= (0, 9, 7)  # type: ignore[union-attr]


def table(family: str, name: str) -> list[dict[str, Any]] | None:
    """What is in the table, as `nft -j` has it; None where it is not there."""
    text = _read("-j", "list", "table", family, name)
    return None if text is None else [row for row in json.loads(text)["nftables"] if "metainfo" not in row]


def text(family: str, name: str) -> str:
    """The table in nft's own language; empty where it is not there."""
    return _read("list", "table", family, name) or ""


def tables(family: str) -> list[str]:
    """The names of the family's tables."""
    rows = json.loads(_read("-j", "list", "tables", family) or '{"nftables": []}')["nftables"]
    return [row["table"]["name"] for row in rows if "table" in row]


def lines(listing: str) -> list[str]:
    """What stands in a table's listing, a line each, with the chain or set in front; its comment left out."""
    found, block = [], ""
    for line in listing.splitlines()[1:]:
        word = line.strip()
        if word.endswith("{") and line.startswith("\t") and not line.startswith("\t\t"):
            block = word[:-2]
            found.append(block)
        elif line.startswith("\t\t"):
            found += [f"{block}: {word}"] if word != "}" else []
        elif word not in ("", "}") and not word.startswith("comment "):
            found.append(word)
    return found


def as_listed(family: str, name: str, ruleset: str, devices: Sequence[str] = ()) -> list[str]:
    """`lines` of the ruleset as this nft lists it, which differs from version to version. `devices`: what its chains
    are bound to. Raises KernelError."""
    # In a network namespace that ends with the command: nothing of the host is touched.
    stand_ins = "".join(f"ip link add {device} type bridge && " for device in devices)
    script = f"{stand_ins}nft -f - && nft list table {family} {name}"
    done = subprocess.run(["unshare", "--net", "sh", "-c", script], input=ruleset.encode(), capture_output=True,
                          check=False, env={**os.environ, "LC_ALL": "C"})  # fmt: skip
    if done.returncode:
        raise KernelError(f"{family} {name}: nft", errno.EIO, _sentence(done))
    return lines(done.stdout.decode())


def change(kernel: Kernel, what: str, script: str) -> None:
    """Carries the script out, all of it or nothing. Raises KernelError."""
    done = subprocess.run(["nft", "-f", "-"], input=script.encode(), capture_output=True, check=False)
    if done.returncode:
        raise KernelError(f"{what}: nft", errno.EIO, _sentence(done))
    kernel.reached()


def _sentence(done: subprocess.CompletedProcess[bytes]) -> str:
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return re.sub(r"^\S*:\d+:\d+(-\d+)?: ", "", said[0]) if said else f"exit code {done.returncode}"


def warnings(host: str, wanted: Sequence[Listens]) -> list[str]:
    """A line for each packet filter of the host, other than ours, that drops what it does not know
    and does not seem to know what is `wanted`, with the command that lets it in.

    An accept in a table of one's own cannot overrule another table's drop (nft(8)).
    """
    ways: dict[tuple[str, int | None, bool], Listens] = {}
    for one in wanted:
        key = (one.protocol, one.port, ":" in "".join(one.peers[:1]))
        peers = {*one.peers, *(ways[key].peers if key in ways else ())}
        ways[key] = dataclasses.replace(one, peers=tuple(sorted(peers)))
    return [
        f"{host}: {name} drops what it does not know, and {one} is not in it, so no packet of the tunnel may come in; "
        f"type: {command}"
        for one in ways.values()
        for name, command in _in_the_way(one)
    ]


def forward_warnings(host: str, wanted: Sequence[Passes]) -> list[str]:
    """A line for each packet filter of the host, other than ours and Docker's, that drops what it does not
    know of what is passed on, and does not seem to know the bridge, with the command that lets it through."""
    routed = {one.bridge for one in wanted if one.routed}
    frames = _frames_pass()
    return [
        f"{host}: {name} drops what it does not know of what is passed on, and {bridge} is not in it, so {what}; "
        f"type: {command}"
        for bridge in sorted({one.bridge for one in wanted})
        if bridge in routed or frames
        for what in ["no packet may get out of the bridge" if bridge in routed else
                     "no frame may pass within the bridge, since br_netfilter sends them through it"]
        for name, command in _in_the_way_on(bridge, bridge in routed)
    ]  # fmt: skip


def _in_the_way_on(bridge: str, routed: bool) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    rows = json.loads(_read("-j", "list", "chains") or '{"nftables": []}')["nftables"]
    chains = [row["chain"] for row in rows if "chain" in row]
    named = f'"{bridge}"'
    if any(chain["table"] == FIREWALLD for chain in chains):
        command = f"firewall-cmd --permanent --zone=trusted --add-interface={bridge}; firewall-cmd --reload"
        found += [] if named in text("inet", "firewalld") else [("firewalld", command)]
    for chain in chains:
        family, table = chain["family"], chain["table"]
        if chain.get("hook") != "forward" or chain.get("policy") != "drop" or table.startswith(OUR_TABLES):
            continue
        # In Docker's, the bridge stands in the chain to which it goes first.
        own = _read("list", "chain", family, table, chain["name"]) or ""
        if named in own or (named in text(family, table) and "jump" in own):
            continue
        if any(c["table"] == table and c["name"].startswith("ufw") for c in chains):
            back = f"; ufw route allow out on {bridge}" if routed else f" out on {bridge}"
            found.append(("ufw", f"ufw route allow in on {bridge}{back}"))
        else:
            place = f"{family} {table} {chain['name']}"
            found.append((f"the nftables chain {place}", "; ".join(_passing(place, bridge, routed))))
    found += _legacy_forward(bridge, routed)
    return list(dict.fromkeys(found))


def _passing(place: str, bridge: str, routed: bool) -> list[str]:
    rule = f"nft insert rule {place}"
    if not routed:
        return [f"{rule} iifname {bridge} oifname {bridge} accept"]
    back = [f"{rule} oifname {bridge} ct {what} accept" for what in ("state established,related", "status dnat")]
    return [f"{rule} iifname {bridge} accept", *back]


def _legacy_forward(bridge: str, routed: bool) -> list[tuple[str, str]]:
    """The same of the old iptables, which nft does not show."""
    if not _legacy_filter():
        return []
    done = subprocess.run(["iptables-legacy", "-S"], capture_output=True, text=True, check=False)
    if "-P FORWARD DROP" not in done.stdout or f" {bridge} " in done.stdout:
        return []
    rules = [f"-i {bridge} -o {bridge}"]
    if routed:
        rules = [f"-i {bridge}", f"-o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED,DNAT"]
    command = "; ".join(f"iptables-legacy -I FORWARD {rule} -j ACCEPT" for rule in rules)
    return [("iptables-legacy FORWARD", command)]


def _in_the_way(one: Listens) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    chains = [row["chain"] for row in json.loads(_read("-j", "list", "chains") or '{"nftables": []}')["nftables"]
              if "chain" in row]  # fmt: skip
    if any(chain["table"] == FIREWALLD for chain in chains):
        listing = _read("-j", "list", "table", "inet", "firewalld")
        found += [] if _known(listing, one) else [("firewalld", _firewalld(one))]
    for chain in chains:
        if chain.get("hook") != "input" or chain.get("policy") != "drop" or chain["table"].startswith(OUR_TABLES):
            continue
        family, name = chain["family"], chain["table"]
        if family not in _families(one) or _known(_read("-j", "list", "table", family, name), one):
            continue
        if any(c["table"] == name and c["name"].startswith("ufw") for c in chains):
            found.append(("ufw", _ufw(one)))
        else:
            where = f"{family} {name} {chain['name']}"
            match = f"{_saddr(one)}{_match(one)} accept"
            found.append((f"the nftables chain {where}", f"nft insert rule {where} {match}"))
    found += _legacy(one)
    # ufw has a chain for each address family, and one command for both.
    return list(dict.fromkeys(found))


def _known(listing: str | None, one: Listens) -> bool:
    """Whether the port, or the protocol, stands in a table's rules; a rule that names it is taken for an opening."""
    what = f'({_number(one)}\\b|"{one.protocol}")' if one.port is None else rf"{one.port}\b"
    return re.search(f'"right": {what}', listing or "") is not None


def _legacy(one: Listens) -> list[tuple[str, str]]:
    """Rules of the old iptables, which nft does not show."""
    if "ip" not in _families(one) or not _legacy_filter():
        return []
    done = subprocess.run(["iptables-legacy", "-S", "INPUT"], capture_output=True, text=True, check=False)
    known = rf"-p ({one.protocol}|{_number(one)}) " if one.port is None else f"--dport {one.port} "
    if "-P INPUT DROP" not in done.stdout or re.search(known, done.stdout):
        return []
    if "-j ufw-" in done.stdout:
        return [("ufw", _ufw(one))]
    sources = f" -s {','.join(_peers(one))}" if one.peers else ""
    what = f"-p {_number(one)}{sources}" if one.port is None else f"-p {one.protocol}{sources} --dport {one.port}"
    rule = f"{what} -j ACCEPT"
    return [("iptables-legacy INPUT", f"iptables-legacy -I INPUT {rule}")]


def _legacy_filter() -> bool:
    """Whether the old iptables has a filter table, and its program is here to read it."""
    try:
        with open(LEGACY, encoding="ascii") as file:
            return "filter" in file.read().split() and shutil.which("iptables-legacy") is not None
    except OSError:
        return False


def _frames_pass() -> bool:
    """Whether frames within a bridge go through IPv4's hooks (ip-sysctl, bridge-nf-call-iptables)."""
    try:
        with open(BRIDGED, encoding="ascii") as file:
            return file.read().strip() != "0"
    except OSError:  # br_netfilter is not loaded
        return False


def _families(one: Listens) -> tuple[str, ...]:
    if not one.peers:
        return ("inet", "ip", "ip6")
    return ("inet", "ip6" if ":" in one.peers[0] else "ip")


def _peers(one: Listens) -> list[str]:
    more = len(one.peers) - NAMED
    return [*one.peers[:NAMED], *([f"<{more} more>"] if more > 0 else [])]


def _saddr(one: Listens) -> str:
    if not one.peers:
        return ""
    return f"{_families(one)[1]} saddr '{{ {', '.join(_peers(one))} }}' "


def _number(one: Listens) -> int:
    """The IP protocol, which not every host has a name for."""
    return PROTOCOLS[one.protocol]


def _match(one: Listens) -> str:
    return f"meta l4proto {_number(one)}" if one.port is None else f"{one.protocol} dport {one.port}"


def _ufw(one: Listens) -> str:
    if one.protocol == "l2tp":  # which ufw does not know
        six = "6" if ":" in "".join(one.peers) else ""
        rule = f"-A ufw{six}-before-input -p {_number(one)} -s {','.join(_peers(one))} -j ACCEPT"
        return f"sed -i '/^COMMIT/i {rule}' /etc/ufw/before{six}.rules; ufw reload"
    port = "" if one.port is None else f" to any port {one.port}"
    rule = f"ufw allow proto {one.protocol} from {{}}{port}"
    if len(one.peers) < 2:
        return rule.format(one.peers[0] if one.peers else "any")
    return f"for peer in {' '.join(_peers(one))}; do {rule.format('$peer')}; done"


def _firewalld(one: Listens) -> str:
    head = "firewall-cmd --permanent --add-"
    if not one.peers:
        what = f"protocol={one.protocol}" if one.port is None else f"port={one.port}/{one.protocol}"
        return f"{head}{what}; firewall-cmd --reload"
    family = "ipv6" if ":" in one.peers[0] else "ipv4"
    what = f"protocol value={one.protocol}" if one.port is None else f"port port={one.port} protocol={one.protocol}"
    rule = f"rule family={family} source address=$peer {what} accept"
    return f'for peer in {" ".join(_peers(one))}; do {head}rich-rule="{rule}"; done; firewall-cmd --reload'


def _read(*arguments: str) -> str | None:
    """What nft prints; None where what is asked for is not there, or nft is not."""
    if missing():
        return None
    done = subprocess.run(["nft", *arguments], capture_output=True, check=False, env={**os.environ, "LC_ALL": "C"})
    return done.stdout.decode() if done.returncode == 0 else None
