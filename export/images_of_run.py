"""The images that an export measures with: some to calibrate on, and held-out ones to count right answers on.

The images of a run may be gone when it is exported. What is there is used, in this order: the folder given, the run's
own training images, the held-out images that the run keeps; whoever asks is told which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from cdl_deploy.data.folder import images_below
from cdl_deploy.data.images import USUAL_SUFFIXES, load_image, to_tensor
from cdl_deploy.data.labelled import Item
from cdl_deploy.data.preprocessing import Preprocessing
from cdl_deploy.errors import DataError
from cdl_deploy.export.parity import graph_input
from cdl_deploy.export.quantise import Feeds
from cdl_deploy.run.record import RunRecord
from cdl_deploy.runtime.bundle import INPUT_NAME
from cdl_deploy.training.checkpoint import load_heldout
from cdl_deploy.training.data.task_data import TaskData
from cdl_deploy.training.data.transforms import evaluation_transform, in_views
from cdl_deploy.training.run_directory import RunDirectory

CALIBRATION_IMAGES = 128
"""More change the ranges little: they are the extremes of some 25,000 tokens of a ViT at 224."""
TEST_IMAGES = 1000
BATCH = 8

T = TypeVar("T")


@dataclass(frozen=True)
class CalibrationImages:
    """Images for `calibrate`, each decoded when its turn comes: photographs in full size take much memory."""

    items: Sequence[Item]
    preprocessing: Preprocessing
    source: str
    """Which images they are, for the report."""

    def __iter__(self) -> Iterator[Feeds]:
        """Whole images, which a graph that preprocesses resizes itself; they differ in size, so each is a batch."""
        for item in self.items:
            image = load_image(item)
            graph = self.preprocessing.input == "image"
            yield {INPUT_NAME: (np.asarray(image) if graph else to_tensor(image, self.preprocessing))[None]}


@dataclass(frozen=True)
class HeldOut:
    """Held-out images of every task, as the graph takes them."""

    tasks: list[tuple[npt.NDArray[np.generic], list[int]]]
    """Inputs [n, …] and labels."""

    @property
    def images(self) -> int:
        """How many there are."""
        return sum(len(labels) for _, labels in self.tasks)

    def __iter__(self) -> Iterator[Feeds]:
        """All of them in small batches, task by task."""
        for inputs, labels in self.tasks:
            for start in range(0, len(labels), BATCH):
                yield {INPUT_NAME: inputs[start : start + BATCH]}


def calibration_images(
    root: Path, record: RunRecord, preprocessing: Preprocessing, folder: Path | None
) -> CalibrationImages:
    """Up to 128 images, spread evenly over the tasks. Raises DataError for a `folder` without images."""
    if folder is not None:
        items: list[Item] = list(spread(given_images(folder), CALIBRATION_IMAGES))
        return CalibrationImages(items, preprocessing, str(folder))
    data = task_data(root, record)
    trained = [data.kept_training(number) for number in range(1, len(record.tasks) + 1)]
    known, share = set(record.known_positions), CALIBRATION_IMAGES // len(trained) or 1
    own = [[task.items[i] for i, label in enumerate(task.labels) if label in known] for task in trained if task]
    items = [item for task in own for item in spread(task, share)]
    if items:
        return CalibrationImages(items, preprocessing, f"training images of {', '.join(_places(record))}")
    images, labels = load_heldout(root, record)
    images = in_views(images, record.preprocessing.views)[0]
    kept = [image for image, label in zip(images, labels.tolist(), strict=True) if label in known]
    chosen = [image.permute(1, 2, 0).numpy() for image in spread(kept, CALIBRATION_IMAGES)]
    return CalibrationImages(
        chosen, preprocessing, "held-out images that the run keeps, its training images being gone"
    )


def held_out_images(root: Path, record: RunRecord, preprocessing: Preprocessing) -> HeldOut:
    """What the student sees of all held-out images, up to 1,000, where their folders are still there; otherwise of
    those that the run keeps.

    Without those of forgotten classes; labels are columns of the exported file.
    """
    data = task_data(root, record)
    column = {position: place for place, position in enumerate(record.known_positions)}
    transform = evaluation_transform(record.preprocessing.resize_crop)
    share = max(1, TEST_IMAGES // len(record.tasks))
    tasks = []
    for number in range(1, len(record.tasks) + 1):
        test = data.test(number)
        positions = spread([i for i, label in enumerate(test.labels) if label in column], share)
        if not positions:
            continue
        if test.pixels is None:
            pixels = torch.stack([transform(load_image(test.items[i])) for i in positions])
        else:
            pixels = in_views(test.pixels[positions], record.preprocessing.views)[0]
        tasks.append((graph_input(pixels, preprocessing), [column[test.labels[i]] for i in positions]))
    return HeldOut(tasks)


def given_images(folder: Path) -> list[Path]:
    """Image files of `--calibrate` at any depth, sorted. Raises DataError where there are none."""
    if not folder.is_dir():
        raise DataError(f"--calibrate {folder} is no folder: give a folder of images like those the model will see")
    files = images_below(folder)
    if not files:
        raise DataError(f"--calibrate {folder} has no images: expected files ending in {USUAL_SUFFIXES}, at any depth")
    return files


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, at equal distances."""
    return [items[len(items) * i // count] for i in range(count)] if len(items) > count else list(items)


def task_data(root: Path, record: RunRecord) -> TaskData:
    """The images of a run's tasks, from their folders, or from what the run keeps of them."""
    directory = RunDirectory(root)
    return TaskData(
        record.plans,
        record.tasks,
        {},
        directory.load_heldout,
        record.skipped_images,
    )


def _places(record: RunRecord) -> list[str]:
    """Where the tasks' images come from, each place once."""
    return list(dict.fromkeys(task.data for task in record.tasks))
