"""ip_forward is the whole host's: counted by stack, put back by the last, and no uplink goes deaf for it."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from agent_support import OWNER, bridge, document, kill_at_each_point

V4, V6 = "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"
ACCEPT_RA = "net/ipv6/conf/u0/accept_ra"
OTHER = {"project": "p", "stack": "t", "id": "id-of-t"}
#: Of the whole host and of single interfaces, which the switches set too.
LOOKED_AT = (
    V4, V6, ACCEPT_RA, "net/ipv4/conf/u0/forwarding", "net/ipv4/conf/u1/forwarding", "net/ipv4/conf/default/forwarding",
    "net/ipv4/conf/all/accept_redirects", "net/ipv6/conf/u0/forwarding", "net/ipv6/conf/u1/forwarding",
    "net/ipv6/conf/default/forwarding",
)  # fmt: skip


def wanting(*versions, owner=OWNER):
    service = {"kind": "forwarding", **dict.fromkeys(versions, True)}
    return document(owner=owner, services={"forwarding": service})


def get(host, path):
    return host.run("cat", f"/proc/sys/{path}", check=False).out.strip()


def put(host, path, value):
    host.run("sh", "-c", f"echo {value} > /proc/sys/{path}")


def values(host):
    return {path: get(host, path) for path in LOOKED_AT}


def shared(host):
    return json.loads(host.run("cat /var/lib/overlay/shared.json").out)["forwarding"]


def until(true):
    end = time.monotonic() + 60  # dnsmasq advertises every 5 to 20 s at first
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    assert true()


@contextlib.contextmanager
def router(host, new_host):
    """A router at the end of u0's wire that sends advertisements; u0 listens to them."""
    other = new_host(agent=False)
    other.run("ip link delete u0")
    host.run("ip", "link", "set", "u1", "netns", str(other._holder.pid))
    other.run("ip link set u1 addrgenmode eui64 up")
    other.run("ip address add 2001:db8:1::1/64 dev u1 nodad")
    put(other, V6, 1)
    put(host, ACCEPT_RA, 1)
    host.run("ip link set u0 down")
    host.run("ip link set u0 addrgenmode eui64")
    host.run("ip link set u0 up")
    words = ["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=u1", "--bind-interfaces",
             "--enable-ra", "--dhcp-range=2001:db8:1::,ra-only,64,1h", "--ra-param=u1,4,60",
             "--pid-file=", "--user=root", "--dhcp-leasefile=/run/leases"]  # fmt: skip
    process = other.popen("dnsmasq", *words)
    try:
        yield other
    finally:
        process.kill()
        process.wait()


def hears_router(host):
    """Whether the default route and the address are there that a router gave."""
    default = host.json("ip -j -6 route show default proto ra")
    dynamic = [a for row in host.json("ip -j -6 address show dev u0") for a in row["addr_info"] if a.get("dynamic")]
    return bool(default and dynamic)


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_its_life(host, version):
    path = {"ipv4": V4, "ipv6": V6}[version]
    before = values(host)
    done = host.apply(wanting(version))
    assert f"forwarding: created (forwarding, {version} on)" in done.lines
    assert {p: get(host, p) for p in (V4, V6)} == {V4: "0", V6: "0", path: "1"}
    assert host.apply(wanting(version)).lines == ["a: nothing to do, 1 object as declared"]
    assert host.agent("show").report["p/s"]["forwarding"] == {"kind": "forwarding", version: True}
    put(host, path, 0)
    assert host.agent("check", code=2).report == {"drift": [f"forwarding: {version} want on, is off"]}
    assert host.apply(wanting(version)).lines == [f"forwarding: {version} off -> on"]
    assert get(host, path) == "1"
    assert host.apply(wanting("ipv4", "ipv6")).lines == [
        f"forwarding: {other} off -> on" for other in ("ipv4", "ipv6") if other != version
    ]
    assert host.apply(wanting(version)).lines == [
        f"forwarding: {other} on -> off" for other in ("ipv4", "ipv6") if other != version
    ]
    assert {p: get(host, p) for p in (V4, V6)} == {V4: "0", V6: "0", path: "1"}
    assert host.agent("remove", "p/s").lines == ["forwarding: removed"]
    assert values(host) == before
    assert [path for path in host.files() if "members" not in path] == []


