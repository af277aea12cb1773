"""What any runtime has to take: plain operators, old IR versions, positions beside names, shapes that can be fixed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from cdl_deploy import Classifier
from cdl_deploy.errors import BundleError, DataError, OptionError
from cdl_deploy.export import ExportOptions, Shrink, export_run, fixed_shapes, parse_image_size
from cdl_deploy.export.fixed_shapes import check_same_logits, fix_shapes
from cdl_deploy.export.plain_graph import lower_to_17, write_plainly
from cdl_deploy.learn.learner import Learner
from cdl_deploy.runtime.bundle import read_bundle
from cdl_deploy.runtime.web_page import write_page
from tests.export.conftest import exported
from tests.export.learning import task
from tests.export.test_preprocessing import photograph

ENVIRONMENTS = Path(os.environ.get("CDL_RUNTIMES", Path(__file__).parents[2] / ".runtimes"))
"""Where `make targets` puts them."""


def session(path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def student(small_bundle):
    return onnx.load(small_bundle / "student.onnx")


@pytest.fixture(scope="module")
def strict(trained, tmp_path_factory):
    """A closed-form student without strings, for three images of one size, and what else can be asked of one."""
    out = tmp_path_factory.mktemp("strict") / "out"
    exported(trained(), out, teacher=False, labels="none", batch=3, image_size=(40, 61), opset=17)
    return out / "student.onnx"


def test_nothing_that_runtimes_stumble_over(student):
    kinds = {node.op_type for node in student.graph.node}
    assert not kinds & {"If", "Loop", "Scan", "Resize"}
    assert not student.graph.value_info
    assert student.ir_version == 9  # of opset 20: onnxruntime 1.17
    flags = [(node.op_type, flag.name) for node in student.graph.node for flag in node.attribute]
    assert ("Reshape", "allowzero") not in flags
    assert ("Split", "num_outputs") not in flags
    initializers = {it.name: it for it in student.graph.initializer}
    picked = [numpy_helper.to_array(initializers[n.input[1]]) for n in student.graph.node if n.op_type == "Gather"
              and n.input[1] in initializers]  # fmt: skip
    assert [it.tolist() for it in picked if it.shape == (2,)] == [[0, 17]] * 2  # class and KD token, of two values


def test_the_batch_is_read_behind_the_patches(strict, small_bundle):
    """A tensor's only reader is the convolution; of an image it is the preprocessing."""
    model = onnx.load(small_bundle / "student.onnx")
    patches = next(node.output[0] for node in model.graph.node if node.op_type == "Conv")
    read = [node.input[0] for node in model.graph.node if node.op_type == "Shape"]
    assert read == ["image", patches]
    assert "Shape" not in {node.op_type for node in onnx.load(strict).graph.node}


def test_positions_are_those_of_the_largest_logits(small_bundle):
    """Equal ones in the order of the logits, as the names."""
    images = np.stack([photograph(40, 30, seed) for seed in range(6)])
    logits, index, labels, shares = session(small_bundle / "student.onnx").run(
        ["logits", "topk_index", "topk_label", "topk_probability"], {"image": images}
    )
    assert index.dtype == np.int64
    np.testing.assert_array_equal(index, np.argsort(-logits, axis=1, kind="stable")[:, : index.shape[1]])
    classes = np.array(read_bundle(small_bundle / "student.onnx").classes)
    assert (classes[index] == labels).all()
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = np.take_along_axis(powers / powers.sum(axis=1, keepdims=True), index, axis=1)
    np.testing.assert_allclose(shares, expected, atol=1e-6)


def test_opset_17_writes_axes_and_sizes_as_it_had_them():
    """ReduceMean's axes are an attribute there; Split has no count. Compared with numpy."""
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [2, 5]), ("y", [2, 1]))
    )
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2),
        helper.make_node("ReduceMean", ["a", "axes"], ["y"], keepdims=1),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(np.array([1]), "axes")], value_info=[x])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    write_plainly(model)
    lower_to_17(model)
    onnx.checker.check_model(model, full_check=True)
    values = np.arange(10, dtype=np.float32).reshape(2, 5)
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": values})
    np.testing.assert_array_equal(found, values[:, :3].mean(axis=1, keepdims=True))


def test_what_17_does_not_have_is_named():
    graph = helper.make_graph([helper.make_node("Mish", ["x"], ["y"])], "g", [], [])
    with pytest.raises(OptionError, match="its Mish is of opset 18; leave the option out"):
        lower_to_17(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))


def test_a_file_of_one_shape_without_strings(strict, bundles):
    """The answers are those of the file with free sizes, for any number of images; other sizes are refused."""
    found, free = Classifier(strict), Classifier(bundles() / "student.onnx")
    model = onnx.load(strict)
    assert [item.version for item in model.opset_import] == [17]
    assert model.ir_version == 8
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Range", "Abs", "Where", "If"}  # weights of resizing are constants
    assert {value.type.tensor_type.elem_type for value in model.graph.output} == {TensorProto.FLOAT, TensorProto.INT64}
    images = [photograph(40, 61, seed) for seed in range(4)]
    expected = session(bundles() / "student.onnx").run(["probabilities"], {"image": np.stack(images)})[0]
    np.testing.assert_allclose(found.probabilities([found.prepare(it) for it in images]), expected, atol=1e-6)
    np.testing.assert_allclose(
        found.features([found.prepare(it) for it in images]),
        session(bundles() / "student.onnx").run(["features"], {"image": np.stack(images)})[0], atol=1e-5
    )  # fmt: skip
    assert found.bundle.classes == free.bundle.classes
    with pytest.raises(DataError, match="40 × 60 pixels, expected 40 × 61"):
        found.prepare(photograph(40, 60))
    with pytest.raises(BundleError, match="gives no names, which the web page shows"):
        write_page(strict, strict.parent / "page")


