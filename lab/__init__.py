"""Real hosts on one machine: `python -m lab up`, or `with Lab(name="t", hosts=3) as lab:`.

Why: the tool under test talks SSH to Linux hosts, so its tests need hosts with a kernel, an sshd and a
file system each, in a second and without a trace. `Vm` is one with a kernel of its own. See docs/lab.md.
"""

from __future__ import annotations

from lab._error import LabError
from lab._lab import Host, HostProcess, Lab
from lab._runtimes import web_server
from lab._vm import Vm

__all__ = ["Host", "HostProcess", "Lab", "LabError", "Vm", "web_server"]
