"""What the host refuses. Apart from kernel.py, because kinds are also imported where there is no
netlink: on the operator's machine."""

from __future__ import annotations

import os


class KernelError(Exception):
    """A request that the kernel refused. `code` is the errno, the text the kernel's own sentence."""

    def __init__(self, what: str, code: int, sentence: str | None, hint: str = "") -> None:
        super().__init__(f"{what}: {sentence or os.strerror(code)}{hint}")
        self.what, self.code, self.sentence = what, code, sentence
