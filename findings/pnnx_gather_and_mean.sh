#!/usr/bin/env bash
# pnnx, the converter that ncnn names for ONNX, changes two common nodes in silence: a Gather of positions 0 and 3 becomes
# the row at 1 alone, and an opset-18 ReduceMean loses its axes. It ends with 0 and says nothing, and ncnn runs the result.
#
# pnnx 20261020, ncnn 1.0.20261020, onnx 1.23.2. Both are what PyTorch's exporter writes for a ViT: `tokens[:, [0, 3]]`
# picks tokens, and from opset 18 on the axes of a reduction are an input. With opset 17, where they are an attribute, the
# mean is right.
#
# Seen (it exits with 1 where this changes):
#   Gather of positions 0 and 3: expected 2 rows, got the row at 1
#   ReduceMean over the rows, opset 17: right
#   ReduceMean over the rows, opset 18: the input comes back unreduced
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps ncnn==1.0.20261020 pnnx==20261020
"$folder/venv/bin/pip" install --quiet onnx==1.23.2 numpy==2.4.6
program=$(echo "$folder"/venv/lib/python3*/site-packages/pnnx/pnnx)  # the wheel's own entry point imports PyTorch first
cd "$folder"
"$folder/venv/bin/python" - "$program" <<'CODE'
import subprocess
import sys

import ncnn
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

X = np.arange(12, dtype=np.float32).reshape(1, 4, 3) ** 2


def converted(name, opset, node, shape, constant=None):
    """What ncnn makes of X, once pnnx has converted a graph of one node."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        name,
        [value("x", TensorProto.FLOAT, [1, 4, 3])],
        [value("y", TensorProto.FLOAT, shape)],
        [] if constant is None else [numpy_helper.from_array(np.array(constant, np.int64), node.input[1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, f"{name}.onnx")
    subprocess.run([sys.argv[1], f"{name}.onnx", "inputshape=[1,4,3]"], check=True, capture_output=True)
    net = ncnn.Net()
    net.load_param(f"{name}.ncnn.param")
    net.load_model(f"{name}.ncnn.bin")
    with net.create_extractor() as extractor:
        extractor.input("in0", ncnn.Mat(X).clone())
        _, out = extractor.extract("out0")
        return np.array(out).squeeze()


gather = converted("gather", 17, helper.make_node("Gather", ["x", "i"], ["y"], axis=1), [1, 2, 3], [0, 3])
mean17 = converted("mean17", 17, helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0), [1, 3])
mean18 = converted("mean18", 18, helper.make_node("ReduceMean", ["x", "a"], ["y"], keepdims=0), [1, 3], [1])
print("Gather of positions 0 and 3: expected", X[0, [0, 3]].tolist(), "got", gather.tolist())
print("ReduceMean, opset 17: expected", X[0].mean(0).tolist(), "got", mean17.tolist())
print("ReduceMean, opset 18: expected", X[0].mean(0).tolist(), "got", mean18.tolist())
other_row = gather.shape == (3,) and np.array_equal(gather, X[0, 1])
right = mean17.shape == (3,) and np.allclose(mean17, X[0].mean(0))
unreduced = mean18.shape == (4, 3) and np.array_equal(mean18, X[0])
sys.exit(0 if other_row and right and unreduced else 1)
CODE
