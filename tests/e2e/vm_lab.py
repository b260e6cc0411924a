"""A lab in the VM, with Pulumi outside of it: the hosts have the stock kernel, and the program runs at full speed.

Loading Pulumi takes the VM's emulated processor half a minute, what runs on the hosts a second. So only the lab is in
there. SSH gets to its hosts through the VM's own sshd, as through a bastion; so says the operator's ~/.ssh/config.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab import HostProcess, Lab, Vm, _vm
from lab._host import ENVIRONMENT
from lab._lab import Command, _argv

_GATE = "vmgate"
#: Between the VM's own network and the operator's of its lab, which is the hosts' gateway.
_WIRE = """
ip link del gate 2>/dev/null
set -e
ip link add gate type veth peer name gate netns {keeper}
ip address add 192.0.2.1/30 dev gate; ip address add 2001:db8:ffff::1/64 dev gate nodad; ip link set gate up
in="nsenter --net=/proc/{keeper}/ns/net --"
$in ip address add 192.0.2.2/30 dev gate; $in ip address add 2001:db8:ffff::2/64 dev gate nodad; $in ip link set gate up
$in sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip route replace 198.18.0.0/15 via 192.0.2.2; ip route replace 2001:db8:18::/64 via 2001:db8:ffff::2
"""


class VmLab(Lab):
    """A Lab whose hosts are in the VM; what runs on hosts is sent there, what the operator runs stays here."""

    def __init__(self, vm: Vm, name: str, directory: Path, **options: Any) -> None:
        super().__init__(name, directory=directory, **options)
        self.vm = vm

    def up(self) -> bool:
        """Starts it in there, and makes this side's ssh files."""
        words = ["up", "--name", self.name, "--hosts", str(self.options.hosts), "--mtu", str(self.options.mtu)]
        words += ["--nics", str(self.options.nics)]
        self._inside(*words, *(["--ipv6"] if self.options.ipv6 else []))
        there = f"{_vm.CHECKOUT}/.lab/{self.name}"
        self.logs = f"{there}/log"
        self._take(json.loads(self.vm.read(f"{there}/state.json")))
        self.vm.run(_WIRE.format(keeper=self._keeper[0]))
        for folder in ("ssh", "home/.ssh", "bin"):
            (self.root / folder).mkdir(parents=True, mode=0o700)
        self.identity.touch(0o600)
        self.identity.write_text(self.vm.read(f"{there}/ssh/id_ed25519"))
        self.identity.with_suffix(".pub").write_text(self.vm.read(f"{there}/ssh/id_ed25519.pub"))
        self._write_ssh_files()
        gate = [
            f"Host {_GATE}", "  HostName 127.0.0.1", f"  Port {self.vm._port}", "  HostKeyAlias vm",
            f"  IdentityFile {_vm.image_folder() / 'key'}", "Host 198.18.* 2001:db8:18:*", f"  ProxyJump {_GATE}", "",
        ]  # fmt: skip
        for folder in (self.root / "ssh", self.home / ".ssh"):
            config, known = folder / "config", folder / "known_hosts"
            config.write_text("\n".join(gate) + config.read_text())
            known.write_text(known.read_text() + (_vm.image_folder() / "known_hosts").read_text())
        return True

    def down(self) -> bool:
        """Ends it."""
        self._inside("down", "--name", self.name)
        self.hosts = {}
        return True

    def _inside(self, *words: str) -> None:
        command = shlex.join([str(_vm.CHECKOUT / ".venv/bin/python"), "-m", "lab", *words])
        self.vm.run(f"cd {_vm.CHECKOUT} && {command}")

    def popen(
        self, host: str, command: Command, *, env: Mapping[str, str] | None = None, **options: Any
    ) -> HostProcess:
        """As Lab's. A signal ends the connection, not the command."""
        enter = ["nsenter", f"--target={self.host(host).pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--"]
        variables = [f"{key}={value}" for key, value in {**ENVIRONMENT, **(env or {})}.items()]
        words = shlex.join([*enter, "env", "-i", *variables, *_argv(command)])
        options = {"text": True, "errors": "replace", "start_new_session": True, **options}
        return HostProcess(self.vm.argv(words), **options)

    def operator_popen(
        self, command: Command, *, env: Mapping[str, str] | None = None, cwd: Path | str | None = None, **options: Any
    ) -> HostProcess:
        """Here, with this machine's network."""
        options = {"text": True, "errors": "replace", "start_new_session": True, **options}
        return HostProcess(_argv(command), env=self.operator_env(env), cwd=cwd, **options)

    def log(self, host: str) -> str:
        """What the host's sshd has written."""
        return self.vm.read(f"{self.logs}/{host}.log")
