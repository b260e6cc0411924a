"""One document becomes true on this host, or nothing changes: observe, diff, act, verify, or undo.

`prepare` only looks. `carry_out` may die at any line: before the first change the journal holds
how everything to be touched was, and `undo` brings exactly that back. Who calls what when, and
what happens when a process is killed, is in guard.py. What an object is, is its kind's business.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from overlay_agent import bridges, fields
from overlay_agent import document as documents
from overlay_agent.diff import CREATE, REMOVE, SET, Change, diff, remaking, row_text
from overlay_agent.document import Document
from overlay_agent.errors import KernelError
from overlay_agent.fields import RECREATE, Difference
from overlay_agent.kernel import Kernel, Link, may_drop_packets
from overlay_agent.kinds import DEVICES, KINDS, SERVICES
from overlay_agent.secrets import MISSING, Secrets, references
from overlay_agent.store import Store

#: What systemd-networkd makes when it runs (systemd-networkd.service(8)).
NETWORKD = "/run/systemd/netif"
#: Read-backs until a difference counts: udev and daemons may be at it for a moment.
VERIFY_SECONDS = (0.0, 0.05, 0.2, 0.5)
#: For what others have to do, such as a session's other end: in the same `pulumi up` they may come later.
PATIENCE_SECONDS = 3.0
#: What can be set, but not under those who use the device: their neighbours would know another one.
_DISTURBING = ("mac", "bridge")

Raw = dict[str, Any]


class Refused(Exception):  # noqa: N818 - a refusal is no error of ours
    """The document cannot be applied here. Nothing was touched. `errors` are finished sentences."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = list(errors)


class Failed(Exception):  # noqa: N818 - as above
    """The host did not do what was asked, after something may have been changed."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an apply will do: `changes` on the host, and `target` into the store. `stays` says of
    what is no longer wanted, and is left all the same, why."""

    wanted: Document
    changes: list[Change]
    stays: list[str]
    stored: Raw | None
    target: Raw | None
    machine: str
    #: Devices that somebody else made, and that become this stack's as they are.
    adopted: frozenset[str] = frozenset()

    @property
    def quiet(self) -> bool:
        """Whether everything is as declared."""
        return not self.changes and self.stored == self.target

    def lines(self) -> list[str]:
        """What changes, or why nothing does, for people."""
        lines = [line for change in self.changes for line in self._said(change)] + self.stays
        was, now = (self.stored or {}).get("stopped"), self.wanted.stopped
        if now and not was:
            lines.append(f"{self.wanted.host}: stopped; `overlay start {self.wanted.host}` makes all of it again")
        elif was and not now and self.target:
            lines.append(f"{self.wanted.host}: was stopped since {was}; started again")
        return lines or [self._nothing()]

    def _said(self, change: Change) -> list[str]:
        if change.name not in self.adopted:
            return change.lines()
        rows = [row for row in change.rows if row[0] != "alias"]
        return [f"{change.name}: taken over", *dataclasses.replace(change, rows=rows).lines()]

    def _nothing(self) -> str:
        count = len(self.wanted.objects)
        what = "device" if not self.wanted.services else "object"
        as_declared = f"{count} {what}{'' if count == 1 else 's'} as declared"
        return f"{self.wanted.host}: nothing to do, {as_declared}" + ("" if self.stored else " (first document)")

    def report(self) -> Raw:
        """What the program gets to know. Equal for equal documents, so that a repeated apply
        changes nothing in the state."""
        devices = {name: {"kind": spec.KIND, "mtu": spec.mtu} for name, spec in self.wanted.devices.items()}
        return {"host": self.wanted.host, "machine": self.machine, "devices": devices}


# -- looking -------------------------------------------------------------------------------------


def found(kernel: Kernel, name: str, mark: str, kinds: set[str]) -> Any:
    """The spec of what has that name, or None. `kinds`: what it was, or is to be."""
    services = sorted(kind for kind in kinds if KINDS[kind].group == SERVICES)
    for service in services:
        spec = KINDS[service].find(kernel, name, mark)
        if spec is not None:
            return spec
    if services:
        return None
    link = kernel.links.get(name)
    # What is there in part may not have its device yet.
    there = ({link.kind} & KINDS.keys()) if link else kinds
    return next((spec for kind in sorted(there) for spec in [KINDS[kind].find(kernel, name, mark)] if spec), None)


