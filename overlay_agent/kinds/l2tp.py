"""An Ethernet tunnel to one peer in L2TPv3 without its control protocol (RFC 3931; ip-l2tp(8)): a tunnel
and its one session, which is the network device.

Both ends are told the same by one declaration, so nothing is negotiated. As with `ip l2tp add session`
there is always the L2-specific sublayer (4 bytes): the kernel does not tell whether there is one, so a
choice of it could not be verified.
"""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from overlay_agent import STATE, fields, l2tp
from overlay_agent.errors import KernelError
from overlay_agent.fields import RECREATE, Difference
from overlay_agent.kinds.base import (
    Device,
    DeviceKind,
    Listens,
    attribute,
    optional,
    wrong_ends,
    wrong_underlay,
)

if TYPE_CHECKING:
    from overlay_agent.document import Document
    from overlay_agent.kernel import Kernel, Link
    from overlay_agent.secrets import Secrets

ID = fields.Integer(1, 0xFFFFFFFF)
PORT = fields.Integer(1, 65535)

# linux/l2tp.h: enum l2tp_encap_type, enum l2tp_pwtype
_ENCAPS = ["udp", "ip"]
_ETHERNET = 5
#: Of a switch for both ways that is on for one.
_SENT, _RECEIVED = "for what is sent", "for what is received"


def overhead(version: int, encap: str, cookie_bytes: int = 0) -> int:
    """What encapsulation adds inside the underlay's MTU: the outer IP header, with `udp` UDP (8) and the word
    that tells data from control (4), session id (4), cookie, sublayer (4) and the inner Ethernet header (14)."""
    return {4: 20, 6: 40}[version] + {"udp": 12, "ip": 0}[encap] + 4 + cookie_bytes + 4 + 14


@dataclasses.dataclass(frozen=True)
class L2tp(Device):
    """One tunnel with its session and device. Units: none."""

    KIND: ClassVar[str] = "l2tp"

    #: On this host; source of what is sent.
    local: str = attribute(fields.Address(), change=RECREATE)
    remote: str = attribute(fields.Address(), change=RECREATE)
    #: In UDP, or straight in IP (protocol 115).
    encap: str = attribute(fields.Choice(["udp", "ip"]), default="udp", change=RECREATE)
    #: Each end has its own ids, and knows its peer's.
    tunnel_id: int = attribute(ID, change=RECREATE)
    peer_tunnel_id: int = attribute(ID, change=RECREATE)
    session_id: int = attribute(ID, change=RECREATE)
    peer_session_id: int = attribute(ID, change=RECREATE)
    #: UDP ports; null with encap ip.
    local_port: int | None = attribute(optional(PORT), default=None, change=RECREATE)
    remote_port: int | None = attribute(optional(PORT), default=None, change=RECREATE)
    #: What stands in each packet sent, so that the peer can tell it from a forged one.
    cookie: str | None = attribute(optional(fields.Secret()), default=None, change=RECREATE)
    #: What has to stand in each packet that comes.
    peer_cookie: str | None = attribute(optional(fields.Secret()), default=None, change=RECREATE)
    #: Number the packets, and drop what comes out of order or without a number.
    sequencing: bool = attribute(fields.Flag(), default=False)
    udp_checksum: bool = attribute(fields.Flag(), default=True, change=RECREATE)


