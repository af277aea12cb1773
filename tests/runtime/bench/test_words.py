"""A report in words: headline, notes, tables."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from cdl_deploy.bench import BenchOptions, Change, Comparison, Machine, Watch
from cdl_deploy.bench.headline import count, file_size, ratio_in_words, short_time
from cdl_deploy.bench.notes import make_notes
from cdl_deploy.bench.table import regression_line, report_tables
from cdl_deploy.runtime.bundle_parts import Method
from tests.runtime.bench.conftest import CALM, QUIET, made_up, made_up_record, made_up_report


def test_headline():
    assert made_up_report().headline == (
        "student: 3.1× faster than teacher at batch 1 (0.520 ms against 1.61 ms), "
        "keeps 96.6 % of its accuracy (91.0 % against 94.2 %), 5.2× smaller (4.1 MB against 21.2 MB)"
    )
    assert "student: 1.25× slower than teacher at batch 1" in made_up_report("slower", 0.8).headline
    assert "student: as fast as teacher at batch 1" in made_up_report("same", 1.01).headline
    assert "student: about 3.1× faster than teacher at batch 1" in made_up_report("unclear").headline
    unsure = Comparison("student", "teacher", "graph", 2, 1, 1, 1.1, 0.9, 1.3, "unclear")
    assert "student: no clear difference in speed from teacher" in made_up_report(comparisons=(unsure,)).headline
    threads = BenchOptions(threads=(2, 4))
    assert "at batch 1, 2 threads (0.520 ms" in made_up_report(options=threads).headline
    alone = made_up_report(comparisons=())
    assert alone.headline == "student: 0.520 ms at batch 1 (median), 1,923 images/s, 4.1 MB"
    unknown = (made_up_record("student", 1000, None), made_up_record("teacher", 1001, 94.2))
    assert made_up_report(models=unknown).headline.endswith("1.61 ms), the same size (1.0 kB against 1.0 kB)")


def test_headline_compares_within_one_runtime():
    report = made_up_report()
    elsewhere = made_up_record("student (openvino)", 4_100_000, 91.0, runtime="openvino 2026.4.1")
    first = Comparison("student (openvino)", "teacher", "graph", 2, 1, 1, 2.6, 2.5, 2.7, "faster")
    mixed = made_up_report(
        models=(elsewhere, *report.models),
        measurements=(made_up("student (openvino)", 0.62), *report.measurements),
        comparisons=(first, *report.comparisons),
    )
    assert mixed.headline == report.headline
    one_model = replace(mixed, comparisons=(first,))
    assert one_model.headline.startswith("student (openvino): 2.6× faster than teacher")


def test_numbers_in_words():
    assert [short_time(t) for t in (0.1234, 1.234, 12.34, 123.4, 1234.5)] == ["0.123", "1.23", "12.3", "123", "1,234"]
    assert [count(n) for n in (None, 12, 380_040, 22_050_664, 4_600_000_000)] == ["–", "12", "380 k", "22.1 M", "4.6 G"]
    assert [file_size(n) for n in (999, 99_999, 100_000, 21_200_000)] == ["1.0 kB", "100.0 kB", "0.1 MB", "21.2 MB"]
    assert ratio_in_words(1, 2, "faster", "slower") == "2.0× slower"
    assert ratio_in_words(1.5, 1, "faster", "slower") == "1.50× faster"


def notes(
    *measurements, machine: Machine = QUIET, watch: Watch = CALM, models=(), bundles=None, seconds=9.0, **options
):
    chosen = BenchOptions(**{"threads": (2,), "time_limit": 9, **options})
    return list(make_notes(machine, watch, chosen, measurements, models, bundles or {}, seconds))


def test_notes_about_the_machine():
    assert notes(made_up("a", 1)) == []
    busy = Watch(0.5, 0.1, 3.0, 2, 1.0, (1.0,) * 10 + (1.1,) * 10 + (1.2,) * 10)
    assert notes(watch=busy, machine=replace(QUIET, usable_cores=1, governor="powersave")) == [
        "other programs used 50% of the processor meanwhile: times are longer and less certain than on a quiet machine",
        "this is a virtual machine, and its host gave 10% of the processor to others",
        "the processor slowed itself down because of heat or power (2 times)",
        "the machine itself became 20 % slower from the first rounds to the last (a fixed calculation did): "
        "its clock or its other users changed",
        "the clock rate follows the load (governor powersave): short runs may be slower than long ones",
        "2 threads on 1 usable cores: they wait for each other",
    ]
    blind = Watch(None, None, 3.0, None, None, ())
    assert notes(watch=blind)[0].startswith("the load average was 3.0 on 2 cores before the benchmark")


def test_notes_about_times():
    slow = made_up("b", 1, batch=8, precise=False, within_percent=5.12)
    assert notes(made_up("a", 1, precise=False, within_percent=None, rounds=1), slow) == [
        "the time limit of 9 s came before p50 was within ±2 % (--time-limit): "
        "a at batch 1 (unknown from 1 round); b at batch 8 (±5.1 %)"
    ]
    assert notes(made_up("a", 1, samples=12)) == ["p99 is little more than the slowest time: a at batch 1 (12 times)"]
    assert notes(made_up("a", 1, samples=1))[0].endswith("a at batch 1 (1 time)")
    assert notes(made_up("a", 1, steady=False)) == ["times had not settled when warm-up ended: a at batch 1"]
    assert notes(made_up("a", 1, drift_percent=8.0))[0].endswith("throttling or other load: a at batch 1 (+8 %)")
    assert notes(made_up("a", 1, drift_percent=8.0, within_percent=5.0)) == []  # no more than chance
    (noisy,) = notes(made_up("a", 1, spread_percent=30.0))
    assert noisy.startswith("noisy: the middle half of the rounds differs by more than 10 %")
    assert noisy.endswith("a at batch 1 (30 %)")
    many = notes(*[made_up("a", 1, batch=batch, steady=False) for batch in range(1, 7)])
    assert many[0].endswith("a at batch 1; a at batch 2; a at batch 3; and 3 more")
    (where,) = notes(made_up("a", 1, steady=False), threads=(1, 2), streams=(1, 2), stages=("graph", "jpeg"))
    assert where.endswith("a at batch 1, 2 threads, 1 stream, graph only")


def test_a_benchmark_that_took_longer_than_it_should_says_so():
    (note,) = notes(made_up("a", 1), seconds=20.4)
    assert note.startswith("it took 20 s instead of 9 s (--time-limit): every model is loaded, warmed up and measured")


def test_notes_about_models(tiny):
    bundles = {"a": tiny.bundle(), "b": tiny.bundle(classes=("x",), top_k=1, tasks=(("x",),)), "c": None}
    assert notes(bundles=bundles) == [
        "a knows 4 classes and b knows 1, not the same ones: their accuracies do not compare"
    ]
    chosen = tiny.bundle(method=Method("coda", "kdp", None, "task:2", "selected"))
    assert notes(bundles={"a": tiny.bundle(), "b": chosen}) == [
        "b: its prompts were chosen at export (task:2), and its accuracy is the run's, where each image chose: "
        "cdl evaluate measures its own"
    ]
    uncounted = made_up_record("theirs", 1, None, uncounted=("Attention",))
    found = notes(*[made_up("theirs", 1, batch=b) for b in (1, 8, 32)], models=[uncounted])
    assert found == ["theirs: MACs not counted, as its shapes do not tell those of Attention"]
    torch = made_up_record("student (torch)", 1, None, kind="torch", role="student")
    measured = [made_up(name, 1, batch=b) for b in (1, 8, 32) for name in ("student", "student (torch)")]
    (memory,) = notes(*measured, models=[made_up_record("student", 1, 1.0), torch])
    assert memory.startswith("student (torch): memory is that of a process with PyTorch")


def printed(report, width: int) -> str:
    text = io.StringIO()
    Console(width=width, file=text).print(report_tables(report))
    return text.getvalue()


def test_tables_of_a_real_report_fit_80_columns(measured):
    text = printed(measured[0], 80)
    for word in ("p50", "p99", "images/s", "speed-up", "first ms", "MACs", "teacher", "(1 thread)"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text  # nothing was cut to fit


def test_tables_with_every_condition_fit_100_columns():
    options = BenchOptions((1, 32), (1, 16), (1, 4), ("graph", "jpeg"))
    slow = {"p50_ms": 1234.5, "p99_ms": 123456.7, "within_percent": 12.3}
    rows = [
        made_up(model, 1, batch, stage=stage, threads=threads, streams=streams, **slow)
        for stage in options.stages
        for threads in options.threads
        for streams in options.streams
        for batch in options.batches
        for model in ("student", "teacher")
    ]
    text = printed(made_up_report("unclear", measurements=tuple(rows), options=options), 100)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert "latency from JPEG to answer, ms" in text
    assert text.count("123,457") == len(rows)


def test_the_table_of_a_run_shows_the_first_stage_and_streams():
    from cdl_deploy.cli.runs import latency_table

    options = BenchOptions((1, 8), (2,), (1, 4), ("graph", "jpeg"))
    rows = [
        made_up(name, p50 * batch * streams * (9 if stage == "jpeg" else 1), batch, stage=stage, streams=streams)
        for stage in options.stages
        for streams in options.streams
        for batch in options.batches
        for name, p50 in (("student", 0.5), ("teacher", 2.0))
        if (name, batch) != ("teacher", 8)  # one that takes a batch of 1 only
    ]
    table = latency_table(json.loads(made_up_report(measurements=tuple(rows), options=options).to_json()))
    text = io.StringIO()
    Console(width=100, file=text).print(table)
    student, teacher = (line.split("│")[1:-1] for line in text.getvalue().splitlines() if line.startswith("│"))
    assert [cell.strip() for cell in student] == ["student", "0.50", "4.00", "4.10", "1,000,000"]
    assert [cell.strip() for cell in teacher] == ["teacher", "2.00", "", "21.20", "1,000,000"]


def test_a_regression_stands_out():
    changes = (
        Change("student", "graph", 2, 1, 1, 0.4, 0.52, 1.3, 1.25, 1.35, "slower"),
        Change("teacher", "graph", 2, 1, 1, 1.6, 1.61, 1.0, 0.99, 1.01, "same"),
    )
    report = made_up_report(baseline=changes)
    text = printed(report, 100)
    assert "against the baseline" in text
    assert text.count("REGRESSION") == 1
    assert "1.25–1.35" in text
    assert regression_line(report) == "regression: student at batch 1 is 1.30× slower than the baseline"
    assert regression_line(replace(report, baseline=changes[1:])) == "no regression against the baseline"
    unsure = replace(changes[1], verdict="unclear")
    assert regression_line(replace(report, baseline=(unsure,))) == (
        "no regression against the baseline; not clear: teacher at batch 1"
    )
    assert [change.model for change in report.regressions] == ["student"]
    with pytest.raises(StopIteration):
        report.model("nobody")
