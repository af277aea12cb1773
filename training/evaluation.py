"""Accuracy of a learner on the test images of every task it has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from cdl_deploy.training.data.loading import batches
from cdl_deploy.training.data.transforms import PixelTransform
from cdl_deploy.training.models.learner import Learner, QueryEncoder, learner_logits
from cdl_deploy.training.stage import TaskImages

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
    total, done, row = sum(len(test.items) for test in tests), 0, []
    for test in tests:
        correct = 0
        for pixels, labels in batches(test.items, test.labels, transform, BATCH, workers=workers):
            predicted = learner_logits(encoder, learner, pixels.to(device)).argmax(dim=1).cpu()
            correct += int((predicted == labels).sum())
            done += len(labels)
            on_images(done, total)
        row.append(100 * correct / len(test.items))
    return row
