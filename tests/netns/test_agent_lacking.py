"""A kernel that lacks a kind of tunnel: one error that names the module and the option, and nothing changed."""

from __future__ import annotations

import pytest
from agent_support import OWNER, bridge, document

from tests.vm_plugin import lacks

GRE = {"mtu": 1400, "mac": "02:00:00:00:00:04"}
IDS = {"tunnelId": 1000, "peerTunnelId": 2000, "sessionId": 3000, "peerSessionId": 4000}
V4, V6 = ({"local": f"{net}11", "remote": f"{net}12"} for net in ("198.18.0.", "2001:db8::"))
UNDONE, NOTHING = "undone, the host is as it was", "nothing was changed"
OPTIONS = "CONFIG_L2TP, CONFIG_L2TP_V3 and CONFIG_L2TP_ETH"
CASES = {
    "gretap": (V4, "create gretap: Unknown device type; ", "gretap", "ip_gre", "CONFIG_NET_IPGRE", UNDONE),
    "ip6gretap": (V6, "create ip6gretap: Unknown device type; ", "ip6gretap", "ip6_gre", "CONFIG_IPV6_GRE", UNDONE),
    "l2tp": ({**V4, **IDS, "localPort": 6000, "remotePort": 5000}, "", "L2TP", "l2tp_eth", OPTIONS, NOTHING),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_kernel_without_the_kind(host, kind):
    if not lacks(kind):
        pytest.skip("this kernel has it")
    more, what, word, module, option, end = CASES[kind]
    before = host.state()
    done = host.apply(document(br_app=bridge(), t0={"kind": kind, "bridge": "br-app", **GRE, **more}), code=1)
    assert done.err.replace("\n", "; ").rstrip("; ") == (
        f"a t0: {what}this kernel has no {word}: load its module (modprobe {module}; on some clouds it is in the "
        f"package linux-modules-extra), or boot a kernel built with {option}; {end}"
    )
    assert host.state() == before
    assert not host.files()


def test_a_kernel_without_wireguard(host):
    if not lacks("wireguard"):
        pytest.skip("this kernel has it")
    told = host.agent("identity", document={"owner": OWNER, "host": "a", "generation": 1}).report
    wanted = {"kind": "wireguard", "mtu": 1420, "listenPort": 51820, "publicKey": told["publicKey"]}
    before, files = host.state(), host.files()
    assert host.apply(document(wg_s=wanted), code=1).err == (
        "a wg-s: create wireguard: Unknown device type; this kernel has no wireguard: load its module (modprobe "
        "wireguard; on some clouds it is in the package linux-modules-extra), or boot a kernel built with "
        "CONFIG_WIREGUARD; undone, the host is as it was\n"
    )
    assert (host.state(), host.files()) == (before, files)
