"""The pictures of an evaluation: confusion, calibration, and which task's prompts were selected.

Nothing is told by hue alone: the colour map rises in lightness, and marks differ in shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from cdl_deploy.counted import counted
from cdl_deploy.evaluation.report import Evaluation
from cdl_deploy.evaluation.selection import PromptUse
from cdl_deploy.files import write_atomic
from cdl_deploy.printable import figure_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray

NUMBERED = 12
"""Up to so many columns every cell carries its number; beyond, the numbers would run into one another."""
NAMED = 120
"""Up to so many rows each is named; beyond, only tasks are."""
LONGEST = 18
"""Letters of a class's name."""
COLOURS = "cividis"


def write_picture(figure: Figure, path: Path) -> None:
    """Save as PNG, atomically."""
    write_atomic(path, lambda file: figure.savefig(file, format="png"))


def draw_confusion(report: Evaluation) -> Figure:
    """Row: the true class; column: the class that was named; colour: percent of the row. Classes stand by task."""
    order = sorted(range(len(report.classes)), key=lambda index: report.classes[index].task or 0)
    classes = [report.classes[index] for index in order]
    counts = report.confusion[np.ix_(order, order)].astype(float)
    totals = counts.sum(axis=1, keepdims=True)
    percent = np.divide(100 * counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    count = len(classes)
    figure = _figure(*_figure_size(count, count))
    axis = figure.subplots()
    # A root, so that one image in a hundred is still seen beside the diagonal.
    image = axis.imshow(percent, cmap=COLOURS, norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    if count <= NUMBERED:
        _write_numbers(axis, image, percent)
    tasks = [item.task for item in classes if item.task is not None]
    what = "class"
    if count <= NAMED:
        names = [_short(item.name) for item in classes]
        axis.set_xticks(range(count), names, rotation=90, fontsize=_font(count))
        axis.set_yticks(range(count), names, fontsize=_font(count))
    elif tasks:
        _task_ticks(axis, tasks, "xy")
        what = "classes of task"
    else:
        ticks = _steps(count)
        axis.set_xticks(ticks, [str(tick + 1) for tick in ticks], rotation=90)
        axis.set_yticks(ticks, [str(tick + 1) for tick in ticks])
        what = "class, by its number in the model"
    if tasks:
        _task_lines(axis, tasks, "xy")
    axis.set(xlabel=f"named {what}", ylabel=f"true {what}")
    _title(figure, report.model, f"{report.accuracy:.1f} % of {counted(report.images, 'image')} right")
    bar = figure.colorbar(image, ax=axis, shrink=0.8, pad=0.02, aspect=30, ticks=[0, 1, 5, 10, 25, 50, 75, 100])
    bar.set_label("of the true class's images (%)")
    return figure


def draw_calibration(report: Evaluation) -> Figure:
    """Above: how often the model is right where it says how sure it is. Below: how often it is so sure."""
    figure = _figure(5.6, 5.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = 100 * (report.bins[0].upper - report.bins[0].lower)
    left = [100 * item.lower for item in report.bins]
    upper.plot([0, 100], [0, 100], color="black", linestyle="--", linewidth=1, label="as sure as right")
    upper.bar(
        left,
        [item.accuracy or 0 for item in report.bins],
        width,
        align="edge",
        color="#0072b2",
        edgecolor="white",
        label="right",
    )
    filled = [item for item in report.bins if item.accuracy is not None and item.confidence is not None]
    upper.plot(
        [item.confidence for item in filled],
        [item.accuracy for item in filled],
        color="#d55e00",
        marker="o",
        markersize=4,
        linestyle="none",
        label="right, at the mean confidence",
    )
    upper.set(ylabel="images that are right (%)", ylim=(0, 103), xlim=(0, 100))
    _title(
        figure,
        report.model,
        f"calibration error {report.calibration_error:.1f} points\n"
        f"on average {report.confidence:.1f} % sure, {report.accuracy:.1f} % right",
    )
    lower.bar(left, [item.images for item in report.bins], width, align="edge", color="#999999", edgecolor="white")
    lower.set(xlabel="probability of the class that is named (%)", ylabel="images")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def draw_selection(selection: PromptUse) -> Figure:
    """Row: the images; column: the task whose prompts they select; colour: how strongly, in percent."""
    columns = max(len(row.scores) for row in selection.rows if row.scores is not None)
    cells = np.array([row.scores or [np.nan] * columns for row in selection.rows])
    rows = len(cells)
    figure = _figure(*_figure_size(columns, rows))
    axis = figure.subplots()
    image = axis.imshow(cells, cmap=COLOURS, vmin=0, interpolation="nearest", aspect="auto")
    if columns <= NUMBERED and rows <= NAMED:
        _write_numbers(axis, image, cells)
    tasks = [row.task for row in selection.rows]
    if rows <= NAMED or selection.by == "task":
        shown = range(rows) if rows <= NAMED else _steps(rows)
        axis.set_yticks(shown, [_short(selection.rows[i].name) for i in shown], fontsize=_font(len(shown)))
    else:
        _task_ticks(axis, tasks, "y")
    if selection.by == "class":
        _task_lines(axis, tasks, "y")
    for row, task in enumerate(tasks):  # an image's own task, framed: told without colour
        axis.add_patch(Rectangle((task - 1.5, row - 0.5), 1, 1, fill=False, edgecolor="#d55e00", linewidth=1.5))
    ticks = _steps(columns)
    axis.set_xticks(ticks, [str(tick + 1) for tick in ticks])
    axis.set(xlabel="prompts of task", ylabel="images of")
    _title(
        figure,
        selection.model,
        f"prompts of an image's own task (framed)\nare selected with {selection.own_task:.0f} %",
    )
    figure.colorbar(image, ax=axis, shrink=0.8, pad=0.02, aspect=30).set_label("mean task score (%)")
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure((width, height), dpi=130, layout=ConstrainedLayoutEngine(rect=(0.01, 0, 0.98, 0.99)))
    FigureCanvasAgg(figure)
    return figure


def _figure_size(columns: int, rows: int) -> tuple[float, float]:
    """Width and height in inches: cells as large as fit, and room for names, titles and a scale."""
    across, down = (min(13.0, count * max(0.13, min(0.45, 9 / count))) for count in (columns, rows))
    return max(6.0, across + 3.0), max(4.2, down + 2.0)


def _font(names: int) -> float:
    """Points: what a row of `_size` has room for."""
    return 8 if names <= NAMED // 3 else 6


def _write_numbers(axis: Axes, image: AxesImage, cells: NDArray[np.float64]) -> None:
    """Whole percents, dark on light cells and light on dark ones; nothing where nothing is."""
    light = np.asarray(image.norm(np.ma.masked_invalid(cells))) > 0.5
    for (row, column), value in np.ndenumerate(cells):
        if value > 0:
            colour = "black" if light[row, column] else "white"
            text = f"{value:.0f}" if value >= 0.5 else "<1"
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


def _runs(tasks: Sequence[int]) -> list[tuple[int, int, int]]:
    """(task, first row, row after its last) of each group of equal neighbours."""
    starts = [0, *[row for row, (one, two) in enumerate(pairwise(tasks), 1) if one != two], len(tasks)]
    return [(tasks[first], first, end) for first, end in pairwise(starts)]


def _task_ticks(axis: Axes, tasks: Sequence[int], which: str) -> None:
    """One tick a task, in the middle of its classes; with many tasks, of every few."""
    runs = _runs(tasks)
    shown = [runs[index] for index in _steps(len(runs))]
    ticks, names = [(first + end - 1) / 2 for _, first, end in shown], [str(task) for task, _, _ in shown]
    if "x" in which:
        axis.set_xticks(ticks, names)
    if "y" in which:
        axis.set_yticks(ticks, names)


def _task_lines(axis: Axes, tasks: Sequence[int], which: str) -> None:
    """A thin line between the classes of one task and the next."""
    for _, first, _ in _runs(tasks)[1:]:
        if "x" in which:
            axis.axvline(first - 0.5, color="white", linewidth=0.6, alpha=0.6)
        if "y" in which:
            axis.axhline(first - 0.5, color="white", linewidth=0.6, alpha=0.6)


def _steps(count: int) -> list[int]:
    """Positions to name, from 0: all of up to 25, then a round number apart."""
    step = next(step for step in (1, 5, 10, 20, 50, 100, 200, 500, 1000, count) if count <= 25 * step)
    return list(range(count)) if step == 1 else [0, *range(step - 1, count, step)]


def _short(name: str) -> str:
    return figure_text(name if len(name) <= LONGEST else name[: LONGEST - 1] + "…")


def _title(figure: Figure, model: str, text: str) -> None:
    """Above everything, the model's path cut to the width of the picture: its end tells most."""
    first, _, rest = text.partition("\n")
    most = max(8, round(figure.get_figwidth() * 12) - len(first) - 2)
    name = model if len(model) <= most else "…" + model[-most + 1 :]
    figure.suptitle(f"{figure_text(name)}: {first}" + (f"\n{rest}" if rest else ""), fontsize=10)