@pytest.mark.parametrize("first_out", [OWNER, OTHER], ids=["first in, first out", "last in, first out"])
def test_the_last_stack_out_puts_it_back(host, first_out):
    put(host, "net/ipv4/conf/u0/forwarding", 1)  # an administrator's own
    put(host, "net/ipv4/conf/all/accept_redirects", 0)
    before = values(host)
    host.apply(wanting("ipv4", "ipv6"))
    done = host.apply(wanting("ipv4", owner=OTHER))
    assert done.lines == ["forwarding: created (forwarding, ipv4 on)"]
    assert get(host, "net/ipv4/conf/u1/forwarding") == "1"
    labels = ["p/s", "p/t"] if first_out is OWNER else ["p/t", "p/s"]
    host.agent("remove", labels[0])
    assert get(host, V4) == "1"
    assert get(host, V6) == ("0" if first_out is OWNER else "1")
    assert host.agent("check").report == {"drift": []}
    host.agent("remove", labels[1])
    assert values(host) == before
    assert [path for path in host.files() if "members" not in path] == []


def test_what_somebody_else_switched_on_stays_on(host):
    put(host, V4, 1)
    host.apply(wanting("ipv4"))
    assert shared(host)["ipv4"]["was"] == {V4: "1"}
    put(host, V4, 0)
    host.apply(wanting("ipv4"))
    host.agent("remove", "p/s")
    assert get(host, V4) == "1"


def test_who_came_after_us_and_relies_on_it_keeps_it(host):
    # Docker looks once, when it starts: it found ours, and would have switched it on itself.
    host.apply(wanting("ipv4"))
    host.run("ip link add docker0 type bridge")
    host.agent("remove", "p/s")
    assert get(host, V4) == "1"


def test_after_a_reboot_what_the_boot_set_is_put_back(host, new_host):
    host.apply(wanting("ipv4", "ipv6"))
    stored = host.run("tar", "-C", "/var/lib/overlay", "-c", "stacks", "shared.json").out
    rebooted = new_host()
    rebooted.run("tar", "-C", "/var/lib/overlay", "-x", text=stored)
    put(rebooted, V4, 1)  # by sysctl.conf, say, since the last boot
    before = values(rebooted)
    assert rebooted.agent("restore").lines == ["forwarding: ipv6 off -> on"]
    assert {p: get(rebooted, p) for p in (V4, V6)} == {V4: "1", V6: "1"}
    rebooted.agent("remove", "p/s")
    assert values(rebooted) == before
    assert rebooted.files() == {}


def test_what_a_power_cut_left_in_files_goes_at_the_next_boot(host, new_host):
    host.apply(wanting("ipv4"), code=None, OVERLAY_FAULT="2:all")
    assert shared(host)["ipv4"]["stacks"] == ["overlay:p/s/forwarding"]
    stored = host.run("tar", "-C", "/var/lib/overlay", "-c", "journal.json", "shared.json").out
    rebooted = new_host()
    rebooted.run("tar", "-C", "/var/lib/overlay", "-x", text=stored)
    before = values(rebooted)
    assert rebooted.agent("restore").lines == [
        "stack p/s: an apply was cut short by a reboot; the host keeps what it had before"
    ]
    assert rebooted.files() == {}
    assert values(rebooted) == before


def test_an_uplink_that_lives_from_its_router_goes_on_hearing_it(host, new_host):
    with router(host, new_host):
        until(lambda: hears_router(host))
        put(host, "net/ipv6/conf/lo/accept_ra", 1)  # nobody advertises there
        before = values(host)
        host.apply(wanting("ipv6"))
        assert {p: get(host, p) for p in (V6, ACCEPT_RA)} == {V6: "1", ACCEPT_RA: "2"}
        assert get(host, "net/ipv6/conf/lo/accept_ra") == "1"
        assert hears_router(host)
        # Heard, not only kept: what is deleted comes again with the next advertisement.
        host.run("ip -6 route delete default proto ra")
        until(lambda: hears_router(host))
        put(host, ACCEPT_RA, 1)
        want = "forwarding: ipv6 want on, is on without accept_ra 2 on u0"
        assert host.agent("check", code=2).report == {"drift": [want]}
        assert host.apply(wanting("ipv6")).lines == ["forwarding: ipv6 on without accept_ra 2 on u0 -> on"]
        assert get(host, ACCEPT_RA) == "2"
        host.agent("remove", "p/s")
        assert values(host) == before
        assert hears_router(host)


