#!/usr/bin/env bash
# An image's answer in onnxruntime, fp32 on the CPU, can have other bits at batch 1 than in any larger batch, although
# nothing in the graph looks at the batch. It is so where rows are multiplied by a constant stack of matrices, one a head:
# a single row goes to a kernel of its own, which adds up in another order. With one matrix of two axes all batches give
# the same bits. So a file's answers "do not depend on the batch" from two images on.
#
# onnxruntime 1.32.0, onnx 1.23.2, x86-64, one thread. Rows [B, 384] and [6, B, 384], matrices [384, 384] and
# [6, 384, 384], fp32; the first row of B = 1, 2, 3, 4 and 7 against that of B = 8.
#
# Seen (it exits with 1 where this changes):
#   one matrix: same bits at B = 1, 2, 3, 4, 7
#   a stack: same bits at B = 2, 3, 4, 7
set -euo pipefail
[ "$(uname -m)" = x86_64 ] || { echo "tried on x86-64 alone"; exit 0; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6 2> /dev/null
cd "$folder"
cat > check.py <<'CODE'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(0)


def same_bits(heads):
    """At which B the first row of the product is what it is among eight."""
    stack = [heads] if heads else []
    matrix = random.normal(size=(*stack, 384, 384)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "matrix"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*stack, "B", 384])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*stack, "B", 384])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = random.normal(size=(*stack, 8, 384)).astype(np.float32)
    first = {rows: session.run(None, {"x": x[..., :rows, :].copy()})[0][..., 0, :] for rows in (1, 2, 3, 4, 7, 8)}
    return [rows for rows in (1, 2, 3, 4, 7) if np.array_equal(first[rows], first[8])]


found = {"one matrix": same_bits(0), "a stack": same_bits(6)}
for words, rows in found.items():
    print(f"{words}: same bits at B = {', '.join(map(str, rows))}")
sys.exit(0 if found == {"one matrix": [1, 2, 3, 4, 7], "a stack": [2, 3, 4, 7]} else 1)
CODE
venv/bin/python check.py
