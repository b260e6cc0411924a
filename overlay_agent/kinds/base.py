"""How a kind plugs in, and what every network device has in common.

A kind is a spec class (its attributes, see fields.py) and a `Kind` that knows how to read, make,
change and remove such a thing. Diff, reconcile and guard know nothing else, so a new kind is one
file and a line in the registry. What most devices share is in `DeviceKind`: a device's file is
usually the attribute list with the netlink names, `to_link`, `from_link` and `words`.
"""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import SERVICES_FOLDER, fields
from overlay_agent.errors import KernelError
from overlay_agent.fields import DOCKER, RECREATE, SET, Difference, attribute, optional

if TYPE_CHECKING:
    from overlay_agent.document import Document
    from overlay_agent.kernel import Kernel, Link

DEVICES, SERVICES = "devices", "services"
MTU_LEAST = 68


@dataclasses.dataclass(frozen=True)
class Spec:
    """One object on one host, fully resolved."""

    KIND: ClassVar[str] = ""


class Kind:
    """How one kind of object is read, made, changed, removed and explained.

    `mark` is what shows that an object is this stack's: "overlay:<project>/<stack>/<name>".
    """

    #: The name in documents.
    name: str = ""
    spec: type[Any] = Spec
    #: Where in a document it stands.
    group: str = SERVICES
    #: Kernel modules to load before such an object is made.
    modules: tuple[str, ...] = ()
    #: Objects are made in ascending and removed in descending rank: a bridge before its ports.
    rank: int = 10
    #: Whether a program of its own has to run for it (daemon.py).
    program: bool = False
    #: Debian's package that its programs are in, and the unit that comes with it and is in the way, if one is.
    package: str = ""
    unit: str = ""

    # -- pure -------------------------------------------------------------------------------

    def wrong(self, spec: Any) -> list[str]:
        """What contradicts itself in a spec whose fields are each right: ["<field>: <error>"]."""
        return []

    def remake(self, found: Any, wanted: Any) -> set[str]:
        """Fields that are SET in general, but not from that value to this."""
        return set()

    def will_do(self, found: Any, wanted: Any) -> set[str]:
        """Fields in which what was found will do, though it is not what is wanted."""
        return set()

    def devices(self, spec: Any) -> set[str]:
        """The devices on which a service stands: it goes with each, and is set anew when one is made anew."""
        return set()

    def device(self, spec: Any) -> str | None:
        """The network device that comes with a service, and that others may be ports of."""
        return None

    def commands(self, name: str, spec: Any, mark: str) -> list[list[str]]:
        """The commands with which a person would make the object by hand; `typed` writes each as a line."""
        raise NotImplementedError

    def overhead(self, spec: Any) -> int:
        """What encapsulation adds to a packet of the device's MTU, in bytes, at the least; 0: it is no tunnel."""
        return 0

    def ends(self, spec: Any, learned: Iterable[str] = ()) -> dict[str, Any]:
        """A tunnel's other ends, by their addresses on the underlay, each with what must be alike at both ends, or
        neither hears the other. `learned`: those that are known where the spec does not list them."""
        return {}

    def inside(self, spec: Any) -> dict[str, tuple[str, Any]]:
        """Addresses that are reached through the device alone: the address outside of who has it, and as above."""
        return {}

    def listens(self, spec: Any) -> list[Listens]:
        """What peers send to this host for it, so that a firewall in between can be named."""
        return []

    def passes(self, name: str, spec: Any) -> list[Passes]:
        """The bridges through which others' packets go for it, so that a firewall in between can be named."""
        return []

    # -- on the host ------------------------------------------------------------------------

    def find(self, kernel: Kernel, name: str, mark: str) -> Any:
        """The spec of the object, every field read from the host; None where there is none."""
        raise NotImplementedError

    def still_ours(self, kernel: Kernel, name: str, stored: Mapping[str, Any]) -> bool:
        """Whether what has that name now is what this stack once made there, by the stored spec."""
        return True

    def stays(self, kernel: Kernel, name: str, stored: Mapping[str, Any], mark: str, *, force: bool) -> str:
        """Why the object is left where it is when the stack wants it no longer, as a sentence for
        people; empty: it goes."""
        return ""

    def beside(self, kernel: Kernel, name: str, mark: str) -> list[Difference]:
        """Differences that are in no field: the mark is not there."""
        return []

    def lacks(self, spec: Any) -> bool:
        """Whether the programs of `package` are not on this host."""
        return False

    def how_to_install(self, program: str) -> str:
        """What to do where that program is not there."""
        return f"{program} is not on this host; install the package {self.package} (installPackages: true does it)"

    def wrong_here(self, kernel: Kernel, name: str, spec: Any, wanted: Document) -> list[str]:
        """Why this host cannot have the object; `wanted` is the document it stands in."""
        return []

    def in_use(self, kernel: Kernel, name: str, going: set[str]) -> list[str]:
        """Why the object should not be removed together with those in `going`."""
        return []

    def status(self, mark: str) -> dict[str, Any]:
        """What `overlay status` shows of the object beside that it is there."""
        return {}

    def wanting(self, name: str, spec: Any, mark: str, patience: float) -> list[str]:
        """What others have yet to do for the object, a line each: no drift, since nothing here mends it. May wait
        that many seconds for it."""
        return []

    def removal(self, kernel: Kernel, name: str) -> str:
        """The command with which a person removes it."""
        return f"ip link delete {name}"

    def image(self, kernel: Kernel, name: str, mark: str) -> dict[str, Any]:
        """What `put_back` needs beside the spec, as plain data: the mark that is there, and what
        hangs on the object and goes when it goes."""
        return {"mark": mark}

    def create(self, kernel: Kernel, name: str, spec: Any, mark: str, image: Mapping[str, Any]) -> None:
        """Makes the object. `image`: of the one that was there before, or empty."""
        raise NotImplementedError

    def change(self, kernel: Kernel, name: str, spec: Any, found: Any, mark: str) -> None:
        """Sets in place what differs between `found` and `spec`."""
        raise NotImplementedError

    def delete(self, kernel: Kernel, name: str, mark: str) -> None:
        """Removes the object; one that is gone already is no error."""
        raise NotImplementedError

    def put_back(self, kernel: Kernel, name: str, image: Mapping[str, Any], *, exactly: bool) -> list[str]:
        """Brings back what hung on the object. `exactly`: this is an undo. Returns what could not
        be brought back."""
        return []


