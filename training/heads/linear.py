"""The learned linear head, whose rows, one per class, arrive task by task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.training.features import Feature
from cdl_deploy.training.growing import GrowingRows
from cdl_deploy.training.heads.protocol import FoldedHead, Head


class LinearHead(Head):
    """logits = x Wᵀ + b over the classes seen so far.

    Differs: new rows are zeros; the paper's implementation draws them as `torch.nn.Linear` does (`start="linear"`). The
    cross-entropy over the current task's classes changes only differences between their rows. What the rows have in
    common stays as it was drawn, an offset between tasks that no training removes (docs/findings.md).
    """

    def __init__(self, width: int, start: str = "zeros", features: tuple[Feature, ...] = ("class",)) -> None:
        super().__init__(width, start, features)
        self.size = width * len(features)
        self.weight = GrowingRows(self.size)
        self.bias = GrowingRows()

    def begin_task(self, new_classes: int, generator: torch.Generator, known: Sequence[int] = ()) -> None:
        """New rows: zeros, or uniform in ±1/√F from `generator`."""
        bound = 0.0 if self.start == "zeros" else self.size**-0.5
        self.weight.grow((torch.rand(new_classes, self.size, generator=generator) * 2 - 1) * bound, known)
        self.bias.grow((torch.rand(new_classes, generator=generator) * 2 - 1) * bound, known)

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B C"]:
        return nn.functional.linear(features, self.weight.all(), self.bias.all())

    def fold(self) -> FoldedHead:
        return FoldedHead(self.weight.all(), self.bias.all(), self.features)
