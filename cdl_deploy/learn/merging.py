"""Devices that learned different things from one base become one model, as if one had seen the images of all.

Base and additions are kept apart in the statistics, so nothing is counted twice: models are of one base if its sums
are the same to the last bit, and an addition that two of them hold, again to the last bit, is one. What is merged may
be merged again. A device that has forgotten a class, or that has learned more often than additions are kept apart, has
a base of its own: it can no longer be merged with the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cdl_deploy.closed_form.history import History
from cdl_deploy.closed_form.statistics import Statistics
from cdl_deploy.closed_form.statistics_file import StoredStatistics, part_digest
from cdl_deploy.learn.errors import LearnError
from cdl_deploy.learn.names import check_names
from cdl_deploy.learn.state import State, left_of
from cdl_deploy.runtime.bundle import Bundle

Place = tuple[Path, Bundle, StoredStatistics, State]
"""File, what it says, its statistics as read, and its state now."""


def merged(places: Sequence[Place], as_new: bool = False) -> State:
    """The state of all: the base once, then the additions of each, in the order given. Raises `LearnError`."""
    path, bundle, stored, state = places[0]
    base = part_digest(state.history.base)
    for other_path, other_bundle, other_stored, other in places[1:]:
        assert bundle.features is not None
        assert other_bundle.features is not None
        if other_bundle.features.sha256 != bundle.features.sha256 or other_stored.features != stored.features:
            raise LearnError(
                f"{path} and {other_path} compute different features, so what they learned cannot be added up: "
                "merge models that come from one exported file"
            )
        if other_stored.rule != stored.rule:
            raise LearnError(
                f"{path} and {other_path} have heads of different kinds: export both with the same options"
            )
        if part_digest(other.history.base) != base:
            raise LearnError(
                f"{path} and {other_path} did not learn from the same base: one of them was exported from more "
                "images, has forgotten a class, or has learned too often since; merge earlier, or forget after merging"
            )
    additions: dict[str, Statistics] = {}
    for _, _, _, other in places:
        for addition in other.history.additions:
            additions.setdefault(part_digest(addition), addition)
    history = History(state.history.base, tuple(additions.values()), max(1, len(additions)))
    tasks = left_of(state.tasks, history.base.classes)
    known = set(history.base.classes)
    for addition in history.additions:
        new = tuple(name for name in addition.classes if name not in known)
        check_names(new, tuple(known), as_new)
        if new:
            tasks, known = (*tasks, new), known | set(new)
    before = next((it.before for _, _, _, it in places if it.before is not None), None)
    return State(history, tasks, before)
