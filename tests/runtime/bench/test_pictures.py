"""The picture: what it shows, and that nothing in it runs into anything else."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from matplotlib.text import Text

from cdl_deploy.bench import BenchOptions
from cdl_deploy.bench.plots import draw, plot_report
from tests.runtime.bench.conftest import made_up, made_up_record, made_up_report

VARIANTS = (
    made_up_record("student", 90_000_000, 84.0),
    made_up_record("student-folded", 89_000_000, 83.9),
    made_up_record("student-int8", 22_000_000, 83.6),
    made_up_record("theirs", 100_000_000, None),
    made_up_record("teacher", 350_000_000, 86.0),
)
TIMES = {"student": 63.0, "student-folded": 34.0, "student-int8": 18.0, "theirs": 40.0, "teacher": 118.0}


@pytest.fixture
def report():
    rows = [made_up(name, ms * batch, batch) for batch in (1, 8, 32) for name, ms in TIMES.items()]
    return made_up_report(
        models=VARIANTS, measurements=tuple(rows), comparisons=(), options=BenchOptions((1, 8, 32), (2,))
    )


def test_a_point_for_each_accuracy_and_a_curve_for_each_distribution(report):
    figure = draw(report)
    above, *below = figure.axes
    assert above.get_title() == "accuracy against latency, batch 1 (accuracy not known: theirs)"
    points = sorted(tuple(c[0].get_xydata()[0]) for c in above.containers)
    known = [(TIMES[m.name], m.accuracy) for m in VARIANTS if m.accuracy is not None]
    np.testing.assert_allclose(points, sorted(known))
    assert {text.get_text().splitlines()[0] for text in above.texts} == {m.name for m in VARIANTS} - {"theirs"}
    assert [axis.get_title() for axis in below] == [f"distribution, batch {n}" for n in (1, 8, 32)]
    for axis, batch in zip(below, (1, 8, 32), strict=True):
        curves = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
        assert set(curves) == set(TIMES)
        for name, curve in curves.items():
            assert curve.get_xdata()[50] == pytest.approx(TIMES[name] * batch * 1.1)
            assert curve.get_ydata()[50] == 50
    assert len({line.get_linestyle() + line.get_color() for line in below[0].lines}) == len(TIMES)


CROWDED = {
    "student": (4.91, 85.7),
    "student.ort": (0.622, 85.7),
    "student.int8": (9.04, 85.4),
    "student.int8.ort": (0.523, 85.4),
    "student (torch)": (23.2, 85.7),
    "teacher (torch)": (41.2, 92.0),
    "teacher.ort": (6.72, 92.0),
    "teacher": (10.9, 92.0),
}
"""Milliseconds and accuracy of everything that one run can be exported to; beside it something much faster."""


def crowded_report():
    models = [made_up_record(name, 2_000_000, accuracy) for name, (_, accuracy) in CROWDED.items()]
    rows = [made_up(name, ms, 1) for name, (ms, _) in CROWDED.items()]
    return made_up_report(
        models=(*models, made_up_record("theirs", 30_000, None)),
        measurements=(*rows, made_up("theirs", 0.018, 1)),
        comparisons=(),
        options=BenchOptions((1,), (2,)),
    )


@pytest.mark.parametrize("crowded", [False, True])
def test_nothing_covers_anything_else(report, crowded):
    figure = draw(crowded_report() if crowded else report)
    figure.draw_without_rendering()
    above = figure.axes[0]
    boxes = [Text.get_window_extent(text) for text in above.texts]  # without the lines to their points
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    inside = above.get_window_extent()
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 and box.y1 <= inside.y1 for box in boxes)
    panels = [axis.get_tightbbox() for axis in figure.axes]
    assert not any(a.overlaps(b) for a, b in combinations(panels, 2))
    for axis in figure.axes:
        ticks = [label.get_window_extent() for label in axis.get_xticklabels() if label.get_text()]
        assert not any(a.overlaps(b) for a, b in pairwise(ticks))
    legend = figure.legends[0].get_window_extent()
    assert not any(panel.overlaps(legend) for panel in panels)


def test_without_any_accuracy_there_are_distributions_alone(report):
    unknown = tuple(made_up_record(m.name, m.file_bytes, None) for m in VARIANTS)
    figure = draw(made_up_report(models=unknown, measurements=report.measurements, options=report.options))
    assert [axis.get_title() for axis in figure.axes] == [f"distribution, batch {n}" for n in (1, 8, 32)]


def test_files(report, tmp_path):
    plot_report(report, tmp_path / "a.png")
    plot_report(report, tmp_path / "a.svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "a.svg").read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "a.svg"]
