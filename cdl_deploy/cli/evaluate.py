"""`cdl evaluate`: how good an exported model is, on images whose classes are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdl_deploy.cli.image_progress import image_progress
from cdl_deploy.cli.labelled import open_labelled, report_unreadable
from cdl_deploy.cli.missing import needs
from cdl_deploy.errors import OptionError

if TYPE_CHECKING:
    from cdl_deploy.evaluation import Evaluation

EXAMPLES = """
cdl evaluate student.onnx --data photos/
cdl evaluate student.onnx --data photos/ --holdout 0.2 --plots pictures/
cdl evaluate student.onnx --data photos/ --against teacher.onnx
cdl evaluate student.onnx --data digits --json > evaluation.json
"""


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Exported model (.onnx).", show_default=False)],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|digits",
            help="Images by class: a folder with test/CLASS/… or val/CLASS/…, or with CLASS/…; or the embedded digits.",
            show_default=False,
        ),
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Of a folder with CLASS/…, only what cdl train --holdout with this share left out.",
            show_default=False,
        ),
    ] = None,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Leave out images of classes that the model does not know.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="OTHER", help="Compare with this model, on the classes that both know.", show_default=False
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write confusion.png and calibration.png to this folder.", show_default=False),
    ] = None,
    all_classes: Annotated[bool, typer.Option("--all-classes", help="Show every class, however many.")] = False,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Images in one run of the model.", min=1)] = 32,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Threads that decode, and threads of the model. Default: all cores.",
            min=1,
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the report to this file, as JSON.", show_default=False),
    ] = None,
) -> None:
    """Measure a model on images whose classes are known: accuracy, confusion, calibration.

    The model chooses among all classes that it knows. Accuracy is shown over all images, by task and by class, with the
    classes that are taken for one another, the expected calibration error, and how often a second model says the same.

    An image that cannot be read is named and counted; the rest go on, and the exit code is 1 at the end.
    """
    with needs("cdl evaluate"):
        from cdl_deploy.classifier import Classifier
        from cdl_deploy.evaluation import evaluate
    if plots is not None:
        with needs("cdl evaluate --plots", "plot"):
            from cdl_deploy.evaluation import pictures  # noqa: F401  asked for before the work, not after it
    if data is None:
        raise OptionError("cdl evaluate needs images whose classes are known: add --data DIR")
    images = open_labelled("--data", "cdl evaluate", data, holdout)
    first = Classifier(model, threads=threads)
    second = Classifier(against, threads=threads) if against is not None else None
    with image_progress("evaluate") as show:
        report = evaluate(
            first,
            images,
            second,
            skip_unknown=skip_unknown,
            batch_size=batch_size,
            workers=threads,
            on_image=show,
        )
    written = _write(report, save, plots)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        from cdl_deploy.cli.evaluate_table import evaluation_tables

        console = Console()
        console.print(evaluation_tables(report, all_classes))
        if written:
            console.print("\n".join(map(str, written)), highlight=False, soft_wrap=True, markup=False)
    report_unreadable(report.unreadable, report.images)


def _write(report: Evaluation, save: Path | None, plots: Path | None) -> list[Path]:
    """What was written: pictures, and the report."""
    from cdl_deploy.files import write_json

    written: list[Path] = []
    try:
        if save is not None:
            write_json(save, report.to_dict())
            written.append(save)
    except OSError as error:
        raise OptionError(f"--save {save}: {error.strerror or error}") from error
    if plots is not None:
        from cdl_deploy.evaluation.pictures import draw_calibration, draw_confusion, write_picture

        for name, draw in (("confusion", draw_confusion), ("calibration", draw_calibration)):
            try:
                write_picture(draw(report), plots / f"{name}.png")
            except OSError as error:
                raise OptionError(f"--plots {plots}: {error.strerror or error}") from error
            written.append(plots / f"{name}.png")
    return written
