"""What a WireGuard device's document may say, and how its peers' differences are told. Pure."""

from __future__ import annotations

import base64
import dataclasses

import pytest

from overlay_agent import document
from overlay_agent.diff import diff
from overlay_agent.kinds.wireguard import KIND, Wireguard

ONE, TWO, THREE = (base64.b64encode(bytes([n]) * 32).decode() for n in (7, 8, 9))
B = {"publicKey": TWO, "endpoint": "198.18.0.12:51820", "allowedIps": ["fd00:5::b/128"]}
C = {"publicKey": THREE, "endpoint": "[2001:db8::13]:51820", "allowedIps": ["fd00:5::c/128"]}
WANTED = Wireguard(mtu=1420, listen_port=51820, public_key=ONE, peers={"b": B})
#: As the kernel has it: peers have no names.
FOUND = dataclasses.replace(WANTED, peers={TWO: {**B, "keepalive": 0, "presharedKey": None}})


def lines(**peers):
    changes = diff({"wg": dataclasses.replace(WANTED, peers=peers)}, {"wg": FOUND})
    return [line for change in changes for line in change.lines()]


def test_a_name_is_no_difference():
    assert lines(b=B) == []
    assert lines(other=B) == []
    assert lines(b={**B, "allowedIps": ["fd00:5:0::b/128"]}) == []


@pytest.mark.parametrize(
    ("peers", "line"),
    [
        ({"b": B, "c": C}, "wg: + peer c [2001:db8::13]:51820 for fd00:5::c/128"),
        ({}, f"wg: - peer {TWO} 198.18.0.12:51820 for fd00:5::b/128"),
        ({"b": {**B, "publicKey": THREE}}, f"wg: peer b publicKey {TWO} -> {THREE}"),
        ({"b": {**B, "endpoint": "198.18.0.12:5"}}, "wg: peer b endpoint 198.18.0.12:51820 -> 198.18.0.12:5"),
        ({"b": {**B, "keepalive": 25}}, "wg: peer b keepalive 0 -> 25"),
        ({"b": {**B, "allowedIps": []}}, "wg: peer b allowedIps fd00:5::b/128 -> nothing"),
        ({"b": {**B, "presharedKey": "psk:0123456789abcdef"}}, "wg: + peer b presharedKey psk:0123456789abcdef"),
    ],
)
def test_a_difference_is_one_peers(peers, line):
    assert lines(**peers) == [line]


def test_an_address_is_one_peers():
    peers = {"b": B, "c": {**C, "allowedIps": ["fd00:5::/64"]}}
    assert KIND.wrong(dataclasses.replace(WANTED, bridge="br", peers=peers)) == [
        "bridge: a WireGuard device carries IP packets, no Ethernet frames; leave it out",
        "peers.c.allowedIps: fd00:5::/64 overlaps fd00:5::b/128 of b; each address is one peer's",
    ]
    assert KIND.wrong(dataclasses.replace(WANTED, peers={"b": {**B, "publicKey": ONE}})) == [
        f"peers.b.publicKey: {ONE!r} is this host's too; each has its own"
    ]


NO_ENDPOINT = "is not an endpoint, such as 192.0.2.11:51820 or [2001:db8::11]:51820"
NO_KEY = "is not a public key (44 characters of base64, as `wg pubkey` writes it)"
NO_SECRET = "<secret> is not a reference to a secret (a name, a colon, 16 hexadecimal digits)"


@pytest.mark.parametrize(
    ("peer", "wrong"),
    [
        ({**B, "publicKey": "c2hvcnQ="}, f"publicKey: {NO_KEY}"),
        ({**B, "endpoint": "198.18.0.12"}, f"endpoint: '198.18.0.12' {NO_ENDPOINT}"),
        ({**B, "endpoint": "2001:db8::1:51820"}, f"endpoint: '2001:db8::1:51820' {NO_ENDPOINT}"),
        ({**B, "endpoint": "198.18.0.12:0"}, f"endpoint: '198.18.0.12:0' {NO_ENDPOINT}"),
        ({**B, "presharedKey": TWO}, f"presharedKey: {NO_SECRET}"),
        ({"publicKey": TWO}, "endpoint is missing; allowedIps is missing"),
    ],
)
def test_what_is_refused(peer, wrong):
    raw = {
        "schema": 1,
        "owner": {"project": "p", "stack": "s", "id": "1"},
        "host": "a",
        "devices": {
            "wg": {"kind": "wireguard", "mtu": 1420, "listenPort": 51820, "publicKey": ONE, "peers": {"b": peer}}
        },
    }
    with pytest.raises(document.DocumentError) as caught:
        document.parse(raw)
    assert caught.value.errors == [f"wg.peers: {wrong}"]
