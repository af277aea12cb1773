"""`cdl predict` from the outside: options that do not go together, interruptions, full disks, progress, odd folders."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from cdl_deploy.cli.predict_progress import shown
from cdl_deploy.rows.file import RowFile
from cdl_deploy.runtime.predict import Row
from tests.runtime.conftest import nobody
from tests.runtime.test_foreign import LABELS, save


def labels(path):
    return [json.loads(line).get("label", "error") for line in path.read_text().splitlines()]


def test_options_that_do_not_go_together(cdl, model_path, photos, monkeypatch):
    for module in ("pyarrow", "ray"):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, f"{module}.parquet", raising=False)
        monkeypatch.delitem(sys.modules, f"{module}.data", raising=False)
    for options, error in (
        (["--resume"], "--resume needs the file to continue: add --output FILE"),
        (["--output", "rows.txt"], "--output rows.txt: its suffix names no format, expected .jsonl, .ndjson, .csv, "),
        (["--output", "rows", "--format", "table"], "--output rows: a table is for people to look at; give --format"),
        (["--null"], "--null is about paths on standard input: give - in place of a path, or leave it out"),
        (["--format", "parquet"], "--format parquet needs a file to write: add --output rows.parquet"),
        (["--engine", "rey"], "--engine is 'rey', expected local or ray; did you mean 'ray'?"),
        (
            ["--output", "rows.parquet"],
            "--format parquet needs pyarrow, which is not installed: pip install 'cdl-deploy[parquet]'",
        ),
        (["--engine", "ray"], "--engine ray needs ray, which is not installed: pip install 'cdl-deploy[ray]'"),
        (["--provider", "CPUExecutionProvidr"], "onnxruntime knows no provider 'CPUExecutionProvidr', expected one of"),
    ):
        code, out, err = cdl("predict", model_path, photos["red"], *options)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"error: {error}")
    assert not Path("rows.parquet").exists()


def test_ctrl_c_then_resume(cdl, model_path, photos, tmp_path, monkeypatch):
    file, part = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.part"
    command = ("predict", model_path, *photos.values(), "--output", file)
    write = RowFile.write

    def interrupted(self, row):
        if self.done == 2:
            raise KeyboardInterrupt
        write(self, row)

    monkeypatch.setattr(RowFile, "write", interrupted)
    code, out, err = cdl(*command)
    assert (code, out) == (130, "")
    assert err == f"stopped; the rows so far are in {part}, and --resume continues them\n"
    monkeypatch.undo()
    assert cdl(*command) == (
        2,
        "",
        f"error: {part} holds the rows of an interrupted run: add --resume to continue it, or delete it\n",
    )
    assert labels(part) == ["red", "green"]
    assert cdl(*command, "--resume") == (0, "", "")
    assert labels(file) == ["red", "green", "blue"]
    assert not part.exists()


def test_strict_keeps_the_rows_before(cdl, model_path, photos, tmp_path):
    file, good = tmp_path / "rows.jsonl", photos["green"].read_bytes()
    photos["green"].write_text("no image")
    command = ("predict", model_path, *photos.values(), "--strict", "--output", file)
    code, _, err = cdl(*command)
    assert code == 2
    assert err == (
        f"error: {photos['green']}: not an image of a known format; the rows so far are in {file}.part, "
        "and --resume continues them\n"
    )
    photos["green"].write_bytes(good)
    assert cdl(*command, "--resume") == (0, "", "")
    assert labels(file) == ["red", "green", "blue"]


def test_failures_of_before_count(cdl, model_path, photos, tmp_path):
    file = tmp_path / "rows.csv"
    photos["red"].write_text("no image")
    command = ("predict", model_path, *photos.values(), "--output", file)
    for options in ((), ("--resume",)):
        assert cdl(*command, *options) == (1, "", "1 of 3 images could not be read\n")


def test_full_standard_output(model_path, photos):
    command = [sys.executable, "-m", "cdl_deploy.cli", "predict", model_path, photos["red"]]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: standard output: No space left on device\n")


def test_paths_on_standard_input_need_not_be_utf8(model_path, photos, tmp_path):
    odd = bytes(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(odd)).write_bytes(photos["red"].read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "cdl_deploy.cli", "predict", model_path, "-", "--format", "csv"],
        input=odd + b"\n" + os.fsencode(photos["blue"]) + b"\nnowhere.png\n",
        capture_output=True,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
    )
    assert (done.returncode, done.stderr) == (1, b"1 of 3 images could not be read\n")
    assert [line.split(b",")[:2] for line in done.stdout.splitlines()[1:3]] == [
        [odd, b"red"],
        [os.fsencode(photos["blue"]), b"blue"],
    ]


def test_a_model_of_others(cdl, photos, tmp_path):
    model = save(tmp_path / "m.onnx", metadata={"labels": json.dumps(LABELS)})
    code, out, err = cdl("predict", model, photos["green"], "--top-k", 9)
    assert code == 0
    assert out.startswith(f"{photos['green']}  grün ")
    assert err == (
        f"note: {model} does not say how it wants its pixels: ImageNet's mean and deviation, 8×10, assumed\n"
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal(photos, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    rows = [Row(str(path), None, "error") for path in photos.values()] * 20
    folder = str(photos["red"].parent)

    def coming_when_counted():
        yield from rows[:-1]
        while any(thread.name == "cdl-count" for thread in threading.enumerate()):
            time.sleep(0.001)
        yield rows[-1]

    with shown(coming_when_counted(), [folder] * 22, done=6, rows_shown=False) as coming:
        assert list(coming) == rows
    told = sys.stderr.getvalue()
    assert "66/66" in told  # of which 6 were done before
    assert "images/s" in told
    monkeypatch.setattr(sys, "stdout", Terminal())  # rows on the same terminal
    monkeypatch.setattr(sys, "stderr", Terminal())
    with shown(iter(rows), [folder], done=0, rows_shown=True) as coming:
        assert list(coming) == rows
    assert sys.stderr.getvalue() == ""


def test_folders_and_files_without_rights(cdl, model_path, photos, shared):
    for name in ("a.png", "locked/b.png", "z.png", "y.png"):
        (shared / "f" / name).parent.mkdir(exist_ok=True, parents=True)
        (shared / "f" / name).write_bytes(photos["red"].read_bytes())
    (shared / "m.onnx").write_bytes(model_path.read_bytes())
    assert cdl("predict", shared / "m.onnx", shared / "f/a.png")[0] == 0  # nobody may import what is in /root
    (shared / "f/y.png").chmod(0)
    (shared / "f/locked").chmod(0)
    try:
        with nobody():
            code, out, err = cdl("predict", shared / "m.onnx", shared / "f", "--format", "jsonl")
            assert (code, err) == (1, "2 of 4 images could not be read\n")
            rows = [json.loads(line) for line in out.splitlines()]
            assert [row.get("label") for row in rows] == ["red", None, None, "red"]
            assert rows[1]["error"] == f"{shared / 'f/locked'}: Permission denied"
            assert rows[2]["error"] == f"{shared / 'f/y.png'}: Permission denied"
            error = f"error: {shared / 'f/locked'}: Permission denied\n"
            assert cdl("predict", shared / "m.onnx", shared / "f/locked") == (2, "", error)
            code, _, err = cdl("predict", shared / "m.onnx", shared / "f/a.png", "--output", shared / "rows.csv")
            assert (code, err) == (2, f"error: --output {shared / 'rows.csv'}: Permission denied\n")
    finally:
        (shared / "f/locked").chmod(0o755)
