"""How a host is reached and trusted: stack file + ~/.ssh/config + known_hosts -> one Connection.

Why this is not left to pulumi-command (1.2.1, x/crypto 0.48): it reads neither ~/.ssh/config nor
known_hosts, accepts any host key when it is given none, takes exactly one, and then negotiates only
that key's own type. So the key must be known, and be of a type that servers still offer, before a
command is declared. It is looked up offline: a known host is never contacted from here, which keeps
a no-op `pulumi up` free of SSH. Only a host whose key is NOT known is asked for it, for the error
message; nothing is ever accepted.

The stack file comes first. What only the operator's own files say is used, with a warning, because
the next operator's connection would differ. docs/connections.md is the same for people.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import getpass
import hashlib
import hmac
import ipaddress
import os
import re
import shlex
import socket
import textwrap
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from paramiko.agent import AgentSSH

from overlay_components import ssh

KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")
DEFAULT_USER = "root"  # pulumi-command's own default
DEFAULT_PORT = 22
AGENT_SECONDS = 5.0
MAX_PORT = 65535


@dataclass(frozen=True)
class Wanted:
    """What the stack file says about one host, defaults merged in; None = not said."""

    address: str
    user: str | None = None
    port: int | None = None
    identity_file: str | None = None
    host_key: str | None = None
    proxy: Wanted | str | None = None


@dataclass(frozen=True)
class Connection:
    """What pulumi-command's ConnectionArgs need; `private_key` None means that the agent has it.

    The bastion's warnings stand with the host's, so `proxy.warnings` is always empty.
    """

    host: str
    port: int
    user: str
    host_key: str
    private_key: str | None = field(repr=False)
    proxy: Connection | None
    warnings: tuple[str, ...]


class ConnectionProblem(Exception):  # noqa: N818 -- it carries several, and says what to do
    """Everything that keeps one host from being reached safely, in `problems`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def resolve(where: str, wanted: Wanted, operator: Operator) -> Connection:
    """The connection of the host at `where` ("hosts.a"), or ConnectionProblem with all problems.

    Makes no network connection when the host's key is known. Safe to call from several threads.
    """
    end = _End(where, wanted, operator)
    connection = end.connection()
    problems = [*operator.problems, *end.problems]
    if problems or connection is None:
        raise ConnectionProblem(problems)
    return connection


