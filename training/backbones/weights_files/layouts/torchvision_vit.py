"""torchvision's ViT."""

from __future__ import annotations

from cdl_deploy.training.backbones.weights_files.layouts.layout import Layout, State, rename

NAMES = [
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.layers\.encoder_layer_", "blocks."),
    (r"^encoder\.ln\.", "norm."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:linear_1|0)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:linear_2|3)\.", ".mlp.fc2."),
]


def convert(state: State) -> State:
    """Names alone differ; version 1 numbered the layers of an MLP otherwise."""
    return rename(state, NAMES)


LAYOUTS = (
    Layout("torchvision's ViT", "conv_proj.weight", convert, like=r"^vit_\w+_patch\d+_\d+$", sign="class_token"),
)
