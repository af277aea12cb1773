"""One block of the exported network: attention written out in matrix products and a softmax, and only what is read.

Any runtime can execute that.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.export.attention import FoldedAttention, Projected
from cdl_deploy.training.backbones.protocol import Backbone, BlockPrompt
from cdl_deploy.training.methods.folded import HeadRows, split_heads

STORED_AS = {"prefix": "before", "suffix": "after", "cls_bias": "class_shift"}
"""How the constants of each side are called in the file. These names stay what they were, so that an exported model is
byte for byte what it always was, and an update between two of them as small."""


Sizes = Float[Tensor, "B N"]
"""How many patches each token stands for, where some were merged (`cdl_deploy.export.merging`); 1 for the others."""


class ConstantPrompt(nn.Module):
    """What one block gets for every image alike, split into heads: `prefix`, `suffix` and `cls_bias`."""

    def __init__(self, prompt: BlockPrompt, attention: FoldedAttention) -> None:
        super().__init__()
        for side, stored in STORED_AS.items():
            pair = getattr(prompt, side)
            if pair is None:
                continue
            key, value = (split_heads(rows.detach().view(1, -1, rows.shape[-1]), attention.heads) for rows in pair)
            rows = (key, value) if side == "cls_bias" else attention.shifted((key, value))
            for part, own in zip(("key", "value"), rows, strict=True):
                self.register_buffer(f"{stored}_{part}", own.contiguous())

    def pair(self, side: str) -> HeadRows | None:
        """key prompts and value prompts [1, H, p, d], or None."""
        stored = STORED_AS[side]
        if f"{stored}_key" not in self._buffers:
            return None
        return self.get_buffer(f"{stored}_key"), self.get_buffer(f"{stored}_value")


def run_block(
    backbone: Backbone,
    attention: FoldedAttention,
    index: int,
    tokens: Float[Tensor, "B N D"],
    prefix: HeadRows | None = None,
    constant: ConstantPrompt | None = None,
    output_tokens: tuple[int, ...] | None = None,
    few: AbsorbedKVAttention | None = None,
    projected: Projected | None = None,
    sizes: Sizes | None = None,
) -> Float[Tensor, "B n D"]:
    """One block with prompts around its keys and values; with `output_tokens`, only those tokens come out.

    `prefix` are the prompts chosen for each image, as `attention` wants them; `few` is how few tokens ask, where there
    is a way; `projected` what the tokens become in this block, where that is known; `sizes` where some were merged.
    """
    kept = tokens if output_tokens is None else select_tokens(tokens, output_tokens)
    if output_tokens is not None and few is not None:
        mixed = few(attention, backbone.norm(index, tokens), prefix, constant, output_tokens, sizes)
    else:
        query, key, value = projected or project(backbone, attention, index, tokens, output_tokens)
        if projected and output_tokens is not None:
            query = select_tokens(query.transpose(1, 2), output_tokens).transpose(1, 2)
        mixed = gather(query, key, value, prefix, constant, sizes)
    return backbone.mlp(index, backbone.add_attention(index, kept, attention.output(mixed)))


def gather(
    query: Float[Tensor, "B H n d"],
    key: Float[Tensor, "B H N d"],
    value: Float[Tensor, "B H N d"],
    prefix: HeadRows | None = None,
    constant: ConstantPrompt | None = None,
    sizes: Sizes | None = None,
) -> Float[Tensor, "B H n d"]:
    """What the tokens that ask gather of all tokens and prompts."""
    chosen, count = prefix or (None, None), key.shape[2]
    key, value = surround(key, 0, chosen[0], constant), surround(value, 1, chosen[1], constant)
    scores = query @ key.transpose(2, 3)
    if sizes is not None:
        before = sum(rows.shape[2] for rows in (chosen[0], _key_rows(constant, "prefix")) if rows is not None)
        scores = scores + more_for_merged(sizes, before, key.shape[2] - before - count)
    return scores.softmax(dim=-1) @ value


def more_for_merged(sizes: Sizes, before: int = 0, behind: int = 0) -> Float[Tensor, "B 1 1 more"]:
    """What is added to every score of a token: exp(score + log m) = m · exp(score), as if it were there m times.

    Nothing is added to those of the prompts that stand before and behind the tokens.
    """
    rows = [torch.ones(1, count).expand(sizes.shape[0], -1) for count in (before, behind)]
    every = [part for part in (rows[0], sizes, rows[1]) if part.shape[1]]
    joined = torch.cat(every, dim=1) if len(every) > 1 else sizes
    return joined.log().unsqueeze(1).unsqueeze(1)


def _key_rows(constant: ConstantPrompt | None, side: str) -> Tensor | None:
    pair = constant.pair(side) if constant else None
    return None if pair is None else pair[0]


def project(
    backbone: Backbone,
    attention: FoldedAttention,
    index: int,
    tokens: Float[Tensor, "B N D"],
    output_tokens: tuple[int, ...] | None,
) -> Projected:
    """Keys and values of all tokens, and queries of those that are read."""
    normed = backbone.norm(index, tokens)
    if output_tokens is None:
        return attention.project(normed)
    asking = attention.queries(select_tokens(normed, output_tokens), output_tokens)
    return asking, attention.keys(normed), attention.values(normed)


class AbsorbedKVAttention(nn.Module):
    """A block's attention where n tokens ask and all N answer, without a key or a value for any of the N:

        scores = q · (X Wₖᵀ)ᵀ = (q Wₖ) · Xᵀ        P · (X Wᵥᵀ) = (P · X) Wᵥᵀ

    head by head. That is 2·n·H products of the tokens with a vector, where keys and values would be 2·D of them. Prompt
    rows are keys and values already and stay beside the tokens.

    Where keys are rotated or normalised they are no product of the tokens and are computed; values always are one.
    """

    key: Tensor | None
    value: Tensor

    def __init__(self, attention: FoldedAttention) -> None:
        super().__init__()
        self.heads = attention.heads
        key = attention.k.weight.T.unflatten(0, (self.heads, -1)).contiguous()  # [H, d, D]
        self.register_buffer("key", key if attention.can_be_absorbed else None)
        value = attention.v.weight.unflatten(1, (self.heads, -1)).transpose(0, 1)
        self.register_buffer("value", value.contiguous())  # [H, D, d]

    def forward(
        self,
        attention: FoldedAttention,
        normed: Float[Tensor, "B N D"],
        prefix: HeadRows | None,
        constant: ConstantPrompt | None,
        output_tokens: tuple[int, ...],
        sizes: Sizes | None = None,
    ) -> Float[Tensor, "B H n d"]:
        """What the tokens at the positions `output_tokens` gather."""
        query = attention.queries(select_tokens(normed, output_tokens), output_tokens)  # [B, H, n, d]
        count = (self.heads, len(output_tokens))
        if self.key is None:
            scores = query @ attention.keys(normed).transpose(2, 3)
        else:
            vectors = (query @ self.key).flatten(1, 2)  # [B, H·n, D]
            scores = (vectors @ normed.transpose(1, 2)).unflatten(1, count)  # [B, H, n, N]
        if sizes is not None:
            scores = scores + more_for_merged(sizes)
        shift = constant.pair("cls_bias") if constant else None
        if shift is not None:
            scores = torch.cat([scores[..., :1] + query @ shift[0].transpose(2, 3), scores[..., 1:]], dim=3)
        rows = surround_rows(prefix, constant, normed.shape[0])
        if rows is not None:
            scores = torch.cat([query @ rows[0].transpose(2, 3), scores], dim=3)
        everywhere = scores.softmax(dim=-1)
        shares = everywhere if rows is None else everywhere[..., rows[0].shape[2] :]
        gathered = (shares.flatten(1, 2) @ normed).unflatten(1, count)  # [B, H, n, D]
        mixed = gathered @ self.value
        if shift is not None:
            mixed = mixed + shares[..., :1] * shift[1]
        return mixed if rows is None else mixed + everywhere[..., : rows[0].shape[2]] @ rows[1]


def surround_rows(prefix: HeadRows | None, constant: ConstantPrompt | None, batch: int) -> HeadRows | None:
    """All prompts of a block, keys and values; their order does not matter to a softmax."""
    pairs = [constant.pair(side) for side in ("prefix", "suffix")] if constant else []
    found = [tuple(rows.expand(batch, -1, -1, -1) for rows in pair) for pair in (*pairs, prefix) if pair is not None]
    if not found:
        return None
    keys, values = zip(*found, strict=True)
    return torch.cat(keys, dim=2), torch.cat(values, dim=2)


def surround(
    rows: Float[Tensor, "B H N d"], part: int, prefix: Float[Tensor, "B H p d"] | None, constant: ConstantPrompt | None
) -> Float[Tensor, "B H more d"]:
    """The tokens' keys (`part` 0) or values (1) with their prompts."""
    pairs = {side: constant.pair(side) if constant else None for side in STORED_AS}
    shift, first, last = pairs["cls_bias"], pairs["prefix"], pairs["suffix"]
    parts = [rows] if shift is None else [rows[:, :, :1] + shift[part], rows[:, :, 1:]]
    if prefix is not None:
        parts.insert(0, prefix)
    if first is not None:
        parts.insert(0, first[part].expand(rows.shape[0], -1, -1, -1))
    if last is not None:
        parts.append(last[part].expand(rows.shape[0], -1, -1, -1))
    return torch.cat(parts, dim=2) if len(parts) > 1 else rows


def select_tokens(tokens: Float[Tensor, "B N D"], output_tokens: tuple[int, ...]) -> Float[Tensor, "B n D"]:
    """The tokens at the positions `output_tokens`, which may be counted from the end."""
    positions = [i % tokens.shape[1] for i in output_tokens]
    if len(positions) == 1:
        return tokens[:, positions[0] : positions[0] + 1]
    return tokens.index_select(1, torch.tensor(positions))  # one Gather: two slices side by side stop converters
