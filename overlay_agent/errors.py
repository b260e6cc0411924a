"""What the host refuses. Apart from kernel.py, because kinds are also imported where there is no
netlink: on the operator's machine."""

from __future__ import annotations

import os


class KernelError(Exception):
    """A request that the kernel refused. `code` is the errno, the text the kernel's own sentence."""

    def __init__(self, what: str, code: int, sentence: str | None, hint: str = "") -> None:
        super().__init__(f"{what}: {sentence or os.strerror(code)}{hint}")
        self.what, self.code, self.sentence = what, code, sentence


#: pulumi-command 1.2.1 reads what it logs by lines of at most 64 KiB; a longer one hangs `pulumi up` for ever.
LONGEST_LINE = 8000
_END = 400


def shortened(text: str) -> str:
    """The text with each line at most LONGEST_LINE characters long: of a longer one its beginning and its end."""
    return "\n".join(
        line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - _END]} [...] {line[-_END + 7 :]}"
        for line in text.split("\n")
    )
