"""The wheel, as README.md tells a newcomer to use it: its commands as they stand, against two hosts.

`pulumi` reaches the lab's network through a wrapper; all else runs where a person would run it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import zipfile

import pytest

from overlay_components import config
from tests.docs import README, commands
from tests.e2e.support import ROOT, environment

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: The addresses that README uses, by lab host.
SERVERS = {"h1": "192.0.2.11", "h2": "192.0.2.12"}


@pytest.fixture
def newcomer(lab, tmp_path, home):
    """Runs a script as somebody whose ssh reaches README's two servers, and whose Pulumi is fresh."""
    for host, address in SERVERS.items():
        lab.run(host, f"ip address add {address}/24 dev eth0")
        keys = [" ".join(key.split()[:2]) for key in lab.host(host).keys]
        with lab.known_hosts.open("a") as known:
            known.writelines(f"{address} {key}\n" for key in keys)
    device = json.loads(lab.operator_run(["ip", "-j", "address", "show", "to", lab.operator]).stdout)[0]["ifname"]
    lab.operator_run(["ip", "address", "add", "192.0.2.254/24", "dev", device])

    tools = tmp_path / "bin"
    tools.mkdir()
    keeper = lab.status()["keeper"]
    wrapper = tools / "pulumi"
    wrapper.write_text(
        "#!/bin/sh\n"
        # --local means the account's home, whatever HOME says: not here.
        f'[ "$*" != "login --local" ] || set -- login "file://{lab.home}"\n'
        f'exec nsenter --net=/proc/{keeper}/ns/net -- {ROOT}/.tools/bin/pulumi "$@"\n'
    )
    wrapper.chmod(0o755)
    own = tmp_path / "pulumi-home"
    own.mkdir()
    (own / "plugins").symlink_to(home / "plugins")
    (own / "bin").symlink_to(home / "bin")

    env = {k: v for k, v in environment().items() if not k.startswith(("PULUMI_", "PYTHON", "VIRTUAL_ENV"))}
    env.pop("SSH_AUTH_SOCK", None)
    # What is pip's own (index, cache) stays as on this machine, although HOME does not.
    real = os.path.expanduser("~")  # noqa: PTH111 - as pip does
    env.setdefault("PIP_CACHE_DIR", f"{real}/.cache/pip")
    for place in (f"{real}/.config/pip/pip.conf", f"{real}/.pip/pip.conf"):
        if os.path.exists(place):  # noqa: PTH110
            env.setdefault("PIP_CONFIG_FILE", place)
    env |= {
        "HOME": str(lab.home),
        "PATH": f"{tools}:{env['PATH']}",
        "PULUMI_HOME": str(own),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        # What a person would answer.
        "PULUMI_SKIP_CONFIRMATIONS": "true",
        "PULUMI_CONFIG_PASSPHRASE": "correct horse",
    }

    def run(script: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=ROOT,
            env=env,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=280,
            check=False,
        )
        if re.search(r"NameResolutionError|NewConnectionError|Temporary failure in name resolution", done.stdout):
            pytest.skip("pip reaches no package registry from here")
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


@pytest.mark.lab(hosts=2)
def test_first_stack_of_ones_own(newcomer, lab):
    """README, "A first stack for two servers of your own"."""
    block = commands(README, "## Two servers of your own")
    said = newcomer("\n".join(block))
    assert re.search(r"Resources:\n    \+ \d+ created", said), said
    for host, other in (("h1", "h2"), ("h2", "h1")):
        assert lab.links(host)["vx-app"]["linkinfo"]["info_data"]["id"] == 42
        fdb = lab.run(host, "bridge fdb show dev vx-app").stdout
        assert f"00:00:00:00:00:00 dst {SERVERS[other]} " in fdb

    # The IP plan holds: containers with those addresses and MACs reach each other.
    activate = next(line for line in block if line.startswith(". "))
    plan = json.loads(newcomer(f"{activate}\ncd ~/my-overlay\npulumi stack output containers --json"))["app"]
    hosts = {"a": "h1", "b": "h2"}
    for name, row in plan.items():
        lab.container(hosts[row["host"]], name, row["bridge"], row["mac"], row["address"], (), row["mtu"])
    assert lab.ping("h1", plan["web2"]["address"].partition("/")[0], container="web1", wait=3)
    for name, row in plan.items():
        lab.remove_container(hosts[row["host"]], name)

    # The wheel has its own agent and schema, not this checkout's.
    script = "python -c 'import overlay_agent; print(overlay_agent.__file__)'\noverlay schema"
    said = newcomer(f"{activate}\ncd ~/my-overlay\n{script}")
    place, _, schema = said.partition("\n")
    assert place.startswith(str(lab.home / "my-overlay"))
    assert schema == config.schema_text() == (lab.home / "my-overlay/schema/overlay-stack.schema.json").read_text()

    newcomer(f"{activate}\ncd ~/my-overlay\npulumi destroy --yes")
    for host in SERVERS:
        assert lab.links(host).keys() == {"lo", "eth0"}
    assert (lab.home / ".pulumi/stacks/overlay/dev.json").exists(), "the state was kept there, not in our own home"


def test_wheel_has_all_that_the_packages_have(tmp_path):
    words = ["-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), "."]
    subprocess.run([f"{ROOT}/.venv/bin/python", *words], cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("overlay_networks-*.whl")
    assert wheel.name.endswith("-py3-none-any.whl"), "nothing in it is of one platform"
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    there = {
        str(path.relative_to(ROOT))
        for package in ("overlay_components", "overlay_agent")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == there
