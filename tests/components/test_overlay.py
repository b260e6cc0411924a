"""What a program registers for a plan, in which order, and what it refuses."""

from __future__ import annotations

import asyncio
import re

import pulumi
import pytest
from pulumi import Output, ResourceOptions
from pulumi_command import local

from overlay_agent import document, fields
from overlay_components import (
    Bridge,
    DhcpRouter,
    GreTapTunnel,
    Host,
    L2tpTunnel,
    Overlay,
    VxlanTunnel,
    bridge,
    component,
    config,
    dhcp_router,
    foreign_bridge,
    gretap_tunnel,
    host,
    l2tp_tunnel,
    vxlan_tunnel,
)
from tests.components.world import COMMAND, KEY, MACHINE, STACK_ID, World, run


def ends(*names, **more):
    return [Host(n, address=f"192.0.2.{i}", host_key=KEY, user="root", **more) for i, n in enumerate(names, 11)]


def small(**more):
    """Two hosts and a mesh."""
    with Overlay("prod") as overlay:
        hosts = ends("a", "b")
        app = Bridge("app", hosts=hosts, subnets=["10.10.0.0/24"], **more)
        VxlanTunnel("app-mesh", bridge=app, vni=42)
    return overlay, app, hosts


def commands(world):
    """What would have been run."""
    return [name for name, r in world.resources.items() if r.type.startswith("command:")]


def declare_small():
    small()


# -- what is registered ------------------------------------------------------------------------


def test_components_and_one_document_a_host():
    world = run(declare_small)
    assert {name: (r.type, r.parent) for name, r in world.resources.items()} == {
        "prod": ("overlay:index:Overlay", "shop-dev"),
        "prod-a": ("overlay:index:Host", "prod"),
        "prod-b": ("overlay:index:Host", "prod"),
        "prod-app": ("overlay:index:Bridge", "prod"),
        "prod-app-mesh": ("overlay:index:VxlanTunnel", "prod"),
        "prod-id": ("command:local:Command", "prod"),
        **{
            f"prod-{h}-{what}": (type_, f"prod-{h}")
            for h in "ab"
            for what, type_ in {
                "agent": "command:remote:CopyToRemote",
                "uninstall": COMMAND,
                "install": COMMAND,
                "document": COMMAND,
            }.items()
        },
    }
    assert world.resources["prod-a"].inputs == {"address": "192.0.2.11", "hostKey": KEY, "user": "root"}
    tunnel = world.resources["prod-app-mesh"].inputs
    assert tunnel == {"kind": "vxlan", "segment": "app", "vni": 42}
    assert world.resources["prod-app"].inputs == {"hosts": ["a", "b"], "subnets": ["10.10.0.0/24"]}


def test_a_router_stands_in_the_state_and_in_its_hosts_document():
    seen = []

    def program():
        with Overlay("prod"):
            a, b = ends("a", "b")
            app = Bridge("app", hosts=[a, b], subnets=["10.10.0.0/24"])
            VxlanTunnel("app-mesh", bridge=app, vni=42)
            router = DhcpRouter("app-dhcp", bridge=app, host=a, masquerade=True, lease_max=253)
        router.ready.apply(seen.append)
        local.Command("after", create="true", opts=ResourceOptions(depends_on=[app]))

    world = run(program)
    made = world.resources["prod-app-dhcp"]
    assert (made.type, made.parent) == ("overlay:index:DhcpRouter", "prod")
    assert made.inputs == {"segment": "app", "host": "a", "masquerade": True, "leaseMax": 253}
    assert set(world.document("prod-a")["services"]) == {"dhcp-app", "nat-app", "forwarding"}
    assert world.document("prod-a")["devices"]["br-app"]["addresses"] == {"10.10.0.1/24": {}}
    assert "services" not in world.document("prod-b")
    assert seen == [True]


def test_two_hubs_are_given_as_hosts():
    def program():
        with Overlay("prod"):
            a, b, c = ends("a", "b", "c")
            app = Bridge("app", hosts=[a, b, c])
            GreTapTunnel("app-gre", bridge=app, topology="hub", hubs=[b, a])

    world = run(program)
    assert world.resources["prod-app-gre"].inputs["hubs"] == ["b", "a"]
    assert {name for name in world.document("prod-c")["devices"] if name.startswith("gt")} == {"gt-app", "gt-app-a"}


