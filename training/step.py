"""One step of one learner: the losses of a batch, their gradients, Adam (method, sections 5 and 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cdl_deploy.errors import RunError
from cdl_deploy.run.config import OptimConfig
from cdl_deploy.training.data.loading import Batch, split
from cdl_deploy.training.distillation.protocol import LearnerOutput
from cdl_deploy.training.frozen import compute_frozen, from_rows
from cdl_deploy.training.losses import masked_cross_entropy
from cdl_deploy.training.models.learner import Learner, Role
from cdl_deploy.training.models.teacher_student import TeacherStudent
from cdl_deploy.training.processes import Processes
from cdl_deploy.training.progress import Stage

PIECE = 16
"""Images that a CPU learns from at a time; more are no faster."""
STEPS_ON_A_GPU = 20
"""Whose losses are fetched together."""


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
    """Per epoch; `epoch` counts from 0, late = max(0, epoch − 1).

        cosine                 lr · (1 + cos(π · epoch / epochs)) / 2            towards 0 after the last epoch
        quarter-cosine-late    lr · cos(99π · late / (200 (epochs − 1)))
        cosine-late            lr · (1 + cos(π · late / epochs)) / 2

    Differs: the reference has `quarter-cosine-late`: epochs 0 and 1 both get `lr`, the lowest rate is never reached.
    `cosine-late` is what runs of earlier versions had in its place; they go on as they were.
    """
    late = max(0, epoch - 1)
    if schedule == "quarter-cosine-late":
        return lr * math.cos(99 * math.pi * late / (200 * max(1, epochs - 1)))
    return lr * 0.5 * (1 + math.cos(math.pi * (late if schedule == "cosine-late" else epoch) / epochs))


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimConfig, epoch: int) -> float:
    """Of every group of parameters, for an epoch; returns that of the first."""
    lr = learning_rate(config.lr, epoch, config.epochs, config.schedule)
    for group in optimizer.param_groups:
        group["lr"] = group["lr_scale"] * lr
    return lr


def stage_losses(pair: TeacherStudent, role: Role, images: Batch, labels: Tensor) -> dict[str, Tensor]:
    """The terms of a learner's loss for a batch, by name; they add up to the loss."""
    learner = pair.learners[role]
    frozen = compute_frozen(pair, role, images) if isinstance(images, Tensor) else from_rows(pair, role, images)
    first, regulariser = learner.first_class, pair.query_losses(learner, frozen.query, frozen.full_query)
    columns = None if learner.learns_one_class else learner.unfrozen_columns()
    if learner.learns_one_class:
        first = 0  # its row against those of all other classes, which stand still (method, section 5)
    elif columns is not None:  # from here on as if there were no other classes
        first, labels = 0, torch.searchsorted(columns, labels)
    hidden_blocks = learner.distillation.hidden_blocks
    output = _over(columns, learner(frozen.tokens, frozen.query, "train", frozen.entry, hidden_blocks))
    terms = {"cross_entropy": masked_cross_entropy(output.class_logits, labels, first)}
    if role == "student":
        teacher_output = None if frozen.teacher is None else _over(columns, frozen.teacher)
        terms = learner.distillation.losses(terms["cross_entropy"], output, teacher_output, first, labels)
    return {**terms, **output.losses, **regulariser}


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
    images: Batch,
    labels: Tensor,
    processes: Processes,
    size: int,
) -> tuple[tuple[str, ...], Tensor]:
    """Learn from a batch: names and values [terms] of the loss terms, as they were before the step.

    `images` are this process's share of a global batch of `size`. On a CPU they are looked at in pieces: every loss is
    a mean over the batch, so gradients add up to the same, and only one piece's tokens are held.
    """
    share = len(processes.share(range(size))) / size
    piece = piece_size(labels)
    optimizer.zero_grad()
    summed: list[Tensor] = []
    for some, some_labels in zip(split(images, piece), labels.split(piece), strict=True):
        terms = stage_losses(pair, role, some, some_labels)
        values = torch.stack(list(terms.values())) * (share * len(some_labels) / len(labels))
        values.sum().backward()
        summed.append(values.detach())
    trained = (value for group in optimizer.param_groups for value in group["params"])
    values = processes.add_up(trained, torch.stack(summed).sum(dim=0))
    optimizer.step()
    return tuple(terms), values


def piece_size(labels: Tensor) -> int:
    """How many images of a batch are looked at together."""
    return PIECE if labels.device.type == "cpu" else len(labels)


class LossLog:
    """Tells `on_step` (images, terms by name) about every step, in order, and raises RunError for one that is no
    number.

    Reading a number makes the host wait until the device has computed it. On a GPU that would leave the device without
    work after every step, so the numbers of some steps are fetched together; on a CPU there is nothing to wait for.
    """

    def __init__(
        self, stage: Stage, epoch: int, device: torch.device, on_step: Callable[[int, Mapping[str, float]], None]
    ) -> None:
        self.stage, self.epoch, self.on_step = stage, epoch, on_step
        self.every = 1 if device.type == "cpu" else STEPS_ON_A_GPU
        self.waiting: list[tuple[int, int, tuple[str, ...], Tensor]] = []

    def add(self, step: int, images: int, names: tuple[str, ...], values: Tensor) -> None:
        """The terms of step `step`, counted from 0: `values` [terms], still on the device."""
        self.waiting.append((step, images, names, values))
        if len(self.waiting) >= self.every:
            self.flush()

    def flush(self) -> None:
        """Fetch what is waiting. Whoever is about to save the learner must call this first."""
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return
        fetched = torch.cat([values for *_, values in waiting]).tolist()
        for step, images, names, _ in waiting:
            terms = dict(zip(names, fetched, strict=False))
            fetched = fetched[len(names) :]
            for name, value in terms.items():
                if not math.isfinite(value):
                    raise RunError(
                        f"the {self.stage.role}'s {name} became {value} in task {self.stage.task}, "
                        f"epoch {self.epoch + 1}, step {step + 1}: lower --lr, or look for broken images; "
                        "the last checkpoint is intact"
                    )
            self.on_step(images, terms)
