"""Run on a host: has FRR changed from one spec to the next and back, and says where what it runs with is not that.

Beside `overlay_agent` it takes no more than the agent has itself; one process for all of them, since an apply of each
would wait for sessions that nobody takes.
"""

from __future__ import annotations

import dataclasses
import json
import sys

from overlay_agent import frr
from overlay_agent.kernel import Kernel
from overlay_agent.kinds.evpn import KIND, Evpn
from overlay_agent.secrets import Secrets

MARK = "overlay:p/s/evpn"
OLD, NEW = "old:0123456789abcdef", "new:0123456789abcdef"
BASE = Evpn(
    asn=65000, router_id="198.18.0.11", local="198.18.0.11", neighbors={"b": "198.18.0.12", "c": "198.18.0.13"},
    password=OLD, vnis={"42": {}},
)  # fmt: skip
REFLECTOR = {"reflector": True, "ranges": {"198.18.0.0/24": {}}}
TWO = {"65000:42": {}, "65000:43": {}}
#: Each field in turn, and what is odd about FRR.
VARIANTS = {
    "asn": {"asn": 4200000001},
    "router id": {"router_id": "198.18.0.99"},
    "local": {"local": "198.18.1.11"},
    "IPv6": {"local": "2001:db8::11", "neighbors": {"b": "2001:db8::12"}},
    "neighbor gone": {"neighbors": {"c": "198.18.0.13"}},
    "neighbor more": {"neighbors": {**BASE.neighbors, "d.x-1": "198.18.0.14"}},
    "neighbor renamed": {"neighbors": {"bb": "198.18.0.12", "c": "198.18.0.13"}},
    "reflector": {"reflector": True},
    "clients": {"reflector": True, "clients": {"c": {}}},
    "ranges": REFLECTOR,
    "two ranges": {"reflector": True, "ranges": {"198.18.0.0/24": {}, "198.18.2.0/23": {}}},
    "all of a reflector": {**REFLECTOR, "clients": {"b": {}}, "bfd": True, "vnis": {}},
    "another password": {"password": NEW},
    "no password": {"password": None},
    "bfd": {"bfd": True},
    "port": {"port": 1790},
    "timers": {"keepalive": 60, "hold": 180},
    "no vni": {"vnis": {}},
    "largest vni": {"vnis": {"42": {}, "16777215": {}}},
    "rd": {"vnis": {"42": {"rd": "198.18.0.11:7"}}},
    "import": {"vnis": {"42": {"import": {"65000:7": {}}}}},
    "export": {"vnis": {"42": {"export": {"65000:7": {}, "198.18.0.11:9": {}}}}},
    "own addresses": {"vnis": {"42": {"svi": True}}},
    "own addresses and a target": {"vnis": {"42": {"svi": True, "rd": "198.18.0.11:7", "export": {"65000:7": {}}}}},
    "derived beside another": {"vnis": {"42": {"export": TWO, "import": TWO}}},
}  # fmt: skip


def main(state: str) -> None:
    kernel = Kernel()
    kernel.secrets = Secrets(state, "p/s", [OLD, NEW])
    for reference in (OLD, NEW):
        kernel.secrets.write(reference, b"<password>" + reference[:3].encode())
    wrong = {}
    KIND.create(kernel, "evpn", BASE, MARK, {})
    for name, more in VARIANTS.items():
        spec = dataclasses.replace(BASE, **more)
        refused = KIND.wrong(spec)
        for step, wanted in (("there", spec), ("back", BASE)):
            found = KIND.find(kernel, "evpn", MARK)
            assert found is not None
            KIND.change(kernel, "evpn", wanted, found, MARK)
            found = KIND.find(kernel, "evpn", MARK)
            beside = KIND.beside(kernel, "evpn", MARK)
            if found != wanted or beside or refused:
                wrong[f"{name} {step}"] = [str(found), str(wanted), beside, refused]
    KIND.delete(kernel, "evpn", MARK)
    assert KIND.find(kernel, "evpn", MARK) is None
    json.dump({"wrong": wrong, "tried": len(VARIANTS), "foreign": frr.foreign()}, sys.stdout)


main(sys.argv[1])
