"""Keeps what is on a segment off the host that it runs on: input rules for the host's bridge (nft(8)).

A container can talk to the host's own addresses, all of them, and so to whatever listens there: SSH, a database, an
API without a password. With this, what comes in by the bridge for the host itself gets to a few services and no
further. What the host passes on, forwarded ports too, is not the host's own and not judged here.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import fields
from overlay_agent.kinds.base import Spec, attribute
from overlay_agent.kinds.table import TableKind

if TYPE_CHECKING:
    from overlay_agent.document import Document
    from overlay_agent.kernel import Kernel

#: Before the chains of others, which mostly stand at 0 (filter).
PRIORITY = -10
_VRRP, _IGMP = 112, 2
#: What IPv6 does not work without (RFC 4890, section 4.4), and ping.
_ICMPV6 = (
    "echo-request, mld-listener-query, nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert"
)
SERVICE = fields.Pattern(
    r"vrrp|(tcp|udp)/([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])",
    "a service, such as udp/67, tcp/53 or vrrp",
)


@dataclasses.dataclass(frozen=True)
class HostGuard(Spec):
    """What may reach the host itself by a bridge, beside ping, neighbour discovery and the answers to what it asked."""

    KIND: ClassVar[str] = "host-guard"

    #: The segment's bridge on this host.
    interface: str = attribute(fields.InterfaceName())
    allow: dict[str, Any] = attribute(fields.Keyed("service", SERVICE, fields.Empty()), default={})
    #: Rules of others in our table, as found.
    others: dict[str, Any] = attribute(fields.Others("rule"), default={})


class HostGuardKind(TableKind):
    """How it stands in nftables: one chain on the input hook."""

    name = "host-guard"
    spec = HostGuard
    #: Before anything is on the bridge, so that nothing slips in.
    rank = 1
    instead = ", or leave out isolateHost"

    def body(self, spec: HostGuard) -> list[str]:
        rules = []
        if spec.interface:  # else it is what was found, and nothing in it is ours
            on = f'iifname "{spec.interface}"'
            rules += [
                f"{on} ct state established,related accept",
                f"{on} icmp type echo-request accept",
                f"{on} ip protocol {_IGMP} accept",
                f"{on} icmpv6 type {{ {_ICMPV6} }} accept",
                *(f'{on} {_match(one)} accept comment "{spec.interface}: {one}"' for one in sorted(spec.allow)),
                f'{on} drop comment "{spec.interface}: all else"',
            ]
        head = ["\tchain input {", f"\t\ttype filter hook input priority {PRIORITY}; policy accept;"]
        return [*head, *(f"\t\t{rule}" for rule in rules), "\t}"]

    def wrong_here(self, kernel: Kernel, name: str, spec: HostGuard, wanted: Document) -> list[str]:
        from overlay_agent import evidence  # noqa: PLC0415 - of few documents

        out = super().wrong_here(kernel, name, spec, wanted)
        link = kernel.links.get(spec.interface)
        if spec.interface not in wanted.bridges() and (not link or link.kind != "bridge"):
            out.append(f"interface {spec.interface!r} is not a bridge of this host; declare it")
        session = evidence.session()
        addresses = wanted.devices[spec.interface].addresses if spec.interface in wanted.devices else {}
        held = [ipaddress.ip_interface(address) for address in addresses]
        held += [ipaddress.ip_interface(address) for address in kernel.addresses(link)] if link else []
        ends = {ipaddress.ip_address(end) for end in (session.server, session.client)} if session else set()
        if session and any(end in one.network for end in ends for one in held):
            out.append(
                f"interface: this SSH session, from {session.client} to {session.server}, comes in by "
                f"{spec.interface}, and the next one could not; reach the host by another of its addresses, or leave "
                "out isolateHost"
            )
        return out

    def find(self, kernel: Kernel, name: str, mark: str) -> HostGuard | None:
        table = self.whole(mark, _spec)
        return dataclasses.replace(_spec(table.kept), others=table.others) if table else None


def _match(service: str) -> str:
    if service == "vrrp":
        return f"meta l4proto {_VRRP}"
    protocol, _, port = service.partition("/")
    return f"{protocol} dport {port}"


def _spec(comments: Iterable[str]) -> HostGuard:
    """What rules with these comments stand for."""
    interface = ""
    allow: dict[str, Any] = {}
    for comment in comments:
        match = re.fullmatch(r"(\S+): (all else|\S+)", comment)
        # Somebody else's comment may read like one of ours.
        if not match or interface not in ("", match[1]) or fields.InterfaceName().check(match[1]):
            continue
        if match[2] == "all else" or not SERVICE.check(match[2]):
            interface = match[1]
            allow.update({match[2]: {}} if match[2] != "all else" else {})
    return HostGuard(interface, allow)


KIND = HostGuardKind()
