"""BGP EVPN (RFC 7432, RFC 8365) with FRR: whoever joins tells the others where its VTEP is.

The tunnels are VXLAN devices without peers; FRR's bgpd and zebra, in a pathspace of their own, fill
their forwarding tables. One such service a host, for all its VNIs. How it is run, what was measured,
and why FRR: docs/adr/0014.
"""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import os
import re
import shutil
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import fields
from overlay_agent.errors import KernelError
from overlay_agent.fields import Difference
from overlay_agent.kinds.base import Kind, Listens, Spec, attribute, optional, stack_of
from overlay_agent.kinds.vxlan import KIND as VXLAN
from overlay_agent.kinds.vxlan import Vxlan, filled_by_frr

if TYPE_CHECKING:
    from overlay_agent.daemon import Daemon
    from overlay_agent.document import Document
    from overlay_agent.kernel import Kernel


#: Numbers that are nobody's, with why.
_RESERVED = {
    23456: "stands for any larger one (AS_TRANS, RFC 6793)",
    65535: "is reserved (RFC 7300)",
    4294967295: "is reserved (RFC 7300)",
}


_TWO_BYTES, _FOUR_BYTES = 0xFFFF, 0xFFFFFFFF


def auto_target(asn: int, vni: str) -> str:
    """The route target that FRR derives: of a number with four bytes it takes the lower two (RFC 8365, 5.1.2.1)."""
    return f"{asn & _TWO_BYTES}:{vni}"


class Asn(fields.Integer):
    """An autonomous system's number that may be used."""

    def __init__(self) -> None:
        super().__init__(1, 4294967295)

    def check(self, value: Any) -> str | None:
        wrong = super().check(value)
        if wrong:
            return wrong
        return f"{value} {_RESERVED[value]}; take one from 64512 to 65534" if value in _RESERVED else None


class RouterId(fields.Address):
    """Four bytes, written as an IPv4 address."""

    def check(self, value: Any) -> str | None:
        good = super().check(value) is None and ":" not in value and value != "0.0.0.0"  # noqa: S104 - is refused
        return None if good else f"{value!r} is not a router ID, which is written as an IPv4 address"


class Vni(fields.Type):
    """A VNI as a key, hence text."""

    def check(self, value: Any) -> str | None:
        if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]{0,7}", value) and int(value) <= 16777215:
            return None
        return f"{value!r} is not a VNI, which is a number from 1 to 16777215"


class Target(fields.Type):
    """A route target or distinguisher (RFC 4360): number:number or address:number."""

    def check(self, value: Any) -> str | None:
        match = re.fullmatch(r"([0-9.]{1,15}):([0-9]{1,10})", value) if isinstance(value, str) else None
        if match:
            head, low = match[1], int(match[2])
            if "." in head:
                return None if RouterId().check(head) is None and low <= _TWO_BYTES else _no_target(value)
            # Two bytes and four, or four and two.
            if (int(head) <= _TWO_BYTES and low <= _FOUR_BYTES) or (int(head) <= _FOUR_BYTES and low <= _TWO_BYTES):
                return None
        return _no_target(value)


def _no_target(value: Any) -> str:
    return f"{value!r} is not a route target or distinguisher, such as 65000:42 or 192.0.2.1:42"


_TARGETS = fields.Keyed("target", Target(), fields.Empty())
#: `svi`: whether the host tells of its own addresses on the bridge, and of the bridge's MAC address ("switched virtual
#: interface"). No port learns that one, so whoever sends to it would send to all hosts.
VNI = fields.Record(
    {"rd": fields.optional(Target()), "import": _TARGETS, "export": _TARGETS, "svi": fields.Flag()},
    frozenset({"rd", "import", "export", "svi"}),
)


class Vnis(fields.Keyed):
    """VNIs; what is left out of one is as if it were empty."""

    def normal(self, value: Any) -> Any:
        return {vni: {key: inner for key, inner in more.items() if inner} for vni, more in value.items()}


