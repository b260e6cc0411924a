"""Document 004's tunnels, GRETAP and L2TPv3, by the real CLI; the hosts are in the VM where this kernel has neither."""

from __future__ import annotations

import pytest

from tests.e2e.test_stacks import whole_life

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]
KINDS = ["gretap", "l2tp"]


@pytest.mark.lab(hosts=2, kinds=KINDS)
@pytest.mark.stack("doc-004-gretap")
def test_doc_004_gretap(stack):
    whole_life(stack)


@pytest.mark.lab(hosts=2, kinds=KINDS)
@pytest.mark.stack("doc-004-l2tp")
def test_doc_004_l2tp(stack):
    whole_life(stack)


@pytest.mark.lab(hosts=3, kinds=KINDS)
@pytest.mark.stack("doc-004-several")
def test_doc_004_several(stack):
    whole_life(stack)
