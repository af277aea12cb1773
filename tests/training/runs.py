"""A run small enough to be trained over and over, and what is asked of it."""

from __future__ import annotations

import torch

from cdl_deploy.run.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RunConfig
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.progress import Progress


def config(photos, distill: str = "kdp", **changes) -> RunConfig:
    """Two tasks of two classes; the student's shape for the teacher too, to be quick."""
    optim = {"epochs": 2, "batch_size": 4, "seed": 0, "device": "cpu", **changes}
    return RunConfig(
        DataConfig(str(photos), tasks=2, class_order="natural"),
        ModelConfig(teacher="mini_student", student="mini_student"),
        MethodConfig(distill=distill, components_per_task=2),
        OptimConfig(**optim),
    )


class Interrupt(Progress):
    """Stops the run after a number of steps, like Ctrl-C."""

    def __init__(self, after: int) -> None:
        self.left = after

    def step(self, stage, epoch, images, losses):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def weights(run) -> dict[str, torch.Tensor]:
    record, pair = load_run(run)
    assert record.finished
    return pair.trained_state()