class L2tpKind(DeviceKind):
    """How it is made, by generic netlink."""

    name = l2tp.KIND
    spec = L2tp
    modules = ("l2tp_eth",)
    option = "CONFIG_L2TP_ETH"

    # -- pure -------------------------------------------------------------------------------

    def wrong(self, spec: L2tp) -> list[str]:
        out = wrong_ends(spec)
        for field, port in (("localPort", spec.local_port), ("remotePort", spec.remote_port)):
            if spec.encap == "udp" and port is None:
                out.append(f"{field}: missing; encap udp needs it")
            if spec.encap == "ip" and port is not None:
                out.append(f"{field}: {port} with encap ip, which has no ports; leave it out")
        if spec.encap == "ip" and not spec.udp_checksum:
            out.append("udpChecksum: only encap udp has it; leave it out")
        return out

    def tunnel_attributes(self, spec: L2tp) -> list[tuple[str, Any]]:
        """What makes the tunnel."""
        six = "6" if _version(spec) == 6 else ""
        out: list[tuple[str, Any]] = [
            ("CONN_ID", spec.tunnel_id),
            ("PEER_CONN_ID", spec.peer_tunnel_id),
            ("PROTO_VERSION", 3),
            ("ENCAP_TYPE", _ENCAPS.index(spec.encap)),
            (f"IP{six}_SADDR", spec.local),
            (f"IP{six}_DADDR", spec.remote),
        ]
        if spec.encap == "udp":
            out += [("UDP_SPORT", spec.local_port), ("UDP_DPORT", spec.remote_port)]
            sent, received = spec.udp_checksum in (True, _SENT), spec.udp_checksum in (True, _RECEIVED)
            if six:
                out += [] if sent else [("UDP_ZERO_CSUM6_TX", True)]
                out += [] if received else [("UDP_ZERO_CSUM6_RX", True)]
            elif sent:
                out.append(("UDP_CSUM", 1))
        return _named(out)

    def session_attributes(self, name: str, spec: L2tp, secrets: Secrets) -> list[tuple[str, Any]]:
        """What makes the session."""
        out: list[tuple[str, Any]] = [
            ("CONN_ID", spec.tunnel_id),
            ("SESSION_ID", spec.session_id),
            ("PEER_SESSION_ID", spec.peer_session_id),
            ("PW_TYPE", _ETHERNET),
            ("IFNAME", name),
            ("L2SPEC_TYPE", 1),
            # Else the kernel numbers packets or not as its peer does, and not as it was told.
            ("LNS_MODE", 1),
        ]
        out += [("COOKIE", secrets.read(spec.cookie))] if spec.cookie else []
        out += [("PEER_COOKIE", secrets.read(spec.peer_cookie))] if spec.peer_cookie else []
        return _named(out) + _sequencing(spec)

    def from_link(self, link: Link, name_of: Mapping[int, str]) -> dict[str, Any]:
        data = link.data
        recv, send = bool(data.get("RECV_SEQ")), bool(data.get("SEND_SEQ"))
        return {
            **_tunnel_fields(data),
            "session_id": data["SESSION_ID"],
            "peer_session_id": data["PEER_SESSION_ID"],
            "sequencing": send if send == recv else _SENT if send else _RECEIVED,
        }

    def making(self, name: str, spec: L2tp, mark: str) -> list[list[str]]:
        six = "6" if _version(spec) == 6 else ""
        out = [["modprobe", module] for module in ("l2tp_eth", *([f"l2tp_ip{six}"] if spec.encap == "ip" else []))]
        tunnel = ["ip", "l2tp", "add", "tunnel", "tunnel_id", str(spec.tunnel_id)]
        tunnel += ["peer_tunnel_id", str(spec.peer_tunnel_id), "encap", spec.encap]
        tunnel += ["local", spec.local, "remote", spec.remote]
        if spec.encap == "udp":
            tunnel += ["udp_sport", str(spec.local_port), "udp_dport", str(spec.remote_port)]
            switch = "on" if spec.udp_checksum else "off"
            tunnel += ["udp6_csum_tx", switch, "udp6_csum_rx", switch] if six else ["udp_csum", switch]
        session = ["ip", "l2tp", "add", "session", "name", name, "tunnel_id", str(spec.tunnel_id)]
        session += ["session_id", str(spec.session_id), "peer_session_id", str(spec.peer_session_id)]
        session += ["seq", "both"] if spec.sequencing else []
        label = mark[len("overlay:") :].rpartition("/")[0]
        cookies = {"cookie": spec.cookie, "peer_cookie": spec.peer_cookie}
        hidden = [
            f'{word} "$(od -An -v -tx1 {STATE}/secrets/{label}/{reference} | tr -d \' \\n\')"'
            for word, reference in cookies.items()
            if reference
        ]
        out += [tunnel, ["sh", "-c", " ".join([*session, *hidden])] if hidden else session]
        return [*out, ["ip", "link", "set", "dev", name, "mtu", str(spec.mtu), "address", spec.mac]]

    def overhead(self, spec: L2tp) -> int:
        # How long a cookie is, only its file says: 4 bytes or 8.
        return overhead(_version(spec), spec.encap, 4 if spec.cookie else 0)

    def ends(self, spec: L2tp, learned: Iterable[str] = ()) -> dict[str, Any]:
        return {spec.remote: tuple(getattr(spec, field.name) for field in self.own_fields())}

    def listens(self, spec: L2tp) -> list[Listens]:
        return [Listens("udp" if spec.encap == "udp" else "l2tp", spec.local_port, (spec.remote,))]

    # -- on the host ------------------------------------------------------------------------

    def find(self, kernel: Kernel, name: str, mark: str) -> L2tp | None:
        if name in kernel.links:
            its: L2tp | None = super().find(kernel, name, mark)
            return its
        tunnel, was = self._half_made(kernel, name, mark)
        if not tunnel:
            return None
        half: L2tp = dataclasses.replace(was, **_tunnel_fields(tunnel.data), session_id=None, peer_session_id=None)
        return half

    def _half_made(self, kernel: Kernel, name: str, mark: str) -> tuple[Any, Any]:
        """The tunnel that is there without its session's device, and the spec it was made by; (None, None)
        where there is none. It has no mark, so it is ours when we made one like it, as the store has it."""
        if all(tunnel.devices for tunnel in kernel.tunnels.values()):
            return None, None
        for spec in _declared(mark[len("overlay:") :].rpartition("/")[0]).get(name, []):
            tunnel = kernel.tunnels.get(spec.tunnel_id)
            if tunnel and not tunnel.devices and _like(tunnel.data, spec):
                return tunnel, spec
        return None, None

    def still_ours(self, kernel: Kernel, name: str, stored: Mapping[str, Any]) -> bool:
        spec = fields.as_found(L2tp, stored)
        tunnel = None if name in kernel.links else kernel.tunnels.get(spec.tunnel_id)
        half_made = tunnel and not tunnel.devices and _like(tunnel.data, spec)
        return bool(half_made) or super().still_ours(kernel, name, stored)

    def beside(self, kernel: Kernel, name: str, mark: str) -> list[Difference]:
        return super().beside(kernel, name, mark) if name in kernel.links else []

    def image(self, kernel: Kernel, name: str, mark: str) -> dict[str, Any]:
        if name in kernel.links:
            return super().image(kernel, name, mark)
        return {"mark": mark, "index": 0, "addresses": [], "ports": [], "routes": []}

    def put_back(self, kernel: Kernel, name: str, image: Mapping[str, Any], *, exactly: bool) -> list[str]:
        return super().put_back(kernel, name, image, exactly=exactly) if name in kernel.links else []

    def observe(self, kernel: Kernel, link: Link) -> L2tp:
        spec: L2tp = super().observe(kernel, link)
        cookies = {"cookie": link.data.get("COOKIE"), "peer_cookie": link.data.get("PEER_COOKIE")}
        found: Any = {
            field: kernel.secrets.reference_of(bytes.fromhex(value.replace(":", "")))
            for field, value in cookies.items()
            if value
        }
        return dataclasses.replace(spec, **found)

    def wrong_here(self, kernel: Kernel, name: str, spec: L2tp, wanted: Document) -> list[str]:
        out = super().wrong_here(kernel, name, spec, wanted)
        cookies: dict[str, int] = {}
        for field in ("cookie", "peer_cookie"):
            with suppress(KernelError):  # that a secret is not there is said elsewhere
                cookies[field] = len(kernel.secrets.read(getattr(spec, field))) if getattr(spec, field) else 0
        out += wrong_underlay(kernel, spec, wanted, overhead(_version(spec), spec.encap, cookies.get("cookie", 0)))
        out += [
            f"{fields.json_name(field)}: <secret> has {size} bytes; a cookie has 4 or 8"
            for field, size in cookies.items()
            if size not in (0, 4, 8)
        ]
        try:
            kernel.generic(l2tp.KIND)
        except KernelError:
            return [*out, _lacks("L2TP", "l2tp_eth", "CONFIG_L2TP, CONFIG_L2TP_V3 and CONFIG_L2TP_ETH")]
        for what, way, key in _ids(spec.encap, spec.tunnel_id, [spec.session_id], spec.local, spec.local_port):
            for holder in self._holders(kernel, wanted).get(key, []):
                # The kernel finds a session by its id alone where there is no UDP socket to tell tunnels apart.
                if key[0] == "session" and "ip" not in (spec.encap, holder.encap):
                    continue
                if holder.tunnel:
                    out.append(
                        f"{what} is taken on this host by tunnel {holder.tunnel} ({holder.name}), which is not ours; "
                        f"give each its own ({way}), or remove that one: ip l2tp del tunnel tunnel_id {holder.tunnel} "
                        f"(ip l2tp show tunnel lists them)"
                    )
                elif holder.name > name:
                    out.append(f"{what} is {holder.name}'s, too; give each its own ({way})")
        return out + _programs(kernel, spec)

    def _holders(self, kernel: Kernel, wanted: Document) -> dict[Any, list[_Holder]]:
        """Who will have what two tunnels of a host cannot both have, once the document is true: ours, and those
        of others that are here."""
        key, ours = f"l2tp of {wanted.owner.label}", wanted.owner.alias("")
        if key not in kernel.listings:
            holders: dict[Any, list[_Holder]] = {}
            for name, spec in wanted.devices.items():
                if isinstance(spec, L2tp):
                    holder = _Holder(name, spec.encap, 0)
                    ids = _ids(spec.encap, spec.tunnel_id, [spec.session_id], spec.local, spec.local_port)
                    for _, _, one in ids:
                        holders.setdefault(one, []).append(holder)
            half_made = self._all_half_made(kernel, wanted)
            for tunnel in kernel.tunnels.values():
                theirs = [name for name in tunnel.devices if not kernel.links[name].alias.startswith(ours)]
                others = [name for name in theirs if name not in wanted.adopt]
                if tunnel.id in half_made or (not others and len(tunnel.devices) == len(tunnel.sessions) > 0):
                    continue
                its = _tunnel_fields(tunnel.data)
                holder = _Holder(", ".join(others) or "no device", its["encap"], tunnel.id)
                sessions = [session["SESSION_ID"] for session in tunnel.sessions]
                for _, _, one in _ids(its["encap"], tunnel.id, sessions, its["local"], its["local_port"]):
                    holders.setdefault(one, []).append(holder)
            kernel.listings[key] = holders
        found: dict[Any, list[_Holder]] = kernel.listings[key]
        return found

    def _all_half_made(self, kernel: Kernel, wanted: Document) -> set[int]:
        """The ids of the stack's tunnels that are there without their sessions' devices."""
        if all(tunnel.devices for tunnel in kernel.tunnels.values()):
            return set()
        names = _declared(wanted.owner.label)
        found = (self._half_made(kernel, name, wanted.owner.alias(name))[0] for name in names)
        return {tunnel.id for tunnel in found if tunnel}

    def create(self, kernel: Kernel, name: str, spec: L2tp, mark: str, image: Mapping[str, Any]) -> None:
        from overlay_agent import host  # noqa: PLC0415 - kinds are also imported where there is none

        family = kernel.generic(l2tp.KIND)
        with _Hint(spec):
            what = f"{name}: create tunnel {spec.tunnel_id}"
            family.change(what, l2tp.TUNNEL_CREATE, self.tunnel_attributes(spec))
            if not spec.session_id:  # an undo of what was half made
                return
            what = f"{name}: create session {spec.session_id} in tunnel {spec.tunnel_id}"
            session = self.session_attributes(name, spec, kernel.secrets)
            family.change(what, l2tp.SESSION_CREATE, session)
        link = kernel.reread(name)
        tunnel = l2tp.Tunnel(spec.tunnel_id, l2tp.plain(self.tunnel_attributes(spec)))
        l2tp.note(kernel, tunnel, l2tp.plain(session), link)
        if link:
            host.wait_for_udev(link.index)
        kernel.set_label(name, mark, link_local=spec.link_local)
        made: Any = {"mtu": link.mtu, "mac": link.mac} if link else {}
        self.change_rest(kernel, name, spec, L2tp(**made, link_local=spec.link_local, up=False))

    def change(self, kernel: Kernel, name: str, spec: L2tp, found: L2tp, mark: str) -> None:
        if spec.sequencing != found.sequencing:
            ids = _named([("CONN_ID", spec.tunnel_id), ("SESSION_ID", spec.session_id)])
            what = f"{name}: change session {spec.session_id}"
            kernel.generic(l2tp.KIND).change(what, l2tp.SESSION_MODIFY, ids + _sequencing(spec))
        super().change(kernel, name, spec, found, mark)

    def removal(self, kernel: Kernel, name: str) -> str:
        return f"ip l2tp del tunnel tunnel_id {kernel.links[name].data['CONN_ID']}"

    def delete(self, kernel: Kernel, name: str, mark: str) -> None:
        link = kernel.links.get(name)
        if link and link.kind == self.name:
            tunnel = kernel.tunnels[link.data["CONN_ID"]]
            sessions = [one for one in tunnel.sessions if one["SESSION_ID"] == link.data["SESSION_ID"]]
        else:
            tunnel, _ = self._half_made(kernel, name, mark)
            sessions = tunnel.sessions if tunnel else []
        if tunnel:
            l2tp.remove(kernel, name, tunnel, sessions)


