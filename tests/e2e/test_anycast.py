"""An anycast gateway from `pulumi up` to `destroy`: verified, missed by nobody, seen when somebody changes it."""

from __future__ import annotations

import pytest

from tests.e2e.test_verify import Verified, checks

pytestmark = pytest.mark.root


@pytest.mark.lab(hosts=3)
def test_from_up_to_destroy(lab, tmp_path, home):
    stack = Verified(lab, tmp_path / "stack", "lab", home)
    stack.segments.clear()
    containers = {f"c{n}": {"host": f"h{n}", "address": f"10.10.0.{10 + n}"} for n in (1, 2, 3)}
    stack.segments["app"] = {
        "subnets": ["10.10.0.0/24"],
        "tunnels": {"mesh": {"kind": "vxlan", "vni": 42}},
        "dhcp": {"host": "h1", "masquerade": True},
        "containers": containers,
    }
    stack.remember()
    stack.up().ok()
    # From one router to each host its own, in place.
    stack.segments["app"].update(gateway="anycast", dhcp={"masquerade": True})
    said = stack.up().ok()
    assert "anycast-app: created" in said
    stack.noop()
    stack.healthy()
    row = stack.outputs()["segments"]["app"]
    assert (row["gateway"], row["dhcp"]["hosts"]) == ("10.10.0.1", ["h1", "h2", "h3"])
    assert [lab.links(host)["br-app"]["address"] for host in lab.hosts] == [row["anycast"]] * 3
    plugged = stack.plug_in()
    stack.all_reach_all(plugged)
    for host, name, _ in plugged["app"]:
        assert lab.ping(host, "10.10.0.1", wait=3, container=name)
        assert row["anycast"] in lab.exec_container(host, name, "ip neigh show 10.10.0.1").stdout
        # The way out is the own host's, under its address.
        other = stack.hosts["h1" if host != "h1" else "h2"]["address"]
        assert lab.ping(host, other, wait=3, container=name)

    code, report = stack.verify("app")
    assert code == 0
    assert checks(report)["gateway"] == (True, "10.10.0.1 is on h1, h2 and h3, for the containers of each")
    lab.run("h2", "ip link set br-app address 02:00:00:00:00:99")
    code, report = stack.verify("app")
    words = f"h2's br-app has MAC address 02:00:00:00:00:99, not the gateway's {row['anycast']}; run `pulumi up`"
    assert (code, checks(report)["gateway"]) == (2, (False, words))
    code, out, _ = stack.overlay("drift")
    assert code == 2
    assert f"br-app: mac want {row['anycast']}, is 02:00:00:00:00:99" in out
    lab.run("h2", f"ip link set br-app address {row['anycast']}")

    assert "gateway 10.10.0.1 on each host, DHCP on each host" in stack.overlay("graph", "--format", "mermaid")[1]
    assert "10.10.0.1" in stack.overlay("snippet", "c2", "--for", "netplan")[1]
    assert "table bridge" in stack.overlay("explain", "h2")[1]
    # A host leaves and comes back; the others' containers keep their gateway.
    for host, name, _ in plugged["app"]:
        lab.remove_container(host, name)
    assert stack.overlay("stop", "h2")[0] == 0
    assert "table bridge" not in lab.run("h2", "nft list ruleset").stdout
    assert stack.overlay("start", "h2")[0] == 0
    stack.healthy()
    # And back to one.
    stack.segments["app"].update(gateway="h1", dhcp={"host": "h1", "masquerade": True})
    assert "anycast-app: removed" in stack.up().ok()
    stack.healthy()
    stack.destroy().ok()
    stack.clean()
