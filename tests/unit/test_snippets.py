"""What is to be pasted: golden texts, and that each tool's own reader gets back what the plan says.

A golden text is a file `snippets/<form>.txt`; after a wanted change, `python -m tests.unit.test_snippets` writes them.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay_agent.document import Owner
from overlay_components import config, snippets
from overlay_components.names import Placeholder
from overlay_components.plan import make_plan

FOLDER = Path(__file__).parent / "snippets"
MAC = "02:00:00:00:00:11"
#: Names that YAML, shells or XML could take for something else.
ODD = ["y", "on", "1e3", "0x10", "12:30", "a--b", "a---b", "_x", "null", "a.b", "1_000"]


def plan(raw=None):
    raw = raw or config.read_stack_file(FOLDER / "stack.yaml")
    return make_plan(config.load_config(raw), Owner("overlay", "golden", "0"))


def text(form, name, made=None):
    made = made or plan()
    return "\n".join(snippets.chosen(made.containers, made.segments, name, form)) + "\n"


def golden(form):
    return f"{text(form, 'web')}\n{text(form, 'router')}"


def one(name="web", bridge="br0", address="10.10.0.11", mac=MAC, **more):
    segment = {"subnets": ["10.10.0.0/24", "fd00:10::/64"], "bridge": {"name": bridge}, "gateway": "10.10.0.1", **more}
    segment["containers"] = {name: {"host": "a", "address": address, "mac": mac}}
    return plan({"hosts": {"a": {"address": "192.0.2.11"}}, "segments": {"app": segment}})


@pytest.mark.parametrize("form", snippets.FORMS)
def test_golden(form):
    assert golden(form) == (FOLDER / f"{form}.txt").read_text()


def test_every_form_has_its_golden_text():
    assert {path.stem for path in FOLDER.glob("*.txt")} == {*snippets.FORMS, "hosts"}
    assert set(config.RUNTIMES) - {"none"} <= set(snippets.FORMS)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("form", ["lxd", "incus", "compose", "netplan"])
def test_yaml_is_read_as_it_was_meant(form, name):
    made = one(name, bridge="on")
    lines = text(form, name, made).splitlines()
    begin = next(n for n, line in enumerate(lines) if line[0] not in "#li" and line.endswith(":"))
    read = yaml.safe_load("\n".join(lines[begin:]))  # YAML 1.1, which takes more for numbers than any tool here
    row = made.containers["app"][name]
    if form == "compose":
        assert read["services"][name]["networks"] == {"on": {"ipv4_address": "10.10.0.11", "mac_address": row["mac"]}}
        assert read["networks"] == {"on": {"external": True}}
    elif form == "netplan":
        nic = read["network"]["ethernets"]["eth0"]
        assert nic["addresses"] == ["10.10.0.11/24"]
        assert nic["routes"] == [{"to": "0.0.0.0/0", "via": "10.10.0.1"}]
        assert nic["mtu"] == row["mtu"]
    else:
        nic = read["devices"]["eth0"]
        assert nic == {
            "type": "nic", "nictype": "bridged", "parent": "on", "name": "eth0", "hwaddr": row["mac"], "mtu": "1500"
        }  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_xml_is_read_as_it_was_meant(name):
    made = text("libvirt", name, one(name, bridge="br.a--b"))
    root = ET.fromstring(f"<devices>{made}</devices>")  # noqa: S314 - ours
    [nic] = root
    assert nic.attrib == {"type": "bridge"}
    found = {child.tag: child.attrib for child in nic}
    assert found["source"] == {"bridge": "br.a--b"}
    assert found["mac"] == {"address": MAC}
    assert found["mtu"] == {"size": "1500"}


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/:%,"), min_size=1, max_size=15))
def test_shells_read_what_was_meant(bridge):
    made = one()
    row = {**made.containers["app"]["web"], "bridge": bridge}
    for form in ("lxd", "incus", "docker"):
        lines = snippets.chosen({"app": {"web": row}}, made.segments, "web", form)
        words = [word for line in lines if line.startswith(("lxc ", "incus ", "docker ")) for word in shlex.split(line)]
        assert bridge in words or f"parent={bridge}" in words


@pytest.mark.parametrize("form", snippets.FORMS)
def test_the_order_of_the_stack_file_does_not_matter(form):
    """The command reads it in its own order, and Pulumi hands it to the program sorted."""
    raw = config.read_stack_file(FOLDER / "stack.yaml")
    turned = plan({**raw, "segments": dict(reversed(raw["segments"].items()))})
    assert text(form, "router", turned) == text(form, "router")
    assert sorted(snippets.hosts(turned.containers)) == sorted(snippets.hosts(plan().containers))
    assert turned.containers == plan().containers


def test_ipv6():
    made = one(address="fd00:10::11", gateway="fd00:10::1")
    assert "--ip6 fd00:10::11" in text("docker", "web", made)
    assert "lxc.net.0.ipv6.gateway = fd00:10::1\n" in text("lxc", "web", made)
    assert "iface eth0 inet6 static\n    address fd00:10::11/64\n    gateway fd00:10::1\n" in text(
        "ifupdown", "web", made
    )


def test_without_gateway_or_subnet():
    made = one(gateway="none")
    assert "gateway" not in text("ifupdown", "web", made)
    assert "docker network create" not in text("docker", "web", made), "Docker would take an address of the subnet"
    raw = {"hosts": {"a": {"address": "192.0.2.11"}}, "segments": {"app": {"containers": {"web": {"host": "a"}}}}}
    made = plan(raw)
    for form in snippets.FORMS:
        assert "None" not in text(form, "web", made)
    assert "iface eth0 inet manual\n    mtu 1500\n" in text("ifupdown", "web", made)
    assert snippets.hosts(made.containers) == []


def test_what_another_resource_has_yet_to_make():
    made = one(address=Placeholder("<address of web>"), mac=Placeholder("<mac of web>"))
    for form in snippets.FORMS:
        assert "<address of web>" in text(form, "web", made)
    assert "'<mac of web>'" in text("docker", "web", made)


def test_the_outputs_have_one_text_for_the_runtime():
    made = plan()
    found = {
        (s, name): row["paste"] for s, rows in made.containers.items() for name, row in rows.items() if "paste" in row
    }
    assert found == {("app", "web"): text("lxc", "web"), ("app", "router"): text("docker", "router")}


# -- all containers ----------------------------------------------------------------------------


def test_hosts():
    assert "\n".join(snippets.hosts(plan().containers)) + "\n" == (FOLDER / "hosts.txt").read_text()
    assert snippets.hosts(one("12:30").containers) == ["# 12:30.app: no name for a host; left out"]


def test_inventory():
    made = snippets.inventory(plan().containers)["all"]
    assert made["hosts"].keys() == {"web", "router"}
    router = made["hosts"]["router"]
    assert router["ansible_host"] == "10.10.0.12"
    assert router["overlay"]["segments"]["ops"]["address"] == "fd00:20::12/64"
    assert {name: sorted(group["hosts"]) for name, group in made["children"].items()} == {
        "segment_app": ["router", "web"],
        "segment_ops": ["router"],
        "segment_lan": ["router"],
        "host_a": ["router"],
        "host_b": ["web"],
        "runtime_lxc": ["web"],
        "runtime_docker": ["router"],
    }


def test_groups_never_fall_together():
    made = one().containers["app"]
    groups = snippets.inventory({"a-b": made, "a.b": made, "a_b": made})["all"]["children"]
    assert len([name for name in groups if name.startswith("segment_a_b")]) == 3


def main():
    """Writes the golden texts."""
    for form in snippets.FORMS:
        (FOLDER / f"{form}.txt").write_text(golden(form))
    (FOLDER / "hosts.txt").write_text("\n".join(snippets.hosts(plan().containers)) + "\n")


if __name__ == "__main__":
    main()
