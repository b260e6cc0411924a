"""A plan's worth of components: collects what is declared in a `with` block, and on leaving it
plans, checks everything at once, and registers one document command a host.

Hosts, bridges and tunnels only say what is wanted. They cannot act one by one: a tunnel's device on
one host needs the addresses of all others, and a host is to be changed once, as a whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import types
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypedDict

import pulumi
from pulumi import Input, Output, ResourceOptions, runtime
from pulumi.runtime.proto.engine_pb2_grpc import EngineStub
from pulumi_command import local
from typing_extensions import Required, Self

from overlay_agent.document import Owner
from overlay_components import _outputs, _project, _sdk, agent, component, config, connection, live, lock, repair
from overlay_components.bridge import Bridge
from overlay_components.component import Component, words
from overlay_components.config import Config
from overlay_components.dhcp_router import DhcpRouter
from overlay_components.encryption import key_holders
from overlay_components.errors import SECRET_KEYS, ConfigErrors
from overlay_components.host import Host
from overlay_components.lock import Lock
from overlay_components.names import Placeholder
from overlay_components.plan import Plan, make_plan
from overlay_components.rollout import Rollout, RolloutArgs
from overlay_components.secrets import Secrets

#: Makes the random id of a stack once; Pulumi's state keeps it (rule 9). Works on Linux and macOS.
MAKE_ID = "od -An -N8 -tx1 /dev/urandom | tr -d ' \\n'"
#: The same for the key of the references to secrets, see secrets.py.
MAKE_KEY = "od -An -v -N32 -tx1 /dev/urandom | tr -d ' \\n'"
#: By this exit code the language host knows that the user was told what is wrong.
_SAID_WHY = 32
#: Host keys that are not known yet are asked for so many hosts at a time.
_SCANS = 8


class EncryptionArgs(TypedDict, total=False):
    """Keys of `overlay:encryption` (docs/stack-file.md)."""

    kind: Literal["wireguard", "none"]
    port: int
    keepalive: int
    ifname: str
    preshared_key: Input[str]


class EvpnArgs(TypedDict, total=False):
    """Keys of `overlay:evpn` (docs/stack-file.md)."""

    asn: int
    route_reflectors: Required[Sequence[str]]
    range: str | Sequence[str]
    password: Input[str]
    bfd: bool
    port: int
    keepalive: int
    hold: int


class Overlay(pulumi.ComponentResource):
    """All overlay networks of one environment: `with Overlay("prod"): ...`.

    Leaving the block raises one pulumi.RunError with every error that was found. `peers`,
    `defaults`, `encryption`, `evpn`, `open_firewall` and `install_packages` are as in the stack file
    (docs/stack-file.md). `lock` has the addresses of containers that say none: a lock file's path, or addresses by
    segment and container (docs/containers.md).
    `live`: hosts are asked first, and what has drifted is shown and repaired (docs/operations.md).
    `rollout`: hosts are changed a few at a time, and after a failure no more of them (docs/operations.md).
    """

    def __init__(
        self,
        name: str,
        *,
        defaults: Mapping[str, Any] | None = None,
        peers: Mapping[str, Any] | None = None,
        open_firewall: bool | None = None,
        install_packages: bool | None = None,
        encryption: Literal["wireguard", "none"] | EncryptionArgs | None = None,
        evpn: EvpnArgs | None = None,
        lock: str | Path | Lock | None = None,
        live: bool | None = None,
        rollout: RolloutArgs | None = None,
        opts: ResourceOptions | None = None,
    ) -> None:
        _end_without_traceback()
        _sdk.collect_rarely()
        super().__init__("overlay:index:Overlay", name, {}, opts)
        self.name = name
        self.components: list[Component] = []
        self.raw: dict[str, Any] = words(
            {
                "defaults": defaults,
                "peers": peers,
                "open_firewall": open_firewall,
                "install_packages": install_packages,
                "encryption": words(encryption) if isinstance(encryption, Mapping) else encryption,
                "evpn": words(evpn) if isinstance(evpn, Mapping) else evpn,
                "rollout": words(rollout) if isinstance(rollout, Mapping) else rollout,
            }
        )
        self.lock = _lock(lock)
        self._live = repair.is_wanted(live)
        self._done = False
        self._plan: _outputs.Promise[Plan] = _outputs.Promise()
        #: The plan: `containers`, `segments`, `underlay_rules` and the documents.
        self.plan: Output[Plan] = self._plan.output
        #: Of the hosts that have WireGuard keys, once the block is left; None: no segment is encrypted.
        self.public_keys: Output[dict[str, str]] | None = None

    @classmethod
    def from_stack(cls, name: str | None = None) -> Overlay:
        """The Overlay that the current stack's file describes. Raises RunError with all its errors."""
        try:
            raw = config.from_pulumi({**runtime.config.get_config_env(), **runtime.config.CONFIG.get()})
            config.load_config(raw)
            locked = _project.lock_of_program(pulumi.get_root_directory(), pulumi.get_stack())
        except ConfigErrors as error:
            raise pulumi.RunError("\n".join(error.errors)) from None
        overlay = cls(
            name or pulumi.get_stack(),
            defaults=raw.get("defaults"),
            peers=raw.get("peers"),
            open_firewall=raw.get("openFirewall"),
            install_packages=raw.get("installPackages"),
            encryption=raw.get("encryption"),
            evpn=raw.get("evpn"),
            lock=locked,
            live=raw.get("live"),
            rollout=raw.get("rollout"),
        )
        with _sdk.light(), overlay:
            for host, values in raw["hosts"].items():
                Host(host, **values)
            for segment, values in (raw.get("segments") or {}).items():
                inner = dict(values or {})
                tunnels = inner.pop("tunnels", None) or {}
                router = "dhcp" in inner
                dhcp = inner.pop("dhcp", None) or {}
                bridge = Bridge(segment, **inner)
                for tunnel, options in tunnels.items():
                    made_by = config.TUNNELS[options["kind"]].component
                    made_by(f"{segment}-{tunnel}", bridge=bridge, **options)
                if router:
                    DhcpRouter(f"{segment}-dhcp", bridge=bridge, **dhcp)
        return overlay

    def declare(self, *path: str, value: Mapping[str, Any]) -> None:
        """Adds to what will be planned. Raises RunError for a name that stands there already."""
        at = self.raw
        for key in path[:-1]:
            at = at.setdefault(key, {})
        if path[-1] in at:
            raise pulumi.RunError(f"{'.'.join(path)}: declared twice; give one of them another name")
        at[path[-1]] = dict(value)

    def __enter__(self) -> Self:
        if component.open_block is not None:
            raise pulumi.RunError(
                f"Overlay {self.name!r}: entered inside of Overlay {component.open_block.name!r}; end that block first"
            )
        if self._done:
            raise pulumi.RunError(f"Overlay {self.name!r}: its block was left already; use a second Overlay")
        component.open_block = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        component.open_block, self._done = None, True
        try:
            if error is None:
                with _sdk.light():
                    self._register()
        except BaseException as failure:
            self._reject(failure)
            raise
        if error is not None:
            # Whoever waits for an output of ours would wait for ever.
            self._reject(error)

    def _reject(self, error: BaseException) -> None:
        self._plan.reject(error)
        for declared in self.components:
            declared.reject(error)

    def _register(self) -> None:
        stack = pulumi.get_stack()
        owner = Owner(pulumi.get_project(), stack if self.name == stack else f"{stack}.{self.name}", _ID)
        hosts = [c for c in self.components if isinstance(c, Host)]
        raw: Any = self.raw
        if _outputs.leaves(raw):
            known = _outputs.known_text(raw, _describe, _missing, lambda path: path[-1] in SECRET_KEYS)
            raw = _outputs.unless_stuck(known, self._stuck)
        shape = self._shape(owner) if _has_secrets(self.raw) or _is_encrypted(self.raw) else _Shape(set(), {})
        planned: Any
        if shape.have_secrets:
            # Not secret itself: of what is planned only the values are, and their command hides them.
            both = Output.all(raw, self._key()) if isinstance(raw, Output) else self._key().apply(lambda k: [raw, k])
            planned = both.apply(lambda b: _planned(b[0], owner, self.lock, b[1]))
        else:
            planned = _outputs.then(raw, lambda r: _planned(r, owner, self.lock, None))
        plan = _outputs.then(planned, lambda both: both.plan)
        connections = _outputs.then(planned, lambda both: both.connections)
        identity = local.Command(
            f"{self.name}-id",
            create=MAKE_ID,
            logging=local.Logging.NONE,
            # Whatever a later version writes here, the id must not be drawn again.
            opts=ResourceOptions(parent=self, ignore_changes=["*"]),
        )
        # The state has it from the first `up` on.
        stack_id = _outputs.known_text(identity.stdout, lambda _: _ID)
        archive = agent.archive()
        drifted = self._drifted(owner, hosts) if self._live else {}
        commands = {}
        for host in hosts:
            reached: Any
            if isinstance(connections, Output):
                own = _outputs.leaves(self.raw["hosts"][host.name]).values()
                reached = _outputs.part(connections, host.name, own)
            else:
                reached = connections[host.name]
            host.install(reached, owner, stack_id, archive)
        keys = {host.name: host.identify() for host in hosts if host.name in shape.key_holders}
        rollout = Rollout(self.raw.get("rollout"), [host.name for host in hosts])
        by_name = {host.name: host for host in hosts}
        for name in rollout.sorted(by_name):
            secrets = self._secrets_of(name, planned) if name in shape.have_secrets else None
            named = {other: keys[other] for other in shape.key_holders.get(name, ())}
            again = repair.update_text() if name in drifted else None
            commands[name] = by_name[name].register(plan, secrets, named, again, rollout.failed_before(name))
            rollout.add(name, commands[name])
        rollout.end()
        if keys:
            self.public_keys = Output.all(**keys)
            plan = Output.all(plan, self.public_keys).apply(lambda both: both[0].with_keys(both[1]))
        for declared in self.components:
            declared.settle(plan, commands)
        self._plan.keep(Output.from_input(plan))
        self.register_outputs({})
        _sdk.await_together()

    def _drifted(self, owner: Owner, hosts: list[Host]) -> Mapping[str, list[str]]:
        """What has drifted on which host; told to the user. Waits for the hosts: what is an update has to be known
        before it is registered."""
        found = repair.drifted(_outputs.with_placeholders(self.raw, _describe), owner)
        for host in hosts:
            if host.name in found:
                lines = "".join(f"\n{host.name} {line}" for line in found[host.name])
                pulumi.log.info(f"{host.name} has drifted; `pulumi up` repairs it:{lines}", resource=host)
        return found

    def _key(self) -> Output[str]:
        """The key of the references to secrets; a Placeholder in a preview before it is made. Not marked as secret."""
        made = local.Command(
            f"{self.name}-secrets-key",
            create=MAKE_KEY,
            logging=local.Logging.NONE,
            opts=ResourceOptions(parent=self, ignore_changes=["*"], additional_secret_outputs=["stdout"]),
        )
        return _outputs.known_text(Output.unsecret(made.stdout), lambda _: "<key>")

    def _shape(self, owner: Owner) -> _Shape:
        """Which hosts get what. Asked before anything is known: resources are not made within Outputs."""
        secrets = Secrets()
        try:
            checked = config.load_config(_outputs.with_placeholders(self.raw, _describe))
            documents = make_plan(checked, owner, self.lock, secrets).documents
        except ConfigErrors as error:
            if not _outputs.leaves(self.raw):
                raise pulumi.RunError("\n".join(error.errors)) from None
            # What is wrong may be that something is not known.
            hosts = list(self.raw["hosts"])
            return _Shape(
                set(hosts) if _has_secrets(self.raw) else set(),
                dict.fromkeys(hosts, hosts) if _is_encrypted(self.raw) else {},
            )
        return _Shape(set(secrets.of), key_holders(documents))

    def _secrets_of(self, host: str, planned: Output[Any]) -> Output[dict[str, str]]:
        return Output.secret(planned.apply(lambda p: p.secrets.get(host, {})))

    def _stuck(self) -> pulumi.RunError:
        paths = sorted(".".join(path) for path in _outputs.leaves(self.raw))
        return pulumi.RunError(
            f"{', '.join(paths)}: depends on an output of Overlay {self.name!r} itself, which waits for it; "
            "use a second Overlay"
        )


