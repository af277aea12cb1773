"""`cdl evaluate` as a user types it: tables of 100 columns, JSON, pictures, exit codes, one line for what is wrong."""

from __future__ import annotations

import io
import json
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cdl_deploy.cli.evaluate_table import evaluation_tables
from cdl_deploy.evaluation.agreement import compare_predictions
from cdl_deploy.evaluation.predictions import ImagePredictions
from cdl_deploy.evaluation.report import make_report
from cdl_deploy.runtime.interface import bundle_interface
from tests.runtime.conftest import example_bundle
from tests.runtime.test_foreign import save


@pytest.fixture
def cdl(cdl, monkeypatch):
    """`cdl(...)` → (exit code, stdout, stderr) of `cdl evaluate`."""
    monkeypatch.setenv("COLUMNS", "100")
    return partial(cdl, "evaluate")


@pytest.fixture
def data(tmp_path, tiny):
    """Four images: red, green, blue, and a blue one among the red."""
    for name, colour in (("red/0", "red"), ("red/1", "blue"), ("green/0", "green"), ("blue/0", "blue")):
        path = tmp_path / f"data/test/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), tiny.colours[colour]).save(path)
    (tmp_path / "data/train").mkdir()
    return tmp_path / "data"


def test_the_table(cdl, model_path, make_model, data):
    code, out, err = cdl(model_path, "--data", data, "--against", make_model("other.onnx"))
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    text = " ".join(out.split())
    for part in (
        "accuracy (%) │ 75.0 │ of 4 images, among all classes; 95 % interval 30.1 to 95.4",
        "mean over tasks (%) │ 83.3 │ final average accuracy; the run measured 91.0",
        "│ 1 │ 2 │ 3 │ 66.7 │ 66.7 │ 100.0 │",  # the blue one is redder than it is green
        "│ red │ 1 │ 2 │ 50.0 │ 100.0 │",
        "│ red │ blue │ 1 → 2 │ 1 │ 50.0 │",
        "│ without images │ 1 │ of 4 classes: grün ✓ │",
        "against other.onnx: 4 images, among 4 classes",
        "│ both give the same class │ 4 │ 100.0 │",
        "These images do not tell which of the two is better (exact McNemar test, p = 1).",
    ):
        assert re.sub(r" +", " ", part) in text, part


def test_a_model_from_elsewhere(cdl, model_path, data, tmp_path):
    theirs = save(tmp_path / "theirs.onnx", metadata={"labels": json.dumps(("red", "green", "blue", "grey"))})
    code, out, err = cdl(theirs, "--data", data, "--against", model_path, "--plots", tmp_path / "pictures")
    assert code == 0
    assert err == f"note: {theirs} does not say how it wants its pixels: ImageNet's mean and deviation, 8×10, assumed\n"
    assert max(map(len, out.splitlines()[:-2])) <= 100  # the last two are paths of the pictures
    text = " ".join(out.split())
    assert "│ accuracy (%) │ 75.0 │ of 4 images, among all classes" in text
    assert "│ class ┃ images ┃ accuracy ┃ precision ┃".replace("│", "┃") in text
    assert "┃ class ┃ taken for ┃ images ┃ of the class (%) ┃" in text
    assert "against student.onnx: 4 images, among the 3 classes that both know" in text
    assert "task" not in text
    assert (tmp_path / "pictures/confusion.png").exists()


