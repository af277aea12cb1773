"""The picture of docs/results.md: accuracy of the exported files against their latency, the upper bound as a line."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from benchmarks.evidence.records import Records

COLOURS = {"none": "#0072b2", "kd": "#009e73", "kdp": "#d55e00"}
FROZEN, DISTILLED = "#777777", "#aa3377"
Point = tuple[float, float, str, str, str]


def points(records: Records) -> list[Point]:
    """Milliseconds, accuracy, words, colour and marker of every file that was timed and tested."""
    found = []
    timed = records.most_timed.get("models", {})
    for row, head in records.shown():
        for file, suffix, marker in (
            ("student", "", "o"),
            ("student.int8", ".int8", "s"),
            ("teacher", ".teacher", "^"),
        ):
            accuracy = records.of_file(row.name, head, file, "accuracy")
            name = f"{row.name}-{head}{suffix}"
            if not accuracy or name not in timed:
                continue
            student = DISTILLED if row.distilled else FROZEN if row.frozen else COLOURS[row.distill]
            colour = "black" if file == "teacher" else student
            words = f"{row.name}, {head}".replace("frozen-", "frozen ").replace("distilled-", "distilled ")
            kind = {"student": "", "student.int8": ", int8", "teacher": ", teacher"}[file]
            found.append((timed[name]["p50_ms"], mean(accuracy), words + kind, colour, marker))
    return found


def picture(records: Records, file: Path) -> None:
    """Latency on a logarithmic axis; every point has its name beside it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    figure = Figure((8.6, 5.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    found = points(records)
    heights = [y for _, y, *_ in found] + [it["accuracy"] for it in records.joint.values()]
    gap = (max(heights, default=1) - min(heights, default=0) + 1) / 24
    taken: list[tuple[float, float]] = []
    for x, y, words, colour, marker in sorted(found, key=lambda point: -point[1]):
        axis.plot(x, y, marker, color=colour, markersize=7)
        place = y
        while any(abs(place - other) < gap and 0.4 < x / beside < 2.5 for beside, other in taken):
            place -= gap / 4
        taken.append((x, place))
        axis.annotate(
            words, (x, y), (x * 1.05, place), fontsize=8, color=colour, va="center", zorder=3,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.3} if place != y else None,
        )  # fmt: skip
    for role, style in (("student", "--"), ("teacher", ":")):
        if role in records.joint:
            bound = records.joint[role]["accuracy"]
            words = f"joint linear probe, frozen {role}"
            axis.axhline(bound, color="black", linestyle=style, linewidth=1, label=words, zorder=1)
    if records.joint:
        figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    axis.set_xscale("log")
    if found:
        low, high = min(x for x, *_ in found), max(x for x, *_ in found)
        axis.set_xlim(low / 1.2, high * 1.9)
    axis.set_ylim(
        min([*heights, *(place for _, place in taken)], default=0) - 2 * gap, max(heights, default=1) + 2 * gap
    )
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())
    tested = [it["files"]["student"]["images"] for it in records.every if "student" in it.get("files", {})]
    on = f"{tested[0]:,} test images" if tested else "test images"
    where = records.most_timed.get("about", "").partition(", batch")[0]
    axis.set(xlabel=f"milliseconds an image, exported file, batch 1 (median); {where}", ylabel=f"accuracy on {on} (%)")
    axis.grid(alpha=0.3)
    figure.savefig(file)
