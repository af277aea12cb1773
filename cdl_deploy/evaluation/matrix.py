"""The accuracy matrix of a run, measured again on its exported graphs, beside the one that training measured.

Row i holds the accuracies, in percent, of the model exported after task i on the test images of tasks 1 to i.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.data.images import ByteArray, crop_offset
from cdl_deploy.data.labelled import Item
from cdl_deploy.errors import DataError
from cdl_deploy.evaluation.outputs import model_outputs
from cdl_deploy.evaluation.predictions import Unreadable
from cdl_deploy.runtime.classifier import Classifier

Matrix = Sequence[Sequence[float]]


@dataclass(frozen=True)
class TaskTest:
    """Test images of one task."""

    items: Sequence[Item]
    labels: Sequence[int]
    """Positions among the logits."""
    kept: bool = False
    """Whether these are the few images that the run keeps, because the folder they came from is gone or has changed."""


@dataclass(frozen=True)
class Difference:
    """Where two matrices differ most."""

    points: float
    """Measured on the exported graph minus recorded by training."""
    after_task: int
    test_task: int
    images: int
    """Test images of that task."""


def accuracy_row(
    classifier: Classifier,
    tests: Sequence[TaskTest],
    batch_size: int = 32,
    workers: int | None = None,
    on_images: Callable[[int], None] = lambda done: None,
) -> tuple[list[float], list[Unreadable]]:
    """Percent right on each task's images, choosing among all classes of the model, and images that cannot be read.

    `on_images` is told how many images are done. Raises DataError for a task without a readable image.
    """
    row: list[float] = []
    unreadable: list[Unreadable] = []
    done = 0
    for number, test in enumerate(tests, 1):
        right = count = 0
        outputs = model_outputs(classifier.prepare, classifier.probabilities, test.items, batch_size, workers)
        for label, output in zip(test.labels, outputs, strict=True):
            if output.values is None:
                unreadable.append(Unreadable(output.path, output.error or "unreadable"))
            else:
                right, count = right + (int(output.values.argmax()) == label), count + 1
            done += 1
            on_images(done)
        if not count:
            raise DataError(f"task {number} has no test image that can be read")
        row.append(100 * right / count)
    return row, unreadable


def largest_difference(measured: Matrix, recorded: Matrix, images: Sequence[int]) -> Difference:
    """The cell where the two differ most, the first of equal ones; `images`: test images of each task."""
    cells = [
        Difference(value - other, i, j, images[j - 1])
        for i, (row, others) in enumerate(zip(measured, recorded, strict=True), 1)
        for j, (value, other) in enumerate(zip(row, others, strict=True), 1)
    ]
    return max(cells, key=lambda cell: abs(cell.points))


def surrounded(pixels: NDArray[Any], resize: int) -> ByteArray:
    """Preprocessed pixels [3, height, width] uint8 as an image [resize, resize, 3] that preprocessing leads back to.

    Its shorter edge is what preprocessing resizes to, so nothing is resized, and its centre crop is `pixels`.
    """
    side = max(resize, *pixels.shape[1:])
    image = np.zeros((side, side, 3), dtype=np.uint8)
    top, left = (crop_offset(side, size) for size in pixels.shape[1:])
    image[top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels.transpose(1, 2, 0)
    return image
