"""Integer layers: against integer arithmetic written out in numpy, counted in the file, and equal for any batch."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from cdl_deploy.errors import QuantisationError
from cdl_deploy.export.graph import ExportGraph
from cdl_deploy.export.layers import find_layers, float_products
from cdl_deploy.export.onnx_file import export_core
from cdl_deploy.export.quantise import (
    LARGE,
    PreparedModel,
    calibrate,
    check_quantised,
    prepare,
    quantise_dynamic,
    quantise_static,
    store_half,
)
from cdl_deploy.runtime.bundle_parts import SCORES
from tests.training.test_methods import make


def exported(method: str = "coda", query: str = "full", role: str = "student", **changes) -> onnx.ModelProto:
    pair = make(method, "kdp", query, **changes)
    with torch.no_grad():
        return export_core(ExportGraph(pair, pair.learners[role]), torch.zeros(2, 3, 16, 16), "image")


@pytest.fixture(scope="module")
def two_pass() -> onnx.ModelProto:
    """A student whose query pass and prompted pass share the backbone."""
    from tests.conftest import no_shape_checks

    with no_shape_checks():
        return exported(depth=5)


def images(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return ((random.integers(0, 256, (count, 3, 16, 16)) / 255 - 0.5) / 0.3).astype(np.float32)


def run(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": image})[0]


def batches():
    return [{"image": images(8, seed)} for seed in range(3)]


def test_layers_have_the_names_of_modules_and_both_passes_share_them(two_pass):
    layers = {layer.name: layer for layer in prepare(two_pass, static=True).layers}
    kinds = ["attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2"]
    assert {f"blocks.{i}.{kind}" for i in range(4) for kind in kinds} <= set(layers)
    last = ["attn.q", "attn.proj", "mlp.fc1", "mlp.fc2"]
    assert {f"blocks.4.{kind}" for kind in last} <= set(layers), "no key and no value where few tokens ask"
    assert len(layers) == 4 * 6 + 4 + 1
    once = {f"blocks.0.attn.{part}" for part in "qkv"}  # of the tokens that enter both passes
    assert all(len(layers[name].nodes) == 2 - (name in once) for name in layers if name.startswith("blocks"))
    assert layers["blocks.0.mlp.fc1"].shape == (24, 96)


@pytest.mark.parametrize("static", [True, False])
def test_what_is_prepared_still_computes_the_same(two_pass, static):
    prepared = prepare(two_pass, static)
    onnx.checker.check_model(prepared.model, full_check=True)
    for count in (1, 5):
        expected = run(two_pass, images(count))
        np.testing.assert_allclose(run(prepared.model, images(count)), expected, atol=2e-5)
    assert len(float_products(prepared.model)) == len(prepared.nodes()) == len(float_products(two_pass))


def test_a_teacher_keeps_its_layers_and_those_of_the_query_apart():
    prepared = prepare(exported("l2p", query="block:1", role="teacher", depth=3), static=True)
    names = [layer.name for layer in prepared.layers]
    assert len(names) == len(set(names))
    assert {"query.blocks.0.attn.q", "query.blocks.0.mlp.fc1", "blocks.0.attn.q", "blocks.0.mlp.fc1"} <= set(names)


def product(weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    """image [B, 3, K] → logits [B, 3, N]."""
    rows, columns = weight.shape
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["image", "net.vit.fc.weight"], ["product"], "product"),
            helper.make_node("Add", ["product", "net.vit.fc.bias"], ["logits"], "sum"),
        ],
        "g",
        [helper.make_tensor_value_info("image", 1, ["B", 3, rows])],
        [helper.make_tensor_value_info("logits", 1, ["B", 3, columns])],
        [numpy_helper.from_array(weight, "net.vit.fc.weight"), numpy_helper.from_array(bias, "net.vit.fc.bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_static_layers_are_integer_arithmetic():
    """y = s·z_w·Σ (x_q − zero)·w_q + b, with everything in brackets whole numbers."""
    random = np.random.default_rng(0)
    weight = (random.normal(size=(32, 8)) * np.linspace(0.1, 3, 8)).astype(np.float32)
    bias = random.normal(size=8).astype(np.float32)
    x = random.uniform(-1.0, 3.0, size=(4, 3, 32)).astype(np.float32)
    x.flat[:2] = -1.0, 3.0
    prepared = prepare(product(weight, bias), static=True)
    model = quantise_static(prepared, calibrate(prepared, [{"image": x}]))
    scale = np.float32(4 / 255)
    zero = round(1.0 / scale)
    inputs = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64) - zero
    weight_scale = np.abs(weight).max(axis=0) / 64
    weights = np.rint(weight / weight_scale).astype(np.int64)
    expected = (inputs @ weights) * scale * weight_scale + bias
    np.testing.assert_allclose(run(model, x), expected, atol=2e-3)
    np.testing.assert_allclose(run(model, x), x @ weight + bias, atol=0.5)
    assert {value.data_type for value in model.graph.initializer if list(value.dims) == [32, 8]} == {
        onnx.TensorProto.INT8
    }


@pytest.mark.parametrize("static", [True, False])
def test_pairs_of_products_fit_into_16_bits(static):
    """The worst case: the greatest input beside the greatest weights of both signs. x86 processors without VNNI add two
    U8·S8 products in 16 bits and cut what does not fit, so there this is wrong by half with weights up to ±127."""
    weight = np.concatenate([np.ones((32, 4)), -np.ones((32, 4))], axis=1).astype(np.float32)
    x = np.full((1, 3, 32), 3.0, np.float32)
    prepared = prepare(product(weight, np.zeros(8, np.float32)), static)
    model = quantise_static(prepared, calibrate(prepared, [{"image": x}])) if static else quantise_dynamic(prepared)
    (stored,) = (numpy_helper.to_array(v) for v in model.graph.initializer if list(v.dims) == [32, 8])
    assert stored.dtype == np.int8
    assert 2 * 255 * int(np.abs(stored.astype(int)).max()) < 2**15, "whatever this processor has"
    np.testing.assert_allclose(run(model, x), x @ weight, rtol=0.01)


def test_pixels_are_integers_already():
    """Whole numbers from 0 to 255 pass unchanged, whatever calibration has seen of them."""
    weight, bias = np.eye(8, dtype=np.float32), np.zeros(8, np.float32)
    x = np.arange(24, dtype=np.float32).reshape(1, 3, 8) * 10
    prepared = prepare(product(weight, bias), static=True)
    ranges = calibrate(prepared, [{"image": x[:, :1].repeat(3, axis=1)}])
    np.testing.assert_allclose(run(quantise_static(prepared, ranges, exact=["image"]), x), x, atol=1e-4)
    assert np.abs(run(quantise_static(prepared, ranges), x) - x).max() > 100


@pytest.mark.parametrize("static", [True, False])
def test_no_matrix_is_left_in_float_and_none_is_there_twice(two_pass, static):
    prepared = prepare(two_pass, static)
    model = quantise_static(prepared, calibrate(prepared, batches())) if static else quantise_dynamic(prepared)
    assert float_products(model) == {}
    assert check_quantised(model, prepared) == 2 * (4 * 6 + 4) - 3 + 1
    assert len(prepared.scores) == (2 * 4 if static else 0), "in both passes, but for the last block"
    weights = sum(rows * columns for rows, columns in (layer.shape for layer in prepared.layers))
    stored = [int(np.prod(v.dims)) for v in model.graph.initializer if v.data_type == onnx.TensorProto.INT8]
    assert weights <= sum(stored) <= 1.05 * weights, "the weights and their zero points"
    expected, found = run(two_pass, images(64)), run(model, images(64))
    assert np.abs(found - expected).max() < 0.1 * np.ptp(expected)
    assert {node.domain for node in model.graph.node} == {""}, "any runtime can load it"


def test_a_quantiser_that_overlooks_a_shared_matrix_is_caught(two_pass, tmp_path):
    """onnxruntime's own leaves what stands behind a Transpose in float, and says nothing."""
    prepared = prepare(two_pass, static=False)
    for layer in prepared.layers:  # as the exporter leaves what both passes multiply by
        matrix = next(v for v in prepared.model.graph.initializer if v.name == layer.weight)
        original = numpy_helper.to_array(matrix)
        matrix.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(original.T), f"{layer.weight}.T"))
        prepared.model.graph.node.insert(
            0, helper.make_node("Transpose", [f"{layer.weight}.T"], [layer.weight], perm=[1, 0])
        )
    quantize_dynamic(prepared.model, tmp_path / "trap.onnx", per_channel=True, weight_type=QuantType.QInt8)
    with pytest.raises(QuantisationError, match=r"54 of 54 products were left in float by the quantiser, such as "):
        check_quantised(onnx.load(tmp_path / "trap.onnx"), prepared)
    assert len(find_layers(prepared.model)) == len(prepared.layers)


