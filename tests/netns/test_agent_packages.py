"""`installPackages: true`: what a service needs and the host lacks is installed, by the real apt-get.

The host's package database, its programs and apt's lists are overlays that go with it, and apt's only source is a
folder with one package of ours: named as Debian's, holding this machine's dnsmasq.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess

import pytest
from agent_support import bridge, document

PACKAGE, VERSION = "dnsmasq-base", "99"

#: Each folder of the host is seen through an overlay; what is written goes with the host.
_OWN = """
set -e
mkdir -p /run/own && mount -t tmpfs -o size=256m tmpfs /run/own
for folder in usr/sbin var/lib/dpkg var/lib/apt var/cache/apt var/log etc/apt; do
    mkdir -p /run/own/$folder/upper /run/own/$folder/work
    mount -t overlay overlay -o lowerdir=/$folder,upperdir=/run/own/$folder/upper,workdir=/run/own/$folder/work /$folder
done
rm -f /usr/sbin/dnsmasq /var/lib/dpkg/info/{name}.* /etc/apt/sources.list
rm -rf /etc/apt/sources.list.d /var/lib/apt/lists
mkdir -p /etc/apt/sources.list.d /var/lib/apt/lists
awk -v RS= -v ORS='\\n\\n' '!/^Package: {name}\\n/' /var/lib/dpkg/status > /run/own/status
cp /run/own/status /var/lib/dpkg/status
"""


def wanted(**more):
    served = {
        "kind": "dnsmasq", "interface": "br-app", "addresses": {"10.10.0.1": {}}, "subnets": {"10.10.0.0/24": {}},
        "ranges": {"10.10.0.100-10.10.0.199": {}}, "mtu": 1450,
    }  # fmt: skip
    with_ = document(br_app=bridge(addresses={"10.10.0.1/24": {}}), services={"dhcp-app": served})
    return {**with_, "installPackages": True, **more}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder that apt takes packages from."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb") and shutil.which("dnsmasq")):
        pytest.skip("no apt-get, dpkg-deb or dnsmasq on this machine; `make setup` installs what Debian has")
    folder, tree = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("tree")
    (tree / "usr/sbin").mkdir(parents=True)
    shutil.copy2(shutil.which("dnsmasq"), tree / "usr/sbin/dnsmasq")
    control = f"Package: {PACKAGE}\nVersion: {VERSION}\nArchitecture: all\nMaintainer: tests\nDescription: a test's\n"
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(control)
    subprocess.run(["dpkg-deb", "--build", tree, folder / "p.deb"], check=True, capture_output=True)
    data = (folder / "p.deb").read_bytes()
    sums = f"Filename: ./p.deb\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
    (folder / "Packages").write_text(control + sums)
    return folder


@pytest.fixture
def bare(host, source):
    """A host without dnsmasq, and with `source`."""
    host.run("sh", "-c", _OWN.format(name=PACKAGE))
    # Where apt's own user may read it.
    host.run("sh", "-c", f"cp -r {source} /run/own/source && chmod -R a+rX /run/own")
    host.run("sh", "-c", "echo 'deb [trusted=yes] file:/run/own/source ./' > /etc/apt/sources.list")
    return host


def is_installed(host):
    return host.run("dpkg-query", "-W", "-f", "${Version}", PACKAGE, check=False).out == VERSION


def test_what_is_lacking_is_installed_once(bare):
    before = bare.state()
    lines = bare.apply(wanted()).lines
    assert lines[:2] == [f"a: installed the package {PACKAGE}", "br-app: created (bridge, mtu 1450, 10.10.0.1/24)"]
    assert lines[2].startswith("dhcp-app: created (dnsmasq, ")
    assert is_installed(bare)
    assert bare.apply(wanted()).lines == ["a: nothing to do, 2 objects as declared"]
    installed, _ = bare.agent("history", "p/s").report["history"]
    assert (installed["result"], installed["lines"]) == ("done", lines[:1])
    bare.agent("remove", "p/s")
    assert bare.state() == before
    assert is_installed(bare), "it stays"


def test_who_does_not_ask_for_it_is_told(bare):
    state = bare.state()
    assert bare.apply(wanted(installPackages=False), code=1).lines == [
        f"a dhcp-app: dnsmasq is not on this host; install the package {PACKAGE} (installPackages: true does it)",
        "nothing was changed",
    ]
    assert not is_installed(bare)
    assert bare.state() == state


def test_nothing_is_installed_where_something_else_is_wrong(bare):
    bare.run("ip link add br-app type bridge")
    state = bare.state()
    done = bare.apply(wanted(), code=1)
    assert "a br-app: a device of that name (bridge) is there and is not ours" in done.err
    assert done.lines[-1] == "nothing was changed"
    assert not is_installed(bare)
    assert bare.state() == state


def test_what_apt_says_is_the_reason(bare):
    bare.run("sh", "-c", ": > /etc/apt/sources.list")
    state = bare.state()
    assert bare.apply(wanted(), code=1).lines == [
        (
            f"a: installPackages: package {PACKAGE}: apt-get install: Package '{PACKAGE}' has no installation "
            f"candidate; mend that, or install the package {PACKAGE} by hand"
        ),
        "nothing was changed",
    ]
    assert bare.state() == state


def test_a_host_with_another_package_manager(host, tmp_path):
    assert host.apply(wanted(), code=1, PATH=str(tmp_path)).lines == [
        f"a: installPackages: there is no apt-get on this host; install the package {PACKAGE} by hand",
        "nothing was changed",
    ]
