"""FRR's bgpd as text: a spec as configuration, a running configuration as a spec, and the way from one to the other.

Written and read by one module, so that whatever somebody types into vtysh shows as the field that it
belongs to, or as a line that follows from no field. A configuration is a list of paths: a line behind the
lines of the contexts that it stands in. No more than what differs is sent, so that a new VNI or neighbor
resets no session; and it is sent on standard input, since a password would show in a command line. (That is
why frr-reload.py is not used: docs/adr/0014.)
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from overlay_agent.fields import EXTRA, MISSING
from overlay_agent.kinds.evpn import Evpn, auto_target

Path = tuple[str, ...]

#: FRR's -N: where the sockets are, and what `vtysh -N` takes.
PATHSPACE = "overlay"
RUN = f"/run/frr/{PATHSPACE}"
#: Where distributions put the daemons.
_FOLDERS = ("/usr/lib/frr", "/usr/libexec/frr", "/usr/sbin")
#: Older ones are not maintained, and nobody tried them.
LEAST = (8, 0)

#: Everybody who is no client, a reflector's clients; what came from others, what may be told them.
_PEERS, _CLIENTS, _HEARD, _TOLD = "peers", "clients", "heard", "told"
_EVPN = "address-family l2vpn evpn"
#: In seconds: how often a neighbor that is away is tried, and when a changed route map counts.
_CONNECT, _DELAY = 2, 1
#: Of sessions that come from `ranges`; FRR's own limit is 100.
_MOST = 65535
#: Route targets of one VNI, each a numbered line.
MOST_TARGETS = 100

_CLOSING = {_EVPN: "exit-address-family", "vni": "exit-vni"}
#: Lines of a running configuration that nobody asked for.
_NOISE = re.compile(
    r"!.*|Building configuration.*|Current configuration.*|frr (version|defaults) .*|hostname .*|log .*|end|exit.*|"
)
_HIDDEN = "<secret>"
#: As a field has an address that the configuration does not.
_NONE = "0.0.0.0"  # noqa: S104 - nobody listens there


# -- writing -------------------------------------------------------------------------------------


def paths(spec: Evpn, password: str | None) -> list[Path]:
    """All lines of the configuration, each behind its contexts."""
    top = f"router bgp {spec.asn}"
    groups = [_PEERS, *([_CLIENTS] if spec.reflector else [])]
    out: list[Path] = [(f"bgp route-map delay-timer {_DELAY}",), (top,)]
    out += [(top, f"bgp router-id {spec.router_id}"), (top, "no bgp default ipv4-unicast")]
    for group in groups:
        rest = ["peer-group", f"remote-as {spec.asn}", *(["bfd"] if spec.bfd else [])]
        rest += [f"password {password}"] if password else []
        rest += [f"update-source {spec.local}", f"timers {spec.keepalive} {spec.hold}", f"timers connect {_CONNECT}"]
        out += [(top, f"neighbor {group} {line}") for line in rest]
    for name, address in sorted(spec.neighbors.items()):
        out.append((top, f"neighbor {address} peer-group {_CLIENTS if name in spec.clients else _PEERS}"))
        out.append((top, f"neighbor {address} description {name}"))
        out += [(top, f"neighbor {address} port {spec.port}")] if spec.port != _PORT else []
    out += [(top, f"bgp listen limit {_MOST}")] if spec.ranges else []
    out += [(top, f"bgp listen range {subnet} peer-group {_CLIENTS}") for subnet in sorted(spec.ranges)]
    out += [(top, _EVPN)]
    for group in groups:
        rest = ["activate", *(["route-reflector-client"] if group == _CLIENTS else [])]
        rest += [f"route-map {_HEARD} in"] if spec.reflector else []
        out += [(top, _EVPN, f"neighbor {group} {line}") for line in [*rest, f"route-map {_TOLD} out"]]
    out.append((top, _EVPN, "advertise-all-vni"))
    for vni, more in sorted(spec.vnis.items(), key=_number):
        lines = [f"rd {more['rd']}"] if more.get("rd") else []
        lines += [f"route-target {way} {t}" for way in ("import", "export") for t in _targets(spec, vni, more, way)]
        lines += ["advertise-svi-ip"] if more.get("svi") else []
        out += [(top, _EVPN, f"vni {vni}")] if lines else []
        out += [(top, _EVPN, f"vni {vni}", line) for line in lines]
    return out + _filter(spec)


def _filter(spec: Evpn) -> list[Path]:
    """FRR tells of each VXLAN device in a bridge, also of those that have nothing to do with it, and would fill and
    empty the forwarding tables of those. So a host tells of its own VNIs only; a reflector also what it heard."""
    out: list[Path] = []
    for vni, more in sorted(spec.vnis.items(), key=_number):
        for number, target in enumerate(_targets(spec, vni, more, "export") or [_auto(spec, vni)]):
            seq = int(vni) * MOST_TARGETS + number
            out.append((f"bgp extcommunity-list standard {_TOLD} seq {seq} permit rt {target}",))
    tell = f"route-map {_TOLD} permit"
    out += [(f"{tell} 10",), (f"{tell} 10", f"match extcommunity {_TOLD}")]
    if spec.reflector:
        mark = f"{spec.asn}:0:1"
        hear = f"route-map {_HEARD} permit 10"
        out += [(f"bgp large-community-list standard {_HEARD} seq 5 permit {mark}",)]
        out += [(hear,), (hear, f"set large-community {mark} additive")]
        out += [(f"{tell} 20",), (f"{tell} 20", f"match large-community {_HEARD}")]
    return out


def _auto(spec: Evpn, vni: str) -> str:
    return auto_target(spec.asn, vni)


def _targets(spec: Evpn, vni: str, more: Mapping[str, Any], way: str) -> list[str]:
    # FRR passes over the one that it derived itself until there is another.
    return sorted(more.get(way, {}), key=lambda target: (target == _auto(spec, vni), target))


def text(lines: Iterable[Path], head: str = "") -> str:
    """The lines as a file."""
    out: list[str] = [head] if head else []
    before: Path = ()
    for path in _grouped(lines):
        pairs = zip(before[:-1], path[:-1])
        common = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(before[:-1]), len(path[:-1])))
        # What is left is closed, but for a line without contents.
        out += _closed(before, common)
        out += [f"{' ' * depth}{path[depth]}" for depth in range(common, len(path) - 1)]
        out.append(f"{' ' * (len(path) - 1)}{path[-1]}")
        before = path
    return "".join(f"{line}\n" for line in [*out, *_closed(before, 0)])


def _closed(path: Path, depth: int) -> list[str]:
    return [f"{' ' * at}{_closing(path[at])}" for at in reversed(range(depth, len(path) - 1))]


def _closing(line: str) -> str:
    return _CLOSING.get(line) or _CLOSING.get(line.split(maxsplit=1)[0], "exit")


def _grouped(lines: Iterable[Path]) -> list[Path]:
    """The lines without those that only open a context which another line stands in, each context in one piece."""
    tree: dict[str, Any] = {}
    for path in lines:
        node = tree
        for word in path:
            node = node.setdefault(word, {})

    def walk(node: Mapping[str, Any], prefix: Path) -> list[Path]:
        # First what stands in this context itself.
        rows = sorted(node.items(), key=lambda item: bool(item[1])) if prefix else list(node.items())
        return [p for word, below in rows for p in (walk(below, (*prefix, word)) if below else [(*prefix, word)])]

    return walk(tree, ())


# -- reading -------------------------------------------------------------------------------------


def lines_of(said: str) -> list[Path]:
    """The lines of a file or of `show running-config`; its contexts are told by how far they are indented."""
    out: list[Path] = []
    above: list[str] = []
    for line in said.splitlines():
        word = line.strip()
        if not _NOISE.fullmatch(word):
            above = [*above[: len(line) - len(line.lstrip(" "))], word]
            out.append(tuple(above))
    return out


def parsed(found: list[Path], reference_of: Callable[[bytes], str], *, running: bool, port: int) -> Evpn:
    """What the configuration says. What says nothing or contradicts itself or is missing stands in `lines`."""
    one = _One(found)
    top = r"router bgp \d+ / "
    own = rf"{top}neighbor {_PEERS} "
    groups = one.pairs(rf"{top}neighbor ([0-9a-f.:]+) peer-group (\w+)")
    names = one.pairs(rf"{top}neighbor ([0-9a-f.:]+) description (\S+)")
    neighbors = {names.get(address, address): address for address in groups}
    keepalive, hold = (one.all(rf"{own}timers (\d+) (\d+)") or [("0", "0")])[0]
    password = one.first(rf"{own}password (.+)") or None
    spec = Evpn(
        asn=int(one.first(r"router bgp (\d+)") or 0),
        router_id=one.first(rf"{top}bgp router-id (\S+)") or _NONE,
        local=one.first(rf"{own}update-source (\S+)") or _NONE,
        neighbors=neighbors,
        reflector=bool(one.first(rf"({top}neighbor {_CLIENTS} peer-group)")),
        clients={name: {} for name, address in neighbors.items() if groups[address] == _CLIENTS},
        ranges={subnet: {} for (subnet,) in one.all(rf"{top}bgp listen range (\S+) peer-group {_CLIENTS}")},
        password=reference_of(password.encode()) if password else None,
        bfd=bool(one.first(rf"({own}bfd)")),
        port=port,
        keepalive=int(keepalive),
        hold=int(hold),
        vnis=_vnis(one, top),
        running=running,
    )
    should = set(paths(spec, password))
    rows = {path: EXTRA for path in found if path not in should}
    rows.update(dict.fromkeys((path for path in should - set(found) if not path[-1].endswith(f" {_NONE}")), MISSING))
    for path, what in rows.items():
        # Said once: what stands in a context that is not there either.
        if what != MISSING or path[:-1] not in rows:
            spec.lines[" / ".join(path) if password is None else " / ".join(path).replace(password, _HIDDEN)] = what
    return spec


def _vnis(one: _One, top: str) -> dict[str, Any]:
    inside = rf"{top}{_EVPN} / vni (\d+) / "
    vnis: dict[str, Any] = {str(int(number) // MOST_TARGETS): {} for (number,) in one.all(_LISTED)}
    for vni, target in one.all(rf"{inside}rd (\S+)"):
        vnis.setdefault(vni, {})["rd"] = target
    for (vni,) in one.all(rf"{inside}advertise-svi-ip"):
        vnis.setdefault(vni, {})["svi"] = True
    for vni, way, target in one.all(rf"{inside}route-target (import|export) (\S+)"):
        vnis.setdefault(vni, {}).setdefault(way, {})[target] = {}
    return vnis


class _One:
    """Lines, searched for what they say."""

    def __init__(self, lines: Iterable[Path]) -> None:
        self._lines = [" / ".join(path) for path in lines]

    def all(self, pattern: str) -> list[tuple[str, ...]]:
        return [m.groups() for m in map(re.compile(pattern).fullmatch, self._lines) if m]

    def pairs(self, pattern: str) -> dict[str, str]:
        return dict(self.all(pattern))  # type: ignore[arg-type]

    def first(self, pattern: str) -> str:
        return (self.all(pattern) or [("",)])[0][0]


def _number(item: tuple[str, Any]) -> int:
    return int(item[0])


# -- from one to the other -----------------------------------------------------------------------


def changes(found: list[Path], wanted: list[Path]) -> str:
    """What to send so that `found` becomes `wanted`, and nothing else changes; empty: nothing."""
    want = set(wanted)
    keys = {(*path[:-1], _key(path[-1])) for path in want}
    away = [path for path in found if path not in want]
    # What stands in a context goes with it, and what a neighbor or a group is goes with that.
    left = [path for path in away if not any(path[:at] in away for at in range(1, len(path)))]
    peers = {path: m[1] for path in left for m in [_MEMBER.fullmatch(path[-1])] if m}
    gone = {path for path in found for who in peers.values() if path[-1].startswith(f"neighbor {who} ")}
    gone |= {path for path in found if any(path[:at] in left for at in range(1, len(path)))}
    lines = [
        (*path[:-1], _opposite(path[-1]))
        for path in reversed(left)
        if path not in gone and (*path[:-1], _key(path[-1])) not in keys
    ]
    # A member's line names its group; without a group it is no neighbor.
    lines += [(*path[:-1], " ".join(["no", *path[-1].split()[: 3 if path[-1].endswith(" peer-group") else 2]]))
              for path in reversed(left) if path in peers]  # fmt: skip
    return _sent(lines) + _sent(path for path in wanted if path in gone or path not in set(found))


def _sent(lines: Iterable[Path]) -> str:
    """Each line by itself, in this order: what takes away must not come after what adds."""
    return "".join(text([path]) for path in lines)


def _opposite(line: str) -> str:
    return line[len("no ") :] if line.startswith("no ") else f"no {line}"


def _key(line: str) -> str:
    """What a line sets, where a later one of the same key takes its place."""
    words = line.split()
    if words[:1] == ["neighbor"] and len(words) > 3 and words[2] != "peer-group":
        which = {"route-map": words[-1], "timers": words[3] if words[3] == "connect" else ""}
        return f"{' '.join(words[:3])} {which.get(words[2], '')}"
    return " ".join(words[:2]) if line.startswith(("bgp router-id", "bgp listen limit")) else line


# -- asking --------------------------------------------------------------------------------------


def program(name: str) -> str:
    """Where a program of FRR is on this host; nothing where it is not."""
    folders = [*_FOLDERS, *os.environ.get("PATH", os.defpath).split(":")]
    found = (f"{folder}/{name}" for folder in folders)
    return next((path for path in found if os.path.isfile(path) and os.access(path, os.X_OK)), "")


def version() -> tuple[int, ...]:
    """Of bgpd; empty where it does not tell."""
    said = re.search(r"version (\d+(?:\.\d+)*)", _run([program("bgpd"), "--version"])[1])
    return tuple(map(int, said[1].split("."))) if said else ()


def refusal(config: str, password: str | None) -> str:
    """What FRR has against a configuration, in its own words; nothing where it takes it."""
    code, said = _run([shutil.which("vtysh") or "vtysh", "-C", "-f", "/dev/stdin"], config)
    return "" if code == 0 else _words(said, password) or f"vtysh: exit code {code}"


def send(commands: str, password: str | None) -> str:
    """Has bgpd do it, and returns what it says against it; nothing where it did it."""
    code, said = _run([*_vtysh(), "-f", "/dev/stdin"], commands)
    return "" if code == 0 else _words(said, password) or f"vtysh: exit code {code}"


def running_config() -> str:
    """What bgpd runs with; empty where it does not answer."""
    code, said = _run([*_vtysh(), "-d", "bgpd", "-c", "show running-config"])
    return said if code == 0 else ""


def asked(command: str) -> dict[str, Any]:
    """The answer to a `show … json`; empty where there is none."""
    code, said = _run([*_vtysh(), "-c", command])
    with suppress(ValueError):
        answer = json.loads(said) if code == 0 else {}
        return answer if isinstance(answer, dict) else {}
    return {}


def sessions() -> dict[str, dict[str, Any]]:
    """The sessions by the neighbor's address."""
    peers = asked("show bgp l2vpn evpn summary json").get("peers", {})
    return {str(ipaddress.ip_address(address)): one for address, one in peers.items()}