def test_static_logits_do_not_depend_on_the_batch_and_dynamic_ones_do(two_pass):
    static = prepare(two_pass, static=True)
    quantised = quantise_static(static, calibrate(static, batches()))
    dynamic = quantise_dynamic(prepare(two_pass, static=False))
    many = images(5, seed=9)
    for size in (1, 2, 5):
        pieces = [run(quantised, many[i : i + size]) for i in range(0, 5, size)]
        assert np.array_equal(np.concatenate(pieces), run(quantised, many)), "bit for bit"
    alone = np.concatenate([run(dynamic, many[i : i + 1]) for i in range(5)])
    assert not np.array_equal(alone, run(dynamic, many))
    np.testing.assert_allclose(alone, run(dynamic, many), atol=0.1 * np.ptp(alone))


def test_layers_to_keep_stay_float(two_pass):
    keep = ["blocks.1.attn.v", "blocks.3.mlp.fc2"]
    prepared = prepare(two_pass, static=True)
    model = quantise_static(prepared, calibrate(prepared, batches()), keep)
    assert len(float_products(model)) == 4
    everything = [SCORES, *(layer.name for layer in prepared.layers)]
    untouched = quantise_static(prepared, calibrate(prepared, batches()), everything)
    np.testing.assert_allclose(run(untouched, images(3)), run(two_pass, images(3)), atol=2e-5)