def stack_of(mark: str) -> str:
    """The stack's label in a mark."""
    return mark.removeprefix("overlay:").rpartition("/")[0]


def typed(command: Sequence[str]) -> str:
    """One of `commands` as a person types it into a shell: a script (sh -c) as it is, not in quotes once more."""
    import shlex  # noqa: PLC0415 - only to explain

    return command[2] if list(command[:2]) == ["sh", "-c"] else shlex.join(command)


@dataclasses.dataclass(frozen=True)
class Listens:
    """Packets from the peers that have to reach this host. `port` None: the protocol has none (gre, l2tp)."""

    protocol: str
    port: int | None
    peers: tuple[str, ...]

    def __str__(self) -> str:
        return self.protocol if self.port is None else f"{self.protocol} {self.port}"


@dataclasses.dataclass(frozen=True)
class Passes:
    """Packets of others that this host passes on: within the bridge, and, `routed`, out of it and back."""

    bridge: str
    routed: bool = False


@dataclasses.dataclass(frozen=True)
class Device(Spec):
    """One network device on one host, fully resolved. Units: MTU in bytes."""

    #: IFLA_MTU. Below 68 IPv4 cannot work (RFC 791), below 1280 IPv6 cannot (RFC 8200).
    mtu: int = attribute(fields.Integer(MTU_LEAST, 65535))
    #: Derived by the planner from stack, host and device, so that a reboot does not change it.
    mac: str = attribute(fields.Mac())
    #: Whether it is up (IFF_UP).
    up: bool = attribute(fields.Flag(), default=True)
    #: The bridge this device is a port of.
    bridge: str | None = attribute(optional(fields.BridgeName()), default=None)
    #: Ports that are isolated do not forward to each other (IFLA_BRPORT_ISOLATED): no loops.
    isolated: bool = attribute(fields.Flag(), default=False)
    #: The bridge answers ARP and ND for what it knows behind this port (IFLA_BRPORT_NEIGH_SUPPRESS).
    neigh_suppress: bool = attribute(fields.Flag(), default=False)
    #: The bridge learns source addresses on this port (IFLA_BRPORT_LEARNING).
    port_learning: bool = attribute(fields.Flag(), default=True)
    #: Addresses with prefix length, each with an (as yet empty) object for options.
    addresses: dict[str, Any] = attribute(fields.ADDRESSES, default={})
    #: Whether the kernel gives the device an IPv6 link-local address (IFLA_INET6_ADDR_GEN_MODE).
    link_local: bool = attribute(fields.Flag(), default=False)


