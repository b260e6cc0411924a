"""Addresses that one of several hosts has at a time, by VRRP (RFC 5798) with keepalived(8).

One keepalived a service, with a file of its own whose name holds a digest of it: so the command
line of the process says what it was started with. Nobody preempts: a host that comes back does not
take the addresses from one that has them, since each move loses what the other knows of the
connections that it translates. Why VRRP and not one address on all hosts: docs/adr/0007.
"""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import os
import re
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import fields
from overlay_agent.errors import KernelError
from overlay_agent.kinds.base import Kind, Spec, attribute

if TYPE_CHECKING:
    from overlay_agent.daemon import Daemon
    from overlay_agent.document import Document
    from overlay_agent.kernel import Kernel

PROGRAM = "keepalived"
LOOPBACK = "lo"
#: After its parent is killed keepalived's own child gives the addresses back and ends, in 1 s unless it is kept from
#: running.
ORPHAN_SECONDS = 10.0

#: Gratuitous ARP, and unsolicited neighbour advertisements for IPv6, are what moves the containers' ARP
#: entries and the bridges' and tunnels' forwarding entries: at once, 1 s later since packets get lost, and
#: then for whoever came later or missed both.
_CONFIG = """\
# Made by overlay-agent; see keepalived.conf(5).
global_defs {{
  vrrp_version 3
  vrrp_higher_prio_send_advert true
}}
vrrp_instance {id} {{
  state BACKUP
  nopreempt
  interface {interface}
  virtual_router_id {group}
  priority {priority}
  advert_int {interval}
  garp_master_delay 1
  garp_master_repeat 3
  garp_master_refresh 10
  garp_lower_prio_delay 1
  virtual_ipaddress {{
{addresses}
  }}
{more}}}
"""
#: The IP version of the first block is what the routers talk over; the other version's addresses go along.
_MORE = """\
  virtual_ipaddress_excluded {{
{addresses}
  }}
"""


@dataclasses.dataclass(frozen=True)
class Vrrp(Spec):
    """The host's part in one group of routers. Units: interval in hundredths of a second."""

    KIND: ClassVar[str] = "vrrp"

    #: The segment's bridge, over which the routers hear each other.
    interface: str = attribute(fields.BridgeName())
    #: The group's number, the same on its hosts (virtual_router_id).
    group: int = attribute(fields.Integer(1, 255))
    #: When the addresses are nobody's the highest of those that are alive gets them.
    priority: int = attribute(fields.Integer(1, 254))
    #: The floating addresses, with prefix length. Where there are IPv4 ones the routers talk over IPv4,
    #: else over IPv6, which takes a link-local address of the bridge.
    addresses: dict[str, Any] = attribute(fields.ADDRESSES)
    #: Between two advertisements; after three without one the next host takes over.
    interval: int = attribute(fields.Integer(10, 4095), default=50)


