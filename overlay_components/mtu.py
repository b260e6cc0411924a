"""The MTU of a segment: the smallest that its tunnels carry on all of its hosts.

One frame too large for one tunnel is lost without a word, so a segment has one MTU, which its
bridges, tunnel devices and containers all share (rule 13). Units: bytes, of IP packets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from overlay_components.tunnel import End, Tunnel

#: RFC 791 and RFC 8200: below this IP does not work.
LEAST = {4: 68, 6: 1280}


@dataclasses.dataclass(frozen=True)
class Budget:
    """What one host's underlay leaves to a segment through one tunnel."""

    host: End
    underlay: int
    overhead: int
    why: str

    @property
    def left(self) -> int:
        """The largest packet."""
        return self.underlay - self.overhead

    def __str__(self) -> str:
        return f"the underlay MTU of {self.host.name} ({self.underlay}){self.why} leaves {self.left}"


def smallest(tunnels: Iterable[Tunnel], hosts: Iterable[End]) -> Budget:
    """The budget that decides. `hosts`: of the segment; they alone count where there is no tunnel."""
    budgets = [
        Budget(host, host.mtu, host.encryption + over, _why(host, tunnel, over))
        for tunnel in tunnels
        for over in [tunnel.kind.overhead(tunnel.options, tunnel.version)]
        for host in tunnel.hosts
        if host.mtu is not None
    ]
    alone = [Budget(host, host.mtu, 0, "") for host in hosts if host.mtu is not None]
    return min(budgets or alone, key=lambda budget: budget.left)


def _why(host: End, tunnel: Tunnel, over: int) -> str:
    around = f" less {host.encryption} (WireGuard)" if host.encryption else ""
    return f"{around} less {over} ({tunnel.kind.name} over IPv{tunnel.version})"


def check(where: str, wanted: int | None, budget: Budget, tunnelled: bool, versions: set[int], wrong: list[str]) -> int:
    """The segment's MTU. Adds an error when the underlay does not carry it or IP needs more. `versions`: of the
    segment's subnets."""
    value = budget.left if wanted is None else wanted
    if tunnelled and value > budget.left:
        wrong.append(
            f"{where}.mtu: {value} is above what the underlay carries: {budget}; "
            f"write at most {budget.left}, or raise {budget.host.where}.mtu if the network takes it"
        )
    version = max(versions, default=4)
    if value < LEAST[version]:
        say = f"{value} is too small" if wanted is not None else f"{budget}, which is too small"
        wrong.append(f"{where}.mtu: {say}; IPv{version} needs {LEAST[version]}")
    return value
