"""How stack files are read: in Pulumi's way, strictly, and with our own words for what is wrong."""

import base64
import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlay_agent.document import Owner
from overlay_agent.kinds.gretap import Gretap, Ip6Gretap
from overlay_agent.kinds.l2tp import L2tp
from overlay_agent.kinds.vxlan import Vxlan
from overlay_components import (
    bridge,
    config,
    dhcp_router,
    encryption,
    evpn,
    foreign_bridge,
    gretap_tunnel,
    l2tp_tunnel,
    vxlan_tunnel,
)
from overlay_components.config import from_pulumi, load_config, read_stack_file
from overlay_components.errors import ConfigErrors
from overlay_components.names import Placeholder
from overlay_components.plan import make_plan

ROOT = Path(__file__).parents[2]
STACKS = sorted((ROOT / "stacks").glob("Pulumi.*.yaml"))
HOSTS = {"a": {"address": "192.0.2.11"}, "b": {"address": "192.0.2.12"}}


def errors_of(raw):
    with pytest.raises(ConfigErrors) as caught:
        load_config(raw)
    return caught.value.errors


def file_errors(tmp_path, text):
    path = tmp_path / "Pulumi.x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigErrors) as caught:
        read_stack_file(path)
    return [error.replace(str(path), "FILE") for error in caught.value.errors]


class TestFiles:
    def test_objects_numbers_and_flags_are_read(self, tmp_path):
        path = tmp_path / "Pulumi.x.yaml"
        path.write_text(
            "config:\n  aws:region: eu\n  overlay:openFirewall: true\n"
            "  overlay:hosts:\n    a: {address: 192.0.2.11, mtu: 9001}\n"
        )
        assert read_stack_file(path) == {"openFirewall": True, "hosts": {"a": {"address": "192.0.2.11", "mtu": 9001}}}

    def test_yaml_is_read_as_pulumi_reads_it(self, tmp_path):
        # YAML 1.1, PyYAML's own way, makes 1397502486 of such a MAC address, and true of "on".
        path = tmp_path / "Pulumi.x.yaml"
        path.write_text(
            "config:\n  overlay:x: {mac: 52:54:00:12:34:56, on: no, day: 2024-01-01, n: 0x1f, e: , f: 1.5}\n"
        )
        read = read_stack_file(path)["x"]
        assert read == {"mac": "52:54:00:12:34:56", "on": "no", "day": "2024-01-01", "n": 31, "e": None, "f": 1.5}

    def test_merge_keys_work(self, tmp_path):
        path = tmp_path / "Pulumi.x.yaml"
        path.write_text("config:\n  overlay:x: &x {a: 1, b: 2}\n  overlay:y:\n    <<: *x\n    b: 3\n")
        assert read_stack_file(path)["y"] == {"a": 1, "b": 3}

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            (
                "config:\n  overlay:hosts:\n    a: {address: 1.2.3.4\n    b: 2\n",
                "FILE: line 4, column 6: did not find expected ',' or '}'; mend the YAML there",
            ),
            (
                "config:\n\toverlay:hosts: {}\n",
                "FILE: line 2, column 1: found character that cannot start any token; mend the YAML there",
            ),
            (
                "config:\n  overlay:hosts:\n    a: {}\n    b: {}\n    a: {}\n",
                "FILE: line 5, column 5: key 'a' stands twice; mend the YAML there",
            ),
            ("config:\n  ? [a]\n  : 1\n", "FILE: line 2, column 5: found unhashable key; mend the YAML there"),
            ("overlay:hosts: {}\n", "FILE: has no `config:` with `overlay:...` keys below it; begin with `config:`"),
            ("", "FILE: has no `config:` with `overlay:...` keys below it; begin with `config:`"),
            ("config: !!python/name:os.system x\n", None),
        ],
        ids=["brace", "tab", "twice", "key", "no-config", "empty", "tag"],
    )
    def test_what_is_not_a_stack_file_is_one_error_with_its_line(self, tmp_path, text, error):
        (found,) = file_errors(tmp_path, text)
        assert found == error or (error is None and "could not determine a constructor" in found)

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(ConfigErrors, match="cannot be read"):
            read_stack_file(tmp_path / "none.yaml")

    def test_a_file_that_is_not_text(self, tmp_path):
        path = tmp_path / "x"
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigErrors, match="cannot be read"):
            read_stack_file(path)


