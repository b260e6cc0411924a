"""SSH connections with the meaning that pulumi-resource-command 1.2.1 gives to its `connection` input.

Two things are stricter than there. A connection without `hostKey` is refused: pulumi-resource-command would talk to
whoever answers. And `perDialTimeout` bounds the whole of a dial, not the TCP connection alone.
No message of this module holds a key.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import paramiko
from paramiko.agent import AgentKey, AgentSSH

Log = Callable[[str], None]

# What Check fills in, here and in `proxy`; it is part of the inputs in the state.
DEFAULTS: dict[str, Any] = {"user": "root", "port": 22, "dialErrorLimit": 10, "perDialTimeout": 15}
SECRETS = frozenset({"password", "privateKey", "privateKeyPassword"})

FIRST_PAUSE = 0.1  # seconds between two dials, growing
PAUSE_GROWTH = 1.5
LONGEST_PAUSE = 5.0

KEY_TYPES = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)
# A server proves an RSA key with one of these; the SHA-1 of plain ssh-rsa is dead.
RSA_SIGNATURES = ("rsa-sha2-512", "rsa-sha2-256")


class ConnectionFailedError(Exception):
    """Why there is no connection."""


class _Agent(AgentSSH):
    """An ssh-agent at a socket that is named, not found."""

    def __init__(self, path: str) -> None:
        super().__init__()
        agent = socket.socket(socket.AF_UNIX)
        try:
            agent.connect(path)
        except OSError as error:
            agent.close()
            raise ConnectionFailedError(f"dial unix {path}: connect: {error.strerror}") from error
        self._connect(agent)  # type: ignore[attr-defined]    # how paramiko's own Agent starts


@contextlib.contextmanager
def connected(connection: Mapping[str, Any], log: Log) -> Iterator[paramiko.Transport]:
    """An authenticated connection, through its proxy if it has one."""
    with contextlib.ExitStack() as stack:
        proxy = connection.get("proxy")
        if proxy is None:
            yield stack.enter_context(contextlib.closing(_dial(connection, log, "Dial", _tcp)))
            return
        try:
            bastion = stack.enter_context(contextlib.closing(_dial(proxy, log, "Dial proxy", _tcp)))
            far = stack.enter_context(contextlib.closing(_dial(connection, log, "Dial from proxy", _through(bastion))))
        except ConnectionFailedError as error:
            raise ConnectionFailedError(f"proxy: {error}") from error
        yield far


def _tcp(connection: Mapping[str, Any]) -> socket.socket:
    opened = socket.create_connection((connection["host"], int(connection["port"])), timeout=_patience(connection))
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # else a host that vanished is waited for forever
    return opened


def _through(bastion: paramiko.Transport) -> Callable[[Mapping[str, Any]], paramiko.Channel]:
    def dial(connection: Mapping[str, Any]) -> paramiko.Channel:
        end = (connection["host"], int(connection["port"]))
        return bastion.open_channel("direct-tcpip", end, ("127.0.0.1", 0), timeout=_patience(connection))

    return dial


def _patience(connection: Mapping[str, Any]) -> float | None:
    return float(connection["perDialTimeout"]) or None  # 0: no limit


def _dial(
    connection: Mapping[str, Any],
    log: Log,
    what: str,
    open_socket: Callable[[Mapping[str, Any]], socket.socket | paramiko.Channel],
) -> paramiko.Transport:
    """Dial until it works: 1 + dialErrorLimit times, that is, for ever where the limit is -1."""
    keys = _private_keys(connection)
    expected = _host_key(connection)
    limit = int(connection["dialErrorLimit"])
    pause = FIRST_PAUSE
    failures = 0
    while True:
        try:
            return _handshake(connection, open_socket(connection), keys, expected)
        except (OSError, EOFError, paramiko.SSHException, ConnectionFailedError) as error:
            failures += 1
            if 0 <= limit < failures:
                raise ConnectionFailedError(f"after {limit} failed attempts: {_reason(connection, error)}") from error
        log(f"{what} {failures}/{'inf' if limit < 0 else limit} failed: retrying")
        time.sleep(pause)
        pause = min(pause * PAUSE_GROWTH, LONGEST_PAUSE)


def _reason(connection: Mapping[str, Any], error: Exception) -> str:
    """What went wrong and where, as Go says it: people search for these words."""
    host = str(connection["host"])
    end = f"{f'[{host}]' if ':' in host else host}:{int(connection['port'])}"
    if isinstance(error, TimeoutError):
        return f"dial tcp {end}: i/o timeout"
    if isinstance(error, OSError) and error.strerror:
        return f"dial tcp {end}: connect: {error.strerror.lower()}"
    return f"{end}: {str(error) or type(error).__name__}"


def _handshake(
    connection: Mapping[str, Any],
    opened: socket.socket | paramiko.Channel,
    keys: list[paramiko.PKey | AgentKey],
    expected: tuple[str, bytes],
) -> paramiko.Transport:
    transport = paramiko.Transport(opened)
    try:
        kind, blob = expected
        transport.get_security_options().key_types = RSA_SIGNATURES if kind == "ssh-rsa" else (kind,)
        if (patience := _patience(connection)) is not None:
            transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = patience
        transport.start_client(timeout=patience)
        _prove(transport, blob)
        _authenticate(transport, str(connection["user"]), keys)
    except BaseException:
        transport.close()
        raise
    return transport


def _prove(transport: paramiko.Transport, expected: bytes) -> None:
    if transport.get_remote_server_key().asbytes() != expected:
        raise ConnectionFailedError("ssh: handshake failed: ssh: host key mismatch")


def _authenticate(transport: paramiko.Transport, user: str, keys: list[paramiko.PKey | AgentKey]) -> None:
    for key in keys:
        with contextlib.suppress(paramiko.AuthenticationException):
            if not transport.auth_publickey(user, key):  # what is left to do: nothing
                return
    raise ConnectionFailedError(
        f"ssh: handshake failed: ssh: unable to authenticate as {user}: the host took none of {len(keys)} keys"
    )


def _host_key(connection: Mapping[str, Any]) -> tuple[str, bytes]:
    """Type and blob of the key that the host must prove to have."""
    text = connection.get("hostKey")
    if not text:
        raise ConnectionFailedError(f"hostKey of {connection['host']} is not set; an unknown host is not trusted")
    words = str(text).split()
    for kind, blob in itertools.pairwise(words):
        if kind.startswith(("ssh-", "ecdsa-")):
            with contextlib.suppress(binascii.Error):
                return kind, base64.b64decode(blob, validate=True)
    raise ConnectionFailedError(f"failed to parse host key: {text!r} is not `TYPE BASE64` as in known_hosts")


def _private_keys(connection: Mapping[str, Any]) -> list[paramiko.PKey | AgentKey]:
    """The key of the inputs or else those of the ssh-agent: the former is the only one tried, as everywhere in Go."""
    if connection.get("password"):
        raise ConnectionFailedError("password: not supported by this stand-in plugin; use a key or an ssh-agent")
    path = connection.get("agentSocketPath") or os.environ.get("SSH_AUTH_SOCK")
    agent = list(_Agent(path).get_keys()) if path else []
    text = connection.get("privateKey")
    return [_private_key(text, connection.get("privateKeyPassword"))] if text else [*agent]


def _private_key(text: str, password: str | None) -> paramiko.PKey:
    for kind in KEY_TYPES:
        with contextlib.suppress(paramiko.SSHException, ValueError, TypeError, IndexError):
            return kind.from_private_key(io.StringIO(text), password)
    raise ConnectionFailedError("privateKey: no OpenSSH or PEM private key, or privateKeyPassword is missing or wrong")
