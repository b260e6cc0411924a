"""A WireGuard device: the encrypted underlay of tunnels (wg(8), linux/wireguard.h).

A document names keys by their public halves. The private key lies in a file on the host, and a pre-shared key is a
reference to a secret; what is read back from the kernel is told in the same words, so that neither ever stands in a
line, a report, the journal or an error.
"""

from __future__ import annotations

import base64
import dataclasses
import ipaddress
import os
import socket
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import fields
from overlay_agent.fields import Difference
from overlay_agent.kinds.base import Device, DeviceKind, Listens, attribute, stack_of

if TYPE_CHECKING:
    from overlay_agent.document import Document
    from overlay_agent.kernel import Kernel, Link
    from overlay_agent.keys import Keys

_WG_CMD_GET_DEVICE, _WG_CMD_SET_DEVICE = 0, 1
_REMOVE_ME, _REPLACE_ALLOWED_IPS = 1, 2
#: As WireGuard tells that there is none.
_NO_KEY = base64.b64encode(bytes(32)).decode()
#: Peers in one request: an attribute has at most 64 KiB, and a peer takes a few hundred bytes.
_TOGETHER = 50


class PublicKey(fields.Type):
    """A key of 32 bytes in base64, as `wg` writes it. What is none is not shown: it may be a private one."""

    def check(self, value: Any) -> str | None:
        try:
            good = isinstance(value, str) and len(base64.b64decode(value, validate=True)) == 32 and len(value) == 44
        except ValueError:
            good = False
        return None if good else "is not a public key (44 characters of base64, as `wg pubkey` writes it)"


class Endpoint(fields.Type):
    """An address and a UDP port: 192.0.2.11:51820 or [2001:db8::11]:51820."""

    def check(self, value: Any) -> str | None:
        try:
            address, port = _endpoint(value)
            good = 1 <= port <= 65535 and (":" in address) == value.startswith("[") and "%" not in address
        except (AttributeError, TypeError, ValueError):
            good = False
        return None if good else f"{value!r} is not an endpoint, such as 192.0.2.11:51820 or [2001:db8::11]:51820"

    def normal(self, value: Any) -> Any:
        return _endpoint_text(*_endpoint(value))


_PEER = fields.Record(
    {
        "publicKey": PublicKey(),
        "endpoint": Endpoint(),
        # Exact: what comes from the peer has one of these source addresses, what is sent to them goes to it.
        "allowedIps": fields.Items(fields.Subnet()),
        "keepalive": fields.Integer(0, 65535),
        "presharedKey": fields.optional(fields.Secret()),
    },
    frozenset({"keepalive", "presharedKey"}),
)
_USUAL = {"keepalive": 0, "presharedKey": None}


class Peers(fields.Keyed):
    """Peers by name. The kernel knows their public keys, so those are what is compared; after a change of keys
    a peer is known by what it is allowed to send."""

    def __init__(self) -> None:
        super().__init__("peer", fields.Label(), _PEER)

    def normal(self, value: Any) -> Any:
        return {name: _normal(peer) for name, peer in value.items()}

    def differences(self, name: str, found: Any, wanted: Any) -> list[Difference]:
        found, wanted = self.normal(found), self.normal(wanted)
        rows: list[Difference] = []
        left = {peer["publicKey"]: peer for peer in found.values()}
        matched = {who: left.pop(peer["publicKey"], None) for who, peer in wanted.items()}
        for who, peer in sorted(wanted.items()):
            was = matched[who]
            if was is None:
                key = next((key for key, one in left.items() if one["allowedIps"] == peer["allowedIps"]), None)
                was = left.pop(key) if key else None
            if was is None:
                rows.append((f"peer {who}", None, _short(peer)))
                continue
            changed = [part for part in peer if was[part] != peer[part]]
            rows += [(f"peer {who} {part}", _said(was[part]), _said(peer[part])) for part in changed]
        names = {peer["publicKey"]: who for who, peer in found.items()}
        return rows + [(f"peer {names[key]}", _short(peer), None) for key, peer in sorted(left.items())]


@dataclasses.dataclass(frozen=True)
class Wireguard(Device):
    """One WireGuard device. Units: keepalive in seconds, 0: none. All of it can be set in place."""

    KIND: ClassVar[str] = "wireguard"

    #: Such a device has none.
    mac: str | None = attribute(fields.Nothing(), default=None)  # type: ignore[assignment]
    listen_port: int = attribute(fields.Integer(1, 65535))
    #: Of this host. The private key is the one whose public key this is.
    public_key: str = attribute(PublicKey())
    peers: dict[str, Any] = attribute(Peers(), default={})
    #: Mark of the packets that it sends; 0: none.
    fwmark: int = attribute(fields.Integer(0, 0xFFFFFFFF), default=0)


