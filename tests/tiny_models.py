"""Random ViTs for 16x16 images that timm knows by name: exporting takes a second for each block, whatever its width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, _create_vision_transformer

from cdl_deploy.run.config import ModelConfig
from cdl_deploy.training.backbones.registering import model_cfg

SHAPES = {
    "tiny_teacher_2": {"embed_dim": 48, "depth": 2, "num_heads": 3},
    "tiny_student_2": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "tiny_teacher_5": {"embed_dim": 48, "depth": 5, "num_heads": 3},
    "tiny_student_5": {"embed_dim": 32, "depth": 5, "num_heads": 2},
}
default_cfgs = generate_default_cfgs(
    {name: model_cfg((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), input_size=(3, 16, 16)) for name in SHAPES}
)


def _tiny(name: str, pretrained: bool, kwargs: dict[str, Any]) -> VisionTransformer:
    shape = {"img_size": 16, "patch_size": 8, **SHAPES[name], **kwargs}
    return _create_vision_transformer(name, pretrained=pretrained, **shape)


@register_model
def tiny_teacher_2(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _tiny("tiny_teacher_2", pretrained, kwargs)


@register_model
def tiny_student_2(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _tiny("tiny_student_2", pretrained, kwargs)


@register_model
def tiny_teacher_5(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _tiny("tiny_teacher_5", pretrained, kwargs)


@register_model
def tiny_student_5(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    return _tiny("tiny_student_5", pretrained, kwargs)


def write_tiny_weights(folder: Path) -> None:
    """`NAME.safetensors` of each, the same every time; timm starts the class token at nearly zero."""
    folder.mkdir(parents=True)
    for name in SHAPES:
        generator = torch.Generator().manual_seed(0)
        state = _tiny(name, False, {"num_classes": 0}).state_dict()
        values = {key: torch.randn(value.shape, generator=generator) * 0.2 for key, value in state.items()}
        for key in values:
            if "norm" in key and key.endswith("weight"):
                values[key] += 1
        save_file(values, folder / f"{name}.safetensors")


def tiny_pair(folder: Path, depth: int) -> ModelConfig:
    """Teacher and student with the weights in `folder`. CODA-Prompt and DualPrompt need a depth of 5."""
    teacher, student = f"tiny_teacher_{depth}", f"tiny_student_{depth}"
    files = [str(folder / f"{name}.safetensors") for name in (teacher, student)]
    return ModelConfig(teacher, student, files[0], files[1])