#: Fields of `Device` that live on the bridge port, and mean nothing without a bridge.
PORT_FIELDS = {
    "isolated": "IFLA_BRPORT_ISOLATED",
    "neigh_suppress": "IFLA_BRPORT_NEIGH_SUPPRESS",
    "port_learning": "IFLA_BRPORT_LEARNING",
}


class DeviceKind(Kind):
    """What all kinds of network device share; `name` is also their IFLA_INFO_KIND."""

    spec: type[Any] = Device
    group = DEVICES
    #: The kernel's build option.
    option: str = ""
    #: Own fields that are sent at creation even when they have their default value: the kernel's
    #: default is another one.
    always_sent: frozenset[str] = frozenset()
    #: Whether every change has to say all own fields: the kernel takes what is left out for its default.
    whole: bool = False

    def own_fields(self) -> list[dataclasses.Field[Any]]:
        """The fields that this kind has beside those of every device."""
        common = {f.name for f in dataclasses.fields(Device)}
        return [f for f in dataclasses.fields(self.spec) if f.name not in common]

    # -- pure -------------------------------------------------------------------------------

    def to_link(self, spec: Any, names: Iterable[str], index: Mapping[str, int]) -> dict[str, Any]:
        """The IFLA_INFO_DATA of those fields. `index` gives the interface index of a name."""
        data: dict[str, Any] = {}
        for field in dataclasses.fields(spec):
            if field.name in names:
                value, nla = getattr(spec, field.name), field.metadata["nla"]
                data.update({nla: int(value)} if nla else self.encode(field.name, value, index))
        return data

    def encode(self, field: str, value: Any, index: Mapping[str, int]) -> dict[str, Any]:
        """The IFLA_INFO_DATA of a field that has no netlink attribute of its own form."""
        return {}

    def from_link(self, link: Link, name_of: Mapping[int, str]) -> dict[str, Any]:
        """The spec's own fields as the kernel has them, by field name (inverse of `to_link`)."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(self.spec):
            nla = field.metadata["nla"]
            if nla and nla in link.data:
                value = link.data[nla]
                found[field.name] = bool(value) if isinstance(field.metadata["type"], fields.Flag) else value
        return found

    def words(self, name: str, spec: Any) -> list[str]:
        """The `ip link add` arguments after the device's name, as a person would type them."""
        return ["type", self.name]

    def making(self, name: str, spec: Any, mark: str) -> list[list[str]]:
        """The commands that make the device, with its MTU and MAC address."""
        address = ["address", spec.mac] if spec.mac else []
        return [["ip", "link", "add", name, "mtu", str(spec.mtu), *address, *self.words(name, spec)]]

    def more_commands(self, name: str, spec: Any) -> list[list[str]]:
        """Commands that follow the device's making: forwarding entries and the like."""
        return []

    def commands(self, name: str, spec: Any, mark: str) -> list[list[str]]:
        out = self.making(name, spec, mark)
        mode = "eui64" if spec.link_local else "none"
        out.append(["ip", "link", "set", "dev", name, "addrgenmode", mode])
        if spec.bridge:
            out.append(_join_bridge(name, spec.bridge))
            flags = {"isolated": spec.isolated, "neigh_suppress": spec.neigh_suppress}
            words = [w for flag, on in flags.items() if on for w in (flag, "on")]
            words += [] if spec.port_learning else ["learning", "off"]
            out += [["bridge", "link", "set", "dev", name, *words]] if words else []
        for address in spec.addresses:
            nodad = ["nodad"] if ":" in address else ["brd", "+"]
            out.append(["ip", "address", "add", address, "dev", name, *nodad])
        out += [["ip", "link", "set", "dev", name, "up"]] if spec.up else []
        out.append(["ip", "link", "set", "dev", name, "alias", mark])
        return out + self.more_commands(name, spec)

    # -- on the host ------------------------------------------------------------------------

    def find(self, kernel: Kernel, name: str, mark: str) -> Any:
        link = kernel.links.get(name)
        return self.observe(kernel, link) if link and link.kind == self.name else None

    def still_ours(self, kernel: Kernel, name: str, stored: Mapping[str, Any]) -> bool:
        # An alias can be lost by hand; kind and MAC address, which is derived, still tell.
        link = kernel.links.get(name)
        return bool(
            link
            and not link.alias.startswith("overlay:")
            and (link.kind, link.mac) == (stored.get("kind"), stored.get("mac"))
        )

    def beside(self, kernel: Kernel, name: str, mark: str) -> list[Difference]:
        alias = kernel.links[name].alias
        return [] if alias == mark else [("alias", alias or None, mark or None)]

    def wrong_here(self, kernel: Kernel, name: str, spec: Any, wanted: Document) -> list[str]:
        out: list[str] = []
        # Of a Docker network that is not there, its own kind speaks.
        if spec.bridge and not spec.bridge.startswith(DOCKER) and spec.bridge not in wanted.bridges():
            bridge = kernel.links.get(spec.bridge)
            if not bridge or bridge.kind != "bridge":
                out.append(f"bridge {spec.bridge!r} is not on this host; declare it")
        return out

    def in_use(self, kernel: Kernel, name: str, going: set[str]) -> list[str]:
        others = [port for port in kernel.ports(name) if port not in going]
        return [f"has ports that are not ours ({', '.join(others)}), probably of running containers"] if others else []

    def image(self, kernel: Kernel, name: str, mark: str) -> dict[str, Any]:
        link = kernel.links[name]
        return {
            "mark": link.alias,
            "index": link.index,
            "addresses": own_addresses(kernel, link),
            "ports": kernel.ports(name),
            "routes": kernel.routes(link.index),
        }

    def observe(self, kernel: Kernel, link: Link) -> Any:
        """The spec of an existing device of this kind."""
        found = {
            "mtu": link.mtu,
            "mac": link.mac,
            "up": link.up,
            "bridge": kernel.name_of.get(link.master) if link.master else None,
            "addresses": {address: {} for address in own_addresses(kernel, link)},
            "link_local": link.link_local,
        }
        if link.master:
            found.update({f: bool(link.port[nla]) for f, nla in PORT_FIELDS.items() if nla in link.port})
        return self.spec(**found, **self.from_link(link, kernel.name_of))

    def create(self, kernel: Kernel, name: str, spec: Any, mark: str, image: Mapping[str, Any]) -> None:
        # A default is left to the kernel: older ones, and some builds, refuse attributes of what
        # they lack even when the value says "off". The read-back tells when a default differs.
        names = {f.name for f in self.own_fields() if getattr(spec, f.name) != fields.default_of(f)}
        data = self.to_link(spec, names | self.always_sent, kernel.index_of)
        mtu, index = self.first_mtu(spec), image.get("index", 0)
        with self.explained(names):
            kernel.create_link(name, self.name, mtu=mtu, mac=spec.mac, data=data, index=index)
        kernel.set_label(name, mark, link_local=spec.link_local)
        made = {"mtu": mtu, "mac": spec.mac, "link_local": spec.link_local, "up": False}
        self.change_rest(kernel, name, spec, self.spec(**made))

    def first_mtu(self, spec: Any) -> int:
        """The MTU with which the device is made; the right one is set afterwards."""
        return int(spec.mtu)

    def change(self, kernel: Kernel, name: str, spec: Any, found: Any, mark: str) -> None:
        if kernel.links[name].alias != mark:
            kernel.set_label(name, mark, link_local=found.link_local)
        names = {f.name for f in self.own_fields() if getattr(spec, f.name) != getattr(found, f.name)}
        sent = names | self.always_sent if names and self.whole else names
        data = self.to_link(spec, sent, kernel.index_of)
        if data:
            with self.explained(names):
                kernel.change_link(name, self.name, data, spec.mtu if self.whole else None)
        self.change_rest(kernel, name, spec, found)

    def change_rest(self, kernel: Kernel, name: str, spec: Any, found: Any) -> None:
        """Sets in place what differs beside IFLA_INFO_DATA."""
        if spec.link_local != found.link_local:
            kernel.set_link_local(name, spec.link_local)
        if (spec.mtu, spec.mac) != (found.mtu, found.mac):
            kernel.set_link(name, mtu=spec.mtu, mac=spec.mac)
        if spec.bridge != found.bridge:
            kernel.set_master(name, spec.bridge)
        flags = {nla: int(getattr(spec, f)) for f, nla in PORT_FIELDS.items()}
        there = {nla: int(getattr(found, f)) for f, nla in PORT_FIELDS.items()}
        if spec.bridge and (spec.bridge, flags) != (found.bridge, there):
            kernel.set_port(name, flags)
        have = set(found.addresses)
        if found.up and not spec.up:
            kernel.set_up(name, False)
            have = {address for address in have if ":" not in address}  # the others went with it
        kernel.set_addresses(name, have, spec.addresses)
        if spec.up and not found.up:
            kernel.set_up(name, True)

    def explained(self, names: Iterable[str]) -> Explained:
        """Within it, what this kernel was built without is said in words that help."""
        return Explained(self, [fields.json_name(name) for name in sorted(names)])

    def delete(self, kernel: Kernel, name: str, mark: str) -> None:
        kernel.delete_link(name)

    def put_back(self, kernel: Kernel, name: str, image: Mapping[str, Any], *, exactly: bool) -> list[str]:
        index = kernel.index_of[name]
        for port in image["ports"]:
            # Ports of ours that were removed too come back by their own spec.
            if port in kernel.links and not kernel.links[port].master:
                kernel.set_master(port, name)
        if exactly:
            # The first address of a subnet is the one that packets are sent from.
            kernel.order_addresses(name, image["addresses"])
        return [f"{name}: {refusal}" for refusal in kernel.add_routes(image["routes"], image["index"], index)]