def test_tunnels_with_two_ends_stand_in_the_state_and_in_their_hosts_documents():
    """Ends are given as hosts; a cookie is a secret input, and no document has it."""

    def program():
        with Overlay("prod"):
            a, b, c = ends("a", "b", "c")
            app = Bridge("app", hosts=[a, b, c])
            GreTapTunnel("app-gre", bridge=app, ttl=255, key=5, topology="hub", hub=a)
            ops = Bridge("ops", hosts=[a, b])
            L2tpTunnel(
                "ops-l2tp", bridge=ops, topology="pairs", tunnel_ids={a: 1000, b: 2000}, session_ids={a: 3000, b: 4000},
                ports={a: 6000, b: 5000}, udp_checksum=False, cookie="0123456789abcdef",
            )  # fmt: skip

    world = run(program, World(made={"prod-secrets-key": {"stdout": "ab" * 32}}))
    gre, l2tp = world.resources["prod-app-gre"], world.resources["prod-ops-l2tp"]
    assert (gre.type, l2tp.type) == ("overlay:index:GreTapTunnel", "overlay:index:L2tpTunnel")
    assert gre.inputs == {"kind": "gretap", "segment": "app", "ttl": 255, "key": 5, "topology": "hub", "hub": "a"}
    assert l2tp.secrets == {"cookie"}
    assert {key: l2tp.inputs[key] for key in ("tunnelIds", "sessionIds", "ports", "udpChecksum")} == {
        "tunnelIds": {"a": 1000, "b": 2000},
        "sessionIds": {"a": 3000, "b": 4000},
        "ports": {"a": 6000, "b": 5000},
        "udpChecksum": False,
    }
    devices = world.document("prod-a")["devices"]
    assert sorted(devices) == ["br-app", "br-ops", "gt-app-b", "gt-app-c", "l2-ops"]
    made = devices["l2-ops"]
    assert (made["tunnelId"], made["peerTunnelId"], made["localPort"], made["remotePort"]) == (1000, 2000, 6000, 5000)
    assert made["cookie"].startswith("cookie-ops-l2tp:")
    assert set(world.document("prod-c")["devices"]) == {"br-app", "gt-app"}


def test_commands_are_short_constant_and_chained():
    world = run(declare_small)
    command = world.resources["prod-a-document"]
    assert command.inputs["create"] == "/usr/local/sbin/overlay-agent apply >/dev/null"
    assert world.resources["prod-a-uninstall"].inputs["delete"] == (
        "test ! -x /usr/local/sbin/overlay-agent || /usr/local/sbin/overlay-agent uninstall >/dev/null "
        "&& rm -f .overlay-agent-shop-dev.prod.pyz"
    )
    deleting = [name for name in world.of_type(COMMAND) if "delete" in world.resources[name].inputs]
    assert sorted(deleting) == ["prod-a-uninstall", "prod-b-uninstall"], "one connection a host"
    assert command.depends_on >= {"prod-a-install"}
    assert world.resources["prod-a-install"].depends_on >= {"prod-a-uninstall"}
    assert world.resources["prod-a-uninstall"].depends_on >= {"prod-a-agent"}
    for name in world.of_type(COMMAND):
        inputs = world.resources[name].inputs
        assert inputs["addPreviousOutputInEnv"] is False
        assert "environment" not in inputs
        assert inputs["logging"] == "stderr"
        # The document shows as a whole; a secret would make it [secret].
        assert "stdin" not in world.resources[name].secrets
        hosts = {dependency[:6] for dependency in world.resources[name].depends_on} & {"prod-a", "prod-b"}
        assert hosts == {name[:6]}, "hosts do not wait for each other"


def test_triggers_mean_replace_and_so_stand_only_where_a_machine_is_told_from_another():
    world = run(declare_small)
    copy = world.resources["prod-a-agent"].inputs
    assert copy["triggers"] == [["192.0.2.11", 22, "root", KEY], 1]
    assert world.resources["prod-a-install"].inputs["triggers"] == [1]
    assert "triggers" not in world.resources["prod-a-document"].inputs
    assert "triggers" not in world.resources["prod-a-uninstall"].inputs
    # Whatever a generation replaces must have nothing to delete on the machine that is gone.
    assert "delete" not in world.resources["prod-a-install"].inputs


