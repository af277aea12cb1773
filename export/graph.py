"""The network as it is exported: the learner's own computation with everything that training decided folded in.

Three things differ from the training model, and none changes a logit by more than rounding:

* only what is read is computed: the last block of the query pass ends in the class token alone, the last block of the
  prompted pass in the class token and, where there is one, the distillation's token;
* a method's selection is folded by `cdl_deploy.export.selection` (key norms, A∘K̂ and A² are constants);
* class head and KD head, with their share of the prediction, are one matrix.

The attention is written out in matrix products and a softmax: any runtime can execute it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.export.heads import fold_heads
from cdl_deploy.export.selection import fold_selection
from cdl_deploy.training.models.backbone import Backbone, BlockPrompt
from cdl_deploy.training.models.learner import Learner
from cdl_deploy.training.models.pair import Pair

HeadRows = tuple[Float[Tensor, "b H p d"], Float[Tensor, "b H p d"]]
"""Key rows and value rows, split into heads."""


class ExportGraph(nn.Module):
    """`forward`: normalised pixels [B, 3, height, width] → logits [B, C] of the classes seen, and their softmax."""

    scale: Tensor
    shift: Tensor

    def __init__(self, pair: Pair, learner: Learner) -> None:
        super().__init__()
        self.query_backbone = pair.encoder.backbone
        self.backbone = learner.backbone
        self.shared = self.query_backbone is self.backbone
        # The input is normalised with the statistics of the learner's own backbone; the query's may be others.
        own, other = self.backbone, self.query_backbone
        self.register_buffer("scale", own.std / other.std)
        self.register_buffer("shift", (own.mean - other.mean) / other.std)
        self.renormalise = bool((self.scale != 1).any() or (self.shift != 0).any())
        self.selection = fold_selection(learner.method, self.backbone.heads)
        self.head = fold_heads(learner)
        self.token = learner.distillation.append_token
        self.own_prompts = learner.distillation.block_prompts()

    def forward(self, image: Float[Tensor, "B 3 height width"]) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
        tokens = self.backbone.embed_normalised(image)
        prompts = self.selection(self.query(image, tokens))
        tokens = self.token(tokens)
        last = self.backbone.depth - 1
        for index in range(self.backbone.depth):
            read = self.head.tokens_read if index == last else None
            tokens = run_block(self.backbone, index, tokens, prompts.get(index), self.own_prompts.get(index), read)
        logits = self.head(self.backbone.final_norm(tokens))
        return logits, logits.softmax(dim=1)

    def query(self, image: Tensor, tokens: Tensor) -> Float[Tensor, "B Q"]:
        """The class token of the unprompted student, after its final norm."""
        backbone = self.query_backbone
        if not self.shared:
            tokens = backbone.embed_normalised(image * self.scale + self.shift if self.renormalise else image)
        last = backbone.depth - 1
        for index in range(backbone.depth):
            tokens = run_block(backbone, index, tokens, read=(0,) if index == last else None)
        return backbone.final_norm(tokens[:, 0])


def run_block(
    backbone: Backbone,
    index: int,
    tokens: Float[Tensor, "B N D"],
    before: HeadRows | None = None,
    own: BlockPrompt | None = None,
    read: tuple[int, ...] | None = None,
) -> Float[Tensor, "B n D"]:
    """One block with prompt rows around its keys and values; with `read`, only those tokens come out."""
    block = backbone.block(index)
    attention, heads = backbone.attention(index), backbone.heads
    normed = block.norm1(tokens)
    kept = tokens if read is None else select_tokens(tokens, read)
    if read is None:
        query, key, value = split_heads(attention.qkv(normed), 3, heads).unbind(0)
    else:
        width = backbone.width
        weight, bias = attention.qkv.weight, attention.qkv.bias
        query = split_heads(
            nn.functional.linear(select_tokens(normed, read), weight[:width], None if bias is None else bias[:width]),
            1,
            heads,
        )[0]
        key, value = split_heads(
            nn.functional.linear(normed, weight[width:], None if bias is None else bias[width:]), 2, heads
        ).unbind(0)
    query, key = attention.q_norm(query), attention.k_norm(key)
    keys, values = [key], [value]
    if before is not None:
        keys.insert(0, before[0])
        values.insert(0, before[1])
    if own is not None and own.after is not None:
        rows_key, rows_value = (constant_rows(rows, heads, tokens.shape[0]) for rows in own.after)
        keys.append(rows_key)
        values.append(rows_value)
    scores = (query * attention.scale) @ torch.cat(keys, dim=2).transpose(2, 3)
    mixed = scores.softmax(dim=-1) @ torch.cat(values, dim=2)
    kept = kept + block.ls1(attention.proj(mixed.transpose(1, 2).flatten(2)))
    return kept + block.ls2(block.mlp(block.norm2(kept)))


def split_heads(rows: Float[Tensor, "B N parts_D"], parts: int, heads: int) -> Float[Tensor, "parts B H N d"]:
    """A fused projection's output, by part and head."""
    return rows.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4)


def constant_rows(rows: Float[Tensor, "1 p D"], heads: int, batch: int) -> Float[Tensor, "B H p d"]:
    """Rows that are the same for every image."""
    return rows.unflatten(2, (heads, -1)).transpose(1, 2).contiguous().expand(batch, -1, -1, -1)


def select_tokens(tokens: Float[Tensor, "B N D"], read: tuple[int, ...]) -> Float[Tensor, "B n D"]:
    """The tokens at the positions `read`, which may be counted from the end."""
    return torch.cat([tokens[:, i : i + 1] if i >= 0 else tokens[:, i:][:, :1] for i in read], dim=1)
