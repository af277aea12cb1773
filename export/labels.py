"""The names of the best classes as ONNX nodes: they leave the graph itself, because JavaScript reads no metadata."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cdl_deploy.export.nodes import Nodes
from cdl_deploy.runtime.bundle import (
    LOGITS_NAME,
    PROBABILITIES_NAME,
    TOPK_INDEX_NAME,
    TOPK_LABEL_NAME,
    TOPK_PROBABILITY_NAME,
    Bundle,
)

LABELS_NAME = "labels/names"


def label_graph(bundle: Bundle, names: bool = True) -> Nodes:
    """Nodes from `logits` and `probabilities` to `topk_probability`, `topk_index` and, with `names`, `topk_label`; of
    equals the first comes first.

    The order is that of the logits: probabilities near 0 are all alike.
    """
    g = Nodes("labels")
    best = f"{g.prefix}/best"
    g.nodes.append(
        helper.make_node("TopK", [LOGITS_NAME, g.integers(bundle.top_k)], [best, TOPK_INDEX_NAME], name=best, axis=1)
    )
    g("GatherElements", PROBABILITIES_NAME, TOPK_INDEX_NAME, name=TOPK_PROBABILITY_NAME, axis=1)
    if names:
        g.initializers.append(numpy_helper.from_array(np.array(bundle.classes, dtype=object), LABELS_NAME))
        g("Gather", LABELS_NAME, TOPK_INDEX_NAME, name=TOPK_LABEL_NAME, axis=0)
    return g


def label_outputs(bundle: Bundle, names: bool = True) -> list[onnx.ValueInfoProto]:
    """`topk_probability` float, `topk_index` int64 and, with `names`, `topk_label` string, [batch, k] each."""
    kinds = {TOPK_PROBABILITY_NAME: TensorProto.FLOAT, TOPK_INDEX_NAME: TensorProto.INT64}
    if names:
        kinds[TOPK_LABEL_NAME] = TensorProto.STRING
    return [helper.make_tensor_value_info(name, kind, ["batch", bundle.top_k]) for name, kind in kinds.items()]
