"""The loss terms of the steps, read from the device a few steps at a time.

Reading a number makes the host wait until the device has computed it. On a GPU that would leave the device without work
after every step, so the numbers of some steps are fetched together; on a CPU there is nothing to wait for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cdl_deploy.errors import RunError
from cdl_deploy.training.progress import Stage

STEPS_ON_A_GPU = 20


class LossLog:
    """Tells `on_step` (images, terms by name) about every step, in order, and raises RunError for one that is no
    number."""

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