def test_connection_is_secret_and_names_no_agent_socket():
    world = run(declare_small)
    command = world.resources["prod-a-document"]
    connection = command.inputs["connection"]
    connection = {key: getattr(value, "value", value) for key, value in connection.items()}
    assert connection["hostKey"] == KEY
    assert connection["dialErrorLimit"] == 2
    assert connection["perDialTimeout"] == 10
    assert "agentSocketPath" not in connection


def test_document_holds_the_stacks_id_and_the_machines():
    world = run(declare_small)
    made = world.document("prod-a")
    assert made["owner"] == {"project": "shop", "stack": "dev.prod", "id": STACK_ID}
    assert made["machine"] == MACHINE
    assert made["devices"]["vx-app"]["peers"] == {"b": "192.0.2.12"}
    text = world.resources["prod-a-document"].inputs["stdin"]
    assert text == document.dump(made), "canonical, so that equal documents are equal texts"
    assert document.load(text).host == "a"


def test_the_id_is_drawn_once():
    world = run(declare_small)
    assert world.resources["prod-id"].ignore_changes == ["*"]


def test_force_and_generation_reach_the_host():
    def program():
        with Overlay("prod"):
            ends("a", force=True, generation=3)

    world = run(program)
    assert world.document("prod-a")["force"] is True
    assert world.resources["prod-a-install"].inputs["triggers"] == [3]
    for name in ("prod-a-install", "prod-a-uninstall"):
        assert '"force": true' in world.resources[name].inputs["stdin"]
        assert '"generation": 3' in world.resources[name].inputs["stdin"]


def test_sudo_is_for_users_who_are_not_root():
    def program():
        with Overlay("prod", defaults={"user": "ops"}):
            Host("a", address="192.0.2.11", host_key=KEY)
            Host("b", address="192.0.2.12", host_key=KEY, sudo=False)
        with Overlay("other", defaults={"sudo": True}):
            Host("a", address="192.0.2.11", host_key=KEY, user="root")

    world = run(program)
    texts = {name: world.resources[f"{name}-document"].inputs["create"] for name in ("prod-a", "prod-b", "other-a")}
    assert texts == {
        "prod-a": "sudo -n /usr/local/sbin/overlay-agent apply >/dev/null",
        "prod-b": "/usr/local/sbin/overlay-agent apply >/dev/null",
        "other-a": "sudo -n /usr/local/sbin/overlay-agent apply >/dev/null",
    }


def test_the_name_of_an_overlay_is_one_word_to_the_shell():
    def program():
        with Overlay("prod; id"):
            Host("a", address="192.0.2.11", host_key=KEY, user="root")

    commands = [inputs for name, found in run(program).resources.items() for inputs in [found.inputs] if "a-" in name]
    texts = [inputs[key] for inputs in commands for key in ("create", "update", "delete") if inputs.get(key)]
    named = [text for text in texts if "; id" in text]
    assert len(named) == 3
    assert all(re.search(r"'\.overlay-agent-[\w-]+\.prod; id\.pyz'", text) for text in named), named


def test_deleted_with_is_handed_to_the_commands():
    def program():
        server = local.Command("server", create="true")
        with Overlay("prod"):
            Host("a", ResourceOptions(deleted_with=server), address="192.0.2.11", host_key=KEY, user="root")

    world = run(program)
    for what in ("agent", "uninstall", "install", "document"):
        assert world.resources[f"prod-a-{what}"].deleted_with == "server"


def test_two_overlays_in_one_program():
    def program():
        first = small()[1]
        with Overlay("more"):
            [a] = ends("a")
            # What the first has made is an Input of the second.
            address = first.mtu.apply(lambda mtu: "10.20.0.7" if mtu == 1450 else "")
            Bridge("web", hosts=[a], subnets=["10.20.0.0/24"], addresses={a: address})

    world = run(program)
    assert world.document("prod-a")["owner"]["stack"] == "dev.prod"
    assert world.document("more-a")["owner"]["stack"] == "dev.more"
    assert world.document("more-a")["devices"]["br-web"]["addresses"] == {"10.20.0.7/24": {}}


