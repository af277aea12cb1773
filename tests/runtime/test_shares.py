"""Intervals and the comparison of two models, against numbers worked out by hand and against scipy."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from cdl_deploy.evaluation.shares import mcnemar_exact, wilson_interval


def test_wilson_by_hand():
    """8 of 10: (0.8 + 0.19207 ± 1.96 √(0.016 + 0.0096)) / 1.38415 = 0.4902 and 0.9433."""
    assert wilson_interval(8, 10) == pytest.approx((49.02, 94.33), abs=0.01)


@pytest.mark.parametrize(("right", "images"), [(0, 1), (1, 1), (0, 50), (50, 50), (37, 120), (9_912, 10_000)])
def test_wilson_is_scipys(right, images):
    theirs = binomtest(right, images).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right, images) == pytest.approx((100 * theirs.low, 100 * theirs.high), abs=1e-6)


def test_mcnemar_by_hand():
    """One against five: 2 · (1 + 6) / 2⁶."""
    assert mcnemar_exact(1, 5) == pytest.approx(14 / 64)
    assert mcnemar_exact(0, 0) == 1
    assert mcnemar_exact(3, 3) == 1


@pytest.mark.parametrize(("one", "other"), [(0, 12), (7, 2), (40, 41), (300, 200), (5_100, 4_900)])
def test_mcnemar_is_a_binomial_test(one, other):
    assert mcnemar_exact(one, other) == pytest.approx(binomtest(one, one + other).pvalue, rel=1e-6)
    assert mcnemar_exact(one, other) == mcnemar_exact(other, one)
