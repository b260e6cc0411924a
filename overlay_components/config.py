"""What a user wrote in a stack file, checked: every error at once, each with its path in the file.

Here is what can be said of one key alone; what must hold between keys is plan.py's. The models are
the source of `schema/overlay-stack.schema.json`, which editors read
(`python -m overlay_components.config schema` writes it).
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml

from overlay_agent import fields
from overlay_components import (
    anycast,
    bridge,
    encryption,
    errors,
    evpn,
    gretap_tunnel,
    l2tp_tunnel,
    model,
    rollout,
    vxlan_tunnel,
)
from overlay_components.dhcp_router import DhcpOptions
from overlay_components.errors import ConfigErrors
from overlay_components.model import Checked, Model
from overlay_components.tunnel import End, TunnelKind, TunnelOptions

NAMESPACE = "overlay"
#: The registry of tunnel kinds: a new kind is a file beside vxlan_tunnel.py and a line here.
TUNNELS: dict[str, TunnelKind] = {kind.name: kind for kind in (vxlan_tunnel.KIND, gretap_tunnel.KIND, l2tp_tunnel.KIND)}

#: What runs containers, as far as the snippets know.
RUNTIMES = ("none", "lxc", "lxd", "incus", "docker")

_UNDERLAY_MTU = 1500
_Key = Annotated[str, Checked(model.Name())]
_Interface = Annotated[str | None, Checked(fields.InterfaceName())]
_Text = Annotated[str | None, Checked(model.Text())]
_MaybeAddress = Annotated[str | None, Checked(model.HostAddress())]
_Mtu = Annotated[int | None, Checked(fields.Integer(68, 65535))]
_NO_BRIDGE = "none"
#: Of a stack file: how deep it may be nested, and how many values it may have. One of 1,000 hosts has some 10,000.
_DEEPEST, _MOST = 32, 1_000_000
_ADOPT = "Take over bridges and tunnels of the same names that were made by hand, as they are"
_Encryption = encryption.Options
_SegmentEncryption = encryption.OfSegment
_Evpn = evpn.EvpnOptions
_Rollout = rollout.Options


def _described(default: Any, description: str) -> Any:
    return pydantic.Field(default=default, description=description)


# -- hosts -----------------------------------------------------------------------------------


class DefaultUnderlay(Model):
    """What all hosts have in common on the network between them."""

    device: _Interface = _described(None, "The interface towards the other hosts; multicast needs it")


class Underlay(DefaultUnderlay):
    """How the other hosts reach this one, where it is not simply its address."""

    address: _MaybeAddress = _described(None, "What the other hosts send to; default: the host's address")
    local: _MaybeAddress = _described(None, "What the host sends from (behind NAT); default: the same")


class Defaults(Model):
    """Keys that hold for every host that does not have its own."""

    user: _Text = _described(None, "SSH user; default: from ~/.ssh/config, else root")
    port: Annotated[int | None, Checked(fields.Integer(1, 65535))] = _described(None, "SSH port; default 22")
    identity_file: _Text = _described(None, "Private key on the operator's machine; an ssh-agent is preferred")
    proxy: _Text = _described(None, "Bastion to go through: [user@]host[:port]")
    mtu: _Mtu = _described(None, "MTU of the network between the hosts; default 1500")
    sudo: Annotated[bool | None, Checked(fields.Flag())] = _described(
        None, "Whether to become root by sudo; default: true unless the user is root"
    )
    underlay: DefaultUnderlay = _described(DefaultUnderlay(), "The network between the hosts")
    self_heal: Annotated[bool | None, Checked(fields.Flag())] = _described(
        None, "Whether the host itself looks every minute, and repairs what has drifted (needs systemd); default: false"
    )


class Host(Defaults):
    """A Linux machine that the stack manages over SSH."""

    address: Annotated[str, Checked(model.HostAddress())] = pydantic.Field(description="IPv4 or IPv6 address for SSH")
    host_key: Annotated[str | None, Checked(model.HostKey())] = _described(
        None, "SSH host key as in known_hosts, without the name; default: from known_hosts"
    )
    underlay: Underlay = _described(Underlay(), "How the other hosts reach this one")
    generation: Annotated[int, Checked(fields.Integer(1, 1_000_000))] = _described(
        1, "Raise it when the machine was replaced or reinstalled under the same name"
    )
    wireguard: encryption.HostOptions = _described(encryption.HostOptions(), "Its end of the encryption")
    force: Annotated[bool, Checked(fields.Flag())] = _described(
        False, "Remove devices although others, such as running containers, still use them"
    )
    adopt: Annotated[bool, Checked(fields.Flag())] = _described(False, f"{_ADOPT}, in all segments")
    macs: dict[Annotated[str, Checked(fields.InterfaceName())], Annotated[str, Checked(model.Mac())]] = _described(
        {}, "MAC addresses of the stack's bridges and tunnels on this host, by device; default: derived"
    )


class Peer(Model):
    """An end of tunnels that the stack does not manage: a router, another team's host."""

    address: Annotated[str, Checked(model.HostAddress())] = pydantic.Field(description="What the hosts send to")


