"""`cdl evaluate`: how good a model is, on images whose classes are known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdl_deploy.cli.image_progress import image_progress
from cdl_deploy.cli.labelled import (
    BatchSize,
    Holdout,
    Labels,
    SkipUnknown,
    Threads,
    note_left_out,
    report_unreadable,
)
from cdl_deploy.cli.memory_limit import limit_memory
from cdl_deploy.cli.output import echo, echo_json, make_console
from cdl_deploy.data.evaluation_images import open_evaluation_images
from cdl_deploy.errors import OptionError
from cdl_deploy.require_extra import require_extra

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cdl_deploy.evaluation import Evaluation

EXAMPLES = """
cdl evaluate student.onnx --data photos/
cdl evaluate student.onnx --data photos/ --holdout 0.2 --plots pictures/
cdl evaluate student.onnx --data photos/ --against teacher.onnx
cdl evaluate theirs.onnx --data photos/ --against student.onnx
cdl evaluate student.onnx --data digits --json > evaluation.json
cdl evaluate student.onnx --data photos/ --unknown other-things/
cdl evaluate student.onnx --data photos/ --runtime openvino,tract
cdl evaluate runs/digits
"""


def command(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL_OR_RUN",
            help="Exported model or another ONNX classifier with labels (.onnx), or a run.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|digits",
            help="Images by class: a folder with test/CLASS/… or val/CLASS/…, or with CLASS/…; or the embedded digits. "
            "Default for a run: its own test images.",
            show_default=False,
        ),
    ] = None,
    holdout: Holdout = None,
    labels: Labels = None,
    skip_unknown: SkipUnknown = False,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="OTHER", help="Compare with this model, on the classes that both know.", show_default=False
        ),
    ] = None,
    unknown: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Images of none of the classes: show how well the model's distance tells them from those of --data "
            "(AUROC), and how many of each it calls unknown.",
            show_default=False,
        ),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Run the model in these runtimes and compare each with onnxruntime: openvino, mnn=PATH/bin/python "
            "where another Python has it, and so on; what cdl export --target knows.",
            show_default=False,
        ),
    ] = None,
    teacher: Annotated[bool, typer.Option("--teacher/--no-teacher", help="Of a run: the teacher as well.")] = True,
    plots: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write pictures to this folder: confusion and calibration; of a run, its matrices.",
            show_default=False,
        ),
    ] = None,
    all_classes: Annotated[bool, typer.Option("--all-classes", help="Show every class, however many.")] = False,
    batch_size: BatchSize = 32,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the report to this file, as JSON.", show_default=False),
    ] = None,
) -> None:
    """Measure a model on images whose classes are known: accuracy, confusion, calibration.

    The model chooses among all classes that it knows. Accuracy is shown over all images, by task and by class, with the
    classes that are taken for one another, the expected calibration error, and how often a second model says the same.

    Of a run, the learners are exported after every task and these graphs tested: the accuracy matrix and forgetting,
    beside what training measured. That takes PyTorch; an exported model takes nothing but the base install.

    An image that cannot be read is named and counted; the rest go on, and the exit code is 1 at the end.
    """
    if (model / "run.json").exists():
        refused = {
            "--runtime": runtime is not None,
            "--against": against is not None,
            "--unknown": unknown is not None,
            "--all-classes": all_classes,
        }
        for name in (name for name, given in refused.items() if given):
            raise OptionError(f"{name} is about a model, and {model} is a run: give an exported model, or leave it out")
        _evaluate_run(model, data, holdout, labels, skip_unknown, teacher, plots, batch_size, threads, as_json, save)
        return
    if not teacher:
        raise OptionError(f"--no-teacher is about a run, and {model} is none: leave it out")
    if data is None:
        if not model.exists():
            raise OptionError(f"{model} does not exist: give an exported model, or a run directory")
        raise OptionError("cdl evaluate needs images whose classes are known: add --data DIR")
    with require_extra("cdl evaluate"):
        from cdl_deploy.evaluation import evaluate
        from cdl_deploy.evaluation.rejection import check_unknown, measure_rejection
        from cdl_deploy.runtime.classifier import Classifier
    if runtime is not None:
        refused = {"--against": against is not None, "--unknown": unknown is not None, "--plots": plots is not None}
        for name in (name for name, given in refused.items() if given):
            raise OptionError(f"{name} does not go with --runtime, which compares with onnxruntime: leave one out")
        _evaluate_in_runtimes(model, runtime, data, holdout, labels, skip_unknown, batch_size, as_json, save)
        return
    if plots is not None:
        with require_extra("cdl evaluate --plots", "plot"):
            from cdl_deploy.evaluation import pictures  # noqa: F401  asked for before the work, not after it
    images = open_evaluation_images("--data", "cdl evaluate", data, holdout, labels)
    note_left_out(images)
    limit_memory()
    first = Classifier(model, threads=1)
    second = Classifier(against, threads=1) if against is not None else None
    if unknown is not None:
        check_unknown(first, unknown)
    for assumed in (model.interface.assumed for model in (first, second) if model is not None):
        if assumed is not None:
            echo(f"note: {assumed}", err=True)
    with image_progress() as show:
        report = evaluate(
            first,
            images,
            second,
            skip_unknown=skip_unknown,
            batch_size=batch_size,
            workers=threads,
            on_image=lambda done, total: show("evaluate", done, total),
        )
        if unknown is not None:
            found = measure_rejection(first, images, unknown, skip_unknown, batch_size, threads)
            report = replace(report, unknown=found)
    written = _save(save, report.to_dict())
    if plots is not None:
        from cdl_deploy.evaluation.pictures import draw_calibration, draw_confusion, write_picture

        figures = {"confusion": draw_confusion(report), "calibration": draw_calibration(report)}
        with _writing("--plots", plots):
            for name, figure in figures.items():
                write_picture(figure, plots / f"{name}.png")
        written += [plots / f"{name}.png" for name in figures]
    if as_json:
        echo_json(report.to_dict())
    else:
        from cdl_deploy.cli.evaluate_table import evaluation_tables

        _print(evaluation_tables(report, all_classes), written)
    report_unreadable(report.unreadable, report.images)


def _evaluate_in_runtimes(
    model: Path,
    runtime: str,
    data: str,
    holdout: float | None,
    labels: str | None,
    skip_unknown: bool,
    batch_size: int,
    as_json: bool,
    save: Path | None,
) -> None:
    from cdl_deploy.evaluation import evaluate
    from cdl_deploy.evaluation.in_runtime import in_runtime
    from cdl_deploy.runtime.classifier import Classifier
    from cdl_deploy.targets.process import parse_places

    places = parse_places(runtime)
    images = open_evaluation_images("--data", "cdl evaluate", data, holdout, labels)
    note_left_out(images)
    plain = Classifier(model, threads=1)
    reports: dict[str, Evaluation] = {}
    with image_progress() as show:
        for place in places:
            with in_runtime(model, place) as there:
                reports[there.runtime] = evaluate(
                    there,
                    images,
                    plain,
                    skip_unknown=skip_unknown,
                    batch_size=batch_size,
                    workers=1,
                    on_image=lambda done, total, name=place.name: show(f"evaluate in {name}", done, total),  # type: ignore[misc]
                )
    found = {"runtimes": {name: report.to_dict() for name, report in reports.items()}}
    written = _save(save, found)
    if as_json:
        echo_json(found)
    else:
        from cdl_deploy.cli.evaluate_table import runtimes_table

        _print(runtimes_table(reports), written)
    first = next(iter(reports.values()))
    report_unreadable(first.unreadable, first.images)


def _evaluate_run(
    run: Path,
    data: str | None,
    holdout: float | None,
    labels: str | None,
    skip_unknown: bool,
    teacher: bool,
    plots: Path | None,
    batch_size: int,
    threads: int | None,
    as_json: bool,
    save: Path | None,
) -> None:
    with require_extra("cdl evaluate"):
        from cdl_deploy.cli.evaluate_run import evaluate_run
    if plots is not None:
        with require_extra("cdl evaluate RUN --plots", "train"):
            from cdl_deploy.training.plots import draw_run, plot_run
    belonging = {"--holdout": holdout is not None, "--labels": labels is not None, "--skip-unknown": skip_unknown}
    for name in (name for name, given in belonging.items() if given and data is None):
        raise OptionError(f"{name} belongs to --data DIR: give it, or leave {name} out")
    images = open_evaluation_images("--data", "cdl evaluate", data, holdout, labels) if data is not None else None
    if images is not None:
        note_left_out(images)
    with image_progress() as show:
        result = evaluate_run(
            run,
            images,
            skip_unknown=skip_unknown,
            teacher=teacher,
            batch_size=batch_size,
            threads=threads,
            on_step=show,
        )
    written = _save(save, result.to_dict())
    if plots is not None:
        matrices = {role: matrix.measured for role, matrix in result.roles.items()}
        title = f"{run}, exported graphs"
        with _writing("--plots", plots):
            plot_run(matrices, title, plots)
        written += [plots / f"{name}.png" for name in draw_run(matrices, title)]
    if as_json:
        echo_json(result.to_dict())
    else:
        from cdl_deploy.cli.evaluate_run_table import run_evaluation_tables

        _print(run_evaluation_tables(result), written)
    report_unreadable(result.unreadable, sum(result.images) - len(result.unreadable))


def _print(tables: RenderableType, written: list[Path]) -> None:
    """Tables, then the files that were written."""

    console = make_console()
    console.print(tables)
    if written:
        console.print("\n".join(map(str, written)), highlight=False, soft_wrap=True, markup=False)


def _save(save: Path | None, report: dict[str, Any]) -> list[Path]:
    """Write the report where it was asked for."""
    if save is None:
        return []
    from cdl_deploy.files import write_json

    with _writing("--save", save):
        write_json(save, report)
    return [save]


@contextmanager
def _writing(option: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OptionError(f"{option} {path}: {error.strerror or error}") from error
