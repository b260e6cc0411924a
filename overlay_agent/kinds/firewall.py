"""What may reach the tunnels' ports: the peers, and nobody else (nft(8)).

A table of our own per stack, replaced as a whole in one transaction of the kernel. It judges only
packets that carry this stack's VNI, or session id of L2TP: another network on the same port is its own
stack's business. GRE needs none: the kernel takes it only from a tunnel's remote address.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import fields
from overlay_agent.fields import Difference
from overlay_agent.kinds.base import Spec, attribute
from overlay_agent.kinds.table import TableKind, table_of

if TYPE_CHECKING:
    from overlay_agent.kernel import Kernel

#: Where the VNI stands in a VXLAN packet, in bits from its UDP header on: 8 bytes of UDP, then 8
#: bits of flags and 24 reserved (RFC 7348, section 5).
VNI_OFFSET, VNI_BITS = 96, 24
#: Before the chains of others, which mostly stand at 0 (filter).
PRIORITY = -10

#: Where the session id stands in an L2TPv3 packet straight in IP (RFC 3931, section 4.1.1), and IP's number for it.
SESSION_OFFSET, SESSION_BITS, L2TP = 0, 32, 115

class _From(fields.Type):
    """One address, or all of a network (nft(8), prefix)."""

    def check(self, value: Any) -> str | None:
        if fields.Address().check(value) is None or fields.Subnet().check(value) is None:
            return None
        return f"{value!r} is neither an IP address nor a network"

    def normal(self, value: Any) -> Any:
        # nft shows a network of one address as that address.
        network = ipaddress.ip_network(value)
        return str(network.network_address if network.num_addresses == 1 else network)


_PARTS: dict[str, fields.Type] = {
    "protocol": fields.Choice(["udp", "l2tp"]),
    "port": fields.Integer(1, 65535),
    "vni": fields.Integer(1, 16777215),
    "session": fields.Integer(1, 0xFFFFFFFF),
    "peers": fields.Peers(_From()),
}
#: What an entry of each protocol has to have, and may have beside it.
_NEEDS = {"udp": ("port", "peers"), "l2tp": ("session", "peers")}
_MAY = {"udp": ("vni",), "l2tp": ()}


class Allowed(fields.Type):
    """By tunnel: protocol, port and VNI (left out: any), or L2TP's session id, and the peers that are let in."""

    def check(self, value: Any) -> str | None:
        if not isinstance(value, dict):
            return f"{value!r} is not an object"
        return "; ".join(f"{name}: {wrong}" for name, one in value.items() for wrong in self._wrong(name, one)) or None

    def _wrong(self, name: Any, one: Any) -> list[str]:
        wrong = fields.Label().check(name)
        if wrong or not isinstance(one, dict):
            return [wrong or f"{one!r} is not an object"]
        out = [f"{key!r} is unknown; known are {', '.join(_PARTS)}" for key in one if key not in _PARTS]
        protocol = one.get("protocol") if isinstance(one.get("protocol"), str) else None
        needs = _NEEDS.get(protocol or "", ("protocol", "peers"))
        out += [f"{key} is missing" for key in _PARTS if key in needs and key not in one]
        if protocol in _NEEDS:
            allowed = {"protocol", *needs, *_MAY[protocol]}
            out += [f"{key}: {protocol} has none; leave it out" for key in _PARTS if key in one and key not in allowed]
        checked = ((key, type_.check(one[key])) for key, type_ in _PARTS.items() if key in one)
        out += [f"{key}: {error}" for key, error in checked if error]
        if not out and len({":" in address for address in one["peers"].values()}) > 1:
            out.append("peers: IPv4 and IPv6 are mixed; a tunnel has one of them")
        return out

    def normal(self, value: Any) -> Any:
        return {name: {**one, "peers": _PARTS["peers"].normal(one["peers"])} for name, one in value.items()}

    def differences(self, name: str, found: Any, wanted: Any) -> list[Difference]:
        found, wanted = self.normal(found), self.normal(wanted)
        rows: list[Difference] = []
        for key in sorted(found.keys() | wanted.keys()):
            if key not in found or key not in wanted:
                rows.append((key, _text(found.get(key)), _text(wanted.get(key))))
                continue
            for part, type_ in _PARTS.items():
                is_, want = found[key].get(part), wanted[key].get(part)
                more = type_.differences(part, is_, want) if None not in (is_, want) else [(part, is_, want)]
                rows += [(f"{key} {what}", a, b) for what, a, b in more if a != b]
        return rows


def _text(one: Mapping[str, Any] | None) -> str | None:
    if one is None:
        return None
    port = f" {one['port']}" if "port" in one else ""
    more = "".join(f" {part} {one[part]}" for part in ("vni", "session") if part in one)
    return f"{one['protocol']}{port}{more} from {len(one['peers'])} peers"


@dataclasses.dataclass(frozen=True)
class Firewall(Spec):
    """What one stack lets in on one host. Units: none."""

    KIND: ClassVar[str] = "firewall"

    allow: dict[str, Any] = attribute(Allowed(), default={})


