"""The program's side: a key `cookie` of 4 or 8 bytes."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import pydantic
from overlay_agent.kinds.sealed import Sealed  # comes with `put_into`

from overlay_agent import fields
from overlay_components import model, vxlan_tunnel
from overlay_components.model import Checked


class SealedOptions(vxlan_tunnel.VxlanTunnelKind.options):
    """VXLAN's keys, and the cookie."""

    cookie: Annotated[Any, Checked(fields.optional(model.SecretHex(4, 8)))] = pydantic.Field(default=None)


class SealedTunnelKind(vxlan_tunnel.VxlanTunnelKind):
    """What a kind with a secret has to do: put the value into the spec."""

    options = SealedOptions

    def devices(self, tunnel, common, wrong):
        for at, spec in super().devices(tunnel, common, wrong):
            values = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
            yield at, Sealed(**values, cookie=tunnel.options.cookie)


KIND = SealedTunnelKind(vxlan_tunnel.VxlanTunnel)
