"""What a spec's fields may hold and how two values differ: one declaration serves all readers.

A spec class is the only list of a kind's attributes (design.md, "Layout"). The strict loader,
the diff, the read-back and `explain` all walk that list, so an attribute cannot be checked in
one place and forgotten in another.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

#: How a difference is mended: by changing the object in place, or by making it anew.
SET = "set"
RECREATE = "recreate"

#: The default of a field that has none. (Not dataclasses.MISSING: a kind's own required fields
#: follow the optional ones of its base class, which dataclasses allow from Python 3.10 on.)
REQUIRED: Any = type("Required", (), {"__repr__": lambda _: "REQUIRED"})()

#: (what differs, the found value, the wanted value); None where one side has nothing.
Difference = tuple[str, Optional[Any], Optional[Any]]

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
#: What the kernel takes as an interface name (dev_valid_name in net/core/dev.c): no slash, colon
#: or white space, not "." or ".."; here only what needs no quoting anywhere.
_IFNAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")


#: Before the name of a Docker network, where a bridge is named by it.
DOCKER = "docker:"
#: Before the name of a NIC, where a bridge has that one's MAC address.
OF = "of "


class Type:
    """The values one field may hold. `check` returns what is wrong, or None."""

    def check(self, value: Any) -> str | None:
        raise NotImplementedError

    def normal(self, value: Any) -> Any:
        """The one spelling in which two equal values compare equal."""
        return value

    def differences(self, name: str, found: Any, wanted: Any) -> list[Difference]:
        """Every difference between what was found and what is wanted, as rows to show."""
        found, wanted = self.normal(found), self.normal(wanted)
        return [] if found == wanted else [(name, found, wanted)]


@dataclasses.dataclass(frozen=True)
class Integer(Type):
    """A whole number within bounds, both included."""

    low: int
    high: int

    def check(self, value: Any) -> str | None:
        if type(value) is int and self.low <= value <= self.high:
            return None
        return f"{value!r} is not a whole number from {self.low} to {self.high}"


class Flag(Type):
    """True or false."""

    def check(self, value: Any) -> str | None:
        return None if isinstance(value, bool) else f"{value!r} is not true or false"


@dataclasses.dataclass(frozen=True)
class Choice(Type):
    """One of a few words."""

    values: Sequence[str]

    def check(self, value: Any) -> str | None:
        return None if value in self.values else f"{value!r} is not one of {', '.join(self.values)}"


@dataclasses.dataclass(frozen=True)
class Either(Type):
    """A value of one of two types, such as a TTL: a number or "inherit"."""

    first: Type
    second: Type

    def check(self, value: Any) -> str | None:
        wrong = self.first.check(value)
        if wrong is None or self.second.check(value) is None:
            return None
        return wrong if isinstance(self.second, Nothing) else f"{wrong}, and not 'inherit'"

    def normal(self, value: Any) -> Any:
        return (self.second if self.first.check(value) else self.first).normal(value)


class Nothing(Type):
    """Only null: the attribute is not there."""

    def check(self, value: Any) -> str | None:
        return None if value is None else f"{value!r} is not null"


class Mac(Type):
    """The MAC address of one interface, in lower case."""

    def check(self, value: Any) -> str | None:
        if not isinstance(value, str) or not _MAC.fullmatch(value):
            return f"{value!r} is not a MAC address like 02:00:5e:00:53:01 (lower case)"
        first = int(value[:2], 16)
        if first & 1 or value == "00:00:00:00:00:00":
            return f"{value!r} is not a unicast MAC address"
        return None


class MacOf(Mac):
    """A MAC address, or `of NIC`: the one that the host's NIC has (see bridges.py)."""

    def check(self, value: Any) -> str | None:
        if isinstance(value, str) and value.startswith(OF):
            return InterfaceName().check(value[len(OF) :])
        return super().check(value)


