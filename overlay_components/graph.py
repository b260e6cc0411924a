"""The topology of a plan as a picture: SVG, Mermaid, or a page that needs nothing but itself.

Hosts are columns and segments are bands below them. A tunnel is a line across the columns with a dot at each of its
ends, so a mesh of 50 hosts is one line and not 1,225, and nothing can lie upon anything else: every place follows
from the widths of what stands in a column.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from overlay_components import errors
from overlay_components.config import Config
from overlay_components.plan import Plan, SegmentRow, TunnelRow
from overlay_components.tunnel import EVPN

if TYPE_CHECKING:
    from overlay_components.verify import Segment

FORMATS = ("svg", "mermaid", "html")
#: px. The font is of one width, and no browser's is wider than this at that size.
_FONT, _CHARACTER, _LINE = 12, 7.4, 17
_GAP, _PADDING = 24, 8
_COLOURS = ("#0b6e99", "#a0450a", "#4c7a17", "#7a3fa0", "#a8325a", "#6b5f00")
_STYLE = """
svg text { font: 12px "DejaVu Sans Mono", Menlo, Consolas, "Liberation Mono", monospace; fill: #1d2733 }
svg .title { font-weight: bold }
svg .faint { fill: #55606e }
svg .host { fill: #eef2f6; stroke: #8894a3 }
svg .peer { fill: none; stroke: #8894a3; stroke-dasharray: 4 3 }
svg .box { fill: #ffffff; stroke: #8894a3 }
svg .band { fill: #f7f9fb; stroke: #d5dce3 }
"""
_PAGE_STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; background: #fff; margin: 2rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; margin: 0.5rem 0 1rem } th, td { border: 1px solid #d5dce3; padding: 0.2rem 0.6rem }
th { background: #eef2f6; font-weight: 600; text-align: left } td { text-align: right }
td.text { text-align: left }
td.good { background: #e3f3e3 } td.bad { background: #f9d7d7; font-weight: 600 } td.unknown { background: #f6efd0 }
.wide { overflow-x: auto }
"""
#: Nothing may be fetched, whatever the names in a stack file are.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def svg(title: str, made: Plan, config: Config) -> str:
    """The picture as a file of its own."""
    return _Drawing(title, made, config).svg()


def html(title: str, made: Plan, config: Config) -> str:
    """The picture on a page, with the IP plan."""
    return _page(title, ["<h2>Topology</h2>", _picture(title, made, config), *_containers(made)])


def verified(title: str, made: Plan, config: Config, result: Mapping[str, Segment], problems: Sequence[str]) -> str:
    """What `overlay verify` found out, and the picture."""
    parts: list[str] = []
    for name, segment in result.items():
        parts.append(f"<h2>Segment {escape(name)}, MTU {segment.mtu}</h2>")
        parts += _matrix(segment)
        failed = [f"{a} -> {b}: {cell.why}" for a, b, cell in segment.all() if not cell.good]
        parts += _list(failed)
        marks = {True: ("good", "ok"), False: ("bad", "fails"), None: ("unknown", "not asked")}
        rows = [
            f'<tr><th>{escape(c.what)}</th><td class="{marks[c.good][0]}">{marks[c.good][1]}</td>'
            f'<td class="text">{escape(c.says)}</td></tr>'
            for c in segment.checks
        ]
        parts += ["<table>", *rows, "</table>"] if rows else []
    if problems:
        parts += ["<h2>Hosts that were not asked</h2>", *_list(problems)]
    return _page(f"{title}: verify", [*parts, "<h2>Topology</h2>", _picture(title, made, config)])


def mermaid(made: Plan, config: Config) -> str:
    """The same as text for Mermaid (mermaid.js.org), which many forges and wikis draw."""
    ids: dict[tuple[str, ...], str] = {}

    def node(*key: str) -> str:
        return ids.setdefault(key, f"n{len(ids)}")

    out = ["flowchart TB"]
    for host in _columns(made, config):
        lines = [host, _address(config, host)]
        out.append(f"  subgraph {node('host', host)}[{_quoted(lines)}]")
        for name, row in made.segments.items():
            if host in row["hosts"] or any(host in tunnel["ends"] for tunnel in row["tunnels"].values()):
                lines = [_where(row, host), *row["addresses"].get(host, ())]
                out.append(f"    {node('end', host, name)}[{_quoted(lines)}]")
            for container, its in made.containers.get(name, {}).items():
                if its["host"] == host:
                    words = [container, *([its["address"]] if its["address"] else [])]
                    out.append(f"    {node('container', name, container)}([{_quoted(words)}])")
        out.append("  end")
    for name, row in made.segments.items():
        for tunnel, facts in row["tunnels"].items():
            middle = node("tunnel", name, tunnel)
            out.append(f"  {middle}{{{{{_quoted([_about(name, row), _words(tunnel, facts)])}}}}}")
            out += [f"  {node('end', end, name)} --- {middle}" for end in facts["ends"]]
        for container, its in made.containers.get(name, {}).items():
            out.append(f"  {node('end', its['host'], name)} -.- {node('container', name, container)}")
    return "\n".join(out) + "\n"


# -- what is said ----------------------------------------------------------------------------


def _columns(made: Plan, config: Config) -> list[str]:
    """All hosts, and the peers that are ends of a tunnel."""
    ends = [e for row in made.segments.values() for tunnel in row["tunnels"].values() for e in tunnel["ends"]]
    return list(dict.fromkeys([*config.hosts, *ends]))


def _address(config: Config, name: str) -> str:
    one = config.hosts.get(name) or config.peers.get(name)
    return one.address if one else ""


def _about(name: str, row: SegmentRow) -> str:
    words = [f"{name}: MTU {row['mtu']}", *row["subnets"]]
    if row["gateway"]:
        words.append(f"gateway {row['gateway']}{' on each host' if 'anycast' in row else ''}")
    if "encryption" in row:
        words.append(f"encrypted by {row['encryption']}")
    if "dhcp" in row:
        words.append(f"DHCP on {'each host' if 'anycast' in row else ' and '.join(row['dhcp']['hosts'])}")
    return ", ".join(words)


def _words(name: str, tunnel: TunnelRow) -> str:
    words = [tunnel["kind"], tunnel["topology"]]
    if "hubs" in tunnel:
        active, standby = tunnel["hubs"]
        words[-1] += f" {active} (standby {standby})"
    numbers = [str(number) for number in tunnel["more"].get("vnis", ())]
    if numbers:
        words.append(f"VNI {numbers[0]}" if len(numbers) == 1 else f"VNIs {numbers[0]} and {len(numbers) - 1} more")
    if tunnel["topology"] == EVPN:
        words.append(f"told by {errors.listed(tunnel['more']['routeReflectors'])}")
    return f"{name}: {', '.join(words)}"


def _where(row: SegmentRow, host: str) -> str:
    """What the segment is plugged into there."""
    return row["bridge"] or "tunnel" if host in row["hosts"] else "peer"


# -- the picture -----------------------------------------------------------------------------


@dataclasses.dataclass
class _Drawing:
    """One SVG. Everything is placed from top to bottom, and each column is as wide as its widest text."""

    title: str
    made: Plan
    config: Config

    def svg(self) -> str:
        self.columns = _columns(self.made, self.config)
        self.out: list[str] = []
        left = max((_width(line) for line in self._labels()), default=0) + 2 * _GAP
        self.centre: dict[str, float] = {}
        self.width: dict[str, float] = {}
        at = left
        for name in self.columns:
            self.width[name] = max(_width(text) for text in self._texts(name)) + 2 * _PADDING
            self.centre[name] = at + self.width[name] / 2
            at += self.width[name] + _GAP
        self.all = at
        y = float(_GAP)
        for name in self.columns:
            kind = "host" if name in self.config.hosts else "peer"
            self._box(name, y, [name, _address(self.config, name)], kind)
        y += self._height(2) + _GAP
        for number, (name, row) in enumerate(self.made.segments.items()):
            y = self._band(name, row, _COLOURS[number % len(_COLOURS)], y) + _GAP
        size = f'width="{self.all:.0f}" height="{y:.0f}" viewBox="0 0 {self.all:.0f} {y:.0f}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>{_text(self.title)}</title>'
        return "\n".join([head, f"<style>{_STYLE}</style>", *self.out, "</svg>"]) + "\n"

    def _labels(self) -> Iterable[str]:
        yield self.title
        for name, row in self.made.segments.items():
            yield from self._heading(name, row)
            yield from (label for label, _, _ in self._lines(name, row))

    def _texts(self, name: str) -> Iterable[str]:
        """What stands in the column."""
        yield from (name, _address(self.config, name))
        for segment, row in self.made.segments.items():
            yield from self._end(row, name)
            for container, its in self.made.containers.get(segment, {}).items():
                if its["host"] == name:
                    yield from (container, its["address"] or "")

    @staticmethod
    def _heading(name: str, row: SegmentRow) -> list[str]:
        first, *rest = _about(name, row).split(", ")
        return [f"segment {first}", *rest]

    @staticmethod
    def _end(row: SegmentRow, host: str) -> list[str]:
        return [_where(row, host), *row["addresses"].get(host, ())]

    def _lines(self, name: str, row: SegmentRow) -> list[tuple[str, list[str], tuple[str | None, ...]]]:
        """The tunnels' lines: label, ends, hubs. Pairs have a line each."""
        out: list[tuple[str, list[str], tuple[str | None, ...]]] = []
        for tunnel, its in row["tunnels"].items():
            options = self.config.segments[name].tunnels[tunnel]
            pairs = options.endpoints.pairs if options.endpoints and options.topology == "pairs" else {}
            label = _words(tunnel, its)
            if pairs:
                out += [(f"{label} ({one})", list(ends), ()) for one, ends in pairs.items()]
            else:
                out.append((label, its["ends"], options.hubs or (options.hub,)))
        return out

    def _band(self, name: str, row: SegmentRow, colour: str, top: float) -> float:
        """Draws a segment, and returns where it ends."""
        members = [host for host in self.columns if host in self._members(row)]
        containers = {
            host: [c for c in self.made.containers.get(name, {}).values() if c["host"] == host] for host in members
        }
        heading, lines = self._heading(name, row), self._lines(name, row)
        ends_at = top + _PADDING + _LINE * (len(heading) + len(lines)) + _PADDING
        ends = max((len(self._end(row, host)) for host in members), default=1)
        rows = max((len(c) for c in containers.values()), default=0)
        bottom = ends_at + self._height(ends) + rows * (self._height(2) + _PADDING) + _PADDING
        self.out.append(
            f'<rect class="band" x="{_GAP / 2}" y="{top:.1f}" width="{self.all - _GAP:.1f}" '
            f'height="{bottom - top:.1f}" rx="6"/>'
        )
        for number, text in enumerate(heading):
            kind = "title" if number == 0 else "faint"
            self._write(_GAP, top + _PADDING + _LINE * (number + 0.8), text, kind)
        for number, (label, its, hubs) in enumerate(lines):
            y = top + _PADDING + _LINE * (len(heading) + number + 0.5)
            self._write(_GAP, y + 4, label, "")
            places = sorted(self.centre[end] for end in its)
            self.out.append(_line(places[0], y, places[-1], y, colour))
            for end in its:
                x = self.centre[end]
                self.out.append(_line(x, y, x, ends_at, colour))
                size = 6 if end in hubs else 4
                self.out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{colour}"/>')
        for host in members:
            kind = "box" if host in row["hosts"] else "peer"
            self._box(host, ends_at, self._end(row, host), kind, lines=ends)
            y = ends_at + self._height(ends) + _PADDING
            for one in containers[host]:
                self._box(host, y, [one["name"], one["address"] or ""], "host", round_=10)
                y += self._height(2) + _PADDING
        return bottom

    @staticmethod
    def _members(row: SegmentRow) -> set[str]:
        return {*row["hosts"], *(end for tunnel in row["tunnels"].values() for end in tunnel["ends"])}

    @staticmethod
    def _height(lines: int) -> float:
        return lines * _LINE + _PADDING

    def _box(self, host: str, y: float, texts: Sequence[str], kind: str, *, round_: int = 3, lines: int = 0) -> None:
        x, width = self.centre[host] - self.width[host] / 2, self.width[host]
        height = self._height(lines or len(texts))
        self.out.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{round_}"/>'
        )
        for number, text in enumerate(texts):
            if text:
                self._write(x + _PADDING, y + _LINE * (number + 0.8) + 4, text, "title" if number == 0 else "faint")

    def _write(self, x: float, y: float, text: str, kind: str) -> None:
        self.out.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{_text(text)}</text>')


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="2"/>'


def _width(text: str) -> float:
    return len(text) * _CHARACTER


def _text(text: str) -> str:
    """Escaped, and without what no XML file may hold."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def _quoted(lines: Sequence[str]) -> str:
    """Mermaid's text in quotes; entities of HTML stand for what means something there."""
    return '"' + "<br/>".join(_text(line).replace("#", "#35;").replace("&", "#38;") for line in lines if line) + '"'


# -- pages -----------------------------------------------------------------------------------


def _picture(title: str, made: Plan, config: Config) -> str:
    return f'<div class="wide">{svg(title, made, config)}</div>'


def _containers(made: Plan) -> list[str]:
    rows = [row for rows in made.containers.values() for row in rows.values()]
    if not rows:
        return []
    keys = ("segment", "name", "host", "address", "gateway", "mac", "mtu")
    head = "".join(f"<th>{key}</th>" for key in keys)
    lines = [
        "<tr>" + "".join(f'<td class="text">{_text(str(row[key] or "-"))}</td>' for key in keys) + "</tr>"  # type: ignore[literal-required]
        for row in rows
    ]
    return ["<h2>IP plan</h2>", f"<table><tr>{head}</tr>", *lines, "</table>"]


def _matrix(segment: Segment) -> list[str]:
    if len(segment.hosts) < 2:
        return ["<p>One host alone: there is no pair to try.</p>"]
    head = "".join(f"<th>to {_text(host)}</th>" for host in segment.hosts)
    out = ['<div class="wide"><table>', f"<tr><th>ms there and back</th>{head}</tr>"]
    for a in segment.hosts:
        cells = []
        for b in segment.hosts:
            if a == b:
                cells.append("<td>-</td>")
                continue
            cell = segment.cells[a][b]
            kind = {True: "good", False: "bad", None: "unknown"}[cell.good]
            word = {True: f"{cell.rtt:.2f}" if cell.rtt is not None else "ok", False: "fails", None: "?"}[cell.good]
            note = f' title="{_text(cell.why)}"' if cell.why else ""
            cells.append(f'<td class="{kind}"{note}>{word}</td>')
        out.append(f"<tr><th>from {_text(a)}</th>{''.join(cells)}</tr>")
    return [*out, "</table></div>"]


def _list(lines: Sequence[str]) -> list[str]:
    return ["<ul>", *(f"<li>{_text(line)}</li>" for line in lines), "</ul>"] if lines else []


def _page(title: str, parts: Sequence[str]) -> str:
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(title)}</title><style>{_PAGE_STYLE}</style></head><body>",
            f"<h1>{_text(title)}</h1>",
            *parts,
            "</body></html>",
            "",
        ]
    )
