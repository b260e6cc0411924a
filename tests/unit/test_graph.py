"""The picture of a topology, looked at in a real browser: what should be seen is seen, and nothing lies upon it."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from overlay_agent.document import Owner
from overlay_components import cli, config, graph
from overlay_components.config import load_config
from overlay_components.plan import make_plan
from overlay_components.verify import Cell, Check, Segment

ROOT = Path(__file__).parents[2]
STACKS = sorted(
    path.name.removeprefix("Pulumi.").removesuffix(".yaml") for path in (ROOT / "stacks").glob("Pulumi.*.yaml")
)
BROWSER = "chromium-headless-shell"
#: Where every text is and how it looks, and every box; written into the page for --dump-dom.
_LOOK = """
<script>
addEventListener("load", () => {
  const place = e => { const b = e.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom] };
  const texts = [...document.querySelectorAll("svg text")].map(e => [e.textContent, place(e)]);
  const boxes = [...document.querySelectorAll("svg rect:not(.band)")].map(e => place(e));
  const found = {texts, boxes, svg: place(document.querySelector("svg"))};
  found.fetched = performance.getEntriesByType("resource").length;
  const out = document.createElement("pre"); out.id = "found"; out.textContent = JSON.stringify(found);
  document.body.append(out);
});
</script>
"""


def browsed(file: Path) -> str:
    """The page as the browser has it; it has nothing to complain of."""
    if shutil.which(BROWSER) is None:
        pytest.fail(f"{BROWSER} is not on this machine; make setup installs it")
    words = [
        BROWSER, "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        f"--user-data-dir={file.parent / 'profile'}",
        "--virtual-time-budget=2000", "--dump-dom", file.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def looked_at(page: str, folder: Path, name: str):
    """What the browser makes of the page."""
    file = folder / f"{name}.html"
    # The page itself allows no script.
    file.write_text(
        re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("</body>", f"{_LOOK}</body>")
    )
    text = browsed(file)
    found = re.search(r'<pre id="found">(.*?)</pre>', text, re.DOTALL)
    assert found, text[-2000:]
    return json.loads(unescape(found[1]))


def apart(a, b):
    return a[2] <= b[0] + 0.5 or b[2] <= a[0] + 0.5 or a[3] <= b[1] + 0.5 or b[3] <= a[1] + 0.5


def made(raw):
    checked = load_config(raw)
    return make_plan(checked, Owner("overlay", "test", "0")), checked


def stack(name):
    return made(config.read_stack_file(ROOT / "stacks" / f"Pulumi.{name}.yaml"))


def wide():
    """Many hosts, long names and a name that would be markup."""
    hosts = {f"h{n}": {"address": f"198.18.0.{n}"} for n in range(1, 51)}
    long = "a-very-long-host-name.example.org"
    hosts[long] = {"address": "2001:db8:0:1111:2222:3333:4444:5555", "underlay": {"address": "198.18.0.77"}}
    return {
        "hosts": hosts,
        "peers": {"router": {"address": "198.18.0.99"}},
        "segments": {
            "app": {
                "subnets": ["10.10.0.0/16", "fd00:10::/64"],
                "addresses": {"h1": ["10.10.0.1", "fd00:10::1"]},
                "tunnels": {"mesh": {"kind": "vxlan", "vni": 42, "endpoints": [*hosts, "router"]}},
                "dhcp": {"host": "h1", "masquerade": True},
                "containers": {
                    f"container-number-{n}": {"host": f"h{n % 5 + 1}", "address": f"10.10.1.{n}"} for n in range(1, 20)
                },
            },
            "pairs": {
                "hosts": ["h1", "h2", "h3"],
                "tunnels": {"p": {"kind": "gretap", "topology": "pairs", "endpoints": [["h1", "h2"], ["h2", "h3"]]}},
            },
            "hub": {
                "hosts": ["h1", "h2", long],
                "tunnels": {"star": {"kind": "gretap", "topology": "hub", "hub": "h2", "key": 7}},
            },
        },
    }


CASES = {"demo": stack, "doc-001-encrypted": stack, "doc-002-v4": stack, "wide": lambda _: made(wide())}


@pytest.mark.parametrize("name", CASES)
def test_what_a_browser_shows(name, tmp_path):
    plan, checked = CASES[name](name)
    found = looked_at(graph.html("overlay/test", plan, checked), tmp_path, name)
    assert found["fetched"] == 0
    texts = [text for text, _ in found["texts"]]
    wanted = [*checked.hosts, *(host.address for host in checked.hosts.values())]
    for segment, row in plan.segments.items():
        wanted += [f"segment {segment}: MTU {row['mtu']}", *row["subnets"]]
        wanted += [row["bridge"]] if row["bridge"] else []
        wanted += [address for addresses in row["addresses"].values() for address in addresses]
        wanted += [f"encrypted by {row['encryption']}"] if "encryption" in row else []
        for container, its in plan.containers.get(segment, {}).items():
            wanted += [container, its["address"]]
        for tunnel, its in row["tunnels"].items():
            kind = f"{tunnel}: {its['kind']}, {its['topology']}"
            assert any(text.startswith(kind) for text in texts), kind
    assert [text for text in wanted if text not in texts] == []
    for _, place in found["texts"]:
        assert place[2] > place[0]
        assert place[3] > place[1], "seen"
        assert found["svg"][0] <= place[0], "within the picture"
        assert place[2] <= found["svg"][2] + 0.5
        assert place[3] <= found["svg"][3] + 0.5
    for (a, at), (b, there) in itertools.combinations(found["texts"], 2):
        assert apart(at, there), f"{a!r} lies upon {b!r}"
    for at, there in itertools.combinations(found["boxes"], 2):
        assert apart(at, there)
    for text, at in found["texts"]:
        # A text is within one box or outside of all.
        cut = [box for box in found["boxes"] if not apart(at, box) and not (box[0] <= at[0] and at[2] <= box[2])]
        assert not cut, text


def test_the_page_of_verify(tmp_path):
    plan, checked = stack("demo")
    cells = {
        "h1": {"h2": Cell(True, 0.25), "h3": Cell(False, 0.5, "a reason <b> & more")},
        "h2": {"h1": Cell(True), "h3": Cell(None, why="h3 was not asked")},
    }
    cells["h3"] = {"h1": Cell(None, why="h3 was not asked"), "h2": Cell(None, why="h3 was not asked")}
    checks = [Check("DHCP", True, "fine"), Check("DNS", False, "no <answer>"), Check("NAT", None, "nobody")]
    segments = {"app": Segment(1450, ["h1", "h2", "h3"], cells, checks), "one": Segment(1450, ["h1"], {"h1": {}}, [])}
    page = graph.verified("overlay/demo", plan, checked, segments, ["h3: 198.18.0.13 is not reached: timed out"])
    assert looked_at(page, tmp_path, "verify")["fetched"] == 0
    (tmp_path / "as-it-is.html").write_text(page)
    assert 'id="found"' not in browsed(tmp_path / "as-it-is.html")
    assert "<title>overlay/demo: verify</title>" in page
    assert '<td class="good">0.25</td><td class="bad" title="a reason &lt;b&gt; &amp; more">fails</td>' in page
    assert '<td class="good">ok</td>' in page
    assert page.count('<td class="unknown" title="h3 was not asked">?</td>') == 3
    assert "<li>h1 -&gt; h3: a reason &lt;b&gt; &amp; more</li>" in page
    assert '<tr><th>DNS</th><td class="bad">fails</td><td class="text">no &lt;answer&gt;</td></tr>' in page
    assert "<p>One host alone: there is no pair to try.</p>" in page
    assert "<li>h3: 198.18.0.13 is not reached: timed out</li>" in page
    assert "<svg" in page


@pytest.mark.parametrize("name", STACKS)
def test_every_stack_has_a_picture(name):
    plan, checked = stack(name)
    picture = graph.svg("overlay/test", plan, checked)
    root = ET.fromstring(picture)  # noqa: S314 - ours
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert set(checked.hosts) <= set(texts)
    page = graph.html("overlay/test", plan, checked)
    for text in (picture, page):
        assert not re.search(r"<script|https?://(?!www\.w3\.org/2000/svg)|url\(|@import", text)
    assert "default-src 'none'" in page
    mermaid = graph.mermaid(plan, checked)
    assert mermaid.startswith("flowchart TB\n")
    ids = re.findall(r"^\s+(?:subgraph )?(n\d+)(?=[\[({])", mermaid, re.MULTILINE)
    assert len(ids) == len(set(ids))
    for line in re.findall(r"^  (n\d+) -.*- (n\d+)$", mermaid, re.MULTILINE):
        assert set(line) <= set(ids)
    assert mermaid.count("subgraph") == mermaid.count("  end\n")


def test_markup_in_a_name_is_text():
    title = "</title><script>alert(1)</script>&\"'\x07"
    plan, checked = stack("demo")
    for text in (graph.svg(title, plan, checked), graph.html(title, plan, checked)):
        assert "<script" not in text
        assert "\x07" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#x27;\N{REPLACEMENT CHARACTER}" in text
    assert graph._quoted(['a "b" <c> #d']) == '"a #38;quot;b#38;quot; #38;lt;c#38;gt; #35;d"'


def test_a_hub_and_pairs_have_lines_of_their_own():
    plan, checked = made(wide())
    picture = graph.svg("t", plan, checked)
    labels = re.findall(r">(?:p|star|mesh): [^<]*<", picture)
    assert labels == [
        ">mesh: vxlan, mesh, VNI 42<",
        ">p: gretap, pairs (h1-h2)<",
        ">p: gretap, pairs (h2-h3)<",
        ">star: gretap, hub<",
    ]
    assert picture.count('r="6"') == 1, "the hub's dot is larger"
    assert "router" in picture


def test_two_hubs_are_named_and_both_have_the_larger_dot():
    raw = wide()
    raw["segments"]["hub"]["tunnels"]["star"] = {"kind": "gretap", "topology": "hub", "hubs": ["h2", "h1"], "key": 7}
    plan, checked = made(raw)
    picture = graph.svg("t", plan, checked)
    assert ">star: gretap, hub h2 (standby h1)<" in picture
    assert picture.count('r="6"') == 2
    assert "star: gretap, hub h2 (standby h1)" in graph.mermaid(plan, checked)


def test_pictures_stay_small():
    plan, checked = made(wide())
    assert len(graph.html("t", plan, checked)) < 120_000


# -- the command -----------------------------------------------------------------------------


def overlay(*words):
    return CliRunner().invoke(cli.app, ["graph", *words], prog_name="overlay")


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        ([], "<svg "),
        (["--format", "mermaid"], "flowchart TB"),
        (["--format", "html"], "<!DOCTYPE html>"),
        (["--json"], '{\n  "segments"'),
    ],
)
def test_the_forms(words, begins):
    done = overlay("--stack", "demo", *words)
    assert done.exit_code == 0
    assert done.output.startswith(begins)


@pytest.mark.parametrize(
    ("name", "begins"), [("t.svg", "<svg "), ("t.mmd", "flowchart TB"), ("t.html", "<!DOCTYPE html>"), ("t", "<svg ")]
)
def test_the_form_follows_the_file(tmp_path, name, begins):
    done = overlay("--stack", "demo", "-o", str(tmp_path / name))
    assert (done.exit_code, done.output) == (0, "")
    assert (tmp_path / name).read_text().startswith(begins)


def test_what_is_wrong(tmp_path):
    done = overlay("--stack", "demo", "--format", "png")
    assert (done.exit_code, done.output) == (1, "--format: unknown form 'png'; known are html, mermaid and svg\n")
    path = tmp_path / "no" / "t.svg"
    done = overlay("--stack", "demo", "-o", str(path))
    assert done.exit_code == 1
    assert done.output == f"{path}: cannot be written (No such file or directory); name another file\n"