class TestPulumi:
    def test_objects_come_as_json_text_and_other_namespaces_are_not_ours(self):
        raw = from_pulumi({"overlay:hosts": json.dumps(HOSTS), "overlay:openFirewall": "true", "aws:region": "{"})
        assert raw == {"hosts": HOSTS, "openFirewall": True}

    def test_yaml_text_is_taken_too(self):
        assert from_pulumi({"overlay:hosts": "{a: {address: 192.0.2.11}}"}) == {
            "hosts": {"a": {"address": "192.0.2.11"}}
        }

    def test_text_that_is_neither_is_an_error_with_its_key(self):
        with pytest.raises(ConfigErrors) as caught:
            from_pulumi({"overlay:hosts": "{a: ", "overlay:segments": "[1"})
        assert [error.partition(":")[0] for error in caught.value.errors] == ["hosts", "segments"]

    def test_a_misspelt_top_level_key_is_found(self):
        assert errors_of(from_pulumi({"overlay:host": json.dumps(HOSTS)})) == ["host: unknown key; did you mean hosts?"]


class TestHosts:
    def test_a_hosts_own_keys_come_before_the_defaults(self):
        checked = load_config(
            {
                "defaults": {"user": "ops", "port": 2222, "mtu": 9000, "proxy": "jump", "underlay": {"device": "eth1"}},
                "hosts": {"a": {**HOSTS["a"], "user": "root", "mtu": 1500}, "b": HOSTS["b"]},
            }
        )
        a, b = checked.resolved_hosts().values()
        assert (a.user, a.port, a.mtu, a.proxy, a.underlay_device, a.sudo) == (
            "root",
            2222,
            1500,
            "jump",
            "eth1",
            False,
        )
        assert (b.user, b.port, b.mtu, b.underlay_device, b.sudo) == ("ops", 2222, 9000, "eth1", True)

    def test_what_the_file_does_not_say_is_left_to_ssh(self):
        a = load_config({"hosts": HOSTS}).resolved_hosts()["a"]
        assert (a.user, a.port, a.identity_file, a.host_key, a.proxy, a.sudo) == (None,) * 6
        assert (a.mtu, a.underlay_address, a.underlay_local, a.underlay_device) == (1500, a.address, a.address, None)

    def test_sudo_can_be_said(self):
        hosts = {"a": {**HOSTS["a"], "user": "root", "sudo": True}, "b": {**HOSTS["b"], "sudo": False}}
        assert [host.sudo for host in load_config({"hosts": hosts}).resolved_hosts().values()] == [True, False]

    @pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256"])
    def test_host_keys_lose_their_comment(self, kind):
        key = base64.b64encode(len(kind).to_bytes(4, "big") + kind.encode() + b"\0\0\0\x20" + bytes(32)).decode()
        hosts = {"a": {**HOSTS["a"], "hostKey": f"{kind} {key} root@a"}}
        assert load_config({"hosts": hosts}).resolved_hosts()["a"].host_key == f"{kind} {key}"

    def test_an_address_for_all_hosts_makes_no_sense(self):
        raw = {"hosts": HOSTS, "defaults": {"address": "192.0.2.1", "underlay": {"address": "192.0.2.1"}}}
        assert [error.partition(";")[0] for error in errors_of(raw)] == [
            "defaults.underlay.address: unknown key",
            "defaults.address: unknown key",
        ]

    def test_addresses_are_kept_in_one_spelling(self):
        hosts = {"a": {"address": "2001:DB8:0::0011"}}
        assert load_config({"hosts": hosts}).resolved_hosts()["a"].address == "2001:db8::11"


