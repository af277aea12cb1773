"""The network as it is exported: the learner's own computation with everything that training decided folded in.

Three things differ from the training model, and none changes a logit by more than rounding:

* only what is read is computed: the last block of the query pass ends in the class token alone, the last block of the
  prompted pass in the class token and, where there is one, the distillation's token;
* a method's selection is folded by `cdl_deploy.export.selection` (key norms, A∘K̂ and A² are constants), and what is
  the same for every image is split into heads beforehand;
* class head and KD head, with their share of the prediction, are one matrix.

The attention is written out in matrix products and a softmax: any runtime can execute it.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.export.embedding import fold_embedding
from cdl_deploy.export.heads import fold_heads
from cdl_deploy.export.selection import HeadRows, fold_selection, split_rows
from cdl_deploy.training.models.backbone import Backbone, BlockPrompt
from cdl_deploy.training.models.learner import Learner, merge
from cdl_deploy.training.models.pair import Pair


class ExportGraph(nn.Module):
    """`forward`: an image tensor [B, 3, height, width] → logits [B, C] of the classes seen, their softmax, task scores.

    The tensor holds pixels from 0 to 255 (`pixels`), or is normalised with the statistics of the learner's backbone.
    With the query of `block:K` the student is one pass: its first K blocks give the query, and it goes on from there.
    """

    def __init__(self, pair: Pair, learner: Learner, pixels: bool = False) -> None:
        super().__init__()
        self.query_backbone = pair.encoder.backbone
        self.backbone = learner.backbone
        self.shared = self.query_backbone is self.backbone
        own = self.backbone
        ones = torch.ones_like(own.mean)
        mean, std = (0 * ones, ones / 255) if pixels else (own.mean, own.std)
        self.embedding = fold_embedding(own, mean, std)
        if not self.shared:
            self.query_embedding = fold_embedding(self.query_backbone, mean, std)
        self.selection = fold_selection(learner.method, self.backbone.heads, len(learner.tasks))
        self.head = fold_heads(learner)
        self.token = learner.distillation.append_token
        self.uses_query = learner.method.uses_query
        self.first_block = learner.first_block
        self.query_block = pair.encoder.block
        constants = merge(dict(self.selection.constants), learner.distillation.block_prompts())
        heads = self.backbone.heads
        self.constants = nn.ModuleDict({str(i): ConstantPrompt(prompt, heads) for i, prompt in constants.items()})

    def forward(
        self, image: Float[Tensor, "B 3 height width"]
    ) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"], Float[Tensor, "B T"]]:
        tokens = self.embedding(image)
        for index in range(self.first_block):
            tokens = run_block(self.backbone, index, tokens)
        prompts, task_scores = self.selection(self.query(image, tokens) if self.uses_query else None)
        tokens = self.token(tokens)
        last = self.backbone.depth - 1
        for index in range(self.first_block, self.backbone.depth):
            constant = cast(ConstantPrompt, self.constants[str(index)]) if str(index) in self.constants else None
            read = self.head.tokens_read if index == last else None
            tokens = run_block(self.backbone, index, tokens, prompts.get(index), constant, read)
        logits = self.head(self.backbone.final_norm(tokens))
        return logits, logits.softmax(dim=1), task_scores.expand(image.shape[0], -1)

    def query(self, image: Tensor, tokens: Tensor) -> Float[Tensor, "B Q"]:
        """The class token of the unprompted student, after its final norm; `tokens` enter the first prompted block."""
        backbone = self.query_backbone
        if self.shared and self.query_block:
            return backbone.final_norm(tokens[:, 0])
        if not self.shared:
            tokens = self.query_embedding(image)
        count = self.query_block or backbone.depth
        for index in range(count):
            tokens = run_block(backbone, index, tokens, read=(0,) if index == count - 1 else None)
        return backbone.final_norm(tokens[:, 0])


class ConstantPrompt(nn.Module):
    """What one block gets for every image alike, split into heads: `before`, `after` and `class_shift`."""

    def __init__(self, prompt: BlockPrompt, heads: int) -> None:
        super().__init__()
        for place in ("before", "after", "class_shift"):
            pair = getattr(prompt, place)
            for part, rows in zip(("key", "value"), pair or (), strict=False):
                split = split_rows(rows.detach().view(1, -1, rows.shape[-1]), heads)
                self.register_buffer(f"{place}_{part}", split.contiguous())

    def pair(self, place: str) -> HeadRows | None:
        """Key rows and value rows [1, H, p, d], or None."""
        if f"{place}_key" not in self._buffers:
            return None
        return self.get_buffer(f"{place}_key"), self.get_buffer(f"{place}_value")


def run_block(
    backbone: Backbone,
    index: int,
    tokens: Float[Tensor, "B N D"],
    before: HeadRows | None = None,
    constant: ConstantPrompt | None = None,
    read: tuple[int, ...] | None = None,
) -> Float[Tensor, "B n D"]:
    """One block with prompt rows around its keys and values; with `read`, only those tokens come out.

    `before` are the rows chosen for each image.
    """
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
    chosen = before or (None, None)
    key, value = surround(key, 0, chosen[0], constant), surround(value, 1, chosen[1], constant)
    scores = (query * attention.scale) @ key.transpose(2, 3)
    mixed = scores.softmax(dim=-1) @ value
    kept = kept + block.ls1(attention.proj(mixed.transpose(1, 2).flatten(2)))
    return kept + block.ls2(block.mlp(block.norm2(kept)))


def surround(
    rows: Float[Tensor, "B H N d"], part: int, before: Float[Tensor, "B H p d"] | None, constant: ConstantPrompt | None
) -> Float[Tensor, "B H more d"]:
    """The tokens' keys (`part` 0) or values (1) with their prompt rows."""
    pairs = {place: constant.pair(place) if constant else None for place in ("before", "after", "class_shift")}
    shift, first, last = pairs["class_shift"], pairs["before"], pairs["after"]
    parts = [rows] if shift is None else [rows[:, :, :1] + shift[part], rows[:, :, 1:]]
    if before is not None:
        parts.insert(0, before)
    if first is not None:
        parts.insert(0, first[part].expand(rows.shape[0], -1, -1, -1))
    if last is not None:
        parts.append(last[part].expand(rows.shape[0], -1, -1, -1))
    return torch.cat(parts, dim=2) if len(parts) > 1 else rows


def split_heads(rows: Float[Tensor, "B N parts_D"], parts: int, heads: int) -> Float[Tensor, "parts B H N d"]:
    """A fused projection's output, by part and head."""
    return rows.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4)


def select_tokens(tokens: Float[Tensor, "B N D"], read: tuple[int, ...]) -> Float[Tensor, "B n D"]:
    """The tokens at the positions `read`, which may be counted from the end."""
    return torch.cat([tokens[:, i : i + 1] if i >= 0 else tokens[:, i:][:, :1] for i in read], dim=1)