class Operator:
    """The operator's own environment, read once and shared by all hosts of a run.

    `problems` are those of the environment itself; each host's ConnectionProblem carries them.
    """

    def __init__(self, home: Path | None = None, environ: Mapping[str, str] | None = None) -> None:
        self.environ = os.environ if environ is None else environ
        self.home = home or Path(self.environ.get("HOME") or Path.home())
        self.login = self.environ.get("LOGNAME") or self.environ.get("USER") or getpass.getuser()
        self.problems: list[str] = []
        self.agent_socket = self.environ.get("SSH_AUTH_SOCK", "")
        self.agent_keys = self._list_agent()
        self._known_files: dict[Path, list[_KnownKey]] = {}
        self._lock = threading.Lock()
        self._config = self._read_config(self.home / ".ssh" / "config", (), 0)

    # -- ~/.ssh/config (ssh_config(5)) ---------------------------------------------------------

    def lookup(self, name: str, user: str | None, decided: set[str]) -> _Found:
        """The settings that apply to `name`; first value wins, as in ssh.

        A Match that only running it could settle is reported for the keywords not in `decided`.
        """
        found: dict[str, list[_Setting]] = {}
        unsettled: list[tuple[_Setting, str]] = []
        for block in self._config:
            verdict = self._applies(block, name, user, found)
            if verdict is False:
                continue
            fresh: dict[str, list[_Setting]] = {}
            for setting in block.settings:
                # ssh: whichever of ProxyJump and ProxyCommand comes first decides.
                slot = "proxy" if setting.keyword.startswith("proxy") else setting.keyword
                if slot in found and slot not in _LISTS:
                    continue
                if verdict is True:
                    fresh.setdefault(slot, []).append(setting)
                elif slot in _STACK_KEYS and slot not in decided:
                    unsettled.append((setting, verdict))
            for slot, settings in fresh.items():
                if slot in _LISTS:
                    found.setdefault(slot, []).extend(settings)
                else:
                    found[slot] = settings[:1]
        return _Found(found, unsettled)

    def _applies(self, block: _Block, name: str, user: str | None, found: dict[str, list[_Setting]]) -> bool | str:
        """True, False, or the criterion that cannot be settled without running it."""
        host = found["hostname"][0].value if "hostname" in found else name
        configured = found["user"][0].value if "user" in found else None
        subjects = {
            "host": self.expand(host, {"h": name, "n": name}),
            "originalhost": name,
            "user": user or configured or self.login,
            "localuser": self.login,
        }
        unsettled = ""
        for condition in block.conditions:
            if condition.keyword == "host":
                if not _patterns_match(condition.args, name):
                    return False
                continue
            rest = list(condition.args)
            while rest:
                criterion = rest.pop(0)
                kind = criterion.lower().lstrip("!")
                if kind == "all":
                    continue
                parameter = [rest.pop(0)] if rest and kind not in ("canonical", "final") else []
                if kind not in subjects:
                    unsettled = " ".join(["Match", criterion, *parameter])
                    continue
                matched = _patterns_match(",".join(parameter).split(","), subjects[kind])
                if matched == criterion.startswith("!"):
                    return False
        return unsettled or True

    def _read_config(self, path: Path, outer: tuple[_Line, ...], depth: int) -> list[_Block]:
        shown = self.shown(path)
        try:
            text = path.read_text(errors="replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            self.problems.append(f"{shown}: cannot be read: {error.strerror}; make it readable")
            return []
        blocks = [_Block(outer)]
        for number, raw in enumerate(text.splitlines(), 1):
            line = _config_line(raw)
            if line is None:
                continue
            if not line.args:
                self.problems.append(
                    f"{shown}:{number}: {line.keyword!r} has no value; ssh refuses it too: "
                    "give it one or remove the line"
                )
            elif line.keyword in ("host", "match"):
                blocks.append(_Block((*outer, line)))
            elif line.keyword == "include":
                # The included blocks stand under this block's condition; then it goes on.
                conditions = blocks[-1].conditions
                if depth < _INCLUDE_DEPTH:
                    for included in self._included(line.args):
                        blocks += self._read_config(included, conditions, depth + 1)
                blocks.append(_Block(conditions))
            elif line.keyword in _KEYWORDS:
                conditions = blocks[-1].conditions
                origin = f"{shown} ({conditions[-1].text})" if conditions else shown
                value = line.args[0] if line.keyword not in _WHOLE else " ".join(line.args)
                blocks[-1].settings.append(_Setting(line.keyword, value, origin))
        return [block for block in blocks if block.settings]

    def _included(self, patterns: tuple[str, ...]) -> Iterator[Path]:
        for pattern in patterns:
            full = self.home / ".ssh" / self.expand(pattern, {})
            yield from sorted(Path(full.anchor).glob(str(full.relative_to(full.anchor))))

    # -- known_hosts (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT) ------------------------------------

    def known(self, names: list[str], files: list[Path]) -> list[_KnownKey]:
        """Every line of `files` about one of `names`, revoked ones and authorities included."""
        return [key for path in files for key in self._known_file(path) if any(key.is_for(name) for name in names)]

    def _known_file(self, path: Path) -> list[_KnownKey]:
        with self._lock:
            if path not in self._known_files:
                try:
                    lines = path.read_text(errors="replace").splitlines()
                except OSError:  # ssh goes on without it, and an unknown key is an error anyway
                    lines = []
                parsed = (_known_line(line, f"{self.shown(path)}:{number}") for number, line in enumerate(lines, 1))
                self._known_files[path] = [key for key in parsed if key]
            return self._known_files[path]

    # -- ssh-agent -----------------------------------------------------------------------------

    def _list_agent(self) -> tuple[bytes, ...]:
        if not self.agent_socket:
            return ()
        try:
            with self.agent() as agent:
                return tuple(key.blob for key in agent.get_keys())
        except (OSError, paramiko.SSHException) as error:
            self.problems.append(
                f"SSH_AUTH_SOCK: no ssh-agent answers at {self.agent_socket!r} ({ssh.reason(error)}); "
                "start one there or unset SSH_AUTH_SOCK: pulumi-command fails on it even when it "
                "is given a key"
            )
            return ()

    @contextlib.contextmanager
    def agent(self) -> Iterator[_Agent]:
        """A short conversation with the agent that pulumi-command will ask as well."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(AGENT_SECONDS)
            connection.connect(self.agent_socket)
            yield _Agent(connection)

    # -- paths ---------------------------------------------------------------------------------

    def expand(self, text: str, tokens: Mapping[str, str]) -> str:
        """Expand ssh's `~`, `${NAME}` and `%x`; an unknown token stays as it is."""
        if text == "~" or text.startswith("~/"):
            text = str(self.home) + text[1:]
        text = re.sub(r"\$\{(\w+)\}", lambda m: self.environ.get(m[1], m[0]), text)
        known = {"%": "%", "d": str(self.home), "u": self.login, **tokens}
        return re.sub(r"%(.)", lambda m: known.get(m[1], m[0]), text)

    def shown(self, path: Path) -> str:
        """`path` as people write it, with ~ for the home directory."""
        if path.is_relative_to(self.home):
            return f"~/{path.relative_to(self.home)}"
        return str(path)


class _End:
    """One end of a connection, the host itself or its bastion, while it is worked out."""

    def __init__(
        self, where: str, wanted: Wanted, operator: Operator, *, is_bastion: bool = False, as_text: bool = False
    ) -> None:
        self.where = where
        self.wanted = wanted
        self.operator = operator
        self.is_bastion = is_bastion
        self.as_text = as_text  # a bastion written as "user@host:port", by the stack or ssh config
        self.proxy_unsettled = False
        self.problems: list[str] = []
        self.warnings: list[str] = []
        decided = {
            slot
            for slot, said in (
                ("user", wanted.user),
                ("port", wanted.port),
                ("identityfile", wanted.identity_file),
                ("proxy", wanted.proxy),
                ("userknownhostsfile", wanted.host_key),
                ("globalknownhostsfile", wanted.host_key),
                ("hostkeyalias", wanted.host_key),
            )
            if said is not None
        }
        self.address = _unbracketed(wanted.address)
        if _is_ip(self.address):
            decided.add("hostname")
        self.config = operator.lookup(self.address, wanted.user, decided)
        for setting, criterion in self.config.unsettled:
            slot = "proxy" if setting.keyword.startswith("proxy") else setting.keyword
            self.problem(
                f"{_SPELLING[setting.keyword]} depends on {criterion!r} in {setting.origin}, which "
                f"is not evaluated here; {self.write(_STACK_KEYS[slot])}, or use Host or "
                "Match host there"
            )

    def connection(self) -> Connection | None:
        """The whole connection, or None when there is a problem."""
        self._refuse_unsupported()
        host = self._host()
        user = self.wanted.user or self._from_config("user", "user") or DEFAULT_USER
        port = self._port()
        tokens = {"h": host, "n": self.address, "p": str(port), "r": user}
        proxy = self._proxy(tokens)
        private_key = self._private_key(tokens)
        host_key = self._host_key(host, port, user, proxy, tokens)
        if self.problems or host_key is None:
            return None
        return Connection(host, port, user, host_key, private_key, proxy, tuple(self.warnings))

    # -- words ---------------------------------------------------------------------------------

    def problem(self, text: str) -> None:
        self.problems.append(f"{self.where}: {text}")

    def warn(self, text: str) -> None:
        self.warnings.append(f"{self.where}: {text}")

    def write(self, key: str, value: str = "") -> str:
        """What to write into the stack file; a bastion given as text becomes an object."""
        if not self.as_text:
            return f"write overlay:{self.where}.{key}{': ' + value if value else ''}"
        pairs = [f"address: {_yaml(self.address)}"]
        pairs += [f"user: {_yaml(self.wanted.user)}"] if self.wanted.user else []
        pairs += [f"port: {self.wanted.port}"] if self.wanted.port else []
        if key == "address":
            pairs[0] = f"address: {_yaml(value) if value else '…'}"
        else:
            pairs.append(f"{key}: {value or '…'}")
        return f"write overlay:{self.where}: {{{', '.join(pairs)}}}"

    def _warn_config(self, key: str, value: str | int, setting: _Setting) -> None:
        self.warn(
            f"{key} {value!r} comes from {setting.origin}, which another operator may not have; "
            f"{self.write(key, _yaml(value))}"
        )

    # -- host, port, bastion -------------------------------------------------------------------

    def _from_config(self, keyword: str, key: str) -> str | None:
        setting = self.config.first(keyword)
        if setting is None:
            return None
        self._warn_config(key, setting.value, setting)
        return setting.value

    def _host(self) -> str:
        setting = self.config.first("hostname")
        if setting is None:
            return self.address
        tokens = {"h": self.address, "n": self.address}
        host = _unbracketed(self.operator.expand(setting.value, tokens))
        if host != self.address:
            self._warn_config("address", host, setting)
        return host

    def _port(self) -> int:
        if self.wanted.port is not None:
            port, origin = self.wanted.port, "the stack file"
        else:
            setting = self.config.first("port")
            if setting is None:
                return DEFAULT_PORT
            origin = setting.origin
            if not setting.value.isdecimal():
                self.problem(f"port {setting.value!r} in {origin} is not a number; 1 to 65535")
                return DEFAULT_PORT
            port = int(setting.value)
            self._warn_config("port", port, setting)
        if not 1 <= port <= MAX_PORT:
            self.problem(f"port {port} in {origin} is out of range; 1 to 65535")
            return DEFAULT_PORT
        return port

    def _refuse_unsupported(self) -> None:
        canonicalize = self.config.first("canonicalizehostname")
        if canonicalize and canonicalize.value.lower() in ("yes", "always"):
            self.problem(
                f"CanonicalizeHostname in {canonicalize.origin} is not supported; "
                f"{self.write('address')} with the full name, and leave it out for this host"
            )
        revoked = self.config.first("revokedhostkeys")
        if revoked and revoked.value.lower() != "none":
            self.warn(
                f"RevokedHostKeys in {revoked.origin} is not read; mark revoked keys with @revoked in known_hosts"
            )
        for setting in self.config.all("certificatefile"):
            path = Path(self.operator.expand(setting.value, {}))
            if setting.value.lower() != "none" and not self._agent_has(_file_text(path)):
                self.problem(
                    f"CertificateFile {setting.value!r} in {setting.origin} is not supported by "
                    "pulumi-command unless the ssh-agent holds it; run ssh-add with the key that "
                    "it belongs to, or leave it out for this host"
                )

    def _proxy(self, tokens: Mapping[str, str]) -> Connection | None:
        wanted, origin = self._wanted_proxy(tokens)
        if wanted is None:
            return None
        self.proxy_unsettled = True
        text = wanted if isinstance(wanted, str) else wanted.address
        if self.is_bastion or "," in text:
            self.problem(
                f"proxy {text!r} in {origin} makes more than one jump, and pulumi-command makes one; name the one "
                f"bastion that reaches the host" + (f", and {self.write('proxy', 'none')}" if self.is_bastion else "")
            )
            return None
        parsed = _parse_jump(wanted) if isinstance(wanted, str) else wanted
        if parsed is None:
            self.problem(
                f"proxy {text!r} in {origin} is not understood; write [user@]host[:port], an IPv6 address with a port "
                "as [2001:db8::1]:22, or none"
            )
            return None
        end = _End(f"{self.where}.proxy", parsed, self.operator, is_bastion=True, as_text=isinstance(wanted, str))
        proxy = end.connection()
        self.problems += end.problems
        self.warnings += end.warnings
        self.proxy_unsettled = proxy is None
        return replace(proxy, warnings=()) if proxy else None

    def _wanted_proxy(self, tokens: Mapping[str, str]) -> tuple[Wanted | str | None, str]:
        """The bastion and who says so: the stack file, else ssh's config."""
        wanted = self.wanted.proxy
        if wanted is not None:
            return (None if wanted == "none" else wanted), "the stack file"
        setting = self.config.first("proxy")
        if setting is None or setting.value.lower() == "none":
            return None, ""
        if setting.keyword == "proxycommand":
            self.proxy_unsettled = True
            self.problem(
                f"ProxyCommand {setting.value!r} in {setting.origin} is not supported by pulumi-command; "
                f"{self.write('proxy')} with one bastion, or {self.write('proxy', 'none')} to connect directly"
            )
            return None, ""
        text = self.operator.expand(setting.value, tokens)
        jump = _parse_jump(text)
        if self.is_bastion and jump and jump.address == self.address:
            return None, ""  # `Host *` with ProxyJump: ssh does not jump through a host to itself either
        if not self.is_bastion:
            self._warn_config("proxy", text, setting)
        return text, setting.origin

    # -- the key that lets us in ---------------------------------------------------------------

    def _private_key(self, tokens: Mapping[str, str]) -> str | None:
        self._compare_identity_agent(tokens)
        if self.wanted.identity_file is not None:
            path = Path(self.operator.expand(self.wanted.identity_file, {}))
            return self._from_file(path, f"identityFile {self.wanted.identity_file!r}")
        settings = self.config.all("identityfile")
        for setting in settings:
            path = Path(self.operator.expand(setting.value, tokens))
            if self._agent_has(_public_part(path)) or path.is_file():
                self._warn_config("identityFile", self.operator.shown(path), setting)
                return self._from_file(path, f"IdentityFile {setting.value!r} ({setting.origin})")
        if self.operator.agent_keys:
            if len(self.operator.agent_keys) > ssh.MAX_AUTH_TRIES:
                self._warn_many_keys("any after the sixth is not tried")
            return None
        if not settings:
            for name in ("id_ed25519", "id_ecdsa", "id_rsa"):  # ssh tries all; one can be given
                path = self.operator.home / ".ssh" / name
                if path.is_file():
                    shown = self.operator.shown(path)
                    self.warn(
                        f"no ssh-agent and no identityFile: {shown} of this operator is used and "
                        f"enters the state as a secret; run ssh-add {shown}, or "
                        f"{self.write('identityFile', shown)}"
                    )
                    return self._from_file(path, f"the default key {shown}")
        missing = ", ".join(setting.value for setting in settings) or "~/.ssh/id_*"
        self.problem(
            f"no key to log in with: the ssh-agent ({self._agent_state()}) and {missing} have "
            f"none; run ssh-add FILE, or {self.write('identityFile', 'FILE')}, or make one with "
            "ssh-keygen -t ed25519 and put its .pub on the host with ssh-copy-id"
        )
        return None

    def _agent_state(self) -> str:
        if not self.operator.agent_socket:
            return "SSH_AUTH_SOCK is not set"
        return f"SSH_AUTH_SOCK={self.operator.agent_socket}"

    def _agent_has(self, public: str | None) -> bool:
        return _blob(public) in self.operator.agent_keys

    def _warn_many_keys(self, what: str) -> None:
        self.warn(
            f"the ssh-agent holds {len(self.operator.agent_keys)} keys and sshd allows "
            f"{ssh.MAX_AUTH_TRIES} tries (MaxAuthTries): {what}; remove some with ssh-add -d"
        )

    def _compare_identity_agent(self, tokens: Mapping[str, str]) -> None:
        setting = self.config.first("identityagent")
        if setting is None or setting.value == "SSH_AUTH_SOCK":
            return
        path = self.operator.expand(setting.value, tokens)
        if path.startswith("$"):
            path = self.operator.environ.get(path[1:], path)
        if path == (self.operator.agent_socket or "none"):
            return
        remedy = "unset SSH_AUTH_SOCK" if path == "none" else f"export SSH_AUTH_SOCK={path}"
        self.warn(
            f"IdentityAgent {setting.value!r} in {setting.origin} is not used, because "
            f"pulumi-command asks the agent of SSH_AUTH_SOCK only; {remedy}"
        )

    def _from_file(self, path: Path, label: str) -> str | None:
        """The file's content, or None when the agent holds its key; a problem when unusable."""
        operator = self.operator
        public = _blob(_public_part(path))
        if public in operator.agent_keys:
            position = operator.agent_keys.index(public) + 1
            if position > ssh.MAX_AUTH_TRIES:
                self._warn_many_keys(f"that of {operator.shown(path)} comes as number {position}")
            return None
        shown = operator.shown(path)
        try:
            text = path.read_text(errors="replace")
        except OSError as error:
            self.problem(
                f"{label} cannot be read: {error.strerror}; "
                f"{self.write('identityFile')} with a private key's file, or ssh-add its key"
            )
            return None
        kind = _key_kind(text)
        if kind == "private":
            return text
        self.problem(
            {
                "public": f"{label} is a public key; {self.write('identityFile', shown.removesuffix('.pub'))}"
                if shown.endswith(".pub")
                else f"{label} is a public key; {self.write('identityFile')} with the private key's file",
                "encrypted": f"{label} is encrypted and not in the ssh-agent "
                f"({self._agent_state()}); run ssh-add {shown}",
                "hardware": f"{label} is on a security key, which only an ssh-agent can use "
                f"({self._agent_state()}); run ssh-add {shown}",
                "unknown": f"{label} is not a private key in OpenSSH or PEM form; convert it "
                "(puttygen KEY -O private-openssh-new -o FILE) or name another",
            }[kind]
        )
        return None

    # -- the key that the host must show -------------------------------------------------------

    def _host_key(
        self, host: str, port: int, user: str, proxy: Connection | None, tokens: Mapping[str, str]
    ) -> str | None:
        alias = self.config.first("hostkeyalias")
        if alias:
            names = [alias.value.lower()]
        else:
            names = list(dict.fromkeys(_known_name(name, port) for name in (self.address, host)))
        files = self._known_hosts_files(tokens)
        known = self.operator.known(names, files)
        revoked = {key.blob: key.origin for key in known if key.marker == "@revoked"}
        plain = [key for key in known if not key.marker]
        if self.wanted.host_key is not None:
            return self._stated_key(self.wanted.host_key, plain, revoked)

        usable = [key for key in plain if key.blob not in revoked]
        for key_type in KEY_TYPES:
            keys = {key.blob: key for key in usable if key.type == key_type}
            if len(keys) > 1:
                origins = " and ".join(key.origin for key in keys.values())
                self.problem(
                    f"{len(keys)} different {key_type} keys of {' or '.join(names)} are known "
                    f"({origins}); remove the old one, or {self.write('hostKey')}"
                )
                return None
            if keys:
                return next(iter(keys.values())).text

        said = " or ".join(names)
        if usable:
            reason = (
                f"only the {usable[0].type} key of {said} is known ({usable[0].origin}), and with "
                "it pulumi-command can ask for SHA-1 signatures only, which OpenSSH no longer gives"
                if usable[0].type == "ssh-rsa"
                else f"only the {usable[0].type} key of {said} is known ({usable[0].origin}), "
                "which pulumi-command cannot use"
            )
        elif plain:
            reason = f"the known host key of {said} is marked @revoked ({revoked[plain[0].blob]})"
        elif any(key.marker == "@cert-authority" for key in known):
            origin = next(key.origin for key in known if key.marker == "@cert-authority")
            reason = (
                f"only a @cert-authority vouches for {said} ({origin}), and pulumi-command knows no host certificates"
            )
        else:
            reason = f"the host key of {said} is not known"
        self._ask_for_key(reason, (host, port, user), proxy, files, revoked, alias is not None)
        return None

    def _known_hosts_files(self, tokens: Mapping[str, str]) -> list[Path]:
        files = []
        for keyword, default in (
            ("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2"),
            ("globalknownhostsfile", "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"),
        ):
            setting = self.config.first(keyword)
            text = setting.value if setting else default
            files += [Path(self.operator.expand(one, tokens)) for one in text.split()]
        return files

    def _stated_key(self, stated: str, plain: list[_KnownKey], revoked: dict[bytes, str]) -> str | None:
        """The stack file's `hostKey`, which wins over known_hosts."""
        shown = textwrap.shorten(stated, 100, placeholder="…")
        fields = stated.split()
        key_type = fields[0] if fields else ""
        if key_type == "ssh-rsa":
            self.problem(
                f"hostKey {shown!r} is an ssh-rsa key, with which pulumi-command can ask for SHA-1 "
                f"signatures only, which OpenSSH no longer gives; {self.write('hostKey')} with "
                "the host's /etc/ssh/ssh_host_ed25519_key.pub"
            )
            return None
        blob = _valid_key(fields)
        if blob is None or key_type not in KEY_TYPES:
            self.problem(
                f"hostKey {shown!r} is not a host key; write it as in the host's "
                "/etc/ssh/ssh_host_ed25519_key.pub, without the host's name: ssh-ed25519 AAAA…"
            )
            return None
        if blob in revoked:
            self.problem(
                f"hostKey {_fingerprint(blob)} is marked @revoked ({revoked[blob]}); give the "
                f"host a new key and {self.write('hostKey')} with that"
            )
            return None
        others = [key for key in plain if key.type == key_type]
        if others and all(key.blob != blob for key in others):
            self.warn(
                f"hostKey {_fingerprint(blob)} is not the key in {others[0].origin} "
                f"({_fingerprint(others[0].blob)}); the stack file's is used: correct the wrong one"
            )
        return f"{key_type} {fields[1]}"

    def _ask_for_key(
        self,
        reason: str,
        target: tuple[str, int, str],
        proxy: Connection | None,
        files: list[Path],
        revoked: dict[bytes, str],
        by_ssh: bool,
    ) -> None:
        """Add the problem `reason`, with the key that the host shows now and how to accept it."""
        host, port, user = target
        by_hand = self.write("hostKey", "ssh-ed25519 AAAA…")
        on_host = "the host's /etc/ssh/ssh_host_ed25519_key.pub"
        if self.proxy_unsettled:
            self.problem(
                f"{reason}, and the host cannot be asked for it before its proxy is settled; settle "
                f"that first, or {by_hand} from {on_host}"
            )
            return
        try:
            key = _scan(self.operator, host, port, proxy)
        except (OSError, EOFError, paramiko.SSHException) as error:
            through = f" through {proxy.host} port {proxy.port}" if proxy else ""
            self.problem(
                f"{reason}, and {host} port {port}{through} cannot be asked for it: "
                f"{ssh.reason(error)}; make the host reachable, or {by_hand} from {on_host}"
            )
            return
        blob = _blob(key) or b""
        if blob in revoked:
            self.problem(
                f"{reason}, and the host still shows it ({_fingerprint(blob)}); give the host a "
                "new key with ssh-keygen, after finding out why this one was revoked"
            )
            return
        short = "ed25519" if key.startswith(KEY_TYPES[0]) else "ecdsa"
        if proxy or by_ssh:
            jump = f"-J {shlex.quote(_jump_text(proxy))} " if proxy else ""
            accept = f"ssh {jump}-p {port} {shlex.quote(f'{user}@{self.address}')} and answer yes"
        else:
            accept = f"ssh-keyscan -t {short} -p {port} {host} >> {self.operator.shown(files[0])}"
        self.problem(
            f"{reason}; the host shows {_fingerprint(blob)}: compare it, on the host, with "
            f"ssh-keygen -lf /etc/ssh/ssh_host_{short}_key.pub, and when they are equal "
            f"{self.write('hostKey', key)}, or run {accept}"
        )


# -- ~/.ssh/config: lines ----------------------------------------------------------------------

_SPELLING = {
    word.lower(): word
    for word in (
        "HostName",
        "User",
        "Port",
        "IdentityFile",
        "ProxyJump",
        "ProxyCommand",
        "UserKnownHostsFile",
        "GlobalKnownHostsFile",
        "HostKeyAlias",
        "IdentityAgent",
        "CertificateFile",
        "CanonicalizeHostname",
        "RevokedHostKeys",
    )
}
_KEYWORDS = frozenset(_SPELLING)
_INCLUDE_DEPTH = 16  # as ssh
_LISTS = frozenset({"identityfile", "certificatefile"})
_WHOLE = frozenset({"proxycommand", "userknownhostsfile", "globalknownhostsfile"})
_STACK_KEYS = {  # what the stack file can say instead
    "hostname": "address",
    "user": "user",
    "port": "port",
    "identityfile": "identityFile",
    "proxy": "proxy",
    "userknownhostsfile": "hostKey",
    "globalknownhostsfile": "hostKey",
    "hostkeyalias": "hostKey",
}


@dataclass(frozen=True)
class _Line:
    keyword: str
    args: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class _Setting:
    keyword: str
    value: str
    origin: str  # "~/.ssh/config (Host a*)"


@dataclass
class _Block:
    conditions: tuple[_Line, ...]  # all must hold; none: always applies
    settings: list[_Setting] = field(default_factory=list)


@dataclass(frozen=True)
class _Found:
    settings: dict[str, list[_Setting]]
    unsettled: list[tuple[_Setting, str]]

    def first(self, keyword: str) -> _Setting | None:
        return next(iter(self.settings.get(keyword, [])), None)

    def all(self, keyword: str) -> list[_Setting]:
        return self.settings.get(keyword, [])


def _config_line(raw: str) -> _Line | None:
    text = raw.strip()
    match = re.match(r"(\w+)(?:\s*=\s*|\s+|$)(.*)", text)
    if match is None:  # empty, or a comment
        return None
    try:
        words = shlex.split(match[2])
    except ValueError:  # a lone quote, as in a ProxyCommand
        words = match[2].split()
    comment = next((i for i, word in enumerate(words) if word.startswith("#")), len(words))
    return _Line(match[1].lower(), tuple(words[:comment]), text)


def _patterns_match(patterns: tuple[str, ...] | list[str], subject: str) -> bool:
    """ssh_config(5) PATTERNS: * and ?; any negated match refuses the whole list."""
    hits = [p for p in patterns if _pattern(p.lstrip("!")).fullmatch(subject)]
    return bool(hits) and not any(p.startswith("!") for p in hits)


@functools.lru_cache(maxsize=4096)
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."))


_JUMP = re.compile(r"(?:ssh://)?(?:(?P<user>[^@\s]+)@)?(?P<rest>[^@\s/]+)/?")
_HOST_PORT = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>\d+))?")