# -- outputs -----------------------------------------------------------------------------------


def test_outputs_carry_the_plan_and_wait_for_the_commands():
    seen = {}

    def program():
        _, app, [a, _] = small(containers={"web": {"host": "a", "address": "10.10.0.11"}})
        outputs = {"ready": app.ready, "mtu": app.mtu, "plan": app.plan, "a": a.ready, "specs": a.plan}

        async def look():
            for name, output in outputs.items():
                resources = {r._name for r in await output.resources()}
                seen[name] = (await output.future(), resources)

        local.Command("after", create="true", opts=ResourceOptions(depends_on=[app]))
        local.Command("with", create=app.mtu.apply(lambda mtu: f"ip link set mtu {mtu}"))
        return Output.from_input(look())

    world = run(program)
    both = {"prod-a-document", "prod-b-document"}
    assert seen["ready"][0] is True
    assert seen["mtu"][0] == 1450
    assert seen["plan"][0]["containers"]["web"]["address"] == "10.10.0.11/24"
    assert seen["specs"][0].keys() == {"br-app", "vx-app"}
    for name in ("ready", "mtu", "plan"):
        assert seen[name][1] >= both, name
    assert "prod-a-document" in seen["a"][1]
    assert "prod-b-document" not in seen["a"][1]
    assert world.resources["after"].depends_on >= both
    assert world.resources["with"].depends_on >= both
    order = list(world.resources)
    assert max(map(order.index, both)) < order.index("after")


# -- what is not known yet ---------------------------------------------------------------------


def new_vm(known_key=True):
    address = local.Command("server", create="make").stdout
    key = KEY if known_key else local.Command("key", create="make").stdout
    with Overlay("prod"):
        hosts = [*ends("a", "b"), Host("c", address=address, host_key=key, user="root")]
        app = Bridge("app", hosts=hosts, subnets=["10.10.0.0/24"])
        VxlanTunnel("app-mesh", bridge=app, vni=42)


@pytest.mark.parametrize("known_key", [True, False])
def test_a_preview_shows_placeholders_in_known_documents(known_key):
    world = run(lambda: new_vm(known_key), World(preview=True))
    for name in ("a", "b", "c"):
        made = world.document(f"prod-{name}")
        assert made["owner"]["id"] == "<id of this stack>"
        assert made["machine"] == f"<machine id of {name}>"
    assert world.document("prod-a")["devices"]["vx-app"]["peers"] == {"b": "192.0.2.12", "c": "<address of c>"}
    assert world.document("prod-c")["devices"]["vx-app"]["local"] == "<address of c>"
    assert not world.resources["prod-a-document"].secrets & {"stdin"}


def test_an_address_that_becomes_known():
    world = run(new_vm, World(made={"server": {"stdout": "192.0.2.13"}}))
    assert world.document("prod-a")["devices"]["vx-app"]["peers"] == {"b": "192.0.2.12", "c": "192.0.2.13"}
    assert world.resources["prod-a-document"].depends_on >= {"server"}


def test_a_made_address_that_is_wrong_is_told_like_any_other():
    with pytest.raises(pulumi.RunError, match=r"hosts\.c\.address: 'no address' is not an IP address"):
        run(new_vm, World(made={"server": {"stdout": "no address"}}))


def test_nothing_is_applied_with_a_placeholder_in_it():
    """`pulumi up --target` leaves outputs unknown in a real run, too."""

    def program():
        async def unknown():
            return None

        async def no():
            return False

        address = Output(set(), unknown(), no())
        with Overlay("prod"):
            hosts = [*ends("a"), Host("c", address=address, host_key=KEY, user="root")]
            app = Bridge("app", hosts=hosts)
            VxlanTunnel("app-mesh", bridge=app, vni=42)

    world = World()
    with pytest.raises(pulumi.RunError, match=r"^<address of c>: not known, since what makes it takes no part"):
        run(program, world)
    assert set(commands(world)) <= {"prod-id"}, "which is no host's"


