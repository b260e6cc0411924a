"""A host that boots under systemd, reboots and loses its power: what was applied is back, without Pulumi."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from lab import LabError, Vm
from overlay_components import agent as agent_archive
from tests.netns.agent_support import bridge, document, vxlan
from tests.vm.stacks import FAR_END, HERE, OF_NIC, PREPARE, STACKS, THERE, owner

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(1800)]
AGENT = "/usr/local/sbin/overlay-agent"
NETWORK = f"""mkdir -p /etc/systemd/network; cd /etc/systemd/network
printf '[Match]\\nName=eth1\\n[Network]\\nAddress={HERE}/24\\n' > 20-eth1.network
printf '[Match]\\nName=eth3\\n[Network]\\nAddress={OF_NIC}\\n' > 20-eth3.network
networkctl reload
until ip -br address show eth1 | grep -q {HERE} && ip -br address show eth3 | grep -q {OF_NIC}; do sleep 0.2; done"""


class Machine:
    """A VM with the agent on it, which knows nothing of Pulumi."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        vm.run(NETWORK)
        vm.put(agent_archive.archive(), "/root/agent.pyz")

    def install(self, name: str) -> None:
        request = json.dumps({"owner": owner(name), "host": "a"})
        self.vm.run("/usr/bin/python3 /root/agent.pyz install", input=request)

    def apply(self, name: str) -> None:
        """Puts a stack on it."""
        self.install(name)
        key = ""
        if name == "wg":
            request = {"owner": owner(name), "host": "a", "generation": 1}
            key = json.loads(self.agent("identity", document=request).stdout)["publicKey"]
        self.agent("apply", document=STACKS[name](key))

    def agent(self, *words: str, document=None, check=True, **env: str) -> subprocess.CompletedProcess[str]:
        text = json.dumps(document) if document else ""
        done = self.vm.run([AGENT, *words], input=text, check=False, env=env)
        assert not check or done.returncode == 0, (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def restored(self) -> None:
        """Wait until both boot units have done their work; their log, where they have not."""
        units = ("overlay-restore.service", "overlay-restore-docker.service")
        deadline = time.monotonic() + 300
        while (states := self.vm.run(["systemctl", "is-active", *units], check=False).stdout.split()) != ["active"] * 2:
            log = self.vm.run("journalctl -b --no-pager -u 'overlay-*' | tail -40; systemctl list-jobs").stdout
            assert "failed" not in states, log
            assert time.monotonic() < deadline, (states, log)
            time.sleep(0.5)

    def state(self) -> dict[str, object]:
        """What the kernel has, without what counts or was numbered by chance."""
        found: dict[str, object] = {"uname": self.vm.run("uname -r").stdout}
        for what in ("-d link", "address", "route show table all", "-6 route show table all"):
            rows = json.loads(self.vm.run(f"ip -j {what}").stdout or "[]")
            found[what] = sorted(json.dumps(row, sort_keys=True) for row in map(_steady, rows) if row)
        found["fdb"] = sorted(
            json.dumps(row, sort_keys=True)
            for row in json.loads(self.vm.run("bridge -j fdb show").stdout)
            if row["mac"] == "00:00:00:00:00:00"
        )
        found["nft"] = sorted(self.vm.run("nft -s list ruleset").stdout.split("\n}\n"))
        found["sysctl"] = self.vm.run("sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding").stdout
        return found

    def pings(self) -> set[str]:
        """The stacks through whose tunnels the other end of the wire, made by hand, reaches the host."""
        make = [f"ip netns exec far {link}" for link, _, _ in FAR_END.values()]
        for name, (_, address, _) in FAR_END.items():
            make += [f"ip -n far address add {address} dev far-{name}", f"ip -n far link set far-{name} up"]
        tries = "for i in $(seq 20); do ip netns exec far ping -qc 1 -W 1 {} >/dev/null && echo {} && break; done"
        script = [
            "ip netns del far 2>/dev/null", "set -e", "ip netns add far", "ip link set eth2 netns far",
            f"ip -n far address add {THERE}/24 dev eth2", "ip -n far link set eth2 up", *make,
            *(f"({tries.format(whom, name)}) &" for name, (_, _, whom) in FAR_END.items()), "wait",
            # The card comes back to the host when the namespace goes, a moment later.
            "ip netns del far", "until ip link show eth2 >/dev/null 2>&1; do sleep 0.1; done",
        ]  # fmt: skip
        return set(self.vm.run("\n".join([PREPARE, *script])).stdout.split())

    def asks_for_an_address(self) -> str:
        """What a container on br-app is given by DHCP."""
        script = (
            "set -e; ip netns add web; ip link add vw type veth peer name eth0 netns web; "
            "ip link set vw master br-app up; ip -n web link set eth0 address 02:00:00:00:01:01 up; "
            "printf '#!/bin/sh\\n[ \"$1\" = bound ] && echo \"$ip $mtu $router\"\\nexit 0\\n' > /tmp/said; "
            "chmod 755 /tmp/said; ip netns exec web udhcpc -fqn -t 30 -T 1 -i eth0 -O mtu -s /tmp/said 2>/dev/null"
        )
        said = self.vm.run(["sh", "-c", script]).stdout.strip()
        self.vm.run("ip netns del web; until ! ip link show vw >/dev/null 2>&1; do sleep 0.1; done")
        return said


#: Of one boot alone, or of one moment.
_PASSING = {
    "ifindex", "link_index", "operstate", "flags", "promiscuity", "valid_life_time", "preferred_life_time", "linkinfo",
    "txqlen", "group", "qdisc", "carrier_changes", "stats", "stats64",
}  # fmt: skip


def _steady(value):
    if isinstance(value, dict):
        if str(value.get("ifname", value.get("dev", ""))).startswith("eth") or value.get("dst") == "multicast":
            return {}  # networkd's
        kept = {key: _steady(part) for key, part in value.items() if key not in _PASSING}
        if "linkinfo" in value:
            data = value["linkinfo"].get("info_data", {})
            names = ("id", "local", "remote", "port", "learning", "ageing", "stp_state", "vlan_filtering", "ttl", "tos")
            kept["linkinfo"] = {name: data[name] for name in names if name in data}
        return kept
    return [part for part in map(_steady, value) if part != {}] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def machine():
    with Vm(systemd=True, nics=3, programs=False) as vm:
        yield Machine(vm)


@pytest.fixture
def applied(machine):
    """The machine with all stacks on it: those that an earlier test left there, and the rest."""
    shown = machine.agent("show", check=False).stdout
    there = json.loads(shown) if shown else {}
    for name in STACKS:
        if f"p/{name}" not in there:
            machine.apply(name)
    return machine


def as_declared(machine: Machine) -> None:
    """What the agent itself says, and what traffic says."""
    assert json.loads(machine.agent("check").stdout) == {"drift": []}
    assert machine.pings() == set(STACKS)
    assert machine.asks_for_an_address() == "10.10.0.11 1400 10.10.0.1"


def test_what_was_applied_survives_a_power_cut_at_once(machine, record_property):
    """The agent too, which was put in place a moment before. So this comes first, on a machine that is fresh."""
    record_property("kernel", machine.vm.release)
    assert machine.vm.read("/proc/1/comm").strip() == "systemd"
    machine.vm.run("sync")
    for name in STACKS:
        machine.apply(name)
    machine.vm.power_cut()
    machine.restored()
    as_declared(machine)


def test_all_is_back_after_a_reboot(applied):
    before = applied.state()
    applied.vm.reboot()
    applied.restored()
    assert applied.state() == before
    as_declared(applied)
    assert applied.vm.run("systemctl --failed --no-legend --plain").stdout == ""


def test_systemd_keeps_a_service_that_ends(applied):
    units = applied.vm.run("systemctl list-units --plain --no-legend 'overlay-dnsmasq-*'").stdout.splitlines()
    (unit,) = [line.split()[0] for line in units]
    main = f"systemctl show -p MainPID --value {unit}"
    pid = applied.vm.run(main).stdout.strip()
    applied.vm.run(f"kill -KILL {pid}")
    applied.vm.run(f"until systemctl is-active -q {unit} && [ $({main}) != {pid} ]; do sleep 0.2; done")
    as_declared(applied)


def test_a_power_cut_in_the_middle_of_an_apply(applied):
    """The document that was applied before is true again, and none of the other is left."""
    before = applied.state()
    many = {
        f"{kind}{number}": make(mac=f"02:00:00:00:{base}:{number:02x}", **more(number))
        for number in range(40)
        for kind, make, base, more in (
            ("br_", bridge, "0a", lambda _: {}),
            ("vx_", vxlan, "0b", lambda n: {"vni": 100 + n, "bridge": f"br-{n}", "peers": {"b": THERE}}),
        )
    }
    wanted = document(owner("app"), **many)
    process = applied.vm.popen([AGENT, "apply"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(json.dumps(wanted))
    process.stdin.close()
    applied.vm.run("until ip link show br-20 >/dev/null 2>&1; do sleep 0.05; done")
    applied.vm.run("test -e /var/lib/overlay/journal.json")
    applied.vm.power_cut()
    assert process.wait(60) != 0
    applied.restored()
    kept = applied.vm.run("ls /var/lib/overlay").stdout.split()
    assert kept == ["history.jsonl", "keys", "members", "services", "shared.json", "stacks"], "no journal"
    assert applied.state() == before
    as_declared(applied)


def test_the_connection_ends_in_the_middle_of_an_apply(applied):
    """The sshd is gone, and the operator with it: nobody got the report, so nothing was done."""
    before = applied.state()
    changed = STACKS["app"]("")
    changed["devices"]["vx-app"]["vni"] = 44
    # In the background a shell gives a command no input but what is said; the journal says that it is in the middle.
    until = "until test -e /var/lib/overlay/journal.json; do sleep 0.01; done"
    script = f"exec 3<&0; {AGENT} apply <&3 & {until}; kill -KILL $PPID; wait"
    with pytest.raises(LabError):
        applied.vm.run(script, input=json.dumps(changed))
    applied.vm.run("until flock -n /run/overlay.lock true; do sleep 0.2; done")
    assert applied.state() == before
    as_declared(applied)


def test_the_timer_repairs_what_drifted(applied):
    """`selfHeal`; the journal says what was mended."""
    plain = STACKS["app"]("")
    services = {**plain.get("services", {}), "self-heal": {"kind": "self-heal"}}
    applied.agent("apply", document={**plain, "services": services})
    mtu = applied.vm.read("/sys/class/net/vx-app/mtu").strip()
    applied.vm.run("ip link set vx-app mtu 1290")
    until = f"for i in $(seq 120); do [ $(cat /sys/class/net/vx-app/mtu) = {mtu} ] && exit 0; sleep 1; done; exit 1"
    applied.vm.run(["sh", "-c", until], timeout=150)
    applied.vm.run("until [ $(systemctl is-active overlay-repair.service) = inactive ]; do sleep 0.2; done")
    said = applied.vm.run("journalctl --sync; journalctl -b --no-pager -o cat -u overlay-repair.service").stdout
    assert f"vx-app: mtu 1290 -> {mtu}" in said
    applied.agent("apply", document=plain)
    assert "overlay-repair" not in applied.vm.run("ls -R /etc/systemd/system").stdout


def test_a_clock_that_jumps(applied):
    """A year forward, and then two back: what is declared is still so, and can be changed."""
    before, changed = applied.state(), STACKS["app"]("")
    changed["devices"]["vx-app"]["vni"] = 44
    year = 365 * 24 * 3600
    for jump in (year, -2 * year):
        applied.vm.run(f"date -s @$(($(date +%s) + {jump}))")
        assert json.loads(applied.agent("check").stdout) == {"drift": []}
        applied.agent("apply", document=changed)
        applied.agent("apply", document=STACKS["app"](""))
    assert applied.state() == before
    applied.vm.run(f"date -s @$(($(date +%s) + {year}))")
    as_declared(applied)


def test_the_last_stack_leaves_nothing_under_systemd(applied):
    for name in STACKS:
        request = {"owner": owner(name), "host": "a"}
        done = applied.agent("uninstall", document=request)
        assert json.loads(done.stdout)["removed"] == (name == list(STACKS)[-1]), done
    assert applied.vm.run("systemctl list-unit-files --no-legend 'overlay*'", check=False).stdout == ""
    assert applied.vm.run("systemctl list-units --all --no-legend 'overlay*'").stdout == ""
    assert applied.vm.run("ls -d /var/lib/overlay /usr/local/lib/overlay-agent /run/overlay*", check=False).stdout == ""
    links = {row["ifname"] for row in json.loads(applied.vm.run("ip -j link").stdout)}
    # gre0 and its like are the kernel's: it makes them with GRE's module
    assert links - {"gre0", "gretap0", "erspan0"} == {"lo", "eth0", "eth1", "eth2", "eth3"}
    assert applied.vm.run("nft list ruleset").stdout == ""
