"""The live line of `cdl train`: it fits the terminal, keeps its form, and its time left is right."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from cdl_deploy.cli import train_progress
from cdl_deploy.cli.progress_line import ProgressLine, clock, number
from cdl_deploy.cli.train_progress import TimeLeft, TrainingProgress
from cdl_deploy.run.record_parts import FinishedTask
from cdl_deploy.training.progress import Stage
from cdl_deploy.typed_json import convert
from tests.records import finished_task

FOUR = {"cross_entropy": 0.331, "distillation": 0.224, "feature": 0.0123, "key_loss": 1.5}
FIVE = {**FOUR, "query_regulariser": 0.01}


def drawn(line: ProgressLine, width: int, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=width, force_terminal=True, color_system=None).print(line, end="")
    file.seek(0)
    return file.read().rstrip("\n")


def at_work(terms, task="10/10", speed=1234.0, left=5025.0) -> ProgressLine:
    return ProgressLine("", task, "student", "20/20", 1.0, speed, left, terms)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140, 200])
@pytest.mark.parametrize("terms", [{"cross_entropy": 0.5}, FOUR, FIVE, {}])
def test_one_line_that_fits(width, terms):
    text = drawn(at_work(terms), width)
    assert "\n" not in text
    assert len(text) < width


def test_nothing_is_cut_off_with_four_terms_at_80_columns():
    text = drawn(at_work(FOUR), 80)
    assert text == "10/10 student ep 20/20 1234/s 1:23:45 left ce 0.33 kd 0.22 feat 0.01 key 1.50"


def test_a_wide_terminal_has_every_name_and_a_bar():
    text = drawn(at_work(FOUR), 200)
    assert text.startswith("task 10/10 student  epoch 20/20  ━━━━━━━━━━━━━━━━   1234 images/s  1:23:45 left  ")
    assert text.endswith("cross_entropy 0.331 distillation 0.224 feature 0.012 key_loss 1.500")
    assert "################" in drawn(at_work(FOUR), 200, "ascii")


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_form_does_not_change_while_numbers_do(width):
    """From the first step, when speed and time left are unknown, to the last."""
    lengths = {
        len(drawn(at_work({name: value * scale for name, value in FOUR.items()}, speed=speed, left=left), width))
        for speed, left in ((None, None), (7.0, 9.0), (999.0, 3599.0), (1234.0, 35999.0))
        for scale in (0.01, 1.0, 3.0)
    }
    assert len(lengths) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (65, "1:05"), (7265, "2:01:05"), (359_999, "99:59:59"), (360_000, "4 d 04 h")],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.123"), (12.345, "12.35"), (123.45, "123.5"), (12345.6, "12346"), (1e9, "1e+09")]
)
def test_numbers_keep_their_width(value, text):
    assert number(value, 3) == text


def record(tasks: list[list[str]], roles=("student", "teacher")) -> SimpleNamespace:
    """Of a run's record what the line looks at."""
    return SimpleNamespace(
        left_out={},
        notes=[],
        planned_tasks=tasks,
        backbones={role: SimpleNamespace(pixels=None, weights=None) for role in roles},
        tasks=[],
        matrices={},
        classes=["a"],
    )


def test_time_left_adds_up_every_stage_and_every_evaluation():
    """Three tasks of 2, 2 and 4 classes; 50 images a class; 5 test images a class; all speeds known."""
    left = TimeLeft(record([["a", "b"], ["c", "d"], ["e", "f", "g", "h"]]))
    left.speeds = {"teacher": 10.0, "student": 20.0}
    left.test_speed, left.tests_per_class = 40.0, 5.0
    stage = Stage(2, 3, "teacher", epochs=4, images=100, batch_size=10)
    own = (4 * 100 - 150) / 10 + 4 * 100 / 20  # the rest of the teacher's stage, the student's
    third = 4 * 200 / 10 + 4 * 200 / 20
    tests = 2 * 5 * (4 + 8) / 40  # two learners, all classes so far, after the second and after the third task
    assert left.seconds(stage, 150) == pytest.approx(own + third + tests)


def test_time_left_before_the_student_was_seen():
    left = TimeLeft(record([["a", "b"]]))
    left.speeds = {"teacher": 10.0}
    assert left.seconds(Stage(1, 1, "teacher", 1, 100, 10), 100) == pytest.approx(100 / 10 + 2 * 25 / 20)


def test_the_speed_leaves_out_views_that_are_computed(monkeypatch):
    """A view takes 100 s; then two steps of warm-up and one of 1 s for 5 images."""
    now = [0.0]
    monkeypatch.setattr(train_progress.time, "perf_counter", lambda: now[0])
    progress = TrainingProgress(Console(file=io.StringIO(), width=100), ProgressLine())
    progress.planned(record([["a"]], ("student",)))
    stage = Stage(1, 1, "student", epochs=4, images=20, batch_size=5)
    progress.stage_started(stage, 0, 0)
    for view in (0, 1):
        now[0] += 100
        progress.caching(stage, view, 15)
        assert drawn(progress.line, 100).startswith(f"task 1/1 student: view {view + 1}  epoch 1/4  ")
        assert progress.line.share == 15 / 20
        for _ in range(3):
            now[0] += 1
            progress.step(stage, 0, 5, {"cross_entropy": 1.0})
        assert progress.line.doing == ""
        assert progress.line.speed == pytest.approx(5)


def test_progress_from_the_hooks_alone(monkeypatch):
    """A clock of our own: two steps of warm-up at 10 s, then 1 s for each 5 images."""
    now = [0.0]
    monkeypatch.setattr(train_progress.time, "perf_counter", lambda: now[0])
    file = io.StringIO()
    progress = TrainingProgress(Console(file=file, width=100), ProgressLine())
    progress.checking(50, 200)
    assert drawn(progress.line, 100) == "checking images 50 of 200  ━━━━╺╺╺╺╺╺╺╺╺╺╺╺"
    run = record([["a"], ["b"]], ("student",))
    progress.planned(run)
    stage = Stage(1, 2, "student", epochs=2, images=20, batch_size=5)
    progress.stage_started(stage, 0, 3)
    assert progress.line.share == pytest.approx(15 / 40)  # goes on in the middle of an epoch
    progress.stage_started(stage, 0, 0)
    for _ in range(2):
        now[0] += 10
        progress.step(stage, 0, 5, {"cross_entropy": 1.0})
    assert progress.line.left is None
    now[0] += 1
    progress.step(stage, 0, 5, {"cross_entropy": 2.0})
    assert progress.line.speed == pytest.approx(5)
    assert progress.line.terms["cross_entropy"] == pytest.approx(1.1)
    assert progress.line.left == pytest.approx((40 - 15) / 5 + 40 / 5 + (5 + 10) / 10)  # and two guessed evaluations
    progress.evaluating(1, "student", 2, 8)
    now[0] += 2
    progress.evaluating(1, "student", 8, 8)
    assert progress.time_left.test_speed == pytest.approx(3)
    assert progress.time_left.tests_per_class == 8
    run.tasks.append(convert(FinishedTask, finished_task(1, ["a"]), ""))
    run.matrices["student"] = [[75.0]]
    progress.task_finished(run)
    assert file.getvalue() == "task 1/2 done: student 75.0 % over 1 class\n"
