"""The pictures of docs/results.md: accuracy of every student, and accuracy against latency."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.split_cifar import DISTILLATIONS, METHODS, METRICS, values  # noqa: E402


def picture(records: list[dict[str, Any]], file: Path) -> None:
    """Final average accuracy of every student, a panel a method, the teacher as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [method for method in METHODS if any(record["method"] == method for record in records)]
    figure = Figure((2.2 + 2.6 * len(shown), 3.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, method in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        names = [name for name in DISTILLATIONS if values(records, method, name, "student", METRICS[0])]
        for place, name in enumerate(names):
            found = list(values(records, method, name, "student", METRICS[0]).values())
            colour = "#d55e00" if name == "kdp" else "#0072b2"
            axis.plot(found, [place] * len(found), "o", color=colour, alpha=0.5, markersize=5)
            axis.plot(mean(found), place, "|", color=colour, markersize=16, markeredgewidth=2.5)
        taught = [v for n in DISTILLATIONS for v in values(records, method, n, "teacher", METRICS[0]).values()]
        if taught:
            axis.axvline(mean(taught), color="black", linestyle="--", linewidth=1)
            axis.text(mean(taught), -0.7, "teacher ", ha="right", fontsize=8)
        axis.set_yticks(range(len(names)), names)
        axis.set(title=method, xlabel="final average accuracy (%)", ylim=(len(names) - 0.4, -1))
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(file)


def cost_picture(cost: dict[str, Any], file: Path) -> None:
    """Accuracy of the exported file against latency at the first batch size, on a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, ScalarFormatter

    figure = Figure((7.6, 4.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    points = []
    for name, row in cost["models"].items():
        batch, latency = next(iter(row["latency"].items()))
        colour = "black" if name == "teacher" else "#d55e00" if "kdp" in name else "#0072b2"
        axis.plot(latency["p50_ms"], row["accuracy"], "o", color=colour, markersize=7)
        points.append((latency["p50_ms"], row["accuracy"], name, colour))
    heights = [accuracy for _, accuracy, *_ in points]
    gap, taken = (max(heights) - min(heights) + 1) / 22, list[tuple[float, float]]()
    for x, y, name, colour in sorted(points, key=lambda point: -point[1]):
        place = y
        while any(abs(place - other) < gap and 0.5 < x / beside < 2 for beside, other in taken):
            place -= gap / 4
        taken.append((x, place))
        axis.annotate(
            name, (x, y), (x * 1.06, place), fontsize=9, color=colour, va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.3} if place != y else None,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter("")
    low, high = min(x for x, *_ in points), max(x for x, *_ in points)
    axis.set_xlim(low / 1.2, high * 1.5)
    lowest = min(place for _, place in taken)
    axis.set_ylim(lowest - 2 * gap, max(heights) + 2 * gap)
    axis.set(xlabel=f"milliseconds, batch {batch} (median)", ylabel="accuracy on 10,000 test images (%)")
    axis.grid(alpha=0.3)
    figure.savefig(file)