def _named(attributes: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [(f"L2TP_ATTR_{name}", value) for name, value in attributes]


def _sequencing(spec: L2tp) -> list[tuple[str, Any]]:
    on = spec.sequencing
    return _named([("RECV_SEQ", int(on in (True, _RECEIVED))), ("SEND_SEQ", int(on in (True, _SENT)))])


def _version(spec: L2tp) -> int:
    return ipaddress.ip_address(spec.local).version


def _tunnel_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """The spec's fields that the tunnel has."""
    encap = _ENCAPS[data["ENCAP_TYPE"]]
    if encap == "ip":
        checksum: Any = True
    elif "IP6_SADDR" in data:
        sent, received = "UDP_ZERO_CSUM6_TX" not in data, "UDP_ZERO_CSUM6_RX" not in data
        checksum = sent if sent == received else _SENT if sent else _RECEIVED
    else:
        checksum = bool(data.get("UDP_CSUM"))
    return {
        "local": data.get("IP_SADDR") or data.get("IP6_SADDR"),
        "remote": data.get("IP_DADDR") or data.get("IP6_DADDR"),
        "encap": encap,
        "tunnel_id": data["CONN_ID"],
        "peer_tunnel_id": data["PEER_CONN_ID"],
        "local_port": data.get("UDP_SPORT") if encap == "udp" else None,
        "remote_port": data.get("UDP_DPORT") if encap == "udp" else None,
        "udp_checksum": checksum,
    }


def _like(data: Mapping[str, Any], spec: L2tp) -> bool:
    """Whether that tunnel goes where the spec's does."""
    its = _tunnel_fields(data)
    return all(its[field] == getattr(spec, field) for field in ("local", "remote", "encap", "peer_tunnel_id"))


def _declared(label: str) -> dict[str, list[L2tp]]:
    """Every tunnel that the stack has or was about to have here, by name, as the store has them."""
    from overlay_agent import store  # noqa: PLC0415 - seldom needed, and not where the program imports this

    kept = store.Store()
    journal = kept.read_journal() or {}
    documents = [kept.read(label)] + [journal[key] for key in ("stored", "target") if journal.get("label") == label]
    out: dict[str, list[L2tp]] = {}
    for document in documents:
        for name, raw in (document or {}).get("devices", {}).items():
            if raw.get("kind") == L2tp.KIND:
                out.setdefault(name, []).append(fields.as_found(L2tp, raw))
    return out


@dataclasses.dataclass(frozen=True)
class _Holder:
    """One that has an id or a port: a device of the document, or a tunnel that is here and not ours."""

    name: str
    encap: str
    tunnel: int


def _ids(
    encap: str, tunnel_id: int, sessions: Iterable[Any], local: str, port: int | None
) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """What two tunnels of a host cannot both have: in words, where it is said in the stack file, and as a key."""
    yield f"tunnel id {tunnel_id}", "tunnelIds", ("tunnel", tunnel_id)
    for session in sessions:
        yield f"session id {session}", "sessionIds", ("session", session)
    if encap == "udp":
        yield f"UDP port {port} of {local}", "ports", ("port", local, port)


def _programs(kernel: Kernel, spec: L2tp) -> list[str]:
    """The program that has the tunnel's UDP port."""
    if spec.local_port is None:
        return []
    from overlay_agent import sockets  # noqa: PLC0415 - only on a host that has such tunnels

    if "udp sockets" not in kernel.listings:
        kernel.listings["udp sockets"] = sockets.listening(sockets.PROTOCOLS["udp"], 1, 65535)
    taken = [
        one for one in kernel.listings["udp sockets"] if one.port == spec.local_port and one.overlaps(spec.local)
    ]
    return [
        f"UDP port {spec.local_port} of {spec.local} is taken on this host by "
        f"{sockets.owner(one) or 'a program that is not seen from here'}; stop that, or set another (ports)"
        for one in taken[:1]
    ]


def _lacks(what: str, module: str, options: str) -> str:
    return (
        f"this kernel has no {what}: load its module (modprobe {module}; on some clouds it is in the package "
        f"linux-modules-extra), or boot a kernel built with {options}"
    )


class _Hint:
    """Says what the kernel's numbers mean here."""

    def __init__(self, spec: L2tp) -> None:
        self._spec = spec

    def __enter__(self) -> None:
        pass

    def __exit__(self, type_: object, error: BaseException | None, trace: object) -> None:
        spec = self._spec
        six = "6" if _version(spec) == 6 else ""
        hints = {
            errno.EADDRINUSE: f"UDP port {spec.local_port} of {spec.local} is taken; set another (ports)",
            errno.EEXIST: "its id is taken on this host; see ip l2tp show tunnel",
            errno.ENETUNREACH: f"this host has no route to {spec.remote}",
            errno.EHOSTUNREACH: f"this host has no route to {spec.remote}",
            errno.EPROTONOSUPPORT: (
                _lacks("Ethernet in L2TP", "l2tp_eth", "CONFIG_L2TP_ETH")
                if spec.encap == "udp"
                else _lacks("L2TP in IP", f"l2tp_ip{six}", "CONFIG_L2TP_IP and CONFIG_L2TP_ETH")
            ),
        }
        if isinstance(error, KernelError) and error.code in hints:
            raise KernelError(error.what, error.code, error.sentence, f"; {hints[error.code]}") from None


KIND = L2tpKind()