def _parse_jump(text: str) -> Wanted | None:
    """ProxyJump's form [user@]host[:port]; a bare IPv6 address is taken whole."""
    jump = _JUMP.fullmatch(text.strip())
    if jump is None:
        return None
    if _is_ip(jump["rest"]):
        return Wanted(jump["rest"], jump["user"])
    end = _HOST_PORT.fullmatch(jump["rest"])
    if end is None:
        return None
    return Wanted(end["v6"] or end["host"], jump["user"], int(end["port"]) if end["port"] else None)


def _jump_text(proxy: Connection) -> str:
    host = f"[{proxy.host}]" if ":" in proxy.host else proxy.host
    return f"{proxy.user}@{host}:{proxy.port}"


def _unbracketed(address: str) -> str:
    return address[1:-1] if address.startswith("[") and address.endswith("]") else address


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _yaml(value: str | int) -> str:
    """A scalar as it may stand in the stack file, also inside { }."""
    text = str(value)
    if re.fullmatch(r"[A-Za-z0-9~/_.][^\s#,{}\[\]:'\"]*(:[^\s#,{}\[\]:'\"]+)?", text):
        return text
    return "'" + text.replace("'", "''") + "'"


# -- known_hosts: lines ------------------------------------------------------------------------


@dataclass(frozen=True)
class _KnownKey:
    marker: str  # "", "@revoked" or "@cert-authority"
    names: tuple[str, ...]
    hashed: tuple[bytes, bytes] | None  # salt, HMAC-SHA1 of the name
    type: str
    blob: bytes
    origin: str  # "~/.ssh/known_hosts:3"

    @property
    def text(self) -> str:
        return f"{self.type} {base64.b64encode(self.blob).decode()}"

    def is_for(self, name: str) -> bool:
        if self.hashed:
            salt, digest = self.hashed
            return hmac.compare_digest(hmac.digest(salt, name.encode(), "sha1"), digest)
        return name in self.names or _patterns_match(self.names, name)


