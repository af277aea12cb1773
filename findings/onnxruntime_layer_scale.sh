#!/usr/bin/env bash
# onnxruntime leaves LayerScale where it is: a multiplication by a constant goes into a convolution before it, and not into
# a matrix product, although weight, bias and scale of both are constants.
#
# onnxruntime 1.32.0, onnx 1.23.2, every graph optimisation on (ORT_ENABLE_ALL). DINOv2, DINOv3 and DeiT III scale the output
# of attention and MLP by a constant of one number a channel. As x·W + b, times a constant, it is a pass over all tokens of
# its own, twice a block; as a 1 × 1 convolution the same layer becomes one operator. Fold the scale into weight and bias
# before the file is written: in two noisy runs, int8 of a DINOv3 ViT-S/16 at batch 8 went
# from 0.53 to 0.41 of the time that the plain fp32 model takes.
#
# Seen (it exits with 1 where this changes):
#   convolution, addition, multiplication -> Conv
#   matrix product, addition, multiplication -> Reshape, Gemm, Reshape, Mul
#   the same as Gemm -> Gemm, Mul
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy
"$folder/venv/bin/python" - "$folder" <<'CODE'
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

WIDTH = 16
random = np.random.default_rng(0)


def constant(name, *shape):
    return numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)


def optimised(name, shape, product, weight, per_channel):
    """Operators that are left of product -> + bias -> * scale; a Gemm has its bias inside."""
    nodes = [product]
    if product.op_type != "Gemm":
        nodes.append(helper.make_node("Add", ["product", "bias"], ["sum"]))
    nodes.append(helper.make_node("Mul", [nodes[-1].output[0], "scale"], ["y"]))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [weight, constant("bias", *per_channel), constant("scale", *per_channel)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = f"{sys.argv[1]}/{name}.onnx"
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    left = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    return [kind for kind in left if not kind.startswith("Reorder")]


convolution = optimised(
    "convolution",
    [1, WIDTH, 7, 7],
    helper.make_node("Conv", ["x", "w"], ["product"]),
    constant("w", WIDTH, WIDTH, 1, 1),
    (1, WIDTH, 1, 1),
)
tokens = optimised(
    "tokens", [1, 49, WIDTH], helper.make_node("MatMul", ["x", "w"], ["product"]), constant("w", WIDTH, WIDTH), (WIDTH,)
)
rows = optimised(
    "rows", [49, WIDTH], helper.make_node("Gemm", ["x", "w", "bias"], ["product"]), constant("w", WIDTH, WIDTH), (WIDTH,)
)
print("convolution, addition, multiplication ->", ", ".join(convolution))
print("matrix product, addition, multiplication ->", ", ".join(tokens))
print("the same as Gemm ->", ", ".join(rows))
expected = (["Conv"], ["Reshape", "Gemm", "Reshape", "Mul"], ["Gemm", "Mul"])
sys.exit(0 if (convolution, tokens, rows) == expected else 1)
CODE