class InterfaceName(Type):
    """A network interface's name."""

    def check(self, value: Any) -> str | None:
        if isinstance(value, str) and _IFNAME.fullmatch(value):
            return None
        return f"{value!r} is not an interface name (1 to 15 letters, digits, '_', '.', '-')"


class Address(Type):
    """One IPv4 or IPv6 address, without a prefix length."""

    def check(self, value: Any) -> str | None:
        return None if _parsed(ipaddress.ip_address, value) else f"{value!r} is not an IP address"

    def normal(self, value: Any) -> Any:
        return str(ipaddress.ip_address(value))


@dataclasses.dataclass(frozen=True)
class Range(Type):
    """A pair of numbers written "low-high"."""

    low: int
    high: int

    def check(self, value: Any) -> str | None:
        match = re.fullmatch(r"([0-9]{1,6})-([0-9]{1,6})", value) if isinstance(value, str) else None
        if match and self.low <= int(match[1]) <= int(match[2]) <= self.high:
            return None
        return f"{value!r} is not a range like '{self.low}-{self.high}' within those bounds"


@dataclasses.dataclass(frozen=True)
class Keyed(Type):
    """An object whose keys come and go one by one (a list would show every later row as changed)."""

    word: str
    key: Type
    value: Type

    def check(self, value: Any) -> str | None:
        if not isinstance(value, dict):
            return f"{value!r} is not an object"
        wrong = [self.key.check(k) or self.value.check(v) for k, v in value.items()]
        return "; ".join(w for w in wrong if w) or self._twice(value)

    def _twice(self, value: Any) -> str | None:
        """Of two spellings of one key the later one would win in silence."""
        first: dict[Any, Any] = {}
        same = [(k, first[n]) for k in value for n in [self.key.normal(k)] if first.setdefault(n, k) != k]
        return "; ".join(f"{k!r} is {other!r} too; keep one of them" for k, other in same) or None

    def normal(self, value: Any) -> Any:
        return {self.key.normal(k): self.value.normal(v) for k, v in value.items()}

    def differences(self, name: str, found: Any, wanted: Any) -> list[Difference]:
        found, wanted = self.normal(found), self.normal(wanted)
        keys = sorted(found.keys() | wanted.keys())
        rows = ((f"{self.word} {key}", found.get(key), wanted.get(key)) for key in keys)
        return [(what, is_, want) for what, is_, want in rows if is_ != want]


class BridgeName(InterfaceName):
    """A bridge: an interface's name, or `docker:NETWORK` for the one that Docker made for a network."""

    def check(self, value: Any) -> str | None:
        if isinstance(value, str) and value.startswith(DOCKER):
            return DOCKER_NETWORK.check(value[len(DOCKER) :])
        return super().check(value)


def holds_bridge(field: dataclasses.Field[Any]) -> bool:
    """Whether the field of a spec names a bridge."""
    type_ = field.metadata["type"]
    return isinstance(type_.first if isinstance(type_, Either) else type_, BridgeName)


class Peers(Keyed):
    """Peers by name. The kernel knows only their addresses, so those are what is compared."""

    def __init__(self, value: Type | None = None) -> None:
        super().__init__("peer", Label(), value or Address())

    def differences(self, name: str, found: Any, wanted: Any) -> list[Difference]:
        found, wanted = self.normal(found), self.normal(wanted)
        have, want = set(found.values()), set(wanted.values())
        rows: list[Difference] = [(f"peer {n}", None, a) for n, a in sorted(wanted.items()) if a not in have]
        # A peer that was read from the kernel has its address as name: said once.
        return rows + [(f"peer {n}", a if a != n else {}, None) for n, a in sorted(found.items()) if a not in want]


class Label(Type):
    """A name that people give: of a host, a peer, a segment, a stack."""

    _pattern = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.:-]{0,126}[A-Za-z0-9_])?")

    def check(self, value: Any) -> str | None:
        if isinstance(value, str) and self._pattern.fullmatch(value):
            return None
        return f"{value!r} is not a name (letters, digits, '_', '.', '-'; at most 128)"


