"""Run directory → bundle, judged by the runtime that will read it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cdl_deploy import Classifier
from cdl_deploy.closed_form.head_rule import HeadRule
from cdl_deploy.data.images import load_image
from cdl_deploy.errors import OptionError, ParityError, RunError
from cdl_deploy.export import Exported, ExportOptions, export_run, onnx_file, parity
from cdl_deploy.export import export as export_module
from cdl_deploy.export.variants import Shrink
from cdl_deploy.run.config import DataConfig, MethodConfig, ModelConfig, OptimConfig, RunConfig
from cdl_deploy.runtime.bundle import read_bundle
from cdl_deploy.training.checkpoint import load_heldout, load_run
from cdl_deploy.training.heads.closed_form import NEVER, ClosedFormHead
from cdl_deploy.training.loop import train
from cdl_deploy.training.models.learner import learner_logits
from tests.training.conftest import write_images


@pytest.fixture
def run(small_run):
    return small_run


def test_both_files_describe_themselves(run, small_bundle):
    record = json.loads((run / "run.json").read_text())
    assert sorted(path.name for path in small_bundle.iterdir()) == [
        "student.json", "student.onnx", "teacher.json", "teacher.onnx"
    ]  # fmt: skip
    for role in ("student", "teacher"):
        bundle = read_bundle(small_bundle / f"{role}.onnx")
        assert bundle.role == role
        assert bundle.classes == ("ant", "bee", "cat", "dog")
        assert bundle.tasks == (("ant", "bee"), ("cat", "dog"))
        assert bundle.method.continual == "coda"
        assert bundle.method.distillation == ("kdp" if role == "student" else None)
        assert bundle.weights.sha256 == record["backbones"][role]["sha256"]
        assert bundle.accuracy.final_average_accuracy == record[role]["final_average_accuracy"]
        assert bundle.parity.images == 12
        assert bundle.parity.max_abs_logit_difference <= 1e-4
        assert bundle.parity.top1_agreement == 1.0


def test_the_runtime_answers_as_the_trained_model(run, small_bundle):
    """From the image file through the runtime's own preprocessing, against PyTorch on torchvision's pixels."""
    record, pair = load_run(run)
    images, _ = load_heldout(run, record)
    with torch.no_grad():
        expected = learner_logits(pair.encoder, pair.student, images).softmax(1).numpy()
    root = run.parent / "photos/test"
    files = [path for name in record.classes for path in sorted((root / name).iterdir())]
    predictions = list(Classifier(small_bundle / "student.onnx").predict(files, top_k=4))
    for prediction, row in zip(predictions, expected, strict=True):
        assert prediction.index == int(row.argmax())
        assert prediction.probability == pytest.approx(float(row.max()), abs=1e-4)
        assert dict(prediction.top_k) == pytest.approx(dict(zip(record.classes, row.tolist(), strict=True)), abs=1e-4)
    assert load_image(files[0]).mode == "RGB"


def test_every_weight_is_in_the_file_once(small_bundle):
    """Query pass and prompted pass share the backbone; a teacher's file holds the student for its query as well."""
    parameters = {role: read_bundle(small_bundle / f"{role}.onnx").parameters for role in ("student", "teacher")}
    for role, expected in (("student", parameters["student"]), ("teacher", sum(parameters.values()))):
        stored = sum(int(np.prod(value.dims)) for value in onnx.load(small_bundle / f"{role}.onnx").graph.initializer)
        assert stored <= 1.01 * expected


