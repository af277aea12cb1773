"""LayerScale becomes part of the product before it; onnxruntime says that the numbers are the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from cdl_deploy.export.layer_scale import fold_layer_scale


def model_of(lines: list[str], outputs: list[str]) -> onnx.ModelProto:
    """`y = MatMul(x, w)` a line; x [n, 3], w [3, 4], v its transpose's [4, 3], b, gamma and delta [4]."""
    random = np.random.default_rng(0)
    shapes = {"w": (3, 4), "v": (4, 3), "b": (4,), "gamma": (4,), "delta": (4,)}
    nodes = []
    for line in lines:
        output, _, call = line.partition(" = ")
        kind, _, inputs = call.rstrip(")").partition("(")
        nodes.append(helper.make_node(kind, inputs.split(", "), [output], output))
    constants = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name) for name, shape in shapes.items()
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in outputs]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "g", [image], values, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    x = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})


@pytest.mark.parametrize(
    ("lines", "outputs", "left"),
    [
        (["p = MatMul(x, w)", "s = Add(p, b)", "y = Mul(s, gamma)"], "y", 0),
        (["p = MatMul(x, w)", "y = Mul(gamma, p)"], "y", 0),
        (["t = Transpose(v)", "p = MatMul(x, t)", "s = Add(b, p)", "y = Mul(s, gamma)"], "y", 0),
        (  # two passes share a matrix
            ["p = MatMul(x, w)", "s = Add(p, b)", "y = Mul(s, gamma)",
             "z = Neg(x)", "q = MatMul(z, w)", "r = Add(q, b)", "u = Mul(r, gamma)"], "yu", 0),
        (["p = MatMul(x, w)", "y = Mul(p, gamma)", "u = Mul(p, delta)"], "yu", 2),  # what is scaled is read twice
        (["p = MatMul(x, w)", "y = Mul(p, gamma)", "q = MatMul(x, w)", "u = Mul(q, delta)"], "yu", 2),
        (["p = MatMul(x, w)", "y = Mul(p, gamma)", "u = MatMul(x, w)"], "yu", 1),  # the matrix is read as it is
        (["p = MatMul(x, w)", "s = Add(p, b)", "y = Mul(s, gamma)", "u = Add(y, b)"], "yu", 1),  # and the bias
        (["p = MatMul(x, w)", "y = Mul(p, gamma)"], "yp", 1),  # what is scaled is given out
        (["p = MatMul(x, w)", "s = Add(p, b)", "g = Gelu(s)", "y = Mul(g, gamma)"], "y", 1),
    ],
)  # fmt: skip
def test_the_same_numbers(lines, outputs, left):
    model = model_of(lines, list(outputs))
    expected = run(model)
    fold_layer_scale(model)
    onnx.checker.check_model(model, full_check=True)
    assert sum(node.op_type == "Mul" for node in model.graph.node) == left
    assert ("gamma" in {value.name for value in model.graph.initializer}) == bool(left)
    for ours, theirs in zip(run(model), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
