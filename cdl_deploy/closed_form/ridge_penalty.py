"""λ of ridge by generalised cross-validation, from sums alone.

    GCV(λ) = N · RSS(λ) / (N − tr H(λ))²      H(λ) the matrix that turns targets into predictions

an approximation of leave-one-out that does not depend on the order of images or on tasks. Source: Golub, Heath, Wahba,
"Generalized Cross-Validation as a Method for Choosing a Good Ridge Parameter", Technometrics 21 (1979), eq. 1.4.
RanPAC chooses λ on a held-out share of the current task instead, so that its λ depends on the order of tasks.

With Σ φφᵀ = U diag(e) Uᵀ, p_j the rows of Uᵀ Σ φtᵀ, r of the e_j above zero and f parameters that are not penalised,

    RSS(λ)       = Σ‖t‖² − Σ_j ‖p_j‖²/e_j + Σ_j ‖p_j‖²/e_j (λ/(e_j+λ))²
    N − tr H(λ)  = N − f − r + Σ_j λ/(e_j+λ)

in this form every term is positive, and nothing cancels where λ is small. λ is one of `GRID` times the mean of the e_j,
so that it scales with the features and with the number of images; where several are equally good the largest is taken.
Time: one eigendecomposition: 0.1 s at D = 384, seconds at 2,000.
"""

from __future__ import annotations

import numpy as np

from cdl_deploy.closed_form.teacher_sums import Floats

GRID: tuple[float, ...] = tuple(10.0 ** (step / 2) for step in range(-16, 5))
"""Times the mean eigenvalue of Σ φφᵀ: 1e-8 to 100 in half decades."""
RANK = 1e-12
"""Eigenvalues below this share of the largest are rounding."""
EQUAL = 1e-6
"""Relative difference below which two GCV values count as the same."""


def gcv_scores(gram: Floats, cross: Floats, square: float, images: int, free: int, penalties: Floats) -> Floats:
    """GCV for each of `penalties` [K]; `gram` [D, D], `cross` [D, C], `square` = Σ‖t‖², f = `free`."""
    values, vectors = np.linalg.eigh(gram)
    used = values > RANK * max(values[-1], 0)
    values = values[used]
    explained = ((vectors[:, used].T @ cross) ** 2).sum(axis=1) / values
    outside = max(square - float(explained.sum()), 0.0)
    kept = penalties[:, None] / (values + penalties[:, None])  # [K, r]
    residual = outside + kept**2 @ explained
    freedom = max(images - free - len(values), 0) + kept.sum(axis=1)
    scores: Floats = images * residual / np.maximum(freedom, np.finfo(np.float64).tiny) ** 2
    return scores


def gcv_penalty(gram: Floats, cross: Floats, square: float, images: int, free: int) -> float:
    """The λ of the grid with the smallest GCV; a positive number also where all features are the same."""
    size = float(np.trace(gram)) / len(gram)
    if size <= 0:
        return 1.0
    penalties = np.array(GRID) * size
    scores = gcv_scores(gram, cross, square, images, free, penalties)
    return float(penalties[scores <= scores.min() * (1 + EQUAL)][-1])
