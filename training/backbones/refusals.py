"""What a network of timm's is that no family of ours computes, and which supported model comes nearest to it."""

from __future__ import annotations

import re

from timm.models import model_entrypoint

from cdl_deploy.errors import WeightsError

OURS = ("vision_transformer", "deit", "eva")
"""timm's modules with networks that a family may take: these are looked at one by one."""
HIERARCHICAL = "its tokens become fewer and wider from stage to stage"
WINDOWS = f"it attends in windows, and {HIERARCHICAL}"
MIXED = "attention is one part of it among convolutions"
LANGUAGE = "it feeds a language model, and takes images of any shape"
CONVOLUTIONS = "it is a convolutional network"
WHAT = {
    "beit": "it has relative positions, a bias of every block's scores",
    "cait": "its class token comes in for the last blocks alone, which attend otherwise",
    "coat": f"{MIXED}, and {HIERARCHICAL}",
    "convit": "its attention is gated by positions",
    "crossvit": "it has two branches of tokens",
    "csatv2": MIXED,
    "davit": f"it attends over channels as well, and {HIERARCHICAL}",
    "deepseek_vit": LANGUAGE,
    "edgenext": MIXED,
    "efficientformer": MIXED,
    "efficientformer_v2": MIXED,
    "efficientvit_mit": "its attention is linear, without a softmax",
    "efficientvit_msra": WINDOWS,
    "fastvit": MIXED,
    "gcvit": WINDOWS,
    "gemma4_vit": LANGUAGE,
    "hiera": WINDOWS,
    "hieradet_sam2": WINDOWS,
    "iformer": MIXED,
    "levit": f"its positions are a bias of scores, and {HIERARCHICAL}",
    "lowformer": MIXED,
    "maxxvit": WINDOWS,
    "metaformer": f"it mixes tokens by pooling or convolution, and {HIERARCHICAL}",
    "mlp_mixer": "it mixes tokens by MLPs, and has no attention",
    "mobilenetv5": MIXED,
    "mobilevit": MIXED,
    "mvitv2": f"it has relative positions, and {HIERARCHICAL}",
    "naflexvit": "it takes images of any shape, with a mask of tokens (NaFlex)",
    "nest": f"it attends in blocks of the image, and {HIERARCHICAL}",
    "nextvit": MIXED,
    "pit": HIERARCHICAL,
    "pvt_v2": f"its keys and values are of fewer tokens, and {HIERARCHICAL}",
    "qwen3_vit": LANGUAGE,
    "sequencer": "it mixes tokens by LSTMs, and has no attention",
    "shvit": MIXED,
    "swiftformer": MIXED,
    "swin_transformer": WINDOWS,
    "swin_transformer_v2": WINDOWS,
    "swin_transformer_v2_cr": WINDOWS,
    "tiny_vit": WINDOWS,
    "tnt": "it has a second transformer inside every patch",
    "twins": WINDOWS,
    "vision_transformer_hybrid": "a convolutional network makes its patches",
    "vision_transformer_relpos": "it has relative positions, a bias of every block's scores",
    "vision_transformer_sam": "it attends in windows, with relative positions, and has no class token",
    "visformer": MIXED,
    "vitamin": "convolutions make its patches",
    "volo": "it attends by outlook attention, and its class token comes in for the last blocks alone",
    "xcit": "it attends over channels, not over tokens",
}
"""By timm's module; what is not here is a convolutional network."""
NEAREST = {
    "tiny": "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m",
    "small": "vit_small_patch16_dinov3.lvd1689m",
    "base": "vit_base_patch16_dinov3.lvd1689m",
    "large": "vit_large_patch16_dinov3.lvd1689m",
}
"""By size: a supported model with weights."""
NEAREST_OF = {
    "siglip": {"small": "vit_base_patch16_siglip_256.v2_webli", "large": "vit_large_patch16_siglip_256.v2_webli"},
    "clip": {"small": "vit_base_patch16_clip_224.openai", "large": "vit_large_patch14_clip_224.openai"},
    "rope": {
        "small": "vit_small_patch16_rope_224.naver_in1k",
        "base": "vit_base_patch16_rope_224.naver_in1k",
        "large": "vit_large_patch16_rope_224.naver_in1k",
    },
}
"""The same for names with such a word in them; where a size is not there, the next smaller."""
SIZES = ("tiny", "small", "base", "large")
WORDS = {
    "tiny": "tiny|nano|atto|femto|pico|xxs|xs|xxtiny|wee|pwee|dwee|dpwee|t",
    "base": "base|medium|mediumd|betwixt|b",
    "large": "large|huge|giant|enormous|gigantic|xlarge|xl|l|h|g|so400m|1b|5b",
}
"""Words in a model's name that tell its size; `small` where there is none."""


def refuse_others(model: str) -> None:
    """Raise WeightsError for a model of one of timm's modules that has nothing a family of ours could take."""
    entry = model_entrypoint(model.partition(".")[0]).__module__
    module = entry.rpartition(".")[2]
    if entry.startswith("timm.models.") and module not in OURS:
        raise WeightsError(refusal(model, WHAT.get(module, CONVOLUTIONS)))


def refusal(model: str, reason: str) -> str:
    """One line: what is wrong with the model as a backbone, and what to take instead."""
    return (
        f"model '{model}' cannot be a backbone here: {reason}; the nearest that can, with weights, is "
        f"{nearest_supported(model)}"
    )


def nearest_supported(model: str) -> str:
    """By the size and the kind that its name tells."""
    words = set(re.split(r"[_.\d]*_[_.]*|\.", model.partition(".")[0].lower()))
    found = [size for size, text in WORDS.items() if words & set(text.split("|"))]
    size = found[0] if found else "small"
    for word, own in NEAREST_OF.items():
        if word in words:
            smaller = [name for name in SIZES[: SIZES.index(size) + 1] if name in own] or [next(iter(own))]
            return own[smaller[-1]]
    return NEAREST[size]
