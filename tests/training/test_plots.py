"""The pictures of a run: what they show, and that nothing in them overlaps or is cut off."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from cdl_deploy.run.metrics import forgetting
from cdl_deploy.training.plots import COLOURS, draw_run

TITLE = "/home/somebody/images/from/the/botanical/garden/flowers-by-month: dualprompt + reviewkd, seed 12"


def matrix(count: int, seed: int = 0) -> list[list[float]]:
    drawn = random.Random(seed)
    return [[drawn.uniform(0, 100) for _ in range(i + 1)] for i in range(count)]


def bounds(figure) -> dict[str, tuple[float, float, float, float]]:
    """Every visible text, keyed so that equal ones stay apart, and its box in pixels."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    beyond = {  # labels of ticks outside the axis are kept, but not drawn
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text() and id(t) not in beyond]
    return {f"{i}: {text.get_text()}": text.get_window_extent(renderer).extents for i, text in enumerate(texts)}


@pytest.mark.parametrize("count", [1, 5, 12, 13, 40])
@pytest.mark.parametrize("roles", [("student",), ("teacher", "student")])
def test_texts_neither_overlap_nor_leave_the_picture(count, roles):
    figures = draw_run({role: matrix(count) for role in roles}, TITLE)
    assert list(figures) == ["accuracy_matrix", "accuracy_over_tasks", "forgetting"]
    for name, figure in figures.items():
        width, height = figure.canvas.get_width_height()
        boxes = bounds(figure)
        for text, (left, bottom, right, top) in boxes.items():
            assert left >= 0, (name, text)
            assert bottom >= 0, (name, text)
            assert right <= width, (name, text)
            assert top <= height, (name, text)
        for (one, a), (other, b) in combinations(boxes.items(), 2):
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            assert apart, (name, one, other)


def test_cells_show_their_numbers_and_what_was_not_tested_stays_empty():
    axis = draw_run({"student": [[90.4], [0.0, 100.0]]}, "digits")["accuracy_matrix"].axes[0]
    assert [(text.get_position(), text.get_text()) for text in axis.texts] == [
        ((0, 0), "90"), ((0, 1), "0"), ((1, 1), "100"),
    ]  # fmt: skip
    shown = axis.images[0].get_array()
    assert np.ma.getmaskarray(shown).tolist() == [[False, True], [False, False]]
    assert axis.images[0].get_clim() == (0, 100)


def test_accuracy_over_tasks_is_the_mean_of_each_row():
    axis = draw_run({"student": [[90.0], [60.0, 80.0]], "teacher": [[100.0], [90.0, 91.0]]}, "digits")[
        "accuracy_over_tasks"
    ].axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    assert list(lines) == ["student, at the end 70.0 %", "teacher, at the end 90.5 %"]
    assert [list(line.get_ydata()) for line in lines.values()] == [[90.0, 70.0], [100.0, 90.5]]
    assert len({line.get_marker() for line in lines.values()}) == 2
    assert len({line.get_linestyle() for line in lines.values()}) == 2


def test_forgetting_is_what_each_task_lost():
    rows = [[90.0], [60.0, 80.0], [50.0, 85.0, 70.0]]  # 40 lost, 5 gained, 0
    axis = draw_run({"student": rows}, "digits")["forgetting"].axes[0]
    assert [bar.get_height() for bar in axis.patches] == [40.0, -5.0, 0.0]
    assert axis.containers[0].get_label() == "student, mean 11.7 points"
    assert forgetting(rows) == pytest.approx(35 / 3)


def test_colours_differ_without_colour_vision():
    """Machado et al. (2009): what deuteranopes and protanopes see, as matrices on linear RGB."""
    simulated = {
        "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "grey": [[0.213, 0.715, 0.072]] * 3,
    }
    linear = {
        role: np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)])
        for role, colour in COLOURS.items()
    }
    for kind, change in simulated.items():
        seen = [np.array(change) @ rgb for rgb in linear.values()]
        assert np.abs(seen[0] - seen[1]).max() > 0.05, kind
