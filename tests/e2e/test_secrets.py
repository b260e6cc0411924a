"""A secret value is on the hosts that use it, and nowhere else: not in the state, on a screen, in a log, in a list of
processes.

The kind that uses it in most of them is tests/sealed, on any kernel; L2TP has it in earnest, in the VM lab if need be.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import sealed
from tests.e2e.support import AGENT, Stack, source
from tests.e2e.vm_lab import VmLab

pytestmark = [pytest.mark.root, pytest.mark.lab(hosts=2)]

FIRST, SECOND = "c00c1ec00c1ec00c", "5ec0ddc0"
KEY = "overlay:segments.app.tunnels.mesh.cookie"
FOLDER = "/var/lib/overlay/secrets/overlay/lab"


class SecretStack(Stack):
    """Two hosts and a tunnel that is to have a cookie."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        del self.segments["ops"], self.hosts["h3"]
        self.segments["app"]["containers"] = {}

    def set_secret(self, value):
        """As a person does it."""
        self.run("config", "set", "--path", "--secret", KEY, value).ok()
        self.config = yaml.safe_load(self.file.read_text())["config"]
        assert set(self.segments["app"]["tunnels"]["mesh"]["cookie"]) == {"secure"}

    def kept(self, host):
        """The secrets' files on the host, with mode and value."""
        row = 'echo "$f $(stat -c %a "$f") $(od -An -tx1 "$f" | tr -d " ")"'
        script = f"cd {FOLDER} 2>/dev/null && for f in *; do {row}; done"
        rows = self.lab.run(host, ["sh", "-c", script], check=False).stdout.splitlines()
        return {name: (mode, value) for name, mode, value in map(str.split, rows)}

    def reference(self, host="h1"):
        """What the document in the state says."""
        text = self.state()[f"lab-{host}-document"]["inputs"]["stdin"]
        return re.search(r'"cookie": "(cookie-app-mesh:[0-9a-f]{16})"', text).group(1)


class SealedStack(SecretStack):
    """With the kind of tests/sealed."""

    def __init__(self, *arguments, copy):
        shutil.copytree(source(), copy, ignore=shutil.ignore_patterns("cache"))
        sealed.put_into(copy)
        super().__init__(*arguments)
        self.environment |= {"PYTHONPATH": str(copy), "XDG_CACHE_HOME": str(copy / "cache")}

    def used(self, host):
        """What the device has."""
        return self.lab.run(host, "od -An -tx1 /run/sealed-vx-app | tr -d ' \\n'").stdout


@pytest.fixture
def stack(lab, tmp_path, home):
    return SealedStack(lab, tmp_path / "stack", "lab", home, copy=tmp_path / "source")


def spellings(*values):
    """The ways in which a value might turn up."""
    out = set()
    for value in values:
        raw = bytes.fromhex(value)
        texts = {value, value.upper(), base64.b64encode(raw).decode(), base64.b64encode(value.encode()).decode()}
        out |= {text.rstrip("=").encode() for text in texts} | {raw}
    return out


def places_with(values, *roots):
    """The files under these folders that have one of the values in them."""
    found = []
    for root in roots:
        for path in Path(root).rglob("*"):
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    content = path.read_bytes()
                    found += [path for value in values if value in content]
    return found


#: Looks at all processes until its input ends. What it looks for comes by its input: it is itself one of them.
LOOK = """
import glob, json, select, sys
values, pause = json.loads(sys.stdin.readline())
values, agent = [bytes.fromhex(value) for value in values], b"sbin/" + b"overlay-agent"
looked, agents, seen = 0, 0, []
print("begun", flush=True)
while not select.select([sys.stdin], [], [], pause)[0]:
    for process in glob.glob("/proc/[0-9]*"):
        try:
            text = open(process + "/cmdline", "rb").read()
            if agent in text:
                agents += 1
                text += open(process + "/environ", "rb").read()
            seen += [repr(text) for value in values if value in text]
        except OSError:
            pass
    looked += 1
print(json.dumps([looked, agents, seen]))
"""


