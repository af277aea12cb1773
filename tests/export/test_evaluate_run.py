"""`cdl evaluate RUN`: the accuracy matrix on the exported graphs, beside what training measured."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from cdl_deploy.cli import main
from cdl_deploy.cli.evaluate_run import evaluate_run
from cdl_deploy.cli.evaluate_run_table import run_evaluation_tables
from cdl_deploy.errors import DataError, RunError
from cdl_deploy.evaluation import labelled_folder
from cdl_deploy.runtime.bundle import read_bundle
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.models.learner import learner_logits
from tests.training.conftest import COLOURS, pixels_of, write_images


@pytest.fixture
def run(after_each_task, tmp_path, monkeypatch):
    """A copy, so that a test may change it; its graphs are exported already."""

    def copy(run, out, options, after):
        out.mkdir()
        for path in (after_each_task / str(after)).iterdir():
            if options.teacher or "teacher" not in path.name:
                shutil.copy(path, out / path.name)

    monkeypatch.setattr("cdl_deploy.export.export_run", copy)
    shutil.copytree(after_each_task / "run", tmp_path / "run")
    return tmp_path / "run"


def rewrite(run, record):
    """What a run says is in its last checkpoint, where there is one."""
    (run / "run.json").write_text(json.dumps(record))
    (run / "checkpoints/last.safetensors").unlink()


def test_the_matrix_is_what_training_measured(run):
    steps = []
    result = evaluate_run(run, on_step=lambda *step: steps.append(step))
    record = json.loads((run / "run.json").read_text())
    for role in ("student", "teacher"):
        assert result.roles[role].measured == record[role]["accuracy_matrix"]
        assert result.difference(role).points == 0
        measured, recorded = result.metrics(role)
        assert measured == recorded
        assert measured["forgetting"] == record[role]["forgetting"]
    assert result.images == [6, 6]
    assert (result.kept, result.unreadable) == ([], [])
    assert steps[0] == ("task 1/2: exporting", 0, 6)
    assert steps[-1] == ("task 2/2: testing the teacher", 12, 12)


def test_the_whole_command_exports_every_checkpoint(tiny_run, monkeypatch, capsys, tmp_path):
    """Nothing is made beforehand here, and what was made for it is gone afterwards."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(tiny_run), "--no-teacher", "--plots", str(tmp_path / "pictures")])
    captured = capsys.readouterr()
    assert (caught.value.code, captured.err) == (0, "")
    assert "student: every cell is what training measured." in captured.out
    assert "teacher" not in captured.out
    pictures = ["accuracy_matrix.png", "accuracy_over_tasks.png", "forgetting.png"]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == pictures
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_a_changed_record_is_found(run, capsys):
    """What training is said to have measured is changed by hand; each graph is still what it was."""
    record = json.loads((run / "run.json").read_text())
    honest = record["student"]["accuracy_matrix"][1][0]
    record["student"]["accuracy_matrix"][1][0] = honest - 50
    rewrite(run, record)
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(run), "--no-teacher", "--save", str(run.parent / "matrix.json")])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    text = " ".join(out.split())
    assert (
        "student: differs from what training measured by +50.00 points at most, after task 2 on the images of task 1 "
        "(3 of 6)." in text
    )
    assert max(map(len, out.splitlines())) <= 100 or str(run) in max(out.splitlines(), key=len)
    saved = json.loads((run.parent / "matrix.json").read_text())
    assert saved["student"]["largest_difference"] == {"points": 50, "after_task": 2, "test_task": 1, "images": 6}
    assert saved["student"]["accuracy_matrix"][1][0] == pytest.approx(honest)
    assert "teacher" not in saved


def test_kept_images_stand_in_for_a_folder_that_is_gone(run):
    """The run keeps all of these few images: the matrix is the same."""
    record = json.loads((run / "run.json").read_text())
    for plan in record["plans"]:
        plan["data"] = str(run / "gone")
    rewrite(run, record)
    result = evaluate_run(run, teacher=False)
    assert result.kept == [1, 2]
    assert result.images == [6, 6]
    assert result.roles["student"].measured == record["student"]["accuracy_matrix"]
    file = io.StringIO()
    Console(file=file, width=100).print(run_evaluation_tables(result))
    assert "Of task 1, 2 only the images that the run keeps were tested: its folder is gone" in file.getvalue()


