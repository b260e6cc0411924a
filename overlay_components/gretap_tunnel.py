"""GRETAP tunnels: Ethernet in GRE, a device for each two ends (RFC 2784, RFC 2890; ip-link(8), "GRETAP").

The attributes themselves are listed in overlay_agent.kinds.gretap, once for each IP version of the
underlay; here they are keys of one kind, and those of the other version are refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pulumi import ResourceOptions
from typing_extensions import Unpack

from overlay_agent.fields import json_name
from overlay_agent.kinds import Device
from overlay_agent.kinds.gretap import KEY_BYTES, OVERHEAD, Gretap, Ip6Gretap
from overlay_components import model, names, tunnel
from overlay_components.bridge import Bridge
from overlay_components.component import TunnelArgs, TunnelComponent
from overlay_components.tunnel import Attachment, Claim, Tunnel

#: By IP version of the underlay.
_SPECS: dict[int, type[Gretap | Ip6Gretap]] = {4: Gretap, 6: Ip6Gretap}
#: What the planner fills in; "others" is what only a look at a host can tell.
_PLANNED = [*(f.name for f in dataclasses.fields(Device)), "local", "remote", "device", "others"]
_WORDS = {
    "key": "Tells tunnels between the same two ends apart; each has its own",
    "ttl": "TTL of the outer header; 0: of the packet within",
    "tos": "TOS of the outer header; 1: of the packet within",
    "pmtudisc": "Don't Fragment of the outer header (IPv4)",
    "flow_label": "Flow label of the outer header (IPv6)",
}
#: Attributes that only one of the two has, and why not the other.
_ONLY = {
    6: {"pmtudisc": "IPv6 never fragments on the way"},
    4: {"flow_label": "only an IPv6 underlay has flow labels"},
}
_ONLY_FOUR = [*_PLANNED, "key", "ttl", "tos"]


class GretapOptions(tunnel.TunnelOptions):
    """A GRETAP tunnel's keys that are not one device's attributes."""


class GretapTunnelKind(tunnel.TunnelKind):
    """See tunnel.TunnelKind."""

    name = "gretap"
    prefix = "gt"
    pairwise = True
    options = model.with_fields_of(
        Ip6Gretap,
        model.with_fields_of(Gretap, GretapOptions, leave_out=_PLANNED, words=_WORDS),
        leave_out=_ONLY_FOUR,
        words=_WORDS,
    )

    def overhead(self, options: Any, version: int) -> int:
        """38 bytes over IPv4, 58 over IPv6; 4 more with a key."""
        return OVERHEAD[version] + (0 if options.key is None else KEY_BYTES)

    def devices(
        self, tunnel: Tunnel, common: Callable[[Attachment], dict[str, Any]], wrong: list[str]
    ) -> Iterator[tuple[Attachment, Gretap | Ip6Gretap]]:
        """One device for each attachment."""
        before = len(wrong)
        wrong += [
            f"{tunnel.where}.{json_name(key)}: {why}; leave it out"
            for key, why in _ONLY[tunnel.version].items()
            if key in tunnel.options.model_fields_set
        ]
        if len(wrong) > before:
            return
        spec = _SPECS[tunnel.version]
        values = model.values_of(tunnel.options, spec, leave_out=_PLANNED)
        for at in tunnel.attachments():
            [remote] = at.peers.values()
            yield at, spec(**common(at), **values, local=at.host.local, remote=remote, device=at.host.device)

    def claims(self, spec: Gretap | Ip6Gretap) -> dict[Claim, str]:
        """The kernel tells the tunnels of a host apart by both addresses and the key."""
        if not names.known(spec.remote):
            return {}
        key = "no key" if spec.key is None else f"key {spec.key}"
        return {
            (("gretap", spec.local, spec.remote, spec.key), None): (
                f"has the same two ends and {key} on {{hosts}} as {{earlier}}; give it another key"
            )
        }

    def facts(self, tunnel: Tunnel, specs: Sequence[Any]) -> dict[str, Any]:  # noqa: ARG002 - the options say it all
        """The key, where there is one."""
        return {} if tunnel.options.key is None else {"key": tunnel.options.key}

    def told_by(self, spec: Any) -> None:  # noqa: ARG002 - as above
        """The kernel takes GRE only from a tunnel's remote address."""

    def listens(self, spec: Any) -> tuple[str, int | None]:  # noqa: ARG002 - always the same
        """GRE, IP protocol 47."""
        return "gre", None


# -- the component ---------------------------------------------------------------------------


class GreTapArgs(TunnelArgs, total=False):
    """Keys of a tunnel of kind gretap (docs/stack-file.md)."""

    key: int
    ttl: int
    tos: int
    pmtudisc: bool
    flow_label: int


class GreTapTunnel(TunnelComponent):
    """GRETAP tunnels between the hosts of a segment (RFC 2784)."""

    KIND = "gretap"

    def __init__(
        self, name: str, *, bridge: Bridge, opts: ResourceOptions | None = None, **args: Unpack[GreTapArgs]
    ) -> None:
        super().__init__("GreTapTunnel", name, bridge, args, opts)


KIND = GretapTunnelKind(GreTapTunnel)