def _join_bridge(name: str, bridge: str) -> list[str]:
    words = ["ip", "link", "set", "dev", name, "master"]
    if not bridge.startswith(DOCKER):
        return [*words, bridge]
    # Docker names it by the network's id unless it was told a name.
    form = '{{or (index .Options "com.docker.network.bridge.name") (printf "br-%.12s" .Id)}}'
    asked = f"$(docker network inspect --format '{form}' {bridge[len(DOCKER) :]})"
    return ["sh", "-c", f'{" ".join(words)} "{asked}"']


def wrong_underlay(kernel: Kernel, spec: Any, wanted: Document, overhead: int) -> list[str]:
    """Why the tunnel cannot go over the underlay as this host has it: no such device, no such address of its
    own, or no room for a packet with what encapsulation adds."""
    out: list[str] = []
    device = getattr(spec, "device", None)
    lower = _lower_device(kernel, wanted, device) if device else None
    if device and lower is None:
        out.append(f"device {device!r} is not on this host; name the underlay's NIC in underlay.device")
    holder = _holder(kernel, wanted, spec.local)
    if holder is None:
        out.append(
            f"local {spec.local!r} is not an address of this host; set hosts.{wanted.host}.underlay.local "
            f"(behind NAT it differs from the address that peers send to)"
        )
    lower = lower if device else holder
    need = spec.mtu + overhead
    if lower and lower.name != "lo" and lower.mtu < need:
        out.append(
            f"mtu {spec.mtu} needs an underlay of {need}, but {lower.name} has {lower.mtu}; set "
            f"hosts.{wanted.host}.mtu: {lower.mtu}"
        )
    return out


