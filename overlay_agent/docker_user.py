"""Docker sets FORWARD's policy to DROP; what is to pass all the same stands in its chain DOCKER-USER.

Where br_netfilter is loaded, frames within any bridge go through FORWARD too, so containers on two
hosts would not reach each other. Docker keeps that chain for the host's administrator and looks at
it first; one that was there before Docker starts, it keeps. The host's own iptables is used, which
is what Docker uses, and on a host without Docker nothing is done.
"""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Optional

from overlay_agent.errors import KernelError
from overlay_agent.fields import Difference

if TYPE_CHECKING:
    from overlay_agent.kernel import Kernel

#: What a rule matches, in iptables' words and in the order in which it prints them. None needs quotes, nor does
#: a mark.
Rule = list[str]

CHAIN = "DOCKER-USER"
_SOCKET = "/run/docker.sock"
_FAMILIES = {"iptables": "ip", "ip6tables": "ip6"}
#: iptables-extensions(8), comment: at most 256 characters.
_LONGEST = 250


def within(bridge: str) -> list[Rule]:
    """What lets frames pass within a bridge."""
    return [["-i", bridge, "-o", bridge]]


def commands(mark: str, rules: Sequence[Rule]) -> list[list[str]]:
    """What a person would type, where Docker is."""
    words = [" ".join(["-I", CHAIN, *_with_comment(rule, mark)]) for rule in rules]
    steps = [f"$t -w -N {CHAIN} 2>/dev/null || :", *(f"$t -w {word}" for word in words)]
    loop = f"for t in {' '.join(_FAMILIES)}; do {'; '.join(steps)}; done"
    return [["sh", "-c", f"if command -v dockerd >/dev/null; then {loop}; fi"]]


def lacking(kernel: Kernel, mark: str, rules: Sequence[Rule]) -> list[Difference]:
    """A difference for each rule of that mark that is not there, for each IP version; none without Docker."""
    return [
        (f"rule of {CHAIN}", None, " ".join([program, *rule]))
        for program in _programs(mark)
        for there in [_chain(kernel, program)]
        for rule in rules
        if there is not None and ["-A", CHAIN, *_with_comment(rule, mark)] not in there
    ]


def put(kernel: Kernel, mark: str, rules: Sequence[Rule]) -> None:
    """Makes the mark's rules be these; one transaction for each IP version."""
    for program in _programs(mark):
        there = _chain(kernel, program)
        if there is None:
            continue
        wanted = [["-A", CHAIN, *_with_comment(rule, mark)] for rule in rules]
        stale = [["-D", *rule[1:]] for rule in there if _comment_of(rule) == mark[:_LONGEST] and rule not in wanted]
        # First in the chain, since Docker's own RETURN may stand there.
        missing = [["-I", *rule[1:]] for rule in wanted if rule not in there]
        if stale or missing:
            chain = [] if f"-N {CHAIN}" in (kernel.filters[program] or []) else [f":{CHAIN} - [0:0]"]
            _restore(kernel, program, [*chain, *(" ".join(line) for line in stale + missing)])


def remove(kernel: Kernel, mark: str) -> None:
    """Takes the mark's rules away, and with the last one what is left of a chain that nothing uses."""
    for program in _programs(mark):
        ours = [rule for rule in _chain(kernel, program) or [] if _comment_of(rule) == mark[:_LONGEST]]
        listing = kernel.filters[program] or []
        lines = [" ".join(["-D", *rule[1:]]) for rule in ours]
        used = any(line.endswith(f"-j {CHAIN}") for line in listing)
        if f"-N {CHAIN}" in listing and len(ours) == len(_chain(kernel, program) or []) and not used:
            lines.append(f"-X {CHAIN}")
        if lines:
            _restore(kernel, program, lines)
        _remove_empty_table(kernel, program, ours)


def _programs(mark: str) -> list[str]:
    """The host's iptables and ip6tables, where it has Docker, be it running or not. None without a mark of ours,
    as what an undo brings back to a device whose alias was lost, or that was somebody else's."""
    if not mark.startswith("overlay:") or not (_is_here("dockerd") or os.path.exists(_SOCKET)):
        return []
    return [program for program in _FAMILIES if _is_here(program)]


def _is_here(program: str) -> bool:
    # Not shutil.which: its import would cost every apply more than all the rest of this.
    return any(os.access(os.path.join(folder, program), os.X_OK) for folder in os.get_exec_path())


def _with_comment(rule: Rule, mark: str) -> Rule:
    return [*rule, "-m", "comment", "--comment", mark[:_LONGEST], "-j", "ACCEPT"]


def _comment_of(rule: Rule) -> str:
    return rule[rule.index("--comment") + 1] if "--comment" in rule else ""


def _chain(kernel: Kernel, program: str) -> Optional[list[Rule]]:
    """The chain's rules; None where the program cannot read its table (another program's, or no kernel support)."""
    import subprocess  # noqa: PLC0415 - costs 5 ms where there is no Docker

    if program not in kernel.filters:
        done = subprocess.run([program, "-w", "-S"], capture_output=True, check=False)
        kernel.filters[program] = None if done.returncode else done.stdout.decode(errors="replace").splitlines()
    listing = kernel.filters[program]
    return None if listing is None else [shlex.split(row) for row in listing if row.startswith(f"-A {CHAIN} ")]


def _restore(kernel: Kernel, program: str, lines: Sequence[str]) -> None:
    import subprocess  # noqa: PLC0415 - as above

    text = "\n".join(["*filter", *lines, "COMMIT", ""])
    argv = [f"{program}-restore", "--noflush", "--wait"]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    kernel.filters.pop(program, None)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise KernelError(argv[0], errno.EIO, said[0])
    kernel.reached()


def _remove_empty_table(kernel: Kernel, program: str, ours: Sequence[Rule]) -> None:
    """The table that iptables made for the chain, where nothing is left in it."""
    from overlay_agent import nft  # noqa: PLC0415 - as above

    family = _FAMILIES[program]
    if ours and nft.text(family, "filter").split() == ["table", family, "filter", "{", "}"]:
        with suppress(KernelError):  # it hinders nobody
            nft.change(kernel, program, f"delete table {family} filter\n")