def foreign() -> list[tuple[int, str]]:
    """The zebra and bgpd of others in this network namespace: process id and name."""
    mine = os.stat("/proc/self/ns/net").st_ino
    out = []
    for number in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            with open(f"/proc/{number}/comm", encoding="utf-8", errors="replace") as file:
                name = file.read().strip()
            if name in ("zebra", "bgpd") and os.stat(f"/proc/{number}/ns/net").st_ino == mine:
                with open(f"/proc/{number}/cmdline", encoding="utf-8", errors="replace") as file:
                    words = file.read().split("\0")
                # Without a command line it is just ending.
                out += [] if not words[0] or words[1:3] == ["-N", PATHSPACE] else [(int(number), name)]
    return sorted(out)


def _vtysh() -> list[str]:
    return [shutil.which("vtysh") or "vtysh", "-N", PATHSPACE]


def _run(argv: list[str], given: str = "") -> tuple[int, str]:
    import subprocess  # noqa: PLC0415 - costs 5 ms

    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "VTYSH_PAGER": "cat"}
    try:
        done = subprocess.run(
            argv, input=given, capture_output=True, text=True, check=False, env=environment, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, str(error)
    # With success it complains on standard error of a file of its own that is not there.
    return done.returncode, done.stdout if done.returncode == 0 else done.stdout + done.stderr


def _words(said: str, password: str | None) -> str:
    rows = [line.strip() for line in said.splitlines() if line.strip() and "vtysh.conf" not in line]
    return "; ".join(re.sub(r"\[\d+\]:\s+", ": ", row.replace(password or "\0", _HIDDEN)) for row in rows)


_PORT = 179
#: The number of the line tells the VNI, which its target need not.
_LISTED = rf"bgp extcommunity-list standard {_TOLD} seq (\d+) permit rt \S+"
_MEMBER = re.compile(r"neighbor (\S+) peer-group.*")
