"""`python -m bench.agent`: the agent on one host, in namespaces of its own; no SSH, no lab.

Times are wall seconds of one process from start to exit, as sshd would start it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from overlay_components import agent

AGENT = "/usr/local/sbin/overlay-agent"
PYTHON = "/usr/bin/python3"
RUNS = 20
PEERS = 1000
OWNER = {"project": "bench", "stack": "agent", "id": "1"}
#: What the issue asks of one host: seconds, and MiB resident.
AIMS = {"no-op": 0.25, "many": 1.0, "one more": 0.4, "memory": 60.0}

FRESH = """
for folder in /var/lib/overlay /usr/local/lib/overlay-agent /usr/local/sbin /etc/systemd/system; do
  mkdir -p $folder && mount -t tmpfs tmpfs $folder || exit 1
done
mount -t tmpfs tmpfs /run
ip link set lo up
ip link add u0 type veth peer name u1 && ip link set u0 up && ip link set u1 up
ip address add 198.18.0.11/24 dev u0
exec "$@"
"""


def main() -> int:
    """Prints the table; the exit code says whether the aims were reached."""
    if "--inside" in sys.argv:
        return _inside()
    words = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", FRESH, "sh"]
    return subprocess.run([*words, sys.executable, "-m", "bench.agent", "--inside"], check=False).returncode


def _inside() -> int:
    archive = agent.archive()
    request = json.dumps({"owner": OWNER, "host": "a"})
    subprocess.run([PYTHON, archive, "install"], input=request, text=True, check=True, capture_output=True)
    two = _document(2)
    _apply(two)
    bare = statistics.median(_timed([PYTHON, "-ISBc", "pass"], "")[0] for _ in range(RUNS))
    quiet = [_timed([AGENT, "apply"], two) for _ in range(RUNS)]
    full = statistics.median(_full_pyroute2() for _ in range(RUNS))
    ours = statistics.median(_our_kernel() for _ in range(RUNS))
    _apply(_document(0), "remove")
    many = _timed([AGENT, "apply"], _document(PEERS))
    more = _timed([AGENT, "apply"], _document(PEERS + 1))
    still = _timed([AGENT, "apply"], _document(PEERS + 1))
    median = statistics.median(seconds for seconds, _ in quiet)
    memory = max(kib for _, kib in [*quiet, many, more, still]) / 1024
    reached = {"no-op": median, "many": many[0], "one more": more[0], "memory": memory}
    table = Table(title=f"The agent on one host (load {os.getloadavg()[0]:.1f} before)")
    for word in ("what", "measured", "aim"):
        table.add_column(word, justify="left" if word == "what" else "right")
    table.add_row("python3, nothing else", f"{bare * 1e3:.0f} ms", "")
    table.add_row(f"no-op apply, median of {RUNS}", f"{median * 1e3:.0f} ms", f"{AIMS['no-op'] * 1e3:.0f} ms with ssh")
    table.add_row(f"{PEERS} peers from nothing", f"{many[0] * 1e3:.0f} ms", f"{AIMS['many'] * 1e3:.0f} ms")
    table.add_row(f"one peer added to {PEERS}", f"{more[0] * 1e3:.0f} ms", f"{AIMS['one more'] * 1e3:.0f} ms")
    table.add_row(f"no-op with {PEERS + 1} peers", f"{still[0] * 1e3:.0f} ms", "")
    table.add_row("most memory resident", f"{memory:.0f} MiB", f"{AIMS['memory']:.0f} MiB")
    table.add_row("start with our kernel.py / with pyroute2's IPRoute", f"{ours * 1e3:.0f} / {full * 1e3:.0f} ms",
                  f"ratio {ours / full:.2f}")  # fmt: skip
    Console().print(table)
    return 0 if all(reached[name] <= aim for name, aim in AIMS.items()) else 1


def _document(peers: int) -> str:
    devices: dict[str, Any] = {
        "br-app": {"kind": "bridge", "mtu": 1450, "mac": "02:00:00:00:00:01", "addresses": {"10.10.0.1/24": {}}},
        "vx-app": {
            "kind": "vxlan", "mtu": 1450, "mac": "02:00:00:00:00:02", "vni": 42, "local": "198.18.0.11",
            "bridge": "br-app", "peers": {f"h{i}": f"198.19.{i // 250}.{i % 250 + 1}" for i in range(peers)},
        },
    }  # fmt: skip
    return json.dumps({"schema": 1, "owner": OWNER, "host": "a", "devices": devices})


def _apply(document: str, verb: str = "apply") -> None:
    subprocess.run([AGENT, verb], input=document, text=True, check=True, capture_output=True)


def _timed(words: Sequence[str], text: str) -> tuple[float, int]:
    """(seconds, KiB resident) of one run."""
    begun = time.perf_counter()
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert process.stdin is not None  # noqa: S101 - for mypy
    process.stdin.write(text.encode())
    process.stdin.close()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit code {process.returncode}")
    return seconds, usage.ru_maxrss


def _full_pyroute2() -> float:
    """A start that opens pyroute2's own IPRoute and lists the links."""
    site = next(path for path in sys.path if (Path(path) / "pyroute2").is_dir())
    code = f"import sys; sys.path.insert(0, {site!r}); from pyroute2 import IPRoute; IPRoute().get_links()"
    return _timed([PYTHON, "-ISBc", code], "")[0]


def _our_kernel() -> float:
    """The same with the agent's kernel.py."""
    folder = next(Path("/usr/local/lib/overlay-agent").glob("0*"))
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); from overlay_agent.kernel import Kernel; Kernel()"
    return _timed([PYTHON, "-ISBc", code], "")[0]


if __name__ == "__main__":
    sys.exit(main())
