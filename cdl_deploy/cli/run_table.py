"""What a run has learned, as a table: accuracy after every task, then forgetting. Reads the JSON record alone."""

from __future__ import annotations

from typing import Any

from rich.table import Table

ROLES = ("student", "teacher")


def run_table(record: dict[str, Any]) -> Table:
    """One row a finished task; accuracy is over all classes seen, in percent."""
    config = record["config"]
    method = f"{config['method']['method']} + {config['method']['distill']}"
    roles = [role for role in ROLES if record.get(role)]
    table = Table(
        title=f"{config['data']['data']}, {method}, seed {config['optim']['seed']}: accuracy over all classes seen (%)",
        show_footer=True,
        title_justify="left",
    )
    forgetting = "forgetting (lower is better)"
    table.add_column("after task", footer=f"final average\n{forgetting}")
    table.add_column("new classes", overflow="fold")
    table.add_column("images", justify="right")
    for role in roles:
        entry = record[role]
        footer = f"{entry['final_average_accuracy']:.1f}\n{entry['forgetting']:.1f}"
        table.add_column(role, justify="right", footer=footer, style="bold" if role == "student" else "")
    table.add_column("seconds", justify="right", footer=f"{sum(_seconds(task) for task in record['tasks']):.0f}")
    for index, task in enumerate(record["tasks"]):
        means = [_mean(record[role]["accuracy_matrix"][index]) for role in roles]
        table.add_row(
            str(task["number"]),
            _shortened(task["classes"]),
            str(task["train_images"]),
            *[f"{value:.1f}" for value in means],
            f"{_seconds(task):.0f}",
        )
    return table


def _mean(row: list[float]) -> float:
    return sum(row) / len(row)


def _seconds(task: dict[str, Any]) -> float:
    return float(sum(task["seconds"].values()))


def _shortened(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)})" if len(names) > most else "")
