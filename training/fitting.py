"""What is fitted to a task at once, without epochs: closed-form heads, and what completes learned ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cdl_deploy.closed_form.overconfidence import images_a_class
from cdl_deploy.closed_form.statistics import Statistics
from cdl_deploy.run.record_parts import FittedHead
from cdl_deploy.training.context import Run, Task
from cdl_deploy.training.data.loading import batches, to_device
from cdl_deploy.training.data.task_data import TaskImages
from cdl_deploy.training.data.transforms import PixelTransform, evaluation_transform
from cdl_deploy.training.distillation.extra_token import ExtraToken
from cdl_deploy.training.distillation.protocol import LearnerOutput
from cdl_deploy.training.heads.closed_form import ClosedFormHead
from cdl_deploy.training.models.learner import Learner, learner_output
from cdl_deploy.training.models.teacher_student import TeacherStudent
from cdl_deploy.training.processes import Processes

BATCH, BATCH_ON_CPU = 128, 16
"""Images that are looked at together; more are no faster on a CPU, and take memory."""
GATHERED = 2048
"""Images whose features are held until they become sums."""


def fit_task(run: Run, task: Task) -> None:
    """Everything that is fitted to a task after the epochs of both learners and before the task is tested.

    It is not in the last checkpoint but in the task's: a run that is interrupted after the epochs fits it again.
    """
    transform, workers = evaluation_transform(run.preprocessing), task.optim.workers or 0
    fit_prediction_head(run.pair, task.learned, task.held_out, transform, run.config.optim.seed, workers)
    fit_closed_form(run.pair, task.images, transform, workers, run.processes)


@torch.no_grad()
def fit_closed_form(
    pair: TeacherStudent, images: TaskImages, transform: PixelTransform, workers: int, processes: Processes
) -> None:
    """Add the sums of a task's images to every closed-form head, in one pass over them, and solve it.

    A student whose targets weigh the teacher's probabilities is looked at in a second pass, when these are known.
    """
    learners = [learner for learner in pair.learners.values() if learner.closed_form is not None]
    later = [learner for learner in learners if weighs_teacher(learner)]
    for group in ([learner for learner in learners if learner not in later], later):
        if group:
            sums = _sums_of(pair, group, images, transform, workers, processes)
            for learner in group:
                assert learner.closed_form is not None
                for some in processes.gathered(sums[learner.role]):
                    if some is not None:
                        learner.closed_form.add(some)
                learner.closed_form.solve()


def weighs_teacher(learner: Learner) -> bool:
    """Whether its head's targets are in part what the teacher says."""
    return learner.closed_form is not None and learner.closed_form.rule.teacher_weight > 0


def _sums_of(
    pair: TeacherStudent,
    learners: list[Learner],
    images: TaskImages,
    transform: PixelTransform,
    workers: int,
    processes: Processes,
) -> dict[str, Statistics | None]:
    """The sums of this process's share of the images, by role."""
    encoder, device = pair.encoder, pair.encoder.backbone.mean.device
    held = {learner.role: _Held(learner, images_a_class(len(set(images.labels)))) for learner in learners}
    for pixels, labels in evaluation_batches(images, transform, workers, processes):
        pixels = to_device(pixels, device)
        query = encoder(pixels, any(learner.method.uses_query for learner in learners))
        probabilities = None
        if weighs_teacher(learners[0]):
            assert pair.teacher is not None
            output = learner_output(encoder, pair.teacher, pixels)
            probabilities = pair.teacher.predict(output).softmax(dim=1).cpu()
        for learner in learners:
            output = learner_output(encoder, learner, pixels, query)
            features = learner.closed_form_features(output).float().cpu()
            held[learner.role].take(features, labels.cpu(), probabilities)
    return {role: own.finish() for role, own in held.items()}


class _Held:
    """Features on their way to sums, a few thousand images at a time; some of each class are held to the end."""

    def __init__(self, learner: Learner, measured: int) -> None:
        """`measured`: images of each class on which it is measured how sure the head may be."""
        assert learner.closed_form is not None
        self.head, self.count, self.measured = learner.closed_form, 0, measured
        self.sums: Statistics | None = None
        self.parts: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self.some: list[tuple[Tensor, int]] = []
        self.taken: Counter[int] = Counter()

    def take(self, features: Tensor, labels: Tensor, probabilities: Tensor | None) -> None:
        """A batch: [B, F], [B] and, with a teacher, [B, C]."""
        self.parts.append((features, labels, probabilities))
        self.count += len(labels)
        for vector, label in zip(features, labels.tolist(), strict=True):
            if self.taken[label] < self.measured:
                self.taken[label] += 1
                self.some.append((vector.clone(), label))
        if self.count >= GATHERED:
            self._sum_up()

    def finish(self) -> Statistics | None:
        """The sums of all batches; None where there was none."""
        self._sum_up()
        if self.sums is None:
            return None
        features, labels = torch.stack([vector for vector, _ in self.some]), np.array([label for _, label in self.some])
        return replace(self.sums, overconfidence=self.head.overconfidence_of(features.numpy(), labels))

    def _sum_up(self) -> None:
        if self.parts:
            features, labels = (torch.cat([part[i] for part in self.parts]).numpy() for i in (0, 1))  # type: ignore[misc]
            outputs = [part[2] for part in self.parts if part[2] is not None]
            some = self.head.sums_of(features, labels, torch.cat(outputs).numpy() if outputs else None)
            self.sums = some if self.sums is None else self.sums.merge(some)
            self.parts, self.count = [], 0


def fitted_head(head: ClosedFormHead, ece: float | None) -> FittedHead:
    """What a run records of it."""
    chosen = float(head.chosen)
    return FittedHead(
        kind=head.rule.kind,
        features="+".join(head.features),
        dimension=head.size,
        chosen=None if np.isnan(chosen) else chosen,
        temperature=float(head.temperature),
        ece=ece,
    )


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
            outputs, labels = zip(*_outputs(pair, held_out.at(new), transform, workers), strict=True)
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


def evaluation_batches(
    test: TaskImages, transform: PixelTransform, workers: int, processes: Processes
) -> Iterable[tuple[Tensor, Tensor]]:
    """This process's share of a task's images, pixels and labels, as evaluation sees them."""
    labels, size = processes.share(test.labels), BATCH_ON_CPU if processes.device.type == "cpu" else BATCH
    if test.pixels is None:
        return batches(processes.share(test.items), labels, transform, size, workers=workers)
    pixels = test.pixels[processes.index :: processes.count]
    return zip(pixels.split(size), torch.tensor(labels).split(size), strict=True)
