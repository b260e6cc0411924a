"""What one stack has on this host, what it carries and since when: read from the kernel and the daemons.

No comparison, which is `check`'s; only whether what was applied is there.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

from overlay_agent import __version__, bridges, document, host, reconcile
from overlay_agent.document import Document, Owner
from overlay_agent.kernel import Kernel
from overlay_agent.kinds import DEVICES, KINDS
from overlay_agent.store import Store


def report(store: Store, label: str) -> dict[str, Any]:
    """What `status` reports. Times are in seconds since 1970. For whom holds the store's lock."""
    stored, member = store.read(label), store.read_member(label)
    wanted = document.parse(stored) if stored else None
    project, _, stack = label.partition("/")
    owner = wanted.owner if wanted else Owner(project, stack, (member or {}).get("owner", {}).get("id", ""))
    kernel = Kernel()
    if wanted:
        kernel.secrets = reconcile.secrets_of(wanted, store)
    shown = bridges.resolved(wanted, kernel) if wanted else Document(owner, "")
    names = shown.objects.keys() | reconcile.ours(kernel, owner, None)
    counters = _counters()
    return {
        "agent": __version__,
        "machine": host.here().machine,
        "now": time.time(),
        "id": owner.id,
        "applied": store.applied(label),
        "stopped": wanted.stopped if wanted else None,
        "objects": {name: _object(kernel, shown, name, counters) for name in sorted(names)},
    }


def _object(kernel: Kernel, shown: Document, name: str, counters: dict[str, dict[str, int]]) -> dict[str, Any]:
    link, spec, mark = kernel.links.get(name), shown.objects.get(name), shown.owner.alias(name)
    kind = spec.KIND if spec else link.kind if link else ""
    out: dict[str, Any] = {"kind": kind}
    if spec is None or KINDS[kind].group == DEVICES:
        addresses = sorted(kernel.addresses(link)) if link else []
        out |= {"there": link is not None, "up": bool(link and link.up), "addresses": addresses}
        out["bridge"] = kernel.name_of.get(link.master) if link and link.master else None
        return {**out, **counters.get(name, {})}
    out["there"] = reconcile.found(kernel, name, mark, {kind}) is not None
    return {**out, **_program(kind, mark), **KINDS[kind].status(mark)}


def _program(kind: str, mark: str) -> dict[str, Any]:
    """Since when the service's program runs; None: it does not. Nothing where it has none."""
    from overlay_agent import daemon  # noqa: PLC0415 - hosts without services do without

    if not KINDS[kind].program:
        return {}
    pid, _ = daemon.running(daemon.identity(kind, mark))
    return {"since": _born(pid) if pid else None}


def _born(pid: int) -> float | None:
    """When the process started (proc(5))."""
    with suppress(OSError, IndexError, ValueError):
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        with open("/proc/stat", encoding="ascii") as file:
            boot = next(int(line.split()[1]) for line in file if line.startswith("btime "))
        return boot + ticks / os.sysconf("SC_CLK_TCK")
    return None


def _counters() -> dict[str, dict[str, int]]:
    """What each device of this network namespace received and sent (proc(5), /proc/net/dev)."""
    out = {}
    with open("/proc/self/net/dev", encoding="utf-8", errors="replace") as file:
        for line in file.readlines()[2:]:
            name, _, rest = line.partition(":")
            n = [int(word) for word in rest.split()]
            out[name.strip()] = {
                "rxBytes": n[0], "rxPackets": n[1], "rxErrors": n[2], "rxDropped": n[3],
                "txBytes": n[8], "txPackets": n[9], "txErrors": n[10], "txDropped": n[11],
            }  # fmt: skip
    return out