@dataclasses.dataclass(frozen=True)
class Evpn(Spec):
    """The host as a BGP speaker (iBGP). Units: keepalive and hold in seconds."""

    KIND: ClassVar[str] = "evpn"

    asn: int = attribute(Asn())
    #: Tells this speaker from all others.
    router_id: str = attribute(RouterId())
    #: The address that sessions come from: on this host.
    local: str = attribute(fields.Address())
    #: With whom it opens sessions, by name: of a client its reflectors; of a reflector the other reflectors, and
    #: those clients that are in none of its `ranges`.
    neighbors: dict[str, str] = attribute(fields.Peers(), default={})
    #: Whether it passes routes on from client to client (RFC 4456). Its router ID is its cluster's.
    reflector: bool = attribute(fields.Flag(), default=False)
    #: Which of `neighbors` are a reflector's clients.
    clients: dict[str, Any] = attribute(fields.Keyed("client", fields.Label(), fields.Empty()), default={})
    #: From where a reflector takes sessions of clients that it was not told of.
    ranges: dict[str, Any] = attribute(fields.Keyed("range", fields.Subnet(), fields.Empty()), default={})
    #: Of all sessions (TCP MD5, RFC 2385).
    password: str | None = attribute(optional(fields.Secret()), default=None)
    #: Notice the death of a neighbor within a second (RFC 5880).
    bfd: bool = attribute(fields.Flag(), default=False)
    port: int = attribute(fields.Integer(1, 65535), default=179)
    keepalive: int = attribute(fields.Integer(1, 65535), default=3)
    hold: int = attribute(fields.Integer(3, 65535), default=9)
    #: What is told and taken, by VNI. Null and empty: as FRR derives it.
    vnis: dict[str, Any] = attribute(Vnis("vni", Vni(), VNI), default={})
    #: Whether all of it is running. Like `lines` it is there to be read, also by an undo.
    running: bool = attribute(fields.Flag(), default=True)
    #: What no field explains: in the configuration that bgpd runs with, and not declared, or missing there.
    lines: dict[str, Any] = attribute(fields.Lines(), default={})


