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

    def __init__(self, weight: Tensor, bias: Tensor, output_tokens: tuple[int, ...], normalise: bool = False) -> None:
        super().__init__()
        self.normalise = normalise
        self.output_tokens = output_tokens
        """Positions of the tokens the last block has to produce; −1 is the last."""
        self.register_buffer("weight", weight.detach().contiguous())
        self.register_buffer("bias", bias.detach().contiguous())

    def forward(self, tokens: Float[Tensor, "B n D"]) -> Float[Tensor, "B C"]:
        if self.normalise:
            tokens = nn.functional.layer_norm(tokens, tokens.shape[-1:])
        return nn.functional.linear(tokens.flatten(1), self.weight, self.bias)


def fold_heads(learner: Learner) -> FoldedHeads:
    """Class head alone, or, for KDP and DeiT, (1 − α) of it beside α of the KD head; calibrated if the learner is."""
    weight, bias = learner.class_head.effective_weight(), learner.class_head.bias.all()
    distillation, calibration = learner.distillation, learner.calibration
    if isinstance(distillation, ExtraToken):
        alpha = torch.as_tensor(distillation.mixing).to(bias)
        share = alpha[..., None]
        parts = [(1 - share) * weight, share * distillation.head.effective_weight()]
        weight = parts[0] + parts[1] if distillation.token is None else torch.cat(parts, dim=1)
        bias = (1 - alpha) * bias + alpha * distillation.head.bias.all()
    elif distillation.answers:
        raise NotImplementedError(f"no folded heads for {type(distillation).__name__}")
    if calibration is not None:
        weight, bias = weight * calibration.scale[:, None], bias * calibration.scale + calibration.offset
    normalise = isinstance(learner.class_head, NormalisedHead)
    return FoldedHeads(weight, bias, distillation.output_tokens if distillation.answers else (0,), normalise)
