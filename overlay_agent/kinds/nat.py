"""Address translation for one segment: masquerade, forwarded ports, public addresses, TCP's segment size (nft(8)).

One table of our own a segment, replaced as a whole in one transaction of the kernel. Each rule's
comment says what it is for, so that it can be read back, by us and by people.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import docker_user, fields
from overlay_agent.fields import Difference
from overlay_agent.kinds.base import Passes, Spec, attribute
from overlay_agent.kinds.table import TableKind, comment_of, table_of

if TYPE_CHECKING:
    from overlay_agent.document import Document
    from overlay_agent.kernel import Kernel

PORTS = r"[0-9]{1,5}(-[0-9]{1,5})?"
#: What arrives: protocol, a slash, a port or a range of ports.
LISTEN = fields.Pattern(
    rf"(tcp|udp)/{PORTS}", "a protocol and a port or range of ports, such as tcp/8080 or udp/5000-5009"
)
#: Where it goes. `address6`: IPv6's, beside IPv4's. `ports`: as many as arrive; left out: the same.
TARGET = fields.Record(
    {
        "address": fields.Address(),
        "address6": fields.Address(),
        "ports": fields.Pattern(PORTS, "a port or range of ports, such as 80 or 5000-5009"),
    },
    may=frozenset({"ports", "address6"}),
)
HIGHEST_PORT = 65535
#: nft(8), "dstnat" and "srcnat": in numbers, as not every version knows the words on every hook.
DSTNAT, SRCNAT, MANGLE = -100, 100, -150
#: A host's own addresses that nothing outside can reach, and that the kernel routes nowhere else.
LOOPBACK = {"ip": "127.0.0.0/8", "ip6": "::1"}


@dataclasses.dataclass(frozen=True)
class Nat(Spec):
    """What one host translates for one segment. Needs a `forwarding` service beside it."""

    KIND: ClassVar[str] = "nat"

    #: The segment's bridge on this host.
    interface: str = attribute(fields.BridgeName())
    #: The segment's subnets: their containers reach forwards and public addresses of each other too.
    #: What they send there leaves under the host's address, so that the answer comes back this way.
    subnets: dict[str, Any] = attribute(fields.Keyed("subnet", fields.Subnet(), fields.Empty()), default={})
    #: Subnets of the segment whose packets leave it under this host's own address.
    masquerade: dict[str, Any] = attribute(fields.Keyed("masquerade", fields.Subnet(), fields.Empty()), default={})
    #: Subnets elsewhere that are reached, and reach the segment, under everybody's own address.
    routed: dict[str, Any] = attribute(fields.Keyed("routed", fields.Subnet(), fields.Empty()), default={})
    #: What arrives at this host's addresses and is passed on into the segment.
    forwards: dict[str, Any] = attribute(fields.Keyed("forward", LISTEN, TARGET), default={})
    #: One address outside for one inside, both ways: the address inside, by the one outside, which
    #: is put on the NIC whose network it belongs to.
    public_addresses: dict[str, str] = attribute(
        fields.Keyed("public address", fields.Address(), fields.Address()), default={}
    )
    #: TCP between the segment and elsewhere sends segments that the narrower way has room for, as its first packets
    #: say to both ends (RFC 9293, 3.7.1), whether or not anybody hears "packet too big".
    mss_clamp: bool = attribute(fields.Flag(), default=False)
    #: Rules of others in our table, as found.
    others: dict[str, Any] = attribute(fields.Others("rule"), default={})


class NatKind(TableKind):
    """How it stands in nftables, and on the NIC."""

    name = "nat"
    spec = Nat
    rank = 17
    instead = ", or leave out masquerade, routes, forwards and publicAddresses"

    # -- pure -------------------------------------------------------------------------------

    def wrong(self, spec: Nat) -> list[str]:
        out = [wrong for listen, target in spec.forwards.items() for wrong in _wrong_forward(listen, target)]
        if not (spec.masquerade or spec.routed or spec.forwards or spec.public_addresses or spec.mss_clamp):
            nothing = f"interface: nothing is translated for {spec.interface}"
            out.append(
                f"{nothing}; give masquerade, routed, forwards, publicAddresses or mssClamp, or leave the service out"
            )
        for field, subnets in (("subnets", spec.subnets), ("masquerade", spec.masquerade), ("routed", spec.routed)):
            for one, other in _pairs(sorted(subnets)):
                if _overlap(one, other):
                    out.append(f"{field}: {one} and {other} overlap; give each address once")
        for one, other in _pairs(sorted(spec.forwards)):
            if _same_ports(one, other):
                out.append(f"forwards: {one} and {other} overlap; forward each port once")
        return out + _wrong_public(spec.public_addresses)

    def body(self, spec: Nat) -> list[str]:
        inward = [*_public_in(spec), *_forward(spec)]
        lines: list[str] = []
        for type_, chain, priority, rules in (
            *([("filter", "forward", MANGLE, _clamp(spec))] if spec.mss_clamp else []),
            ("nat", "prerouting", DSTNAT, inward),
            ("nat", "output", DSTNAT, inward),
            ("nat", "postrouting", SRCNAT, [*_hairpin(spec), *_routed(spec), *_public_out(spec), *_masquerade(spec)]),
        ):
            lines += [f"\tchain {chain} {{", f"\t\ttype {type_} hook {chain} priority {priority}; policy accept;"]
            lines += [f'\t\t{rule} comment "{spec.interface}: {what}"' for rule, what in rules]
            lines.append("\t}")
        return lines

    def commands(self, name: str, spec: Nat, mark: str) -> list[list[str]]:
        # The NIC is the host's; a shell there finds it by the route to the address.
        nic = "$(ip -o route get {} | sed 's/.* dev \\([^ ]*\\).*/\\1/')"
        public = [
            ["sh", "-c", f"ip address add {_full(address)} dev {nic.format(address)}{_deprecated(address)}"]
            for address in sorted(spec.public_addresses)
        ]
        return [*super().commands(name, spec, mark), *public, *docker_user.commands(mark, _rules(spec))]

    def passes(self, name: str, spec: Nat) -> list[Passes]:
        return [Passes(spec.interface, routed=True)]

    # -- on the host ------------------------------------------------------------------------

    def find(self, kernel: Kernel, name: str, mark: str) -> Nat | None:
        table = self.whole(mark, _spec)
        if table is None:
            return None
        spec = _spec(table.kept)
        there = {a: inside for a, inside in spec.public_addresses.items() if _has(kernel, a, spec.interface)}
        return dataclasses.replace(spec, public_addresses=there, others=table.others)

    def beside(self, kernel: Kernel, name: str, mark: str) -> list[Difference]:
        spec = _spec(self._comments(mark))
        return docker_user.lacking(kernel, mark, _rules(spec)) if spec.interface else []

    def wrong_here(self, kernel: Kernel, name: str, spec: Nat, wanted: Document) -> list[str]:
        out = super().wrong_here(kernel, name, spec, wanted)
        if out:
            return out
        bridge = kernel.links.get(spec.interface)
        if spec.interface not in wanted.devices and (not bridge or bridge.kind != "bridge"):
            out.append(f"interface {spec.interface!r} is not a bridge of this host; declare it")
        found = self.find(kernel, name, wanted.owner.alias(name)) or Nat(spec.interface)
        mine = set(found.public_addresses) | set(_stored(wanted, name))
        elsewhere = _elsewhere(wanted, name)
        theirs = {address for _, one in elsewhere for address in one.public_addresses}
        for address in spec.public_addresses:
            if address not in theirs:  # said below, with whose it is
                out += _wrong_address(kernel, address, spec.interface, wanted, ours=address in mine)
        out += [wrong for whose, one in elsewhere for wrong in _taken(spec, whose, one)]
        new = [listen for listen in spec.forwards if listen not in found.forwards]
        return out + (_listened(spec, new) if new else [])

    def image(self, kernel: Kernel, name: str, mark: str) -> dict[str, Any]:
        rules = _spec(self._comments(mark))
        there = {a: nic for a in rules.public_addresses for nic in [_has(kernel, a, rules.interface)] if nic}
        return {**super().image(kernel, name, mark), "public": there}

    def create(self, kernel: Kernel, name: str, spec: Nat, mark: str, image: Mapping[str, Any]) -> None:
        self.change(kernel, name, spec, Nat(spec.interface), mark)

    def change(self, kernel: Kernel, name: str, spec: Nat, found: Nat, mark: str) -> None:
        # The rules say which addresses are ours, so they come before the first and go after the last.
        self._take_off(kernel, mark, spec)
        self.load(kernel, name, mark, self.ruleset(spec, mark))
        for address in spec.public_addresses:
            if not _has(kernel, address, spec.interface):
                nic = _nic_for(kernel, address, spec.interface)
                if nic:
                    _add(kernel, nic, address)
        docker_user.put(kernel, mark, _rules(spec))

    def delete(self, kernel: Kernel, name: str, mark: str) -> None:
        docker_user.remove(kernel, mark)
        self._take_off(kernel, mark, Nat(""))
        super().delete(kernel, name, mark)

    def put_back(self, kernel: Kernel, name: str, image: Mapping[str, Any], *, exactly: bool) -> list[str]:
        for address, nic in image["public"].items() if exactly else ():
            if nic in kernel.links and not kernel.device_with(address):
                _add(kernel, nic, address)
        return super().put_back(kernel, name, image, exactly=exactly)

    def _take_off(self, kernel: Kernel, mark: str, spec: Nat) -> None:
        """Takes those public addresses off their NIC that the table names and `spec` does not."""
        rules = _spec(self._comments(mark))
        for address in rules.public_addresses.keys() - spec.public_addresses.keys():
            nic = _has(kernel, address, rules.interface)
            if nic:
                kernel.set_addresses(nic, [_full(address)], [])
                kernel.refresh()

    def _comments(self, mark: str) -> list[str]:
        from overlay_agent import nft  # noqa: PLC0415 - subprocess costs 5 ms where there is no table

        return [comment_of(line) for line in nft.lines(nft.text(self.family, table_of(mark)))]


# -- the rules -----------------------------------------------------------------------------------

#: A rule without its comment, and what its comment says after the bridge's name.
_Rule = tuple[str, str]


def _family(address: str) -> str:
    return "ip6" if ":" in address else "ip"


def _public_in(spec: Nat) -> Iterator[_Rule]:
    for public, inside in sorted(spec.public_addresses.items()):
        family = _family(public)
        yield f"{family} daddr {public} dnat {family} to {inside}", f"public {public} to {inside}"


def _public_out(spec: Nat) -> Iterator[_Rule]:
    for public, inside in sorted(spec.public_addresses.items()):
        family = _family(public)
        match = f'{family} saddr {inside} oifname != "{spec.interface}"'
        yield f"{match} snat {family} to {public}", f"public {public} to {inside}"


def _forward(spec: Nat) -> Iterator[_Rule]:
    for listen, target in sorted(spec.forwards.items()):
        protocol, _, ports = listen.partition("/")
        ends = [target[key] for key in ("address", "address6") if key in target]
        said = " ".join([listen, "to", *ends, *(["ports", target["ports"]] if "ports" in target else [])])
        for address in ends:
            family = _family(address)
            match = f"{family} daddr != {LOOPBACK[family]} fib daddr type local {protocol} dport {ports}"
            place = f"[{address}]" if family == "ip6" else address
            moved = _moved(protocol, ports, target.get("ports", ports))
            yield f"{match} dnat {family} to {place}{moved}", f"forward {said}"


def _moved(protocol: str, ports: str, to: str) -> str:
    """What stands behind the address, so that the n-th port arrives at the n-th."""
    if _span(ports) == _span(to):
        return ""
    (low, high), (start, _) = _span(ports), _span(to)
    if low == high:
        return f":{start}"
    # The kernel would take any free port of a range (nf_nat_l4proto_unique_tuple).
    pairs = ", ".join(f"{port} : {port - low + start}" for port in range(low, high + 1))
    return f":{protocol} dport map {{ {pairs} }}"


def _hairpin(spec: Nat) -> Iterator[_Rule]:
    # By the source and not by the interface it came in by: a frame that br_netfilter hands back to
    # the bridge has none here.
    for subnet in sorted(spec.subnets):
        match = f'ct status dnat {_family(subnet)} saddr {subnet} oifname "{spec.interface}"'
        yield f"{match} masquerade", f"subnet {subnet}"


def _routed(spec: Nat) -> Iterator[_Rule]:
    for subnet in sorted(spec.routed):
        yield f'{_family(subnet)} daddr {subnet} oifname != "{spec.interface}" accept', f"routed {subnet}"


def _masquerade(spec: Nat) -> Iterator[_Rule]:
    for subnet in sorted(spec.masquerade):
        family = _family(subnet)
        match = f'{family} saddr {subnet} {family} daddr != {subnet} oifname != "{spec.interface}"'
        yield f"{match} masquerade", f"masquerade {subnet}"


def _clamp(spec: Nat) -> Iterator[_Rule]:
    inside = f'"{spec.interface}"'
    for match in (f"iifname {inside} oifname != {inside}", f"iifname != {inside} oifname {inside}"):
        yield f"{match} tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu", "clamp mss"


def _rules(spec: Nat) -> list[docker_user.Rule]:
    """What Docker's FORWARD has to let through: what leaves the bridge, what answers, what was forwarded."""
    states = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED,DNAT"]
    inward = ["!", "-i", spec.interface, "-o", spec.interface] if spec.routed else ["-o", spec.interface, *states]
    return [["-i", spec.interface, "!", "-o", spec.interface], inward]


