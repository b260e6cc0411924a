"""The command `overlay`: what it writes, shows and refuses, without any host."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from overlay_agent import __version__
from overlay_components import cli, config

ROOT = Path(__file__).parents[2]

PEER = """\
config:
  overlay:hosts:
    a: {address: 198.18.0.11}
    b: {address: 198.18.0.12}
  overlay:peers:
    r: {address: 198.18.0.77}
    lonely: {address: 198.18.0.78}
  overlay:segments:
    app:
      subnets: [10.10.0.0/24]
      addresses: {a: 10.10.0.1}
      tunnels: {mesh: {kind: vxlan, vni: 42, endpoints: [a, b, r]}}
    two:
      subnets: [10.11.0.0/24]
      tunnels: {mesh: {kind: vxlan, vni: 43}}
"""
ROUTER = """\
config:
  overlay:hosts:
    a: {address: 198.18.0.11}
    b: {address: 198.18.0.12}
  overlay:segments:
    app:
      subnets: [10.10.0.0/24]
      tunnels: {mesh: {kind: vxlan, vni: 42}}
      dhcp:
        host: a
        range: 10.10.0.100-10.10.0.199
        leaseMax: 253
        dns: [192.0.2.53, 192.0.2.54]
        strictOrder: false
        masquerade: true
        forwards: {8080: "web:80", udp/53: 10.10.0.9}
      routes: {10.20.0.0/24: b}
      containers:
        web: {host: b, address: 10.10.0.11}
        db: {host: b, address: 10.10.0.12}
        mail: {host: b, address: 10.10.0.13}
        log: {host: b, address: 10.10.0.14}
