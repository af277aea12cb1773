"""What is in an exported file, and what is not: nothing computed or stored that nobody needs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch.onnx._internal.exporter import _core as exporter

from cdl_deploy import Classifier
from cdl_deploy.data.images import load_image, to_tensor
from cdl_deploy.data.preprocessing import INPUTS, Preprocessing
from cdl_deploy.export.graph import ExportGraph
from cdl_deploy.export.onnx_file import HIGHEST_OPSET, LOWEST_OPSET, OPSET, export_onnx, save_onnx
from cdl_deploy.runtime.bundle import Bundle, encode_metadata
from cdl_deploy.runtime.bundle_parts import Method, RunOrigin, Weights
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.models.learner import learner_logits
from tests.export.test_preprocessing import in_training, photograph
from tests.training.test_learner import make_pair


class File:
    """An exported student, with every shape inferred."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        self.nodes = list(self.model.graph.node)
        for node in self.model.graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    self.nodes += attribute.g.node
        self.weights = {value.name: numpy_helper.to_array(value) for value in self.model.graph.initializer}
        self.shapes = {
            value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
            for value in self.model.graph.value_info
        }

    def kinds(self) -> Counter[str]:
        return Counter(node.op_type for node in self.nodes)


@pytest.fixture(scope="module")
def student(small_bundle):
    return File(onnx.load(small_bundle / "student.onnx"))


@pytest.fixture(scope="module")
def learner(small_run):
    return load_run(small_run)[1].student


def test_only_standard_operators_and_no_weight_outside(small_bundle, student):
    assert {node.domain for node in student.nodes} == {""}
    assert {item.domain for item in student.model.opset_import} <= {"", "ai.onnx"}
    for value in onnx.load(small_bundle / "student.onnx", load_external_data=False).graph.initializer:
        assert value.data_location == TensorProto.DEFAULT
    assert {path.suffix for path in small_bundle.iterdir()} == {".onnx", ".json"}


def test_patches_are_embedded_once(student):
    assert student.kinds()["Conv"] == 1


def test_no_weight_is_in_the_file_twice(student):
    """Not as it is and not transposed; test_export.py counts that no part of one is there either."""
    found: dict[bytes, str] = {}
    for name, value in student.weights.items():
        if value.dtype != np.float32 or value.size < 500:
            continue
        for form in (value, value.T):
            content = np.ascontiguousarray(form).tobytes()
            assert found.get(content, name) == name, f"{name} is {found.get(content)}"
            found[content] = name


def test_coda_weighs_its_components_by_two_products(student, learner):
    """w = (q · (A∘K̂)ᵀ) / √(q² · (A²)ᵀ): both matrices are constants, and no [B, K, D] stands between."""
    blocks = learner.method.own_blocks()
    width, components = learner.backbone.width, sum(len(block.keys.all()) for block in blocks.values())
    products = [node for node in student.nodes if set(node.input) & {"selection.numerator", "selection.denominator"}]
    assert [node.op_type for node in products] == ["MatMul", "MatMul"]
    for name in ("selection.numerator", "selection.denominator"):
        assert student.weights[name].shape == (width, components)
    assert not [name for name in student.weights if "keys" in name or "attentions" in name]
    each = {components, components // len(blocks)}
    wide = [name for name, shape in student.shapes.items() if len(shape) == 3 and each & set(shape[1:2])]
    assert not [name for name in wide if student.shapes[name][2] == width]


def test_each_pass_computes_what_is_read(student, learner):
    """Every block but the last on all tokens; there the query pass has one, the prompted pass two, and no keys."""
    backbone = learner.backbone
    tokens = 1 + backbone.layout.grid[0] * backbone.layout.grid[1]
    activated = Counter(student.shapes[node.output[0]][1] for node in student.nodes if node.op_type == "Gelu")
    assert activated == {tokens: backbone.depth - 1, tokens + 1: backbone.depth - 1, 1: 1, 2: 1}
    # Block 0 projects what enters both passes once; the last block has neither keys nor values of tokens.
    everywhere = {tokens: backbone.depth - 1, tokens + 1: backbone.depth - 2}
    for part, more in (("q", {1: 1, 2: 1}), ("k", {}), ("v", {})):
        projected = Counter(
            student.shapes[node.output[0]][1]
            for node in student.nodes
            if any(name.endswith(f".attn.{part}.weight") for name in node.input)
        )
        assert projected == {**everywhere, **more}


def test_any_batch_and_any_image_size(small_bundle, small_run, learner):
    session = onnxruntime.InferenceSession(small_bundle / "student.onnx", providers=["CPUExecutionProvider"])
    record, pair = load_run(small_run)
    kind = [getattr(record.preprocessing, name) for name in ("size", "resize", "interpolation")]
    for height, width in ((45, 70), (record.preprocessing.resize,) * 2):
        images = np.stack([photograph(height, width, seed) for seed in range(5)])
        whole = session.run(["logits"], {"image": images})[0]
        for size in (1, 2):
            pieces = [session.run(["logits"], {"image": images[i : i + size]})[0] for i in range(0, 5, size)]
            np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5, rtol=0)
        pixels = torch.stack([torch.from_numpy(in_training(image, *kind)) for image in images]).to(torch.uint8)
        with torch.no_grad():
            expected = learner_logits(pair.encoder, pair.student, pixels).numpy()
        # Of an enlarged or reduced image single pixels may be one grey level off.
        np.testing.assert_allclose(whole, expected, atol=1e-4 if height == width else 0.02, rtol=0)