def _spec(comments: Iterable[str]) -> Nat:
    """What rules with these comments stand for."""
    interface = ""
    said: dict[str, dict[str, Any]] = {"subnet": {}, "masquerade": {}, "routed": {}, "forward": {}, "public": {}}
    clamps = False
    for comment in comments:
        clamp = re.fullmatch(r"(\S+): clamp mss", comment)
        if clamp and interface in {"", clamp[1]} and not fields.InterfaceName().check(clamp[1]):
            interface, clamps = clamp[1], True
        match = re.fullmatch(r"(\S+): (subnet|masquerade|routed|forward|public) (\S+)(?: to (.+))?", comment)
        if not match or interface not in ("", match[1]):
            continue
        what, key, rest = match[2], match[3], match[4] or ""
        value: Any = {"forward": _target(rest), "public": rest}.get(what, {})
        field = {"subnet": "subnets", "forward": "forwards", "public": "public_addresses"}.get(what, what)
        type_ = next(f.metadata["type"] for f in dataclasses.fields(Nat) if f.name == field)
        # Somebody else's comment may read like one of ours.
        wrong = type_.check({key: value}) or fields.InterfaceName().check(match[1])
        wrong_target = _wrong_forward(key, value) if what == "forward" and not wrong else []
        wrong_pair = _wrong_public({key: value}) if what == "public" and not wrong else []
        if not (wrong or wrong_target or wrong_pair):
            interface = match[1]
            said[what][key] = value
    subnets, masquerade, routed, forwards, public = said.values()
    return Nat(interface, subnets, masquerade, routed, forwards, public, clamps)


