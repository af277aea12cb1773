#!/usr/bin/env bash
# MNN's dynamic int8 product is right up to 32 rows a thread, and wrong beyond: the same file, the same input, another
# number of threads, and the answer changes from right to nonsense. Nothing is said.
#
# MNN 3.6.1, onnx 1.23.2, x86-64 with AVX-512 VNNI. The pattern is what onnxruntime's dynamic quantisation writes for every
# Linear: DynamicQuantizeLinear, MatMulInteger with zero points, Cast, Mul. A check on one vector, or on a small image,
# passes; the 197 tokens of a ViT do not. Static int8 (QDQ) does not convert, so fp32 and MNN's own quantiser are left.
#
# Seen (it exits with 1 where this changes); "off" is the largest difference, values reach 18:
#   1 thread: 16 rows right, 32 rows right, 33 rows off 52.7, 64 rows off 52.7, 197 rows off 56.1
#   2 threads: 16 rows right, 32 rows right, 33 rows right, 64 rows right, 197 rows off 56.1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet MNN==3.6.1 onnx==1.23.2 numpy==2.4.6
cd "$folder"
cat > check.py <<'CODE'
import subprocess
import sys
from pathlib import Path

import MNN
import MNN.numpy
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

ROWS, WIDTH, OUT = (16, 32, 33, 64, 197), 64, 32

def product(rows):
    """The ONNX file of one dynamically quantised product."""
    weight = np.random.default_rng(0).integers(-127, 128, (WIDTH, OUT)).astype(np.int8)
    constants = {"w": weight, "w_zero": np.zeros((), np.int8), "w_scale": np.full((), 0.01, np.float32)}
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero", "w_zero"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["scale", "w_scale"], ["both"]),
        helper.make_node("Mul", ["f", "both"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "product",
        [value("x", TensorProto.FLOAT, [1, rows, WIDTH])],
        [value("y", TensorProto.FLOAT, [1, rows, OUT])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model

def off(rows, threads):
    """How far MNN is from the reference."""
    model, made = product(rows), Path(f"{rows}.mnn")
    if not made.exists():
        onnx.save(model, f"{rows}.onnx")
        tool = Path(sys.executable).with_name("mnnconvert")
        options = ["-f", "ONNX", "--modelFile", f"{rows}.onnx", "--MNNModel", str(made), "--bizCode", "finding"]
        subprocess.run([tool, *options], check=True, capture_output=True)
    x = np.random.default_rng(1).normal(size=(1, rows, WIDTH)).astype(np.float32)
    expected = ReferenceEvaluator(model).run(None, {"x": x})[0]
    runtime = MNN.nn.create_runtime_manager(({"backend": "CPU", "numThread": threads, "precision": "high"},))
    module = MNN.nn.load_module_from_file(str(made), ["x"], ["y"], runtime_manager=runtime)
    found = np.array(module.onForward([MNN.numpy.array(x)])[0].read()).reshape(expected.shape)
    return float(np.abs(found - expected).max())

right = {1: {16, 32}, 2: {16, 32, 33, 64}}
as_seen = True
for threads, expected in right.items():
    distances = {rows: off(rows, threads) for rows in ROWS}
    said = ", ".join(f"{rows} rows {'right' if far < 1e-3 else f'off {far:.1f}'}" for rows, far in distances.items())
    print(f"{threads} thread{'s' if threads > 1 else ''}: {said}")
    as_seen &= {rows for rows, far in distances.items() if far < 1e-3} == expected
sys.exit(0 if as_seen else 1)
CODE
venv/bin/python check.py > out.txt 2> /dev/null && code=0 || code=$?
grep rows out.txt
exit "$code"