def test_a_router_gives_out_addresses_that_are_not_known_yet():
    """An address or a MAC address that another resource makes: a placeholder in a preview, then what it is."""

    def program():
        made = {key: local.Command(key, create="make").stdout for key in ("mac", "reserved", "address", "own", "dns")}
        with Overlay("prod"):
            a, b = ends("a", "b")
            containers = {"web": {"host": b, "address": made["address"], "mac": made["mac"]}}
            own = {a: made["own"]}
            app = Bridge("app", hosts=[a, b], subnets=["10.10.0.0/24"], addresses=own, containers=containers)
            DhcpRouter(
                "app-dhcp",
                bridge=app,
                host=a,
                dns=[made["dns"]],
                masquerade=True,
                forwards={"8080": "web:80"},
                public_addresses={"198.51.100.7": "web"},
                reservations={"printer": {"mac": "02:00:00:00:00:99", "address": made["reserved"]}},
            )

    services = run(program, World(preview=True)).document("prod-a")["services"]
    assert services["dhcp-app"]["hosts"] == {
        "web": {"mac": "<MAC address of web>", "address": "<address of web>"},
        "printer": {"mac": "02:00:00:00:00:99", "address": "<address of printer>"},
    }
    assert services["nat-app"]["forwards"] == {"tcp/8080": {"address": "<address of web>", "ports": "80"}}
    values = {"mac": "02:00:00:00:00:01", "reserved": "10.10.0.12", "address": "10.10.0.11", "own": "10.10.0.1"}
    made = {key: {"stdout": value} for key, value in {**values, "dns": "192.0.2.53"}.items()}
    services = run(program, World(made=made)).document("prod-a")["services"]
    assert services["dhcp-app"]["hosts"]["printer"]["address"] == "10.10.0.12"
    assert services["dhcp-app"]["router"] == "10.10.0.1"
    assert services["nat-app"]["publicAddresses"] == {"198.51.100.7": "10.10.0.11"}


# -- what is refused ---------------------------------------------------------------------------


def test_every_error_at_once():
    world = World()

    def program():
        with Overlay("prod"):
            [a] = ends("a")
            Bridge("app", hosts=[a, "b"], subnets=["10.10.0.0/24"], gateway="10.11.0.1")

    with pytest.raises(pulumi.RunError) as caught:
        run(program, world)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("segments.app.hosts[1]: unknown host 'b'")
    assert lines[1].startswith("segments.app.gateway: ")
    assert commands(world) == []


def test_an_exception_in_the_block_ends_everything():
    world = World()

    def program():
        overlay = Overlay("prod")
        with overlay:
            [a] = ends("a")
            app = Bridge("app", hosts=[a])
            # Waits for the block: it must not hang.
            local.Command("after", create=app.mtu.apply(str))
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        run(program, world)
    assert commands(world) == []
    assert component.open_block is None


def left_twice():
    overlay, *_ = small()
    with overlay:
        pass


def nested():
    with Overlay("prod"), Overlay("inner"):
        pass


def same_name():
    with Overlay("prod"):
        ends("a")
        ends("a")


def two_routers():
    with Overlay("prod"):
        a, b = ends("a", "b")
        app = Bridge("app", hosts=[a, b], subnets=["10.10.0.0/24"])
        DhcpRouter("app-dhcp", bridge=app, host=a)
        DhcpRouter("app-more", bridge=app, host=b)


def same_tunnel():
    with Overlay("prod"):
        app = Bridge("app", hosts=ends("a", "b"))
        VxlanTunnel("mesh", bridge=app, vni=1)
        VxlanTunnel("app-mesh", bridge=app, vni=2)


@pytest.mark.parametrize(
    ("program", "error"),
    [
        (lambda: ends("a"), "Host 'a': declared outside of an Overlay; write it inside `with Overlay(...):`"),
        (nested, "Overlay 'inner': entered inside of Overlay 'prod'; end that block first"),
        (left_twice, "Overlay 'prod': its block was left already; use a second Overlay"),
        (same_name, "hosts.a: declared twice; give one of them another name"),
        (
            two_routers,
            "segments.app.dhcp: DhcpRouter 'app-more' is the segment's second; declare one, on two hosts: hosts=[a, b]",
        ),
        (same_tunnel, "segments.app.tunnels.mesh: declared twice; give one of them another name"),
    ],
    ids=["outside", "nested", "twice", "same-host", "two-routers", "same-tunnel"],
)
def test_misuse_is_refused(program, error):
    with pytest.raises(pulumi.RunError) as caught:
        run(program)
    assert str(caught.value) == error
    assert component.open_block is None


