"""The ViT inside an ONNX file: found by what the graph does, believed where both compute the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from cdl_deploy.errors import WeightsError
from cdl_deploy.training.backbones.weights_files.onnx_graph import Graph
from cdl_deploy.training.backbones.weights_files.weights import read_weights
from tests.training.conftest import make_vit
from tests.training.encoder_graph import encoder_graph


def encoder(**changes):
    return make_vit(**{"width": 24, "depth": 2, "img_size": 56, "patch_size": 14, "init_values": 1.0, **changes})


@pytest.fixture(scope="module")
def model():
    return onnx.load_model_from_string(encoder_graph(encoder()))


def changed(model, change, folder):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    change(copy)
    (folder / "a.onnx").write_bytes(copy.SerializeToString())
    return folder / "a.onnx"


def as_it_is(_):
    pass


def keys_first(model):
    """Another exporter's order of three equal products: key, value, query."""
    ordered, waiting = [], []
    for node in model.graph.node:
        if "/attention/attention/query/" in node.name:
            waiting.append(node)
            continue
        if "/attention/attention/" in node.name and "/key/" not in node.name and "/value/" not in node.name:
            ordered, waiting = ordered + waiting, []
        ordered.append(node)
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def without_names(model):
    """Every node and constant is a number, as optimisers leave them."""
    names = {}
    kept = {item.name for item in (*model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        node.name = ""
        for field in (node.input, node.output):
            for i, name in enumerate(field):
                field[i] = name if name in kept else names.setdefault(name, f"t{len(names)}")
    for tensor in model.graph.initializer:
        tensor.name = names.setdefault(tensor.name, f"t{len(names)}")


@pytest.mark.parametrize("change", [as_it_is, keys_first, without_names])
def test_every_constant_finds_its_place(change, model, tmp_path):
    weights = read_weights(changed(model, change, tmp_path))
    wanted = encoder().state_dict()
    assert weights.tensors.keys() == wanted.keys()
    assert all(torch.equal(weights.tensors[name], wanted[name]) for name in wanted)
    assert weights.heads == 3
    assert len(weights.beside) == 1  # the decoder's
    assert weights.checked.startswith("run beside its graph: the same, largest difference ")
    assert weights.words() == f"an ONNX graph's constants; {weights.checked}"


def other_attention(model):
    """Every head attends evenly: no ViT."""
    for node in model.graph.node:
        if node.op_type == "Softmax":
            node.op_type = "HardSigmoid"
            del node.attribute[:]


def no_positions(model):
    for tensor in model.graph.initializer:
        if tensor.name == "onnx::Reshape_2":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((1, 1, 24), np.float32), tensor.name))


def quantised(model):
    model.graph.node.append(helper.make_node("DequantizeLinear", ["x", "s"], ["y"]))


def exported_by_cdl(model):
    model.metadata_props.add(key="cdl.format", value="1")


def no_convolution(model):
    for node in model.graph.node:
        if node.op_type == "Conv":
            node.op_type = "ConvTranspose"


def a_loop(model):
    model.graph.node.append(helper.make_node("Loop", ["n", "go"], ["y"]))


def values_elsewhere(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")


def two_inputs(model):
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_attention, "look like a ViT's, but timm's network computes something else from them: give the weights"),
        (no_positions, "found no positions of patches; those with rotary position cannot be read from ONNX"),
        (quantised, r"is quantised \(DequantizeLinear\): give the model in float"),
        (exported_by_cdl, "is a model that cdl exported, whose prompts are part of its graph"),
        (no_convolution, "holds no ViT that is known: found no convolution that makes tokens of square patches"),
        (a_loop, "its graph has loops, which none needs"),
        (values_elsewhere, "secret"),
        (two_inputs, "its graph takes 2 inputs, expected one batch of images"),
    ],
)
def test_what_is_not_believed_is_one_line(change, message, model, tmp_path):
    with pytest.raises(WeightsError, match=message):
        read_weights(changed(model, change, tmp_path))


def test_names_that_are_no_text(model, tmp_path):
    file = changed(model, as_it_is, tmp_path)
    file.write_bytes(file.read_bytes().replace(b"embeddings/Conv_output_0", b"embeddings/Conv\xff\xfe\xfdput_0"))
    with pytest.raises(WeightsError, match=r"it is torn|it is no ONNX model, or torn"):
        read_weights(file)


def test_older_graphs_write_norms_and_layers_otherwise(tmp_path):
    """A norm of eight nodes, a Gemm with a turned matrix, a constant behind a node of its own."""
    random = np.random.default_rng(0)
    arrays = {"scale": (4,), "shift": (4,), "weight": (6, 4), "bias": (6,), "plain": (4, 6), "gamma": (4,)}
    arrays = {name: random.normal(size=shape).astype(np.float32) for name, shape in arrays.items()}
    nodes = [
        ("ReduceMean", ["x"], "mean"), ("Sub", ["x", "mean"], "centred"), ("Mul", ["centred", "centred"], "squares"),
        ("ReduceMean", ["squares"], "variance"), ("Add", ["variance", "epsilon"], "safe"), ("Sqrt", ["safe"], "root"),
        ("Div", ["centred", "root"], "normed"), ("Mul", ["normed", "scale"], "scaled"),
        ("Add", ["shift", "scaled"], "y"), ("Gemm", ["y", "weight", "bias"], "z"),
        ("Identity", ["plain"], "same"), ("MatMul", ["y", "same"], "w"), ("Add", ["w", "bias"], "v"),
        ("Mul", ["gamma", "x"], "u"),
    ]  # fmt: skip
    made = [helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes]
    next(node for node in made if node.op_type == "Gemm").attribute.append(helper.make_attribute("transB", 1))
    stored = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    stored.append(numpy_helper.from_array(np.array(1e-5, np.float32), "epsilon"))
    onnx.save(helper.make_model(helper.make_graph(made, "g", [], [], stored)), tmp_path / "a.onnx")
    norm, gemm, product, gamma = Graph(tmp_path / "a.onnx").parts()
    assert [part.kind for part in (norm, gemm, product, gamma)] == ["norm", "linear", "linear", "scale"]
    assert norm.epsilon == pytest.approx(1e-5)
    assert (norm.output, gemm.output, product.output) == ("y", "z", "v")
    for part, weight, bias in (
        (norm, arrays["scale"], arrays["shift"]),
        (gemm, arrays["weight"], arrays["bias"]),
        (product, arrays["plain"].T, arrays["bias"]),
    ):
        assert np.array_equal(part.weight, weight)
        assert np.array_equal(part.bias, bias)
    assert np.array_equal(gamma.weight, arrays["gamma"])
