"""Whatever a stack file holds: a plan that the agents take, or errors in our own words. Never a traceback.

The shipped stacks and all cases are spoilt, in data and in text, by a random generator with a fixed seed, so what fails
here fails again. What was found has become a case in tests/cases.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import functools
import hashlib
import json
import random
import re
from pathlib import Path

import pytest
import yaml

from overlay_agent import document
from overlay_agent.document import DocumentError, Owner
from overlay_components.config import from_pulumi, load_config, read_stack_file
from overlay_components.encryption import with_keys
from overlay_components.errors import ConfigErrors
from overlay_components.plan import make_lock, make_plan
from overlay_components.secrets import Secrets

ROOT = Path(__file__).parents[2]
#: So many stack files in all, half of them spoilt as data, half as text.
FILES, BATCHES = 10_000, 40
OWNER = Owner("overlay", "fuzz", "0")
STACKS = sorted((ROOT / "stacks").glob("Pulumi.*.yaml"))
CASES = sorted((ROOT / "tests" / "cases").glob("*.yaml"))

#: What is put in place of a value or of a key.
ODD = [
    None, True, False, 0, -1, 1, 4095, 65536, 2**24, 2**63, -(2**64), 10**400, 0.5, -0.0, 1e308, float("nan"),
    float("inf"),
    "", " ", "0", "-", "none", "host", "a", "web", "docker:", "%", "{}", "\n", "a\nb", "\x00", "\x1b[31m", "\x7f",
    "\ud800",
    "é", "\uff11\uff12", "\u0664\u0662", "\u202e", "\u200b", "😀", "a" * 15, "a" * 16, "a" * 129, "x" * 5000, "'", '"',
    "`id`", "$(id)", ";", "--",
    "../..", "/", "192.0.2.11", "192.0.2.11/24", "0.0.0.0", "255.255.255.255", "0.0.0.0/0", "10.10.0.0/24", "10.10.0.1",
    "10.10.0.0/33", "10.10.0.0/255.255.255.0", "::", "::/0", "::1", "fe80::1%eth0", 'fe80::1%"\n', "fd00:10::/64",
    "::ffff:192.0.2.1", "ff02::1", "239.1.1.1", "10.10.0.9-10.10.0.5", "1-2", "2-1", "0-99999999999", "tcp/80", "8080",
    "web:80", "[::]:0", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "02:00:5e:00:53:01", "wireguard", "vxlan", "gretap",
    "l2tp", "mesh", "hub", "pairs", "multicast", [], {}, [[]], [{}], {"": None}, {"a": {}}, [None], ["a", "a"], [["a",
    "b"]],
    {"kind": "vxlan"}, {"secure": "v1:x:y"}, {"secure": 7},
]  # fmt: skip
KEYS = [
    None, True, 7, 1.5, "", " ", "a b", "\n", "\x00", "\x1b]0;x\x07", "\ud800", "\u0664", "é", "a.b", "a" * 200, "<<",
    "-",
    "hosts[0]",
]  # fmt: skip
#: What is put into a file's text.
PIECES = [
    "\t", "\n", " ", ":", "- ", "{", "}", "[", "]", "&a ", "*a", "<<: *a\n", "!!python/name:os.system ", "!!binary ",
    "!x ",
    "'", '"', "#", "|\n", ">\n", "? ", "---\n", "...\n", "%YAML 9.9\n", "@", "`", "\x00", "\x07", "\x85", "\u2028",
    "\ufeff",
    "\ud7ff", "é", "[" * 3000, "{a: " * 300, "9" * 5000, "0x", "1e999", ".inf", "2024-01-01", "~", "config:\n",
    "  overlay:hosts: {}\n",
]  # fmt: skip


def keys_of(models):
    """Every word that is a key somewhere: a key in a wrong place is the likeliest mistake."""
    out = set()
    for model in models:
        if isinstance(model, dict):
            out |= {key for key in model if isinstance(key, str)} | keys_of(model.values())
        elif isinstance(model, list):
            out |= keys_of(model)
    return out


@functools.cache
def originals():
    """The stacks to spoil; those that are nested without end are left out, for the sake of this generator."""
    files = [path for path in CASES if path.stem not in ("nested-too-deep", "values-too-many")]
    shipped = [from_pulumi(yaml.safe_load(path.read_text())["config"]) for path in STACKS]
    return shipped + [yaml.safe_load(path.read_text())["stack"] for path in files]


def key_of(host):
    """Its public key, for WireGuard."""
    return base64.b64encode(hashlib.sha256(host.encode()).digest()).decode()


def places(data):
    """Every (container, key) in it."""
    out, left = [], [data]
    while left:
        one = left.pop()
        inner = list(one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ())
        out += [(one, key) for key, _ in inner]
        left += [value for _, value in inner]
    return out


def spoil(rng, raw, words, others):  # noqa: C901, PLR0912 - a list of mistakes
    """The data with one to four mistakes."""
    raw, deep = copy.deepcopy(raw), None
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        found = places(raw)
        if not found:
            return raw
        holder, key = rng.choice(found)
        value = holder[key]
        way = rng.randrange(14)
        if way == 0:
            del holder[key]
        elif way == 1 and isinstance(holder, dict):
            holder[rng.choice(words)] = holder.pop(key)
        elif way == 2 and isinstance(holder, dict):
            holder[rng.choice(KEYS)] = copy.deepcopy(value)
        elif way == 3 and isinstance(holder, list):
            holder.append(copy.deepcopy(value))
        elif way == 4:  # what stands elsewhere
            there, which = rng.choice(places(rng.choice(others)))
            holder[key] = copy.deepcopy(there[which])
        elif way == 5:
            holder[key] = rng.choice(([value], {"a": value}, str(value), [value, value]))
        elif way == 6 and isinstance(value, str) and value:
            at = rng.randrange(len(value))
            put = rng.choice(("", "\n", '"', "%", " ", "é", "\x00", value[at] * 2, "\u0663"))
            holder[key] = value[:at] + put + value[at + 1 :]
        elif way == 7 and type(value) is int:
            holder[key] = rng.choice((-value, value + 1, value * 10**9, value % 2**60 / 2, str(value)))
        elif way in (10, 11, 12):  # right elsewhere, of the same stack or of another: for the planner
            alike = [
                there[which]
                for there, which in places(raw if way < 12 else rng.choice(others))
                if which == key or (type(there[which]) is type(value) and way == 10)
            ]
            holder[key] = copy.deepcopy(rng.choice(alike or [value]))
        elif way == 13 and isinstance(holder, dict):
            holder[rng.choice(("a", "b", "h1", "app", "web", "c2"))] = copy.deepcopy(value)
        elif way == 8:
            deep = (holder, key)
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD))
    if deep and deep[1] in (deep[0] if isinstance(deep[0], dict) else range(len(deep[0]))):
        nested = deep[0][deep[1]]
        for _ in range(rng.choice((3, 25, 50, 5000))):
            nested = [nested] if rng.random() < 0.5 else {"a": nested}
        deep[0][deep[1]] = nested
    return raw


def garble(rng, text):
    """The text with one to four mistakes."""
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        lines = text.splitlines(keepends=True) or [""]
        at = rng.randrange(len(lines))
        way = rng.randrange(7)
        if way == 0:
            del lines[at]
        elif way == 1:
            lines.insert(at, lines[at])
        elif way == 2:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif way == 3:
            lines[at] = rng.choice((" ", "  ", "    ")) + lines[at]
        elif way == 4:
            lines[at] = lines[at].removeprefix("  ")
        text = "".join(lines)
        if way > 4:
            place = rng.randrange(len(text) + 1)
            text = text[:place] + rng.choice(PIECES) + text[place + rng.choice((0, 0, 1, 5)) :]
    return text


@functools.cache
def documents():
    """What the program sends of each of these stacks that can be planned."""
    out = []
    for raw in originals():
        with contextlib.suppress(ConfigErrors):
            plan = planned(raw)
            out += [with_keys(one, {host: key_of(host) for host in plan.documents}) for one in plan.documents.values()]
    return out


def texts_of(data):
    """All texts in it, keys too; of DHCP options, which are one line and no more, none."""
    if isinstance(data, dict):
        inner = [text for key, value in data.items() if key != "options" for text in texts_of(value)]
        return [*(key for key in data if isinstance(key, str)), *inner]
    if isinstance(data, list):
        return [text for value in data for text in texts_of(value)]
    return [data] if isinstance(data, str) else []


def planned(raw):
    """The outcome of `pulumi preview`: the plan's documents as the agents read them; raises ConfigErrors."""
    config = load_config(raw)
    lock = {}
    try:
        plan = make_plan(config, OWNER, lock, Secrets("key"))
    except ConfigErrors as error:
        if not any("run overlay lock" in line for line in error.errors):
            raise
        lock = make_lock(config, OWNER, lock)
        plan = make_plan(config, OWNER, lock, Secrets("key"))
    for raw_document in plan.documents.values():
        document.load(document.dump(with_keys(raw_document, {h: key_of(h) for h in plan.documents})))
    return plan


