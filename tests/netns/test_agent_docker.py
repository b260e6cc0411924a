"""Docker's networks, with a real dockerd on each of two hosts: attached, made, drifted, left behind."""

from __future__ import annotations

from contextlib import closing

import pytest
from agent_support import bridge, document, vxlan
from docker_support import NETWORK, DockerHost, attach, create, joined

APP = "docker:app"
NOT_RUNNING = "docker is not running on this host (no answer at /var/run/docker.sock)"
ANOTHER_NAME = "attach it (bridge.attach: {docker: app}), or give ours another name"
MAKE_IT = "docker network create --subnet 172.18.0.0/16 --opt com.docker.network.driver.mtu=1450 vxlan-net"


@pytest.fixture(scope="module")
def dockers(agent_archive, installed):
    """Two hosts with dockerd on one wire, with 198.18.0.11 and .12; an underlay of 9001 as in 003."""
    first, second = ("a" * 32, "b" * 32)
    with (
        closing(DockerHost(agent_archive, installed, machine=first)) as a,
        closing(DockerHost(agent_archive, installed, machine=second)) as b,
    ):
        b.run("ip link delete u0")
        a.run("ip", "link", "set", "u1", "netns", str(b._holder.pid))
        b.run("ip address add 198.18.0.12/24 dev u1")
        for host, nic in ((a, "u0"), (b, "u1")):
            host.run(f"ip link set {nic} mtu 9001 up")
        yield a, b


@pytest.fixture
def pair(dockers):
    yield dockers
    for host in dockers:
        host.clean()


@pytest.fixture
def docked(dockers):
    """One host with dockerd."""
    yield dockers[0]
    dockers[0].clean()


def bridge_of(host, network=NETWORK):
    return f"br-{host.network(network)['Id'][:12]}"


def master(host, port="vx-app"):
    return host.link(port).get("master")


def as_made(host, network="app"):
    """What Docker has of the network, without what differs each time one is made."""
    found = host.network(network) or {}
    return {key: value for key, value in found.items() if key not in ("Id", "Created", "Containers")}


def refused(host, wanted, where=APP):
    """The errors about the network."""
    done = host.apply(wanted, code=1)
    assert done.lines[-1] == "nothing was changed"
    assert all(line.startswith(f"a {where}: ") for line in done.lines[:-1]), done.lines
    return [line[len(f"a {where}: ") :] for line in done.lines[:-1]]


# -- attached ------------------------------------------------------------------------------------


def test_the_article_with_its_own_network(pair):
    """003: `docker network create`, two containers with addresses of their own, and our tunnel."""
    for number, host in enumerate(pair, 11):
        host.docker(f"network create --subnet 172.18.0.0/16 {NETWORK}")
        host.container("web", "--ip", f"172.18.0.{number}")
    for host, local, peer in ((pair[0], 11, 12), (pair[1], 12, 11)):
        tunnel = {"mtu": 8951, "local": f"198.18.0.{local}", "peers": {"other": f"198.18.0.{peer}"}}
        wanted = joined(attach(mtu=8951), **tunnel)
        (line,) = host.apply(wanted).lines
        assert line.startswith("vx-app: created (vxlan, mtu 8951, ")
        assert master(host) == bridge_of(host)
        assert host.apply(wanted).lines == ["a: nothing to do, 2 objects as declared"]
        assert host.agent("check").report == {"drift": []}
    for host, other in ((pair[0], 12), (pair[1], 11)):
        host.docker(f"exec web ping -c 1 -W 3 172.18.0.{other}")


def test_what_is_attached_is_left_as_it_was(docked):
    docked.docker(f"network create --subnet 172.18.0.0/16 --opt com.docker.network.driver.mtu=1450 {NETWORK}")
    docked.container("web")
    state, network = docked.state(), docked.network()
    docked.apply(joined(attach()))
    shown = docked.agent("show").report["p/s"]
    assert (shown["vx-app"]["bridge"], shown[f"docker:{NETWORK}"]["mtu"]) == (bridge_of(docked), 1450)
    done = docked.agent("remove", "p/s")
    assert done.lines == ["vx-app: removed", f"a: network {NETWORK} stays: it was attached, not made"]
    assert docked.state() == state
    assert docked.network() == network
    assert docked.files() == {}


