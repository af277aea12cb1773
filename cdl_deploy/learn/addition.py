"""Images → the sums that are added: one pass, as training makes it, with onnxruntime in place of PyTorch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.closed_form.features import FeatureMap
from cdl_deploy.closed_form.head_rule import HeadRule
from cdl_deploy.closed_form.overconfidence import images_a_class, measure_overconfidence
from cdl_deploy.closed_form.statistics import Statistics, gather
from cdl_deploy.closed_form.teacher_sums import Floats
from cdl_deploy.data.images import FloatArray
from cdl_deploy.errors import DataError
from cdl_deploy.learn.errors import LearnError
from cdl_deploy.runtime.classifier import Classifier, ImageInput
from cdl_deploy.runtime.pipeline import Failure, run_in_order

BATCH = 8
"""Images a run of the model, half of what `cdl predict` takes: learning then needs no more memory than predicting."""
GATHERED = 2048
"""Images whose features are held before they become sums."""
ImagesByClass = Mapping[str, Sequence[ImageInput]]
OnImages = Callable[[int, int], object]
"""Told how many images are done, and of how many."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Features of images, for looking at them: a review needs them, the sums do not."""

    names: tuple[str, ...]
    """Of the images: their paths, or their numbers."""
    labels: tuple[str, ...]
    """Their classes."""
    features: Floats
    """[n, D]: φ."""


@dataclass(frozen=True, eq=False)
class Added:
    """What came of some images."""

    statistics: Statistics
    skipped: tuple[str, ...]
    """Why images were left out, a line each."""
    rows: Rows | None


class FeatureReader:
    """Images → φ, with a model's own graph."""

    def __init__(
        self, classifier: Classifier, feature_map: FeatureMap, rule: HeadRule, workers: int | None = None
    ) -> None:
        self.classifier, self.map, self.rule, self.workers = classifier, feature_map, rule, workers

    def rows(
        self, images: ImagesByClass, skip_bad: bool = False, on_images: OnImages | None = None
    ) -> Iterator[tuple[str, str, FloatArray] | str]:
        """Of each image its name, its class and what the head reads of it; of one that cannot be read, why.

        Raises `DataError` at the first that cannot be read, unless `skip_bad`; `LearnError` for features that are no
        numbers.
        """
        items = [(name, _called(image, at), image) for name, given in images.items() for at, image in enumerate(given)]
        found = run_in_order(
            lambda item: self.classifier.prepare(item[2]), self.classifier.features, items, BATCH, self.workers
        )
        with closing(found):
            for done, ((name, called, _), result) in enumerate(found, 1):
                if isinstance(result, Failure):
                    why = result.error if called in result.error else f"{called}: {result.error}"
                    if not skip_bad:
                        raise DataError(f"{why}; nothing was learned: take it away, or say --skip-bad to leave it out")
                    yield why
                else:
                    if not np.isfinite(result).all():
                        raise LearnError(f"{called}: the model's features of it are no numbers; nothing was learned")
                    yield called, name, result
                if on_images:
                    on_images(done, len(items))

    def held(self, images: ImagesByClass, skip_bad: bool = False, on_images: OnImages | None = None) -> Rows:
        """All of them at once: for images that are looked at, and not learned."""
        found = [row for row in self.rows(images, skip_bad, on_images) if not isinstance(row, str)]
        if not found:
            raise DataError("none of the held-out images can be read")
        names, labels, features = zip(*found, strict=True)
        return Rows(names, labels, self.map.transform(np.stack(features)))

    def added(
        self,
        images: ImagesByClass,
        skip_bad: bool = False,
        on_images: OnImages | None = None,
        keep_rows: bool = False,
    ) -> Added:
        """The sums over them. Raises `DataError` for a class of which no image can be read."""
        names = tuple(images)
        sums = _Sums(names, self.map, self.rule)
        skipped: list[str] = []
        kept: list[tuple[str, str, FloatArray]] = []
        for row in self.rows(images, skip_bad, on_images):
            if isinstance(row, str):
                skipped.append(row)
                continue
            sums.take(row[1], row[2])
            if keep_rows:
                kept.append(row)
        statistics = sums.finish()
        rows = None
        if kept:
            called, labels, features = zip(*kept, strict=True)
            rows = Rows(called, labels, self.map.transform(np.stack(features)))
        return Added(statistics, tuple(skipped), rows)


class _Sums:
    """Features on their way to sums, some thousand at a time; some of each class are held to the end."""

    def __init__(self, names: tuple[str, ...], feature_map: FeatureMap, rule: HeadRule) -> None:
        self.names, self.map, self.rule = names, feature_map, rule
        self.place = {name: at for at, name in enumerate(names)}
        self.measured = images_a_class(len(names))
        self.total: Statistics | None = None
        self.features: list[FloatArray] = []
        self.labels: list[int] = []
        self.some: list[tuple[FloatArray, int]] = []
        self.taken: Counter[int] = Counter()

    def take(self, name: str, features: FloatArray) -> None:
        """One image."""
        label = self.place[name]
        self.features.append(features)
        self.labels.append(label)
        self.taken[label] += 1
        if self.taken[label] <= self.measured:
            self.some.append((features, label))
        if len(self.labels) >= GATHERED:
            self._sum_up()

    def finish(self) -> Statistics:
        """The sums of all."""
        for name, label in self.place.items():
            if not self.taken[label]:
                raise DataError(f"class '{name}' has no image that can be read: add some, or leave the class out")
        self._sum_up()
        assert self.total is not None
        features, labels = zip(*self.some, strict=True)
        measured = measure_overconfidence(self.map.transform(np.stack(features)), np.array(labels), self.rule)
        return replace(self.total, overconfidence=measured)

    def _sum_up(self) -> None:
        if self.labels:
            labels: NDArray[np.int64] = np.array(self.labels)
            found = gather(self.map.transform(np.stack(self.features)), labels, self.names)
            self.total = found if self.total is None else self.total.merge(found)
            self.features, self.labels = [], []


def _called(image: ImageInput, place: int) -> str:
    return str(image) if isinstance(image, str | Path) else f"image {place + 1}"
