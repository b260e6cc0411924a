"""SSH sessions of our own, where no resource of Pulumi's is to be had: to ask a host, and to see its key.

What is connected to, and by which key it is known, was settled by connection.py.
"""

from __future__ import annotations

import contextlib
import io
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

if TYPE_CHECKING:
    from paramiko.agent import AgentKey

    from overlay_components.connection import Connection, Operator

#: For TCP, by which dead hosts are told; and for each of key exchange, log-in and channel, of a host that answered and
#: may have much to do.
CONNECT_SECONDS, STEP_SECONDS = 3.0, 10.0
MAX_AUTH_TRIES = 6  # sshd's default; pulumi-command offers the agent's keys in order
#: Of one answer: a host that went wrong must not fill the operator's memory.
MOST_BYTES = 256 << 20
_CHUNK = 1 << 16

logging.getLogger("overlay.ssh").addHandler(logging.NullHandler())  # paramiko's own; else on stderr


class SshError(Exception):
    """The host cannot be reached, is another one, or does not let us in. The text is the reason alone."""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    stdout: bytes
    stderr: bytes


class Session:
    """A host, logged in to. Its commands may run side by side."""

    def __init__(self, transport: paramiko.Transport) -> None:
        self._transport = transport

    def run(self, command: str, input: bytes = b"", timeout: float = 60.0) -> Done:  # noqa: A002 - as subprocess.run
        """Runs the command by the user's shell. Raises SshError, also when it took longer than `timeout` s."""
        end = time.monotonic() + timeout
        try:
            channel = self._transport.open_session(timeout=STEP_SECONDS)
            with contextlib.closing(channel):
                channel.exec_command(command)
                threading.Thread(target=_feed, args=[channel, input], daemon=True).start()
                # Side by side: a stream that nobody reads stops both when the window (2 MiB) is full.
                with ThreadPoolExecutor(1) as pool:
                    err = pool.submit(_read, channel.recv_stderr, channel, end)
                    out = _read(channel.recv, channel, end)
                    return Done(_status(channel, end), out, err.result())
        except TimeoutError as error:
            raise SshError(f"no answer within {timeout:g} s") from error
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise SshError(reason(error)) from error

    @contextlib.contextmanager
    def talk(self, command: str) -> Iterator[Talk]:
        """Starts the command by the user's shell, to speak with it. Raises SshError."""
        try:
            channel = self._transport.open_session(timeout=STEP_SECONDS)
            with contextlib.closing(channel):
                channel.exec_command(command)
                yield Talk(channel)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise SshError(reason(error)) from error


class Talk:
    """A command that is running, and is spoken with by lines."""

    def __init__(self, way: paramiko.Channel) -> None:
        self._way = way
        self._rest = b""

    def say(self, line: str) -> None:
        """Writes a line to its standard input. Raises SshError."""
        try:
            self._way.sendall(line.encode() + b"\n")
        except OSError as error:
            raise SshError(reason(error)) from error

    def line(self, timeout: float) -> bytes:
        """The next line of its standard output; nothing where that has ended. Raises SshError after `timeout` s."""
        end = time.monotonic() + timeout
        try:
            while b"\n" not in self._rest:
                self._way.settimeout(max(end - time.monotonic(), 0.001))
                data = self._way.recv(_CHUNK)
                if not data:
                    return b""
                self._rest += data
        except TimeoutError as error:
            raise SshError(f"no answer within {timeout:g} s") from error
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise SshError(reason(error)) from error
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def end(self, timeout: float) -> Done:
        """Ends its input, and says how it ended. Raises SshError."""
        end = time.monotonic() + timeout
        try:
            self._way.shutdown_write()
            out = self._rest + _read(self._way.recv, self._way, end)
            err = _read(self._way.recv_stderr, self._way, end)
            return Done(_status(self._way, end), out, err)
        except TimeoutError as error:
            raise SshError(f"no answer within {timeout:g} s") from error
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise SshError(reason(error)) from error


@contextlib.contextmanager
def session(connection: Connection, operator: Operator) -> Iterator[Session]:
    """Logs in to the host that has that key. Raises SshError."""
    with contextlib.ExitStack() as stack:
        try:
            way = stack.enter_context(channel(connection.host, connection.port, connection.proxy, operator))
            found = stack.enter_context(transport(way, _type(connection)))
            _log_in(found, connection, operator, "it")
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise SshError(reason(error)) from error
        yield Session(found)


