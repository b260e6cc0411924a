"""A host, and the commands that make its document true there.

Resources a host, one after another and side by side with other hosts': the agent's file, what takes
the agent away at the end, its installation, and the document. A change of the network touches the
last one alone.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import pulumi
from pulumi import FileAsset, Input, Output, ResourceOptions
from pulumi_command import remote
from typing_extensions import Unpack

from overlay_agent import COMMAND, document
from overlay_agent.document import Owner
from overlay_components import _outputs
from overlay_components.component import Component, applied, words
from overlay_components.connection import Connection
from overlay_components.encryption import key_of, with_keys
from overlay_components.names import Placeholder

#: The provider counts failures: three dials in all (remote/connection.go in pulumi-command).
DIAL_ERRORS = 2
DIAL_SECONDS = 10


class UnderlayArgs(TypedDict, total=False):
    """How other hosts reach this one, where that is not its address."""

    address: Input[str]
    local: Input[str]
    device: str


class WireguardArgs(TypedDict, total=False):
    """A host's end of the encryption."""

    port: int
    key_generation: int


class HostArgs(TypedDict, total=False):
    """Keys of `overlay:hosts.<name>` (docs/stack-file.md)."""

    address: Input[str]
    user: str
    port: int
    identity_file: str
    host_key: Input[str]
    proxy: str
    mtu: int
    sudo: bool
    underlay: UnderlayArgs
    wireguard: WireguardArgs
    generation: int
    force: bool
    self_heal: bool
    adopt: bool
    macs: Mapping[str, Input[str]]


