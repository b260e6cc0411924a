"""`check --repair`: makes true again what has drifted. It is what the timer of `selfHeal` runs (kinds/self_heal.py), so
it says nothing where all is well; systemd's journal keeps the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from overlay_agent import document, errors, guard, host, kernel, reconcile, store
from overlay_agent.kinds import self_heal


def repair(label: str | None, report: Callable[[dict[str, Any]], None]) -> int:
    """Repairs what that stack has here, or, without a label, what all stacks with selfHeal have. Returns the exit code:
    1 where something could not be repaired; that stack's part of the host is as it was."""
    store_, here, code = store.Store(), host.here(), 0
    found: list[str] = []
    with store_.locked("check --repair"):
        guard.end_cut_short(store_, here)
        for name in [label] if label else self_heal.stacks(store_):
            try:
                raw = store_.read(name)
                if raw is None:
                    _say(f"stack {name}: no document of it is here; run `pulumi up`")
                    code = 1
                    continue
                wanted = document.parse(raw)
                kernel_ = kernel.Kernel()
                try:
                    drift = reconcile.drift(wanted, kernel_, store_)
                finally:
                    kernel_.close()
                if drift:
                    found += drift
                    _say(f"stack {name}: {len(drift)} drifted; repairing")
                    host.load_modules(wanted.modules())
                    code |= guard.transaction(wanted, store_, here, lambda _: None)
            # The other stacks' networks are looked after all the same.
            except (document.DocumentError, errors.KernelError, store.StoreError) as error:
                _say(f"stack {name}: {error}")
                code = 1
    report({"drift": found})
    return code


def _say(line: str) -> None:
    print(errors.shortened(line), file=sys.stderr, flush=True)
