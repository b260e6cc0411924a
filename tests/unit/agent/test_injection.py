"""No name and no value of a document means anything to a shell, nft, dnsmasq or keepalived but itself.

The agent checks on its own, whatever the program let through: each field of each kind is offered right values with
something put in that one of these would obey.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay_agent import document, fields
from overlay_agent.document import DocumentError
from overlay_agent.kinds import KINDS, dnsmasq, firewall, wireguard

#: What quotes, separates, comments or expands in a shell, nft(8), dnsmasq(8) or keepalived.conf(5); what ends a line
#: for anybody; what is not text.
MEANS = re.compile("[\\s\"'`$;&|<>(){}\\\\!#*?~^\\x00-\\x1f\\x7f-\\xa0\u2028\u2029\ud800-\udfff]|[^\\x00-\\x7f]")
EVIL = [
    "\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\x00", "\x1b", "\x7f", " ", "\t", '"', "'", "`", "$", ";",
    "&", "|",
    "<", ">", "(", ")", "{", "}", "\\", "#", "*", "?", "~", "!", "\ud800", "\u0664", "\uff11", "\u200b", "%", "%\n",
    '%"; }',
    "$(id)", "`id`", "\nEOF\n", "' ; id ; '", '" accept comment "', "\n}\nflush ruleset\n", "\nconf-file=/etc/shadow\n",
]  # fmt: skip
#: Values that are right for one field or another.
GOOD = [
    "", "a", "eth0", "br-app", "docker:net", "of eth0", "web-1", "app.example", "ntp-server", "option6:31", "42", "1-2",
    "198.18.0.11", "2001:db8::11", "fe80::1", "10.10.0.1/24", "fd00::1/64", "10.10.0.0/24", "fd00::/64",
    "10.10.0.5-10.10.0.9", "fd00::5-fd00::9", "02:00:00:00:00:01", "tcp/80", "udp/5000-5009", "80", "192.0.2.1:51820",
    "[2001:db8::1]:51820", "cookie-app:0123456789abcdef", base64.b64encode(bytes(32)).decode(), "udp", "l2tp",
    "inherit", "65000:42",
]  # fmt: skip


@st.composite
def evil(draw):
    text = draw(st.sampled_from(GOOD) | st.text(max_size=3))
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.sampled_from(EVIL) | st.characters()) + text[at:]


def leaves(type_):
    """The types of which a field's texts are."""
    if isinstance(type_, wireguard.Peers):
        return leaves(type_.key) + leaves(type_.value)
    if isinstance(type_, fields.Keyed):
        return leaves(type_.key) + leaves(type_.value)
    if isinstance(type_, fields.Either):
        return leaves(type_.first) + leaves(type_.second)
    if isinstance(type_, fields.Record):
        return [leaf for part in type_.parts.values() for leaf in leaves(part)]
    if isinstance(type_, fields.Items):
        return leaves(type_.item)
    if isinstance(type_, firewall.Allowed):
        return [fields.Label(), *(leaf for part in firewall._PARTS.values() for leaf in leaves(part))]
    return [type_]


def all_leaves():
    out = {"names of devices": fields.InterfaceName(), "names of services, hosts, stacks": fields.Label()}
    for kind in KINDS.values():
        for field in dataclasses.fields(kind.spec):
            for number, leaf in enumerate(leaves(field.metadata["type"])):
                out[f"{kind.name}.{field.name}[{number}]"] = leaf
    return out


LEAVES = all_leaves()


def means(text, type_):
    """What of the text somebody would obey, but for what the type is for."""
    if isinstance(type_, fields.MacOf):
        text = text.removeprefix(fields.OF)
    if type_ is dnsmasq.VALUE:  # the rest of one line of one file
        return re.findall('["#\\x00-\\x1f\\x7f-\\xa0\u2028\u2029\ud800-\udfff]', text) or text.strip(" ") != text
    return MEANS.findall(text) or (text.startswith("-") and "a word that starts with - is an option")


@given(text=evil())
def test_no_field_takes_what_somebody_would_obey(text):
    for place, type_ in LEAVES.items():
        if type_.check(text) is None:
            assert not means(text, type_), (place, text)
            assert not means(str(type_.normal(text)), type_), (place, text)


