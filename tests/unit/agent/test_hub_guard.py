"""What is said where the kernel cannot guard a device towards a hub."""

from __future__ import annotations

import errno

import pytest

from overlay_agent import nft
from overlay_agent.errors import KernelError
from overlay_agent.kinds.hub_guard import KIND, HubGuard


@pytest.mark.parametrize(
    ("sentence", "hint"),
    [
        (
            "Error: Could not process rule: Operation not supported",
            "; two hubs need Linux 5.16 with CONFIG_NETFILTER_EGRESS: boot such a kernel, or write hub: with one",
        ),
        ("Error: syntax error", ""),
    ],
)
def test_a_kernel_without_the_egress_hook(monkeypatch, sentence, hint):
    def refuse(_kernel, what, _script):
        raise KernelError(f"{what}: nft", errno.EIO, sentence)

    monkeypatch.setattr(nft, "change", refuse)
    monkeypatch.setattr(nft, "has_table_comments", lambda: True)
    with pytest.raises(KernelError) as caught:
        KIND.create(None, "hubs-app", HubGuard({"vx-app": {}}), "overlay:p/s/hubs-app", {})
    assert str(caught.value) == f"hubs-app: nft: {sentence}{hint}"


def test_what_the_sets_hold_is_not_ours_to_compare():
    ours = ["set heard", "set heard: type ifname", "chain ingress-vx-app"]
    held = ['set heard: elements = { "vx-app" timeout 5s expires 4s,', 'set heard: "vx-app-b" timeout 5s expires 1s }']
    assert KIND.steady([*ours[:2], *held, ours[2]]) == ours
    assert KIND.steady([*ours[:2], 'set fresh: elements = { "vx-app" timeout 3s expires 1s }', ours[2]]) == ours