class EvpnKind(Kind):
    """How it is run: zebra, bgpd and, where asked for, bfdd, with files of their own."""

    name = "evpn"
    spec = Evpn
    #: After the devices: FRR tells of a VNI when its device is there.
    rank = 17
    program = True
    package = "frr"
    #: An FRR of Debian's own.
    unit = "frr.service"

    # -- pure -------------------------------------------------------------------------------

    def wrong(self, spec: Evpn) -> list[str]:
        out = [
            f"clients: {name!r} is none of the neighbors; name it there, with its address"
            for name in sorted(spec.clients.keys() - spec.neighbors.keys())
        ]
        if not spec.reflector:
            out += [f"{field}: only a reflector has {field}; set reflector, or leave it out"
                    for field in ("clients", "ranges") if getattr(spec, field)]  # fmt: skip
        if len(set(spec.neighbors.values())) < len(spec.neighbors):
            out.append("neighbors: an address stands there twice; each neighbor has its own")
        version = ipaddress.ip_address(spec.local).version
        for name, address in sorted(spec.neighbors.items()):
            if address == spec.local:
                out.append(f"neighbors.{name}: {address} is this host's own address (local)")
            elif ipaddress.ip_address(address).version != version:
                out.append(f"neighbors.{name}: {address!r} is not IPv{version} like local {spec.local!r}")
        for subnet in sorted(spec.ranges):
            if ipaddress.ip_network(subnet).version != version:
                out.append(f"ranges: {subnet} is not IPv{version} like local {spec.local!r}")
        if not spec.neighbors and not spec.ranges:
            out.append("neighbors: there are none, and no ranges; without a session nothing is told")
        if spec.hold < 3 * spec.keepalive:
            out.append(f"hold: {spec.hold} is less than three times keepalive {spec.keepalive} (RFC 4271, 10)")
        out += _wrong_targets(spec)
        if spec.lines:
            out.append(f"lines: {', '.join(spec.lines)}; they are found on a host, and not to be asked for")
        return out

    def listens(self, spec: Evpn) -> list[Listens]:
        peers = (*sorted(spec.neighbors.values()), *sorted(spec.ranges))
        return [Listens("tcp", spec.port, peers), *([Listens("udp", _BFD_PORT, peers)] if spec.bfd else [])]

    def commands(self, name: str, spec: Evpn, mark: str) -> list[list[str]]:
        from overlay_agent import frr  # noqa: PLC0415 - only where there is one

        there = _There(mark)
        config = frr.text(frr.paths(spec, _HERE if spec.password else None), f"! {mark}")
        if spec.password:
            label = stack_of(mark)
            quoted = re.sub(r"([\\$`])", r"\\\1", config)
            config = quoted.replace(_HERE, f"$(cat /var/lib/overlay/secrets/{label}/{spec.password})")
        end = "END" if spec.password else "'END'"
        out = [f"mkdir -p {there.folder}; install -d -o frr -g frr {os.path.dirname(frr.RUN)} {frr.RUN}",
               f"chmod go+x {os.path.dirname(os.path.dirname(there.folder))}",
               f"(umask 027; cat > {there.folder}/{_CONFIG} <<{end}\n{config}END\n)",
               f"chgrp frr {there.folder}/{_CONFIG}; : > {there.folder}/{_EMPTY}"]  # fmt: skip
        out += [" ".join([*words, "-d"]) for words in there.argvs(spec).values()]
        return [["sh", "-c", line] for line in out]

    # -- on the host ------------------------------------------------------------------------

    def find(self, kernel: Kernel, name: str, mark: str) -> Evpn | None:
        return _There(mark).find(kernel)

    def beside(self, kernel: Kernel, name: str, mark: str) -> list[Difference]:
        from overlay_agent import frr  # noqa: PLC0415 - as above

        there = _There(mark)
        runs = frr.lines_of(frr.running_config())
        if runs and set(runs) != set(frr.lines_of(there.files().get(_CONFIG, ""))):
            return [("file", "another configuration", "the one that bgpd runs with")]
        return []

    def status(self, mark: str) -> dict[str, Any]:
        from overlay_agent import frr  # noqa: PLC0415 - as above

        found = frr.sessions()
        names = {}
        if found:
            config = frr.parsed(frr.lines_of(frr.running_config()), lambda _: "", running=True, port=_PORT)
            names = {address: name for name, address in config.neighbors.items()}
        sessions = {
            names.get(address, address): {
                "address": address,
                "state": one.get("state"),
                "since": one.get("peerUptimeEstablishedEpoch") if one.get("state") == _UP else None,
                "prefixes": one.get("pfxRcd", 0),
            }
            for address, one in sorted(found.items())
        }
        vnis = {
            vni: {"vteps": one.get("numRemoteVteps", 0), "macs": one.get("numMacs", 0)}
            for vni, one in sorted(frr.asked("show evpn vni json").items())
            if isinstance(one, dict)
        }
        return {"sessions": sessions, "vnis": vnis}

    def wanting(self, name: str, spec: Evpn, mark: str, patience: float) -> list[str]:
        """A line for each neighbor without a session. Waits that many seconds at most for the first session."""
        from overlay_agent import frr  # noqa: PLC0415 - as above

        end = time.monotonic() + patience
        while True:
            found = frr.sessions()
            up = {address for address, one in found.items() if one.get("state") == _UP}
            if not spec.neighbors or up or time.monotonic() > end:
                break
            time.sleep(_PAUSE)
        return [
            f"{name}: no session with {who} ({address}): {found.get(address, {}).get('state', 'bgpd is not running')}"
            for who, address in sorted(spec.neighbors.items())
            if address not in up
        ]

    def lacks(self, spec: Evpn) -> bool:
        return bool(_missing(spec))

    def wrong_here(self, kernel: Kernel, name: str, spec: Evpn, wanted: Document) -> list[str]:
        from overlay_agent import frr  # noqa: PLC0415 - as above

        there = _There(wanted.owner.alias(name))
        is_so = self.find(kernel, name, there.mark) == spec
        out = [] if is_so else _wrong_host(spec)
        if out:
            return out
        out += _wrong_others(name, there, wanted)
        if kernel.device_with(spec.local) is None and not any(
            ipaddress.ip_interface(one).ip == ipaddress.ip_address(spec.local)
            for device in wanted.devices.values()
            for one in device.addresses
        ):
            out.append(f"local {spec.local!r} is not an address of this host; set hosts.{wanted.host}.underlay.local")
        out += _wrong_devices(spec, wanted)
        password = _password(kernel, spec)
        if password is not None and not re.fullmatch(r"[!-~]{1,80}", password):
            out.append("password: the secret is not 1 to 80 printable characters without spaces; set another")
        elif not out and not is_so:
            said = frr.refusal(frr.text(frr.paths(spec, password)), password)
            out += [f"FRR refuses its configuration: {said}"] if said else []
        return out

    def image(self, kernel: Kernel, name: str, mark: str) -> dict[str, Any]:
        return {"mark": mark}

    def create(self, kernel: Kernel, name: str, spec: Evpn, mark: str, image: Mapping[str, Any]) -> None:
        _There(mark).become(kernel, spec)

    def change(self, kernel: Kernel, name: str, spec: Evpn, found: Evpn, mark: str) -> None:
        _There(mark).become(kernel, spec)

    def delete(self, kernel: Kernel, name: str, mark: str) -> None:
        _There(mark).remove(kernel)