def test_a_host_cannot_wait_for_its_own_overlay():
    def program():
        with Overlay("prod"):
            hosts = ends("a", "b")
            app = Bridge("app", hosts=hosts)
            VxlanTunnel("app-mesh", bridge=app, vni=42)
            server = local.Command("server", create=app.ready.apply(str))
            Host("c", address=server.stdout, host_key=KEY, user="root")

    with pytest.raises(pulumi.RunError) as caught:
        run(program)
    assert str(caught.value) == (
        "hosts.c.address: depends on an output of Overlay 'prod' itself, which waits for it; use a second Overlay"
    )


def test_a_slow_address_is_waited_for():
    def program():
        async def slow():
            await asyncio.sleep(1)
            return "192.0.2.13"

        with Overlay("prod"):
            Host("c", address=Output.from_input(slow()), host_key=KEY, user="root")

    assert run(program).document("prod-c")["host"] == "c"


# -- bridges of others -------------------------------------------------------------------------


def test_a_docker_network_is_declared_by_hosts():
    def program():
        with Overlay("prod"):
            a, b = ends("a", "b")
            app = Bridge(
                "app",
                subnets=["172.18.0.0/16"],
                addresses={a: "172.18.0.1", b: Output.from_input("172.18.0.2")},
                bridge={"docker": {"create": True, "ranges": {a: "172.18.128.0/24", b: "172.18.129.0/24"}}},
            )
            VxlanTunnel("app-mesh", bridge=app, vni=42)
            ops = Bridge("ops", hosts=[a], subnets=["172.19.0.0/16"], bridge={"attach": {"docker": "mynetwork"}})
            VxlanTunnel("ops-mesh", bridge=ops, vni=43)

    found = run(program).document("prod-a")
    assert found["devices"].keys() == {"vx-app", "vx-ops"}
    assert found["services"]["docker:app"]["ranges"] == {"172.18.128.0/24": {}}
    assert found["services"]["docker:app"]["auxiliary"] == {"b": "172.18.0.2"}
    assert found["services"]["guard-ops"]["addresses"] == {"172.19.0.1": {}}


def test_an_address_that_is_not_there_yet_is_shown_in_the_network():
    def program():
        unknown = local.Command("address", create="x").stdout
        with Overlay("prod"):
            [a] = ends("a")
            Bridge("app", subnets=["172.18.0.0/16"], addresses={a: unknown}, bridge={"docker": {"create": True}})

    found = run(program, World(preview=True)).document("prod-a")
    assert list(found["services"]["docker:app"]["gateways"]) == ["<a of addresses>"]


# -- one list of fields ------------------------------------------------------------------------


def keys(model, *leave_out):
    return {field.alias or name for name, field in model.model_fields.items()} - set(leave_out)


@pytest.mark.parametrize(
    ("arguments", "known"),
    [
        (host.HostArgs, keys(config.Host)),
        (host.UnderlayArgs, keys(config.Underlay)),
        (bridge.SegmentArgs, keys(config.Segment, "tunnels", "dhcp")),
        (bridge.BridgeDeviceArgs, keys(bridge.OPTIONS)),
        (bridge.AttachArgs, keys(foreign_bridge.AttachOptions)),
        (bridge.DockerArgs, keys(foreign_bridge.DockerOptions)),
        (bridge.ContainerArgs, keys(config.Container)),
        (dhcp_router.DhcpArgs, keys(dhcp_router.DhcpOptions)),
        (dhcp_router.ReservationArgs, keys(dhcp_router.Reservation)),
        (vxlan_tunnel.VxlanArgs, keys(config.TUNNELS["vxlan"].options)),
        (gretap_tunnel.GreTapArgs, keys(config.TUNNELS["gretap"].options)),
        (l2tp_tunnel.L2tpArgs, keys(config.TUNNELS["l2tp"].options)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_typed_arguments_are_the_stack_files_keys(arguments, known):
    # Not get_type_hints: Pulumi's Input is a forward reference that it resolves in one module or another.
    assert {fields.json_name(name) for name in arguments.__annotations__} == known
