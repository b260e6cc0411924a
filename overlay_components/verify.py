"""What `overlay verify` asks of each host, and what the answers mean: pure, so that each meaning is a case in a test.

Each agent says what it found and judges nothing: why a pair fails often shows only in what both ends say.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from overlay_agent.kinds import KINDS, Device
from overlay_components import errors, evpn
from overlay_components.config import Config
from overlay_components.plan import Plan, SegmentRow

#: Of a DNS answer (RFC 1035, 4.1.1).
_NO_SUCH_NAME = 3
#: How much of a subnet is searched from its end for an address that nobody has.
_SEARCHED = 4096
#: A BGP session that is up (RFC 4271, 8.2.2).
_ESTABLISHED = "Established"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One host's way to another. `good` None: it was not asked."""

    good: bool | None
    #: ms, there and back.
    rtt: float | None = None
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """Without what is not known."""
        out = {"good": self.good, "rtt": self.rtt, "why": self.why}
        return {key: value for key, value in out.items() if key == "good" or value not in (None, "")}


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that a segment's router should do. `good` None: nobody could ask."""

    what: str
    good: bool | None
    says: str


@dataclasses.dataclass(frozen=True)
class Segment:
    """What was found out about one segment."""

    mtu: int
    hosts: list[str]
    cells: dict[str, dict[str, Cell]]
    checks: list[Check]

    def all(self) -> Iterator[tuple[str, str, Cell]]:
        """Every pair."""
        return ((a, b, cell) for a, row in self.cells.items() for b, cell in row.items())


