"""What the resources of the plugin do, each as pulumi-resource-command 1.2.1 does it."""

from __future__ import annotations

import abc
import codecs
import json
import os
import posixpath
import secrets
import stat
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, ClassVar

import paramiko
import wire
from connection import DEFAULTS, SECRETS, Log, connected
from typing_extensions import override
from wire import Properties, Secret

BLOCK = 32 * 1024


class CommandFailedError(Exception):
    """A command or a copy failed; the message is what Pulumi shows."""


class Resource(abc.ABC):
    """One kind of resource. All values come and go as `wire` has them, marks of secrecy included."""

    #: Inputs, by name; an output of the same name mirrors them.
    inputs: ClassVar[frozenset[str]]
    #: Outputs that are no inputs.
    results: ClassVar[tuple[str, ...]] = ()
    #: Inputs of pulumi-resource-command that this stand-in lacks; said, not ignored.
    unsupported: ClassVar[frozenset[str]] = frozenset()

    def check(self, inputs: Properties) -> list[tuple[str, str]]:
        """Fill in what pulumi-resource-command fills in; what is wrong, as (property, reason)."""
        failures = [(name, "not supported by this stand-in plugin") for name in self.unsupported & inputs.keys()]
        if "connection" in self.inputs:
            if "connection" not in inputs:
                return [("connection", "is required"), *failures]
            inputs["connection"] = _complete(inputs["connection"])
        return failures

    def preview(self, old: Properties | None, inputs: Properties) -> Properties:
        """Outputs as far as a preview knows them: results are unknown when anything changed that could matter."""
        if old is None or any(
            inputs.get(name) == wire.UNKNOWN or (name in old and old[name] != inputs.get(name)) for name in self.inputs
        ):
            return inputs | dict.fromkeys(self.results, wire.UNKNOWN)
        return inputs | {name: old[name] for name in self.results}

    def new_id(self, name: str) -> str:
        """Identity of a new resource: its name and eight random digits."""
        return name + secrets.token_hex(4)

    @abc.abstractmethod
    def create(self, inputs: Properties, log: Log) -> Properties:
        """Make it; the outputs."""

    @abc.abstractmethod
    def update(self, old: Properties, inputs: Properties, log: Log) -> Properties:
        """Change it in place; the outputs."""

    def delete(self, old: Properties, log: Log) -> None:  # noqa: B027 - deleting a copied file does nothing, by design
        """Remove it, by its old outputs."""


def _complete(connection: object) -> Secret:
    """Fill in the defaults, mark the secrets: the whole connection is one, so that no diff ever prints part of it."""
    fields = connection.value if isinstance(connection, Secret) else connection
    if not isinstance(fields, dict):
        return Secret(fields)  # a preview may not know it at all
    done = {
        name: Secret(value) if name in SECRETS and not isinstance(value, Secret) else value
        for name, value in (DEFAULTS | fields).items()
    }
    if isinstance(done.get("proxy"), dict):
        done["proxy"] = _complete(done["proxy"]).value
    return Secret(done)


class _Command(Resource):
    """A command on creation, on update and on deletion, each optional."""

    results = ("stdout", "stderr")
    common: ClassVar[frozenset[str]] = frozenset(
        {"create", "update", "delete", "triggers", "stdin", "logging", "environment", "addPreviousOutputInEnv"}
    )

    @abc.abstractmethod
    def run(self, command: str, inputs: Properties, environment: Mapping[str, str], output: Output) -> None:
        """Run to the end; raises unless it ended with 0. `inputs` are without marks of secrecy."""

    @override
    def create(self, inputs: Properties, log: Log) -> Properties:
        return inputs | self._run(inputs.get("create"), inputs, dict.fromkeys(self.results, ""), log)

    @override
    def update(self, old: Properties, inputs: Properties, log: Log) -> Properties:
        command = inputs["update"] if "update" in inputs else inputs.get("create")
        return inputs | self._run(command, inputs, {name: old.get(name, "") for name in self.results}, log)

    @override
    def delete(self, old: Properties, log: Log) -> None:
        self._run(old.get("delete"), old, {name: old.get(name, "") for name in self.results}, log)

    def _run(self, command: object, inputs: Properties, results: Properties, log: Log) -> Properties:
        if command is None:
            return results
        plain = wire.reveal(inputs)
        text = str(wire.reveal(command))
        environment = dict(plain.get("environment", {}))
        if plain.get("addPreviousOutputInEnv", True):
            for name in self.results:
                if value := wire.reveal(results[name]):
                    environment[f"PULUMI_COMMAND_{name.upper()}"] = value
        logging = plain.get("logging", "stdoutAndStderr")
        shown = {stream for stream in ("stdout", "stderr") if logging in {stream, "stdoutAndStderr"}}
        output = Output(log, shown)
        try:
            self.run(text, plain, environment, output)
        except CommandFailedError as error:
            quoted = json.dumps(text, ensure_ascii=False)
            raise CommandFailedError(f"{error}: running {quoted}:\n{output.both}") from error
        finally:
            output.close()
        return {"stdout": output.stdout.removesuffix("\n"), "stderr": output.stderr.removesuffix("\n")}


