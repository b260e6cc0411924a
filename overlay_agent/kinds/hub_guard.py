"""What two hubs need beside the kernel's spanning tree (nft(8), family netdev; IEEE 802.1D).

A bridge whose root has fallen silent goes on sending to it. When that hub is back, having noticed
nothing, both hubs pass frames on until spanning tree has spoken: up to a hello time of duplicates.
So nothing enters or leaves by such a port unless spanning tree was heard there a moment ago, nor
when that has just begun: the hubs tell their spokes of each other a second later (the hold time). It
is looked for where packets enter the device: what bridges tell each other passes no chain of theirs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import fields
from overlay_agent.errors import KernelError
from overlay_agent.kinds.base import Spec, attribute
from overlay_agent.kinds.table import TableKind

if TYPE_CHECKING:
    from overlay_agent.kernel import Kernel

#: Where bridges send what they tell each other (802.1D, table 7-10).
BPDU = "ether daddr 01:80:c2:00:00:00"
#: Seconds: less than maxAge, so that a port is shut before spanning tree gives its hub up, and some lost hellos.
HEARD = 5
#: Seconds for which a port stays shut after that: the hold time of 1 s, and a lost hello.
FRESH = 3


@dataclasses.dataclass(frozen=True)
class HubGuard(Spec):
    """The devices towards hubs that frames pass only while spanning tree is heard there."""

    KIND: ClassVar[str] = "hub-guard"

    ports: dict[str, Any] = attribute(fields.Keyed("port", fields.InterfaceName(), fields.Empty()))
    #: Rules of others in our table, as found.
    others: dict[str, Any] = attribute(fields.Others("rule"), default={})


class HubGuardKind(TableKind):
    """How it stands in nftables: a set remembers where spanning tree came from, and two chains a device ask it."""

    name = "hub-guard"
    spec = HubGuard
    #: A chain of the family netdev needs its device.
    rank = 20
    family = "netdev"

    def body(self, spec: HubGuard) -> list[str]:
        lines = []
        for name, seconds in (("heard", HEARD), ("fresh", FRESH)):
            flags = ["\t\ttype ifname", "\t\tflags dynamic,timeout", f"\t\ttimeout {seconds}s"]
            lines += [f"\tset {name} {{", *flags, "\t}"]
        for port in sorted(spec.ports):
            note = f'comment "port {port}"'
            heard = [f"{BPDU} iifname != @heard add @fresh {{ iifname }}", f"{BPDU} update @heard {{ iifname }}"]
            for hook, word, rules in (("ingress", "iifname", heard), ("egress", "oifname", [])):
                lines += [
                    f"\tchain {hook}-{port} {{",
                    f'\t\ttype filter hook {hook} device "{port}" priority 0; policy accept;',
                    *(f"\t\t{rule} {note}" for rule in [*rules, f"{BPDU} accept", f"{word} != @heard drop"]),
                    f"\t\t{word} @fresh drop {note}",
                    "\t}",
                ]
        return lines

    def devices(self, spec: HubGuard) -> set[str]:
        return {*spec.ports}

    def steady(self, lines: list[str]) -> list[str]:
        """Without what is in the sets at this moment."""
        out, within = [], False
        for line in lines:
            within = within or ": elements = {" in line
            if not within:
                out.append(line)
            within = within and not line.endswith("}")
        return out

    def load(self, kernel: Kernel, name: str, mark: str, ruleset: str) -> None:
        try:
            super().load(kernel, name, mark, ruleset)
        except KernelError as error:
            if "not supported" not in (error.sentence or ""):
                raise
            hint = "; two hubs need Linux 5.16 with CONFIG_NETFILTER_EGRESS: boot such a kernel, or write hub: with one"
            raise KernelError(error.what, error.code, error.sentence, hint) from None

    def find(self, kernel: Kernel, name: str, mark: str) -> HubGuard | None:
        table = self.whole(mark, _spec)
        return dataclasses.replace(_spec(table.kept), others=table.others) if table else None


def _spec(comments: Iterable[str]) -> HubGuard:
    """What rules with these comments stand for."""
    found = (re.fullmatch(r"port (\S+)", comment) for comment in comments)
    return HubGuard({one[1]: {} for one in found if one and not fields.InterfaceName().check(one[1])})


KIND = HubGuardKind()
