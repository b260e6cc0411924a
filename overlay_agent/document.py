"""The contract between the program and the agents: one stack's wishes for one host, as JSON.

A document is read by agents older and newer than its writer, stands in Pulumi's state, and is
what a person sees in a preview. So: strict, versioned, keyed by name, defaults left out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from overlay_agent import fields
from overlay_agent.kinds import DEVICES, KINDS, SERVICES, Device

SCHEMA_VERSION = 1
#: Larger documents are refused: a 1,000-peer mesh needs 60 kB.
MAX_BYTES = 4 * 1024 * 1024


class DocumentError(Exception):
    """A document that cannot be used; `errors` holds every reason, each a finished sentence."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


@dataclasses.dataclass(frozen=True)
class Owner:
    """The stack a document belongs to. `id` is random and kept in the stack's state, so that a
    second checkout with the same names is told apart (rule 9)."""

    project: str
    stack: str
    id: str

    @property
    def label(self) -> str:
        return f"{self.project}/{self.stack}"

    def alias(self, device: str) -> str:
        """The `ifalias` of a device of this stack."""
        return f"overlay:{self.label}/{device}"


@dataclasses.dataclass(frozen=True)
class Document:
    """All devices, by interface name, and services of one stack on one host.

    `machine` is the machine-id of the host that the name stood for so far, or None at first.
    `force` lets a removal go on although others use what is removed. `stopped`: since when it is on purpose not true
    (UTC, as RFC 3339 has it); the program never says so, `overlay-agent stop` does. `adopt`: devices that are
    taken over where somebody else made them. `probe`: an apply is undone unless those who answered before it answer
    after it (probes.py). `install_packages`: what its services need and the host lacks is installed (packages.py).
    """

    owner: Owner
    host: str
    machine: str | None = None
    force: bool = False
    devices: Mapping[str, Device] = dataclasses.field(default_factory=dict)
    services: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stopped: str | None = None
    adopt: frozenset[str] = frozenset()
    probe: bool = False
    install_packages: bool = False

    @property
    def objects(self) -> dict[str, Any]:
        """All specs by name; no service has a device's name."""
        return {**self.devices, **self.services}

    def bridges(self) -> set[str]:
        """The bridges that are there once it is true."""
        devices = {name for name, spec in self.devices.items() if spec.KIND == "bridge"}
        return devices | {d for spec in self.services.values() for d in [KINDS[spec.KIND].device(spec)] if d}

    def modules(self) -> set[str]:
        """The kernel modules that its objects need."""
        return {module for spec in self.objects.values() for module in KINDS[spec.KIND].modules}


def to_json(document: Document) -> dict[str, Any]:
    """The document as plain data."""
    out: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "owner": dataclasses.asdict(document.owner),
        "host": document.host,
    }
    if document.machine:
        out["machine"] = document.machine
    if document.force:
        out["force"] = True
    if document.probe:
        out["probe"] = True
    if document.install_packages:
        out["installPackages"] = True
    if document.stopped:
        out["stopped"] = document.stopped
    if document.adopt:
        out["adopt"] = {name: {} for name in sorted(document.adopt)}
    out[DEVICES] = {name: fields.to_json(spec) for name, spec in sorted(document.devices.items())}
    if document.services:
        out[SERVICES] = {name: fields.to_json(spec) for name, spec in sorted(document.services.items())}
    return out


