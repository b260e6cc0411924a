"""Hosts that Pulumi was made to forget while they still had the stack's network, since they did not answer.

Nobody else knows of them: not the state, nor the stack file. When such a machine comes up again, its agent makes its
old network true at boot, and it sends into the others' tunnels. So they stand in a file beside the stack file,
`Pulumi.<stack>.forgotten.json`, which is committed like it, and `overlay status` and `overlay verify` ask them too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from overlay_components._project import Stack
from overlay_components.config import ResolvedHost
from overlay_components.errors import ConfigErrors, listed
from overlay_components.live import Answer, Request

#: How each is reached.
_KEYS = ("address", "user", "port", "identity_file", "host_key", "proxy", "sudo")


def path_of(stack: Stack) -> Path:
    """The stack's file."""
    return stack.lock_file.with_name(f"Pulumi.{stack.owner.stack}.forgotten.json")


def load(stack: Stack, declared: Container[str] = ()) -> dict[str, ResolvedHost]:
    """The hosts that were forgotten, without those that are declared again. Raises ConfigErrors."""
    hosts = _read(path_of(stack)).items()
    return {
        name: at(name, one["address"], **{key: one.get(key) for key in _KEYS[1:]})
        for name, one in hosts
        if name not in declared
    }


def at(name: str, address: str, **more: Any) -> ResolvedHost:
    """A host of which no more is known than how it is reached. `more`: of _KEYS."""
    unknown: dict[str, Any] = dict.fromkeys(_KEYS[1:])
    underlay: dict[str, Any] = {"mtu": 0, "underlay_local": address, "underlay_device": None}
    return ResolvedHost(name=name, address=address, underlay_address=address, **{**unknown, **underlay, **more})


def add(stack: Stack, host: ResolvedHost, when: str) -> None:
    """Keeps the host. Raises ConfigErrors."""
    kept = {key: getattr(host, key) for key in _KEYS if getattr(host, key) is not None}
    _write(path_of(stack), {**_read(path_of(stack)), host.name: {**kept, "forgotten": when}})


def drop(stack: Stack, gone: Container[str]) -> None:
    """Hosts that have nothing of the stack any more, or are its own again. Raises ConfigErrors."""
    before = _read(path_of(stack))
    after = {name: one for name, one in before.items() if name not in gone}
    if after != before:
        _write(path_of(stack), after)


def request(stack: Stack) -> Request:
    """What to ask one of them: a Fleet's request, the answer of which is for `back`."""
    return Request(f"status {stack.owner.label}")


def back(stack: Stack, hosts: Mapping[str, ResolvedHost], answers: Mapping[str, Answer]) -> list[str]:
    """A sentence for each forgotten host that is there again and still has something of the stack."""
    return [line for name, host in hosts.items() for line in [_back(stack, host, answers[name])] if line]


def _back(stack: Stack, host: ResolvedHost, answer: Answer) -> str:
    """The sentence for a forgotten host that is there again and still has something of the stack; else nothing."""
    if answer.problem or not answer.report:
        return ""
    there = [name for name, one in answer.report["objects"].items() if one["there"]]
    if not there and answer.report["applied"] is None:
        return ""
    return (
        f"{host.name}: was forgotten, and is back with {listed(there) or 'a document'} of {stack.owner.label}; declare "
        f"it again and run `pulumi up`, or remove what it has: overlay purge {host.name} --stack {stack.owner.stack}"
    )


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): {**one, "address": str(one["address"])} for name, one in content["hosts"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigErrors([f"{path}: cannot be read ({error}); take its last committed form, or remove it"]) from None


def _write(path: Path, hosts: Mapping[str, Any]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if not hosts:
            path.unlink(missing_ok=True)
            return
        draft.write_text(json.dumps({"hosts": hosts}, indent=2, sort_keys=True) + "\n")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ConfigErrors([f"{path}: cannot be written ({error}); make its folder writable"]) from None
