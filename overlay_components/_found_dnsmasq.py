"""A dnsmasq that somebody else runs, as keys of `dhcp` (dnsmasq(8)). Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from overlay_agent import fields
from overlay_agent.kinds.dnsmasq import NAME

#: What says how it is run, which ours decides itself, or where it listens.
_OURS = frozenset([
    "bind-interfaces", "bind-dynamic", "pid-file", "except-interface", "no-dhcp-interface", "user", "group",
    "conf-file", "conf-dir", "dhcp-leasefile", "dhcp-authoritative", "keep-in-foreground", "no-daemon",
    "listen-address", "interface", "log-facility", "log-queries", "log-dhcp", "no-hosts", "no-ping",
    "domain-needed", "bogus-priv", "expand-hosts", "local", "port", "strict-order", "dhcp-no-override",
    "dhcp-script", "leasefile-ro", "no-resolv", "resolv-file", "no-poll", "quiet-dhcp", "quiet-dhcp6", "quiet-ra",
])  # fmt: skip
#: Options that other keys say: netmask, broadcast, name servers, domain, MTU, lease.
_SAID = {"1": "subnets", "netmask": "subnets", "28": "subnets", "broadcast": "subnets",
         "15": "domain", "domain-name": "domain", "26": "mtu", "mtu": "mtu", "51": "lease",
         "lease-time": "lease"}  # fmt: skip
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SHORTEST = 120


def serving(processes: Iterable[Mapping[str, Any]], bridge: str, addresses: Sequence[str]) -> list[Mapping[str, Any]]:
    """Those that give out addresses on the bridge."""
    return [one for one in processes if _serves(one["options"], bridge, addresses)]


def _serves(options: Sequence[Sequence[str]], bridge: str, addresses: Sequence[str]) -> bool:
    def values(name: str) -> list[str]:
        return [word for key, value in options if key == name for word in value.split(",")]

    if not values("dhcp-range") or bridge in values("except-interface") + values("no-dhcp-interface"):
        return False
    own = {address.partition("/")[0] for address in addresses}
    if values("interface") or values("listen-address"):
        return bridge in values("interface") or bool(own & set(values("listen-address")))
    nets = [ipaddress.ip_interface(address).network for address in addresses]
    return any(ip in net for word in values("dhcp-range") for ip in _ips([word]) for net in nets)


def keys(
    process: Mapping[str, Any], subnets: Iterable[str], addresses: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """The keys of `dhcp` (and `gateway`, which is the segment's), and what they cannot say."""
    nets = [ipaddress.ip_network(subnet) for subnet in subnets]
    own = {address.partition("/")[0] for address in addresses}
    out: dict[str, Any] = {}
    notes: list[str] = []
    for name, value in process["options"]:
        line = f"{name}={value}" if value else name
        if name == "dhcp-range":
            _range(value, nets, out, notes)
        elif name == "dhcp-host":
            _host(value, nets, out, notes)
        elif name in ("dhcp-option", "dhcp-option-force"):
            _option(value, own, out, notes)
        elif name == "dhcp-lease-max" and value.isdigit():
            out["leaseMax"] = int(value)
        elif name == "domain" and value and "," not in value:
            out["domain"] = value
        elif name == "server" and not fields.Address().check(value):
            out.setdefault("dns", []).append(value)
        elif name == "enable-ra":
            out["ra"] = True
        elif name not in _OURS:
            notes.append(f"dnsmasq's {line} is in no stack file")
    names = {name for name, _ in process["options"]}
    out.update({key: False for key, flag in _FLAGS.items() if flag not in names})
    return {key: out[key] for key in sorted(out, key=_order)}, notes


_FLAGS = {"strictOrder": "strict-order", "noOverride": "dhcp-no-override"}


def _order(key: str) -> int:
    known = ("range", "lease", "leaseMax", "domain", "dns", "options", "reservations")
    return known.index(key) if key in known else len(known)


def _range(value: str, nets: Sequence[Any], out: dict[str, Any], notes: list[str]) -> None:
    words = [word for word in value.split(",") if not word.startswith(("set:", "tag:", "interface:"))]
    ips = [ip for ip in _ips(words) if any(ip in net for net in nets)]
    if not ips:
        return  # another segment's
    lease = words[-1] if len(words) > 1 else ""
    match = re.fullmatch(r"(\d+)([smhdw]?)", lease)
    # Of IPv6 the number before it is the prefix length.
    if match and (":" not in str(ips[0]) or match[2] or int(match[1]) > 128):
        seconds = int(match[1]) * _UNITS[match[2]]
        out["lease"] = max(seconds, _SHORTEST)
    elif lease == "infinite":
        notes.append(f"dnsmasq's dhcp-range={value} gives addresses for ever; dhcp.lease says how long")
    if "static" in words:
        out.setdefault("range", "none")
    elif len(ips) > 1:
        have = out.get("range")
        text = f"{ips[0]}-{ips[1]}"
        out["range"] = text if have in (None, "none") else [*([have] if isinstance(have, str) else have), text]
    else:
        notes.append(f"dnsmasq's dhcp-range={value} is no range of addresses; it is left out")


def _host(value: str, nets: Sequence[Any], out: dict[str, Any], notes: list[str]) -> None:
    words = [word.strip() for word in value.split(",")]
    macs = [word.lower() for word in words if not fields.Mac().check(word.lower())]
    ips = [ip for ip in _ips(words) if any(ip in net for net in nets)]
    if not ips and _ips(words):
        return  # another segment's
    names = [w for w in words if not NAME.check(w) and not re.fullmatch(r"\d+[smhdw]?|infinite|ignore", w)]
    if len(macs) != 1 or len(ips) != 1:
        notes.append(f"dnsmasq's dhcp-host={value} is not one MAC address with one address; it is left out")
        return
    name = names[0] if names else f"host-{str(ips[0]).replace('.', '-').replace(':', '-')}"
    out.setdefault("reservations", {})[name] = {"mac": macs[0], "address": str(ips[0])}


def _option(value: str, own: set[str], out: dict[str, Any], notes: list[str]) -> None:
    words = value.split(",")
    if any(word.startswith(("tag:", "net:", "vendor:", "encap:")) for word in words[:-1]):
        notes.append(f"dnsmasq's dhcp-option={value} is for some clients only, which no stack file says")
        return
    name, rest = words[0].removeprefix("option:"), words[1:]
    if name in ("3", "router"):
        if not rest or rest == [""]:
            out["gateway"] = "none"
        elif len(rest) > 1:
            notes.append(f"dnsmasq's dhcp-option={value} names several routers; the first is taken")
        if rest and rest[0] and rest[0] not in own and rest[0] != "0.0.0.0":  # noqa: S104 - "this host" to dnsmasq
            out["gateway"] = rest[0]
    elif name in ("6", "dns-server"):
        if rest != ["0.0.0.0"] and not (len(rest) == 1 and rest[0] in own):  # noqa: S104 - as above
            notes.append(f"dnsmasq's dhcp-option={value}: containers ask this dnsmasq, and dhcp.dns says whom it asks")
    elif name in _SAID:
        notes.append(f"dnsmasq's dhcp-option={value}: {_SAID[name]} says that")
    else:
        out.setdefault("options", {})[name] = ",".join(rest)


def _ips(words: Iterable[str]) -> list[Any]:
    out = []
    for word in words:
        bare = word.strip("[]")
        # A netmask is no address of a client.
        if not fields.Address().check(bare) and not bare.startswith("255."):
            out.append(ipaddress.ip_address(bare))
    return out
