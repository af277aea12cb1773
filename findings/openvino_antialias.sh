#!/usr/bin/env bash
# OpenVINO reads the antialias attribute of ONNX's Resize, keeps it in its node, and resizes without antialiasing.
#
# openvino 2026.4.1, onnx 1.23.2. Opset 18 gave Resize `antialias`, with which a smaller image is what Pillow makes of it;
# a graph with its own preprocessing needs it. On the CPU device the result is, to the last digits, that of antialias=0:
# an image made four times smaller loses what lies between the pixels it takes, with `linear` and with `cubic`. Nothing is
# said, and the attributes of the compiled-from model still read antialias=True. onnxruntime 1.32.0 and the reference
# evaluator antialias. Two matrix products with computed weights are the same everywhere.
#
# Seen (it exits with 1 where this changes), noise of 0 to 255, 64 x 64 to 16 x 16, largest difference from the reference:
#   linear: antialias=True in the node; 94 from the reference with antialias, 0.00002 from the reference without
#   cubic: antialias=True in the node; 140 from the reference with antialias, 0.00002 from the reference without
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'CODE'
import sys

import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

LARGE, SMALL = 64, 16
X = np.random.default_rng(0).uniform(0, 255, (1, 3, LARGE, LARGE)).astype(np.float32)


def resize(mode, antialias):
    """A model of one Resize."""
    value = helper.make_tensor_value_info
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode=mode, antialias=antialias, cubic_coeff_a=-0.5)
    graph = helper.make_graph(
        [node],
        mode,
        [value("x", TensorProto.FLOAT, [1, 3, LARGE, LARGE])],
        [value("y", TensorProto.FLOAT, [1, 3, SMALL, SMALL])],
        [helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, SMALL / LARGE, SMALL / LARGE])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


as_seen = True
for mode in ("linear", "cubic"):
    with_it, without = (ReferenceEvaluator(resize(mode, antialias)).run(None, {"x": X})[0] for antialias in (1, 0))
    core = openvino.Core()
    model = core.read_model(resize(mode, 1).SerializeToString())
    (node,) = [node for node in model.get_ops() if node.get_type_name() == "Interpolate"]
    attribute = node.get_attributes()["antialias"]
    found = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(X)[0]
    far, near = np.abs(found - with_it).max(), np.abs(found - without).max()
    print(f"{mode}: antialias={attribute} in the node; {far:.0f} from the reference with antialias,", end=" ")
    print(f"{near:.5f} from the reference without")
    as_seen &= attribute is True and far > 50 and near < 1e-3
sys.exit(0 if as_seen else 1)
CODE
