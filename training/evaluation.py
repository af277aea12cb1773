"""Accuracy of a learner on the test images of every task it has seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from cdl_deploy.training.data.loading import batches
from cdl_deploy.training.data.task_data import TaskImages
from cdl_deploy.training.data.transforms import PixelTransform
from cdl_deploy.training.models.learner import Learner, QueryEncoder, learner_logits

BATCH = 128


@torch.no_grad()
def accuracy_row(
    encoder: QueryEncoder,
    learner: Learner,
    tests: Sequence[TaskImages],
    transform: PixelTransform,
    workers: int = 0,
    on_images: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """Percent correct on each task's test images, choosing among all classes seen: one row of the accuracy matrix."""
    device = encoder.backbone.mean.device
    total, done, row = sum(len(test.labels) for test in tests), 0, []
    for test in tests:
        correct = 0
        for pixels, labels in _test_batches(test, transform, workers):
            predicted = learner_logits(encoder, learner, pixels.to(device)).argmax(dim=1).cpu()
            correct += int((predicted == labels).sum())
            done += len(labels)
            on_images(done, total)
        row.append(100 * correct / len(test.labels))
    return row


def _test_batches(test: TaskImages, transform: PixelTransform, workers: int) -> Iterable[tuple[Tensor, Tensor]]:
    if test.pixels is None:
        return batches(test.items, test.labels, transform, BATCH, workers=workers)
    return zip(test.pixels.split(BATCH), torch.tensor(test.labels).split(BATCH), strict=True)
