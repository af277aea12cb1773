"""Parameters counted in a file without the onnx package, against the onnx package."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from cdl_deploy.bench.weights import StoredWeights, file_bytes, read_weights


def model_of(arrays, nodes=()):
    tensors = [numpy_helper.from_array(array, f"w{number}") for number, array in enumerate(arrays)]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([*nodes, helper.make_node("Identity", ["w0"], ["y"])], "g", [], [out], tensors)
    return helper.make_model(graph)


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=4),
    kinds=st.lists(st.sampled_from(["float32", "float16", "int8", "uint8", "int32", "int64", "bool"]), min_size=4),
)
@settings(max_examples=60, deadline=None)
def test_counts_are_those_of_the_onnx_package(shapes, kinds, tmp_path_factory):
    arrays = [np.zeros(shape, dtype=kind) for shape, kind in zip(shapes, kinds, strict=False)]
    path = tmp_path_factory.mktemp("w") / "m.onnx"
    onnx.save(model_of(arrays), path)
    loaded = [numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    expected = sum(a.size for a in loaded if a.dtype not in (np.int64, np.bool_))
    assert read_weights(path) == StoredWeights(expected, ())


def test_constants_in_nodes_and_subgraphs_count(tmp_path):
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.zeros((2, 3), np.float32)))],
        "inner",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [2, 3])],
        [numpy_helper.from_array(np.zeros(5, np.float32), "unused")],
    )
    condition = numpy_helper.from_array(np.array(True), "condition")
    nodes = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.zeros(7, np.float32))),
        helper.make_node("If", ["condition"], ["z"], then_branch=inner, else_branch=inner),
    ]
    model = model_of([np.zeros(4, np.float32)], nodes)
    model.graph.initializer.append(condition)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    assert read_weights(path) == StoredWeights(4 + 7 + 2 * (6 + 5), ())


def test_weights_beside_the_file_belong_to_its_size(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(model_of([np.zeros((64, 64), np.float32)]), path, save_as_external_data=True, location="m.bin")
    assert read_weights(path) == StoredWeights(64 * 64, ("m.bin",))
    assert file_bytes(path) == path.stat().st_size + (tmp_path / "m.bin").stat().st_size
    (tmp_path / "m.bin").unlink()
    assert file_bytes(path) == path.stat().st_size


@pytest.mark.parametrize("damage", [b"", b"ORTM flatbuffer", b"\xff" * 40, "half"])
def test_what_is_no_model_has_no_count(damage, tmp_path):
    path = tmp_path / "m.onnx"
    whole = model_of([np.zeros((64, 64), np.float32)]).SerializeToString()
    path.write_bytes(whole[: len(whole) // 2] if damage == "half" else damage)
    assert read_weights(path) is None
    assert file_bytes(path) == path.stat().st_size
