"""The heads of a learner and their share in the prediction as one matrix product."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.training.distillation.extra_token import ExtraToken
from cdl_deploy.training.models.heads import NormalisedHead
from cdl_deploy.training.models.learner import Learner


class FoldedHeads(nn.Module):
    """logits = [tokens read, side by side] · Wᵀ + b; with `normalise` each token passes a bare LayerNorm before."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, tokens_read: tuple[int, ...], normalise: bool = False) -> None:
        super().__init__()
        self.normalise = normalise
        self.tokens_read = tokens_read
        """Positions of the tokens the last block has to produce; −1 is the last."""
        self.register_buffer("weight", weight.detach().contiguous())
        self.register_buffer("bias", bias.detach().contiguous())

    def forward(self, tokens: Float[Tensor, "B n D"]) -> Float[Tensor, "B C"]:
        if self.normalise:
            tokens = nn.functional.layer_norm(tokens, tokens.shape[-1:])
        return nn.functional.linear(tokens.flatten(1), self.weight, self.bias)


def fold_heads(learner: Learner) -> FoldedHeads:
    """Class head alone, or, for KDP and DeiT, (1 − α) of it beside α of the KD head."""
    weight, bias = learner.class_head.rows(), learner.class_head.bias.all()
    normalise = isinstance(learner.class_head, NormalisedHead)
    distillation = learner.distillation
    if isinstance(distillation, ExtraToken):
        alpha, head = distillation.alpha, distillation.head
        weight = torch.cat([(1 - alpha) * weight, alpha * head.rows()], dim=1)
        return FoldedHeads(weight, (1 - alpha) * bias + alpha * head.bias.all(), (0, -1), normalise)
    if not distillation.answers:
        return FoldedHeads(weight, bias, (0,), normalise)
    raise NotImplementedError(f"no folded heads for {type(distillation).__name__}")