def _target(said: str) -> dict[str, str]:
    """Where a forward goes, as its comment says it."""
    ends, _, ports = said.partition(" ports ")
    return {**dict(zip(("address", "address6"), ends.split())), **({"ports": ports} if ports else {})}


# -- what contradicts itself ---------------------------------------------------------------------


def _pairs(items: list[str]) -> Iterator[tuple[str, str]]:
    return ((one, other) for place, one in enumerate(items) for other in items[place + 1 :])


def _overlap(one: str, other: str) -> bool:
    first, second = ipaddress.ip_network(one), ipaddress.ip_network(other)
    return first.version == second.version and first.overlaps(second)


def _span(ports: str) -> tuple[int, int]:
    low, _, high = ports.partition("-")
    return int(low), int(high or low)


def _same_ports(one: str, other: str) -> bool:
    (protocol, _, ports), (other_protocol, _, other_ports) = one.partition("/"), other.partition("/")
    (low, high), (other_low, other_high) = _span(ports), _span(other_ports)
    return protocol == other_protocol and low <= other_high and other_low <= high


def _wrong_forward(listen: str, target: Mapping[str, str]) -> list[str]:
    spans = {"": _span(listen.partition("/")[2]), **({"ports: ": _span(target["ports"])} if "ports" in target else {})}
    out = []
    for what, (low, high) in spans.items():
        said = f"{low}-{high}" if low != high else str(low)
        if low < 1 or high > HIGHEST_PORT:
            out.append(f"forwards {listen}: {what}{said} is not within 1 to {HIGHEST_PORT}")
        if low > high:
            out.append(f"forwards {listen}: {what}{said} goes backwards; write {high}-{low}")
    counts = [high - low for low, high in spans.values()]
    if not out and len(set(counts)) > 1:
        out.append(f"forwards {listen}: {counts[0] + 1} ports arrive and {counts[1] + 1} are behind them (ports: "
                   f"{target['ports']}); give as many, or leave ports out")  # fmt: skip
    versions = [ipaddress.ip_address(target[key]).version for key in ("address", "address6") if key in target]
    if versions not in ([4], [6], [4, 6]):
        out.append(f"forwards {listen}: address6: {target['address6']!r} beside address {target['address']!r}; "
                   "address6 is an IPv6 address beside an IPv4 one")  # fmt: skip
    return out


