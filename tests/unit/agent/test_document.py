"""The strict loader says every error, each exactly; what is loaded is dumped as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from overlay_agent import document
from overlay_agent.document import DocumentError

CASES = json.loads((Path(__file__).parent / "cases" / "documents.json").read_text())
VX = {"kind": "vxlan", "mtu": 1450, "mac": "02:00:00:00:00:02", "vni": 42, "local": "198.18.0.11"}
BR = {"kind": "bridge", "mtu": 1450, "mac": "02:00:00:00:00:01"}
GOOD = {
    "schema": 1,
    "owner": {"project": "p", "stack": "s", "id": "i"},
    "host": "a",
    "devices": {"vx": VX, "br": BR},
}


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_each_error_is_said_exactly(case):
    raw = case.get("document", {**GOOD, **case.get("change", {})})
    if "device" in case:
        raw["devices"] = {"br": BR, "vx": {**VX, **case["device"]}}
    with pytest.raises(DocumentError) as caught:
        document.parse(raw)
    assert caught.value.errors == case["errors"]


def test_all_errors_come_at_once():
    raw = {**GOOD, "host": "", "devices": {"vx": {**VX, "mtu": 1, "vni": 0}, "br": {**BR, "ageing": -1}}}
    with pytest.raises(DocumentError) as caught:
        document.parse(raw)
    assert [error.split(":")[0] for error in caught.value.errors] == ["document.host", "br.ageing", "vx.mtu", "vx.vni"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            b"{",
            (
                "document: not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "
                "send what the program wrote"
            ),
        ),
        (b"", "document: not JSON (Expecting value: line 1 column 1 (char 0)); send what the program wrote"),
        (b" " * (4 * 1024 * 1024 + 1), "document: 4194305 bytes; at most 4194304 are taken"),
    ],
    ids=["half", "empty", "too long"],
)
def test_what_is_no_document_at_all(text, error):
    with pytest.raises(DocumentError) as caught:
        document.load(text)
    assert caught.value.errors == [error]


def test_deep_nesting_is_an_error_and_no_crash():
    with pytest.raises(DocumentError, match=r"^document: not JSON"):
        document.load("[" * 100_000)


def test_the_dump_is_canonical_and_leaves_defaults_out():
    raw = {**GOOD, "force": False, "devices": {"vx": {**VX, "port": 4789, "ttl": 0, "up": True, "peers": {}}}}
    assert document.dump(document.to_json(document.parse(raw))) == (
        '{\n "devices": {\n  "vx": {\n   "kind": "vxlan",\n   "local": "198.18.0.11",\n'
        '   "mac": "02:00:00:00:00:02",\n   "mtu": 1450,\n   "vni": 42\n  }\n },\n "host": "a",\n'
        ' "owner": {\n  "id": "i",\n  "project": "p",\n  "stack": "s"\n },\n "schema": 1\n}\n'
    )


def test_what_is_set_stays():
    allow = {"vx": {"protocol": "udp", "port": 4789, "vni": 42, "peers": {"b": "198.18.0.12"}}}
    raw = {
        **GOOD,
        "machine": "0123456789abcdef0123456789abcdef",
        "force": True,
        "devices": {"br": {**BR, "stp": True, "addresses": {"10.0.0.1/24": {}}}, "vx": {**VX, "bridge": "br"}},
        "services": {"firewall": {"kind": "firewall", "allow": allow}},
    }
    assert document.to_json(document.parse(raw)) == raw
    assert document.load(document.dump(raw)) == document.parse(raw)


def test_addresses_get_their_one_spelling():
    device = {**VX, "local": "2001:0DB8::0011", "peers": {"b": "2001:db8:0::12"}, "addresses": {"FD00::0001/64": {}}}
    spec = document.parse({**GOOD, "devices": {"vx": device}}).devices["vx"]
    assert (spec.local, spec.peers, spec.addresses) == ("2001:db8::11", {"b": "2001:db8::12"}, {"fd00::1/64": {}})


def test_modules_are_those_of_all_objects():
    assert document.parse(GOOD).modules() == {"bridge", "vxlan"}
