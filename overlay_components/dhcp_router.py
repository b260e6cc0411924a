"""A segment's DHCP router: the keys of `dhcp` in stack files, and the component that declares them.

What they become on the hosts (dnsmasq, NAT, forwarding, a floating gateway) is worked out in
routing.py, where the whole segment is in sight.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict

import pulumi
import pydantic
from pulumi import Input, Output, ResourceOptions
from typing_extensions import Unpack

from overlay_agent import fields
from overlay_agent.kinds import dnsmasq
from overlay_agent.kinds.dnsmasq import Dnsmasq
from overlay_agent.kinds.vrrp import Vrrp
from overlay_components import model
from overlay_components.bridge import Bridge
from overlay_components.component import Component, words
from overlay_components.model import Checked

#: What dnsmasq takes, in seconds; the longest is its word for ever.
LEASE_LEAST, LEASE_MOST = 120, 0xFFFFFFFF
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PORT_MOST = 65535
_SPEC = {field.name: field.metadata["type"] for field in (*dataclasses.fields(Dnsmasq), *dataclasses.fields(Vrrp))}


# -- values ----------------------------------------------------------------------------------


class LeaseTime(fields.Type):
    """How long a lease holds: seconds, or a number and one of s, m, h, d, w."""

    def check(self, value: Any) -> str | None:
        """What is wrong, or None."""
        seconds = self._seconds(value)
        if seconds is not None and LEASE_LEAST <= seconds <= LEASE_MOST:
            return None
        return f"{value!r} is not the time of a lease, such as 3600 (seconds), 30m, 12h or 7d; 2m is the shortest"

    def normal(self, value: Any) -> Any:
        """Seconds."""
        return self._seconds(value)

    def _seconds(self, value: Any) -> int | None:
        if type(value) is int:
            return value
        match = re.fullmatch(r"([0-9]{1,10})([smhdw]?)", value) if isinstance(value, str) else None
        return int(match[1]) * _UNITS[match[2] or "s"] if match else None


class Ranges(model.OneOrMore):
    """Ranges of addresses, one or a list; or `none`."""

    def __init__(self) -> None:
        super().__init__(fields.AddressRange())

    def check(self, value: Any) -> str | None:
        """What is wrong, or None."""
        wrong = None if value == "none" else super().check(value)
        return f"{wrong}, or none" if wrong else None

    def normal(self, value: Any) -> Any:
        """The list; empty for none."""
        return [] if value == "none" else super().normal(value)


class Listen(fields.Type):
    """What is forwarded: `8080`, `udp/53`, `tcp/5000-5009`. TCP where nothing else is said."""

    def check(self, value: Any) -> str | None:
        """What is wrong, or None."""
        match = re.fullmatch(r"(?:(?:tcp|udp)/)?([0-9-]+)", value) if isinstance(value, str) else None
        if match and ports(match[1]):
            return None
        return f"{value!r} is not what can be forwarded, such as 8080, udp/53 or tcp/5000-5009"


class ForwardTarget(model.Text):
    """Where it goes: a container, a reservation or an address, and the port if it is another one."""

    def check(self, value: Any) -> str | None:
        """What is wrong, or None."""
        name, port = split_target(value) if isinstance(value, str) else ("", None)
        if name and not super().check(value) and (port is None or ports(port)):
            return None
        return f"{value!r} is not where to forward to, such as web, web:80, 10.10.0.9:5000-5009 or [fd00:10::9]:80"


def ports(text: str) -> tuple[int, int] | None:
    """The lowest and the highest of `80` or `5000-5009`; None where that is none."""
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    return (low, high) if 1 <= low <= high <= _PORT_MOST else None


def split_target(text: str) -> tuple[str, str | None]:
    """`web:80` as name or address, and ports or None."""
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", text)
    if bracketed:
        return bracketed[1], bracketed[2]
    if text.count(":") > 1:  # an IPv6 address as it stands
        return text, None
    name, colon, port = text.partition(":")
    return name, port if colon else None


def listen(key: str) -> str:
    """The one spelling: protocol, slash, port or ports."""
    return key if "/" in key else f"tcp/{key}"


class OptionValue(fields.Type):
    """A DHCP option's value, as dnsmasq takes it."""

    def check(self, value: Any) -> str | None:
        """What is wrong, or None."""
        return dnsmasq.VALUE.check(str(value) if type(value) is int else value)

    def normal(self, value: Any) -> Any:
        """As text."""
        return str(value)


# -- keys ------------------------------------------------------------------------------------

_Name = Annotated[str, Checked(model.Name())]
_MaybeName = Annotated[str | None, Checked(model.Name())]
_Flag = Annotated[bool, Checked(fields.Flag())]
_RANGE = {"type": "string", "pattern": "^[0-9a-fA-F.:]+-[0-9a-fA-F.:]+$"}
_RANGES = {"anyOf": [{"const": "none"}, _RANGE, {"type": "array", "items": _RANGE}]}
_NUMBER_OR_TEXT = {"type": ["integer", "string"]}
#: YAML reads 8080 as a number.
_TEXT_KEYS = pydantic.BeforeValidator(
    lambda value: {str(key) if type(key) is int else key: inner for key, inner in value.items()}
    if isinstance(value, Mapping)
    else value
)


