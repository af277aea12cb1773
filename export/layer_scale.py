"""LayerScale inside the product before it, where no runtime has to multiply by it.

    (x · W + b) ∘ γ = x · (W diag γ) + b ∘ γ

ViTs such as DINOv2, DINOv3 and DeiT III scale what attention and MLP add to their tokens by a constant γ [D]: a pass
over all tokens, twice a block.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from cdl_deploy.export.layers import drop_unused


class _Scaled(NamedTuple):
    """A product, its addition and its multiplication by γ, all of constants."""

    weight: str
    """The initializer [K, D]; [D, K] where a Transpose stands between."""
    transposed: bool
    bias: str | None
    scale: str
    last: onnx.NodeProto
    """What the multiplication's output is made by, once that is gone."""
    multiplication: onnx.NodeProto


def fold_layer_scale(model: onnx.ModelProto) -> None:
    """In place, wherever a matrix and its bias are scaled by the same γ in every product that has them."""
    graph = model.graph
    constants = {value.name: value for value in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for value in node.input:
            readers[value].append(node)
    outputs = {value.name for value in graph.output}

    def pattern(node: onnx.NodeProto) -> _Scaled | None:
        scale = next((value for value in node.input if value in constants), None)
        if node.op_type != "Mul" or scale is None or len(constants[scale].dims) != 1:
            return None
        last = makers.get(next(value for value in node.input if value != scale))
        product, bias = last, None
        if last is not None and last.op_type == "Add":
            bias = next((value for value in last.input if value in constants), None)
            product = makers.get(next(value for value in last.input if value != bias)) if bias else None
        if last is None or product is None or product.op_type != "MatMul":
            return None
        between = {value for made in (last, product) for value in made.output}
        if between & outputs or any(len(readers[value]) > 1 for value in between):
            return None
        weight, transposed = product.input[1], False
        made_by = makers.get(weight)
        if made_by is not None and made_by.op_type == "Transpose":
            weight, transposed = made_by.input[0], True
        shapes = [tuple(constants[value].dims) for value in (scale, bias) if value]
        if weight not in constants or len(constants[weight].dims) != 2 or len(set(shapes)) > 1:
            return None
        width = constants[weight].dims[0 if transposed else 1]
        return None if shapes[0] != (width,) else _Scaled(weight, transposed, bias, scale, last, node)

    groups: dict[str, list[_Scaled]] = defaultdict(list)
    for node in graph.node:
        found = pattern(node)
        if found is not None:
            groups[found.weight].append(found)
    removed: set[str] = set()
    for weight, found_here in groups.items():
        kinds = {(it.transposed, it.bias, it.scale) for it in found_here}
        behind = [reader.output[0] for reader in readers[weight] if reader.op_type == "Transpose"]
        uses = len(readers[weight]) - len(behind) + sum(len(readers[value]) for value in behind)
        ((transposed, bias, scale), *others) = kinds
        if others or uses != len(found_here) or (bias and len(readers[bias]) != len(found_here)):
            continue
        factor = numpy_helper.to_array(constants[scale])
        _multiply(constants[weight], factor[:, None] if transposed else factor)
        if bias:
            _multiply(constants[bias], factor)
        for it in found_here:
            it.last.output[0] = it.multiplication.output[0]
            removed.add(it.multiplication.output[0])
    if not removed:
        return
    kept = [node for node in graph.node if node.op_type != "Mul" or node.output[0] not in removed]
    del graph.node[:]
    graph.node.extend(kept)
    drop_unused(model)


def _multiply(constant: onnx.TensorProto, factor: np.ndarray) -> None:
    scaled = (numpy_helper.to_array(constant).astype(np.float64) * factor).astype(np.float32)
    constant.CopyFrom(numpy_helper.from_array(scaled, constant.name))