@contextlib.contextmanager
def channel(
    host: str, port: int, proxy: Connection | None, operator: Operator
) -> Iterator[socket.socket | paramiko.Channel]:
    """The way to the host, through the bastion where there is one."""
    with contextlib.ExitStack() as stack:
        if proxy is None:
            yield socket.create_connection((host, port), CONNECT_SECONDS)
            return
        way = socket.create_connection((proxy.host, proxy.port), CONNECT_SECONDS)
        bastion = stack.enter_context(transport(way, _type(proxy)))
        _log_in(bastion, proxy, operator, "the bastion")
        yield bastion.open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=CONNECT_SECONDS)


@contextlib.contextmanager
def transport(way: socket.socket | paramiko.Channel, key_types: Sequence[str]) -> Iterator[paramiko.Transport]:
    """An encrypted connection with whoever answers there, and has a key of one of these types."""
    made = paramiko.Transport(way)
    try:
        made.set_log_channel("overlay.ssh")
        made.get_security_options().key_types = tuple(key_types)
        made.auth_timeout = STEP_SECONDS
        made.banner_timeout = 2 * STEP_SECONDS  # never before start_client's, whose error is ours
        made.start_client(timeout=STEP_SECONDS)
        if not made.initial_kex_done:  # start_client returns in silence when its time is up
            raise TimeoutError(f"no SSH answer within {STEP_SECONDS:g} s")
        yield made
    finally:
        made.close()


def host_key(made: paramiko.Transport) -> str:
    """The "type base64" of the key that was shown."""
    key = made.get_remote_server_key()
    return f"{key.get_name()} {key.get_base64()}"


def private_key(text: str) -> paramiko.PKey:
    """Loads it through cryptography: paramiko 5.1 refuses half of all ECDSA keys that have no comment (its unpadding).
    Raises paramiko.SSHException."""
    data = text.encode()
    try:
        is_openssh = "BEGIN OPENSSH PRIVATE KEY" in text
        key = (serialization.load_ssh_private_key if is_openssh else serialization.load_pem_private_key)(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise paramiko.SSHException("the private key cannot be read") from error
    if isinstance(key, rsa.RSAPrivateKey):
        return paramiko.RSAKey(key=key)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return paramiko.ECDSAKey(vals=(key, key.public_key()))
    if isinstance(key, ed25519.Ed25519PrivateKey):
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
        return paramiko.Ed25519Key.from_private_key(io.StringIO(key.private_bytes(*form).decode()))
    raise paramiko.SSHException("the private key is of a type that cannot be used here")


def reason(error: Exception) -> str:
    """Why it failed, without the name of a class."""
    if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
        return "it offers neither an ed25519 nor an ECDSA host key (run ssh-keygen -A there)"
    if isinstance(error, paramiko.ChannelException):
        return f"the bastion says {error.text!r}"
    if isinstance(error, OSError):
        return error.strerror or str(error) or "timed out"
    return str(error) or type(error).__name__


def _type(connection: Connection) -> list[str]:
    return [connection.host_key.partition(" ")[0]]


def _log_in(made: paramiko.Transport, connection: Connection, operator: Operator, whom: str) -> None:
    if host_key(made) != connection.host_key:
        raise paramiko.SSHException(f"{whom} shows another host key than the known one")
    if connection.private_key is not None:
        made.auth_publickey(connection.user, private_key(connection.private_key))
        return
    with operator.agent() as agent:
        keys: tuple[AgentKey, ...] = agent.get_keys()
        for key in keys[:MAX_AUTH_TRIES]:
            with contextlib.suppress(paramiko.AuthenticationException):
                made.auth_publickey(connection.user, key)
                return
    raise paramiko.AuthenticationException(f"{whom} refuses {connection.user}'s keys")


def _feed(way: paramiko.Channel, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the command may end before it has read all
        way.sendall(data)
        way.shutdown_write()


def _read(receive: Callable[[int], bytes], way: paramiko.Channel, end: float) -> bytes:
    out = bytearray()
    while True:
        way.settimeout(max(end - time.monotonic(), 0.001))
        data = receive(_CHUNK)
        if not data:
            return bytes(out)
        out += data
        if len(out) > MOST_BYTES:
            raise SshError(f"it sends more than {MOST_BYTES} bytes")


def _status(way: paramiko.Channel, end: float) -> int:
    if not way.status_event.wait(max(end - time.monotonic(), 0.001)):
        raise TimeoutError
    return way.recv_exit_status()
