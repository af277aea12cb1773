"""Progress of `cdl predict` on a terminal: images done, of how many, images/s, time left. Nothing anywhere else."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cdl_deploy.cli.output import make_console
from cdl_deploy.data.paths import STDIN, expand_paths
from cdl_deploy.errors import DataError
from cdl_deploy.runtime.predict import Row


@contextmanager
def shown(rows: Iterator[Row], sources: Sequence[str], done: int, rows_shown: bool) -> Iterator[Iterator[Row]]:
    """`rows`, while a line on standard error tells how many of those that `sources` name have come.

    `done` were there before. Nothing is told where standard error is no terminal, or where rows on the same terminal
    (`rows_shown`) tell it themselves.
    """
    if not sys.stderr.isatty() or (rows_shown and sys.stdout.isatty()):
        yield rows
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=make_console(stderr=True), transient=True) as progress:
        task = progress.add_task("predict", total=None, completed=done, rate="")
        if STDIN not in sources:
            # Counting a million files takes a while, in which the first ones can be predicted already.
            threading.Thread(target=_count, args=(sources, progress, task), name="cdl-count", daemon=True).start()
        yield _counted(rows, progress, task)


def _counted(rows: Iterator[Row], progress: Progress, task: TaskID) -> Iterator[Row]:
    for row in rows:
        yield row
        progress.advance(task)
        speed = progress.tasks[0].speed
        if speed is not None:  # not known at the beginning, and again when the total becomes known
            progress.update(task, rate=f"{speed:.0f} images/s")


def _count(sources: Sequence[str], progress: Progress, task: TaskID) -> None:
    try:
        progress.update(task, total=sum(1 for _ in expand_paths(sources)))
    except DataError:  # a folder that vanished meanwhile: the rows will say so
        pass
