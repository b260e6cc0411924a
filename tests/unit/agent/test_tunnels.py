"""GRETAP and L2TPv3 without a kernel that has them: what goes out comes back, and what a person would type."""

from __future__ import annotations

import dataclasses

import pytest

from overlay_agent.genl import _message_class
from overlay_agent.kernel import Link, _attributes, _decoded, ifinfmsg
from overlay_agent.kinds import KINDS, typed

ENDS = {"gretap": ("198.18.0.11", "198.18.0.12"), "ip6gretap": ("2001:db8::11", "2001:db8::12")}
DEVICE = {"mtu": 1400, "mac": "02:00:00:00:00:04"}
MARK = "overlay:p/s/"


def link(kind, data):
    return Link("x", 7, kind, "", 1400, True, "", 0, False, data, {})


def over_netlink(kind, data):
    """What IFLA_INFO_DATA is after it went out and came back."""
    message = ifinfmsg()
    message["header"] = {"type": 16, "flags": 1, "sequence_number": 1, "pid": 0}
    info = [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", {"attrs": list(data.items())})]
    message["attrs"] = [("IFLA_LINKINFO", {"attrs": info})]
    message.reset()
    message.encode()
    return _attributes(_decoded(ifinfmsg, bytes(message.data)).get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA"))


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"key": 0, "ttl": 255, "tos": 16, "device": "u0"},
        {"key": 0xFFFFFFFF, "tos": 1, "ttl": 0},
        # What only a look at a host finds, and an undo has to bring back.
        {"key": "in None, out 5", "others": {"iflags 32768": {}, "fwmark 9": {}}},
        {"key": "in 7, out 5", "others": {"external": {}, "encap_type 1": {}}},
    ],
    ids=str,
)
def test_every_field_of_gretap_comes_back(kind, more):
    over_netlink("gre", {"IFLA_GRE_LOCAL": "0.0.0.0"})  # as gre0, which is there with the module
    local, remote = ENDS[kind]
    own = {"pmtudisc": False} if kind == "gretap" else {"flow_label": 0xABCDE}
    spec = KINDS[kind].spec(**DEVICE, local=local, remote=remote, **more, **own)
    names = {field.name for field in KINDS[kind].own_fields()}
    data = over_netlink(kind, KINDS[kind].to_link(spec, names, {"u0": 3}))
    found = KINDS[kind].from_link(link(kind, data), {3: "u0"})
    assert found == {name: getattr(spec, name) for name in names}


def test_the_words_of_source_document_004():
    spec = KINDS["gretap"].spec(**DEVICE, local="198.18.0.11", remote="198.18.0.12", ttl=255)
    assert typed(KINDS["gretap"].commands("testgre", spec, MARK)[0]) == (
        "ip link add testgre mtu 1400 address 02:00:00:00:00:04 "
        "type gretap remote 198.18.0.12 local 198.18.0.11 ttl 255"
    )
    lines = [typed(command) for command in KINDS["l2tp"].commands("l2tpeth0", l2tp(), MARK + "l2tpeth0")]
    assert lines[:4] == [
        "modprobe l2tp_eth",
        (
            "ip l2tp add tunnel tunnel_id 1000 peer_tunnel_id 2000 encap udp local 198.18.0.11 remote 198.18.0.12 "
            "udp_sport 6000 udp_dport 5000 udp_csum on"
        ),
        "ip l2tp add session name l2tpeth0 tunnel_id 1000 session_id 3000 peer_session_id 4000",
        "ip link set dev l2tpeth0 mtu 1400 address 02:00:00:00:00:04",
    ]
    in_ip = l2tp(encap="ip", local="2001:db8::11", remote="2001:db8::12", local_port=None, remote_port=None)
    hidden = dataclasses.replace(in_ip, cookie="c:0123456789abcdef", sequencing=True)
    assert [typed(command) for command in KINDS["l2tp"].commands("t", hidden, MARK + "t")][1:4] == [
        "modprobe l2tp_ip6",
        "ip l2tp add tunnel tunnel_id 1000 peer_tunnel_id 2000 encap ip local 2001:db8::11 remote 2001:db8::12",
        (
            "ip l2tp add session name t tunnel_id 1000 session_id 3000 peer_session_id 4000 seq both cookie "
            "\"$(od -An -v -tx1 /var/lib/overlay/secrets/p/s/c:0123456789abcdef | tr -d ' \\n')\""
        ),
    ]


def l2tp(**more):
    ids = {"tunnel_id": 1000, "peer_tunnel_id": 2000, "session_id": 3000, "peer_session_id": 4000}
    ends = {"local": "198.18.0.11", "remote": "198.18.0.12", "local_port": 6000, "remote_port": 5000}
    return KINDS["l2tp"].spec(**DEVICE, **{**ids, **ends, **more})


class Secrets:
    def read(self, reference):
        return bytes.fromhex(reference.partition(":")[2])


SIX = {"local": "2001:db8::11", "remote": "2001:db8::12"}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"udp_checksum": False, "sequencing": True},
        {**SIX, "cookie": "c:0123456789abcdef", "peer_cookie": "c:01234567"},
        {**SIX, "udp_checksum": False},
        {**SIX, "encap": "ip", "local_port": None, "remote_port": None},
        # What only a look at a host finds, and an undo has to bring back.
        {**SIX, "udp_checksum": "for what is sent", "sequencing": "for what is received"},
    ],
    ids=str,
)
def test_every_field_of_l2tp_comes_back(more):
    kind, spec, data = KINDS["l2tp"], l2tp(**more), {}
    for attributes in (kind.tunnel_attributes(spec), kind.session_attributes("x", spec, Secrets())):
        message = _message_class("l2tp")()
        message["header"] = {"type": 30, "flags": 1, "sequence_number": 1, "pid": 0}
        message["cmd"], message["version"], message["attrs"] = 1, 1, attributes
        message.reset()
        message.encode()
        answer = _decoded(_message_class("l2tp"), bytes(message.data))
        data.update({name[len("L2TP_ATTR_") :]: value for name, value in answer["attrs"]})
    found = kind.from_link(link("l2tp", data), {})
    assert found == {name: getattr(spec, name) for name in found}
    names = {field.name for field in kind.own_fields()}
    assert names - found.keys() == {"cookie", "peer_cookie"}
    for field, name in (("cookie", "COOKIE"), ("peer_cookie", "PEER_COOKIE")):
        value = getattr(spec, field)
        assert data.get(name, "").replace(":", "") == (value.partition(":")[2] if value else "")