@pytest.mark.usefixtures("traced")
def test_above_the_limit_of_a_file_weights_have_their_own(run, small_bundle, tmp_path, monkeypatch, traced):
    monkeypatch.setattr(onnx_file, "LARGEST_FILE", 100_000)
    (exported,) = export_run(run, tmp_path / "large", ExportOptions(teacher=False, latency=False))
    names = {path.name: path.stat().st_size for path in (tmp_path / "large").iterdir()}
    assert names.keys() == {"student.onnx", "student.onnx.data", "student.json"}
    assert names["student.onnx.data"] > 10 * names["student.onnx"]
    assert exported.bytes == names["student.onnx"] + names["student.onnx.data"]
    image = np.random.default_rng(0).integers(0, 256, (2, 50, 40, 3), dtype=np.uint8)
    answers = [
        onnxruntime.InferenceSession(folder / "student.onnx", providers=["CPUExecutionProvider"]).run(
            ["logits"], {"image": image}
        )[0]
        for folder in (tmp_path / "large", small_bundle)
    ]
    assert np.array_equal(*answers)
    for name, asked in (
        ("--quantize or --fp16", {"shrink": Shrink(("fp16",))}),
        ("--ort", {"ort": True}),
        ("--update-from", {"update_from": (small_bundle / "student.onnx",)}),
    ):
        with pytest.raises(OptionError, match=rf"student.onnx has more than 2 GB of weights.*{name} cannot be done"):
            export_run(run, tmp_path / "more", ExportOptions(teacher=False, **asked))
        assert not (tmp_path / "more").exists()


@pytest.mark.usefixtures("traced")
def test_no_teacher(run, tmp_path):
    export_run(run, tmp_path / "out", ExportOptions(teacher=False))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["student.json", "student.onnx"]


