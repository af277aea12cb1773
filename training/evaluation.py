"""Accuracy of a learner on the test images of every task it has seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from cdl_deploy.training.data.loading import batches, to_device
from cdl_deploy.training.data.task_data import TaskImages
from cdl_deploy.training.data.transforms import PixelTransform
from cdl_deploy.training.models.learner import Learner, QueryEncoder, learner_logits
from cdl_deploy.training.processes import Processes

BATCH = 128


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
