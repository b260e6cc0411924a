"""What Pulumi's state says was applied last: the document of every host, with all that only the state knows (the
stack's id, machine ids, public keys, references to secrets). Nothing secret is in it, so no passphrase is asked for."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from overlay_components._project import Stack
from overlay_components.errors import ConfigErrors

_DOCUMENT = "-document"
_HOST = "overlay:index:Host"
_PATIENCE = 120


def documents(stack: Stack) -> dict[str, dict[str, Any]]:
    """The documents of the stack's hosts, by host. Raises ConfigErrors where Pulumi does not know the stack."""
    return applied(_folder(stack), stack.owner.stack, stack.owner.label)


def applied(folder: Path, stack: str, label: str) -> dict[str, dict[str, Any]]:
    """The same of the project in that folder: of the documents in the state of `stack`, those of the owner `label`."""
    exported = json.loads(_pulumi(folder, stack, "export"))
    found = (_document(resource) for resource in resources(exported))
    mine = {raw["host"]: raw for raw in found if raw and f"{raw['owner']['project']}/{raw['owner']['stack']}" == label}
    return dict(sorted(mine.items()))


def resources(exported: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The resources in what was exported."""
    return (exported.get("deployment") or {}).get("resources") or []


def export(stack: Stack) -> dict[str, Any]:
    """The stack's state as Pulumi exports it, with secrets as they are kept. Raises ConfigErrors."""
    return dict(json.loads(_pulumi(_folder(stack), stack.owner.stack, "export")))


def replace(stack: Stack, exported: Mapping[str, Any]) -> None:
    """Has Pulumi take that for the stack's state. Raises ConfigErrors."""
    _pulumi(_folder(stack), stack.owner.stack, "import", input_=json.dumps(exported))


def without_host(exported: Mapping[str, Any], host: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The state without the host's resources, and these. Nothing that is left refers to them: `pulumi state delete
    --target-dependents` would take the documents of all hosts along that know this one's public key."""
    rows = resources(exported)
    gone = {urn for urn, name in _hosts(rows).items() if name == host}
    while more := {row["urn"] for row in rows if row.get("parent") in gone} - gone:
        gone |= more

    def cleaned(row: Mapping[str, Any]) -> dict[str, Any]:
        out = dict(row)
        if "dependencies" in out:
            out["dependencies"] = [urn for urn in out["dependencies"] or [] if urn not in gone]
        if "propertyDependencies" in out:
            old = out["propertyDependencies"] or {}
            out["propertyDependencies"] = {key: [u for u in urns or [] if u not in gone] for key, urns in old.items()}
        if out.get("deletedWith") in gone:
            del out["deletedWith"]
        return out

    deployment = dict(exported.get("deployment") or {})
    deployment["resources"] = [cleaned(row) for row in rows if row["urn"] not in gone]
    pending = deployment.get("pending_operations") or []
    if pending:
        deployment["pending_operations"] = [one for one in pending if one["resource"]["urn"] not in gone]
    return {**exported, "deployment": deployment}, [row for row in rows if row["urn"] in gone]


def hosts(exported: Mapping[str, Any]) -> list[str]:
    """The hosts that the state has resources of."""
    return sorted(set(_hosts(resources(exported)).values()))


def _hosts(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The names of hosts by their components' URNs: each is called by its Overlay's name and its own."""
    names = {row["urn"]: row["urn"].rpartition("::")[2] for row in rows}
    return {
        row["urn"]: names[row["urn"]].removeprefix(f"{names.get(row.get('parent'))}-")
        for row in rows
        if row.get("type") == _HOST
    }


def _folder(stack: Stack) -> Path:
    if stack.folder is None:
        raise ConfigErrors(
            [f"{stack.owner.label}: no Pulumi.yaml beside the stack file or above; run this in a Pulumi project"]
        )
    return stack.folder


def _pulumi(folder: Path, stack: str, *words_: str, input_: str = "") -> str:
    """What `pulumi stack …` prints. Raises ConfigErrors."""
    words = ["pulumi", "stack", *words_, "--stack", stack, "--non-interactive"]
    try:
        done = subprocess.run(
            words, cwd=folder, capture_output=True, text=True, check=False, timeout=_PATIENCE, input=input_
        )  # fmt: skip
    except FileNotFoundError:
        raise ConfigErrors(["pulumi: is not on PATH; what was applied stands in its state"]) from None
    except subprocess.TimeoutExpired:
        raise ConfigErrors([f"{' '.join(words)}: no answer within {_PATIENCE} s"]) from None
    if done.returncode:
        why = " ".join(done.stderr.removeprefix("error: ").split()) or f"exit code {done.returncode}"
        raise ConfigErrors([f"{' '.join(words)}: {why}; log in (pulumi login), or apply the stack (pulumi up)"])
    return done.stdout


def _document(resource: Mapping[str, Any]) -> dict[str, Any] | None:
    """The document that the resource applied, if it is one that does."""
    name = str(resource.get("urn", "")).rpartition("::")[2]
    if resource.get("type") != "command:remote:Command" or not name.endswith(_DOCUMENT) or resource.get("delete"):
        return None
    text = (resource.get("inputs") or {}).get("stdin")
    return dict(json.loads(text)) if isinstance(text, str) else None