@contextlib.contextmanager
def process_lists(lab, values):
    """Looks at the arguments of all processes while the block runs, and at the environment of the agents;
    none has a value. (Pulumi hands the configuration to the program in its environment, which only its user can read.)
    Looks at the operator's, which are this machine's, and at those of the VM where the hosts are in one.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    lookers = [(subprocess.Popen([sys.executable, "-c", LOOK], text=True, **pipes), 0.01)]
    if isinstance(lab, VmLab):
        lookers.append((lab.vm.popen(["/usr/bin/python3", "-c", LOOK], **pipes), 0.2))  # its one processor is slow
    for looker, pause in lookers:
        looker.stdin.write(json.dumps([[value.hex() for value in values], pause]) + "\n")
        looker.stdin.flush()
        assert looker.stdout.readline() == "begun\n"
    said = []
    try:
        yield
    finally:
        for looker, _ in lookers:
            said.append(looker.communicate()[0])
    for one in said:
        looked, agents, seen = json.loads(one)
        assert looked > 3
        assert not seen
    assert agents, "the agents were seen at work"


def nowhere(stack, *values):
    """None of the values is where it should not be."""
    all_ = spellings(*values)
    assert not [value for value in all_ if value in stack.transcript.encode()]
    control = stack.directory.parent / "control"
    control.mkdir(exist_ok=True)
    (control / "file").write_text(f"cookie: {values[0]}")
    assert places_with(all_, control)
    assert not places_with(all_, stack.directory, stack.lab.home, stack.environment["PULUMI_HOME"] + "/logs")
    for host in stack.lab.hosts:
        assert not [value for value in all_ if value in stack.lab.log(host).encode()], host
        script = "grep -rlaF {} /var/lib/overlay /run /etc /tmp ~ 2>/dev/null"
        for value in values:
            files = stack.lab.run(host, script.format(value), check=False).stdout.split()
            assert not files, (host, files)


def test_shown_by_reference_and_kept_on_the_host_alone(stack):
    stack.set_secret(FIRST)
    preview = stack.preview().ok()
    assert '"cookie-app-mesh:<secret>"' in preview
    assert re.search(r"cookie *: \[secret\]", preview), "the component's input"
    assert "[unknown]" not in preview
    with process_lists(stack.lab, spellings(FIRST)):
        assert "h1: 1 secret, 1 of them new" in stack.up().ok()
    first = stack.reference()
    for host in stack.hosts:
        assert stack.kept(host) == {first: ("600", FIRST)}
        assert stack.used(host) == FIRST
    assert stack.reference("h2") == first
    state = stack.state()
    assert "ciphertext" in state["lab-h1-secrets"]["inputs"]["stdin"]
    assert "ciphertext" in state["lab-secrets-key"]["outputs"]["stdout"]
    assert isinstance(state["lab-h1-document"]["inputs"]["stdin"], str), "the whole diff would read [secret]"
    stack.noop()
    stack.healthy()
    nowhere(stack, FIRST)

    stack.set_secret(SECOND)
    preview = stack.preview().ok()
    changes = re.findall(r'~ cookie *: "cookie-app-mesh:(\w+)" => "cookie-app-mesh:(\w+)"', preview)
    assert len(changes) == 2
    assert len(set(changes)) == 1
    with process_lists(stack.lab, spellings(SECOND)):
        text = stack.up().ok()
    second = stack.reference()
    assert f"vx-app: cookie {first} -> {second}" in text
    for host in stack.hosts:
        assert stack.kept(host) == {second: ("600", SECOND)}
        assert stack.used(host) == SECOND
    stack.noop()
    stack.healthy()

    del stack.segments["app"]["tunnels"]["mesh"]["cookie"]
    stack.up().ok()
    assert not [name for name in stack.state() if "secrets" in name]
    assert {host: stack.kept(host) for host in stack.hosts} == {"h1": {}, "h2": {}}
    stack.noop()
    stack.set_secret(FIRST)
    stack.up().ok()
    nowhere(stack, FIRST, SECOND)
    stack.destroy().ok()
    stack.clean()
    nowhere(stack, FIRST, SECOND)


@pytest.mark.timeout(900)
@pytest.mark.lab(hosts=2, kinds=["l2tp"])
def test_the_cookie_of_l2tp(lab, tmp_path, home):
    stack = SecretStack(lab, tmp_path / "stack", "lab", home)
    stack.segments["app"]["tunnels"]["mesh"] = {"kind": "l2tp"}
    stack.segments["app"]["addresses"] = {"h1": "10.10.0.1", "h2": "10.10.0.2"}
    for value in (FIRST, SECOND):
        stack.set_secret(value)
        stack.up().ok()
        reference = stack.reference()
        for host in stack.hosts:
            assert stack.kept(host) == {reference: ("600", value)}
            said = lab.run(host, "ip l2tp show session").stdout
            assert set(re.findall(r"cookie ([0-9a-f]+)", said)) == {value}, said
        assert lab.ping("h1", "10.10.0.2", wait=5)
        stack.noop()
        stack.healthy()
    nowhere(stack, FIRST, SECOND)
    stack.destroy().ok()
    stack.clean()


def test_an_apply_that_fails_keeps_the_old_value_and_says_none(stack):
    stack.set_secret(FIRST)
    stack.up().ok()
    first = stack.reference("h2")
    stack.set_secret(SECOND)
    stack.lab.run("h2", "touch /run/sealed-refuse")
    text = stack.up().failed()
    assert "sealed-refuse is there" in text
    # The undo is refused, too, and ends once it can.
    stack.lab.run("h2", "rm /run/sealed-refuse")
    stack.lab.run("h2", [AGENT, "restore"])
    assert stack.used("h2") == FIRST
    assert stack.used("h1") == SECOND
    # Both: the next `up` does not send the new one again.
    assert stack.kept("h2").keys() == {first, stack.reference("h1")}
    stack.up().ok()
    assert stack.used("h2") == SECOND
    assert stack.kept("h2").keys() == {stack.reference("h1")}
    stack.noop()
    nowhere(stack, FIRST, SECOND)


def test_drift_is_found_and_mended(stack):
    stack.set_secret(FIRST)
    stack.up().ok()
    stack.lab.run("h1", "printf 1234 > /run/sealed-vx-app")
    done = stack.lab.run("h1", [AGENT, "check"], check=False)
    assert done.stderr == f"vx-app: cookie want {stack.reference()}, is another\n"
    stack.lab.run("h1", [AGENT, "restore"])
    assert stack.used("h1") == FIRST


def test_a_host_that_lost_its_secrets(stack):
    stack.set_secret(FIRST)
    stack.up().ok()
    stack.lab.run("h1", "rm -r /var/lib/overlay/secrets")
    stack.segments["app"]["tunnels"]["mesh"]["vni"] = 45
    text = stack.up().failed()
    assert (
        f"h1 vx-app: {stack.reference()}: the secret is not on this host; raise the host's generation in the stack "
        "file, and `pulumi up` brings it again"
    ) in text
    stack.hosts["h1"]["generation"] = 2
    stack.up().ok()
    assert stack.used("h1") == FIRST
    stack.noop()


def test_the_command_line_sees_no_value(stack):
    stack.set_secret(SECOND)
    stack.segments["app"]["containers"] = {"web": {"host": "h1"}}
    stack.write()
    for words in (["lock"], ["plan"], ["plan", "--json"], ["explain", "h1"]):
        argv = ["python", "-m", "overlay_components.cli", *words]
        done = stack.lab.operator_popen(argv, cwd=stack.directory, env=stack.environment, stdout=-1, stderr=-2)
        text, _ = done.communicate()
        assert done.returncode == 0, text
        assert ("cookie-app-mesh:<secret>" in text) == ("plan" in words), text
