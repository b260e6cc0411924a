"""Containers as people run them, on what `pulumi up` made: leases across the tunnel, names, the way out and in."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import time

import pytest

from lab import web_server
from tests.e2e.support import wait_for

pytestmark = pytest.mark.root

#: Says from which address it was asked.
ECHO = """
import http.server
class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(self.client_address[0].encode())
    def log_message(self, *_): pass
http.server.HTTPServer(("", 9000), Echo).serve_forever()
"""
LXC_DHCP = "udhcpc -i eth0 &"


def outside(lab, host):
    """A host that the stack does not know: the internet. Serves a page, and tells callers their address."""
    lab.run(host, web_server("the internet"))
    lab.run(host, f"setsid /usr/bin/python3 -c {shlex.quote(ECHO)} </dev/null >/dev/null 2>&1 &")
    lab.run(host, "i=0; until curl -sf localhost:9000; do i=$((i+1)); test $i -lt 100; sleep 0.05; done")


def row_of(stack, segment, name):
    return stack.outputs()["containers"][segment][name]


def stanza(stack, segment, name, *, static=False):
    """The LXC configuration that the outputs have for the container; without its address, so that it asks for one."""
    lines = row_of(stack, segment, name)["paste"].splitlines()
    return [line for line in lines if static or ".ipv4." not in line]


def inside(stack, host, name, command):
    return stack.lab.run(host, ["lxc-attach", "--name", name, "--", "sh", "-c", command]).stdout


def leased(stack, host, name, gateway):
    """Waits until the LXC container has a way out, and gives its address and MTU."""
    stack.lab.run(host, f"i=0; until lxc-attach --name {name} -- ip route | grep -q 'default via {gateway} '; "
                        "do i=$((i+1)); test $i -lt 200 || exit 1; sleep 0.05; done")  # fmt: skip
    text = inside(stack, host, name, "ip -o -4 addr show eth0; cat /sys/class/net/eth0/mtu")
    return re.search(r" inet (\S+)", text)[1], int(text.split()[-1])


def pid_of(lab, host, program):
    return lab.run(host, ["pgrep", "-x", program]).stdout.split()


# -- document 000 ------------------------------------------------------------------------------


@pytest.mark.lab(hosts=3)
@pytest.mark.stack("doc-000-unicast")
def test_lxc_containers_lease_from_the_router_across_the_tunnel(stack):
    lab = stack.lab
    outside(lab, "h3")
    del stack.segments["super"]["containers"]["b"], stack.segments["super"]["containers"]["d"]
    stack.segments["super"]["dhcp"]["domain"] = "super.example"
    stack.remember()
    stack.up().ok()
    for host, name in (("h1", "a"), ("h2", "c")):
        lab.lxc(host, name, stanza(stack, "super", name), start=LXC_DHCP)
    assert leased(stack, "h2", "c", "10.0.4.1") == ("10.0.4.13/24", 1450)
    assert leased(stack, "h1", "a", "10.0.4.1") == ("10.0.4.11/24", 1450)
    assert "00:16:3e:ab:f9:65" in inside(stack, "h1", "a", "ip link show eth0")
    # By name, and beyond the segment by the router.
    inside(stack, "h1", "a", web_server("page of a"))
    assert inside(stack, "h2", "c", "wget -q -O - http://a.super.example/") == "page of a"
    assert inside(stack, "h2", "c", "wget -q -O - http://a/") == "page of a"
    assert inside(stack, "h2", "c", "wget -q -O - http://198.18.0.13/") == "the internet"
    assert inside(stack, "h2", "c", "wget -q -O - http://198.18.0.13:9000/") == "198.18.0.11", "masqueraded"

    # One more reservation: one host is asked, dnsmasq goes on, and so do the leases.
    logins = {host: stack.logins(host) for host in stack.hosts}
    daemon = pid_of(lab, "h1", "dnsmasq")
    stack.segments["super"]["dhcp"]["reservations"] = {"printer": {"mac": "02:00:00:00:53:01", "address": "10.0.4.77"}}
    said = stack.up().ok()
    assert "dhcp-super: + host printer" in said
    assert {host: stack.logins(host) - n for host, n in logins.items()} == {"h1": 1, "h2": 0}
    assert pid_of(lab, "h1", "dnsmasq") == daemon
    lab.container("h2", "printer", "superbr0", "02:00:00:00:53:01")
    lab.dhcp("h2", "printer")
    assert "10.0.4.77/24" in lab.exec_container("h2", "printer", "ip -o -4 addr show eth0").stdout
    assert leased(stack, "h2", "c", "10.0.4.1") == ("10.0.4.13/24", 1450)

    # A container moves to another host: address, MAC and lease go along.
    before = row_of(stack, "super", "a")
    lab.run("h1", "lxc-stop --kill --name a")
    stack.segments["super"]["containers"]["a"]["host"] = "h2"
    stack.up().ok()
    moved = row_of(stack, "super", "a")
    assert {key: value for key, value in before.items() if moved[key] != value} == {"host": "h1"}
    lab.lxc("h2", "a", stanza(stack, "super", "a"), start=LXC_DHCP)
    assert leased(stack, "h2", "a", "10.0.4.1") == ("10.0.4.11/24", 1450)
    inside(stack, "h2", "a", web_server("page of a, moved"))
    assert inside(stack, "h2", "c", "wget -q -O - http://a/") == "page of a, moved"
    [lease] = [line for line in lab.run("h1", "cat /var/lib/overlay/services/*/leases").stdout.splitlines()
               if "00:16:3e:ab:f9:65" in line]  # fmt: skip
    assert "10.0.4.11" in lease

    # Its MAC and address as they were, by hand, on every host.
    stack.healthy("h1", "h2")
    for name in ("a", "c"):
        lab.run("h2", f"lxc-stop --kill --name {name} && lxc-destroy --name {name}")
    lab.remove_container("h2", "printer")
    stack.destroy().ok()
    stack.clean()


# -- document 004 ------------------------------------------------------------------------------


@pytest.mark.lab(hosts=3)
@pytest.mark.stack("doc-004-nat")
def test_in_and_out_through_the_nat_bridge(stack):
    lab = stack.lab
    outside(lab, "h3")
    stack.remember()
    stack.up().ok()
    plugged = stack.plug_in()
    web, db = "super-web", "super-db"
    lab.exec_container("h2", web, web_server("page of web"))
    lab.exec_container("h1", db, web_server("page of db"))
    # From outside: a port of the host, over the tunnel; and an address of its own.
    assert lab.run("h3", "curl -sSf http://198.18.0.11:8080/").stdout == "page of web"
    assert lab.run("h3", "curl -sSf http://198.18.0.200/").stdout == "page of db"
    # From the host itself and from a neighbour, by the same names.
    assert lab.run("h1", "curl -sSf http://198.18.0.11:8080/").stdout == "page of web"
    assert lab.exec_container("h1", db, "curl -sSf http://198.18.0.11:8080/").stdout == "page of web"
    assert lab.exec_container("h2", web, "curl -sSf http://198.18.0.200/").stdout == "page of db"
    # Out: each under its address.
    assert lab.exec_container("h1", db, "curl -sSf http://198.18.0.13:9000/").stdout == "198.18.0.200"
    assert lab.exec_container("h2", web, "curl -sSf http://198.18.0.13:9000/").stdout == "198.18.0.11"
    # Containers of two hosts, each on its own subnet, by routes; under their own addresses.
    lab.run("h2", f"ip netns exec lxc-b-b setsid /usr/bin/python3 -c {shlex.quote(ECHO)} </dev/null >/dev/null 2>&1 &")
    asked = "i=0; until curl -sf http://10.0.4.11:9000/; do i=$((i+1)); test $i -lt 100; sleep 0.05; done"
    assert lab.exec_container("h1", "lxc-a-a", asked).stdout == "10.0.3.11"
    assert lab.ping("h2", "10.0.3.11", container="lxc-b-b")
    stack.all_reach_all(plugged)
    stack.healthy("h1", "h2")
    stack.noop()
    for rows in plugged.values():
        for host, name, _ in rows:
            lab.remove_container(host, name)
    stack.destroy().ok()
    stack.clean()


@pytest.mark.lab(hosts=3)
@pytest.mark.stack("doc-004-router")
def test_a_container_is_the_router(stack):
    lab = stack.lab
    outside(lab, "h3")
    stack.up().ok()
    # Its own interfaces, from the outputs; what makes it a router is its own business, as in the article.
    lab.lxc("h2", "router", stanza(stack, "lan", "router", static=True))
    pid = lab.run("h2", "lxc-info --name router --pid --no-humanize").stdout.strip()
    lab.run("h2", f"nsenter -t {pid} -n sh -c 'sysctl -qw net.ipv4.ip_forward=1; nft add table ip r; "
                  'nft add chain ip r p "{ type nat hook postrouting priority 100; }"; '
                  "nft add rule ip r p oifname eth1 masquerade'")  # fmt: skip
    for host, name in (("h1", "web"), ("h2", "db")):
        lab.lxc(host, name, stanza(stack, "lan", name), start=LXC_DHCP)
        leased(stack, host, name, "10.30.0.1")
        assert inside(stack, host, name, "wget -q -O - http://198.18.0.13/") == "the internet"
    lab.run("h2", "lxc-stop --kill --name router")
    assert "no way" in inside(stack, "h1", "web", "timeout 2 ping -c 1 -W 1 198.18.0.13 || echo no way")
    stack.healthy("h1", "h2")


# -- two routers -------------------------------------------------------------------------------


def without_gateway(lab):
    """Kills the host that has the gateway. For how many pings of the container, ten a second, nobody answered; that
    host, and the other one."""
    wait_for(lambda: lab.ping("h3", "10.10.0.1", container="web"), 30)
    lost, left = sorted(("h1", "h2"), key=lambda host: "10.10.0.1/" not in lab.run(host, "ip -4 addr").stdout)
    ping = lab.popen("h3", ["ip", "netns", "exec", "web", "ping", "-n", "-D", "-O", "-i", "0.1", "10.10.0.1"],
                     stdout=subprocess.PIPE, text=True)  # fmt: skip
    time.sleep(0.5)
    lab.kill(lost)
    time.sleep(6)
    ping.terminate()
    said, _ = ping.communicate(timeout=10)
    answered = [int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", said)]
    gaps = [b - a for a, b in itertools.pairwise(answered)]
    assert answered[-1] > answered[gaps.index(max(gaps))] + max(gaps), "it answers on"
    assert max(gaps) > 1, "the one that was killed had it"
    return max(gaps), lost, left


@pytest.mark.stack("two-routers")
def test_the_loss_of_a_router(stack):
    """No static lease is lost, and the gateway answers again within 3 s."""
    lab = stack.lab
    stack.up().ok()
    row = row_of(stack, "app", "web")
    lab.container("h3", "web", row["bridge"], row["mac"])
    lab.dhcp("h3", "web", "dhclient")
    assert "10.10.0.11/24" in lab.exec_container("h3", "web", "ip -o -4 addr show eth0").stdout
    for _ in range(3):  # a machine that was busy for a second or two makes it longer, and nothing makes it shorter
        gap, lost, left = without_gateway(lab)
        if gap <= 30:
            break
        lab.revive(lost)
        lab.run(lost, "/usr/local/sbin/overlay-agent restore")
    assert gap <= 30, f"no answer for {gap} pings, ten a second"
    # The other one knows the same leases: asked anew, the same address, and names.
    lab.remove_container("h3", "web")
    lab.container("h3", "web", row["bridge"], row["mac"])
    lab.dhcp("h3", "web", "dhclient")
    assert "10.10.0.11/24" in lab.exec_container("h3", "web", "ip -o -4 addr show eth0").stdout
    assert "10.10.0.12" in lab.exec_container("h3", "web", "getent ahostsv4 db.app.example").stdout
    stack.healthy(left, "h3")
    # It comes back, is as declared after `restore`, and the stack goes without a trace.
    lab.revive(lost)
    lab.run(lost, "/usr/local/sbin/overlay-agent restore")
    stack.healthy()
    lab.remove_container("h3", "web")
    stack.destroy().ok()
    stack.clean()


# -- services between containers ---------------------------------------------------------------


@pytest.mark.lab(hosts=2)
@pytest.mark.stack("doc-000-unicast")
def test_a_floating_address_moves_between_containers_of_two_hosts(stack):
    """By keepalived in the containers, as in 004's reading list; the address is `reserved`."""
    lab = stack.lab
    stack.segments["super"]["reserved"] = ["10.0.4.100"]
    stack.up().ok()
    stack.plug_in()
    holders = {"h1": "super-a", "h2": "super-c"}
    for (host, name), priority in zip(holders.items(), (150, 100), strict=True):
        config = f"""vrrp_instance web {{
            state BACKUP
            interface eth0
            virtual_router_id 51
            priority {priority}
            advert_int 1
            virtual_ipaddress {{ 10.0.4.100/24 }}
        }}"""
        lab.path(host, "/etc/floating.conf").write_text(config)
        files = "--use-file /etc/floating.conf --pid /run/f.pid --vrrp_pid /run/fv.pid"
        lab.exec_container(host, name, f"keepalived {files}")
        lab.exec_container(host, name, web_server(f"from {host}"))
    def answers(who):
        """Whether clients on both hosts have come to be answered by that host's container."""
        clients = (("h1", "super-b"), ("h2", "super-d"))
        asked = ["curl", "-sf", "-m", "1", "http://10.0.4.100/"]
        return all(lab.exec_container(*client, asked, check=False).stdout == f"from {who}" for client in clients)

    wait_for(lambda: answers("h1"), 60)
    # The child first: one whose parent went before it takes the address off by itself, or not, as it has time to.
    lab.run("h1", "kill -9 $(cat /run/fv.pid) $(cat /run/f.pid); ip -n super-a addr del 10.0.4.100/24 dev eth0")
    wait_for(lambda: answers("h2"), 60)
