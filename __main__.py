"""The overlay networks that the current stack's file, stacks/Pulumi.<stack>.yaml, describes."""

import pulumi

from overlay_components import Overlay

overlay = Overlay.from_stack()

pulumi.export("hosts", overlay.plan.apply(lambda plan: plan.hosts()))
pulumi.export("segments", overlay.plan.apply(lambda plan: plan.segments))
if overlay.public_keys is not None:
    pulumi.export("publicKeys", overlay.public_keys)
pulumi.export("containers", overlay.plan.apply(lambda plan: plan.containers))