class Secret(Type):
    """A reference to a secret value on the host: a name, a colon, 16 digits of an HMAC (see secrets.py). What is
    none is not shown: it may be the value itself."""

    _pattern = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,126}[A-Za-z0-9_])?:[0-9a-f]{16}")

    def check(self, value: Any) -> str | None:
        if isinstance(value, str) and self._pattern.fullmatch(value):
            return None
        return "<secret> is not a reference to a secret (a name, a colon, 16 hexadecimal digits)"


class Prefixed(Type):
    """An address with its prefix length, such as 10.10.0.1/24."""

    def check(self, value: Any) -> str | None:
        if _parsed(ipaddress.ip_interface, value) and "/" in value:
            return None
        return f"{value!r} is not an address with a prefix length, such as 10.10.0.1/24"

    def normal(self, value: Any) -> Any:
        return str(ipaddress.ip_interface(value))


class Subnet(Type):
    """An IPv4 or IPv6 network, such as 10.10.0.0/24."""

    def check(self, value: Any) -> str | None:
        if _parsed(ipaddress.ip_network, value) and "/" in value:
            return None
        return f"{value!r} is not a subnet, such as 10.10.0.0/24"

    def normal(self, value: Any) -> Any:
        return str(ipaddress.ip_network(value))


class AddressRange(Type):
    """Two addresses of one IP version and all between them, such as 10.10.0.100-10.10.0.199."""

    def check(self, value: Any) -> str | None:
        low, _, high = value.partition("-") if isinstance(value, str) else ("", "", "")
        first, last = _parsed(ipaddress.ip_address, low), _parsed(ipaddress.ip_address, high)
        if first and last and first.version == last.version and first <= last:
            return None
        return f"{value!r} is not a range of addresses, such as 10.10.0.100-10.10.0.199"

    def normal(self, value: Any) -> Any:
        return "-".join(str(ipaddress.ip_address(end)) for end in value.split("-"))


@dataclasses.dataclass(frozen=True)
class Pattern(Type):
    """A text of one form. `what`: the form in words, with an example."""

    form: str
    what: str

    def check(self, value: Any) -> str | None:
        if isinstance(value, str) and re.fullmatch(self.form, value):
            return None
        return f"{value!r} is not {self.what}"


@dataclasses.dataclass(frozen=True)
class Record(Type):
    """An object with these keys and no others; those in `may` can be left out."""

    parts: Mapping[str, Type]
    may: frozenset[str] = frozenset()

    def check(self, value: Any) -> str | None:
        if not isinstance(value, dict):
            return f"{value!r} is not an object"
        out = [f"{key!r} is unknown; known are {', '.join(self.parts)}" for key in value if key not in self.parts]
        out += [f"{key} is missing" for key in self.parts if key not in value and key not in self.may]
        checked = ((key, type_.check(value[key])) for key, type_ in self.parts.items() if key in value)
        return "; ".join([*out, *(f"{key}: {wrong}" for key, wrong in checked if wrong)]) or None

    def normal(self, value: Any) -> Any:
        return {key: self.parts[key].normal(inner) for key, inner in value.items()}


@dataclasses.dataclass(frozen=True)
class Items(Type):
    """A list, for what is written in an order and seldom changes."""

    item: Type

    def check(self, value: Any) -> str | None:
        if not isinstance(value, list):
            return f"{value!r} is not a list"
        return "; ".join(wrong for wrong in map(self.item.check, value) if wrong) or None

    def normal(self, value: Any) -> Any:
        return [self.item.normal(item) for item in value]


class Empty(Type):
    """An object with nothing in it yet: room for options beside a key."""

    def check(self, value: Any) -> str | None:
        return None if value == {} else f"{value!r} is not {{}}"


class Others(Keyed):
    """What was found in a place that is ours and is not of our making. A document has none."""

    def __init__(self, word: str) -> None:
        super().__init__(word, Nothing(), Empty())

    def normal(self, value: Any) -> Any:
        return value

    def check(self, value: Any) -> str | None:
        return None if value == {} else f"{value!r} is what only a look at the host can tell; leave it out"