class Output:
    """Collects what a command prints, and passes it on, line by line, while it runs."""

    def __init__(self, log: Log, shown: set[str]) -> None:
        self._log = log
        self._shown = shown
        self._text = {"stdout": "", "stderr": "", "both": ""}
        self._line = ""
        self._lock = threading.Lock()
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}

    def add(self, stream: str, data: bytes) -> None:
        """Some bytes of one stream, `stdout` or `stderr`."""
        with self._lock:
            text = self._decoders[stream].decode(data)
            self._text[stream] += text
            self._text["both"] += text
            if stream in self._shown:
                *lines, self._line = (self._line + text).split("\n")
                for line in lines:
                    self._log(line)

    def note(self, line: str) -> None:
        """Pass on a line that is not the command's."""
        self._log(line)

    def close(self) -> None:
        """Pass on a last line that has no end."""
        if self._line:
            self._log(self._line)

    @property
    def stdout(self) -> str:
        """All of it so far."""
        return self._text["stdout"]

    @property
    def stderr(self) -> str:
        """All of it so far."""
        return self._text["stderr"]

    @property
    def both(self) -> str:
        """Both streams in the order of arrival."""
        return self._text["both"]

    def pump(self, sources: Mapping[str, Callable[[int], bytes]], sink: Callable[[], None]) -> None:
        """Read the sources to their ends and call `sink`, which writes the input, all at once."""

        def read(stream: str, source: Callable[[int], bytes]) -> None:
            while data := source(BLOCK):
                self.add(stream, data)

        threads = [threading.Thread(target=read, args=item, daemon=True) for item in sources.items()]
        threads.append(threading.Thread(target=sink, daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class RemoteCommand(_Command):
    """`command:remote:Command`."""

    inputs = _Command.common | {"connection"}

    @override
    def run(self, command: str, inputs: Properties, environment: Mapping[str, str], output: Output) -> None:
        with connected(inputs["connection"], output.note) as transport, transport.open_session() as channel:
            for name, value in environment.items():
                channel.set_environment_variable(name, value)  # sshd drops what its AcceptEnv does not name
            channel.exec_command(command)

            def write() -> None:
                try:
                    channel.sendall(inputs.get("stdin", "").encode())
                    channel.shutdown_write()
                except OSError:
                    return  # the command ended without reading all of it: its status says how it went

            output.pump({"stdout": channel.recv, "stderr": channel.recv_stderr}, write)
            status = channel.recv_exit_status()
        if status < 0:
            raise CommandFailedError("wait: remote command exited without exit status or exit signal")
        if status > 0:
            raise CommandFailedError(f"Process exited with status {status}")


class LocalCommand(_Command):
    """`command:local:Command`."""

    inputs = _Command.common | {"interpreter", "dir", "assetPaths", "archivePaths"}
    unsupported = frozenset({"assetPaths", "archivePaths"})

    @override
    def run(self, command: str, inputs: Properties, environment: Mapping[str, str], output: Output) -> None:
        interpreter = inputs.get("interpreter") or ["/bin/sh", "-c"]
        try:
            process = subprocess.Popen(
                [*interpreter, command],
                cwd=inputs.get("dir"),
                env=os.environ | dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
            )
        except OSError as error:
            raise CommandFailedError(str(error)) from error
        with process:
            stdin, stdout, stderr = _pipe(process.stdin), _pipe(process.stdout), _pipe(process.stderr)

            def write() -> None:
                try:
                    with stdin:
                        stdin.write(inputs.get("stdin", "").encode())
                except BrokenPipeError:
                    return  # as above

            output.pump({"stdout": stdout.read, "stderr": stderr.read}, write)
        if process.returncode < 0:
            raise CommandFailedError(f"signal: {-process.returncode}")
        if process.returncode > 0:
            raise CommandFailedError(f"exit status {process.returncode}")


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise TypeError("Popen was asked for a pipe and made none")
    return pipe


class CopyToRemote(Resource):
    """`command:remote:CopyToRemote`. Copies when the content's hash or the path changed, and for nothing else."""

    inputs = frozenset({"connection", "triggers", "source", "remotePath"})

    @override
    def check(self, inputs: Properties) -> list[tuple[str, str]]:
        failures = super().check(inputs)
        source = wire.reveal(inputs.get("source"))
        if source == wire.UNKNOWN:
            return failures
        if not wire.is_file(source):
            return [*failures, ("asset", "either asset or archive must be set")]
        if source[wire.SIGNATURE] == wire.ARCHIVE and not source.get("path"):
            return [*failures, ("archive", "archive must be a path to a file or directory")]
        if not source.get("path") and source.get("text") is None:
            return [*failures, ("asset", "asset must be a path-based file asset or a text asset")]
        return failures

    @override
    def new_id(self, name: str) -> str:
        return super().new_id("")  # this one has no name in it

    @override
    def create(self, inputs: Properties, log: Log) -> Properties:
        self._copy(wire.reveal(inputs), log)
        return inputs

    @override
    def update(self, old: Properties, inputs: Properties, log: Log) -> Properties:
        before, after = wire.reveal(old), wire.reveal(inputs)
        hashes = [state["source"].get("hash") for state in (before, after)]
        if hashes[0] != hashes[1] or before["remotePath"] != after["remotePath"]:
            self._copy(after, log)
        return inputs

    def _copy(self, inputs: Properties, log: Log) -> None:
        source, target = inputs["source"], str(inputs["remotePath"])
        with connected(inputs["connection"], log) as transport:
            sftp = paramiko.SFTPClient.from_transport(transport)
            if sftp is None:
                raise CommandFailedError("the host opened no SFTP session")
            with sftp:
                try:
                    if source.get("path"):
                        _copy_path(sftp, str(source["path"]), target)
                    else:
                        _copy_text(sftp, str(source["text"]), target)
                except (OSError, paramiko.SSHException) as error:
                    raise CommandFailedError(f"failed to copy to remote path {target}: {error}") from error


def _remote_is_directory(sftp: paramiko.SFTPClient, path: str) -> bool | None:
    """None when there is nothing of that name."""
    try:
        return stat.S_ISDIR(sftp.stat(path).st_mode or 0)
    except FileNotFoundError:
        return None


def _make_directories(sftp: paramiko.SFTPClient, path: str) -> None:
    if path in {"", ".", "/"} or _remote_is_directory(sftp, path):
        return
    _make_directories(sftp, posixpath.dirname(path))
    sftp.mkdir(path)


def _copy_text(sftp: paramiko.SFTPClient, text: str, target: str) -> None:
    if _remote_is_directory(sftp, target):
        raise CommandFailedError(
            f"remote path {target} is a directory; when using a text asset, remotePath must be a file path"
        )
    _make_directories(sftp, posixpath.dirname(target))
    with sftp.open(target, "wb") as file:
        file.write(text.encode())


def _copy_path(sftp: paramiko.SFTPClient, source: str, target: str) -> None:
    """As `cp -r`: into a directory that is there; the content of the source where its path ends with a slash."""
    there = _remote_is_directory(sftp, target)
    if not Path(source).is_dir():
        if there:
            target = posixpath.join(target, posixpath.basename(source))
        elif there is None:
            _make_directories(sftp, posixpath.dirname(target))
        _copy_file(sftp, source, target)
        return
    _make_directories(sftp, target)
    if not source.endswith("/"):
        target = posixpath.join(target, posixpath.basename(source))
    for directory, _, files in os.walk(source):
        below = posixpath.normpath(posixpath.join(target, os.path.relpath(directory, source)))
        _make_directories(sftp, below)
        for name in files:
            _copy_file(sftp, str(Path(directory, name)), posixpath.join(below, name))


def _copy_file(sftp: paramiko.SFTPClient, source: str, target: str) -> None:
    with open(source, "rb") as local, sftp.open(target, "wb") as remote:  # noqa: PTH123 - twins, read best side by side
        remote.set_pipelined(True)
        while data := local.read(BLOCK):
            remote.write(data)


RESOURCES: dict[str, Resource] = {
    "command:local:Command": LocalCommand(),
    "command:remote:Command": RemoteCommand(),
    "command:remote:CopyToRemote": CopyToRemote(),
}
