"""What `cdl evaluate --data` and `cdl inspect --images` share: their options, and what they say of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cdl_deploy.cli.output import echo
from cdl_deploy.counted import counted

if TYPE_CHECKING:
    from cdl_deploy.evaluation import LabelledImages
    from cdl_deploy.evaluation.predictions import Unreadable

NAMED_ERRORS = 10

Holdout = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Of a folder with CLASS/…, only what cdl train --holdout with this share left out.",
        show_default=False,
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="A file that says of which class each image is, in place of folders; as for cdl train --labels.",
        show_default=False,
    ),
]
SkipUnknown = Annotated[
    bool, typer.Option("--skip-unknown", help="Leave out images of classes that the model does not know.")
]
BatchSize = Annotated[int, typer.Option(metavar="N", help="Images in one run of the model.", min=1)]
Threads = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Threads, each of which decodes images and runs the model. Default: all cores that this process may use.",
        min=1,
        show_default=False,
    ),
]


def note_left_out(images: LabelledImages) -> None:
    """Say on standard error which files of the folder are none of the images."""
    text = images.others.text()
    if text:
        echo(f"note: {text}", err=True)


def report_unreadable(unreadable: Sequence[Unreadable], images: int) -> None:
    """Name images that could not be read on standard error, count them, and leave with exit code 1 if there are any.

    `images`: those that could be read.
    """
    if not unreadable:
        return
    for item in unreadable[:NAMED_ERRORS]:
        echo(item.error if item.error.startswith(item.path) else f"{item.path}: {item.error}", err=True)
    if len(unreadable) > NAMED_ERRORS:
        echo(f"… and {len(unreadable) - NAMED_ERRORS} more", err=True)
    echo(f"{len(unreadable)} of {counted(images + len(unreadable), 'image')} could not be read", err=True)
    raise typer.Exit(1)
