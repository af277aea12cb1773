"""Which tests are slow: those in slow.txt, by measured processor time. `make test-fast` leaves them out.

    make slow-tests      runs the whole suite, measures every test and writes slow.txt anew

Processor time, with that of child processes, because it is nearly the same on a busy machine. A fixture that a module
makes once is measured by itself: where it is slow, so is every test that asks for it. What the whole session shares
(`small_bundle`) makes no test slow.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("slow.txt")
TIMES = "CDL_TEST_TIMES"
"""Environment variable: a file to which every test adds a line with its name and its seconds."""
SECONDS = 1.0
"""A function with a case that takes so long is slow."""
SECONDS_TOGETHER = 2.5
"""And one whose cases take so long together."""


def read_list() -> dict[str, float]:
    """Seconds by `file::function`."""
    lines = [line.split() for line in LIST.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {name: float(seconds) for seconds, name in lines}


def function_name(nodeid: str) -> str:
    """`file::function` of a test, without its parameters."""
    return nodeid.partition("[")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow.txt, and those that ask for its fixtures."""
    slow = read_list()
    for item in items:
        file = item.nodeid.partition("::")[0]
        asked = [f"{file}::{name}" for name in getattr(item, "fixturenames", ())]
        if any(name in slow for name in (function_name(item.nodeid), *asked)):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Measure a test, where that is asked for."""
    return (yield from _measured(item.nodeid))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> Iterator[None]:
    """Measure a fixture: a test's own counts as the test's, a module's by itself, the session's not at all."""
    if fixturedef.scope == "function":
        return (yield from _measured(request.node.nodeid))
    if fixturedef.scope == "module":
        return (yield from _measured(f"{request.node.nodeid}::{fixturedef.argname}"))
    return (yield)


def _measured(name: str) -> Iterator[None]:
    if TIMES not in os.environ:
        return (yield)
    before = _seconds()
    try:
        return (yield)
    finally:
        with open(os.environ[TIMES], "a", encoding="utf-8") as file:
            file.write(json.dumps([name, _seconds() - before]) + "\n")


def _seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def write_list(times: Path) -> None:
    """Write slow.txt from the lines in `times`."""
    cases: defaultdict[str, float] = defaultdict(float)  # a test and its own fixtures have a line each
    for line in times.read_text(encoding="utf-8").splitlines():
        nodeid, seconds = json.loads(line)
        cases[nodeid] += seconds
    functions: defaultdict[str, list[float]] = defaultdict(list)
    for nodeid, seconds in cases.items():
        functions[function_name(nodeid)].append(seconds)
    slow = {name: sum(all) for name, all in functions.items() if max(all) >= SECONDS or sum(all) >= SECONDS_TOGETHER}
    rows = [f"{seconds:7.1f} {name}" for name, seconds in sorted(slow.items(), key=lambda row: -row[1])]
    rest = sum(cases.values()) - sum(slow.values())
    head = (
        f"# Written by `make slow-tests`: seconds of processor time, all cases together. The rest takes {rest:.0f} s.\n"
    )
    LIST.write_text(head + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_list(Path(os.environ[TIMES]))
