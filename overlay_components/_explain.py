"""What a person would type instead: the kinds' own commands, in the order in which the agent works."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from overlay_agent import document
from overlay_agent.document import Document, Owner
from overlay_agent.kinds import KINDS, typed
from overlay_components import config, errors, evpn, plan
from overlay_components.config import TUNNELS
from overlay_components.errors import ConfigErrors
from overlay_components.lock import Lock
from overlay_components.plan import Plan
from overlay_components.secrets import NO_DIGITS, SHOWN, Secrets
from overlay_components.tunnel import MESH

#: How an explained command reads a secret value on a host of ours.
_SECRET_FILE = re.compile(r"\$\((?:od|cat) [^)]*\)")


def lines(raw: Mapping[str, Any], owner: Owner, name: str | None, lock: Lock) -> dict[str, list[str]]:
    """The commands, with comments, for that host or peer, or for every host. Raises ConfigErrors."""
    checked = config.load_config(raw)
    made = plan.make_plan(checked, owner, lock, Secrets(unknown=NO_DIGITS))
    if name is not None and name in checked.peers:
        return {name: _peer(raw, owner, name, made, lock)}
    if name is not None and name not in made.documents:
        known = errors.instead(name, [*checked.hosts, *checked.peers])
        raise ConfigErrors([f"HOST: unknown host {name!r}; {known}"])
    return {host: _host(made, owner, host) for host in ([name] if name else made.documents)}


def _host(made: Plan, owner: Owner, name: str) -> list[str]:
    head = f"# {owner.label} on {name}, by hand; `pulumi up` does it, and can undo it"
    return [head, *map(_without_digits, _commands(_wanted(made, name), marked=True))]


def _wanted(made: Plan, name: str) -> Document:
    """The host's document. Public keys, which only the hosts know, are in words, so it is not read from JSON."""
    rest = document.parse({**made.documents[name], "devices": {}})
    return dataclasses.replace(rest, devices=made.devices[name])


def _peer(raw: Mapping[str, Any], owner: Owner, name: str, made: Plan, lock: Lock) -> list[str]:
    address = raw["peers"][name]["address"]
    out = [f"# {name}, {address}: not managed by {owner.label}; what it needs as the other end"]
    ends = 0
    for segment, row in made.segments.items():
        for tunnel, facts in row["tunnels"].items():
            if name in facts["ends"]:
                ends += 1
                more = [f"{key} {_text(value)}" for key, value in facts["more"].items() if key != "ends"]
                others = ", ".join(end for end in facts["ends"] if end != name)
                out.append(f"# segment {segment}, tunnel {tunnel}: {', '.join([facts['kind'], *more])}; with {others}")
                out.append(f"#   mtu {row['mtu']}, subnets {_text(row['subnets'])}")
                out += _mirrored(name, facts["more"].get("ends", {}))
                if TUNNELS[facts["kind"]].pairwise and facts["topology"] == MESH and len(facts["ends"]) > 2:
                    out.append("#   its devices must pass nothing to each other: a mesh would loop")
    bgp = raw.get("evpn") or {}
    if name in bgp.get("routeReflectors", ()):
        ends += 1
        who = bgp.get("range") or "the hosts"
        out.append(f"# BGP EVPN: route reflector of AS {bgp.get('asn', evpn.ASN)}; clients: {_text(who)}")
    if not ends:
        return [*out, "# no tunnel has this end: there is nothing to type"]
    try:
        managed = config.load_config(_managed(raw, name, made))
        as_host = _wanted(plan.make_plan(managed, owner, lock, Secrets(unknown=NO_DIGITS)), name)
    except (ConfigErrors, document.DocumentError):
        # What it shares with others (a VNI on several pairs) a Linux host could not do.
        return [*out, "# a Linux machine cannot be that end with these numbers: see above for what it has to speak"]
    # The secrets of our hosts lie in no file of theirs.
    commands = [_SECRET_FILE.sub(SHOWN, line) for line in _commands(as_host, marked=False)]
    note = [f"# {SHOWN} stands for the value in the stack file"] if any(SHOWN in line for line in commands) else []
    return [*out, "# if it is a Linux machine:", *note, *commands]


def _mirrored(name: str, pairs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """What differs from pair to pair: the peer's own numbers, and those of the other end."""
    out: list[str] = []
    for ends in pairs.values():
        for other in ends.keys() - {name} if name in ends else ():
            own = ", ".join(f"{key} {value} ({other}: {ends[other][key]})" for key, value in ends[name].items())
            out.append(f"#   to {other}: {own}")
    return out


def _managed(raw: Mapping[str, Any], name: str, made: Plan) -> dict[str, Any]:
    """The same stack with the peer as one of its hosts, in the tunnels whose end it is and in no other."""
    out: dict[str, Any] = copy.deepcopy(dict(raw))
    before = list(out["hosts"])
    out["hosts"][name] = out["peers"].pop(name)
    out.pop("openFirewall", None)  # how they guard it is theirs to say
    for segment, row in made.segments.items():
        ends = [end for facts in row["tunnels"].values() for end in facts["ends"]]
        members = out["segments"][segment].get("hosts") or before
        # Who routes and serves stays among the hosts.
        not_theirs = {"dhcp", "routes", "gateway"}
        kept = {key: value for key, value in out["segments"][segment].items() if key not in not_theirs}
        out["segments"][segment] = {**kept, "hosts": list(members)}
        if name in ends and name not in members:
            out["segments"][segment]["hosts"].append(name)
        for tunnel, facts in row["tunnels"].items():
            options = out["segments"][segment]["tunnels"][tunnel]
            options.setdefault("endpoints", facts["ends"])
        bridge = out["segments"][segment].get("bridge")
        if isinstance(bridge, dict):
            # What Docker or LXD does on the hosts is not the peer's: any bridge will do there.
            out["segments"][segment]["bridge"] = {k: v for k, v in bridge.items() if k not in ("attach", "docker")}
    return out


def _without_digits(line: str) -> str:
    """Only Pulumi's state knows the key that makes them."""
    return line.replace(f":{NO_DIGITS}", f":{SHOWN}")


def _modules(wanted: Document) -> list[str]:
    return [f"modprobe {module}" for module in sorted(wanted.modules())]


def _commands(wanted: Document, *, marked: bool) -> list[str]:
    modules = _modules(wanted)
    objects = sorted(wanted.objects.items(), key=lambda item: (KINDS[item[1].KIND].rank, item[0]))
    # Our mark on what is not ours would be a lie.
    lines = [
        typed(command)
        for name, spec in objects
        for command in KINDS[spec.KIND].commands(name, spec, wanted.owner.alias(name))
        if marked or not any(wanted.owner.alias(name) in word for word in command)
    ]
    return [*modules, *(line for line in lines if line not in modules)]


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
