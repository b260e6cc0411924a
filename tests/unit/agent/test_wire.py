"""What comes over the wire is read right, and what is no answer is none."""

from __future__ import annotations

import struct

import pytest

from overlay_agent import capture, wire

XID = b"\x01\x02\x03\x04"
MAC = bytes.fromhex("02000000000a")


def dhcp(*options, op=2, xid=XID):
    head = bytes([op, 1, 6, 0]) + xid + b"\0" * 8 + bytes([10, 10, 0, 11]) + b"\0" * 216
    return head + b"\x63\x82\x53\x63" + b"".join(bytes([o, len(v)]) + v for o, v in options) + b"\xff"


OFFER = [(53, b"\x02"), (54, bytes([10, 10, 0, 1])), (6, bytes([10, 10, 0, 1, 10, 10, 0, 2])), (26, b"\x05\xaa")]


def test_an_offer():
    assert wire.offered(dhcp(*OFFER), XID) == {
        "address": "10.10.0.11",
        "server": ["10.10.0.1"],
        "router": [],
        "dns": ["10.10.0.1", "10.10.0.2"],
        "mtu": 1450,
    }


@pytest.mark.parametrize(
    "message",
    [b"", dhcp(*OFFER)[:230], dhcp(*OFFER, op=1), dhcp(*OFFER, xid=b"else"), dhcp((53, b"\x05")), dhcp()],
    ids=["nothing", "cut off", "a request", "another's", "an acknowledgement", "no options"],
)
def test_no_offer(message):
    assert wire.offered(message, XID) is None


def dns(answers, code=0, name=b"\xc0\x0c"):
    question = b"\x03web\x03app\0" + struct.pack(">HH", 1, 1)
    rows = b"".join(name + struct.pack(">HHIH", type_, 1, 60, len(data)) + data for type_, data in answers)
    return struct.pack(">HHHHHH", 7, 0x8180 | code, 1, len(answers), 0, 0) + question + rows


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (dns([(1, bytes([10, 10, 0, 12])), (1, bytes([10, 10, 0, 11]))]), (0, ["10.10.0.11", "10.10.0.12"])),
        (dns([(5, b"\x03www\0"), (1, bytes([10, 10, 0, 11]))], name=b"\x03web\x03app\0"), (0, ["10.10.0.11"])),
        (dns([], code=3), (3, [])),
    ],
    ids=["two", "an alias first", "unknown"],
)
def test_a_dns_answer(message, expected):
    assert wire.answered(message) == dict(zip(("code", "addresses"), expected))


@pytest.mark.parametrize("size", [0, 5, 14, 30])
def test_a_dns_answer_that_is_cut_off(size):
    assert wire.answered(dns([(1, bytes([10, 10, 0, 11]))])[:size]) is None


def test_the_checksum_of_a_packet_with_its_checksum_is_nothing():
    data = bytearray(range(41))
    data[2:4] = b"\0\0"
    data[2:4] = struct.pack(">H", wire.checksum(bytes(data)))
    assert wire.checksum(bytes(data)) == 0


def ethernet(type_, data, tag=b""):
    return MAC + MAC + tag + struct.pack(">H", type_) + data


def ipv4(protocol, data=b"", fragment=0):
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(data), 0, fragment, 64, protocol, 0)
    return head + bytes([10, 0, 0, 1, 10, 0, 0, 2]) + data


def ipv6(next_, data=b""):
    return struct.pack(">IHBB", 6 << 28, len(data), next_, 64) + b"\xfd" + b"\0" * 14 + b"\x01" + b"\xfe" * 16 + data


UDP = struct.pack(">HHHH", 40000, 4789, 8, 0)
ARP = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + MAC + bytes([10, 0, 0, 1]) + b"\0" * 6 + bytes([10, 0, 0, 2])
PACKETS = {
    "udp": ethernet(0x0800, ipv4(17, UDP)),
    "fragment": ethernet(0x0800, ipv4(17, UDP, fragment=1)),
    "tagged": ethernet(0x0800, ipv4(17, UDP), tag=b"\x81\x00\x00\x05"),
    "arp": ethernet(0x0806, ARP),
    "udp6": ethernet(0x86DD, ipv6(17, UDP)),
    "gre": ethernet(0x0800, ipv4(47)),
    "ours": ethernet(0x88B5, b"\0" * 46),
}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, set(PACKETS)),
        ({"protocol": "udp"}, {"udp", "fragment", "tagged", "udp6"}),
        ({"protocol": "ip"}, {"udp", "fragment", "tagged", "gre"}),
        ({"protocol": "ip6"}, {"udp6"}),
        ({"protocol": "arp"}, {"arp"}),
        ({"protocol": "gre"}, {"gre"}),
        ({"protocol": "tcp"}, set()),
        ({"port": 4789}, {"udp", "tagged", "udp6"}),
        ({"port": 53}, set()),
        ({"host": "10.0.0.2"}, {"udp", "fragment", "tagged", "arp", "gre"}),
        ({"host": "fd00::1"}, {"udp6"}),
        ({"host": "10.0.0.2", "protocol": "udp", "port": 4789}, {"udp", "tagged"}),
    ],
)
def test_what_a_filter_lets_through(wanted, expected):
    assert {name for name, packet in PACKETS.items() if capture.taken(packet, wanted)} == expected


def test_the_device_towards_an_address():
    assert capture._device("to:127.0.0.1") == capture._device("to:::1") == "lo"
    assert capture._device("br-app") == "br-app"


def test_a_device_without_ethernet():
    assert capture.taken(ipv4(17, UDP), {"protocol": "udp", "port": 4789}, ethernet=False)
    assert capture.taken(ipv6(17, UDP), {"host": "fd00::1"}, ethernet=False)
    assert not capture.taken(b"", {"protocol": "udp"}, ethernet=False)
