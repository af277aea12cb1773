"""An int8 model's own sums: its features are not the float model's, so it learns from sums over them alone.

They are taken in one pass of the written file over the training images of every task, where these are still what they
were; from them its head and distance are solved anew, as `cdl learn` does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import onnx

from cdl_deploy.closed_form.statistics import Statistics
from cdl_deploy.data.labelled import Item
from cdl_deploy.errors import DataError
from cdl_deploy.export.images_of_run import task_data
from cdl_deploy.export.learned_sums import LearnedSums
from cdl_deploy.learn.addition import FeatureReader
from cdl_deploy.learn.head import edits_for
from cdl_deploy.learn.onnx_edit import OnnxFile
from cdl_deploy.learn.written import copy_piece
from cdl_deploy.run.record import RunRecord
from cdl_deploy.runtime.bundle import Bundle
from cdl_deploy.runtime.bundle_parts import Features, StatisticsFile
from cdl_deploy.runtime.classifier import Classifier

ImagesOfTask = dict[str, list[Item]]
"""A task's training images by class; without forgotten classes."""


@dataclass(frozen=True)
class OwnSums:
    """Of one written file."""

    sums: LearnedSums
    statistics: Statistics
    images: int

    def solved(self, path: Path, bundle: Bundle) -> onnx.ModelProto:
        """The model at `path` with head and distance from them."""
        with path.open("rb") as file:
            opened = OnnxFile(file, os.fstat(file.fileno()).st_size)
            edits = edits_for(opened, bundle, bundle, self.statistics, self.sums.rule)
            content = BytesIO()
            for piece in opened.edited(edits, {}):
                copy_piece(file, piece, content)
        return onnx.load_model_from_string(content.getvalue())

    def write(self, model: Path, features: Features) -> StatisticsFile:
        """Write the sums beside `model`, which describes its features so."""
        return replace(self.sums, statistics=self.statistics).write(model, features)


def images_of_tasks(root: Path, record: RunRecord) -> list[ImagesOfTask] | None:
    """None where a task's images are gone, or are no longer those that it learned."""
    data, known = task_data(root, record), set(record.known_classes)
    tasks: list[ImagesOfTask] = []
    for number in range(1, len(record.tasks) + 1):
        images = data.kept_training(number)
        if images is None:
            return None
        by_class: ImagesOfTask = {}
        for item, label in zip(images.items, images.labels, strict=True):
            if record.classes[label] in known:
                by_class.setdefault(record.classes[label], []).append(item)
        if by_class:
            tasks.append(by_class)
    return tasks


def own_sums(
    path: Path, sums: LearnedSums, tasks: list[ImagesOfTask], on_images: Callable[[int, int], object] = lambda *_: None
) -> OwnSums | None:
    """One pass of the model at `path` over the images. None where a head's sums weigh a teacher, which is not in it, or
    where an image cannot be read any more."""
    if sums.rule.teacher_weight > 0:
        return None
    reader = FeatureReader(Classifier(path, threads=1), sums.map, sums.rule)
    total: Statistics | None = None
    for images in tasks:
        try:
            added = reader.added(images, on_images=on_images).statistics
        except DataError:
            return None
        total = added if total is None else total.merge(added)
    if total is None or set(total.classes) != set(sums.statistics.classes):
        return None
    count = sum(len(items) for images in tasks for items in images.values())
    return OwnSums(sums, total.arranged(sums.statistics.classes), count)
