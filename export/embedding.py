"""The patch embedding with the normalisation of pixels, the biases and the position embedding folded in."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdl_deploy.training.backbones.protocol import Backbone, PatchProjection
from cdl_deploy.training.shapes import Tokens


class FoldedEmbedding(nn.Module):
    """An image tensor v → tokens before block 0 of `backbone`, where std·v + mean is the colour from 0 to 1.

    The backbone wants (std·v + mean − mean′) / std′: scale and shift go into the projection and its bias, exactly,
    since nothing is padded. The bias goes into the position embedding, where nothing comes between.
    """

    weight: Tensor
    bias: Tensor | None
    position: Tensor | None
    prefix: Tensor

    def __init__(
        self,
        backbone: Backbone,
        patches: PatchProjection,
        mean: Float[Tensor, "1 3 1 1"],
        std: Float[Tensor, "1 3 1 1"],
    ) -> None:
        super().__init__()
        self.stride, self.norm, self.norm_pre = patches.stride, patches.norm, patches.norm_pre
        scale = (std / backbone.std).double()
        shift = ((mean - backbone.mean) / backbone.std).double()
        weight = patches.weight.double()
        bias = (weight * shift).sum(dim=(1, 2, 3))
        if patches.bias is not None:
            bias = bias + patches.bias.double()
        position = patches.position
        folded = position is not None and isinstance(self.norm, nn.Identity)
        if position is not None and folded:
            position = (position.double() + bias).float()
        self.register_buffer("weight", (weight * scale).float().contiguous())
        self.register_buffer("bias", None if folded else bias.float())
        self.register_buffer("position", position)
        self.register_buffer("prefix", patches.prefix_tokens)

    def forward(self, image: Float[Tensor, "B 3 height width"]) -> Tokens:
        """Class token, register tokens and patches, in timm's order."""
        patches = nn.functional.conv2d(image, self.weight, self.bias, self.stride)
        tokens = self.norm(patches.flatten(2).transpose(1, 2))
        if self.position is not None:
            tokens = tokens + self.position
        if self.prefix.shape[1]:
            tokens = torch.cat([self.prefix.expand(image.shape[0], -1, -1), tokens], dim=1)
        return self.norm_pre(tokens)


class PlainEmbedding(nn.Module):
    """The same for a backbone whose patches are no plain projection: normalised first, then embedded by timm."""

    scale: Tensor
    shift: Tensor

    def __init__(self, backbone: Backbone, mean: Float[Tensor, "1 3 1 1"], std: Float[Tensor, "1 3 1 1"]) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("scale", std / backbone.std)
        self.register_buffer("shift", (mean - backbone.mean) / backbone.std)

    def forward(self, image: Float[Tensor, "B 3 height width"]) -> Tokens:
        """Tokens in timm's order."""
        return self.backbone.embed_normalised(image * self.scale + self.shift)


def fold_embedding(backbone: Backbone, mean: Tensor, std: Tensor) -> FoldedEmbedding | PlainEmbedding:
    """The embedding of images that were normalised with `mean` and `std` [1, 3, 1, 1]."""
    patches = backbone.patch_projection()
    return PlainEmbedding(backbone, mean, std) if patches is None else FoldedEmbedding(backbone, patches, mean, std)
