"""One stage: one learner learns one task (method, sections 5 and 6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdl_deploy.run.config import OptimConfig
from cdl_deploy.training.data.loading import TrainingImages, to_device
from cdl_deploy.training.distillation.protocol import LearnerOutput
from cdl_deploy.training.loss_log import LossLog
from cdl_deploy.training.losses import masked_cross_entropy
from cdl_deploy.training.models.learner import Learner, Role
from cdl_deploy.training.models.teacher_student import TeacherStudent
from cdl_deploy.training.processes import Processes
from cdl_deploy.training.progress import Progress, Stage, Stop, Stopped

PIECE = 16
"""Images that a CPU learns from at a time; more are no faster."""


class Position(NamedTuple):
    """How far a stage has come: whole epochs, and steps of the next one."""

    epoch: int = 0
    step: int = 0


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


def learning_rate(lr: float, epoch: int, epochs: int, schedule: str = "cosine") -> float:
    """Cosine per epoch, from `lr` in epoch 0 towards 0 after the last.

    Differs: the reference is one epoch late (`cosine-late`): epochs 0 and 1 both get `lr`, the lowest rate is never
    reached.
    """
    if schedule == "cosine-late":
        epoch = max(0, epoch - 1)
    return lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def stage_losses(pair: TeacherStudent, role: Role, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The terms of a learner's loss for a batch, by name; they add up to the loss.

    The query is computed once and serves teacher and student.
    """
    learner = pair.learners[role]
    query, student_tokens, entry = seen = pair.encoder(images, learner.method.uses_query)
    first, regulariser = learner.first_class, pair.query_losses(learner, seen)
    columns = learner.unfrozen_columns()
    if columns is not None:  # from here on as if there were no other classes
        first, labels = 0, torch.searchsorted(columns, labels)
    if role == "teacher":
        output = _over(columns, learner(learner.backbone.embed(images), query, "train"))
        cross_entropy = masked_cross_entropy(output.class_logits, labels, first)
        return {"cross_entropy": cross_entropy, **output.losses, **regulariser}
    teacher_output, hidden_blocks = None, learner.distillation.hidden_blocks
    if pair.teacher is not None:
        with torch.no_grad():
            tokens = pair.teacher.backbone.embed(images)
            teacher_output = _over(columns, pair.teacher(tokens, query, "distil", hidden_blocks=hidden_blocks))
    output = _over(columns, learner(student_tokens, query, "train", entry, hidden_blocks))
    cross_entropy = masked_cross_entropy(output.class_logits, labels, first)
    distilled = learner.distillation.losses(cross_entropy, output, teacher_output, first, labels)
    return {**distilled, **output.losses, **regulariser}


def _over(columns: Tensor | None, output: LearnerOutput) -> LearnerOutput:
    """The output with the logits at `columns` only."""
    if columns is None:
        return output
    extra = output.extra_logits
    return replace(
        output,
        class_logits=output.class_logits[:, columns],
        extra_logits=None if extra is None else extra[:, columns],
    )


def take_step(
    pair: TeacherStudent,
    role: Role,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    processes: Processes,
    size: int,
) -> tuple[tuple[str, ...], Tensor]:
    """Learn from a batch: names and values [terms] of the loss terms, as they were before the step.

    `images` are this process's share of a global batch of `size`. On a CPU they are looked at in pieces: every loss is
    a mean over the batch, so gradients add up to the same, and only one piece's tokens are held.
    """
    share = len(processes.share(range(size))) / size
    piece = PIECE if images.device.type == "cpu" else len(images)
    optimizer.zero_grad()
    summed: list[Tensor] = []
    for some, some_labels in zip(images.split(piece), labels.split(piece), strict=True):
        terms = stage_losses(pair, role, some, some_labels)
        values = torch.stack(list(terms.values())) * (share * len(some) / len(images))
        values.sum().backward()
        summed.append(values.detach())
    trained = (value for group in optimizer.param_groups for value in group["params"])
    values = processes.add_up(trained, torch.stack(summed).sum(dim=0))
    optimizer.step()
    return tuple(terms), values


def run_stage(
    pair: TeacherStudent,
    stage: Stage,
    images: TrainingImages,
    config: OptimConfig,
    optimizer: torch.optim.Optimizer,
    start: Position,
    save: Callable[[Position], None],
    progress: Progress,
    stop: Stop,
    processes: Processes,
) -> None:
    """From `start` to the last epoch; `save` is called after every epoch.

    Where `stop` says so, in one process or in several, the step at hand is finished and saved, and Stopped raised.
    """
    device = processes.device
    assert config.batch_size is not None
    progress.stage_started(stage, *start)
    for epoch in range(start.epoch, config.epochs):
        done = start.step if epoch == start.epoch else 0
        lr = learning_rate(config.lr, epoch, config.epochs, config.schedule)
        for group in optimizer.param_groups:
            group["lr"] = group["lr_scale"] * lr
        if not done:
            progress.epoch_started(stage, epoch, lr)
        scope = (stage.task, stage.role, epoch)
        loader = images.batches(config.batch_size, config.seed, scope, done, processes.share)
        log = LossLog(stage, epoch, device, partial(progress.step, stage, epoch))
        for step, (pixels, labels) in enumerate(loader, start=done):
            size = min(config.batch_size, len(images) - step * config.batch_size)
            pixels, labels = to_device(pixels, device), to_device(labels, device)
            log.add(step, size, *take_step(pair, stage.role, optimizer, pixels, labels, processes, size))
            if processes.any(stop()) and (step + 1) * config.batch_size < len(images):
                log.flush()
                save(Position(epoch, step + 1))
                raise Stopped
        log.flush()
        save(Position(epoch + 1))
        if processes.any(stop()):
            raise Stopped
    progress.stage_finished(stage)