"""


@pytest.fixture
def overlay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PULUMI_STACK", raising=False)

    def run(*words, code=0, **options):
        done = CliRunner().invoke(cli.app, [str(word) for word in words], **options)
        assert done.exit_code == code, done.output
        return done

    return run


# -- init ------------------------------------------------------------------------------------


def test_init_writes_a_project_that_plans(overlay, tmp_path):
    said = overlay("init", "--host", "a=198.18.0.11", "--host", "b=198.18.0.12", "--vni", 7, "-s", "try").stdout
    assert said.splitlines()[-3:] == [
        "  pulumi login --local      # or where your team keeps its state",
        "  pulumi stack init try",
        "  pulumi up                   # shows what would change, and asks",
    ]
    assert (tmp_path / "__main__.py").read_text() == (ROOT / "__main__.py").read_text()
    assert (tmp_path / "Pulumi.yaml").read_text() == (ROOT / "Pulumi.yaml").read_text()
    assert (tmp_path / "requirements.txt").read_text() == f"overlay-networks=={__version__}\n"
    assert ".venv/" in (tmp_path / ".gitignore").read_text()
    stack = tmp_path / "stacks/Pulumi.try.yaml"
    schema = stack.read_text().splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert (stack.parent / schema).read_text() == config.schema_text()
    assert yaml.safe_load(stack.read_text())["config"] == {
        "overlay:hosts": {"a": {"address": "198.18.0.11"}, "b": {"address": "198.18.0.12"}},
        "overlay:segments": {
            "app": {
                "subnets": ["10.10.0.0/24"],
                "tunnels": {"mesh": {"kind": "vxlan", "vni": 7}},
                "containers": {
                    "web1": {"host": "a", "address": "10.10.0.11"},
                    "web2": {"host": "b", "address": "10.10.0.12"},
                },
            }
        },
    }
    made = json.loads(overlay("plan", "--json").stdout)
    assert ", vni 7," in made["hosts"]["a"]["devices"]["vx-app"]


def test_init_overwrites_nothing_and_names_what_is_there(overlay, tmp_path):
    (tmp_path / "Pulumi.yaml").write_text("mine")
    (tmp_path / ".gitignore").write_text("mine too")
    said = overlay("init", code=1).stderr
    assert said == (
        f"{tmp_path}: Pulumi.yaml and .gitignore are there already; nothing was written: move them away, "
        "or name a folder\n"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [".gitignore", "Pulumi.yaml"]


def test_init_without_a_terminal_asks_nothing(overlay, tmp_path):
    said = overlay("init", "new/folder").stdout
    assert "First put your servers' addresses into stacks/Pulumi.dev.yaml. Then:" in said
    assert "cd new/folder && pulumi login --local" in said
    assert "192.0.2.11" in (tmp_path / "new/folder/stacks/Pulumi.dev.yaml").read_text()


@pytest.mark.parametrize("subnet", ["10.9.0.0/16", "10.9.0.0/29", "fd00:9::/64"])
def test_init_takes_other_subnets(overlay, subnet):
    overlay("init", "--subnet", subnet)
    assert json.loads(overlay("plan", "--json").stdout)["segments"]["app"]["subnets"] == [subnet]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "a"], ["--host: 'a' is not a host; write NAME=ADDRESS, such as a=192.0.2.11"]),
        (["--host", "a=192.0.2.1", "--host", "a=192.0.2.2"], ["--host: 'a' stands twice; each host has its own name"]),
        (
            ["--host", "a=one", "--host", "b=two", "--vni", "0"],
            [
                "hosts.a.address: 'one' is not an IP address, such as 192.0.2.11 or 2001:db8::11",
                "hosts.b.address: 'two' is not an IP address, such as 192.0.2.11 or 2001:db8::11",
                "segments.app.tunnels.mesh.vni: 0 is not a whole number from 1 to 16777215",
            ],
        ),
        (
            ["--subnet", "10.0.0.0/32"],
            ["--subnet: '10.0.0.0/32' has no room for a and b; take a larger one, such as 10.10.0.0/24"],
        ),
        (["--stack", "../x"], ["--stack: '../x' is not a stack's name; take letters, digits, '_', '.' and '-'"]),
    ],
)
def test_init_refuses_before_it_writes(overlay, tmp_path, words, said):
    assert overlay("init", *words, code=1).stderr.splitlines() == said
    assert not list(tmp_path.iterdir())


# -- plan ------------------------------------------------------------------------------------


def test_plan_is_a_table(overlay):
    said = overlay("plan", ROOT / "stacks/Pulumi.lab.yaml").stdout
    rows = [line.split() for line in said.splitlines()]
    assert ["app", "web", "h2", "-", "br-app", "10.10.0.11/24", "-", "02:0d:87:db:2a:91", "1450"] in rows
    assert ["h2", "vx-app", "udp", "4789", "198.18.0.11", "and", "198.18.0.13"] in rows
    assert any(row[:4] == ["h1", "vx-ops", "vxlan", "br-ops"] for row in rows)


def test_plan_shows_services(overlay, tmp_path):
    (tmp_path / "Pulumi.x.yaml").write_text(ROUTER)
    rows = [line.split(maxsplit=3) for line in overlay("plan", "Pulumi.x.yaml").stdout.splitlines()]
    found = {row[1]: row[3].strip() for row in rows if row[:1] == ["a"] and len(row) > 3}
    assert found["dhcp-app"] == (
        "interface br-app, addresses 10.10.0.1, subnets 10.10.0.0/24, ranges 10.10.0.100-10.10.0.199, hosts 4, "
        "leaseMax 253, dns 192.0.2.53 192.0.2.54, router 10.10.0.1, mtu 1450, strictOrder off"
    )
    forwards = "tcp/8080->10.10.0.11:80 udp/53->10.10.0.9"
    assert found["nat-app"] == (
        f"interface br-app, subnets 10.10.0.0/24, masquerade 10.10.0.0/24, routed 10.20.0.0/24, forwards {forwards}"
    )
    assert found["routes-app"] == "routes 10.20.0.0/24->198.18.0.12"
    assert found["forwarding"] == "ipv4"
    rules = [line.split() for line in overlay("plan", "Pulumi.x.yaml").stdout.splitlines()]
    assert ["a", "forward", "tcp/8080", "tcp", "8080", "anywhere"] in rules
    made = json.loads(overlay("plan", "--json", "Pulumi.x.yaml").stdout)
    assert made["segments"]["app"]["dhcp"] == {
        "hosts": ["a"],
        "ranges": {"a": ["10.10.0.100-10.10.0.199"]},
        "leases": 4,
        "domain": None,
    }
    assert made["hosts"]["a"]["underlayRules"]["forward udp/53"] == {"protocol": "udp", "port": 53, "peers": {}}


def test_plan_shows_text_as_it_is(overlay):
    """To the library that draws the table `:ab:` is a picture."""
    assert "00:16:3e:ab:f9:65" in overlay("plan", ROOT / "stacks/Pulumi.doc-000-unicast.yaml").stdout


def test_plan_as_json_has_the_shape_of_the_outputs(overlay):
    made = json.loads(overlay("plan", "--json", ROOT / "stacks/Pulumi.lab.yaml").stdout)
    assert made.keys() == {"containers", "hosts", "segments"}
    assert made["containers"]["app"]["web"]["mac"] == "02:0d:87:db:2a:91"
    assert made["hosts"]["h1"]["underlayRules"]["vx-app"]["port"] == 4789


def test_plan_tells_every_error_of_the_stack_file(overlay, tmp_path):
    file = tmp_path / "Pulumi.x.yaml"
    file.write_text(
        PEER.replace("vni: 42", "vni: 0").replace("b: {address", "b: {adress").replace("vni: 43", "vnl: 43")
    )
    done = overlay("plan", file, code=1)
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if not line.startswith("warning: ")] == [
        "hosts.b.address: missing; give its IPv4 or IPv6 address",
        "hosts.b.adress: unknown key; did you mean address?",
        "segments.app.tunnels.mesh.vni: 0 is not a whole number from 1 to 16777215",
        "segments.two.tunnels.mesh.vnl: unknown key; did you mean vni?",
    ]


def test_plan_finds_the_stack_as_pulumi_does(overlay, tmp_path, monkeypatch):
    overlay("init")
    (tmp_path / "deep/er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep/er")
    assert "web1" in overlay("plan").stdout
    (tmp_path / "stacks/Pulumi.prod.yaml").write_text(PEER)
    said = overlay("plan", code=1).stderr
    assert said == f"{tmp_path}/stacks: holds 2 stack files; say --stack dev, or another of dev, prod\n"
    assert "warning: peers.lonely: no tunnel has this end" in overlay("plan", "-s", "prod").stderr
    said = overlay("plan", "-s", "pord", code=1).stderr
    assert said == f"--stack: unknown stack 'pord' in {tmp_path}/stacks; did you mean prod?\n"
    assert "give one of them" in overlay("plan", "-s", "dev", "x.yaml", code=1).stderr


def test_plan_without_a_project(overlay, tmp_path):
    said = overlay("plan", code=1).stderr
    assert said == f"{tmp_path}: no Pulumi.yaml here or above; name a stack file, or write one: overlay init\n"
    (tmp_path / "Pulumi.x.yaml").write_text(PEER)
    assert "MAC addresses are those of a project named overlay" in overlay("plan", "Pulumi.x.yaml").stderr
    assert "cannot be read" in overlay("plan", "nowhere.yaml", code=1).stderr
    (tmp_path / "Pulumi.yaml").write_text("- 1")
    assert "is not an object" in overlay("plan", "Pulumi.x.yaml", code=1).stderr


def test_mac_addresses_are_those_of_the_project(overlay, tmp_path):
    overlay("init")
    one = json.loads(overlay("plan", "--json").stdout)["containers"]["app"]["web1"]["mac"]
    file = tmp_path / "Pulumi.yaml"
    file.write_text(file.read_text().replace("name: overlay", "name: other"))
    assert json.loads(overlay("plan", "--json").stdout)["containers"]["app"]["web1"]["mac"] != one


# -- explain ---------------------------------------------------------------------------------


def test_explain_a_host(overlay):
    said = overlay("explain", "h2", ROOT / "stacks/Pulumi.lab.yaml").stdout.splitlines()
    assert said[0] == "# overlay/lab on h2, by hand; `pulumi up` does it, and can undo it"
    assert "modprobe vxlan" in said
    assert any(line.startswith("ip link add vx-app mtu 1450") and "id 42 dstport 4789" in line for line in said)
    assert "bridge fdb append 00:00:00:00:00:00 dev vx-app dst 198.18.0.13" in said
    assert "ip link set dev vx-app alias overlay:overlay/lab/vx-app" in said
    made = [line.split()[3] for line in said if line.startswith("ip link add")]
    assert made == ["br-app", "br-ops", "vx-app", "vx-ops"], "bridges before what is plugged into them"


def test_explain_a_peer(overlay, tmp_path):
    (tmp_path / "Pulumi.x.yaml").write_text(PEER + "  overlay:openFirewall: true\n")
    said = overlay("explain", "r", "Pulumi.x.yaml").stdout
    assert "nft" not in said, "their firewall is theirs"
    assert said.startswith("# r, 198.18.0.77: not managed by overlay/x; what it needs as the other end\n")
    assert "# segment app, tunnel mesh: vxlan, vnis 42, port 4789; with a, b\n" in said
    assert "local 198.18.0.77" in said
    for end in ("11", "12"):
        assert f"bridge fdb append 00:00:00:00:00:00 dev vx-app dst 198.18.0.{end}\n" in said
    assert "vx-two" not in said, "it is no end of that tunnel"
    assert "alias" not in said, "our mark on what is not ours"
    assert "10.10.0.1" not in said, "that is host a's address"
    assert "nothing to type" in overlay("explain", "lonely", "Pulumi.x.yaml").stdout


def test_explain_a_peer_of_a_segment_with_a_router(overlay, tmp_path):
    block = "      gateway: a\n      dhcp: {host: a, masquerade: true}\n      routes: {10.20.0.0/24: b}"
    (tmp_path / "Pulumi.x.yaml").write_text(PEER.replace("      addresses: {a: 10.10.0.1}", block))
    said = overlay("explain", "r", "Pulumi.x.yaml").stdout
    assert "bridge fdb append 00:00:00:00:00:00 dev vx-app dst 198.18.0.11\n" in said
    assert "10.10.0.1" not in said, "the router is host a"


def test_explain_a_peer_of_tunnels_with_two_ends(overlay, tmp_path):
    """What the peer has to be told is what its hosts are told, mirrored; secrets are not printed."""
    tunnels = """        t: {kind: l2tp, endpoints: [a, r], tunnelIds: {a: 1000, r: 2000},
            sessionIds: {a: 3000, r: 4000}, ports: {a: 6000, r: 5000}, cookie: 0123456789abcdef}
        g: {kind: gretap, topology: hub, hub: b, endpoints: [b, r], key: 5, ttl: 255}
