"""The agent's side: the cookie is in /run/sealed-<device>, where a kernel would have it in its memory."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from pathlib import Path

from overlay_agent import fields
from overlay_agent.errors import KernelError
from overlay_agent.kinds.base import attribute, optional
from overlay_agent.kinds.vxlan import Vxlan, VxlanKind


@dataclasses.dataclass(frozen=True)
class Sealed(Vxlan):
    """A VXLAN device with a cookie."""

    cookie: str | None = attribute(optional(fields.Secret()), default=None)


def _file(name):
    return Path(f"/run/sealed-{name}")


class SealedKind(VxlanKind):
    """Reads the secret from where the agent keeps it, and back from where it is used."""

    spec = Sealed

    def observe(self, kernel, link):
        spec = super().observe(kernel, link)
        with suppress(FileNotFoundError):
            return dataclasses.replace(spec, cookie=kernel.secrets.reference_of(_file(link.name).read_bytes()))
        return spec

    def change_rest(self, kernel, name, spec, found):
        super().change_rest(kernel, name, spec, found)
        if spec.cookie == found.cookie:
            return
        _file(name).unlink(missing_ok=True)
        if spec.cookie:
            _file(name).write_bytes(kernel.secrets.read(spec.cookie))
        if Path("/run/sealed-refuse").exists():  # for tests of the undo
            raise KernelError(name, 22, "sealed-refuse is there")

    def delete(self, kernel, name, mark):
        super().delete(kernel, name, mark)
        _file(name).unlink(missing_ok=True)


KIND = SealedKind()
