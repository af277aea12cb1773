"""A frozen plain timm ViT that can run its blocks with prompts (method, section 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableSequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from cdl_deploy.errors import WeightsError
from cdl_deploy.training.models.packed import SMALLEST_WIDTH, PackedLinear, PackedMlp
from cdl_deploy.training.shapes import Pixels, PromptVectors, Tokens


@dataclass(frozen=True)
class TokenLayout:
    """What a backbone's tokens are: the class token, register tokens, then patches row by row."""

    registers: int
    grid: tuple[int, int]
    """Patches in a column and in a row of the image."""


@dataclass(frozen=True)
class NetworkShape:
    """What a method or a distillation must know of the network it prompts."""

    width: int
    """D, of the prompted backbone."""
    depth: int
    """L, of the prompted backbone."""
    query_width: int
    """Q, the student's width: keys have it in teacher and student alike."""
    first_block: int = 0
    """Prompts that sit in block b for a full query sit in block b + first_block (method, section 9)."""
    layout: TokenLayout = TokenLayout(registers=0, grid=(0, 0))
    """Only distillations that compare tokens look at it."""


@dataclass(frozen=True)
class BlockPrompt:
    """What one block's attention gets besides its tokens. Each pair is (key prompts, value prompts)."""

    prefix: tuple[PromptVectors, PromptVectors] | None = None
    """Prefix prompts, put before the keys and values of the tokens."""
    suffix: tuple[Float[Tensor, "1 r D"], Float[Tensor, "1 r D"]] | None = None
    """KD prompts, put after them; the same for every image."""
    cls_bias: tuple[Float[Tensor, "D"], Float[Tensor, "D"]] | None = None
    """Added to the class token's key and value (APT)."""


Prompts = Mapping[int, BlockPrompt]

OutputTokens = tuple[int, ...] | None
"""Positions of the tokens that somebody reads, counted from the end where negative; None for all."""


AnyBackbone = TypeVar("AnyBackbone", bound="Backbone")


