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
        for data in map(_attributes, family.read(SESSION_GET, {})):
            tunnel = kernel.tunnels.get(data["CONN_ID"])
            if tunnel is None:
                continue
            tunnel.sessions.append(data)
            link = _device(kernel, data)
            if link:
                link.kind, link.data = KIND, {**tunnel.data, **data}
                tunnel.devices.append(link.name)


def _device(kernel: Kernel, session: dict[str, Any]) -> Link | None:
    """The session's device: of its name, unless it was renamed, of which the session does not hear."""
    name = session.get("IFNAME", "")
    links = [link for link in kernel.links.values() if link.kind in ("", KIND)]
    renamed = (link for link in links if link.alias.startswith("overlay:") and link.alias.endswith(f"/{name}"))
    return next(renamed, None) or next((link for link in links if link.name == name), None)


def remove(kernel: Kernel, what: str, tunnel: Tunnel, sessions: Iterable[dict[str, Any]]) -> None:
    """Removes those sessions, and the tunnel when it has no others; what is gone already is no error.
    Returns when all of it is gone, which the kernel itself does later."""
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
    while True:
        look(kernel)
        there = kernel.tunnels.get(tunnel.id)
        left = there and (empty or any(session["SESSION_ID"] in going for session in there.sessions))
        devices = [name for name in devices if kernel.reread(name)]
        if not left and not devices:
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


def _attributes(message: Any) -> dict[str, Any]:
    return {name[len("L2TP_ATTR_") :]: value for name, value in message["attrs"]}