def test_every_field_of_text_is_offered_something_that_it_takes():
    """Else the test above says nothing of it."""
    numbers = (fields.Integer, fields.Flag, fields.Empty, fields.Nothing, fields.Others)
    texts = {place: type_ for place, type_ in LEAVES.items() if not isinstance(type_, numbers)}
    none = [p for p, t in texts.items() if not any(t.check(good) is None for good in GOOD)]
    assert [p for p in none if not isinstance(texts[p], fields.Choice)] == []
    assert all(not means(value, texts[p]) for p in none for value in texts[p].values)


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (fields.Address(), 'fe80::1%"; flush ruleset; #'),
        (fields.Address(), "fe80::1%eth0"),
        (fields.Prefixed(), "fe80::1%\n/64"),
        (fields.Subnet(), "fe80::%\n/64"),
        (fields.AddressRange(), "fe80::1%\n-fe80::2"),
        (fields.Range(1, 65535), "٤٢-٤٣"),
        (dnsmasq.VALUE, 'a"b'),
        (dnsmasq.VALUE, "a #b"),
        (dnsmasq.VALUE, "a\x85b"),
        (dnsmasq.VALUE, "\ud800"),
    ],
)
def test_what_was_taken_once(type_, text):
    assert type_.check(text)


BR = {"kind": "bridge", "mtu": 1450, "mac": "02:00:00:00:00:01", "addresses": {"10.10.0.1/24": {}}}
DOCUMENT = {
    "schema": 1,
    "owner": {"project": "p", "stack": "s", "id": "i"},
    "host": "a",
    "machine": "0123456789abcdef0123456789abcdef",
    "devices": {
        "br-app": BR,
        "vx-app": {
            "kind": "vxlan", "mtu": 1450, "mac": "02:00:00:00:00:02", "vni": 42, "local": "198.18.0.11",
            "bridge": "br-app", "peers": {"b": "198.18.0.12"}, "sourcePorts": "1000-2000",
        },
    },
    "services": {
        "firewall": {
            "kind": "firewall",
            "allow": {"vx-app": {"protocol": "udp", "port": 4789, "vni": 42, "peers": {"b": "198.18.0.12"}}},
        },
        "dhcp": {
            "kind": "dnsmasq", "interface": "br-app", "addresses": {"10.10.0.1": {}}, "subnets": {"10.10.0.0/24": {}},
            "ranges": {"10.10.0.100-10.10.0.199": {}}, "mtu": 1450, "domain": "app.example", "dns": ["198.18.0.53"],
            "hosts": {"web": {"mac": "02:00:00:00:00:09", "address": "10.10.0.9"}},
            "options": {"ntp-server": "10.10.0.5"},
            "router": "10.10.0.1", "routes": {"10.20.0.0/24": "10.10.0.2"},
        },
        "nat": {
            "kind": "nat", "interface": "br-app", "subnets": {"10.10.0.0/24": {}}, "masquerade": {"10.10.0.0/24": {}},
            "forwards": {"tcp/8080": {"address": "10.10.0.9", "ports": "80"}},
            "publicAddresses": {"198.18.0.200": "10.10.0.9"}, "mssClamp": True,
        },
        "vrrp": {"kind": "vrrp", "interface": "br-app", "group": 7, "priority": 100, "addresses": {"10.10.0.3/24": {}}},
        "hubs": {"kind": "hub-guard", "ports": {"vx-app": {}}},
        "guard": {"kind": "gateway-guard", "ports": {"vx-app": {}}, "addresses": {"10.10.0.1": {}, "fd00::1": {}}},
        "anycast": {
            "kind": "anycast-gateway", "interface": "br-app", "mac": "02:00:00:00:00:01", "own": "02:00:00:00:00:05",
            "addresses": {"10.10.0.1": {}, "fd00::1": {}}, "ports": {"vx-app": {}}, "dhcp": True,
        },
    },
}  # fmt: skip


def places(raw):
    """(holder, key, whether the key itself is meant) of each text in it."""
    items = list(raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ())
    out = [(raw, key, True) for key, _ in items if isinstance(key, str)]
    out += [(raw, key, False) for key, value in items if isinstance(value, str)]
    return out + [place for _, value in items for place in places(value)]


