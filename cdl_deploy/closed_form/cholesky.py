"""Solves with a symmetric positive definite matrix, in NumPy alone.

NumPy has the factorisation and no triangular solve, and its general solve would factorise anew, as an unsymmetric
matrix. The substitution below works on blocks, so that nearly all of it is matrix products.
"""

from __future__ import annotations

import numpy as np

from cdl_deploy.closed_form.teacher_sums import Floats

BLOCK = 64


def lower_factor(matrix: Floats) -> Floats:
    """[D, D]: lower triangular L with L Lᵀ = `matrix`; `LinAlgError` where that is not positive definite."""
    return np.asarray(np.linalg.cholesky(matrix), dtype=np.float64)


def solve_lower(factor: Floats, right: Floats) -> Floats:
    """X [D, K] with `factor` X = `right`, `factor` [D, D] lower triangular: forward substitution by blocks."""
    result = np.array(right, dtype=np.float64)
    for start in range(0, len(factor), BLOCK):
        here = slice(start, start + BLOCK)
        result[here] -= factor[here, :start] @ result[:start]
        result[here] = np.linalg.solve(factor[here, here], result[here])
    return result


def solve_upper(factor: Floats, right: Floats) -> Floats:
    """X [D, K] with `factor`ᵀ X = `right`, `factor` [D, D] lower triangular: backward substitution by blocks."""
    result = np.array(right, dtype=np.float64)
    for start in reversed(range(0, len(factor), BLOCK)):
        here, below = slice(start, start + BLOCK), slice(start + BLOCK, None)
        result[here] -= factor[below, here].T @ result[below]
        result[here] = np.linalg.solve(factor[here, here].T, result[here])
    return result


def solve_definite(matrix: Floats, right: Floats) -> Floats:
    """X [D, K] with `matrix` X = `right`, `matrix` [D, D] symmetric; `LinAlgError` where it is not definite."""
    factor = lower_factor(matrix)
    return solve_upper(factor, solve_lower(factor, right))
