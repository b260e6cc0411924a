"""X25519 as RFC 7748 has it: its test vectors (section 5.2)."""

from __future__ import annotations

import base64

import pytest

from overlay_agent.keys import public_key
from overlay_agent.x25519 import clamped, x25519

NINE = (9).to_bytes(32, "little")


@pytest.mark.parametrize(
    ("scalar", "u", "product"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ],
)
def test_one_product(scalar, u, product):
    assert x25519(bytes.fromhex(scalar), bytes.fromhex(u)).hex() == product


def test_a_thousand_products():
    k = u = NINE
    for count in range(1, 1001):
        k, u = x25519(k, u), k
        if count == 1:
            assert k.hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    assert k.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


def test_two_come_to_one_secret():
    alice, bob = bytes(range(32)), bytes(range(100, 132))
    assert x25519(alice, x25519(bob)) == x25519(bob, x25519(alice))


def test_the_form_that_the_kernel_gives_back():
    for key in (bytes(32), b"\xff" * 32, NINE):
        assert x25519(clamped(key)) == x25519(key)
        assert clamped(clamped(key)) == clamped(key)
    assert (clamped(b"\xff" * 32)[0], clamped(bytes(32))[31]) == (0xF8, 0x40)
    assert base64.b64decode(public_key(NINE)) == x25519(NINE)