class WireguardKind(DeviceKind):
    """What is special about WireGuard devices."""

    name = "wireguard"
    spec = Wireguard
    modules = ("wireguard",)
    option = "CONFIG_WIREGUARD"
    #: Before the tunnels whose underlay it is.
    rank = 5

    def ends(self, spec: Wireguard, learned: Iterable[str] = ()) -> dict[str, Any]:
        return {_endpoint(peer["endpoint"])[0]: None for peer in spec.peers.values() if peer.get("endpoint")}

    def inside(self, spec: Wireguard) -> dict[str, tuple[str, Any]]:
        return {
            address.partition("/")[0]: (
                _endpoint(peer["endpoint"])[0],
                (spec.public_key, spec.listen_port, peer["publicKey"], peer.get("presharedKey")),
            )
            for peer in spec.peers.values()
            if peer.get("endpoint")
            for address in peer["allowedIps"]
        }

    def wrong(self, spec: Wireguard) -> list[str]:
        out = []
        if spec.bridge is not None:
            out.append("bridge: a WireGuard device carries IP packets, no Ethernet frames; leave it out")
        seen: dict[str, str] = {spec.public_key: "this host"}
        allowed: dict[Any, str] = {}
        for who, peer in sorted(spec.peers.items()):
            other = seen.setdefault(peer["publicKey"], who)
            if other != who:
                out.append(f"peers.{who}.publicKey: {peer['publicKey']!r} is {other}'s too; each has its own")
            for subnet in map(ipaddress.ip_network, peer["allowedIps"]):
                out += [
                    f"peers.{who}.allowedIps: {subnet} overlaps {one} of {allowed[one]}; each address is one peer's"
                    for one in allowed
                    if one.version == subnet.version and one.overlaps(subnet)
                ]
                allowed[subnet] = who
        return out

    def listens(self, spec: Wireguard) -> list[Listens]:
        peers = sorted(_endpoint(peer["endpoint"])[0] for peer in spec.peers.values())
        return [Listens("udp", spec.listen_port, tuple(peers))] if peers else []

    def still_ours(self, kernel: Kernel, name: str, stored: Mapping[str, Any]) -> bool:
        # An alias can be lost by hand; the key, which is the stack's alone, still tells.
        link = kernel.links.get(name)
        if not link or link.alias.startswith("overlay:") or link.kind != self.name or stored.get("kind") != self.name:
            return False
        return bool(_read(kernel, link)["public_key"] == stored.get("publicKey"))

    def wrong_here(self, kernel: Kernel, name: str, spec: Wireguard, wanted: Document) -> list[str]:
        out = super().wrong_here(kernel, name, spec, wanted)
        link = kernel.links.get(name)
        mine = link if link and link.kind == self.name else None
        found = _read(kernel, mine) if mine else {}
        if found.get("public_key") != spec.public_key and _keys(kernel).private(spec.public_key) is None:
            out.append(
                f"the private key of publicKey {spec.public_key} is not on this host ({_keys(kernel).folder}); raise "
                f"hosts.{wanted.host}.wireguard.keyGeneration, which makes a new one"
            )
        if found.get("listen_port") != spec.listen_port or not (mine and mine.up):
            from overlay_agent.sockets import listening  # noqa: PLC0415 - seldom needed

            if listening(socket.IPPROTO_UDP, spec.listen_port):
                out.append(
                    f"listenPort: UDP port {spec.listen_port} is taken on this host; set another: "
                    f"hosts.{wanted.host}.wireguard.port"
                )
        if any(":" in address for address in spec.addresses) and not _has_ipv6(name):
            out.append("addresses: this host has no IPv6; set net.ipv6.conf.default.disable_ipv6=0")
        return out

    def observe(self, kernel: Kernel, link: Link) -> Wireguard:
        spec: Wireguard = super().observe(kernel, link)
        return dataclasses.replace(spec, mac=None, **_read(kernel, link))

    def image(self, kernel: Kernel, name: str, mark: str) -> dict[str, Any]:
        link = kernel.links[name]
        private = base64.b64decode(_device(kernel, link)["WGDEVICE_A_PRIVATE_KEY"])
        if any(private):
            _keys(kernel).keep_found(private)
        return super().image(kernel, name, mark)

    def encode(self, field: str, value: Any, index: Mapping[str, int]) -> dict[str, Any]:
        return {}  # it is not set by the link's attributes

    def from_link(self, link: Link, name_of: Mapping[int, str]) -> dict[str, Any]:
        return {"listen_port": 0, "public_key": _NO_KEY}  # see observe

    def change_rest(self, kernel: Kernel, name: str, spec: Wireguard, found: Wireguard) -> None:
        # First the keys and peers: the device begins to speak when it is up.
        self._set(kernel, name, spec, found)
        super().change_rest(kernel, name, spec, found)

    def _set(self, kernel: Kernel, name: str, spec: Wireguard, found: Wireguard) -> None:
        device: list[tuple[str, Any]] = []
        if spec.public_key != found.public_key:
            private = bytes(32) if spec.public_key == _NO_KEY else _keys(kernel).wanted(spec.public_key)
            device.append(("WGDEVICE_A_PRIVATE_KEY", base64.b64encode(private)))
        if spec.listen_port != found.listen_port:
            device.append(("WGDEVICE_A_LISTEN_PORT", spec.listen_port))
        if spec.fwmark != found.fwmark:
            device.append(("WGDEVICE_A_FWMARK", spec.fwmark))
        have = {peer["publicKey"]: _normal(peer) for peer in found.peers.values()}
        want = {peer["publicKey"]: _normal(peer) for peer in spec.peers.values()}
        # What goes first makes room: an allowed address is one peer's.
        peers = [_peer_request(key, {}, _REMOVE_ME) for key in sorted(have.keys() - want.keys())]
        for key, peer in sorted(want.items()):
            was = have.get(key, {**_USUAL, "allowedIps": []})
            changed = {part: value for part, value in peer.items() if part != "publicKey" and was.get(part) != value}
            if key not in have or changed:
                if changed.get("presharedKey"):
                    changed["presharedKey"] = base64.b64encode(kernel.secrets.read(changed["presharedKey"]))
                peers.append(_peer_request(key, changed))
        while device or peers:
            request = [("WGDEVICE_A_IFINDEX", kernel.index_of[name]), *device]
            request += [("WGDEVICE_A_PEERS", peers[:_TOGETHER])] if peers else []
            kernel.generic(self.name).change(f"{name}: set keys and peers", _WG_CMD_SET_DEVICE, request)
            device, peers = [], peers[_TOGETHER:]

    def commands(self, name: str, spec: Wireguard, mark: str) -> list[list[str]]:
        made, *rest = super().commands(name, spec, mark)
        label = stack_of(mark)
        # The newest is the one in use.
        key = f'"$(ls -v /var/lib/overlay/keys/{label}/* | tail -n 1)"'
        head = ["sh", "-c", f"wg set {name} listen-port {spec.listen_port} private-key {key}"]
        mark_ = [["wg", "set", name, "fwmark", hex(spec.fwmark)]] if spec.fwmark else []
        peers = [_peer_words(name, peer, label) for _, peer in sorted(spec.peers.items())]
        return [made, head, *mark_, *peers, *rest]


