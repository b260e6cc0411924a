"""Runs this checkout's program with the real CLI against lab hosts, and looks at what stands there afterwards."""

from __future__ import annotations

import contextlib
import difflib
import functools
import ipaddress
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from lab import Lab
from tests.e2e import plugin_support
from tests.e2e.vm_lab import VmLab

ROOT = Path(__file__).resolve().parents[2]
AGENT = "/usr/local/sbin/overlay-agent"
#: Everything that the agent may leave on a host.
TRACES = f"{AGENT} /usr/local/lib/overlay-agent /var/lib/overlay /run/overlay* ~/.overlay-agent* ~ops/.overlay-agent*"
#: What else a stack may touch on a host: all of it stands as before when the stack is gone. Not what a dockerd and the
#: kernel change by themselves: the order of chains, counters, and routes as a bridge of others first gets a port.
_HOST_STATE = r"""
nft --stateless list ruleset | sort
ip -o address show eth0 | sed 's/valid_lft.*//'
ip -4 route show table all | sed 's/ linkdown//'; ip -6 route show table all | grep -vE 'fe80::|ff00::'
sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding
ps -e -o comm= | grep -xE 'dnsmasq|keepalived|bgpd|zebra|bfdd|watchfrr' | sort
ls -A /etc/systemd/system /run/overlay 2>/dev/null
"""
#: What the kernel makes in every namespace as soon as GRE's module is there (fb_tunnels_only_for_init_net).
FALLBACK = {"gre0", "gretap0", "erspan0", "ip6gre0", "ip6tnl0"}
#: By kind of tunnel: what it takes of the underlay's MTU over IPv4 and IPv6, and how its devices' names begin.
TUNNELS = {"vxlan": ({4: 50, 6: 70}, "vx"), "gretap": ({4: 38, 6: 58}, "gt"), "l2tp": ({4: 54, 6: 74}, "l2")}
#: s, of one run of pulumi; with hosts in the VM.
_LIMIT, _VM_LIMIT = 120.0, 600.0
#: Stands in for the agent's command once, and then puts it back. {middle} is what goes wrong; $sshd is whose session
#: it is, with a shell in between.
_WRAPPER = """#!/bin/sh
mv -f {agent}.real {agent}
sshd=$PPID
until [ "$sshd" -le 1 ] || grep -q ^sshd /proc/$sshd/comm; do sshd=$(ps -o ppid= -p $sshd | tr -d ' '); done
{middle}
exec {agent} "$@"
"""


class Result(plugin_support.Result):
    """The same, of a program of ours."""

    def failed(self) -> str:
        """The text, provided that it failed, and with words of ours: no traceback."""
        super().failed()
        assert "Traceback" not in self.text, self.text
        assert "KeyboardInterrupt" not in self.text, self.text
        assert "never awaited" not in self.text, self.text
        return self.text


@functools.cache
def environment() -> dict[str, str]:
    """What `. tools/env.sh` makes."""
    script = f"exec 2>&1; . {ROOT}/tools/env.sh && env -0"
    lines = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True).stdout
    return dict(line.split("=", 1) for line in lines.split("\0") if line)


