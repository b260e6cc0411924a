"""The agent as one file to copy to a host: overlay_agent and what it needs of pyroute2.

Built where the program runs, from what is installed there, so that a wheel and a checkout serve
alike. Reproducible to the byte: Pulumi copies the file again only when its hash differs.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import io
import json
import os
import tempfile
import zipfile
from pathlib import Path

import overlay_agent

#: What overlay_agent.kernel and .genl import of pyroute2, and nothing else of it (a test compares).
PYROUTE2 = (
    "common.py",
    "netlink/__init__.py",
    "netlink/exceptions.py",
    "netlink/generic/l2tp.py",
    "netlink/generic/wireguard.py",
    "netlink/rtnl/__init__.py",
    "netlink/rtnl/ifaddrmsg.py",
    "netlink/rtnl/ifinfmsg/__init__.py",
    "netlink/rtnl/ifinfmsg/plugins/*.py",
    "netlink/rtnl/iw_event.py",
    "netlink/rtnl/ndmsg.py",
)

#: A zip file may have anything in front of it. With this it is run by `sh FILE`, and a host without Python says so.
SHELL = b"""\
command -v python3 >/dev/null && exec python3 -IS "$0" "$@"
echo "$(uname -n): python3 is missing on this host; install it, such as: apt-get install python3" >&2
exit 127
"""
#: Runs before anything that an old Python could not read.
MAIN = """\
import sys
if sys.version_info < (3, 9):
    sys.exit("overlay-agent: python3 is %d.%d here; 3.9 or newer is needed" % sys.version_info[:2])
from overlay_agent.__main__ import main
sys.exit(main())
"""


def contents() -> dict[str, bytes]:
    """The archive's files by name."""
    # pyroute2's own __init__ imports everything it has; the agent does without (kernel.py).
    out = {"__main__.py": MAIN.encode(), "pyroute2/__init__.py": b""}
    agent = Path(overlay_agent.__file__).parent
    for path in agent.rglob("*.py"):
        out[f"overlay_agent/{path.relative_to(agent).as_posix()}"] = path.read_bytes()
    # Not importlib.util's, which answers with what overlay_agent.kernel has put in pyroute2's place.
    spec = importlib.machinery.PathFinder.find_spec("pyroute2")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("pyroute2: not installed; pip install pyroute2")
    library = Path(spec.submodule_search_locations[0])
    for pattern in PYROUTE2:
        for path in library.glob(pattern):
            out[f"pyroute2/{path.relative_to(library).as_posix()}"] = path.read_bytes()
    return dict(sorted(out.items()))


def digest(files: dict[str, bytes]) -> str:
    """Names the contents, in 12 hexadecimal digits."""
    hash_ = hashlib.sha256()
    for name, content in files.items():
        hash_.update(f"{name}\0{len(content)}\0".encode() + content)
    return hash_.hexdigest()[:12]


def archive() -> Path:
    """The .pyz file, built in the user's cache folder unless it is there."""
    files = contents()
    name = digest({"": SHELL, **files})
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "overlay-networks"
    path = cache / f"overlay-agent-{name}.pyz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, delete=False) as file:
            file.write(_zip({**files, "digest.json": json.dumps({"digest": name}).encode()}))
        Path(file.name).replace(path)
    return path


def _zip(files: dict[str, bytes]) -> bytes:
    """Stored, not compressed: what zlib makes of a file differs between its versions."""
    buffer = io.BytesIO()
    buffer.write(SHELL)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_STORED) as bundle:
        for name, content in files.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            info.create_system = 3
            bundle.writestr(info, content)
    return buffer.getvalue()
