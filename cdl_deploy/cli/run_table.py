"""What a run has learned, as tables: accuracy after every task, then the metrics. Reads the record alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from statistics import fmean

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cdl_deploy.cli.cells import duration, ending, named
from cdl_deploy.counted import counted
from cdl_deploy.printable import printable
from cdl_deploy.run.record import RunRecord
from cdl_deploy.run.record_parts import FinishedTask, Results, Role

ROLES: tuple[Role, ...] = ("student", "teacher")
METRICS = {
    "final_average_accuracy": "final average accuracy",
    "average_incremental_accuracy": "average incremental accuracy",
    "forgetting": "forgetting (lower is better)",
    "forgetting_standard": "forgetting, standard",
}
"""Of a run record, by the words for them."""


def run_table(record: RunRecord) -> RenderableType:
    """One line a finished task, whatever the number of its classes; accuracy is over all classes seen, in percent."""
    results = {role: result for role in ROLES if (result := record.results(role)) is not None}
    tasks = Table(show_footer=len(record.tasks) > 1)
    tasks.add_column("task", justify="right", no_wrap=True)
    tasks.add_column("new classes", footer="in all")
    images = sum(task.train_images for task in record.tasks)
    tasks.add_column("images", justify="right", no_wrap=True, footer=f"{images:,}")
    for role in results:
        tasks.add_column(role, justify="right", no_wrap=True, style="bold" if role == "student" else "")
    seconds = sum(_seconds(task) for task in record.tasks)
    tasks.add_column("time", justify="right", no_wrap=True, footer=duration(seconds))
    for index, task in enumerate(record.tasks):
        means = [fmean(result.accuracy_matrix[index]) for result in results.values()]
        tasks.add_row(
            str(task.number),
            named([name for name in task.classes if name not in record.forgotten]),
            f"{task.train_images:,}",
            *[f"{value:.1f}" for value in means],
            duration(_seconds(task)),
        )
    return Group(_title(record), tasks, _metrics(results), *_learners(record, results))


def _title(record: RunRecord) -> Text:
    """What was trained, in at most two lines of 80 columns, which a narrow table does not break."""
    config = record.config
    state = "" if record.finished else f", unfinished: {counted(len(record.tasks), 'task')} so far"
    method = f"{config.method.title}, seed {config.optim.seed}"
    return Text(f"{ending(config.data.data, 40)}: {method}{state}\naccuracy over all classes seen (%)", style="italic")


def _learners(record: RunRecord, roles: Collection[Role]) -> list[Text]:
    """A line for each learner: its model, and its closed-form head as it was after the last task."""
    if not record.tasks:
        return []
    lines = []
    for role in roles:
        words = f"{role}: {record.backbones[role].words}"
        if (head := record.tasks[-1].heads.get(role)) is not None:
            number = {"slda": "ρ", "ridge": "λ"}.get(head.kind)
            chosen = "" if head.chosen is None or number is None else f", {number} {head.chosen:.2g}"
            ece = "" if head.ece is None else f"; calibration error {head.ece:.1f} %"
            features = f"{head.features} ({head.dimension:,} numbers)"
            words += f"; {head.kind} on {features}{chosen}, temperature {head.temperature:.3g}{ece}"
        lines.append(Text(printable(words)))
    if record.forgotten:
        lines.append(Text(f"forgotten: {named(record.forgotten).text}; the accuracies were measured before, with them"))
    return lines


def _metrics(results: Mapping[Role, Results]) -> Table:
    table = Table()
    table.add_column("after the last task", no_wrap=True)
    for role in results:
        table.add_column(role, justify="right", no_wrap=True, style="bold" if role == "student" else "")
    for name, words in METRICS.items():
        table.add_row(words, *[f"{getattr(result, name):.1f}" for result in results.values()])
    return table


def _seconds(task: FinishedTask) -> float:
    return float(sum(task.seconds.values()))