def test_other_images_against_pytorch(run, tmp_path):
    """Images of any colour in every class, so that mistakes are made: the trained model makes the same."""
    drawn = np.random.default_rng(3)
    for name in COLOURS:
        (tmp_path / "new" / name).mkdir(parents=True)
        for i in range(4):
            colour = tuple(drawn.integers(0, 256, 3).tolist())
            Image.new("RGB", (20, 20), colour).save(tmp_path / "new" / name / f"{i}.png")
    images = labelled_folder(tmp_path / "new")
    result = evaluate_run(run, images)
    assert result.images == [8, 8]
    for after in (1, 2):
        record, pair = load_run(run, after)
        for role, learner in pair.learners.items():
            for task in range(after):
                items = [
                    (i, n) for i, n in zip(images.items, images.names, strict=True) if n in record.tasks[task].classes
                ]
                pixels = pixels_of(record, [item for item, _ in items])
                with torch.no_grad():
                    named = learner_logits(pair.encoder, learner, pixels).argmax(1).tolist()
                right = sum(record.classes[k] == name for k, (_, name) in zip(named, items, strict=True))
                assert result.roles[role].measured[after - 1][task] == pytest.approx(100 * right / 8)
    cells = [value for role in result.roles.values() for row in role.measured for value in row]
    assert min(cells) < 100


def test_other_images_need_every_task_and_known_classes(run, tmp_path):
    write_images(tmp_path / "new", {"ant": 2, "cat": 3, "dog": 1, "elk": 1}, seed=5)
    with pytest.raises(DataError, match=r"run does not know 'elk' in .*: name folders by the model's classes"):
        evaluate_run(run, labelled_folder(tmp_path / "new"))
    result = evaluate_run(run, labelled_folder(tmp_path / "new"), skip_unknown=True, teacher=False)
    assert result.images == [2, 4]
    shutil.rmtree(tmp_path / "new/ant")
    with pytest.raises(DataError, match=r"has no image of task 1 \(ant, bee\): a run's matrix needs images of every"):
        evaluate_run(run, labelled_folder(tmp_path / "new"), skip_unknown=True)


def test_unreadable_test_images_are_counted(run, small_run, tmp_path, capsys):
    shutil.copytree(small_run.parent / "photos/test", tmp_path / "test")
    (tmp_path / "test/bee/1.png").write_bytes(b"")
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(run), "--data", str(tmp_path / "test"), "--no-teacher", "--json"])
    captured = capsys.readouterr()
    assert caught.value.code == 1
    assert captured.err.splitlines()[-1] == "1 of 12 images could not be read"
    assert [item["path"] for item in json.loads(captured.out)["unreadable"]] == [str(tmp_path / "test/bee/1.png")]


def test_a_run_as_it_was_after_an_earlier_task(run, after_each_task):
    bundle = read_bundle(after_each_task / "1/student.onnx")
    assert bundle.classes == ("ant", "bee")
    assert bundle.run.tasks == 1
    record = json.loads((run / "run.json").read_text())
    assert bundle.accuracy.final_average_accuracy == record["student"]["accuracy_matrix"][0][0]
    with pytest.raises(RunError, match="has 2 finished tasks, so there is nothing after task 3"):
        load_run(run, after=3)


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--against", "x.onnx"], "--against is about a model, and run is a run: give an exported model, or leave it"),
        (["--all-classes"], "--all-classes is about a model, and run is a run"),
        (["--holdout", "0.2"], "--holdout belongs to --data DIR: give it, or leave --holdout out"),
        (["--skip-unknown"], "--skip-unknown belongs to --data DIR: give it, or leave --skip-unknown out"),
        (["--data", "none"], "none is no folder: give an image folder, or 'digits' for the embedded data"),
    ],
)
def test_one_line_and_exit_code_2(run, args, error, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "run", *args])
    captured = capsys.readouterr()
    assert (caught.value.code, captured.out) == (2, "")
    assert captured.err.startswith(f"error: {error}")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(("package", "extras"), [("torch", "train,export"), ("onnx", "export")])
def test_what_is_not_installed_is_named(tmp_path, package, extras):
    """In a process of its own, to which the package is missing."""
    (tmp_path / "run.json").write_text("{}")
    code = f"import sys; sys.modules['{package}'] = None; from cdl_deploy.cli import main; main(['evaluate', '.'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    expected = f"cdl evaluate RUN needs {package}, which is not installed: pip install 'cdl-deploy[{extras}]'"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {expected}\n")
