"""The dnsmasq kind: real dnsmasq, real clients in a container's namespace, every field and every message."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
from agent_support import PYTHON, bridge, document

CLIENT = Path(__file__).parents[1] / "dhcp_client.py"
WEB, DB = "02:00:00:00:01:01", "02:00:00:00:01:02"
#: What udhcpc calls: it keeps what it was told, and configures nothing.
SCRIPT = '#!/bin/sh\n[ "$1" = bound ] && env > "$OUT"\nexit 0\n'


def dnsmasq(**more):
    out = {
        "kind": "dnsmasq", "interface": "br-app", "mtu": 1400, "router": "10.10.0.1", "domain": "app.example",
        "addresses": {"10.10.0.1": {}, "fd00:10::1": {}}, "subnets": {"10.10.0.0/24": {}, "fd00:10::/64": {}},
        "ranges": {"10.10.0.100-10.10.0.199": {}, "fd00:10::100-fd00:10::1ff": {}},
        "hosts": {"web": {"mac": WEB, "address": "10.10.0.11", "address6": "fd00:10::11"}},
    }  # fmt: skip
    out.update(more)
    return {key: value for key, value in out.items() if value is not None}


def wanted(**more):
    device = bridge(addresses={"10.10.0.1/24": {}, "fd00:10::1/64": {}}, linkLocal=True)
    return document(br_app=device, services={"dhcp-app": dnsmasq(**more)})


class Container:
    """A network namespace on the bridge, and mounts of its own: an LXC container as far as DHCP sees it."""

    def __init__(self, host, name, mac):
        self.host, self.name = host, name
        host.run("mkdir", "-p", "/run/netns")
        host.run("ip", "netns", "add", name)
        host.run("ip", "link", "add", f"v-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
        host.run("ip", "link", "set", f"v-{name}", "master", "br-app", "up")
        self.run("ip", "link", "set", "eth0", "address", mac)
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "link", "set", "eth0", "up")

    def run(self, *words, **more):
        words = shlex.split(words[0]) if len(words) == 1 else words
        return self.host.run("ip", "netns", "exec", self.name, *words, **more)

    def udhcpc(self, folder, *options):
        """What busybox's client is told, by udhcpc's name for it."""
        script, out = folder / "script", folder / f"out-{self.name}"
        script.write_text(SCRIPT)
        script.chmod(0o755)
        self.run("udhcpc", "-f", "-q", "-n", "-i", "eth0", "-s", script, *options, env={"OUT": str(out)})
        return dict(line.split("=", 1) for line in out.read_text().splitlines() if "=" in line)

    def clients(self, *words):
        return json.loads(self.run(PYTHON, CLIENT, "eth0", *words).out)


@pytest.fixture
def served(host):
    host.apply(wanted())
    return host


def folder(host):
    (found,) = host.run("sh", "-c", "ls -d /var/lib/overlay/services/*").out.split()
    return found


def config(host):
    (found,) = host.run("sh", "-c", f"ls {folder(host)}/*.conf").out.split()
    return found


def pid(host):
    return int(host.run("sh", "-c", "cat /run/overlay/*.pid").out)


def leases(host):
    return host.run("cat", f"{folder(host)}/leases").out


def test_its_life(host):
    before = host.state()
    assert host.apply(wanted()).lines[1].startswith("dhcp-app: created (dnsmasq, interface br-app, 10.10.0.1")
    assert host.apply(wanted()).lines == ["a: nothing to do, 2 objects as declared"]
    assert host.agent("check").report == {"drift": []}
    shown = host.agent("show").report["p/s"]["dhcp-app"]
    assert shown == dnsmasq()
    done = host.agent("remove", "p/s")
    assert done.lines == ["br-app: removed", "dhcp-app: removed"]
    assert host.state() == before
    assert host.run("sh", "-c", "ls /var/lib/overlay/services /run/overlay /etc/systemd/system", check=False).out == (
        "/etc/systemd/system:\n"
    )
    until(lambda: host.processes() == [])


def until(check):
    """What `check` gives, as soon as it is true; the kernel and the clients take a moment."""
    import time

    for _ in range(500):
        found = check()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it does not come")


# -- clients -------------------------------------------------------------------------------------


def test_what_a_container_with_a_static_lease_is_told(host, tmp_path):
    host.apply(wanted(routes={"10.20.0.0/16": "10.10.0.2"}, options={"ntp-server": "10.10.0.7", "option6:24": "x.org"}))
    web = Container(host, "web", WEB)
    told = web.udhcpc(tmp_path, "-O", "staticroutes", "-O", "ntpsrv")
    wish = {
        "ip": "10.10.0.11", "mask": "24", "mtu": "1400", "router": "10.10.0.1", "domain": "app.example",
        "dns": "10.10.0.1", "ntpsrv": "10.10.0.7", "lease": "3600",
        "staticroutes": "10.20.0.0/16 10.10.0.2 0.0.0.0/0 10.10.0.1",
    }  # fmt: skip
    assert {key: told.get(key) for key in wish} == wish
    assert "10.10.0.11 web" in leases(host)


def test_dhclient_gets_the_same(served, tmp_path):
    web = Container(served, "web", WEB)
    files = ["-pf", tmp_path / "pid", "-lf", tmp_path / "leases"]
    web.run("dhclient", "-1", *files, "-sf", "/bin/true", "eth0")
    web.run("dhclient", "-x", *files, "eth0")
    told = (tmp_path / "leases").read_text()
    for line in (
        "fixed-address 10.10.0.11;", "option interface-mtu 1400;", "option routers 10.10.0.1;",
        'option host-name "web";', 'option domain-name "app.example";', "option domain-name-servers 10.10.0.1;",
    ):  # fmt: skip
        assert line in told


def test_an_unknown_client_gets_an_address_of_the_range(served, tmp_path):
    told = Container(served, "guest", "02:00:00:00:09:09").udhcpc(tmp_path, "-x", "hostname:guest")
    assert 100 <= int(told["ip"].split(".")[-1]) <= 199
    assert f"Address: {told['ip']}" in lookup(served, "guest.app.example")


def lookup(host, name, server="10.10.0.1", *options):
    return host.run("busybox", "nslookup", *options, name, server, check=False).out


def test_names(served, tmp_path):
    for name in ("web", "web.app.example"):
        assert "Address: 10.10.0.11\n" in lookup(served, name)
        assert "Address: fd00:10::11\n" in lookup(served, name, "fd00:10::1")
    assert "name = web.app.example" in lookup(served, "10.10.0.11")
    assert "NXDOMAIN" in lookup(served, "none.app.example")
    web = Container(served, "web", WEB)
    web.run("ip", "address", "add", "10.10.0.11/24", "dev", "eth0")
    (tmp_path / "resolv.conf").write_text("nameserver 10.10.0.1\nsearch app.example\n")
    script = f"mount --bind {tmp_path}/resolv.conf /etc/resolv.conf; getent hosts web"
    assert web.run("sh", "-c", script).out.split()[-1] == "web.app.example"


def test_a_container_gets_no_name_that_is_planned(served, tmp_path):
    told = Container(served, "guest", "02:00:00:00:09:09").udhcpc(tmp_path, "-x", "hostname:web")
    assert told["ip"] not in lookup(served, "web")


def test_without_a_router_none_is_told(host, tmp_path):
    host.apply(wanted(router=None))
    told = Container(host, "web", WEB).udhcpc(tmp_path)
    assert (told["ip"], told.get("router")) == ("10.10.0.11", None)


def test_each_subnet_has_its_own_router_and_routes(host, tmp_path):
    out = wanted(
        subnets={"10.10.0.0/24": {}, "10.11.0.0/16": {}}, addresses={"10.10.0.1": {}, "10.11.0.1": {}},
        ranges={"10.10.0.100-10.10.0.199": {}}, routes={"10.20.0.0/16": "10.11.0.9"},
        hosts={"web": {"mac": WEB, "address": "10.10.0.11"}, "db": {"mac": DB, "address": "10.11.5.5"}},
    )  # fmt: skip
    out["devices"]["br-app"]["addresses"] = {"10.10.0.1/24": {}, "10.11.0.1/16": {}}
    host.apply(out)
    web = Container(host, "web", WEB).udhcpc(tmp_path, "-O", "staticroutes")
    db = Container(host, "db", DB).udhcpc(tmp_path, "-O", "staticroutes")
    keys = ("ip", "mask", "router", "dns", "staticroutes")
    assert [web.get(key) for key in keys] == ["10.10.0.11", "24", "10.10.0.1", "10.10.0.1", None]
    assert [db.get(key) for key in keys] == ["10.11.5.5", "16", None, "10.11.0.1", "10.20.0.0/16 10.11.0.9"]
    assert host.agent("check").report == {"drift": []}


def test_name_servers_of_ones_own(host, tmp_path):
    host.apply(wanted(nameServers=["10.10.0.53", "fd00:10::53", "10.10.0.54"]))
    assert Container(host, "web", WEB).udhcpc(tmp_path)["dns"] == "10.10.0.53 10.10.0.54"
    assert host.agent("check").report == {"drift": []}


@pytest.mark.parametrize("router", [False, True])
def test_router_advertisements(host, router):
    host.apply(wanted(ra=True, **({"raRouter": True} if router else {})))
    web = Container(host, "web", WEB)

    def address():
        rows = json.loads(web.run("ip -j -6 address show dev eth0 scope global").out)
        return rows and rows[0].get("addr_info") and rows[0]["addr_info"][0]["local"]

    assert until(address) == "fd00:10::ff:fe00:101"  # the kernel's own, by its MAC address (RFC 4862)
    assert web.run("cat", "/proc/sys/net/ipv6/conf/eth0/mtu").out.strip() == "1400"
    assert bool(web.run("ip -6 route show default").out) == router


def test_dhcpv6(served, tmp_path):
    web = Container(served, "web", WEB)
    until(lambda: "fe80" in web.run("ip -6 address show dev eth0 scope link -tentative").out)
    files = ["-pf", tmp_path / "pid", "-lf", tmp_path / "leases"]
    web.run("dhclient", "-6", "-1", *files, "-sf", "/bin/true", "eth0")
    web.run("dhclient", "-6", "-x", *files, "eth0")
    told = (tmp_path / "leases").read_text()
    assert "iaaddr fd00:10::11 {" in told
    assert "option dhcp6.name-servers fd00:10::1;" in told


def test_253_clients_lease_at_once_without_a_clash(host):
    ranges = {"10.10.0.2-10.10.0.254": {}}
    host.apply(wanted(ranges=ranges, hosts=None, leaseMax=253))
    found = Container(host, "many", WEB).clients("lease", "253")
    assert (len(found["leases"]), found["refused"]) == (253, [])
    assert set(found["leases"].values()) == {f"10.10.0.{n}" for n in range(2, 255)}
    assert len(leases(host).splitlines()) == 253 + 1  # and dnsmasq's own DUID


def test_200_discovers_a_second_are_all_answered(served):
    many = Container(served, "many", WEB)
    for _ in range(3):  # what comes while a busy machine keeps dnsmasq from running may be more than its socket holds
        found = many.clients("discover", "200", "2")
        if found["answered"] == 400:
            break
    assert (found["sent"], found["answered"]) == (400, 400)


def test_no_more_leases_than_lease_max(host):
    host.apply(wanted(leaseMax=5))
    many = Container(host, "many", WEB)
    assert many.clients("discover", "50", "0.2")["answered"] == 10  # nothing is leased by an offer
    assert len(many.clients("lease", "5")["leases"]) == 5
    found = many.clients("lease", "3", "100")
    assert (found["leases"], len(found["refused"])) == ({}, 3)


# -- leases and reservations ---------------------------------------------------------------------


def test_a_new_static_lease_restarts_nothing(served, tmp_path):
    Container(served, "guest", "02:00:00:00:09:09").udhcpc(tmp_path)
    was, had = pid(served), leases(served)
    other = {"mac": "02:00:00:00:01:03", "address": "10.10.0.13"}
    hosts = {**dnsmasq()["hosts"], "db": {"mac": DB, "address": "10.10.0.12"}, "other": other}
    assert served.apply(wanted(hosts=hosts)).lines == [
        f"dhcp-app: + host db 10.10.0.12 {DB}", "dhcp-app: + host other 10.10.0.13 02:00:00:00:01:03",
    ]  # fmt: skip
    assert (pid(served), leases(served)) == (was, had)
    assert Container(served, "db", DB).udhcpc(tmp_path)["ip"] == "10.10.0.12"
    assert "Address: 10.10.0.12\n" in lookup(served, "db")
    assert "Address: 10.10.0.13\n" in lookup(served, "other")
    assert len(served.apply(wanted()).lines) == 2
    assert pid(served) == was
    assert "NXDOMAIN" in lookup(served, "other.app.example")
    assert "10.10.0.12" in leases(served)  # and so its name, for as long


def test_a_restart_keeps_the_leases(served, tmp_path):
    ip = Container(served, "guest", "02:00:00:00:09:09").udhcpc(tmp_path)["ip"]
    was, had = pid(served), leases(served)
    assert served.apply(wanted(lease=7200)).lines == ["dhcp-app: lease 3600 -> 7200"]
    assert pid(served) != was
    assert leases(served) == had
    assert ip in had


def test_who_had_an_address_of_the_range_gets_its_planned_one(served, tmp_path):
    web = Container(served, "db", DB)
    assert web.udhcpc(tmp_path)["ip"] != "10.10.0.12"
    served.apply(wanted(hosts={"db": {"mac": DB, "address": "10.10.0.12"}}))
    assert web.udhcpc(tmp_path)["ip"] == "10.10.0.12"


def test_a_planned_address_that_is_leased_to_another(served, tmp_path):
    guest = Container(served, "guest", "02:00:00:00:09:09")
    ip = guest.udhcpc(tmp_path)["ip"]
    done = served.apply(wanted(hosts={"db": {"mac": DB, "address": ip}}))
    assert done.lines[-1] == (
        f"dhcp-app: {ip} of db is leased to 02:00:00:00:09:09 as yet; db gets another address until that lease ends, "
        "and when it renews that one its own"
    )
    db = Container(served, "db", DB)
    assert db.udhcpc(tmp_path)["ip"] != ip
    guest.run("udhcpc", "-f", "-q", "-n", "-R", "-i", "eth0", "-r", ip, "-s", tmp_path / "script",
              env={"OUT": "/dev/null"}, check=False)  # fmt: skip
    # The end of the lease: as its holder gives it back.
    until(lambda: ip not in leases(served))
    assert db.udhcpc(tmp_path)["ip"] == ip


def test_a_thousand_reservations_reload(served):
    hosts = {f"h{n}": {"mac": f"02:00:00:01:{n >> 8:02x}:{n & 255:02x}", "address": f"10.12.{n >> 8}.{n & 255}"}
             for n in range(1, 1001)}  # fmt: skip
    more = {"subnets": {"10.12.0.0/16": {}}, "addresses": {"10.12.255.1": {}}, "ranges": {}, "router": None}
    out = wanted(hosts=hosts, **more)
    out["devices"]["br-app"]["addresses"] = {"10.12.255.1/16": {}}
    served.apply(out)
    was = pid(served)
    hosts["more"] = {"mac": WEB, "address": "10.12.9.9"}
    served.apply(out)
    assert pid(served) == was
    assert "Address: 10.12.9.9\n" in lookup(served, "more", "10.12.255.1")


# -- drift ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "drift"),
    [
        ("s/^dhcp-lease-max=.*/dhcp-lease-max=9/", ["leaseMax want 1000, is 9"]),
        ("s/option:mtu,1400/option:mtu,1500/", ["mtu want 1400, is 1500"]),
        ("s/option:router,10.10.0.1/option:router,10.10.0.9/", ["router want 10.10.0.1, is 10.10.0.9"]),
        ("/^strict-order/d", ["strictOrder want on, is off"]),
        ("/^dhcp-no-override/d", ["noOverride want on, is off"]),
        ("/^dhcp-authoritative/d", ["authoritative want on, is off"]),
        ("s/,3600$/,60/", ["lease want 3600, is 60"]),
        ("s/10.10.0.199,/10.10.0.150,/",
         ["lacks range 10.10.0.100-10.10.0.199", "has range 10.10.0.100-10.10.0.150 that is not declared"]),
        ("/dhcp-range=fd00/d", ["lacks subnet fd00:10::/64", "lacks range fd00:10::100-fd00:10::1ff"]),
        ("/listen-address=fd00/d", ["lacks address fd00:10::1"]),
        ("$ a enable-ra",
         ["ra want off, is on", "lacks line ra-param=br-app,mtu:1400,0,0",
          "has line dhcp-range=fd00:10::100,fd00:10::1ff,64,3600 that is not declared",
          "lacks line dhcp-range=fd00:10::100,fd00:10::1ff,slaac,64,3600"]),
        ("$ a dhcp-option=42,1.2.3.4", ["has option 42 1.2.3.4 that is not declared"]),
        ("$ a no-negcache", ["has line no-negcache that is not declared"]),
        ("/^bogus-priv/d", ["lacks line bogus-priv"]),
        ("s/^bogus-priv/# bogus-priv/", ["lacks line bogus-priv", "has line # bogus-priv that is not declared"]),
    ],
)  # fmt: skip
def test_what_is_changed_in_the_configuration_is_seen_and_mended(served, edit, drift):
    before = served.run("cat", config(served)).out
    served.run("sed", "-i", edit, config(served))
    found = served.agent("check", code=2).lines
    assert sorted(found) == sorted(f"dhcp-app: {line}" for line in drift)
    served.apply(wanted())
    assert served.run("cat", config(served)).out == before
    assert served.agent("check").report == {"drift": []}


@pytest.mark.parametrize(
    ("file", "edit", "drift"),
    [
        ("hosts", "s/10.10.0.11/10.10.0.12/",
         [f"host web want 10.10.0.11 fd00:10::11 {WEB}, is 10.10.0.12 fd00:10::11 {WEB}",
          "has line of names: 10.10.0.11 web.app.example web that is not declared",
          "lacks line of names: 10.10.0.12 web.app.example web"]),
        ("hosts", "$ a 02:00:00:00:09:09,ignore,x,y,z", [("has line of hosts: 02:00:00:00:09:09,ignore,x,y,z that is "
                                                         "not declared")]),
        ("names", "$ a 10.10.0.77 other", ["has line of names: 10.10.0.77 other that is not declared"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("loaded", [False, True])
def test_what_is_changed_in_hosts_and_names(served, file, edit, drift, loaded):
    was = pid(served)
    served.run("sed", "-i", edit, f"{folder(served)}/{file}")
    if loaded:
        served.run("kill", "-HUP", str(was))
    found = served.agent("check", code=2).lines
    unknown = "loaded static leases want those of its file, is others"
    assert sorted(found) == sorted(f"dhcp-app: {line}" for line in [*drift, unknown])
    served.apply(wanted())
    assert served.agent("check").report == {"drift": []}
    assert pid(served) == was
    assert "Address: 10.10.0.11\n" in lookup(served, "web")
    assert "NXDOMAIN" in lookup(served, "other.app.example")


def test_a_killed_dnsmasq_is_seen_and_started(served, tmp_path):
    Container(served, "guest", "02:00:00:00:09:09").udhcpc(tmp_path)
    had = leases(served)
    served.kill(pid(served))
    assert served.agent("check", code=2).lines == ["dhcp-app: running want on, is off"]
    assert served.apply(wanted()).lines == ["dhcp-app: running off -> on"]
    assert served.agent("check").report == {"drift": []}
    assert leases(served) == had
    served.run("kill", str(pid(served)))
    until(lambda: served.agent("check", code=None).code == 2)
    served.agent("restore")
    assert served.agent("check").report == {"drift": []}


def test_a_process_that_has_its_number_is_not_taken_for_it(served):
    was = pid(served)
    served.kill(was)
    other = served.popen("sleep", "1000")
    served.run("sh", "-c", f"echo {other.pid} > /run/overlay/*.pid", check=False)
    served.run("sh", "-c", f"for f in /run/overlay/*.pid; do echo {other.pid} > $f; done")
    assert served.agent("check", code=2).lines == ["dhcp-app: running want on, is off"]
    served.apply(wanted())
    assert other.poll() is None
    other.kill()
    other.wait()


def test_after_the_bridge_was_made_anew_it_serves_again(served, tmp_path):
    served.run("ip link delete br-app")
    served.run("ip link add name other type bridge")  # takes no index of ours: the next is a new one
    found = served.agent("check", code=2).lines
    assert found == ["br-app: is not there", "dhcp-app: bound want to br-app, is to a device that is gone"]
    served.apply(wanted())
    assert served.agent("check").report == {"drift": []}
    assert Container(served, "web", WEB).udhcpc(tmp_path)["ip"] == "10.10.0.11"


def test_the_files_are_readable_without_root_whatever_the_umask(host):
    host.run("sh", "-c", "umask 077; exec /usr/local/sbin/overlay-agent apply", text=json.dumps(wanted()))
    listing = host.run("sh", "-c", f"stat -c '%a %n' /var/lib/overlay/services {folder(host)} {folder(host)}/[hnd]*")
    assert {line.split()[0] for line in listing.out.splitlines()} == {"755", "644"}
    assert host.run("ps", "-o", "user=", "-p", str(pid(host))).out.strip() != "root"
    hosts = {"db": {"mac": DB, "address": "10.10.0.12"}}
    host.apply(wanted(hosts=hosts))
    assert "Address: 10.10.0.12\n" in lookup(host, "db")


def test_it_holds_nothing_of_the_agents(served):
    open_ = served.run("sh", "-c", f"ls -l /proc/{pid(served)}/fd").out
    files = {line.split(" -> ")[1] for line in open_.splitlines() if " -> /" in line}
    assert files == {"/dev/null", f"{folder(served)}/leases"}
    assert served.run("cut", "-d ", "-f6", f"/proc/{pid(served)}/stat").out.strip() == str(pid(served))  # its session


def test_the_machines_own_configuration_is_not_read(host, tmp_path):
    (tmp_path / "dnsmasq.conf").write_text("nonsense that dnsmasq would refuse\n")
    script = f"touch /etc/dnsmasq.conf; mount --bind {tmp_path}/dnsmasq.conf /etc/dnsmasq.conf"
    was = Path("/etc/dnsmasq.conf").exists()
    try:
        host.run("sh", "-c", script)
        host.apply(wanted())
        assert host.agent("check").report == {"drift": []}
    finally:
        if not was:
            host.run("umount", "/etc/dnsmasq.conf")
            Path("/etc/dnsmasq.conf").unlink()


def test_the_servers_of_dns_are_asked_in_their_order(host):
    """Two real servers that disagree: the first is asked."""
    host.run("ip", "link", "set", "lo", "up")
    own = ("dnsmasq", "-k", "--conf-file=/dev/null", "--pid-file=", "--bind-interfaces", "--no-resolv", "--no-hosts")
    servers = [
        host.popen(*own, f"--listen-address=127.0.9.{last}", f"--address=/out.example/198.18.9.{last}")
        for last in (1, 2)
    ]  # fmt: skip
    try:
        for last in (1, 2):
            until(lambda last=last: "198.18.9." in lookup(host, "up.out.example", f"127.0.9.{last}", "-type=a"))
        for order in ((1, 2), (2, 1)):
            host.apply(wanted(dns=[f"127.0.9.{last}" for last in order]))
            assert host.agent("check").report == {"drift": []}
            for n in range(4):
                until(lambda n=n: "198.18.9." in lookup(host, f"x{n}.out.example", "10.10.0.1", "-type=a"))
                told = lookup(host, f"y{n}.out.example", "10.10.0.1", "-type=a")
                assert f"Address: 198.18.9.{order[0]}\n" in told
    finally:
        for server in servers:
            server.kill()
            server.wait()


def test_what_explain_says_makes_the_same(host):
    out = wanted()
    host.run("sh", "-e", text=host.agent("explain", document=out).out)
    until(lambda: "Address" in lookup(host, "web"))
    assert host.apply(out).lines == ["a: nothing to do, 2 objects as declared (first document)"]
    host.agent("remove", "p/s")


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"ranges": {"10.11.0.1-10.11.0.9": {}}},
         "ranges: 10.11.0.1-10.11.0.9 is not in 10.10.0.0/24 or fd00:10::/64; take a part of one"),
        ({"ranges": {"10.10.0.10-10.10.0.20": {}, "10.10.0.20-10.10.0.30": {}}},
         "ranges: 10.10.0.10-10.10.0.20 and 10.10.0.20-10.10.0.30 overlap; take them apart"),
        ({"subnets": {"10.10.0.0/24": {}, "fd00:10::/48": {}}},
         ("ranges: fd00:10::100-fd00:10::1ff is in fd00:10::/48, and dnsmasq takes no prefix shorter than 64; take a "
         "longer one")),
        ({"subnets": {"10.10.0.0/24": {}, "fd00:10::/64": {}, "10.12.0.0/24": {}}},
         "subnets: no address of this host is in 10.12.0.0/24; give it one, dnsmasq serves only where it has one"),
        ({"raRouter": True}, "raRouter: is set without ra; set ra too, or neither"),
        ({"hosts": {"web": {"mac": WEB, "address": "10.12.0.9"}}},
         "hosts.web: 10.12.0.9 is not in 10.10.0.0/24 or fd00:10::/64; take one of there"),
        ({"hosts": {"web": {"mac": WEB, "address": "10.10.0.9"}, "db": {"mac": DB, "address": "10.10.0.9"}}},
         "hosts.web: 10.10.0.9 belongs to db; take another"),
        ({"hosts": {"web": {"mac": WEB, "address": "10.10.0.1"}}},
         "hosts.web: 10.10.0.1 belongs to this host; take another"),
        ({"hosts": {"web": {"mac": WEB, "address": "10.10.0.9"}, "db": {"mac": WEB, "address": "10.10.0.8"}}},
         f"hosts.web: MAC address {WEB} belongs to db; each has its own"),
        ({"hosts": {"web": {"mac": WEB, "address": "10.10.0.9"}, "WEB": {"mac": DB, "address": "10.10.0.8"}}},
         "hosts.web: the same name as WEB; names do not differ by case"),
        ({"hosts": {"web": {"mac": WEB, "address": "fd00:10::9", "address6": "fd00:10::8"}}},
         "hosts.web: address6 is beside an IPv4 address the IPv6 one, and only there; give one of each"),
        ({"router": "10.12.0.1"},
         "router: 10.12.0.1 is not in 10.10.0.0/24; who gets an address there could not reach it"),
        ({"routes": {"10.20.0.0/16": "10.12.0.1"}},
         "routes.10.20.0.0/16: 10.12.0.1 is not in 10.10.0.0/24; who gets an address there could not reach it"),
        ({"routes": {"0.0.0.0/0": "10.10.0.1"}},
         "routes.0.0.0.0/0: not one for option 121; the default route is `router`"),
        ({"routes": {"fd01::/64": "10.10.0.1"}},
         "routes.fd01::/64: not one for option 121; IPv6 routes come by router advertisements"),
        *(({"options": {name: "1.2.3.4"}}, f"options.{name}: {key} sets that option; write it there")
          for name, key in (("3", "router"), ("router", "router"), ("26", "mtu"), ("mtu", "mtu"), ("6", "nameServers"),
                            ("dns-server", "nameServers"), ("121", "routes"), ("249", "routes"), ("15", "domain"),
                            ("option6:23", "nameServers"), ("51", "lease"))),
        ({"options": {"option:router": "1.2.3.4"}}, "options.router: router sets that option; write it there"),
    ],
)  # fmt: skip
def test_a_contradiction_is_refused_before_anything_is_looked_at(host, more, error):
    assert host.apply(wanted(**more), code=1).lines == [f"dhcp-app.{error}"]


def refused(host, document_, *errors):
    state = host.state()
    assert host.apply(document_, code=1).lines == [*(f"a dhcp-app: {error}" for error in errors), "nothing was changed"]
    assert host.state() == state


def test_a_host_without_dnsmasq(host, tmp_path):
    done = host.apply(wanted(), code=1, PATH=str(tmp_path))
    assert done.lines == [
        "a dhcp-app: dnsmasq is not on this host; install the package dnsmasq-base (installPackages: true does it)",
        "nothing was changed",
    ]  # fmt: skip


def test_what_dnsmasq_refuses_leaves_the_old_one_running(served):
    was = pid(served)
    refused(
        served, wanted(options={"nonsense": "1"}, lease=7200),
        "dnsmasq refuses dhcp-option=option:nonsense,1: bad dhcp-option; write what "
        "`dnsmasq --help dhcp` knows",
    )  # fmt: skip
    assert pid(served) == was
    assert served.agent("check").report == {"drift": []}


def test_a_bridge_that_is_not_there(host):
    out = wanted()
    out["devices"] = {}
    refused(host, out, "interface: there is no br-app on this host; name a bridge that is")


def test_addresses_that_the_bridge_does_not_have(host):
    out = wanted()
    out["devices"]["br-app"].update(addresses={"10.10.0.2/24": {}}, linkLocal=False)
    refused(
        host, out,
        "interface: br-app has no link-local address, from which DHCPv6 and router advertisements come; set its "
        "linkLocal",
        "addresses: 10.10.0.1 is not on br-app, which has 10.10.0.2; give it that",
        "addresses: fd00:10::1 is not on br-app, which has 10.10.0.2; give it that",
    )  # fmt: skip


@pytest.fixture
def other(host):
    """Starts somebody else's program in the host; it ends with the test."""
    started = []

    def start(*argv, listens="udp"):
        started.append(host.popen(*argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        until(lambda: f"pid={started[-1].pid}," in host.run("ss -Hlntup").out)
        return started[-1].pid

    yield start
    for process in started:
        process.kill()
        process.wait()


ALIEN = ("dnsmasq", "-k", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--no-resolv", "--no-hosts")


def test_a_dnsmasq_that_has_the_ports_of_all(host, other):
    number = other(*ALIEN)
    refused(
        host, wanted(),
        f"dnsmasq (pid {number}) has udp 53 and tcp 53 of br-app; give it bind-interfaces and except-interface=br-app "
        "in its configuration, or stop it",
    )  # fmt: skip


def test_a_dnsmasq_that_serves_dhcp_to_all(host, other, tmp_path):
    number = other(*ALIEN, "--port=0", "--dhcp-range=198.18.0.20,198.18.0.30", f"--dhcp-leasefile={tmp_path}/leases")
    refused(
        host, wanted(),
        f"dnsmasq (pid {number}) has udp 67 of br-app; give it bind-interfaces and except-interface=br-app in its "
        "configuration, or stop it",
    )  # fmt: skip


def test_a_dnsmasq_on_another_interface_is_no_clash(host, other, tmp_path):
    other(*ALIEN, "--bind-interfaces", "--interface=u0", "--except-interface=lo",
          "--dhcp-range=198.18.0.20,198.18.0.30", f"--dhcp-leasefile={tmp_path}/leases")  # fmt: skip
    host.apply(wanted())
    assert Container(host, "web", WEB).udhcpc(tmp_path)["ip"] == "10.10.0.11"


def test_a_name_server_elsewhere_is_no_clash(host, other):
    code = "import socket,time; s=socket.socket(2, 2); s.bind(('127.0.0.53', 53)); time.sleep(100)"
    other(PYTHON, "-c", code)  # as systemd-resolved
    host.apply(wanted())


def test_a_program_that_has_the_port(host, other):
    code = "import socket,time; s=socket.create_server(('', 53)); time.sleep(100)"
    number = other(PYTHON, "-c", code)
    refused(host, wanted(), f"python3 (pid {number}) has tcp 53 of br-app; have it leave br-app alone, or stop it")


@pytest.mark.parametrize(("manager", "command"), [("lxd", "lxc"), ("incus", "incus")])
def test_the_dnsmasq_of_lxd_on_the_same_bridge(host, other, tmp_path, manager, command):
    """LXD's command line (lxd/network/driver_bridge.go), as far as it counts here."""
    host.run("ip link add lxdbr0 type bridge")
    host.run("ip link set lxdbr0 up")
    host.run("ip address add 10.10.0.1/24 dev lxdbr0")
    folder_ = tmp_path / manager
    folder_.mkdir()
    number = other(*ALIEN, "--bind-interfaces", "--except-interface=lo", "--interface=lxdbr0",
                   "--listen-address=10.10.0.1", "--dhcp-range=10.10.0.2,10.10.0.254,1h",
                   f"--dhcp-leasefile={folder_}/dnsmasq.leases")  # fmt: skip
    out = document(services={"dhcp-app": dnsmasq(
        interface="lxdbr0", subnets={"10.10.0.0/24": {}}, addresses={"10.10.0.1": {}},
        ranges={}, hosts={"web": {"mac": WEB, "address": "10.10.0.11"}})})  # fmt: skip
    refused(
        host, out,
        f"dnsmasq (pid {number}) of {manager} serves lxdbr0; one of the two has to go: {command} network set lxdbr0 "
        "ipv4.dhcp=false ipv6.address=none dns.mode=none raw.dnsmasq=port=0",
    )  # fmt: skip


# -- undo ----------------------------------------------------------------------------------------


def also(**more):
    return wanted(hosts={"db": {"mac": DB, "address": "10.10.0.12"}}, **more)


#: By name: what is there before (None: nothing), and what is wanted (None: nothing).
FAULTS = {"create": (None, wanted()), "reload": (wanted(), also()), "restart": (wanted(), also(lease=7200)),
          "remove": (wanted(), None)}  # fmt: skip


def services(host):
    """The files of services, and what their processes run; process ids may differ."""
    files = host.run("sh", "-c", "cd /var/lib/overlay; for f in services/*/*; do [ -f $f ] && sha1sum $f; done; true")
    script = "for f in /run/overlay/*.pid; do [ -f $f ] && tr '\\0' ' ' < /proc/$(cat $f)/cmdline; done; true"
    return files.out, host.run("sh", "-c", script).out, "br-app" in host.run("ip link").out


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["", ":all"])
@pytest.mark.parametrize("name", FAULTS)
def test_killed_at_each_point_all_is_as_it_was(new_host, name, scope, tmp_path):
    before, after = FAULTS[name]
    for point in range(2 if scope else 1, 100, 2):
        host = new_host()
        if before:
            host.apply(before)
            Container(host, "guest", "02:00:00:00:09:09").udhcpc(tmp_path)
            host.run("ip link set v-guest nomaster")
        had = services(host)
        words = {"document": after} if after else {}
        verb = ("apply",) if after else ("remove", "p/s")
        done = host.agent(*verb, code=None, OVERLAY_FAULT=f"{point}{scope}", **words)
        if done.code == 0:
            assert point > 5
            host.close()
            return
        restored = host.agent("restore") if scope else done
        if "after it was done" not in restored.err:
            assert services(host) == had, point
        host.agent(*verb, **words)
        assert host.agent("check").report == {"drift": []}
        host.close()
    raise AssertionError("no end of points")


def test_a_dnsmasq_that_was_stopped_and_edited_is_so_again_after_an_undo(served):
    served.run("sed", "-i", "$ a no-negcache", config(served))
    served.kill(pid(served))
    drift, had = served.agent("check", code=2).lines, services(served)
    done = served.apply(wanted(lease=7200), code=1, OVERLAY_FAULT="6")
    assert done.lines[-1].endswith("undone, the host is as it was")
    assert served.agent("check", code=2).lines == drift
    assert services(served) == had
