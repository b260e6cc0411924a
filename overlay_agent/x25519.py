"""The public key of a WireGuard private key (X25519, RFC 7748), so that a host needs no `wg` for it.

Python's whole numbers take no constant time. What that tells, it tells somebody who runs on this host while a key is
made, once; keys that are in use are the kernel's business.
"""

from __future__ import annotations

KEY_BYTES = 32
_P = 2**255 - 19
#: (486662 - 2) / 4 (RFC 7748, section 5).
_A24 = 121665
_BASE = (9).to_bytes(KEY_BYTES, "little")


def clamped(scalar: bytes) -> bytes:
    """The same private key in the one form that the kernel and `wg genkey` give it (RFC 7748, section 5)."""
    k = int.from_bytes(scalar, "little") & ~7 & (2**255 - 1) | 2**254
    return k.to_bytes(KEY_BYTES, "little")


def x25519(scalar: bytes, u: bytes = _BASE) -> bytes:
    """The function X25519 of RFC 7748, section 5; without `u` a private key's public key."""
    k = int.from_bytes(clamped(scalar), "little")
    x1 = int.from_bytes(u, "little") & (2**255 - 1)
    x2, z2, x3, z3, swap = 1, 0, x1, 1, 0
    for t in range(254, -1, -1):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb = d * a % _P, c * b % _P
        aa, bb = a * a % _P, b * b % _P
        x3, z3 = (da + cb) ** 2 % _P, x1 * (da - cb) ** 2 % _P
        x2, z2 = aa * bb % _P, (aa - bb) * (aa + _A24 * (aa - bb)) % _P
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, _P - 2, _P) % _P).to_bytes(KEY_BYTES, "little")
