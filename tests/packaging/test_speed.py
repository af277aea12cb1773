"""tests/slow.txt names tests that there are, and is written from measured times."""

from __future__ import annotations

import json
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
        if path.is_dir():
            path /= "conftest.py"
        if not path.exists() or not re.search(
            rf"^ *def {re.escape(function.split('::')[-1])}\(", path.read_text(), re.M
        ):
            gone.append(name)
    assert not gone, "tests/slow.txt names tests that are gone: take them out, or run make slow-tests"


def test_fixtures_of_the_whole_session_are_measured(request: pytest.FixtureRequest) -> None:
    told = [it.plugin for it in request.session.ihook.pytest_fixture_setup.get_hookimpls()]
    assert speed in told


def test_the_cheapest_that_fit_the_budget_are_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "LIST", tmp_path / "slow.txt")
    monkeypatch.setattr(speed, "BUDGET", 6.0)
    lines = [
        ("t.py::quick", 0.9, []),
        ("t.py::one[a]", 0.7, []),  # its fixture
        ("t.py::one[a]", 0.8, []),
        ("t.py::one[b]", 0.1, []),
        *((f"t.py::many[{i}::x]", 1.0, []) for i in range(4)),
        # Two that share a folder of 2 s: paid once, and each of them costs 1.1.
        *((f"t.py::reads_{i}", 0.1, ["made_once::folder"]) for i in range(2)),
        ("made_once::folder", 2.0, []),
        # A fixture that asks for a folder.
        ("t.py::made", 0.1, []),
        ("t.py::made", 0.0, ["made_once::other"]),
        ("made_once::other", 2.5, []),
        ("t.py::reads_made", 0.0, ["t.py::made"]),
        # Alone with what it asks for, which another worker made as well.
        ("u.py::alone", 0.1, ["u.py::fixture"]),
        *(("u.py::fixture", seconds, []) for seconds in (2.9, 3.0)),
    ]
    times = tmp_path / "times.jsonl"
    times.write_text("".join(json.dumps(line) + "\n" for line in lines))
    speed.write_list(times)
    assert speed.read_list() == {
        "t.py::many": 4.0,
        "u.py::fixture": 3.0,
        "u.py::alone": 0.1,
        "t.py::reads_made": 0.0,
    }
    assert "made_once" not in speed.LIST.read_text(), "collection cannot see who asks for a folder"
    assert "The others take 5 s, of 6." in speed.LIST.read_text()


def test_time_is_that_of_the_innermost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    with monkeypatch.context() as patch:  # this test may itself be measured
        patch.setenv(speed.TIMES, str(tmp_path / "times.jsonl"))
        patch.setattr(speed, "_seconds", lambda: float(next(clock)))
        patch.setattr(speed, "_open", [])
        with speed.measured("outer", ["shared"]), speed.measured("shared"):
            speed.asks_for("folder")
    lines = [json.loads(line) for line in (tmp_path / "times.jsonl").read_text().splitlines()]
    assert lines == [["shared", 0.0, ["folder"]], ["shared", 1.0, []], ["outer", 2.0, ["shared"]]]


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
