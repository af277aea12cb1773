"""cdl_deploy.train, export and evaluate say and do what the commands do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import cdl_deploy
from cdl_deploy.errors import DataError, OptionError, RunError


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"epoch": 5}, "train() has no option 'epoch'; did you mean 'epochs'?"),
        ({"distil": "kd"}, "train() has no option 'distil'; did you mean 'distill'?"),
        ({"epochs": "five"}, "optim.epochs is 'five', expected a whole number"),
        ({"epochs": 0}, "--epochs is 0, expected at least 1"),
        ({"distill": "kdpp"}, "did you mean 'kdp'?"),
        ({"preset": "papr"}, "--preset 'papr' is unknown, expected one of default, kdp, paper; did you mean 'paper'?"),
        ({"classes": ["a"]}, "classes and allow_known belong to add=…: give it, or leave them out"),
        ({"resume": True, "add": "new"}, "resume and add exclude each other: resume first, then add"),
        ({"resume": True}, "with resume=True the first argument is the run directory: leave out out='"),
    ],
)
def test_train_refuses_what_it_cannot_use(call: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as error:
        cdl_deploy.train(tmp_path / "photos", out=tmp_path / "run", **call)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_train_needs_a_run_directory_and_images(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^no run directory is given: add out=…$"):
        cdl_deploy.train("digits")
    with pytest.raises(DataError, match=str(tmp_path / "photos")):
        cdl_deploy.train(tmp_path / "photos", tasks=2, out=tmp_path / "run")


def test_a_run_goes_on_as_it_was_configured(small_run: Path) -> None:
    with pytest.raises(OptionError, match=r"^resume=True continues a run as it was configured: leave out epochs$"):
        cdl_deploy.train(small_run, resume=True, epochs=3)
    with pytest.raises(OptionError, match=r"^add=… goes on with a run as it was configured: leave out method$"):
        cdl_deploy.train(small_run, add="new", method="l2p", epochs=3)
    with pytest.raises(OptionError, match=r"^resume=True goes on with a run as it was configured: leave out preset"):
        cdl_deploy.train(small_run, resume=True, preset="paper")
    with pytest.raises(RunError):
        cdl_deploy.train(small_run / "nowhere", resume=True)


def test_resuming_a_finished_run_gives_its_record(small_run: Path) -> None:
    record = cdl_deploy.train(small_run, resume=True)
    assert record.finished
    assert sorted(record.classes) == ["ant", "bee", "cat", "dog"]


def test_export_refuses_what_it_cannot_use(small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="unknown --input 'pixels'"):
        cdl_deploy.export(small_run, tmp_path / "out", input="pixels")
    with pytest.raises(OptionError, match="opset"):
        cdl_deploy.export(small_run, tmp_path / "out", opset=3)
    assert not (tmp_path / "out").exists()


def test_evaluate_counts_what_the_classifier_says(small_run: Path, small_bundle: Path) -> None:
    photos = small_run.parent / "photos"
    evaluation = cdl_deploy.evaluate(small_bundle / "student.onnx", photos, threads=1)
    paths = sorted((photos / "test").glob("*/*.png"))
    right = [
        prediction.label == path.parent.name
        for path, prediction in zip(
            paths, cdl_deploy.Classifier(small_bundle / "student.onnx").predict(paths), strict=True
        )
    ]
    assert evaluation.images == 12
    assert evaluation.accuracy == pytest.approx(100 * sum(right) / 12)


def test_evaluate_says_that_a_run_is_no_model(small_run: Path) -> None:
    with pytest.raises(OptionError, match="is a run: export it first"):
        cdl_deploy.evaluate(small_run, "digits")


@pytest.mark.usefixtures("without_wandb")
def test_export_can_be_called_before_and_after_its_module_is_imported(tmp_path: Path) -> None:
    program = """
import cdl_deploy, sys
def refusal():
    try: cdl_deploy.export("nowhere", "out")
    except cdl_deploy.CdlError as error: return str(error)
assert "torch" not in sys.modules
first = refusal()
import cdl_deploy.export.export
from cdl_deploy import export
assert export.export_run is cdl_deploy.export.export_run
assert first == refusal() and first, first
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
