"""What `overlay init` writes: a Pulumi project with a first stack, checked before anything is written."""

from __future__ import annotations

import ipaddress
import re
import string
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from overlay_agent.document import Owner
from overlay_components import config, errors, plan
from overlay_components.errors import ConfigErrors

PROJECT = "overlay"
SCHEMA = "schema/overlay-stack.schema.json"
#: Containers of the first stack begin at this address of their subnet; what is below is for hosts and routers.
_FIRST_CONTAINER = 11


def files(version: str, stack: str, hosts: Mapping[str, str], subnet: str, vni: int) -> dict[str, str]:
    """The project's files by path. Raises ConfigErrors with everything that is wrong with the stack."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", stack):
        raise ConfigErrors([f"--stack: {stack!r} is not a stack's name; take letters, digits, '_', '.' and '-'"])
    segment: dict[str, Any] = {"subnets": [subnet], "tunnels": {"mesh": {"kind": "vxlan", "vni": vni}}}
    raw = {"hosts": {name: {"address": address} for name, address in hosts.items()}, "segments": {"app": segment}}
    config.load_config(raw)  # the subnet must be one before addresses are taken from it
    segment["containers"] = _containers(list(hosts), ipaddress.ip_network(subnet))
    plan.make_plan(config.load_config(raw), Owner(PROJECT, stack, "new"))
    lines = {
        "hosts": [f'    {name}: {{address: "{host["address"]}"}}' for name, host in raw["hosts"].items()],
        "containers": [
            f'        {name}: {{host: {row["host"]}, address: "{row["address"]}"}}'
            for name, row in segment["containers"].items()
        ],
    }
    texts = {key: "\n".join(rows) for key, rows in lines.items()}
    return {
        "Pulumi.yaml": _template("Pulumi.yaml"),
        "__main__.py": _template("main.py.txt"),
        "requirements.txt": f"overlay-networks=={version}\n",
        ".gitignore": _template("gitignore"),
        SCHEMA: config.schema_text(),
        f"stacks/Pulumi.{stack}.yaml": string.Template(_template("stack.yaml")).substitute(
            texts, subnet=subnet, vni=vni
        ),
    }


def hosts_of(given: Sequence[str]) -> dict[str, str]:
    """Host addresses by name from texts `name=address`. Raises ConfigErrors."""
    out: dict[str, str] = {}
    wrong: list[str] = []
    for text in given:
        name, equals, address = text.partition("=")
        if not (name and equals and address):
            wrong.append(f"--host: {text!r} is not a host; write NAME=ADDRESS, such as a=192.0.2.11")
        elif name in out:
            wrong.append(f"--host: {name!r} stands twice; each host has its own name")
        else:
            out[name] = address
    if wrong:
        raise ConfigErrors(wrong)
    return out


def write(folder: Path, wanted: Mapping[str, str]) -> None:
    """Writes them. Raises ConfigErrors, before writing any, when some stand there already."""
    there = [name for name in wanted if (folder / name).exists()]
    if there:
        # All of them: whoever moves them away wants to do it once.
        names = f"{', '.join(there[:-1])} and {there[-1]} are" if len(there) > 1 else f"{there[0]} is"
        what = f"{names} there already; nothing was written: move them away, or name a folder"
        raise ConfigErrors([f"{folder.resolve()}: {what}"])
    try:
        for name, text in wanted.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigErrors([f"{folder}: cannot be written ({error}); name another folder"]) from None


def _containers(
    hosts: Sequence[str], subnet: ipaddress.IPv4Network | ipaddress.IPv6Network
) -> dict[str, dict[str, str]]:
    first = _FIRST_CONTAINER if subnet.num_addresses > _FIRST_CONTAINER + len(hosts) else 1
    if subnet.num_addresses < first + len(hosts) + 1:
        small = f"{str(subnet)!r} has no room for {errors.listed(hosts)}"
        raise ConfigErrors([f"--subnet: {small}; take a larger one, such as 10.10.0.0/24"])
    return {f"web{n + 1}": {"host": host, "address": str(subnet[first + n])} for n, host in enumerate(hosts)}


def _template(name: str) -> str:
    return (resources.files("overlay_components") / "templates" / name).read_text(encoding="utf-8")