@dataclasses.dataclass(frozen=True)
class ResolvedHost:
    """A host with the defaults filled in. None: not said in the stack file, so ~/.ssh/config may say it."""

    name: str
    address: str
    user: str | None
    port: int | None
    identity_file: str | None
    host_key: str | None
    proxy: str | None
    #: None: true unless the user turns out to be root.
    sudo: bool | None
    mtu: int
    underlay_address: str
    underlay_local: str
    underlay_device: str | None
    self_heal: bool = False


# -- segments --------------------------------------------------------------------------------


class Container(Model):
    """A container (or VM) on a segment."""

    host: _Key = pydantic.Field(description="The host that runs it")
    address: Annotated[str | None, Checked(model.OverlayAddress())] = _described(
        None, "Its address in the segment; default: the one that `overlay lock` chose"
    )
    mac: Annotated[str | None, Checked(model.Mac())] = _described(None, "Its MAC address; default: derived")
    runtime: Annotated[str | None, Checked(fields.Choice(RUNTIMES))] = _described(
        None, "What runs it, for the snippet in the outputs; default: none"
    )


def _bridge(value: Any) -> Any:
    return None if value == _NO_BRIDGE else model.read(bridge.OPTIONS, value)


def _tunnel(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise model.stop(f"{errors.shown(value)} is not an object; write at least kind: {next(iter(TUNNELS))}")
    kind = value.get("kind")
    if kind is None:
        raise model.stop(f"missing; {errors.instead('', TUNNELS)}", "kind")
    if not isinstance(kind, str) or kind not in TUNNELS:
        raise model.stop(f"{errors.shown(kind)} is not a kind of tunnel; {errors.instead(str(kind), TUNNELS)}", "kind")
    return model.read(TUNNELS[kind].options, value)


_BRIDGE_SCHEMA = {"anyOf": [{"const": _NO_BRIDGE}, bridge.OPTIONS.model_json_schema()]}
_TUNNEL_SCHEMA = {
    "oneOf": [
        {**schema, "properties": {**schema["properties"], "kind": {"const": name}}}
        for name, kind in TUNNELS.items()
        for schema in [kind.options.model_json_schema()]
    ]
}
_Tunnel = Annotated[TunnelOptions, pydantic.PlainValidator(_tunnel), pydantic.WithJsonSchema(_TUNNEL_SCHEMA)]
_Bridge = Annotated[
    bridge.BridgeOptions | None, pydantic.PlainValidator(_bridge), pydantic.WithJsonSchema(_BRIDGE_SCHEMA)
]
_GATEWAY_SCHEMA = {"anyOf": [{"type": "string"}, anycast.GatewayOptions.model_json_schema()]}
_Gateway = Annotated[
    str | anycast.GatewayOptions | None,
    pydantic.PlainValidator(anycast.read),
    pydantic.WithJsonSchema(_GATEWAY_SCHEMA),
]
_HostAddresses = Annotated[list[str], Checked(model.OneOrMore(model.OverlayAddress()))]


class Segment(Model):
    """One overlay network: a bridge on each of its hosts, the tunnels between them, its IP plan."""

    hosts: list[_Key] | None = _described(None, "Its hosts (and peers); default: all hosts")
    subnets: list[Annotated[str, Checked(model.Subnet())]] = _described([], "IPv4 and IPv6 subnets")
    addresses: dict[_Key, _HostAddresses] = _described({}, "Addresses of the hosts in the segment, by host")
    bridge: _Bridge = _described(bridge.OPTIONS(), "The bridge; none: the addresses stand on the tunnel's device")
    mtu: _Mtu = _described(None, "Default: the most that the tunnels carry on every host")
    gateway: _Gateway = _described(
        None,
        "What containers route through: an address, a host (its first address), a container of the segment, none, or "
        "anycast: each its own host; default: the host of a DHCP router that translates addresses",
    )
    reserved: list[Annotated[str, Checked(model.OverlayAddress())]] = _described([], "Addresses to keep free")
    tunnels: dict[_Key, _Tunnel] = _described({}, "What joins the hosts")
    encryption: _SegmentEncryption = _described(
        None, "wireguard: the tunnels run inside of WireGuard; none; default: as overlay:encryption says, else none"
    )
    containers: dict[_Key, Container] = _described({}, "Containers by name")
    isolate_host: Annotated[bool, Checked(fields.Flag())] = _described(
        False, "Whether what is on the segment is kept off its hosts, but for DHCP, DNS and ping"
    )
    adopt: Annotated[bool, Checked(fields.Flag())] = _described(False, f"{_ADOPT}, on all of its hosts")
    # `dhcp:` with nothing below it is a router with all defaults.
    dhcp: Annotated[DhcpOptions | None, pydantic.BeforeValidator(lambda value: value or {})] = _described(
        None, "DHCP, DNS, NAT and port forwarding for the segment"
    )
    routes: dict[Annotated[str, Checked(model.Subnet())], Annotated[str, Checked(model.Text())]] = _described(
        {}, "Other subnets and what leads there: a host, a container, a peer, an address: {10.20.0.0/24: b}"
    )


class Config(Model):
    """A stack file's `overlay:` keys."""

    defaults: Defaults = _described(Defaults(), "Keys for every host that does not have its own")
    hosts: dict[_Key, Host] = _described({}, "The machines that are managed, by name")
    peers: dict[_Key, Peer] = _described({}, "Ends of tunnels that are not managed, by name")
    segments: dict[_Key, Segment] = _described({}, "The overlay networks, by name")
    encryption: _Encryption = _described(
        encryption.EncryptionOptions(kind=encryption.NONE),
        "wireguard: all segments' tunnels run inside of WireGuard; an object for its settings",
    )
    evpn: _Evpn | None = _described(None, "BGP between the hosts of tunnels with topology: evpn")
    open_firewall: Annotated[bool, Checked(fields.Flag())] = _described(
        False, "Whether the hosts' firewalls are opened for the tunnels, for the peers' addresses only"
    )
    install_packages: Annotated[bool, Checked(fields.Flag())] = _described(
        False, "Whether packages that a host's services need and that it lacks are installed there (Debian, Ubuntu)"
    )
    live: Annotated[bool, Checked(fields.Flag())] = _described(
        False, "Whether preview and up ask the hosts first, and repair what differs from what was applied"
    )
    rollout: _Rollout | None = _described(
        None, "How changes are rolled out: a canary first, then batches of hosts; default: all hosts at the same time"
    )

    def resolved_hosts(self) -> dict[str, ResolvedHost]:
        """Every host with the defaults filled in."""
        return {name: _resolved(name, host, self.defaults) for name, host in self.hosts.items()}

    def ends(self) -> dict[str, End]:
        """Every host and unmanaged peer as tunnels see them."""
        managed = {
            name: End(name, f"hosts.{name}", h.underlay_address, h.underlay_local, h.underlay_device, h.mtu)
            for name, h in self.resolved_hosts().items()
        }
        others = {
            name: End(name, f"peers.{name}", peer.address, peer.address, managed=False)
            for name, peer in self.peers.items()
        }
        return {**others, **managed}


def _resolved(name: str, host: Host, defaults: Defaults) -> ResolvedHost:
    def first(key: str, last: Any = None) -> Any:
        values = (getattr(host, key), getattr(defaults, key))
        return next((value for value in values if value is not None), last)

    user, sudo = first("user"), first("sudo")
    address = host.underlay.address or host.address
    return ResolvedHost(
        name=name,
        address=host.address,
        user=user,
        port=first("port"),
        identity_file=first("identity_file"),
        host_key=host.host_key,
        proxy=first("proxy"),
        sudo=user != "root" if sudo is None and user is not None else sudo,
        mtu=first("mtu", _UNDERLAY_MTU),
        underlay_address=address,
        underlay_local=host.underlay.local or address,
        underlay_device=host.underlay.device or defaults.underlay.device,
        self_heal=first("self_heal", False),
    )


# -- loading ---------------------------------------------------------------------------------


def load_config(raw: Mapping[str, Any]) -> Config:
    """The checked stack file. `raw`: its `overlay:` keys without the prefix. Raises ConfigErrors with every error."""
    _check_size(raw)
    try:
        config = Config.model_validate(raw)
    except pydantic.ValidationError as error:
        raise ConfigErrors([f"{model.path_text(path)}: {text}" for path, text in model.wrongs(error)]) from None
    if not config.hosts:
        raise ConfigErrors(["hosts: missing; declare at least one, such as a: {address: 192.0.2.11}"])
    return config


def _check_size(raw: Mapping[str, Any]) -> None:
    """Neither nested without end nor, by anchors within anchors, of more values than memory holds: what looks at all
    of it, if only to show it in an error, would not come back. Raises ConfigErrors."""
    seen: dict[int, tuple[int, int]] = {}
    wrong = []
    for key, value in raw.items():
        where = model.path_text([str(key)])
        try:
            _, values = _measured(value, 1, seen)
        except _TooDeepError:
            wrong.append(f"{where}: nested over {_DEEPEST} deep; write what docs/stack-file.md shows")
            continue
        if values > _MOST:
            wrong.append(f"{where}: has {values} values; at most {_MOST} are taken")
    if wrong:
        raise ConfigErrors(wrong)


class _TooDeepError(Exception):
    pass


def _measured(value: Any, depth: int, seen: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How deep and how many values. `seen`: what is known already, as YAML's anchors let one object stand in many
    places, also in itself."""
    if not isinstance(value, (Mapping, list, tuple)):
        return 1, 1
    if id(value) not in seen:
        if depth > _DEEPEST:
            raise _TooDeepError
        inner = [_measured(one, depth + 1, seen) for one in (value.values() if isinstance(value, Mapping) else value)]
        seen[id(value)] = 1 + max((high for high, _ in inner), default=0), 1 + sum(count for _, count in inner)
    high, count = seen[id(value)]
    if depth + high > _DEEPEST:
        raise _TooDeepError
    return high, count


def from_pulumi(values: Mapping[str, Any]) -> dict[str, Any]:
    """The `overlay:` keys of a Pulumi configuration (`pulumi.runtime.config`), where objects are JSON text. Other
    namespaces are left out. Raises ConfigErrors for text that is neither JSON nor YAML."""
    raw: dict[str, Any] = {}
    wrong: list[str] = []
    for name, value in values.items():
        namespace, _, key = name.partition(":")
        if namespace == NAMESPACE and key:
            try:
                raw[key] = _parsed(value) if isinstance(value, str) else value
            except ConfigErrors as error:
                wrong += [f"{key}: {sentence}" for sentence in error.errors]
    if wrong:
        raise ConfigErrors(wrong)
    return raw


def read_stack_file(path: str | Path) -> dict[str, Any]:
    """The `overlay:` keys of a file Pulumi.<stack>.yaml, read as Pulumi reads them. Raises ConfigErrors."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigErrors([f"{path}: cannot be read ({error}); it is a stack's Pulumi.<stack>.yaml"]) from None
    try:
        content = _yaml(text)
    except ConfigErrors as error:
        raise ConfigErrors([f"{path}: {sentence}" for sentence in error.errors]) from None
    values = content.get("config") if isinstance(content, dict) else None
    if not isinstance(values, dict):
        raise ConfigErrors([f"{path}: has no `config:` with `overlay:...` keys below it; begin with `config:`"])
    return from_pulumi({str(key): value for key, value in values.items()})


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _yaml(text)


def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigErrors([f"{line}{error.problem or error.context}; mend the YAML there"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigErrors([f"not YAML ({' '.join(str(error).split())}); mend it"]) from None


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # C where there is one
    """YAML as Pulumi reads it (1.2: `on` and 52:54:00:12:34:56 are text), with a key twice being an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """The object, after looking for keys that stand twice."""
        seen: set[Any] = set()
        for key, _value in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


#: Plain words that are not text (YAML 1.2 core schema, with 1.1's octal numbers as Pulumi takes them).
_PLAIN_WORDS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", "-+.0123456789"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "merge": (r"<<", "<"),
}
_Loader.yaml_implicit_resolvers = {}
for _word, (_pattern, _first) in _PLAIN_WORDS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_word}", re.compile(f"^(?:{_pattern})$"), list(_first))


# -- JSON Schema -----------------------------------------------------------------------------

SCHEMA = Path(__file__).parent.parent / "schema" / "overlay-stack.schema.json"


def schema() -> dict[str, Any]:
    """The JSON Schema of a file Pulumi.<stack>.yaml; what other Pulumi configuration it has is left alone."""
    made = Config.model_json_schema()
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Stack file of the overlay project (Pulumi.<stack>.yaml)",
        "type": "object",
        "properties": {
            "config": {
                "type": "object",
                "properties": {f"{NAMESPACE}:{key}": value for key, value in made["properties"].items()},
                # A key of ours that does not exist is an error; other namespaces are not ours to judge.
                "propertyNames": {"not": {"pattern": f"^{NAMESPACE}:(?!({'|'.join(made['properties'])})$)"}},
            }
        },
        "required": ["config"],
        "definitions": made["$defs"],
    }


def schema_text() -> str:
    """The schema as its file holds it."""
    return json.dumps(schema(), indent=2).replace("#/$defs/", "#/definitions/") + "\n"


def main(arguments: list[str]) -> int:
    """`python -m overlay_components.config schema`: writes the schema file."""
    if arguments != ["schema"]:
        sys.stderr.write("usage: python -m overlay_components.config schema\n")
        return 2
    SCHEMA.parent.mkdir(exist_ok=True)
    SCHEMA.write_text(schema_text(), encoding="utf-8")
    sys.stderr.write(f"wrote {SCHEMA}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