class Lines(Keyed):
    """Lines of a service's configuration that no field explains, each EXTRA or MISSING; no document asks for one."""

    def __init__(self) -> None:
        super().__init__("line", Choice([]), Empty())

    def differences(self, name: str, found: Any, wanted: Any) -> list[Difference]:
        changed = [line for line in sorted(found.keys() | wanted.keys()) if found.get(line) != wanted.get(line)]
        there = {line for line in changed if found.get(line) == EXTRA or wanted.get(line) == MISSING}
        return [(f"line {line}", {}, None) if line in there else (f"line {line}", None, {}) for line in changed]


#: What a line is that should not be there, and one that should.
EXTRA, MISSING = "not declared", "missing"
#: As Docker takes names (RestrictedNamePattern); of a network also a single letter (tried with 20.10).
DOCKER_NETWORK = Pattern(
    r"[A-Za-z0-9][A-Za-z0-9_.-]*",
    "the name of a Docker network (letters, digits, '_', '.', '-'; first a letter or digit)",
)
ADDRESSES = Keyed("address", Prefixed(), Empty())


def link_local_of(mac: str) -> str:
    """The link-local address that the kernel makes of it (RFC 4291, appendix A)."""
    raw = bytes.fromhex(mac.replace(":", ""))
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]))


def optional(kind: Type) -> Type:
    """The same type, or null."""
    return Either(kind, Nothing())


def _parsed(parse: Callable[[Any], Any], value: Any) -> Any:
    # Behind a % Python takes anything for the name of a zone (RFC 4007), also quotes and new lines.
    if not isinstance(value, str) or "%" in value:
        return None
    try:
        return parse(value)
    except ValueError:
        return None


def attribute(type_: Type, *, default: Any = REQUIRED, change: str = SET, nla: str | None = None) -> Any:
    """One field of a spec.

    `change`: SET or RECREATE, how a difference is mended. `nla`: the netlink attribute that holds
    it one to one (numbers, and flags as 0 or 1); None where the kind translates it itself.
    """
    metadata = {"type": type_, "change": change, "nla": nla}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def json_name(name: str) -> str:
    """The word a field has in stack files and documents: vlan_filtering is vlanFiltering."""
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The field's default, or REQUIRED."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def to_json(spec: Any) -> dict[str, Any]:
    """The spec as a document holds it: what equals its default is left out, so diffs stay short."""
    out: dict[str, Any] = {"kind": spec.KIND}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if value != default_of(field):
            out[json_name(field.name)] = value
    return out


def from_json(spec_class: Any, where: str, raw: Mapping[str, Any], errors: list[str]) -> Any:
    """The spec, or None after adding every error found to `errors`."""
    known = {json_name(f.name): f for f in dataclasses.fields(spec_class)}
    before = len(errors)
    errors.extend(
        f"{where}.{key}: unknown field; known are {', '.join(sorted(known))}"
        for key in sorted(raw.keys() - known.keys() - {"kind"})
    )
    values: dict[str, Any] = {}
    for key, field in known.items():
        if key not in raw:
            if default_of(field) is REQUIRED:
                errors.append(f"{where}.{key}: missing; it has no default")
            continue
        wrong = field.metadata["type"].check(raw[key])
        if wrong:
            errors.append(f"{where}.{key}: {wrong}")
        else:
            values[field.name] = field.metadata["type"].normal(raw[key])
    if len(errors) > before:
        return None
    return spec_class(**values)


def as_found(spec_class: Any, raw: Mapping[str, Any]) -> Any:
    """The spec that `to_json` wrote of something found. Not checked: what is on a host may be what
    no document would be allowed to ask for, and an undo has to bring it back all the same."""
    values = {f.name: raw[json_name(f.name)] for f in dataclasses.fields(spec_class) if json_name(f.name) in raw}
    return spec_class(**values)
