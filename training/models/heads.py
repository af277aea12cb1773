"""A linear head whose rows, one per class, arrive task by task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.training.models.growing import GrowingRows


class GrowingHead(nn.Module):
    """logits = x Wᵀ + b over the classes seen so far.

    Differs: new rows are zeros; the paper's implementation draws them as `torch.nn.Linear` does (`start="linear"`). The
    cross-entropy over the current task's classes changes only differences between their rows. What the rows have in
    common stays as it was drawn, an offset between tasks that no training removes (docs/findings.md).
    """

    def __init__(self, width: int, start: str = "zeros") -> None:
        super().__init__()
        self.width = width
        self.start = start
        self.weight = GrowingRows(width)
        self.bias = GrowingRows()

    def begin_task(self, new_classes: int, generator: torch.Generator, known: Sequence[int] = ()) -> None:
        """New rows: zeros, or uniform in ±1/√D from `generator`. The rows of the classes `known` learn on."""
        bound = 0.0 if self.start == "zeros" else self.width**-0.5
        self.weight.grow((torch.rand(new_classes, self.width, generator=generator) * 2 - 1) * bound, known)
        self.bias.grow((torch.rand(new_classes, generator=generator) * 2 - 1) * bound, known)

    def effective_weight(self) -> Float[Tensor, "C D"]:
        """W as the features meet it."""
        return self.weight.all()

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Logits of every class seen."""
        return nn.functional.linear(features, self.effective_weight(), self.bias.all())


class NormalisedHead(GrowingHead):
    """logits = LayerNorm(x) Ŵᵀ + b, with rows Ŵ of unit length and a LayerNorm that has nothing to train (APT).

    Differs: where heads start at zero, new rows here are a constant vector of the length that `torch.nn.Linear`'s have.
    LayerNorm(x) sums to zero, so their logits are zero as well; a row of zeros would have no direction to start from.
    """

    def begin_task(self, new_classes: int, generator: torch.Generator, known: Sequence[int] = ()) -> None:
        super().begin_task(new_classes, generator, known)
        if self.start == "zeros":
            torch.nn.init.constant_(self.weight.trainable, (3 * self.width) ** -0.5)

    def effective_weight(self) -> Float[Tensor, "C D"]:
        return nn.functional.normalize(self.weight.all(), dim=1)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return super().forward(nn.functional.layer_norm(features, (self.width,)))