@functools.cache
def source() -> Path:
    """A copy of the program and the agent, so that editing the checkout does not change them under a running test."""
    base = Path(os.environ.get("OVERLAY_TEST_SOURCE", ROOT))
    copy = Path(tempfile.mkdtemp(prefix="overlay-source-"))
    for name in ("overlay_components", "overlay_agent"):
        shutil.copytree(base / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Pulumi.yaml", "__main__.py", "stacks", "examples"):
        whole = ROOT / name
        if whole.is_dir():
            shutil.copytree(whole, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(whole, copy)
    return copy


class Project:
    """A Pulumi project with a state of its own, run as the lab's operator."""

    def __init__(self, lab: Lab, directory: Path, stack: str, home: Path) -> None:
        self.lab, self.directory, self.stack = lab, directory, stack
        self.transcript = ""
        self.environment = {
            **environment(),
            "PULUMI_BACKEND_URL": f"file://{directory}/state",
            "PYTHONPATH": str(source()),
            "XDG_CACHE_HOME": str(source() / "cache"),
            "HOME": str(lab.home),
            "PULUMI_HOME": str(home),
        }
        # The developer's own ssh-agent must not take part.
        self.environment.pop("SSH_AUTH_SOCK", None)

    def start(self) -> None:
        """Makes the stack."""
        (self.directory / "state").mkdir()
        self.run("stack", "init", self.stack, "--no-select", stack=False).ok()
        self.remember()

    # -- pulumi ------------------------------------------------------------------------------

    def popen(self, *arguments: str, stack: bool = True, **environment: str) -> subprocess.Popen[str]:
        """Starts pulumi, without a terminal."""
        return self.lab.operator_popen(
            ["pulumi", "--non-interactive", "--color=never", *arguments, *(["-s", self.stack] if stack else [])],
            cwd=self.directory,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, *arguments: str, stack: bool = True, **environment: str) -> Result:
        """Runs pulumi."""
        return self.end(self.popen(*arguments, stack=stack, **environment))

    def end(self, process: subprocess.Popen[str]) -> Result:
        """Waits for what `popen` started."""
        limit = _VM_LIMIT if isinstance(self.lab, VmLab) else _LIMIT
        try:
            text, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
            raise AssertionError(f"pulumi did not end in {limit:g} s:\n{text}") from None
        self.transcript += text
        assert "PRIVATE KEY" not in text, "a private key was printed"
        return Result(text, process.returncode)

    def up(self, *arguments: str, **environment: str) -> Result:
        """`pulumi up`, at once."""
        return self.run("up", "--yes", "--skip-preview", *arguments, **environment)

    def preview(self) -> Result:
        """`pulumi preview` with all details."""
        return self.run("preview", "--diff")

    def destroy(self, *arguments: str) -> Result:
        """`pulumi destroy`, at once."""
        return self.run("destroy", "--yes", "--skip-preview", *arguments)

    def outputs(self) -> dict[str, Any]:
        """The stack's outputs."""
        return dict(json.loads(self.run("stack", "output", "--json").ok()))

    def state(self) -> dict[str, dict[str, Any]]:
        """The state's resources by name."""
        deployment = json.loads(self.run("stack", "export").ok())["deployment"]
        return {row["urn"].rpartition("::")[2]: row for row in deployment.get("resources", [])}

    def noop(self) -> None:
        """`pulumi up` has nothing to do, and asks no host."""
        before = {host: self.logins(host) for host in self.lab.hosts}
        text = self.up().ok()
        assert re.search(r"Resources:\n    \d+ unchanged\n", text), text
        assert {host: self.logins(host) for host in self.lab.hosts} == before

    # -- hosts -------------------------------------------------------------------------------

    def logins(self, host: str) -> int:
        """SSH connections that the host has let in so far."""
        return self.lab.log(host).count("Accepted publickey")

    def remember(self) -> None:
        """Takes down how the hosts are without the stack: see `clean`."""
        self._before = {host: self._seen(host) for host in self.lab.hosts}

    def _seen(self, host: str) -> list[str]:
        state = self.lab.run(host, _HOST_STATE, check=False).stdout.splitlines()
        return [*sorted(f"device {name}" for name in self.lab.links(host).keys() - FALLBACK), *state]

    def clean(self, *hosts: str) -> None:
        """No device, process, rule, address, route, file or agent of ours is left on the hosts."""
        for host in hosts or self.lab.hosts:
            # Files alone: an empty folder may be the machine's own, which shows through in its lab hosts.
            left = self.lab.run(host, f"find {TRACES} ! -type d 2>/dev/null", check=False).stdout
            assert not left, f"{host}: left behind: {left}"
            changes = "\n".join(difflib.unified_diff(self._before[host], self._seen(host), n=0, lineterm=""))
            assert not changes, f"{host}:\n{changes}"

    def healthy(self, *hosts: str) -> None:
        """The agents find nothing to repair."""
        for host in hosts or self.lab.hosts:
            done = self.lab.run(host, [AGENT, "check"], check=False)
            assert done.returncode == 0, f"{host}: {done.stdout}{done.stderr}"


class Stack(Project):
    """The checkout's own program with a stack file that tests may change: `stack.hosts["h1"]["mtu"] = 9001`."""

    def __init__(self, lab: Lab, directory: Path, stack: str, home: Path, name: str = "") -> None:
        super().__init__(lab, directory, name or stack, home)
        (directory / "stacks").mkdir(parents=True)
        for file in ("Pulumi.yaml", "__main__.py"):
            shutil.copy(source() / file, directory)
        text = (source() / "stacks" / f"Pulumi.{stack}.yaml").read_text()
        self.config: dict[str, Any] = yaml.safe_load(text)["config"]
        self.file = directory / "stacks" / f"Pulumi.{self.stack}.yaml"
        self.write()
        self.start()

    @property
    def hosts(self) -> dict[str, Any]:
        """`overlay:hosts`."""
        return self.config.setdefault("overlay:hosts", {})

    @property
    def defaults(self) -> dict[str, Any]:
        """`overlay:defaults`."""
        return self.config.setdefault("overlay:defaults", {})

    @property
    def segments(self) -> dict[str, Any]:
        """`overlay:segments`."""
        return self.config.setdefault("overlay:segments", {})

    def write(self) -> None:
        """Writes the stack file; what Pulumi put there (the salt) stays."""
        old = yaml.safe_load(self.file.read_text()) if self.file.exists() else {}
        self.file.write_text(yaml.safe_dump({**old, "config": self.config}))

    def popen(self, *arguments: str, stack: bool = True, **environment: str) -> subprocess.Popen[str]:
        """Starts pulumi with the stack file as it is wanted now."""
        self.write()
        return super().popen(*arguments, stack=stack, **environment)

    # -- what the stack file says, and what is ------------------------------------------------

    def as_declared(self) -> None:
        """`ip` and `bridge` on every host show what the stack file says. Worked out here from the file alone."""
        for host in self.hosts:
            expected = {"lo", "eth0"}
            links = self.lab.links(host)
            for name, segment in self.segments.items():
                if host not in segment.get("hosts", self.hosts):
                    continue
                expected |= self._segment_as_declared(host, name, segment, links)
            ours = {n for n, link in links.items() if link.get("linkinfo", {}).get("info_kind") != "veth"}
            assert ours - FALLBACK | {"lo", "eth0"} == expected

    def _segment_as_declared(self, host: str, name: str, segment: dict[str, Any], links: dict[str, Any]) -> set[str]:
        addresses = {h: values["address"] for h, values in self.hosts.items()}
        others = {a for h, a in addresses.items() if h != host and h in segment.get("hosts", self.hosts)}
        version = ipaddress.ip_address(addresses[host]).version
        underlay = self.hosts[host].get("mtu", self.defaults.get("mtu", 1500))
        overhead = max((TUNNELS[t["kind"]][0][version] for t in segment.get("tunnels", {}).values()), default=0)
        mtu = segment.get("mtu", underlay - overhead)
        bridge = segment.get("bridge", {})
        switch = None if bridge == "none" else bridge.get("name", f"br-{name}")
        names = set()
        if switch:
            link = links[switch]
            assert (link["linkinfo"]["info_kind"], link["mtu"]) == ("bridge", mtu)
            assert "UP" in link["flags"]
            names.add(switch)
        for tunnel in segment.get("tunnels", {}).values():
            device = tunnel.get("ifname", f"{TUNNELS[tunnel['kind']][1]}-{name}")
            if tunnel["kind"] != "vxlan":
                devices = self._devices(host, device, tunnel, segment.get("hosts", self.hosts))
                for name_, peer in devices.items():
                    assert (links[name_]["mtu"], links[name_].get("master")) == (mtu, switch)
                    self._pair_as_declared(host, peer, tunnel, links[name_])
                names |= set(devices)
                continue
            names.add(device)
            link = links[device]
            data = link["linkinfo"]["info_data"]
            assert (link["linkinfo"]["info_kind"], link["mtu"], link.get("master")) == ("vxlan", mtu, switch)
            numbers = (tunnel["vni"], tunnel.get("port", 4789), tunnel.get("topology") != "evpn")
            assert (data["id"], data["port"], data["learning"]) == numbers
            assert data.get("local", data.get("local6")) == addresses[host]
            assert "UP" in link["flags"]
            fdb = json.loads(self.lab.run(host, ["bridge", "-j", "fdb", "show", "dev", device]).stdout)
            flood = {row["dst"] for row in fdb if row["mac"] == "00:00:00:00:00:00"}
            if tunnel.get("topology") == "multicast":
                assert flood == {tunnel["group"]}
                assert data["group"] == tunnel["group"]
            else:
                assert flood == others
        holder = switch or next(t.get("ifname", f"vx-{name}") for t in segment["tunnels"].values())
        wanted = segment.get("addresses", {}).get(host, [])
        wanted = [wanted] if isinstance(wanted, str) else wanted
        [row] = json.loads(self.lab.run(host, ["ip", "-j", "addr", "show", "dev", holder]).stdout)
        found = {info["local"] for info in row["addr_info"] if info["scope"] == "global"}
        assert found == {address.partition("/")[0] for address in wanted}
        return names

    def _devices(self, host: str, base: str, tunnel: dict[str, Any], members: list[str]) -> dict[str, str]:
        """The devices that join two ends each, and their peers."""
        hub, others = tunnel.get("hub"), [member for member in members if member != host]
        if tunnel.get("topology") == "pairs" or (hub and host != hub):
            return {base: hub or others[0]}
        return {f"{base}-{peer}": peer for peer in others}

    def _pair_as_declared(self, host: str, peer: str, tunnel: dict[str, Any], link: dict[str, Any]) -> None:
        assert "UP" in link["flags"]
        # As `ip -d` has it of a port; the device of L2TPv3 has no kind of its own.
        port = link["linkinfo"]["info_slave_data"]
        assert port["isolated"] == (tunnel.get("topology", "mesh") == "mesh")
        here, there = self.hosts[host]["address"], self.hosts[peer]["address"]
        if tunnel["kind"] == "gretap":
            kind, data = link["linkinfo"]["info_kind"], link["linkinfo"]["info_data"]
            assert (kind, data["local"], data["remote"]) == ("ip6gretap" if ":" in here else "gretap", here, there)
            assert data["ttl"] == tunnel.get("ttl", 64)
        else:
            own, peers = self._l2tp(host, here, there)
            assert (peers, own) == self._l2tp(peer, there, here), "each knows of the other what it is"
            said = {key: values[host] for key, values in tunnel.items() if key in own and host in values}
            assert {**own, **said} == own

    def _l2tp(self, host: str, here: str, there: str) -> tuple[dict[str, int], dict[str, int]]:
        """The numbers of this end, and those of the other, as `ip l2tp` shows them here."""
        rows = json.loads(self.lab.run(host, ["ip", "-j", "l2tp", "show", "tunnel"]).stdout)
        [tunnel] = [row for row in rows if (row["local"], row["peer"]) == (here, there)]
        rows = json.loads(self.lab.run(host, ["ip", "-j", "l2tp", "show", "session"]).stdout)
        [session] = [row for row in rows if row["tunnel_id"] == tunnel["tunnel_id"]]
        both = (
            (tunnel["tunnel_id"], session["session_id"], tunnel["local_port"]),
            (tunnel["peer_tunnel"], session["peer_session_id"], tunnel["peer_port"]),
        )
        own, peers = (dict(zip(("tunnelIds", "sessionIds", "ports"), numbers, strict=True)) for numbers in both)
        return own, peers

    def plug_in(self) -> dict[str, list[tuple[str, str, str]]]:
        """Starts every container of the IP plan as a stand-in; by segment: host, container, address."""
        out: dict[str, list[tuple[str, str, str]]] = {}
        for segment, rows in self.outputs()["containers"].items():
            for name, row in rows.items():
                place = f"{segment}-{name}"
                self.lab.container(
                    row["host"], place, row["bridge"], row["mac"], row["address"], row["gateway"] or (), row["mtu"]
                )
                out.setdefault(segment, []).append((row["host"], place, row["address"].partition("/")[0]))
        return out

    def all_reach_all(self, plugged: dict[str, list[tuple[str, str, str]]]) -> None:
        """Every container reaches every other of its segment, and every host's address every other's."""
        for rows in plugged.values():
            for (host, name, _), (_, _, target) in itertools.permutations(rows, 2):
                assert self.lab.ping(host, target, wait=3, container=name), f"{host} {name} -> {target}"
        for segment in self.segments.values():
            for source_, target in itertools.permutations(segment.get("addresses", {}), 2):
                address = segment["addresses"][target].partition("/")[0]
                assert self.lab.ping(source_, address, wait=3), f"{source_} -> {target} {address}"


@contextlib.contextmanager
def steady_ping(lab: Lab, host: str, target: str, container: str) -> Iterator[None]:
    """No ping is lost while the block runs; 50 a second, over an existing path."""
    assert lab.ping(host, target, container=container, wait=3), f"{host} {container} -> {target} before"
    words = ["ip", "netns", "exec", container, "ping", "-n", "-i", "0.02", "-q", target]
    ping = lab.popen(host, words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        time.sleep(0.1)
        yield
        time.sleep(0.1)
    finally:
        ping.send_signal(signal.SIGINT)
        text, _ = ping.communicate(timeout=10)
    sent, got = map(int, re.findall(r"(\d+) (?:packets transmitted|received)", text))
    # The last one may be on its way when ping is ended.
    assert sent > 20
    assert got >= sent - 1, text


def once(stack: Stack, host: str, middle: str) -> None:
    """The next time that the agent is called on the host, `middle` comes first."""
    file = stack.lab.path(host, AGENT)
    file.rename(file.with_suffix(".real"))
    file.write_text(_WRAPPER.format(agent=AGENT, middle=middle))
    file.chmod(0o755)


def hold(stack: Stack, host: str) -> None:
    """The next time that the agent is called on the host, it waits until `let_go`."""
    once(stack, host, "touch /run/held; until [ -e /run/go ]; do sleep 0.1; done; rm /run/held /run/go")


def is_held(stack: Stack, host: str) -> bool:
    """Whether the agent is there, and waits."""
    return stack.lab.path(host, "/run/held").exists()


def let_go(stack: Stack, host: str) -> None:
    """The agent that is held goes on."""
    stack.lab.path(host, "/run/go").touch()


def picture(stack: Project, host: str) -> tuple[str, ...]:
    """What stands on the host, to be compared."""
    commands = (
        "ip -d link",
        "ip -o addr",
        # Without what traffic has taught, and the multicast groups that the kernel joins some time.
        "bridge fdb | grep permanent | grep -v '^33:33\\|^01:00:5e' | sort",
        "find /var/lib/overlay -type f ! -name history.jsonl -exec sha256sum {} +",
    )
    texts = (stack.lab.run(host, command, check=False).stdout for command in commands)
    return tuple(re.sub(r"_timer +[0-9.]+|valid_lft \w+", "", text) for text in texts)


def pull_cable(lab: Lab, host: str) -> None:
    """The host is unreachable, and that is noticed at once, not after ARP's or TCP's seconds at each try."""
    lab.operator_run(
        "for f in /proc/sys/net/ipv4/neigh/*/retrans_time_ms; do "
        "case $f in */default/*) ;; *) echo 50 >$f;; esac; done; "
        "ip neigh flush all"
    )
    lab.kill(host)


def wait_for(what: Callable[[], bool], seconds: float = 10.0) -> None:
    """Asks until it is so."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)
