"""Which models the command line's words mean."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cdl_deploy.bench import ModelSpec, find_models
from cdl_deploy.bench.rounds import _Model, reference_of
from cdl_deploy.errors import BundleError, OptionError
from cdl_deploy.runtime.bundle_parts import Quantization
from tests.records import run_json


def test_find_models(make_model, tmp_path):
    student, teacher = make_model("r/export/student.onnx"), make_model("r/export/teacher.onnx", role="teacher")
    pair = [ModelSpec(student, "student"), ModelSpec(teacher, "teacher")]
    assert find_models([tmp_path / "r" / "export"]) == pair
    (tmp_path / "r" / "run.json").write_text("{}")
    assert find_models([tmp_path / "r"]) == pair
    assert find_models([teacher, student]) == pair  # a teacher is what others are compared with
    other = make_model("q/export/student.onnx")
    assert [m.name for m in find_models([student, other, teacher])] == [
        "r/export/student",
        "q/export/student",
        "teacher",
    ]
    (tmp_path / "bare").mkdir()
    with pytest.raises(BundleError, match=r"bare: no \.onnx file in this folder; give an export directory, a run, or"):
        find_models([tmp_path / "bare"])
    (tmp_path / "bare" / "run.json").write_text("{}")
    with pytest.raises(BundleError, match=r"export it first: cdl export .*bare --onnx"):
        find_models([tmp_path / "bare"])
    with pytest.raises(BundleError, match="is given twice; to compare it with itself, give a copy"):
        find_models([student, student])


def test_the_teacher_as_such_is_the_reference_not_a_variant_of_it(make_model, tmp_path, tiny):
    for name in ("teacher.onnx", "teacher.int8.onnx", "student.onnx"):
        make_model(f"out/{name}")
    shutil.copy(tmp_path / "out/teacher.onnx", tmp_path / "out/teacher.ort")
    specs = find_models([tmp_path / "out"])
    assert [spec.name for spec in specs] == ["student", "teacher.int8", "teacher.ort", "teacher"]
    int8 = Quantization("int8", True, (), 91.0, 90.8)
    student, smaller, ort, teacher = (
        _Model(spec, {}, tiny.bundle(role=spec.name[:7], quantization=int8 if "int8" in spec.name else None))
        for spec in specs
    )
    assert reference_of([student, teacher, smaller, ort]) == "teacher"
    assert reference_of([student, ort, _Model(ModelSpec(Path("theirs.onnx"), "theirs"), {}, None)]) == "teacher.ort"
    assert reference_of([teacher, teacher, student]) == "student"  # of two runs: the last model


def test_variants_of_a_model_stand_between_student_and_teacher(make_model, tmp_path):
    for name in ("teacher.onnx", "student-int8.onnx", "student.onnx", "a.onnx"):
        make_model(f"out/{name}")
    shutil.copy(tmp_path / "out" / "student.onnx", tmp_path / "out" / "student.ort")
    (tmp_path / "out" / ".student.onnx.1.tmp.onnx").write_bytes(b"half written")
    assert [m.name for m in find_models([tmp_path / "out"])] == [
        "student", "student.ort", "a", "student-int8", "teacher",
    ]  # fmt: skip


def test_models_in_pytorch(make_model, tmp_path):
    make_model("r/export/student.onnx")
    make_model("r/export/teacher.onnx", role="teacher")
    (tmp_path / "r" / "run.json").write_text(json.dumps(run_json()))
    found = find_models([tmp_path / "r"], torch=True)
    assert [(m.name, m.kind, m.role) for m in found] == [
        ("student", "onnx", None),
        ("student (torch)", "torch", "student"),
        ("teacher (torch)", "torch", "teacher"),
        ("teacher", "onnx", None),
    ]
    shutil.copytree(tmp_path / "r", tmp_path / "alone")
    (tmp_path / "alone" / "run.json").write_text(json.dumps(run_json(has_teacher=False)))
    names = [m.name for m in find_models([tmp_path / "alone", tmp_path / "r"], torch=True) if m.kind == "torch"]
    assert names == ["alone/student (torch)", "r/student (torch)", "teacher (torch)"]
    with pytest.raises(OptionError, match="--torch measures the models of a run, and no run directory is given"):
        find_models([tmp_path / "r" / "export"], torch=True)
    (tmp_path / "r" / "run.json").write_text("{")
    with pytest.raises(BundleError, match=r"cannot read .*run\.json"):
        find_models([tmp_path / "r"], torch=True)
