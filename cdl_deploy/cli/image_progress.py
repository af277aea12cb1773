"""A bar on a terminal's standard error that counts images: done, of how many, how fast, and how long it will take."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cdl_deploy.cli.output import make_console

Show = Callable[[str, int, int], None]


@contextmanager
def image_progress() -> Iterator[Show]:
    """Yield a function to call with (what is done, images done, images in all); it does nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield lambda doing, done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} images/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=make_console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None, rate=0.0)

        def show(doing: str, done: int, total: int) -> None:
            speed = progress.tasks[0].speed or 0.0
            progress.update(task, description=doing, completed=done, total=total, rate=speed)

        yield show
