"""The layers of an exported graph in half precision; everything else stays fp32.

    y = fp32(fp16(x) · fp16(W)) + b

Half the size on any runtime, and fp16 arithmetic where the hardware has it. Where a CPU has none, onnxruntime removes
the casts of tokens when it loads the file; those of the weights stay, and every run widens them again.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cdl_deploy.export.layers import drop_unused
from cdl_deploy.export.quantise import PreparedModel, check_quantised, store_half


def beyond_half(prepared: PreparedModel) -> list[str]:
    """Layers with a weight that fp16 cannot hold: they have to be kept."""
    constants = {value.name: value for value in prepared.model.graph.initializer}
    largest = float(np.finfo(np.float16).max)
    return [
        layer.name
        for layer in prepared.layers
        if np.abs(numpy_helper.to_array(constants[layer.weight])).max(initial=0) > largest
    ]


def to_fp16(prepared: PreparedModel, keep: Collection[str] = (), always: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of the prepared model with fp16 layers, but for those named in `keep` and `always`."""
    keep = {*keep, *always}
    model = onnx.ModelProto()
    model.CopyFrom(prepared.model)
    constants = {value.name: value for value in model.graph.initializer}
    chosen: dict[str, str] = {}
    for layer in prepared.layers:
        if layer.name in keep:
            continue
        value = constants[layer.weight]
        value.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(value).astype(np.float16), layer.weight))
        chosen |= dict.fromkeys(layer.nodes, layer.name)
    nodes: list[onnx.NodeProto] = []
    halved: set[str] = set()
    for node in model.graph.node:
        if node.name not in chosen:
            nodes.append(node)
            continue
        source, target = node.input[0], node.output[0]
        half, product = f"{source}.half", f"{target}.half"
        if half not in halved:  # query and key-value products of a last block read the same tokens
            halved.add(half)
            nodes.append(helper.make_node("Cast", [source], [half], half, to=TensorProto.FLOAT16))
        nodes.append(helper.make_node("MatMul", [half, node.input[1]], [product], node.name))
        nodes.append(helper.make_node("Cast", [product], [target], product, to=TensorProto.FLOAT))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unused(model)
    check_quantised(model, prepared, keep, (TensorProto.FLOAT,))
    store_half(model)
    onnx.checker.check_model(model, full_check=True)
    return model
