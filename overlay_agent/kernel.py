"""The kernel's side: reads and changes devices, addresses, forwarding entries and routes.

The only module that knows pyroute2. It takes pyroute2's message classes (the attribute tables)
and not its IPRoute socket: importing those takes a fifth of the time (docs/adr/0002), and the
agent's start is what most applies spend their time on. What is left to do here is to send
requests and to raise the kernel's own sentence when it refuses one (NLMSGERR_ATTR_MSG).
"""

from __future__ import annotations

import dataclasses
import errno
import importlib.machinery
import ipaddress
import os
import socket
import struct
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from overlay_agent.errors import KernelError
from overlay_agent.secrets import Secrets

if TYPE_CHECKING:
    from overlay_agent.genl import Family


def _prepare_pyroute2() -> None:
    """Registers pyroute2 without running its __init__, which imports all of its protocols, and in
    place of its settings, which import multiprocessing and platform, the few that are read here."""
    found = importlib.machinery.PathFinder.find_spec("pyroute2")
    if "pyroute2" in sys.modules or not found or not found.submodule_search_locations:
        return
    package, settings = types.ModuleType("pyroute2"), types.ModuleType("pyroute2.config")
    package.__path__ = list(found.submodule_search_locations)
    vars(settings).update(AF_BRIDGE=7, data_plugins_pkgs=[], data_plugins_path=[])
    vars(package)["config"] = settings
    sys.modules.update({"pyroute2": package, "pyroute2.config": settings})


_prepare_pyroute2()

from pyroute2.netlink import nla  # noqa: E402 - after the line above
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # noqa: E402
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # noqa: E402
from pyroute2.netlink.rtnl.ndmsg import ndmsg  # noqa: E402

# linux/netlink.h, linux/rtnetlink.h, linux/if.h, linux/neighbour.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x4, 0x10
NLM_F_DUMP, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND, NLM_F_REPLACE = 0x300, 0x200, 0x400, 0x800, 0x100
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_CAPPED, NLM_F_ACK_TLVS, NLMSGERR_ATTR_MSG = 0x100, 0x200, 1
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_GETRULE, FRA_IIFNAME, FRA_OIFNAME = 34, 3, 17
AF_BRIDGE = 7
IFF_UP, IFF_LOWER_UP = 1, 1 << 16
#: IFLA_OPERSTATE of a device that sends; not all drivers say more (RFC 2863).
_SENDING = ("UP", "UNKNOWN")
NLA_F_NESTED = 0x8000
ARPHRD_ETHER = 1
NTF_SELF, NUD_PERMANENT, NUD_NOARP = 2, 0x80, 0x40
NUD_REACHABLE, NUD_PROBE = 0x02, 0x10
RTPROT_KERNEL, RTPROT_RA, RTM_F_CLONED, RTNH_F_ONLINK = 2, 9, 0x200, 4
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY = 1, 4, 5, 6
RTA_MULTIPATH, RTA_CACHEINFO, RTA_TABLE, RTA_PREF, RTA_EXPIRES = 9, 12, 15, 20, 23
RT_TABLE_MAIN, RT_TABLE_LOCAL, RTN_UNICAST = 254, 255, 1
RTEXT_FILTER_SKIP_STATS = 8
ADDR_GEN_EUI64, ADDR_GEN_NONE = 0, 1
IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_CACHEINFO, IFA_FLAGS = 1, 2, 3, 6, 8
IFA_F_TEMPORARY, IFA_F_NODAD, IFA_F_DEPRECATED, IFA_F_PERMANENT = 0x01, 0x02, 0x20, 0x80
#: Of an address's flags those that whoever adds it says: home address, temporary ones beside it, no route of its
#: own, multicast joined with it.
IFA_F_SAID = 0x10 | 0x100 | 0x200 | 0x400
SCOPE_LINK = 253
#: INFINITY_LIFE_TIME (net/addrconf.h).
FOREVER = 0xFFFFFFFF
#: What is said of a device, or by a kernel, on which IPv6 is off.
_NO_IPV6 = (errno.EACCES, errno.ENXIO, errno.EOPNOTSUPP, errno.EAFNOSUPPORT)
# linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
NETLINK_NETFILTER, NFT_MSG_GETCHAIN = 12, 10 << 8 | 4
NFTA_CHAIN_TABLE, NFTA_CHAIN_POLICY, NF_DROP = 1, 5, 0
#: Tables of nftables: ours begin so, and everything else belongs to others; firewalld's chains drop by rules.
OUR_TABLES, FIREWALLD = "overlay-", "firewalld"
#: The tables of the old iptables, which nft does not show.
OLD_TABLES = ("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names")
#: Requests sent together. Bounded, so that their answers fit into the socket's buffer.
BATCH = 200
#: Shows that the module is there, without which no host has a tunnel of L2TP's.
L2TP_LOADED = "/sys/module/l2tp_netlink"


_vxlan: Any = ifinfmsg.ifinfo.data_map["vxlan"]


class _Vxlan(_vxlan):  # type: ignore[misc]
    """pyroute2 0.9.7 has two of the attributes in another form than the kernel: the flow label is
    big-endian, and TTL_INHERIT is an empty flag in requests but a byte in answers."""

    nla_map = tuple(
        (name, {"IFLA_VXLAN_LABEL": "be32", "IFLA_VXLAN_TTL_INHERIT": "cdata"}.get(name, form))
        for name, form in _vxlan.nla_map
    )

    class port_range(nla):  # type: ignore[misc]  # noqa: N801 - pyroute2 finds the class by the attribute's word
        fields = (("low", ">H"), ("high", ">H"))


