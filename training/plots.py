"""The picture of a run: accuracy matrices, and accuracy over tasks, teacher against student."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cdl_deploy.files import write_atomic
from cdl_deploy.training.metrics import Matrix, final_average_accuracy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"student": "#0072b2", "teacher": "#d55e00"}  # distinguishable without colour vision


def plot_run(matrices: dict[str, list[list[float]]], title: str, path: Path) -> None:
    """Write a PNG: one heat map a role, then mean accuracy over the classes seen after each task."""
    shown = {role: matrix for role, matrix in matrices.items() if matrix}
    figure = Figure(figsize=(4.2 * (len(shown) + 1), 3.9), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Axes] = list(figure.subplots(1, len(shown) + 1))
    for axis, (role, matrix) in zip(axes, shown.items(), strict=False):
        _heat_map(axis, role, matrix)
    _over_tasks(axes[-1], shown)
    figure.suptitle(title, fontsize=10)
    write_atomic(path, lambda file: figure.savefig(file, format="png"))


def _heat_map(axis: Axes, role: str, matrix: Matrix) -> None:
    count = len(matrix)
    cells = [[*row, *[float("nan")] * (count - len(row))] for row in matrix]
    axis.imshow(cells, vmin=0, vmax=100, cmap="Blues")
    if count <= 12:
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                axis.text(
                    j, i, f"{value:.0f}", ha="center", va="center", fontsize=8, color="white" if value > 60 else "black"
                )
    ticks = list(range(0, count, max(1, count // 10)))
    axis.set_xticks(ticks, [str(t + 1) for t in ticks])
    axis.set_yticks(ticks, [str(t + 1) for t in ticks])
    axis.set(xlabel="images of task", ylabel="after task", title=f"{role}: accuracy (%)")


def _over_tasks(axis: Axes, matrices: dict[str, list[list[float]]]) -> None:
    for role, matrix in matrices.items():
        means = [final_average_accuracy(matrix[: i + 1]) for i in range(len(matrix))]
        axis.plot(range(1, len(means) + 1), means, marker="o", label=f"{role} ({means[-1]:.1f} %)", color=COLOURS[role])
    count = max(len(matrix) for matrix in matrices.values())
    axis.set_xticks(range(1, count + 1, max(1, count // 10)))
    axis.set(
        xlabel="after task", ylabel="accuracy over all classes seen (%)", ylim=(0, 102), title="accuracy over tasks"
    )
    axis.grid(alpha=0.3)
    axis.legend(loc="lower left")
