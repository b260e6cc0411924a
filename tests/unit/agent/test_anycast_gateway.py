"""What the anycast gateway's rules write into neighbour discovery leaves its checksum right."""

from __future__ import annotations

import ipaddress
import re

from hypothesis import given
from hypothesis import strategies as st

from overlay_agent import fields
from overlay_agent.kinds.anycast_gateway import KIND, AnycastGateway

MACS = st.binary(min_size=5, max_size=5).map(lambda tail: bytes([2, *tail]).hex(":"))
HEADER = {"nd-neighbor-solicit": 135, "nd-neighbor-advert": 136}
#: A rule that writes at offsets from the ICMPv6 header: what it asks for, then what it sets.
WRITES = re.compile(r"^\t\ticmpv6 type (\S+) (@th,.* set .*) comment ")


def table(mac, own):
    spec = AnycastGateway("br-app", mac, own, {"10.10.0.1": {}, "fd00:10::1": {}}, {"vx-app": {}})
    return KIND.ruleset(spec, "overlay:p/s/anycast-app").splitlines()


def written(message, parts):
    """The message with what the rule sets in it; None where the rule does not match it."""
    out = bytearray(message)
    for offset, length, sets, value in parts:
        at, size, number = int(offset) // 8, int(length) // 8, int(value, 16)
        if sets:
            out[at : at + size] = number.to_bytes(size, "big")
        elif int.from_bytes(message[at : at + size], "big") != number:
            return None
    return bytes(out)


def sum_of(message):
    """As a checksum adds it up (RFC 1071); of a sum that is not 0 both zeros are one."""
    return sum(int.from_bytes(message[at : at + 2], "big") for at in range(0, len(message), 2)) % 0xFFFF


@given(MACS, MACS)
def test_the_checksum_stays(mac, own):
    common, mine = fields.link_local_of(mac), fields.link_local_of(own)
    done = 0
    for line in table(mac, own):
        match = WRITES.match(line)
        if not match:
            continue
        parts = re.findall(r"@th,(\d+),(\d+) (set )?(0x[0-9a-f]+)", match[2])
        for target in (common, mine, "fd00:10::9"):
            for address in (mac, own):
                body = ipaddress.ip_address(target).packed
                option = bytes([HEADER[match[1]] - 134, 1]) + bytes.fromhex(address.replace(":", ""))
                message = bytes([HEADER[match[1]], 0, 0x12, 0x34, 0x60, 0, 0, 0]) + body + option
                changed = written(message, parts)
                if changed is not None:
                    done += 1
                    assert sum_of(changed) == sum_of(message)
    # One that asks; one that answers, for another address, for the host's own, and without an option.
    assert done >= 4


def test_nothing_that_is_said_names_the_gateway_on_a_tunnel():
    mac, own = "02:aa:bb:cc:dd:ee", "02:11:22:33:44:01"
    lines = table(mac, own)
    outward = lines[lines.index("\tchain outward {") :]
    assert outward[1].startswith(f"\t\tether daddr {mac} drop")
    assert f"\t\tether saddr {mac} ether saddr set {own} comment" in "\n".join(outward)
    assert f"\t\tarp saddr ether {mac} arp saddr ether set {own} comment" in "\n".join(outward)
    inward = lines[lines.index("\tchain inward {") :][1:3]
    assert [line.split(" comment")[0] for line in inward] == [
        f"\t\tether saddr {mac} drop",
        f"\t\tether daddr {mac} drop",
    ]
