"""tests/slow.txt names tests that there are, and is written from measured times."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import speed

PROJECT = Path(__file__).resolve().parents[2]


def test_every_slow_test_is_there() -> None:
    gone = []
    for name in speed.read_list():
        file, _, function = name.partition("::")
        path = PROJECT / file
        if not path.exists() or not re.search(
            rf"^ *def {re.escape(function.split('::')[-1])}\(", path.read_text(), re.M
        ):
            gone.append(name)
    assert not gone, "tests/slow.txt names tests that are gone: take them out, or run make slow-tests"


def test_a_test_is_slow_by_one_case_or_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "LIST", tmp_path / "slow.txt")
    times = tmp_path / "times.jsonl"
    lines = ['["t.py::one[a]", 0.7]', '["t.py::one[a]", 0.8]', '["t.py::one[b]", 0.1]', '["t.py::quick", 0.9]']
    times.write_text("\n".join([*lines, *(f'["t.py::many[{i}::x]", 0.5]' for i in range(6))]) + "\n")
    speed.write_list(times)
    assert speed.read_list() == {"t.py::many": 3.0, "t.py::one": 1.6}
    assert "The rest takes 1 s" in speed.LIST.read_text()


class Item:
    """As much of a pytest.Item as is looked at."""

    def __init__(self, nodeid: str, *fixtures: str) -> None:
        self.nodeid, self.fixturenames, self.marked = nodeid, fixtures, False

    def add_marker(self, marker: pytest.MarkDecorator) -> None:
        self.marked = marker == pytest.mark.slow


def test_who_asks_for_a_slow_fixture_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "LIST", tmp_path / "slow.txt")
    speed.LIST.write_text("# …\n    9.0 t.py::made\n    9.0 t.py::test_by_name\n")
    items = [
        Item("t.py::test_by_name[a::b]"),
        Item("t.py::test_by_fixture", "copy", "made"),
        Item("t.py::test_quick", "copy"),
        Item("u.py::test_elsewhere", "made"),
    ]
    speed.pytest_collection_modifyitems(items)  # type: ignore[arg-type]
    assert [item.marked for item in items] == [True, True, False, False]