def texts(raw):
    if isinstance(raw, dict):
        return [text for key, value in raw.items() for text in [key, *texts(value)]]
    if isinstance(raw, list):
        return [text for value in raw for text in texts(value)]
    return [raw] if isinstance(raw, str) else []


def test_the_document_itself_is_taken():
    document.load(json.dumps(DOCUMENT))


@given(data=st.data())
def test_a_document_with_a_text_spoilt_is_refused_or_means_nothing_else(data):
    raw = json.loads(json.dumps(DOCUMENT))
    found = places(raw)
    holder, key, is_key = found[data.draw(st.integers(0, len(found) - 1))]
    text = key if is_key else holder[key]
    at = data.draw(st.integers(0, len(text)))
    spoilt = text[:at] + data.draw(st.sampled_from(EVIL) | st.characters()) + text[at:]
    if is_key:
        holder[spoilt] = holder.pop(key)
    else:
        holder[key] = spoilt
    try:
        read = document.load(json.dumps(raw))
    except DocumentError:
        return
    option = spoilt if holder is raw["services"].get("dhcp", {}).get("options") else None
    for one in texts(document.to_json(read)):
        assert one == option or not MEANS.search(one), one
    for name, spec in read.objects.items():
        for words in KINDS[spec.KIND].commands(name, spec, read.owner.alias(name)):
            assert "\x00" not in "".join(words)
            assert max(map(len, words)) < 5000


ANYTHING = [None, 7, -1, 2**70, 1e309, True, "x", [], {}, [[]], {"": {}}, "\ud800"]
#: A host may be called so; no devices and no services are few, and not wrong.
RIGHT = [("host", "x"), ("devices", {}), ("services", {})]


@pytest.mark.parametrize("key", ["schema", "owner", "host", "devices", "services"])
def test_what_is_another_thing_altogether_is_an_error(key):
    for value in ANYTHING:
        if (key, value) in RIGHT:
            continue
        with pytest.raises(DocumentError) as caught:
            document.load(json.dumps({**DOCUMENT, key: value}))
        assert all(": " in error for error in caught.value.errors), value


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"schema": 2}, "document.schema: 2; this agent reads 1 to 1: run `pulumi up`, which updates it"),
        ({"schema": 0}, "document.schema: 0; this agent reads 1 to 1: run `pulumi up`, which updates it"),
        ({"schema": "1"}, "document.schema: '1'; this agent reads 1 to 1: run `pulumi up`, which updates it"),
        (
            {"run": "id"},
            (
                "document.run: unknown field; known are schema, owner, host, machine, force, stopped, adopt, probe, "
                "installPackages, devices, services"
            ),
        ),
    ],
)
def test_unknown_versions_and_fields_are_refused(change, error):
    with pytest.raises(DocumentError) as caught:
        document.load(json.dumps({**DOCUMENT, **change}))
    assert caught.value.errors == [error]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b'{"schema": 2}', "install.schema: 2; this agent reads 1 to 1: run `pulumi up`, which updates it"),
        (b'{"schema": "1"}', "install.schema: '1'; this agent reads 1 to 1: run `pulumi up`, which updates it"),
        (b" " * (document.MAX_BYTES + 1), "install: 4194305 bytes; at most 4194304 are taken"),
    ],
    ids=["newer", "text", "too long"],
)
def test_what_other_verbs_are_sent(text, error):
    with pytest.raises(DocumentError) as caught:
        document.request(text, "install")
    assert caught.value.errors == [error]


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": ' * 100_000])
def test_what_other_verbs_are_sent_and_is_not_json(text):
    with pytest.raises(ValueError, match=r"."):
        document.request(text, "install")


def test_unknown_fields_of_objects_are_refused():
    raw = json.loads(json.dumps(DOCUMENT))
    raw["devices"]["br-app"]["postUp"] = "id"
    raw["services"]["dhcp"]["dhcpScript"] = "/bin/sh"
    with pytest.raises(DocumentError) as caught:
        document.load(json.dumps(raw))
    assert [error.partition(";")[0] for error in caught.value.errors] == [
        "br-app.postUp: unknown field",
        "dhcp.dhcpScript: unknown field",
    ]
