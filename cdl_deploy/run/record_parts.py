"""What a run's record is made of: backbones, the tasks that it plans and those that it has finished, results."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from cdl_deploy.data.preprocessing import ResizeCrop, Views
from cdl_deploy.run import metrics

Role = Literal["teacher", "student"]
SourceKey = tuple[str, float | None, bool, str | None]
"""What an image folder is opened with: its path, the share held out, whether bad images are left out, the labels."""
Matrix = list[list[float]]
"""Row i holds the accuracy after task i on the test images of tasks 1 to i, in percent."""


@dataclass(frozen=True)
class TeacherView:
    """What the teacher sees of an image where that is not what the student sees."""

    size: int
    resize: int
    interpolation: str

    def __str__(self) -> str:
        return f"{self.size} pixels ({self.interpolation})"


@dataclass(frozen=True)
class RecordedPreprocessing:
    """What both learners see of an image."""

    size: int
    """Side of the square crop, in pixels."""
    resize: int
    """Length of the shorter edge before the crop."""
    interpolation: str
    """PIL's name: `bicubic`, `bilinear`, …; always antialiased."""
    augmentation: str
    """Of training images: what `--augmentation auto` resolved to."""
    teacher: TeacherView | None = None
    """With `--teacher-image-size`."""

    @property
    def resize_crop(self) -> ResizeCrop:
        """Which pixels the student sees, and the teacher where it has no view of its own."""
        return ResizeCrop.square(self.size, self.resize, self.interpolation)

    @property
    def views(self) -> Views:
        """Which pixels are seen: the same by both learners, or the student's and the teacher's."""
        if self.teacher is None:
            return self.resize_crop
        return self.resize_crop, self.of("teacher")

    def of(self, role: Role) -> ResizeCrop:
        """Which pixels a learner sees."""
        if role == "student" or self.teacher is None:
            return self.resize_crop
        return ResizeCrop.square(self.teacher.size, self.teacher.resize, self.teacher.interpolation)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dataclasses.asdict(self)
        if self.teacher is None:
            del values["teacher"]
        return values


@dataclass(frozen=True)
class BackboneInfo:
    """What a run records of a backbone, and needs to build it again without the hub."""

    model: str
    """timm name with its tag."""
    source: str
    """Where the weights came from: `hub`, `package`, or the file's name."""
    sha256: str
    """Of the weights as they are used."""
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float
    parameters: int
    pixels: str | None = None
    """Of weights from a file: where mean and deviation come from: the `file`, the `model` as named, or `assumed`."""
    weights: str | None = None
    """Of weights from a file: whose names it has, what was taken off them, and how they differ from timm's."""
    blocks: int | None = None
    """The first so many of the model's blocks; None: all."""

    @property
    def words(self) -> str:
        """The model, and what is left of it."""
        return self.model if self.blocks is None else f"{self.model}, first {self.blocks} blocks"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}
        for name in ("pixels", "weights", "blocks"):
            if values[name] is None:
                del values[name]
        return values


@dataclass(frozen=True)
class TaskPlan:
    """Where the images of a task come from, and how it departs from the run's configuration."""

    classes: tuple[str, ...]
    """New classes, in the order of their logits."""
    data: str
    """`digits`, or the absolute path of an image folder."""
    holdout: float | None = None
    skip_bad: bool = False
    known_classes: tuple[str, ...] = ()
    """Classes of earlier tasks that this one brings new images of."""
    optim: dict[str, Any] = field(default_factory=dict)
    """Fields of OptimConfig that differ from the run's."""
    added: bool = False
    """Whether the run was finished before, and this task is an addition that may be taken back."""
    labels: str | None = None
    """A file that says of which class each image is, in place of folders."""
    fingerprint: str | None = None
    """Of the class, name and size of every image, when the task was planned; older versions wrote none."""
    skipped_images: list[str] = field(default_factory=list)
    """Of an addition: what it brought to the record's; taken back with it. Older versions wrote none."""
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    """The same."""

    @property
    def source_key(self) -> SourceKey:
        """What `open_source` needs to know."""
        return self.data, self.holdout, self.skip_bad, self.labels

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dataclasses.asdict(self)
        for name in ("added", "skipped_images", "left_out"):
            if not values[name]:
                del values[name]
        for name in ("labels", "fingerprint"):
            if values[name] is None:
                del values[name]
        return {**values, "classes": list(self.classes), "known_classes": list(self.known_classes)}


@dataclass(frozen=True)
class TaskOptim:
    """The optimisation of a finished task, resolved."""

    epochs: int
    batch_size: int
    lr: float


@dataclass(frozen=True)
class FittedHead:
    """A closed-form head after a task."""

    kind: str
    """`slda`, `ridge` or `ncm`."""
    features: str
    """What it reads, joined by +."""
    dimension: int
    """Length of what it reads, or of its random projection."""
    chosen: float | None
    """ρ of slda, λ of ridge."""
    temperature: float
    """Scores are divided by it, so that their softmax are probabilities."""
    ece: float | None = None
    """Expected calibration error on the test images of every task so far, in percent."""


@dataclass(frozen=True)
class FinishedTask:
    """What a task learned, from what, and how long it took."""

    number: int
    """Counted from 1."""
    classes: list[str]
    """New ones."""
    known_classes: list[str]
    """Of earlier tasks, with new images."""
    data: str
    train_images: int
    test_images: int
    data_fingerprint: str
    """Of the training images' names and sizes."""
    test_fingerprint: str
    kept_tests: list[int]
    """Tasks that were tested on the few images which the run keeps, since their folder was gone."""
    optim: TaskOptim
    teacher_run: str | None
    """The run whose teacher was taken over."""
    finished: str
    """When, in UTC."""
    seconds: dict[str, float]
    """By stage."""
    heads: dict[Role, FittedHead] = field(default_factory=dict)
    """Closed-form heads as they were after it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dataclasses.asdict(self)
        if not self.heads:
            del values["heads"]
        return values


@dataclass(frozen=True)
class Results:
    """How well a learner did."""

    accuracy_matrix: Matrix
    final_average_accuracy: float
    average_incremental_accuracy: float
    forgetting: float
    forgetting_standard: float
    backward_transfer: float

    @classmethod
    def of(cls, matrix: Matrix) -> Results:
        """Every metric of a matrix."""
        return cls(accuracy_matrix=matrix, **metrics.summary(matrix))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, metrics first."""
        values = dataclasses.asdict(self)
        return {**values, "accuracy_matrix": values.pop("accuracy_matrix")}
