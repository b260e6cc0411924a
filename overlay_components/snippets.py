"""What to paste for a container: its network as its runtime's own tools want it written.

Pure text from rows of the IP plan. Each form has what its tool documents and nothing else; the
sources stand at the functions. Where a tool has no place for a value, a comment says it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

from overlay_agent.fields import DOCKER
from overlay_components import errors, names
from overlay_components.errors import ConfigErrors

if TYPE_CHECKING:
    from overlay_components.plan import ContainerRow, SegmentRow

#: Stands for a bridge whose name only Docker knows, as IMAGE does for the image.
_UNNAMED = "BRIDGE"
#: RFC 1123, and the underscore that resolvers take too.
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9])?")


@dataclasses.dataclass(frozen=True)
class Nic:
    """One network interface of a container."""

    number: int
    row: ContainerRow
    #: The segment's subnets.
    subnets: tuple[str, ...]
    #: What the container routes through by this interface; None where another one does, or it is the gateway itself.
    gateway: str | None
    #: Whether the segment's DHCP router gives it its address.
    dhcp: bool = False

    @property
    def name(self) -> str:
        """Its name within the container."""
        return f"eth{self.number}"

    @property
    def version(self) -> int:
        """Its address' IP version; 4 where none is known."""
        address = self.row["address"]
        return ipaddress.ip_interface(address).version if address and names.known(address) else 4

    @property
    def ip(self) -> str:
        """Its address without the prefix length."""
        return (self.row["address"] or "").partition("/")[0]

    @property
    def network(self) -> str:
        """The Docker network's name: the bridge's, where it is this stack's and the network is yet to be made."""
        return self.row.get("network", self.row["bridge"])

    @property
    def bridge(self) -> str:
        """The bridge's name on its host, or what stands for it."""
        return _UNNAMED if self.row["bridge"].startswith(DOCKER) else self.row["bridge"]

    @property
    def hint(self) -> list[str]:
        """How to find the bridge's name, where it is not known."""
        if self.bridge == self.row["bridge"]:
            return []
        form = '{{or (index .Options "com.docker.network.bridge.name") (printf "br-%.12s" .Id)}}'
        words = ["docker", "network", "inspect", "--format", form, self.network]
        return [f"For {_UNNAMED} write what this prints on {self.row['host']}: {shlex.join(words)}"]

    @property
    def facts(self) -> str:
        """All of it in one line, for comments."""
        row = self.row
        more = [f"address {row['address']}"] if row["address"] else []
        more += [f"gateway {self.gateway}"] if self.gateway else []
        return ", ".join(
            [
                f"{row['name']} on {row['segment']}: bridge {row['bridge']}",
                f"MAC {row['mac']}",
                f"MTU {row['mtu']}",
                *more,
            ]
        )


def in_order(
    containers: Mapping[str, Mapping[str, ContainerRow]],
) -> list[tuple[str, Mapping[str, ContainerRow]]]:
    """The segments by name: the file's order does not reach a program, as Pulumi sorts the keys of objects."""
    return sorted(containers.items())


def nics(
    name: str, containers: Mapping[str, Mapping[str, ContainerRow]], segments: Mapping[str, SegmentRow]
) -> list[Nic]:
    """The container's network interfaces, in the order of its segments' names. Of several gateways of one IP version it
    takes the first: a machine has one default route."""
    out: list[Nic] = []
    routed: set[int] = set()
    for segment, rows in in_order(containers):
        if name not in rows:
            continue
        row = rows[name]
        served = "dhcp" in segments[segment] and row["address"] is not None
        nic = Nic(len(out), row, tuple(segments[segment]["subnets"]), row["gateway"], served)
        if nic.gateway == nic.ip or nic.version in routed or not row["address"]:
            nic = dataclasses.replace(nic, gateway=None)
        if nic.gateway:
            routed.add(nic.version)
        out.append(nic)
    return out


# -- runtimes ----------------------------------------------------------------------------------


def lxc(wanted: Sequence[Nic]) -> list[str]:
    """For the container's `config`, LXC 2.1 and later: lxc.container.conf(5), NETWORK."""
    return [line for nic in wanted for line in _lxc(nic, f"lxc.net.{nic.number}", ".address")]


