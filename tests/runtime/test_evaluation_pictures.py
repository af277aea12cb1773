"""The pictures of an evaluation: what they show, and that nothing in them overlaps or is cut off."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cdl_deploy.evaluation.pictures import draw_calibration, draw_confusion, draw_selection
from cdl_deploy.evaluation.selection import PromptUse, PromptUseRow
from tests.runtime.test_cli_evaluate import large_report
from tests.training.test_plots import bounds


def inside_and_apart(figure):
    """Texts are in the picture, and no two overlap by more than a pixel."""
    width, height = figure.canvas.get_width_height()
    boxes = np.array(list(bounds(figure).values()))
    assert boxes[:, :2].min() >= 0
    assert boxes[:, 2].max() <= width
    assert boxes[:, 3].max() <= height
    left, bottom, right, top = (boxes[:, i] for i in range(4))
    apart = (right[:, None] <= left + 1) | (top[:, None] <= bottom + 1)
    assert (apart | apart.T | np.eye(len(boxes), dtype=bool)).all()


@pytest.mark.parametrize(("classes", "per_task"), [(3, 3), (10, 2), (100, 10), (200, 2)])
def test_confusion(classes, per_task):
    report = large_report(classes, per_task)
    figure = draw_confusion(report)
    inside_and_apart(figure)
    axis = figure.axes[0]
    shown = np.ma.filled(axis.images[0].get_array(), np.nan)
    expected = 100 * report.confusion / report.confusion.sum(axis=1, keepdims=True)
    assert np.allclose(shown, expected)
    named = classes if classes <= 120 else len(range(0, classes // per_task, 5)) + 1
    assert abs(len(axis.get_yticks()) - named) <= 1


@pytest.mark.parametrize("classes", [10, 200])
def test_confusion_of_a_model_without_tasks(classes):
    report = large_report(classes, classes)
    items = tuple(dataclasses.replace(item, task=None) for item in report.classes)
    figure = draw_confusion(dataclasses.replace(report, classes=items, tasks=(), mean_over_tasks=None))
    inside_and_apart(figure)
    axis = figure.axes[0]
    assert not axis.lines  # between tasks
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names[:3] == ([item.name[:17] + "…" for item in items[:3]] if classes == 10 else ["1", "10", "20"])


def test_a_class_without_images_is_an_empty_row():
    report = large_report(3, 3)
    counts = report.confusion.copy()
    counts[1] = 0
    report = report.__class__(**{**vars(report), "confusion": counts})
    shown = draw_confusion(report).axes[0].images[0].get_array()
    assert np.ma.getmaskarray(shown)[1].all() or np.isnan(np.ma.filled(shown, np.nan)[1]).all()


def test_calibration_shows_the_bins():
    report = large_report(10, 2)
    figure = draw_calibration(report)
    inside_and_apart(figure)
    upper, lower = figure.axes
    assert [bar.get_height() for bar in upper.patches] == [item.accuracy or 0 for item in report.bins]
    assert [bar.get_height() for bar in lower.patches] == [item.images for item in report.bins]
    assert f"calibration error {report.calibration_error:.1f} points" in figure.get_suptitle()


@pytest.mark.parametrize(("by", "rows", "tasks"), [("task", 2, 2), ("task", 100, 100), ("class", 42, 3)])
def test_selection_frames_the_own_task(by, rows, tasks):
    drawn = np.random.default_rng(0)
    scores = 100 * drawn.dirichlet([1] * tasks, rows)
    entries = tuple(
        PromptUseRow(f"{by} {i + 1}", i * tasks // rows + 1, 9, tuple(scores[i].tolist()) if i else None)
        for i in range(rows)
    )
    selection = PromptUse("student.onnx", "photos", by, entries, (), ())
    figure = draw_selection(selection)
    inside_and_apart(figure)
    axis = figure.axes[0]
    shown = np.ma.filled(axis.images[0].get_array(), np.nan)
    assert np.isnan(shown[0]).all()  # it has no images
    assert np.allclose(shown[1:], scores[1:])
    corners = [(frame.get_x() + 0.5, frame.get_y() + 0.5) for frame in axis.patches]
    assert corners == [(entry.task - 1, place) for place, entry in enumerate(entries)]
    own = np.mean([scores[i, entries[i].task - 1] for i in range(1, rows)])
    assert selection.own_task == pytest.approx(own)
