"""The three pictures of a run: accuracy matrix, accuracy over tasks, forgetting by task; teacher against student.

Nothing is told by hue alone: the colour map falls in lightness, lines have markers and dashes, bars are hatched.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from cdl_deploy.files import write_atomic
from cdl_deploy.printable import figure_text
from cdl_deploy.run.metrics import Matrix, final_average_accuracy, forgetting, forgetting_by_task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

COLOURS = {"student": "#0072b2", "teacher": "#d55e00"}  # distinguishable without colour vision
MARKERS = {"student": "o", "teacher": "s"}
DASHES = {"student": "-", "teacher": "--"}
HATCHES = {"student": "", "teacher": "////"}
NUMBERED = 12
"""Up to so many tasks every cell of a matrix carries its number; beyond, the numbers would run into one another."""

PICTURES = ("accuracy_matrix", "accuracy_over_tasks", "forgetting")
"""What a run draws, by name."""

Matrices = dict[str, list[list[float]]]


def plot_run(matrices: Matrices, title: str, folder: Path) -> None:
    """Write the pictures as PNG files."""
    for name, figure in draw_run(matrices, title).items():
        write_atomic(folder / f"{name}.png", lambda file, figure=figure: figure.savefig(file, format="png"))  # type: ignore[misc]


def draw_run(matrices: Matrices, title: str) -> dict[str, Figure]:
    """`accuracy_matrix`, `accuracy_over_tasks` and `forgetting`; a role without a matrix is left out."""
    shown = {role: matrices[role] for role in ("student", "teacher") if matrices.get(role)}
    count = max(len(matrix) for matrix in shown.values())
    pictures: dict[str, tuple[Callable[[Figure, Matrices], None], tuple[float, float]]] = {
        "accuracy_matrix": (_matrices, (1.3 + 4.2 * len(shown), 4.9)),
        "accuracy_over_tasks": (_over_tasks, (7.2, 4.2)),
        "forgetting": (_forgetting, (max(7.2, 2.0 + 0.22 * count), 4.2)),
    }
    figures = {}
    for name, (draw, size) in pictures.items():
        figures[name] = figure = Figure(
            size, dpi=130, layout=ConstrainedLayoutEngine(rect=(0, 0, 1, 0.95), compress=True)
        )
        FigureCanvasAgg(figure)
        draw(figure, shown)
        figure.suptitle(_shortened(title, round(size[0] * 12)), fontsize=10, y=0.99)
    return figures


def _matrices(figure: Figure, matrices: Matrices) -> None:
    """One heat map a role, and one scale for all."""
    axes: list[Axes] = list(figure.subplots(1, len(matrices), squeeze=False)[0])
    images = [_heat_map(axis, matrix) for axis, matrix in zip(axes, matrices.values(), strict=True)]
    for axis, role in zip(axes, matrices, strict=True):
        axis.set(xlabel="test images of task", ylabel="after task", title=f"{role}: accuracy (%)")
    figure.colorbar(images[-1], ax=axes, shrink=0.8, pad=0.02)


def _heat_map(axis: Axes, matrix: Matrix) -> AxesImage:
    count = len(matrix)
    cells = [[*row, *[float("nan")] * (count - len(row))] for row in matrix]
    image = axis.imshow(cells, vmin=0, vmax=100, cmap="cividis")
    if count <= NUMBERED:
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                colour = "black" if value > 50 else "white"
                axis.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    ticks = [task - 1 for task in _ticks(count)]
    axis.set_xticks(ticks, [str(t + 1) for t in ticks])
    axis.set_yticks(ticks, [str(t + 1) for t in ticks])
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)  # nothing was tested there
    return image


def _over_tasks(figure: Figure, matrices: Matrices) -> None:
    axis = figure.subplots()
    for role, matrix in matrices.items():
        means = [final_average_accuracy(matrix[: i + 1]) for i in range(len(matrix))]
        style: dict[str, Any] = {
            "marker": MARKERS[role],
            "linestyle": DASHES[role],
            "markersize": 6 if len(means) <= 20 else 3.5,
        }
        axis.plot(
            range(1, len(means) + 1), means, label=f"{role}, at the end {means[-1]:.1f} %", color=COLOURS[role], **style
        )
    count = max(len(matrix) for matrix in matrices.values())
    axis.set_xticks(_ticks(count))
    axis.set(xlabel="after task", ylabel="accuracy over all classes seen (%)", ylim=(0, 103), xlim=_around(count))
    axis.grid(alpha=0.3)
    _legend(figure, matrices)


def _forgetting(figure: Figure, matrices: Matrices) -> None:
    """Bars side by side; below zero is what improved later. Their mean is the run's forgetting."""
    axis = figure.subplots()
    width = 0.8 / len(matrices)
    for position, (role, matrix) in enumerate(matrices.items()):
        drops = forgetting_by_task(matrix)
        centres = [task + (position - (len(matrices) - 1) / 2) * width for task in range(1, len(drops) + 1)]
        label = f"{role}, mean {forgetting(matrix):.1f} points"
        bars: dict[str, Any] = {"color": COLOURS[role], "hatch": HATCHES[role], "edgecolor": "white", "linewidth": 0.3}
        axis.bar(centres, drops, width, label=label, **bars)
    count = max(len(matrix) for matrix in matrices.values())
    low, high = axis.get_ylim()
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(_ticks(count))
    axis.set(xlabel="task", ylabel="accuracy lost since it was learned (points)", xlim=_around(count))
    axis.set_ylim(min(low, -1), max(high, 5))  # noise of a point is not to look like a cliff
    axis.grid(alpha=0.3, axis="y")
    axis.set_axisbelow(True)
    _legend(figure, matrices)


def _legend(figure: Figure, matrices: Matrices) -> None:
    """Below the axes, where it hides nothing."""
    figure.legend(loc="outside lower center", ncols=len(matrices), frameon=False)


def _ticks(count: int) -> list[int]:
    """Task numbers to name: all of up to 12, then 1 and every multiple of a round step."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, count) if count <= 12 * step)
    return list(range(1, count + 1)) if step == 1 else [1, *range(step, count + 1, step)]


def _around(count: int) -> tuple[float, float]:
    return 0.4, count + 0.6


def _shortened(title: str, most: int) -> str:
    """The end of a long title: paths tell most at their end."""
    return figure_text(title if len(title) <= most else "…" + title[-most + 1 :])
