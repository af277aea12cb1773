"""`cdl compare`: runs side by side, mean and deviation over seeds, from their records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdl_deploy.cli.output import echo_json, make_console
from cdl_deploy.errors import OptionError

if TYPE_CHECKING:
    from rich.table import Table

    from cdl_deploy.cli.run_groups import RunGroup

EXAMPLES = """
cdl compare runs/kdp-0 runs/kdp-1 runs/kdp-2 runs/alone-0
cdl compare runs/*/ --csv comparison.csv
cdl compare runs/*/ --json
"""

COLUMNS = {
    "final average accuracy": "final_average_accuracy",
    "average incremental": "average_incremental_accuracy",
    "forgetting": "forgetting",
    "forgetting, standard": "forgetting_standard",
}
"""Metrics by the heading of their column."""


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run directories.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the comparison to this file.", show_default=False)
    ] = None,
) -> None:
    """Compare runs: accuracy and forgetting of student and teacher, mean ± standard deviation over seeds.

    Runs that differ only in the seed are one row. Its name is what distinguishes it from the others. Everything is in
    percent; a lower forgetting is better.
    """
    from cdl_deploy.cli.run_groups import group_runs, groups_csv
    from cdl_deploy.files import write_text

    groups = group_runs(runs)
    if csv is not None:
        try:
            write_text(csv, groups_csv(groups))
        except OSError as error:
            raise OptionError(f"--csv {csv}: {error.strerror or error}") from error
    if as_json:
        echo_json([group.to_dict() for group in groups])
        return

    console = make_console()
    console.print(comparison_table(groups))


def comparison_table(groups: Sequence[RunGroup]) -> Table:
    """A row a group and learner; no number is ever cut."""
    from rich.table import Table
    from rich.text import Text

    from cdl_deploy.cli.cells import mean_std
    from cdl_deploy.printable import printable

    table = Table(title="percent, mean ± standard deviation over seeds", title_justify="left")
    table.add_column("runs", overflow="fold", min_width=12)
    table.add_column("seeds", overflow="fold", min_width=5)
    table.add_column("learner", no_wrap=True)
    for heading in COLUMNS:
        table.add_column(heading, justify="right", min_width=10)
    for group in groups:
        roles = group.roles()
        for role in roles:
            first = role == roles[0]
            table.add_row(
                Text(printable(group.name) if first else ""),
                Text(_seeds(group.seeds) if first else ""),
                role,
                *[mean_std(group.values(role, metric)) for metric in COLUMNS.values()],
                style="bold" if role == "student" else "",
                end_section=role == roles[-1],
            )
    return table


def _seeds(seeds: Sequence[int]) -> str:
    """`0, 2, 5`, and `0–4` for five that follow each other."""
    ordered = sorted(seeds)
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[0] + len(ordered))):
        return f"{ordered[0]}–{ordered[-1]}"
    return ", ".join(map(str, ordered))
