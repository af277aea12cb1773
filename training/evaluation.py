"""The accuracy of both learners on every task seen so far, and how far their confidence can be believed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from cdl_deploy.evaluation.calibration import BINS, bin_sums, bins_of, expected_calibration_error
from cdl_deploy.run.record_parts import FittedHead, Role
from cdl_deploy.training.context import KeptFeatures, Run, Task
from cdl_deploy.training.data.loading import to_device
from cdl_deploy.training.data.resident import ResidentImages
from cdl_deploy.training.data.task_data import TaskImages
from cdl_deploy.training.data.transforms import PixelTransform, evaluation_transform
from cdl_deploy.training.fitting import evaluation_batches, fitted_head
from cdl_deploy.training.models.learner import Learner, QueryEncoder, learner_logits, learner_output
from cdl_deploy.training.processes import Processes
from cdl_deploy.training.progress import Stopped


@dataclass(frozen=True)
class Tested:
    """A learner on the test images of several tasks."""

    row: list[float | None]
    """Percent correct on each task; None for a task without images."""
    ece: float | None
    """Expected calibration error over all images (cdl_deploy.evaluation.calibration), in percent."""


def evaluate(run: Run, task: Task) -> tuple[list[TaskImages], dict[Role, FittedHead]]:
    """Another row of every accuracy matrix; returns all test images by task, and what is recorded of closed-form heads.

    Images of forgotten classes take no part. A task that has no others keeps the accuracy it had last.
    """
    tests = [run.data.test(number) for number in range(1, task.number + 1)]
    shown = [
        without(test, run.forgotten_positions) for test in (on_device(run, tests) if task.optim.resident else tests)
    ]
    transform, workers = evaluation_transform(run.preprocessing), task.optim.workers or 0

    def on_images(role: Role, done: int, total: int) -> None:
        run.progress.evaluating(task.number, role, done, total)
        if run.processes.count == 1 and run.stop():  # nothing is lost: what was learned is saved
            raise Stopped

    if task.adapts:
        run.test_features.clear()
    stays = not run.config.method.trains_in(task.number + 1)
    heads: dict[Role, FittedHead] = {}
    for role, learner in run.pair.learners.items():
        row = run.precomputed.accuracy_row(role, task.number, tests) if run.precomputed else None
        ece = None
        if row is None or learner.closed_form is not None:
            solved = learner.closed_form is not None and learner.closed_form.fitted
            kept = run.test_features.setdefault(role, KeptFeatures()) if solved and stays else None
            tested = measure_learner(
                run.pair.encoder, learner, shown, transform, workers, partial(on_images, role), run.processes, kept
            )
            before = run.record.matrices.get(role, [])
            row = [before[-1][i] if value is None else value for i, value in enumerate(tested.row)]
            ece = tested.ece
        run.record.matrices.setdefault(role, []).append(row)
        if learner.closed_form is not None:
            heads[role] = fitted_head(learner.closed_form, ece)
    run.position.seconds["evaluation"] = time.perf_counter() - run.clock
    return tests, heads


def without(images: TaskImages, positions: set[int]) -> TaskImages:
    """The images whose label is none of `positions`."""
    if not positions & set(images.labels):
        return images
    return images.at([i for i, label in enumerate(images.labels) if label not in positions])


def on_device(run: Run, tests: list[TaskImages]) -> list[TaskImages]:
    """The test images of the tasks so far, each decoded once."""
    for number, test in enumerate(tests, start=1):
        if test.pixels is None and number not in run.tests_on_device:
            resident = ResidentImages(test, run.preprocessing, run.processes.device)
            run.tests_on_device[number] = resident.as_task_images()
    return [run.tests_on_device.get(number, test) for number, test in enumerate(tests, start=1)]


def accuracy_row(
    encoder: QueryEncoder,
    learner: Learner,
    tests: Sequence[TaskImages],
    transform: PixelTransform,
    workers: int = 0,
    on_images: Callable[[int, int], None] = lambda done, total: None,
    processes: Processes | None = None,
) -> list[float]:
    """Percent correct on each task's test images, choosing among all classes seen: one row of the accuracy matrix."""
    row = measure_learner(encoder, learner, tests, transform, workers, on_images, processes).row
    return [value for value in row if value is not None]


@torch.no_grad()
def measure_learner(
    encoder: QueryEncoder,
    learner: Learner,
    tests: Sequence[TaskImages],
    transform: PixelTransform,
    workers: int = 0,
    on_images: Callable[[int, int], None] = lambda done, total: None,
    processes: Processes | None = None,
    kept: KeptFeatures | None = None,
) -> Tested:
    """Accuracy on each task's test images, choosing among all classes seen, and the calibration error over all.

    Several processes divide every task's images among them. `kept`: what is known of images that were tested before,
    of a learner with a closed-form head whose features have not changed since.
    """
    device = encoder.backbone.mean.device
    processes = processes or Processes(device)
    total, done, correct = sum(len(test.labels) for test in tests), 0, []
    bins = torch.zeros(3, BINS, dtype=torch.float64)
    for number, test in enumerate(tests, start=1):
        right = torch.zeros((), dtype=torch.int64, device=device)
        known = None if kept is None else kept.of(number, test)
        computed = []
        for seen, labels in known or (evaluation_batches(test, transform, workers, processes) if test.labels else ()):
            seen, labels = to_device(seen, device), to_device(labels, device)
            if kept is None:
                logits = learner_logits(encoder, learner, seen)
            else:
                assert learner.closed_form is not None
                features = seen if known else learner.closed_form_features(learner_output(encoder, learner, seen))
                logits = learner.closed_form(features)
                computed.append((features, labels))
            confidence, predicted = logits.softmax(dim=1).max(dim=1)
            hits = predicted == labels
            right += hits.sum()
            bins += torch.from_numpy(bin_sums(confidence.double().cpu().numpy(), hits.cpu().numpy()))
            done += len(labels)
            on_images(min(total, done * processes.count), total)
        if kept is not None and not known:
            kept.keep(number, test, computed)
        correct.append(int(right))
    counts = processes.total(correct)
    row = [100 * count / len(test.labels) if test.labels else None for count, test in zip(counts, tests, strict=True)]
    bins = processes.summed(bins)
    ece = expected_calibration_error(bins_of(bins.numpy())) if float(bins[0].sum()) else None
    return Tested(row, ece)
