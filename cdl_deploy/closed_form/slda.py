"""Streaming linear discriminant analysis: a Gaussian for each class, with one covariance for all.

    Σ_ρ = (1−ρ) Σ + ρ tr(Σ)/D · I      w_c = Σ_ρ⁻¹ μ_c      b_c = −½ μ_cᵀ Σ_ρ⁻¹ μ_c + log π_c

Scores are log posteriors up to a number common to all classes. Source: Hayes, Kanan, "Lifelong Machine Learning with
Deep Streaming Linear Discriminant Analysis", arXiv 1909.01520, eq. 1 to 4.

Differs: the paper has a fixed ρ = 1e-4 and no log π; here ρ is OAS's, and priors are uniform or observed. Its Σ is a
running estimate about the means at that time; here it is exactly the covariance about the final means.
"""

from __future__ import annotations

import numpy as np

from cdl_deploy.closed_form.cholesky import solve_lower, solve_upper
from cdl_deploy.closed_form.linear_head import LinearHead
from cdl_deploy.closed_form.seen import check_seen
from cdl_deploy.closed_form.shrinkage import covariance_factor, shrunk_covariance
from cdl_deploy.closed_form.statistics import Statistics


def slda(statistics: Statistics, shrinkage: float | None = None, observed_priors: bool = False) -> LinearHead:
    """The head: ρ by OAS unless given; π_c = 1/C, or n_c/N with `observed_priors`."""
    check_seen(statistics)
    covariance, _ = shrunk_covariance(statistics, shrinkage)
    factor = covariance_factor(covariance)
    weight = solve_upper(factor, solve_lower(factor, statistics.means.T)).T
    share = statistics.counts / statistics.images if observed_priors else 1 / len(statistics.classes)
    bias = -0.5 * (weight * statistics.means).sum(axis=1) + np.log(share)
    return LinearHead(statistics.classes, np.ascontiguousarray(weight), bias)