def test_what_is_attached_is_made_anew_by_others(docked):
    """Its bridge then has another name, which is drift, and mended."""
    docked.docker(f"network create --subnet 172.18.0.0/16 --opt com.docker.network.driver.mtu=1400 {NETWORK}")
    docked.apply(joined(attach()))
    docked.docker(f"network rm {NETWORK}")
    assert docked.agent("check", code=2).lines == [
        f"docker:{NETWORK}: is not there", f"vx-app: lacks bridge docker:{NETWORK}",
    ]  # fmt: skip
    docked.docker(f"network create --subnet 172.18.0.0/16 --opt com.docker.network.driver.mtu=1400 {NETWORK}")
    new = bridge_of(docked)
    assert docked.agent("check", code=2).lines == [f"vx-app: lacks bridge {new}"]
    docked.agent("restore")
    assert master(docked) == new
    docked.run("ip link set vx-app nomaster")
    assert docked.apply(joined(attach())).lines == [f"vx-app: + bridge {new}"]
    docked.docker(f"network rm {NETWORK}")
    docked.docker(f"network create --subnet 172.19.0.0/16 {NETWORK}")
    assert docked.agent("check", code=2).lines == [
        f"docker:{NETWORK}: lacks subnet 172.18.0.0/16",
        f"docker:{NETWORK}: has subnet 172.19.0.0/16 that is not declared",
        f"docker:{NETWORK}: mtu want 1450, is 1500",
        f"vx-app: lacks bridge {bridge_of(docked)}",
    ]


