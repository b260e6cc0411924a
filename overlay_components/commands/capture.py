"""`overlay capture`: what passes a segment, or the underlay's packets that carry it, as a pcap file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overlay_components.commands.common import (
    UNREACHED,
    WRONG,
    AsJson,
    StackName,
    ask,
    chosen,
    find,
    fleet,
    say,
    told,
    write,
)

# ruff: noqa: PLC0415 - see common.py

if TYPE_CHECKING:
    from overlay_components.config import Config
    from overlay_components.plan import Plan

#: As overlay_agent/capture.py knows them, which needs Linux.
PROTOCOLS = ("arp", "ip", "ip6", "icmp", "tcp", "udp", "gre", "icmp6", "l2tp")
#: s that a host may take beyond the capture itself.
_PATIENCE = 20.0
_HEAD = 24
_DEFAULT_SECONDS, _MOST_SECONDS, _MEGABYTE, _MOST_MEGABYTES = 10, 3600, 1_000_000, 1000


def capture(
    segment: Annotated[str, typer.Argument(metavar="SEGMENT", help="A segment of the stack.")],
    host: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="HOST", help="Only on this host; may be repeated.", show_default=False),
    ] = None,
    stack: StackName = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Default: SEGMENT.pcap. Of several hosts each has a file: app.pcap is app-h1.pcap.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        int, typer.Option("--seconds", metavar="N", min=1, max=_MOST_SECONDS, help="How long.")
    ] = _DEFAULT_SECONDS,
    megabytes: Annotated[
        int, typer.Option("--megabytes", metavar="N", min=1, max=_MOST_MEGABYTES, help="At most so much of each host.")
    ] = 10,
    words: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="WORDS",
            help="Only packets with all of: a protocol (arp, ip, ip6, icmp, icmp6, tcp, udp, gre, l2tp), "
            "`host ADDRESS`, `port NUMBER`.",
            show_default=False,
        ),
    ] = None,
    underlay: Annotated[
        bool, typer.Option("--underlay", help="The tunnels' own packets, as they leave and reach the host.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Write what passes a segment to a file that tcpdump and Wireshark read.

    On each of its hosts the bridge is listened on, or with --underlay the NIC that the tunnels' packets go by; nothing
    has to be installed there. Exit code 3 when a host could not be asked.
    """
    with told():
        from overlay_agent.document import dump
        from overlay_components import config
        from overlay_components.live import Request

        found = find(None, stack)
        made = found.plan()
        checked = config.load_config(found.raw)
        chosen(made.segments, [segment], "segment")
        members = {name: one for name, one in checked.hosts.items() if name in made.segments[segment]["hosts"]}
        names = chosen(members, host)
        wanted = filter_of(words)
        devices = {name: _devices(made, checked, segment, name, underlay=underlay) for name in names}
        limits = {"seconds": seconds, "bytes": megabytes * _MEGABYTE}
        requests = {
            name: Request(
                "capture", dump({"device": device, "filter": {**more, **wanted}, **limits}), seconds + _PATIENCE, True
            )
            for name, (device, more) in devices.items()
        }
    with fleet(checked.resolved_hosts()) as asked:
        answers, problems = ask(asked, requests)
    rows, failed = [], []
    path = output or Path(f"{segment}.pcap")
    for name, answer in answers.items():
        if answer.code or len(answer.report) < _HEAD:
            failed.append(f"{name}: {' '.join(answer.lines) or 'the capture broke off; run it again'}")
            continue
        target = path if len(names) == 1 else path.with_stem(f"{path.stem}-{name}")
        write(target, answer.report)
        rows.append({"host": name, "device": devices[name][0], "packets": packets(answer.report), "file": str(target)})
    lines = []
    for row in rows:
        many = f"{row['packets']} packet{'' if row['packets'] == 1 else 's'}"
        lines.append(f"{row['host']} {row['device']}: {many} in {row['file']}")
    out = {"captures": rows, "failed": failed, "unreached": problems}
    say(lines, out, json=json, problems=[*failed, *problems])
    if failed or problems:
        raise typer.Exit(WRONG if failed else UNREACHED)


def filter_of(words: str | None) -> dict[str, Any]:
    """What the words ask for, as the agent takes it. Raises ConfigErrors."""
    import ipaddress

    from overlay_components.errors import ConfigErrors

    out: dict[str, Any] = {}
    rest = (words or "").split()
    while rest:
        word = rest.pop(0)
        key = word if word in ("host", "port") else "protocol"
        value = rest.pop(0) if key != "protocol" and rest else "" if key != "protocol" else word
        wrong = key in out or (key == "protocol" and word not in PROTOCOLS)
        if key == "host":
            try:
                value = str(ipaddress.ip_address(value))
            except ValueError:
                wrong = True
        wrong |= key == "port" and not (value.isdecimal() and 0 < int(value) < 1 << 16)
        if wrong:
            said = word if key == "protocol" else f"{word} {value}".rstrip()
            allowed = f"{', '.join(PROTOCOLS)}, host ADDRESS, port NUMBER"
            raise ConfigErrors([f"--filter: {said!r} is not understood; write each once of {allowed}"])
        out[key] = int(value) if key == "port" else value
    return out


def packets(data: bytes) -> int:
    """How many packets a pcap file has."""
    order = "<" if data[:4] == b"\xd4\xc3\xb2\xa1" else ">"
    at, count = _HEAD, 0
    while at + 16 <= len(data):
        at += 16 + struct.unpack_from(f"{order}I", data, at + 8)[0]
        count += 1
    return count


def _devices(made: Plan, checked: Config, segment: str, host: str, *, underlay: bool) -> tuple[str, dict[str, Any]]:
    """Where to listen on the host, and for what alone. Raises ConfigErrors."""
    from overlay_agent.kinds import KINDS
    from overlay_components.errors import ConfigErrors
    from overlay_components.verify import Verification

    run = Verification(made, checked, "")
    if not underlay:
        return run.device(segment, host), {}
    tunnels = run.tunnels[segment, host]
    if not tunnels:
        raise ConfigErrors([f"--underlay: {segment} has no tunnel on {host}; leave --underlay out"])
    spec = next(iter(tunnels.values()))
    listens = KINDS[spec.KIND].listens(spec)[0]
    device = getattr(spec, "device", None) or checked.resolved_hosts()[host].underlay_device
    more: dict[str, Any] = {"protocol": listens.protocol}
    if listens.port is not None:
        more["port"] = listens.port
    return device or f"to:{next(iter(listens.peers), '')}", more
