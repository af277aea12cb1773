"""The distance to the nearest class in a graph: `cdl_deploy.closed_form.mahalanobis` in float32, and its threshold."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from cdl_deploy.closed_form.head_rule import HeadRule, solve_distance
from cdl_deploy.closed_form.mahalanobis import Mahalanobis, percentile_threshold
from cdl_deploy.closed_form.statistics import Statistics
from cdl_deploy.runtime.bundle import UnknownRule

PERCENT = 95.0
ENOUGH = 100
"""Held-out images whose percentile is taken: five of them are then above it. With fewer the sums say it."""


class NearestClass(nn.Module):
    """d = √(‖z‖² + min_c (‖m_c‖² − 2 z·m_c)) with z = (φ − centre) F."""

    centre: Tensor
    factor: Tensor
    means: Tensor
    squares: Tensor

    def __init__(self, distance: Mahalanobis) -> None:
        super().__init__()
        values = {
            "centre": distance.centre,
            "factor": distance.factor,
            "means": -2 * distance.means.T,
            "squares": (distance.means**2).sum(axis=1),
        }
        for name, value in values.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)))

    def forward(self, mapped: Float[Tensor, "B G"]) -> Float[Tensor, " B"]:
        """From φ."""
        z = (mapped - self.centre) @ self.factor
        nearest = (z @ self.means + self.squares).amin(dim=1)
        return ((z * z).sum(dim=1) + nearest).relu().sqrt()


def threshold_by_images(distances: NDArray[np.floating]) -> tuple[float, UnknownRule] | None:
    """The percentile of held-out images; None where they are too few."""
    if len(distances) < ENOUGH:
        return None
    found = percentile_threshold(distances.astype(np.float64), PERCENT)
    return _rounded(found), UnknownRule(PERCENT, "held-out images", len(distances))


def threshold_by_sums(statistics: Statistics, rule: HeadRule) -> tuple[float, UnknownRule]:
    """The percentile of images that are drawn as the sums describe them."""
    return _rounded(solve_distance(statistics, rule, PERCENT)[1]), UnknownRule(PERCENT, "statistics")


def _rounded(threshold: float) -> float:
    """Up to four digits: the last ones depend on the number of threads, and the bytes of the file must not."""
    if threshold <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(threshold)) - 3)
    return float(f"{math.ceil(threshold / unit) * unit:.4g}")
