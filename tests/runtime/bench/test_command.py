"""`cdl bench-latency`: options, what is printed and written, exit codes. What is measured is made up."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

import cdl_deploy.bench
from cdl_deploy.bench import BenchOptions
from cdl_deploy.cli import main
from tests.runtime.bench.conftest import QUIET, made_up, made_up_report


@pytest.fixture
def bench(capsys, monkeypatch, make_model):
    """`bench("--csv", …)` → (exit code, stdout, stderr). Nothing is measured; `.asked` is what would have been."""
    make_model("student.onnx")
    make_model("teacher.onnx", role="teacher")
    monkeypatch.setattr(cdl_deploy.bench, "describe_machine", lambda: QUIET)

    def run(*args, report=None, models=("student.onnx", "teacher.onnx")):
        def measure(specs, options, on_progress):
            run.asked = specs, options
            return report if report is not None else made_up_report()

        monkeypatch.setattr(cdl_deploy.bench, "bench_latency", measure)
        run.asked = None
        with pytest.raises(SystemExit) as caught:
            main(["bench-latency", *models, *map(str, args)])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return run


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_options_reach_the_benchmark(bench, tmp_path):
    assert bench()[0] == 0
    assert bench.asked[1] == BenchOptions()
    (tmp_path / "photos").mkdir()
    code, _, err = bench(
        *("--batch", "2,4", "--threads", "1,2", "--streams", "1,3", "--from", "graph,jpeg", "--images", "photos"),
        *("--image-size", "640x480", "--precision", "1", "--min-effect", "5", "--time-limit", "9", "--seed", "7"),
    )
    assert (code, err) == (0, "")
    images = (tmp_path / "photos").relative_to(tmp_path)
    assert bench.asked[1] == BenchOptions(
        (2, 4), (1, 2), (1, 3), ("graph", "jpeg"), (640, 480), images, 1.0, 5.0, 9.0, 7
    )
    assert [spec.name for spec in bench.asked[0]] == ["student", "teacher"]
    for text, size in (("model", None), ("photo", (1600, 1200)), ("64X32", (64, 32))):
        bench("--image-size", text)
        assert bench.asked[1].image_size == size


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--image-size", "big"), "--image-size is 'big', expected model, photo, or WIDTHxHEIGHT such as 640x480"),
        (("--image-size", "0x9"), "image size is (0, 9), expected width and height from 1 to 10000"),
        (("--streams", "two"), "--streams is 'two', expected whole numbers with commas between, such as 1,8"),
        (("--from", "photos"), "--from is 'photos', expected graph, jpeg or graph,jpeg"),
        (("--images", "."), "--images is for --from jpeg: add it, or leave --images out"),
        (("--torch",), "--torch measures the models of a run, and no run directory is given: add one"),
        (("--plot", "a.bmp"), "--plot a.bmp: expected a name that ends in .png, .svg, .pdf"),
        (("--baseline", "none.json"), "--baseline none.json: No such file or directory; make one with --save"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_measured(bench, args, message):
    code, out, err = bench(*args)
    assert (code, out, err) == (2, "", f"error: {message}\n")
    assert bench.asked is None


def test_a_picture_without_matplotlib(bench, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("matplotlib", "cdl_deploy.bench.plots"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = bench("--plot", "a.png")
    assert (code, err) == (
        2,
        "error: cdl bench-latency --plot needs matplotlib, which is not installed: pip install 'cdl-deploy[plot]'\n",
    )
    assert bench.asked is None


def test_files_and_what_is_printed(bench, tmp_path):
    code, out, err = bench("--save", "a.json", "--csv", "a.csv", "--plot", "a.png")
    assert (code, err) == (0, "")
    report = made_up_report()
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads(report.to_json())
    assert (tmp_path / "a.csv").read_text() == report.to_csv()
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert " ".join(out.split()).endswith(report.headline)
    assert max(map(len, out.splitlines())) <= 100
    code, out, _ = bench("--json")
    assert json.loads(out) == json.loads(report.to_json())
    (tmp_path / "file").write_text("")
    code, _, err = bench("--save", "file/a.json")
    assert code == 2
    assert err.startswith("error: --save file/a.json: ")


def test_a_regression_exits_with_3(bench, tmp_path):
    assert bench("--save", "main.json")[0] == 0
    code, out, _ = bench("--baseline", "main.json")
    assert code == 0
    assert "no regression against the baseline" in out
    slow = made_up("student", 0.7, round_medians_ms=(0.7,) * 20), made_up("teacher", 1.61)
    code, out, err = bench("--baseline", "main.json", report=made_up_report(measurements=slow))
    assert (code, err) == (3, "")
    assert "regression: student at batch 1 is 1.35× slower than the baseline" in " ".join(out.split())
    code, out, _ = bench("--baseline", "main.json", "--json", report=made_up_report(measurements=slow))
    assert code == 3
    assert [change["verdict"] for change in json.loads(out)["baseline"]] == ["slower", "same"]


def test_a_baseline_of_another_machine(bench, tmp_path):
    other = made_up_report(machine=replace(QUIET, cores=64))
    (tmp_path / "main.json").write_text(other.to_json())
    code, _, err = bench("--baseline", "main.json")
    assert code == 2
    assert "was measured on another machine (cores 64, here 2)" in err
    assert bench.asked is None
    assert bench("--baseline", "main.json", "--other-machine")[0] == 0
