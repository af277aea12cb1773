"""Plain timm ViTs for 32x32 photographs, in patches of 4 (65 tokens) or 8 (17), registered with timm by name.

They carry no weights: `cdl_deploy.training.recipes.pretrain_photos` makes some from any image folder, and
`cdl train --teacher vit_small_patch4_32 --teacher-weights FILE` uses them.
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, _create_vision_transformer

from cdl_deploy.training.backbones.registering import model_cfg

SMALL_MODELS = ("vit_small_patch4_32", "vit_tiny_patch4_32", "vit_192x9_patch8_32", "vit_128x6_patch8_32")

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of its pixels."""

default_cfgs = generate_default_cfgs({name: model_cfg(*IMAGENET) for name in SMALL_MODELS})


@register_model
def vit_small_patch4_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """The literature's small ViT: 384 wide, 12 deep, 6 heads; 21.3 M parameters."""
    return _vit("vit_small_patch4_32", pretrained, {"embed_dim": 384, "depth": 12, "num_heads": 6}, kwargs)


@register_model
def vit_tiny_patch4_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """The literature's tiny ViT: 192 wide, 12 deep, 3 heads; 5.4 M parameters."""
    return _vit("vit_tiny_patch4_32", pretrained, {"embed_dim": 192, "depth": 12, "num_heads": 3}, kwargs)


@register_model
def vit_192x9_patch8_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """A teacher that two CPU cores can pretrain: 192 wide, 9 deep, 3 heads, patches of 8; 4.0 M parameters."""
    shape = {"patch_size": 8, "embed_dim": 192, "depth": 9, "num_heads": 3}
    return _vit("vit_192x9_patch8_32", pretrained, shape, kwargs)


@register_model
def vit_128x6_patch8_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Its student: 128 wide, 6 deep, 2 heads, patches of 8; 1.2 M parameters."""
    shape = {"patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 2}
    return _vit("vit_128x6_patch8_32", pretrained, shape, kwargs)


def _vit(name: str, pretrained: bool, shape: dict[str, int], kwargs: dict[str, Any]) -> VisionTransformer:
    return _create_vision_transformer(
        name, pretrained=pretrained, **{"img_size": 32, "patch_size": 4, **shape, **kwargs}
    )
