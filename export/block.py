"""One block of the exported network: attention written out in matrix products and a softmax, and only what is read.

Any runtime can execute that.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.export.selection import HeadRows, split_rows
from cdl_deploy.training.models.backbone import Backbone, BlockPrompt

Projected = tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]
"""Query, key and value of tokens."""


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
    few: FewAsking | None = None,
    projected: Projected | None = None,
) -> Float[Tensor, "B n D"]:
    """One block with prompt rows around its keys and values; with `read`, only those tokens come out.

    `before` are the rows chosen for each image; `few` is how few tokens ask, where there is a way; `projected` what the
    tokens become in this block, where that is known.
    """
    block, attention = backbone.block(index), backbone.attention(index)
    kept = tokens if read is None else select_tokens(tokens, read)
    chosen = before or (None, None)
    if read is not None and few is not None:
        mixed = few(block.norm1(tokens), before, constant, read)
    else:
        query, key, value = projected or project(backbone, index, block.norm1(tokens))
        query = query if read is None else select_tokens(query.transpose(1, 2), read).transpose(1, 2)
        key, value = surround(key, 0, chosen[0], constant), surround(value, 1, chosen[1], constant)
        scores = (query * attention.scale) @ key.transpose(2, 3)
        mixed = scores.softmax(dim=-1) @ value
    kept = kept + block.ls1(attention.proj(mixed.transpose(1, 2).flatten(2)))
    return kept + block.ls2(block.mlp(block.norm2(kept)))


def enter(backbone: Backbone, tokens: Float[Tensor, "B N D"]) -> Projected:
    """What tokens become where they enter block 0."""
    return project(backbone, 0, backbone.block(0).norm1(tokens))


def project(backbone: Backbone, index: int, normed: Float[Tensor, "B N D"]) -> Projected:
    """Query, key and value of normalised tokens in one block."""
    attention = backbone.attention(index)
    query, key, value = split_heads(attention.qkv(normed), 3, backbone.heads).unbind(0)
    return attention.q_norm(query), attention.k_norm(key), value


class FewAsking(nn.Module):
    """A block's attention where n tokens ask and all N answer, without a key or a value for any of the N:

        scores = q · (X Wₖᵀ + bₖ)ᵀ = (q Wₖ) · Xᵀ + q · bₖ        P · (X Wᵥᵀ + bᵥ) = (P · X) Wᵥᵀ + (Σ P) bᵥ

    head by head. That is 2·n·H products of the tokens with a vector, where keys and values would be 2·D of them. Prompt
    rows are keys and values already and stay beside the tokens.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    query_bias: Tensor
    key_bias: Tensor
    value_bias: Tensor

    def __init__(self, backbone: Backbone, index: int) -> None:
        super().__init__()
        attention, self.heads = backbone.attention(index), backbone.heads
        self.scale, self.norm = attention.scale, attention.q_norm
        weight = attention.qkv.weight.detach().chunk(3)
        bias = attention.qkv.bias
        shifts = (torch.zeros(3 * backbone.width) if bias is None else bias.detach()).chunk(3)
        self.register_buffer("query", weight[0].T.contiguous())
        self.register_buffer("key", weight[1].unflatten(0, (self.heads, -1)).contiguous())  # [H, d, D]
        self.register_buffer("value", weight[2].unflatten(0, (self.heads, -1)).transpose(1, 2).contiguous())
        self.register_buffer("query_bias", shifts[0].clone())
        self.register_buffer("key_bias", shifts[1].view(self.heads, -1, 1).clone())
        self.register_buffer("value_bias", shifts[2].view(1, self.heads, 1, -1).clone())

    @staticmethod
    def fits(backbone: Backbone, index: int) -> bool:
        """Not where keys are normalised, which is no product."""
        return isinstance(backbone.attention(index).k_norm, nn.Identity)

    def forward(
        self,
        normed: Float[Tensor, "B N D"],
        before: HeadRows | None,
        constant: ConstantPrompt | None,
        read: tuple[int, ...],
    ) -> Float[Tensor, "B H n d"]:
        """What the tokens at the positions `read` gather."""
        asking = split_heads(select_tokens(normed, read) @ self.query + self.query_bias, 1, self.heads)[0]
        query = self.norm(asking) * self.scale  # [B, H, n, d]
        count = (self.heads, len(read))
        vectors = (query @ self.key).flatten(1, 2)  # [B, H·n, D]
        scores = (vectors @ normed.transpose(1, 2)).unflatten(1, count) + query @ self.key_bias  # [B, H, n, N]
        shift = constant.pair("class_shift") if constant else None
        if shift is not None:
            scores = torch.cat([scores[..., :1] + query @ shift[0].transpose(2, 3), scores[..., 1:]], dim=3)
        rows = surround_rows(before, constant, normed.shape[0])
        if rows is not None:
            scores = torch.cat([query @ rows[0].transpose(2, 3), scores], dim=3)
        everywhere = scores.softmax(dim=-1)
        shares = everywhere if rows is None else everywhere[..., rows[0].shape[2] :]
        gathered = (shares.flatten(1, 2) @ normed).unflatten(1, count)  # [B, H, n, D]
        mixed = gathered @ self.value + shares.sum(dim=3, keepdim=True) * self.value_bias
        if shift is not None:
            mixed = mixed + shares[..., :1] * shift[1]
        return mixed if rows is None else mixed + everywhere[..., : rows[0].shape[2]] @ rows[1]


def surround_rows(before: HeadRows | None, constant: ConstantPrompt | None, batch: int) -> HeadRows | None:
    """All prompt rows of a block, keys and values; their order does not matter to a softmax."""
    pairs = [constant.pair(place) for place in ("before", "after")] if constant else []
    found = [tuple(rows.expand(batch, -1, -1, -1) for rows in pair) for pair in (*pairs, before) if pair is not None]
    if not found:
        return None
    keys, values = zip(*found, strict=True)
    return torch.cat(keys, dim=2), torch.cat(values, dim=2)


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