def stored_objects(raw: Raw | None) -> Raw:
    """The specs in a stored document, as plain data."""
    return {**raw.get(DEVICES, {}), **raw.get(SERVICES, {})} if raw else {}


def ours(kernel: Kernel, owner: documents.Owner, stored: Raw | None) -> set[str]:
    """What this stack has on the host: by mark where there is one, else as the store has it."""
    prefix = owner.alias("")
    names = {name for name, link in kernel.links.items() if link.alias.startswith(prefix)}
    for name, spec in stored_objects(stored).items():
        kind = KINDS.get(spec.get("kind"))
        if kind and kind.still_ours(kernel, name, spec):
            names.add(name)
    return names


def compare(
    kernel: Kernel, wanted: Mapping[str, Any], kinds: Mapping[str, set[str]], mark: Callable[[str], str]
) -> list[Change]:
    """What to do so that what is on the host is as `wanted` says; None in it: not there."""
    there: Raw = {}
    beside = {}
    for name, spec in wanted.items():
        there[name] = is_ = found(kernel, name, mark(name), kinds.get(name, set()) | ({spec.KIND} if spec else set()))
        if spec is not None and is_ is not None:
            beside[name] = KINDS[is_.KIND].beside(kernel, name, mark(name))
    changes = diff(wanted, there, beside)
    new = {change.name for change in changes if change.action in (CREATE, RECREATE)}
    touched = {change.name for change in changes}
    for name, spec in wanted.items():
        on = sorted(KINDS[spec.KIND].devices(spec) & new) if spec is not None and name not in touched else []
        if on:
            changes.append(Change(name, SET, there[name], spec, [("port", None, device) for device in on]))
    return changes


def changes_for(wanted: Document, kernel: Kernel, stored: Raw | None) -> list[Change]:
    """What to do so that the stack's part of this host is as the document says."""
    names = (wanted.objects.keys() | ours(kernel, wanted.owner, stored)) - staying(wanted, kernel, stored).keys()
    kinds = {name: {spec["kind"]} for name, spec in stored_objects(stored).items() if spec["kind"] in KINDS}
    return compare(kernel, {name: wanted.objects.get(name) for name in names}, kinds, wanted.owner.alias)


def drift(wanted: Document, kernel: Kernel, store: Store) -> list[str]:
    """What differs on this host from the stack's document, a line each. Only looks."""
    kernel.secrets = secrets_of(wanted, store)
    changes = changes_for(bridges.resolved(wanted, kernel), kernel, store.read(wanted.owner.label))
    return [line for change in changes for line in change.drift()]


def staying(wanted: Document, kernel: Kernel, stored: Raw | None) -> dict[str, str]:
    """What the document wants no longer and is left all the same, with the reason."""
    reasons = {
        name: KINDS[spec["kind"]].stays(kernel, name, spec, wanted.owner.alias(name), force=wanted.force)
        for name, spec in stored_objects(stored).items()
        if name not in wanted.objects and spec.get("kind") in KINDS
    }
    return {name: why for name, why in reasons.items() if why}


def refusals(wanted: Document, kernel: Kernel, stored: Raw | None, machine: str) -> list[str]:
    """Every reason why the document cannot be applied on this host."""
    host, label = wanted.host, wanted.owner.label
    errors = []
    if wanted.machine and wanted.machine != machine:
        errors.append(
            f"{host}: this machine's id is {machine}, but {host} is {wanted.machine} in stack {label}; "
            f"if the machine was replaced, raise overlay:hosts.{host}.generation; if its address is "
            f"wrong, mend that; if it is another host, give it another name"
        )
    if stored and stored["owner"]["id"] != wanted.owner.id:
        errors.append(foreign_stack(host, label, stored["owner"]["id"], wanted.owner.id))
    mine = ours(kernel, wanted.owner, stored)
    missing = set(kernel.secrets.missing())
    for name, spec in sorted(wanted.objects.items()):
        link = kernel.links.get(name)
        if link and name in wanted.devices and name not in mine and not _adopts(wanted, link):
            whose = f"belongs to {link.alias}" if link.alias else "is not ours"
            theirs = KINDS.get(link.kind)
            away = theirs.removal(kernel, name) if theirs else f"ip link delete {name}"
            errors.append(
                f"{host} {name}: a device of that name ({link.kind or 'physical'}) is there and {whose}; "
                f"give ours another name (ifname, or bridge.name), or remove that one: {away}"
                + ("; adopt: true takes it over" if _adopts(wanted, link, asked=False) else "")
            )
        errors += [f"{host} {name}: {wrong}" for wrong in KINDS[spec.KIND].wrong_here(kernel, name, spec, wanted)]
        errors += [f"{host} {name}: {reference}: {MISSING}" for reference in sorted(references([spec]) & missing)]
    for name in [] if wanted.force else sorted(mine - wanted.objects.keys()):
        link = kernel.links.get(name)
        kind = KINDS.get(link.kind) if link else None
        errors += [
            f"{host} {name}: still {use}; stop those first, or set overlay:hosts.{host}.force: true"
            for use in (kind.in_use(kernel, name, mine) if kind else [])
        ]
    return errors