def wrong_ends(spec: Any, version: int | None = None) -> list[str]:
    """What contradicts itself in the two addresses of a tunnel to one peer; `version`: the IP version it takes."""
    local, remote = ipaddress.ip_address(spec.local), ipaddress.ip_address(spec.remote)
    if version and local.version != version:
        return [f"local: {spec.local!r} is not an IPv{version} address; {spec.KIND} takes no other"]
    if remote.version != local.version:
        return [f"remote: {spec.remote!r} is not IPv{local.version} like local {spec.local!r}"]
    if local == remote:
        return [f"remote: {spec.remote!r} is this host's own address (local)"]
    return [
        f"{end}: {str(address)!r} is not the address of one host"
        for end, address in {"local": local, "remote": remote}.items()
        if address.is_multicast or address.is_unspecified
    ]


def own_addresses(kernel: Kernel, link: Link) -> list[str]:
    """The device's addresses without those that float between hosts, which come and go by themselves, and without
    those that a NIC handed to its bridge, which are the host's."""
    if link.kind == "bridge":
        from overlay_agent import uplinks  # noqa: PLC0415 - of few documents

        if uplinks.of_bridge(link.name):
            return []
    floats: set[tuple[str, str]] = set()
    if os.path.isdir(SERVICES_FOLDER):
        from overlay_agent.kinds.vrrp import floating  # noqa: PLC0415 - it is built upon this module, and costs 3 ms

        floats = floating()
    return [address for address in kernel.addresses(link) if (link.name, address) not in floats]


