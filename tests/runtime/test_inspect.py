"""`cdl inspect`: what a file says about itself, and which task's prompts images select."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from functools import partial

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cdl_deploy.cli.heat_map import HeatMap
from cdl_deploy.cli.inspect_table import accuracy_words, inspection_tables, port_words, selection_words
from cdl_deploy.errors import OptionError
from cdl_deploy.evaluation import inspect_model, labelled_folder, measure_selection
from cdl_deploy.evaluation.inspection import Port
from cdl_deploy.evaluation.selection import By, PromptUse, PromptUseRow
from cdl_deploy.runtime.bundle import read_bundle
from cdl_deploy.runtime.bundle_parts import Method, Quantization
from tests.runtime.test_evaluate import draw
from tests.runtime.test_foreign import save

SELECTED = Method("coda", "kdp", "full", "in-graph", "selected")


@pytest.fixture
def cdl(cdl, monkeypatch):
    """`cdl(...)` → (exit code, stdout, stderr) of `cdl inspect`."""
    monkeypatch.setenv("COLUMNS", "100")
    return partial(cdl, "inspect")


@pytest.fixture
def selecting(make_model):
    return make_model(method=SELECTED)


@pytest.fixture
def folder(tmp_path):
    draw(tmp_path / "data", {"red": 8, "green": 5, "blue": 7, "grün ✓": 4})
    return tmp_path / "data"


def test_what_a_file_says(cdl, selecting):
    code, out, err = cdl(selecting)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    text = " ".join(out.replace("│", " ").split())
    for part in (
        f"model student: {selecting.stat().st_size / 1e6:.2f} MB, 16 parameters",
        "knows 4 classes in 2 tasks",
        "learned with coda + kdp, seed 0, run ffffffff",
        "backbone mini, sha256 0000000000000000…",
        "takes image float32 [B, 3, 8, 10]",
        "before the graph, by the caller: shorter edge to 12 (bicubic, antialiased), middle 10×8, /255, minus",
        "minus (0.5, 0.4, 0.3), by (0.5, 0.25, 0.2)",
        "selected by each image, in the graph, after a pass of its own",
        "91.0 % over all classes, mean over tasks, forgetting 3.4 (measured by the run)",
        "logits within 3.0e-06 of the trained model, the same class for 100.0% of 4 images",
        "precision float32",
        "1 green, red 2 blue, grün ✓",
    ):
        assert part in text, part


def test_json_is_the_description_and_the_ports(cdl, selecting):
    values = json.loads(cdl(selecting, "--json")[1])
    assert values["classes"] == ["red", "green", "blue", "grün ✓"]
    assert values["method"] == dataclasses.asdict(SELECTED)
    assert values["bytes"] == selecting.stat().st_size
    assert values["inputs"] == [{"name": "image", "type": "tensor(float)", "shape": ["B", 3, 8, 10]}]
    assert [port["name"] for port in values["outputs"]] == [
        "logits", "probabilities", "topk_probability", "topk_label", "task_scores",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Method("apt", None), "the same for every image: nothing is selected"),
        (Method("l2p", "kd", "full", "in-graph"), "after a pass of its own; prompts belong to no task"),
        (Method("coda", "kdp", "block:4", "in-graph", "selected"), "in the graph, after 4 blocks of the same pass"),
        (Method("coda", "kdp", None, "task:3", "selected"), "chosen at export: those of task 3, for every image"),
        (Method("coda", "kdp", None, "images", "selected"), "chosen at export by sample images, the same for every"),
    ],
)
def test_how_prompts_are_selected_in_words(method, words):
    assert words in selection_words(method)


def test_types_of_outputs_are_named_as_in_numpy():
    ports = tuple(Port("it", f"tensor({kind})", ("B", 5)) for kind in ("float", "int64", "string"))
    assert port_words(ports) == "it float32 [B, 5]; it int64 [B, 5]; it string [B, 5]"


def test_quantised_models_say_what_was_done(make_model):
    quantization = Quantization("int8-dynamic", False, ("head",), 91.0, 90.6)
    Console(file=(file := io.StringIO()), width=100).print(
        inspection_tables(inspect_model(make_model(quantization=quantization)))
    )
    text = " ".join(file.getvalue().replace("│", " ").split())
    assert "int8-dynamic, results depend on the batch, 1 layer in float32, 91.0 % before, 90.6 % after" in text


def test_a_model_from_elsewhere(cdl, tmp_path):
    path = save(tmp_path / "m.onnx", metadata={"labels": json.dumps(["red", "green", "blue", "grey"])})
    code, out, err = cdl(path)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    text = " ".join(out.replace("│", " ").split())
    for part in (
        "model not exported by cdl: 0.00 MB",
        "knows 4 classes",
        "takes pixels float32 [B, 3, 8, 10]",
        "shorter edge to 9 (bilinear, antialiased), middle 10×8, /255, minus (0.485, 0.456, 0.406), by",
        "(assumed: nothing says it)",
        "red, green, blue, grey",
    ):
        assert part in text, part
    values = json.loads(cdl(path, "--json")[1])
    assert values["classes"] == ["red", "green", "blue", "grey"]
    assert values["preprocessing"]["assumed"].endswith("ImageNet's mean and deviation, 8×10, assumed")
    code, out, err = cdl(path, "--images", tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tmp_path} has no images")


# ---- --images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["task", "class"])
def test_selection_by_a_slow_loop(tiny, selecting, folder, by):
    """The tiny model's task scores are the sums of its probabilities over each task's classes."""
    from cdl_deploy import Classifier

    images, tasks = labelled_folder(folder), tiny.bundle().tasks
    selection = measure_selection(selecting, images, by, batch_size=5)
    groups = (
        {f"task {i}": names for i, names in enumerate(tasks, 1)} if by == "task" else {n: [n] for n in tiny.classes}
    )
    assert [row.name for row in selection.rows] == list(groups)
    for row, names in zip(selection.rows, groups.values(), strict=True):
        rows = []
        for item, name in zip(images.items, images.names, strict=True):
            if name in names:
                p = tiny.probabilities(Classifier(selecting).prepare(item)[None])[0]
                rows.append([sum(p[tiny.classes.index(n)] for n in task) for task in tasks])
        assert row.images == len(rows)
        assert row.scores == pytest.approx(100 * np.mean(rows, axis=0), abs=1e-3)
        assert row.task == next(i for i, task in enumerate(tasks, 1) if names[0] in task)
    own = np.mean([row.scores[row.task - 1] for row in selection.rows])
    assert selection.own_task == pytest.approx(own)


def test_the_map_and_the_picture(cdl, selecting, folder, tmp_path):
    (folder / "red" / "bad.png").write_text("no image")
    code, out, err = cdl(selecting, "--images", folder, "--plots", tmp_path / "pictures")
    assert code == 1
    assert err.splitlines()[-1] == "1 of 25 images could not be read"
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 100
    rows = [line for line in out.splitlines() if line.startswith("task ")]
    assert len(rows) == 2
    assert "[" in rows[0].split()[2]
    with Image.open(tmp_path / "pictures/selection.png") as image:
        assert image.format == "PNG"
    code, out, _ = cdl(selecting, "--images", folder, "--by", "class", "--json")
    values = json.loads(out)["selection"]
    assert code == 1
    assert [row["name"] for row in values["rows"]] == ["red", "green", "blue", "grün ✓"]
    assert [round(sum(row["scores"]), 3) for row in values["rows"]] == [100.0] * 4


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Method("l2p", "kd", "full", "in-graph"), "the prompts of l2p belong to no task, so no image selects a task's"),
        (Method("apt", None), "the prompts of apt belong to no task, so no image selects a task's: leave --images out"),
        (Method("coda", "kdp", None, "task:1", "selected"), r"its prompts were chosen when it was exported \(task:1\)"),
    ],
)
def test_models_that_select_no_task(make_model, folder, method, message):
    with pytest.raises(OptionError, match=message):
        measure_selection(make_model(method=method), labelled_folder(folder))


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["none.onnx"], "none.onnx: No such file or directory; expected an .onnx file"),
        (["student.onnx", "--plots", "x"], "--plots belongs to --images DIR: give it, or leave --plots out"),
        (["student.onnx", "--skip-unknown"], "--skip-unknown belongs to --images DIR: give it, or leave --skip-unkn"),
        (["student.onnx", "--by", "clas"], "--by is 'clas', expected task or class; did you mean 'class'?"),
        (["student.onnx", "--images", "none"], "none is no folder: give an image folder, or 'digits' for the embed"),
        (["student.onnx", "--images", "digits"], "student.onnx knows none of the 10 classes in digits"),
        (["student.onnx", "--images", "data", "--plots", "student.onnx"], "--plots student.onnx: "),
    ],
)
def test_one_line_and_exit_code_2(cdl, selecting, folder, args, error, monkeypatch):
    monkeypatch.chdir(folder.parent)
    code, out, err = cdl(*args)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {error}")
    assert err.count("\n") == 1


# ---- the map in letters ----------------------------------------------------------------------------------------------


def selection_of(tasks: int, by: By = "task", classes: int = 1) -> PromptUse:
    """Images of task t select its prompts with 40 %, and all with the rest."""
    rows = []
    for task in range(tasks):
        scores = np.full(tasks, 60 / tasks)
        scores[task] += 40
        for i in range(classes):
            name = f"task {task + 1}" if by == "task" else f"a class with a long name, {task * classes + i}"
            rows.append(PromptUseRow(name, task + 1, 5, tuple(scores.tolist())))
    return PromptUse("student.onnx", "photos", by, tuple(rows), (), ())


def printed(selection: PromptUse, width: int, **console) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, **console).print(HeatMap(selection))
    return [line.rstrip() for line in file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize(
    ("tasks", "by", "classes"), [(1, "task", 1), (10, "task", 1), (10, "class", 10), (250, "task", 1)]
)
def test_a_map_fits_and_has_a_line_a_row(width, tasks, by, classes):
    lines = printed(selection_of(tasks, by, classes), width)
    assert max(map(len, lines)) <= width
    own = f"{40 + 60 / tasks:.1f}"
    assert sum(line.endswith(own) for line in lines) == tasks * classes


def test_numbers_where_there_is_room():
    rows = printed(selection_of(4), 80)
    assert rows[0].split() == ["1", "2", "3", "4", "own"]
    assert rows[1] == "task 1 [55]  15   15   15    55.0"
    assert rows[4] == "task 4  15   15   15  [55]   55.0"


def test_shades_where_there_is_not():
    rows = printed(selection_of(30), 80)
    assert rows[0].index("10") - rows[0].index("1") == 9
    assert rows[1].startswith("task 1  █")
    assert rows[12].index("█") == rows[1].index("█") + 11
    assert "█ from 38" in " ".join(rows)

    class Ascii(io.StringIO):
        encoding = "ascii"

    file = Ascii()
    Console(file=file, width=80).print(HeatMap(selection_of(30)))
    assert file.getvalue().isascii()


def test_many_tasks_share_columns():
    rows = printed(selection_of(200), 80)
    assert "by 4;" in " ".join(rows)
    assert rows[1].count("█") == 1
    assert rows[200].index("█") > rows[100].index("█") > rows[1].index("█")


def test_rows_without_images():
    selection = selection_of(3)
    rows = (PromptUseRow("task 1", 1, 0, None), *selection.rows[1:])
    assert printed(dataclasses.replace(selection, rows=rows), 80)[1] == "task 1 no images"


def test_colours_add_nothing_but_colour():
    plain = printed(selection_of(5), 80)
    coloured = printed(selection_of(5), 80, force_terminal=True, color_system="truecolor", no_color=False)
    assert any("\x1b[" in line for line in coloured)
    assert [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in coloured] == plain


def test_the_runs_accuracy_is_not_that_of_a_file_with_fixed_prompts(small_bundle):
    """Every image chose its own prompts where the run measured it."""
    bundle = read_bundle(small_bundle / "student.onnx")
    assert "measured by the run" in accuracy_words(bundle)
    fixed = dataclasses.replace(bundle, method=dataclasses.replace(bundle.method, select="task:1"))
    assert accuracy_words(fixed).startswith("not measured with prompts chosen at export; ")
