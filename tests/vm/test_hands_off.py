"""Whoever else configures networks on a host leaves ours alone: networkd, NetworkManager and ifupdown, as they are."""

from __future__ import annotations

import json

import pytest

from lab import Vm
from tests.netns.agent_support import bridge, document, vxlan
from tests.vm.stacks import THERE, owner
from tests.vm.test_reboot import Machine

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(1800)]
#: A file that takes whatever it gets.
GREEDY = """cat > /etc/systemd/network/90-greedy.network <<END
[Match]
Name=br-* vx-* l2tp*
[Network]
Address=192.0.2.99/24
END
networkctl reload"""
IFUPDOWN = """cat > /etc/network/interfaces.d/eth2 <<END
auto eth2
iface eth2 inet static
    address 192.0.2.21/24
END
ifup eth2"""


@pytest.fixture(scope="module")
def machine():
    with Vm(systemd=True, nics=3, programs=False) as vm:
        yield Machine(vm)


def states(machine: Machine, *words: str) -> dict[str, str]:
    rows = [line.split() for line in machine.vm.run([*words]).stdout.splitlines()]
    return {row[1]: row[-1] for row in rows if len(row) > 1}


def addresses(machine: Machine, device: str) -> list[str]:
    rows = json.loads(machine.vm.run(f"ip -j -4 address show {device}").stdout)
    return [f"{one['local']}/{one['prefixlen']}" for row in rows for one in row.get("addr_info", ())]


def test_networkd_with_a_file_that_matches_our_devices(machine):
    machine.vm.run(GREEDY)
    machine.vm.run("ip link add br-theirs type bridge")  # to be sure that the file does what is feared
    machine.vm.run("until networkctl list br-theirs --no-legend | grep -qv -e unmanaged -e pending; do sleep 0.2; done")
    machine.install("s")
    wanted = document(
        owner("s"),
        br_app=bridge(addresses={"10.10.0.1/24": {}}), vx_app=vxlan(bridge="br-app", peers={"b": THERE}),
    )  # fmt: skip
    machine.agent("apply", document=wanted)
    machine.vm.run("networkctl reload; udevadm settle; ip link set br-app down; ip link set br-app up; sleep 2")
    found = states(machine, "networkctl", "list", "--no-legend", "br-app", "vx-app", "br-theirs")
    assert found.pop("br-theirs") != "unmanaged"
    assert found == {"br-app": "unmanaged", "vx-app": "unmanaged"}
    assert addresses(machine, "br-app") == ["10.10.0.1/24"]
    machine.agent("check")
    machine.agent("remove", "p/s")
    assert "overlay" not in machine.vm.run("ls /run/systemd/network /etc/systemd/network").stdout
    machine.vm.run("rm /etc/systemd/network/90-greedy.network; ip link delete br-theirs; networkctl reload")


def test_networkmanager_gives_a_nic_and_takes_it_back(machine):
    """A file below /etc says which devices are unmanaged (the VM has one), so others count for nothing."""
    machine.vm.run("systemctl start NetworkManager; until nmcli general >/dev/null; do sleep 0.2; done")
    fixed = "nmcli connection add type ethernet ifname eth2 con-name fixed ipv4.method manual ipv6.method disabled"
    machine.vm.run(f"{fixed} ipv4.addresses 192.0.2.31/24; nmcli connection up fixed")
    machine.install("lan")
    uplink = {"uplink-eth2": {"kind": "uplink", "bridge": "br-lan", "mode": "host"}}
    machine.agent("apply", document=document(owner("lan"), uplink, br_lan=bridge(mac="of eth2", mtu=1500)))
    state = "nmcli -g GENERAL.STATE device show eth2"
    moved = (["192.0.2.31/24"], [])
    assert "(unmanaged)" in machine.vm.run(state).stdout
    assert (addresses(machine, "br-lan"), addresses(machine, "eth2")) == moved
    machine.vm.run("systemctl restart NetworkManager; until nmcli general >/dev/null; do sleep 0.2; done; sleep 2")
    assert "(unmanaged)" in machine.vm.run(state).stdout
    assert (addresses(machine, "br-lan"), addresses(machine, "eth2")) == moved
    machine.agent("check")
    machine.agent("remove", "p/lan")
    machine.vm.run(f"until {state} | grep -q '(connected)'; do sleep 0.2; done")
    assert addresses(machine, "eth2") == ["192.0.2.31/24"]
    assert machine.vm.run("find /run/NetworkManager/conf.d -type f").stdout == ""
    machine.vm.run("nmcli connection delete fixed; systemctl stop NetworkManager; ip address flush dev eth2")


def test_ifupdown_and_a_reboot(machine):
    """It configures the NIC at boot, then the NIC becomes an uplink; what it puts on the NIC again later is drift."""
    machine.vm.run("systemctl enable networking.service")
    machine.vm.run(IFUPDOWN)
    machine.install("lan")
    uplink = {"uplink-eth2": {"kind": "uplink", "bridge": "br-lan", "mode": "host"}}
    machine.agent("apply", document=document(owner("lan"), uplink, br_lan=bridge(mac="of eth2", mtu=1500)))
    assert (addresses(machine, "br-lan"), addresses(machine, "eth2")) == (["192.0.2.21/24"], [])
    machine.vm.reboot()
    machine.restored()
    assert (addresses(machine, "br-lan"), addresses(machine, "eth2")) == (["192.0.2.21/24"], [])
    machine.vm.run("ifup --force eth2")
    assert machine.agent("check", check=False).returncode == 2
    machine.agent("restore")
    assert (addresses(machine, "br-lan"), addresses(machine, "eth2")) == (["192.0.2.21/24"], [])
    machine.agent("remove", "p/lan")
    assert addresses(machine, "eth2") == ["192.0.2.21/24"]


def test_a_bond_is_refused_by_name(machine):
    machine.vm.run("ip link add bond7 type bond")
    uplink = {"uplink-bond7": {"kind": "uplink", "bridge": "br-lan", "mode": "host"}}
    machine.install("lan")
    done = machine.agent(
        "apply", document=document(owner("lan"), uplink, br_lan=bridge(mac="of bond7", mtu=1500)), check=False
    )
    assert done.returncode == 1
    assert "a uplink-bond7: bond7 is a bond, which is not supported as an uplink; take a single NIC" in done.stderr
    assert "br-lan" not in machine.vm.run("ip -br link").stdout
    machine.vm.run("ip link delete bond7")