class VrrpKind(Kind):
    """How it is run."""

    name = "vrrp"
    spec = Vrrp
    rank = 18
    program = True
    package = "keepalived"

    def wrong(self, spec: Vrrp) -> list[str]:
        out = [] if spec.addresses else ["addresses: there are none; leave the service out"]
        unfit = [a for a in sorted(spec.addresses) if not _is_anyones(_ip(a))]
        return out + [f"addresses: {a} cannot float; name an address of the segment's subnet" for a in unfit]

    def commands(self, name: str, spec: Vrrp, mark: str) -> list[list[str]]:
        from overlay_agent.daemon import RUN  # noqa: PLC0415 - only hosts with such a service need it

        id_ = _identity(mark)
        path, text = _path(id_, spec), _config(id_, spec)
        script = f"mkdir -p {os.path.dirname(path)} {RUN}; cat > {path} <<'END'\n{text}END"
        # By hand it goes into the background itself.
        return [["sh", "-c", script], [word for word in _argv(id_, path) if word not in _FOREGROUND]]

    def lacks(self, spec: Vrrp) -> bool:
        import shutil  # noqa: PLC0415 - as above

        return shutil.which(PROGRAM) is None

    def wrong_here(self, kernel: Kernel, name: str, spec: Vrrp, wanted: Document) -> list[str]:
        if self.lacks(spec):
            return [self.how_to_install(PROGRAM)]
        out = []
        device = wanted.devices.get(spec.interface)
        if device is None and spec.interface not in kernel.links:
            out.append(f"interface {spec.interface!r} is not on this host; declare it")
        if device and not device.link_local and all(":" in address for address in spec.addresses):
            out.append(f"routers talk from link-local addresses over IPv6 (RFC 5798), and {spec.interface} has none; "
                       "set its linkLocal, or give the segment an IPv4 subnet too")  # fmt: skip
        for address in spec.addresses:
            owners = [n for n, d in wanted.devices.items() if any(_ip(a) == _ip(address) for a in d.addresses)]
            there = kernel.device_with(str(_ip(address)))
            if there and there.name != spec.interface and there.name not in wanted.devices:
                owners.append(there.name)
            out += [f"address {address} is on {owner} for good, and cannot float; take it away there, or here"
                    for owner in owners]  # fmt: skip
        mark = wanted.owner.alias(name)
        if out or self.find(kernel, name, mark) == spec:
            return out
        # It refuses an interface that is not there, as the bridge may not be yet; any other will do.
        others = [device for device in sorted(kernel.links) if device != LOOPBACK]
        interface = spec.interface if spec.interface in kernel.links or not others else others[0]
        said = refusal(_config(_identity(mark), dataclasses.replace(spec, interface=interface)))
        return [f"{PROGRAM} refuses its configuration: {said}"] if said else []

    def find(self, kernel: Kernel, name: str, mark: str) -> Vrrp | None:
        from overlay_agent import daemon  # noqa: PLC0415 - as above

        id_ = _identity(mark)
        _, argv = daemon.running(id_)
        files = daemon.texts(f"{daemon.FOLDER}/{id_}")
        if not files:
            return None
        mine = [file for file in files if f"--use-file={daemon.FOLDER}/{id_}/{file}" in argv]
        file = [*mine, *files][0]
        found = _parsed(files[file])
        if not argv:
            return dataclasses.replace(found, interface=f"{found.interface} ({PROGRAM} is not running)")
        if argv != _argv(id_, _path(id_, found)) or files != {os.path.basename(_path(id_, found)): _config(id_, found)}:
            return dataclasses.replace(found, interface=f"{found.interface} (its file was changed by hand)")
        return found

    def image(self, kernel: Kernel, name: str, mark: str) -> dict[str, Any]:
        from overlay_agent import daemon  # noqa: PLC0415 - as above

        id_ = _identity(mark)
        return {"mark": mark, "files": daemon.texts(f"{daemon.FOLDER}/{id_}"), "argv": daemon.running(id_)[1]}

    def create(self, kernel: Kernel, name: str, spec: Vrrp, mark: str, image: Mapping[str, Any]) -> None:
        id_ = _identity(mark)
        if fields.BridgeName().check(spec.interface) is None:  # else `put_back` brings back what was found
            path = _path(id_, spec)
            _run(kernel, id_, {os.path.basename(path): _config(id_, spec)}, _argv(id_, path))

    def change(self, kernel: Kernel, name: str, spec: Vrrp, found: Vrrp, mark: str) -> None:
        self.create(kernel, name, spec, mark, {})

    def delete(self, kernel: Kernel, name: str, mark: str) -> None:
        from overlay_agent import daemon  # noqa: PLC0415 - as above

        id_ = _identity(mark)
        _daemon(id_, []).stop(kernel)
        # Killed, keepalived leaves them.
        for interface, address in sorted(_floating(id_)):
            link = kernel.links.get(interface)
            if link and address in kernel.addresses(link):
                kernel.set_addresses(interface, [address], [])
        daemon.replace(kernel, f"{daemon.FOLDER}/{id_}", {})
        _clear(id_)

    def put_back(self, kernel: Kernel, name: str, image: Mapping[str, Any], *, exactly: bool) -> list[str]:
        if exactly:
            _run(kernel, _identity(image["mark"]), image["files"], image["argv"])
        return []


