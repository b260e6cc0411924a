"""Asks Docker by its own API on its socket (Docker Engine API 1.41, "Networks" and "Containers").

Paths carry no version: a daemon then speaks its own, and the fields used here are in all of them;
a fixed one would be refused by daemons that are older, or so new that they have dropped it.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from typing import Any

from overlay_agent.errors import KernelError

SOCKET = "/var/run/docker.sock"
#: The label that shows whose a network is, as the alias does on a device.
LABEL = "overlay"
BRIDGE_NAME = "com.docker.network.bridge.name"
MTU = "com.docker.network.driver.mtu"
#: What Docker takes where the option is not there.
DEFAULT_MTU = 1500
#: A daemon that is just starting has its socket before it listens on it, and where systemd listens
#: for it, before it answers.
LISTENS_SECONDS, ANSWERS_SECONDS = 6.0, 30.0

_state: dict[str, str] = {}


def missing() -> str:
    """Why Docker cannot be asked on this host, as a sentence; empty when it answers. Waits for one
    that is just starting; asks once in the life of this process."""
    if "missing" not in _state:
        _state["missing"] = "" if _answers() else f"docker is not running on this host (no answer at {_socket()})"
    return _state["missing"]


def networks() -> list[dict[str, Any]]:
    """Every network, as the daemon has it."""
    found: list[dict[str, Any]] = request("GET", "/networks", "networks")
    return found


def network(name: str) -> dict[str, Any] | None:
    """The network of that name (the daemon itself would also take the start of an id for one)."""
    return next((one for one in networks() if one["Name"] == name), None)


def label(raw: dict[str, Any]) -> str:
    """Whose the network is: the mark of a stack's object, or empty."""
    return str((raw["Labels"] or {}).get(LABEL, ""))


def bridge_of(raw: dict[str, Any]) -> str:
    """The name of the network's bridge."""
    return str((raw["Options"] or {}).get(BRIDGE_NAME) or f"br-{raw['Id'][:12]}")


def containers(name: str) -> dict[str, Any]:
    """How each container on the network is connected to it, by name; those that are stopped too."""
    from urllib.parse import quote  # noqa: PLC0415 - costs 3 ms where there is no Docker

    filters = quote(json.dumps({"network": [name]}))
    rows = request("GET", f"/containers/json?all=1&filters={filters}", f"docker network {name}: list containers")
    found = {
        (row["Names"] or [row["Id"]])[0].lstrip("/"): row["NetworkSettings"]["Networks"].get(name) for row in rows
    }
    return {container: endpoint for container, endpoint in found.items() if endpoint}


def request(method: str, path: str, what: str, body: Any = None) -> Any:
    """Sends a request and returns the answer; None where there is no such thing. Raises KernelError
    with the daemon's own sentence. `what` is being done, for the error."""
    import http.client  # noqa: PLC0415 - costs 15 ms where there is no Docker

    if missing():
        raise KernelError(what, errno.ENOTCONN, missing())
    connection = http.client.HTTPConnection("docker", timeout=60)
    try:
        connection.sock = _connected(60)
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"Content-Type": "application/json"} if text else {})
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise KernelError(what, errno.EIO, f"docker broke off ({str(error) or type(error).__name__})") from None
    finally:
        connection.close()
    if answer.status == http.client.NOT_FOUND:
        return None
    found = json.loads(content) if content.strip() else {}
    if answer.status >= http.client.BAD_REQUEST:
        raise KernelError(what, errno.EIO, str(found.get("message", answer.reason)).strip())
    return found


def _socket() -> str:
    scheme, _, path = os.environ.get("DOCKER_HOST", "").partition("://")
    return path if scheme == "unix" else SOCKET  # a daemon elsewhere has no bridges here


def _connected(seconds: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(seconds)
        connection.connect(_socket())
    except OSError:
        connection.close()
        raise
    return connection


def _answers() -> bool:
    end, starting = time.monotonic() + LISTENS_SECONDS, False
    while True:
        try:
            with _connected(ANSWERS_SECONDS) as connection:
                connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                if b" 200 " in connection.recv(64):
                    return True
        except FileNotFoundError:
            if not starting:  # else it is just making its socket anew
                return False
        except socket.timeout:
            return False
        except OSError:
            starting = True
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
