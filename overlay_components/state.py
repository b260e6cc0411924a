"""What Pulumi's state says was applied last: the document of every host, with all that only the state knows (the
stack's id, machine ids, public keys, references to secrets). Nothing secret is in it, so no passphrase is asked for."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from typing import Any

from overlay_components._project import Stack
from overlay_components.errors import ConfigErrors

_DOCUMENT = "-document"
_PATIENCE = 120


def documents(stack: Stack) -> dict[str, dict[str, Any]]:
    """The documents of the stack's hosts, by host. Raises ConfigErrors where Pulumi does not know the stack."""
    if stack.folder is None:
        raise ConfigErrors(
            [f"{stack.owner.label}: no Pulumi.yaml beside the stack file or above; run this in a Pulumi project"]
        )
    words = ["pulumi", "stack", "export", "--stack", stack.owner.stack, "--non-interactive"]
    try:
        done = subprocess.run(
            words, cwd=stack.folder, capture_output=True, text=True, check=False, timeout=_PATIENCE,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        raise ConfigErrors(["pulumi: is not on PATH; what was applied stands in its state"]) from None
    except subprocess.TimeoutExpired:
        raise ConfigErrors([f"{' '.join(words)}: no answer within {_PATIENCE} s"]) from None
    if done.returncode:
        why = " ".join(done.stderr.removeprefix("error: ").split()) or f"exit code {done.returncode}"
        raise ConfigErrors([f"{' '.join(words)}: {why}; log in (pulumi login), or apply the stack (pulumi up)"])
    resources = (json.loads(done.stdout).get("deployment") or {}).get("resources") or []
    found = (_document(resource) for resource in resources)
    mine = {raw["host"]: raw for raw in found if raw and raw["owner"]["stack"] == stack.owner.stack}
    return dict(sorted(mine.items()))


def _document(resource: Mapping[str, Any]) -> dict[str, Any] | None:
    """The document that the resource applied, if it is one that does."""
    name = str(resource.get("urn", "")).rpartition("::")[2]
    if resource.get("type") != "command:remote:Command" or not name.endswith(_DOCUMENT) or resource.get("delete"):
        return None
    text = (resource.get("inputs") or {}).get("stdin")
    return dict(json.loads(text)) if isinstance(text, str) else None
