"""Hugging Face transformers: the vision towers of CLIP and SigLIP, alone or with the text tower beside them."""

from __future__ import annotations

import re

from cdl_deploy.training.backbones.weights_files.layouts.layout import Layout, State, join, rename

TOWER = [
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"^pre_layrnorm\.", "norm_pre."),  # so spelled there
    (r"^post_layernorm\.", "norm."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
]


def convert(state: State) -> State:
    """CLIP's class token is a vector there, and positions a table; SigLIP's pooling attends in one projection."""
    converted = join(rename(state, TOWER), ("q", "k", "v"), "qkv")
    for name in ("weight", "bias"):
        joined = converted.pop(f"head.attention.in_proj_{name}", None)
        if joined is not None:
            width = joined.shape[0] // 3
            converted[f"attn_pool.q.{name}"], converted[f"attn_pool.kv.{name}"] = joined[:width], joined[width:]
    if "cls_token" in converted:
        converted["cls_token"] = converted["cls_token"].reshape(1, 1, -1)
    if "pos_embed" in converted:
        converted["pos_embed"] = converted["pos_embed"].reshape(1, -1, converted["pos_embed"].shape[-1])
    return {name: value for name, value in converted.items() if not re.fullmatch(r"embeddings\.position_ids", name)}


_KERNEL = "embeddings.patch_embedding.weight"
LAYOUTS = (
    Layout("transformers' CLIP vision", _KERNEL, convert, like=r"_clip_", sign=r"embeddings\.class_embedding"),
    Layout("transformers' SigLIP vision", _KERNEL, convert, like=r"_siglip_(?!gap)"),
)
