"""Two hubs: one passes frames on, the other takes over and gives back; and no frame ever arrives twice."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.e2e.support import wait_for

pytestmark = pytest.mark.root
HOSTS = [f"h{n}" for n in range(1, 6)]
ACTIVE, STANDBY, *SPOKES = HOSTS
#: Sends a numbered frame to everybody, 50 a second, and takes down what it hears, until a line comes in: by sender how
#: many came and the longest pause, and what came twice or was its own. On the way it writes who was heard just now.
TALK = r"""
import json, os, select, socket, struct, sys, time
me = int(sys.argv[1])
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88b5))
s.bind(("eth0", 0x88b5))
mac = s.getsockname()[4]
began = due = time.monotonic()
seen, last, pause, twice, number, said = {}, {}, {}, 0, 0, began
while not select.select([sys.stdin], [], [], 0)[0]:
    now = time.monotonic()
    if now >= due:
        s.send(b"\xff" * 6 + mac + b"\x88\xb5" + struct.pack("!II", me, number) + bytes(40))
        number, due = number + 1, due + 0.02
    if now > said + 0.1:
        with open(sys.argv[2] + ".new", "w") as out:
            json.dump([who for who in last if last[who] > now - 0.3], out)
        os.rename(sys.argv[2] + ".new", sys.argv[2])
        said = now
    if select.select([s], [], [], max(0, due - time.monotonic()))[0]:
        frame, where = s.recvfrom(200)
        if where[2] == socket.PACKET_OUTGOING:
            continue
        now, (who, its) = time.monotonic(), struct.unpack("!II", frame[14:22])
        twice += who == me or its in seen.setdefault(who, set())
        seen.setdefault(who, set()).add(its)
        pause[who] = max(pause.get(who, 0), now - last.get(who, now))
        last[who] = now
print(json.dumps({"sent": number, "heard": {k: len(v) for k, v in seen.items()}, "pause": pause, "twice": twice}))
"""
#: The host sends and hears nothing more, and nothing of it goes down: nobody can tell by a link's state.
CUT = """nft -f - <<'END'
add table inet cut
add chain inet cut in { type filter hook input priority -400; policy drop; }
add chain inet cut out { type filter hook output priority -400; policy drop; }
END"""


@pytest.fixture
def star(stack):
    """Two hubs and three spokes, with a container on each."""
    stack.hosts.clear()
    stack.hosts.update({host: {"address": stack.lab.hosts[host].address} for host in HOSTS})
    stack.segments.clear()
    stack.segments["app"] = {
        "subnets": ["10.10.0.0/24"],
        "tunnels": {"star": {"kind": "vxlan", "topology": "hub", "hubs": [ACTIVE, STANDBY], "vniRange": "1000-9999"}},
        "containers": {f"c{n}": {"host": host, "address": f"10.10.0.{n}"} for n, host in enumerate(HOSTS, 1)},
    }
    stack.up().ok()
    stack.plug_in()
    return stack


def forwarding(lab, host):
    rows = json.loads(lab.run(host, "bridge -j link show").stdout)
    return {row["ifname"] for row in rows if row["ifname"].startswith("vx-") and row["state"] == "forwarding"}


@pytest.mark.lab(hosts=5)
def test_one_hub_takes_over_and_gives_back(star, record_property):
    lab = star.lab
    talkers, ways = {}, {}
    for number, host in enumerate(HOSTS, 1):
        ways[number] = f"/root/heard-{number}"
        words = ["ip", "netns", "exec", f"app-c{number}", "/usr/bin/python3", "-c", TALK, str(number), ways[number]]
        talkers[number] = lab.popen(host, words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def hear(*numbers):
        """Whether each of these hears all the others of them, and nobody else."""
        said = {n: lab.run(f"h{n}", ["cat", ways[n]], check=False).stdout for n in talkers}
        return all({*json.loads(said[n] or "[]")} == {*numbers} - {n} for n in numbers)

    wait_for(lambda: hear(1, 2, 3, 4, 5), 30)
    assert [forwarding(lab, host) for host in SPOKES] == [{"vx-app"}] * 3, "by the active hub alone"
    star.healthy()
    star.noop()
    lab.run(ACTIVE, CUT)
    wait_for(lambda: hear(2, 3, 4, 5), 60)
    # The cut hub still takes itself for the root: its ports, and those towards it, are open on both sides.
    assert all(f"vx-app-{STANDBY}" in forwarding(lab, host) for host in SPOKES)
    assert len(forwarding(lab, ACTIVE)) == 4
    star.healthy()
    lab.run(ACTIVE, "nft delete table inet cut")
    wait_for(lambda: hear(1, 2, 3, 4, 5), 60)
    wait_for(lambda: [forwarding(lab, host) for host in SPOKES] == [{"vx-app"}] * 3, 30)
    star.healthy()
    found = {number: json.loads(one.communicate("end\n", timeout=10)[0]) for number, one in talkers.items()}
    record_property("pauses, s", {number: one["pause"] for number, one in found.items()})
    assert [one["twice"] for one in found.values()] == [0] * 5, "at no moment did both hubs pass a frame on"
    for number, one in found.items():
        assert one["heard"].keys() == {str(n) for n in talkers} - {str(number)}
        assert all(count <= found[int(who)]["sent"] for who, count in one["heard"].items())
    for number in range(1, 6):
        lab.remove_container(HOSTS[number - 1], f"app-c{number}")
    star.destroy().ok()
    star.clean()
