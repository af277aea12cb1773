"""Classifiers that others exported: labels from wherever they are, pixels as they want them, or what is missing."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from cdl_deploy import Classifier
from cdl_deploy.errors import BundleError
from cdl_deploy.evaluation import inspect_model
from cdl_deploy.runtime.foreign import parse_labels
from tests.runtime.conftest import BIAS, WEIGHTS

LABELS = ("rot", "grün", "blau", "grau")
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


def save(path, shape=("B", 3, 8, 10), dtype="float32", metadata=None, softmax=False, outputs=("scores",), columns=4):
    """Mean colour times fixed weights: logits (or probabilities) of four classes, for any layout and type."""
    last = shape[3] == 3
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["features"], keepdims=0),
        helper.make_node("Gemm", ["features", "weights", "bias"], ["logits"]),
        helper.make_node("Softmax" if softmax else "Identity", ["logits"], [outputs[0]]),
    ]
    axes = np.array([1, 2] if last else [2, 3], dtype=np.int64)
    scale = np.float32(1 / 255 if dtype == "uint8" else 1)
    constants = {"axes": axes, "weights": WEIGHTS[:, :columns] * scale, "bias": BIAS[:columns]}
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("pixels", TYPES[dtype], shape)],
        [helper.make_tensor_value_info(outputs[0], TensorProto.FLOAT, [shape[0], columns])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def expected(colour, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)):
    features = (np.array(colour) / 255 - mean) / std
    logits = features @ WEIGHTS + BIAS
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


COLOUR = (90, 130, 110)


def probabilities(path):
    """By name, of an image of one colour, which looks the same however it is resized and cropped."""
    (prediction,) = Classifier(path).predict(Image.new("RGB", (31, 20), COLOUR), top_k=4)
    assert prediction.task == 1
    return [dict(prediction.top_k)[name] for name in LABELS]


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize(
    "shape", [("B", 3, 8, 10), ("B", 8, 10, 3), (1, 3, 8, 8), (3, 3, None, None), (2, None, None, 3)]
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_layouts_and_types(tmp_path, shape, dtype, softmax):
    path = save(tmp_path / "m.onnx", shape, dtype, {"labels": json.dumps(LABELS)}, softmax)
    np.testing.assert_allclose(probabilities(path), expected(COLOUR), atol=1e-5 if dtype == "float32" else 5e-3)
    classifier = Classifier(path)
    assert classifier.interface.assumed is not None
    assert classifier.interface.assumed.startswith(f"{path} does not say how it wants its pixels: ImageNet's mean")
    # Any number of images, whatever number the graph is made for.
    images = [Image.new("RGB", (9, 9), (10 * i, 100, 90)) for i in range(5)]
    singly = [next(classifier.predict(image)).probability for image in images]
    assert [p.probability for p in classifier.predict(images)] == pytest.approx(singly, abs=1e-6)


@pytest.mark.parametrize("shape", [("B", 3, 8, 10), ("B", 8, 10, 3)])
def test_uint8_pixels_are_given_as_they_are(tmp_path, shape):
    path = save(tmp_path / "m.onnx", shape, "uint8", {"labels": json.dumps(LABELS)})
    np.testing.assert_allclose(probabilities(path), expected(COLOUR, (0, 0, 0), (1, 1, 1)), atol=1e-5)
    assert Classifier(path).interface.assumed is None


def test_ultralytics_metadata(tmp_path):
    metadata = {"names": str(dict(enumerate(LABELS))), "imgsz": "[8, 10]", "stride": "1", "task": "classify"}
    path = save(tmp_path / "m.onnx", metadata=metadata)
    np.testing.assert_allclose(probabilities(path), expected(COLOUR, (0, 0, 0), (1, 1, 1)), atol=1e-5)
    assert Classifier(path).interface.preprocessing.resize == 8


def test_hugging_face_files_beside_the_model(tmp_path):
    path = save(tmp_path / "model.onnx", ("batch", 3, "height", "width"))
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {str(i): LABELS[i] for i in (2, 0, 3, 1)}}))
    settings = {"size": {"height": 12, "width": 14}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2],
                "resample": 3, "do_normalize": True}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    np.testing.assert_allclose(probabilities(path), expected(COLOUR, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)), atol=1e-5)
    found = Classifier(path).interface.preprocessing
    assert (found.height, found.width, found.resize, found.interpolation) == (12, 14, 12, "bicubic")
    settings |= {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224, "do_normalize": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    np.testing.assert_allclose(probabilities(path), expected(COLOUR, (0, 0, 0), (1, 1, 1)), atol=1e-4)
    found = Classifier(path).interface.preprocessing
    assert (found.height, found.width, found.resize) == (224, 224, 256)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"resample": 99}))
    with pytest.raises(BundleError, match=r"preprocessor_config\.json: .*; expected an image processor's settings"):
        Classifier(path)


def test_a_file_of_labels_beside_the_model(tmp_path):
    path = save(tmp_path / "m.onnx")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    np.testing.assert_allclose(probabilities(path), expected(COLOUR), atol=1e-5)
    (tmp_path / "m.labels.txt").write_text("a\nb\nc\nd\n")  # made for this model: it wins
    assert Classifier(path).classes == ("a", "b", "c", "d")


def refusal(path):
    with pytest.raises(BundleError) as caught:
        Classifier(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_missing_is_said(tmp_path):
    path = save(tmp_path / "m.onnx")
    assert refusal(path) == (
        f"{path} is an ONNX model that cdl did not export, and nothing says what its classes are called: put their "
        f"names, 4 of them, one a line into {tmp_path / 'labels.txt'}, or make a model with: cdl export RUN --onnx"
    )
    (tmp_path / "labels.txt").write_text("a\nb\n")
    assert refusal(path).startswith(f"{path}: 2 labels were found for the 4 columns of output 'scores'")
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe")
    assert "labels.txt: cannot be read as UTF-8 text" in refusal(path)
    assert "its metadata 'names' are [1, 2], expected a list of class names" in refusal(
        save(tmp_path / "n.onnx", metadata={"names": "[1, 2]"})
    )
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "labels.txt").unlink()
    assert "config.json: not JSON" in refusal(path)


@pytest.mark.parametrize(
    ("takes", "gives", "message"),
    [
        (("words", TensorProto.INT64, ["B", "n"]), ["B", "n"], "it takes no images: its input is words: tensor(int64)"),
        (("x", TensorProto.FLOAT, ["B", 4, 8, 8]), ["B", 4, 8, 8], "it takes no images: its input is x: tensor(float)"),
        (("x", TensorProto.FLOAT, ["B", 3, 8, 8]), ["B", 3, 8, 8], "no classifier: its outputs are y: tensor(float) "),
    ],
)
def test_a_graph_that_takes_or_gives_something_else(tmp_path, takes, gives, message):
    node = helper.make_node("Identity", [takes[0]], ["y"])
    ends = helper.make_tensor_value_info(*takes), helper.make_tensor_value_info("y", takes[1], gives)
    graph = helper.make_graph([node], "g", [ends[0]], [ends[1]])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    assert f"is an ONNX model that cdl did not export, and {message}" in refusal(tmp_path / "m.onnx")


def test_only_an_exported_model_has_a_bundle(tmp_path):
    classifier = Classifier(save(tmp_path / "m.onnx", metadata={"classes": ", ".join(LABELS)}))
    assert classifier.classes == LABELS
    with pytest.raises(BundleError, match="did not export, and says nothing about training"):
        _ = classifier.bundle


names = st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), min_size=1, max_size=9)
                 .map(str.strip).filter(bool), min_size=1, max_size=6).map(tuple)  # fmt: skip


@given(names=names, spelled=st.sampled_from([json.dumps, repr]), numbered=st.booleans(), seed=st.randoms())
@settings(max_examples=100, deadline=None)
def test_labels_in_json_and_python(names, spelled, numbered, seed):
    value = list(names)
    if numbered:
        pairs = list(enumerate(names))
        seed.shuffle(pairs)
        value = dict(pairs)
    assert parse_labels(spelled(value)) == names


@given(text=st.text(max_size=30) | st.sampled_from(["[" * 9999, "{0: 'a', 2: 'b'}", "[]", "{}", "['a', 3]", "a,,b"]))
@settings(max_examples=100, deadline=None)
def test_any_text_gives_names_or_none(text):
    labels = parse_labels(text)
    assert labels is None or (labels and all(labels))


def test_files_one_level_above_the_folder_onnx(tmp_path):
    """Optimum's and transformers.js' layout, and timm's config.json."""
    (tmp_path / "onnx").mkdir()
    path = save(tmp_path / "onnx/model.onnx", ("batch", 3, "height", "width"))
    cfg = {"input_size": [3, 12, 12], "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.2], "crop_pct": 0.9}
    config = {"architecture": "resnet18", "label_names": LABELS, "pretrained_cfg": {**cfg, "interpolation": "bicubic"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    np.testing.assert_allclose(probabilities(path), expected(COLOUR, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)), atol=1e-5)
    settings = {"size": {"height": 12, "width": 14}, "do_normalize": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    np.testing.assert_allclose(probabilities(path), expected(COLOUR, (0, 0, 0), (1, 1, 1)), atol=1e-5)
    assert Classifier(path).interface.squash == (12, 14)
    assert inspect_model(path).to_dict()["preprocessing"]["squash"] == [12, 14]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_pad": True}))
    with pytest.raises(BundleError, match=r"preprocessor_config\.json: do_pad is not supported"):
        Classifier(path)
