"""A VXLAN tunnel with a cookie: what uses a secret on a kernel without L2TP and WireGuard.

Of `agent.py` and `program.py` real copies of the source are made (`put_into`), in which every tunnel of kind vxlan is
one. What a kernel would keep of the cookie stands in a file beside the device.
"""

from __future__ import annotations

import shutil
from pathlib import Path

_HERE = Path(__file__).parent


def put_into(source: Path) -> None:
    """Makes vxlan that kind in a copy of the source."""
    shutil.copy(_HERE / "agent.py", source / "overlay_agent/kinds/sealed.py")
    shutil.copy(_HERE / "program.py", source / "overlay_components/sealed_tunnel.py")
    for file, module in {
        "overlay_agent/kinds/vxlan.py": "overlay_agent.kinds.sealed",
        "overlay_components/vxlan_tunnel.py": "overlay_components.sealed_tunnel",
    }.items():
        with (source / file).open("a") as text:
            text.write(f"\nfrom {module} import KIND  # noqa\n")
