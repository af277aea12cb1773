"""A plain pre-norm ViT of timm's, as prompts and export expect it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import PatchEmbed
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from timm.models.vision_transformer_hybrid import HybridEmbed
from torch import Tensor, nn

from cdl_deploy.errors import WeightsError
from cdl_deploy.training.backbones.packed import SMALLEST_WIDTH, PackedLinear, PackedMlp
from cdl_deploy.training.backbones.protocol import (
    AttentionWeights,
    Backbone,
    OutputTokens,
    PatchProjection,
    TokenLayout,
)
from cdl_deploy.training.shapes import Tokens


class PlainViT(Backbone):
    """timm's `VisionTransformer` with a class token: DeiT, DINO, DINOv2, CLIP, MAE and most `vit_*`."""

    vit: VisionTransformer

    def __init__(self, vit: VisionTransformer, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.check(vit)
        heads = cast(Attention, vit.blocks[0].attn).num_heads
        layout = TokenLayout(vit.num_prefix_tokens - 1, vit.patch_embed.grid_size)
        super().__init__(vit, mean, std, vit.embed_dim, len(vit.blocks), heads, layout)
        attention = self.attention(0)
        self.key_bias_can_be_dropped = self.keys_and_values_can_be_absorbed = isinstance(attention.k_norm, nn.Identity)
        self.scale_can_be_folded = isinstance(attention.q_norm, nn.Identity)
        self.packed: dict[tuple[int, int], PackedLinear] = {}
        """Projections to query, and to key and value, by block and first row, while the layers are packed."""

    @classmethod
    def check(cls, vit: nn.Module) -> None:
        """Refuse what is not a plain pre-norm ViT with a class token."""
        check_plain(vit)

    def block(self, index: int) -> Block:
        """One of the ViT's blocks, which `check` has found to be plain."""
        return cast(Block, self.vit.blocks[index])

    def attention(self, index: int) -> Attention:
        """That block's attention."""
        return cast(Attention, self.block(index).attn)

    @property
    def image_size(self) -> tuple[int, int]:
        height, width = self.vit.patch_embed.img_size
        return height, width

    def embed_normalised(self, images: Float[Tensor, "B 3 height width"]) -> Tokens:
        with self.precision():
            tokens = self.vit._pos_embed(self.vit.patch_embed(images))
            return self.vit.norm_pre(self.vit.patch_drop(tokens)).float()

    def norm(self, index: int, tokens: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        return self.block(index).norm1(tokens)

    def qkv(self, index: int, tokens: Tokens, first: int, count: int) -> Float[Tensor, "count B H N head"]:
        if (index, first) in self.packed:
            projected = self.packed[index, first](tokens)
        else:
            projected = F.linear(tokens, *_rows(self.attention(index).qkv, first, count))
        return projected.unflatten(-1, (count, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def position(
        self, index: int, rows: Float[Tensor, "B H n head"], key: bool, output_tokens: OutputTokens = None
    ) -> Float[Tensor, "B H n head"]:
        """Normalised, where this ViT normalises them. It knows of positions from its embedding alone."""
        attention = self.attention(index)
        return attention.k_norm(rows) if key else attention.q_norm(rows)

    def attention_output(self, index: int, mixed: Float[Tensor, "B n D"]) -> Float[Tensor, "B n D"]:
        return self.attention(index).proj(mixed)

    def add_attention(
        self, index: int, tokens: Float[Tensor, "B n D"], output: Float[Tensor, "B n D"]
    ) -> Float[Tensor, "B n D"]:
        return tokens + self.block(index).ls1(output)

    def mlp(self, index: int, tokens: Float[Tensor, "B n D"]) -> Float[Tensor, "B n D"]:
        block = self.block(index)
        return tokens + block.ls2(block.mlp(block.norm2(tokens)))

    def final_norm(self, tokens: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        return self.vit.norm(tokens)

    def attention_weights(self, index: int) -> AttentionWeights:
        attention = self.attention(index)
        query, key, value = attention.qkv.weight.detach().chunk(3)
        bias, own = attention.qkv.bias, attention.proj.bias
        biases = (torch.zeros(3 * self.width) if bias is None else bias.detach()).chunk(3)
        return AttentionWeights(
            query,
            key,
            value,
            query_bias=biases[0],
            key_bias=biases[1],
            value_bias=biases[2],
            output=attention.proj.weight.detach(),
            output_bias=None if own is None else own.detach(),
            scale=attention.scale,
        )

    def patch_projection(self) -> PatchProjection | None:
        vit, embed = self.vit, self.vit.patch_embed
        if type(embed) is not PatchEmbed or not embed.flatten or embed.dynamic_img_pad:
            return None
        tokens = [token.detach() for token in (vit.cls_token, vit.reg_token) if token is not None]
        prefix, position = torch.cat(tokens, dim=1), None if vit.pos_embed is None else vit.pos_embed.detach()
        if position is not None and not vit.no_embed_class:
            own = prefix.shape[1]
            prefix, position = prefix + position[:, :own], position[:, own:]
        weight, bias = embed.proj.weight.detach(), embed.proj.bias
        stride = cast(tuple[int, int], embed.proj.stride)
        bias = None if bias is None else bias.detach()
        return PatchProjection(weight, bias, stride, embed.norm, position, prefix, vit.norm_pre)

    def plain_block(self, index: int, tokens: Tokens) -> Tokens | None:
        return None if self.packed else self.block(index)(tokens)

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
    if isinstance(vit.patch_embed, HybridEmbed):
        raise WeightsError(
            "the model is a hybrid, whose patches a convolutional network makes: choose a plain vit_* model"
        )
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
