"""What new images do to a model, before anyone ships it: accuracy before and after, confusions, odd images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.closed_form.linear_head import LinearHead
from cdl_deploy.closed_form.mahalanobis import mahalanobis
from cdl_deploy.closed_form.statistics import Statistics
from cdl_deploy.closed_form.temperature import softmax
from cdl_deploy.learn.addition import Rows

NEAREST = 3
"""Classes that are named as the nearest ones."""


@dataclass(frozen=True)
class NearClass:
    """A class, and how far its mean is."""

    name: str
    distance: float
    """In standard deviations of the images of a class, along the line between the means."""


@dataclass(frozen=True)
class AddedClass:
    """One class of the addition."""

    name: str
    new: bool
    images: int
    nearest: tuple[NearClass, ...]
    taken_for: dict[str, int]
    """Held-out images of this class that are called something else, by what; without held-out images, those learned."""
    taken_from: dict[str, int]
    """Held-out images of other classes that are called by this name now, by their class."""


@dataclass(frozen=True)
class OddImage:
    """An image that does not look like its class, even to the model that has learned it."""

    name: str
    label: str
    looks_like: str
    probability: float


@dataclass(frozen=True)
class Review:
    """What a person should know."""

    classes: tuple[AddedClass, ...]
    odd: tuple[OddImage, ...]
    held_out: int
    """Held-out images of the classes that were known before."""
    before: float | None
    """Percent of them that were named right by the old model."""
    after: float | None
    """By the new one."""
    held_out_new: int
    """Held-out images of new classes."""
    new: float | None
    """Percent of them that are named right."""

    @property
    def drop(self) -> float | None:
        """Points that the classes known before lose; negative where they gain."""
        return None if self.before is None or self.after is None else self.before - self.after

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "drop": self.drop}


def review(
    before: LinearHead,
    after: LinearHead,
    total: Statistics,
    addition: Statistics,
    added: Rows,
    held_out: Rows | None = None,
    shrinkage: float | None = None,
) -> Review:
    """Compare the head before an addition with the one after it, of which `total` are the sums."""
    known = set(before.classes)
    learned = after.scores(added.features)
    right_before = right_after = right_new = None
    old = fresh = np.zeros(0, bool)
    called: NDArray[np.str_] = np.array([], str)
    if held_out is not None:
        labels = np.array(held_out.labels)
        old = np.array([label in known for label in held_out.labels], bool)
        fresh = np.array([label in set(after.classes) - known for label in held_out.labels], bool)
        called = _named(after, held_out.features)
        right_before = _percent(_named(before, held_out.features[old]) == labels[old])
        right_after, right_new = (_percent(called[of] == labels[of]) for of in (old, fresh))
    apart = mahalanobis(total, shrinkage).means
    said = np.array(after.classes)[learned.argmax(axis=1)]
    classes = []
    for name, count in zip(addition.classes, addition.counts, strict=True):
        own, judged = (added.labels, said) if held_out is None else (held_out.labels, called)
        pairs = list(zip(own, map(str, judged), strict=True))
        far = np.linalg.norm(apart - apart[after.classes.index(name)], axis=1)
        order = [int(at) for at in np.argsort(far, kind="stable") if after.classes[at] != name][:NEAREST]
        classes.append(
            AddedClass(
                name,
                name not in known,
                int(count),
                tuple(NearClass(after.classes[at], float(far[at])) for at in order),
                _counted(other for label, other in pairs if label == name != other),
                _counted(label for label, other in pairs if other == name != label) if held_out is not None else {},
            )
        )
    sure = softmax(learned).max(axis=1)
    odd = tuple(
        OddImage(added.names[at], added.labels[at], str(said[at]), float(sure[at]))
        for at in np.argsort(-sure, kind="stable")
        if said[at] != added.labels[at]
    )
    return Review(tuple(classes), odd, int(old.sum()), right_before, right_after, int(fresh.sum()), right_new)


def _named(head: LinearHead, features: NDArray[np.floating]) -> NDArray[np.str_]:
    found: NDArray[np.str_] = np.array(head.classes)[head.scores(features).argmax(axis=1)]
    return found


def _percent(right: NDArray[np.bool_]) -> float | None:
    return 100 * float(right.mean()) if len(right) else None


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())