class TestPlaceholders:
    """What another resource has yet to make is taken where a value may come late, and only there."""

    def test_they_go_through(self):
        late = Placeholder("<address of c>")
        raw = {
            "hosts": {**HOSTS, "c": {"address": late, "hostKey": Placeholder("<host key of c>")}},
            "segments": {
                "app": {
                    "subnets": ["10.10.0.0/24"],
                    "addresses": {"c": Placeholder("<overlay address>")},
                    "tunnels": {"mesh": {"kind": "vxlan", "vni": 42}},
                    "containers": {"x": {"host": "c", "address": Placeholder("<x>"), "mac": Placeholder("<mac of x>")}},
                }
            },
        }
        plan = make_plan(load_config(raw), Owner("p", "s", "0"))
        text = json.loads(json.dumps(plan.documents))
        assert text["a"]["devices"]["vx-app"]["peers"] == {"b": "192.0.2.12", "c": "<address of c>"}
        assert text["c"]["devices"]["vx-app"]["local"] == "<address of c>"
        assert text["c"]["devices"]["br-app"]["addresses"] == {"<overlay address>": {}}
        assert plan.containers["app"]["x"]["mac"] == "<mac of x>"
        assert plan.segments["app"]["mtu"] == 1450

    def test_two_unknown_addresses_are_not_one(self):
        hosts = {name: {"address": Placeholder("<address>")} for name in "ab"}
        make_plan(
            load_config({"hosts": hosts, "segments": {"app": {"tunnels": {"m": {"kind": "vxlan", "vni": 1}}}}}),
            Owner("p", "s", "0"),
        )

    def test_structure_is_never_late(self):
        raw = {"hosts": {"a": {**HOSTS["a"], "mtu": Placeholder("<mtu of a>")}}}
        assert errors_of(raw) == ["hosts.a.mtu: '<mtu of a>' is not a whole number from 68 to 65535"]


class TestOneFieldList:
    """Attributes of a kind are listed by the agent and nowhere else."""

    @pytest.mark.parametrize(
        ("spec", "module"),
        [(Vxlan, vxlan_tunnel), (Gretap, gretap_tunnel), (Ip6Gretap, gretap_tunnel), (L2tp, l2tp_tunnel)],
    )
    def test_every_attribute_of_the_agent_is_a_key(self, spec, module):
        for field in dataclasses.fields(spec):
            if field.name not in module._PLANNED:
                ours = module.KIND.options.model_fields[field.name]
                assert ours.description, field.name
                assert ours.default == field.default, field.name

    def test_every_key_has_a_description(self):
        def walk(at, path):
            for key, value in at.get("properties", {}).items():
                if key != "kind":
                    assert value.get("description"), [*path, key]
                walk(value, [*path, key])
            for inner in [*at.get("anyOf", []), *at.get("oneOf", []), *filter(None, [at.get("additionalProperties")])]:
                if isinstance(inner, dict):
                    walk(inner, path)

        made = config.Config.model_json_schema()
        walk(made, [])
        for name, inner in made["$defs"].items():
            walk(inner, [name])


class TestSchema:
    def test_the_file_is_up_to_date(self):
        assert config.SCHEMA.read_text() == config.schema_text(), "run python -m overlay_components.config schema"

    def test_it_stands_alone(self):
        made = json.loads(config.schema_text())
        references = set(re.findall(r'"#/definitions/(\w+)"', config.schema_text()))
        assert references <= made["definitions"].keys()

    def test_the_command_writes_it(self, tmp_path, monkeypatch):
        monkeypatch.setattr(config, "SCHEMA", tmp_path / "schema" / "x.json")
        assert config.main(["schema"]) == 0
        assert (tmp_path / "schema" / "x.json").read_text() == config.schema_text()
        assert config.main([]) == 2