class _There:
    """What there is of the service on the host: files, and processes."""

    def __init__(self, mark: str) -> None:
        from overlay_agent import daemon  # noqa: PLC0415 - only where there is one

        self.mark = mark
        self.id = daemon.identity(EvpnKind.name, mark)
        self.folder = f"{daemon.FOLDER}/{self.id}"

    def files(self) -> dict[str, str]:
        from overlay_agent import daemon  # noqa: PLC0415 - as above

        return daemon.texts(self.folder)

    def argvs(self, spec: Evpn) -> dict[str, list[str]]:
        """The command lines, by the service's part; zebra first, which the others talk to."""
        from overlay_agent import frr  # noqa: PLC0415 - as above

        # The traditional profile leaves out of a running configuration what is the least surprising.
        base = {part: [frr.program(part), "-N", frr.PATHSPACE, "-F", "traditional", "--log", "stdout",
                       "--log-level", "warnings", "-f", f"{self.folder}/{_CONFIG if part == _BGPD else _EMPTY}"]
                for part in (_ZEBRA, _BGPD, *([_BFDD] if spec.bfd else []))}  # fmt: skip
        ids = {part: [*words, "-i", f"{frr.RUN}/{self.id_of(part)}.pid"] for part, words in base.items()}
        ids[_BGPD] += ["-p", str(spec.port)]
        return ids

    def id_of(self, part: str) -> str:
        return self.id if part == _BGPD else f"{self.id}-{part}"

    def find(self, kernel: Kernel) -> Evpn | None:
        from overlay_agent import daemon, frr  # noqa: PLC0415 - as above

        files = self.files()
        _, argv = daemon.running(self.id)
        if not files and not argv:
            return None
        said = frr.running_config() if argv else ""
        lines = frr.lines_of(said or files.get(_CONFIG, ""))
        port = int(argv[-1]) if argv and argv[-1].isdigit() else _port_of(lines)
        spec = frr.parsed(lines, kernel.secrets.reference_of, running=True, port=port)
        runs = {part: daemon.running(self.id_of(part))[1] for part in (_ZEBRA, _BGPD, _BFDD)}
        ours = {_ZEBRA: [], _BGPD: [], _BFDD: [], **self.argvs(spec)}
        return dataclasses.replace(spec, running=bool(said) and runs == ours)

    def become(self, kernel: Kernel, spec: Evpn) -> None:
        """Has the daemons run with that, or not at all; what runs already goes on without a session being reset."""
        from overlay_agent import daemon, frr  # noqa: PLC0415 - as above

        password = _password(kernel, spec)
        wanted = [path for path in frr.paths(spec, password) if spec.lines.get(" / ".join(path)) != fields.MISSING]
        wanted += [tuple(line.split(" / ")) for line, what in spec.lines.items() if what == fields.EXTRA]
        files = {_CONFIG: frr.text(wanted, f"! {self.mark}"), _EMPTY: f"! {self.mark}\n"}
        argvs = self.argvs(spec) if spec.running else {}
        live = daemon.running(self.id)[1] == argvs.get(_BGPD) and argvs
        found = frr.lines_of(frr.running_config()) if live else []
        if not found:
            # zebra first: what it put into the kernel stays when it ends, and goes when it sees bgpd end.
            for part in (_ZEBRA, _BGPD) if argvs else (_BGPD, _ZEBRA):
                self.daemon(part, []).stop(kernel)
        for part in {_ZEBRA, _BGPD, _BFDD} - argvs.keys():
            self.daemon(part, []).stop(kernel)
        daemon.replace(kernel, self.folder, files, group=_GROUP)
        _make_run()
        for part, words in argvs.items():
            self.daemon(part, words).start(kernel)
        commands = frr.changes(found, wanted) if found else ""
        if commands:
            said = frr.send(commands, password)
            kernel.reached()
            if said:
                raise KernelError(f"{self.id}: change", errno.EINVAL, said)

    def daemon(self, part: str, argv: list[str]) -> Daemon:
        from overlay_agent import frr  # noqa: PLC0415 - as above
        from overlay_agent.daemon import Daemon  # noqa: PLC0415

        ready = {_ZEBRA: lambda: os.path.exists(f"{frr.RUN}/zserv.api"), _BGPD: lambda: frr.running_config() != "",
                 _BFDD: lambda: os.path.exists(f"{frr.RUN}/bfdd.vty")}  # fmt: skip
        return Daemon(self.id_of(part), argv, f"FRR's {part} for {self.mark}", ready[part])

    def remove(self, kernel: Kernel) -> None:
        from overlay_agent import daemon, frr  # noqa: PLC0415 - as above

        # zebra last: it takes out of the kernel what it put there when it sees bgpd end.
        for part in (_BFDD, _BGPD, _ZEBRA):
            self.daemon(part, []).stop(kernel)
            end = time.monotonic() + _SWEEP
            while part == _BGPD and daemon.running(self.id_of(_ZEBRA))[1] and _holds(kernel):
                if time.monotonic() > end:
                    break
                time.sleep(_PAUSE)
        daemon.replace(kernel, self.folder, {})
        if os.path.isdir(frr.RUN):
            shutil.rmtree(frr.RUN)
            kernel.reached()


