"""Generic netlink (WireGuard, L2TP): pyroute2's message classes on a socket of ours, as in kernel.py.

Apart from kernel.py, because most hosts have neither, and these modules cost the agent's start 5 ms.
"""

from __future__ import annotations

import errno
import importlib
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from overlay_agent.errors import KernelError
from overlay_agent.kernel import NLM_F_ACK, Netlink

# linux/netlink.h, linux/genetlink.h
_NETLINK_GENERIC, _GENL_ID_CTRL, _CTRL_CMD_GETFAMILY = 16, 16, 3

#: The module and class of each family's messages, and the version that they are sent with.
FAMILIES = {"wireguard": ("wireguard", "wgmsg", 1), "l2tp": ("l2tp", "l2tpmsg", 1)}


def _message_class(family: str) -> Any:
    """pyroute2's class. Its module begins with sockets that import asyncio; those are left out."""
    import pyroute2.netlink  # noqa: PLC0415 - kernel.py has prepared the package

    name = "pyroute2.netlink.generic"
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [f"{pyroute2.netlink.__path__[0]}/generic"]
        vars(package).update(AsyncGenericNetlinkSocket=object, GenericNetlinkSocket=object)
        sys.modules[name] = package
    module, class_, _ = FAMILIES[family]
    return getattr(importlib.import_module(f"{name}.{module}"), class_)


class Family(Netlink):
    """One family. Raises KernelError (ENOENT) where the kernel, or a module that is loaded, has none of that name."""

    def __init__(self, name: str, after_request: Callable[[], None] | None = None) -> None:
        from pyroute2.netlink import ctrlmsg  # noqa: PLC0415 - kernel.py has prepared the package

        super().__init__(_NETLINK_GENERIC, after_request)
        request = ctrlmsg()
        request["cmd"], request["version"] = _CTRL_CMD_GETFAMILY, 1
        request["attrs"] = [("CTRL_ATTR_FAMILY_NAME", name)]
        try:
            (answer,) = self._exchange(f"generic netlink {name}", _GENL_ID_CTRL, [request], 0)
        except KernelError:
            self.close()
            raise
        self._id = answer.get_attr("CTRL_ATTR_FAMILY_ID")
        self._version = FAMILIES[name][2]
        self._message = _message_class(name)

    def read(self, command: int, attributes: Mapping[str, Any]) -> list[Any]:
        """The answers to a dump."""
        return list(self._dump(self._id, self._request(command, attributes.items())))

    def has(self, command: int, attributes: Iterable[tuple[str, Any]]) -> bool:
        """Whether there is what the command, which reads one thing, asks for."""
        try:
            self._exchange("look", self._id, [self._request(command, attributes)], 0)
        except KernelError as error:
            if error.code not in (errno.ENODEV, errno.ENOENT):
                raise
            return False
        return True

    def change(self, what: str, command: int, attributes: Iterable[tuple[str, Any]]) -> None:
        """Sends a request that changes something. Raises KernelError with `what` when it is refused."""
        self._exchange(what, self._id, [self._request(command, attributes)], NLM_F_ACK)
        self.reached()

    def _request(self, command: int, attributes: Iterable[tuple[str, Any]]) -> Any:
        message = self._message()
        message["cmd"], message["version"], message["attrs"] = command, self._version, list(attributes)
        return message
