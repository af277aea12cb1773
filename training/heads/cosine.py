"""The cosine head of APT: rows of unit length for normalised features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.training.heads.linear import LinearHead
from cdl_deploy.training.heads.protocol import FoldedHead


class CosineHead(LinearHead):
    """logits = LayerNorm(x) Ŵᵀ + b, with rows Ŵ of unit length and a LayerNorm that has nothing to train (APT).

    Differs: where heads start at zero, new rows here are a constant vector of the length that `torch.nn.Linear`'s have.
    LayerNorm(x) sums to zero, so their logits are zero as well; a row of zeros would have no direction to start from.
    """

    def begin_task(self, new_classes: int, generator: torch.Generator, known: Sequence[int] = ()) -> None:
        super().begin_task(new_classes, generator, known)
        if self.start == "zeros":
            torch.nn.init.constant_(self.weight.trainable, (3 * self.size) ** -0.5)

    def unit_rows(self) -> Float[Tensor, "C F"]:
        """Ŵ."""
        return nn.functional.normalize(self.weight.all(), dim=1)

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B C"]:
        normed = nn.functional.layer_norm(features.unflatten(1, (-1, self.width)), (self.width,)).flatten(1)
        return nn.functional.linear(normed, self.unit_rows(), self.bias.all())

    def fold(self) -> FoldedHead:
        return FoldedHead(self.unit_rows(), self.bias.all(), self.features, normalise=True)