def _holds(kernel: Kernel) -> bool:
    """Whether zebra still has entries in a forwarding table."""
    links = [link for link in kernel.links.values() if link.kind == "vxlan"]
    its = [link for link in links if filled_by_frr(VXLAN.observe(kernel, link))]
    return any(entry.dst for link in its for entry in kernel.fdb(link))


def _make_run() -> None:
    """The folder of the sockets, which FRR makes for its own pathspace only."""
    from overlay_agent import frr  # noqa: PLC0415 - as above

    for folder in (os.path.dirname(frr.RUN), frr.RUN):
        if not os.path.isdir(folder):
            os.makedirs(folder, mode=0o755)
            shutil.chown(folder, _GROUP, _GROUP)


def _port_of(lines: list[tuple[str, ...]]) -> int:
    found = [path[-1].split()[-1] for path in lines if re.fullmatch(r"neighbor \S+ port \d+", path[-1])]
    return int(found[0]) if found else _PORT


def _password(kernel: Kernel, spec: Evpn) -> str | None:
    """The password itself; None where there is none, or it is not here, of which the reconciler speaks."""
    if spec.password is None or spec.password in kernel.secrets.missing() or fields.Secret().check(spec.password):
        return None
    return kernel.secrets.read(spec.password).decode(errors="replace")


# -- what contradicts itself ---------------------------------------------------------------------


def _wrong_targets(spec: Evpn) -> list[str]:
    from overlay_agent import frr  # noqa: PLC0415 - as above

    out = []
    for vni, more in sorted(spec.vnis.items()):
        auto = auto_target(spec.asn, vni)
        for way in ("import", "export"):
            targets = more.get(way, {})
            if list(targets) == [auto]:
                out.append(f"vnis.{vni}.{way}: {auto} is what FRR derives, and does not show again; leave it out")
            if len(targets) > frr.MOST_TARGETS:
                out.append(f"vnis.{vni}.{way}: {len(targets)} route targets; at most {frr.MOST_TARGETS} are taken")
    rds: dict[str, str] = {}
    for vni, more in sorted(spec.vnis.items()):
        rd = more.get("rd")
        if rd and rds.setdefault(rd, vni) != vni:
            out.append(f"vnis.{vni}.rd: {rd} is that of VNI {rds[rd]} too; each has its own")
    return out


