"""Metadata: what is written is read; what is damaged is refused in one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from cdl_deploy.data.preprocessing import Preprocessing
from cdl_deploy.errors import BundleError
from cdl_deploy.runtime.bundle import decode_metadata, encode_metadata, read_bundle

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        read_bundle(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_reads_what_was_written(make_model, tiny):
    path = make_model("m.onnx")
    assert read_bundle(path) == tiny.bundle(path)
    assert read_bundle(str(path)).classes[3] == "grün ✓"


def test_keys_are_those_of_the_contract(tiny):
    stored = {key: json.loads(text) for key, text in encode_metadata(tiny.bundle()).items()}
    assert set(stored) == {
        f"cdl.{name}"
        for name in (
            "format_version",
            "producer",
            "role",
            "classes",
            "tasks",
            "preprocessing",
            "method",
            "weights",
            "run",
            "accuracy",
            "parity",
            "parameters",
            "top_k",
            "quantization",
        )
    }
    assert stored["cdl.format_version"] == 1
    assert stored["cdl.tasks"] == [["green", "red"], ["blue", "grün ✓"]]
    assert stored["cdl.preprocessing"] == {
        "input": "tensor",
        "height": 8,
        "width": 10,
        "resize": 12,
        "interpolation": "bicubic",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.5, 0.25, 0.2],
    }
    assert stored["cdl.accuracy"] == {"final_average_accuracy": 91.0, "forgetting": 3.4}


def test_accuracy_may_be_null_and_unknown_fields_are_ignored(tiny):
    metadata = encode_metadata(tiny.bundle(accuracy=None))
    run = json.loads(metadata["cdl.run"]) | {"host": "a later version's field"}
    metadata |= {"cdl.run": json.dumps(run), "cdl.later": "1", "someone.else": "not JSON"}
    assert decode_metadata(Path("student.onnx"), metadata) == tiny.bundle(accuracy=None)
    assert metadata["cdl.accuracy"] == "null"


def test_task_numbers_count_from_one(tiny):
    assert tiny.bundle().task_numbers == (1, 1, 2, 2)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("cdl.format_version", "2", "has bundle format 2, this cdl-deploy 0.1.0 reads up to 1: pip install -U"),
        ("cdl.format_version", "true", "cdl.format_version is True, expected a whole number from 1"),
        ("cdl.role", '"pupil"', "cdl.role is 'pupil', expected 'student' or 'teacher'"),
        ("cdl.role", "student", "cdl.role is not JSON (Expecting value: line 1 column 1 (char 0))"),
        ("cdl.classes", "[]", "cdl.classes is empty, expected at least one class name"),
        ("cdl.classes", '["a", 3]', "cdl.classes[1] is 3, expected a string"),
        ("cdl.classes", '"red"', "cdl.classes is red, expected a list, each a string"),
        ("cdl.classes", '["red","red","blue","x"]', "cdl.classes names 'red' 2 times, expected once"),
        ("cdl.tasks", '[["red","green","blue"]]', "cdl.tasks and cdl.classes disagree about 'grün ✓'"),
        ("cdl.tasks", '[["red","green","blue"],["red","grün ✓"]]', "disagree about 'red': each class belongs to one"),
        ("cdl.parameters", "1.5", "cdl.parameters is 1.5, expected a whole number"),
        ("cdl.accuracy", "{}", "cdl.accuracy.final_average_accuracy is missing"),
        ("cdl.accuracy", '{"final_average_accuracy": NaN}', "cdl.accuracy is not JSON (NaN is not JSON)"),
        ("cdl.accuracy", '{"final_average_accuracy": 1e999}', "final_average_accuracy is inf, expected a number"),
        ("cdl.method", "null", "cdl.method is None, expected an object"),
        ("cdl.run", '{"seed": true, "tasks": 2, "fingerprint": ""}', "cdl.run.seed is True, expected a whole number"),
    ],
)
def test_damaged_value(make_model, tiny, key, value, expected):
    message = refusal(make_model(metadata=encode_metadata(tiny.bundle()) | {key: value}))
    assert expected in message
    assert message.endswith(("export the model again", "cdl-deploy")) or key in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"interpolation": "cubic"}, "cdl.preprocessing.interpolation is 'cubic', expected one of nearest, bilinear"),
        (
            {"input": "uint8"},
            "cdl.preprocessing.input is 'uint8', expected 'image' or 'tensor'; a newer cdl-deploy may know it",
        ),
        ({"height": 0}, "cdl.preprocessing.height is 0, expected 1 to 4096"),
        ({"std": [1, 0, 1]}, "cdl.preprocessing.std is [1.0, 0.0, 1.0], expected three numbers above 0"),
        ({"mean": [1, 2]}, "cdl.preprocessing.mean is [1, 2], expected a list of 3, each a number"),
    ],
)
def test_damaged_preprocessing(tiny, change, expected):
    metadata = encode_metadata(tiny.bundle())
    metadata["cdl.preprocessing"] = json.dumps(json.loads(metadata["cdl.preprocessing"]) | change)
    with pytest.raises(BundleError) as caught:
        decode_metadata(Path("m.onnx"), metadata)
    assert str(caught.value).startswith(f"m.onnx: {expected}")


def test_checked_when_built(tiny):
    with pytest.raises(BundleError, match="expected 'student' or 'teacher'"):
        tiny.bundle(role="x")
    with pytest.raises(BundleError, match="resize is -1, expected 1 to 4096"):
        Preprocessing(1, 1, -1, "bicubic", (0, 0, 0), (1, 1, 1))


def test_nan_is_not_written(tiny):
    bundle = tiny.bundle()
    parity = dataclasses.replace(bundle.parity, max_abs_logit_difference=float("nan"))
    with pytest.raises(BundleError, match="cannot be written as JSON"):
        encode_metadata(dataclasses.replace(bundle, parity=parity))


@given(key=st.sampled_from(("classes", "tasks", "preprocessing", "method", "run", "format_version")), value=JSON)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_value_is_read_or_refused(tiny, key, value):
    metadata = encode_metadata(tiny.bundle()) | {f"cdl.{key}": json.dumps(value)}
    message = "m.onnx"
    try:
        decode_metadata(Path("m.onnx"), metadata)
    except BundleError as error:
        message = str(error)
    assert "m.onnx" in message
    assert "\n" not in message


def test_not_ours(make_model):
    message = refusal(make_model(metadata={}))
    assert message.endswith(
        "is an ONNX model that cdl did not export: cdl.format_version is missing from its metadata; "
        "make one with: cdl export RUN --onnx"
    )


def test_missing_key(make_model, tiny):
    metadata = encode_metadata(tiny.bundle())
    del metadata["cdl.classes"]
    assert "cdl.classes is missing from the model's metadata; export the model again" in refusal(
        make_model(metadata=metadata)
    )


def test_graph_and_metadata_must_agree(make_model, tmp_path, tiny):
    assert "image is tensor(float) ['B', 3, 9, 9], expected tensor(float) ['B', 3, 8, 10]" in refusal(
        make_model("size.onnx", size=(9, 9))
    )
    assert "output logits is tensor(float) ['B', 5], expected tensor(float) ['B', 4], one column a class" in refusal(
        make_model("five.onnx", classes_in_graph=5)
    )
    node = helper.make_node("Identity", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B"]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph([node], "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    onnx.save(tiny.set_metadata(model, encode_metadata(tiny.bundle())), tmp_path / "other.onnx")
    assert "its inputs are ['x'], expected ['image']" in refusal(tmp_path / "other.onnx")


def test_no_such_file_folder_and_empty_file(tmp_path):
    assert refusal(tmp_path / "no.onnx").endswith("no.onnx: No such file or directory; expected an .onnx file")
    assert "is a folder, expected an .onnx file" in refusal(tmp_path)
    (tmp_path / "empty.onnx").touch()
    assert "is empty (0 bytes), expected an ONNX model: copy or export it again" in refusal(tmp_path / "empty.onnx")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated(model_path, share):
    content = model_path.read_bytes()
    model_path.write_bytes(content[: int(len(content) * share)])
    message = refusal(model_path)
    # Cut between two fields, a file is still valid protobuf, and lacks its metadata instead.
    assert "or only part of one: copy or export it again" in message or "missing from" in message


def test_an_openvino_model_is_named_as_one(tmp_path):
    path = tmp_path / "student.int8-nncf.xml"
    path.write_text('<?xml version="1.0"?><net name="main_graph" version="11"/>')
    assert "is an OpenVINO model, expected an .onnx file: run it in OpenVINO" in refusal(path)


@given(content=st.binary(min_size=1, max_size=200))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_file(tmp_path, content):
    path = tmp_path / "photo.onnx"
    path.write_bytes(content)
    assert "is not an ONNX model that onnxruntime" in (message := refusal(path)) or "did not export" in message
