"""Which task's prompts the images of each task, or of each class, select: the mean of the model's `task_scores`.

Where the images of task 1 select the prompts of task 3, the features of both are alike, and so are the mistakes: this
is the picture to look at when two classes are confused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.data.images import FloatArray, load_image
from cdl_deploy.data.labelled import Item, LabelledImages, known_images
from cdl_deploy.errors import OptionError
from cdl_deploy.evaluation.outputs import ImageOutput, model_outputs
from cdl_deploy.evaluation.predictions import OnImage, Unreadable, no_image
from cdl_deploy.runtime.bundle import INPUT_NAME, TASK_SCORES_NAME, Bundle, bundle_of
from cdl_deploy.runtime.running import run_graph
from cdl_deploy.runtime.session import open_session
from cdl_deploy.runtime.session_input import fitting_input, in_batches, input_shape

By = Literal["task", "class"]


@dataclass(frozen=True)
class PromptUseRow:
    """The images of one task or of one class."""

    name: str
    """`task 3`, or the name of the class."""
    task: int
    """The task that taught it; 1 is the first."""
    images: int
    scores: tuple[float, ...] | None
    """[T], in percent, summing to 100: how strongly each task's prompts were selected, on average. None without
    images."""


@dataclass(frozen=True)
class PromptUse:
    """A row a task or class of the images, a column a task of the prompts."""

    model: str
    source: str
    by: By
    rows: tuple[PromptUseRow, ...]
    unreadable: tuple[Unreadable, ...]
    left_out: tuple[str, ...]
    """Classes in the data that the model does not know."""

    @property
    def own_task(self) -> float:
        """How strongly images select the prompts of their own task: mean over the rows with images, in percent."""
        own = [row.scores[row.task - 1] for row in self.rows if row.scores is not None]
        return sum(own) / len(own)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "own_task": self.own_task}


def check_selects_by_task(bundle: Bundle) -> None:
    """Raise OptionError for a model that selects no task's prompts by the image."""
    method = bundle.method
    if method.task_scores is None:
        raise OptionError(
            f"{bundle.path}: the prompts of {method.continual} belong to no task, "
            "so no image selects a task's: leave --images out"
        )
    if method.select != "in-graph":
        raise OptionError(
            f"{bundle.path}: its prompts were chosen when it was exported ({method.select}) and are the same for "
            "every image: leave --images out, or export with --select in-graph"
        )


def measure_selection(
    path: Path,
    images: LabelledImages,
    by: By = "task",
    *,
    skip_unknown: bool = False,
    batch_size: int = 32,
    workers: int | None = None,
    on_image: OnImage = lambda done, total: None,
) -> PromptUse:
    """Run every image through the model at `path` and average its task scores.

    Each of `workers` threads decodes images and runs the model on them; default: the cores that this process may use.
    `skip_unknown`: leave images of classes out that the model does not know; otherwise they are a DataError.
    Raises OptionError for a model that selects no task's prompts, DataError where no image can be read.
    """
    session = open_session(path, threads=1)
    bundle = bundle_of(session, path)
    check_selects_by_task(bundle)
    only, image_size = input_shape(session, bundle.preprocessing)
    known = known_images(images, bundle.classes, skip_unknown, str(path))

    def prepare(item: Item) -> NDArray[Any]:
        return fitting_input(load_image(item), bundle.preprocessing, image_size)

    def run(batch: NDArray[Any]) -> FloatArray:
        def scores(rows: NDArray[Any]) -> list[FloatArray]:
            return run_graph(path, session, [TASK_SCORES_NAME], {INPUT_NAME: rows}, len(rows))

        return in_batches(batch, only, scores)[0]

    outputs = model_outputs(prepare, run, known.items, batch_size, workers)
    return collect_selection(bundle, known, outputs, by, on_image)


def collect_selection(
    bundle: Bundle,
    images: LabelledImages,
    outputs: Iterable[ImageOutput],
    by: By = "task",
    on_image: OnImage = lambda done, total: None,
) -> PromptUse:
    """Average `outputs`, the task scores for each of `images`, whose classes the model must know.

    Raises DataError where no image can be read.
    """
    position = {name: index for index, name in enumerate(bundle.classes)}
    of_class = np.array(bundle.task_numbers)
    sums = np.zeros((len(bundle.classes), len(bundle.tasks)))
    counts = np.zeros(len(bundle.classes), dtype=np.int64)
    unreadable: list[Unreadable] = []
    for number, (name, output) in enumerate(zip(images.names, outputs, strict=True)):
        if output.values is None:
            unreadable.append(Unreadable(output.path, output.error or "unreadable"))
        else:
            sums[position[name]] += output.values
            counts[position[name]] += 1
        on_image(number + 1, len(images.items))
    if not counts.sum():
        raise no_image(images, unreadable)
    if by == "class":
        groups = [(name, bundle.task_numbers[index], [index]) for index, name in enumerate(bundle.classes)]
    else:
        groups = [
            (f"task {number}", number, np.flatnonzero(of_class == number).tolist())
            for number in range(1, len(bundle.tasks) + 1)
        ]
    rows = []
    for name, task, members in groups:
        count = int(counts[members].sum())
        scores = tuple((100 * sums[members].sum(axis=0) / count).tolist()) if count else None
        rows.append(PromptUseRow(name, task, count, scores))
    return PromptUse(str(bundle.path), images.source, by, tuple(rows), tuple(unreadable), images.left_out)