def refusal(text: str) -> str:
    """What keepalived has against a configuration; nothing where it takes it."""
    import subprocess  # noqa: PLC0415 - as above

    with os.fdopen(os.memfd_create(PROGRAM), "w") as file:
        file.write(text)
        file.flush()
        os.fchmod(file.fileno(), 0o600)  # it skips one that could be executed, and finds nothing wrong in it
        path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
        words = [PROGRAM, "--config-test", f"--use-file={path}"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    said = re.sub(rf"\({re.escape(path)}: (Line \d+)\)", r"\1:", done.stdout + done.stderr)
    lines = "; ".join(line.strip() for line in said.splitlines() if line.strip())
    return (lines or f"exit code {done.returncode}") if done.returncode else ""


def floating() -> set[tuple[str, str]]:
    """The addresses that keepalived may put on a device of this host at any time, (device, address) each:
    they are not among the device's own."""
    from overlay_agent.daemon import FOLDER  # noqa: PLC0415 - as above

    services = os.listdir(FOLDER) if os.path.isdir(FOLDER) else []
    return {one for id_ in services if id_.startswith(_identity("")[:-8]) for one in _floating(id_)}


def _floating(id_: str) -> set[tuple[str, str]]:
    from overlay_agent import daemon  # noqa: PLC0415 - as above

    specs = [_parsed(text) for text in daemon.texts(f"{daemon.FOLDER}/{id_}").values()]
    return {(spec.interface, address) for spec in specs for address in spec.addresses}


def _run(kernel: Kernel, id_: str, files: Mapping[str, str], argv: list[str]) -> None:
    """Has keepalived running with that file and command line, or not at all where there is no command line."""
    from overlay_agent import daemon  # noqa: PLC0415 - as above

    program = _daemon(id_, argv)
    if daemon.running(id_)[1] != argv or daemon.texts(program.folder) != files:
        program.stop(kernel)
        _clear(id_)
        daemon.replace(kernel, program.folder, files)
    if argv:
        os.makedirs(daemon.RUN, mode=0o755, exist_ok=True)
        program.start(kernel)


def _daemon(id_: str, argv: list[str]) -> Daemon:
    from overlay_agent.daemon import Daemon  # noqa: PLC0415 - as above

    # With its child it serves.
    return Daemon(id_, argv, "Floating addresses of an overlay", ready=lambda: _pid(_pid_files(id_)[1]) is not None)


def _clear(id_: str) -> None:
    """Waits for the child of a keepalived that was killed, and removes what that left. Raises KernelError."""
    import time  # noqa: PLC0415 - as above

    from overlay_agent.daemon import RUN  # noqa: PLC0415 - as above

    end = time.monotonic() + ORPHAN_SECONDS
    for path in _pid_files(id_):
        while _pid(path) is not None:
            if time.monotonic() > end:
                raise KernelError(f"{id_}: stop", errno.ETIMEDOUT, f"process {_pid(path)} does not end; kill it")
            time.sleep(0.02)
        if os.path.exists(path):
            os.unlink(path)
    if os.path.isdir(RUN) and not os.listdir(RUN):
        os.rmdir(RUN)


def _pid(path: str) -> int | None:
    """The keepalived that the file names; None where it has ended."""
    try:
        with open(path, encoding="ascii") as file:
            number = int(file.read())
        with open(f"/proc/{number}/cmdline", "rb") as file:
            return number if os.fsencode(path) in file.read() else None
    except (OSError, ValueError):
        return None


def _pid_files(id_: str) -> tuple[str, str]:
    from overlay_agent.daemon import RUN  # noqa: PLC0415 - as above

    return f"{RUN}/{id_}-parent.pid", f"{RUN}/{id_}-vrrp.pid"


def _argv(id_: str, path: str) -> list[str]:
    import shutil  # noqa: PLC0415 - as above

    parent, child = _pid_files(id_)
    files = [f"--use-file={path}", f"--pid={parent}", f"--vrrp_pid={child}"]
    return [shutil.which(PROGRAM) or PROGRAM, *_FOREGROUND, "--vrrp", *files]


def _identity(mark: str) -> str:
    from overlay_agent.daemon import identity  # noqa: PLC0415 - as above

    return identity(VrrpKind.name, mark)


def _path(id_: str, spec: Vrrp) -> str:
    from overlay_agent.daemon import FOLDER  # noqa: PLC0415 - as above

    return f"{FOLDER}/{id_}/{PROGRAM}-{zlib.crc32(_config(id_, spec).encode()):08x}.conf"


def _config(id_: str, spec: Vrrp) -> str:
    first = [address for address in spec.addresses if ":" not in address] or list(spec.addresses)
    blocks = [sorted(first), sorted(spec.addresses.keys() - first)]
    # Else a new connection of the host's own could be sent from an address that moves away under it.
    lines = ["\n".join(f"    {a}{' preferred_lft 0' if ':' in a else ''}" for a in block) for block in blocks]
    return _CONFIG.format(
        id=id_, interface=spec.interface, group=spec.group, priority=spec.priority, interval=spec.interval / 100,
        addresses=lines[0], more=_MORE.format(addresses=lines[1]) if blocks[1] else "",
    )  # fmt: skip


def _parsed(text: str) -> Vrrp:
    """What the file says, whoever wrote it."""
    words = dict(re.findall(r"^  (\w+) (\S+)$", text, re.MULTILINE))
    addresses = re.findall(r"^    (\S+/\d+)", text, re.MULTILINE)
    numbers = {key: float(words[key]) if _NUMBER.fullmatch(words.get(key, "")) else 0.0 for key in _NUMBERS}
    group, priority, interval = (numbers[key] for key in _NUMBERS)
    return Vrrp(
        words.get("interface", "none"), int(group), int(priority), {a: {} for a in addresses}, round(interval * 100)
    )


def _is_anyones(ip: Any) -> bool:
    return not (ip.is_multicast or ip.is_unspecified or ip.is_loopback or ip.is_link_local)


def _ip(address: str) -> Any:
    return ipaddress.ip_interface(address).ip


_FOREGROUND = ("--dont-fork", "--log-console", "--no-syslog")
_NUMBERS = ("virtual_router_id", "priority", "advert_int")
_NUMBER = re.compile(r"\d+(\.\d+)?")

KIND = VrrpKind()