def lxc1(wanted: Sequence[Nic]) -> list[str]:
    """The same for LXC 1 and 2.0, where each `type` begins another interface: lxc.container.conf(5) of 1.0."""
    return ["# LXC 1.x and 2.0 only", *(line for nic in wanted for line in _lxc(nic, "lxc.network", ""))]


def _lxc(nic: Nic, key: str, address: str) -> list[str]:
    row = nic.row
    lines = {
        "type": "veth",
        "link": nic.bridge,
        "name": nic.name,
        "hwaddr": row["mac"],
        "mtu": row["mtu"],
        "flags": "up",
    }
    if row["address"]:
        lines[f"ipv{nic.version}{address}"] = row["address"]
    if nic.gateway:
        lines[f"ipv{nic.version}.gateway"] = nic.gateway
    return [
        f"# {nic.facts}",
        *(f"# {line}" for line in nic.hint),
        *(f"{key}.{part} = {value}" for part, value in lines.items()),
    ]


def lxd(wanted: Sequence[Nic]) -> list[str]:
    """LXD's commands and the same as YAML: "Type: nic", nictype bridged, in its reference."""
    return _devices("lxc", wanted)


def incus(wanted: Sequence[Nic]) -> list[str]:
    """Incus' commands and the same as YAML: "Type: nic", nictype bridged, in its reference."""
    return _devices("incus", wanted)


def _devices(command: str, wanted: Sequence[Nic]) -> list[str]:
    out: list[str] = []
    devices: dict[str, dict[str, str]] = {}
    for nic in wanted:
        row = nic.row
        values = {
            "nictype": "bridged",
            "parent": nic.bridge,
            "name": nic.name,
            "hwaddr": row["mac"],
            "mtu": str(row["mtu"]),
        }
        devices[nic.name] = {"type": "nic", **values}
        words = [f"{key}={value}" for key, value in values.items()]
        out += [
            f"# {nic.facts}",
            *(f"# {line}" for line in nic.hint),
            shlex.join([command, "config", "device", "add", row["name"], nic.name, "nic", *words]),
        ]
    # With a bridge that is not its own it has no DHCP to give ipv4.address by.
    if all(nic.dhcp for nic in wanted):
        out.append("# DHCP gives it address, gateway, MTU and name servers.")
    else:
        out.append("# The address and the gateway are set within it: overlay snippet --for netplan or ifupdown.")
    out.append(f"# The same as YAML, for {command} config edit {shlex.quote(_name(wanted))}:")
    return [*out, *_yaml({"devices": devices})]


def docker(wanted: Sequence[Nic]) -> list[str]:
    """The network, once a host, and the container: docker-network-create(1), docker-run(1)."""
    out: list[str] = []
    for nic in wanted:
        out += [f"# {nic.facts}", *_docker_network(nic)]
    words = ["docker", "run", "--detach", "--name", _name(wanted)]
    if len(wanted) == 1:
        [nic] = wanted
        words += ["--network", nic.network]
        words += [{4: "--ip", 6: "--ip6"}[nic.version], nic.ip] if nic.ip else []
        words += ["--mac-address", nic.row["mac"]]
    else:
        out.append("# Several networks in one command need Docker 25 or later.")
        for nic in wanted:
            address = f",{ {4: 'ip', 6: 'ip6'}[nic.version] }={nic.ip}" if nic.ip else ""
            words += ["--network", f"name={nic.network}{address},mac-address={nic.row['mac']}"]
    return [*out, f"{shlex.join(words)} IMAGE"]


def _docker_network(nic: Nic) -> list[str]:
    row = nic.row
    if "network" in row:
        return []
    own = [net for net in nic.subnets if ipaddress.ip_network(net).version == 4]
    if nic.version != 4 or not own or not row["gateway"]:
        what = f"named {row['bridge']}, with the segment's subnet and a gateway of its own, on bridge {row['bridge']}"
        return [f"# It needs a Docker network {what}."]
    options = {
        "bridge.name": row["bridge"],
        # The bridge's addresses are the stack's, not Docker's.
        "bridge.inhibit_ipv4": "true",
        "driver.mtu": row["mtu"],
    }
    words = ["docker", "network", "create", "--driver", "bridge"]
    words += ["--subnet", _subnet_of(row["address"], own), "--gateway", row["gateway"]]
    words += [word for key, value in options.items() for word in ("--opt", f"com.docker.network.{key}={value}")]
    return ["# Once on each host:", shlex.join([*words, row["bridge"]])]