def _known_line(line: str, origin: str) -> _KnownKey | None:
    """One key, or None for what ssh skips as well: comments and lines that do not parse."""
    fields = line.split(maxsplit=4)
    marker = fields.pop(0) if line.startswith("@") else ""
    match fields:
        case [names, key_type, encoded, *_] if not names.startswith("#"):
            blob = _blob(f"{key_type} {encoded}")
        case _:
            return None
    if blob is None:
        return None
    hashed = None
    if names.startswith("|1|"):
        salt, _, digest = names.removeprefix("|1|").partition("|")
        hashed = (_decoded(salt) or b"", _decoded(digest) or b"")
    return _KnownKey(marker, tuple(names.lower().split(",")), hashed, key_type, blob, origin)


def _known_name(name: str, port: int) -> str:
    """The name under which known_hosts has it: normal form, `[name]:port` unless port 22."""
    if _is_ip(name):
        name = str(ipaddress.ip_address(name))
    return name.lower() if port == DEFAULT_PORT else f"[{name.lower()}]:{port}"


# -- keys --------------------------------------------------------------------------------------


class _Agent(AgentSSH):
    """paramiko's agent client on a socket of our own: its Agent() knows os.environ only."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connect(connection)  # type: ignore[attr-defined]  # private, and the one entry there is


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _blob(public: str | None) -> bytes | None:
    """The wire form of a public key line "type base64 …", or None when it is no such line."""
    key_type, _, rest = (public or "").strip().partition(" ")
    blob = _decoded(rest.partition(" ")[0].strip())
    named = len(key_type.encode()).to_bytes(4, "big") + key_type.encode()
    return blob if key_type and blob and blob.startswith(named) else None


def _valid_key(fields: list[str]) -> bytes | None:
    try:
        serialization.load_ssh_public_key(" ".join(fields[:2]).encode())
    except (ValueError, UnsupportedAlgorithm):
        return None
    return _blob(" ".join(fields[:2]))


def _fingerprint(blob: bytes) -> str:
    digest = hashlib.sha256(blob).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _file_text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _public_part(path: Path) -> str | None:
    """The public key line of an identity: `<path>.pub`, or read out of the file itself."""
    beside = _file_text(path.with_name(path.name + ".pub"))
    if _blob(beside):
        return beside
    text = _file_text(path) or ""
    if _blob(text):
        return text
    if _OPENSSH in text:
        blob = _openssh_header(text)[1]  # readable even when the key is encrypted
        return f"{paramiko.Message(blob).get_text()} {base64.b64encode(blob).decode()}"
    try:
        key = serialization.load_pem_private_key(text.encode(), None)
        return (
            key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
        )
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


_OPENSSH = "BEGIN OPENSSH PRIVATE KEY"


def _openssh_header(text: str) -> tuple[str, bytes]:
    """Cipher and public key of an OpenSSH private key (PROTOCOL.key), which are never encrypted."""
    body = "".join(line for line in text.splitlines() if "-----" not in line)
    message = paramiko.Message((_decoded(body) or b"").removeprefix(b"openssh-key-v1\0"))
    cipher = message.get_text()
    message.get_text()  # key derivation: its name
    message.get_binary()  # and its options
    message.get_int()  # number of keys
    return cipher, message.get_binary()


def _key_kind(text: str) -> str:
    """private, public, encrypted, hardware (FIDO) or unknown: what pulumi-command would find."""
    if _OPENSSH in text:
        cipher, public = _openssh_header(text)
        if paramiko.Message(public).get_text().startswith("sk-"):
            return "hardware"
        return "private" if cipher == "none" else "encrypted" if cipher else "unknown"
    if "PRIVATE KEY-----" in text:
        return "encrypted" if "ENCRYPTED" in text else "private"
    return "public" if _blob(text) else "unknown"


# -- asking a host for its key, for the error message only -------------------------------------


def _scan(operator: Operator, host: str, port: int, proxy: Connection | None) -> str:
    """The "type base64" that the host shows, ed25519 before ECDSA; at most about 10 s."""
    with ssh.channel(host, port, proxy, operator) as channel, ssh.transport(channel, KEY_TYPES) as found:
        return ssh.host_key(found)