class Backbone(nn.Module):
    """A frozen ViT with its own pixel statistics.

    Never trains: no parameter asks for a gradient, always in eval mode.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vit: VisionTransformer, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        check_plain(vit)
        self.vit = vit.eval().requires_grad_(False)
        self.bf16 = False
        """Whether matrix products run in bf16 (autocast). What comes out, and every parameter, is fp32 all the same."""
        self.compiled = False
        """Whether the blocks are compiled."""
        self.packed: dict[tuple[int, int], PackedLinear] = {}
        """Projections to query, and to key and value, by block and first row, while the layers are packed."""
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.depth: int = len(vit.blocks)
        self.width: int = vit.embed_dim
        self.heads: int = self.attention(0).num_heads
        self.layout = TokenLayout(vit.num_prefix_tokens - 1, vit.patch_embed.grid_size)

    def train(self: AnyBackbone, mode: bool = True) -> AnyBackbone:  # beartype cannot check typing.Self
        """Stay in eval mode: a frozen backbone drops nothing."""
        return super().train(False)

    def block(self, index: int) -> Block:
        """One of the ViT's blocks, which `check_plain` has found to be plain."""
        return cast(Block, self.vit.blocks[index])

    def attention(self, index: int) -> Attention:
        """That block's attention."""
        return cast(Attention, self.block(index).attn)

    def embed(self, images: Pixels) -> Tokens:
        """Pixels [B, 3, height, width] uint8 → tokens before block 0."""
        return self.embed_normalised((images.float() / 255 - self.mean) / self.std)

    def embed_normalised(self, images: Float[Tensor, "B 3 height width"]) -> Tokens:
        """Normalised pixels → tokens before block 0."""
        with self._precision():
            tokens = self.vit._pos_embed(self.vit.patch_embed(images))
            return self.vit.norm_pre(self.vit.patch_drop(tokens)).float()

    @torch.no_grad()
    def class_token(self, block: int = 0) -> Float[Tensor, "1 D"]:
        """The class token as it enters `block`, position embedding included.

        It is the same for every image before block 0; before a later block, that of an image of the mean colour.
        """
        height, width = self.vit.patch_embed.img_size
        tokens = self.embed_normalised(torch.zeros(1, 3, height, width, device=self.mean.device))
        return self.run_blocks(tokens, 0, block)[0, :1].clone()

    def run_block(
        self, index: int, tokens: Tokens, prompt: BlockPrompt | None = None, output_tokens: OutputTokens = None
    ) -> Float[Tensor, "B n D"]:
        """One block; it returns as many tokens as it got, or only those at the positions `output_tokens`."""
        block = self.block(index)
        if prompt is None and output_tokens is None and not self.packed:
            return block(tokens)
        mixed = self._attention(index, block.norm1(tokens), prompt or BlockPrompt(), output_tokens)
        tokens = pick(tokens, output_tokens) + block.ls1(mixed)
        return tokens + block.ls2(block.mlp(block.norm2(tokens)))

    def run_blocks(
        self,
        tokens: Tokens,
        start: int,
        stop: int,
        prompts: Prompts | None = None,
        output_tokens: OutputTokens = None,
        hidden: MutableSequence[Tensor] | None = None,
    ) -> Float[Tensor, "B n D"]:
        """Blocks `start` to `stop - 1`. Of the last one, only the tokens at the positions `output_tokens` are computed.

        The tokens after each block are added to `hidden`, where it is given.
        """
        prompts = prompts or {}
        with self._precision():
            for index in range(start, stop):
                tokens = self.run_block(index, tokens, prompts.get(index), output_tokens if index == stop - 1 else None)
                if hidden is not None:
                    hidden.append(tokens.float())
        return tokens.float()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.mean.device.type, torch.bfloat16, enabled=self.bf16)

    def final_norm(self, tokens: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        """The norm between the last block and the heads."""
        return self.vit.norm(tokens)

    def _project(self, index: int, tokens: Tokens, first: int, count: int) -> Float[Tensor, "count B H N head"]:
        """`count` of a block's projections to query, key and value (0, 1, 2), from `first` on, split into heads."""
        layer = self.attention(index).qkv
        if (index, first) in self.packed:
            projected = self.packed[index, first](tokens)
        else:
            projected = F.linear(tokens, *_rows(layer, first, count))
        return projected.unflatten(-1, (count, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def _attention(
        self, index: int, tokens: Tokens, prompt: BlockPrompt, output_tokens: OutputTokens = None
    ) -> Float[Tensor, "B n D"]:
        """Multi-head attention with prompts around the keys and values; queries are untouched.

        With `output_tokens` only the tokens there ask; all of them answer.
        """
        attention, batch, heads = self.attention(index), tokens.shape[0], self.heads
        # Apart, so that what keys and values were before rows joined them is not kept for the backward pass.
        query = self._project(index, pick(tokens, output_tokens), 0, 1)[0]
        key, value = self._project(index, tokens, 1, 2).unbind(0)
        query, key = attention.q_norm(query), attention.k_norm(key)
        if prompt.cls_bias is not None:
            shift_key, shift_value = (row.view(heads, 1, -1).to(key) for row in prompt.cls_bias)
            key = torch.cat([key[:, :, :1] + shift_key, key[:, :, 1:]], dim=2)
            value = torch.cat([value[:, :, :1] + shift_value, value[:, :, 1:]], dim=2)
        keys, values = [key], [value]
        if prompt.prefix is not None:
            keys.insert(0, _split_heads(prompt.prefix[0], batch, heads, key.dtype))
            values.insert(0, _split_heads(prompt.prefix[1], batch, heads, key.dtype))
        if prompt.suffix is not None:
            keys.append(_split_heads(prompt.suffix[0], batch, heads, key.dtype))
            values.append(_split_heads(prompt.suffix[1], batch, heads, key.dtype))
        mixed = F.scaled_dot_product_attention(query, torch.cat(keys, dim=2), torch.cat(values, dim=2))
        return attention.proj(mixed.transpose(1, 2).flatten(2))

    @contextmanager
    def packed_layers(self) -> Iterator[None]:
        """While it lasts, the linear layers of all blocks are packed: faster on a CPU, for another copy of them.

        Nothing is done to small models, where calls cost more than products.
        """
        replaced: list[nn.Module] = []

        def replace(layer: nn.Module, by: Callable[[Tensor], Tensor]) -> None:
            layer.forward = by
            replaced.append(layer)

        try:
            for index in range(self.depth if self.width >= SMALLEST_WIDTH else 0):
                attention, block = self.attention(index), self.block(index)
                for first, count in ((0, 1), (1, 2)):
                    self.packed[index, first] = PackedLinear(*_rows(attention.qkv, first, count))
                plain = _plain_layers(block.mlp)
                if plain is not None:
                    replace(block.mlp, PackedMlp(PackedLinear.of(plain[0]), PackedLinear.of(plain[1])))
                for layer in (attention.proj, *(block.mlp.modules() if plain is None else ())):
                    if isinstance(layer, nn.Linear):
                        replace(layer, PackedLinear.of(layer))
            yield
        finally:
            self.packed.clear()
            for layer in replaced:
                del layer.forward


def _split_heads(rows: PromptVectors, batch: int, heads: int, dtype: torch.dtype) -> Float[Tensor, "B H p head"]:
    """PromptVectors [B or 1, p, D] → [B, H, p, D / H], as they are: prompts pass no projection."""
    split = rows.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split.to(dtype).expand(batch, -1, -1, -1)


def pick(tokens: Tokens, output_tokens: OutputTokens) -> Float[Tensor, "B n D"]:
    """The tokens at the positions `output_tokens`, in that order."""
    return tokens if output_tokens is None else torch.stack([tokens[:, position] for position in output_tokens], dim=1)


def _plain_layers(mlp: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    """The two layers of an MLP with an exact GELU and nothing else between them, as nearly all are."""
    if type(mlp) is not Mlp or not isinstance(mlp.norm, nn.Identity):
        return None
    exact = isinstance(mlp.act, nn.GELU) and mlp.act.approximate == "none"
    if exact and isinstance(mlp.fc1, nn.Linear) and isinstance(mlp.fc2, nn.Linear):
        return mlp.fc1, mlp.fc2
    return None


def _rows(qkv: nn.Linear, first: int, count: int) -> tuple[Float[Tensor, "out in"], Float[Tensor, "out"] | None]:
    """Weight and bias of `count` of the projections to query, key and value, from `first` on."""
    width = qkv.in_features
    rows = slice(first * width, (first + count) * width)
    return qkv.weight[rows], None if qkv.bias is None else qkv.bias[rows]


def check_plain(vit: nn.Module) -> None:
    """Refuse what is not a plain pre-norm ViT with a class token: prompts would silently land in the wrong place."""
    name = type(vit).__name__
    if type(vit) is not VisionTransformer:
        raise WeightsError(f"the model is a {name}, expected a plain timm VisionTransformer: choose a vit_* model")
    if vit.cls_token is None or vit.attn_pool is not None or isinstance(vit.norm, nn.Identity):
        raise WeightsError(
            "the ViT has no class token read after a final norm (global_pool='token'): choose another model"
        )
    for block in vit.blocks:
        attention = getattr(block, "attn", None)
        if type(block) is not Block or type(attention) is not Attention:
            kind = f"{type(block).__name__} with {type(attention).__name__}"
            raise WeightsError(f"the ViT's blocks are {kind}, expected Block with Attention: choose a plain ViT")
        # timm 1.0.20 knows neither gate nor norm
        if getattr(attention, "gate", None) is not None or not isinstance(
            getattr(attention, "norm", nn.Identity()), nn.Identity
        ):
            raise WeightsError("the ViT gates or normalises its attention output: choose a plain ViT")
