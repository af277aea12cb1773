"""What a smaller variant computes in fp32 all the same, and why: for the export report."""

from __future__ import annotations

import math
from collections.abc import Collection

import onnx

PARTS = {
    "selection": ("selection.", "keys and prompts: a small error there selects other prompts"),
    "heads": ("head.", "one vector an image: nothing to gain"),
    "last block's stacks": (("last.", "query_last."), "one or two tokens ask there: nothing to gain"),
    "distillation's rows": ("constants.", "prompts"),
}
"""What is left in any case: how its initializers begin, and the reason."""
UNASKED = "selection.scores"
"""Of a model that asks no query: how likely each task is, the same for every image."""
ATTENTION = {"attention": "its own products have no weights, and prompts stand among their rows"}
MIXING = {"attention's probabilities with values": "of those of many tokens, 8 bits would leave too little"}
ALWAYS = {
    "norms, softmax, GELU, residual adds": "they cost accuracy in integers and are no products",
}


def left_float(
    model: onnx.ModelProto, kept: Collection[str], beyond: Collection[str] = (), scores: bool = False
) -> dict[str, str]:
    """Part → reason, with what is `kept` for accuracy's sake and layers with weights `beyond` fp16 first.

    `scores`: whether those of attention are quantised.
    """
    found = dict.fromkeys(sorted(kept), "quantised, the answers would lose more than --max-drop")
    found |= dict.fromkeys(sorted(beyond), "a weight is larger than fp16 can hold")
    for part, (begin, reason) in PARTS.items():
        stored = [v for v in model.graph.initializer if v.name.startswith(begin) and v.name != UNASKED and v.dims]
        if stored:
            found[part] = f"{sum(math.prod(v.dims) for v in stored):,} numbers; {reason}"
    return found | (MIXING if scores else ATTENTION) | ALWAYS
