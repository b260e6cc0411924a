"""L2TP's tunnels and sessions as the kernel has them (linux/l2tp.h): a session's network device does not say
what it is, so `look` tells it the kernel's links."""

from __future__ import annotations

import dataclasses
import errno
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from overlay_agent.errors import KernelError

if TYPE_CHECKING:
    from overlay_agent.kernel import Kernel, Link

KIND = "l2tp"
TUNNEL_CREATE, TUNNEL_DELETE, TUNNEL_GET = 1, 2, 4
SESSION_CREATE, SESSION_DELETE, SESSION_MODIFY, SESSION_GET = 5, 6, 7, 8
#: How long the kernel may take to remove what it said it would.
GONE_SECONDS = 10.0


@dataclasses.dataclass
class Tunnel:
    """One tunnel, what it and its sessions have by netlink attribute name without the prefix, and the devices
    of those sessions."""

    id: int
    data: dict[str, Any]
    sessions: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    devices: list[str] = dataclasses.field(default_factory=list)


def look(kernel: Kernel) -> None:
    """Reads all tunnels anew into `kernel.tunnels`, and gives the sessions' devices their kind and their data."""
    kernel.tunnels = {}
    with suppress(KernelError):  # the module is there and not yet in use
        family = kernel.generic(KIND)
        for data in map(_attributes, family.read(TUNNEL_GET, {})):
            kernel.tunnels[data["CONN_ID"]] = Tunnel(data["CONN_ID"], data)
        devices = _devices(kernel)
        for data in map(_attributes, family.read(SESSION_GET, {})):
            tunnel, link = kernel.tunnels.get(data["CONN_ID"]), devices.get(data.get("IFNAME", ""))
            if tunnel:
                note(kernel, tunnel, data, link)


def note(kernel: Kernel, tunnel: Tunnel, session: dict[str, Any], link: Link | None) -> None:
    """Takes down that the tunnel has the session, and the session the device."""
    kernel.tunnels[tunnel.id] = tunnel
    tunnel.sessions.append(session)
    if link:
        link.kind, link.data = KIND, {**tunnel.data, **session}
        tunnel.devices.append(link.name)


def _devices(kernel: Kernel) -> dict[str, Link]:
    """The devices that may be a session's, by the name that it knows: theirs, unless they were renamed, of which
    the session does not hear."""
    links = [link for link in kernel.links.values() if link.kind in ("", KIND)]
    once = {link.alias.rpartition("/")[2]: link for link in links if link.alias.startswith("overlay:")}
    return {**{link.name: link for link in links}, **once}


def remove(kernel: Kernel, what: str, tunnel: Tunnel, sessions: Iterable[dict[str, Any]]) -> None:
    """Removes those sessions, and the tunnel when it has no others; what is gone already is no error.
    Returns when all of it is gone, which may be later than the kernel says so."""
    family, going = kernel.generic(KIND), [session["SESSION_ID"] for session in sessions]
    for id_ in going:
        ids = [("L2TP_ATTR_CONN_ID", tunnel.id), ("L2TP_ATTR_SESSION_ID", id_)]
        with _gone():
            family.change(f"{what}: delete session {id_}", SESSION_DELETE, ids)
    empty = {session["SESSION_ID"] for session in tunnel.sessions} <= set(going)
    if empty:
        with _gone():
            family.change(f"{what}: delete tunnel {tunnel.id}", TUNNEL_DELETE, [("L2TP_ATTR_CONN_ID", tunnel.id)])
    devices = [name for name in tunnel.devices if kernel.links[name].data["SESSION_ID"] in going]
    end = time.monotonic() + GONE_SECONDS
    left = [(SESSION_GET, [("L2TP_ATTR_CONN_ID", tunnel.id), ("L2TP_ATTR_SESSION_ID", id_)]) for id_ in going]
    left += [(TUNNEL_GET, [("L2TP_ATTR_CONN_ID", tunnel.id)])] if empty else []
    while True:
        left = [(command, ids) for command, ids in left if family.has(command, ids)]
        devices = [name for name in devices if kernel.reread(name)]
        if not left and not devices:
            kernel.tunnels.pop(tunnel.id, None)
            return
        if time.monotonic() > end:
            raise KernelError(f"{what}: delete tunnel {tunnel.id}", errno.ETIMEDOUT, None)
        time.sleep(0.005)


@contextmanager
def _gone() -> Iterator[None]:
    """Within it, that something is not there is no error."""
    try:
        yield
    except KernelError as error:
        if error.code not in (errno.ENODEV, errno.ENOENT):
            raise


def plain(attributes: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The attributes by name without the prefix."""
    return {name[len("L2TP_ATTR_") :]: value for name, value in attributes}


def _attributes(message: Any) -> dict[str, Any]:
    return plain(message["attrs"])
