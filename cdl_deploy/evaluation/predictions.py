"""What a model predicts for images whose classes are known, reduced to a few numbers an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.data.labelled import LabelledImages
from cdl_deploy.errors import DataError
from cdl_deploy.evaluation.outputs import ImageOutput
from cdl_deploy.runtime.interface import Interface

OnImage = Callable[[int, int], None]
"""Called with (images done, images in all)."""


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read, and why."""

    path: str
    error: str


@dataclass(frozen=True)
class ImagePredictions:
    """One entry an image that could be read, in order; classes are positions among the model's."""

    images: NDArray[np.int64]
    """Which image each entry is about: its position among all that were given."""
    labels: NDArray[np.int64]
    """The true class."""
    predicted: NDArray[np.int64]
    """The most probable class."""
    confidence: NDArray[np.float64]
    """Its probability, 0 to 1."""
    within_task: NDArray[np.int64]
    """The most probable of the classes that the true class's task taught."""
    among: NDArray[np.int64]
    """The most probable of the classes that were to choose among; `predicted` where nothing was said."""
    unreadable: tuple[Unreadable, ...]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each image was classified right."""
        result: NDArray[np.bool_] = self.predicted == self.labels
        return result


def collect_predictions(
    interface: Interface,
    images: LabelledImages,
    outputs: Iterable[ImageOutput],
    among: Sequence[int] | None = None,
    on_image: OnImage = lambda done, total: None,
) -> ImagePredictions:
    """Read `outputs`, the probabilities for each of `images`, whose classes the model must know.

    `among`: positions of the classes to choose among for `ImagePredictions.among`. Of equal probabilities the first
    class wins, as in `numpy.argmax`. Raises DataError where no image can be read.
    """
    position = {name: index for index, name in enumerate(interface.classes)}
    tasks = np.array(interface.task_numbers)
    own = {number: np.flatnonzero(tasks == number) for number in set(interface.task_numbers)}
    chosen = np.arange(len(interface.classes)) if among is None else np.array(among, dtype=np.int64)
    rows: list[tuple[int, int, int, int, int]] = []
    confidence: list[float] = []
    unreadable: list[Unreadable] = []
    for number, (name, output) in enumerate(zip(images.names, outputs, strict=True)):
        if output.values is None:
            unreadable.append(Unreadable(output.path, output.error or "unreadable"))
        else:
            label, values = position[name], output.values
            best, task = int(values.argmax()), own[interface.task_numbers[label]]
            rows.append((number, label, best, int(task[values[task].argmax()]), int(chosen[values[chosen].argmax()])))
            confidence.append(float(values[best]))
        on_image(number + 1, len(images.items))
    if not rows:
        raise no_image(images, unreadable)
    which, labels, predicted, within_task, best_among = np.array(rows, dtype=np.int64).T
    return ImagePredictions(which, labels, predicted, np.array(confidence), within_task, best_among, tuple(unreadable))


def no_image(images: LabelledImages, unreadable: Sequence[Unreadable]) -> DataError:
    """The error for images of which none can be read."""
    first = unreadable[0].error if unreadable else "there are none"
    return DataError(f"{images.source} has no image that can be read: {first}")
