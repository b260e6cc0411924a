"""Document 004's tunnels, GRETAP and L2TPv3, by the real CLI: where this kernel has none, all of it in the VM lab."""

from __future__ import annotations

import pytest

from tests.e2e.test_stacks import whole_life

pytestmark = [pytest.mark.root, pytest.mark.kinds("gretap", "l2tp")]


@pytest.mark.lab(hosts=2)
@pytest.mark.stack("doc-004-gretap")
def test_doc_004_gretap(stack):
    whole_life(stack)


@pytest.mark.lab(hosts=2)
@pytest.mark.stack("doc-004-l2tp")
def test_doc_004_l2tp(stack):
    whole_life(stack)


@pytest.mark.stack("doc-004-several")
def test_doc_004_several(stack):
    whole_life(stack)
