"""A report as one picture: accuracy against latency, and how the latencies are distributed.

Imported only where a picture is asked for: matplotlib comes with `cdl-deploy[plot]`. Models are told apart by marker
and dash as well as by colour, and every point carries its name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from cdl_deploy.bench.headline import file_size, short_time
from cdl_deploy.bench.report import BenchReport, Measurement
from cdl_deploy.files import write_atomic
from cdl_deploy.printable import figure_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, distinguishable without colour vision."""
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":", "-.")
COLUMNS = 2
CROWDED = 4
"""So many names find room in a picture of one column."""
OFFSETS = ((0, 17), (0, -17), (18, 0), (-18, 0), (9, 17), (9, -17), (-9, 17), (-9, -17), (0, 44), (0, -44))
"""Where a label may stand: points to the right of what it names, and above."""
WIDE = 2.5
"""Decades of an axis from which on only powers of ten are named: more would run into one another."""


def plot_report(report: BenchReport, file: Path) -> None:
    """Write the picture; its kind is that of the file's suffix, one of `FORMATS`."""
    figure = draw(report)
    write_atomic(file, lambda path: figure.savefig(path, dpi=150))


def draw(report: BenchReport) -> Figure:
    """Accuracy against latency on top, where any accuracy is known; below, one distribution for each condition."""
    conditions = list(dict.fromkeys(report.condition(m) for m in report.measurements))
    known = any(model.accuracy is not None for model in report.models)
    columns = min(COLUMNS, max(1, len(conditions)))
    rows = -(-len(conditions) // columns)
    heights = [*([1.25] if known else []), *[1.0] * rows]
    wide = COLUMNS if len(report.models) > CROWDED else columns
    figure = Figure(figsize=(4.8 * wide + 0.6, 3.0 * sum(heights) + 0.6))
    FigureCanvasAgg(figure)
    figure.set_layout_engine(ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    if known:
        _accuracy_against_latency(figure.add_subplot(grid[0, :]), report, conditions[0])
    for number, condition in enumerate(conditions):
        row, column = divmod(number, columns)
        axis = figure.add_subplot(grid[row + known, column])
        _distribution(axis, report, condition)
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(2 * wide, len(labels)), frameon=False)
    machine = report.machine
    where = f"{machine.cpu}, {machine.usable_cores} cores, onnxruntime {machine.onnxruntime}, {report.created[:10]}"
    figure.suptitle(
        figure_text(where),
        fontsize="small",
        color="#555555",
    )
    if known:
        figure.draw_without_rendering()  # this lays everything out: only now it is known where what is
        _spread_labels(figure.axes[0])
    return figure


def _accuracy_against_latency(axis: Axes, report: BenchReport, condition: str) -> None:
    """One point a model, its 95 % interval as a bar, its size as the area of a ring around it."""
    measured = {m.model: m for m in report.measurements if report.condition(m) == condition}
    shown = [model for model in report.models if model.accuracy is not None and model.name in measured]
    largest = max(model.file_bytes for model in shown) if shown else 1
    for model in sorted(shown, key=lambda model: measured[model.name].p50_ms):
        number, m = report.models.index(model), measured[model.name]
        colour = COLOURS[number % len(COLOURS)]
        assert model.accuracy is not None
        axis.scatter(m.p50_ms, model.accuracy, s=900 * model.file_bytes / largest, color=colour, alpha=0.15)
        bar = [[m.p50_ms - (m.low_ms or m.p50_ms)], [(m.high_ms or m.p50_ms) - m.p50_ms]]
        axis.errorbar(m.p50_ms, model.accuracy, xerr=bar, fmt=MARKERS[number % len(MARKERS)], color=colour, capsize=3)
        axis.annotate(
            f"{figure_text(model.name)}\n{short_time(m.p50_ms)} ms, {file_size(model.file_bytes)}",
            (m.p50_ms, model.accuracy),
            xytext=OFFSETS[0],
            textcoords="offset points",
            ha="center",
            fontsize="small",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 5},
        )
    left_out = [model.name for model in report.models if model.accuracy is None]
    beside = f" (accuracy not known: {figure_text(', '.join(left_out))})" if left_out else ""
    axis.set_title(f"accuracy against latency, {condition}{beside}", fontsize="medium")
    axis.set_xlabel("median latency of one run, ms; area: size of the file")
    axis.set_ylabel("accuracy, %")
    _log_axis(axis, [measured[model.name].p50_ms for model in shown], 0.35)
    values = [model.accuracy for model in shown if model.accuracy is not None]
    room = max(1.0, (max(values) - min(values)) * 0.7)
    axis.set_ylim(min(values) - room, max(values) + room)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)


def _spread_labels(axis: Axes) -> None:
    """Put each label where no other label and no other point is in its way, or else where the fewest are."""
    inside = axis.get_window_extent()
    points = {text: axis.transData.transform(text.xy) for text in axis.texts if isinstance(text, Annotation)}
    placed: list[Bbox] = []
    for label, (own_x, own_y) in points.items():
        others = [(x, y) for x, y in points.values() if (x, y) != (own_x, own_y)]
        taken = [*placed, *(Bbox.from_bounds(x - 9, y - 9, 18, 18) for x, y in others)]
        boxes = {offset: _put(label, offset) for offset in OFFSETS}
        in_the_way = {
            offset: box.count_overlaps(taken) + len(points) * (box.union([box, inside]).bounds != inside.bounds)
            for offset, box in boxes.items()
        }
        placed.append(_put(label, min(OFFSETS, key=in_the_way.__getitem__)))


def _put(label: Annotation, offset: tuple[int, int]) -> Bbox:
    """Move a label; where its text stands then, in pixels."""
    label.set_position(offset)
    label.set_horizontalalignment("center" if not offset[0] else "left" if offset[0] > 0 else "right")
    label.set_verticalalignment("center" if not offset[1] else "bottom" if offset[1] > 0 else "top")
    label.get_window_extent()  # with the line to its point; it also brings what follows up to date
    return Text.get_window_extent(label)


def _distribution(axis: Axes, report: BenchReport, condition: str) -> None:
    """Share of runs that took at most so long, a marker at the median. The slowest percent, which would set the scale,
    is left out.
    """
    found: list[Measurement] = [m for m in report.measurements if report.condition(m) == condition]
    names = [model.name for model in report.models]
    for m in found:
        number = names.index(m.model)
        axis.plot(
            m.quantiles_ms[:100],
            range(100),
            color=COLOURS[number % len(COLOURS)],
            linestyle=DASHES[number % len(DASHES)],
            marker=MARKERS[number % len(MARKERS)],
            markevery=[50],
            label=figure_text(m.model),
        )
    axis.set_title(f"distribution, {condition}", fontsize="medium")
    axis.set_xlabel("latency of one run, ms")
    axis.set_ylabel("runs, %")
    axis.set_ylim(0, 100)
    _log_axis(axis, [value for m in found for value in (m.quantiles_ms[0], m.quantiles_ms[99])], 0.05)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)


def _log_axis(axis: Axes, values: Sequence[float], room: float) -> None:
    """A logarithmic x axis in plain numbers that spans `values` with `room` (in decades) on each side."""
    axis.set_xscale("log")
    axis.set_xlim(min(values) / 10**room, max(values) * 10**room)
    decades = math.log10(max(values) / min(values)) + 2 * room
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > WIDE else (1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
