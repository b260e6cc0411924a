"""A segment's dnsmasq as files, and the files as what they mean (dnsmasq(8)).

Written and read by one module, so that whatever somebody changes by hand shows as the field that
it belongs to, or as a line that follows from no field. The configuration's name holds a digest of
what is in it: the command line of the running process proves which one it has loaded. `names` has
a name that holds a digest of the leases and names: whether dnsmasq answers to it proves the same
of those, which it reads again at each SIGHUP.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from overlay_agent import sockets
from overlay_agent.fields import EXTRA, MISSING
from overlay_agent.kinds.dnsmasq import OPTION, Dnsmasq

#: Static leases, names, name servers, and what dnsmasq itself writes: who has which address until when.
HOSTS, NAMES, RESOLV, LEASES = "hosts", "names", "resolv", "leases"
#: In no zone (RFC 2606), at an address that nobody has (RFC 5737).
_MARKER, _MARKER_ADDRESS = "overlay.invalid", "192.0.2.1"
INFINITE = 0xFFFFFFFF
#: In seconds (RFC 4861: at least the time between two advertisements, which is 600).
_ROUTER_LIFETIME = 1800
#: How often it is asked, and for how long each time: one that is busy is not one that knows nothing.
_DNS_TRIES, _DNS_SECONDS = 10, 0.5

#: What follows from no field. Of the machine's own files none is read but resolv.conf, where `dns` names no servers.
_ALWAYS = (
    "# Made by overlay-agent; `overlay-agent check` finds what is changed here, the next apply mends it.",
    "bind-interfaces",
    "except-interface=lo",
    "pid-file=",
    "no-hosts",
    # Names without a dot, and addresses that are nobody's business outside, are not asked for there.
    "domain-needed",
    "bogus-priv",
    # It would stand still for 3 s at each of the first six new clients of a half minute (PING_WAIT in its config.h).
    "no-ping",
    # A container that calls itself wpad would be asked by others for their proxy (CERT VU#598349).
    "dhcp-name-match=set:wpad,wpad",
    "dhcp-ignore-names=tag:wpad",
)
_FLAGS = {"strict-order": "strict_order", "dhcp-no-override": "no_override", "dhcp-authoritative": "authoritative"}


# -- writing -------------------------------------------------------------------------------------


def files(spec: Dnsmasq, folder: str) -> dict[str, str]:
    """What stands in the service's folder, by name; the leases are dnsmasq's own."""
    out = {HOSTS: _text(_host_lines(spec))}
    out[NAMES] = names_with_marker(out[HOSTS], _text(_name_lines(spec)))
    if spec.dns:
        out[RESOLV] = _text(f"nameserver {address}" for address in spec.dns)
    config = _text(_config_lines(spec, folder))
    out[f"dnsmasq-{digest(config, out.get(RESOLV, ''))}.conf"] = config
    return out


def config_name(found: Mapping[str, str]) -> str:
    """Which of the files is the configuration; the last, where a killed attempt left several; empty: none."""
    return max((name for name in found if name.startswith("dnsmasq-") and name.endswith(".conf")), default="")


def digest(*texts: str) -> str:
    """A short digest of texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def names_with_marker(hosts: str, names: str) -> str:
    """The names, and the one that shows that they and the static leases were loaded."""
    return f"{names}{_MARKER_ADDRESS} {digest(hosts, names)}.{_MARKER}\n"


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _config_lines(spec: Dnsmasq, folder: str) -> list[str]:
    lines = [*_ALWAYS]
    lines += [f"interface={spec.interface}"] if spec.interface else []
    lines += [f"listen-address={address}" for address in _sorted(spec.addresses)]
    lines += [f"dhcp-hostsfile={folder}/{HOSTS}", f"addn-hosts={folder}/{NAMES}", f"dhcp-leasefile={folder}/{LEASES}"]
    lines += [f"resolv-file={folder}/{RESOLV}"] if spec.dns else []
    lines += [word for word, field in _FLAGS.items() if getattr(spec, field)]
    lines.append(f"dhcp-lease-max={spec.lease_max}")
    if spec.domain:
        lines += [f"domain={spec.domain}", f"local=/{spec.domain}/", "expand-hosts"]
    for subnet in _sorted(spec.subnets):
        lines += _range_lines(spec, subnet)
    lines += _option_lines(spec)
    if spec.ra:
        lifetime = _ROUTER_LIFETIME if spec.ra_router else 0
        lines += ["enable-ra", f"ra-param={spec.interface},mtu:{spec.mtu},0,{lifetime}"]
    return lines


