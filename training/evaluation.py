"""After a task is learned: what is fitted to the finished student, and the accuracy on every task seen so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from cdl_deploy.training.context import Run, Task
from cdl_deploy.training.data.loading import batches, to_device
from cdl_deploy.training.data.resident import ResidentImages
from cdl_deploy.training.data.task_data import TaskImages
from cdl_deploy.training.data.transforms import PixelTransform, evaluation_transform
from cdl_deploy.training.distillation.extra_token import ExtraToken
from cdl_deploy.training.distillation.protocol import LearnerOutput
from cdl_deploy.training.models.learner import Learner, QueryEncoder, Role, learner_logits, learner_output
from cdl_deploy.training.models.teacher_student import TeacherStudent
from cdl_deploy.training.processes import Processes
from cdl_deploy.training.progress import Stopped

BATCH = 128


def fit_closed_form(run: Run, task: Task) -> None:
    """What is fitted to a task at once, with no epochs, after those of both learners and before the task is tested.

    It is not in the last checkpoint but in the task's: a run that is interrupted after the epochs fits it again.
    """
    transform, workers = evaluation_transform(run.preprocessing), task.optim.workers or 0
    fit_prediction_head(run.pair, task.learned, task.held_out, transform, run.config.optim.seed, workers)


@torch.no_grad()
def fit_prediction_head(
    pair: TeacherStudent, images: TaskImages, held_out: TaskImages, transform: PixelTransform, seed: int, workers: int
) -> None:
    """Choose the task's α on `held_out`, and calibrate on the statistics of `images`, where the student asks for it.

    To be called once a task, before it is evaluated. `transform` is that of evaluation.
    """
    student, distillation = pair.student, pair.student.distillation
    if isinstance(distillation, ExtraToken) and distillation.chosen is not None:
        new = [position for position, label in enumerate(held_out.labels) if label >= student.first_class]
        if new:
            chosen = TaskImages([held_out.items[i] for i in new], [held_out.labels[i] for i in new])
            outputs, labels = zip(*_outputs(pair, chosen, transform, workers), strict=True)
            logits = torch.cat([output.class_logits for output in outputs])
            extra = torch.cat([output.extra_logits for output in outputs if output.extra_logits is not None])
            distillation.choose_alpha(logits, extra, torch.cat(labels), student.first_class)
    if student.calibration is not None:
        outputs, labels = zip(*_outputs(pair, images, transform, workers), strict=True)
        features = torch.cat([output.features for output in outputs if output.features is not None])
        student.calibration.remember(features, torch.cat(labels))

        with torch.enable_grad():
            student.calibration.fit(lambda drawn: student.uncalibrated(student.apply_heads(drawn)), student.tasks, seed)


def _outputs(
    pair: TeacherStudent, images: TaskImages, transform: PixelTransform, workers: int
) -> Iterable[tuple[LearnerOutput, Tensor]]:
    """What the student computes for the images, batch by batch, and their labels."""
    device = pair.encoder.backbone.mean.device
    for pixels, labels in evaluation_batches(images, transform, workers, Processes(device)):
        yield learner_output(pair.encoder, pair.student, to_device(pixels, device)), to_device(labels, device)


def evaluate(run: Run, task: Task) -> list[TaskImages]:
    """Another row of every accuracy matrix; returns the test images of every task so far."""
    tests = [run.data.test(number) for number in range(1, task.number + 1)]
    shown = on_device(run, tests) if task.optim.resident else tests
    transform, workers = evaluation_transform(run.preprocessing), task.optim.workers or 0

    def on_images(role: Role, done: int, total: int) -> None:
        run.progress.evaluating(task.number, role, done, total)
        if run.processes.count == 1 and run.stop():  # nothing is lost: what was learned is saved
            raise Stopped

    for role, learner in run.pair.learners.items():
        row = run.precomputed.accuracy_row(task.number, tests) if role == "teacher" and run.precomputed else None
        row = row or accuracy_row(
            run.pair.encoder, learner, shown, transform, workers, partial(on_images, role), run.processes
        )
        run.record.matrices.setdefault(role, []).append(row)
    run.position.seconds["evaluation"] = time.perf_counter() - run.clock
    return tests


def on_device(run: Run, tests: list[TaskImages]) -> list[TaskImages]:
    """The test images of the tasks so far, each decoded once."""
    for number, test in enumerate(tests, start=1):
        if test.pixels is None and number not in run.tests_on_device:
            resident = ResidentImages(test, run.preprocessing, run.processes.device)
            run.tests_on_device[number] = resident.as_task_images()
    return [run.tests_on_device.get(number, test) for number, test in enumerate(tests, start=1)]


@torch.no_grad()
def accuracy_row(
    encoder: QueryEncoder,
    learner: Learner,
    tests: Sequence[TaskImages],
    transform: PixelTransform,
    workers: int = 0,
    on_images: Callable[[int, int], None] = lambda done, total: None,
    processes: Processes | None = None,
) -> list[float]:
    """Percent correct on each task's test images, choosing among all classes seen: one row of the accuracy matrix.

    Several processes divide every task's images among them.
    """
    device = encoder.backbone.mean.device
    processes = processes or Processes(device)
    total, done, correct = sum(len(test.labels) for test in tests), 0, []
    for test in tests:
        right = torch.zeros((), dtype=torch.int64, device=device)
        for pixels, labels in evaluation_batches(test, transform, workers, processes):
            predicted = learner_logits(encoder, learner, to_device(pixels, device)).argmax(dim=1)
            right += (predicted == to_device(labels, device)).sum()
            done += len(labels)
            on_images(min(total, done * processes.count), total)
        correct.append(int(right))
    return [100 * count / len(test.labels) for count, test in zip(processes.total(correct), tests, strict=True)]


def evaluation_batches(
    test: TaskImages, transform: PixelTransform, workers: int, processes: Processes
) -> Iterable[tuple[Tensor, Tensor]]:
    """This process's share of a task's images, pixels and labels, as evaluation sees them."""
    labels = processes.share(test.labels)
    if test.pixels is None:
        return batches(processes.share(test.items), labels, transform, BATCH, workers=workers)
    pixels = test.pixels[processes.index :: processes.count]
    return zip(pixels.split(BATCH), torch.tensor(labels).split(BATCH), strict=True)
