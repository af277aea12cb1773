"""What timm's ViTs have in common, whatever their attention knows of positions: patches, projections and pooling."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import AttentionPoolLatent, PatchEmbed
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from cdl_deploy.errors import WeightsError
from cdl_deploy.training.backbones.packed import SMALLEST_WIDTH, PackedLinear, PackedMlp
from cdl_deploy.training.backbones.protocol import (
    POOLED,
    AttentionWeights,
    Backbone,
    OutputTokens,
    PatchProjection,
    PatchSizes,
    TokenLayout,
)
from cdl_deploy.training.features import Feature, at_the_end
from cdl_deploy.training.shapes import Tokens


class TimmViT(Backbone):
    """A ViT of timm's whose blocks normalise before they compute; what a subclass adds is its residuals and positions.

    Where the network reads its class token, so do query and heads. Where it pools its tokens, by attention or by their
    mean, they read what it pools, through its own modules; a token that a distillation appended takes no part in that.
    """

    vit: Any

    def __init__(self, vit: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.check(vit)
        net: Any = vit
        own = int(net.cls_token is not None)
        layout = TokenLayout(net.num_prefix_tokens - own, net.patch_embed.grid_size, bool(own))
        heads = net.blocks[0].attn.num_heads
        super().__init__(vit, mean, std, net.embed_dim, len(net.blocks), heads, layout)
        self.pooling = pooling_of(vit)
        attentions = [self.attention(index) for index in range(self.depth)]
        plain_keys = isinstance(attentions[0].k_norm, nn.Identity)
        self.key_bias_can_be_dropped = self.keys_and_values_can_be_absorbed = plain_keys
        self.scale_can_be_folded = isinstance(attentions[0].q_norm, nn.Identity)
        self.gathered_is_projected = isinstance(_gathered_norm(attentions[0]), nn.Identity)
        self.packed: dict[tuple[int, int], PackedLinear] = {}
        """Projections to query, and to key and value, by block and first row, while the layers are packed."""

    def block(self, index: int) -> Any:
        """One of the ViT's blocks, which `check` has found to be as they should."""
        return self.vit.blocks[index]

    def attention(self, index: int) -> Any:
        """That block's attention."""
        return self.block(index).attn

    @property
    def image_size(self) -> tuple[int, int]:
        height, width = self.vit.patch_embed.img_size
        return height, width

    def norm(self, index: int, tokens: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        normed: Tensor = self.block(index).norm1(tokens)
        return normed

    def qkv(self, index: int, tokens: Tokens, first: int, count: int) -> Float[Tensor, "count B H N head"]:
        attention = self.attention(index)
        if (index, first) in self.packed:
            projected = self.packed[index, first](tokens)
        elif attention.qkv is not None:
            projected = F.linear(tokens, *rows_of(attention, first, count))
        else:
            projected = torch.cat([layer(tokens) for layer in _apart(attention)[first : first + count]], dim=-1)
        return projected.unflatten(-1, (count, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def position(
        self, index: int, rows: Float[Tensor, "B H n head"], key: bool, output_tokens: OutputTokens = None
    ) -> Float[Tensor, "B H n head"]:
        """Normalised, where this ViT normalises them. It knows of positions from its embedding alone."""
        attention = self.attention(index)
        normed: Tensor = attention.k_norm(rows) if key else attention.q_norm(rows)
        return normed

    def gathered(self, index: int, mixed: Float[Tensor, "B n D"]) -> Float[Tensor, "B n D"]:
        normed: Tensor = _gathered_norm(self.attention(index))(mixed)
        return normed

    def attention_output(self, index: int, mixed: Float[Tensor, "B n D"]) -> Float[Tensor, "B n D"]:
        projected: Tensor = self.attention(index).proj(self.gathered(index, mixed))
        return projected

    def final_norm(self, tokens: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        """The norm before pooling and the one behind it; at least one of them does nothing."""
        normed: Tensor = self.vit.fc_norm(self.vit.norm(tokens))
        return normed

    def output_tokens(self, features: Collection[Feature]) -> OutputTokens:
        return super().output_tokens(features) if self.pooling is None else None

    def pool(
        self, tokens: Float[Tensor, "B N D"], features: Collection[Feature], sizes: PatchSizes | None = None
    ) -> Float[Tensor, "B n D"]:
        if self.pooling is None:
            return super().pool(tokens, features, sizes)
        vit = self.vit
        normed = vit.norm(tokens)
        pooled = vit.pool(normed[:, : self.layout.count]) if sizes is None else self.mean_patch(normed, sizes)
        found = {"class": vit.fc_norm(pooled)}
        if "patches" in features:
            found["patches"] = vit.fc_norm(self.mean_patch(normed, sizes))
        if "kd" in features:
            found["kd"] = vit.fc_norm(normed[:, -1])
        return torch.stack([found[name] for name in at_the_end(features)], dim=1)

    def attention_weights(self, index: int) -> AttentionWeights:
        attention = self.attention(index)
        (query, query_bias), (key, key_bias), (value, value_bias) = (rows_of(attention, part, 1) for part in range(3))
        own, zeros = attention.proj.bias, torch.zeros(self.width, device=query.device)
        return AttentionWeights(
            query.detach(),
            key.detach(),
            value.detach(),
            query_bias=zeros if query_bias is None else query_bias.detach(),
            key_bias=zeros if key_bias is None else key_bias.detach(),
            value_bias=zeros if value_bias is None else value_bias.detach(),
            output=attention.proj.weight.detach(),
            output_bias=None if own is None else own.detach(),
            scale=attention.scale,
        )

    def patch_projection(self) -> PatchProjection | None:
        vit, embed = self.vit, self.vit.patch_embed
        in_rows = embed.flatten or vit.dynamic_img_size  # otherwise the network puts them in rows later
        if type(embed) is not PatchEmbed or not in_rows or embed.dynamic_img_pad:
            return None
        prefix = prefix_tokens(vit).detach()
        position = None if vit.pos_embed is None else vit.pos_embed.detach()
        if position is not None and not vit.no_embed_class:
            own = prefix.shape[1]
            prefix, position = prefix + position[:, :own], position[:, own:]
        weight, bias = embed.proj.weight.detach(), embed.proj.bias
        stride = cast(tuple[int, int], embed.proj.stride)
        bias = None if bias is None else bias.detach()
        return PatchProjection(weight, bias, stride, embed.norm, position, prefix, vit.norm_pre)

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
                    self.packed[index, first] = PackedLinear(*rows_of(attention, first, count))
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


def pooling_of(vit: Any) -> str | None:
    """How it makes one feature of its tokens, a key of `POOLED`; None where it reads its class token.

    Differs: timm gives DINOv3 the mean of its patches, which suits dense tasks. Upstream classifies by the class token,
    and so do we.
    """
    if vit.attn_pool is not None:
        return "map"
    reads_class_token = vit.cls_token is not None and (vit.global_pool == "token" or is_dinov3(vit))
    return None if reads_class_token else str(vit.global_pool)


def check_pooling(vit: Any) -> None:
    """Refuse a ViT whose tokens are pooled in a way that nobody has tried."""
    pooling = pooling_of(vit)
    if vit.attn_pool is not None and type(vit.attn_pool) is not AttentionPoolLatent:
        pooling = type(vit.attn_pool).__name__
    if pooling is not None and pooling not in POOLED:
        raise WeightsError(
            f"the ViT pools its tokens by {pooling or 'nothing'}, expected its class token, attention pooling or the "
            "mean of its patches (timm's global_pool token, map or avg)"
        )


def is_dinov3(vit: Any) -> bool:
    """By its rotary embedding, which no other family has but those trained the same way (LingBot, Sapiens2)."""
    return type(getattr(vit, "rope", None)).__name__ == "RotaryEmbeddingDinoV3"


def prefix_tokens(vit: Any) -> Float[Tensor, "1 r D"]:
    """What comes before the patches: class token and registers, as far as there are any, without positions."""
    tokens = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
    if not tokens:
        return torch.zeros(1, 0, vit.embed_dim, device=vit.patch_embed.proj.weight.device)
    return torch.cat(tokens, dim=1)


def rows_of(attention: Any, first: int, count: int) -> tuple[Float[Tensor, "out in"], Float[Tensor, "out"] | None]:
    """Weight and bias of `count` of the projections to query, key and value, from `first` on."""
    if attention.qkv is None:
        layers = _apart(attention)[first : first + count]
        weight = torch.cat([layer.weight for layer in layers])
        if all(layer.bias is None for layer in layers):
            return weight, None
        zeros = torch.zeros(len(layers[0].weight), device=weight.device)
        return weight, torch.cat([zeros if layer.bias is None else layer.bias for layer in layers])
    bias = attention.qkv.bias
    if getattr(attention, "q_bias", None) is not None:
        bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
    width = attention.qkv.out_features // 3
    rows = slice(first * width, (first + count) * width)
    return attention.qkv.weight[rows], None if bias is None else bias[rows]


def _apart(attention: Any) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """Projections that have a layer each."""
    return attention.q_proj, attention.k_proj, attention.v_proj


def _gathered_norm(attention: Any) -> nn.Module:
    """timm 1.0.20 knows none."""
    norm: nn.Module = getattr(attention, "norm", None) or nn.Identity()
    return norm


def _plain_layers(mlp: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    """The two layers of an MLP with an exact GELU and nothing else between them, as nearly all are."""
    if type(mlp) is not Mlp or not isinstance(mlp.norm, nn.Identity):
        return None
    exact = isinstance(mlp.act, nn.GELU) and mlp.act.approximate == "none"
    if exact and isinstance(mlp.fc1, nn.Linear) and isinstance(mlp.fc2, nn.Linear):
        return mlp.fc1, mlp.fc2
    return None
