"""The store's last write is lost or spoilt, as by a power cut on a disk that does not keep its word: it is said,
nothing of the network goes, and the next apply ends it."""

from __future__ import annotations

import pytest
from agent_support import document, usual, vxlan

STORE = "/var/lib/overlay"
KEPT = f"{STORE}/stacks/p/s.json"
OTHER = {"project": "p", "stack": "t", "id": "id-of-t"}
ANOTHER = "stack p/s: another document is kept here, or none; it would come back at boot"


@pytest.mark.parametrize("lost", [f"rm {KEPT}", f"cp /run/old.json {KEPT}"], ids=["absent", "old"])
def test_the_document_is_not_the_one_that_was_applied(host, lost):
    host.apply(usual())
    host.run("cp", KEPT, "/run/old.json")
    wanted = usual(vni=43)
    host.apply(wanted)
    state, files = host.state(), host.files()
    host.run(lost)
    assert host.agent("check", "-", document=wanted, code=2).lines == [ANOTHER]
    host.apply(wanted)
    assert (host.state(), host.files()) == (state, files)
    assert host.agent("check", "-", document=wanted).report == {"drift": []}


def test_the_document_is_truncated(host):
    host.apply(usual())
    two = document(OTHER, vx_two=vxlan(vni=7, mac="02:00:00:00:00:04"))
    host.apply(two)
    host.run(f"truncate -s 40 {KEPT}")
    for words, more in ((["check"], {}), (["check", "-"], {"document": usual()}), (["apply"], {"document": usual()})):
        (line,) = host.agent(*words, code=1, **more).lines
        assert line.startswith(f"{KEPT}: not readable (")
        assert line.endswith("; move it away, then run `OVERLAY_LIVE=1 pulumi up`")
    # The other stack's network comes back all the same.
    host.run("ip link delete vx-two")
    done = host.agent("restore", code=1)
    assert "vx-two: created (" in done.err
    assert f"stack p/s: {KEPT}: not readable (" in done.err
    host.run(f"mv {KEPT} /run/away")
    assert host.agent("check", "-", document=usual(), code=2).lines == [ANOTHER]
    host.apply(usual())
    assert host.agent("check").report == {"drift": []}


@pytest.mark.parametrize("spoilt", ["truncate -s 40", "truncate -s 0"])
@pytest.mark.parametrize("verb", ["apply", "restore"])
def test_the_journal_is_half_written(host, spoilt, verb):
    host.apply(usual())
    wanted = usual(vni=43)
    host.apply(wanted, code=None, OVERLAY_FAULT="3:all")
    host.run(f"{spoilt} {STORE}/journal.json")
    cut = "an apply was cut short; `overlay-agent restore` or the next `pulumi up` ends it"
    assert cut in host.agent("check", code=2).lines
    done = host.apply(wanted) if verb == "apply" else host.agent("restore")
    assert done.lines[0] == (
        f"{STORE}/journal.json: not readable; removed. What an apply was about to do when it was cut short is not "
        "undone; going on with what is declared"
    )
    assert host.agent("check").report == {"drift": []}
    assert host.link("vx-app")["linkinfo"]["info_data"]["id"] == (43 if verb == "apply" else 42)
    assert "nothing to do" in host.apply(wanted if verb == "apply" else usual()).err
