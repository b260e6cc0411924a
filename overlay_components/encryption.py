"""Encrypted segments: their tunnels run inside a mesh of WireGuard, one device a host and stack.

Inside, a host has an IPv6 address of its own (RFC 4193), derived from the stack and the host alone, so that nobody's
address changes when hosts come and go. A tunnel of an encrypted segment gets these as its ends and knows no more of
it. Who are peers follows from the tunnels: a host has keys of, and takes packets from, whom it shares one with.
"""

from __future__ import annotations

import collections
import dataclasses
import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from overlay_agent import fields
from overlay_agent.kinds.wireguard import Wireguard
from overlay_components import model, names
from overlay_components.model import Checked
from overlay_components.names import Placeholder
from overlay_components.secrets import Secrets, Value
from overlay_components.tunnel import EVPN, MULTICAST, End, Tunnel

if TYPE_CHECKING:
    from overlay_components.config import Config
    from overlay_components.plan import Rule

NONE, WIREGUARD = "none", "wireguard"
PORT = 51820
#: What WireGuard adds inside the underlay's MTU, by its IP version: the outer IP header, UDP (8), and header (16)
#: and authentication tag (16) of a data message.
OVERHEAD = {4: 60, 6: 80}
#: RFC 8200: the addresses inside are IPv6's.
LEAST_MTU = 1280
_KIND = fields.Choice([NONE, WIREGUARD])
_Port = Annotated[int | None, Checked(fields.Integer(1, 65535))]


class EncryptionOptions(model.Model):
    """The stack's encryption."""

    kind: Annotated[str, Checked(_KIND)] = pydantic.Field(
        default=WIREGUARD, description="For every segment that does not say its own; none: only where one says so"
    )
    port: Annotated[int, Checked(fields.Integer(1, 65535))] = pydantic.Field(
        default=PORT, description="UDP port that WireGuard listens on"
    )
    keepalive: Annotated[int, Checked(fields.Integer(0, 65535))] = pydantic.Field(
        default=0, description="How often an idle host sends to its peers, seconds; 25 for hosts behind NAT; 0: never"
    )
    ifname: Annotated[str | None, Checked(fields.InterfaceName())] = pydantic.Field(
        default=None, description="The WireGuard device's name; default wg-<stack>"
    )
    preshared_key: Annotated[Value | None, Checked(fields.optional(model.SecretKey()))] = pydantic.Field(
        default=None, description="Pre-shared key of all pairs of hosts, a secret, as `wg genpsk` prints one"
    )


class HostOptions(model.Model):
    """A host's end of the encryption."""

    port: _Port = pydantic.Field(default=None, description="UDP port that it listens on; default: encryption.port")
    key_generation: Annotated[int, Checked(fields.Integer(1, 1_000_000))] = pydantic.Field(
        default=1, description="Raise it to give the host a new key"
    )


def _options(value: Any) -> EncryptionOptions:
    if isinstance(value, str):
        wrong = _KIND.check(value)
        if wrong:
            raise model.stop(wrong)
        return EncryptionOptions(kind=value)
    return model.read(EncryptionOptions, value)


_SCHEMA = {"anyOf": [{"enum": [NONE, WIREGUARD]}, EncryptionOptions.model_json_schema()]}
#: `wireguard`, or an object.
Options = Annotated[EncryptionOptions, pydantic.PlainValidator(_options), pydantic.WithJsonSchema(_SCHEMA)]
OfSegment = Annotated[str | None, Checked(fields.optional(_KIND))]


def key_of(host: str) -> Placeholder:
    """Stands for the host's public key until its own command has told it."""
    return Placeholder(f"<public key of {host}>")


