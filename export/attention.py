"""A block's attention with its constants folded in: what remains is products of tokens, a softmax and two additions.

    scale   the query's rows are multiplied by it beforehand
    bₖ      adds the same to every score of a query, which a softmax does not see: left out, and taken off prompts
    bᵥ      shares add up to 1, so it comes out of the mixture as it is: Wₚ bᵥ + bₚ is the projection's bias, and it is
            taken off prompts; where the mixture is normalised before it is projected, it stays where it is

Query, key and value have a matrix each. Together in one product, as the training model has them, they would have to be
moved apart again, which takes longer than three products instead of one.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.training.backbones.protocol import Backbone, OutputTokens
from cdl_deploy.training.methods.folded import HeadRows, split_heads

Projected = tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]
"""Query, key and value of tokens."""


class Product(nn.Module):
    """x · W + b, with the matrix [K, N] as the graph multiplies by it: no transpose is left to be made."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Float[Tensor, "N K"], bias: Float[Tensor, " N"] | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().T.contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, rows: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape N"]:
        found = rows @ self.weight
        return found if self.bias is None else found + self.bias


class FoldedAttention(nn.Module):
    """The attention of block `index`."""

    key_shift: Tensor
    value_shift: Tensor

    def __init__(self, backbone: Backbone, index: int) -> None:
        super().__init__()
        self.heads, weights = backbone.heads, backbone.attention_weights(index)
        self.position = partial(backbone.position, index)
        self.gathered = None if backbone.gathered_is_projected else partial(backbone.gathered, index)
        self.can_be_absorbed = backbone.keys_and_values_can_be_absorbed
        scale = weights.scale if backbone.scale_can_be_folded else 1.0
        self.later_scale = weights.scale / scale
        self.q = Product(weights.query * scale, weights.query_bias * scale)
        dropped = backbone.key_bias_can_be_dropped
        self.k = Product(weights.key, None if dropped else weights.key_bias)
        zeros = torch.zeros_like(weights.key_bias)
        value_bias = weights.value_bias if backbone.gathered_is_projected else zeros
        self.v = Product(weights.value, None if backbone.gathered_is_projected else weights.value_bias)
        own = 0 if weights.output_bias is None else weights.output_bias
        self.proj = Product(weights.output, own + weights.output @ value_bias)
        left_out = weights.key_bias if dropped else zeros
        for name, shift in (("key_shift", left_out), ("value_shift", value_bias)):
            self.register_buffer(name, shift.view(1, self.heads, 1, -1).clone(), persistent=False)

    def shifted(self, rows: HeadRows) -> HeadRows:
        """Prompts as this attention wants them: without what its own keys and values have been left without."""
        return rows[0] - self.key_shift, rows[1] - self.value_shift

    def queries(self, normed: Float[Tensor, "B n D"], at: OutputTokens = None) -> Float[Tensor, "B H n d"]:
        """What tokens ask, times the scale: all of them, or those at the positions `at`."""
        query = self.position(split_heads(self.q(normed), self.heads), False, at)
        return query if self.later_scale == 1 else query * self.later_scale

    def keys(self, normed: Float[Tensor, "B N D"], at: OutputTokens = None) -> Float[Tensor, "B H N d"]:
        return self.position(split_heads(self.k(normed), self.heads), True, at)

    def values(self, normed: Float[Tensor, "B N D"]) -> Float[Tensor, "B H N d"]:
        return split_heads(self.v(normed), self.heads)

    def project(self, normed: Float[Tensor, "B N D"], at: OutputTokens = None) -> Projected:
        """Query, key and value of normalised tokens."""
        return self.queries(normed, at), self.keys(normed, at), self.values(normed)

    def output(self, mixed: Float[Tensor, "B H n d"]) -> Float[Tensor, "B n D"]:
        """The projection of what was gathered."""
        rows = mixed.transpose(1, 2).flatten(2)
        return self.proj(rows if self.gathered is None else self.gathered(rows))


def fold_attentions(backbone: Backbone) -> dict[int, FoldedAttention]:
    """Of every block."""
    return {index: FoldedAttention(backbone, index) for index in range(backbone.depth)}


def as_blocks(attentions: dict[int, FoldedAttention]) -> nn.ModuleDict:
    """The same under the names that their constants get in the file: `3.attn.q.weight`."""
    return nn.ModuleDict({str(index): nn.ModuleDict({"attn": own}) for index, own in attentions.items()})