def _end_without_traceback() -> None:
    """Lets the engine end the program as it means to: by SIGINT, after it has said what failed. Python would
    answer with the event loop's traceback, below which nobody finds the error. Elsewhere (tests, the
    automation API, a program with its own handler) the signal is not ours."""
    run_by_engine = isinstance(runtime.settings.get_engine(), EngineStub)
    if run_by_engine and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, lambda *_: os._exit(_SAID_WHY))


#: Stands in for the stack's id until Pulumi's state has it.
_ID = Placeholder("<id of this stack>")


@dataclasses.dataclass(frozen=True)
class _Planned:
    plan: Plan
    connections: dict[str, Any]
    #: By host and reference, in hexadecimal digits.
    secrets: Mapping[str, dict[str, str]]


@dataclasses.dataclass(frozen=True)
class _Shape:
    """The hosts that get secret values; those that have keys, each with whose public keys its document names."""

    have_secrets: set[str]
    key_holders: dict[str, list[str]]


def _is_encrypted(raw: Mapping[str, Any]) -> bool:
    """Whether a segment may be encrypted."""
    return any("encryption" in (part or {}) for part in [raw, *(raw.get("segments") or {}).values()])


def _has_secrets(raw: Any) -> bool:
    """Whether a key with a secret value is anywhere in it."""
    if isinstance(raw, Mapping):
        return any((key in SECRET_KEYS and inner is not None) or _has_secrets(inner) for key, inner in raw.items())
    return isinstance(raw, (list, tuple)) and any(map(_has_secrets, raw))


