"""`cdl bench-latency`: how fast exported models are, and against each other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdl_deploy.cli.missing import needs
from cdl_deploy.errors import OptionError

if TYPE_CHECKING:
    from cdl_deploy.bench import Progress

EXAMPLES = """
cdl bench-latency runs/digits
cdl bench-latency student.onnx teacher.onnx --batch 1,8 --threads 1,2
cdl bench-latency runs/digits --time-limit 20 --save latency.json
cdl bench-latency mine.onnx theirs.onnx --precision 1 --csv latency.csv
"""


def command(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_MODELS",
            help="A run, an export directory (student.onnx against teacher.onnx), or .onnx files.",
            show_default=False,
        ),
    ],
    batch: Annotated[str, typer.Option(metavar="N,N,...", help="Batch sizes.")] = "1,8,32",
    threads: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...", help="Threads of one inference. Default: the usable cores.", show_default=False
        ),
    ] = None,
    precision: Annotated[
        float, typer.Option(metavar="PERCENT", help="Repeat until every median is known within ± this much.")
    ] = 2.0,
    time_limit: Annotated[float, typer.Option(metavar="SECONDS", help="Stop after this long, in total.")] = 60.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the order of measurements.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the report to this file, as JSON.", show_default=False),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the measurements to this file.", show_default=False)
    ] = None,
) -> None:
    """Measure how fast models are: student against teacher.

    Each model runs in a process of its own; short bursts take turns in random order until the 95 % interval of every
    median is narrow enough or the time is up. The table has p50, p90, p95, p99, images/s and the speed-up over the
    teacher (or the last model), size, memory and load time; what cannot be trusted is noted under it.
    """
    with needs("cdl bench-latency"):
        from cdl_deploy.bench import BenchOptions, bench_latency, find_models
        from cdl_deploy.files import write_text
    options = BenchOptions(
        batches=_numbers("--batch", batch),
        threads=_numbers("--threads", threads) if threads is not None else (),
        precision=precision,
        time_limit=time_limit,
        seed=seed,
    )
    specs = find_models(models)
    with _progress(time_limit) as show:
        report = bench_latency(specs, options, show)
    for option, file, text in (("--csv", csv, report.to_csv), ("--save", save, report.to_json)):
        if file is not None:
            try:
                write_text(file, text())
            except OSError as error:
                raise OptionError(f"{option} {file}: {error.strerror or error}") from error
    if as_json:
        typer.echo(report.to_json())
    else:
        from rich.console import Console

        from cdl_deploy.bench.table import report_tables

        console = Console()
        console.print(report_tables(report))
        console.print(report.headline, style="bold", soft_wrap=True, markup=False, highlight=False)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """`"1,8,32"` → (1, 8, 32)."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"{option} is {text!r}, expected whole numbers with commas between, such as 1,8") from error


@contextmanager
def _progress(time_limit: float) -> Iterator[Callable[[Progress], None] | None]:
    """A bar on a terminal's standard error, redrawn only between measurements: a thread that redraws would disturb."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(),
        TextColumn("{task.fields[seconds]:.0f} of {task.total:.0f} s"),
        TextColumn("{task.description}"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=time_limit, seconds=0.0)

        def show(progress: Progress) -> None:
            done = f", round {progress.rounds + 1}, {progress.precise} of {progress.medians} medians precise"
            text = f"{progress.phase} {progress.detail}{done if progress.phase == 'measure' else ''}"
            seconds = min(progress.elapsed, time_limit)
            bar.update(task, completed=seconds, seconds=seconds, description=text, refresh=True)

        yield show
