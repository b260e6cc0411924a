"""Which programs of this host wait for packets on a port (proc(5): /proc/net/tcp and its like)."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import sys
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import suppress

#: The state that waits: of TCP, LISTEN; of UDP, a socket that is not connected (net/tcp_states.h).
_WAITS = {"tcp": "0A", "udp": "07"}


#: Of a socket whose process is in another PID namespace, or is the kernel.
_UNSEEN = ("", 0)


@dataclasses.dataclass(frozen=True)
class Program:
    """One socket that waits. `name` and `pid`: of the first process that has it."""

    name: str
    pid: int
    port: int

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})" if self.pid else "a program that is not seen from here"


def programs(protocol: str, low: int, high: int, versions: AbstractSet[int]) -> list[Program]:
    """Whoever waits on one of the ports at an address that others can reach by these IP versions."""
    found: dict[int, int] = {}
    for version in ("", "6"):
        for inode, address, port in _sockets(f"/proc/self/net/{protocol}{version}", _WAITS[protocol]):
            where = ipaddress.ip_address(address)
            mapped = getattr(where, "ipv4_mapped", None)
            # A socket on :: takes IPv4 too, unless it was told otherwise, which is not to be seen here.
            takes = {4} if where.version == 4 or mapped else {4, 6} if int(where) == 0 else {6}
            if low <= port <= high and takes & versions and not (mapped or where).is_loopback:
                found[inode] = port
    owners = _owners(set(found)) if found else {}
    rows = [Program(*owners.get(inode, _UNSEEN), port) for inode, port in found.items()]
    # A program with a socket for each address is one program.
    return list({(row.pid, row.port): row for row in sorted(rows, key=lambda row: (row.port, row.pid))}.values())


def _sockets(path: str, state: str) -> Iterator[tuple[int, str, int]]:
    """(inode, address, port) of each socket in that state."""
    try:
        with open(path, encoding="ascii") as file:
            rows = [line.split() for line in file][1:]
    except OSError:  # a kernel without IPv6
        return
    for row in rows:
        address, _, port = row[1].partition(":")
        if row[3] == state:
            # Words of 32 bits, each in the machine's own byte order.
            words = [int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8)]
            yield int(row[9]), str(ipaddress.ip_address(b"".join(words))), int(port, 16)


def _owners(inodes: set[int]) -> dict[int, tuple[str, int]]:
    """(name, pid) of a process that holds each socket."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, tuple[str, int]] = {}
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        for link in _links(f"/proc/{pid}/fd"):
            if link in wanted:
                with suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                    found.setdefault(wanted[link], (file.read().strip(), pid))
    return found


def _links(folder: str) -> Iterator[str]:
    """Where the links in the folder point to; one that goes meanwhile is left out."""
    with suppress(OSError):
        for name in os.listdir(folder):
            with suppress(OSError):
                yield os.readlink(f"{folder}/{name}")