def _subnet_of(address: str | None, subnets: Sequence[str]) -> str:
    if address and names.known(address):
        return str(ipaddress.ip_interface(address).network)
    return subnets[0]


def compose(wanted: Sequence[Nic]) -> list[str]:
    """A fragment of compose.yaml: the Compose file reference, services.networks."""
    service: dict[str, Any] = {}
    for nic in wanted:
        address = {f"ipv{nic.version}_address": nic.ip} if nic.ip else {}
        service[nic.network] = {**address, "mac_address": nic.row["mac"]}
    networks = {nic.network: {"external": True} for nic in wanted}
    to_make = any("network" not in nic.row for nic in wanted)
    return [
        *(f"# {nic.facts}" for nic in wanted),
        "# Docker 25 and Compose 2.24, or later"
        + ("; the networks are made first: overlay snippet --for docker." if to_make else "."),
        *_yaml({"services": {_name(wanted): {"networks": service}}, "networks": networks}),
    ]


def libvirt(wanted: Sequence[Nic]) -> list[str]:
    """For <devices> of a virtual machine: libvirt's domain XML, "Bridge to LAN" and "MTU configuration"."""
    out: list[str] = []
    for nic in wanted:
        row = nic.row
        # Two hyphens would end the comment.
        out += [
            *(f"<!-- {re.sub('-(?=-)', '- ', line)} -->" for line in (nic.facts, *nic.hint)),
            "<interface type='bridge'>",
            f"  <mac address={quoteattr(row['mac'])}/>",
            f"  <source bridge={quoteattr(nic.bridge)}/>",
            "  <model type='virtio'/>",
            f"  <mtu size={quoteattr(str(row['mtu']))}/>",
            "</interface>",
        ]
    return out


# -- within the container ----------------------------------------------------------------------


def ifupdown(wanted: Sequence[Nic]) -> list[str]:
    """For /etc/network/interfaces within the container: interfaces(5)."""
    out: list[str] = []
    for nic in wanted:
        family = "inet6" if nic.version == 6 else "inet"
        method = "static" if nic.row["address"] else "manual"
        out += [f"# {nic.facts}", f"auto {nic.name}", f"iface {nic.name} {family} {method}"]
        out += [f"    address {nic.row['address']}"] if nic.row["address"] else []
        out += [f"    gateway {nic.gateway}"] if nic.gateway else []
        out += [f"    mtu {nic.row['mtu']}"]
    return out


def netplan(wanted: Sequence[Nic]) -> list[str]:
    """For a file in /etc/netplan within the container: Netplan's YAML reference."""
    ethernets: dict[str, dict[str, Any]] = {}
    for nic in wanted:
        values: dict[str, Any] = {"dhcp4": False, "dhcp6": False, "mtu": nic.row["mtu"]}
        if nic.row["address"]:
            values["addresses"] = [nic.row["address"]]
        if nic.gateway:
            # Spelt out: "default" is newer than some netplan that is in use.
            values["routes"] = [{"to": "::/0" if nic.version == 6 else "0.0.0.0/0", "via": nic.gateway}]
        ethernets[nic.name] = values
    return [
        *(f"# {nic.facts}" for nic in wanted),
        *_yaml({"network": {"version": 2, "ethernets": ethernets}}),
    ]


#: By what `--for` takes.
FORMS: dict[str, Callable[[Sequence[Nic]], list[str]]] = {
    "lxc": lxc,
    "lxc1": lxc1,
    "lxd": lxd,
    "incus": incus,
    "docker": docker,
    "compose": compose,
    "libvirt": libvirt,
    "ifupdown": ifupdown,
    "netplan": netplan,
}


