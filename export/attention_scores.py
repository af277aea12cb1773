"""Attention's scores in integers: queries with keys. Neither side has weights, so both get a scale from calibration.

    scores = dequantised(Q in U8) · dequantised(K in S8)ᵀ

The keys are those of tokens and of prompts beside them, with one scale. They use 7 of their 8 bits, as weights do and
for the same reason (`quantise.py`): up to ±64 a pair of products fits into 16 bits. Unlike weights, keys may be larger
than any that were seen before, so they are clipped.

What follows stays fp32, the product of probabilities and values too: 1/255 is as much as an average token gets of 257
(docs/quantisation.md). So does the last block, where one or two tokens ask (`AbsorbedKVAttention` in `block.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorsData

from cdl_deploy.errors import QuantisationError
from cdl_deploy.export.layers import Graph

LARGEST_KEY = 64


@dataclass(frozen=True)
class Scores:
    """One product of queries and keys."""

    node: str
    keys: str
    """The value that is its right side."""


def find_scores(model: onnx.ModelProto) -> list[Scores]:
    """Of every softmax whose probabilities alone are the left side of a product; all sides are made of tokens."""
    graph = Graph(model)
    found = []
    for node in model.graph.node:
        if node.op_type != "Softmax":
            continue
        scores, users = _product_above(graph, node.input[0]), graph.consumers[node.output[0]]
        if scores is None or [user.op_type for user in users] != ["MatMul"] or users[0].input[0] != node.output[0]:
            continue
        if not any(graph.constant(side) for side in (*scores.input, users[0].input[1])):
            found.append(Scores(scores.name, scores.input[1]))
    return found


def _product_above(graph: Graph, scores: str) -> onnx.NodeProto | None:
    """The product that makes scores, perhaps with something added, such as the logarithms of merged tokens' sizes."""
    node = graph.producer.get(scores)
    made = [scores] if node is None or node.op_type != "Add" else node.input
    products = [graph.producer[it] for it in made if it in graph.producer and graph.producer[it].op_type == "MatMul"]
    return products[0] if len(products) == 1 else None


def key_scales(scores: Iterable[Scores], ranges: TensorsData) -> dict[str, list[dict[str, Any]]]:
    """Value → type, scale and zero point, as onnxruntime's quantiser takes them; queries are left to it."""
    found = {}
    for product in scores:
        seen = float(np.abs(np.array(ranges[product.keys].range_value)).max()) or 1.0
        scale = np.array(seen / LARGEST_KEY, np.float32)
        found[product.keys] = [{"quant_type": QuantType.QInt8, "scale": scale, "zero_point": np.array(0, np.int8)}]
    return found


def keys_in_bytes(model: onnx.ModelProto, scores: Iterable[Scores]) -> None:
    """Clip the keys to what ±64 stands for, and transpose them as S8 rather than before. In place, in no order.

        Transpose → Quantize → Dequantize → product        Clip → Quantize → Transpose → Dequantize → product

    That is a quarter of the bytes. And Quantize and Dequantize stand apart: onnxruntime would otherwise make U8 of the
    pair on x86, whose products with U8 take half as long again as those with S8
    (findings/onnxruntime_s8_becomes_u8.sh).
    """
    graph, names = Graph(model), {product.node for product in scores}
    for node in [node for node in model.graph.node if node.name in names]:
        dequantise = graph.producer[node.input[1]]
        quantise = graph.producer[dequantise.input[0]]
        keys, constants = quantise.input[0], [f"{node.name}.least_key", f"{node.name}.largest_key"]
        transpose = graph.producer.get(keys)
        if transpose is not None and transpose.op_type == "Transpose" and len(graph.consumers[keys]) == 1:
            keys = transpose.input[0]
            transpose.input[0], transpose.output[0] = quantise.output[0], f"{node.name}.keys"
            dequantise.input[0] = transpose.output[0]
        most = LARGEST_KEY * graph.value(quantise.input[1])
        model.graph.initializer.extend(
            numpy_helper.from_array(np.array(end, np.float32), name)
            for end, name in zip((-most, most), constants, strict=True)
        )
        clipped = f"{node.name}.clipped"
        model.graph.node.append(helper.make_node("Clip", [keys, *constants], [clipped], clipped))
        quantise.input[0] = clipped


def check_scores(model: onnx.ModelProto, scores: Iterable[Scores]) -> None:
    """Raise QuantisationError where a side of one of these products is still float."""
    names = {product.node for product in scores}
    integers = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    left = names - {node.name for node in model.graph.node if integers.issuperset(node.input)}
    if left:
        raise QuantisationError(
            f"{len(left)} of {len(names)} products of queries and keys were left in float by the quantiser, such as "
            f"{min(left)}; nothing was written"
        )
