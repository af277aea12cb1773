"""What a run has learned, as tables: accuracy after every task, then the metrics. Reads the JSON record alone."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cdl_deploy.cli.cells import duration, ending, named

ROLES = ("student", "teacher")
METRICS = {
    "final_average_accuracy": "final average accuracy",
    "average_incremental_accuracy": "average incremental accuracy",
    "forgetting": "forgetting (lower is better)",
    "forgetting_standard": "forgetting, standard",
}
"""Of a run record, by the words for them."""


def run_table(record: dict[str, Any]) -> RenderableType:
    """One line a finished task, whatever the number of its classes; accuracy is over all classes seen, in percent."""
    roles = [role for role in ROLES if record.get(role)]
    tasks = Table(title=_title(record), title_justify="left", show_footer=len(record["tasks"]) > 1)
    tasks.add_column("task", justify="right", no_wrap=True)
    tasks.add_column("new classes", footer="in all")
    images = sum(task["train_images"] for task in record["tasks"])
    tasks.add_column("images", justify="right", no_wrap=True, footer=f"{images:,}")
    for role in roles:
        tasks.add_column(role, justify="right", no_wrap=True, style="bold" if role == "student" else "")
    seconds = sum(_seconds(task) for task in record["tasks"])
    tasks.add_column("time", justify="right", no_wrap=True, footer=duration(seconds))
    for index, task in enumerate(record["tasks"]):
        means = [_mean(record[role]["accuracy_matrix"][index]) for role in roles]
        tasks.add_row(
            str(task["number"]),
            named(task["classes"]),
            f"{task['train_images']:,}",
            *[f"{value:.1f}" for value in means],
            duration(_seconds(task)),
        )
    return Group(tasks, _metrics(record, roles))


def _title(record: dict[str, Any]) -> Text:
    """What was trained, in at most two lines of 80 columns."""
    config = record["config"]
    method, seed = f"{config['method']['method']} + {config['method']['distill']}", config["optim"]["seed"]
    state = "" if record.get("status") != "unfinished" else f", unfinished: {len(record['tasks'])} tasks so far"
    data = ending(str(config["data"]["data"]), 40)
    return Text(f"{data}: {method}, seed {seed}{state}\naccuracy over all classes seen (%)")


def _metrics(record: dict[str, Any], roles: list[str]) -> Table:
    table = Table()
    table.add_column("after the last task", no_wrap=True)
    for role in roles:
        table.add_column(role, justify="right", no_wrap=True, style="bold" if role == "student" else "")
    for name, words in METRICS.items():
        table.add_row(words, *[f"{record[role][name]:.1f}" for role in roles])
    return table


def _mean(row: list[float]) -> float:
    return sum(row) / len(row)


def _seconds(task: dict[str, Any]) -> float:
    return float(sum(task["seconds"].values()))