def _described(default: Any, description: str) -> Any:
    return pydantic.Field(default=default, description=description)


class Reservation(model.Model):
    """A static lease for what is no container of the stack."""

    mac: Annotated[str, Checked(model.Mac())] = pydantic.Field(description="The MAC address that it asks with")
    address: Annotated[str, Checked(model.OverlayAddress())] = pydantic.Field(description="Its address in the segment")


class DhcpOptions(model.Model):
    """A segment's router: DHCP, DNS and router advertisements by dnsmasq, address translation by nftables."""

    host: _MaybeName = _described(
        None, "The host that it runs on; default: the only one with an address; with gateway: anycast all of them"
    )
    hosts: list[_Name] | None = _described(None, "Two hosts in place of one: one gateway address, that moves")
    range: Annotated[list[str] | None, Checked(Ranges()), pydantic.WithJsonSchema(_RANGES)] = _described(
        None, '"low-high" or a list: what is given to whoever asks; none: static leases only; default: derived'
    )
    lease: Annotated[int, Checked(LeaseTime()), pydantic.WithJsonSchema(_NUMBER_OR_TEXT)] = _described(
        3600, "How long a lease holds: seconds, or 30m, 12h, 7d"
    )
    lease_max: Annotated[int, Checked(_SPEC["lease_max"])] = _described(1000, "The most leases at a time")
    domain: Annotated[str | None, Checked(_SPEC["domain"])] = _described(None, "The containers' DNS domain")
    dns: list[Annotated[str, Checked(model.HostAddress())]] = _described(
        [], "Servers to ask for other names, in this order; default: those of the host"
    )
    options: Annotated[
        dict[
            Annotated[str, Checked(dnsmasq.OPTION)],
            Annotated[str, Checked(OptionValue()), pydantic.WithJsonSchema(_NUMBER_OR_TEXT)],
        ],
        _TEXT_KEYS,
    ] = _described({}, "Further DHCP options, by dnsmasq's name or number: {ntp-server: 10.10.0.5}")
    reservations: dict[Annotated[str, Checked(dnsmasq.NAME)], Reservation] = _described(
        {}, "Static leases for what is no container of the stack, by name"
    )
    masquerade: _Flag = _described(False, "Whether what leaves the segment by the router gets the router's address")
    forwards: Annotated[
        dict[Annotated[str, Checked(Listen())], Annotated[str, Checked(ForwardTarget())]], _TEXT_KEYS
    ] = _described(
        {}, 'What is passed on from the host: {"8080": "web:80", "udp/53": "10.10.0.9"}'
    )
    public_addresses: dict[Annotated[str, Checked(model.HostAddress())], Annotated[str, Checked(model.Text())]] = (
        _described({}, "One address outside for one inside, both ways: {198.51.100.7: web}")
    )
    mss_clamp: _Flag = _described(
        False, "Whether TCP that leaves the segment by the router is told of the narrower way's MTU"
    )
    ra: Annotated[bool | None, Checked(fields.Flag())] = _described(
        None, "Router advertisements; default: true where the segment has an IPv6 subnet"
    )
    strict_order: _Flag = _described(True, "Ask the servers of dns strictly in their order")
    no_override: _Flag = _described(True, "Never put options into the file and server name fields of packets")
    group: Annotated[int | None, Checked(_SPEC["group"])] = _described(
        None, "With hosts: the number of their group (VRRP); default: derived"
    )


# -- the component ---------------------------------------------------------------------------


class ReservationArgs(TypedDict, total=False):
    """Keys of `dhcp.reservations` (docs/stack-file.md)."""

    mac: Input[str]
    address: Input[str]


class DhcpArgs(TypedDict, total=False):
    """Keys of a segment's `dhcp` (docs/stack-file.md). Hosts are Host objects or names."""

    host: Any
    hosts: Sequence[Any]
    range: str | Sequence[str]
    lease: int | str
    lease_max: int
    domain: str
    dns: Sequence[Input[str]]
    options: Mapping[str, str]
    reservations: Mapping[str, ReservationArgs]
    masquerade: bool
    forwards: Mapping[str, str]
    public_addresses: Mapping[str, str]
    mss_clamp: bool
    ra: bool
    strict_order: bool
    no_override: bool
    group: int


class DhcpRouter(Component):
    """DHCP, DNS, router advertisements and address translation for a segment, on one host of it or two, or on each
    where the gateway is anycast.

    Output: `ready`, true once all hosts of the segment are as declared.
    """

    def __init__(
        self, name: str, *, bridge: Bridge, opts: ResourceOptions | None = None, **args: Unpack[DhcpArgs]
    ) -> None:
        values = words(args)
        self.bridge = bridge
        super().__init__("DhcpRouter", name, {"segment": bridge.name, **values}, opts)
        if "dhcp" in self.overlay.raw["segments"][bridge.name]:
            raise pulumi.RunError(
                f"segments.{bridge.name}.dhcp: DhcpRouter {name!r} is the segment's second; declare one, on two hosts: "
                "hosts=[a, b]"
            )
        self.overlay.declare("segments", bridge.name, "dhcp", value=values)
        self.register_outputs({})

    @property
    def ready(self) -> Output[bool]:
        """True once all hosts of the segment are as declared."""
        ready: Output[bool] = self.bridge.ready
        return ready
