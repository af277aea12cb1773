"""Which tests are slow: those in slow.txt, which do not fit a budget of processor time; `make test-fast` is the others.

    make slow-tests      runs the whole suite, measures every test and writes slow.txt anew

Processor time, with that of child processes, because it is nearly the same on a busy machine. What several tests share
(a fixture of a module or of the session, a folder of `made_once`) is measured by itself, with who asks for it, and is
paid once: by the budget where a test that asks for it is in.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("slow.txt")
TIMES = "CDL_TEST_TIMES"
"""Environment variable: a file to which every test adds a line with its name, its seconds and what it asks for."""
BUDGET = 30.0
"""Seconds of processor time of all tests of `make test-fast` and of what they share: the cheapest that fit are in it.

Starting two workers takes 20 s more, and some of what is shared is made by each of them."""
SHARED = 1.0
"""A fixture that takes so long and is not paid is named in slow.txt: new tests that ask for it are slow."""
FOLDER = "made_once::"
"""How the names of folders begin that `made_once` fills."""

_open: list[tuple[str, list[float]]] = []
"""Every measurement that has begun, the innermost last: its name, and seconds of what is measured within."""
elsewhere = 0.0
"""Seconds of processes that this one waited for and that are not its children: see tests/children.py."""
_shared: set[str] = set()
"""`place::name` of the fixtures that were made here and that several tests share; a place is a file, or the folder of
a conftest.py."""


def read_list() -> dict[str, float]:
    """Seconds by `file::function`."""
    lines = [line.split() for line in LIST.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {name: float(seconds) for seconds, name in lines}


def function_name(nodeid: str) -> str:
    """`file::function` of a test, without its parameters."""
    return nodeid.partition("[")[0]


def by_own_name(known: Iterable[str]) -> dict[str, list[str]]:
    """The places of each fixture's name, of many `place::name`."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for name in known:
        place, _, own = name.rpartition("::")
        places[own].append(place)
    return places


def fixtures_of(item: pytest.Item, known: Mapping[str, list[str]]) -> list[str]:
    """Those of `known`, in `by_own_name`'s form, that a test asks for, by way of others too: `place::name`."""
    asked = [(own, place) for own in getattr(item, "fixturenames", ()) for place in known.get(own, ())]
    return sorted(f"{place}::{own}" for own, place in asked if item.nodeid.startswith(place))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow.txt, and those that ask for its fixtures."""
    slow = read_list()
    fixtures = by_own_name(slow)
    for item in items:
        if function_name(item.nodeid) in slow or fixtures_of(item, fixtures):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Measure a test, where that is asked for."""
    with measured(item.nodeid, fixtures_of(item, by_own_name(_shared) if TIMES in os.environ else {})):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> Iterator[None]:
    """Measure a fixture: a test's own counts as the test's, any other by itself."""
    name = request.node.nodeid
    if fixturedef.scope != "function" and fixturedef.baseid:
        name = f"{fixturedef.baseid}::{fixturedef.argname}"
        _shared.add(name)
    with measured(name):
        return (yield)


@contextmanager
def measured(name: str, asks: Iterable[str] = ()) -> Iterator[None]:
    """Add a line about `name`: its seconds, less those of what is measured within, and what it asks for of others."""
    if TIMES not in os.environ:
        yield
        return
    before, within = _seconds(), [0.0]
    _open.append((name, within))
    try:
        yield
    finally:
        _open.pop()
        seconds = _seconds() - before
        if _open:
            _open[-1][1][0] += seconds
        _note(name, seconds - within[0], asks)


def asks_for(name: str) -> None:
    """Note that the test or fixture that is measured now asks for `name`."""
    if _open:
        _note(_open[-1][0], 0.0, [name])


def _note(name: str, seconds: float, asks: Iterable[str]) -> None:
    with open(os.environ[TIMES], "a", encoding="utf-8") as file:
        file.write(json.dumps([name, seconds, list(asks)]) + "\n")


def _seconds() -> float:
    return sum(os.times()[:4]) + elsewhere


def write_list(times: Path) -> None:
    """Write slow.txt from the lines in `times`."""
    lines = [json.loads(line) for line in times.read_text(encoding="utf-8").splitlines()]
    things = {name for _, _, asks in lines for name in asks}
    functions: defaultdict[str, float] = defaultdict(float)  # a test and its own fixtures have a line each
    shared: defaultdict[str, float] = defaultdict(float)
    asked: defaultdict[str, set[str]] = defaultdict(set)
    for nodeid, seconds, asks in lines:
        if nodeid in things or nodeid.startswith(FOLDER):
            shared[nodeid] = max(shared[nodeid], seconds)  # by each worker, once
            asked[nodeid].update(asks)
        else:
            functions[function_name(nodeid)] += seconds
            asked[function_name(nodeid)].update(asks)
    for names in asked.values():  # also what is asked for by what is asked for
        while more := set().union(*(asked[it] for it in names if it in asked)) - names:
            names |= more
    asked = defaultdict(set, {test: asked[test] for test in functions})
    fast, paid = choose(functions, shared, asked)
    unpaid = {it: shared[it] for it in things - paid if shared[it] >= SHARED and not it.startswith(FOLDER)}
    slow = {name: seconds for name, seconds in functions.items() if name not in fast} | unpaid
    rows = [f"{seconds:7.1f} {name}" for name, seconds in sorted(slow.items(), key=lambda row: (-row[1], row[0]))]
    total = sum(functions[name] for name in fast) + sum(shared[name] for name in paid)
    head = (
        "# Written by `make slow-tests`: seconds of processor time, all cases together. "
        f"The others take {total:.0f} s, of {BUDGET:.0f}.\n"
    )
    LIST.write_text(head + "\n".join(rows) + "\n", encoding="utf-8")


def choose(
    functions: Mapping[str, float], shared: Mapping[str, float], asked: Mapping[str, set[str]]
) -> tuple[set[str], set[str]]:
    """The cheapest tests that fit the budget, and the shared things they need.

    A test's price is its own time and its part of what it shares, which is divided among all who ask for it.
    """
    users: defaultdict[str, int] = defaultdict(int)
    for names in asked.values():
        for name in names:
            users[name] += 1
    price = {test: own + sum(shared[it] / users[it] for it in asked[test]) for test, own in functions.items()}
    fast, paid, left = set[str](), set[str](), BUDGET
    for test in sorted(functions, key=lambda it: (price[it], it)):
        cost = functions[test] + sum(shared[it] for it in asked[test] - paid)
        if cost <= left:
            fast.add(test)
            paid |= asked[test]
            left -= cost
    return fast, paid


if __name__ == "__main__":
    write_list(Path(os.environ[TIMES]))
