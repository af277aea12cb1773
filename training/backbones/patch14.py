"""Students in the shape of DINOv2's ViT-S/14 for 98x98 images (49 patches), registered with timm by name.

Their blocks have LayerScale, as the teacher's `vit_small_patch14_dinov2` have, so that a student can begin as the first
blocks of its teacher. They carry no weights: `cdl_deploy.training.recipes.public_backbone` makes some from a public
file, for smaller images as well.
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, _create_vision_transformer

from cdl_deploy.training.backbones.registering import model_cfg
from cdl_deploy.training.backbones.small import IMAGENET

FIRST_BLOCKS = {depth: f"vit_384x{depth}_patch14_98" for depth in range(6, 12)}
"""The first so many of DINOv2's ViT-S/14's twelve blocks: 384 wide, 6 heads; 10.9 M parameters with six."""
NARROW = "vit_192x12_patch14_98"
"""As deep as the teacher and half as wide, 3 heads; 5.5 M parameters. It begins with random weights."""
PATCH14_MODELS = (*FIRST_BLOCKS.values(), NARROW)

default_cfgs = generate_default_cfgs({name: model_cfg(*IMAGENET, input_size=(3, 98, 98)) for name in PATCH14_MODELS})


def _vit(name: str, pretrained: bool, shape: dict[str, int], kwargs: dict[str, Any]) -> VisionTransformer:
    return _create_vision_transformer(
        name, pretrained=pretrained, **{"img_size": 98, "patch_size": 14, "init_values": 1e-5, **shape, **kwargs}
    )


def _register(name: str, **shape: int) -> None:
    def make(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
        return _vit(name, pretrained, shape, kwargs)

    make.__name__ = name
    register_model(make)


for _depth, _name in FIRST_BLOCKS.items():
    _register(_name, embed_dim=384, depth=_depth, num_heads=6)
_register(NARROW, embed_dim=192, depth=12, num_heads=3)
