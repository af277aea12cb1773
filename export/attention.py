"""A block's attention with its constants folded in: what remains is products of tokens, a softmax and two additions.

    scale   the query's rows are multiplied by it beforehand
    bₖ      adds the same to every score of a query, which a softmax does not see: left out, and taken off prompts
    bᵥ      shares add up to 1, so it comes out of the mixture as it is: Wₚ bᵥ + bₚ is the projection's bias, and it is
            taken off prompts

Query, key and value have a matrix each. Together in one product, as the training model has them, they would have to be
moved apart again, which takes longer than three products instead of one.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.training.models.backbone import Backbone

HeadRows = tuple[Float[Tensor, "b H p d"], Float[Tensor, "b H p d"]]
"""key prompts and value prompts, split into heads."""
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
        attention, self.heads = backbone.attention(index), backbone.heads
        query, key, value = attention.qkv.weight.detach().chunk(3)
        bias = attention.qkv.bias
        shifts = (torch.zeros(3 * backbone.width) if bias is None else bias.detach()).chunk(3)
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.key_is_product = isinstance(self.k_norm, nn.Identity)
        """Otherwise keys are normalised, and no bias of theirs can be left out."""
        scale = attention.scale if isinstance(self.q_norm, nn.Identity) else 1.0
        self.later_scale = attention.scale / scale
        self.q = Product(query * scale, shifts[0] * scale)
        self.k = Product(key, None if self.key_is_product else shifts[1])
        self.v = Product(value)
        project = attention.proj.weight.detach()
        own = 0 if attention.proj.bias is None else attention.proj.bias.detach()
        self.proj = Product(project, own + project @ shifts[2])
        left_out = shifts[1] if self.key_is_product else torch.zeros_like(shifts[1])
        for name, shift in (("key_shift", left_out), ("value_shift", shifts[2])):
            self.register_buffer(name, shift.view(1, self.heads, 1, -1).clone(), persistent=False)

    def shifted(self, rows: HeadRows) -> HeadRows:
        """Prompts as this attention wants them: without what its own keys and values have been left without."""
        return rows[0] - self.key_shift, rows[1] - self.value_shift

    def queries(self, normed: Float[Tensor, "B n D"]) -> Float[Tensor, "B H n d"]:
        """What tokens ask, times the scale."""
        query = self.q_norm(split_heads(self.q(normed), self.heads))
        return query if self.later_scale == 1 else query * self.later_scale

    def keys(self, normed: Float[Tensor, "B N D"]) -> Float[Tensor, "B H N d"]:
        return self.k_norm(split_heads(self.k(normed), self.heads))

    def values(self, normed: Float[Tensor, "B N D"]) -> Float[Tensor, "B H N d"]:
        return split_heads(self.v(normed), self.heads)

    def project(self, normed: Float[Tensor, "B N D"]) -> Projected:
        """Query, key and value of normalised tokens."""
        return self.queries(normed), self.keys(normed), self.values(normed)

    def output(self, mixed: Float[Tensor, "B H n d"]) -> Float[Tensor, "B n D"]:
        """The projection of what was gathered."""
        return self.proj(mixed.transpose(1, 2).flatten(2))


def split_heads(rows: Float[Tensor, "B N D"], heads: int) -> Float[Tensor, "B H N d"]:
    """Rows split into heads."""
    return rows.unflatten(2, (heads, -1)).transpose(1, 2)


def fold_attentions(backbone: Backbone) -> dict[int, FoldedAttention]:
    """Of every block."""
    return {index: FoldedAttention(backbone, index) for index in range(backbone.depth)}


def as_blocks(attentions: dict[int, FoldedAttention]) -> nn.ModuleDict:
    """The same under the names that their constants get in the file: `3.attn.q.weight`."""
    return nn.ModuleDict({str(index): nn.ModuleDict({"attn": own}) for index, own in attentions.items()})
