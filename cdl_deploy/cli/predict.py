"""`cdl predict`: class names and probabilities of images."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from cdl_deploy.cli.missing import needs
from cdl_deploy.cli.rows import check_format, row_writer
from cdl_deploy.errors import DataError, OptionError

if TYPE_CHECKING:
    from cdl_deploy.predict import Row

EXAMPLES = """
cdl predict student.onnx photo.jpg
cdl predict student.onnx photos/ --top-k 3 --format jsonl > rows.jsonl
cdl predict student.onnx 'photos/**/*.png' --output rows.csv
find / -name '*.jpg' | cdl predict student.onnx - --format csv
"""


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Exported model (.onnx).", show_default=False)],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            help="Images, folders (searched recursively), patterns, or - for one path a line on standard input.",
            show_default=False,
        ),
    ],
    top_k: Annotated[int, typer.Option(metavar="N", help="Classes to report for each image.", min=1)] = 1,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Images in one run of the model.", min=1)] = 32,
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="table|jsonl|csv",
            help="Default: by the output file's suffix, or table.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write rows to this file instead of standard output.", show_default=False),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Threads that decode, and threads of the model. Default: all cores.",
            min=1,
            show_default=False,
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first image that cannot be read.")] = False,
) -> None:
    """Name what is in images: one row an image, in order.

    An image that cannot be read becomes a row with its error; the rest go on, and the exit code is 1 at the end.
    Progress and the count of failures go to standard error.
    """
    kind = output_format or _format_of(output)
    check_format(kind)
    with needs("cdl predict"):
        from PIL import Image

        from cdl_deploy.classifier import Classifier
        from cdl_deploy.predict import check_sources, expand_paths, predict_rows
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what is too large becomes a row with its error
    check_sources(images)
    classifier = Classifier(model, threads=threads)
    # Rows on a terminal show the progress themselves; a bar would be drawn into them.
    quiet = not sys.stderr.isatty() or (output is None and sys.stdout.isatty())
    total = None if quiet or "-" in images else sum(1 for _ in expand_paths(images))
    rows = predict_rows(classifier, expand_paths(images, sys.stdin), batch_size, top_k, threads)
    count = failed = 0
    with _opened(output) as out, nullcontext(rows) if quiet else _progress(rows, total) as shown:
        write = row_writer(kind, out, min(top_k, len(classifier.bundle.classes)))
        for row in shown:
            if strict and row.error is not None:
                raise DataError(row.error)
            write(row)
            count, failed = count + 1, failed + (row.error is not None)
    if failed:
        typer.echo(f"{failed} of {count} images could not be read", err=True)
        raise typer.Exit(1)


def _format_of(output: Path | None) -> str:
    return {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}.get(output.suffix.lower() if output else "", "table")


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """The stream to write rows to. A file appears when it is complete, or not at all."""
    if output is None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="surrogateescape")  # paths need not be valid UTF-8
        yield sys.stdout
        return
    from cdl_deploy.files import atomic_path

    try:
        with (
            atomic_path(output) as temporary,
            temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as out,
        ):
            yield out
    except OSError as error:
        raise OptionError(f"--output {output}: {error.strerror or error}") from error


@contextmanager
def _progress(rows: Iterable[Row], total: int | None) -> Iterator[Iterable[Row]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]:.0f} images/s"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("predict", total=total, rate=0.0)

        def counted() -> Iterator[Row]:
            for row in rows:
                yield row
                progress.advance(task)
                progress.update(task, rate=progress.tasks[0].speed or 0.0)

        yield counted()
