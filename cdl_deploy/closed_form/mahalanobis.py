"""How far an image is from the nearest class, for saying that it is none of them.

    d(φ) = min_c √((φ−μ_c)ᵀ Σ_ρ⁻¹ (φ−μ_c)) = min_c ‖(φ−μ_c) F‖      F Fᵀ = Σ_ρ⁻¹

Source: Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples", arXiv 1807.03888, eq. 2.

In a graph: z = (φ − centre) F, d² = ‖z‖² + min_c (‖m_c‖² − 2 z·m_c) with m_c = (μ_c − centre) F: a product with [D, D]
and one with [D, C]. The centre is the mean of the class means: without it the two terms would cancel in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.closed_form.cholesky import solve_upper
from cdl_deploy.closed_form.errors import StatisticsError
from cdl_deploy.closed_form.seen import check_seen
from cdl_deploy.closed_form.shrinkage import covariance_factor, shrunk_covariance
from cdl_deploy.closed_form.statistics import Statistics
from cdl_deploy.closed_form.teacher_sums import Floats

BITS = 12
"""Of each number of F in a file: all of F changes with every task, and travels in every update. An error of 2⁻¹³ in
each of thousands of numbers changes a distance by 1e-4 of it or less, and half of each number can be squeezed away."""


@dataclass(frozen=True, eq=False)
class Mahalanobis:
    """What the distance is computed from."""

    centre: Floats
    """[D]."""
    factor: Floats
    """[D, D]: F, upper triangular."""
    means: Floats
    """[C, D]: m_c."""

    def distance(self, features: NDArray[np.floating]) -> Floats:
        """[n, D] → d [n]."""
        z = (features - self.centre) @ self.factor
        products = z @ (-2 * self.means.T)
        products += (self.means**2).sum(axis=1)
        nearest = products.min(axis=1)
        result: Floats = np.sqrt(np.maximum((z**2).sum(axis=1) + nearest, 0))
        return result

    def constants(self) -> dict[str, NDArray[np.float32]]:
        """What a graph holds of it: d = √(‖z‖² + min_c (z · means_c + squares_c)) with z = (φ − centre) factor."""
        values = {
            "centre": self.centre,
            "factor": self.factor,
            "means": -2 * self.means.T,
            "squares": (self.means**2).sum(axis=1),
        }
        return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in values.items()}


def mahalanobis(statistics: Statistics, shrinkage: float | None = None, bits: int | None = None) -> Mahalanobis:
    """The distance under Σ_ρ; ρ by OAS unless given. `bits`: how many of each number of F are kept, `BITS` in files."""
    check_seen(statistics)
    covariance, _ = shrunk_covariance(statistics, shrinkage)
    factor = solve_upper(covariance_factor(covariance), np.eye(statistics.dimension))
    if bits is not None:
        fraction, exponent = np.frexp(factor)
        factor = np.ldexp(np.rint(np.ldexp(fraction, bits)), exponent - bits)
    centre = statistics.means.mean(axis=0)
    return Mahalanobis(centre, factor, (statistics.means - centre) @ factor)


def percentile_threshold(distances: Floats, percent: float) -> float:
    """The distance that `percent` of images, whose classes are known, do not exceed."""
    if not 0 < percent <= 100:
        raise StatisticsError(f"the percentile is {percent:g}, expected above 0 and at most 100")
    return float(np.percentile(distances, percent))