def test_without_that_the_kernel_would_drop_the_default_route(host, new_host):
    # What the care above is for: the kernel's own doing.
    with router(host, new_host):
        until(lambda: hears_router(host))
        put(host, V6, 1)
        assert not hears_router(host)


def test_after_a_reboot_an_uplink_is_known_before_its_router_speaks(host, new_host):
    with router(host, new_host):
        until(lambda: hears_router(host))
        host.apply(wanting("ipv6"))
        stored = host.run("tar", "-C", "/var/lib/overlay", "-c", "stacks", "shared.json").out
    rebooted = new_host()
    rebooted.run("tar", "-C", "/var/lib/overlay", "-x", text=stored)
    before = values(rebooted)
    assert before[ACCEPT_RA] == "1"
    rebooted.agent("restore")
    assert get(rebooted, ACCEPT_RA) == "2"
    rebooted.agent("remove", "p/s")
    assert values(rebooted) == before


@pytest.mark.parametrize(
    ("breaking", "versions", "error"),
    [
        ("mount -t tmpfs none /proc/sys/net/ipv6", ["ipv6"],
         ("a forwarding: /proc/sys/net/ipv6/conf/all/forwarding is not on this host: its kernel runs without IPv6; "
          "boot it without ipv6.disable=1, or give the segment no IPv6 subnet")),
        ("sh -c 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys'", ["ipv4"],
         ("a forwarding: /proc/sys/net/ipv4/ip_forward is 0 and cannot be written here; if this host is a container, "
          "switch it on from outside: sysctl -w net.ipv4.ip_forward=1")),
        ("true", [], "forwarding.ipv4: neither ipv4 nor ipv6 is on; leave the service out"),
    ],
)  # fmt: skip
def test_what_is_refused(host, breaking, versions, error):
    host.run(breaking)
    done = host.apply(wanting(*versions), code=1)
    assert error in done.lines
    assert host.files() == {}


def test_a_container_whose_host_forwards_already_is_taken(host):
    put(host, V4, 1)
    host.run("sh", "-c", "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys")
    host.apply(wanting("ipv4"))
    host.agent("remove", "p/s")


def test_typed_by_hand_it_is_the_same(host, new_host):
    with router(host, new_host):
        until(lambda: hears_router(host))
        commands = host.agent("explain", document=wanting("ipv4", "ipv6")).out
        host.run("sh", "-eux", text=commands)
        assert {p: get(host, p) for p in (V4, V6, ACCEPT_RA)} == {V4: "1", V6: "1", ACCEPT_RA: "2"}
        assert hears_router(host)


#: What is there before, and what is wanted (None: nothing).
SCENARIOS = {
    "create": (None, wanting("ipv4", "ipv6")),
    "change": (wanting("ipv4"), wanting("ipv6")),
    "remove": (wanting("ipv4", "ipv6"), None),
}


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["", ":all"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_each_point(new_host, name, scope):
    before, wanted = SCENARIOS[name]

    def prepare(host):
        put(host, "net/ipv4/conf/u0/forwarding", 1)
        host.apply(document(owner=OTHER, br_other=bridge()))
        if before:
            host.apply(before)

    def go(host, code, **env):
        return host.apply(wanted, code=code, **env) if wanted else host.agent("remove", "p/s", code=code, **env)

    assert kill_at_each_point(new_host, scope, prepare, go, values) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["", ":all"])
def test_a_mended_uplink_is_undone_too(new_host, scope):
    routers = contextlib.ExitStack()

    def prepare(host):
        routers.close()
        routers.enter_context(router(host, new_host))
        until(lambda: hears_router(host))
        host.apply(wanting("ipv6"))
        put(host, ACCEPT_RA, 1)

    def go(host, code, **env):
        return host.apply(wanting("ipv6"), code=code, **env)

    with routers:
        if scope:  # `restore` makes every document true when it has ended the matter
            prepare(host := new_host())
            go(host, None, OVERLAY_FAULT="2:all")
            assert "undone" in host.agent("restore").err
            assert get(host, ACCEPT_RA) == "2"
        else:
            assert kill_at_each_point(new_host, scope, prepare, go, values) >= 3
