"""examples/ in other runtimes, each in an environment of its own, give the same answers as the model in onnxruntime."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cdl_deploy import Classifier
from cdl_deploy.export import ExportOptions, export_run, options_for_target
from tests.conftest import no_shape_checks
from tests.examples.conftest import EXAMPLES, PROJECT, answers, run_app

pytestmark = pytest.mark.runtimes
ENVIRONMENTS = Path(os.environ.get("CDL_RUNTIMES", PROJECT / ".runtimes"))
APPS = {"openvino": "student.onnx", "tract": "student.onnx", "ncnn": "student.ncnn.param", "litert": "student.tflite"}
SIZE = (32, 32)
OFF = 5e-4
"""How far a probability may be off: a grey level or two, where an app resizes."""


@pytest.mark.parametrize("name", APPS)
def test_it_says_what_the_classifier_says(name, small_run, small_bundle, photographs, tmp_path):
    python = ENVIRONMENTS / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no {name} in {ENVIRONMENTS}: make targets")
    folder = small_bundle
    if name != "openvino":
        shape = {"input": "image", "image_size": SIZE} if name == "litert" else {}
        given = options_for_target(name, **shape)
        with no_shape_checks():
            options = ExportOptions(teacher=False, latency=False, target_python=python, **given)
            export_run(small_run, tmp_path / "out", options)
        folder = tmp_path / "out"
    found = answers(run_app(python, f"{name}/classify.py", folder / APPS[name], *photographs).stdout)
    expected = list(Classifier(small_bundle / "student.onnx").predict(photographs))
    assert [row.path for row in found] == [str(path) for path in photographs]
    sure = [best.probability - best.top_k[1][1] > 2 * OFF for best in expected]
    assert sum(sure) > len(sure) / 2
    for row, best, clear in zip(found, expected, sure, strict=True):
        assert row.probability == pytest.approx(best.probability, abs=OFF)
        assert row.label == best.label or not clear
    assert EXAMPLES.joinpath(name, "README.md").read_text(encoding="utf-8").startswith("# ")
