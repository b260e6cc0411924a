"""A private sshd and a Pulumi project of a few resources, for the tests of the command plugins."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = Path("plugins/resource-command-v1.2.1/pulumi-resource-command")

PROGRAM = """
import json, pulumi, pulumi_command
kinds = {"Command": pulumi_command.remote.Command, "CopyToRemote": pulumi_command.remote.CopyToRemote,
         "Local": pulumi_command.local.Command}
for name, (kind, arguments) in json.load(open("resources.json")).items():
    secret = arguments.pop("secret", [])
    if "file" in arguments:
        arguments["source"] = pulumi.FileAsset(arguments.pop("file"))
    if "text" in arguments:
        arguments["source"] = pulumi.StringAsset(arguments.pop("text"))
    for key in secret:
        arguments[key] = pulumi.Output.secret(arguments[key])
    resource = kinds[kind](name, **arguments)
    if kind != "CopyToRemote":
        pulumi.export(name, resource.stdout)
"""

SSHD_CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
AllowTcpForwarding yes
AcceptEnv PULUMI_COMMAND_*
Subsystem sftp internal-sftp
LogLevel VERBOSE
"""

# In a mount namespace of its own: /root is an empty directory of the test's, the account cannot be locked.
SSHD_START = """
mount --make-rprivate /
mkdir -p "$1/home"; mount --bind "$1/home" /root
sed 's/^root:[^:]*:/root:*:/' /etc/shadow > "$1/shadow"; chmod 600 "$1/shadow"; mount --bind "$1/shadow" /etc/shadow
mount -t tmpfs tmpfs /run; mkdir -p /run/sshd
exec "$2" -D -e -f "$1/sshd_config"
"""


def sshd_unavailable() -> str | None:
    """Why no sshd can be started here; None when it can."""
    if os.geteuid() != 0:
        return "needs root: sshd runs in a mount namespace of its own"
    return None if _sshd() else "needs sshd (Debian: openssh-server)"


def _sshd() -> str | None:
    return shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin:/sbin")


@dataclass
class Sshd:
    """One running sshd and the key that it lets in."""

    directory: Path
    port: int
    host_key: str
    private_key: str

    @property
    def home(self) -> Path:
        """The home directory of its root."""
        return self.directory / "home"

    @property
    def connection(self) -> dict[str, Any]:
        """The `connection` input for it; few dials, to be quick where a test wants a failure."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "user": "root",
            "hostKey": self.host_key,
            "privateKey": self.private_key,
            "dialErrorLimit": 1,
            "perDialTimeout": 5,
        }

    @property
    def log(self) -> str:
        """What it said."""
        return (self.directory / "log").read_text()


def make_key(path: Path) -> str:
    """A new key pair; the public key as known_hosts and `hostKey` have it."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True)
    return path.with_suffix(".pub").read_text().strip()


@contextlib.contextmanager
def running_sshd(directory: Path) -> Iterator[Sshd]:
    """An sshd on a free port of 127.0.0.1, ended and its port free again afterwards."""
    directory.mkdir()
    host_key = make_key(directory / "host_key")
    (directory / "authorized_keys").write_text(make_key(directory / "user_key") + "\n")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (directory / "sshd_config").write_text(SSHD_CONFIG.format(port=port, directory=directory))
    command = ["unshare", "--mount", "--", "sh", "-ec", SSHD_START, "sshd", directory, str(_sshd())]
    with (directory / "log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            _wait_for(port, process, directory / "log")
            yield Sshd(directory, port, host_key, (directory / "user_key").read_text())
        finally:
            process.terminate()
            process.wait(timeout=10)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError(f"sshd does not listen on port {port}: {log.read_text()}")


@dataclass
class Result:
    """What a run of Pulumi said, both streams, and how it ended."""

    text: str
    code: int

    def ok(self) -> str:
        """The text, provided that it succeeded."""
        assert self.code == 0, self.text
        return self.text

    def failed(self) -> str:
        """The text, provided that it failed."""
        assert self.code != 0, self.text
        return self.text


@dataclass
class Project:
    """A Pulumi project in a directory of its own, with a state of its own."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    transcript: str = ""

    def use(self, home: Path) -> None:
        """From now on use the plugin of this PULUMI_HOME; the first time, make the stack."""
        self.environment["PULUMI_HOME"] = str(home)
        state = self.directory / "state"
        if not state.exists():
            state.mkdir()
            self.pulumi("stack", "init", "--no-select", "test").ok()

    def declare(self, **resources: tuple[str, dict[str, Any]]) -> None:
        """Want exactly these resources: name=(kind, arguments)."""
        (self.directory / "resources.json").write_text(json.dumps(resources))

    def pulumi(self, *arguments: str, **environment: str) -> Result:
        """Run pulumi, without a terminal."""
        done = subprocess.run(
            ["pulumi", "--non-interactive", "--color=never", *arguments],
            check=False,
            cwd=self.directory,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        self.transcript += done.stdout
        return Result(done.stdout, done.returncode)

    def up(self, **environment: str) -> Result:
        """`pulumi up`, at once."""
        return self.pulumi("up", "--yes", "--skip-preview", **environment)

    def preview(self) -> Result:
        """`pulumi preview` with all details."""
        return self.pulumi("preview", "--diff")

    def destroy(self) -> Result:
        """`pulumi destroy`, at once."""
        return self.pulumi("destroy", "--yes", "--skip-preview")

    def outputs(self) -> dict[str, Any]:
        """The stack's outputs."""
        return dict(json.loads(self.pulumi("stack", "output", "--json").ok()))

    def state(self) -> list[dict[str, Any]]:
        """The state's resources, except the stack and its provider; secrets as they are stored."""
        deployment = json.loads(self.pulumi("stack", "export").ok())["deployment"]
        return [row for row in deployment.get("resources", []) if row["type"].startswith("command:")]


def make_project(directory: Path) -> Project:
    """A project without a stack. The environment is what tools/env.sh makes, apart from where the state is."""
    directory.mkdir()
    (directory / "Pulumi.yaml").write_text("name: conformance\nruntime: python\n")
    (directory / "__main__.py").write_text(PROGRAM)
    script = f". {ROOT}/tools/env.sh && env -0"
    lines = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True).stdout
    environment = dict(line.split("=", 1) for line in lines.split("\0") if line)
    environment["PULUMI_BACKEND_URL"] = f"file://{directory}/state"
    environment.pop("SSH_AUTH_SOCK", None)  # the developer's own agent must not take part
    environment["PULUMI_STACK"] = "test"  # `stack select` would be remembered in one plugin's PULUMI_HOME
    return Project(directory, environment)


def make_home(directory: Path, kind: str) -> Path:
    """A PULUMI_HOME with nothing but the real plugin or the stand-in."""
    target = directory / PLUGIN
    target.parent.mkdir(parents=True)
    if kind == "real":
        target.symlink_to(ROOT / ".tools" / PLUGIN)
    else:
        install = "import sys, setup, pathlib; setup.install_stand_in(pathlib.Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", install, directory], check=True, cwd=ROOT / "tools")
    return directory
