"""One block of the exported network: attention written out in matrix products and a softmax, and only what is read.

Any runtime can execute that.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.export.attention import FoldedAttention, HeadRows, Projected, split_heads
from cdl_deploy.training.models.backbone import Backbone, BlockPrompt


class ConstantPrompt(nn.Module):
    """What one block gets for every image alike, split into heads: `before`, `after` and `class_shift`."""

    def __init__(self, prompt: BlockPrompt, attention: FoldedAttention) -> None:
        super().__init__()
        for place in ("before", "after", "class_shift"):
            pair = getattr(prompt, place)
            if pair is None:
                continue
            key, value = (split_heads(rows.detach().view(1, -1, rows.shape[-1]), attention.heads) for rows in pair)
            rows = (key, value) if place == "class_shift" else attention.shifted((key, value))
            for part, own in zip(("key", "value"), rows, strict=True):
                self.register_buffer(f"{place}_{part}", own.contiguous())

    def pair(self, place: str) -> HeadRows | None:
        """Key rows and value rows [1, H, p, d], or None."""
        if f"{place}_key" not in self._buffers:
            return None
        return self.get_buffer(f"{place}_key"), self.get_buffer(f"{place}_value")


def run_block(
    backbone: Backbone,
    attention: FoldedAttention,
    index: int,
    tokens: Float[Tensor, "B N D"],
    before: HeadRows | None = None,
    constant: ConstantPrompt | None = None,
    read: tuple[int, ...] | None = None,
    few: FewAsking | None = None,
    projected: Projected | None = None,
) -> Float[Tensor, "B n D"]:
    """One block with prompt rows around its keys and values; with `read`, only those tokens come out.

    `before` are the rows chosen for each image, as `attention` wants them; `few` is how few tokens ask, where there is
    a way; `projected` what the tokens become in this block, where that is known.
    """
    block = backbone.block(index)
    kept = tokens if read is None else select_tokens(tokens, read)
    chosen = before or (None, None)
    if read is not None and few is not None:
        mixed = few(attention, block.norm1(tokens), before, constant, read)
    else:
        query, key, value = projected or attention.project(block.norm1(tokens))
        query = query if read is None else select_tokens(query.transpose(1, 2), read).transpose(1, 2)
        key, value = surround(key, 0, chosen[0], constant), surround(value, 1, chosen[1], constant)
        mixed = (query @ key.transpose(2, 3)).softmax(dim=-1) @ value
    kept = kept + block.ls1(attention.output(mixed))
    return kept + block.ls2(block.mlp(block.norm2(kept)))


class FewAsking(nn.Module):
    """A block's attention where n tokens ask and all N answer, without a key or a value for any of the N:

        scores = q · (X Wₖᵀ)ᵀ = (q Wₖ) · Xᵀ        P · (X Wᵥᵀ) = (P · X) Wᵥᵀ

    head by head. That is 2·n·H products of the tokens with a vector, where keys and values would be 2·D of them. Prompt
    rows are keys and values already and stay beside the tokens.
    """

    key: Tensor
    value: Tensor

    def __init__(self, attention: FoldedAttention) -> None:
        super().__init__()
        self.heads = attention.heads
        self.register_buffer("key", attention.k.weight.T.unflatten(0, (self.heads, -1)).contiguous())  # [H, d, D]
        value = attention.v.weight.unflatten(1, (self.heads, -1)).transpose(0, 1)
        self.register_buffer("value", value.contiguous())  # [H, D, d]

    def forward(
        self,
        attention: FoldedAttention,
        normed: Float[Tensor, "B N D"],
        before: HeadRows | None,
        constant: ConstantPrompt | None,
        read: tuple[int, ...],
    ) -> Float[Tensor, "B H n d"]:
        """What the tokens at the positions `read` gather."""
        query = attention.queries(select_tokens(normed, read))  # [B, H, n, d]
        count = (self.heads, len(read))
        vectors = (query @ self.key).flatten(1, 2)  # [B, H·n, D]
        scores = (vectors @ normed.transpose(1, 2)).unflatten(1, count)  # [B, H, n, N]
        shift = constant.pair("class_shift") if constant else None
        if shift is not None:
            scores = torch.cat([scores[..., :1] + query @ shift[0].transpose(2, 3), scores[..., 1:]], dim=3)
        rows = surround_rows(before, constant, normed.shape[0])
        if rows is not None:
            scores = torch.cat([query @ rows[0].transpose(2, 3), scores], dim=3)
        everywhere = scores.softmax(dim=-1)
        shares = everywhere if rows is None else everywhere[..., rows[0].shape[2] :]
        gathered = (shares.flatten(1, 2) @ normed).unflatten(1, count)  # [B, H, n, D]
        mixed = gathered @ self.value
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


def select_tokens(tokens: Float[Tensor, "B N D"], read: tuple[int, ...]) -> Float[Tensor, "B n D"]:
    """The tokens at the positions `read`, which may be counted from the end."""
    return torch.cat([tokens[:, i : i + 1] if i >= 0 else tokens[:, i:][:, :1] for i in read], dim=1)
