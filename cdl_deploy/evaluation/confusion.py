"""Which class is taken for which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
"""[C, C] images: row the true class, column the class that the model named."""


@dataclass(frozen=True)
class Mistake:
    """One class taken for another."""

    true: int
    """Position of the class that is in the images."""
    named: int
    """Position of the class that the model named."""
    images: int
    """How often."""
    share: float
    """Of the images of the true class, in percent."""


def confusion_matrix(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> Counts:
    """Images by true class (row) and named class (column); `labels` and `predicted` [n] are positions below `classes`.

    As `sklearn.metrics.confusion_matrix` counts.
    """
    flat = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def recalls(confusion: Counts) -> list[float | None]:
    """Percent of each class's images that are named right: its accuracy. None for a class without images."""
    return _shares(confusion, confusion.sum(axis=1))


def precisions(confusion: Counts) -> list[float | None]:
    """Percent right of the images that the model names each class for. None for a class it never names."""
    return _shares(confusion, confusion.sum(axis=0))


def worst_mistakes(confusion: Counts, most: int) -> list[Mistake]:
    """The `most` mistakes that are made in most images; equal ones in the order of the classes."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    totals = confusion.sum(axis=1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [(int(cell) // len(wrong), int(cell) % len(wrong)) for cell in order]
    return [
        Mistake(true, named, int(wrong[true, named]), 100 * int(wrong[true, named]) / int(totals[true]))
        for true, named in pairs
        if wrong[true, named]
    ]


def _shares(confusion: Counts, totals: NDArray[np.int64]) -> list[float | None]:
    right = np.diagonal(confusion)
    return [100 * int(count) / int(total) if total else None for count, total in zip(right, totals, strict=True)]
