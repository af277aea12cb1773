"""What is known of a model from its predictions for images whose classes are known. Every share is in percent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from cdl_deploy.evaluation.agreement import Agreement
from cdl_deploy.evaluation.calibration import ConfidenceBin, confidence_bins, expected_calibration_error
from cdl_deploy.evaluation.confusion import Counts, Mistake, confusion_matrix, precisions, recalls, worst_mistakes
from cdl_deploy.evaluation.predictions import ImagePredictions, Unreadable
from cdl_deploy.evaluation.rejection import Rejection
from cdl_deploy.evaluation.shares import wilson_interval
from cdl_deploy.runtime.interface import Interface

FORMAT_VERSION = 1
KIND = "cdl-deploy evaluation"


@dataclass(frozen=True)
class TaskResult:
    """The images of one task's classes. A share is None where there is no image."""

    number: int
    """1 for the first task."""
    classes: int
    """Classes that the task taught."""
    images: int
    accuracy: float | None
    """Right among all classes the model knows."""
    right_task: float | None
    """The class that the model names belongs to this task, whether it is the right one or not."""
    within_task: float | None
    """Right if the model could choose among this task's classes alone: what is lost to other tasks is the difference
    between this and `accuracy`."""


@dataclass(frozen=True)
class ClassResult:
    """One class. A share is None where there is no image to take it of."""

    name: str
    task: int | None
    """The task that taught it; None for a model from elsewhere, which says nothing of tasks."""
    images: int
    accuracy: float | None
    """Of its images, those that the model names right (its recall)."""
    precision: float | None
    """Of the images that the model names this, those that are."""


@dataclass(frozen=True)
class Evaluation:
    """One model on one set of images; the model chooses among all classes that it knows."""

    model: str
    role: str | None
    """`student` or `teacher`; None for a model from elsewhere."""
    source: str
    images: int
    """Images that could be read."""
    accuracy: float
    """Of the images."""
    interval: tuple[float, float]
    """The 95 % interval of `accuracy`; see `wilson_interval`."""
    mean_over_tasks: float | None
    """Mean of the tasks' accuracies: what a run calls final average accuracy. Tasks without images do not count; None
    where the model says nothing of tasks."""
    accuracy_at_export: float | None
    """The final average accuracy that the run measured, as the file says."""
    calibration_error: float
    """Expected calibration error, in percentage points; see `cdl_deploy.evaluation.calibration`."""
    confidence: float
    """Mean probability of the class that the model names."""
    bins: tuple[ConfidenceBin, ...]
    tasks: tuple[TaskResult, ...]
    """None of them where the model says nothing of tasks."""
    classes: tuple[ClassResult, ...]
    """In the order of the model's logits."""
    confusion: Counts
    """[C, C] images: row the true class, column the named one."""
    unreadable: tuple[Unreadable, ...]
    left_out: tuple[str, ...]
    """Classes in the data that the model does not know."""
    against: Agreement | None = None
    unknown: Rejection | None = None
    """How well images of none of the classes are told from these."""

    @property
    def mistakes(self) -> list[Mistake]:
        """The ten most frequent mistakes; positions among `classes`."""
        return worst_mistakes(self.confusion, 10)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = [item.name for item in self.classes]
        values = {name: value for name, value in vars(self).items() if name not in ("confusion", "against", "unknown")}
        plain = {
            name: [asdict(item) for item in value] if name in ("bins", "tasks", "classes", "unreadable") else value
            for name, value in values.items()
        }
        return {
            "format_version": FORMAT_VERSION,
            "kind": KIND,
            **plain,
            "mistakes": [
                {"true": names[m.true], "named": names[m.named], "images": m.images, "share": m.share}
                for m in self.mistakes
            ],
            "confusion": self.confusion.tolist(),
            "against": asdict(self.against) if self.against else None,
            **({"unknown": asdict(self.unknown)} if self.unknown else {}),
        }


def make_report(
    model: str,
    interface: Interface,
    source: str,
    left_out: Sequence[str],
    predictions: ImagePredictions,
    against: Agreement | None = None,
) -> Evaluation:
    """Reduce the predictions of `model`, a file, to shares; `interface` says what it knows."""
    count, right = len(predictions.labels), int(predictions.correct.sum())
    confusion = confusion_matrix(predictions.labels, predictions.predicted, len(interface.classes))
    bins = confidence_bins(predictions.confidence, predictions.correct)
    tasks, bundle = _tasks(interface, predictions), interface.bundle
    return Evaluation(
        model=model,
        role=bundle.role if bundle else None,
        source=source,
        images=count,
        accuracy=100 * right / count,
        interval=wilson_interval(right, count),
        mean_over_tasks=fmean(task.accuracy for task in tasks if task.accuracy is not None) if tasks else None,
        accuracy_at_export=bundle.accuracy.final_average_accuracy if bundle and bundle.accuracy else None,
        calibration_error=expected_calibration_error(bins),
        confidence=100 * float(predictions.confidence.mean()),
        bins=tuple(bins),
        tasks=tasks,
        classes=_classes(interface, confusion),
        confusion=confusion,
        unreadable=predictions.unreadable,
        left_out=tuple(left_out),
        against=against,
    )


def _tasks(interface: Interface, predictions: ImagePredictions) -> tuple[TaskResult, ...]:
    of_class = np.array(interface.task_numbers)
    true, named = of_class[predictions.labels], of_class[predictions.predicted]
    results = []
    for number, names in enumerate(interface.tasks, 1):
        own = true == number
        count = int(own.sum())
        shares = [
            100 * int(np.sum(hit[own])) / count if count else None
            for hit in (predictions.correct, named == number, predictions.within_task == predictions.labels)
        ]
        results.append(TaskResult(number, len(names), count, *shares))
    return tuple(results)


def _classes(interface: Interface, confusion: Counts) -> tuple[ClassResult, ...]:
    totals = confusion.sum(axis=1)
    return tuple(
        ClassResult(name, task if interface.tasks else None, int(count), accuracy, precision)
        for name, task, count, accuracy, precision in zip(
            interface.classes, interface.task_numbers, totals, recalls(confusion), precisions(confusion), strict=True
        )
    )
