"""Calibration error: numbers worked out by hand, and a loop that follows the formula word by word."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdl_deploy.evaluation.calibration import confidence_bins, expected_calibration_error


def error(confidence, correct, bins):
    return expected_calibration_error(confidence_bins(np.array(confidence), np.array(correct), bins))


def test_by_hand():
    """Two bins. Up to a half: 0.3 and 0.5, one right: |50 − 40| = 10. Above: 0.6, 0.9, 0.9, all right: |100 − 80| = 20.

    ECE = 2/5 · 10 + 3/5 · 20 = 16 points.
    """
    confidence, correct = [0.3, 0.5, 0.6, 0.9, 0.9], [True, False, True, True, True]
    bins = confidence_bins(np.array(confidence), np.array(correct), 2)
    assert [(b.lower, b.upper, b.images) for b in bins] == [(0.0, 0.5, 2), (0.5, 1.0, 3)]
    assert [b.accuracy for b in bins] == pytest.approx([50.0, 100.0])
    assert [b.confidence for b in bins] == pytest.approx([40.0, 80.0])
    assert expected_calibration_error(bins) == pytest.approx(16.0)


def test_the_two_ends():
    assert error([1.0, 1.0], [True, True], 15) == 0  # certain and right
    assert error([1.0, 1.0], [False, False], 15) == pytest.approx(100)  # certain and wrong
    assert error([0.75] * 4, [True, True, True, False], 15) == pytest.approx(0, abs=1e-9)  # right as often as it says


def test_a_bin_ends_with_its_upper_edge():
    bins = confidence_bins(np.array([0.0, 0.2, 0.2000001, 1.0]), np.ones(4, dtype=bool), 5)
    assert [b.images for b in bins] == [2, 1, 0, 0, 1]
    assert (bins[2].accuracy, bins[2].confidence) == (None, None)


@given(
    st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 20),
)
def test_a_loop_over_bins_and_images(answers, count):
    total = 0.0
    for m in range(1, count + 1):
        lower, upper = (np.linspace(0, 1, count + 1)[i] for i in (m - 1, m))
        inside = [(p, right) for p, right in answers if lower < p <= upper or (m == 1 and p == 0)]
        if inside:
            accuracy = sum(right for _, right in inside) / len(inside)
            confidence = sum(p for p, _ in inside) / len(inside)
            total += len(inside) / len(answers) * abs(accuracy - confidence)
    confidences = np.array([p for p, _ in answers], dtype=np.float32)
    assert error(confidences, [right for _, right in answers], count) == pytest.approx(100 * total, abs=1e-6)
