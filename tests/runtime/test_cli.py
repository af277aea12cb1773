"""The command line: what is printed where, exit codes, and one line for every error."""

from __future__ import annotations

import csv
import importlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from cdl_deploy.cli import COMMANDS, app
from cdl_deploy.errors import CdlError, MissingExtraError
from cdl_deploy.require_extra import require_extra
from cdl_deploy.version import __version__


def test_version_and_help(cdl, monkeypatch):
    assert cdl("--version") == (0, f"cdl-deploy {__version__}\n", "")
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = cdl("--help")
    assert (code, err) == (0, "")
    assert "cdl bench-latency runs/digits\n" in out
    assert cdl() == (0, out, "")
    for command in ("predict", "bench-latency"):
        code, out, err = cdl(command, "-h")
        assert (code, err) == (0, "")
        examples = out.partition("Examples:\n")[2].splitlines()
        assert len(examples) >= 3
        assert all(f"cdl {command} " in line for line in examples)
        assert max(map(len, out.splitlines())) <= 100


def test_examples_of_the_help_are_runnable_commands():
    """Every option that an example uses exists."""
    group: Any = get_command(app)
    for name, module in COMMANDS.items():
        if name not in group.commands:
            continue
        known = {
            option
            for parameter in group.commands[name].params
            for option in [*parameter.opts, *parameter.secondary_opts]
        }
        for line in importlib.import_module(f"cdl_deploy.cli.{module}").EXAMPLES.strip().splitlines():
            used = {word.partition("=")[0] for word in line.partition("cdl ")[2].split() if word.startswith("--")}
            assert used <= known, line


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom cdl_deploy.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        "print([m for m in ('torch', 'numpy', 'onnxruntime', 'onnx', 'timm', 'PIL') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.endswith("\n[]\n")


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["predct"], "No such command 'predct'. Did you mean 'predict', 'inspect'? (see: cdl --help)"),
        (["predict"], "Missing argument 'MODEL'"),
        (["predict", "m.onnx"], "Missing argument 'PATH"),
        (["predict", "m.onnx", "x.jpg", "--topk", "2"], "No such option: --topk"),
        (["predict", "m.onnx", "x.jpg", "--top-k", "0"], "Invalid value for '--top-k': "),
        (
            ["predict", "m.onnx", "x.jpg", "--format", "cvs"],
            "--format is 'cvs', expected table, jsonl, csv or parquet; did you mean 'csv'?",
        ),
        (["predict", "m.onnx", "none.jpg"], "none.jpg: no such file or folder"),
        (
            ["bench-latency", "x", "--batch", "1;8"],
            "--batch is '1;8', expected whole numbers with commas between, such",
        ),
        (["bench-latency", "x", "--batch", "0"], "batch is [0], expected one or more numbers from 1, such as 1,8"),
        (["bench-latency", "x", "--precision", "0"], "precision is 0.0, expected a percentage above 0 and up to 100"),
        (["bench-latency", "none.onnx"], "none.onnx: No such file or directory; expected an .onnx file"),
    ],
)
def test_one_line_and_exit_code_2(cdl, args, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cdl(*args)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {error}")
    assert err.count("\n") == 1


def test_predict_table(cdl, model_path, photos):
    code, out, err = cdl("predict", model_path, photos["red"], photos["blue"], "--top-k", 2)
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first.startswith(f"{photos['red']}  red ")
    assert "%  task 1  (" in first
    assert second.startswith(f"{photos['blue']}  blue ")
    assert "%  task 2  (" in second


def test_predict_jsonl_and_a_bad_image(cdl, model_path, photos):
    bad = photos["red"].with_name("bad.png")
    bad.write_text("no image")
    code, out, err = cdl("predict", model_path, bad.parent, "--format", "jsonl", "--top-k", 4)
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (1, "1 of 4 images could not be read\n")
    assert rows[0] == {"path": str(bad), "error": f"{bad}: not an image of a known format"}
    assert [row["label"] for row in rows[1:]] == ["blue", "green", "red"]
    assert rows[1]["top_k"][0] == {"label": "blue", "probability": rows[1]["probability"]}
    assert sum(top["probability"] for top in rows[1]["top_k"]) == pytest.approx(1, abs=1e-5)
    code, out, err = cdl("predict", model_path, bad.parent, "--strict")
    assert (code, err) == (2, f"error: {bad}: not an image of a known format\n")


def test_predict_csv_to_a_file(cdl, model_path, photos, tmp_path):
    file = tmp_path / "new" / "rows.csv"
    assert cdl("predict", model_path, tmp_path / "photos", "--output", file, "--top-k", 9) == (0, "", "")
    rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
    assert [row["label"] for row in rows] == ["blue", "green", "red"]
    assert [row["task"] for row in rows] == ["2", "1", "1"]
    assert {row["label_2"] for row in rows} == {"grün ✓"}  # the others are negative evidence
    assert "label_5" not in rows[0]


def test_strict_leaves_no_half_written_file(cdl, model_path, photos, tmp_path):
    photos["blue"].write_text("no image")  # the first one
    file = tmp_path / "rows.jsonl"
    assert cdl("predict", model_path, tmp_path / "photos", "--strict", "--output", file)[0] == 2
    assert not [path for path in tmp_path.iterdir() if "rows" in path.name]
    photos["blue"].unlink()
    code, _, err = cdl("predict", model_path, photos["red"], "--output", model_path / "rows.csv")
    assert code == 2
    assert err.startswith(f"error: --output {model_path / 'rows.csv'}: ")


def test_predict_stdin(cdl, model_path, photos, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{photos['green']}\n\n{photos['red']}\n"))
    code, out, _ = cdl("predict", model_path, "-", "--format", "csv")
    assert code == 0
    assert [row["label"] for row in csv.DictReader(io.StringIO(out))] == ["green", "red"]


def test_odd_path_bytes(model_path, photos, tmp_path):
    """A path that is not valid UTF-8 comes out as the same bytes, or escaped in JSON."""
    odd = bytes(tmp_path) + b"/caf\xe9.png"
    Path(odd.decode("utf-8", "surrogateescape")).write_bytes(photos["red"].read_bytes())
    for kind in ("table", "csv", "jsonl"):
        done = subprocess.run(
            [sys.executable, "-m", "cdl_deploy.cli", "predict", model_path, odd, "--format", kind], capture_output=True
        )
        assert (done.returncode, done.stderr) == (0, b"")
        if kind == "jsonl":
            assert json.loads(done.stdout)["path"].encode("utf-8", "surrogateescape") == odd
        else:
            assert odd in done.stdout


def test_closed_pipe_is_no_traceback(model_path, photos):
    command = f"{sys.executable} -m cdl_deploy.cli predict {model_path} {' '.join([str(photos['red'])] * 3)} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr


def test_bench_latency(cdl, make_model, tmp_path):
    make_model("run/export/student.onnx")
    make_model("run/export/teacher.onnx", role="teacher", extra_layers=10)
    (tmp_path / "run" / "run.json").write_text("{}")
    table = tmp_path / "latency.csv"
    options = ("--batch", "1,2", "--threads", "1", "--time-limit", "2", "--precision", "50")
    code, out, err = cdl("bench-latency", tmp_path / "run", *options, "--json", "--csv", table)
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["headline"].startswith("student: ")
    assert [m["name"] for m in report["models"]] == ["student", "teacher"]
    assert len(table.read_text().splitlines()[1:]) == 4
    code, out, err = cdl("bench-latency", tmp_path / "run" / "export", "--batch", "1", *options[2:])
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].strip()
    assert "student: " in out


def test_bench_latency_of_a_run_that_was_not_exported(cdl, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    code, _, err = cdl("bench-latency", tmp_path)
    assert (code, err) == (
        2,
        f"error: {tmp_path} is a run without an exported model; export it first: cdl export {tmp_path} --onnx\n",
    )


def test_interrupt_is_130(cdl, model_path, monkeypatch):
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cdl_deploy.data.paths.check_sources", interrupt)
    assert cdl("predict", model_path, "x")[0] == 130


def test_missing_packages():
    message = "cdl train needs nosuch, which is not installed: pip install 'cdl-deploy\\[train\\]'"
    with pytest.raises(MissingExtraError, match=message), require_extra("cdl train", "train"):
        importlib.import_module("nosuch.inner")
    message = "cdl predict needs nosuch, which is not installed: pip install --upgrade cdl-deploy"
    with pytest.raises(CdlError, match=message), require_extra("cdl predict"):
        importlib.import_module("nosuch")
    with pytest.raises(ModuleNotFoundError), require_extra("cdl train", "train"):  # a bug of ours keeps its traceback
        importlib.import_module("cdl_deploy.nosuch")
