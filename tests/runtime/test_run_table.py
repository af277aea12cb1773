"""The tables of a run: one line a task, readable at 80 columns, whatever the number of tasks and classes."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cdl_deploy.cli.cells import OneLine, duration, mean_std
from cdl_deploy.cli.run_table import run_table
from cdl_deploy.run.record import RunRecord, parse_record
from tests.records import finished_task, run_json


def record(tasks: int, classes: int, teacher: bool = True, data: str = "digits", planned: int = 0) -> RunRecord:
    matrix = [[90.0 - i] * (i + 1) for i in range(tasks)]
    entry = {
        "final_average_accuracy": 71.25,
        "average_incremental_accuracy": 80.04,
        "forgetting": 12.34,
        "forgetting_standard": 13.0,
        "backward_transfer": 0.0,
        "accuracy_matrix": matrix,
    }
    names = [[f"a class with a name, {i * classes + k}" for k in range(classes)] for i in range(tasks + planned)]
    plans = run_json(1)["plans"][0]
    seconds = {"teacher": 12345.6, "student": 2000.2, "evaluation": 3.0}
    values = run_json(
        tasks,
        teacher,
        student=entry,
        teacher=entry if teacher else None,
        tasks=[finished_task(i + 1, names[i], train_images=5000, seconds=seconds) for i in range(tasks)],
        plans=[{**plans, "classes": own} for own in names],
        config={
            "data": {"data": data},
            "models": {},
            "method": {"method": "dualprompt", "distill": "reviewkd"},
            "optim": {"seed": 0},
        },
    )
    return parse_record(values, Path("run.json"))


def printed(value, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(value)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize(("tasks", "classes"), [(1, 2), (5, 2), (40, 100)])
@pytest.mark.parametrize("teacher", [True, False])
def test_a_task_is_one_line_and_no_number_is_cut(width, tasks, classes, teacher):
    lines = printed(run_table(record(tasks, classes, teacher)), width)
    assert max(len(line) for line in lines) <= width
    narrow = "a table narrower than its title does not break it"
    assert lines[:2] == ["digits: dualprompt + reviewkd, seed 0", "accuracy over all classes seen (%)"], narrow
    rows = [line for line in lines if line.startswith("│") and "3:59:09" in line]
    assert len(rows) == tasks
    for number, row in enumerate(rows, start=1):
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        accuracy = f"{90 - number + 1:.1f}"
        assert cells[0] == str(number)
        assert cells[2:] == ["5,000", *[accuracy] * (1 + teacher), "3:59:09"]
        assert cells[1].startswith("100: a class" if classes == 100 else "a class")


def test_metrics_of_both_learners():
    lines = printed(run_table(record(3, 2)), 80)
    assert [line.split("│")[1:4] for line in lines if "forgetting" in line or "average" in line] == [
        [" final average accuracy       ", "    71.2 ", "    71.2 "],
        [" average incremental accuracy ", "    80.0 ", "    80.0 "],
        [" forgetting (lower is better) ", "    12.3 ", "    12.3 "],
        [" forgetting, standard         ", "    13.0 ", "    13.0 "],
    ]


def test_the_title_is_short_and_says_what_is_missing():
    long = printed(run_table(record(2, 2, data="/home/somebody/images/flowers/by/month/of/the/year")), 80)
    assert long[0].rstrip() == "…ody/images/flowers/by/month/of/the/year: dualprompt + reviewkd, seed 0"
    assert long[1].rstrip() == "accuracy over all classes seen (%)"
    unfinished = printed(run_table(record(2, 2, planned=1)), 100)
    assert unfinished[0].rstrip() == "digits: dualprompt + reviewkd, seed 0, unfinished: 2 tasks so far"


def test_names_with_brackets_are_no_markup():
    run = record(1, 1)
    run.tasks[0] = replace(run.tasks[0], classes=["[red]fox[/red]"])
    assert any("[red]fox[/red]" in line for line in printed(run_table(run), 80))


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.25, "5.2 s"), (59.96, "1:00"), (7265, "2:01:05"), (180_000, "2 d 02:00")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("values", "text"), [([], "–"), ([91.25], "91.2"), ([90.0, 92.0, 94.0], "92.0 ± 2.0")])
def test_mean_and_the_samples_deviation(values, text):
    assert mean_std(values) == text


def test_one_line_ends_in_dots_only_where_it_must():
    assert printed(OneLine("ant, bee"), 20) == ["ant, bee"]
    assert printed(OneLine("ant, bee, cat"), 8) == ["ant, be…"]
