"""One stage: one learner learns one task (method, sections 5 and 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cdl_deploy.errors import RunError
from cdl_deploy.training.config import OptimConfig
from cdl_deploy.training.data.loading import batches
from cdl_deploy.training.data.sources import Item
from cdl_deploy.training.data.transforms import PixelTransform
from cdl_deploy.training.losses import masked_cross_entropy
from cdl_deploy.training.models.learner import Learner, Role
from cdl_deploy.training.models.pair import Pair
from cdl_deploy.training.progress import Progress, Stage


@dataclass(frozen=True)
class TaskImages:
    """Images of one task with their labels, positions among the logits."""

    items: Sequence[Item]
    labels: Sequence[int]


def make_optimizer(learner: Learner, lr: float) -> torch.optim.Adam:
    """A fresh Adam, as every stage starts with: no weight decay and no kept moments, or earlier tasks would move.

    Parameters that all tasks share have a group of their own, with their own share of the learning rate.
    """
    shared, scale = learner.distillation.shared_parameters()
    apart = {id(value) for value in shared}
    own = [value for value in learner.parameters() if value.requires_grad and id(value) not in apart]
    groups: list[dict[str, Any]] = [{"params": own, "lr_scale": 1.0}]
    if shared:
        groups.append({"params": shared, "lr_scale": scale})
    return torch.optim.Adam(groups, lr=lr, betas=(0.9, 0.999), weight_decay=0.0)


def learning_rate(lr: float, epoch: int, epochs: int) -> float:
    """Cosine per epoch, from `lr` in epoch 0 towards 0 after the last. Differs: the reference is one epoch late."""
    return lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def stage_losses(pair: Pair, role: Role, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The terms of a learner's loss for a batch, by name; they add up to the loss.

    The query is computed once and serves teacher and student.
    """
    learner = pair.learners[role]
    query, student_tokens, entry = seen = pair.encoder(images, learner.method.uses_query)
    first, regulariser = learner.first_class, pair.query_losses(learner, seen)
    if role == "teacher":
        output = learner(learner.backbone.embed(images), query, "train")
        cross_entropy = masked_cross_entropy(output.class_logits, labels, first)
        return {"cross_entropy": cross_entropy, **output.losses, **regulariser}
    teacher_output = None
    if pair.teacher is not None:
        with torch.no_grad():
            teacher_output = pair.teacher(pair.teacher.backbone.embed(images), query, "distil")
    output = learner(student_tokens, query, "train", entry)
    cross_entropy = masked_cross_entropy(output.class_logits, labels, first)
    return {**learner.distillation.losses(cross_entropy, output, teacher_output, first), **output.losses, **regulariser}


def run_stage(
    pair: Pair,
    stage: Stage,
    images: TaskImages,
    transform: PixelTransform,
    config: OptimConfig,
    optimizer: torch.optim.Optimizer,
    first_epoch: int,
    on_epoch: Callable[[int], None],
    progress: Progress,
) -> None:
    """Epochs `first_epoch` to the last; `on_epoch` is called with the number of epochs done, to save them."""
    device = pair.encoder.backbone.mean.device
    assert config.batch_size is not None
    progress.stage_started(stage, first_epoch)
    for epoch in range(first_epoch, config.epochs):
        for group in optimizer.param_groups:
            group["lr"] = group["lr_scale"] * learning_rate(config.lr, epoch, config.epochs)
        loader = batches(
            images.items,
            images.labels,
            transform,
            config.batch_size,
            workers=config.workers,
            seed=config.seed,
            place=(stage.task, stage.role, epoch),
            shuffle=True,
        )
        for step, (pixels, labels) in enumerate(loader):
            terms = stage_losses(pair, stage.role, pixels.to(device), labels.to(device))
            loss = torch.stack(list(terms.values())).sum()
            values = {name: value.item() for name, value in terms.items()}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise RunError(
                        f"the {stage.role}'s {name} became {value} in task {stage.task}, epoch {epoch + 1}, "
                        f"step {step + 1}: lower --lr, or look for broken images; the last checkpoint is intact"
                    )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress.step(stage, epoch, len(labels), values)
        on_epoch(epoch + 1)
    progress.stage_finished(stage)