#: A path in the stack file (or the file and its line), a colon, and a sentence in one line that no terminal obeys.
FORM = re.compile(r"(?:[^\s'\"]|'[^\n]*?(?:'|[.]{3})|\"[^\n]*?(?:\"|[.]{3}))+: \S.*")


def judge_document(lines):
    assert lines
    assert all(": " in line for line in lines), lines


def judge(lines):
    assert lines
    assert len(set(lines)) == len(lines)
    for line in lines:
        assert FORM.fullmatch(line), line
        assert line.isprintable(), line
        assert len(line) < 1000, line
        assert not re.search(r"Traceback|<class |object at 0x|pydantic|Error\(", line), line


@pytest.mark.parametrize("batch", range(BATCHES))
def test_spoilt_stack_files_end_in_listed_errors_or_a_plan(batch, tmp_path):
    rng = random.Random(batch)  # noqa: S311 - the same each time
    stacks = originals()
    words = sorted(keys_of(stacks))
    texts = [path.read_text() for path in STACKS]
    path = tmp_path / "Pulumi.fuzz.yaml"
    ends = {"plan": 0, "errors": 0}
    for number in range(FILES // BATCHES):
        seen = None
        try:
            if number % 2:
                seen = spoil(rng, rng.choice(stacks), words, stacks)
                planned(seen)
            else:
                seen = garble(rng, rng.choice(texts))
                path.write_text(seen, encoding="utf-8", errors="surrogatepass")
                planned(read_stack_file(path))
            ends["plan"] += 1
        except ConfigErrors as error:
            judge(error.errors)
            ends["errors"] += 1
        except Exception as error:
            raise AssertionError(f"{error!r} for {seen!r}"[:3000]) from error
    assert min(ends.values()) > 0, "one half of the outcomes was never seen: the mistakes are too gross, or none"


@pytest.mark.parametrize("batch", range(4))
def test_spoilt_documents_are_refused_by_the_agent_or_harmless(batch):
    rng = random.Random(f"documents {batch}")  # noqa: S311 - the same each time
    sent = documents()
    words = sorted(keys_of(sent))
    ends = {"taken": 0, "refused": 0}
    for _ in range(500):
        raw = spoil(rng, rng.choice(sent), words, sent)
        try:
            text = json.dumps(raw)
        except RecursionError:
            text = "[" * 10_000
        try:
            read = document.load(text)
        except DocumentError as error:
            judge_document(error.errors)
            ends["refused"] += 1
            continue
        ends["taken"] += 1
        for one in texts_of(document.to_json(read)):
            assert not re.search(r"[\s\"'`$;{}\\#]", one.removeprefix("of ")), one
    assert min(ends.values()) > 0
