"""`cdl predict`: class names and probabilities of images."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdl_deploy.cli.memory_limit import limit_memory
from cdl_deploy.cli.output import echo
from cdl_deploy.counted import counted
from cdl_deploy.errors import DataError, OptionError, PassingError, nearest
from cdl_deploy.require_extra import require_extra

if TYPE_CHECKING:
    from cdl_deploy.runtime.classifier import Classifier
    from cdl_deploy.runtime.predict import Row

EXAMPLES = """
cdl predict student.onnx photo.jpg
cdl predict student.onnx photos/ --top-k 3 --format jsonl > rows.jsonl
cdl predict student.onnx 'photos/**/*.png' --output rows.csv
cdl predict student.onnx photos/ --output rows.csv --resume
find / -name '*.jpg' -print0 | cdl predict student.onnx - --null --format csv
cdl predict student.onnx /shared/photos --engine ray --output rows.parquet
"""
ENGINES = ("local", "ray")
STDIN = "-"
KINDS = ("table", "jsonl", "csv", "parquet")


def command(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="Exported model (.onnx), or another ONNX classifier with labels.", show_default=False
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Images, folders (searched recursively), patterns, or - for one path a line on standard input.",
            show_default=False,
        ),
    ],
    top_k: Annotated[int, typer.Option(metavar="N", help="Classes to report for each image.", min=1)] = 1,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Images in one run of the model.", min=1)] = 16,
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="table|jsonl|csv|parquet",
            help="Default: by the output file's suffix, or table.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write rows to this file instead of standard output; until all are there, to FILE.part.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted --output behind its last whole row.")
    ] = False,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="Paths on standard input end in a zero byte, as find -print0 has them.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first image that cannot be read.")] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Threads that decode and run the model; with --engine ray, cores of each copy (default 1). "
            "Default: all cores that this process may use.",
            min=1,
            show_default=False,
        ),
    ] = None,
    providers: Annotated[
        list[str] | None,
        typer.Option(
            "--provider",
            metavar="NAME",
            help="Execution provider of onnxruntime, such as CUDAExecutionProvider; give several in order of "
            "preference. Default: the CPU.",
            show_default=False,
        ),
    ] = None,
    reject: Annotated[
        bool,
        typer.Option(
            "--reject",
            help="Say unknown of an image that is further from every class than the model's threshold; the row keeps "
            "index, task, probability and top_k of the best class.",
        ),
    ] = False,
    engine: Annotated[
        str,
        typer.Option(metavar="local|ray", help="Run here, or on a Ray cluster with a copy of the model per actor."),
    ] = "local",
) -> None:
    """Name what is in images: one row an image, in order.

    An image that cannot be read becomes a row with its error; the rest go on, and the exit code is 1 at the end.
    Progress and the count of failures go to standard error.
    """
    kind = _checked_kind(output_format, output, resume)
    if null and STDIN not in images:
        raise OptionError("--null is about paths on standard input: give - in place of a path, or leave it out")
    if engine not in ENGINES:
        raise OptionError(f"--engine is {engine!r}, expected {' or '.join(ENGINES)}{nearest(engine, ENGINES)}")
    _check_extras(kind, engine)
    with require_extra("cdl predict"):
        from cdl_deploy.cli.predict_progress import shown
        from cdl_deploy.data.left_out import LeftOut
        from cdl_deploy.data.paths import check_sources, expand_paths
        from cdl_deploy.rows.file import RowFile, RowStream
        from cdl_deploy.runtime.classifier import Classifier
    for stream in (sys.stdin, sys.stdout, sys.stderr):  # paths need not be valid UTF-8
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    check_sources(images)
    left_out, separator = LeftOut(), "\0" if null else "\n"
    if engine == "local" and not providers:  # a GPU's driver maps far more than it uses
        limit_memory()
    classifier = Classifier(model, providers=providers, threads=1, reject=reject)
    if classifier.interface.assumed is not None:
        echo(f"note: {classifier.interface.assumed}", err=True)
    top_k = min(top_k, len(classifier.classes))
    sink = RowStream(kind, top_k) if output is None else RowFile(output, kind, top_k, resume)
    try:
        with sink:
            paths = sink.remaining(expand_paths(images, sys.stdin, left_out, separator), classifier)
            rows = _rows(classifier, paths, batch_size, top_k, threads, providers, engine)
            with closing(rows), shown(rows, images, sink.done, rows_shown=output is None) as coming:
                for row in coming:
                    if strict and row.error is not None:
                        raise DataError(f"{row.error}{sink.kept}")
                    sink.write(row)
    except PassingError as error:
        raise PassingError(f"{error}{sink.kept}") from None
    except KeyboardInterrupt:
        echo(f"stopped{sink.kept}", err=True)
        raise
    if left_out.text():
        echo(f"note: {left_out.text()}", err=True)
    if sink.failed:
        echo(f"{sink.failed} of {counted(sink.done, 'image')} could not be read", err=True)
        raise typer.Exit(1)


def _checked_kind(kind: str | None, output: Path | None, resume: bool) -> str:
    """The format of the rows; raises `OptionError` where the options do not go together."""
    by_suffix = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
    if kind is None and output is not None:
        kind = by_suffix.get(output.suffix.lower())
        if kind is None:
            suffixes = ", ".join(by_suffix)
            raise OptionError(
                f"--output {output}: its suffix names no format, expected {suffixes}; or add --format jsonl or csv"
            )
    kind = kind or "table"
    if kind == "table" and output is not None:
        raise OptionError(f"--output {output}: a table is for people to look at; give --format jsonl, csv or parquet")
    if kind not in KINDS:
        raise OptionError(
            f"--format is {kind!r}, expected {', '.join(KINDS[:-1])} or {KINDS[-1]}{nearest(kind, KINDS)}"
        )
    if kind == "parquet" and output is None:
        raise OptionError("--format parquet needs a file to write: add --output rows.parquet")
    if resume and output is None:
        raise OptionError("--resume needs the file to continue: add --output FILE")
    return kind


def _check_extras(kind: str, engine: str) -> None:
    """Raise `MissingExtraError` before any work is done."""
    if kind == "parquet":
        with require_extra("--format parquet", "parquet"):
            importlib.import_module("pyarrow.parquet")
    if engine == "ray":
        with require_extra("--engine ray", "ray"):
            importlib.import_module("ray.data")


def _rows(
    classifier: Classifier,
    paths: Iterator[str],
    batch_size: int,
    top_k: int,
    threads: int | None,
    providers: list[str] | None,
    engine: str,
) -> Generator[Row, None, None]:
    if engine == "ray":
        from cdl_deploy.runtime.ray_engine import predict_rows_on_ray

        return predict_rows_on_ray(classifier, paths, batch_size, top_k, threads or 1, providers)
    from cdl_deploy.runtime.predict import predict_rows

    return predict_rows(classifier, paths, batch_size, top_k, threads)
