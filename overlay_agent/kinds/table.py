"""What the services have in common that are one table of nftables (nft(8)).

The table is ours alone, named after the service's mark, and replaced as a whole in one transaction
of the kernel: no packet meets half of it, and what somebody added to it by hand is gone after it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from overlay_agent.kinds.base import Kind

if TYPE_CHECKING:
    from overlay_agent.document import Document
    from overlay_agent.kernel import Kernel


class TableKind(Kind):
    """A service that is one table. A kind says what stands in it (`body`) and reads it back (`find`)."""

    family: str = "inet"
    #: What to do on a host without nft, beside installing it.
    instead: str = ""
    package = "nftables"

    def body(self, spec: Any) -> list[str]:
        """The table's lines between its braces, as nft -f takes them."""
        raise NotImplementedError

    def ruleset(self, spec: Any, mark: str) -> str:
        """The whole table, as nft -f takes it."""
        return "\n".join([f"table {self.family} {table_of(mark)} {{", _comment(mark), *self.body(spec), "}", ""])

    def commands(self, name: str, spec: Any, mark: str) -> list[list[str]]:
        return [["nft", self.ruleset(spec, mark)]]

    def lacks(self, spec: Any) -> bool:
        from overlay_agent import nft  # noqa: PLC0415 - subprocess costs 5 ms where there is no table

        return nft.missing()

    def wrong_here(self, kernel: Kernel, name: str, spec: Any, wanted: Document) -> list[str]:
        return [self.how_to_install("nft") + self.instead] if self.lacks(spec) else []

    def whole(self, mark: str, spec_of: Any) -> Whole | None:
        """The table's rules that are ours, word for word; None where there is no table.

        Each rule has a comment from which `spec_of(comments)` makes the spec that would have given it.
        """
        from overlay_agent import nft  # noqa: PLC0415 - as above

        name = table_of(mark)
        found = self.steady(nft.lines(nft.text(self.family, name)))
        if not found and name not in nft.tables(self.family):
            return None
        said = list(dict.fromkeys(filter(None, map(comment_of, found))))
        spec = spec_of(said)
        ruleset = self.ruleset(spec, mark).replace(_comment(mark), "")
        return Whole(found, nft.as_listed(self.family, name, ruleset, sorted(self.devices(spec))), said)

    def steady(self, lines: list[str]) -> list[str]:
        """The listing without what packets have put there."""
        return lines

    def image(self, kernel: Kernel, name: str, mark: str) -> dict[str, Any]:
        from overlay_agent import nft  # noqa: PLC0415 - as above

        return {"mark": mark, "text": nft.text(self.family, table_of(mark))}

    def create(self, kernel: Kernel, name: str, spec: Any, mark: str, image: Mapping[str, Any]) -> None:
        self.load(kernel, name, mark, self.ruleset(spec, mark))

    def change(self, kernel: Kernel, name: str, spec: Any, found: Any, mark: str) -> None:
        self.load(kernel, name, mark, self.ruleset(spec, mark))

    def delete(self, kernel: Kernel, name: str, mark: str) -> None:
        self.load(kernel, name, mark, "")

    def put_back(self, kernel: Kernel, name: str, image: Mapping[str, Any], *, exactly: bool) -> list[str]:
        from overlay_agent import nft  # noqa: PLC0415 - as above

        # What somebody added by hand is in the text and not in the spec.
        if exactly and nft.text(self.family, table_of(image["mark"])) != image["text"]:
            self.load(kernel, name, image["mark"], image["text"])
        return []

    def load(self, kernel: Kernel, name: str, mark: str, ruleset: str) -> None:
        """Makes the table be that, or none where the text is empty, in one transaction."""
        from overlay_agent import nft  # noqa: PLC0415 - as above

        if not nft.has_table_comments():
            ruleset = ruleset.replace(_comment(mark), "")
        # "add" first, so that "delete" finds one whether there was one or not.
        table = f"table {self.family} {table_of(mark)}"
        nft.change(kernel, name, f"add {table}\ndelete {table}\n{ruleset}")


class Whole:
    """A table's lines beside those that the comments in it promise."""

    def __init__(self, found: Sequence[str], promised: Sequence[str], said: Sequence[str]) -> None:
        #: The comments whose rules are all there, and as we write them.
        self.kept = [c for c in said if _with(c, found) == _with(c, promised) != []]
        ours = [line for line in promised if comment_of(line) in ("", *self.kept)]
        #: What we would not have written, or lacks, as it is to be shown.
        self.others: dict[str, Any] = {line: {} for line in found if line not in ours}
        self.others.update({f"no {line}": {} for line in ours if line not in found})
        if not self.others and list(found) != ours:
            self.others["not in our order"] = {}


def _with(comment: str, lines: Sequence[str]) -> list[str]:
    return [line for line in lines if comment_of(line) == comment]


def comment_of(line: str) -> str:
    """The comment of a rule as nft lists it, or nothing."""
    _, quoted, tail = line.rpartition(' comment "')
    return tail[:-1] if quoted and tail.endswith('"') else ""


def table_of(mark: str) -> str:
    """The table's name; nft's names are shorter than ours may be."""
    return f"overlay-{zlib.crc32(mark.encode()):08x}"


def _comment(mark: str) -> str:
    return f'\tcomment "{mark[:120]}"'
