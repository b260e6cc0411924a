"""The agent's side: the cookie is in /run/sealed-<device>, where a kernel would have it in its memory."""

from __future__ import annotations

import dataclasses
import os
from contextlib import suppress

from overlay_agent import fields
from overlay_agent.kinds.base import attribute, optional
from overlay_agent.kinds.vxlan import Vxlan, VxlanKind


@dataclasses.dataclass(frozen=True)
class Sealed(Vxlan):
    """A VXLAN device with a cookie."""

    cookie: str | None = attribute(optional(fields.Secret()), default=None)


def _file(name):
    return f"/run/sealed-{name}"


class SealedKind(VxlanKind):
    """Reads the secret from where the agent keeps it, and back from where it is used."""

    spec = Sealed

    def observe(self, kernel, link):
        spec = super().observe(kernel, link)
        with suppress(FileNotFoundError), open(_file(link.name), "rb") as file:
            return dataclasses.replace(spec, cookie=kernel.secrets.reference_of(file.read()))
        return spec

    def change_rest(self, kernel, name, spec, found):
        super().change_rest(kernel, name, spec, found)
        if spec.cookie == found.cookie:
            return
        with suppress(FileNotFoundError):
            os.unlink(_file(name))
        if spec.cookie:
            value = kernel.secrets.read(spec.cookie)
            with open(_file(name), "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(value)
        if os.path.exists("/run/sealed-refuse"):  # for tests of the undo
            from overlay_agent.errors import KernelError

            raise KernelError(name, 22, "sealed-refuse is there")

    def delete(self, kernel, name, mark):
        super().delete(kernel, name, mark)
        with suppress(FileNotFoundError):
            os.unlink(_file(name))


KIND = SealedKind()
