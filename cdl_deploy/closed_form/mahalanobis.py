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

FACTOR_BITS, MEAN_BITS = 2, 6
"""What a file keeps of F and of m_c, all of which change with every task and travel in every update: they are rounded
so that a coordinate of z, whose standard deviation within a class is 1, has errors of standard deviation 2⁻² / √12 at
most by all of its column of F, and 2⁻⁶ / √12 by m_c. On photographs (1,152 features, 100 classes) that changed a
distance by 0.1 %, at most by 0.5 %, and halves an update."""


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


def mahalanobis(statistics: Statistics, shrinkage: float | None = None, rounded: bool = False) -> Mahalanobis:
    """The distance under Σ_ρ; ρ by OAS unless given. `rounded`: as files keep it, which takes less room in updates."""
    check_seen(statistics)
    covariance, _ = shrunk_covariance(statistics, shrinkage)
    factor = solve_upper(covariance_factor(covariance), np.eye(statistics.dimension))
    centre = statistics.means.mean(axis=0)
    means = statistics.means - centre
    if not rounded:
        return Mahalanobis(centre, factor, means @ factor)
    spread = np.sqrt(np.diag(covariance) + (means**2).mean(axis=0))
    step = _power_of_two(1 / (spread * np.sqrt(statistics.dimension)), FACTOR_BITS)[:, None]
    factor = np.rint(factor / step) * step
    return Mahalanobis(centre, factor, np.rint((means @ factor) * 2.0**MEAN_BITS) / 2.0**MEAN_BITS)


def _power_of_two(numbers: Floats, bits: int) -> Floats:
    """The next power of two below each, less `bits`: multiples of it are short in float32."""
    result: Floats = np.exp2(np.floor(np.log2(numbers)) - bits)
    return result


def percentile_threshold(distances: Floats, percent: float) -> float:
    """The distance that `percent` of images, whose classes are known, do not exceed."""
    if not 0 < percent <= 100:
        raise StatisticsError(f"the percentile is {percent:g}, expected above 0 and at most 100")
    return float(np.percentile(distances, percent))
