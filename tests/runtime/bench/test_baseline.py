"""A report against an earlier one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cdl_deploy.bench import Baseline, BenchOptions, ModelSpec
from cdl_deploy.errors import OptionError
from tests.runtime.bench.conftest import CALM, QUIET, made_up, made_up_report


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "main.json"
    path.write_text(made_up_report().to_json())
    return path


def slower(factor: float):
    rounds = tuple(0.52 * factor for _ in range(20))
    return made_up("student", 0.52 * factor, round_medians_ms=rounds), made_up("teacher", 1.61)


def test_the_same_again_is_no_regression(saved):
    changes, notes = Baseline(saved, QUIET).compare(made_up_report())
    assert [(c.model, c.verdict, c.ratio) for c in changes] == [("student", "same", 1.0), ("teacher", "same", 1.0)]
    assert notes == []


def test_slower_is_a_regression_of_the_one_that_is(saved):
    changes, _ = Baseline(saved, QUIET).compare(made_up_report(measurements=slower(1.1)))
    assert [c.verdict for c in changes] == ["slower", "same"]
    student = changes[0]
    assert (student.before_ms, student.now_ms) == (0.52, pytest.approx(0.572))
    assert student.ratio == student.low == student.high == pytest.approx(1.1)
    # Less than the least effect asked for, and more than it.
    small = made_up_report(measurements=slower(1.02))
    assert [c.verdict for c in Baseline(saved, QUIET).compare(small)[0]] == ["same", "same"]
    strict = replace(small, options=BenchOptions((1,), (2,), min_effect=1))
    assert [c.verdict for c in Baseline(saved, QUIET).compare(strict)[0]] == ["slower", "same"]


def test_a_slower_machine_is_no_slower_model(saved):
    watch = replace(CALM, calculation_ms=(0.55,) * 30)  # 0.5 at the baseline
    changes, notes = Baseline(saved, QUIET).compare(made_up_report(measurements=slower(1.1), watch=watch))
    assert [c.verdict for c in changes] == ["unclear", "unclear"]
    assert notes[0].startswith("the machine itself is 10% slower than at the baseline (a fixed calculation is)")


def test_on_a_busy_machine_nothing_is_said(saved, tmp_path):
    busy = made_up_report(measurements=slower(2.0), watch=replace(CALM, others_share=0.4))
    changes, notes = Baseline(saved, QUIET).compare(busy)
    assert [c.verdict for c in changes] == ["unclear", "unclear"]
    assert notes == [
        "nothing is said about the baseline: other programs used 40% now of the processor, at most 25% allowed; "
        "run it again when the machine is quieter"
    ]
    then = tmp_path / "busy.json"
    then.write_text(busy.to_json())
    changes, notes = Baseline(then, QUIET).compare(made_up_report())
    assert [c.verdict for c in changes] == ["unclear", "unclear"]
    assert "40% at the baseline of the processor" in notes[0]


def test_what_is_not_in_the_baseline_is_said(saved):
    more = (*made_up_report().measurements, made_up("student", 3.0, batch=8))
    other = replace(QUIET, versions={"numpy": "2.1"})
    changes, notes = Baseline(saved, other).compare(made_up_report(measurements=more, machine=other))
    assert len(changes) == 2
    assert notes == [
        "the baseline was measured with other versions: numpy 2.0, now 2.1",
        "not in the baseline: student at batch 8",
    ]


def test_another_machine_is_refused_unless_asked_for(saved):
    here = replace(QUIET, cpu="pentium")
    with pytest.raises(
        OptionError, match=r"main\.json was measured on another machine \(processor cpu, here pentium\)"
    ):
        Baseline(saved, here)
    changes, notes = Baseline(saved, here, other_machine=True).compare(made_up_report(machine=here))
    assert len(changes) == 2
    assert notes == ["the baseline is from another machine: processor cpu, here pentium"]


def test_nothing_in_common_is_found_before_anything_is_measured(saved, tmp_path):
    baseline = Baseline(saved, QUIET)
    student = ModelSpec(tmp_path / "student.onnx", "student")
    baseline.check([student], BenchOptions((1, 8), (2,)))
    with pytest.raises(OptionError, match="has none of these models under these conditions; it has student, teacher"):
        baseline.check([student], BenchOptions((8,), (2,)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "report_version is None, expected 2; make one with --save"),
        ('{"report_version": 99}', "report_version is 99, expected 2"),
        ('{"report_version": 2}', "is damaged"),
    ],
)
def test_files_that_are_no_baseline(text, message, tmp_path):
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(OptionError, match=rf"--baseline .*b\.json .*{message}"):
        Baseline(path, QUIET)
    with pytest.raises(OptionError, match=r"none\.json: No such file or directory; make one with --save"):
        Baseline(tmp_path / "none.json", QUIET)


def test_a_damaged_measurement_is_one_line(saved):
    record = json.loads(saved.read_text())
    del record["measurements"][0]["round_medians_ms"]
    saved.write_text(json.dumps(record))
    with pytest.raises(OptionError, match=r"is damaged \(KeyError\('round_medians_ms'\)\); make one with --save"):
        Baseline(saved, QUIET)
