"""`Learner`: a model that learns where it runs, for programs.

Learner("student.onnx").add("screw", ["a.jpg", "b.jpg"]).save("student.onnx")
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from cdl_deploy.closed_form.head_rule import HeadRule, solve_head, world_of
from cdl_deploy.closed_form.linear_head import LinearHead
from cdl_deploy.closed_form.mahalanobis import mahalanobis
from cdl_deploy.closed_form.model_world import ModelWorld
from cdl_deploy.closed_form.statistics import Statistics
from cdl_deploy.closed_form.statistics_file import StoredStatistics, encode_statistics
from cdl_deploy.data.class_names import known_as
from cdl_deploy.files import NoFilesHereError, leftovers, one_writer
from cdl_deploy.learn.addition import Added, FeatureReader, ImagesByClass, OnImages, Rows
from cdl_deploy.learn.errors import LearnError
from cdl_deploy.learn.head import edits_for
from cdl_deploy.learn.names import check_names
from cdl_deploy.learn.opened import open_learnable
from cdl_deploy.learn.state import State
from cdl_deploy.learn.written import may_be_called, statistics_name, write_model
from cdl_deploy.runtime.bundle import Bundle, description_file, encode_metadata
from cdl_deploy.runtime.bundle_parts import StatisticsFile
from cdl_deploy.runtime.classifier import Classifier, ImageInput
from cdl_deploy.runtime.threshold import Threshold, threshold_by_images, threshold_by_sums

LOCK_SECONDS = 60.0
"""So long a save waits for another process that writes the same file."""
Step = Callable[[State], State]


class Learner:
    """A model that cdl exported with its statistics, to which classes and images are added. Nothing is written before
    `save`. One thread at a time may use it; a `Classifier` of the same file goes on as it was.
    """

    def __init__(self, path: str | Path, workers: int | None = None) -> None:
        """Open the model at `path` and the statistics beside it.

        `workers`: threads that decode images and run the model; default: the cores that this process may use.
        Raises `CdlError`, one line, for a model that cannot learn.
        """
        self.path = Path(path)
        self._workers = workers
        self._opened = open_learnable(self.path)
        self._state = State.of(self._opened)
        self._steps: list[Step | None] = []
        self._reader: FeatureReader | None = None

    @property
    def bundle(self) -> Bundle:
        """What the file says that was opened."""
        return self._opened.bundle

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that are known now, in the order of the logits."""
        return self._state.classes

    @property
    def additions(self) -> tuple[dict[str, int], ...]:
        """Images by class of every addition that can be undone, oldest first."""
        return tuple(
            dict(zip(item.classes, map(int, item.counts), strict=True)) for item in self._state.history.additions
        )

    @property
    def images(self) -> dict[str, int]:
        """Images that each class was learned from."""
        total = self._state.history.total
        return dict(zip(total.classes, map(int, total.counts), strict=True))

    def add(
        self,
        name: str,
        images: ImageInput | Sequence[ImageInput],
        *,
        as_new: bool = False,
        skip_bad: bool = False,
    ) -> Learner:
        """Learn class `name`, new or known, from images: paths, PIL images, or uint8 arrays [H, W, 3]."""
        if isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4):
            images = [images]
        self.add_classes({name: list(images)}, as_new=as_new, skip_bad=skip_bad)
        return self

    def add_classes(
        self,
        images: ImagesByClass,
        *,
        as_new: bool = False,
        skip_bad: bool = False,
        keep_rows: bool = False,
        on_images: OnImages | None = None,
    ) -> Added:
        """Learn several classes as one addition, which `undo` takes back as one; their new classes are one task.

        `as_new`: a class whose name differs from a known one's by spelling alone is another. `skip_bad`: leave out
        images that cannot be read, and say which. `keep_rows`: return the images' features too.
        Raises `DataError` for images, `LearnError` for names; the learner is as it was then.
        """
        if not images:
            raise LearnError("no class is given, expected at least one with an image")
        spelt: dict[str, Sequence[ImageInput]] = {}
        for name, some in images.items():
            own = known_as(name, self.classes)
            spelt[own] = [*spelt[own], *some] if own in spelt else some
        images = spelt
        check_names(images, self.classes, as_new)
        added = self.reader.added(images, skip_bad, on_images, keep_rows)
        self._do(lambda state: state.add(added.statistics))
        return added

    def undo(self) -> Learner:
        """Take the last addition back: the sums are what they were, bit by bit, and the head to rounding."""
        self._do(State.undo, again=False)
        return self

    def forget(self, name: str) -> Learner:
        """Take a class away for good, from the base and every addition."""
        self._do(lambda state: state.forget(known_as(name, self.classes)))
        return self

    def merge(self, *others: Learner, as_new: bool = False) -> Learner:
        """Take in what other learners of the same base have learned: see `merging`."""
        from cdl_deploy.learn.merging import merged

        state = merged([self.place, *(other.place for other in others)], as_new)
        self._do(lambda _: state, again=False)
        return self

    def _do(self, step: Step, again: bool = True) -> None:
        """`again`: whether the step means the same after another process has changed the file."""
        self._state = step(self._state)
        self._steps.append(step if again else None)

    @property
    def place(self) -> tuple[Path, Bundle, StoredStatistics, State]:
        """Everything that merging looks at."""
        return self.path, self.bundle, self._opened.stored, self._state

    @property
    def reader(self) -> FeatureReader:
        """The model's own features of images; opens it with onnxruntime when first used."""
        if self._reader is None:
            stored = self._opened.stored
            classifier = Classifier(self.path, threads=1)
            features = classifier.bundle.features
            assert self.bundle.features is not None
            if features is None or features.sha256 != self.bundle.features.sha256:
                raise LearnError(f"{self.path} was replaced by another model while it was opened; open it again")
            self._reader = FeatureReader(classifier, stored.features, stored.rule, self._workers)
        return self._reader

    @property
    def total(self) -> Statistics:
        """The sums over all images."""
        return self._state.history.total

    @property
    def rule(self) -> HeadRule:
        """Which head is solved from them."""
        return self._opened.stored.rule

    def head(self) -> LinearHead:
        """Weight [C, D] and bias [C] on φ, as they would be saved, in float64."""
        return solve_head(self._state.history.total, self._opened.stored.rule).calibrated

    def save(
        self,
        path: str | Path | None = None,
        *,
        held_out: Rows | None = None,
        before_commit: Callable[[Path], object] = lambda path: None,
    ) -> Path:
        """Write the model, its statistics and its description; default: in place of the file that was opened.

        All or nothing, whenever it is interrupted. Where another process has replaced the file that is to be replaced
        here, what it added stays, and what was added or forgotten here is done to that. `held_out`: features of images
        that were never added, whose distances give the threshold of the unknown where they are enough. `before_commit`
        sees the new model, under another name, before it takes its place. Raises `LearnError` where it cannot be
        written.
        """
        out = (self.path if path is None else Path(path)).resolve()
        try:
            with one_writer(out, wait=LOCK_SECONDS):
                self._save(out, held_out, before_commit)
        except BlockingIOError:
            raise LearnError(
                f"{out} is being written by another process; nothing was changed, try again later"
            ) from None
        except NoFilesHereError as error:
            raise LearnError(f"{out}: {error.strerror}; nothing was changed: choose another folder") from None
        if out == self.path.resolve():
            self._open_again()
            self._steps = []
        return out

    def _open_again(self) -> None:
        self._opened.close()
        self._opened = open_learnable(self.path)
        self._state = State.of(self._opened)

    def _catch_up(self) -> None:
        """Do once more, to what another process has made of the file, what was done here."""
        features, steps = self.bundle.features, [step for step in self._steps if step is not None]
        opened = open_learnable(self.path)
        if len(steps) < len(self._steps) or opened.bundle.features != features:
            opened.close()
            raise LearnError(
                f"{self.path} was replaced by another process since it was opened; nothing was changed: open it again"
            )
        opened.close()
        self._open_again()
        for step in steps:
            self._state = step(self._state)

    def _save(self, out: Path, held_out: Rows | None, before_commit: Callable[[Path], object]) -> None:
        if out == self.path.resolve() and not self._opened.is_current():
            self._catch_up()
        opened, state = self._opened, self._state
        stored = replace(opened.stored, history=state.history)
        content = encode_statistics(stored)
        digest = hashlib.sha256(content).hexdigest()
        name = statistics_name(out, digest)
        if state.before and not state.history.additions and state.before.statistics.sha256 == digest:
            exported = state.before.statistics.file
            name = exported if may_be_called(out.parent / exported, content) else name
        total = state.history.total
        world = world_of(total, stored.rule)
        bundle = state.bundle(opened.bundle, StatisticsFile(name, digest), lambda: self._threshold(held_out, world))
        edits = edits_for(opened.onnx, opened.bundle, bundle, total, stored.rule, world)
        metadata = {key: value for key, value in opened.onnx.metadata().items() if not key.startswith("cdl.")}
        pieces = opened.onnx.edited(edits, metadata | encode_metadata(bundle))
        described = description_file(self.path).is_file() or bool(leftovers(description_file(out)))
        write_model(opened.file, pieces, replace(bundle, path=out), content, out, described, before_commit)

    def _threshold(self, held_out: Rows | None, world: ModelWorld) -> Threshold:
        total, rule = self._state.history.total, self._opened.stored.rule
        if held_out is not None:
            known = set(total.classes)
            own = held_out.features[np.array([label in known for label in held_out.labels], dtype=bool)]
            found = threshold_by_images(mahalanobis(total, rule.shrinkage).distance(own))
            if found is not None:
                return found
        return threshold_by_sums(total, rule, world)

    def close(self) -> None:
        """Let go of the open file and the session."""
        self._reader = None
        self._opened.close()

    def __enter__(self) -> Learner:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(AttributeError):
            self._opened.close()