def test_the_same_model_gives_the_same_bytes(two_pass):
    first, second = (
        quantise_static(p, calibrate(p, batches())).SerializeToString(deterministic=True)
        for p in (prepare(two_pass, True), prepare(two_pass, True))
    )
    assert first == second


def test_large_prompts_are_stored_in_half_and_nothing_else_is():
    random = np.random.default_rng(0)
    values = {"selection.prompts_0": (LARGE // 8, 8), "selection.keys": (10, 8), "head.weight": (LARGE // 8, 8)}
    stored = {name: random.normal(size=shape).astype(np.float32) for name, shape in values.items()}
    nodes = [helper.make_node("Identity", [name], [f"{name}.out"]) for name in values]
    graph = helper.make_graph(
        nodes,
        "g",
        [],
        [helper.make_tensor_value_info(f"{name}.out", 1, shape) for name, shape in values.items()],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    store_half(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, found in zip(values, session.run(None, {}), strict=True):
        rounded = stored[name].astype(np.float16).astype(np.float32) if "prompts" in name else stored[name]
        assert np.array_equal(found, rounded)


def test_a_graph_without_layers_is_one_clear_line():
    graph = helper.make_graph(
        [helper.make_node("Relu", ["image"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("image", 1, ["B", 3])],
        [helper.make_tensor_value_info("logits", 1, ["B", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    with pytest.raises(QuantisationError, match="no product of tokens with a constant matrix: nothing to quantise"):
        prepare(model, static=True)


def test_prepared_counts_its_products(two_pass):
    prepared = prepare(two_pass, static=True)
    assert isinstance(prepared, PreparedModel)
    assert len(prepared.nodes(keep=["blocks.1.attn.k"])) == len(prepared.nodes()) - 2