@pytest.mark.parametrize("fault", ["logit", "top1"])
@pytest.mark.usefixtures("traced")
def test_a_graph_that_differs_leaves_nothing_behind(run, tmp_path, monkeypatch, fault):
    trained_logits = export_module.trained_logits

    def other(*arguments):
        logits = trained_logits(*arguments)
        return logits + 2e-4 if fault == "logit" else logits.flip(1)

    monkeypatch.setattr(export_module, "trained_logits", other)
    with pytest.raises(ParityError, match=r"student.onnx differs from the trained model: .*nothing was written"):
        export_run(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("traced")
def test_an_export_that_fails_keeps_the_files_of_the_last_one(run, tmp_path, monkeypatch):
    export_run(run, tmp_path / "out", ExportOptions(teacher=False))
    before = (tmp_path / "out/student.onnx").read_bytes()

    def fail(*arguments, **more):
        raise ParityError("differs")

    monkeypatch.setattr(export_module, "check_parity", fail)
    with pytest.raises(ParityError):
        export_run(run, tmp_path / "out")
    assert (tmp_path / "out/student.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_compare_by_hand():
    expected = np.array([[1.0, 2.0], [3.0, 1.0]], dtype=np.float32)
    assert parity.compare(expected, expected + 5e-5, "x").max_abs_logit_difference == 1e-4
    assert parity.compare(expected, expected, "x").max_abs_logit_difference == 1e-7
    with pytest.raises(ParityError, match=r"a logit by 0.5, at most 0.0001 allowed"):
        parity.compare(expected, expected + 0.5, "x")
    large = expected * 1000
    assert parity.compare(large, large + 5e-4, "x", terms=3000).top1_agreement == 1
    for head in ({}, {"terms": 3000}):
        with pytest.raises(ParityError, match="differs from the trained model: a logit by"):
            parity.compare(large, large + (0.05 if head else 5e-4), "x", **head)
    with pytest.raises(ParityError, match="a logit by nan"):
        parity.compare(expected, np.full_like(expected, np.nan), "x")
    assert parity.compare(expected, expected + 5e-4, "x", terms=1000).top1_agreement == 1  # most of them cancel
    close = np.array([[1.0, 1.00005]], dtype=np.float32)
    with pytest.raises(ParityError, match="1 of 1 images get another class"):
        parity.compare(close, close[:, ::-1], "x")


@pytest.mark.parametrize(("random", "wanted"), [(False, 2 * 3 + 4 * 5 + 1), (True, 2 * 0 + 4 * 2 + 1)])
def test_the_largest_sum_of_a_solved_head_is_that_of_sizes(random, wanted):
    head = ClosedFormHead(2, HeadRule("slda"), ("class",))
    if random:
        head.projection = torch.tensor([[0.0, 1.0], [-1.0, 1.0]])
    head.weight = torch.tensor([[2.0, 4.0], [1.0, -1.0], [0.0, 0.0]])
    head.bias = torch.tensor([-1.0, 0.0, NEVER])  # the last is of a class without images
    features = torch.tensor([[-3.0, 5.0], [1.0, 1.0]])
    assert head.largest_sum(features) == wanted


@pytest.mark.parametrize(("found", "said"), [(0, 1e-7), (3.1e-6, 1e-5), (2.9e-6, 1e-5), (1e-5, 1e-5), (5e-5, 1e-4)])
def test_what_a_file_says_of_a_difference_does_not_depend_on_its_last_digits(found, said):
    assert parity.power_of_ten_above(found) == said


def test_out_must_be_a_folder(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file, expected a folder"):
        export_run(run, tmp_path / "file")


def test_no_run_is_one_clear_line(tmp_path):
    with pytest.raises(RunError, match="is no run directory"):
        export_run(tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_projections_are_no_part_of_the_student_and_unit_pixels_reach_the_bundle(tmp_path):
    """FitNets' projection trains, and is left behind; what the bundle says of pixels is what the run was told."""
    write_images(tmp_path / "photos/train", dict.fromkeys(("ant", "bee"), 4))
    write_images(tmp_path / "photos/test", dict.fromkeys(("ant", "bee"), 3), seed=1)
    config = RunConfig(
        DataConfig(str(tmp_path / "photos"), tasks=1),
        ModelConfig(teacher="mini_student", pixel_range="unit"),
        MethodConfig(distill="fitnets", components_per_task=3),
        OptimConfig(epochs=1, batch_size=8, device="cpu"),
    )
    train(config, tmp_path / "run")
    (exported,) = export_run(tmp_path / "run", tmp_path / "out", ExportOptions(teacher=False))
    assert exported.bundle.method.distillation == "fitnets"
    assert exported.bundle.preprocessing.mean == (0, 0, 0)
    assert exported.bundle.preprocessing.std == (1, 1, 1)
    backbone = json.loads((tmp_path / "run/run.json").read_text())["backbones"]["student"]["parameters"]
    prompts, head = 5 * 3 * (64 + 64 + 8 * 64), 2 * 64 + 2  # keys, attentions and rows in five blocks; two classes
    assert exported.bundle.parameters == backbone + prompts + head
    _, pair = load_run(tmp_path / "run")
    assert pair.student.distillation.projection.weight.shape == (64, 64)
    stored = onnx.load(tmp_path / "out/student.onnx").graph.initializer
    assert sum(int(np.prod(value.dims)) for value in stored) <= 1.01 * exported.bundle.parameters


def test_files_of_an_earlier_export_are_named(small_bundle, tmp_path):
    """They know fewer classes, and would be shipped with the rest; also the teacher, where only the student is new."""
    shutil.copytree(small_bundle, tmp_path / "out")
    for name in ("student.int8.onnx", "elsewhere.onnx"):
        shutil.copy(small_bundle / "student.onnx", tmp_path / "out" / name)
    bundle = read_bundle(tmp_path / "out/student.onnx")
    assert export_module.left_behind(tmp_path / "out", [Exported(bundle, 0, 0)]) == {}
    newer = replace(bundle, classes=(*bundle.classes, "eel"), tasks=(*bundle.tasks, ("eel",)))
    assert export_module.left_behind(tmp_path / "out", [Exported(newer, 0, 0)]) == {
        "student.int8.onnx": "knows 4 classes, student.onnx 5",
        "teacher.onnx": "knows 4 classes, student.onnx 5",
    }
    newer = replace(bundle, run=replace(bundle.run, fingerprint="other"))
    assert export_module.left_behind(tmp_path / "out", [Exported(newer, 0, 0)]) == {
        "student.int8.onnx": "is not of the same run as student.onnx",
        "teacher.onnx": "is not of the same run as student.onnx",
    }
