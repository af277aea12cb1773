"""Multiply-accumulate operations of one inference, counted from what onnxruntime really executes.

One run is profiled: onnxruntime then reports the shapes that went into every node and came out of it, so this needs no
onnx package, no shape inference and no help from the exporter, works for anybody's model, and counts a loop as often
as it ran. Products are counted: matrix products, convolutions, attention. Adding, normalising and softmax are not; in a
vision transformer they are about one percent.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from cdl_deploy.folders import scratch_folder
from cdl_deploy.runtime.onnx_scan import check_model_file

Shape = Sequence[int]

MATRIX = frozenset(
    {"MatMul", "FusedMatMul", "TransposeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
    | {"QLinearMatMul", "MatMulNBits"}
)
"""Operators whose output element is a product over the last axis of the first input."""
GEMM = frozenset({"Gemm", "FusedGemm", "QGemm"})
CONVOLUTION = frozenset({"Conv", "FusedConv", "ConvInteger", "QLinearConv", "NhwcFusedConv"})
UNCOUNTED = frozenset(
    {"Attention", "QAttention", "MultiHeadAttention", "GroupQueryAttention", "PackedAttention", "Einsum"}
    | {"LSTM", "GRU", "RNN", "DeformConv", "MoE", "QOrderedAttention"}
)
"""Operators full of products that are not counted: the profile has not what it takes. A model with any of them gets no
count rather than one that is too low."""


@dataclass(frozen=True)
class Macs:
    """Products of one image."""

    macs: int | None
    """Multiply-accumulate operations an image; None where they cannot be counted."""
    uncounted: tuple[str, ...] = ()
    """Operators because of which they cannot."""


def count_macs(path: Path, feed: Mapping[str, Any], batch: int) -> Macs:
    """Profile one run of `feed`, which holds `batch` images."""
    import onnxruntime

    with scratch_folder("cdl-profile-") as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "run")
        # Only rewritings that keep standard operators; packed weights would no longer show their shapes.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.log_severity_level = 3
        check_model_file(path)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        session.run(None, dict(feed))
        profile = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return macs_of_profile(profile, batch)


def macs_of_profile(profile: Sequence[Mapping[str, Any]], batch: int) -> Macs:
    """Products of the nodes in onnxruntime's profile of one run, for one of its `batch` images."""
    total, uncounted = 0, Counter[str]()
    for event in profile:
        if event.get("cat") != "Node" or not str(event.get("name", "")).endswith("_kernel_time"):
            continue
        about = event["args"]
        name, inputs, outputs = about["op_name"], *(_shapes(about[f"{end}_type_shape"]) for end in ("input", "output"))
        if name in UNCOUNTED:
            uncounted[name] += 1
        else:
            products = node_macs(name, inputs, outputs)
            uncounted[name] += products is None
            total += products or 0
    missing = tuple(sorted(name for name, count in uncounted.items() if count))
    return Macs(None, missing) if missing else Macs(round(total / batch))


def node_macs(operator: str, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int | None:
    """Products of one node; 0 for an operator without any, None where a shape that it takes is not known.

    | operator | products |
    |---|---|
    | matrix product [.., m, k] × [.., k, n] | m · k · n for each leading index: output elements times k |
    | Gemm | the same, where either matrix may come transposed: k is the first input's elements over m |
    | convolution | output elements times the weight's elements for one output channel |
    | transposed convolution | input elements times the weight's elements for one input channel |
    """
    known = inputs and outputs
    if operator in MATRIX:
        return prod(outputs[0]) * inputs[0][-1] if known and inputs[0] else None
    if operator in GEMM:
        return prod(inputs[0]) * outputs[0][1] if known and len(outputs[0]) == 2 else None
    if operator in CONVOLUTION:
        weight = _weight(operator, inputs)
        return prod(outputs[0]) * prod(weight[1:]) if known and weight else None
    if operator == "ConvTranspose":
        weight = _weight(operator, inputs)
        return prod(inputs[0]) * prod(weight[1:]) if known and weight else None
    return 0


def _weight(operator: str, inputs: Sequence[Shape]) -> Shape | None:
    """The weight is the second input, or the fourth where each quantised tensor is followed by scale and zero point."""
    position = 3 if operator == "QLinearConv" else 1
    return inputs[position] if len(inputs) > position and len(inputs[position]) > 2 else None


def _shapes(described: Sequence[Mapping[str, Shape]]) -> list[Shape]:
    """`[{"float": [1, 3]}, …]` → `[[1, 3], …]`."""
    return [shape for item in described for shape in item.values()]
