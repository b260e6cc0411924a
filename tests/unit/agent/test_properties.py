"""What holds for every document, and not only for those that somebody thought of."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import ipaddress
import json

from hypothesis import given
from hypothesis import strategies as st

from overlay_agent import document, fields
from overlay_agent.diff import CREATE, REMOVE, SET, diff
from overlay_agent.document import Document, DocumentError, Owner
from overlay_agent.fields import RECREATE
from overlay_agent.kinds import KINDS, evpn, wireguard

V4 = st.integers(0xC6120001, 0xC612FFFE).map(lambda n: ".".join(str(n >> s & 255) for s in (24, 16, 8, 0)))
V6 = st.integers(1, 0xFFFF).map(lambda n: f"2001:db8::{n:x}")
NAMES = st.from_regex(r"[a-z][a-z0-9]{0,7}", fullmatch=True)
GROUP = {"192": "239.1.1.1", "v6": "ff05::1"}


def values(type_: fields.Type, address):
    """Values that the type takes."""

    def of(inner):
        return values(inner, address)

    def record():
        parts = {key: of(part) for key, part in type_.parts.items()}
        optional = {key: parts.pop(key) for key in type_.may}
        return st.fixed_dictionaries(parts, optional=optional)

    def allowed():
        peers = st.dictionaries(NAMES, address, max_size=3)
        one = st.fixed_dictionaries({"protocol": st.just("udp"), "port": st.integers(1, 65535), "peers": peers})
        return st.dictionaries(NAMES, one, max_size=2)

    def keyed():
        # Of what is only found on hosts (Dnsmasq.lines) no document holds any.
        most = 0 if type_.key == fields.Choice([]) else 3
        return st.dictionaries(of(type_.key), of(type_.value), max_size=most)

    def key(name):
        return base64.b64encode(hashlib.sha256(name.encode()).digest()).decode()

    def wireguard_peers():  # each has a key of its own
        one = st.tuples(st.integers(1, 65535), st.integers(0, 65535))
        return st.dictionaries(NAMES, one, max_size=3).map(
            lambda found: {
                name: {
                    "publicKey": key(name), "endpoint": f"192.0.2.11:{port}", "allowedIps": [], "keepalive": alive,
                    "presharedKey": None,
                }
                for name, (port, alive) in found.items()
            }
        )  # fmt: skip

    known = {
        evpn.RouterId: lambda: V4,
        evpn.Vnis: lambda: keyed().map(type_.normal),
        evpn.Vni: lambda: st.integers(1, 0xFFFFFF).map(str),
        evpn.Target: lambda: st.integers(0, 0xFFFF).map(lambda n: f"65000:{n}"),
        wireguard.Peers: wireguard_peers,
        wireguard.PublicKey: lambda: NAMES.map(key),
        fields.Flag: st.booleans,
        fields.Mac: lambda: st.integers(0, 0xFFFF).map(lambda n: f"02:00:00:00:{n >> 8:02x}:{n & 255:02x}"),
        fields.InterfaceName: lambda: st.sampled_from(["eth0", "br0"]),
        fields.BridgeName: lambda: st.sampled_from(["br0", "docker:net"]),
        fields.Nothing: st.none,
        fields.Empty: lambda: st.just({}),
        fields.Others: lambda: st.just({}),
        fields.Label: lambda: NAMES,
        fields.Secret: lambda: NAMES.map(lambda name: f"{name}:0123456789abcdef"),
        fields.Address: lambda: address,
        fields.Prefixed: lambda: address.map(lambda a: f"{a}/24"),
        fields.Subnet: lambda: address.map(lambda a: str(ipaddress.ip_interface(f"{a}/30").network)),
        fields.AddressRange: lambda: address.map(lambda a: f"{a}-{ipaddress.ip_address(a) + 9}"),
        fields.Peers: lambda: st.dictionaries(NAMES, address, max_size=4),
        fields.Range: lambda: st.sampled_from(["0-0", "1000-2000", "5-5"]),
        fields.Integer: lambda: st.integers(type_.low, type_.high),
        fields.Choice: lambda: st.sampled_from(list(type_.values)) if type_.values else st.nothing(),
        fields.Pattern: lambda: st.from_regex(type_.form, fullmatch=True).map(type_.normal),
        fields.Items: lambda: st.lists(of(type_.item), max_size=3),
        fields.Record: record,
        fields.Either: lambda: of(type_.first) | of(type_.second),
        fields.Keyed: keyed,
    }
    form = next((one for one in type(type_).__mro__ if one in known), None)
    return known[form]() if form else allowed()


@st.composite
def spec_of(draw, kind):
    """A spec of the kind, each field at random; not always one that a document may hold."""
    address = draw(st.sampled_from([V4, V6]))
    chosen = {}
    for field in dataclasses.fields(KINDS[kind].spec):
        if fields.default_of(field) is fields.REQUIRED or draw(st.booleans()):
            chosen[field.name] = draw(values(field.metadata["type"], address))
    return KINDS[kind].spec(**chosen)


SPECS = st.sampled_from(sorted(KINDS)).flatmap(spec_of)
STATES = st.dictionaries(NAMES, SPECS, max_size=4)


def field_of(spec, what):
    """The field that a row of differences is about."""
    for field in dataclasses.fields(spec):
        type_ = field.metadata["type"]
        word = type_.word if isinstance(type_, fields.Keyed) else None
        if what == fields.json_name(field.name) or (word and what.startswith(f"{word} ")):
            return field.name
    return "allow"


def carried_out(found, changes):
    """What a host that does as it is told has after the changes. Only named rows are set."""
    out = dict(found)
    for change in changes:
        if change.action == REMOVE:
            del out[change.name]
        elif change.action in (CREATE, RECREATE):
            out[change.name] = change.wanted
        else:
            assert change.action == SET
            fixed = {f.name for f in dataclasses.fields(change.wanted) if f.metadata["change"] == RECREATE}
            assert all(getattr(change.found, name) == getattr(change.wanted, name) for name in fixed)
            differing = {field_of(change.wanted, what) for what, _, _ in change.rows}
            more = {name: getattr(change.wanted, name) for name in differing}
            out[change.name] = dataclasses.replace(out[change.name], **more)
    return out


@given(found=STATES, wanted=STATES)
def test_after_the_changes_nothing_is_left_to_change(found, wanted):
    assert diff(wanted, carried_out(found, diff(wanted, found))) == []


@given(state=STATES)
def test_what_is_as_wanted_has_no_changes(state):
    assert diff(state, state) == []


@given(found=STATES, wanted=STATES)
def test_every_change_has_something_to_say(found, wanted):
    for change in diff(wanted, found):
        assert change.lines()
        assert change.drift()
        assert all(line.startswith(f"{change.name}: ") for line in change.lines() + change.drift())


@given(spec=SPECS)
def test_a_spec_survives_json(spec):
    raw = json.loads(json.dumps(fields.to_json(spec)))
    errors: list[str] = []
    assert fields.from_json(type(spec), "x", raw, errors) == spec
    assert errors == []
    assert fields.as_found(type(spec), raw) == spec


@given(state=STATES)
def test_a_document_survives_json(state):
    groups = {
        group: {n: s for n, s in state.items() if KINDS[s.KIND].group == group} for group in ("devices", "services")
    }
    wanted = Document(Owner("p", "s", "i"), "a", None, False, groups["devices"], groups["services"])
    with contextlib.suppress(DocumentError):  # its specs may contradict themselves
        assert document.load(document.dump(document.to_json(wanted))) == wanted


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    sorted(
        {fields.json_name(f.name) for kind in KINDS.values() for f in dataclasses.fields(kind.spec)}
        | {"kind", "schema", "owner", "host", "machine", "force", "devices", "services"}
    )
)
WORDS = JSON | st.sampled_from(["vxlan", "bridge", "firewall", "198.18.0.1", "2001:db8::1", "10.0.0.1/24", 1, "i"])
OBJECTS = st.dictionaries(NAMES | st.text(max_size=3), st.dictionaries(KEYS, WORDS) | WORDS, max_size=3)
NEARLY = st.fixed_dictionaries(
    {"schema": st.just(1) | JSON},
    optional={"owner": JSON, "host": WORDS, "machine": WORDS, "force": JSON, "devices": OBJECTS, "services": OBJECTS},
)


@given(raw=JSON | NEARLY)
def test_whatever_is_sent_the_loader_raises_nothing_but_its_own_error(raw):
    with contextlib.suppress(DocumentError):
        document.parse(raw)


@given(text=st.binary(max_size=40) | st.text(max_size=40))
def test_whatever_bytes_are_sent(text):
    with contextlib.suppress(DocumentError):
        document.load(text)


@given(spec=SPECS, change=st.dictionaries(KEYS, WORDS, max_size=3))
def test_a_spec_with_some_fields_spoilt(spec, change):
    raw = {**fields.to_json(spec), **change}
    group = KINDS[spec.KIND].group
    owner = {"project": "p", "stack": "s", "id": "i"}
    with contextlib.suppress(DocumentError):
        document.parse({"schema": 1, "owner": owner, "host": "a", group: {"x": raw}})