def test_it_learns_without_strings(strict, tmp_path):
    learner = Learner(strict)
    learner.add_classes({"emu": [photograph(40, 61, seed) for seed in range(9, 13)]})
    learner.save(tmp_path / "student.onnx")
    assert "emu" in Classifier(tmp_path / "student.onnx").classes


def test_a_file_of_before_is_read_and_learns(first_task, photos, tmp_path):
    """Without `topk_index`, whose value had another name: as all files were until then."""
    folder = first_task()
    model = onnx.load(folder / "student.onnx")
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == "topk_index":
                    names[place] = "labels/indices"
    outputs = model.graph.output
    outputs.remove(next(it for it in outputs if it.name == "topk_index"))
    model.ir_version = 10
    onnx.save(model, tmp_path / "student.onnx")
    beside = read_bundle(folder / "student.onnx").statistics.file
    (tmp_path / beside).write_bytes((folder / beside).read_bytes())
    learner = Learner(tmp_path / "student.onnx")
    learner.add_classes(task(photos))
    learner.save(tmp_path / "new.onnx")
    assert len(Classifier(tmp_path / "new.onnx").classes) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": "nome"}, "unknown --labels 'nome', expected graph or none; did you mean 'none'"),
        ({"batch": 0}, "--batch is 0, expected 1 to 4096"),
        ({"image_size": (0, 5)}, "--image-size is 0,5, expected height and width from 1 to 16384"),
        ({"image_size": (9, 9), "input": "tensor"}, "--image-size is for --input image"),
        ({"opset": 16}, "--opset 16 is not possible, expected 17 to 23"),
    ],
)
def test_what_cannot_be(options, said):
    with pytest.raises(OptionError, match=said):
        ExportOptions(**options)


def test_image_sizes_as_they_are_typed():
    assert parse_image_size("480,640") == (480, 640)
    with pytest.raises(OptionError, match="--image-size is '480', expected height and width"):
        parse_image_size("480")


def test_fixing_one_of_two_sizes_leaves_the_other_free(student):
    """A batch alone: images of any size; a size alone: any number. Bit for bit what the file gives otherwise."""
    images = np.stack([photograph(45, 70, seed) for seed in range(2)])
    expected = onnxruntime.InferenceSession(student.SerializeToString()).run(["logits"], {"image": images})[0]
    for batch, size in ((2, None), (None, (45, 70)), (2, (45, 70))):
        fixed = onnxruntime.InferenceSession(fix_shapes(student, batch, size).SerializeToString())
        assert fixed.get_inputs()[0].shape[1:3] == (list(size) if size else ["height", "width"])
        np.testing.assert_allclose(fixed.run(["logits"], {"image": images})[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("batch", "at_once"), [(None, 1), (2, 2)])
def test_the_two_files_are_compared_with_few_large_images_in_memory(student, small_bundle, monkeypatch, batch, at_once):
    """Sixteen photographs in one run took eight gigabytes."""
    seen, real = [], fixed_shapes.of_fixed_size
    monkeypatch.setattr(fixed_shapes, "of_fixed_size", lambda feed, size: seen.append(len(feed)) or real(feed, size))
    bundle = read_bundle(small_bundle / "student.onnx")
    side = bundle.preprocessing.height
    images = torch.arange(3 * 3 * side * side).reshape(3, 3, side, side).to(torch.uint8)
    check_same_logits(student, fix_shapes(student, batch, (45, 70)), bundle, images)
    assert seen == [at_once] * -(-3 // at_once)


@pytest.mark.usefixtures("traced")
def test_smaller_variants_are_fixed_as_well(small_run, tmp_path):
    shrink = Shrink(("fp16",), max_drop=100)
    items = export_run(small_run, tmp_path / "out", ExportOptions(False, batch=1, shrink=shrink, latency=False))
    assert [session(it.bundle.path).get_inputs()[0].shape[0] for it in items] == [1, 1]


PROBE = """
import json, sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
found = session.run(["logits", "topk_index"], {"image": numpy.load(sys.argv[2])})
print(json.dumps([onnxruntime.__version__, *(it.tolist() for it in found)]))
"""
"""Needs nothing of this package."""


@pytest.mark.runtimes
@pytest.mark.parametrize(("name", "opset"), [("onnxruntime-1.17", 20), ("onnxruntime-1.15", 18)])
def test_old_versions_of_onnxruntime_give_the_same(name, opset, trained, bundles, tmp_path):
    python = ENVIRONMENTS / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no {name} in {ENVIRONMENTS}: make targets")
    model = bundles() / "student.onnx"
    if opset != 20:
        exported(trained(), tmp_path / "out", teacher=False, opset=opset)
        model = tmp_path / "out" / "student.onnx"
    images = np.stack([photograph(40, 61, seed) for seed in range(3)])
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run(
        [python, "-c", PROBE, model, tmp_path / "images.npy"], capture_output=True, text=True, check=True
    )
    version, logits, index = json.loads(done.stdout)
    assert name.endswith(".".join(version.split(".")[:2]))
    expected = session(model).run(["logits", "topk_index"], {"image": images})
    np.testing.assert_allclose(logits, expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(index, expected[1])