class FirewallKind(TableKind):
    """How it stands in nftables: one table, one chain on the input hook, two rules a tunnel."""

    name = "firewall"
    spec = Firewall
    #: After the devices: what is refused beforehand costs no packet.
    rank = 20
    instead = ", or set openFirewall: false"

    def find(self, kernel: Kernel, name: str, mark: str) -> Firewall | None:
        from overlay_agent import nft  # noqa: PLC0415 - subprocess costs 5 ms where there is no firewall

        rows = nft.table(self.family, table_of(mark))
        return None if rows is None else Firewall(_allow(rows))

    def body(self, spec: Firewall) -> list[str]:
        lines = ["\tchain input {", f"\t\ttype filter hook input priority {PRIORITY}; policy accept;"]
        for name, one in sorted(spec.allow.items()):
            if _PARTS["protocol"].check(one["protocol"]):
                continue  # what was found and is not ours; `put_back` brings it back word by word
            if one["protocol"] == "l2tp":
                match = f"meta l4proto {L2TP} @th,{SESSION_OFFSET},{SESSION_BITS} {one['session']}"
            else:
                match = f"{one['protocol']} dport {one['port']}"
                match += f" @th,{VNI_OFFSET},{VNI_BITS} {one['vni']}" if "vni" in one else ""
            peers = sorted(one["peers"].values())
            if peers:
                family = "ip6" if ":" in peers[0] else "ip"
                lines.append(f'\t\t{match} {family} saddr {{ {", ".join(peers)} }} accept comment "{name}"')
            lines.append(f'\t\t{match} drop comment "{name}"')
        return [*lines, "\t}"]


def _allow(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the table's rules let in. Anything that we would not have written stands in it under a
    name of its own, so that it is seen as a difference."""
    allow: dict[str, Any] = {}
    dropped: set[str] = set()
    for place, row in enumerate(rows):  # handles would differ after an undo
        chain, rule = row.get("chain"), row.get("rule")
        if rule is not None:
            one, verdict = _parsed(rule.get("expr", []))
            name = str(rule.get("comment", ""))
            fits = bool(name) and name not in dropped and not (verdict == "accept" and name in allow)
            if one and fits and (name not in allow or {**allow[name], "peers": {}} == {**one, "peers": {}}):
                allow.setdefault(name, one)
                dropped |= {name} if verdict == "drop" else set()
            else:
                allow[f"rule {place}"] = _UNKNOWN
        elif chain is not None:
            if [chain.get(key) for key in ("name", "hook", "prio", "policy")] != ["input", "input", PRIORITY, "accept"]:
                allow[f"chain {chain['name']}"] = _UNKNOWN
        elif "table" not in row:
            allow[next(iter(row))] = _UNKNOWN
    for name in allow.keys() - dropped:
        if allow[name] is not _UNKNOWN:
            allow[name] = {**allow[name], "protocol": "no drop of others,"}
    return allow


_UNKNOWN: dict[str, Any] = {"protocol": "unknown", "port": 0, "peers": {}}


def _parsed(expressions: list[dict[str, Any]]) -> tuple[dict[str, Any] | None, str]:
    """(protocol, port, VNI and peers of one of our rules, its verdict); None where it is not ours."""
    one: dict[str, Any] = {"peers": {}}
    verdict = ""
    for expression in expressions:
        if expression.keys() & {"accept", "drop"}:
            verdict = next(iter(expression))
            continue
        match = expression.get("match", {})
        left = match.get("left", {}) if match.get("op") == "==" else {}
        payload, right = left.get("payload", {}), match.get("right")
        if payload.get("field") == "dport" and isinstance(right, int):
            one.update(protocol=payload["protocol"], port=right)
        elif payload == {"base": "th", "offset": VNI_OFFSET, "len": VNI_BITS} and isinstance(right, int):
            one["vni"] = right
        elif left == {"meta": {"key": "l4proto"}} and right in (L2TP, "l2tp"):
            one["protocol"] = "l2tp"
        elif payload == {"base": "th", "offset": SESSION_OFFSET, "len": SESSION_BITS} and isinstance(right, int):
            one["session"] = right
        elif payload.get("field") == "saddr":
            found = right["set"] if isinstance(right, dict) and "set" in right else [right]
            texts = [_address(address) for address in found]
            if None in texts:
                return None, ""
            one["peers"] = {text: text for text in texts}
        else:
            return None, ""
    whole = "port" in one or ("session" in one and one.get("protocol") == "l2tp")
    fits = whole and verdict and bool(one["peers"]) == (verdict == "accept")
    return (one, verdict) if fits else (None, "")


def _address(found: Any) -> str | None:
    """An address as nft has it, or a network."""
    if isinstance(found, str):
        return found
    prefix = found.get("prefix") if isinstance(found, dict) else None
    return f"{prefix['addr']}/{prefix['len']}" if prefix else None


KIND = FirewallKind()
