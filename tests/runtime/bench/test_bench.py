"""The benchmark as a whole: its processes, what it measures, what it reports. Nothing here depends on speed."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from cdl_deploy import Classifier
from cdl_deploy.bench import BenchOptions, ModelSpec, bench_latency, find_models
from cdl_deploy.bench.processes import start
from cdl_deploy.bench.runners import Job, make_runner
from cdl_deploy.errors import BundleError, OptionError
from cdl_deploy.targets.scripts.worker import timed

QUICK = BenchOptions(batches=(1,), threads=(1,), time_limit=0.5, precision=50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": ()}, r"batch is \[\], expected one or more numbers from 1, such as 1,8"),
        ({"batches": (1, 0)}, r"batch is \[1, 0\]"),
        ({"batches": (8, 8)}, r"batch is \[8, 8\], expected each number once"),
        ({"threads": (-1,)}, r"threads is \[-1\]"),
        ({"streams": (0,)}, r"streams is \[0\]"),
        ({"stages": ("jpg",)}, r"--from is 'jpg', expected graph, jpeg or graph,jpeg; did you mean 'jpeg'\?"),
        ({"stages": ("graph", "graph")}, r"--from is \['graph', 'graph'\], expected graph, jpeg or graph,jpeg"),
        ({"image_size": (0, 3)}, r"image size is \(0, 3\), expected width and height from 1 to 10000"),
        ({"precision": 0}, "precision is 0, expected a percentage above 0 and up to 100"),
        ({"precision": float("nan")}, "precision is nan"),
        ({"min_effect": -1}, "min effect is -1, expected a percentage above 0 and up to 100"),
        ({"time_limit": 0}, "time limit is 0 seconds, expected more than 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(OptionError, match=message):
        BenchOptions(**options)


def test_report(measured):
    report, heard = measured
    assert {p.phase for p in heard} == {"load", "warm up", "measure"}
    assert [p.elapsed for p in heard] == sorted(p.elapsed for p in heard)
    assert [(m.model, m.batch) for m in report.measurements] == [
        ("student", 1), ("teacher", 1), ("student", 2), ("teacher", 2),
    ]  # fmt: skip
    for m in report.measurements:
        assert 0 < m.p50_ms <= m.p90_ms <= m.p95_ms <= m.p99_ms
        assert m.low_ms is None or m.low_ms <= m.p50_ms <= m.high_ms  # None on a machine that is very busy
        assert m.samples >= m.rounds == len(m.round_medians_ms) >= 1
        assert m.images_per_second == pytest.approx(m.batch / m.mean_ms * 1000)
        assert list(m.quantiles_ms) == sorted(m.quantiles_ms)
        assert (m.quantiles_ms[50], m.quantiles_ms[99]) == (m.p50_ms, m.p99_ms)
    rounds = {(m.model, m.batch): m.round_medians_ms for m in report.measurements}
    for c in report.comparisons:
        assert (c.model, c.reference) == ("student", "teacher")
        pairs = zip(rounds["teacher", c.batch], rounds["student", c.batch], strict=True)
        assert c.speedup == pytest.approx(np.median([other / own for other, own in pairs]))
    student, teacher = report.models
    assert (student.name, student.role, student.parameters, student.accuracy) == ("student", "student", 16, 91.0)
    assert student.file_bytes == Path(student.path).stat().st_size
    assert student.input == "image: float [B, 3, 8, 10]"
    assert student.macs == teacher.macs == 3 * 4 + 4 * 2  # 3 channels to 4 classes, 4 classes to 2 tasks
    assert len(student.loads_ms) == len(student.firsts_ms) >= 1
    assert student.load_ms == pytest.approx(np.median(student.loads_ms))
    assert student.first_inference_ms == pytest.approx(np.median(student.firsts_ms))
    assert report.machine.versions["onnxruntime"] == report.machine.onnxruntime
    assert len(report.watch.calculation_ms) >= 1
    assert report.headline.startswith("student: ")


def test_report_as_json_and_csv(measured):
    report, _ = measured
    stored = json.loads(report.to_json())
    assert stored["headline"] == report.headline
    assert stored["measurements"][1] == json.loads(json.dumps(asdict(report.measurements[1])))
    assert stored["options"]["batches"] == [1, 2]
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert [float(row["p50_ms"]) for row in rows] == [m.p50_ms for m in report.measurements]
    assert [row["speedup"] != "" for row in rows] == [True, False, True, False]
    assert [row["verdict"] for row in rows[::2]] == [c.verdict for c in report.comparisons]
    assert {row["macs"] for row in rows} == {"20"}


def test_models_of_others_and_bad_ones(make_model, tmp_path):
    foreign = make_model("foreign.onnx", metadata={})
    (record,) = bench_latency(find_models([foreign]), QUICK).models
    assert (record.role, record.parameters, record.macs, record.accuracy) == (None, 24, 20, None)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x01nothing")
    with pytest.raises(BundleError, match=r"broken\.onnx \(9 bytes\) is not an ONNX model that onnxruntime"):
        bench_latency(find_models([foreign, broken]), QUICK)
    with pytest.raises(BundleError, match=r"none\.onnx: No such file or directory"):
        bench_latency(find_models([tmp_path / "none.onnx"]), QUICK)
    with pytest.raises(OptionError, match=r"models are \[\], expected at least one"):
        bench_latency([], QUICK)


def test_a_model_that_takes_one_batch_size(make_model, tiny, tmp_path):
    free, fixed = make_model("free.onnx", metadata={}), tmp_path / "fixed.onnx"
    model = tiny.build()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    fixed.write_bytes(model.SerializeToString())
    options = BenchOptions(batches=(1, 2), threads=(1,), time_limit=1, precision=50)
    report = bench_latency(find_models([free, fixed]), options)
    assert {(m.model, m.batch) for m in report.measurements} == {("free", 1), ("free", 2), ("fixed", 2)}
    assert [(c.model, c.batch) for c in report.comparisons] == [("free", 2)]
    assert "fixed takes batches of 2 only: not measured at batch 1" in report.notes
    with pytest.raises(BundleError, match=r"fixed\.onnx: takes batches of 2 only, asked for 1 \(--batch\)"):
        bench_latency(find_models([fixed]), QUICK)


def test_every_condition_is_measured(make_model):
    """Stages and streams in one benchmark; a model of ours and one of somebody else's."""
    files = [make_model("student.onnx"), make_model("theirs.onnx", metadata={}, classes_in_graph=7)]
    options = BenchOptions(
        (1, 3), (1,), (1, 2), ("graph", "jpeg"), image_size=(40, 30), time_limit=2, precision=50, min_effect=5
    )
    report = bench_latency(find_models(files), options)
    found = {(m.model, m.stage, m.threads, m.streams, m.batch) for m in report.measurements}
    assert found == {
        (model, stage, threads, streams, batch)
        for model in ("student", "theirs")
        for stage in options.stages
        for threads in options.threads
        for streams in options.streams
        for batch in options.batches
    }
    for m in report.measurements:
        assert m.images_per_second == pytest.approx(m.streams * m.batch / m.mean_ms * 1000)
    assert report.condition(report.measurements[0]) == "batch 1, 1 stream, graph only"
    assert any(
        note.startswith("theirs does not say how it preprocesses: from JPEG, images wer") for note in report.notes
    )


