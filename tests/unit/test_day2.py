"""The commands that ask hosts: what they make of answers, made up here, and of Pulumi's state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from overlay_agent.document import Owner, dump
from overlay_components import _project, cli, config, forgotten, live, plan, ssh, state
from overlay_components.errors import ConfigErrors

STACK = """\
config:
  overlay:hosts:
    a: {address: 198.18.0.11, user: root}
    b: {address: 198.18.0.12, user: root}
  overlay:segments:
    app:
      subnets: [10.10.0.0/24]
      addresses: {a: 10.10.0.1}
      tunnels: {mesh: {kind: vxlan, vni: 42}}
      dhcp: {host: a, range: 10.10.0.100-10.10.0.199}
    plain:
      subnets: [10.20.0.0/24]
      bridge: none
      addresses: {a: 10.20.0.1, b: 10.20.0.2}
      tunnels: {wire: {kind: gretap, topology: pairs}}
"""
SINCE = "2026-11-21T20:00:00Z"
URN = "urn:pulumi:dev::overlay::overlay:index:Overlay"
CLEAN = {"drift": []}


def resource(name, type_, parent="", **more):
    return {"urn": f"urn:pulumi:dev::overlay::{type_}::{name}", "type": type_, "parent": parent, **more}


def exported():
    """A state with both hosts' documents, the second of which knows of the first."""
    owner = Owner("overlay", "dev", "id-of-dev")
    raw = config.load_config(config.read_stack_file(Path("stacks/Pulumi.dev.yaml")))
    overlay = resource("dev", "overlay:index:Overlay")
    rows = [overlay]
    for name, document in plan.make_plan(raw, owner).documents.items():
        host = resource(f"dev-{name}", "overlay:index:Host", overlay["urn"])
        at = {"host": f"198.18.0.1{'ab'.index(name) + 1}", "port": 22, "user": "root", "hostKey": "ssh-ed25519 AAAA"}
        text = dump({**document, "owner": {**vars(owner)}})
        command = resource(f"dev-{name}-document", "command:remote:Command", host["urn"],
                           inputs={"stdin": text, "connection": at}, dependencies=[])  # fmt: skip
        rows += [host, command]
    rows[4]["dependencies"] = [rows[2]["urn"]]
    rows[4]["propertyDependencies"] = {"stdin": [rows[2]["urn"], rows[0]["urn"]]}
    rows[4]["deletedWith"] = rows[1]["urn"]
    pending = [{"resource": {"urn": rows[2]["urn"]}, "type": "creating"}]
    return {"version": 3, "deployment": {"resources": rows, "pending_operations": pending}}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A project, a state, and hosts that say what `said` has: (exit code, report, lines), or an error."""
    (tmp_path / "Pulumi.yaml").write_text("name: overlay\nruntime: python\nstackConfigDir: stacks\n")
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks/Pulumi.dev.yaml").write_text(STACK)
    monkeypatch.chdir(tmp_path)
    made = World()
    made.state = exported()
    monkeypatch.setattr(state, "_pulumi", made.pulumi)
    monkeypatch.setattr(live.Fleet, "run", made.run)
    return made


class World:
    def __init__(self):
        self.said, self.heard, self.imported = {}, [], None

    def pulumi(self, _folder, _stack, *words, input_=""):
        if words == ("import",):
            self.imported = json.loads(input_)
        return json.dumps(self.state)

    def run(self, host, command, given=b"", *_, **__):
        self.heard.append((host, command, given))
        said = self.said.get(host, (0, CLEAN, ()))
        if isinstance(said, dict):
            said = said[command.split()[1]]
        if isinstance(said, str):
            raise ssh.SshError(f"{host}: 198.18.0.1 is not reached: {said}")
        code, report, lines = said
        out = report if isinstance(report, str) else json.dumps(report) if report is not None else ""
        return ssh.Done(code, out.encode(), "\n".join(lines).encode())


def overlay(*words, code=0, **options):
    done = CliRunner().invoke(cli.app, [str(word) for word in words], **options)
    assert done.exit_code == code, (done.output, done.exception)
    return done


# -- drift -----------------------------------------------------------------------------------

OLDER = "b: the agent on this host is older than this program; run `pulumi up`\n"
CASES = {
    "all as applied": ((0, CLEAN, ()), 0, "2 hosts asked: all as applied\n", ""),
    "drifted": (
        (2, {"drift": ["vx-app: mtu want 1450, is 1400", "dhcp-app: is not there"]}, ()), 2,
        "b vx-app: mtu want 1450, is 1400\nb dhcp-app: is not there\n2 hosts asked: 1 drifted\n", "",
    ),
    "stopped": (
        (0, {"drift": [], "stopped": {"overlay/dev": SINCE}}, ()), 0,
        f"b: stopped on purpose since {SINCE}; `overlay start b` makes it true again\n2 hosts asked: all as applied\n",
        "",
    ),
    "silent": ("timed out", 3, "1 host asked: all as applied\n", "b: 198.18.0.1 is not reached: timed out\n"),
    "no agent": (
        (127, None, ["sh: 1: overlay-agent: not found"]), 3, "1 host asked: all as applied\n",
        "b: the agent is not on this host; raise its generation, then run `pulumi up`\n",
    ),
    "older": ((64, None, ["usage: overlay-agent VERB"]), 3, "1 host asked: all as applied\n", OLDER),
    "older still": (
        (2, {"drift": ["stack -: no"]}, ["stack -: no document of it is here; run `pulumi up`"]), 3,
        "1 host asked: all as applied\n", OLDER,
    ),
    "refused": (
        (1, None, ["lock /run/overlay.lock: held by p/s"]), 3, "1 host asked: all as applied\n",
        "b: lock /run/overlay.lock: held by p/s\n",
    ),
    "no words": ((1, None, ()), 3, "1 host asked: all as applied\n", "b: exit code 1\n"),
    "no report": (
        (0, "Welcome!", ()), 3, "1 host asked: all as applied\n",
        "b: what it answers is no report ('Welcome!'); look at its log-in scripts\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("said", "code", "out", "err"), CASES.values(), ids=CASES)
def test_drift(world, said, code, out, err):
    world.said["b"] = said
    done = overlay("drift", code=code)
    assert (done.stdout, done.stderr) == (out, err)
    found = json.loads(overlay("drift", "--json", code=code).stdout)
    assert found["unreached"] == err.splitlines()
    assert found["drift"]["a"] == []


def test_drift_of_a_host_that_is_not_in_the_state(world):
    rows = world.state["deployment"]["resources"]
    world.state["deployment"]["resources"] = [row for row in rows if "dev-b" not in row["urn"]]
    done = overlay("drift")
    assert done.stderr == "warning: b: nothing was applied to it yet; run `pulumi up`\n"
    assert done.stdout == "1 host asked: all as applied\n"


def test_drift_sends_what_was_applied(world):
    overlay("drift", "b")
    [(host, command, text)] = world.heard
    assert (host, command) == ("b", "/usr/local/sbin/overlay-agent check -")
    assert json.loads(text)["owner"] == {"project": "overlay", "stack": "dev", "id": "id-of-dev"}


# -- status ----------------------------------------------------------------------------------


def device(kind, **more):
    counters = {f"{way}{what}": 0 for way in ("rx", "tx") for what in ("Bytes", "Packets", "Errors", "Dropped")}
    return {"kind": kind, "there": True, "up": True, "bridge": None, "addresses": [], **counters, **more}


def report(**more):
    objects = {
        "br-app": device("bridge", rxBytes=999, rxPackets=3, txBytes=1_234_567_890, txDropped=2),
        "vx-app": device("vxlan", bridge="br-app", up=False),
        "gt-plain": device("gretap", addresses=["10.20.0.1/24"]),
        "dhcp-app": {"kind": "dnsmasq", "there": True, "since": None, "leases": [
            {"address": "10.10.0.100", "name": "web", "mac": "02:00:00:00:00:01", "until": 1_800_000_000},
            {"address": "10.10.0.101", "name": "", "mac": "", "until": 0},
        ]},
        "nat-app": {"kind": "nat", "there": False},
        "forwarding": {"kind": "forwarding", "there": True},
        "old": {"kind": "vxlan", "there": False, "up": False, "bridge": None, "addresses": []},
    }  # fmt: skip
    return {"agent": "0.1.0", "machine": "0" * 32, "now": 2e9, "id": "x", "applied": 1.8e9, "stopped": None,
            "objects": objects, **more}  # fmt: skip


def cells(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_status_of_bgp(world):
    sessions = {
        "h1": {"address": "198.18.0.11", "state": "Established", "since": 1.8e9, "prefixes": 7},
        "h2": {"address": "198.18.0.12", "state": "Active", "since": None, "prefixes": 0},
    }
    evpn = {"kind": "evpn", "there": True, "since": 1.7e9, "sessions": sessions}
    world.said = {"a": (0, report(objects={"evpn": evpn}), ()), "b": "timed out"}
    rows = cells(overlay("status").stdout)
    assert "a h1 198.18.0.11 Established 2027-01-15T08:00:00Z 7" in rows
    assert "a h2 198.18.0.12 Active - 0" in rows


def test_status_of_all_there_is(world):
    world.said = {"a": (0, report(), ()), "b": "timed out"}
    rows = cells(overlay("status").stdout)
    assert "a not all up 2027-01-15T08:00:00Z vx-app, dhcp-app, nat-app, old of 7 objects" in rows
    assert "b no answer - 198.18.0.1 is not reached: timed out" in rows
    assert "app a br-app bridge up 999 B in 3 1.2 GB in 0 2" in rows
    assert "app a vx-app vxlan down 0 B in 0 0 B in 0 0" in rows
    assert "plain a gt-plain gretap up 0 B in 0 0 B in 0 0" in rows
    assert "- a old vxlan is not there - - -" in rows
    assert "app a dhcp-app dnsmasq does not run -" in rows
    assert "app a nat-app nat is not there -" in rows
    assert "- a forwarding forwarding there -" in rows
    assert "app a 10.10.0.100 web 02:00:00:00:00:01 2027-01-15T08:00:00Z" in rows
    assert "app a 10.10.0.101 - - for ever" in rows
    found = json.loads(overlay("status", "--json", "b").stdout)
    assert found == {"hosts": {"b": {"problem": "198.18.0.1 is not reached: timed out"}}, "forgotten": []}


@pytest.mark.parametrize(
    ("more", "row"),
    [
        ({"objects": {}, "applied": None}, "a empty - nothing was applied; pulumi up"),
        ({"stopped": SINCE}, f"a stopped {SINCE} on purpose; overlay start a"),
        ({"objects": {"br-app": device("bridge")}}, "a up 2027-01-15T08:00:00Z 1 object"),
    ],
)
def test_status_of_a_host(world, more, row):
    world.said["a"] = (0, report(**more), ())
    assert row in cells(overlay("status", "a").stdout)


# -- history, stop, start --------------------------------------------------------------------


def test_history_is_in_the_order_of_time(world):
    def entry(time, who, result, *lines, verb="apply"):
        return {"time": time, "stack": "overlay/dev", "verb": verb, "by": who, "from": "198.18.0.1" * (who == "ops"),
                "result": result, "lines": list(lines)}  # fmt: skip

    world.said["a"] = (0, {"history": [entry("2026-11-21T20:00:02Z", "ops", "done", "vx-app: removed")]}, ())
    world.said["b"] = (0, {"history": [entry(SINCE, "root", "ended", verb="restore")]}, ())
    assert overlay("history").stdout == (
        f"b {SINCE} restore by root: ended\n"
        "a 2026-11-21T20:00:02Z apply by ops from 198.18.0.1: done\n"
        "  vx-app: removed\n"
    )
    world.said["b"] = "timed out"
    found = json.loads(overlay("history", "--json", code=3).stdout)
    assert [one["host"] for one in found["history"]] == ["a"]
    assert found["unreached"] == ["b: 198.18.0.1 is not reached: timed out"]


def test_stop_and_start_say_what_the_agents_say(world):
    world.said["a"] = (0, {"host": "a"}, ["vx-app: removed", "a: stopped; `overlay start a` makes all of it again"])
    assert overlay("stop", "a").stdout == "a vx-app: removed\na: stopped; `overlay start a` makes all of it again\n"
    assert world.heard[-1][:2] == ("a", "/usr/local/sbin/overlay-agent stop")
    assert json.loads(world.heard[-1][2])["owner"]["id"] == "id-of-dev"
    world.said["b"] = (1, None, ["b br-app: still has ports that are not ours", "nothing was changed"])
    done = overlay("start", "a", "b", code=1)
    assert done.stderr == "b: br-app: still has ports that are not ours; nothing was changed\n"
    world.said["b"] = "timed out"
    assert json.loads(overlay("start", "--json", "b", code=3).stdout) == {
        "hosts": {}, "problems": ["b: 198.18.0.1 is not reached: timed out"]
    }  # fmt: skip
    overlay("stop", code=64)


# -- forget, and who comes back --------------------------------------------------------------


def test_forget_takes_one_host_out_and_nothing_else(world):
    world.said["a"] = "timed out"
    before = state.resources(world.state)
    found = json.loads(overlay("forget", "a", "--yes", "--json").stdout)
    assert found["resources"] == [before[1]["urn"], before[2]["urn"]]
    after = world.imported["deployment"]
    assert [row["urn"] for row in after["resources"]] == [before[i]["urn"] for i in (0, 3, 4)]
    last = after["resources"][2]
    assert (last["dependencies"], last["propertyDependencies"]) == ([], {"stdin": [before[0]["urn"]]})
    assert "deletedWith" not in last
    assert (last["inputs"], after["pending_operations"]) == (before[4]["inputs"], [])
    assert world.imported["version"] == 3
    kept = json.loads(Path("stacks/Pulumi.dev.forgotten.json").read_text())["hosts"]["a"]
    assert kept.pop("forgotten")
    assert kept == {"address": "198.18.0.11", "user": "root", "sudo": False}


def test_forget_refuses(world):
    assert overlay("forget", "c", code=1).stderr == "HOST: 'c' is not in Pulumi's state; known are a and b\n"
    said = overlay("forget", "a", "--yes", code=1).stderr
    assert said == (
        "a: answers at 198.18.0.11; take it out of the stack file and run `pulumi up`, which removes what it has; or "
        "say --force\n"
    )
    assert world.imported is None
    heard = len(world.heard)
    overlay("forget", "a", "--force", "--yes")
    assert (len(world.heard), world.imported is None) == (heard, False)


def test_forget_of_a_host_that_the_stack_file_has_no_more(world):
    stack = Path("stacks/Pulumi.dev.yaml")
    stack.write_text(STACK.replace("    a: {address: 198.18.0.11, user: root}\n", "")
                     .replace("addresses: {a: 10.10.0.1}", "addresses: {b: 10.10.0.1}")
                     .replace("{host: a,", "{host: b,").partition("    plain:")[0])  # fmt: skip
    world.said["a"] = "timed out"
    file = Path("stacks/Pulumi.dev.forgotten.json").resolve()
    assert overlay("forget", "a", "--yes").stdout.splitlines() == [
        "a: 2 resources taken out of the state of dev",
        f"{file}: names a, so that it is noticed when it comes back; commit it",
    ]
    # It is asked too, where all are.
    world.said["a"] = (0, report(), ())
    world.said["b"] = (0, report(), ())
    said = overlay("status").stdout.splitlines()[-1]
    assert said == (
        "a: was forgotten, and is back with br-app, vx-app, gt-plain and 2 more of overlay/dev; declare it again and "
        "run `pulumi up`, or remove what it has: overlay purge a --stack dev"
    )
    with pytest.MonkeyPatch.context() as patch:
        silent = {"b": live.Answer("b", problem="b: 198.18.0.12 is not reached: timed out")}
        patch.setattr(live.Fleet, "meet", lambda *_: silent)
        assert said in overlay("verify", code=3).stdout.splitlines()
        assert json.loads(overlay("verify", "--json", code=3).stdout)["forgotten"] == [said]
    overlay("status", "b")
    assert world.heard[-1][0] == "b"
    # With nothing of the stack, silent, or declared again, it is nobody's business.
    world.said["a"] = (0, report(objects={}, applied=None), ())
    assert "forgotten" not in overlay("status").stdout
    world.said["a"] = "timed out"
    assert "forgotten" not in overlay("status").stdout
    stack.write_text(STACK)
    assert json.loads(overlay("status", "--json").stdout)["forgotten"] == []


def test_a_file_of_forgotten_hosts_that_cannot_be_read(world):
    Path("stacks/Pulumi.dev.forgotten.json").write_text("<<<<<<<")
    said = overlay("status", code=1).stderr
    assert said.endswith("; take its last committed form, or remove it\n")
    assert "Pulumi.dev.forgotten.json: cannot be read (" in said
    with pytest.raises(ConfigErrors, match="cannot be read"):
        forgotten.load(_project.find(None, "dev"))


# -- purge -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "host", "user", "port"),
    [
        ("b", "b", "root", None),
        ("ops@198.18.0.12", "b", "ops", None),
        ("198.18.0.99", "198.18.0.99", None, None),
        ("ops@far.example.org:2222", "far.example.org", "ops", 2222),
        ("ops@2001:db8::1", "2001:db8::1", "ops", None),
        ("ops@[2001:db8::1]:2222", "2001:db8::1", "ops", 2222),
    ],
)
def test_purge_of_whom(world, monkeypatch, target, host, user, port):
    made = {}
    init = live.Fleet.__post_init__
    monkeypatch.setattr(live.Fleet, "__post_init__", lambda self: (made.update(self.hosts), init(self))[1])
    world.said[host] = {"status": (0, report(), ()), "purge": (0, {"removed": True}, ["br-app: removed"]),
                        "-f": (0, None, ())}  # fmt: skip
    said = overlay("purge", target, "--yes", "--force").stdout
    again = f"{host}: stands in the stack file; to make it again, raise its generation\n" if host == "b" else ""
    assert said == f"{host} br-app: removed\n{again}"
    assert (made[host].user, made[host].port) == (user, port)
    assert [command for _, command, _ in world.heard] == [
        "/usr/local/sbin/overlay-agent status overlay/dev",
        "/usr/local/sbin/overlay-agent purge overlay/dev force",
        "rm -f .overlay-agent-overlay-dev.pyz",
    ]


def test_purge_asks_and_tells_what_is_refused(world):
    ways = "stop those first, or set overlay:hosts.b.force: true; nothing was changed"
    refused = "b: br-app: still has ports; stop those first, or say --force; nothing was changed"
    world.said["b"] = {"status": (0, report(), ()), "purge": (1, None, [f"b br-app: still has ports; {ways}"])}
    done = overlay("purge", "b", input="n\n", code=1)
    assert "b: br-app, vx-app, gt-plain and 2 more of overlay/dev will be removed. Go on? [y/N]:" in done.output
    assert "purge" not in world.heard[-1][1]
    assert overlay("purge", "b", "-y", code=1).stderr == f"{refused}\n"
    found = json.loads(overlay("purge", "b", "-y", "--json", code=1).stdout)
    assert found == {"host": "b", "lines": [], "problem": refused}
