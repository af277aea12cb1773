"""`cdl inspect`: what a model knows, takes and gives, and which prompts images select."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
from cdl_deploy.cli.output import echo_json, make_console
from cdl_deploy.data.evaluation_images import open_evaluation_images
from cdl_deploy.errors import OptionError, nearest
from cdl_deploy.require_extra import require_extra

EXAMPLES = """
cdl inspect student.onnx
cdl inspect student.onnx --json
cdl inspect student.onnx --images photos/ --plots pictures/
cdl inspect student.onnx --images photos/ --by class
"""

BY = ("task", "class")


def command(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="Exported model, or another ONNX classifier with labels (.onnx).", show_default=False
        ),
    ],
    images: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|digits",
            help="Show which task's prompts these images select; laid out as for cdl evaluate --data.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[str, typer.Option(metavar="task|class", help="A row a task of the images, or a class.")] = "task",
    holdout: Holdout = None,
    labels: Labels = None,
    skip_unknown: SkipUnknown = False,
    plots: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --images: write selection.png to this folder.", show_default=False),
    ] = None,
    batch_size: BatchSize = 32,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what a model knows, how it preprocesses and how it selects prompts; from its file alone.

    With --images, a heat map of the prompts that are selected: a row a task of the images, a column a task of the
    prompts. Where images select another task's prompts, the model takes their features for that task's: that is why
    classes of different tasks are confused.

    An image that cannot be read is named and counted; the rest go on, and the exit code is 1 at the end.
    """
    if by not in BY:
        raise OptionError(f"--by is {by!r}, expected {' or '.join(BY)}{nearest(by, BY)}")
    given = {
        "--plots": plots is not None,
        "--holdout": holdout is not None,
        "--labels": labels is not None,
        "--skip-unknown": skip_unknown,
    }
    alone = [name for name, is_given in given.items() if is_given]
    if alone and images is None:
        raise OptionError(f"{alone[0]} belongs to --images DIR: give it, or leave {alone[0]} out")
    with require_extra("cdl inspect"):
        from cdl_deploy.evaluation.inspection import inspect_model
        from cdl_deploy.evaluation.selection import measure_selection
    if plots is not None:
        with require_extra("cdl inspect --plots", "plot"):
            from cdl_deploy.evaluation import pictures
    limit_memory()
    found = inspect_model(model)
    selection = None
    if images is not None:
        labelled = open_evaluation_images("--images", "cdl inspect", images, holdout, labels)
        note_left_out(labelled)
        with image_progress() as show:
            selection = measure_selection(
                model,
                labelled,
                "class" if by == "class" else "task",
                skip_unknown=skip_unknown,
                batch_size=batch_size,
                workers=threads,
                on_image=lambda done, total: show("inspect", done, total),
            )
        if plots is not None:
            try:
                pictures.write_picture(pictures.draw_selection(selection), plots / "selection.png")
            except OSError as error:
                raise OptionError(f"--plots {plots}: {error.strerror or error}") from error
    if as_json:
        values: dict[str, Any] = found.to_dict()
        if selection is not None:
            values["selection"] = selection.to_dict()
        echo_json(values)
    else:
        from cdl_deploy.cli.heat_map import HeatMap
        from cdl_deploy.cli.inspect_table import inspection_tables

        console = make_console()
        if selection is None:
            console.print(inspection_tables(found))
        else:
            title = f"{model} on {selection.source}: how strongly images select each task's prompts"
            console.print(title, highlight=False, soft_wrap=True, markup=False)
            console.print(HeatMap(selection))
            if plots is not None:
                console.print(str(plots / "selection.png"), highlight=False, soft_wrap=True, markup=False)
    if selection is not None:
        report_unreadable(selection.unreadable, sum(row.images for row in selection.rows))