class TestOurStacks:
    @pytest.mark.parametrize("path", STACKS, ids=lambda path: path.stem)
    def test_they_plan_without_a_warning(self, path):
        assert not make_plan(load_config(read_stack_file(path)), Owner("overlay", "x", "0")).warnings

    @pytest.mark.parametrize("path", STACKS, ids=lambda path: path.stem)
    def test_they_begin_with_the_schema_and_what_they_replace(self, path):
        first, second, *_ = path.read_text().splitlines()
        assert first == "# yaml-language-server: $schema=../schema/overlay-stack.schema.json"
        assert second.startswith("# ")

    def test_they_are_all_there(self):
        wanted = {"lab", "doc-000-unicast", "doc-000-multicast", "doc-001-mesh", "doc-002-v4", "doc-002-v6"}
        wanted |= {"doc-004-gretap", "doc-004-l2tp", "doc-004-several"}
        wanted |= {"doc-002-docker", "doc-003", "doc-003-9001", "doc-003-attach"}
        assert wanted <= {path.name.split(".")[1] for path in STACKS}


class TestTheDocument:
    """docs/stack-file.md has every key, with its default."""

    TEXT = (ROOT / "docs" / "stack-file.md").read_text() if (ROOT / "docs" / "stack-file.md").exists() else ""

    @pytest.mark.parametrize(
        ("heading", "model"),
        [
            ("overlay", config.Config),
            ("overlay:defaults", config.Defaults),
            ("overlay:hosts", config.Host),
            ("underlay", config.Underlay),
            ("overlay:peers", config.Peer),
            ("overlay:evpn", evpn.EvpnOptions),
            ("overlay:segments", config.Segment),
            ("bridge", bridge.OPTIONS),
            ("attach", foreign_bridge.AttachOptions),
            ("docker", foreign_bridge.DockerOptions),
            ("containers", config.Container),
            ("dhcp", dhcp_router.DhcpOptions),
            ("dhcp", dhcp_router.Reservation),
            ("tunnels", vxlan_tunnel.VxlanOptions),
            ("kind: vxlan", vxlan_tunnel.KIND.options),
            ("encryption", encryption.EncryptionOptions),
            ("encryption", encryption.HostOptions),
            ("kind: gretap", gretap_tunnel.KIND.options),
            ("kind: l2tp", l2tp_tunnel.KIND.options),
        ],
    )
    def test_every_key_is_described(self, heading, model):
        rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", self.TEXT, re.MULTILINE))
        for name, field in model.model_fields.items():
            key = field.alias or name
            assert key in rows, f"{heading}: {key}"

    def test_numbers_given_as_defaults_are_true(self):
        rows = re.findall(r"^\| `(\w+)` \| `([^`|]+)` \|", self.TEXT, re.MULTILINE)
        tables = [
            bridge.OPTIONS,
            *(kind.options for kind in config.TUNNELS.values()),
            config.Config,
            config.Segment,
            config.Host,
            config.Defaults,
            dhcp_router.DhcpOptions,
            encryption.EncryptionOptions,
            encryption.HostOptions,
            evpn.EvpnOptions,
        ]
        for key, text in rows:
            defaults = {
                json.dumps(field.default).strip('"')
                for model in tables
                for name, field in model.model_fields.items()
                if (field.alias or name) == key and isinstance(field.default, (int, str, bool))
            }
            assert text in defaults or not defaults, (key, text, defaults)
        assert len(rows) > 15


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        [
            *("a", "b", "10.10.0.1", "10.10.0.0/24", "none", "fd00::1/64", "1-9", "a-b", "x"),
            *("vxlan", "gretap", "l2tp", "hub", "pairs", "evpn"),
        ]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FULL = {
    "defaults": {"user": "root", "underlay": {"device": "eth0"}},
    "hosts": {**HOSTS, "c": {"address": "192.0.2.13", "mtu": 9000, "underlay": {"local": "192.0.2.13"}}},
    "peers": {"r": {"address": "192.0.2.99"}},
    "segments": {
        "app": {
            "hosts": ["a", "b", "c"],
            "subnets": ["10.10.0.0/24", "fd00:10::/64"],
            "addresses": {"a": ["10.10.0.1", "fd00:10::1"]},
            "gateway": "a",
            "reserved": ["10.10.0.200"],
            "bridge": {"name": "br0", "stp": False, "ageing": 10},
            "mtu": 1400,
            "tunnels": {"mesh": {"kind": "vxlan", "vni": 42, "endpoints": ["a", "b", "c", "r"], "ttl": "inherit"}},
            "containers": {"x": {"host": "b", "address": "10.10.0.11", "mac": "02:00:00:00:00:01"}},
            "routes": {"10.20.0.0/24": "b", "fd00:20::/64": "10.10.0.11"},
            "dhcp": {
                "host": "a",
                "range": ["10.10.0.100-10.10.0.199"],
                "lease": "12h",
                "options": {"42": "10.10.0.9"},
                "reservations": {"y": {"mac": "02:00:00:00:00:02", "address": "fd00:10::11"}},
                "masquerade": True,
                "forwards": {"8080": "x:80", "udp/53-54": "10.10.0.9"},
                "publicAddresses": {"198.51.100.7": "x"},
            },
        },
        "two": {
            "subnets": ["10.30.0.0/24"],
            "addresses": {"a": "10.30.0.2", "b": "10.30.0.3"},
            "gateway": "10.30.0.1",
            "dhcp": {"hosts": ["a", "b"], "group": 7},
        },
        "star": {
            "tunnels": {"hub": {"kind": "vxlan", "topology": "hub", "hub": "a", "vniRange": "1-99", "vnis": {"b": 7}}}
        },
        "link": {
            "hosts": ["a", "b"],
            "bridge": "none",
            "tunnels": {"t": {"kind": "vxlan", "topology": "pairs", "endpoints": [["a", "b"]], "vni": 3}},
        },
    },
    "openFirewall": False,
}