# -- on the host ---------------------------------------------------------------------------------


def _keys(kernel: Kernel) -> Keys:
    from overlay_agent.keys import Keys  # noqa: PLC0415 - only on a host that has such a device

    return Keys(kernel.secrets.state, kernel.secrets.label)


def _has_ipv6(name: str) -> bool:
    for which in (name, "default"):
        path = f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6"
        if os.path.exists(path):
            with open(path, encoding="ascii") as file:
                return file.read().strip() == "0"
    return False


def _device(kernel: Kernel, link: Link) -> dict[str, Any]:
    """The attributes of a device, its peers under WGDEVICE_A_PEERS. The kernel answers in several messages, and one
    that begins within a peer repeats its key alone."""
    out: dict[str, Any] = {}
    peers: dict[str, dict[str, Any]] = {}
    answers = kernel.generic("wireguard").read(_WG_CMD_GET_DEVICE, {"WGDEVICE_A_IFINDEX": link.index})
    for answer in answers:
        for nla, value, *_ in answer["attrs"]:
            if nla != "WGDEVICE_A_PEERS":
                out.setdefault(nla, value.decode() if nla.endswith("_KEY") else value)
        for raw in answer.get_attr("WGDEVICE_A_PEERS") or []:
            found = {nla: value for nla, value, *_ in raw["attrs"]}
            key = found["WGPEER_A_PUBLIC_KEY"].decode()
            allowed = [one["addr"] for one in found.pop("WGPEER_A_ALLOWEDIPS", [])]
            peer = peers.setdefault(key, {"allowed": []})
            peer.update(found)
            peer["allowed"] += allowed
    return {"WGDEVICE_A_PRIVATE_KEY": _NO_KEY, **out, "WGDEVICE_A_PEERS": peers}


