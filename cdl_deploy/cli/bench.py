"""`cdl bench-latency`: how fast models are, and against each other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdl_deploy.cli.output import echo_json_text, make_console
from cdl_deploy.errors import OptionError
from cdl_deploy.require_extra import require_extra

if TYPE_CHECKING:
    from cdl_deploy.bench import BenchProgress, BenchReport

EXAMPLES = """
cdl bench-latency runs/digits
cdl bench-latency student.onnx teacher.onnx --batch 1,8 --threads 1,2
cdl bench-latency runs/digits --torch --from graph,jpeg --plot latency.png
cdl bench-latency student.onnx --streams 1,4 --csv latency.csv
cdl bench-latency portable/student.onnx --batch 1 --runtime onnxruntime,mnn=~/mnn/bin/python
cdl bench-latency runs/digits --save main.json
cdl bench-latency runs/digits --baseline main.json
"""
REGRESSION = 3
"""Exit code where something became slower than the baseline."""


def command(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_MODELS",
            help="A run, an export directory (student.onnx against teacher.onnx), or anybody's .onnx files.",
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
    streams: Annotated[str, typer.Option(metavar="N,N,...", help="Inferences at the same time in one process.")] = "1",
    stages: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="graph,jpeg",
            help="Where to start: at what the graph takes, or at JPEG files (decode, preprocess, run).",
        ),
    ] = "graph",
    torch: Annotated[
        bool, typer.Option("--torch", help="Also measure the run's models in PyTorch, as they were trained.")
    ] = False,
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Measure the models in these runtimes, side by side: onnxruntime, openvino, mnn=PATH/bin/python where "
            "another Python has it, and so on; what cdl export --target knows.",
            show_default=False,
        ),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="model|photo|WxH",
            help="Size of made-up images for a graph that takes any, and of made-up JPEG files: the size that the "
            "model scales to, 1600x1200, or another. Default: model for graphs, 640x480 for JPEG.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Photographs for --from jpeg. Default: made up.", show_default=False),
    ] = None,
    precision: Annotated[
        float, typer.Option(metavar="PERCENT", help="Repeat until every median is known within ± this much.")
    ] = 2.0,
    min_effect: Annotated[
        float, typer.Option(metavar="PERCENT", help="Never call a smaller difference faster or slower.")
    ] = 3.0,
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
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also draw accuracy against latency, and latencies (.png, .svg).", show_default=False
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Compare with this earlier report (--save); exit with 3 if anything became slower.",
            show_default=False,
        ),
    ] = None,
    other_machine: Annotated[
        bool, typer.Option("--other-machine", help="Compare even if the baseline was measured on another machine.")
    ] = False,
) -> None:
    """Measure how fast models are: student against teacher.

    Each model runs in a process of its own; short bursts take turns in random order until the 95 % interval of every
    median is narrow enough or the time is up. The table has p50, p90, p95, p99, images/s and the speed-up over the
    teacher (or the last model), size, parameters, MACs, memory and load time; what cannot be trusted is noted under it.
    """
    with require_extra("cdl bench-latency"):
        from cdl_deploy.bench import Baseline, BenchOptions, bench_latency, describe_machine, find_models
        from cdl_deploy.bench.models import in_runtimes
        from cdl_deploy.targets.process import parse_places
    options = BenchOptions(
        batches=_numbers("--batch", batch),
        threads=_numbers("--threads", threads) if threads is not None else (),
        streams=_numbers("--streams", streams),
        stages=tuple(part.strip() for part in stages.split(",")),
        image_size=_width_and_height(image_size),
        images=images,
        precision=precision,
        min_effect=min_effect,
        time_limit=time_limit,
        seed=seed,
    )
    if images is not None and "jpeg" not in options.stages:
        raise OptionError("--images is for --from jpeg: add it, or leave --images out")
    specs = find_models(models, torch=torch)
    if runtime is not None:
        specs = in_runtimes(specs, parse_places(runtime))
    earlier = Baseline(baseline, describe_machine(), other_machine) if baseline is not None else None
    if earlier is not None:
        earlier.check(specs, options)
    write_plot = _plotter(plot)
    if torch:
        with require_extra("cdl bench-latency --torch", "train"):
            import torch as _torch  # noqa: F401  (before anything is measured: is it there?)
    with _progress(time_limit) as show:
        report = bench_latency(specs, options, show)
    if earlier is not None:
        changes, notes = earlier.compare(report)
        report = replace(report, baseline=changes, notes=(*report.notes, *notes))
    _write(report, {"--csv": (csv, report.to_csv), "--save": (save, report.to_json)})
    if plot is not None:
        write_plot(report)
    _print(report, as_json)
    if report.regressions:
        raise typer.Exit(REGRESSION)


def _print(report: BenchReport, as_json: bool) -> None:
    if as_json:
        echo_json_text(report.to_json())
        return

    from cdl_deploy.bench.table import regression_line, report_tables

    console = make_console() if sys.stdout.isatty() else make_console(width=100)
    console.print(report_tables(report))
    if report.baseline is not None:
        console.print(regression_line(report), style="bold", markup=False, highlight=False)
    console.print(report.headline, style="bold", markup=False, highlight=False)


def _write(report: BenchReport, wanted: dict[str, tuple[Path | None, Callable[[], str]]]) -> None:
    from cdl_deploy.files import write_text

    for option, (file, text) in wanted.items():
        if file is not None:
            try:
                write_text(file, text())
            except OSError as error:
                raise OptionError(f"{option} {file}: {error.strerror or error}") from error


def _plotter(file: Path | None) -> Callable[[BenchReport], None]:
    """A function that draws a report into `file`. What could go wrong is found now, before anything is measured."""
    if file is None:
        return lambda report: None
    with require_extra("cdl bench-latency --plot", "plot"):
        from cdl_deploy.bench.plots import FORMATS, plot_report
    if file.suffix.lower() not in FORMATS:
        raise OptionError(f"--plot {file}: expected a name that ends in {', '.join(FORMATS)}")

    def write(report: BenchReport) -> None:
        try:
            plot_report(report, file)
        except OSError as error:
            raise OptionError(f"--plot {file}: {error.strerror or error}") from error

    return write


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """`"1,8,32"` → (1, 8, 32)."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"{option} is {text!r}, expected whole numbers with commas between, such as 1,8") from error


def _width_and_height(text: str | None) -> tuple[int, int] | None:
    """`"640x480"` → (640, 480), width first; None for `model`."""
    if text is None or text == "model":
        return None
    if text == "photo":
        return 1600, 1200
    try:
        width, height = (int(part) for part in text.lower().replace("×", "x").split("x"))
    except ValueError as error:
        raise OptionError(
            f"--image-size is {text!r}, expected model, photo, or WIDTHxHEIGHT such as 640x480"
        ) from error
    return width, height


@contextmanager
def _progress(time_limit: float) -> Iterator[Callable[[BenchProgress], None] | None]:
    """A bar on a terminal's standard error, redrawn only between measurements: a thread that redraws would disturb."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(),
        TextColumn("{task.fields[seconds]:.0f} of {task.total:.0f} s"),
        TextColumn("{task.description}"),
    )
    with Bar(*columns, console=make_console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=time_limit, seconds=0.0)

        def show(progress: BenchProgress) -> None:
            done = f", round {progress.rounds + 1}, {progress.precise} of {progress.medians} medians precise"
            text = f"{progress.phase} {progress.detail}{done if progress.phase == 'measure' else ''}"
            seconds = min(progress.elapsed, time_limit)
            bar.update(task, completed=seconds, seconds=seconds, description=text, refresh=True)

        yield show