def _range_lines(spec: Dnsmasq, subnet: str) -> list[str]:
    network = ipaddress.ip_network(subnet)
    within = [one for one in _sorted(spec.ranges) if _first(one) in network]
    bounds = [one.replace("-", ",") for one in within] or [f"{network.network_address},static"]
    # Clients make themselves an address only in a prefix of 64 bits (RFC 4862, section 5.5.3).
    slaac = ["slaac"] if spec.ra and network.version == 6 and network.prefixlen == 64 else []
    mask = str(network.netmask if network.version == 4 else network.prefixlen)
    lease = "infinite" if spec.lease == INFINITE else str(spec.lease)
    tag = [f"set:{_tag(subnet)}"] if network.version == 4 else []
    return ["dhcp-range=" + ",".join([*tag, one, *slaac, mask, lease]) for one in bounds]


def _option_lines(spec: Dnsmasq) -> list[str]:
    # Not every client asks for it (udhcpc does not), and a wrong one loses large packets without a word.
    lines = [f"dhcp-option-force=option:mtu,{spec.mtu}"]
    for subnet in (subnet for subnet in _sorted(spec.subnets) if ":" not in subnet):
        network = ipaddress.ip_network(subnet)
        here = [spec.router] if spec.router and ipaddress.ip_address(spec.router) in network else []
        # Without a value nothing is sent, where dnsmasq would name itself.
        lines.append(",".join([f"dhcp-option=tag:{_tag(subnet)},option:router", *here]))
        ways = [(to, via) for to, via in spec.routes.items() if ipaddress.ip_address(via) in network]
        if ways:
            # Who knows this option ignores the router (RFC 3442), so it stands here too.
            words = [word for way in [*_sorted_ways(ways), *(("0.0.0.0/0", via) for via in here)] for word in way]
            lines += [f"dhcp-option=tag:{_tag(subnet)},{o},{','.join(words)}" for o in ("121", "249")]
    if spec.name_servers:
        four = [address for address in spec.name_servers if ":" not in address]
        six = [f"[{address}]" for address in spec.name_servers if ":" in address]
        lines.append(",".join(["dhcp-option=option:dns-server", *four]))
        lines.append(",".join(["dhcp-option=option6:dns-server", *six]))
    for name, value in sorted(spec.options.items()):
        head = name if name.isdigit() or name.startswith("option") else f"option:{name}"
        lines.append(f"dhcp-option={head},{value}" if value else f"dhcp-option={head}")
    return lines


def _host_lines(spec: Dnsmasq) -> list[str]:
    return [
        ",".join([one["mac"], *(_bracketed(one[key]) for key in ("address", "address6") if key in one), name])
        for name, one in sorted(spec.hosts.items())
    ]


def _name_lines(spec: Dnsmasq) -> list[str]:
    full = f".{spec.domain}" if spec.domain else None
    return [
        " ".join([one[key], *([name + full] if full else []), name])
        for name, one in sorted(spec.hosts.items())
        for key in ("address", "address6")
        if key in one
    ]


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _tag(subnet: str) -> str:
    """The subnet as dnsmasq's word for whom it gives addresses in it."""
    return "net" + subnet.replace(".", "-").replace("/", "-")


def _first(one: str) -> Any:
    return ipaddress.ip_address(one.partition("-")[0])


def _sorted(these: Iterable[str]) -> list[str]:
    def key(one: str) -> tuple[int, Any]:
        first = _first(one.partition("/")[0])
        return first.version, first

    return sorted(these, key=key)