def chosen(
    containers: Mapping[str, Mapping[str, ContainerRow]],
    segments: Mapping[str, SegmentRow],
    name: str,
    form: str | None,
) -> list[str]:
    """The container's snippet in that form, or in its runtime's own. Raises ConfigErrors."""
    wanted = nics(name, containers, segments)
    forms = ", ".join(FORMS)
    if form is not None and form not in FORMS:
        raise ConfigErrors([f"--for: {form!r} is none of {forms}; give one of these"])
    if not wanted:
        known = errors.instead(name, {other for rows in containers.values() for other in rows})
        raise ConfigErrors([f"CONTAINER: unknown container {name!r}; {known}"])
    form = form or wanted[0].row["runtime"]
    if form == "none":
        where = f"segments.{wanted[0].row['segment']}.containers.{name}.runtime"
        raise ConfigErrors([f"{where}: none; say --for with one of {forms}, or give it a runtime"])
    return FORMS[form](wanted)


# -- all containers ----------------------------------------------------------------------------


def hosts(containers: Mapping[str, Mapping[str, ContainerRow]]) -> list[str]:
    """Lines for /etc/hosts (hosts(5)): each container as NAME.SEGMENT, and as NAME by its first address."""
    out: list[str] = []
    named: set[str] = set()
    for segment, rows in in_order(containers):
        for name, row in rows.items():
            if not row["address"]:
                continue
            full = f"{name}.{segment}"
            aliases = [full] if name in named else [full, name]
            named.add(name)
            if all(_HOST_NAME.fullmatch(alias) for alias in aliases):
                out.append(f"{row['address'].partition('/')[0]}\t{' '.join(aliases)}")
            else:
                out.append(f"# {full}: no name for a host; left out")
    return out


def inventory(containers: Mapping[str, Mapping[str, ContainerRow]]) -> dict[str, Any]:
    """An Ansible inventory, in the shape of its YAML plugin, which reads JSON too: the containers, in a group for each
    segment (`segment_…`), host (`host_…`) and runtime (`runtime_…`)."""
    found: dict[str, dict[str, Any]] = {}
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for segment, rows in in_order(containers):
        for name, row in rows.items():
            values = found.setdefault(name, {"overlay": {"host": row["host"], "segments": {}}})
            if row["address"]:
                values.setdefault("ansible_host", row["address"].partition("/")[0])
            facts = {key: row[key] for key in ("address", "bridge", "gateway", "mac", "mtu")}
            values["overlay"]["segments"][segment] = facts
            for group in (("segment", segment), ("host", row["host"]), ("runtime", row["runtime"])):
                if group != ("runtime", "none"):
                    groups.setdefault(_group(*group), {})[name] = {}
    return {"all": {"hosts": found, "children": {group: {"hosts": members} for group, members in groups.items()}}}


def _group(what: str, name: str) -> str:
    """Group names are letters, digits and underscores; two names never become one."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return f"{what}_{plain}" if plain == name else f"{what}_{plain}_{names.number(0x10000, 0xFFFFF, name):x}"


def _name(wanted: Iterable[Nic]) -> str:
    return next(nic.row["name"] for nic in wanted)


def _yaml(value: Mapping[str, Any], indent: str = "") -> list[str]:
    """Block YAML; every text in quotes, so that no MAC address becomes a number."""
    out: list[str] = []
    for key, inner in value.items():
        word = key if re.fullmatch(r"[a-z][a-z0-9_-]*", key) and key not in _YAML_WORDS else json.dumps(key)
        if isinstance(inner, Mapping):
            out += [f"{indent}{word}:", *_yaml(inner, f"{indent}  ")]
        elif isinstance(inner, list):
            out.append(f"{indent}{word}:")
            for item in inner:
                lines = (
                    _yaml(item, f"{indent}    ") if isinstance(item, Mapping) else [f"{indent}    {json.dumps(item)}"]
                )
                out += [f"{indent}  - {lines[0].lstrip()}", *lines[1:]]
        else:
            out.append(f"{indent}{word}: {json.dumps(inner)}")
    return out


#: What YAML 1.1 takes for something other than text.
_YAML_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
