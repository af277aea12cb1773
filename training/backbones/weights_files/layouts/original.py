"""Files of the first authors, for which timm's own filters know the names: CLIP, OpenCLIP, DINO, DINOv2, DINOv3, RADIO.

What is done here is what a filter expects to be done before: a prefix given back, biases split.
"""

from __future__ import annotations

import re

from cdl_deploy.training.backbones.weights_files.layouts.layout import Layout, State, rename
from cdl_deploy.training.backbones.weights_files.layouts.transformers_vit import without_zero_biases

PATCHES = "patch_embed.proj.weight"
"""A tensor that every ViT of timm's has, and few heads."""
CLIP = "CLIP's or OpenCLIP's vision tower"
_CHUNK = [(r"^blocks\.\d+\.(?=\d+\.)", "blocks.")]
"""DINOv2 trains with blocks in chunks: `blocks.0.7.norm1.weight`, the second number counting through."""


def convert_timm(state: State) -> State:
    """timm's own names, which DINO, DeiT, MAE and MoCo v3 have too."""
    return dict(state)


def convert_clip(state: State) -> State:
    """timm's filter looks for the tower under `visual.`."""
    return {f"visual.{name}": value for name, value in state.items()}


def convert_dinov2(state: State) -> State:
    """timm's filter tells DINOv2 from others by the mask token."""
    return rename(state, _CHUNK)


def convert_dinov3(state: State) -> State:
    """The biases of query, key and value are one tensor, of which a mask holds the key's at 0.

    timm's filter splits it, and prints where a model has none of them; so it is split here.
    """
    split: State = {}
    for name, value in rename(state, _CHUNK).items():
        if re.search(r"\.attn\.qkv\.bias$", name):
            query, _, own = value.chunk(3)
            stem = name.removesuffix("qkv.bias")
            split[f"{stem}q_bias"], split[f"{stem}v_bias"] = query, own
        else:
            split[name] = value
    return without_zero_biases(split)


LAYOUTS = (
    Layout(CLIP, "conv1.weight", convert_clip, like=r"_clip_", sign=r"class_embedding"),
    Layout("DINOv3's original names", PATCHES, convert_dinov3, like=r"dinov3", sign=r"storage_tokens"),
    Layout("DINOv2's original names", PATCHES, convert_dinov2, like=r"reg4_dinov2", sign=r"register_tokens"),
    Layout(
        "MAE's original names", PATCHES, convert_timm, like=r"^vit_\w+_patch\d+_\d+$", sign=r"decoder_embed\.weight"
    ),
    Layout(
        "timm's names of EVA and DINOv3",
        PATCHES,
        convert_timm,
        like=r"dinov3|eva02",
        sign=r"blocks\.0\.attn\.(q_bias|q_proj\.weight)",
    ),
    Layout("DINOv2's original names", PATCHES, convert_dinov2, like=r"dinov2", sign=r"mask_token"),
    Layout("timm's names", PATCHES, convert_timm, like=r"^vit_\w+_patch\d+_\d+$"),
    Layout(
        "RADIO's original names",
        "radio_model.model.patch_generator.embedder.weight",
        lambda state: dict(state),
        like="radio",
    ),
)
