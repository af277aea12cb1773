"""What is resolved about a student's answers once it has learned a task: α of the prediction, and calibration."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from cdl_deploy.training.data.loading import to_device
from cdl_deploy.training.data.task_data import TaskImages
from cdl_deploy.training.data.transforms import PixelTransform
from cdl_deploy.training.distillation.extra_token import ExtraToken
from cdl_deploy.training.distillation.protocol import LearnerOutput
from cdl_deploy.training.evaluation import evaluation_batches
from cdl_deploy.training.models.learner import learner_output
from cdl_deploy.training.models.teacher_student import TeacherStudent
from cdl_deploy.training.processes import Processes


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
