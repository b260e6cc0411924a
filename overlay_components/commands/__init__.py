"""The commands of `overlay` that ask hosts, or change what Pulumi knows: one file each, named as it.

A new one is a function with typer's annotations in a file here, a line in ALL, a section in docs/cli.md, and tests in
tests/unit (what it makes of answers) and tests/e2e (what real hosts answer).
"""

from __future__ import annotations

from overlay_components.commands.capture import capture
from overlay_components.commands.drift import drift
from overlay_components.commands.forget import forget
from overlay_components.commands.graph import graph
from overlay_components.commands.history import history
from overlay_components.commands.import_ import import_
from overlay_components.commands.purge import purge
from overlay_components.commands.status import status
from overlay_components.commands.stop import start, stop
from overlay_components.commands.verify import verify

#: In the order of `overlay --help`.
ALL = (status, drift, verify, graph, capture, history, stop, start, forget, purge, import_)