def _adopts(wanted: Document, link: Link, *, asked: bool = True) -> bool:
    """Whether the device that somebody else made can become this stack's, and, `asked`, shall."""
    may = link.kind == wanted.devices[link.name].KIND and not link.alias.startswith("overlay:")
    return may and (link.name in wanted.adopt or not asked)


def adopted(wanted: Document, kernel: Kernel, stored: Raw | None) -> frozenset[str]:
    """The devices that somebody else made, and that the document takes over."""
    links = (kernel.links[name] for name in wanted.adopt & wanted.devices.keys() & kernel.links.keys())
    return frozenset(link.name for link in links if _adopts(wanted, link)) - ours(kernel, wanted.owner, stored)


def _as_they_are(host: str, changes: Sequence[Change], names: frozenset[str]) -> list[str]:
    """An error for each difference with which a device cannot be taken over: packets would be lost."""
    return [
        f"{host} {change.name}: cannot be taken over as it is: {row_text(row)} would "
        f"{'make it anew' if row[0] not in _DISTURBING else 'disturb what uses it'}; {_way_on(host, change.name, row)}"
        for change in changes
        if change.name in names
        for row in change.rows
        if row[0] in _DISTURBING or row in remaking(change.found, change.wanted)
    ]


def _way_on(host: str, name: str, row: Difference) -> str:
    if row[0] == "mac":
        return f'write overlay:hosts.{host}.macs: {{{name}: "{row[1]}"}}'
    return f"write what it has, or change that on the host first ({row[0]} is {row[1]})"


def secrets_of(wanted: Document, store: Store) -> Secrets:
    """The secret values that the document refers to."""
    return store.secrets(wanted.owner.label, references(wanted.objects.values()))


def foreign_stack(host: str, label: str, theirs: str, ours_: str) -> str:
    """The sentence for a label that two checkouts use."""
    return (
        f"{host}: stack {label} on this host belongs to another checkout or state (id {theirs}, this one is {ours_}); "
        f"give this stack another name, or remove the other's devices first: overlay-agent remove {label}"
    )


# -- doing ---------------------------------------------------------------------------------------


def prepare(wanted: Document, kernel: Kernel, store: Store, machine: str, *, forget: bool = False) -> Plan:
    """What to do so that the document is true; `forget`: and none is kept for the stack (its last
    one is empty). Raises Refused; touches nothing."""
    stored = store.read(wanted.owner.label)
    target = None if forget else documents.to_json(wanted)
    wanted = bridges.resolved(wanted, kernel)
    kernel.secrets = secrets_of(wanted, store)
    errors = refusals(wanted, kernel, stored, machine)
    if errors:
        raise Refused(errors)
    stays = [f"{wanted.host}: {why}" for why in staying(wanted, kernel, stored).values()]
    changes, taken = changes_for(wanted, kernel, stored), adopted(wanted, kernel, stored)
    errors = _as_they_are(wanted.host, changes, taken)
    if errors:
        raise Refused(errors)
    return Plan(wanted, changes, stays, stored, target, machine, taken)


