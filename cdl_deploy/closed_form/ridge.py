"""Ridge regression on one-hot targets.

With an intercept that is not penalised, as scikit-learn's `Ridge` has it; φ̄ and t̄ are means over all images:

    W = (Σ (φ−φ̄)(φ−φ̄)ᵀ + λI)⁻¹ Σ (φ−φ̄)(t−t̄)ᵀ      b = t̄ − Wᵀ φ̄

Without one it is RanPAC's head (McDonnell et al., arXiv 2307.02251, eq. 2 and 6): W = (G + λI)⁻¹ [s_1 … s_C].
The intercept is not penalised because its size says where the features' origin is and nothing about the classes.

Targets are t = (1−β) · one-hot + β · teacher. With one-hot alone, Σ (φ−φ̄)(t−t̄)ᵀ has columns n_c (μ_c − φ̄).
Scores are no probabilities: they get a temperature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cdl_deploy.closed_form.cholesky import solve_definite
from cdl_deploy.closed_form.errors import StatisticsError
from cdl_deploy.closed_form.linear_head import LinearHead
from cdl_deploy.closed_form.ridge_penalty import gcv_penalty
from cdl_deploy.closed_form.seen import check_seen
from cdl_deploy.closed_form.statistics import Statistics
from cdl_deploy.closed_form.teacher_sums import Floats


@dataclass(frozen=True, eq=False)
class Regression:
    """The sums of one least-squares problem, about the means where there is an intercept."""

    gram: Floats
    """[D, D]: Σ φφᵀ."""
    cross: Floats
    """[D, C]: Σ φtᵀ."""
    square: float
    """Σ ‖t‖²."""
    images: int
    """Number of images, those of forgotten classes included."""
    free: int
    """Parameters that are not penalised: 1 with an intercept, else 0."""
    feature_mean: Floats
    """[D]: what the intercept takes away from φ; zeros without one."""
    target_mean: Floats
    """[C]: what it takes away from t; zeros without one."""


def regression(statistics: Statistics, intercept: bool = True, teacher_weight: float = 0.0) -> Regression:
    """The problem that ridge solves; `teacher_weight` is β."""
    check_seen(statistics)
    beta, teacher = teacher_weight, statistics.teacher
    if beta and teacher is None:
        raise StatisticsError(
            f"the weight of the teacher is {beta} and the statistics hold no teacher's outputs: gather them with a "
            "teacher, or use weight 0"
        )
    counts, means = statistics.counts, statistics.means
    targets = (1 - beta) * np.eye(len(counts))  # row c: the mean target over the images of class c
    cross = np.zeros((statistics.dimension, len(counts)))
    square = 0.0
    if beta and teacher is not None:
        targets += beta * teacher.means
        cross += beta * teacher.cross
        square = beta**2 * float(teacher.square.sum())
    feature_mean, target_mean = np.zeros(means.shape[1]), np.zeros(len(counts))
    if intercept:
        feature_mean = statistics.grand_mean()
        target_mean = counts @ targets / statistics.images
    offset = targets - target_mean
    return Regression(
        gram=statistics.centred_gram() if intercept else statistics.gram(),
        cross=cross + (means - feature_mean).T @ (counts[:, None] * offset),
        square=square + float(counts @ (offset**2).sum(axis=1)),
        images=statistics.noise_images,
        free=int(intercept),
        feature_mean=feature_mean,
        target_mean=target_mean,
    )


def ridge(
    statistics: Statistics, penalty: float | None = None, intercept: bool = True, teacher_weight: float = 0.0
) -> LinearHead:
    """The head: λ = `penalty`, or by generalised cross-validation where that is None."""
    return solve(statistics.classes, regression(statistics, intercept, teacher_weight), penalty)


def choose_penalty(problem: Regression) -> float:
    """λ by generalised cross-validation."""
    return gcv_penalty(problem.gram, problem.cross, problem.square, problem.images, problem.free)


def solve(classes: tuple[str, ...], problem: Regression, penalty: float | None) -> LinearHead:
    """The layer that solves `problem` with λ = `penalty`, or by generalised cross-validation."""
    chosen = choose_penalty(problem) if penalty is None else penalty
    matrix = problem.gram.copy()
    matrix[np.diag_indices(len(matrix))] += chosen
    try:
        weight = solve_definite(matrix, problem.cross).T
    except np.linalg.LinAlgError as error:
        raise StatisticsError(
            f"the features' second moments are singular with penalty {chosen:g}, as with fewer images than dimensions: "
            "expected a larger penalty, or none, to let cross-validation choose it"
        ) from error
    bias = problem.target_mean - weight @ problem.feature_mean
    return LinearHead(classes, np.ascontiguousarray(weight), bias)
