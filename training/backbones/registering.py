"""What timm is told about the ViTs that this package registers with it."""

from __future__ import annotations

from typing import Any


def model_cfg(mean: tuple[float, float, float], std: tuple[float, float, float], **more: Any) -> dict[str, Any]:
    """timm's default configuration of a model for 32x32 images; `more` adds to it."""
    return {
        "num_classes": 0,
        "input_size": (3, 32, 32),
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": mean,
        "std": std,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **more,
    }