def dump(raw: Mapping[str, Any]) -> str:
    """Canonical JSON text: equal documents are equal texts. Indented, so that Pulumi shows a
    structural diff and people can read the state."""
    return json.dumps(raw, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def load(text: str | bytes) -> Document:
    """The document in `text`. Raises DocumentError with every error found."""
    if len(text) > MAX_BYTES:
        raise DocumentError([f"document: {len(text)} bytes; at most {MAX_BYTES} are taken"])
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DocumentError([f"document: not JSON ({error}); send what the program wrote"]) from None
    return parse(raw)


def request(text: bytes, verb: str) -> Any:
    """What a verb other than `apply` is sent, as plain data. Raises DocumentError, and ValueError for what is not
    JSON."""
    if len(text) > MAX_BYTES:
        raise DocumentError([f"{verb}: {len(text)} bytes; at most {MAX_BYTES} are taken"])
    try:
        raw = json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    version = raw.get("schema", SCHEMA_VERSION) if isinstance(raw, dict) else SCHEMA_VERSION
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise DocumentError(
            [f"{verb}.schema: {version!r}; this agent reads 1 to {SCHEMA_VERSION}: run `pulumi up`, which updates it"]
        )
    return raw


def parse(raw: Any) -> Document:
    """The document in plain data. Raises DocumentError with every error found."""
    errors: list[str] = []
    if not isinstance(raw, dict):
        raise DocumentError(["document: not an object; send what the program wrote"])
    version = raw.get("schema")
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise DocumentError(
            [f"document.schema: {version!r}; this agent reads 1 to {SCHEMA_VERSION}: run `pulumi up`, which updates it"]
        )
    known = [
        "schema", "owner", "host", "machine", "force", "stopped", "adopt", "probe", "installPackages", DEVICES, SERVICES
    ]  # fmt: skip
    errors.extend(
        f"document.{key}: unknown field; known are {', '.join(known)}" for key in sorted(raw.keys() - set(known))
    )
    owner = read_owner(raw.get("owner"), errors)
    label = fields.Label()
    maybe = fields.optional(label)
    flag = fields.Flag()
    types = {"host": label, "machine": maybe, "force": flag, "probe": flag, "installPackages": flag, "stopped": maybe}
    for key, type_ in types.items():
        wrong = type_.check(raw.get(key, False if type_ is flag else None))
        if wrong:
            errors.append(f"document.{key}: {wrong}")
    devices = _objects(raw, DEVICES, fields.InterfaceName(), errors)
    services = _objects(raw, SERVICES, label, errors)
    adopt = raw.get("adopt", {})
    wrong = fields.Keyed("device", fields.InterfaceName(), fields.Empty()).check(adopt)
    errors += [f"document.adopt: {wrong}"] if wrong else []
    for name, spec in devices.items():
        if spec.bridge == name or (spec.bridge in devices and devices[spec.bridge].KIND != "bridge"):
            errors.append(f"{name}.bridge: {spec.bridge!r} is not a bridge; name one of this document or of the host")
    errors.extend(
        f"{name}.{fields.json_name(field.name)}: {bridge!r} names a docker-network of this document; it has none"
        for name, spec in {**devices, **services}.items()
        for field in dataclasses.fields(spec)
        if fields.holds_bridge(field)
        for bridge in [getattr(spec, field.name)]
        if bridge and bridge.startswith(fields.DOCKER) and getattr(services.get(bridge), "KIND", "") != "docker-network"
    )
    errors.extend(
        f"{SERVICES}.{name}: a device has that name; name the service differently"
        for name in sorted(services.keys() & devices.keys())
    )
    if errors or owner is None:
        raise DocumentError(errors)
    return Document(
        owner, raw["host"], raw.get("machine"), raw.get("force", False), devices, services, raw.get("stopped"),
        frozenset(adopt), raw.get("probe", False), raw.get("installPackages", False),
    )  # fmt: skip


def read_owner(raw: Any, errors: list[str]) -> Owner | None:
    """The owner in plain data, or None after adding every error found to `errors`."""
    names = [f.name for f in dataclasses.fields(Owner)]
    if not isinstance(raw, dict) or raw.keys() != set(names):
        errors.append(f"document.owner: {raw!r}; it is an object with {', '.join(names)}")
        return None
    wrong = [f"document.owner.{n}: {w}" for n in names for w in [fields.Label().check(raw[n])] if w]
    errors.extend(wrong)
    return None if wrong else Owner(**raw)


def _objects(raw: Mapping[str, Any], group: str, names: fields.Type, errors: list[str]) -> dict[str, Any]:
    specs: dict[str, Any] = {}
    objects = raw.get(group, {})
    if not isinstance(objects, dict):
        errors.append(f"document.{group}: {objects!r} is not an object; {group} stand in it by name")
        return specs
    for name, value in sorted(objects.items()):
        wrong = names.check(name)
        kind = value.get("kind") if isinstance(value, dict) else None
        if wrong:
            errors.append(f"{group}: {wrong}")
        elif not isinstance(value, dict):
            errors.append(f"{name}: {value!r} is not an object")
        elif not isinstance(kind, str) or kind not in KINDS or KINDS[kind].group != group:
            known = sorted(one for one, its in KINDS.items() if its.group == group)
            errors.append(f"{name}.kind: {kind!r} is not one of {', '.join(known)}, which this agent knows")
        else:
            spec = fields.from_json(KINDS[kind].spec, name, value, errors)
            if spec is not None:
                specs[name] = spec
                errors.extend(f"{name}.{wrong}" for wrong in KINDS[kind].wrong(spec))
    return specs
