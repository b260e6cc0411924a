"""From what stands on hosts that were set up by hand to the stack file that reproduces it. Pure.

Each host gives its own side alone (overlay_agent/survey.py). Here the sides are put together: which
devices are the ends of one tunnel, which bridges they join to one segment. What comes out is planned
at once, and the plan compared with what was found by the agent's own diff, so that what adopting it
would change is said here and not first by `pulumi up`. What a stack file cannot say is a note that
names the device, and its segment is left out: nothing of it is touched.
"""

from __future__ import annotations

import collections
import dataclasses
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from overlay_agent import fields
from overlay_agent.diff import diff, row_text
from overlay_agent.document import Owner
from overlay_agent.fields import json_name
from overlay_agent.kinds import KINDS, Device
from overlay_components import _found_dnsmasq, config
from overlay_components.config import TUNNELS, load_config
from overlay_components.errors import ConfigErrors, listed
from overlay_components.plan import Plan, make_plan

_TUNNELS = ("vxlan", "gretap", "ip6gretap", "l2tp")
#: Tunnels and the like that no stack file has, unless it makes them itself.
_OTHERS = ("wireguard", "geneve", "gre", "ip6gre", "ipip", "sit", "ip6tnl", "vti", "erspan", "macvlan", "openvswitch")
#: What the kernel makes in every namespace as soon as a module is there (fb_tunnels_only_for_init_net).
_FALLBACK = ("gre0", "gretap0", "erspan0", "ip6gre0", "ip6tnl0", "sit0", "tunl0", "ip_vti0", "ip6_vti0")
_ETHERNET = 1
#: Beginnings of the names that NICs get (systemd.net-naming-scheme(7), and the kernel's own).
_NICS = ("eth", "en", "wl", "bond", "team")
#: Bridges of programs that make them themselves.
_PROGRAMS = {"virbr": "libvirt's", "docker0": "Docker's"}
_UNDERLAY_MTU = 1500
_PAIR = 2


@dataclasses.dataclass(frozen=True)
class Host:
    """A host as it was reached, and what it said. `keys`: of `overlay:hosts.<name>`, such as user and port."""

    address: str
    survey: Mapping[str, Any]
    keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Imported:
    """What stands below `overlay:`, and what is not in it or would change, each a finished sentence."""

    raw: dict[str, Any]
    notes: list[str]

    def text(self, hosts: Iterable[str]) -> str:
        """The stack file."""
        lines = [
            "# yaml-language-server: $schema=../schema/overlay-stack.schema.json",
            f"# Written by `overlay import` from what was found on {' '.join(hosts)}.",
            "# `adopt` takes over what is there as it is; once that is done it may go.",
        ]
        lines += ["# Not as found, or not here:", *(f"# - {note}" for note in self.notes)] if self.notes else []
        values = {f"{config.NAMESPACE}:{key}": value for key, value in self.raw.items()}
        body = yaml.dump(
            {"config": values}, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True
        )
        return "\n".join(lines) + "\n" + body


class _Dumper(yaml.SafeDumper):
    """Without anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - of no value
        """Every value is written out."""
        return True


def imported(hosts: Sequence[Host], owner: Owner) -> Imported:
    """The stack file of that label."""
    return _Importer(hosts, owner).imported()


@dataclasses.dataclass(frozen=True)
class _End:
    """One tunnel device on one host."""

    host: str
    name: str
    spec: Any
    link: Mapping[str, Any]

    @property
    def node(self) -> tuple[str, str]:
        """The switch that it is plugged into: its bridge, or itself."""
        return self.host, self.link["master"] or self.name

    @property
    def remotes(self) -> list[str]:
        """Whom it sends to."""
        return list(self.spec.peers) if self.spec.KIND == "vxlan" else [self.spec.remote]

    @property
    def key(self) -> tuple[Any, ...]:
        """What both ends of a tunnel have in common."""
        spec, version = self.spec, ipaddress.ip_address(self.spec.local).version
        if spec.KIND == "vxlan":
            return "vxlan", version, spec.vni, spec.port, spec.group
        if spec.KIND == "l2tp":
            return "l2tp", version, spec.encap
        return "gretap", version, spec.key

    def mirrors(self, other: _End) -> bool:
        """Whether the numbers of one are the peer's numbers of the other."""
        if self.spec.KIND != "l2tp":
            return True
        pairs = (("tunnel_id", "peer_tunnel_id"), ("session_id", "peer_session_id"), ("local_port", "remote_port"))
        return all(
            getattr(a.spec, mine) == getattr(b.spec, theirs)
            for mine, theirs in pairs
            for a, b in ((self, other), (other, self))
        )