def with_keys(raw: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """The document with the keys, by host, in their places."""
    devices = {
        name: _filled(spec, keys) if spec["kind"] == Wireguard.KIND else spec for name, spec in raw["devices"].items()
    }
    return {**raw, "devices": devices}


def spec_with_keys(spec: Any, keys: Mapping[str, str]) -> Any:
    """The same of a spec."""
    if not isinstance(spec, Wireguard):
        return spec
    return dataclasses.replace(spec, public_key=_filled(spec.public_key, keys), peers=_filled(spec.peers, keys))


def _filled(value: Any, keys: Mapping[str, str]) -> Any:
    by_place = {key_of(host): key for host, key in keys.items()}

    def filled(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: filled(inner) for key, inner in value.items()}
        return by_place.get(value, value) if isinstance(value, Placeholder) else value

    return filled(value)


def key_holders(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """By host, where it has keys: the hosts whose public keys its document has, itself the first."""
    out = {}
    for host, raw in documents.items():
        for spec in raw["devices"].values():
            if spec["kind"] == Wireguard.KIND:
                out[host] = [host, *spec.get("peers", {})]
    return out


class Encryption:
    """The WireGuard mesh of a stack, as far as its tunnels were looked up."""

    def __init__(self, config: Config, label: str, secrets: Secrets, wrong: list[str]) -> None:
        self._config, self._label, self._secrets, self._wrong = config, label, secrets, wrong
        self._options = config.encryption
        self.device = self._options.ifname or names.for_peer("wg", label.partition("/")[2])
        self._outside: dict[str, End] = {}
        #: By host: those that it shares an encrypted tunnel with.
        self._peers: dict[str, set[str]] = collections.defaultdict(set)
        #: Hosts with a tunnel that is not encrypted.
        self._plain: set[str] = set()
        self._prefix = int.from_bytes(b"\xfd" + names.digest("wireguard", label)[:5], "big") << 80

    def of(self, segment: Any) -> str:
        """Whether a segment is encrypted, and how."""
        return str(segment.encryption or self._options.kind)

    def inside(self, tunnel: Tunnel) -> Tunnel:
        """The tunnel between the addresses inside."""
        wrong = []
        if tunnel.options.topology == MULTICAST:
            wrong.append(
                f"{tunnel.where}.topology: 'multicast' in an encrypted segment; WireGuard carries none: write mesh"
            )
        if tunnel.options.topology == EVPN:
            wrong.append(
                f"{tunnel.where}.topology: 'evpn' in an encrypted segment; WireGuard needs to know each peer, so every "
                "host would have to know all others, and its addresses inside are IPv6's, which FRR does not take: "
                "write mesh"
            )
        wrong += [
            f"{tunnel.where}.endpoints: {end.name} is not managed, so no key of it is known; leave it out, or set "
            f"segments.{tunnel.segment}.encryption: none"
            for end in tunnel.ends.values()
            if not end.managed
        ]
        self._wrong += wrong
        if wrong:
            return tunnel
        for end in tunnel.ends.values():
            self._outside[end.name] = end
        for at in tunnel.attachments():
            self._peers[at.host.name].update(at.peers)
        version = tunnel.version
        return dataclasses.replace(tunnel, ends={name: self._end(end, version) for name, end in tunnel.ends.items()})

    def plain(self, tunnel: Tunnel) -> None:
        """Notes a tunnel that is not encrypted."""
        self._plain.update(tunnel.ends)

    def _end(self, end: End, version: int) -> End:
        address = self._address(end.name)
        return dataclasses.replace(
            end, address=address, local=address, device=self.device, encryption=OVERHEAD[end.version or version]
        )

    def _address(self, host: str) -> str:
        number = int.from_bytes(names.digest("wireguard", self._label, host)[:8], "big")
        return str(ipaddress.IPv6Address(self._prefix | number))

    def _port(self, host: str) -> int:
        return self._config.hosts[host].wireguard.port or self._options.port

    def devices(self) -> dict[str, Wireguard]:
        """The device of each host that has an encrypted tunnel. Adds to the errors."""
        out = {}
        first = next((end.version for end in self._outside.values() if end.version), 4)
        for host, peers in self._peers.items():
            if not peers:
                continue
            end = self._outside[host]
            over = OVERHEAD[end.version or first]
            size = (end.mtu or 0) - over
            if size < LEAST_MTU:
                self._wrong.append(
                    f"{end.where}.mtu: {end.mtu} less {over} (WireGuard over IPv{end.version or first}) leaves {size}; "
                    f"the addresses inside are IPv6's, which needs {LEAST_MTU}: an encrypted segment wants an underlay "
                    f"of {LEAST_MTU + over}"
                )
            if end.device and host not in self._plain:
                self._wrong.append(
                    f"{end.where}.underlay.device: {end.device!r}, but all tunnels of {host} are encrypted, and "
                    "WireGuard sends where the routing table says; leave it out"
                )
            out[host] = Wireguard(
                mtu=max(size, LEAST_MTU),
                addresses={f"{self._address(host)}/64": {}},
                listen_port=self._port(host),
                public_key=key_of(host),
                peers={peer: self._peer(host, peer) for peer in sorted(peers)},
            )
        return out

    def _peer(self, host: str, name: str) -> dict[str, Any]:
        address, port = self._outside[name].address, self._port(name)
        endpoint = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        out: dict[str, Any] = {
            "publicKey": key_of(name),
            "endpoint": endpoint if names.known(address) else Placeholder(f"{address}:{port}"),
            "allowedIps": [f"{self._address(name)}/128"],
        }
        if self._options.keepalive:
            out["keepalive"] = self._options.keepalive
        if self._options.preshared_key:
            out["presharedKey"] = self._secrets.refer(host, "presharedKey", self._options.preshared_key)
        return out

    def rule(self, host: str) -> Rule:
        """What packet filters must let in."""
        peers = {peer: self._outside[peer].address for peer in sorted(self._peers[host])}
        return {"protocol": "udp", "port": self._port(host), "peers": peers}
