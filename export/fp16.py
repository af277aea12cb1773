"""The layers of an exported graph in half precision; everything else stays fp32.

    y = x · fp32(W in fp16) + b

Half the size on disk. A matrix is widened once, when the file is loaded: fp32(W) is a constant, which runtimes fold.
With fp16 products onnxruntime would insert casts of its own on a processor without fp16, and widen the weights in
every run.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from cdl_deploy.export.layers import drop_unused
from cdl_deploy.export.quantise import PreparedModel, check_quantised, store_half, widen_at_load


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
    for layer in prepared.layers:
        if layer.name not in keep:
            widen_at_load(model, constants[layer.weight])
    drop_unused(model)
    check_quantised(model, prepared, keep, (TensorProto.FLOAT,))
    store_half(model)
    onnx.checker.check_model(model, full_check=True)
    return model
