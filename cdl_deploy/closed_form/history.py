"""The last additions kept apart, so that they can be taken back exactly: bit by bit, not by subtracting.

A floating-point sum cannot be undone by subtracting: (a + b) − b is not a in its last digits. So the sums of the last
`keep` additions stay apart, and what a head is solved from is their total, always merged in the same order:
((base + first) + second) + …. Taking the last one away leaves the very merges that made the total before it.

Memory: an addition costs D² numbers and D for each class that it has images of (D = 384, 10 classes: 0.6 MB in a file,
as upper triangle). Only `keep` are kept; an older one is merged into the base, so that size and time do not depend on
the number of tasks. An addition that is still apart can also travel alone: two devices that learned from one base send
each other their additions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce

from cdl_deploy.closed_form.errors import StatisticsError
from cdl_deploy.closed_form.statistics import Statistics


@dataclass(frozen=True, eq=False)
class History:
    """A base and the additions since, oldest first; never changed, every operation returns a new one."""

    base: Statistics
    """What cannot be taken back any more."""
    additions: tuple[Statistics, ...] = ()
    """What can, the last one first to go."""
    keep: int = 1
    """How many additions are kept apart."""

    def __post_init__(self) -> None:
        if self.keep < 0 or len(self.additions) > self.keep:
            raise StatisticsError(
                f"{len(self.additions)} additions are kept apart, expected at most {self.keep}, and not below zero"
            )

    @cached_property
    def total(self) -> Statistics:
        """The sums over all images: what heads are solved from."""
        return reduce(Statistics.merge, self.additions, self.base)

    def add(self, addition: Statistics) -> History:
        """With one more addition; the oldest is merged into the base where `keep` of them are apart already."""
        total = self.total.merge(addition)  # refuses what does not fit
        additions = (*self.additions, addition)
        base = self.base
        while len(additions) > self.keep:
            base, additions = base.merge(additions[0]), additions[1:]
        grown = replace(self, base=base, additions=additions)
        grown.__dict__["total"] = total  # the same merges in the same order
        return grown

    def undo(self) -> History:
        """Without the last addition: `total` is what it was before, bit by bit."""
        if not self.additions:
            raise StatisticsError(f"there is no addition to undo: the last {self.keep} can be taken back, each once")
        return replace(self, additions=self.additions[:-1])

    def forget(self, name: str) -> History:
        """Without a class, in the base and in every addition, so that no undo brings it back; see `Statistics`."""
        self.total.forget(name)  # refuses a class that no part knows
        base = self.base.forget(name) if name in self.base.classes else self.base
        before, additions = self.base, []
        for addition in self.additions:
            additions.append(addition.forget_added(name, before))
            before = before.merge(addition)
        return replace(self, base=base, additions=tuple(additions))

    def arranged(self, classes: Sequence[str]) -> History:
        """With the classes of the base, and so of the total, in this order."""
        self.total.arranged(classes)  # refuses an order in which a class is missing
        return replace(self, base=self.base.arranged(classes))