def _missing(spec: Evpn) -> list[str]:
    """FRR's programs that it needs and that are not here."""
    from overlay_agent import frr  # noqa: PLC0415 - as above

    needed = [_ZEBRA, _BGPD, *([_BFDD] if spec.bfd else [])]
    return [part for part in needed if not frr.program(part)] + ([] if shutil.which("vtysh") else ["vtysh"])


def _wrong_host(spec: Evpn) -> list[str]:
    """Why this host cannot run it at all."""
    from overlay_agent import frr  # noqa: PLC0415 - as above

    missing = _missing(spec)
    if missing:
        are = "is" if len(missing) == 1 else "are"
        return [f"FRR's {', '.join(missing)} {are} not on this host; {_INSTALL}"]
    found = frr.version()
    if found < frr.LEAST:
        shown = ".".join(map(str, found)) or "of an unknown version"
        return [f"FRR here is {shown}, and has to be {'.'.join(map(str, frr.LEAST))} at the least; update it"]
    return []


def _wrong_others(name: str, there: _There, wanted: Document) -> list[str]:
    """Who else speaks BGP here."""
    from overlay_agent import daemon, frr, sockets  # noqa: PLC0415 - as above

    evpns = sorted(other for other, spec in wanted.services.items() if spec.KIND == "evpn" and other != name)
    out = [f"{other} is an evpn too; one BGP speaker a host: put the VNIs of both into one" for other in evpns]
    prefix = daemon.identity(EvpnKind.name, "")[:-8]
    ids = os.listdir(daemon.FOLDER) if os.path.isdir(daemon.FOLDER) else []
    for one in sorted(ids):
        config = daemon.texts(f"{daemon.FOLDER}/{one}").get(_CONFIG, "")
        if one.startswith(prefix) and one != there.id and config:
            owner = stack_of(config.partition("\n")[0].removeprefix("! "))
            out.append(f"stack {owner} has an evpn on this host; one BGP speaker a host: put both into one stack")
    theirs = frr.foreign()
    if theirs:
        who = " and ".join(f"{program} (pid {pid})" for pid, program in theirs)
        out.append(f"FRR runs here already: {who}; a second zebra takes the first one's routes away when it starts; "
                   f"stop that one (systemctl disable --now frr), or use another topology on this host")  # fmt: skip
    elif not out and daemon.running(there.id)[0] is None:
        port = wanted.services[name].port
        owners = [sockets.owner(one) for one in sockets.listening(socket.IPPROTO_TCP, port)]
        if owners:
            out.append(f"port: TCP {port} is taken by {owners[0] or 'a program that cannot be seen from here'}; "
                       f"stop that, or set another port")  # fmt: skip
    return out


def _wrong_devices(spec: Evpn, wanted: Document) -> list[str]:
    """Which VNIs have no device that FRR could fill."""
    devices = {str(one.vni): (name, one) for name, one in wanted.devices.items() if isinstance(one, Vxlan)}
    out = []
    for vni in sorted(spec.vnis, key=int):
        if vni not in devices:
            out.append(f"vnis: {vni} has no VXLAN device in this document; declare it")
            continue
        name, device = devices[vni]
        if ":" in device.local:
            out.append(f"vnis: {vni}: local {device.local!r} of {name}: FRR fills only tunnels over IPv4; "
                       f"take an IPv4 underlay")  # fmt: skip
        if not device.bridge:
            out.append(f"vnis: {vni}: {name} is in no bridge; FRR tells only of devices that are")
        if not filled_by_frr(device):
            out.append(f"vnis: {vni}: {name} is no device that FRR fills; set its learning and portLearning false, "
                       f"neighSuppress true, and leave out peers and group")  # fmt: skip
    return out


_ZEBRA, _BGPD, _BFDD = "zebra", "bgpd", "bfdd"
#: FRR's user and group, which the daemons drop to.
_GROUP = "frr"
_CONFIG, _EMPTY = "bgpd.conf", "empty.conf"
_PORT, _BFD_PORT = 179, 3784
_UP = "Established"
_PAUSE = 0.1
#: zebra takes its entries out within 10 ms of bgpd's end, unless it is kept from running.
_SWEEP = 5.0
_HERE = "<password>"
#: Debian's starts an FRR of its own, which is in the way.
_INSTALL = (
    "install the package frr, and have its own service off: systemctl disable --now frr "
    "(installPackages: true does both)"
)

KIND = EvpnKind()
