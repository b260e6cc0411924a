"""The order in which test files begin: those that take longest first, so that no worker ends long after the others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from tests import conftest

TESTS = Path(conftest.__file__).parent


def test_the_long_files_are_there():
    assert [name for name in conftest.LONGEST if not (TESTS / name).is_file()] == []


def test_long_files_then_those_of_many_tests():
    first, second = (TESTS / name for name in conftest.LONGEST[:2])
    one, two = TESTS / "one.py", TESTS / "two.py"
    items = [SimpleNamespace(path=path, number=n) for n, path in enumerate([one, two, two, second, first, second])]
    conftest.pytest_collection_modifyitems(items)
    assert [(item.path, item.number) for item in items] == [
        (first, 4), (second, 3), (second, 5), (two, 1), (two, 2), (one, 0),
    ]  # fmt: skip