@dataclasses.dataclass
class _Tunnel:
    """The devices that are one tunnel, and the unmanaged ends of it."""

    ends: list[_End]
    peers: list[str]

    @property
    def kind(self) -> str:
        return "gretap" if self.ends[0].spec.KIND == "ip6gretap" else str(self.ends[0].spec.KIND)


class _Importer:
    def __init__(self, hosts: Sequence[Host], owner: Owner) -> None:
        self.owner = owner
        self.notes: list[str] = []
        self.hosts = self._named(hosts)
        self.links = {name: host.survey["links"] for name, host in self.hosts.items()}
        self.owner_of = self._addresses()
        self.peers: dict[str, str] = {}
        self.raw: dict[str, Any] = {}
        #: By segment: the devices of ours that reproduce what was found.
        self.devices: dict[str, list[tuple[str, str]]] = {}
        self.segments: dict[str, dict[str, Any]] = {}

    def imported(self) -> Imported:
        tunnels = self._tunnels()
        hosts = {name: self._host(name, tunnels) for name in self.hosts}
        for nodes, members in self._components(tunnels):
            self._segment(nodes, members)
        self._rest()
        self.raw = {**self._with_defaults(hosts)}
        if self.peers:
            self.raw["peers"] = {name: {"address": address} for address, name in self.peers.items()}
        self.raw["segments"] = self.segments
        self._fit()
        # They are comments, and lines on a terminal; hosts say what they like.
        notes = ("".join(c if c.isprintable() else "?" for c in note) for note in self.notes)
        return Imported(self.raw, list(dict.fromkeys(notes)))

    def _note(self, host: str, what: str, sentence: str) -> None:
        self.notes.append(f"{host} {what}: {sentence}")

    # -- hosts -------------------------------------------------------------------------------

    def _named(self, hosts: Sequence[Host]) -> dict[str, Host]:
        """By the name that the machine has, unless another has it too."""
        counted = collections.Counter(host.survey["name"].partition(".")[0] for host in hosts)
        out = {}
        for host in hosts:
            name = host.survey["name"].partition(".")[0]
            good = counted[name] == 1 and not fields.Label().check(name)
            out[name if good else f"host-{host.address.replace(':', '-')}"] = host
        return out

    def _addresses(self) -> dict[str, str]:
        """Whose an address is; one that several have, such as Docker's gateway, is nobody's."""
        seen: dict[str, set[str]] = collections.defaultdict(set)
        for name in self.hosts:
            for link in self.links[name].values():
                for address in link["addresses"]:
                    seen[address.partition("/")[0]].add(name)
        out = {address: next(iter(names)) for address, names in seen.items() if len(names) == 1}
        return {**out, **{str(ipaddress.ip_address(host.address)): name for name, host in self.hosts.items()}}

    def _host(self, name: str, tunnels: Sequence[_Tunnel]) -> dict[str, Any]:
        host, links = self.hosts[name], self.links[name]
        out: dict[str, Any] = {"address": host.address, **host.keys}
        mine = [end for one in tunnels for end in one.ends if end.host == name]
        others = [end for one in tunnels for end in one.ends if end.host != name]
        sent_to = collections.Counter(r for end in others for r in end.remotes if self.owner_of.get(r) == name)
        said = collections.Counter(e.spec.local for e in mine if not ipaddress.ip_address(e.spec.local).is_unspecified)
        address = next((a for a, _ in (sent_to or said).most_common(1)), host.address)
        own = {a.partition("/")[0] for link in links.values() for a in link["addresses"]}
        local = address if address in own else next((a for a, _ in said.most_common(1)), address)
        underlay: dict[str, Any] = {}
        if address != host.address:
            underlay["address"] = address
        if local != address:
            underlay["local"] = local
        devices = collections.Counter(e.spec.device for e in mine if getattr(e.spec, "device", None))
        if devices:
            underlay["device"] = devices.most_common(1)[0][0]
        if underlay:
            out["underlay"] = underlay
        holder = next((k for k, v in links.items() if any(a.partition("/")[0] == local for a in v["addresses"])), None)
        nic = underlay.get("device") or holder
        if nic in links and links[nic]["mtu"] != _UNDERLAY_MTU:
            out["mtu"] = links[nic]["mtu"]
        return out

    def _with_defaults(self, hosts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """What all hosts have in common stands once."""
        defaults: dict[str, Any] = {}
        rows = list(hosts.values())
        for key in ("user", "port", "proxy", "mtu"):
            values = [row.get(key) for row in rows]
            if values[0] is not None and all(value == values[0] for value in values):
                defaults[key] = values[0]
                for row in rows:
                    del row[key]
        nics = [row.get("underlay", {}).get("device") for row in rows]
        if nics[0] and all(nic == nics[0] for nic in nics):
            defaults["underlay"] = {"device": nics[0]}
            for row in rows:
                del row["underlay"]["device"]
                if not row["underlay"]:
                    del row["underlay"]
        return {**({"defaults": defaults} if defaults else {}), "hosts": dict(hosts)}

    # -- tunnels -----------------------------------------------------------------------------

    def _ends(self) -> Iterator[_End]:
        for host, links in self.links.items():
            for name, link in links.items():
                if link["kind"] not in _TUNNELS or name in _FALLBACK:
                    continue
                spec = fields.as_found(KINDS[link["kind"]].spec, link["spec"])
                if link.get("external") or getattr(spec, "others", None):
                    more = listed(getattr(spec, "others", None) or ["its ends come with each packet"])
                    self._note(host, name, f"has settings that no stack file has ({more}); left out")
                elif link["kind"] != "vxlan" and not spec.remote:
                    self._note(host, name, "sends to nobody; left out")
                else:
                    yield _End(host, name, spec, link)
                for entry in link.get("static", ()):
                    self._note(
                        host, name, f"its forwarding entry {entry} is nobody's; it stays as long as the device does"
                    )

    def _tunnels(self) -> list[_Tunnel]:
        """Which devices belong together: those that send to each other, with the same numbers."""
        by_key: dict[tuple[Any, ...], list[_End]] = collections.defaultdict(list)
        for end in self._ends():
            by_key[end.key].append(end)
        out = []
        for ends in by_key.values():
            left = list(ends)
            while left:
                group = [left.pop(0)]
                for one in group:  # grows
                    near = [other for other in left if self._joined(one, other)]
                    group += near
                    left = [other for other in left if other not in near]
                there = {end.host for end in group}
                peers = dict.fromkeys(r for end in group for r in end.remotes if self.owner_of.get(r) not in there)
                out.append(_Tunnel(group, list(peers)))
        return out

    def _joined(self, a: _End, b: _End) -> bool:
        if a.host == b.host:
            return False
        if a.spec.KIND == "vxlan" and a.spec.group:
            return True
        to_b = any(self.owner_of.get(remote) == b.host for remote in a.remotes)
        to_a = any(self.owner_of.get(remote) == a.host for remote in b.remotes)
        if a.spec.KIND == "vxlan":
            return to_a or to_b
        return to_a and to_b and a.mirrors(b)

    # -- segments ----------------------------------------------------------------------------

    def _components(self, tunnels: Sequence[_Tunnel]) -> list[tuple[list[tuple[str, str]], list[_Tunnel]]]:
        """The switches that tunnels join, and those tunnels; also bridges that stand alone."""
        groups: list[tuple[list[tuple[str, str]], list[_Tunnel]]] = []
        for one in tunnels:
            nodes = list(dict.fromkeys(end.node for end in one.ends))
            near = [group for group in groups if set(group[0]) & set(nodes)]
            groups = [group for group in groups if group not in near]
            all_nodes = dict.fromkeys([*(node for group in near for node in group[0]), *nodes])
            groups.append((list(all_nodes), [*(t for group in near for t in group[1]), one]))
        taken = {node for nodes, _ in groups for node in nodes}
        for host, links in self.links.items():
            for name, link in links.items():
                if link["kind"] != "bridge" or (host, name) in taken:
                    continue
                whose = self._whose(host, name)
                if whose == "":
                    groups.append(([(host, name)], []))
                else:
                    self._note(host, name, f"{whose} and no tunnel's; left out")
        return groups

    def _whose(self, host: str, name: str) -> str:
        """Whose the bridge is, in words; empty: of whoever typed it."""
        network = self._network(host, name)
        if network:
            return f"the bridge of Docker's network {network}"
        survey = self.hosts[host].survey
        if name in survey["lxd"]:
            return f"a bridge of {'LXD' if survey['lxd'][name] == 'lxd' else 'Incus'}"
        program = next((whose for start, whose in _PROGRAMS.items() if name.startswith(start)), None)
        nics = self._nics(host, name)
        return program or (f"a bridge with {listed(nics)} in it" if nics else "")

    def _network(self, host: str, name: str) -> str | None:
        networks = self.hosts[host].survey["docker"]
        return next((network for network, row in networks.items() if row["bridge"] == name), None)

    def _nics(self, host: str, bridge: str) -> list[str]:
        return [
            name
            for name, link in self.links[host].items()
            if link["master"] == bridge
            and (
                (link["kind"] in ("", "bond", "vlan", "team") and link["type"] == _ETHERNET) or name.startswith(_NICS)
            )
        ]

    def _segment(self, nodes: list[tuple[str, str]], tunnels: list[_Tunnel]) -> None:
        why = self._why_not(nodes, tunnels)
        if why:
            things = [f"{host} {name}" for host, name in nodes]
            devices = [(end.host, end.name) for one in tunnels for end in one.ends]
            things += [f"{host} {name}" for host, name in devices if (host, name) not in nodes]
            self.notes.append(f"{', '.join(things)}: {why}; left out")
            return
        hosts = [host for host, _ in nodes]
        on_bridge = self.links[nodes[0][0]][nodes[0][1]]["kind"] == "bridge"
        name = self._segment_name(nodes)
        segment: dict[str, Any] = {}
        if set(hosts) != set(self.hosts):
            segment["hosts"] = hosts
        attached = on_bridge and self._attach(nodes, segment)
        addresses = {host: self.links[host][node]["addresses"] for host, node in nodes}
        if not attached:
            self._subnets(name, segment, addresses)
            if on_bridge:
                self._bridge(name, nodes, segment)
            else:
                segment["bridge"] = "none"
        if tunnels:
            segment["tunnels"] = {}
        for number, one in enumerate(tunnels, 1):
            label = one.kind if len(tunnels) == 1 else f"{one.kind}{number}"
            segment["tunnels"][label] = self._tunnel(one, hosts)
        devices = [(end.host, end.name) for one in tunnels for end in one.ends]
        devices += nodes if on_bridge and not attached else []
        owned = {self.links[host][device]["alias"] for host, device in devices}
        labels = (alias[len("overlay:") :].rpartition("/")[0] for alias in owned if alias.startswith("overlay:"))
        stacks = sorted(set(labels))
        if stacks:
            self.notes.append(
                f"segment {name}: belongs to stack {listed(stacks)} as it is; it is not adopted, only described"
            )
        elif devices:
            segment["adopt"] = True
        if on_bridge and not attached:
            for host, node in nodes:
                self._dhcp(name, host, node, segment)
        self._nat_notes(nodes, segment)
        self.devices[name] = devices
        self.segments[name] = segment

    def _why_not(self, nodes: Sequence[tuple[str, str]], tunnels: Sequence[_Tunnel]) -> str:  # noqa: PLR0911 - one each
        """Why no stack file can say it, with what to do; empty: one can."""
        hosts = [host for host, _ in nodes]
        twice = [host for host in hosts if hosts.count(host) > 1]
        if twice:
            return f"tunnels join two switches of {twice[0]} to one network; a segment has one bridge on a host"
        kinds = {self.links[host][name]["kind"] == "bridge" for host, name in nodes}
        if len(kinds) > 1:
            return "some ends are ports of a bridge and some have addresses themselves; give all of them a bridge"
        if kinds == {False} and len(tunnels) != 1:
            return "several tunnels without a bridge; put them into one"
        names_ = {self._network(host, name) or name for host, name in nodes}
        if kinds == {True} and (len(names_) > 1 or len({bool(self._network(*node)) for node in nodes}) > 1):
            return "the bridge has another name on each host, and a segment's has one; give it one name"
        if names_ & {"bridge", "docker0"}:
            return "containers on docker0 cannot choose their address; take a network of your own"
        edges = sum(len({end.host for end in one.ends}) - 1 for one in tunnels)
        stp = all(self.links[host][name].get("spec", {}).get("stp") for host, name in nodes)
        if edges >= len(nodes) > 1 and not stp:
            return (
                "the tunnels form rings, and something else, such as ebtables, keeps them from looping; one VXLAN mesh "
                "joins all of them (topology: mesh): remove these devices, and write it"
            )
        for one in tunnels:
            different = {end.name for end in one.ends}
            if len(different) > 1:
                return f"one tunnel has {len(different)} names, and a stack file gives it one; give it one name"
            if one.kind != "vxlan" and len(one.ends) + len(one.peers) != _PAIR:
                return "more than two ends send to one"
        return ""

    def _segment_name(self, nodes: Sequence[tuple[str, str]]) -> str:
        host, node = nodes[0]
        base = self._network(host, node) or node.removeprefix("br-")
        if base in self.segments:
            base = f"{base}-{host}"
        while base in self.segments:
            base += "-2"
        return base

    def _attach(self, nodes: Sequence[tuple[str, str]], segment: dict[str, Any]) -> bool:
        """Whether the bridge is somebody else's, and so stays."""
        host, node = nodes[0]
        network, owner = self._network(host, node), self.hosts[host].survey["lxd"].get(node)
        if not any(self._whose(*one) for one in nodes):
            return False
        if network:
            segment["bridge"] = {"attach": {"docker": network}}
            rows = [self.hosts[host].survey["docker"][self._network(host, name) or ""] for host, name in nodes]
            segment["subnets"] = list(dict.fromkeys(subnet for row in rows for subnet in row["subnets"]))
            gateways = {gateway for row in rows for gateway in row["subnets"].values() if gateway}
            usual = {str(net[1]) for net in map(ipaddress.ip_network, segment["subnets"])}
            if len(gateways) == 1 and not gateways <= usual:
                segment["gateway"] = next(iter(gateways))
            self._docker_containers(nodes, segment)
        else:
            segment["bridge"] = {"attach": {"lxd" if owner else "bridge": node}}
            for host_, name in nodes:
                whose = self._whose(host_, name)
                self._note(host_, name, f"{whose}; it stays its owner's, and only tunnels are taken over")
        return True

    def _docker_containers(self, nodes: Sequence[tuple[str, str]], segment: dict[str, Any]) -> None:
        containers: dict[str, Any] = {}
        for host, node in nodes:
            network = self._network(host, node) or ""
            for name, row in self.hosts[host].survey["docker"][network]["containers"].items():
                if name in containers or any(name in one.get("containers", ()) for one in self.segments.values()):
                    self._note(host, name, "another container has that name too, so it is not in the IP plan")
                    continue
                containers[name] = {"host": host, "address": row["address"], "mac": row["mac"], "runtime": "docker"}
        if containers:
            segment["containers"] = containers

    def _subnets(self, name: str, segment: dict[str, Any], addresses: Mapping[str, Sequence[str]]) -> None:
        seen: dict[str, str] = {}
        nets: dict[str, None] = {}
        out: dict[str, Any] = {}
        for host, texts in addresses.items():
            kept = []
            for text in texts:
                interface = ipaddress.ip_interface(text)
                if interface.network.num_addresses <= 1:
                    self._note(host, name, f"{text} is in no subnet; left out, and so removed by adopting it")
                elif seen.setdefault(str(interface.ip), host) != host:
                    self._note(host, name, f"{text} is {seen[str(interface.ip)]}'s too; left out, and so removed")
                else:
                    nets[str(interface.network)] = None
                    kept.append(str(interface))
            if kept:
                out[host] = kept[0] if len(kept) == 1 else kept
        if nets:
            segment["subnets"] = list(nets)
            segment["addresses"] = out

    def _bridge(self, name: str, nodes: Sequence[tuple[str, str]], segment: dict[str, Any]) -> None:
        specs = {host: fields.as_found(KINDS["bridge"].spec, self.links[host][node]["spec"]) for host, node in nodes}
        # No key says these: once taken over, a deprecated address is one like others.
        options = self._options(f"segment {name}", specs, ["deprecated", "hello_time", "max_age"])
        own = nodes[0][1]
        if own != f"br-{name}":
            options = {"name": own, **options}
        if options:
            segment["bridge"] = options
        for host, node in nodes:
            times = [key for key in ("helloTime", "maxAge") if key in self.links[host][node]["spec"]]
            if specs[host].stp and times:
                self._note(host, node, f"{' and '.join(times)} is in no stack file (hubs sets it); it becomes as usual")
            if self.links[host][node]["spec"].get("vlanFiltering"):
                self._note(host, node, "which VLANs its ports have is in no stack file; they stay as they are")

    def _options(self, what: str, specs: Mapping[str, Any], leave_out: Sequence[str]) -> dict[str, Any]:
        """The attributes that are not as usual; of what differs between hosts the first's."""
        common = {f.name for f in dataclasses.fields(Device)}
        out: dict[str, Any] = {}
        first = next(iter(specs.values()))
        for field in dataclasses.fields(first):
            if field.name in common or field.name in leave_out:
                continue
            values = {host: getattr(spec, field.name) for host, spec in specs.items()}
            value = next(iter(values.values()))
            if any(one != value for one in values.values()):
                told = listed(f"{host} {one}" for host, one in values.items())
                self.notes.append(f"{what}: {json_name(field.name)} differs ({told}), and a stack file has one of it")
            if value != fields.default_of(field):
                out[json_name(field.name)] = value
        return out

    # -- a tunnel's keys ---------------------------------------------------------------------

    def _tunnel(self, one: _Tunnel, hosts: Sequence[str]) -> dict[str, Any]:
        specs = {end.host: end.spec for end in one.ends}
        what = f"tunnel {one.ends[0].name}"
        out: dict[str, Any] = {"kind": one.kind}
        first = one.ends[0].spec
        there = [end.host for end in one.ends]
        ends = [*there, *(self._peer(address) for address in one.peers)]
        if one.kind == "vxlan":
            out["vni"] = first.vni
            if first.group:
                out["topology"] = "multicast"
            leave_out = ["vni", "local", "device", "peers"]
        elif one.kind == "gretap":
            leave_out = ["local", "remote", "device", "others"]
            out["topology"] = "pairs"
        else:
            leave_out = ["local", "remote", "tunnel_id", "peer_tunnel_id", "session_id", "peer_session_id",
                         "local_port", "remote_port", "cookie", "peer_cookie"]  # fmt: skip
            out["topology"] = "pairs"
            out.update(self._numbers(one, ends))
        options = self._options(what, specs, leave_out)
        # Of some the key's default is another one than the kernel's.
        model = TUNNELS[one.kind].options.model_fields
        defaults = {field.alias or key: field.default for key, field in model.items()}
        for key in {field for field in ("ttl",) if field in defaults and field not in options}:
            if getattr(first, key) != defaults[key]:
                options[key] = getattr(first, key)
        out.update(options)
        if set(ends) != set(hosts) or (one.kind != "vxlan" and len(hosts) > _PAIR):
            out["endpoints"] = ends
        out["ifname"] = one.ends[0].name
        for end in one.ends:
            if one.kind == "vxlan" and not end.spec.learning and end.spec.neigh_suppress:
                why = "BGP tells it of its peers, it seems; write topology: evpn, and overlay:evpn"
                self._note(end.host, end.name, why)
                continue
            for field in ("neigh_suppress", "port_learning"):
                if getattr(end.spec, field) != (field == "port_learning"):
                    what = json_name(field)
                    self._note(end.host, end.name, f"{what} is in no stack file; adopting it sets the usual")
        return out

    def _numbers(self, one: _Tunnel, ends: Sequence[str]) -> dict[str, Any]:
        """Both ends' numbers; of one that is not managed as the other knows them."""
        out: dict[str, Any] = {"tunnelIds": {}, "sessionIds": {}, "ports": {}}
        rows = {
            "tunnelIds": ("tunnel_id", "peer_tunnel_id"),
            "sessionIds": ("session_id", "peer_session_id"),
            "ports": ("local_port", "remote_port"),
        }
        for end in one.ends:
            other = next(name for name in ends if name != end.host)
            for key, (mine, theirs) in rows.items():
                out[key].setdefault(other, getattr(end.spec, theirs))
                out[key][end.host] = getattr(end.spec, mine)
            if end.link["spec"].get("cookie") or end.link["spec"].get("peerCookie"):
                self._note(
                    end.host, end.name, "has a cookie, which is secret and not read: set it with pulumi config set "
                    "--path --secret, see docs/stack-file.md"
                )  # fmt: skip
        if one.ends[0].spec.encap == "ip":
            del out["ports"]
        return out

    def _peer(self, address: str) -> str:
        """The name of an end that is none of the hosts."""
        owner = self.owner_of.get(address)
        return self.peers.setdefault(address, f"peer-{address.replace(':', '-')}" if owner is None else f"{owner}-peer")

    # -- services ----------------------------------------------------------------------------

    def _dhcp(self, name: str, host: str, node: str, segment: dict[str, Any]) -> None:
        found = _found_dnsmasq.serving(self.hosts[host].survey["dnsmasq"], node, self.links[host][node]["addresses"])
        for process in found:
            if "dhcp" in segment:
                self._note(host, node, f"a second dnsmasq (pid {process['pid']}) serves segment {name}; not imported")
                continue
            dhcp, notes = _found_dnsmasq.keys(process, segment.get("subnets", ()), self.links[host][node]["addresses"])
            said = {key: dhcp.pop(key) for key in ("gateway",) if key in dhcp}
            segment["dhcp"] = {"host": host, **dhcp}
            masquerades = self._masquerades(host, segment.get("subnets", ()))
            if masquerades:
                segment["dhcp"]["masquerade"] = True
            # dnsmasq names itself as router unless it is told otherwise; ours only where it translates.
            gateway = said.get("gateway") or (None if masquerades else host)
            if gateway:
                segment["gateway"] = gateway
            words = " ".join(process["words"])
            notes.append(
                f"dnsmasq (pid {process['pid']}: {words}) serves it until now; end it before `pulumi up`, which "
                "starts its own"
            )
            self.notes += [f"{host} {node}: {note}" for note in notes]

    def _masquerades(self, host: str, subnets: Iterable[str]) -> list[str]:
        words = [f" {word} {net} " for net in subnets for word in ("-s", "saddr")]
        rules = [rule for rule in self.hosts[host].survey["nat"] if "masquerade" in rule.lower()]
        return [rule for rule in rules if any(word in rule for word in words)]

    def _nat_notes(self, nodes: Sequence[tuple[str, str]], segment: dict[str, Any]) -> None:
        if (segment.get("bridge") or {}) != "none" and "attach" in (segment.get("bridge") or {}):
            return  # its owner's
        nets = [ipaddress.ip_network(subnet) for subnet in segment.get("subnets", ())]
        for host, node in nodes:
            ours = self._masquerades(host, segment.get("subnets", ()))
            for rule in self.hosts[host].survey["nat"]:
                if re.match(r"nft table \S+ overlay", rule):
                    continue  # a stack's own
                about = rule in ours or any(_inside(word, nets) for word in rule.split())
                if not about:
                    continue
                taken = rule in ours and segment.get("dhcp", {}).get("masquerade")
                way = "dhcp.masquerade does it from now on, and the rule may go" if taken else (
                    "it is not in the stack file and stays; dhcp.masquerade, forwards or publicAddresses say such"
                )  # fmt: skip
                self._note(host, node, f"{rule}: {way}")

    def _rest(self) -> None:
        """What else there is and no stack file makes of itself."""
        for host, links in self.links.items():
            for name, link in links.items():
                if link["kind"] in _OTHERS and name not in _FALLBACK:
                    more = "; encryption: wireguard makes one of its own" if link["kind"] == "wireguard" else ""
                    self._note(host, name, f"a device of kind {link['kind']}, which is not imported{more}")

    # -- the plan, and what was found --------------------------------------------------------

    def _fit(self) -> None:
        """Gives hosts the MAC addresses and segments the MTU that were found, and notes what differs still."""
        plan = self._plan()
        if plan is None:
            return
        for name, segment in self.segments.items():
            sizes = [self.links[host][device]["mtu"] for host, device in self.devices[name]]
            if sizes and min(sizes) < plan.segments[name]["mtu"]:
                segment["mtu"] = min(sizes)
        for name in self.segments:
            for host, device in self.devices[name]:
                planned, link = plan.devices[host].get(device), self.links[host][device]
                if planned is not None and planned.mac != link["mac"]:
                    self.raw["hosts"][host].setdefault("macs", {})[device] = link["mac"]
        plan = self._plan()
        if plan is None:
            return
        for name in self.segments:
            for host, device in self.devices[name]:
                self._compare(host, device, plan.devices[host].get(device))

    def _compare(self, host: str, device: str, planned: Any) -> None:
        found = fields.as_found(KINDS[self.links[host][device]["kind"]].spec, self.links[host][device]["spec"])
        if planned is None:
            self._note(host, device, "is named otherwise by the plan; it stays, and another is made")
            return
        if planned.bridge and planned.bridge.startswith(fields.DOCKER):
            planned = dataclasses.replace(planned, bridge=found.bridge)
        if planned.KIND == "l2tp":
            planned = dataclasses.replace(planned, cookie=found.cookie, peer_cookie=found.peer_cookie)
        changes = diff({device: planned}, {device: found})
        # Whether it has a link-local address of its own making is nobody's concern.
        rows = [row for change in changes for row in change.rows if row[0] != "linkLocal"]
        tail = " (made anew)" if any(change.action == fields.RECREATE for change in changes) else ""
        if rows:
            self._note(host, device, f"{', '.join(map(row_text, rows))}{tail}")

    def _plan(self) -> Plan | None:
        try:
            return make_plan(load_config(self.raw), self.owner)
        except ConfigErrors as error:
            self.notes += [f"to be mended here before it can be used: {sentence}" for sentence in error.errors]
            return None


def _inside(word: str, nets: Iterable[Any]) -> bool:
    try:
        address = ipaddress.ip_interface(word.partition(":")[0] if word.count(":") == 1 else word).ip
    except ValueError:
        return False
    return any(address in net for net in nets)

