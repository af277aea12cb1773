"""The benchmark: its statistics against brute force, its processes, its report. Nothing here depends on speed."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from cdl_deploy.bench import (
    BenchOptions,
    BenchReport,
    Machine,
    Measurement,
    ModelRecord,
    ModelSpec,
    bench_latency,
    find_models,
)
from cdl_deploy.bench import statistics as stats
from cdl_deploy.bench.client import WorkerClient
from cdl_deploy.bench.machine import busy_share, cpu_model, peak_memory, usable_cores
from cdl_deploy.bench.notes import make_notes
from cdl_deploy.bench.report import Comparison
from cdl_deploy.bench.rounds import _Cell, _compare
from cdl_deploy.bench.table import report_tables
from cdl_deploy.errors import BundleError, OptionError

bursts = st.lists(st.lists(st.floats(0.1, 10), min_size=1, max_size=5), min_size=1, max_size=6)


@given(rounds=bursts, seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_resampled_medians_are_those_of_a_bare_loop(rounds, seed):
    draws = stats.draw_rounds(len(rounds), seed)[:20]
    expected = [statistics.median([t for r, n in zip(rounds, row, strict=True) for t in r * n]) for row in draws]
    np.testing.assert_allclose(stats.resampled_medians(rounds, draws), expected, rtol=1e-12)


def test_every_resample_draws_as_many_rounds_as_there_are():
    draws = stats.draw_rounds(7, 0)
    assert draws.shape == (stats.RESAMPLES, 7)
    assert (draws.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(draws, stats.draw_rounds(7, 0))


def test_interval_covers_the_true_median():
    """Bursts with a common offset each: 95 % intervals must hold the true median about 95 times in 100."""
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        offsets = rng.normal(0, 0.1, 15)
        rounds = [list(10 + offset + rng.normal(0, 0.05, 20)) for offset in offsets]
        low, high = stats.interval(stats.resampled_medians(rounds, stats.draw_rounds(15, trial)))
        hits += low <= 10 <= high
    assert hits >= 176  # 88 %: the bootstrap of 15 clusters is known to be a little too narrow


def test_small_statistics():
    assert stats.percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5
    assert stats.half_width_percent(98, 102, 100) == 2
    assert stats.drift_percent([1.0, 1.0, 1.0, 1.1, 1.2, 1.2]) == pytest.approx(20)
    assert stats.drift_percent([3.0]) == 0


def cell(rounds):
    class Client:
        model = ModelSpec(Path("x.onnx"), "x")
        threads = 1

    return _Cell(Client(), 1, bursts=rounds)


def test_verdicts():
    rng = np.random.default_rng(1)
    noise = [list(1 + rng.normal(0, 0.02, 30)) for _ in range(20)]
    other = [list(1 + rng.normal(0, 0.02, 30)) for _ in range(20)]
    slower = [[t * 1.1 for t in burst] for burst in other]
    options = BenchOptions(precision=2, threads=(1,))
    assert _compare(cell(noise), cell(other), options).verdict == "same"
    found = _compare(cell(slower), cell(noise), options)
    assert found.verdict == "slower"
    assert found.low is not None
    assert found.high is not None
    assert found.low < 1 / 1.1 < found.high
    assert _compare(cell(noise), cell(slower), options).verdict == "faster"
    assert _compare(cell(noise[:1]), cell(slower[:1]), options).verdict == "unclear"
    # A certain difference that is smaller than the precision asked for is no difference.
    assert _compare(cell(noise), cell([[t * 1.01 for t in b] for b in noise]), options).verdict == "same"


def test_machine():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    assert cpu_model()
    share = busy_share(0.05)
    assert share is None or 0 <= share <= 1
    peak = peak_memory()
    assert peak is None or peak > 5_000_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": ()}, r"batch is \[\], expected one or more numbers from 1, such as 1,8"),
        ({"batches": (1, 0)}, r"batch is \[1, 0\]"),
        ({"batches": (8, 8)}, r"batch is \[8, 8\], expected each number once"),
        ({"threads": (-1,)}, r"threads is \[-1\]"),
        ({"precision": 0}, "precision is 0, expected a percentage above 0 and up to 100"),
        ({"precision": float("nan")}, "precision is nan"),
        ({"time_limit": 0}, "time limit is 0 seconds, expected more than 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(OptionError, match=message):
        BenchOptions(**options)


def test_find_models(make_model, tmp_path):
    student, teacher = make_model("r/export/student.onnx"), make_model("r/export/teacher.onnx", role="teacher")
    pair = [ModelSpec(student, "student"), ModelSpec(teacher, "teacher")]
    assert find_models([tmp_path / "r" / "export"]) == pair
    (tmp_path / "r" / "run.json").write_text("{}")
    assert find_models([tmp_path / "r"]) == pair
    assert find_models([student, teacher]) == pair
    other = make_model("q/export/student.onnx")
    assert [m.name for m in find_models([student, other, teacher])] == [
        "r/export/student",
        "q/export/student",
        "teacher",
    ]
    (tmp_path / "bare").mkdir()
    with pytest.raises(BundleError, match=r"bare: no \.onnx file in this folder; give an export directory, a run, or"):
        find_models([tmp_path / "bare"])
    (tmp_path / "bare" / "run.json").write_text("{}")
    with pytest.raises(BundleError, match=r"export it first: cdl export .*bare --onnx"):
        find_models([tmp_path / "bare"])
    with pytest.raises(BundleError, match="is given twice; to compare it with itself, give a copy"):
        find_models([student, student])


@pytest.fixture
def report(make_model) -> BenchReport:
    student, teacher = make_model("student.onnx"), make_model("teacher.onnx", role="teacher", extra_layers=40)
    heard: list = []
    options = BenchOptions(batches=(1, 2), threads=(1,), time_limit=3, precision=50)
    result = bench_latency(find_models([student, teacher]), options, heard.append)
    assert {p.phase for p in heard} == {"load", "warm up", "measure"}
    assert [p.elapsed for p in heard] == sorted(p.elapsed for p in heard)
    return result


def test_report(report, tmp_path):
    assert [(m.model, m.batch) for m in report.measurements] == [
        ("student", 1), ("teacher", 1), ("student", 2), ("teacher", 2),
    ]  # fmt: skip
    for m in report.measurements:
        assert 0 < m.p50_ms <= m.p90_ms <= m.p95_ms <= m.p99_ms
        assert m.low_ms <= m.p50_ms <= m.high_ms
        assert m.samples >= m.rounds == len(m.round_medians_ms) >= 1
        assert m.images_per_second == pytest.approx(m.batch / m.mean_ms * 1000)
    for c in report.comparisons:
        p50 = {m.model: m.p50_ms for m in report.measurements if m.batch == c.batch}
        assert (c.model, c.reference) == ("student", "teacher")
        assert c.speedup == pytest.approx(p50["teacher"] / p50["student"])
    student = report.models[0]
    assert (student.name, student.role, student.parameters, student.accuracy) == ("student", "student", 16, 91.0)
    assert student.file_bytes == Path(student.path).stat().st_size
    assert student.load_ms > 0
    assert student.first_inference_ms > 0
    assert report.headline.startswith("student: ")
    assert report.headline.endswith("accuracy 91.0 % against 91.0 %")
    stored = json.loads(report.to_json())
    assert stored["headline"] == report.headline
    assert stored["measurements"][1]["p50_ms"] == report.measurements[1].p50_ms
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert [float(row["p50_ms"]) for row in rows] == [m.p50_ms for m in report.measurements]
    assert [row["speedup"] != "" for row in rows] == [True, False, True, False]
    printed = io.StringIO()
    console = Console(width=100, file=printed)
    console.print(report_tables(report))
    text = printed.getvalue()
    assert all(word in text for word in ("p50", "p99", "images/s", "speed-up", "first run ms", "teacher"))
    assert "…" not in text  # nothing was cut to fit


def made_up(model: str, p50: float, batch: int = 1, **changes) -> Measurement:
    values: dict[str, Any] = {
        "model": model, "threads": 2, "batch": batch, "samples": 500, "rounds": 20, "p50_ms": p50, "low_ms": p50,
        "high_ms": p50, "within_percent": 0.5, "precise": True, "p90_ms": p50, "p95_ms": p50, "p99_ms": p50,
        "mean_ms": p50, "images_per_second": batch / p50 * 1000, "drift_percent": 0.0, "steady": True,
        "peak_bytes": None, "round_medians_ms": (),
    }  # fmt: skip
    return Measurement(**values | changes)


QUIET = Machine("cpu", 2, 2, "Linux", "3.11", "1.32", 0.1, 0.01, 0.01)


def made_up_report(verdict: str = "faster", speedup: float = 3.096, **changes) -> BenchReport:
    models = (
        ModelRecord("student", "s.onnx", "student", 4_100_000, 1, 91.0, 10, 1, 1),
        ModelRecord("teacher", "t.onnx", "teacher", 21_200_000, 1, 94.2, 10, 1, 1),
    )
    comparison = Comparison("student", "teacher", 2, 1, speedup, 1, 1, verdict)
    values: dict[str, Any] = {
        "machine": QUIET, "options": BenchOptions(batches=(1,), threads=(2,)), "seconds": 1.0, "models": models,
        "measurements": (made_up("student", 0.52), made_up("teacher", 1.61)), "comparisons": (comparison,), "notes": (),
        "created": "",
    }  # fmt: skip
    return BenchReport(**values | changes)


def test_headline():
    assert made_up_report().headline == (
        "student: 3.1x faster than teacher at batch 1 (p50 0.52 ms against 1.61 ms), "
        "5.2x smaller (4.1 MB against 21.2 MB), accuracy 91.0 % against 94.2 %"
    )
    assert "student: 1.25x slower than teacher at batch 1" in made_up_report("slower", 0.8).headline
    assert "student: no measurable difference in speed from teacher at" in made_up_report("same", 1.01).headline
    assert "student: about 3.1x faster than teacher at batch 1" in made_up_report("unclear").headline
    threads = BenchOptions(threads=(2, 4))
    assert "at batch 1, 2 threads (p50" in made_up_report(options=threads).headline
    assert made_up_report(comparisons=()).headline == "student: p50 0.52 ms at batch 1, 1,923 images/s"


def test_notes(tiny):
    options = BenchOptions(threads=(2,), time_limit=9)

    def notes(*measurements, machine=QUIET, bundles=None):
        return list(make_notes(machine, options, measurements, bundles or {}))

    assert notes(made_up("a", 1)) == []
    busy = Machine("cpu", 2, 1, "Linux", "3.11", "1.32", 3.0, 0.97, 0.5)
    assert [n.partition(":")[0] for n in notes(machine=busy)] == [
        "other programs used 97% of the CPU just before the benchmark",
        "other programs used 50% of the CPU just after the benchmark",
        "2 threads on 1 usable cores",
    ]
    blind = Machine("cpu", 2, 2, "mac", "3.11", "1.32", 3.0, None, None)
    assert notes(machine=blind)[0].startswith("the load average was 3.0 on 2 cores before the benchmark")
    slow = made_up("b", 1, batch=8, precise=False, within_percent=5.12)
    assert notes(made_up("a", 1, precise=False, within_percent=None, rounds=1), slow) == [
        "the time limit of 9 s came before p50 was within ±2 % (--time-limit): "
        "a at batch 1 (unknown from 1 round); b at batch 8 (±5.1 %)"
    ]
    assert notes(made_up("a", 1, samples=12)) == ["p99 is little more than the slowest time: a at batch 1 (12 times)"]
    assert notes(made_up("a", 1, steady=False)) == ["times had not settled when warm-up ended: a at batch 1"]
    assert notes(made_up("a", 1, drift_percent=8.0))[0].endswith("throttling or other load: a at batch 1 (+8 %)")
    bundles = {"a": tiny.bundle(), "b": tiny.bundle(classes=("x",), tasks=(("x",),)), "c": None}
    assert notes(bundles=bundles) == [
        "a knows 4 classes and b knows 1, not the same ones: their accuracies do not compare"
    ]


def test_models_of_others_and_bad_ones(make_model, tmp_path):
    quick = BenchOptions(batches=(1,), threads=(1,), time_limit=0.5, precision=50)
    foreign = make_model("foreign.onnx", metadata={})
    (record,) = bench_latency(find_models([foreign]), quick).models
    assert (record.role, record.parameters, record.accuracy) == (None, None, None)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x01nothing")
    with pytest.raises(BundleError, match=r"broken\.onnx \(9 bytes\) is not an ONNX model that onnxruntime"):
        bench_latency(find_models([foreign, broken]), quick)
    free = make_model("free.onnx", metadata={}, size=("h", "w"))
    with pytest.raises(BundleError, match=r"free\.onnx: input image has shape .* expected only the batch to be free"):
        bench_latency(find_models([free]), quick)
    with pytest.raises(BundleError, match=r"none\.onnx: No such file or directory"):
        bench_latency(find_models([tmp_path / "none.onnx"]), quick)
    with pytest.raises(OptionError, match=r"models are \[\], expected at least one"):
        bench_latency([], quick)


def test_a_worker_that_dies_is_one_error(model_path):
    with WorkerClient(ModelSpec(model_path, "m"), 1) as client:
        client.load(0)
        os.kill(client._process.pid, signal.SIGKILL)
        with pytest.raises(BundleError, match=r"student\.onnx: the process measuring it ended: killed, probably becau"):
            client.first(1)


def test_worker_ends_with_its_input_and_is_idle_between_bursts(model_path):
    with WorkerClient(ModelSpec(model_path, "m"), 2) as client:
        client.load(0)
        client.warm(4, 0.2)
        assert len(client.burst(4, 0.05)) >= 1
        process = client._process
        if Path(f"/proc/{process.pid}/stat").exists():

            def ticks() -> int:
                return sum(map(int, Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))

            before = ticks()
            time.sleep(0.3)
            assert ticks() - before <= 1  # of 30 and more if its pool went on spinning
    assert process.returncode == 0


def test_a_file_in_the_users_folder_does_not_shadow_the_standard_library(model_path, tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    with WorkerClient(ModelSpec(model_path, "m"), 1) as client:
        assert client.load(0)["file_bytes"] == model_path.stat().st_size


def test_bench_package_loads_no_onnxruntime_in_the_parent():
    code = "import sys, cdl_deploy.bench; print('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
