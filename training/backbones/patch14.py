"""Students in the shape of DINOv2's ViT-S/14 for 98x98 images (49 patches) and smaller, registered with timm by name.

Their blocks have LayerScale, as the teacher's `vit_small_patch14_dinov2` have, so that a student can begin as the first
blocks of its teacher. They carry no weights: `cdl_deploy.training.recipes.public_backbone` makes some from a public
file.
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, _create_vision_transformer

from cdl_deploy.training.backbones.registering import model_cfg
from cdl_deploy.training.backbones.small import IMAGENET

SIDES = {
    "vit_384x6_patch14_98": 98,
    "vit_384x11_patch14_70": 70,
    "vit_384x11_patch14_56": 56,
    "vit_192x12_patch14_98": 98,
}
PATCH14_MODELS = tuple(SIDES)

default_cfgs = generate_default_cfgs(
    {name: model_cfg(*IMAGENET, input_size=(3, side, side)) for name, side in SIDES.items()}
)


@register_model
def vit_384x6_patch14_98(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Half of DINOv2's ViT-S/14: 384 wide, 6 deep, 6 heads; 10.9 M parameters."""
    return _vit("vit_384x6_patch14_98", pretrained, {"embed_dim": 384, "depth": 6, "num_heads": 6}, kwargs)


@register_model
def vit_384x11_patch14_70(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DINOv2's ViT-S/14 without its last block, on 25 patches; 19.8 M parameters."""
    return _vit("vit_384x11_patch14_70", pretrained, {"embed_dim": 384, "depth": 11, "num_heads": 6}, kwargs)


@register_model
def vit_384x11_patch14_56(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DINOv2's ViT-S/14 without its last block, on 16 patches; 19.8 M parameters."""
    return _vit("vit_384x11_patch14_56", pretrained, {"embed_dim": 384, "depth": 11, "num_heads": 6}, kwargs)


@register_model
def vit_192x12_patch14_98(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """As deep as the teacher and half as wide, 3 heads; 5.5 M parameters. It begins with random weights."""
    return _vit("vit_192x12_patch14_98", pretrained, {"embed_dim": 192, "depth": 12, "num_heads": 3}, kwargs)


def _vit(name: str, pretrained: bool, shape: dict[str, int], kwargs: dict[str, Any]) -> VisionTransformer:
    return _create_vision_transformer(
        name,
        pretrained=pretrained,
        **{"img_size": SIDES[name], "patch_size": 14, "init_values": 1e-5, **shape, **kwargs},
    )
