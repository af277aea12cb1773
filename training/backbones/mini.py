"""The two pretrained ViTs the package carries, registered with timm under the names `mini_teacher` and `mini_student`.

Plain timm `VisionTransformer`s for 32x32 images in 8x8 patches (17 tokens), so that a laptop trains on them in
minutes. Their weights were trained on rendered letters and symbols; see `cdl_deploy.training.recipes.pretrain_glyphs`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, _create_vision_transformer

from cdl_deploy.training.backbones.registering import model_cfg

WEIGHTS_DIR = Path(__file__).resolve().parent / "weights"
MINI_MODELS = ("mini_teacher", "mini_student")


def _cfg(name: str) -> dict[str, Any]:
    half = (0.5, 0.5, 0.5)
    file = str(WEIGHTS_DIR / f"{name}.safetensors")
    return model_cfg(half, half, file=file, num_classes=254, license="apache-2.0")


default_cfgs = generate_default_cfgs({f"{name}.glyphs": _cfg(name) for name in MINI_MODELS})


@register_model
def mini_teacher(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """192 wide, 8 deep, 3 heads: 3.6 M parameters."""
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 8, "num_heads": 3}
    return _create_vision_transformer("mini_teacher", pretrained=pretrained, **{**shape, **kwargs})


@register_model
def mini_student(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """64 wide, 6 deep, 2 heads: 0.3 M parameters."""
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 6, "num_heads": 2}
    return _create_vision_transformer("mini_student", pretrained=pretrained, **{**shape, **kwargs})