class Verification:
    """One run over a plan: `requests`, then with who is ready `go`, then with what they found `result`."""

    def __init__(self, made: Plan, config: Config, nonce: str) -> None:
        self.made, self.nonce = made, nonce
        self.hosts = config.resolved_hosts()
        self.reserved = {name: segment.reserved for name, segment in config.segments.items()}
        self.numbers = {name: number for number, name in enumerate(self.hosts)}
        self.segments = dict(made.segments)
        #: By segment: whom its spokes talk through.
        self.hubs = {
            name: [hub for one in segment.tunnels.values() for hub in one.hubs or (one.hub,) if hub]
            for name, segment in config.segments.items()
        }
        self.tunnels = {
            (segment, host): self._tunnels(row, host) for segment, row in made.segments.items() for host in row["hosts"]
        }
        #: By segment: who asks the router's services; filled by `requests`.
        self.checks: dict[str, tuple[str, dict[str, Any]]] = {}
        self.unasked: dict[str, list[Check]] = {}

    def only(self, segments: Sequence[str]) -> None:
        """Leaves out the other segments."""
        self.segments = {name: self.segments[name] for name in segments}

    # -- asking ------------------------------------------------------------------------------

    def requests(self) -> dict[str, dict[str, Any]]:
        """By host: what its agent is asked first."""
        members = {host for row in self.segments.values() for host in row["hosts"] if host in self.hosts}
        return {host: self._request(host) for host in self.hosts if host in members}

    def go(self, ready: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """By host that is ready: who else is, by segment, and what to ask the router."""
        out: dict[str, dict[str, Any]] = {}
        up = {
            name: [h for h in row["hosts"] if h in ready and ready[h]["ready"][name]["state"] == "up"]
            for name, row in self.segments.items()
        }
        self.checks = {}
        self.unasked = {}
        for name in self.segments:
            # Whoever is cut off knows nothing of the router.
            tunnels = {h: ready[h]["ready"][name]["tunnels"].values() for h in up[name]}
            joined = [h for h in up[name] if all(one["state"] == "up" for one in tunnels[h])]
            self._choose_checks(name, joined)
        for host in ready:
            there = {name: [h for h in hosts if h != host] for name, hosts in up.items() if host in hosts}
            checks = {name: check for name, (by, check) in self.checks.items() if by == host}
            for name in there:
                gateways = self.gateways(name, host)
                if gateways and ":" not in gateways[0]:
                    # Of an anycast segment every host is the router, and asks nothing else.
                    checks[name] = {"source": None, "own": False, "gateway": gateways[0]}
            out[host] = {"there": there, "checks": checks}
        return out

    def _request(self, host: str) -> dict[str, Any]:
        mine = {name: row for name, row in self.segments.items() if host in row["hosts"]}
        sizes: dict[str, int] = {}
        for name, row in mine.items():
            for other in row["hosts"]:
                for _, spec, address in self.ways(name, host, other):
                    size = row["mtu"] + KINDS[spec.KIND].overhead(spec)
                    sizes[address] = max(size, sizes.get(address, 0))
        return {
            "host": host,
            "nonce": self.nonce,
            "numbers": self.numbers,
            "segments": {
                name: {
                    "number": list(self.made.segments).index(name),
                    "device": self.device(name, host),
                    "mtu": row["mtu"],
                    "tunnels": sorted(self.tunnels[name, host]),
                    **({"anycast": True} if "anycast" in row else {}),
                }
                for name, row in mine.items()
            },
            "underlay": sizes,
            "docker": sorted(self._docker(host)),
            "evpn": evpn.NAME in self.made.documents.get(host, {}).get("services", {}),
        }

    def gateways(self, segment: str, host: str) -> list[str]:
        """The addresses of an anycast gateway, as the host has them."""
        services = self.made.documents.get(host, {}).get("services", {})
        return sorted(services.get(f"anycast-{segment}", {}).get("addresses", {}))

    def device(self, segment: str, host: str) -> str:
        """Where the segment's frames go in and out on the host."""
        bridge = self.segments[segment]["bridge"]
        return bridge or next(iter(sorted(self.tunnels[segment, host])), "")

    def _tunnels(self, row: SegmentRow, host: str) -> dict[str, Device]:
        """The devices of the segment's tunnels on the host."""
        devices = self.made.devices.get(host, {})
        tunnels = {name: spec for name, spec in devices.items() if _overhead(spec)}
        if row["bridge"]:
            return {name: spec for name, spec in tunnels.items() if spec.bridge == row["bridge"]}
        own = set(row["addresses"].get(host, ()))
        return {name: spec for name, spec in tunnels.items() if not spec.bridge and own & set(spec.addresses)}

    def ways(self, segment: str, host: str, other: str) -> Iterator[tuple[str, Device, str]]:
        """The host's tunnels that lead straight to the other: device, spec, and the other's underlay address."""
        if host == other:
            return
        theirs = self.tunnels.get((segment, other), {})
        known = {str(getattr(spec, "local", "")) for spec in theirs.values()}
        known |= {self.hosts[other].underlay_address} if other in self.hosts else set()
        for name, spec in self.tunnels.get((segment, host), {}).items():
            peers = [address for listens in KINDS[spec.KIND].listens(spec) for address in listens.peers]
            if not peers:  # it finds them by multicast, or is told of them by BGP
                alike = [one for one in theirs.values() if (one.KIND, _vni(one)) == (spec.KIND, _vni(spec))]
                peers = [str(getattr(one, "local", "")) for one in alike]
            found = next((address for address in peers if address in known), None)
            if found:
                yield name, spec, found

    # -- what a router is asked --------------------------------------------------------------

    def services(self, segment: str, kind: str) -> dict[str, dict[str, Any]]:
        """The segment's service of that kind, by host."""
        row = self.segments[segment]
        return {
            host: service
            for host in row["hosts"]
            for service in self.made.documents.get(host, {}).get("services", {}).values()
            if service["kind"] == kind and row["bridge"] and service.get("interface") == row["bridge"]
        }

    def _choose_checks(self, segment: str, up: Sequence[str]) -> None:
        row = self.segments[segment]
        dnsmasq = self.services(segment, "dnsmasq")
        nat = {h: s for h, s in self.services(segment, "nat").items() if _first_v4(s.get("masquerade", {}))}
        wanted = [what for what, there in (("DHCP", dnsmasq), ("DNS", dnsmasq), ("NAT", nat)) if there]
        if not wanted or not any(ipaddress.ip_network(subnet).version == 4 for subnet in row["subnets"]):
            return
        by = next((host for host in up if host not in dnsmasq and host not in nat), None)
        if by is None:
            why = "no host of the segment is there to ask, other than its router"
            if "anycast" in row:
                why = "each host serves the containers on it, so only they could ask"
            self.unasked[segment] = [Check(what, None, why) for what in wanted]
            return
        own = _first_v4(row["addresses"].get(by, ()))
        source = own or self._free(segment, dnsmasq)
        check: dict[str, Any] = {"source": source, "own": bool(own)}
        if dnsmasq:
            service = next(iter(dnsmasq.values()))
            lease = next(((n, v) for n, v in service.get("hosts", {}).items() if ":" not in v["address"]), None)
            ranges = [r for one in dnsmasq.values() for r in one.get("ranges", {}) if ":" not in r]
            # Whoever has no address of its own gets none where there is no range: then one asks for somebody who has.
            check["dhcp"] = {"mac": lease[1]["mac"] if lease and not ranges else None}
            server = _first_v4(service["addresses"])
            if lease and server and source:
                domain = service.get("domain")
                name = f"{lease[0]}.{domain}" if domain else lease[0]
                check["dns"] = {"server": server, "name": name, "wanted": lease[1]["address"]}
        if nat:
            router = next(iter(nat))
            gateway = row["gateway"] or _first_v4(row["addresses"].get(router, ()))
            target = next((a for h in (by, *up) for a in [self.hosts[h].address] if h not in nat and _is_v4(a)), None)
            if source and gateway and target:
                check["nat"] = {"gateway": gateway.partition("/")[0], "target": target, "router": router}
        self.checks[segment] = (by, check)
        lacking = [what for what in wanted if what.lower() not in check]
        why = "there is no free IPv4 address to ask from, or nothing to ask for"
        self.unasked[segment] = [Check(what, None, why) for what in lacking]

    def _free(self, segment: str, dnsmasq: Mapping[str, Mapping[str, Any]]) -> str | None:
        """An address of the segment that nobody has and nobody is given."""
        row = self.segments[segment]
        taken = {str(address).partition("/")[0] for address in self.reserved.get(segment, ())}
        taken |= {(c["address"] or "").partition("/")[0] for c in self.made.containers.get(segment, {}).values()}
        taken |= {a.partition("/")[0] for addresses in row["addresses"].values() for a in addresses}
        taken |= {lease["address"] for one in dnsmasq.values() for lease in one.get("hosts", {}).values()}
        taken.add((row["gateway"] or "").partition("/")[0])
        ranges = [
            (ipaddress.IPv4Address(low), ipaddress.IPv4Address(high))
            for one in dnsmasq.values()
            for r in one.get("ranges", {})
            if ":" not in r
            for low, high in [r.split("-")]
        ]
        for net in (ipaddress.IPv4Network(subnet) for subnet in row["subnets"] if ":" not in subnet):
            address = net.broadcast_address - 1
            for _ in range(_SEARCHED):
                given = next((low for low, high in ranges if low <= address <= high), None)
                if given is None and str(address) not in taken:
                    break
                address = (given or address) - 1
            if address in net and address != net.network_address:
                return str(address)
        return None

    def _docker(self, host: str) -> set[str]:
        """The Docker networks with containers of the plan on that host."""
        rows = [row for name in self.segments for row in self.made.containers.get(name, {}).values()]
        return {row["network"] for row in rows if row["host"] == host and "network" in row}

    # -- what the answers mean ---------------------------------------------------------------

    def result(
        self, ready: Mapping[str, Mapping[str, Any]], found: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Segment]:
        """By segment. `ready`, `found`: what the hosts said that did."""
        out: dict[str, Segment] = {}
        for name, row in self.segments.items():
            hosts = [host for host in row["hosts"] if host in self.hosts]
            said = _Said(self, name, ready, found)
            cells = {a: {b: said.cell(a, b) for b in hosts if a != b} for a in hosts}
            checks = [*said.gateway(), *said.checks(), *self.unasked.get(name, ()), *said.docker()]
            out[name] = Segment(row["mtu"], hosts, cells, checks)
        return out


@dataclasses.dataclass(frozen=True)
class _Said:
    """What the hosts said about one segment."""

    run: Verification
    segment: str
    ready: Mapping[str, Mapping[str, Any]]
    found: Mapping[str, Mapping[str, Any]]

    def cell(self, a: str, b: str) -> Cell:
        """The way from a to b."""
        for host in (a, b):
            if host not in self.found:
                return Cell(None, why=f"{host} was not asked")
        for host in (a, b):
            state = self.ready[host]["ready"][self.segment]
            if state["state"] != "up":
                return Cell(False, why=_is(host, state["device"], state["state"]))
        of = self.found[a]["segments"][self.segment]
        if b not in of["answered"]:
            return Cell(False, why=self.silent(a, b))
        why = self.too_big(a, b)
        return Cell(not why, of["rtt"].get(b), why)

    def silent(self, a: str, b: str) -> str:
        """Why a hears no answer of b."""
        ways = list(self.run.ways(self.segment, a, b))
        back = {device for device, _, _ in self.run.ways(self.segment, b, a)}
        for host, devices in ((a, {device for device, _, _ in ways}), (b, back)):
            for device in sorted(devices):
                state = self.ready[host]["ready"][self.segment]["tunnels"].get(device, {"state": "missing"})["state"]
                if state != "up":
                    bridge = self.run.device(self.segment, host)
                    return _is(host, device, f"no port of {bridge}" if state == "apart" else state)
        for device, spec, address in ways:
            flood = self.ready[a]["ready"][self.segment]["tunnels"][device].get("flood")
            wanted = getattr(spec, "group", None) or address
            if flood is not None and wanted not in flood:
                return f"no FDB entry for {wanted} on {a}'s {device}{self.untold(a, b)}"
        if not ways:
            hubs = self.run.hubs[self.segment]
            between = " and ".join(hubs) or "who is between them"
            more = "; hubs take ten seconds to change places" if len(hubs) > 1 else ""
            return f"no frame of {a}'s gets to {b}, to which it has no tunnel of its own: look at {between}{more}"
        device, spec, address = ways[0]
        heard = a in self.found[b]["segments"][self.segment]["heard"]
        way = self.blocked(a, b, address) if not heard else ""
        if heard:
            to = next((address for _, _, address in self.run.ways(self.segment, b, a)), a)
            return f"{b} hears {a}, but its answers do not come back: {self.blocked(b, a, to)}"
        return way

    def untold(self, a: str, b: str) -> str:
        """Why BGP has not told a of b; nothing where that is not BGP's to tell."""
        for host in (a, b):
            sessions = self.ready[host].get("sessions")
            if sessions is None:
                return ""
            if _ESTABLISHED not in sessions.values():
                tried = [f"{self.who(host, address)} is {state}" for address, state in sessions.items()]
                return f": {host} has no BGP session ({', '.join(tried) or 'its bgpd does not run'})"
        return f": BGP has not told {a} of {b}"

    def blocked(self, a: str, b: str, address: str) -> str:
        """What is known of the underlay from a to b, when no tunnel's packet gets through."""
        listens = [str(x) for s in self.run.tunnels[self.segment, b].values() for x in KINDS[s.KIND].listens(s)]
        protocol = (listens or ["its tunnel"])[0].upper()
        seen = self.found[a]["underlay"].get(address, {})
        if seen.get("answers"):
            return f"underlay blocked on {protocol} from {a} to {b} ({address}, which answers a ping)"
        return f"underlay: {address} ({b}) answers {a} neither on {protocol} nor a ping"

    def too_big(self, a: str, b: str) -> str:
        """Why a packet of the segment's MTU does not get from a to b in one piece; empty: it does."""
        mtu = self.run.segments[self.segment]["mtu"]
        for host in (a, b):
            state = self.ready[host]["ready"][self.segment]
            for device, its in {state["device"]: state, **state["tunnels"]}.items():
                if its.get("mtu", mtu) < mtu:
                    return f"MTU too big at {host}: its {device} takes {its['mtu']}, not {mtu}"
        whole = b in self.found[a]["segments"][self.segment]["full"]
        for _, spec, address in self.run.ways(self.segment, a, b):
            need = mtu + KINDS[spec.KIND].overhead(spec)
            seen = self.found[a]["underlay"].get(address, {})
            lost = seen.get("answers") and not seen.get("full")
            if seen.get("hop") is not None:
                return self.hop(self.who(a, seen["hop"]), seen["mtu"], need)
            for own in (own for _, _, own in self.run.ways(self.segment, b, a) if lost):
                back = self.found[b]["underlay"].get(own, {})
                if back.get("hop") == "":  # what b's link does not take out, it does not take in
                    return self.hop(self.who(a, address), back["mtu"], need)
            if lost:
                where = self.who(a, address)
                return f"MTU too big on the way to {where}: a ping of {need} is lost, and no hop says where"
        return "" if whole else f"MTU too big: frames of {mtu} get lost between {a} and {b}"

    def hop(self, who: str, takes: int | None, need: int) -> str:
        """Where a packet of the underlay is too big."""
        mtu = self.run.segments[self.segment]["mtu"]
        return f"MTU too big at hop {who}: it takes {takes or 'less'}, and {mtu} here needs {need}"

    def who(self, a: str, address: str) -> str:
        """An address of the underlay in words; none: a itself."""
        if not address:
            return f"{a} itself"
        name = next((n for n, h in self.run.hosts.items() if address in (h.underlay_address, h.address)), None)
        return f"{address} ({name})" if name else address

    def gateway(self) -> Iterator[Check]:
        """Whether each host is the anycast gateway, and alone in that."""
        row = self.run.segments[self.segment]
        if "anycast" not in row:
            return
        wrong, good = [], []
        for host in row["hosts"]:
            state = self.ready.get(host, {}).get("ready", {}).get(self.segment, {})
            its = state.get("gateway")
            if its is None:
                continue
            at = f"{host}'s {state['device']}"
            addresses = self.run.gateways(self.segment, host)
            lacking = [address for address in addresses if address not in its["addresses"]]
            other = self.found.get(host, {}).get("checks", {}).get(self.segment, {}).get("gateway")
            if its["mac"] != row["anycast"]:
                wrong.append(f"{at} has MAC address {its['mac']}, not the gateway's {row['anycast']}; run `pulumi up`")
            elif lacking:
                wrong.append(f"{at} lacks {errors.listed(lacking)}; run `pulumi up`")
            elif other:
                wrong.append(
                    f"{other} answers {host}'s ARP for {addresses[0]}, which is {host}'s own; take it away there"
                )
            else:
                good.append(host)
        if wrong or good:
            words = f"{row['gateway']} is on {errors.listed(good)}, for the containers of each"
            yield Check("gateway", not wrong, "; ".join(wrong) or words)

    def checks(self) -> Iterator[Check]:
        """What the router answered."""
        if self.segment not in self.run.checks:
            return
        by, wanted = self.run.checks[self.segment]
        says = self.found.get(by, {}).get("checks", {}).get(self.segment)
        if says is None:
            for what in ("dhcp", "dns", "nat"):
                if what in wanted:
                    yield Check(what.upper(), None, f"{by} was not asked")
            return
        dnsmasq = self.run.services(self.segment, "dnsmasq")
        if "dhcp" in wanted:
            cut = next(
                (f"{one} -> {by}" for one in dnsmasq if one in self.run.hosts and not self.cell(one, by).good), ""
            )
            yield _dhcp(by, says["dhcp"], dnsmasq, self.run.segments[self.segment]["mtu"], cut)
        if says.get("taken"):
            for what in ("dns", "nat"):
                if what in wanted:
                    taken = f"{wanted['source']}, from which {by} would ask, is somebody's; put it under reserved"
                    yield Check(what.upper(), None, taken)
            return
        if "dns" in wanted:
            yield _dns(by, says["dns"], wanted["dns"])
        if "nat" in wanted:
            yield _nat(by, says["nat"], wanted["nat"])

    def docker(self) -> Iterator[Check]:
        """Containers whose address by Docker is not that of the plan; those that do not run have none."""
        for name, row in self.run.made.containers.get(self.segment, {}).items():
            found = self.found.get(row["host"], {}).get("docker", {}).get(row.get("network", ""), {})
            wanted = (row["address"] or "").partition("/")[0]
            if name in found and wanted:
                good = found[name] == wanted
                words = f"{name} on {row['host']} has {found[name]}"
                yield Check("Docker", good, words if good else f"{words}, the plan says {wanted}")


def _dhcp(
    by: str, offer: Mapping[str, Any] | None, servers: Mapping[str, Mapping[str, Any]], mtu: int, cut: str
) -> Check:
    names = " or ".join(servers)
    if offer is None and cut:
        return Check("DHCP", False, f"no offer of {names} gets to {by}; see {cut}")
    if offer is None:
        return Check("DHCP", False, f"{names} offers no address to {by}; is its dnsmasq running?")
    own = {address for service in servers.values() for address in service["addresses"]}
    said = f"{offer['address']} offered to {by} by {' '.join(offer['server']) or 'nobody'}"
    if not own & set(offer["server"]):
        return Check("DHCP", False, f"{said}, which is not {names}: another DHCP server is in the segment")
    if offer["mtu"] not in (None, mtu):
        return Check("DHCP", False, f"{said} with an MTU of {offer['mtu']}, not {mtu}")
    return Check("DHCP", True, said)


def _dns(by: str, answer: Mapping[str, Any], wanted: Mapping[str, Any]) -> Check:
    server, name = wanted["server"], wanted["name"]
    if not answer["reached"]:
        return Check("DNS", False, f"{server} does not answer {by}'s ARP")
    if answer["code"] is None:
        return Check("DNS", False, f"{server} does not answer {by} on port 53")
    if wanted["wanted"] in answer["addresses"]:
        return Check("DNS", True, f"{name} is {wanted['wanted']}, says {server} to {by}")
    said = " ".join(answer["addresses"]) or (
        "unknown" if answer["code"] == _NO_SUCH_NAME else f"error {answer['code']}"
    )
    return Check("DNS", False, f"{name} is {said}, says {server} to {by}; the plan says {wanted['wanted']}")


def _nat(by: str, answer: Mapping[str, Any], wanted: Mapping[str, Any]) -> Check:
    gateway, target = wanted["gateway"], wanted["target"]
    if not answer["reached"]:
        return Check("NAT", False, f"the gateway {gateway} does not answer {by}'s ARP")
    if not answer["answers"]:
        why = (
            f"no answer from {target} through {gateway}: {wanted['router']} does not translate, or does not pass it on"
        )
        return Check("NAT", False, why)
    return Check("NAT", True, f"{target} answers {by} through {gateway}")


def _is(host: str, device: str, what: str) -> str:
    """How a device of ours is that others changed, or that is not there yet."""
    return f"{host}'s {device} is {what}; run `pulumi up`" if what == "missing" else f"{host}'s {device} is {what}"


def _vni(spec: Device) -> int | None:
    return getattr(spec, "vni", None)


def _overhead(spec: Device) -> int:
    return int(KINDS[spec.KIND].overhead(spec))


def _first_v4(addresses: Any) -> str | None:
    """The first IPv4 address, or subnet's, of those, without its prefix length."""
    return next((str(a).partition("/")[0] for a in addresses if ":" not in str(a)), None)


def _is_v4(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 4
    except ValueError:
        return False