"""
    head, _, tail = PEER.partition("      tunnels: {mesh: {kind: vxlan, vni: 42, endpoints: [a, b, r]}}\n")
    assert tail
    (tmp_path / "Pulumi.x.yaml").write_text(f"{head}      tunnels:\n{tunnels}{tail}")
    said = overlay("explain", "r", "Pulumi.x.yaml").stdout
    assert "# segment app, tunnel t: l2tp, encap udp, cookie <secret>; with a\n" in said
    assert "#   to a: tunnelId 2000 (a: 1000), sessionId 4000 (a: 3000), port 5000 (a: 6000)\n" in said
    assert "# segment app, tunnel g: gretap, key 5; with b\n" in said
    assert "# <secret> stands for the value in the stack file\n" in said
    assert (
        "ip l2tp add tunnel tunnel_id 2000 peer_tunnel_id 1000 encap udp local 198.18.0.77 remote 198.18.0.11 "
        "udp_sport 5000 udp_dport 6000 udp_csum on\n"
    ) in said
    assert (
        "ip l2tp add session name l2-app-a tunnel_id 2000 session_id 4000 peer_session_id 3000 "
        'cookie "<secret>" peer_cookie "<secret>"\n'
    ) in said
    assert "type gretap remote 198.18.0.12 local 198.18.0.77 ttl 255 key 5\n" in said
    assert "0123456789abcdef" not in said
    assert said.count("modprobe l2tp_eth\n") == 1
    rules = overlay("plan", "Pulumi.x.yaml").stdout
    assert re.search(r"b +gt-app +gre +- +198.18.0.77", rules)
    assert re.search(r"a +l2-app-r +udp +6000 +198.18.0.77", rules)


def test_explain_a_peer_of_a_mesh_of_such(overlay, tmp_path):
    text = PEER.replace("kind: vxlan, vni: 42", "kind: gretap")
    (tmp_path / "Pulumi.x.yaml").write_text(text)
    said = overlay("explain", "r", "Pulumi.x.yaml").stdout
    assert "#   its devices must pass nothing to each other: a mesh would loop\n" in said
    assert "bridge link set dev gt-app-a isolated on\n" in said


def test_explain_peers_that_speak_bgp(overlay, tmp_path):
    bgp = "  overlay:evpn: {routeReflectors: [a, lonely], asn: 65010, range: 198.18.0.0/24, password: s3cret}\n"
    text = PEER.replace("kind: vxlan, vni: 42", "kind: vxlan, topology: evpn, vni: 42")
    assert text != PEER
    (tmp_path / "Pulumi.x.yaml").write_text(text + bgp)
    said = overlay("explain", "r", "Pulumi.x.yaml").stdout
    facts = "vnis 42, port 4789, asn 65010, routeReflectors a, lonely, routeTarget 65010:42"
    assert f"# segment app, tunnel mesh: vxlan, {facts}; with a, b\n" in said
    assert "type vxlan id 42 dstport 4789 local 198.18.0.77" in said
    assert "bridge fdb" not in said, "BGP tells it"
    reflector = overlay("explain", "lonely", "Pulumi.x.yaml").stdout
    assert "# BGP EVPN: route reflector of AS 65010; clients: 198.18.0.0/24\n" in reflector
    assert "vxlan" not in reflector
    assert "s3cret" not in said + reflector


def test_explain_a_peer_that_no_linux_host_could_be(overlay, tmp_path):
    text = PEER.replace("endpoints: [a, b, r]", "topology: pairs, endpoints: [[a, r], [b, r]]")
    (tmp_path / "Pulumi.x.yaml").write_text(text)
    said = overlay("explain", "r", "Pulumi.x.yaml").stdout
    assert "vnis 42, port 4789; with a, b" in said
    assert "a Linux machine cannot be that end" in said


def test_explain_scripts_as_they_are(overlay):
    said = overlay("explain", "h1", ROOT / "stacks/Pulumi.two-routers.yaml").stdout
    lines = said.splitlines()
    assert any(line.startswith("cat > /var/lib/overlay/services/") and line.endswith("<<'EOF'") for line in lines)
    assert not any(line.startswith("sh -c") for line in lines)
    subprocess.run(["sh", "-n"], input=said, text=True, check=True)


def test_explain_nobody(overlay):
    said = overlay("explain", "h4", ROOT / "stacks/Pulumi.lab.yaml", code=1).stderr
    assert said == "HOST: unknown host 'h4'; known are h1, h2 and h3\n"


# -- snippet ---------------------------------------------------------------------------------

SNIPPETS = ROOT / "tests/unit/snippets"


def test_snippet_is_for_the_containers_runtime_or_for_what_is_said(overlay):
    stack = SNIPPETS / "stack.yaml"
    assert "lxc.net.0.link = br-app\n" in overlay("snippet", "web", stack).stdout
    assert "docker run --detach --name router " in overlay("snippet", "router", stack).stdout
    assert "iface eth1 inet static\n" in overlay("snippet", "router", stack, "--for", "ifupdown").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["wbe"], "CONTAINER: unknown container 'wbe'; did you mean web?"),
        (
            ["web", "--for", "podman"],
            (
                "--for: 'podman' is none of lxc, lxc1, lxd, incus, docker, compose, libvirt, ifupdown, netplan; give "
                "one of these"
            ),
        ),
        (
            ["web"],
            (
                "segments.app.containers.web.runtime: none; say --for with one of lxc, lxc1, lxd, incus, docker, "
                "compose, libvirt, ifupdown, netplan, or give it a runtime"
            ),
        ),
    ],
)
def test_snippet_of_nothing(overlay, words, said):
    assert overlay("snippet", *words, ROOT / "stacks/Pulumi.lab.yaml", code=1).stderr == f"{said}\n"


def test_plan_as_hosts_and_as_inventory(overlay):
    stack = SNIPPETS / "stack.yaml"
    assert overlay("plan", "--hosts", stack).stdout == (SNIPPETS / "hosts.txt").read_text()
    assert (
        json.loads(overlay("plan", "--inventory", stack).stdout)["all"]["hosts"]["web"]["ansible_host"] == "10.10.0.11"
    )
    assert "give one of --json, --hosts and --inventory" in overlay("plan", "--hosts", "--json", stack, code=64).stderr


# -- lock ------------------------------------------------------------------------------------


def test_lock_chooses_once(overlay, tmp_path):
    overlay("init")
    stack, kept = tmp_path / "stacks/Pulumi.dev.yaml", tmp_path / "stacks/Pulumi.dev.lock.json"
    stack.write_text(stack.read_text().replace('web1: {host: a, address: "10.10.0.11"}', "web1: {host: a}"))
    said = overlay("plan", code=1).stderr
    assert said == (
        "segments.app.containers.web1.address: missing and not locked; run overlay lock, or give an address in "
        "10.10.0.0/24\n"
    )
    assert overlay("lock").stdout == f"+ app.web1: 10.10.0.1\n{kept}: written; commit it\n"
    assert json.loads(kept.read_text()) == {"addresses": {"app": {"web1": "10.10.0.1"}}, "version": 1}
    assert overlay("lock").stdout == f"{kept}: nothing to change\n"
    assert json.loads(overlay("plan", "--json").stdout)["containers"]["app"]["web1"]["address"] == "10.10.0.1/24"
    assert "10.10.0" not in overlay("explain", "a").stdout
    stack.write_text(stack.read_text().replace("web1: {host: a}", "web3: {host: a}"))
    assert overlay("lock", stack).stdout == f"+ app.web3: 10.10.0.2\n{kept}: written; commit it\n"
    assert overlay("lock", "--prune").stdout == f"- app.web1: 10.10.0.1\n{kept}: written; commit it\n"
    assert sorted(p.name for p in kept.parent.iterdir()) == ["Pulumi.dev.lock.json", "Pulumi.dev.yaml"]


def test_lock_writes_nothing_for_a_stack_that_is_wrong(overlay, tmp_path):
    (tmp_path / "Pulumi.x.yaml").write_text(PEER.replace("vni: 43", "vni: 42"))
    overlay("lock", "Pulumi.x.yaml", code=1)
    assert not (tmp_path / "Pulumi.x.lock.json").exists()
    (tmp_path / "Pulumi.x.yaml").write_text(PEER)
    assert overlay("lock", "Pulumi.x.yaml").stdout.endswith(": nothing to change\n")
    assert not (tmp_path / "Pulumi.x.lock.json").exists(), "no file for no address"


# -- the rest --------------------------------------------------------------------------------


def test_schema_and_version(overlay):
    assert overlay("schema").stdout == config.schema_text()
    assert overlay("version").stdout == f"overlay-networks {__version__}\n"


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["version"], ["version"]),
        (["init", "p"], ["folder", "files", "hosts"]),
        (["explain", "a"], ["a"]),
        (["explain"], ["a", "b"]),
        (["snippet", "web", "--for", "lxc"], ["container", "text"]),
        (["lock"], ["file", "changes", "addresses"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_json_of_what_is_told_in_words(overlay, tmp_path, words, keys):
    (tmp_path / "Pulumi.yaml").write_text("name: overlay\nruntime: python\n")
    (tmp_path / "Pulumi.dev.yaml").write_text(ROUTER)
    found = json.loads(overlay(*words, "--json").stdout)
    assert list(found) == keys
    if words[0] == "explain":
        assert all(lines[0].startswith("# overlay/dev on ") for lines in found.values())
        plain = overlay(*words).stdout
        assert plain.splitlines() == [line for lines in found.values() for text in lines for line in text.split("\n")]


def test_the_selected_stack_of_several(overlay, tmp_path, monkeypatch):
    """By PULUMI_STACK, else by `pulumi stack select`, as Pulumi itself has it."""
    (tmp_path / "Pulumi.yaml").write_text("name: overlay\nruntime: python\n")
    for name in ("one", "two"):
        (tmp_path / f"Pulumi.{name}.yaml").write_text(ROUTER)
    pulumi = tmp_path / "bin/pulumi"
    pulumi.parent.mkdir()
    monkeypatch.setenv("PATH", f"{pulumi.parent}:{os.environ['PATH']}")

    def says(script):
        pulumi.write_text(f"#!/bin/sh\n{script}\n")
        pulumi.chmod(0o755)

    def explained():
        return overlay("explain", "a").stdout.split()[1]

    says('[ "$*" = "stack --show-name --non-interactive" ] && echo organization/overlay/two')
    assert explained() == "overlay/two"
    monkeypatch.setenv("PULUMI_STACK", "organization/overlay/one")
    assert explained() == "overlay/one"
    monkeypatch.delenv("PULUMI_STACK")
    says("echo error: no stack selected >&2; exit 255")
    several = f"{tmp_path}: holds 2 stack files; say --stack one, or another of one, two\n"
    assert overlay("explain", "a", code=1).stderr == several
    says("echo organization/overlay/three")
    assert overlay("explain", "a", code=1).stderr.startswith("--stack: unknown stack 'three' in ")


def test_the_shell_completes_stacks_and_hosts(tmp_path):
    (tmp_path / "Pulumi.yaml").write_text("name: overlay\nruntime: python\n")
    (tmp_path / "Pulumi.dev.yaml").write_text(ROUTER)

    def completed(*words):
        asks = {"_OVERLAY_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
        env = {**os.environ, "PYTHONPATH": str(ROOT), **asks}
        command = [sys.executable, "-m", "overlay_components.cli"]
        return subprocess.run(command, env=env, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.split()

    assert completed("overlay", "dri") == ["drift"]
    assert completed("overlay", "plan", "--stack", "d") == ["dev"]
    assert completed("overlay", "status", "") == ["a", "b"]


def test_wrong_usage_has_its_own_code(overlay):
    overlay("plan", "--nonsense", code=64)
    overlay("nonsense", code=64)


def test_help_does_not_wait_for_pulumi():
    script = (
        "import sys\nfrom overlay_components import cli\n"
        "try:\n    cli.app(['--help'])\nexcept SystemExit:\n    pass\n"
        "slow = {'pulumi', 'grpc', 'pydantic', 'paramiko', 'rich', 'yaml'} & sys.modules.keys()\n"
        "sys.exit(f'imported: {slow}' if slow else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0