@pytest.fixture(scope="module")
def random_pair():
    return make_pair("kdp", depth=2, method="l2p", teacher={"depth": 2})


@pytest.fixture(scope="module")
def graphs(random_pair):
    """What is exported, by its input."""
    return {takes: ExportGraph(random_pair, random_pair.student, pixels=takes == "image") for takes in INPUTS}


@pytest.fixture(scope="module")
def programs():
    """What torch made of a module before it wrote it as ONNX."""
    return {}


@pytest.fixture
def traced_once(programs, monkeypatch):
    """Tracing a module, and decomposing it into operators that ONNX has, takes most of an export's time. The opset has
    no part in the first, and in the second only by which operators it has: each is done once."""
    trace, decompose = torch.export.export, exporter._prepare_exported_program_for_export

    def trace_once(module, *arguments, **options):
        if module not in programs:
            programs[module] = trace(module, *arguments, **options)
        return programs[module]

    def decompose_once(program, *, registry):
        key = program, frozenset(registry.functions)
        if key not in programs:
            programs[key] = decompose(program, registry=registry)
        return programs[key]

    monkeypatch.setattr(torch.export, "export", trace_once)
    monkeypatch.setattr(exporter, "_prepare_exported_program_for_export", decompose_once)


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize(
    ("opset", "takes"),
    [(n, "image") for n in range(LOWEST_OPSET, HIGHEST_OPSET + 1) if n != OPSET] + [(OPSET, "tensor")],
)
def test_every_opset_that_is_offered_and_the_other_input(opset, takes, random_pair, graphs, tmp_path):
    """Image in, names out; 20 with pixels is what all other tests run."""
    pair = random_pair
    student = pair.student
    size = student.backbone.vit.patch_embed.img_size[0]
    mean, std = (tuple(values.flatten().tolist()) for values in (student.backbone.mean, student.backbone.std))
    names = tuple("abcde")
    bundle = Bundle(
        path=tmp_path / "student.onnx",
        role="student",
        classes=names,
        tasks=(names[:2], names[2:]),
        preprocessing=Preprocessing(size, size, size, "bicubic", mean, std, takes),
        method=Method("l2p", "kdp", "full", "in-graph", None),
        weights=Weights("tiny"),
        run=RunOrigin(0, 2, "none"),
        parameters=1,
        top_k=2,
    )
    model = export_onnx(graphs[takes], bundle, opset)
    assert [item.version for item in model.opset_import if item.domain == ""] == [opset]
    assert {node.domain for node in File(model).nodes} == {""}
    save_onnx(model, bundle.path, encode_metadata(bundle))
    images = np.stack([photograph(size, size, seed) for seed in range(3)])
    with torch.no_grad():
        expected = learner_logits(pair.encoder, student, torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    classifier = Classifier(bundle.path)
    assert [found.label for found in classifier.predict(list(images))] == [names[i] for i in expected.argmax(axis=1)]
    feed = images if takes == "image" else np.stack([to_tensor(load_image(it), bundle.preprocessing) for it in images])
    session = onnxruntime.InferenceSession(bundle.path, providers=["CPUExecutionProvider"])
    logits, labels = session.run(["logits", "topk_label"], {"image": feed})
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    assert [row[0] for row in labels] == [names[i] for i in expected.argmax(axis=1)]