@dataclasses.dataclass(frozen=True)
class _Lower:
    """A device that carries a tunnel's packets."""

    name: str
    mtu: int


def _lower_device(kernel: Kernel, wanted: Document, name: str) -> _Lower | None:
    """The device as it is once the document is true: this host's, or one that the document has."""
    if name in wanted.devices:
        return _Lower(name, wanted.devices[name].mtu)
    link = kernel.links.get(name)
    return _Lower(name, link.mtu) if link else None


def _holder(kernel: Kernel, wanted: Document, address: str) -> _Lower | None:
    """The device that has the address once the document is true."""
    ip = ipaddress.ip_address(address)
    for name, spec in wanted.devices.items():
        if any(ipaddress.ip_interface(one).ip == ip for one in spec.addresses):
            return _Lower(name, spec.mtu)
    link = kernel.device_with(address)
    return _Lower(link.name, link.mtu) if link else None


class Explained:
    """Adds to "not supported" what is missing, and what to do."""

    def __init__(self, kind: DeviceKind, names: list[str]) -> None:
        self._kind, self._names = kind, names

    def __enter__(self) -> None:
        pass

    def __exit__(self, type_: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, KernelError) or error.code != errno.EOPNOTSUPP:
            return
        kind = self._kind
        if error.sentence == "Unknown device type":
            hint = (
                f"; this kernel has no {kind.name}: load its module (modprobe {kind.modules[0]}; on some clouds it "
                f"is in the package linux-modules-extra), or boot a kernel built with {kind.option}"
            )
        else:
            words = ", ".join(self._names) or "one of its attributes"
            hint = f"; this kernel was built without {words}: leave it out, or boot another kernel"
        raise KernelError(error.what, error.code, error.sentence, hint) from None


__all__ = [
    "DEVICES", "MTU_LEAST", "PORT_FIELDS", "RECREATE", "SERVICES", "SET",
    "Device", "DeviceKind", "Kind", "Listens", "Passes", "Spec", "attribute", "optional",
    "wrong_ends", "wrong_underlay",
]  # fmt: skip
