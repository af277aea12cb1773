"""The images of a run's tasks. Each task may come from a folder of its own, and old folders may be gone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cdl_deploy.data.folder import Files, find_splits
from cdl_deploy.data.labelled import Item
from cdl_deploy.data.sources import ImageSource, OnCheck, fingerprint, is_named, open_source, planned_fingerprint
from cdl_deploy.errors import DataError, PassingError, is_passing, nearest
from cdl_deploy.run.record import RunRecord
from cdl_deploy.run.record_parts import FinishedTask, SourceKey, TaskPlan

Heldout = Mapping[str, Tensor]
"""`task_1/images` [n, 3, height, width] uint8 and `task_1/labels` [n], by number: test images kept of a task."""


@dataclass(frozen=True)
class TaskImages:
    """Images of one task with their labels, positions among the logits."""

    items: Sequence[Item]
    labels: Sequence[int]
    pixels: Tensor | None = None
    """Preprocessed [n, 3, height, width] uint8, in place of `items`, where only these are left."""

    def at(self, places: Sequence[int]) -> TaskImages:
        """Those at `places` among them."""
        items = [self.items[place] for place in places] if self.items else []
        pixels = None if self.pixels is None else self.pixels[list(places)]
        return TaskImages(items, [self.labels[place] for place in places], pixels)

    def same_as(self, others: TaskImages) -> bool:
        """Whether these are the same files, or the same arrays in memory, with the same labels."""
        if self.pixels is not others.pixels or list(self.labels) != list(others.labels):
            return False
        if len(self.items) != len(others.items):
            return False
        pairs = zip(self.items, others.items, strict=True)
        return all(one is other or (isinstance(one, Path) and one == other) for one, other in pairs)


def hold_out(
    images: TaskImages, share: float, generator: torch.Generator | None = None
) -> tuple[TaskImages, TaskImages]:
    """Two parts of the images: those to learn from, and of every class a `share`, rounded down, drawn at random.

    Where nothing is held out, the first part is `images` itself.
    """
    if not share:
        return images, TaskImages([], [])
    positions: dict[int, list[int]] = {}
    for position, label in enumerate(images.labels):
        positions.setdefault(label, []).append(position)
    held: set[int] = set()
    for own in positions.values():
        drawn = torch.randperm(len(own), generator=generator)[: int(share * len(own))]
        held |= {own[i] for i in drawn.tolist()}

    def part(wanted: bool) -> TaskImages:
        return images.at([position for position in range(len(images.labels)) if (position in held) == wanted])

    return part(False), part(True)


class TaskData:
    """Images by task; tasks count from 1."""

    def __init__(
        self,
        plans: list[TaskPlan],
        finished: list[FinishedTask],
        sources: Mapping[SourceKey, ImageSource],
        heldout: Callable[[int], Heldout],
        skipped: list[str],
    ) -> None:
        """`sources`: those that were opened, at least of every unfinished task. `finished`: entries of the record."""
        self.plans, self.finished, self.sources = plans, finished, sources
        self.heldout, self.skipped = heldout, set(skipped)
        self.listings: dict[SourceKey, tuple[Files, Files]] = {}
        """Training and test files of folders of earlier tasks: each is searched once, however many tasks it had."""
        self.positions = {name: i for i, name in enumerate(name for plan in plans for name in plan.classes)}
        """Position of every class among the logits."""

    def known(self, number: int) -> list[int]:
        """Positions of the earlier classes that a task brings new images of."""
        return [self.positions[name] for name in self.plans[number - 1].known_classes]

    def train(self, number: int) -> TaskImages:
        """Training images of a task whose folder is open."""
        plan = self.plans[number - 1]
        return self._from_source(self.sources[plan.source_key], plan, "train")

    def test(self, number: int) -> TaskImages:
        """Test images of a task: all of them where the folder is still what it was, otherwise those the run kept."""
        plan = self.plans[number - 1]
        if plan.source_key in self.sources:
            images = self._from_source(self.sources[plan.source_key], plan, "test")
            return images if self._unchanged(number, images) else self._kept(number)
        return self._listed(number, plan, "test") or self._kept(number)

    def kept_training(self, number: int) -> TaskImages | None:
        """Training images of a finished task, as long as its folder is what it was."""
        return self._listed(number, self.plans[number - 1], "train")

    def _from_source(self, source: ImageSource, plan: TaskPlan, split: str) -> TaskImages:
        images = source.train if split == "train" else source.test
        items: list[Item] = []
        labels: list[int] = []
        for name in plan.known_classes + plan.classes:
            own = [item for item in images.of_class(name) if not (isinstance(item, Path) and str(item) in self.skipped)]
            items += own
            labels += [self.positions[name]] * len(own)
        return TaskImages(items, labels)

    def _unchanged(self, number: int, images: TaskImages) -> bool:
        """Whether test images of an open folder are those that the task, if it is finished, was tested on."""
        if number > len(self.finished):
            return True
        plan, task = self.plans[number - 1], self.finished[number - 1]
        try:
            if fingerprint(images.items) == task.test_fingerprint:
                return True
            source = self.sources[plan.source_key]
            return plan.fingerprint is not None and with_fingerprint(plan, source).fingerprint == plan.fingerprint
        except OSError as error:
            if is_passing(error):
                raise PassingError(f"cannot read {error.filename or plan.data}: {error.strerror}") from None
            return False

    def _listed(self, number: int, plan: TaskPlan, split: str) -> TaskImages | None:
        try:
            if is_named(plan.data):
                return self._from_source(open_source(*plan.source_key), plan, split)
            if plan.source_key not in self.listings:
                self.listings[plan.source_key] = find_splits(Path(plan.data), plan.holdout, plan.labels)
            train, test = self.listings[plan.source_key]
            files = train if split == "train" else test
            chosen = {
                name: [path for path in files[name] if str(path) not in self.skipped]
                for name in plan.known_classes + plan.classes
            }
            items: list[Item] = [path for paths in chosen.values() for path in paths]
            task = self.finished[number - 1]
            if fingerprint(items) != (task.data_fingerprint if split == "train" else task.test_fingerprint):
                return None
        except OSError as error:
            if is_passing(error):  # to go on without these images would change what is measured, unnoticed
                raise PassingError(f"cannot read {error.filename or plan.data}: {error.strerror}") from None
            return None
        except (DataError, KeyError):
            return None
        return TaskImages(items, [self.positions[name] for name, paths in chosen.items() for _ in paths])

    def _kept(self, number: int) -> TaskImages:
        kept = self.heldout(number)
        labels: list[int] = kept[f"task_{number}/labels"].tolist()
        return TaskImages([], labels, torch.as_tensor(kept[f"task_{number}/images"]))


def open_sources(plans: list[TaskPlan], finished: int, on_check: OnCheck | None = None) -> dict[SourceKey, ImageSource]:
    """Open the folder of every task that is still to be learned; every image of its classes is decoded once."""
    left: dict[SourceKey, set[str]] = {}
    for number, plan in enumerate(plans[finished:], start=finished + 1):
        if not is_named(plan.data) and not os.path.exists(plan.data):
            raise DataError(
                f"{plan.data} with the images of task {number} does not exist: say where they are now with "
                "--resume --data DIR"
            )
        left.setdefault(plan.source_key, set()).update(plan.classes + plan.known_classes)
    return {key: open_source(*key, on_check, classes) for key, classes in left.items()}


def with_fingerprint(plan: TaskPlan, source: ImageSource) -> TaskPlan:
    """The plan with what its images are now, for `check_planned` to find again."""
    return replace(plan, fingerprint=planned_fingerprint(source, plan.known_classes + plan.classes))


def check_planned(record: RunRecord, sources: Mapping[SourceKey, ImageSource]) -> None:
    """Raise DataError unless every task that is left finds its classes, and the images it was planned with.

    Plans of versions before this check have no fingerprint; of these only the classes are looked at.
    """
    for number, plan in enumerate(record.plans[len(record.tasks) :], start=len(record.tasks) + 1):
        source = sources[plan.source_key]
        for name in plan.known_classes + plan.classes:
            if name not in source.classes:
                raise DataError(
                    f"class '{name}' of task {number} is no longer in {plan.data}: restore it, or say where the "
                    f"images are with --resume --data DIR{nearest(name, source.classes)}"
                )
        if plan.fingerprint is not None and with_fingerprint(plan, source).fingerprint != plan.fingerprint:
            raise DataError(
                f"the images of task {number} in {plan.data} are not those that the run began with (names, sizes or "
                "number of files have changed), so it could not go on as if nothing had been: restore them, or train "
                "a new run"
            )


def relocated(record: RunRecord, data: str, labels: str | None) -> RunRecord:
    """The record of a run whose image folder now is `data`: that of the first task that is left, in every plan."""
    if record.finished:
        return record
    old = record.plans[len(record.tasks)]
    labels = labels if labels is not None else _moved(old.labels, old.data, data)
    config = record.config.data
    if config.data == old.data:
        config = replace(config, data=data, labels=labels)
    return replace(
        record,
        config=replace(record.config, data=config),
        plans=[
            replace(plan, data=data, labels=labels, skipped_images=_all_moved(plan.skipped_images, old.data, data))
            if (plan.data, plan.labels) == (old.data, old.labels)
            else plan
            for plan in record.plans
        ],
        skipped_images=_all_moved(record.skipped_images, old.data, data),
    )


def _all_moved(paths: Sequence[str], old: str, new: str) -> list[str]:
    return [_moved(path, old, new) or path for path in paths]


def _moved(path: str | None, old: str, new: str) -> str | None:
    """A path within the folder `old`, now within `new`; any other as it is."""
    if path is None or not Path(path).is_relative_to(old):
        return path
    return str(Path(new) / Path(path).relative_to(old))
