"""`cdl runs`: what a run has learned so far, from its record alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdl_deploy.cli.output import echo_json, make_console
from cdl_deploy.errors import RunError
from cdl_deploy.printable import as_typed, printable
from cdl_deploy.run.latest import latest_content
from cdl_deploy.run.record import RunRecord, parse_record, read_json

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = """
cdl runs runs/digits
cdl runs runs/digits --json
cdl runs runs/digits --latency latency.json
"""

PICTURES = ("accuracy_matrix", "accuracy_over_tasks", "forgetting")


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)],
    latency: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also show this report of cdl bench-latency --save.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run's record as JSON.")] = False,
) -> None:
    """Show a run: accuracy after every task, forgetting, its history, and where its files are."""
    content, file = latest_content(run)
    record = parse_record(content, file)
    if as_json:
        echo_json(content)
        return

    from cdl_deploy.cli.run_table import run_table

    console = make_console()
    if not record.tasks:
        console.print(
            f"{run}: no task is finished yet; continue with: cdl train {as_typed(run)} --resume", highlight=False
        )
        return
    console.print(run_table(record))
    console.print(history_table(record))
    if latency is not None:
        report = read_json(latency, f"--latency {latency} does not exist: make it with cdl bench-latency --save")
        try:
            console.print(latency_table(report), report["headline"], sep="\n", highlight=False)
        except (KeyError, TypeError) as error:
            raise RunError(f"--latency {latency} is no report of cdl bench-latency: {error} is missing") from error
    console.print(_files(run), highlight=False, soft_wrap=True)


def history_table(record: RunRecord) -> Table:
    """When each task was learned, from which images, and in how many epochs; – where nothing trained."""
    from rich.table import Table

    table = Table(title="history", title_justify="left")
    for name in ("task", "learned (UTC)", "from", "known classes", "epochs"):
        table.add_column(name, overflow="fold")
    before = None
    for task in record.tasks:
        source = "the same" if task.data == before else printable(task.data)
        before = task.data
        known = printable(", ".join(task.known_classes)) or "–"
        when = printable(task.finished[:16].replace("T", " "))
        epochs = str(task.optim.epochs) if record.config.method.trains_in(task.number) else "–"
        table.add_row(str(task.number), when, source, known, epochs)
    return table


def latency_table(report: dict[str, Any]) -> Table:
    """Median latency and size of every model in a report of `cdl bench-latency --json`."""
    from rich.table import Table

    # Of a report over several stages or streams, the first of them.
    first = report["measurements"][0]
    rows = [row for row in report["measurements"] if all(row[name] == first[name] for name in ("stage", "streams"))]
    conditions = sorted({(row["threads"], row["batch"]) for row in rows})
    medians = {(row["model"], row["threads"], row["batch"]): f"{row['p50_ms']:.2f}" for row in rows}
    table = Table(title="latency (median, ms) and size", title_justify="left")
    table.add_column("model")
    for threads, batch in conditions:
        table.add_column(f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}", justify="right")
    table.add_column("MB", justify="right")
    table.add_column("parameters", justify="right")
    for model in report["models"]:
        table.add_row(
            model["name"],
            *[medians.get((model["name"], threads, batch), "") for threads, batch in conditions],
            f"{model['file_bytes'] / 1e6:.2f}",
            f"{model['parameters']:,}" if model["parameters"] else "",
        )
    return table


def _files(run: Path) -> str:
    known = {
        "record": run / "run.json",
        **{name: run / f"{name}.png" for name in PICTURES},
        "student": run / "export" / "student.onnx",
        "teacher": run / "export" / "teacher.onnx",
    }
    there = {name.replace("_", " "): printable(str(path)) for name, path in known.items() if path.exists()}
    return "\n".join(f"{name:19} {path}" for name, path in there.items())
