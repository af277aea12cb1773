"""Hugging Face transformers: ViT, ViT-MAE, DeiT, DINOv2 without and with registers, DINOv3.

Names in files are those of transformers 4; since version 5 it has others in memory, which `torch.save` of a state dict
writes. Both are read.
"""

from __future__ import annotations

from cdl_deploy.training.backbones.weights_files.layouts.layout import (
    Layout,
    State,
    class_token_with_its_position,
    join,
    rename,
)

EMBEDDINGS = [
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
]
BLOCKS = [
    (r"^(?:model\.)?(?:encoder\.)?layers?\.(?=\d)", "blocks."),
    (r"\.attention\.(?:attention\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
]
VIT = [
    *EMBEDDINGS,
    *BLOCKS,
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.(?:weights_out|down_proj)\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
]
DINOV3 = [
    *EMBEDDINGS,
    *BLOCKS,
    (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
]


def convert_vit(state: State) -> State:
    """ViT, DeiT, DINOv2: timm's `VisionTransformer`."""
    state = join(rename(state, VIT), ("q", "k", "v"), "qkv")
    state = join(state, ("gate_proj", "up_proj"), "fc1")  # timm's SwiGLUPacked: the gate first, as `weights_in` has it
    state.pop("mask_token", None)
    return class_token_with_its_position(state)


def convert_dinov3(state: State) -> State:
    """DINOv3: timm's `Eva`. Its models come without biases of queries and values too, for weights where all are 0."""
    state = rename(state, DINOV3)
    gated = any(name.endswith(".mlp.fc1_g.weight") for name in state)
    state = rename(state, [(r"\.mlp\.up_proj\.", ".mlp.fc1_x." if gated else ".mlp.fc1.")])
    state = rename(state, [(r"\.attn\.([qv])\.bias$", r".attn.\1_bias")])
    if any(value.any() for name, value in state.items() if name.endswith(".attn.k.bias")):
        return join(state, ("q", "k", "v"), "qkv")  # rotary position makes such a bias matter; timm has none: refused
    state = {name: value for name, value in state.items() if not name.endswith(".attn.k.bias")}
    state = join(state, ("q", "k", "v"), "qkv")
    state.pop("mask_token", None)
    return without_zero_biases(state)


def without_zero_biases(state: State) -> State:
    """Queries' and values' biases are left out where all of them are 0."""
    biases = [name for name in state if name.endswith((".attn.q_bias", ".attn.v_bias"))]
    if any(state[name].any() for name in biases):
        return state
    return {name: value for name, value in state.items() if name not in biases}


_PROJECTION = "embeddings.patch_embeddings.projection.weight"
LAYOUTS = (
    Layout(
        "transformers' DINOv3",
        "embeddings.patch_embeddings.weight",
        convert_dinov3,
        like=r"dinov3",
        sign=r"embeddings\.register_tokens",
    ),
    Layout(
        "transformers' DeiT with a distillation token",
        _PROJECTION,
        convert_vit,
        like=r"deit_.*distilled",
        sign=r"embeddings\.distillation_token",
    ),
    Layout(
        "transformers' DINOv2 with registers",
        _PROJECTION,
        convert_vit,
        like=r"reg4_dinov2",
        sign=r"embeddings\.register_tokens",
    ),
    Layout("transformers' DINOv2", _PROJECTION, convert_vit, like=r"dinov2", sign=r".*\.layer_scale1\.lambda1"),
    Layout("transformers' ViT", _PROJECTION, convert_vit, like=r"^vit_\w+_patch\d+_\d+$"),
)
