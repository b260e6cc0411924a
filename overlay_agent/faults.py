"""Where tests kill the agent: after every request that changes the kernel, and around every write
of the store. Off unless OVERLAY_FAULT is set, which only root's own shell can do (sudo drops it).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable


def from_environment(name: str = "OVERLAY_FAULT") -> Callable[[], None] | None:
    """The fault point to call, or None.

    "7": the calling process kills itself at the seventh call. "7:all": its parent too, as a power
    cut would.
    """
    setting = os.environ.get(name)
    if not setting:
        return None
    number, _, scope = setting.partition(":")
    count = 0

    def point() -> None:
        nonlocal count
        count += 1
        if count == int(number):
            if scope == "all":
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

    return point
