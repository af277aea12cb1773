"""Multiply-accumulate operations, against numbers worked out by hand and against PyTorch's own count."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cdl_deploy.bench.macs import Macs, count_macs, macs_of_profile, node_macs


def save(path, nodes, shapes, weights, out):
    """A model with inputs of `shapes` [B, …] by name."""
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", *s]) for n, s in shapes.items()]
    rng = np.random.default_rng(0)
    tensors = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in weights.items()]
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)], tensors
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def feed(shapes, batch):
    return {name: np.ones((batch, *shape), np.float32) for name, shape in shapes.items()}


CASES = {
    # 6 × 6 output places of 4 channels, each from 3 × 3 pixels of 2 of the 4 input channels (2 groups)
    "convolution": (
        [helper.make_node("Conv", ["x", "w"], ["y"], group=2, kernel_shape=[3, 3])],
        {"x": (4, 8, 8)},
        {"w": (4, 2, 3, 3)},
        6 * 6 * 4 * (2 * 3 * 3),
    ),
    # each of the 3 × 5 × 5 inputs is spread over 2 × 2 places in 6 channels
    "transposed convolution": (
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])],
        {"x": (3, 5, 5)},
        {"w": (3, 6, 2, 2)},
        3 * 5 * 5 * (6 * 2 * 2),
    ),
    # 7 rows of 16 numbers times a 16 × 5 matrix
    "matrix": ([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (7, 16)}, {"w": (16, 5)}, 7 * 16 * 5),
    # 2 heads: [7, 4] × [4, 9]
    "attention scores": (
        [helper.make_node("MatMul", ["q", "k"], ["y"])],
        {"q": (2, 7, 4), "k": (2, 4, 9)},
        {},
        2 * 7 * 4 * 9,
    ),
    "gemm, transposed": (
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
        {"x": (16,)},
        {"w": (5, 16)},
        16 * 5,
    ),
    "nothing": ([helper.make_node("Softmax", ["x"], ["y"])], {"x": (16,)}, {}, 0),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [1, 3])
def test_by_hand(name, batch, tmp_path):
    nodes, shapes, weights, expected = CASES[name]
    save(tmp_path / "m.onnx", nodes, shapes, weights, "y")
    assert count_macs(tmp_path / "m.onnx", feed(shapes, batch), batch) == Macs(expected)


def test_integer_products_count_as_well(tmp_path):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 16])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, ["B", 5])
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["y"]),
    ]
    weight = numpy_helper.from_array(np.ones((16, 5), np.int8), "w")
    onnx.save(
        helper.make_model(
            helper.make_graph(nodes, "g", [x], [y], [weight]),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=10,
        ),
        tmp_path / "m.onnx",
    )
    assert count_macs(tmp_path / "m.onnx", feed({"x": (16,)}, 2), 2) == Macs(16 * 5)
    # onnxruntime's own: input, its scale and zero point, then the weight with the same
    quantised = [[1, 4, 8, 8], [], [], [4, 2, 3, 3], [], [], [], []]
    assert node_macs("QLinearConv", quantised, [[1, 4, 6, 6]]) == 6 * 6 * 4 * 18


def test_what_cannot_be_counted_is_named_instead_of_left_out(tmp_path):
    nodes = [
        helper.make_node("Einsum", ["x", "w"], ["e"], equation="bi,ij->bj"),
        helper.make_node("MatMul", ["e", "v"], ["y"]),
    ]
    save(tmp_path / "m.onnx", nodes, {"x": (4,)}, {"w": (4, 3), "v": (3, 2)}, "y")
    assert count_macs(tmp_path / "m.onnx", feed({"x": (4,)}, 1), 1) == Macs(None, ("Einsum",))
    hidden = {"cat": "Node", "name": "c_kernel_time"}
    args = {
        "op_name": "Conv",
        "input_type_shape": [{"float": [1, 3, 8, 8]}],
        "output_type_shape": [{"float": [1, 4, 6, 6]}],
    }
    assert macs_of_profile([{**hidden, "args": args}], 1) == Macs(None, ("Conv",))  # its weight's shape is not told
    assert macs_of_profile([{"cat": "Session", "name": "model_run"}], 1) == Macs(0)


def test_an_exported_student_costs_what_pytorch_counts(small_run, small_bundle):
    """The graph computes less than the network it comes from: what is not read is not computed."""
    from cdl_deploy.bench.runners import GraphRunner, Job
    from cdl_deploy.bench.torch_runner import TorchRunner

    counts = []
    for kind, model, role in (("onnx", small_bundle / "teacher.onnx", None), ("torch", small_run, "teacher")):
        job = Job(str(model), kind, role, 1, 0, None)
        runner = GraphRunner(job) if kind == "onnx" else TorchRunner(job)
        runner.load()
        facts = runner.inspect(2)
        counts.append((facts["macs"], facts["uncounted"]))
    (graph, missing), (network, _) = counts
    assert missing == []
    assert 0.8 * network < graph <= 1.01 * network
