"""State dicts as other libraries name them, made of timm's: what stands where is written down here once more, by hand.

tests/foreign asks the libraries themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

State = dict[str, torch.Tensor]

EMBEDDINGS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
VIT_FILE = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
}
VIT_MEMORY = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
}
DINOV2_FILE = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
TORCHVISION = {
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attn.proj": "self_attention.out_proj",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.3",
    "attn.qkv.weight": "self_attention.in_proj_weight",
    "attn.qkv.bias": "self_attention.in_proj_bias",
}
TORCHVISION_EMBEDDINGS = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj.weight": "conv_proj.weight",
    "patch_embed.proj.bias": "conv_proj.bias",
    "norm.weight": "encoder.ln.weight",
    "norm.bias": "encoder.ln.bias",
}
SIGLIP = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
}
SIGLIP_EMBEDDINGS = {
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
    "norm_pre.weight": "pre_layrnorm.weight",
    "norm_pre.bias": "pre_layrnorm.bias",
}
CLIP = {
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "attn.qkv.weight": "attn.in_proj_weight",
    "attn.qkv.bias": "attn.in_proj_bias",
}
CLIP_EMBEDDINGS = {
    "patch_embed.proj.weight": "conv1.weight",
    "norm.weight": "ln_post.weight",
    "norm.bias": "ln_post.bias",
    "norm_pre.weight": "ln_pre.weight",
    "norm_pre.bias": "ln_pre.bias",
}


def renamed(state: State, embeddings: dict[str, str], blocks: dict[str, Any], place: str) -> State:
    """A timm state dict under other names; `place` is what stands for `blocks.`, a tuple splits in three."""
    found = {}
    for name, value in state.items():
        if name in embeddings:
            found[embeddings[name]] = value.clone()
            continue
        if not name.startswith("blocks."):
            continue
        _, number, rest = name.split(".", 2)
        stem, _, kind = rest.rpartition(".")
        theirs = blocks.get(rest) or blocks.get(stem)
        if isinstance(theirs, tuple):
            for part, third in zip(theirs, value.chunk(3), strict=True):
                found[f"{place}{number}.{part}.{kind}"] = third.clone()
        else:
            found[f"{place}{number}.{theirs}" + ("" if rest in blocks else f".{kind}")] = value.clone()
    return found


def siglip(state):
    """transformers' SigLIP: positions are a table, and its pooling one projection."""
    found = renamed(state, SIGLIP_EMBEDDINGS, SIGLIP, "encoder.layers.")
    found["embeddings.position_embedding.weight"] = state["pos_embed"][0].clone()
    names = {"proj": "attention.out_proj", "norm": "layernorm", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for kind in ("weight", "bias"):
        parts = [state[f"attn_pool.q.{kind}"], state[f"attn_pool.kv.{kind}"]]
        found[f"head.attention.in_proj_{kind}"] = torch.cat(parts)
        found |= {f"head.{theirs}.{kind}": state[f"attn_pool.{ours}.{kind}"].clone() for ours, theirs in names.items()}
    return found | {"head.probe": state["attn_pool.latent"].clone()}


def transformers_clip(state):
    """transformers' CLIP: the class token is a vector."""
    found = renamed(state, SIGLIP_EMBEDDINGS, SIGLIP, "encoder.layers.")
    found["embeddings.position_embedding.weight"] = state["pos_embed"][0].clone()
    return found | {"embeddings.class_embedding": state["cls_token"][0, 0].clone()}


def open_clip(state):
    """OpenAI's and OpenCLIP's tower."""
    found = renamed(state, CLIP_EMBEDDINGS, CLIP, "transformer.resblocks.")
    found["positional_embedding"] = state["pos_embed"][0].clone()
    return found | {"class_embedding": state["cls_token"][0, 0].clone(), "proj": torch.zeros(24, 5)}


def dinov3(state, original):
    """DINOv3 of timm's `Eva` state, as its authors or transformers name it."""
    found = {}
    for name, value in state.items():
        if name.endswith(".q_bias"):
            stem = name.removesuffix("attn.q_bias")
            query, own = value, state[f"{stem}attn.v_bias"]
            if original:
                found[f"{stem}attn.qkv.bias"] = torch.cat([query, torch.zeros_like(query), own])
                found[f"{stem}attn.qkv.bias_mask"] = torch.ones(3 * len(query))
            else:
                layer = stem.replace("blocks.", "layer.")
                found |= {f"{layer}attention.q_proj.bias": query.clone(), f"{layer}attention.v_proj.bias": own.clone()}
        elif name.endswith((".v_bias", ".k_bias")):
            continue
        elif original:
            for ours, theirs in {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}.items():
                name = name.replace(ours, theirs)
            found[name] = value.clone()
        elif name.endswith("attn.qkv.weight"):
            layer = name.replace("blocks.", "layer.").removesuffix("attn.qkv.weight")
            for part, third in zip("qkv", value.chunk(3), strict=True):
                found[f"{layer}attention.{part}_proj.weight"] = third.clone()
        else:
            for ours, theirs in {
                "blocks.": "layer.", "attn.proj": "attention.o_proj", "gamma_1": "layer_scale1.lambda1",
                "gamma_2": "layer_scale2.lambda1", "mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj",
                "patch_embed.proj": "embeddings.patch_embeddings", "cls_token": "embeddings.cls_token",
                "reg_token": "embeddings.register_tokens",
            }.items():  # fmt: skip
                name = name.replace(ours, theirs)
            found[name] = value.clone()
    if original:
        return found | {"mask_token": torch.zeros(1, 24), "rope_embed.periods": torch.ones(2)}
    return found | {"embeddings.mask_token": torch.zeros(1, 1, 24)}


def big_vision(state: State, heads: int, first: bool = False) -> dict[str, Any]:
    """Arrays as JAX lays them out: kernels [in, out], heads apart; with `first` as the first ViTs were named."""
    arrays = {name: value.numpy() for name, value in state.items()}
    width = arrays["norm.bias"].shape[0]
    split = (heads, width // heads)
    attention, mlp, norm2 = ("_1", "_3", "_2") if first else ("_0", "_0", "_1")
    positions = "Transformer/posembed_input/pos_embedding" if first else "pos_embedding"
    found = {
        "cls": arrays["cls_token"],
        positions: arrays["pos_embed"],
        "embedding/kernel": arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": arrays["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": arrays["norm.weight"],
        "Transformer/encoder_norm/bias": arrays["norm.bias"],
        "head/kernel": np.zeros((width, 7), np.float32),
        "head/bias": np.zeros(7, np.float32),
    }
    for index in range(len({name.split(".")[1] for name in arrays if name.startswith("blocks.")})):
        theirs, ours = f"Transformer/encoderblock_{index}/", f"blocks.{index}."
        for norm, name in (("_0", "norm1"), (norm2, "norm2")):
            found[f"{theirs}LayerNorm{norm}/scale"] = arrays[f"{ours}{name}.weight"]
            found[f"{theirs}LayerNorm{norm}/bias"] = arrays[f"{ours}{name}.bias"]
        place = f"{theirs}MultiHeadDotProductAttention{attention}/"
        weights, biases = (np.split(arrays[f"{ours}attn.qkv.{kind}"], 3) for kind in ("weight", "bias"))
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            found[f"{place}{name}/kernel"] = weight.T.reshape(width, *split)
            found[f"{place}{name}/bias"] = bias.reshape(split)
        found[f"{place}out/kernel"] = arrays[f"{ours}attn.proj.weight"].T.reshape(*split, width)
        found[f"{place}out/bias"] = arrays[f"{ours}attn.proj.bias"]
        for number, name in ((0, "fc1"), (1, "fc2")):
            found[f"{theirs}MlpBlock{mlp}/Dense_{number}/kernel"] = arrays[f"{ours}mlp.{name}.weight"].T
            found[f"{theirs}MlpBlock{mlp}/Dense_{number}/bias"] = arrays[f"{ours}mlp.{name}.bias"]
    return found