def _read(kernel: Kernel, link: Link) -> dict[str, Any]:
    """A spec's own fields as the kernel has them."""
    device = _device(kernel, link)
    peers = {}
    for key, raw in device["WGDEVICE_A_PEERS"].items():
        endpoint = raw.get("WGPEER_A_ENDPOINT")
        shared = base64.b64decode(raw.get("WGPEER_A_PRESHARED_KEY", _NO_KEY))
        peers[key] = {
            "publicKey": key,
            "endpoint": _endpoint_text(endpoint["addr"], endpoint["port"]) if endpoint else None,
            "allowedIps": raw["allowed"],
            "keepalive": raw.get("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", 0),
            "presharedKey": kernel.secrets.reference_of(shared) if any(shared) else None,
        }
    return {
        "listen_port": device["WGDEVICE_A_LISTEN_PORT"],
        "public_key": device.get("WGDEVICE_A_PUBLIC_KEY", _NO_KEY),
        "fwmark": device.get("WGDEVICE_A_FWMARK", 0),
        "peers": peers,
    }


def _peer_request(key: str, parts: Mapping[str, Any], flags: int = 0) -> dict[str, Any]:
    """A peer as WGDEVICE_A_PEERS takes it. Parts that are left out stay as they are."""
    attributes: list[tuple[str, Any]] = [("WGPEER_A_PUBLIC_KEY", key)]
    if "allowedIps" in parts:
        flags |= _REPLACE_ALLOWED_IPS
    attributes.append(("WGPEER_A_FLAGS", flags))
    if "presharedKey" in parts:
        attributes.append(("WGPEER_A_PRESHARED_KEY", parts["presharedKey"] or _NO_KEY))
    if parts.get("endpoint"):
        address, port = _endpoint(parts["endpoint"])
        attributes.append(("WGPEER_A_ENDPOINT", {"addr": address, "port": port}))
    if "keepalive" in parts:
        attributes.append(("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", parts["keepalive"]))
    if "allowedIps" in parts:
        attributes.append(("WGPEER_A_ALLOWEDIPS", [_allowed(subnet) for subnet in parts["allowedIps"]]))
    return {"attrs": attributes}


def _allowed(subnet: str) -> dict[str, Any]:
    network = ipaddress.ip_network(subnet)
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    parts = {
        "WGALLOWEDIP_A_FAMILY": family,
        "WGALLOWEDIP_A_IPADDR": network.network_address.packed,
        "WGALLOWEDIP_A_CIDR_MASK": network.prefixlen,
    }
    return {"attrs": list(parts.items())}


# -- words ---------------------------------------------------------------------------------------


def _peer_words(name: str, peer: Mapping[str, Any], label: str) -> list[str]:
    import shlex  # noqa: PLC0415 - only to explain

    peer = _normal(peer)
    out = ["wg", "set", name, "peer", peer["publicKey"], "endpoint", peer["endpoint"]]
    out += ["allowed-ips", ",".join(peer["allowedIps"])]
    out += ["persistent-keepalive", str(peer["keepalive"])] if peer["keepalive"] else []
    if peer["presharedKey"]:
        file = f"/var/lib/overlay/secrets/{label}/{peer['presharedKey']}"
        return ["sh", "-c", f"base64 {file} | {shlex.join(out)} preshared-key /dev/stdin"]
    return out


def _normal(peer: Mapping[str, Any]) -> dict[str, Any]:
    """The peer with all its parts, in one order."""
    allowed = sorted(str(ipaddress.ip_network(subnet)) for subnet in peer["allowedIps"])
    return {**_USUAL, **peer, "allowedIps": allowed}


def _short(peer: Mapping[str, Any]) -> str:
    """What tells a peer apart."""
    return f"{peer['endpoint'] or 'without an endpoint'} for {_said(peer['allowedIps'])}"


def _said(value: Any) -> Any:
    return ", ".join(value) or "nothing" if isinstance(value, list) else value


def _endpoint(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    if not port.isdigit():
        raise ValueError(port)
    return str(ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))), int(port)


def _endpoint_text(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


KIND = WireguardKind()