def _lock(given: str | Path | Lock | None) -> Lock:
    if isinstance(given, (str, Path)) and not Path(given).is_file():
        raise pulumi.RunError(f"lock: {str(given)!r} is no file; name a lock file, or leave it out")
    try:
        return lock.load(given) if isinstance(given, (str, Path)) else lock.checked(given or {}, "lock")
    except ConfigErrors as error:
        raise pulumi.RunError("\n".join(error.errors)) from None


def _planned(raw: Mapping[str, Any], owner: Owner, locked: Lock, key: str | None) -> _Planned:
    """Plan and connections, or one RunError with everything that is wrong. `key`: of the references to secrets."""
    secrets = Secrets(None if isinstance(key, Placeholder) else key)
    try:
        checked = config.load_config(raw)
        plan = make_plan(checked, owner, locked, secrets)
    except ConfigErrors as error:
        raise pulumi.RunError("\n".join(error.errors)) from None
    connections = _connections(checked)
    for warning in [*plan.warnings, *_folded(connections)]:
        pulumi.log.warn(warning)
    return _Planned(plan, connections, dict(secrets.of))


def _connections(checked: Config) -> dict[str, Any]:
    """How each host is reached; None where that is not known yet."""
    operator = connection.Operator()
    problems: list[str] = []

    def one(host: config.ResolvedHost) -> Any:
        if isinstance(host.address, Placeholder) or isinstance(host.host_key, Placeholder):
            return None
        try:
            return live.reached(host, operator)
        except connection.ConnectionProblem as error:
            problems.extend(error.problems)
            return None

    hosts = checked.resolved_hosts()
    with ThreadPoolExecutor(_SCANS) as pool:
        found = dict(zip(hosts, pool.map(one, hosts.values()), strict=True))
    if problems:
        raise pulumi.RunError("\n".join(dict.fromkeys(problems)))
    return found


def _folded(connections: Mapping[str, connection.Connection | None]) -> list[str]:
    """The connections' warnings; what is said of several hosts once, of the first."""
    by_text: dict[str, list[str]] = {}
    for name, found in connections.items():
        for warning in found.warnings if found else ():
            by_text.setdefault(warning.replace(f"hosts.{name}", "hosts.*"), []).append(name)
    out = []
    for text, names in by_text.items():
        first = text.replace("hosts.*", f"hosts.{names[0]}")
        more = f" (and {len(names) - 1} more hosts)" if len(names) > 1 else ""
        out.append(first.replace(f"hosts.{names[0]}:", f"hosts.{names[0]}{more}:", 1))
    return out


_THINGS = {"address": "address", "hostKey": "host key", "mac": "MAC address"}


def _describe(path: _outputs.Path) -> str:
    """`<address of c>` for hosts.c.address."""
    *_, owner, key = ("", *path)
    return f"<{_THINGS.get(key, key)} of {owner}>"


def _missing(what: str) -> pulumi.RunError:
    return pulumi.RunError(
        f"{what}: not known, since what makes it takes no part in this run; name that in --target too, or leave it out"
    )
