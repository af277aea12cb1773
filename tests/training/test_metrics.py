"""Metrics against a matrix worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdl_deploy.run import metrics

MATRIX = [[90.0], [70.0, 80.0], [75.0, 60.0, 99.0]]


def test_by_hand():
    assert metrics.final_average_accuracy(MATRIX) == pytest.approx((75 + 60 + 99) / 3)
    assert metrics.average_incremental_accuracy(MATRIX) == pytest.approx((90 + 75 + 78) / 3)
    assert metrics.forgetting(MATRIX) == pytest.approx((15 + 20 + 0) / 3)  # the paper's divides by all three tasks
    assert metrics.forgetting_standard(MATRIX) == pytest.approx((15 + 20) / 2)
    assert metrics.backward_transfer(MATRIX) == pytest.approx((-15 - 20) / 2)


def test_standard_forgetting_counts_from_the_best_and_not_from_the_first():
    assert metrics.forgetting_standard([[50.0], [80.0, 10.0], [60.0, 10.0, 5.0]]) == pytest.approx((20 + 0) / 2)
    assert metrics.forgetting([[50.0], [80.0, 10.0], [60.0, 10.0, 5.0]]) == pytest.approx(-10 / 3)


def test_one_task_forgets_nothing():
    assert metrics.summary([[88.0]]) == {
        "final_average_accuracy": 88.0,
        "average_incremental_accuracy": 88.0,
        "forgetting": 0.0,
        "forgetting_standard": 0.0,
        "backward_transfer": 0.0,
    }


@given(
    st.integers(1, 8).flatmap(
        lambda n: st.tuples(*[st.lists(st.floats(0, 100), min_size=i, max_size=i) for i in range(1, n + 1)])
    )
)
def test_bounds(rows):
    matrix = list(rows)
    assert 0 <= metrics.final_average_accuracy(matrix) <= 100.000001
    assert metrics.forgetting_standard(matrix) >= -metrics.backward_transfer(matrix) - 1e-9
    assert metrics.forgetting_standard(matrix) >= -1e-9