def _sorted_ways(ways: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    by_subnet = dict(ways)
    return [(to, by_subnet[to]) for to in _sorted(by_subnet)]


# -- reading -------------------------------------------------------------------------------------


def parsed(found: Mapping[str, str], config: str, folder: str, *, running: bool) -> Dnsmasq:
    """What the files say. What says nothing, contradicts itself or is missing stands in `lines`."""
    values: dict[str, Any] = dict.fromkeys(_FLAGS.values(), False)
    values |= {"interface": "", "mtu": 0, "lease_max": 0, "lease": 0, "running": running}
    values |= {field: {} for field in ("addresses", "subnets", "ranges", "routes", "options", "lines")}
    for line in found.get(config, "").splitlines():
        key, _, value = line.strip().partition("=")
        reader = _READERS.get(key)
        with suppress(ValueError, IndexError):  # then it is not a line of ours, see below
            if reader:
                reader(values, value)
            elif key in _FLAGS:
                values[_FLAGS[key]] = True
    for row in found.get(RESOLV, "").splitlines():
        if row.startswith("nameserver "):
            values.setdefault("dns", []).append(row.split()[1])
    values["hosts"] = _parsed_hosts(found.get(HOSTS, ""))
    spec = Dnsmasq(**values)
    ours = files(spec, folder)
    should = {**ours, config: ours[config_name(ours)]}
    for name in (config, HOSTS, NAMES, RESOLV):
        is_, want = _lines_of(found, name), _lines_of(should, name)
        where = "" if name == config else f"of {name}: "
        spec.lines.update({f"{where}{line}": EXTRA for line in (is_ - want).elements()})
        spec.lines.update({f"{where}{line}": MISSING for line in (want - is_).elements()})
    return spec


def _lines_of(found: Mapping[str, str], name: str) -> Counter[str]:
    lines = (line.strip() for line in found.get(name, "").splitlines())
    # The marker follows from the rest, and whether that was loaded is asked of dnsmasq itself.
    return Counter(line for line in lines if line and not (name == NAMES and line.endswith(f".{_MARKER}")))


def _parsed_hosts(text: str) -> dict[str, Any]:
    hosts: dict[str, Any] = {}
    for line in text.splitlines():
        words = line.split(",")
        with suppress(ValueError):
            mac, *addresses, name = words
            parsed_ = [str(ipaddress.ip_address(word.strip("[]"))) for word in addresses]
            if 0 < len(parsed_) <= 2:
                hosts[name] = {"mac": mac, **dict(zip(("address", "address6"), parsed_))}
    return hosts


def _read_range(values: dict[str, Any], value: str) -> None:
    words = [word for word in value.split(",") if word != "slaac" and not word.startswith("set:")]
    first, last, mask, lease = words
    values["subnets"][str(ipaddress.ip_network(f"{first}/{mask}", strict=False))] = {}
    if last != "static":
        values["ranges"][f"{ipaddress.ip_address(first)}-{ipaddress.ip_address(last)}"] = {}
    values["lease"] = INFINITE if lease == "infinite" else int(lease)


def _read_option(values: dict[str, Any], value: str) -> None:
    head, *words = value.split(",")
    if head.startswith("tag:"):
        head, *words = words
    if head == "option:mtu":
        values["mtu"] = int(words[0])
    elif head == "option:router":
        values.update({"router": words[0]} if words else {})
    elif head in ("option:dns-server", "option6:dns-server"):
        values.setdefault("name_servers", []).extend(word.strip("[]") for word in words)
    elif head in ("121", "249"):
        ways = dict(zip(words[::2], words[1::2]))
        ways.pop("0.0.0.0/0", None)
        values["routes"].update(
            {str(ipaddress.ip_network(to)): str(ipaddress.ip_address(via)) for to, via in ways.items()}
        )
    elif OPTION.check(head) is None:
        values["options"][OPTION.normal(head)] = value.partition(",")[2]


def _read_ra(values: dict[str, Any], value: str) -> None:
    values["ra_router"] = not value.endswith(",0")


def _key(field: str) -> Any:
    return lambda values, value: values[field].update({str(ipaddress.ip_address(value)): {}})


def _value(field: str, convert: Any = str) -> Any:
    return lambda values, value: values.update({field: convert(value)})


#: How each line of the configuration is read that stands for a field.
_READERS: dict[str, Any] = {
    "interface": _value("interface"),
    "listen-address": _key("addresses"),
    "dhcp-lease-max": _value("lease_max", int),
    "domain": _value("domain"),
    "dhcp-range": _read_range,
    "dhcp-option": _read_option,
    "dhcp-option-force": _read_option,
    "enable-ra": _value("ra", lambda _: True),
    "ra-param": _read_ra,
}


# -- asking --------------------------------------------------------------------------------------


def program() -> str:
    """Where dnsmasq is on this host; nothing where it is not."""
    folders = os.environ.get("PATH", os.defpath).split(":")
    return next((path for path in (f"{folder}/dnsmasq" for folder in folders) if os.access(path, os.X_OK)), "")


def refused(config: str) -> list[str]:
    """What dnsmasq has against a configuration, in its own words."""
    import re  # noqa: PLC0415 - for an error
    import subprocess  # noqa: PLC0415 - costs 5 ms, and only what is new is tried

    argv = [program(), "--test", "--conf-file=-"]
    done = subprocess.run(argv, input=config, capture_output=True, text=True, check=False, env={"LC_ALL": "C"})
    if done.returncode == 0:
        return []
    said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    number = re.search(r"at line (\d+)", said[0])
    line = config.splitlines()[int(number[1]) - 1] if number else "the configuration"
    why = re.sub(r"^dnsmasq: | at line \d+.*$", "", said[0])
    return [f"dnsmasq refuses {line}: {why}; write what `dnsmasq --help dhcp` knows"]


def devices(pid: int) -> set[int]:
    """The indexes of the devices on which a dnsmasq listens for DHCP."""
    ours = sockets.inodes(pid)
    return {
        one.device for port in (67, 547) for one in sockets.listening(socket.IPPROTO_UDP, port) if one.inode in ours
    }


def clashes(spec: Dnsmasq, device: int, own: int | None) -> list[str]:
    """Which other programs have what this dnsmasq needs, and what to do. `device`: the interface's index, or 0
    where it is not there yet. `own`: our own process."""
    ours = sockets.inodes(own) if own else set()
    taken: dict[sockets.Program | None, list[str]] = {}
    for protocol, port in ((socket.IPPROTO_UDP, 53), (socket.IPPROTO_TCP, 53), (socket.IPPROTO_UDP, 67),
                           (socket.IPPROTO_UDP, 547)):  # fmt: skip
        for one in sockets.listening(protocol, port):
            if one.inode not in ours and _in_the_way(one, spec, device):
                way = f"{'udp' if protocol == socket.IPPROTO_UDP else 'tcp'} {port}"
                ways = taken.setdefault(sockets.owner(one), [])
                ways += [] if way in ways else [way]
    return [_clash(program_, " and ".join(ways), spec.interface) for program_, ways in taken.items()]


def _in_the_way(one: sockets.Socket, spec: Dnsmasq, device: int) -> bool:
    if one.port == 53:
        return one.device in (0, device) and any(one.overlaps(address) for address in spec.addresses)
    if device and one.device == device:
        return True
    if one.device or not any((":" in subnet) == (one.port == 547) for subnet in spec.subnets):
        return False
    family = socket.AF_INET if one.port == 67 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as trial:  # as dnsmasq does it
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            trial.setsockopt(socket.SOL_SOCKET, option, 1)
        if family == socket.AF_INET6:
            trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        trial.setsockopt(
            socket.SOL_SOCKET, socket.SO_BINDTODEVICE, (spec.interface if device else "lo").encode() + b"\0"
        )
        try:
            trial.bind(("", one.port))
        except OSError:
            return True
    return False


def _clash(program_: sockets.Program | None, ways: str, interface: str) -> str:
    if program_ is None:
        return f"{ways} of {interface} taken by a program that cannot be seen from here; find and stop it"
    words = " ".join(program_.words)
    whose = str(program_)
    for manager, command in (("incus", "incus"), ("lxd", "lxc")):
        if program_.name == "dnsmasq" and f"--interface={interface} " in words and manager in words:
            # It goes only with the first three (LXD's UsesDNSMasq); LXD 5.0 keeps it even then, so it is told to
            # serve no names.
            off = "ipv4.dhcp=false ipv6.address=none dns.mode=none raw.dnsmasq=port=0"
            return (
                f"{whose} of {manager} serves {interface}; one of the two has to go: "
                f"{command} network set {interface} {off}"
            )
    if program_.name == "dnsmasq":
        hint = f"give it bind-interfaces and except-interface={interface} in its configuration"
    else:
        hint = f"have it leave {interface} alone"
    return f"{whose} has {ways} of {interface}; {hint}, or stop it"


def has_loaded(address: str, found: Mapping[str, str]) -> bool:
    """Whether the dnsmasq at that address knows the static leases and names that stand in the files."""
    names = found.get(NAMES, "")
    ours = _text(line for line in names.splitlines() if not line.endswith(f".{_MARKER}"))
    marker = f"{digest(found.get(HOSTS, ''), ours)}.{_MARKER}"
    return marker in names and socket.inet_aton(_MARKER_ADDRESS) in _asked(address, marker)


def _asked(server: str, name: str) -> bytes:
    """The answer of a DNS server to who has that name (RFC 1035, section 4); nothing where there is none."""
    head = struct.pack(">HHHHHH", os.getpid() & 0xFFFF, 0, 1, 0, 0, 0)
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.settimeout(_DNS_SECONDS)
        try:
            asking.connect((server, 53))
            for _ in range(_DNS_TRIES):
                asking.send(head + labels + struct.pack(">BHH", 0, 1, 1))
                with suppress(socket.timeout):
                    return asking.recv(512)
        except OSError:
            pass
    return b""


def leases(text: str) -> list[dict[str, Any]]:
    """Who has which address until when (seconds since 1970; 0: for ever), as dnsmasq's own file says. The name and the
    MAC address are empty where it knows none."""
    rows = (line.split() for line in text.splitlines())
    return [
        {"address": row[2], "name": row[3].strip("*"), "mac": "" if ":" in row[2] else row[1], "until": int(row[0])}
        for row in rows
        if len(row) == 5 and row[0].isdigit()
    ]


def leased(text: str) -> dict[str, str]:
    """Whose MAC address has which IPv4 address now, by address, from dnsmasq's own file."""
    rows = (line.split() for line in text.splitlines())
    return {row[2]: row[1] for row in rows if len(row) == 5 and ":" not in row[2]}