def _wrong_public(public: Mapping[str, str]) -> list[str]:
    out, by_inside = [], dict[str, str]()
    for outside, inside in sorted(public.items()):
        if (":" in outside) != (":" in inside):
            out.append(f"publicAddresses: {outside} for {inside} mixes IPv4 and IPv6; give both of one version")
        if inside in by_inside:
            out.append(f"publicAddresses: {by_inside[inside]} and {outside} are both for {inside}; one can be what it "
                       "sends from, so give one")  # fmt: skip
        by_inside[inside] = outside
        if inside in public:
            out.append(f"publicAddresses: {inside} is on both sides; an address is outside or inside")
    return out


# -- what this host cannot have ------------------------------------------------------------------


def _full(address: str) -> str:
    """The address alone, with the length of a whole one."""
    return f"{address}/{ipaddress.ip_address(address).max_prefixlen}"


def _deprecated(address: str) -> str:
    """What `ip address add` needs so that the host itself does not send from it."""
    return " preferred_lft 0 nodad" if ":" in address else ""


def _has(kernel: Kernel, address: str, bridge: str) -> str:
    """The NIC on which the public address stands as we put it there, or nothing."""
    link = kernel.device_with(address)
    return link.name if link and link.name != bridge and _full(address) in kernel.addresses(link) else ""