def carry_out(
    plan: Plan, kernel: Kernel, store: Store, boot: str, fault: Callable[[], None] | None = None
) -> list[str]:
    """Makes the plan true and returns lines for people. Whatever it raises, the journal is in
    place, to be undone."""
    owner = plan.wanted.owner
    before = image(kernel, plan.changes, owner.alias)
    store.write_journal(
        {"boot": boot, "label": owner.label, "stored": plan.stored, "target": plan.target, "before": before}
    )
    _reached(fault)
    notes: list[str] = []
    if plan.changes:
        notes = act(kernel, plan.changes, owner.alias, before)
        _check(lambda fresh: changes_for(plan.wanted, fresh, plan.stored), "read back", kernel)
    store.write(owner.label, plan.target)
    _reached(fault)
    if plan.changes:
        notes += _in_the_way(plan.wanted)
        notes += wanting(plan.wanted, {change.name for change in plan.changes}, PATIENCE_SECONDS)
    return plan.lines() + notes


def wanting(wanted: Document, names: Container[str], patience: float) -> list[str]:
    """What others have yet to do for those objects, a line each; `patience`: seconds to wait for it, each."""
    return [
        line
        for name, spec in sorted(wanted.objects.items())
        if name in names
        for line in KINDS[spec.KIND].wanting(name, spec, wanted.owner.alias(name), patience)
    ]


def _in_the_way(wanted: Document) -> list[str]:
    """A line for each packet filter of others that may stop what the objects need."""
    listens = [one for spec in wanted.objects.values() for one in KINDS[spec.KIND].listens(spec)]
    passes = [one for name, spec in wanted.objects.items() for one in KINDS[spec.KIND].passes(name, spec)]
    if not (listens or passes) or not may_drop_packets():
        return []
    from overlay_agent import nft  # noqa: PLC0415 - costs 6 ms, and a quiet apply does without

    return nft.warnings(wanted.host, listens) + nft.forward_warnings(wanted.host, passes)


def act(
    kernel: Kernel, changes: Sequence[Change], mark: Callable[[str], str], before: Raw, *, exactly: bool = False
) -> list[str]:
    """Carries the changes out: what has to go, then by rank what is new or only changes.

    `before` holds what hung on the objects. `exactly`: this is an undo; it goes on after a refusal,
    since what else can be brought back should be. Returns what could not be.
    """
    notes: list[str] = []

    def do(step: Callable[[], list[str] | None]) -> None:
        try:
            notes.extend(step() or [])
        except KernelError as error:
            if not exactly:
                raise
            notes.append(str(error))

    def delete(change: Change) -> None:
        kind = KINDS[change.found.KIND]
        kind.delete(kernel, change.name, mark(change.name))
        if kind.group == DEVICES and os.path.isdir(NETWORKD):
            from overlay_agent import hands_off  # noqa: PLC0415 - of few hosts

            hands_off.remove(kernel, change.name)

    def create(change: Change) -> list[str]:
        kind, was = KINDS[change.wanted.KIND], before.get(change.name) or {}
        if kind.group == DEVICES and os.path.isdir(NETWORKD):
            from overlay_agent import hands_off  # noqa: PLC0415 - of few hosts

            hands_off.shield(kernel, change.name, kind.name)
        kind.create(kernel, change.name, change.wanted, mark(change.name), was)
        return kind.put_back(kernel, change.name, was, exactly=exactly) if was else []

    def set_(change: Change) -> list[str]:
        kind = KINDS[change.wanted.KIND]
        kind.change(kernel, change.name, change.wanted, change.found, mark(change.name))
        return kind.put_back(kernel, change.name, before[change.name], exactly=exactly)

    for change in sorted((c for c in changes if c.action in (REMOVE, RECREATE)), key=lambda c: -_rank(c.found)):
        do(lambda change=change: delete(change))  # type: ignore[misc]
    # A service may need the address that a bridge is only given now.
    for change in sorted((c for c in changes if c.action != REMOVE), key=lambda c: (_rank(c.wanted), c.action == SET)):
        do(lambda change=change: (set_ if change.action == SET else create)(change))  # type: ignore[misc]
    return notes


def _rank(spec: Any) -> int:
    return KINDS[spec.KIND].rank


