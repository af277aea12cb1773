"""ViTs whose attention rotates queries and keys by the place of their patch: DINOv3, LingBot, EVA-02, PE, RoPE ViTs.

    rotated(x) = x · cos + swapped(x) · sin

with one table for all blocks and heads (axial), and `swapped` as timm lays out the pairs: halves of a head, or
neighbours. Only patches have a place. For the class token, registers and what is appended the table says cos 1 and
sin 0, so one product with it serves all tokens; prompts join keys and values behind the rotation and get none.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from timm.layers import AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor, nn

from cdl_deploy.errors import WeightsError
from cdl_deploy.training.backbones.protocol import OutputTokens
from cdl_deploy.training.backbones.timm_vit import TimmViT, check_pooling, prefix_tokens
from cdl_deploy.training.shapes import Tokens

AXIAL = ("RotaryEmbeddingCat", "RotaryEmbeddingDinoV3")
"""timm's embeddings that are one table for all blocks and heads."""
APPENDED = 1
"""Tokens behind the patches for which a table is there beforehand; more are rare."""


class RotaryViT(TimmViT):
    """timm's `Eva` with axial rotary embedding, or with none."""

    vit: Eva

    def __init__(self, vit: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__(vit, mean, std)
        attention = self.attention(0)
        self.halves = bool(getattr(attention, "rotate_half", False))
        self.rotates = self.vit.rope is not None
        if self.rotates:
            # A key's bias turns with its patch: it may go only where there is none, as in timm's EvaAttention.
            self.key_bias_can_be_dropped &= type(attention) is EvaAttention or rows_have_no_key_bias(attention)
            self.keys_and_values_can_be_absorbed = False
        for count in range(APPENDED + 1) if self.rotates else ():
            for name, table in zip(("cos", "sin"), self._tables(count), strict=True):
                self.register_buffer(f"{name}_{count}", table, persistent=False)

    def cannot_merge(self) -> str | None:
        rotates = "its attention rotates queries and keys by the place of a patch, and merged patches have several"
        return rotates if self.rotates else super().cannot_merge()

    @classmethod
    def check(cls, vit: nn.Module) -> None:
        """Refuse an Eva whose blocks do not normalise first, or rotate in a way of their own."""
        check_rotary(vit)

    def embed_normalised(self, images: Float[Tensor, "B 3 height width"]) -> Tokens:
        vit: Any = self.vit
        with self.precision():
            patches = vit.patch_embed(images)
            patches = patches.flatten(1, 2) if patches.dim() == 4 else patches
            prefix, position = prefix_tokens(vit).expand(len(images), -1, -1), vit.pos_embed
            if position is not None and vit.no_embed_class:
                patches, position = patches + position, None
            tokens = torch.cat([prefix.to(patches.dtype), patches], dim=1)
            tokens = tokens if position is None else tokens + position
            normed: Tensor = vit.norm_pre(tokens).float()
            return normed

    def position(
        self, index: int, rows: Float[Tensor, "B H n head"], key: bool, output_tokens: OutputTokens = None
    ) -> Float[Tensor, "B H n head"]:
        """Normalised where this ViT normalises them, then rotated."""
        normed = super().position(index, rows, key, output_tokens)
        if not self.rotates:
            return normed
        if output_tokens is None:
            return self._rotated(normed, *self._table(normed.shape[2]))
        if all(place < self.layout.first_patch for place in output_tokens):  # negative ones are appended
            return normed
        cos, sin = self._table(self.layout.count + APPENDED)
        places = list(output_tokens)
        return self._rotated(normed, cos[places], sin[places])

    def add_attention(
        self, index: int, tokens: Float[Tensor, "B n D"], output: Float[Tensor, "B n D"]
    ) -> Float[Tensor, "B n D"]:
        return tokens + _scaled(output, self.block(index).gamma_1)

    def mlp(self, index: int, tokens: Float[Tensor, "B n D"]) -> Float[Tensor, "B n D"]:
        block = self.block(index)
        return tokens + _scaled(block.mlp(block.norm2(tokens)), block.gamma_2)

    def _rotated(
        self, rows: Float[Tensor, "B H n head"], cos: Float[Tensor, "n head"], sin: Float[Tensor, "n head"]
    ) -> Float[Tensor, "B H n head"]:
        if self.halves:
            first, second = rows.chunk(2, dim=-1)
            swapped = torch.cat([second, first], dim=-1)
        else:
            swapped = rows.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        return (rows * cos + swapped * sin).to(rows.dtype)

    def _table(self, count: int) -> tuple[Float[Tensor, "n head"], Float[Tensor, "n head"]]:
        """Cosines and signed sines of `count` tokens: the network's own and what is appended to them."""
        appended = count - self.layout.count
        if appended <= APPENDED:
            return self.get_buffer(f"cos_{appended}"), self.get_buffer(f"sin_{appended}")
        cos, sin = self.get_buffer(f"cos_{APPENDED}"), self.get_buffer(f"sin_{APPENDED}")
        more = appended - APPENDED
        ones = torch.ones(more, cos.shape[1], device=cos.device)
        return torch.cat([cos, ones]), torch.cat([sin, torch.zeros_like(ones)])

    def _tables(self, appended: int) -> tuple[Tensor, Tensor]:
        """timm's own, with a row of ones and of zeros for every token that has no place."""
        rope: Any = self.vit.rope
        embedding = rope.get_embed(shape=list(self.layout.grid)).detach().float()
        sin, cos = embedding.chunk(2, dim=-1)
        sign = torch.ones(sin.shape[1], device=sin.device)
        if self.halves:
            sign[: len(sign) // 2] = -1
        else:
            sign[::2] = -1
        before, behind = (torch.ones(n, cos.shape[1], device=cos.device) for n in (self.layout.first_patch, appended))
        cosines = torch.cat([before, cos, behind])
        return cosines, torch.cat([torch.zeros_like(before), sin * sign, torch.zeros_like(behind)])


def rows_have_no_key_bias(attention: Any) -> bool:
    """Whether the projection to keys has no bias at all."""
    layer = attention.k_proj if attention.qkv is None else attention.qkv
    return layer.bias is None


def _scaled(tokens: Float[Tensor, "B n D"], gamma: Tensor | None) -> Float[Tensor, "B n D"]:
    """LayerScale, where there is one."""
    return tokens if gamma is None else tokens * gamma


def check_rotary(vit: nn.Module) -> None:
    """Raise WeightsError for an Eva that `RotaryViT` would compute wrongly."""
    if type(vit) is not Eva:
        raise WeightsError(f"the model is a {type(vit).__name__}, expected timm's Eva")
    if getattr(vit, "rope_mixed", False):
        raise WeightsError(
            "its rotary positions are mixed: frequencies along both axes, others in every block and head"
        )
    if vit.rope is not None and type(vit.rope).__name__ not in AXIAL:
        raise WeightsError(f"its rotary positions are {type(vit.rope).__name__}, expected {' or '.join(AXIAL)}")
    check_pooling(vit)
    for block in vit.blocks:
        attention: Any = block.attn
        if type(block) is not EvaBlock:
            raise WeightsError("its blocks normalise after attention and MLP, expected blocks that do it before")
        if type(attention) not in (EvaAttention, AttentionRope) or getattr(attention, "gate", None) is not None:
            raise WeightsError("it gates its attention output")
        if getattr(attention, "num_kv_heads", attention.num_heads) != attention.num_heads:
            raise WeightsError("it has fewer heads for keys and values than for queries (grouped-query attention)")
        if attention.head_dim * attention.num_heads != vit.embed_dim:
            raise WeightsError("its heads together are not as wide as its tokens")