_gre: Any = ifinfmsg.ifinfo.data_map["gretap"]


class _Gretap(nla):  # type: ignore[misc]
    """The flags are big-endian numbers. Not made from pyroute2's class: what that has learned of its own map when it
    read a `gre` device, it hands on."""

    prefix = "IFLA_"

    nla_map = tuple((name, "be16" if form == "gre_flags" else form) for name, form in _gre.nla_map)


class _Ip6Gretap(nla):  # type: ignore[misc]
    """The same attributes, which linux/if_tunnel.h calls the same, with other addresses."""

    prefix = "IFLA_"

    nla_map = tuple((name, "ip6addr" if form == "ip4addr" else form) for name, form in _Gretap.nla_map)


ifinfmsg.ifinfo.register_link_kind(module={"vxlan": _Vxlan, "gretap": _Gretap, "ip6gretap": _Ip6Gretap})


@dataclasses.dataclass
class Link:
    """One network device as the kernel has it. `data` and `port` are by netlink attribute name."""

    name: str
    index: int
    kind: str
    mac: str
    mtu: int
    up: bool
    alias: str
    master: int
    link_local: bool
    data: dict[str, Any]
    port: dict[str, Any]
    #: ARPHRD_* (linux/if_arp.h).
    type: int = ARPHRD_ETHER
    #: Whether it has a carrier and sends.
    running: bool = False


@dataclasses.dataclass(frozen=True)
class Held:
    """One address that a device holds, without link-local ones of IPv6. `text`: its whole message, as
    hexadecimal text. `seconds`: how long it is valid; None: for ever. `temporary`: the kernel made it for
    privacy (RFC 8981), and makes another."""

    address: str
    text: str
    seconds: int | None
    temporary: bool


@dataclasses.dataclass(frozen=True)
class FdbEntry:
    """One entry of a device's own forwarding table: frames for `mac` go to the VTEP `dst`."""

    mac: str
    dst: str | None
    permanent: bool


@dataclasses.dataclass(frozen=True)
class Route:
    """One route of the main table. `via`: the next hop, in words where it has none or where `set_route`
    would not have made it so. `text`: its whole message, as hexadecimal text."""

    subnet: str
    via: str
    metric: int
    protocol: int
    devices: tuple[str, ...]
    text: str