def _add(kernel: Kernel, nic: str, address: str) -> None:
    kernel.add_guest_address(nic, _full(address))
    kernel.refresh()


def _networks(kernel: Kernel, bridge: str) -> Iterator[tuple[Any, str]]:
    """(an address with its network, the NIC it is on), of what is neither the segment's nor a stack's."""
    for link in kernel.links.values():
        if link.name not in (bridge, "lo") and not link.alias.startswith("overlay:"):
            for address in kernel.addresses(link):
                interface = ipaddress.ip_interface(address)
                if interface.network.prefixlen < interface.max_prefixlen:
                    yield interface, link.name


def _nic_for(kernel: Kernel, address: str, bridge: str) -> str:
    """The NIC with the smallest network that holds the address, or nothing."""
    wanted = ipaddress.ip_address(address)
    fits = [(i.network.prefixlen, nic) for i, nic in _networks(kernel, bridge) if wanted in i.network]
    return max(fits)[1] if fits else ""


def _wrong_address(kernel: Kernel, address: str, bridge: str, wanted: Document, *, ours: bool) -> list[str]:
    link = kernel.device_with(address)
    if link and not (ours and _has(kernel, address, bridge)):
        command = f"ip address del {_on(kernel, address)} dev {link.name}"
        there = f"publicAddresses: {address} is this host's already (on {link.name})"
        return [f"{there}; take one that nobody has, or remove that one: {command}"]
    networks = [(i, nic) for i, nic in _networks(kernel, bridge) if nic not in wanted.devices]
    if not any(ipaddress.ip_address(address) in i.network for i, _ in networks):
        said = ", ".join(f"{nic}: {i}" for i, nic in networks if i.version == ipaddress.ip_address(address).version)
        none = f"publicAddresses: {address} is in no network of this host's NICs ({said or 'none has an address'})"
        return [f"{none}; take one that is, or give the NIC an address of that network"]
    return []


