"""`--runtime`: the same model in several runtimes. The other runtime is onnxruntime in a script of its own."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from cdl_deploy.bench import BenchOptions, ModelSpec, bench_latency
from cdl_deploy.bench.models import in_runtimes
from cdl_deploy.cli import app
from cdl_deploy.errors import BundleError, OptionError
from cdl_deploy.runtime.bundle import encode_metadata
from cdl_deploy.targets.process import parse_places
from tests.runtime.conftest import build_model, example_bundle, save_model

THERE = f"onnxruntime={sys.executable}"
QUICK = BenchOptions(batches=(1,), threads=(1,), time_limit=0.5, precision=50)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "student.onnx"
    save_model(build_model(), path, encode_metadata(example_bundle(path)))
    return path


def test_side_by_side(model):
    specs = in_runtimes([ModelSpec(model, "student")], parse_places(THERE))
    plain = in_runtimes([ModelSpec(model, "student")], parse_places("onnxruntime"))
    assert [(it.kind, it.name) for it in specs + plain] == [
        ("runtime", "student (onnxruntime)"), ("onnx", "student (onnxruntime)")
    ]  # fmt: skip
    report = bench_latency([*specs, ModelSpec(model, "student")], QUICK)
    assert [it.model for it in report.measurements] == ["student (onnxruntime)", "student"]
    assert report.models[0].runtime.startswith("onnxruntime 1.")
    assert report.models[1].runtime is None
    assert report.comparisons[0].reference == "student"
    assert any("ran in onnxruntime 1." in note for note in report.notes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stages": ("jpeg",)}, "--runtime measures what the graph takes: leave --from out"),
        ({"streams": (2,)}, "--runtime measures one inference at a time: leave --streams out"),
    ],
)
def test_conditions_that_are_not_measured_there(model, options, said):
    with pytest.raises(OptionError, match=said):
        bench_latency(in_runtimes([ModelSpec(model, "m")], parse_places(THERE)), BenchOptions(**options))


def test_only_onnx_files(tmp_path):
    with pytest.raises(OptionError, match=r"--runtime is about \.onnx files, and m is none"):
        in_runtimes([ModelSpec(tmp_path / "m.ort", "m")], [])


def test_evaluating_there(model, tmp_path):
    from PIL import Image

    classes = example_bundle(model).classes
    for number, name in enumerate(classes[:2]):
        (tmp_path / name).mkdir()
        pixels = np.random.default_rng(number).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name / "a.png")
    asked = ["evaluate", str(model), "--data", str(tmp_path), "--runtime", THERE]
    done = CliRunner().invoke(app, [*asked, "--json"])
    assert done.exit_code == 0, done.output
    ((name, report),) = json.loads(done.stdout)["runtimes"].items()
    assert name.startswith("onnxruntime 1.")
    assert report["against"]["same"] == 100
    table = CliRunner().invoke(app, asked).output
    assert "same class" in table
    assert "100.0" in table
    refused = CliRunner().invoke(app, [*asked, "--against", str(model)])
    assert isinstance(refused.exception, OptionError)
    assert "--against does not go with --runtime" in str(refused.exception)


def test_a_model_that_does_not_run_there(tmp_path, model):
    from dataclasses import replace

    (place,) = parse_places(THERE)
    strange = replace(place, target=replace(place.target, script="run_tract.py"))
    with pytest.raises(BundleError, match=r"student.onnx does not run in onnxruntime: exit code 1: .*No module named"):
        bench_latency(in_runtimes([ModelSpec(model, "m")], [strange]), QUICK)
