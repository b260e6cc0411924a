"""No line that Pulumi's plugin would choke on."""

from __future__ import annotations

import pytest

from overlay_agent.errors import LONGEST_LINE, shortened


@pytest.mark.parametrize("text", ["", "vx-app: vni 42 -> 43 (recreated)", "x" * LONGEST_LINE, "one\ntwo"])
def test_usual_lines_stay(text):
    assert shortened(text) == text


def test_a_long_line_keeps_its_beginning_and_its_end():
    lacking = "; ".join(f"lacks peer p{number} 198.18.0.1" for number in range(5000))
    first, second = shortened(f"vx-app: {lacking}; undone, the host is as it was\nnext").split("\n")
    assert len(first) == LONGEST_LINE
    assert first.startswith("vx-app: lacks peer p0 198.18.0.1; ")
    assert " [...] " in first
    assert first.endswith("; undone, the host is as it was")
    assert second == "next"