def _on(kernel: Kernel, address: str) -> str:
    """The host's own address as it stands on its device, with its length."""
    link = kernel.device_with(address)
    there = kernel.addresses(link) if link else []
    return next(a for a in there if ipaddress.ip_interface(a).ip == ipaddress.ip_address(address))


def _stored(wanted: Document, name: str) -> Mapping[str, str]:
    """The public addresses that this service was last given: nothing on the host says whose one is."""
    from overlay_agent.store import Store  # noqa: PLC0415 - only where there are public addresses

    stored = (Store().read(wanted.owner.label) or {}).get("services", {}).get(name, {})
    found: Mapping[str, str] = stored.get("publicAddresses", {})
    return found


def _elsewhere(wanted: Document, name: str) -> list[tuple[str, Nat]]:
    """What other segments and stacks translate on this host, each with its name."""
    from overlay_agent import nft  # noqa: PLC0415 - as above
    from overlay_agent.kernel import OUR_TABLES  # noqa: PLC0415 - as above

    # This document's own by what they shall be (of two the later one is wrong), the others by their tables.
    declared = {other: one for other, one in wanted.services.items() if one.KIND == Nat.KIND}
    tables = {table_of(wanted.owner.alias(other)) for other in declared}
    out = [(other, one) for other, one in sorted(declared.items()) if other < name]
    for table in nft.tables("inet"):
        if table.startswith(OUR_TABLES) and table not in tables:
            text = nft.text("inet", table)
            label = re.search(r'^\tcomment "overlay:(.*)"$', text, re.MULTILINE)
            one = _spec(comment_of(line) for line in nft.lines(text))
            out.append((label[1] if label else f"the table {table}", one))
    return out


def _taken(spec: Nat, whose: str, one: Nat) -> list[str]:
    """What of `spec` another one translates already."""
    out = [
        f"forwards {listen}: {other} goes to {target['address']} already, by {whose}; take another port"
        for listen in sorted(spec.forwards)
        for other, target in sorted(one.forwards.items())
        if _same_ports(listen, other)
    ]
    return out + [
        f"publicAddresses: {address} stands for {one.public_addresses[address]} already, by {whose}; take another one"
        for address in sorted(spec.public_addresses.keys() & one.public_addresses.keys())
    ]


def _listened(spec: Nat, new: list[str]) -> list[str]:
    """The programs of this host that a new forward would cut off."""
    from overlay_agent import sockets  # noqa: PLC0415 - only where there is a new forward

    out = []
    for listen in sorted(new):
        protocol, _, ports = listen.partition("/")
        target = spec.forwards[listen]
        versions = {ipaddress.ip_address(target[key]).version for key in ("address", "address6") if key in target}
        found = sockets.listening(sockets.PROTOCOLS[protocol], *_span(ports))
        whose = [(one.port, sockets.owner(one)) for one in found if one.is_reached_by(versions)]
        out += [
            f"forwards {listen}: {program or 'a program that is not seen from here'} listens on {protocol} {port} of "
            "this host, and would be cut off; take another port, or stop it"
            # A program with a socket for each address is one program.
            for port, program in sorted(dict.fromkeys(whose), key=str)
        ]
    return out


KIND = NatKind()