def places(at, path=()):
    yield path
    inner = at.items() if isinstance(at, dict) else enumerate(at) if isinstance(at, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def mended(at, path, value):
    if not path:
        return value
    copy = dict(at) if isinstance(at, dict) else list(at)
    copy[path[0]] = mended(at[path[0]], path[1:], value)
    return copy


class TestFuzz:
    """Whatever stands in a file: a plan, or sentences with a place. Never a traceback, never pydantic's own words."""

    @settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.sampled_from([path for path in places(FULL) if path]), JSON, st.booleans(), st.text(max_size=6))
    def test_one_value_replaced_or_one_key_added(self, path, value, add, key):
        at = FULL
        for part in path:
            at = at[part]
        self.check(mended(FULL, path, {**at, key: value} if add and isinstance(at, dict) else value))

    @settings(max_examples=200, deadline=None)
    @given(st.dictionaries(st.sampled_from(["hosts", "segments", "peers", "defaults", "openFirewall", "x"]), JSON))
    def test_anything(self, raw):
        self.check(raw)

    def check(self, raw):
        try:
            make_plan(load_config(raw), Owner("p", "s", "0"))
        except ConfigErrors as caught:
            found = caught.errors
        else:
            return
        assert found
        for error in found:
            assert re.match(r".+: \S", error)
            assert error.isprintable()
            assert "pydantic" not in error.lower()
            assert "Input should" not in error

    @settings(max_examples=100, deadline=None)
    @given(st.text(max_size=60))
    def test_any_text_as_configuration(self, text):
        try:
            from_pulumi({"overlay:hosts": text})
        except ConfigErrors as caught:
            found = caught.errors
        else:
            return
        assert len(found) == 1
