"""The within-class covariance, shrunk towards a multiple of the identity: Σ_ρ = (1−ρ) Σ + ρ tr(Σ)/D · I.

ρ by OAS (Chen, Wiesel, Eldar, Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", IEEE Trans. Signal
Processing 58, 2010, eq. 23), in the form that scikit-learn uses. With a = tr(Σ²)/D², m = tr(Σ)/D and N images,

    ρ = min(1, (a + m²) / ((N + 1) (a − m²/D)))

which needs Σ and N only: the same ρ whatever the order and the tasks.

Ledoit–Wolf is not offered. It needs Σ_i ‖φ_i − μ_c(i)‖⁴ about the final means, and with it Σ φφᵀ of every single class
(4 μᵀ(Σ_{i in c} φφᵀ)μ appears when the fourth power is multiplied out): C·D² numbers. Taken about the means at the time
of an addition it would depend on the tasks.
"""

from __future__ import annotations

import numpy as np

from cdl_deploy.closed_form.cholesky import lower_factor
from cdl_deploy.closed_form.errors import StatisticsError
from cdl_deploy.closed_form.statistics import Statistics
from cdl_deploy.closed_form.teacher_sums import Floats


def oas(covariance: Floats, images: int) -> float:
    """ρ for a covariance [D, D] of that many images; 1 where it is a multiple of the identity or zero."""
    D = len(covariance)
    squares = float(np.mean(covariance**2))
    mean = float(np.trace(covariance)) / D
    below = (images + 1) * (squares - mean**2 / D)
    return 1.0 if below <= 0 else min((squares + mean**2) / below, 1.0)


def within_covariance(statistics: Statistics) -> Floats:
    """[D, D]: Σ = S / N, over the images that S comes from."""
    return statistics.scatter / max(statistics.noise_images, 1)


def shrunk_covariance(statistics: Statistics, shrinkage: float | None = None) -> tuple[Floats, float]:
    """Σ_ρ [D, D] and ρ; by OAS where `shrinkage` is None.

    Where no class has two different images, nothing is known about noise. Then Σ_ρ is the identity times the mean
    variance between the classes, or times 1 if there is none either: slda is then nearest mean.
    """
    D = statistics.dimension
    covariance = within_covariance(statistics)
    noise = float(np.trace(covariance)) / D
    if noise <= 0:
        spread = float(np.trace(statistics.centred_gram())) / D / max(statistics.images, 1)
        return np.eye(D) * (spread or 1.0), 1.0
    rho = oas(covariance, statistics.noise_images) if shrinkage is None else shrinkage
    covariance *= 1 - rho
    covariance[np.diag_indices(D)] += rho * noise
    return covariance, rho


def covariance_factor(covariance: Floats) -> Floats:
    """[D, D]: lower triangular L with L Lᵀ = Σ_ρ; refuses a covariance that has none."""
    try:
        return lower_factor(covariance)
    except np.linalg.LinAlgError as error:
        raise StatisticsError(
            "the within-class covariance is singular, as with fewer images than dimensions or a constant dimension: "
            "expected a shrinkage above 0, or none, to let OAS choose it"
        ) from error
