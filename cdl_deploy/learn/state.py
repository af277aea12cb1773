"""What a model knows, and what it says about itself, from one addition to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cdl_deploy.closed_form.history import History
from cdl_deploy.closed_form.statistics import Statistics
from cdl_deploy.closed_form.statistics_file import part_digest
from cdl_deploy.learn.errors import LearnError
from cdl_deploy.learn.opened import Opened
from cdl_deploy.runtime.bundle import MAX_TOP_K, Bundle
from cdl_deploy.runtime.bundle_parts import BeforeLearning, StatisticsFile
from cdl_deploy.runtime.threshold import Threshold

KEEP = 32
"""Additions that are kept apart, and can be taken back; of more, the oldest becomes part of the base."""
Tasks = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, eq=False)
class State:
    """Never changed: every operation returns a new one."""

    history: History
    tasks: Tasks
    before: BeforeLearning | None
    """What the file says without any addition; None where that is to be found anew."""

    @classmethod
    def of(cls, opened: Opened) -> State:
        """As the file is."""
        bundle, history = opened.bundle, opened.stored.history
        before = bundle.before_learning if history.additions else as_it_is(bundle)
        return cls(history, bundle.tasks, before)

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return self.history.total.classes

    def add(self, addition: Statistics) -> State:
        """With one more addition. Its new classes are a task; without new ones there is none."""
        digest = part_digest(addition)
        if any(part_digest(earlier) == digest for earlier in self.history.additions):
            raise LearnError("these very images have been added already, and would count twice: nothing was changed")
        kept = min(KEEP, len(self.history.additions) + 1)
        lost = len(self.history.additions) + 1 > kept
        history = replace(self.history, keep=kept).add(addition)
        new = tuple(name for name in addition.classes if name not in set(self.classes))
        tasks = (*self.tasks, new) if new else self.tasks
        return State(history, tasks, None if lost else self.before)

    def undo(self) -> State:
        """Without the last addition, as if it had never been."""
        if not self.history.additions:
            raise LearnError("there is nothing to undo: no addition of this model is kept apart")
        history = self.history.undo()
        history = replace(history, keep=max(1, len(history.additions)))
        return State(history, left_of(self.tasks, history.total.classes), self.before)

    def forget(self, name: str) -> State:
        """Without a class, for good: no undo brings it back."""
        if len(self.classes) == 1 and name in self.classes:
            raise LearnError(f"class '{name}' is the only one of this model: without it there is no classifier")
        history = self.history.forget(name)
        tasks = tuple(tuple(other for other in task if other != name) for task in self.tasks)
        return State(history, tasks, None)

    def bundle(self, old: Bundle, statistics: StatisticsFile, threshold: Callable[[], Threshold]) -> Bundle:
        """What the new file says; `old` is what the one before said, `threshold` finds the distance of the unknown."""
        C, D = len(self.classes), self.history.total.dimension
        changed = replace(
            old,
            classes=self.classes,
            tasks=self.tasks,
            parameters=old.parameters + (C - len(old.classes)) * (D + 1),
            top_k=min(MAX_TOP_K, C),
            statistics=statistics,
        )
        before = self.before
        if before is not None and not self.history.additions:
            return replace(
                changed,
                method=replace(old.method, task_scores=before.task_scores),
                accuracy=before.accuracy,
                parity=before.parity,
                unknown_threshold=before.unknown_threshold,
                unknown_rule=before.unknown_rule,
                before_learning=None,
            )
        found, how = threshold()
        selected = old.method.task_scores if len(self.tasks) == len(old.tasks) else None
        return replace(
            changed,
            method=replace(old.method, task_scores=selected),
            accuracy=None,
            parity=None,
            unknown_threshold=found,
            unknown_rule=how,
            before_learning=before if self.history.additions else None,
        )


def as_it_is(bundle: Bundle) -> BeforeLearning:
    """What a file without additions says, for the day when they are taken back."""
    assert bundle.statistics is not None
    return BeforeLearning(
        bundle.statistics,
        bundle.accuracy,
        bundle.parity,
        bundle.unknown_threshold,
        bundle.unknown_rule,
        bundle.method.task_scores,
    )


def left_of(tasks: Tasks, classes: tuple[str, ...]) -> Tasks:
    """Tasks of these classes; those that have lost all of theirs are gone."""
    known = set(classes)
    rest = [(task, tuple(name for name in task if name in known)) for task in tasks]
    return tuple(left for task, left in rest if left or not task)
