"""The tunnels of article 004, made with its own commands, are read and taken over as they are."""

from __future__ import annotations

import pytest
from agent_support import OWNER

from overlay_agent.document import Owner
from overlay_components.config import load_config
from overlay_components.importer import Host, imported
from overlay_components.plan import make_plan

pytestmark = [pytest.mark.kinds("gretap"), pytest.mark.kinds("l2tp")]

BY_HAND = """
ip link add superbr0 type bridge
ip link set superbr0 up
ip link add testgre type gretap remote 198.18.0.12 local 198.18.0.11 ttl 255
ip link set testgre up
ip link set testgre master superbr0
ip link add superbr1 type bridge
ip link set superbr1 up
ip l2tp add tunnel tunnel_id 1000 peer_tunnel_id 2000 encap udp local 198.18.0.11 remote 198.18.0.12 udp_sport 6000 \
  udp_dport 5000
ip l2tp add session tunnel_id 1000 session_id 3000 peer_session_id 4000
ip link set l2tpeth0 up mtu 1446
ip link set l2tpeth0 master superbr1
"""


def test_taken_over_as_they_are(host):
    host.run("sh", "-ec", BY_HAND)
    names = ("superbr0", "superbr1", "testgre", "l2tpeth0")
    before = {name: (host.index(name), host.link(name)["address"]) for name in names}
    found = imported([Host("198.18.0.11", host.agent("survey").report)], Owner(**OWNER))
    assert found.notes == []
    [me], peer = found.raw["hosts"], "peer-198.18.0.12"
    ends = [me, peer]
    assert {name: segment["tunnels"] for name, segment in found.raw["segments"].items()} == {
        "superbr0": {
            "gretap": {"kind": "gretap", "topology": "pairs", "ttl": 255, "endpoints": ends, "ifname": "testgre"}
        },
        "superbr1": {
            "l2tp": {
                "kind": "l2tp", "topology": "pairs", "tunnelIds": {me: 1000, peer: 2000},
                "sessionIds": {me: 3000, peer: 4000}, "ports": {me: 6000, peer: 5000}, "endpoints": ends,
                "ifname": "l2tpeth0", "udpChecksum": False,  # iproute2 has it off unless asked
            }
        },
    }  # fmt: skip
    [document] = make_plan(load_config(found.raw), Owner(**OWNER)).documents.values()
    done = host.apply(document)
    assert {f"{name}: taken over" for name in names} <= set(done.lines)
    assert {name: (host.index(name), host.link(name)["address"]) for name in names} == before
    assert host.agent("check").report == {"drift": []}
    assert "nothing to do" in host.apply(document).err
