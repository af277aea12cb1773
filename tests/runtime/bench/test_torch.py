"""The model as it was trained, beside what was exported from it."""

from __future__ import annotations

import shutil
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from cdl_deploy import Classifier
from cdl_deploy.bench import BenchOptions, bench_latency, find_models
from cdl_deploy.bench.runners import Job, make_runner
from cdl_deploy.errors import BundleError


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_it_answers_what_the_exported_model_answers(role, small_run, small_bundle, tmp_path):
    rng = np.random.default_rng(0)
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(files[-1])
    runner = make_runner(Job(str(small_run), "torch", role, 1, 0, None, tuple(map(str, files))))
    runner.load()
    logits = runner.run_of(3)().numpy()
    classifier = Classifier(small_bundle / f"{role}.onnx")
    expected = list(classifier.predict(files))
    assert [classifier.bundle.classes[row.argmax()] for row in logits] == [p.label for p in expected]
    facts = runner.inspect(1)
    assert facts["parameters"] == classifier.bundle.parameters
    assert facts["classes"] == len(classifier.bundle.classes)
    assert facts["accuracy"] == classifier.bundle.accuracy.final_average_accuracy


@pytest.mark.usefixtures("without_wandb")
def test_a_run_against_its_export(small_run, small_bundle, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    shutil.copytree(small_bundle, run / "export")
    specs = [m for m in find_models([run], torch=True) if m.name.startswith("student")]
    report = bench_latency(specs, BenchOptions((2,), (1,), time_limit=1, precision=50))
    exported, trained = report.models
    assert (exported.kind, trained.kind) == ("onnx", "torch")
    assert (trained.role, trained.parameters, trained.accuracy) == ("student", exported.parameters, exported.accuracy)
    assert report.comparisons[0].reference == "student (torch)"
    assert any(note.startswith("student (torch): memory is that of a process with PyTorch") for note in report.notes)


def test_a_student_that_was_trained_alone_has_no_teacher(small_run, tmp_path):
    import json

    shutil.copytree(small_run, tmp_path / "run")
    runner = make_runner(Job(**{**asdict(Job(str(tmp_path / "run"), "torch", "nobody", 1, 0, None)), "photos": ()}))
    with pytest.raises(BundleError, match="run has no nobody: it was trained alone"):
        runner.load()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["student"]