def image(kernel: Kernel, changes: Sequence[Change], mark: Callable[[str], str]) -> Raw:
    """How everything that the changes touch is now, as plain data for the journal."""
    out: Raw = {}
    for change in changes:
        out[change.name] = None
        if change.found is not None:
            kind = KINDS[change.found.KIND]
            was = kind.image(kernel, change.name, mark(change.name))
            out[change.name] = {"spec": fields.to_json(change.found), **was}
    return out


# -- undoing -------------------------------------------------------------------------------------


def undo(kernel: Kernel, store: Store, journal: Raw, fault: Callable[[], None] | None = None) -> None:
    """Brings back what the journal's image shows, on the host and in the store. Raises Failed."""
    store.begin_undo()
    _reached(fault)
    label, before = journal["label"], journal["before"]
    marks = {name: was["mark"] if was else f"overlay:{label}/{name}" for name, was in before.items()}
    # A device that was renamed since stands in the way of the one that is to come back.
    strays = {mark: name for name, mark in marks.items() if mark}
    for link in list(kernel.links.values()):
        if strays.get(link.alias, link.name) != link.name:
            kind = KINDS.get(link.kind)
            kind.delete(kernel, link.name, link.alias) if kind else kernel.delete_link(link.name)
    targets = stored_objects(journal["target"])
    kinds = {name: {targets[name]["kind"]} if name in targets else set() for name in before}
    wanted = {
        name: fields.as_found(KINDS[was["spec"]["kind"]].spec, was["spec"]) if was else None
        for name, was in before.items()
    }
    kernel.secrets = store.secrets(label, references(spec for spec in wanted.values() if spec is not None))
    changes = compare(kernel, wanted, kinds, marks.__getitem__)
    # What has no difference left may still lack what hung on it.
    same = [
        Change(name, SET, spec, spec)
        for name, spec in wanted.items()
        if spec is not None and name not in {change.name for change in changes}
    ]
    notes = act(kernel, [*changes, *same], marks.__getitem__, before, exactly=True)
    _check(
        lambda fresh: compare(fresh, wanted, kinds, marks.__getitem__), "; ".join(["undo", *notes]), kernel
    )
    if store.read(label) != journal["stored"]:
        store.write(label, journal["stored"])
    _reached(fault)
    store.write_journal(None)


def recover(kernel: Kernel, store: Store, boot: str) -> list[str]:
    """Ends an apply that was cut short without its guard (a power cut, both processes killed):
    the host is as before, or, where the new document was already kept, as wanted."""
    journal = store.read_journal()
    if journal is None:
        return []
    label = journal["label"]
    # Where a drift was mended, old and new document are the same and tell nothing: undone.
    done = store.read(label) == journal["target"] != journal["stored"] and not journal.get("armed")
    if done and not store.is_undoing():
        store.write_journal(None)
        return [f"stack {label}: an apply was cut short after it was done; nothing to undo"]
    if journal["boot"] != boot:
        # The devices went with the reboot; what is kept decides what `restore` brings back.
        store.begin_undo()
        _remove_files(kernel, journal)
        store.write(label, journal["stored"])
        store.write_journal(None)
        return [f"stack {label}: an apply was cut short by a reboot; the host keeps what it had before"]
    undo(kernel, store, journal)
    return [f"stack {label}: an apply was cut short; undone"]


def _remove_files(kernel: Kernel, journal: Raw) -> None:
    """Removes what the services that an apply was about to make left in files, which outlive a reboot."""
    for name, spec in stored_objects(journal["target"]).items():
        kind = KINDS.get(spec["kind"])
        if kind and kind.group == SERVICES and journal["before"].get(name, spec) is None:
            kind.delete(kernel, name, f"overlay:{journal['label']}/{name}")


def _check(left: Callable[[Kernel], list[Change]], what: str, before: Kernel) -> None:
    """`left` gives what is not yet as it should be, from a fresh look at the kernel."""
    lines: list[str] = []
    for seconds in VERIFY_SECONDS:
        time.sleep(seconds)
        kernel = Kernel()
        kernel.secrets, kernel.filters = before.secrets, before.filters
        try:
            lines = [line for change in left(kernel) for line in change.drift()]
        finally:
            kernel.close()
        if not lines:
            return
    raise Failed(f"{what}: " + "; ".join(lines) + ": the kernel or another program does not keep it so")


def _reached(fault: Callable[[], None] | None) -> None:
    if fault:
        fault()