def test_json_and_a_saved_report(cdl, model_path, data, tmp_path):
    code, out, err = cdl(model_path, "--data", data, "--json", "--save", tmp_path / "new/report.json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report == json.loads((tmp_path / "new/report.json").read_text(encoding="utf-8"))
    assert (report["accuracy"], report["images"]) == (75.0, 4)


def test_pictures(cdl, model_path, data, tmp_path):
    code, out, _ = cdl(model_path, "--data", data, "--plots", tmp_path / "pictures")
    assert code == 0
    for name in ("confusion.png", "calibration.png"):
        assert str(tmp_path / "pictures" / name) in out
        with Image.open(tmp_path / "pictures" / name) as image:
            assert image.format == "PNG"
            assert len(np.unique(np.asarray(image.convert("L")))) > 20


def test_without_matplotlib_is_one_line_before_the_work(cdl, model_path, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [
        name for name in sys.modules if name.startswith("matplotlib.") or name.endswith("evaluation.pictures")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("cdl_deploy.evaluation.pictures", raising=False)
    code, out, err = cdl(model_path, "--data", data, "--plots", tmp_path / "pictures")
    assert (code, out) == (2, "")
    assert err == (
        "error: cdl evaluate --plots needs matplotlib, which is not installed: pip install 'cdl-deploy[plot]'\n"
    )
    assert cdl(model_path, "--data", data)[0] == 0  # and nothing else needs it


def test_unreadable_images_are_named_counted_and_exit_1(cdl, model_path, data):
    for i in range(12):
        (data / f"test/red/x{i:02}.png").write_bytes(b"")
    code, out, err = cdl(model_path, "--data", data, "--json")
    assert code == 1
    report = json.loads(out)
    assert (report["images"], len(report["unreadable"])) == (4, 12)
    lines = err.splitlines()
    assert lines[0] == f"{data}/test/red/x00.png: empty file (0 bytes), expected an image"
    assert lines[10:] == ["… and 2 more", "12 of 16 images could not be read"]


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ([], "cdl evaluate needs images whose classes are known: add --data DIR"),
        (["--data", "none"], "none is no folder: give an image folder, or 'digits' for the embedded data"),
        (["--data", "data", "--holdout", "1.5"], "--holdout is 1.5, expected a share between 0 and 1, such as 0.2"),
        (["--data", "data", "--holdout", "0.2"], "data has its own train/ folder, so --holdout cannot apply: leave"),
        (["--data", "digits", "--holdout", "0.2"], "--data digits has a fixed test split, so --holdout cannot apply"),
        (["--data", "digits"], "student.onnx knows none of the 10 classes in digits ('0', '1', '2' and 7 more): it"),
        (["--data", "data", "--against", "no.onnx"], "no.onnx: No such file or directory; expected an .onnx file"),
        (["--data", "data", "--save", "data"], "--save data: "),
        (["--data", "data", "--plots", "student.onnx"], "--plots student.onnx: "),
    ],
)
def test_one_line_and_exit_code_2(cdl, model_path, data, args, error, monkeypatch):
    monkeypatch.chdir(data.parent)
    code, out, err = cdl(model_path.name, *args)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {error}")
    assert err.count("\n") == 1


def large_report(classes: int, per_task: int):
    names = [f"a class with a name that is long, {i}" for i in range(classes)]
    tasks = tuple(tuple(names[i : i + per_task]) for i in range(0, classes, per_task))
    path = Path("/home/somebody/runs/botanical-garden/flowers-by-month/export/student.onnx")
    interface = bundle_interface(example_bundle(path, classes=tuple(names), tasks=tasks))
    drawn = np.random.default_rng(0)
    true, named, other = (drawn.integers(0, classes, 3000) for _ in range(3))
    answers = ImagePredictions(np.arange(3000), true, named, drawn.uniform(0, 1, 3000), named, named, ())
    said = [[names[i] for i in values] for values in (true, named, other)]
    against = compare_predictions("/home/another/teacher.onnx", (names, names), *said)
    return make_report(str(path), interface, "/home/somebody/images/from/the/botanical/garden", (), answers, against)


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize(("classes", "per_task"), [(3, 3), (20, 2), (21, 7), (100, 10)])
def test_tables_fit_and_cut_no_number(width, classes, per_task):
    report = large_report(classes, per_task)
    file = io.StringIO()
    Console(file=file, width=width).print(evaluation_tables(report))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    shares = [row for row in rows if len(row) == 5 and "→" not in row[2] and "within" not in row[2]]
    assert len(shares) == (classes if classes <= 20 else 10)
    assert all(re.fullmatch(r"[\d.,]+", cell) for row in shares for cell in row[1:])
    if classes > 20:
        assert f"the 10 weakest of {classes} classes (%); --all-classes shows every one" in file.getvalue()
        weakest = sorted(item.accuracy for item in report.classes)[:10]
        assert [row[3] for row in shares] == [f"{value:.1f}" for value in weakest]
    Console(file=(everything := io.StringIO()), width=width).print(evaluation_tables(report, all_classes=True))
    assert sum(name in everything.getvalue() for name in (f", {i} " for i in range(classes))) > 0
    assert len(everything.getvalue().splitlines()) >= classes


def test_names_with_brackets_are_no_markup():
    report = large_report(3, 3)
    report = report.__class__(**{**vars(report), "left_out": ("[red]fox[/red]",)})
    Console(file=(file := io.StringIO()), width=100).print(evaluation_tables(report))
    assert "[red]fox[/red]" in file.getvalue()


def test_neither_model_nor_run(cdl, tmp_path):
    """Said before anything about images."""
    code, out, err = cdl(tmp_path / "none")
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path}/none does not exist: give an exported model, or a run directory\n"