class Netlink:
    """One netlink socket in the current network namespace. `after_request` is called after each request
    that changes something (tests kill the agent there)."""

    def __init__(self, protocol: int, after_request: Callable[[], None] | None = None) -> None:
        self.after_request = after_request
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._socket.bind((0, 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            with suppress(OSError):  # before Linux 4.20: errors without a sentence, dumps unfiltered
                self._socket.setsockopt(SOL_NETLINK, option, 1)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def reached(self) -> None:
        """Marks the end of a request that changed something."""
        if self.after_request:
            self.after_request()

    def all(self, type_: int, message: bytes) -> list[bytes]:
        """The messages of a dump. Raises KernelError."""
        return self._dump_raw(type_, message)

    def _change(self, what: str, type_: int, messages: list[Any], flags: int = 0) -> None:
        # A test that kills the agent after each request needs them one by one.
        size = 1 if self.after_request else BATCH
        for start in range(0, len(messages), size):
            self._exchange(what, type_, messages[start : start + size], NLM_F_ACK | flags)
            self.reached()

    def _dump(self, type_: int, message: Any) -> Iterator[Any]:
        return (_decoded(type(message), body) for body in self._dump_raw(type_, message))

    def _dump_raw(self, type_: int, message: Any) -> list[bytes]:
        for _ in range(5):
            found, interrupted = [], False
            self._send(type_, [message], NLM_F_DUMP)
            for answer_type, flags, body in self._answers():
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if answer_type == NLMSG_DONE:
                    break
                if answer_type == NLMSG_ERROR:
                    _raise(f"dump {type_}", body)
                found.append(body)
            if not interrupted:
                return found
        raise KernelError(f"dump {type_}", errno.EINTR, "the table changed at each of 5 attempts to read it; try again")

    def _exchange(self, what: str, type_: int, messages: list[Any], flags: int) -> list[Any]:
        """Sends requests together and reads the answer to each. Raises the first refusal, after
        all answers were read, so that the socket is in step again."""
        first = self._sequence + 1
        self._send(type_, messages, flags)
        refusal: KernelError | None = None
        found: list[Any] = []
        waiting = set(range(first, first + len(messages)))
        answers = self._answers(with_sequence=True)
        while waiting:
            answer_type, sequence, body = next(answers)
            waiting.discard(sequence)
            if answer_type == NLMSG_ERROR:
                try:
                    _raise(what, body)
                except KernelError as error:
                    refusal = refusal or error
            else:
                found.append(_decoded(type(messages[0]), body))
        if refusal:
            raise refusal
        return found

    def _send(self, type_: int, messages: list[Any], flags: int) -> None:
        out = bytearray()
        for message in messages:
            self._sequence += 1
            if isinstance(message, bytes):
                head = (16 + len(message), type_, NLM_F_REQUEST | flags, self._sequence, 0)
                out += struct.pack("=IHHII", *head) + message
                continue
            message["header"] = {
                "type": type_,
                "flags": NLM_F_REQUEST | flags,
                "sequence_number": self._sequence,
                "pid": 0,
            }
            message.reset()
            message.encode()
            out += message.data
        self._socket.send(out)

    def _answers(self, with_sequence: bool = False) -> Iterator[tuple[int, int, bytes]]:
        while True:
            data = self._socket.recv(1 << 18)
            offset = 0
            while offset < len(data):
                length, type_, flags, sequence = struct.unpack_from("=IHHI", data, offset)
                yield type_, sequence if with_sequence else flags, data[offset : offset + length]
                offset += (length + 3) & ~3


class Kernel(Netlink):
    """Devices, addresses, forwarding entries and routes of the current network namespace.

    `links` holds every device, read once by `refresh` and kept up to date by the requests of this
    object.
    """

    def __init__(self, after_request: Callable[[], None] | None = None) -> None:
        super().__init__(socket.NETLINK_ROUTE, after_request)
        self._generic: dict[str, Any] = {}
        #: The secret values of the stack at hand; none until whoever knows the stack sets it.
        self.secrets = Secrets()
        self.links: dict[str, Link] = {}
        self.name_of: dict[int, str] = {}
        self.index_of: dict[str, int] = {}
        #: What other programs of the host listed in this look, by program; whoever changes it takes it out.
        self.listings: dict[str, Any] = {}
        #: What iptables and ip6tables listed; whoever changes it takes it out. Whoever looks again takes it over: it
        #: costs more than all the rest of a look, and nobody else's change of it is to be found.
        self.filters: dict[str, list[str] | None] = {}
        #: L2TP's tunnels, by id (l2tp.py).
        self.tunnels: dict[int, Any] = {}
        self._addresses: dict[int, list[str]] = {}
        self._deprecated: set[tuple[int, str]] = set()
        self._deleted_routes: set[str] = set()
        self.refresh()

    def close(self) -> None:
        super().close()
        for family in self._generic.values():
            family.close()

    def generic(self, name: str) -> Family:
        """The family of generic netlink of that name, as genl.FAMILIES has it. Raises KernelError where its module
        is not loaded."""
        from overlay_agent.genl import Family  # noqa: PLC0415 - costs 5 ms, and few hosts need it

        if name not in self._generic:
            self._generic[name] = Family(name, self.after_request)
        family: Family = self._generic[name]
        return family

    # -- reading ----------------------------------------------------------------------------

    def refresh(self) -> None:
        """Reads all devices and addresses anew."""
        self.links, self.name_of, self.index_of, self._addresses, self.listings = {}, {}, {}, {}, {}
        self._deprecated = set()
        request = ifinfmsg()
        request["attrs"] = [("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)]
        for message in self._dump(RTM_GETLINK, request):
            link = _link(message)
            self.links[link.name] = link
            self.name_of[link.index] = link.name
            self.index_of[link.name] = link.index
        self.tunnels = {}
        if os.path.isdir(L2TP_LOADED):
            from overlay_agent import l2tp  # noqa: PLC0415 - costs 5 ms, and few hosts have any

            l2tp.look(self)
        for message in self._dump(RTM_GETADDR, ifaddrmsg()):
            address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if message["scope"] != SCOPE_LINK:
                spelled = str(ipaddress.ip_interface(f"{address}/{message['prefixlen']}"))
                self._addresses.setdefault(message["index"], []).append(spelled)
                if ~message["flags"] & (IFA_F_DEPRECATED | IFA_F_PERMANENT) == 0:
                    self._deprecated.add((message["index"], spelled))

    def addresses(self, link: Link) -> list[str]:
        """The device's addresses with prefix length, without link-local ones of IPv6."""
        return self._addresses.get(link.index, [])

    def is_deprecated(self, link: Link, address: str) -> bool:
        """Whether the device holds that address for good and does not send from it while it has others (RFC 4862,
        section 5.5.4). IPv6."""
        return (link.index, address) in self._deprecated

    def device_with(self, address: str) -> Link | None:
        """The device that holds the address."""
        wanted = ipaddress.ip_address(address)
        for index, addresses in self._addresses.items():
            if any(ipaddress.ip_interface(a).ip == wanted for a in addresses):
                return self.links[self.name_of[index]]
        return None

    def ports(self, bridge: str) -> list[str]:
        """The devices that are ports of the bridge."""
        index = self.index_of.get(bridge)
        return sorted(link.name for link in self.links.values() if index and link.master == index)

    def fdb(self, link: Link) -> list[FdbEntry]:
        """The device's own forwarding table (not the bridge's)."""
        request = ndmsg()
        request["family"], request["ifindex"] = AF_BRIDGE, link.index
        return [
            FdbEntry(m.get_attr("NDA_LLADDR"), m.get_attr("NDA_DST"), bool(m["state"] & NUD_PERMANENT))
            for m in self._dump(RTM_GETNEIGH, request)
            if m["ifindex"] == link.index and m["flags"] & NTF_SELF
        ]

    def routes(self, index: int) -> list[str]:
        """Routes through the device that somebody made (not the kernel for an address of its own),
        each as the hexadecimal text of its netlink message: whatever a route can have is kept."""
        found = self._routes(index)
        return [route.text(route.flags & RTNH_F_ONLINK) for route in found if route.protocol != RTPROT_KERNEL]

    def routes_to_move(self, index: int) -> list[str]:
        """Routes through the device that do not come and go with its addresses by the kernel's own doing, as `routes`
        gives them; also those that the kernel would have made, since programs make such too."""
        return [
            route.leased() if route.protocol == RTPROT_RA else route.text(route.flags & RTNH_F_ONLINK)
            for route in self._routes(index)
            if route.table != RT_TABLE_LOCAL and route.data[7] == RTN_UNICAST and not route.is_link_local
        ]

    def _routes(self, index: int) -> list[_Route]:
        # With strict checking the kernel itself leaves out other devices' routes; older ones send all.
        request = struct.pack("=BBBBBBBBI", 0, 0, 0, 0, 0, 0, 0, 0, 0) + struct.pack("=HHI", 8, RTA_OIF, index)
        found = [_Route(body[16:]) for body in self._dump_raw(RTM_GETROUTE, request)]
        return [route for route in found if not route.flags & RTM_F_CLONED and index in route.devices()]

    def drop_routes(self, name: str) -> None:
        """Removes what `routes_to_move` would find."""
        for route in self._movable(self.index_of[name]):
            self.delete_route(name, route.text(0))

    def _movable(self, index: int) -> list[_Route]:
        return [
            route
            for route in self._routes(index)
            if route.table != RT_TABLE_LOCAL and route.data[7] == RTN_UNICAST and not route.is_link_local
        ]

    def rules_naming(self, device: str) -> list[str]:
        """The policy routing rules (ip-rule(8)) that name the device."""
        found = []
        for body in self._dump_raw(RTM_GETRULE, struct.pack("=BBBBBBBBI", 0, 0, 0, 0, 0, 0, 0, 0, 0)):
            rule = _Route(body[16:])
            for type_, start, end in rule.attributes():
                word = {FRA_IIFNAME: "iif", FRA_OIFNAME: "oif"}.get(type_)
                if word and rule.data[start:end].rstrip(b"\0").decode() == device:
                    found.append(f"{word} {device}")
        return found

    def held(self, name: str) -> list[Held]:
        """The device's addresses, from a fresh look, in the kernel's order."""
        index = self.index_of[name]
        request = struct.pack("=BBBBI", 0, 0, 0, 0, index)
        found = [_Held(body[16:]) for body in self._dump_raw(RTM_GETADDR, request)]
        return [one.seen() for one in found if one.index == index and not one.is_link_local]

    def hold(self, name: str, text: str, *, label: bool) -> None:
        """Gives the device an address that `held` read. `label`: with the label that it had there."""
        one = _Held(bytes.fromhex(text))
        data, flags = one.request(self.index_of[name], label=label), NLM_F_CREATE | NLM_F_REPLACE
        self._change(f"{name}: add address {one.seen().address}", RTM_NEWADDR, [data], flags)

    def let_go(self, name: str, text: str) -> None:
        """Takes an address that `held` read from the device; one that is gone already is no error."""
        one = _Held(bytes.fromhex(text))
        try:
            data = one.request(self.index_of[name], label=False)
            self._change(f"{name}: remove address {one.seen().address}", RTM_DELADDR, [data])
        except KernelError as error:
            if error.code != errno.EADDRNOTAVAIL:
                raise

    def ask_neighbour(self, name: str, address: str, *, doubt: bool) -> bool:
        """Whether the neighbour has answered of late (NUD_REACHABLE); one that is known and has not is asked.
        `doubt`: it is asked in any case, and what it answered so far is nothing."""
        wanted = ipaddress.ip_address(address)
        request = ndmsg()
        request["family"] = socket.AF_INET if wanted.version == 4 else socket.AF_INET6
        for row in self._dump(RTM_GETNEIGH, request):
            if row["ifindex"] != self.index_of.get(name) or ipaddress.ip_address(row.get_attr("NDA_DST")) != wanted:
                continue
            if row["state"] & NUD_REACHABLE and not doubt:
                return True
            mac, busy = row.get_attr("NDA_LLADDR"), NUD_PERMANENT | NUD_NOARP | NUD_PROBE
            if mac and not row["state"] & busy:
                request["ifindex"], request["state"] = row["ifindex"], NUD_PROBE
                request["attrs"] = [("NDA_DST", address), ("NDA_LLADDR", mac)]
                with suppress(KernelError):  # it may be gone meanwhile
                    self._exchange(f"{name}: ask {address}", RTM_NEWNEIGH, [request], NLM_F_ACK | NLM_F_REPLACE)
        return False

    def main_routes(self) -> list[Route]:
        """The main table, IPv4 and IPv6."""
        # Older kernels, without strict checking, send all tables.
        found = [_Route(body[16:]) for body in self._dump_raw(RTM_GETROUTE, _route_header(0, 0, RT_TABLE_MAIN, 0))]
        return [
            route.seen(self.name_of)
            for route in found
            if route.table == RT_TABLE_MAIN and not route.flags & RTM_F_CLONED
        ]

    # -- changing ---------------------------------------------------------------------------

    def create_link(
        self, name: str, kind: str, mtu: int, mac: str | None, data: Mapping[str, Any], index: int = 0
    ) -> None:
        """Makes a device, down. `index`: the interface index it should have, if that is free."""
        message = _link_request(index if index not in self.name_of else 0)
        info: dict[str, list[Any]] = {"attrs": [("IFLA_INFO_KIND", kind)]}
        if data:
            info["attrs"].append(("IFLA_INFO_DATA", {"attrs": list(data.items())}))
        message["attrs"] = [
            ("IFLA_IFNAME", name),
            ("IFLA_MTU", mtu),
            *([("IFLA_ADDRESS", mac)] if mac else []),
            ("IFLA_LINKINFO", info),
        ]
        self._change(f"{name}: create {kind}", RTM_NEWLINK, [message], NLM_F_CREATE | NLM_F_EXCL)
        self._reread(name)

    def set_label(self, name: str, label: str, link_local: bool) -> None:
        """Sets the alias; not in the request that makes a device, where the kernel ignores it."""
        message = _link_request(self.index_of[name])
        message["attrs"] = [("IFLA_IFALIAS", label), _address_generation(link_local)]
        self._change(f"{name}: set alias", RTM_NEWLINK, [message])
        self.links[name].alias, self.links[name].link_local = label, link_local

    def set_link_local(self, name: str, link_local: bool) -> None:
        message = _link_request(self.index_of[name])
        message["attrs"] = [_address_generation(link_local)]
        self._change(f"{name}: set addrgenmode", RTM_NEWLINK, [message])

    def change_link(self, name: str, kind: str, data: Mapping[str, Any], mtu: int | None = None) -> None:
        """Changes a device's own attributes in place. `mtu`: for kinds that would choose one of their own; others
        refuse one here."""
        message = _link_request(self.index_of[name])
        info = {"attrs": [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", {"attrs": list(data.items())})]}
        message["attrs"] = [*([("IFLA_MTU", mtu)] if mtu else []), ("IFLA_LINKINFO", info)]
        self._change(f"{name}: change {kind}", RTM_NEWLINK, [message])

    def set_link(self, name: str, mtu: int, mac: str | None) -> None:
        message = _link_request(self.index_of[name])
        message["attrs"] = [("IFLA_MTU", mtu), *([("IFLA_ADDRESS", mac)] if mac else [])]
        self._change(f"{name}: set mtu {mtu}" + (f", mac {mac}" if mac else ""), RTM_NEWLINK, [message])

    def set_up(self, name: str, up: bool = True) -> None:
        message = _link_request(self.index_of[name])
        message["flags"], message["change"] = IFF_UP if up else 0, IFF_UP
        self._change(f"{name}: set {'up' if up else 'down'}", RTM_NEWLINK, [message])

    def set_master(self, name: str, bridge: str | None) -> None:
        """Makes the device a port of the bridge, or of none."""
        message = _link_request(self.index_of[name])
        message["attrs"] = [("IFLA_MASTER", self.index_of[bridge] if bridge else 0)]
        self._change(f"{name}: set master {bridge or 'none'}", RTM_NEWLINK, [message])

    def set_port(self, name: str, flags: Mapping[str, int]) -> None:
        """Sets the port's flags on its bridge."""
        message = _link_request(self.index_of[name])
        message["family"] = AF_BRIDGE
        message["attrs"] = [("IFLA_PROTINFO", {"attrs": list(flags.items())}, NLA_F_NESTED)]
        self._change(f"{name}: set port", RTM_SETLINK, [message])

    def delete_link(self, name: str) -> None:
        """Removes the device; one that is gone already is no error."""
        index = self.index_of.get(name)
        if index is None:
            return
        try:
            self._change(f"{name}: delete", RTM_DELLINK, [_link_request(index)])
        except KernelError as error:
            if error.code != errno.ENODEV:
                raise
        self._forget(name)

    def _forget(self, name: str) -> None:
        self.links.pop(name, None)
        self.name_of.pop(self.index_of.pop(name, 0), None)

    def reread(self, name: str) -> Link | None:
        """Reads a device anew that others than `create_link` made, or removed."""
        try:
            self._reread(name)
        except KernelError as error:
            if error.code != errno.ENODEV:
                raise
            self._forget(name)
        return self.links.get(name)

    def set_addresses(self, name: str, have: Iterable[str], want: Iterable[str]) -> None:
        """Adds and removes addresses (each with its prefix length)."""
        have, want = list(have), list(want)
        gone = [address for address in have if address not in want]
        for address in gone:
            message = _address_request(self.index_of[name], address)
            try:
                self._change(f"{name}: remove address {address}", RTM_DELADDR, [message])
            except KernelError as error:
                if error.code != errno.EADDRNOTAVAIL:  # it went with the first of its subnet, see below
                    raise
        # With the first IPv4 address of a subnet the kernel removes its others too (unless
        # promote_secondaries is set), so what stays is said again.
        for address in want if gone else [a for a in want if a not in have]:
            message = _address_request(self.index_of[name], address)
            flags = NLM_F_CREATE | NLM_F_REPLACE
            self._change(f"{name}: add address {address}", RTM_NEWADDR, [message], flags)

    def add_guest_address(self, name: str, address: str) -> None:
        """Adds an address (with its prefix length) that this host answers to and does not send from."""
        message = _address_request(self.index_of[name], address)
        if ":" in address:
            # Else a newer one of the same network is preferred (RFC 6724, section 5); IPv4 takes the first.
            times = {"ifa_preferred": 0, "ifa_valid": FOREVER, "cstamp": 0, "tstamp": 0}
            message["attrs"].append(("IFA_CACHEINFO", times))
        self._change(f"{name}: add address {address}", RTM_NEWADDR, [message], NLM_F_CREATE | NLM_F_REPLACE)

    def prefer_address(self, name: str, address: str) -> None:
        """Makes an address that `add_guest_address` added one like others."""
        message = _address_request(self.index_of[name], address)
        self._change(f"{name}: prefer address {address}", RTM_NEWADDR, [message], NLM_F_CREATE | NLM_F_REPLACE)

    def replace_link_local(self, name: str, was: str, now: str | None) -> None:
        """Gives the device that link-local address, or none, in place of the other one, which need not be there; nor
        need IPv6."""
        gone = _address_request(self.index_of[name], f"{was}/64")
        try:
            self._change(f"{name}: remove its link-local address", RTM_DELADDR, [gone])
        except KernelError as error:
            if error.code not in (errno.EADDRNOTAVAIL, *_NO_IPV6):
                raise
        if now is None:
            return
        made = _address_request(self.index_of[name], f"{now}/64")
        try:
            self._change(f"{name}: add its link-local address", RTM_NEWADDR, [made], NLM_F_CREATE | NLM_F_EXCL)
        except KernelError as error:
            # Where IPv6 is off the kernel makes none either; switched on, it makes one of the MAC address of then.
            if error.code not in (errno.EEXIST, *_NO_IPV6):
                raise

    def order_addresses(self, name: str, want: Sequence[str]) -> None:
        """Makes those of the IPv4 addresses stand in that order, when they are there but in another."""
        self.refresh()
        want = [address for address in want if ":" not in address]
        have = [address for address in self.addresses(self.links[name]) if address in want]
        if want != have and sorted(want) == sorted(have):
            self.set_addresses(name, have, [])
            self.set_addresses(name, [], want)

    def set_flood(self, name: str, mac: str, add: Sequence[str], remove: Sequence[str]) -> None:
        """Adds and removes destinations of one MAC address in the device's forwarding table."""
        index = self.index_of[name]
        additions = [_fdb_request(index, mac, dst) for dst in add]
        removals = [_fdb_request(index, mac, dst) for dst in remove]
        self._change(f"{name}: add peers", RTM_NEWNEIGH, additions, NLM_F_CREATE | NLM_F_APPEND)
        self._change(f"{name}: remove peers", RTM_DELNEIGH, removals)

    def add_routes(self, routes: Iterable[str], was: int, index: int) -> list[str]:
        """Puts routes back that `routes` read and that are not there any more, onto the device that
        now has `index`. Returns the refusals: a gateway that the kernel cannot reach any longer."""
        there = [route.text(route.flags & RTNH_F_ONLINK) for route in self._routes(index)]
        refused: list[str] = []
        for text in routes:
            if text in self._deleted_routes:  # meanwhile it was taken away on purpose
                continue
            route = _Route(bytes.fromhex(text)).moved(was, index)
            if route.text(route.flags) not in there:
                refused += self._add_route(route)
        return refused

    def set_route(self, what: str, subnet: str, via: str, metric: int, protocol: int) -> None:
        """Makes a route in the main table, in the place of one with the same subnet and metric."""
        network, gateway = ipaddress.ip_network(subnet), ipaddress.ip_address(via)
        family = socket.AF_INET if network.version == 4 else socket.AF_INET6
        message = _route_header(family, network.prefixlen, RT_TABLE_MAIN, protocol)
        parts = {RTA_DST: network.network_address.packed, RTA_GATEWAY: gateway.packed}
        for type_, value in {**parts, RTA_PRIORITY: struct.pack("=I", metric)}.items():
            message += struct.pack("=HH", 4 + len(value), type_) + value
        self._change(f"{what}: add {subnet} via {via}", RTM_NEWROUTE, [message], NLM_F_CREATE | NLM_F_REPLACE)

    def add_route(self, what: str, text: str) -> None:
        """Makes a route that `main_routes` read."""
        data, flags = bytes.fromhex(text), NLM_F_CREATE | NLM_F_APPEND
        self._change(f"{what}: add {_Route(data)}", RTM_NEWROUTE, [data], flags)

    def delete_route(self, what: str, text: str) -> None:
        """Removes a route that `main_routes` read; one that is gone already is no error."""
        data = bytes.fromhex(text)
        try:
            self._change(f"{what}: remove {_Route(data)}", RTM_DELROUTE, [data])
        except KernelError as error:
            if error.code != errno.ESRCH:
                raise
        self._deleted_routes.add(text)

    def _add_route(self, route: _Route) -> list[str]:
        try:
            self._exchange("route", RTM_NEWROUTE, [route.data], NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)
        except KernelError as error:
            return [f"{route} is gone ({error.sentence or os.strerror(error.code)})"]
        finally:
            self.reached()
        return []

    # -- reading again ----------------------------------------------------------------------

    def _reread(self, name: str) -> None:
        request = ifinfmsg()
        request["attrs"] = [("IFLA_IFNAME", name)]
        (message,) = self._exchange(f"{name}: read", RTM_GETLINK, [request], 0)
        link = _link(message)
        self.links[name] = link
        self.name_of[link.index], self.index_of[name] = name, link.index


class _Route:
    """One route as its netlink message has it: struct rtmsg (linux/rtnetlink.h) and attributes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.family, self.length = data[0], data[1]
        self.table, self.protocol = data[4], data[5]
        (self.flags,) = struct.unpack_from("=I", data, 8)

    def attributes(self) -> Iterator[tuple[int, int, int]]:
        """(type, where its value starts, where it ends) of each."""
        offset = 12
        while offset + 4 <= len(self.data):
            length, type_ = struct.unpack_from("=HH", self.data, offset)
            yield type_ & 0x3FFF, offset + 4, offset + length
            offset += (max(length, 4) + 3) & ~3

    def _indexes(self) -> Iterator[int]:
        """Where in the message the interface indexes stand."""
        for type_, start, end in self.attributes():
            if type_ == RTA_OIF:
                yield start
            while type_ == RTA_MULTIPATH and start < end:  # struct rtnexthop, one after the other
                yield start + 4
                start += (max(struct.unpack_from("=H", self.data, start)[0], 8) + 3) & ~3  # noqa: PLW2901

    def devices(self) -> set[int]:
        return {struct.unpack_from("=i", self.data, where)[0] for where in self._indexes()}

    def _values(self) -> dict[int, bytes]:
        return {type_: self.data[start:end] for type_, start, end in self.attributes()}

    @property
    def is_link_local(self) -> bool:
        """Whether the kernel makes it anew on every device with such an address (fe80::/64)."""
        return self.family == socket.AF_INET6 and self._values().get(RTA_DST, b"").startswith(b"\xfe\x80")

    def leased(self) -> str:
        """The text of a route that a router advertised, for another device: for as long as it was advertised, and
        one behind in order, so that the router's next advertisement takes its place."""
        values, parts = self._values(), b""
        expires = struct.unpack_from("=i", values.get(RTA_CACHEINFO, bytes(32)), 8)[0] // 100  # in USER_HZ
        for type_, value in values.items():
            if type_ == RTA_PRIORITY:
                value = struct.pack("=I", struct.unpack("=I", value)[0] + 1)  # noqa: PLW2901
            if type_ not in (RTA_CACHEINFO, RTA_PREF):
                parts += struct.pack("=HH", 4 + len(value), type_) + value + bytes(-len(value) % 4)
        if expires > 0:
            parts += struct.pack("=HHI", 8, RTA_EXPIRES, expires)
        return (self.data[:8] + bytes(4) + parts).hex()

    @property
    def subnet(self) -> str:
        none = bytes(4 if self.family == socket.AF_INET else 16)
        return f"{ipaddress.ip_address(self._values().get(RTA_DST, none))}/{self.length}"

    def seen(self, name_of: Mapping[int, str]) -> Route:
        """The route for those who need not know netlink."""
        values = self._values()
        known = {RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE, RTA_CACHEINFO, RTA_PREF}
        _, _, source, tos, _, _, scope, type_ = self.data[:8]
        plain = (source, tos, scope, type_) == (0, 0, 0, RTN_UNICAST) and values.keys() <= known
        plain &= RTA_GATEWAY in values and not self.flags & RTNH_F_ONLINK and not any(values.get(RTA_PREF, b""))
        via = str(ipaddress.ip_address(values[RTA_GATEWAY])) if RTA_GATEWAY in values else "no next hop"
        (metric,) = struct.unpack("=I", values.get(RTA_PRIORITY, bytes(4)))
        devices = tuple(sorted(name_of.get(index, str(index)) for index in self.devices()))
        text = self.text(self.flags & RTNH_F_ONLINK)
        return Route(self.subnet, via if plain else f"{via} and more", metric, self.protocol, devices, text)

    def moved(self, was: int, index: int) -> _Route:
        """The same route through the device that now has another index."""
        data = bytearray(self.data)
        for where in self._indexes():
            if struct.unpack_from("=i", data, where)[0] == was:
                struct.pack_into("=i", data, where, index)
        return _Route(bytes(data))

    def text(self, flags: int) -> str:
        """The message without what changes by itself (flags of the moment, times of expiry)."""
        kept = b"".join(
            self.data[start - 4 : (end + 3) & ~3] for type_, start, end in self.attributes() if type_ != RTA_CACHEINFO
        )
        return (self.data[:8] + struct.pack("=I", flags) + kept).hex()

    def __str__(self) -> str:
        return f"route {self.subnet}" if self.length else "route default"


def may_drop_packets() -> bool:
    """Whether any packet filter of others on this host drops what it does not know. Most often none does, and to start
    nft, which knows more, with what reading it needs is a fifth of an apply's time."""
    for path in OLD_TABLES:
        with suppress(OSError), open(path, encoding="ascii") as file:
            if file.read():
                return True
    try:
        asking = Netlink(NETLINK_NETFILTER)
    except OSError:  # a kernel that does not say
        return True
    try:
        chains = [_netlink_attributes(body, 20) for body in asking.all(NFT_MSG_GETCHAIN, bytes(4))]  # of all families
    except KernelError:
        return True
    finally:
        asking.close()
    drop = struct.pack(">I", NF_DROP)
    for chain in chains:
        table = chain.get(NFTA_CHAIN_TABLE, b"").rstrip(b"\0").decode(errors="replace")
        if table == FIREWALLD or (chain.get(NFTA_CHAIN_POLICY) == drop and not table.startswith(OUR_TABLES)):
            return True
    return False


def _netlink_attributes(data: bytes, offset: int) -> dict[int, bytes]:
    """The attributes of a message from there on (struct nlattr, linux/netlink.h), by type."""
    found: dict[int, bytes] = {}
    while offset + 4 <= len(data):
        length, type_ = struct.unpack_from("=HH", data, offset)
        found[type_ & ~NLA_F_NESTED] = data[offset + 4 : offset + length]
        offset += (max(length, 4) + 3) & ~3
    return found


def reindexed(route: str, was: int, index: int) -> str:
    """A route that `routes_to_move` read, through the device that now has another index."""
    return _Route(bytes.fromhex(route)).moved(was, index).data.hex()


class _Held:
    """One address as its netlink message has it: struct ifaddrmsg (linux/if_addr.h) and attributes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.family, self.length, self.flags, self.scope, self.index = struct.unpack_from("=BBBBI", data)
        self.values = _netlink_attributes(data, 8)
        if IFA_FLAGS in self.values:
            (self.flags,) = struct.unpack("=I", self.values[IFA_FLAGS])

    @property
    def is_link_local(self) -> bool:
        return bool(self.family == socket.AF_INET6 and self.scope == SCOPE_LINK)

    def seen(self) -> Held:
        """The address for those who need not know netlink."""
        raw = self.values.get(IFA_LOCAL) or self.values[IFA_ADDRESS]
        valid = struct.unpack_from("=I", self.values.get(IFA_CACHEINFO, bytes(16)), 4)[0]
        lasts = bool(self.flags & IFA_F_PERMANENT) or valid == FOREVER
        spelled = str(ipaddress.ip_interface(f"{ipaddress.ip_address(raw)}/{self.length}"))
        temporary = self.family == socket.AF_INET6 and bool(self.flags & IFA_F_TEMPORARY)
        return Held(spelled, self.data.hex(), None if lasts else valid, temporary)

    def request(self, index: int, *, label: bool) -> bytes:
        """The message that adds (or removes) it on a device."""
        said = self.flags & IFA_F_SAID
        # It is in use already: nobody is to be asked whether it is free.
        said |= IFA_F_NODAD if self.family == socket.AF_INET6 else 0
        values = {type_: v for type_, v in self.values.items() if type_ != IFA_LABEL or label}
        if IFA_CACHEINFO in values:
            values[IFA_CACHEINFO] = values[IFA_CACHEINFO][:8] + bytes(8)
        values[IFA_FLAGS] = struct.pack("=I", said)
        out = struct.pack("=BBBBI", self.family, self.length, said & 0xFF, self.scope, index)
        for type_, value in values.items():
            out += struct.pack("=HH", 4 + len(value), type_) + value + bytes(-len(value) % 4)
        return out


def _decoded(class_: Any, body: bytes) -> Any:
    message = class_(bytearray(body))
    message.decode()
    return message


def _raise(what: str, body: bytes) -> None:
    """Raises the refusal in an NLMSG_ERROR; an error of 0 is an acknowledgement."""
    (code,) = struct.unpack_from("=i", body, 16)
    if code:
        flags, length = struct.unpack_from("=H", body, 6)[0], struct.unpack_from("=I", body, 20)[0]
        # The request stands in the answer, its body only without NETLINK_CAP_ACK; then what
        # NETLINK_EXT_ACK adds. (pyroute2's own class looks for that in the wrong place.)
        offset = 20 + (16 if flags & NLM_F_CAPPED else length)
        sentence = None
        while flags & NLM_F_ACK_TLVS and offset + 4 <= len(body):
            size, type_ = struct.unpack_from("=HH", body, offset)
            if type_ == NLMSGERR_ATTR_MSG:
                sentence = body[offset + 4 : offset + size].rstrip(b"\0").decode(errors="replace").rstrip(".")
            offset += (max(size, 4) + 3) & ~3
        raise KernelError(what, -code, sentence)


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else None
    data = info.get_attr("IFLA_INFO_DATA") if info else None
    slave = info.get_attr("IFLA_INFO_SLAVE_DATA") if info else None
    spec = message.get_attr("IFLA_AF_SPEC")
    inet6 = spec.get_attr("AF_INET6") if spec else None
    mode = inet6.get_attr("IFLA_INET6_ADDR_GEN_MODE") if inet6 else ADDR_GEN_NONE
    return Link(
        name=message.get_attr("IFLA_IFNAME"),
        index=message["index"],
        kind=kind or "",
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU"),
        up=bool(message["flags"] & IFF_UP),
        alias=message.get_attr("IFLA_IFALIAS") or "",
        master=message.get_attr("IFLA_MASTER") or 0,
        link_local=mode != ADDR_GEN_NONE,
        data=_attributes(data),
        port=_attributes(slave) if info and info.get_attr("IFLA_INFO_SLAVE_KIND") == "bridge" else {},
        type=message["ifi_type"],
        running=bool(message["flags"] & IFF_LOWER_UP) and message.get_attr("IFLA_OPERSTATE") in _SENDING,
    )


def _attributes(holder: Any) -> dict[str, Any]:
    if not isinstance(holder, dict):  # a kind that pyroute2 does not know is left as hex text
        return {}
    return dict(tuple(attribute) for attribute in holder["attrs"])


def _link_request(index: int) -> Any:
    message = ifinfmsg()
    message["index"] = index
    return message


def _address_generation(link_local: bool) -> tuple[str, Any]:
    mode = ADDR_GEN_EUI64 if link_local else ADDR_GEN_NONE
    inet6 = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", mode)]}
    return ("IFLA_AF_SPEC", {"attrs": [("AF_INET6", inet6)]})


def _address_request(index: int, address: str) -> Any:
    interface = ipaddress.ip_interface(address)
    message = ifaddrmsg()
    message["index"], message["prefixlen"] = index, interface.network.prefixlen
    message["family"] = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    message["attrs"] = [("IFA_LOCAL", str(interface.ip)), ("IFA_ADDRESS", str(interface.ip))]
    if interface.version == 4 and interface.network.prefixlen < 31:
        message["attrs"].append(("IFA_BROADCAST", str(interface.network.broadcast_address)))
    if interface.version == 6:
        # The planner knows that nobody else has it, and an overlay is often not up yet.
        message["flags"] = IFA_F_NODAD
    return message


def _route_header(family: int, length: int, table: int, protocol: int) -> bytes:
    """A struct rtmsg (linux/rtnetlink.h)."""
    return struct.pack("=BBBBBBBBI", family, length, 0, 0, table, protocol, 0, RTN_UNICAST if protocol else 0, 0)


def _fdb_request(index: int, mac: str, dst: str) -> Any:
    message = ndmsg()
    message["family"], message["ifindex"] = AF_BRIDGE, index
    message["state"], message["flags"] = NUD_PERMANENT | NUD_NOARP, NTF_SELF
    message["attrs"] = [("NDA_LLADDR", mac), ("NDA_DST", dst)]
    return message
