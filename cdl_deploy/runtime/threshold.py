"""The distance above which an image is of no known class, for a file: export finds it, and what learns from a file."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.closed_form.head_rule import HeadRule, solve_distance
from cdl_deploy.closed_form.mahalanobis import percentile_threshold
from cdl_deploy.closed_form.model_world import ModelWorld
from cdl_deploy.closed_form.statistics import Statistics
from cdl_deploy.runtime.bundle_parts import UnknownRule

Threshold = tuple[float, UnknownRule]
PERCENT = 95.0
ENOUGH = 100
"""Held-out images whose percentile is taken: five of them are then above it. With fewer the sums say it."""


def threshold_by_images(distances: NDArray[np.floating]) -> Threshold | None:
    """The percentile of held-out images; None where they are too few."""
    if len(distances) < ENOUGH:
        return None
    found = percentile_threshold(distances.astype(np.float64), PERCENT)
    return _rounded(found), UnknownRule(PERCENT, "held-out images", len(distances))


def threshold_by_sums(statistics: Statistics, rule: HeadRule, world: ModelWorld | None = None) -> Threshold:
    """The percentile of images that are drawn as the sums describe them, in `world_of` these."""
    return _rounded(solve_distance(statistics, rule, PERCENT, world)[1]), UnknownRule(PERCENT, "statistics")


def _rounded(threshold: float) -> float:
    """Up to four digits: the last ones depend on the number of threads, and the bytes of the file must not."""
    if threshold <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(threshold)) - 3)
    return float(f"{math.ceil(threshold / unit) * unit:.4g}")
