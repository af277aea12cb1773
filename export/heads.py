"""The heads of a learner and their share in the prediction as one matrix product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.training.backbones.protocol import OutputTokens
from cdl_deploy.training.features import in_order
from cdl_deploy.training.heads import FoldedHead
from cdl_deploy.training.models.learner import Learner


class FoldedHeads(nn.Module):
    """logits = φ(features read, side by side) · Wᵀ + b, as `FoldedHead` says."""

    weight: Tensor
    bias: Tensor
    projection: Tensor | None

    def __init__(self, folded: FoldedHead, output_tokens: OutputTokens) -> None:
        """`output_tokens`: what the last block has to produce."""
        super().__init__()
        self.unit_length = folded.unit_length
        self.normalise, self.output_tokens, self.computed = folded.normalise, output_tokens, in_order(folded.features)
        self.positions = tuple(self.computed.index(name) for name in folded.features)
        self.all_in_order = folded.features == self.computed
        self.register_buffer("weight", folded.weight.detach().contiguous())
        self.register_buffer("bias", folded.bias.detach().contiguous())
        projection = folded.projection
        self.register_buffer("projection", None if projection is None else projection.detach().T.contiguous())

    def forward(self, computed: Float[Tensor, "B n D"]) -> Float[Tensor, "B C"]:
        """From the features in `computed`."""
        return self.logits(self.mapped(self.read(computed)))

    def read(self, computed: Float[Tensor, "B n D"]) -> Float[Tensor, "B F"]:
        """Those that the head reads, side by side."""
        if not self.all_in_order:
            computed = torch.stack([computed[:, position] for position in self.positions], dim=1)
        if self.normalise:
            computed = nn.functional.layer_norm(computed, computed.shape[-1:])
        return computed.flatten(1)

    def mapped(self, rows: Float[Tensor, "B F"]) -> Float[Tensor, "B G"]:
        """φ: what the matrix is applied to."""
        if self.unit_length:
            rows = nn.functional.normalize(rows, dim=1)
        if self.projection is not None:
            rows = (rows @ self.projection).relu()
        return rows

    def logits(self, mapped: Float[Tensor, "B G"]) -> Float[Tensor, "B C"]:
        """The matrix product."""
        return nn.functional.linear(mapped, self.weight, self.bias)


def fold_heads(learner: Learner, known: Sequence[int] | None = None) -> FoldedHeads:
    """Class head and the distillation's, with their shares in the prediction, and calibrated if the learner is.

    `known`: the classes it is to have, by their position among the learner's logits; default: all.
    """
    folded = learner.fold_heads()
    if known is not None:
        folded = folded.of_classes(known)
    return FoldedHeads(folded, learner.backbone.output_tokens(folded.features))
