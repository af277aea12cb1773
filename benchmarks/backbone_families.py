"""Members of timm's families of ViTs, built small: the real architecture, a few tokens, every parameter random."""

from __future__ import annotations

import warnings
from typing import Any

import timm
import torch
from torch import nn

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}

ROTARY: dict[str, dict[str, Any]] = {
    "vit_small_patch16_dinov3": {},
    "vit_small_patch16_dinov3_qkvb": {},
    "vit_small_plus_patch16_dinov3": {},
    "vit_small_patch16_lingbot": {},
    "vit_base_patch16_sapiens2": {"num_kv_heads": (3, 3)},
    "vit_small_patch16_rope_224": {},
    "vit_small_patch16_rope_ape_224": {},
    "eva02_tiny_patch14_224": {"img_size": 28},
    "eva02_base_patch14_224": {"img_size": 28},
    "eva02_base_patch16_clip_224": {},
    "eva_giant_patch14_clip_224": {"img_size": 28},
    "vit_pe_core_tiny_patch16_384": {"attn_pool_num_heads": 3},
    "vit_pe_spatial_tiny_patch16_512": {},
    "vit_base_patch16_rope_reg1_gap_256": {},
}
"""What `RotaryViT` computes."""
POOLED: dict[str, dict[str, Any]] = {
    "vit_base_patch16_siglip_224": {},
    "vit_base_patch16_siglip_gap_224": {},
    "vit_medium_patch16_reg1_gap_256": {},
    "vit_so150m_patch16_reg4_map_256": {},
    "eva_large_patch14_196": {"img_size": 28},
    "aimv2_large_patch14_224": {"img_size": 28},
    "test_vit3": {"depth": 2},
}
"""What `PlainViT` computes without a class token to read."""
CLASS_TOKEN: dict[str, dict[str, Any]] = {
    "vit_small_patch16_224": {},
    "vit_small_patch32_224": {"img_size": 64},
    "vit_small_patch14_dinov2": {"img_size": 28},
    "vit_small_patch14_reg4_dinov2": {"img_size": 28},
    "vit_giant_patch14_dinov2": {"img_size": 28},
    "vit_base_patch16_clip_224": {},
    "vit_base_patch16_clip_quickgelu_224": {},
    "vit_base_patch14_reg1_tipsv2": {"img_size": 28},
    "flexivit_small": {},
    "deit_small_patch16_224": {},
    "deit3_small_patch16_224": {},
}
"""What `PlainViT` has always computed."""
OTHERS: dict[str, dict[str, Any]] = {
    "vit_base_patch16_radio_v3": {},
    "vit_huge_patch16_radio_v4": {},
    "vit_intern300m_patch14_448": {"img_size": 28},
    "beit3_base_patch16_224": {},
}
"""What `PlainViT` computes and was refused before for what its last norm is."""
FAMILIES = {**ROTARY, **POOLED, **OTHERS, **CLASS_TOKEN}


def member(family: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A small random one for square images of 32 pixels, or what `FAMILIES` says."""
    given = {"img_size": 32, **SMALL, **FAMILIES[family], **changes}
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vit = timm.create_model(family, pretrained=False, **given)
    for name, parameter in vit.named_parameters():  # timm starts much at nearly zero, which would hide mistakes
        spread = 0.2 if parameter.dim() < 2 or "token" in name else parameter[0].numel() ** -0.5
        nn.init.normal_(parameter, std=spread)
        if name.endswith(
            ("norm.weight", "norm1.weight", "norm2.weight", "norm_pre.weight", "gamma", "gamma_1", "gamma_2")
        ):
            parameter.data += 1
    return vit.eval()
