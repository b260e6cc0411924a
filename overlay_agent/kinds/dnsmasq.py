"""DHCP, DNS and router advertisements for one segment, by one dnsmasq (dnsmasq(8)).

It is bound to the segment's bridge alone and serves whoever is on it, on this host or behind the
tunnels. What comes and goes, the static leases and names, stands in files of their own that
dnsmasq reads again at a SIGHUP: a new reservation restarts nothing and loses no lease. How the
files look is in overlay_agent/dnsmasq.py, how the process is kept in overlay_agent/daemon.py.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import STATE, fields
from overlay_agent.fields import Difference
from overlay_agent.kinds.base import Kind, Spec, attribute, optional

if TYPE_CHECKING:
    from overlay_agent.daemon import Daemon
    from overlay_agent.document import Document
    from overlay_agent.kernel import Kernel

#: A static lease: who has that MAC address always gets that address, and its key as name. With two addresses
#: `address` is the IPv4 one and `address6` the other.
LEASE = fields.Record(
    {"mac": fields.Mac(), "address": fields.Address(), "address6": fields.Address()}, may=frozenset({"address6"})
)
NAME = fields.Pattern(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", "a host name (RFC 1123), such as web-1")
DOMAIN = fields.Pattern(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?", "a domain, such as app.example")


class _Option(fields.Pattern):
    """What dnsmasq calls a DHCP option (`dnsmasq --help dhcp`), or its number; `option6:` for DHCPv6."""

    def normal(self, value: Any) -> Any:
        return value.removeprefix("option:")


class _Value(fields.Pattern):
    """What a DHCP option is set to. In dnsmasq's files a quote begins a string and # a comment; the other characters
    that are left out end a line for somebody, or are half of one."""

    def check(self, value: Any) -> str | None:
        half = isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value)
        return f"{value!r} is not {self.what}" if half else super().check(value)


class _Servers(fields.Items):
    """Addresses whose order counts only among those of one IP version: each is a DHCP option of its own."""

    def normal(self, value: Any) -> Any:
        return sorted(super().normal(value), key=lambda address: ":" in address)


class _Leases(fields.Keyed):
    """Static leases by name."""

    def differences(self, name: str, found: Any, wanted: Any) -> list[Difference]:
        return [(what, _words(is_), _words(want)) for what, is_, want in super().differences(name, found, wanted)]


def _words(lease: Mapping[str, str] | None) -> str | None:
    return None if lease is None else " ".join(lease[key] for key in ("address", "address6", "mac") if key in lease)


_ODD = r"\x00-\x1f\x22\x23\x7f-\xa0\u2028\u2029"
VALUE = _Value(rf"([^ {_ODD}]([^{_ODD}]*[^ {_ODD}])?)?", 'one line of text without " and #')
OPTION = _Option(r"(option6?:)?[a-z0-9][a-z0-9-]*", "an option's name or number, such as ntp-server or 42")


@dataclasses.dataclass(frozen=True)
class Dnsmasq(Spec):
    """One dnsmasq. Units: lease in seconds, mtu in bytes."""

    KIND: ClassVar[str] = "dnsmasq"

    #: The bridge it is bound to, and nothing else.
    interface: str = attribute(fields.BridgeName())
    #: This host's own addresses in the segment: DNS is answered there.
    addresses: dict[str, Any] = attribute(fields.Keyed("address", fields.Address(), fields.Empty()))
    #: The segment's subnets. One without a range gives out static leases only.
    subnets: dict[str, Any] = attribute(fields.Keyed("subnet", fields.Subnet(), fields.Empty()))
    #: What may be given to whoever asks; each within a subnet.
    ranges: dict[str, Any] = attribute(fields.Keyed("range", fields.AddressRange(), fields.Empty()), default={})
    #: Static leases, by name.
    hosts: dict[str, Any] = attribute(_Leases("host", NAME, LEASE), default={})
    lease: int = attribute(fields.Integer(120, 0xFFFFFFFF), default=3600)
    lease_max: int = attribute(fields.Integer(1, 1_000_000), default=1000)
    domain: str | None = attribute(optional(DOMAIN), default=None)
    #: Servers to ask for other names, in this order; empty: those of the host's resolv.conf.
    dns: list[str] = attribute(fields.Items(fields.Address()), default=[])
    #: What containers route through over IPv4 (option 3); null: nothing.
    router: str | None = attribute(optional(fields.Address()), default=None)
    #: Name servers that containers are told of (options 6 and 23); empty: this dnsmasq.
    name_servers: list[str] = attribute(_Servers(fields.Address()), default=[])
    #: Other ways than through the router (option 121, RFC 3442): the next hop by subnet. IPv4.
    routes: dict[str, str] = attribute(fields.Keyed("route", fields.Subnet(), fields.Address()), default={})
    #: Option 26 and the MTU of router advertisements.
    mtu: int = attribute(fields.Integer(68, 65535))
    #: Router advertisements for the IPv6 subnets (RFC 4861).
    ra: bool = attribute(fields.Flag(), default=False)
    #: Whether they name this host as default router; else their router lifetime is 0.
    ra_router: bool = attribute(fields.Flag(), default=False)
    #: Further DHCP options, by name or number.
    options: dict[str, str] = attribute(fields.Keyed("option", OPTION, VALUE), default={})
    #: Ask the servers of `dns` strictly in their order.
    strict_order: bool = attribute(fields.Flag(), default=True)
    #: Never put options into the file and server name fields of old clients' packets.
    no_override: bool = attribute(fields.Flag(), default=True)
    #: The only DHCP server of the segment, which may say no to addresses that it does not know.
    authoritative: bool = attribute(fields.Flag(), default=True)
    #: Whether it is running. Like `lines` it is there to be read: where it was stopped by hand, an undo stops it again.
    running: bool = attribute(fields.Flag(), default=True)
    lines: dict[str, Any] = attribute(fields.Lines(), default={})


#: What a DHCP option is called here that a field sets.
_SET_BY = {
    "1": "subnets", "netmask": "subnets", "28": "subnets", "broadcast": "subnets",
    "3": "router", "router": "router", "6": "nameServers", "dns-server": "nameServers",
    "15": "domain", "domain-name": "domain", "26": "mtu", "mtu": "mtu", "51": "lease", "lease-time": "lease",
    "121": "routes", "classless-static-route": "routes", "249": "routes",
    "option6:23": "nameServers", "option6:dns-server": "nameServers",
}  # fmt: skip


class DnsmasqKind(Kind):
    """How it is run: its files in a folder of its own, a process that was started with them."""

    name = "dnsmasq"
    spec = Dnsmasq
    rank = 19
    program = True
    package = "dnsmasq-base"

    # -- pure -------------------------------------------------------------------------------

    def wrong(self, spec: Dnsmasq) -> list[str]:
        subnets = [ipaddress.ip_network(subnet) for subnet in spec.subnets]
        return [*_wrong_subnets(spec, subnets), *_wrong_ranges(spec, subnets), *_wrong_hosts(spec, subnets),
                *_wrong_ways(spec, subnets), *_wrong_options(spec)]  # fmt: skip

    def commands(self, name: str, spec: Dnsmasq, mark: str) -> list[list[str]]:
        from overlay_agent import daemon, dnsmasq  # noqa: PLC0415 - only where there is one

        id_ = daemon.identity(self.name, mark)
        folder = f"{daemon.FOLDER}/{id_}"
        files = dnsmasq.files(spec, folder)
        out = [["mkdir", "-p", folder, daemon.RUN], ["chmod", "go+x", STATE]]
        out += [["sh", "-c", f"cat > {folder}/{file} <<'EOF'\n{text}EOF"] for file, text in sorted(files.items())]
        config = f"--conf-file={folder}/{dnsmasq.config_name(files)}"
        start = f"echo $$ > {daemon.RUN}/{id_}.pid; exec dnsmasq --keep-in-foreground {config}"
        return [*out, ["sh", "-c", f"setsid sh -c '{start}' < /dev/null > {daemon.RUN}/{id_}.log 2>&1 &"]]

    # -- on the host ------------------------------------------------------------------------

    def find(self, kernel: Kernel, name: str, mark: str) -> Dnsmasq | None:
        from overlay_agent import dnsmasq  # noqa: PLC0415 - as above

        there = _There.of(mark)
        if not there.exists:
            return None
        return dnsmasq.parsed(there.files, there.config, there.folder, running=there.pid is not None)

    def beside(self, kernel: Kernel, name: str, mark: str) -> list[Difference]:
        there = _There.of(mark)
        spec = self.find(kernel, name, mark)
        if spec is None or there.pid is None:
            return []
        if there.is_bound_elsewhere(kernel, spec):
            return [("bound", "to a device that is gone", f"to {spec.interface}")]
        return [] if there.has_loaded(spec) else [("loaded static leases", "others", "those of its file")]

    def status(self, mark: str) -> dict[str, Any]:
        from overlay_agent import dnsmasq  # noqa: PLC0415 - as above

        return {"leases": dnsmasq.leases(_There.of(mark).files.get(dnsmasq.LEASES, ""))}

    def lacks(self, spec: Dnsmasq) -> bool:
        from overlay_agent import dnsmasq  # noqa: PLC0415 - as above

        return not dnsmasq.program()

    def wrong_here(self, kernel: Kernel, name: str, spec: Dnsmasq, wanted: Document) -> list[str]:
        from overlay_agent import dnsmasq  # noqa: PLC0415 - as above

        there = _There.of(wanted.owner.alias(name))
        if self.lacks(spec):
            return [self.how_to_install("dnsmasq")]
        wrong = _wrong_interface(kernel, spec, wanted)
        wrong += dnsmasq.clashes(spec, kernel.index_of.get(spec.interface, 0), there.pid)
        files = dnsmasq.files(spec, there.folder)
        config = dnsmasq.config_name(files)
        # What it runs with by now it has taken already.
        if there.pid is None or there.files.get(config) != files[config]:
            wrong += dnsmasq.refused(files[config])
        return wrong

    def image(self, kernel: Kernel, name: str, mark: str) -> dict[str, Any]:
        there = _There.of(mark)
        return {"mark": mark, "files": there.files, "config": there.config, "running": there.pid is not None}

    def create(self, kernel: Kernel, name: str, spec: Dnsmasq, mark: str, image: Mapping[str, Any]) -> None:
        from overlay_agent import dnsmasq  # noqa: PLC0415 - as above

        there = _There.of(mark)
        if image.get("spec", {}).get("kind") == self.name:  # an undo
            there.become(kernel, image["files"], image["config"], running=image["running"])
        else:
            files = dnsmasq.files(spec, there.folder)
            there.become(kernel, files, dnsmasq.config_name(files), running=spec.running)

    def change(self, kernel: Kernel, name: str, spec: Dnsmasq, found: Dnsmasq, mark: str) -> None:
        self.create(kernel, name, spec, mark, {})

    def delete(self, kernel: Kernel, name: str, mark: str) -> None:
        from overlay_agent import daemon, dnsmasq  # noqa: PLC0415 - as above

        there = _There.of(mark)
        there.daemon("").stop(kernel)
        # The leases last: while anything is there, they are, and an undo need not bring them back.
        daemon.replace(kernel, there.folder, {}, keep=[dnsmasq.LEASES])
        daemon.replace(kernel, there.folder, {})

    def put_back(self, kernel: Kernel, name: str, image: Mapping[str, Any], *, exactly: bool) -> list[str]:
        there = _There.of(image["mark"])
        if not exactly:
            return there.taken()
        # What somebody wrote there by hand is in the files and not in the spec.
        there.become(kernel, image["files"], image["config"], running=image["running"])
        return []


@dataclasses.dataclass
class _There:
    """What there is of one service on the host: its files, and the process."""

    mark: str
    id: str
    folder: str
    files: dict[str, str]
    #: Its configuration: the one that the process has, if it runs; empty where there is none.
    config: str
    pid: int | None

    @classmethod
    def of(cls, mark: str) -> _There:
        from overlay_agent import daemon, dnsmasq  # noqa: PLC0415 - as above

        id_ = daemon.identity(DnsmasqKind.name, mark)
        folder = f"{daemon.FOLDER}/{id_}"
        files = daemon.texts(folder)
        pid, argv = daemon.running(id_)
        config = argv[-1].rpartition("/")[2] if argv else ""
        if config not in files:
            return cls(mark, id_, folder, files, dnsmasq.config_name(files), None)
        return cls(mark, id_, folder, files, config, pid)

    @property
    def exists(self) -> bool:
        """Whether there is anything of it, be it what a killed attempt left."""
        return bool(self.files)

    def daemon(self, config: str, ready: Callable[[], bool] | None = None) -> Daemon:
        from overlay_agent import daemon, dnsmasq  # noqa: PLC0415 - as above

        argv = [dnsmasq.program(), "--keep-in-foreground", f"--conf-file={self.folder}/{config}"]
        return daemon.Daemon(self.id, argv, f"DHCP and DNS of {self.mark}", ready)

    def has_loaded(self, spec: Dnsmasq) -> bool:
        from overlay_agent import dnsmasq  # noqa: PLC0415 - as above

        return not spec.addresses or dnsmasq.has_loaded(min(spec.addresses, key=_by_version), self.files)

    def is_bound_elsewhere(self, kernel: Kernel, spec: Dnsmasq) -> bool:
        """Whether it listens for DHCP on a device that is no longer there, or is another one now."""
        from overlay_agent import dnsmasq  # noqa: PLC0415 - as above

        return any(device != kernel.index_of.get(spec.interface) for device in dnsmasq.devices(self.pid or 0))

    def become(self, kernel: Kernel, files: Mapping[str, str], config: str, *, running: bool) -> None:
        """Has those files in the folder, the leases as dnsmasq has them, and it running with them or not."""
        from overlay_agent import daemon, dnsmasq  # noqa: PLC0415 - as above

        files = {**files, **({dnsmasq.LEASES: self.files[dnsmasq.LEASES]} if dnsmasq.LEASES in self.files else {})}
        spec = dnsmasq.parsed(files, config, self.folder, running=running)
        kept = self.config == config and self.files.get(config) == files.get(config)
        kept = kept and self.files.get(dnsmasq.RESOLV) == files.get(dnsmasq.RESOLV)
        if self.pid is not None and not (running and kept and not self.is_bound_elsewhere(kernel, spec)):
            self.daemon("").stop(kernel)
            self.pid = None
        changed = any(self.files.get(name) != files.get(name) for name in (dnsmasq.HOSTS, dnsmasq.NAMES))
        # Not the leases while it runs: it writes them itself.
        without = {name: text for name, text in files.items() if name != dnsmasq.LEASES or name not in self.files}
        daemon.replace(kernel, self.folder, without, keep=[dnsmasq.LEASES])
        self.files, self.config = dict(files), config
        if not running:
            self.daemon("").stop(kernel)
            return
        service = self.daemon(config, lambda: self.has_loaded(spec))
        if self.pid is None:
            service.start(kernel)
        elif changed or not self.has_loaded(spec):
            service.reload(kernel)

    def taken(self) -> list[str]:
        """A line for each planned address that somebody else has a lease of: dnsmasq gives it to its
        owner only when that has ended."""
        from overlay_agent import dnsmasq  # noqa: PLC0415 - as above

        if not self.config:
            return []
        spec = dnsmasq.parsed(self.files, self.config, self.folder, running=True)
        leased = dnsmasq.leased(self.files.get(dnsmasq.LEASES, ""))
        name = self.mark.rpartition("/")[2]
        return [
            f"{name}: {one['address']} of {host} is leased to {leased[one['address']]} as yet; {host} gets another "
            f"address until that lease ends, and when it renews that one its own"
            for host, one in sorted(spec.hosts.items())
            if leased.get(one["address"], one["mac"]) != one["mac"]
        ]


def _by_version(address: str) -> bool:
    return ":" in address


# -- what contradicts itself ---------------------------------------------------------------------


def _wrong_subnets(spec: Dnsmasq, subnets: list[Any]) -> Iterator[str]:
    own = [ipaddress.ip_address(address) for address in spec.addresses]
    for subnet in subnets:
        if not any(address in subnet for address in own):
            yield f"subnets: no address of this host is in {subnet}; give it one, dnsmasq serves only where it has one"
    if spec.ra_router and not spec.ra:
        yield "raRouter: is set without ra; set ra too, or neither"
    if spec.lines:
        yield f"lines: {', '.join(spec.lines)}; they are found on a host, and not to be asked for"


def _wrong_ranges(spec: Dnsmasq, subnets: list[Any]) -> Iterator[str]:
    ranges: list[tuple[Any, Any, str]] = []
    for one in spec.ranges:
        low, _, high = one.partition("-")
        ranges.append((ipaddress.ip_address(low), ipaddress.ip_address(high), one))
    for first, last, one in ranges:
        around = [subnet for subnet in subnets if first in subnet and last in subnet]
        if not around:
            yield f"ranges: {one} is not in {_listed(subnets)}; take a part of one"
        elif first.version == 6 and around[0].prefixlen < 64:
            yield f"ranges: {one} is in {around[0]}, and dnsmasq takes no prefix shorter than 64; take a longer one"
    for a, b in itertools.combinations(ranges, 2):
        if a[0].version == b[0].version and a[0] <= b[1] and b[0] <= a[1]:
            yield f"ranges: {a[2]} and {b[2]} overlap; take them apart"


def _wrong_hosts(spec: Dnsmasq, subnets: list[Any]) -> Iterator[str]:
    owner = dict.fromkeys(spec.addresses, "this host")
    macs: dict[tuple[str, int], str] = {}
    names: dict[str, str] = {}
    for name, one in sorted(spec.hosts.items()):
        addresses = [ipaddress.ip_address(one[key]) for key in ("address", "address6") if key in one]
        if len(addresses) == 2 and [address.version for address in addresses] != [4, 6]:
            yield f"hosts.{name}: address6 is beside an IPv4 address the IPv6 one, and only there; give one of each"
            continue
        if names.setdefault(name.lower(), name) != name:
            yield f"hosts.{name}: the same name as {names[name.lower()]}; names do not differ by case"
        for address in addresses:
            if not any(address in subnet for subnet in subnets):
                yield f"hosts.{name}: {address} is not in {_listed(subnets)}; take one of there"
            if owner.setdefault(str(address), name) != name:
                yield f"hosts.{name}: {address} belongs to {owner[str(address)]}; take another"
            if macs.setdefault((one["mac"], address.version), name) != name:
                other = macs[one["mac"], address.version]
                yield f"hosts.{name}: MAC address {one['mac']} belongs to {other}; each has its own"


def _wrong_ways(spec: Dnsmasq, subnets: list[Any]) -> Iterator[str]:
    four = [subnet for subnet in subnets if subnet.version == 4]
    hops = [("router", spec.router)] if spec.router else []
    hops += [(f"routes.{to}", via) for to, via in sorted(spec.routes.items())]
    for where, hop in hops:
        if not any(ipaddress.ip_address(hop) in subnet for subnet in four):
            yield f"{where}: {hop} is not in {_listed(four)}; who gets an address there could not reach it"
    for to in sorted(to for to in spec.routes if ":" in to or ipaddress.ip_network(to).prefixlen == 0):
        hint = "IPv6 routes come by router advertisements" if ":" in to else "the default route is `router`"
        yield f"routes.{to}: not one for option 121; {hint}"


def _wrong_options(spec: Dnsmasq) -> Iterator[str]:
    for name in sorted(spec.options):
        if name in _SET_BY:
            yield f"options.{name}: {_SET_BY[name]} sets that option; write it there"


def _listed(subnets: list[Any]) -> str:
    return " or ".join(map(str, subnets)) or "any subnet"


def _wrong_interface(kernel: Kernel, spec: Dnsmasq, wanted: Document) -> list[str]:
    """Whether the bridge will be there with this host's addresses, once the document is true."""
    device, link = wanted.devices.get(spec.interface), kernel.links.get(spec.interface)
    if device is None and link is None:
        return [f"interface: there is no {spec.interface} on this host; name a bridge that is"]
    wrong = []
    if any(":" in subnet for subnet in spec.subnets) and not (device or link).link_local:  # type: ignore[union-attr]
        wrong.append(f"interface: {spec.interface} has no link-local address, from which DHCPv6 and router "
                     f"advertisements come; set its linkLocal")  # fmt: skip
    there = device.addresses if device else kernel.addresses(link)  # type: ignore[arg-type]
    have = {str(ipaddress.ip_interface(address).ip) for address in there}
    return wrong + [
        f"addresses: {address} is not on {spec.interface}, which has {', '.join(sorted(have)) or 'none'}; give it that"
        for address in spec.addresses
        if address not in have
    ]


KIND = DnsmasqKind()
