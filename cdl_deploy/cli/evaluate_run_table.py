"""A run's accuracy matrices on its exported graphs, as tables."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cdl_deploy.cli.cells import ending
from cdl_deploy.cli.evaluate_run import RoleMatrix, RunEvaluation
from cdl_deploy.cli.run_table import METRICS

WHOLE = 10
"""Up to so many tasks the whole matrix is shown; beyond, each row's mean."""


def run_evaluation_tables(result: RunEvaluation) -> RenderableType:
    """Everything in percent; `recorded` is what training measured."""
    title = f"{ending(str(result.run), 50)}: exported graphs on {ending(result.source, 40)}"
    parts: list[RenderableType] = [Text(title)]
    for role, matrix in result.roles.items():
        parts += [Text(f"{role}: accuracy (%) by task of the test images"), _matrix(matrix)]
    parts.append(_metrics(result))
    parts += [_difference(result, role) for role in result.roles]
    if result.kept:
        numbers = ", ".join(map(str, result.kept))
        parts.append(
            Text(
                f"Of task {numbers} only the images that the run keeps were tested: its folder is gone or has changed."
            )
        )
    return Group(*parts)


def _matrix(matrix: RoleMatrix) -> Table:
    count = len(matrix.measured)
    table = Table()
    table.add_column("after", justify="right", no_wrap=True)
    if count <= WHOLE:
        for number in range(1, count + 1):
            table.add_column(str(number), justify="right", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True, style="bold")
    table.add_column("recorded", justify="right", no_wrap=True)
    for number, (row, recorded) in enumerate(zip(matrix.measured, matrix.recorded, strict=True), 1):
        cells = [f"{value:.1f}" for value in row] + [""] * (count - len(row)) if count <= WHOLE else []
        table.add_row(str(number), *cells, *[f"{sum(values) / len(values):.1f}" for values in (row, recorded)])
    return table


def _metrics(result: RunEvaluation) -> Table:
    table = Table()
    table.add_column("after the last task", no_wrap=True)
    for role in result.roles:
        table.add_column(role, justify="right", no_wrap=True, style="bold" if role == "student" else "")
        table.add_column("recorded", justify="right", no_wrap=True)
    both = {role: result.metrics(role) for role in result.roles}
    for name, words in METRICS.items():
        table.add_row(words, *[f"{metrics[name]:.1f}" for role in result.roles for metrics in both[role]])
    return table


def _difference(result: RunEvaluation, role: str) -> Text:
    found = result.difference(role)
    if found.points == 0:
        return Text(f"{role}: every cell is what training measured.")
    return Text(
        f"{role}: differs from what training measured by {found.points:+.2f} points at most, after task "
        f"{found.after_task} on the images of task {found.test_task} "
        f"({abs(found.points) * found.images / 100:.0f} of {found.images})."
    )