class Host(Component):
    """A Linux machine reached over SSH. Its name is its identity: another name is another host.

    Outputs: `ready`, true once its document is applied; `plan`, its devices by name.
    """

    def __init__(self, name: str, opts: ResourceOptions | None = None, **args: Unpack[HostArgs]) -> None:
        values = words(args)
        if isinstance(values.get("wireguard"), dict):
            values["wireguard"] = words(values["wireguard"])
        super().__init__("Host", name, values, opts)
        self.overlay.declare("hosts", name, value=values)
        self._args = values

    @property
    def ready(self) -> Output[bool]:
        """True once its document is applied."""
        return self.promised("ready")

    @property
    def plan(self) -> Output[dict[str, Any]]:
        """Its devices by name, once they are there."""
        return self.promised("plan")

    def install(self, connection: Input[Connection], owner: Owner, stack_id: Output[str], archive: Path) -> None:
        """Registers the commands that bring the agent, `archive`, and take it away. `stack_id`: known text."""
        full = f"{self.overlay.name}-{self.name}"
        opts = ResourceOptions(parent=self, deleted_with=self.opts.deleted_with)
        # Each stack has its own: what one removes must not be what another still needs.
        file = f".overlay-agent-{owner.project}-{owner.stack}.pyz"
        arguments = _outputs.then(connection, _arguments)
        texts = _outputs.then(connection, lambda c: self._texts(c, file, archive.stem))
        common: dict[str, Any] = {
            "connection": arguments,
            # The environment would have to be allowed by each host's sshd; nothing of ours needs it.
            "add_previous_output_in_env": False,
            "logging": remote.Logging.STDERR,
        }
        generation = self._args.get("generation", 1)
        copy = remote.CopyToRemote(
            f"{full}-agent",
            connection=arguments,
            source=FileAsset(str(archive)),
            remote_path=file,
            # The provider copies again only for another file or path, so a host that was made anew
            # has to be told apart by what it is reached at.
            triggers=[_outputs.then(connection, lambda c: [c.host, c.port, c.user, c.host_key]), generation],
            opts=opts,
        )
        force = {"force": True} if self._args.get("force") else {}
        request = {
            "schema": document.SCHEMA_VERSION,
            "host": self.name,
            "generation": generation,
            "owner": vars(owner),
            **force,
        }
        # Runs nothing until it is deleted, and then takes away all that the stack has there: also what a
        # first document left that failed and is not in the state. No part of the installation, which a rebuilt
        # host repeats as a new resource: the old one's delete would look for the machine that is gone.
        about = stack_id.apply(lambda id_: _text(request, id_))
        uninstall = remote.Command(
            f"{full}-uninstall",
            delete=texts["uninstall"],
            stdin=about,
            opts=ResourceOptions.merge(opts, ResourceOptions(depends_on=[copy])),
            **common,
        )
        install = remote.Command(
            f"{full}-install",
            create=texts["install"],
            update=texts["update"],
            stdin=about,
            triggers=[generation],
            opts=ResourceOptions.merge(opts, ResourceOptions(depends_on=[uninstall])),
            **common,
        )
        told = _outputs.known_text(install.stdout, lambda _: f"<machine id of {self.name}>")
        asks = {key: value for key, value in request.items() if key != "force"}
        self._installed = _Installed(install, common, texts, Output.all(stack_id, told), asks)

    def identify(self) -> Output[str]:
        """Registers the command that makes the host's key, after `install`. The public key, as known text. Nothing
        takes the private one away again: the agent does, when no document of the stack names it any more."""
        generation = self._args.get("wireguard", {}).get("keyGeneration", 1)
        command = self._command("identity", lambda request: {**request, "generation": generation})
        return _outputs.known_text(command.stdout, lambda _: key_of(self.name)).apply(
            lambda said: said if isinstance(said, Placeholder) else json.loads(said)["publicKey"]
        )

    def register(
        self,
        plan: Input[Any],
        secrets: Output[dict[str, str]] | None = None,
        keys: Mapping[str, Output[str]] | None = None,
        repair: str | None = None,
        failed_before: Output[list[pulumi.Resource]] | None = None,
    ) -> remote.Command:
        """Registers the command that applies the host's document, after `install`. `secrets`: the values that the
        document refers to, marked as secret; `keys`: the public keys that it names, by host; `repair`: what to run
        although nothing was changed (repair.py); `failed_before`: what there must be none of (rollout.py)."""
        before = []
        if secrets is not None:
            # Nothing takes them away again: the agent does, when no document of the stack refers to them any more.
            before.append(self._command("secrets", lambda request, values: {**request, "secrets": values}, secrets))
        force = {"force": True} if self._args.get("force") else {}

        def document_of(request: Mapping[str, Any], plan_: Any, keys_: Mapping[str, str]) -> dict[str, Any]:
            raw = with_keys(plan_.documents[self.name], keys_)
            return {**raw, **force, "owner": request["owner"], "machine": request["machine"]}

        own = {"update": repair} if repair else {}
        kept = [] if repair else ["update"]  # an earlier repair's text stays, and nothing runs
        return self._command(
            "document",
            document_of,
            plan,
            Output.all(**(keys or {})),
            before=before,
            own=own,
            ignore=kept,
            failed_before=failed_before,
        )

    def _command(
        self,
        what: str,
        about: Callable[..., Mapping[str, Any]],
        *parts: Any,
        before: Sequence[pulumi.Resource] = (),
        own: Mapping[str, Any] | None = None,
        ignore: list[str] | None = None,
        failed_before: Output[list[pulumi.Resource]] | None = None,
    ) -> remote.Command:
        """A command that gets `about(request, *parts)` on standard input, with who asks whom."""
        at = self._installed

        def text(known: list[Any]) -> str:
            (id_, said), *rest = known
            machine = said if isinstance(said, Placeholder) else json.loads(said)["machine"]
            return _text(about({**at.request, "machine": machine}, *rest), id_)

        after: Any = [at.installation, *before]
        return remote.Command(
            f"{self.overlay.name}-{self.name}-{what}",
            create=at.texts[what],
            stdin=Output.all(at.known, *parts).apply(text),
            opts=ResourceOptions(
                parent=self,
                deleted_with=self.opts.deleted_with,
                depends_on=failed_before.apply(lambda failed: [*after, *failed]) if failed_before else after,
                ignore_changes=ignore,
            ),
            **at.common,
            **(own or {}),
        )

    def _texts(self, connection: Connection, file: str, version: str) -> dict[str, str]:
        """The commands. `file` lies in the user's home, which nobody else can write to: sudo runs it.
        `version` does nothing but make the installation run again for another agent."""
        said: bool | None = self._args.get("sudo", self.overlay.raw.get("defaults", {}).get("sudo"))
        sudo = "sudo -n " if (connection.user != "root" if said is None else said) else ""
        file = shlex.quote(file)  # an Overlay's name is in it
        # Each writes to one of its two streams: the provider collects both in one buffer without a lock and, if they
        # come at the same moment, ends with a panic, and with it all that runs (seen once; pulumi-command 1.2.1,
        # docs/adr/0012). So no report is asked for that nobody reads.
        return {
            "install": f"{sudo}sh {file} install  # {version}",
            "update": f"{sudo}sh {file} install known  # {version}",
            # Runs long after it was written: on a host that lost the agent, or never got it.
            "uninstall": f"test ! -x {COMMAND} || {sudo}{COMMAND} uninstall >/dev/null && rm -f {file}",
            "identity": f"{sudo}{COMMAND} identity",
            "secrets": f"{sudo}{COMMAND} secrets >/dev/null",
            "document": f"{sudo}{COMMAND} apply >/dev/null",
        }

    def settle(self, plan: Output[Any], commands: Mapping[str, Any]) -> None:
        """See Component.settle."""
        done: Output[str] = commands[self.name].stdout
        self.keep("ready", lambda: applied([commands[self.name]]))
        self.keep("plan", lambda: Output.all(plan, done).apply(lambda both: both[0].documents[self.name]["devices"]))
        # No outputs are registered: the engine would write the whole state once more for each host.


@dataclasses.dataclass(frozen=True)
class _Installed:
    """What a host's commands have in common, once the agent is there."""

    installation: remote.Command
    common: Mapping[str, Any]
    texts: Any
    #: The stack's id, and what the installation said.
    known: Output[list[Any]]
    request: Mapping[str, Any]


def _arguments(connection: Connection) -> Mapping[str, Any]:
    """The connection as the provider takes it. An ssh-agent is found by SSH_AUTH_SOCK, never by a
    path in the state, so that what a connection is does not differ by log-in.

    Not a dict: of each value in one the SDK makes Outputs, for each command again, a third of the program's time."""
    out: dict[str, Any] = {
        "host": connection.host,
        "port": connection.port,
        "user": connection.user,
        "host_key": connection.host_key,
        "dial_error_limit": DIAL_ERRORS,
        "per_dial_timeout": DIAL_SECONDS,
    }
    if connection.private_key:
        out["private_key"] = connection.private_key
    if connection.proxy:
        out["proxy"] = _arguments(connection.proxy)
    return types.MappingProxyType(out)


def _text(raw: Mapping[str, Any], id_: str) -> str:
    """The document's text with the stack's id."""
    return document.dump({**raw, "owner": {**raw["owner"], "id": id_}})