def test_from_jpeg_is_what_a_classifier_answers(model_path, photos):
    files = sorted(photos.values())
    runner = make_runner(Job(str(model_path), "onnx", None, 1, 0, None, tuple(map(str, files)), ours=True))
    runner.load()
    run = runner.run_of(2)
    answers = [run(), run()]  # the photographs take turns
    expected = list(Classifier(model_path).predict([files[0], files[1], files[2], files[0]]))
    assert [[p.label for p in answer] for answer in answers] == [
        [p.label for p in expected[:2]],
        [p.label for p in expected[2:]],
    ]


def test_from_jpeg_feeds_somebody_elses_model_as_for_imagenet(make_model, photos, tiny):
    path = make_model("theirs.onnx", metadata={})
    runner = make_runner(Job(str(path), "onnx", None, 1, 0, None, (str(photos["red"]),)))
    runner.load()
    probabilities = runner.run_of(2)()[1]
    pixels = np.full((1, 8, 10, 3), tiny.colours["red"]) / 255  # of one colour, so any resizing gives the same
    normal = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(probabilities, tiny.probabilities(normal.transpose(0, 3, 1, 2)).repeat(2, 0), atol=1e-5)


def test_from_jpeg_needs_one_image(tiny, tmp_path):
    from onnx import TensorProto, helper

    model = tiny.build()
    model.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, []))
    path = tmp_path / "two.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(
        BundleError, match=r"two\.onnx: inputs are \(image: float .*; scale: float \[\]\), expected one col"
    ):
        bench_latency(find_models([path]), BenchOptions((1,), (1,), stages=("jpeg",), time_limit=0.5))


def test_streams_run_at_the_same_time():
    together = threading.Barrier(3, timeout=20)  # passes only when three runs are under way at once
    assert len(timed(lambda: together.wait(), 0.0, 3)) == 3

    def fail() -> None:
        raise BundleError("out of memory")

    with pytest.raises(BundleError, match="out of memory"):
        timed(fail, 0.0, 2)


def job(path: Path, threads: int = 1) -> dict:
    return asdict(Job(str(path), "onnx", None, threads, 0, None))


def test_a_worker_that_dies_is_one_error(model_path):
    with start(ModelSpec(model_path, "m")) as client:
        client.prepare(job(model_path))
        client.load()
        os.kill(client._process.pid, signal.SIGKILL)
        with pytest.raises(BundleError, match=r"student\.onnx: the process measuring it ended: killed, probably becau"):
            client.first(1)


def test_worker_ends_with_its_input_and_is_idle_between_bursts(model_path):
    with start(ModelSpec(model_path, "m")) as client:
        client.prepare(job(model_path, threads=2))
        client.load()
        client.warm(4, 1, 0.2)
        assert len(client.burst(4, 1, 0.05)) >= 1
        process = client._process
        used, switched = client.usage()
        assert used > 0
        assert switched >= 0
        if Path(f"/proc/{process.pid}/stat").exists():

            def ticks() -> int:
                return sum(map(int, Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))

            before = ticks()
            time.sleep(0.3)
            assert ticks() - before <= 4  # of 30 and more if its pool went on spinning
    assert process.returncode == 0


def test_a_file_in_the_users_folder_does_not_shadow_the_standard_library(model_path, tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    with start(ModelSpec(model_path, "m")) as client:
        client.prepare(job(model_path))
        assert client.load() > 0


def test_bench_package_loads_neither_onnxruntime_nor_pictures_in_the_parent():
    code = (
        "import sys, cdl_deploy.bench; print([m for m in ('onnxruntime', 'matplotlib', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
