"""Segments whose hosts are told by BGP: no document grows with the number of hosts, and none changes with another."""

from __future__ import annotations

import json

import pytest

from overlay_agent.document import Owner
from overlay_components import evpn, graph
from overlay_components.config import load_config
from overlay_components.errors import SECRET_KEYS, ConfigErrors
from overlay_components.plan import make_plan
from overlay_components.secrets import Secrets

BY_RANGE = {"routeReflectors": ["h1", "h2"], "range": "198.18.0.0/16"}
LISTED = {"routeReflectors": ["h1", "h2"]}


def plan(count, options, **more):
    raw = {
        "hosts": {f"h{i}": {"address": f"198.18.{i // 200 + 1}.{i % 200 + 10}"} for i in range(1, count + 1)},
        "evpn": {**options, "password": "p4ssw0rd", "bfd": True},
        "segments": {
            "app": {"tunnels": {"t": {"kind": "vxlan", "vni": 42, "topology": "evpn"}}},
            "ops": {"tunnels": {"t": {"kind": "vxlan", "vni": 43, "topology": "evpn"}}},
        },
        **more,
    }
    return make_plan(load_config(raw), Owner("overlay", "dev", "0"), None, Secrets("key"))


def changed(options, **more):
    """Whose documents one more host changes."""
    before, after = plan(5, options, **more).documents, plan(6, options, **more).documents
    assert after.keys() - before.keys() == {"h6"}
    return {host for host, document in before.items() if document != after[host]}


def test_with_a_range_a_new_host_changes_no_other():
    assert changed(BY_RANGE) == set()
    assert changed(BY_RANGE, openFirewall=True) == set()


def test_without_one_it_changes_the_reflectors():
    assert changed(LISTED) == {"h1", "h2"}


def test_a_mesh_changes_all():
    mesh = {"segments": {"app": {"tunnels": {"t": {"kind": "vxlan", "vni": 42}}}}}
    assert changed(BY_RANGE, **mesh) == {"h1", "h2", "h3", "h4", "h5"}


@pytest.mark.parametrize(("options", "grow"), [(BY_RANGE, set()), (LISTED, {"h1", "h2"})])
def test_a_document_does_not_grow_with_the_hosts(options, grow):
    few, many = plan(5, options).documents, plan(200, options).documents
    assert {host for host in few if len(json.dumps(few[host])) != len(json.dumps(many[host]))} == grow


def test_what_a_filter_must_let_in_does_not_grow_either():
    few, many = plan(5, BY_RANGE).underlay_rules, plan(200, BY_RANGE).underlay_rules
    assert few["h3"] == many["h3"]
    assert many["h3"]["vx-app"]["peers"] == {"198.18.0.0-16": "198.18.0.0/16"}
    assert {name: rule["port"] for name, rule in many["h3"].items() if name.startswith("evpn")} == {
        "evpn": 179, "evpn-bfd": 3784, "evpn-bfd-multihop": 4784,
    }  # fmt: skip


def test_the_password_stands_nowhere_in_the_plan():
    secrets = Secrets("key")
    made = plan(3, BY_RANGE)
    assert "p4ssw0rd" not in repr(made)
    assert "password" in SECRET_KEYS
    reference = made.documents["h3"]["services"]["evpn"]["password"]
    assert reference == secrets.refer("h3", "bgp-password", evpn.Password().normal("p4ssw0rd"))


def test_a_password_that_pulumi_encrypted_is_taken():
    value = evpn.Password().normal({"secure": "v1:abc:def"})
    assert (value.content, value.length) == (None, None)


def test_a_password_is_not_shown_where_something_is_wrong():
    with pytest.raises(ConfigErrors) as caught:
        plan(3, BY_RANGE, evpn={**BY_RANGE, "password": "s3cret word"})
    assert not [sentence for sentence in caught.value.errors if "s3cret" in sentence]


def test_the_outputs_say_who_reflects():
    row = plan(3, BY_RANGE).segments["ops"]["tunnels"]["t"]
    assert (row["topology"], row["more"]["routeReflectors"]) == ("evpn", ["h1", "h2"])
    assert graph._words("t", row) == "t: vxlan, evpn, VNI 43, told by h1 and h2"
    assert (row["more"]["asn"], row["more"]["routeTarget"]) == (65000, "65000:43")
