"""`python -m lab`: the lab from a shell. `--help` says what each verb does."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from lab._error import LabError
from lab._host import ENVIRONMENT
from lab._lab import Lab
from lab._net import BASTION
from lab._vm import CHECKOUT, Vm


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", default="lab", help="which lab (default: lab)")
    parser = argparse.ArgumentParser(prog="python -m lab", description="Real hosts on this machine, for tests.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    up = verbs.add_parser("up", parents=[common], help="start hosts h1 … hN and the operator's network")
    up.add_argument("--hosts", type=int, default=3, help="how many, 1 to 250 (default: 3)")
    up.add_argument("--ipv6", action="store_true", help="an IPv6 underlay beside the IPv4 one")
    up.add_argument("--bastion", action="store_true", help="hosts are reached through host `bastion` only")
    up.add_argument("--nics", type=int, default=1, help="2: each host has a second card, on a switch of its own")
    up.add_argument("--rate", help="what each cable carries, in tc's words (1gbit)")
    up.add_argument("--mtu", type=int, default=1500, help="of the underlay (default: 1500)")
    up.add_argument("--max-startups", default="100:30:200", help="sshd's MaxStartups (sshd's default: 10:30:100)")
    verbs.add_parser("down", parents=[common], help="end it and remove all of it, leftovers included")
    verbs.add_parser("list", help="the names of this checkout's labs, whoever made them")
    status = verbs.add_parser("status", parents=[common], help="what is up")
    status.add_argument("--json", action="store_true")
    run = verbs.add_parser("exec", parents=[common], help="run CMD in the operator's network (or on a host)")
    run.add_argument("--host", help="on this host, as root, without ssh")
    run.add_argument("--home", action="store_true", help="with HOME set to the lab's (ssh config, keys)")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD …")
    shell = verbs.add_parser("shell", parents=[common], help="a shell in the operator's network (or on a host)")
    shell.add_argument("--host", help="on this host, as root, without ssh")
    shell.add_argument("--home", action="store_true", help="with HOME set to the lab's")
    ssh = verbs.add_parser("ssh", parents=[common], help="ssh to a host, from the operator: ssh [user@]h1 [cmd]")
    ssh.add_argument("words", nargs=argparse.REMAINDER, metavar="HOST [CMD …]")
    for verb, text in (
        ("reboot", "power-cycle a host: files stay, processes and devices go"),
        ("reinstall", "replace a host by a fresh one of the same name and address"),
        ("kill", "make a host unreachable"),
        ("revive", "undo kill"),
    ):
        power = verbs.add_parser(verb, parents=[common], help=text)
        power.add_argument("host")

    start = verbs.add_parser("start", parents=[common], help="start a host's own Docker or LXD; then `docker`, `lxc`")
    start.add_argument("runtime", choices=("docker", "lxd"))
    start.add_argument("host")

    _add_containers(verbs, common)
    lxc = verbs.add_parser("lxc", parents=[common], help="make and start an LXC container; lxc.net.0.* on stdin")
    lxc.add_argument("host")
    lxc.add_argument("container")
    lxc.add_argument("--start", default="", metavar="CMD", help="shell command for each of its starts")

    vm = verbs.add_parser("vm", help="boot a VM with Debian's stock kernel; run CMD in it (or a shell), and end it")
    vm.add_argument("--systemd", action="store_true", help="systemd is PID 1, as on a real host (slower)")
    vm.add_argument("--nics", type=int, default=0, help="further network cards, all on one wire (default: 0)")
    vm.add_argument("--memory", type=int, default=2048, help="MiB (default: 2048)")
    vm.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD …")
    return parser


def _add_containers(verbs: Any, common: argparse.ArgumentParser) -> None:
    container = verbs.add_parser("container", help="network namespaces that stand in for containers")
    actions = container.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", parents=[common], help="make one and plug it into a bridge of its host")
    add.add_argument("host")
    add.add_argument("container")
    add.add_argument("--bridge", required=True)
    add.add_argument("--mac")
    add.add_argument("--address", action="append", default=[], help="with prefix length; may be repeated")
    add.add_argument("--gateway", action="append", default=[], help="may be repeated (IPv4, IPv6)")
    add.add_argument("--mtu", type=int)
    dhcp = actions.add_parser("dhcp", parents=[common], help="configure one by a real DHCP client")
    dhcp.add_argument("host")
    dhcp.add_argument("container")
    dhcp.add_argument("--client", choices=("udhcpc", "dhclient"), default="udhcpc")
    dhcp.add_argument("--ipv6", action="store_true", help="by DHCPv6 (dhclient)")
    rm = actions.add_parser("rm", parents=[common], help="remove one")
    rm.add_argument("host")
    rm.add_argument("container")
    inside = actions.add_parser("exec", parents=[common], help="run CMD in one")
    inside.add_argument("host")
    inside.add_argument("container")
    inside.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD …")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _words(words: Sequence[str]) -> list[str]:
    given = list(words[1:] if words[:1] == ["--"] else words)
    if not given:
        raise LabError("what shall be run? `… -- CMD [ARGUMENT …]`")
    return given


def _become(argv: Sequence[str], env: dict[str, str]) -> int:
    sys.stdout.flush()
    try:
        os.execvpe(argv[0], list(argv), env)  # noqa: S606  (what `exec` is for)
    except OSError as error:
        raise LabError(f"{argv[0]}: {error.strerror}") from None


def _up(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    lab = Lab(
        arguments.name,
        arguments.hosts,
        ipv6=arguments.ipv6,
        bastion=arguments.bastion,
        rate=arguments.rate,
        mtu=arguments.mtu,
        max_startups=arguments.max_startups,
        nics=arguments.nics,
        say=_say,
    )
    made = lab.up()
    first, last = next(iter(lab.hosts.values())), list(lab.hosts.values())[-1]
    what = f"{len(lab.hosts)} hosts, {first.name} {first.address} … {last.name} {last.address}"
    if made:
        print(f"lab {lab.name}: up in {time.monotonic() - began:.1f} s: {what}")
    else:
        print(f"lab {lab.name}: is up already: {what}")
    name = "" if lab.name == "lab" else f" --name {lab.name}"
    print(f"look around: python -m lab ssh{name} h1; python -m lab exec{name} -- ping h1; python -m lab down{name}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    status = Lab.open(arguments.name).status()
    if arguments.json:
        print(json.dumps(status, indent=1))
        return 0
    options = ", ".join(f"{key} {value}" for key, value in status["options"].items())
    print(f"lab {status['name']}: up ({options}); operator {status['operator']} {status['operator6'] or ''}".rstrip())
    for host in status["hosts"].values():
        state = "up" if host["sshd"] else "runs, without sshd" if host["runs"] else "down"
        print(f"  {host['name']:8} {host['address']:15} {host['address6'] or '':22} pid {host['pid']:<8} {state}")
    return 0


def _enter(arguments: argparse.Namespace) -> int:
    lab = Lab.open(arguments.name)
    shell = arguments.verb == "shell"
    if arguments.host:
        words = ["/bin/bash", "-l"] if shell else _words(arguments.command)
        env = {**ENVIRONMENT, **{key: os.environ[key] for key in ("TERM", "COLUMNS", "LINES") if key in os.environ}}
        return _become([*lab.enter(arguments.host), *words], env)
    words = [os.environ.get("SHELL", "/bin/bash")] if shell else _words(arguments.command)
    env = lab.operator_env()
    if arguments.home:
        env["HOME"] = str(lab.home)
    if shell:
        _say(f"operator of lab {lab.name}: `ssh h1` works here; `exit` leaves")
    lab.become_operator()
    return _become(words, env)


def _ssh(arguments: argparse.Namespace) -> int:
    lab = Lab.open(arguments.name)
    words = _words(arguments.words)
    name = words[0].rpartition("@")[2].removesuffix("-v6")
    if not name.startswith("-") and name not in (*lab.hosts, *([BASTION] if lab.bastion else [])):
        raise LabError(f"lab {lab.name}: no host {name!r}; there are {', '.join(lab.hosts)}")
    lab.become_operator()
    return _become(["ssh", "-F", str(lab.ssh_config), *words], lab.operator_env())


def _container(arguments: argparse.Namespace) -> int:
    lab = Lab.open(arguments.name)
    host, name = arguments.host, arguments.container
    if arguments.action == "add":
        lab.container(host, name, arguments.bridge, arguments.mac, arguments.address, arguments.gateway, arguments.mtu)
    elif arguments.action == "dhcp":
        lab.dhcp(host, name, arguments.client, ipv6=arguments.ipv6)
    elif arguments.action == "rm":
        lab.remove_container(host, name)
    else:
        env = {**ENVIRONMENT, **({"TERM": os.environ["TERM"]} if "TERM" in os.environ else {})}
        return _become([*lab.enter(host), "ip", "netns", "exec", name, *_words(arguments.command)], env)
    return 0


def _lxc(arguments: argparse.Namespace) -> int:
    network = sys.stdin.read().splitlines()
    Lab.open(arguments.name).lxc(arguments.host, arguments.container, network, start=arguments.start)
    return 0


def _start(arguments: argparse.Namespace) -> int:
    lab = Lab.open(arguments.name)
    {"docker": lab.start_docker, "lxd": lab.start_lxd}[arguments.runtime](arguments.host)
    print(f"lab {lab.name}: {arguments.host}: {arguments.runtime} runs")
    return 0


def _vm(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    with Vm(systemd=arguments.systemd, nics=arguments.nics, memory=arguments.memory) as vm:
        _say(f"vm: Linux {vm.release}, up in {time.monotonic() - began:.1f} s")
        words = _words(arguments.command) if arguments.command else ["/bin/bash", "-l"]
        terminal = sys.stdin.isatty() and sys.stdout.isatty()
        # What one types is what this checkout's commands are called by.
        inside = f"cd {shlex.quote(str(CHECKOUT))}; export PATH={CHECKOUT}/.venv/bin:$PATH; exec {shlex.join(words)}"
        return subprocess.run(vm.argv(inside, terminal=terminal), check=False).returncode


def _power(arguments: argparse.Namespace) -> int:
    lab = Lab.open(arguments.name)
    getattr(lab, arguments.verb)(arguments.host)
    print(f"lab {lab.name}: {arguments.host}: {arguments.verb} done")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    found = Lab(arguments.name).down()
    print(f"lab {arguments.name}: {f'down in {time.monotonic() - began:.1f} s' if found else 'is not there'}")
    return 0


def _list(_: argparse.Namespace) -> int:
    for name in Lab.names():
        print(name)
    return 0


_VERBS = {
    "up": _up,
    "down": _down,
    "list": _list,
    "status": _status,
    "exec": _enter,
    "shell": _enter,
    "ssh": _ssh,
    "container": _container,
    "lxc": _lxc,
    "start": _start,
    "vm": _vm,
    "reboot": _power,
    "reinstall": _power,
    "kill": _power,
    "revive": _power,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; 1 and one message on stderr when it cannot be done."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["ssh"]:  # what follows --name is ssh's, its options too; argparse would claim those
        at = 3 if words[1:2] == ["--name"] else 2 if words[1:2] and words[1].startswith("--name=") else 1
        if words[at:] and words[at] not in ("-h", "--help"):
            words.insert(at, "--")
    arguments = _parser().parse_args(words)
    try:
        return _VERBS[arguments.verb](arguments)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