ATTACH_ERRORS = {
    "not there": (
        None,
        [
            f"docker network 'vxlan-net' is not on this host; make it: {MAKE_IT}, or write docker: {{create: true}}"
        ],
    ),
    "another subnet": (
        "--subnet 172.19.0.0/16 --opt com.docker.network.driver.mtu=1450",
        [
            (
                "docker network 'vxlan-net' has 172.19.0.0/16, but the segment has 172.18.0.0/16; write that in "
                f"subnets, or make the network anew: {MAKE_IT}"
            )
        ],
    ),
    "another driver": (
        "--driver macvlan --opt parent=u0 --subnet 172.18.0.0/16",
        [
            "docker network 'vxlan-net' has the driver macvlan, which has no bridge; name one of the driver bridge"
        ],
    ),
    "an MTU that the tunnels do not carry": (
        "--subnet 172.18.0.0/16",
        [
            (
                f"docker network 'vxlan-net' has an MTU of 1500, but the tunnels carry 1450; make it anew: {MAKE_IT}, "
                "or raise the underlay's by 50 (mtu of every host on the segment)"
            )
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACH_ERRORS)
def test_what_cannot_be_attached(docked, name):
    words, errors = ATTACH_ERRORS[name]
    if words:
        docked.docker(f"network create {words} {NETWORK}")
    assert refused(docked, joined(attach()), f"docker:{NETWORK}") == errors


GATEWAYS = {
    "another": ("--gateway 172.18.0.254", "172.18.0.254; write gateway: 172.18.0.254 on its segment, or give"),
    "none": ("", "no IPv4 address; give"),
}  # fmt: skip


@pytest.mark.parametrize("name", GATEWAYS)
def test_a_gateway_that_is_not_the_bridges(docked, name):
    """A guard for it would guard nothing, in silence."""
    words, has = GATEWAYS[name]
    docked.docker(f"network create --subnet 172.18.0.0/16 {words} --opt com.docker.network.driver.mtu=1450 {NETWORK}")
    if not words:
        docked.run(f"ip address flush dev {bridge_of(docked)}")
    wanted = joined(attach())
    wanted["services"]["guard-app"] = {
        "kind": "gateway-guard", "ports": {"vx-app": {}}, "addresses": {"172.18.0.1": {}, "fe80::1": {}},
    }  # fmt: skip
    state = docked.state()
    (error,) = refused(docked, wanted, "guard-app")
    assert error == (
        f"addresses: 172.18.0.1 is to be the gateway, but bridge {bridge_of(docked)} has {has} it that address on this "
        "host (docker network create --gateway 172.18.0.1)"
    )
    assert docked.state() == state
    if words:
        wanted["services"]["guard-app"]["addresses"] = {"172.18.0.254": {}}
        assert docked.apply(wanted).code == 0
        assert docked.agent("check").report == {"drift": []}


def test_what_the_message_says_to_type_is_enough(docked):
    (error,) = refused(docked, joined(attach()), f"docker:{NETWORK}")
    docked.run("sh", "-c", error.partition("make it: ")[2].partition(", or")[0])
    assert docked.apply(joined(attach())).code == 0


def test_its_bridge_was_deleted_by_hand(docked):
    docked.docker(f"network create --subnet 172.18.0.0/16 --opt com.docker.network.driver.mtu=1450 {NETWORK}")
    docked.apply(joined(attach()))
    name = bridge_of(docked)
    docked.run(f"ip link delete {name}")
    assert docked.agent("check", code=2).lines == [
        f"docker:{NETWORK}: lacks device {name}", f"vx-app: lacks bridge {name}",
    ]  # fmt: skip
    assert refused(docked, joined(attach()), f"docker:{NETWORK}") == [
        f"docker network 'vxlan-net': its bridge {name} is gone; restart docker, which makes it again"
    ]
    docked.stop()
    docked.start()
    assert docked.apply(joined(attach())).lines == [f"vx-app: + bridge {name}"]


# -- made ----------------------------------------------------------------------------------------


def test_a_network_is_made_and_goes(docked):
    state = docked.state()
    wanted = joined(create())
    assert docked.apply(wanted).lines[0].startswith("docker:app: created (docker-network, create on, bridge br-app, ")
    made = docked.network("app")
    assert made["IPAM"]["Config"] == [{
        "Subnet": "10.10.0.0/24", "Gateway": "10.10.0.1", "IPRange": "10.10.0.128/26",
        "AuxiliaryAddresses": {"b": "10.10.0.2"},
    }]  # fmt: skip
    assert made["Labels"] == {"overlay": "overlay:p/s/docker:app"}
    assert (master(docked), docked.link("br-app")["mtu"]) == ("br-app", 1450)
    docked.container("web", network="app")
    assert "10.10.0.128/24" in docked.docker("exec web ip -o address show eth0")
    assert "mtu 1450" in docked.docker("exec web ip link show eth0")
    docked.docker("rm --force web")
    assert docked.apply(wanted).lines == ["a: nothing to do, 2 objects as declared"]
    assert docked.agent("remove", "p/s").lines == ["docker:app: removed", "vx-app: removed"]
    assert not docked.has("app")
    assert docked.state() == state
    assert docked.files() == {}


def test_both_ip_versions(docked):
    wanted = joined(
        create(
            subnets={"10.10.0.0/24": {}, "fd00:10::/64": {}}, gateways={"10.10.0.1": {}, "fd00:10::1": {}},
            auxiliary={"b": "10.10.0.2", "b6": "fd00:10::2"},
        )
    )  # fmt: skip
    docked.apply(wanted)
    assert docked.network("app")["EnableIPv6"]
    assert docked.apply(wanted).lines == ["a: nothing to do, 2 objects as declared"]
    before = as_made(docked)
    docked.stop()
    docked.start()
    assert as_made(docked) == before
    assert docked.agent("check").report == {"drift": []}


def test_two_hosts_share_a_made_network(pair):
    """One gateway address and one range a host, the other's gateway kept free: no address twice."""
    for host, own, other, local, peer, range_ in (
        (pair[0], 1, 2, 11, 12, "10.10.0.64/26"), (pair[1], 2, 1, 12, 11, "10.10.0.128/26"),
    ):  # fmt: skip
        service = create(gateways={f"10.10.0.{own}": {}}, ranges={range_: {}}, auxiliary={"other": f"10.10.0.{other}"})
        host.apply(joined(service, local=f"198.18.0.{local}", peers={"other": f"198.18.0.{peer}"}))
        host.container("web", network="app")
    pair[0].docker("exec web ping -c 1 -W 3 10.10.0.128")
    pair[1].docker("exec web ping -c 1 -W 3 10.10.0.64")


def test_what_explain_says_makes_the_same(docked):
    wanted = joined(create(), peers={"b": "198.18.0.12"})
    docked.run("sh", "-e", text=docked.agent("explain", document=wanted).out)
    assert docked.apply(wanted).lines == ["a: nothing to do, 2 objects as declared (first document)"]


def test_what_explain_says_of_an_attached_one_where_docker_does_not_run(docked, host):
    """A person types it later, and elsewhere."""
    script = host.agent("explain", document=joined(attach())).out
    docked.docker(f"network create --subnet 172.18.0.0/16 {NETWORK}")
    docked.run("sh", "-e", text=script)
    assert master(docked) == bridge_of(docked)


def other_networks(host):
    host.docker("network create --subnet 10.10.0.0/16 --opt com.docker.network.bridge.name=br-app big")
    return [
        "bridge: a device 'br-app' is there and is not of this network; give ours another name",
        (
            "subnet 10.10.0.0/24 overlaps with 10.10.0.0/16 of the docker network 'big'; take another, or remove that "
            "one: docker network rm big"
        ),
    ]


def foreign_network(host):
    host.docker("network create --subnet 10.10.0.0/24 app")
    return [f"docker network 'app' is there and is not ours; {ANOTHER_NAME}"]


def another_stacks(host):
    other = joined(create())
    del other["devices"]["vx-app"]
    host.apply({**other, "owner": {"project": "p", "stack": "t", "id": "id-of-t"}})
    return [f"docker network 'app' is there and belongs to overlay:p/t/docker:app; {ANOTHER_NAME}"]


@pytest.mark.parametrize("prepare", [other_networks, foreign_network, another_stacks])
def test_what_cannot_be_made(docked, prepare):
    errors = prepare(docked)
    before = docked.docker("network ls")
    assert refused(docked, joined(create())) == errors
    assert docked.docker("network ls") == before


def test_dockers_own_sentence(docked):
    """What only the daemon knows is wrong."""
    state = docked.state()
    done = docked.apply(joined(create(mtu=1450, ranges={"10.10.0.0/24": {}}, auxiliary={"b": "10.10.0.1"})), code=1)
    own = "failed to allocate secondary ip address (b:10.10.0.1): Address already in use"
    assert done.lines == [f"a docker network app: create: {own}; undone, the host is as it was"]
    assert docked.state() == state


PARTS = {
    "bridge": "br-two", "mtu": 1400, "gateways": {"10.10.0.5": {}}, "ranges": {"10.10.0.64/26": {}},
    "auxiliary": {"b": "10.10.0.130"}, "subnets": {"10.10.0.0/25": {}},
}  # fmt: skip


@pytest.mark.parametrize("field", PARTS)
def test_each_field_that_differs_makes_it_anew(docked, field):
    """Where another is wanted now, and where somebody made it otherwise under our label."""
    wanted, changed = create(), create(**{field: PARTS[field], **({"ranges": {}} if field == "subnets" else {})})
    docked.apply(joined(wanted))
    first = as_made(docked)
    docked.run("cp /var/lib/overlay/stacks/p/s.json /run/kept")
    assert docked.apply(joined(changed)).lines[0].endswith(" (recreated)")
    assert as_made(docked) != first
    assert docked.agent("check").report == {"drift": []}
    assert master(docked) == changed[APP]["bridge"]
    docked.run("cp /run/kept /var/lib/overlay/stacks/p/s.json")
    assert docked.agent("check", code=2).lines[0].startswith("docker:app: ")
    docked.agent("restore")
    assert (as_made(docked), master(docked)) == (first, "br-app")


def test_it_was_removed_by_hand(docked):
    docked.apply(joined(create()))
    first = as_made(docked)
    docked.docker("network rm app")
    assert docked.agent("check", code=2).lines == ["docker:app: is not there", "vx-app: lacks bridge br-app"]
    docked.apply(joined(create()))
    assert (as_made(docked), master(docked)) == (first, "br-app")


def test_a_change_would_cut_containers_off(docked):
    docked.apply(joined(create(), isolated=True))
    docked.container("web", "--ip", "10.10.0.11", network="app")
    docked.container("db", network="app")
    docked.docker("stop db")
    docked.run("ip route add 10.99.0.0/24 via 10.10.0.77")
    changed = joined(create(mtu=1400), isolated=True)
    (error,) = refused(docked, changed)
    assert error == (
        "docker network 'app' would be made anew, but containers db, web are on it; disconnect those first, or set "
        "overlay:hosts.a.force: true"
    )
    docked.apply({**changed, "force": True})
    assert "10.10.0.11/24" in docked.docker("exec web ip -o address")
    docked.docker("start db")
    docked.docker("exec db ping -c 1 -W 3 10.10.0.11")
    assert docked.json("ip -j route show 10.99.0.0/24")[0]["dev"] == "br-app"
    assert docked.json("bridge -j -d link show dev vx-app")[0]["isolated"]
    assert docked.agent("check").report == {"drift": []}


# -- left behind ---------------------------------------------------------------------------------


def test_it_outlives_its_stack_while_containers_are_on_it(docked):
    wanted = joined(create())
    docked.apply(wanted)
    docked.container("web", network="app")
    docked.container("db", network="app")
    made = docked.network("app")
    stays = "a: network app stays: containers db, web are on it; docker network rm app when they are gone"
    assert docked.agent("remove", "p/s").lines == ["vx-app: removed", stays]
    assert docked.network("app") == made
    assert docked.files() == {}
    # The stack comes again and finds its own.
    (line,) = docked.apply(wanted).lines
    assert line.startswith("vx-app: created (")
    docked.docker("rm --force db")
    docked.docker("stop web")
    assert docked.apply(document()).lines == [
        "vx-app: removed",
        "a: network app stays: container web is on it; docker network rm app when they are gone",
    ]
    docked.apply(wanted)
    docked.docker("rm web")
    assert docked.agent("remove", "p/s").lines == ["docker:app: removed", "vx-app: removed"]
    assert not docked.has("app")


def test_with_force_it_goes_and_leaves_the_containers(docked):
    wanted = {**joined(create()), "force": True}
    docked.apply(wanted)
    docked.container("web", network="app")
    assert docked.agent("remove", "p/s").lines == ["docker:app: removed", "vx-app: removed"]
    assert not docked.has("app")
    assert docked.docker("inspect --format {{.State.Running}} web") == "true"


def test_somebody_made_it_anew(docked):
    docked.apply(joined(create()))
    docked.docker("network rm app")
    docked.docker("network create --subnet 10.10.0.0/24 app")
    assert docked.agent("remove", "p/s").lines == [
        "vx-app: removed", "a: network app stays: somebody made it anew; it is not ours",
    ]  # fmt: skip
    assert docked.has("app")


# -- the daemon ----------------------------------------------------------------------------------


def test_the_daemon_is_restarted(docked):
    wanted = joined(create(), peers={"b": "198.18.0.12"})
    docked.apply(wanted)
    docked.container("web", "--restart", "always", network="app")
    docked.stop()
    assert docked.agent("check", code=2).lines == [f"a: {NOT_RUNNING}", "docker:app: is not there"]
    assert refused(docked, wanted) == [f"{NOT_RUNNING}; start it, or leave out docker"]
    assert refused(docked, joined(attach()), f"docker:{NETWORK}") == [
        f"{NOT_RUNNING}; start it, or leave out bridge.attach"
    ]
    docked.start()
    assert docked.agent("check").report == {"drift": []}
    assert docked.apply(wanted).lines == ["a: nothing to do, 2 objects as declared"]


def test_a_stack_goes_though_the_daemon_does_not_run(docked):
    docked.apply(joined(create()))
    docked.stop()
    assert docked.agent("remove", "p/s").lines == [
        "vx-app: removed",
        f"a: network app stays: {NOT_RUNNING}; docker network rm app when it is",
    ]
    docked.start()
    assert docked.has("app")


def test_a_daemon_that_is_only_starting_is_waited_for(docked):
    """Its socket is there before it listens."""
    docked.apply(joined(create()))
    docked.stop()
    docked.run("sh", "-c", "rm -f /run/docker.sock; /usr/bin/python3 -c 'import socket; "
                           "socket.socket(socket.AF_UNIX).bind(\"/run/docker.sock\")'")  # fmt: skip
    agent = docked.popen("/usr/local/sbin/overlay-agent", "check")
    docked.start()
    assert agent.wait() == 0


def test_at_boot_only_what_joins_docker_waits_for_it(docked):
    other = {"project": "p", "stack": "t", "id": "id-of-t"}
    docked.apply(joined(create()))
    docked.apply(document(owner=other, br_two=bridge(mac="02:00:00:00:00:03")))
    docked.stop()
    docked.run("ip link delete vx-app")
    docked.run("ip link delete br-two")
    docked.agent("restore", "own")
    names = {row["ifname"] for row in docked.json("ip -j link")}
    assert ("br-two" in names, "vx-app" in names) == (True, False)
    assert docked.agent("restore", "docker", code=1).lines[0].endswith(f"{NOT_RUNNING}; start it, or leave out docker")
    docked.start()
    docked.agent("restore", "docker")
    assert master(docked) == "br-app"
    assert docked.agent("restore", "rubbish", code=64).err.startswith("usage: ")


def test_another_socket(docked):
    docked.run("ln -s /run/docker.sock /run/other.sock")
    docked.apply(joined(create()), DOCKER_HOST="unix:///run/other.sock")
    done = docked.agent("check", code=2, DOCKER_HOST="unix:///run/none.sock")
    assert done.lines[0] == "a: docker is not running on this host (no answer at /run/none.sock)"
    # A daemon elsewhere has no bridges here.
    assert docked.agent("check", DOCKER_HOST="tcp://192.0.2.1:2375").report == {"drift": []}


# -- cut short -----------------------------------------------------------------------------------

#: By name: what is there before, what is wanted, and who is killed. (The undo is the same one, by the agent's
#: other process or by the next agent.)
SCENARIOS = {
    "create": (None, joined(create()), ":all"),
    "recreate": (joined(create()), {**joined(create(mtu=1400, bridge="br-new")), "force": True}, ""),
    "remove": (joined(create()), {**document(), "force": True}, ":all"),
    "attach": (None, joined(attach()), ""),
}


def seen(host):
    """What has to be as before: Docker's networks and who is on them, and the rest of the host. What the
    kernel or Docker chooses anew with each network is left out."""
    return {
        "made": as_made(host),
        "containers": host.docker("ps --all --format {{.Names}}/{{.Networks}}/{{.State}}"),
        "shown": host.agent("show").out,
        "routes": host.json("ip -j route show 10.99.0.0/24"),
        "devices": {(row["ifname"], row.get("master"), row["mtu"]) for row in host.json("ip -j link")
                    if not row["ifname"].startswith("veth")},
        "files": host.files(),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_each_point(docked, name):
    before, wanted, scope = SCENARIOS[name]
    docked.docker(f"network create --subnet 172.18.0.0/16 --opt com.docker.network.driver.mtu=1450 {NETWORK}")
    if before:
        docked.apply(before)
        docked.container("web", "--ip", "10.10.0.11", network="app")
        docked.run("ip route add 10.99.0.0/24 via 10.10.0.77")
    was = seen(docked)
    for point in range(1, 40):
        done = docked.apply(wanted, code=None, OVERLAY_FAULT=f"{point}{scope}")
        if done.code == 0:
            break
        restored = docked.agent("restore").lines if scope else done.lines
        if any("after it was done" in line for line in restored):
            break  # it was kept already
        assert seen(docked) == was, (point, restored)
    assert point >= 4
    assert docked.agent("check").report == {"drift": []}


# -- bridges of others ---------------------------------------------------------------------------


@pytest.mark.parametrize("own_mtu", [None, 1500, 1400])
def test_a_bridge_of_others_is_left_exactly_as_it_was(host, own_mtu):
    """LXD's, say. Its MTU follows its ports' unless it was set; we set nothing on it."""
    host.run("ip link add lxdbr0 address 02:00:00:00:00:aa type bridge")
    host.run("ip link set lxdbr0 addrgenmode none")
    host.run("ip address add 10.30.0.1/24 dev lxdbr0")
    if own_mtu:
        host.run("ip link set lxdbr0 mtu 1399")
        host.run(f"ip link set lxdbr0 mtu {own_mtu}")
    host.run("ip link add c0 type veth peer name c1")
    host.run("ip link set c0 addrgenmode none")
    for command in ("c1 addrgenmode none up", "c0 master lxdbr0 up", "lxdbr0 up"):
        host.run(f"ip link set {command}")
    host.run("sh", "-c", "while ip link show lxdbr0 | grep -q NO-CARRIER; do sleep 0.02; done")
    state = host.state()
    wanted = document(vx_app=vxlan(bridge="lxdbr0"))
    host.apply(wanted)
    assert host.link("lxdbr0")["mtu"] == (own_mtu or 1450)
    assert host.link("vx-app")["master"] == "lxdbr0"
    assert host.apply(wanted).lines == ["a: nothing to do, 1 device as declared"]
    host.agent("remove", "p/s")
    assert host.state() == state


def test_a_bridge_that_is_not_there(host):
    wanted = document(vx_app=vxlan(bridge="lxdbr0"))
    assert host.apply(wanted, code=1).lines == [
        "a vx-app: bridge 'lxdbr0' is not on this host; declare it", "nothing was changed",
    ]  # fmt: skip
