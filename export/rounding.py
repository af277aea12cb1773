"""Weights rounded with regard to each other: what rounding one of them adds, those still to come take back (GPTQ).

For a layer with matrix W [K, N], steps s [N] and rows x [K] that it is given on calibration images, whole numbers Q are
sought for which

    Σ_x ‖ x W − x (Q · s) ‖²  =  tr (W − Q·s)ᵀ H (W − Q·s),    H = Σ_x xᵀ x

is small (Frantar et al. 2023, arXiv 2210.17323, algorithm 1). Rounding each weight alone leaves ten times as much of it
on ViTs, because channels go together. Nothing changes at run time: other whole numbers, the same steps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from cdl_deploy.export.activations import Rows

Floats = npt.NDArray[np.float64]
DAMPING = 0.01
"""Of the mean of H's diagonal, added to it: without, few images would decide too much."""
TOGETHER = 64
"""Rows of W whose corrections are put off and made at once."""
ROWS = 96
"""Of a value of one run, spread evenly, that count: all of a small image's tokens, or every second or third."""


class Rounding:
    """The sums H of what layers are given, and the whole numbers that are best by them, computed once a matrix."""

    def __init__(self, fed: Mapping[str, Collection[str]], clipped: Mapping[str, tuple[float, float]]) -> None:
        """`fed`: value → initializers of the matrices that it is multiplied by. `clipped`: least and greatest that is
        kept of a value, where that is not all."""
        self._fed, self._clipped = fed, clipped
        self._sums: dict[str, npt.NDArray[np.float32]] = {}
        self._known: dict[str, npt.NDArray[np.int8]] = {}

    @property
    def values(self) -> list[str]:
        """What to look at."""
        return list(self._fed)

    def see(self, name: str, rows: Rows) -> None:
        """Add one value of one run."""
        some = rows[:: -(-len(rows) // ROWS)]
        if name in self._clipped:
            some = some.clip(*self._clipped[name])
        self._sums[name] = self._sums[name] + some.T @ some if name in self._sums else some.T @ some

    def __call__(
        self, name: str, weight: npt.NDArray[np.float32], steps: npt.NDArray[np.float32], most: int
    ) -> npt.NDArray[np.int8]:
        """Whole numbers [K, N] from -most to most for the matrix `name`, whose columns have these steps."""
        if name not in self._known:
            sums = [self._sums[value] for value, matrices in self._fed.items() if name in matrices]
            self._known[name] = rounded(weight, steps, np.sum(sums, axis=0), most)
        return self._known[name]


def rounded(
    weight: npt.NDArray[np.float32], steps: npt.NDArray[np.float32], sums: npt.NDArray[np.float32], most: int
) -> npt.NDArray[np.int8]:
    """Q [K, N] for W [K, N], s [N] and H [K, K]."""
    left: Floats = weight.astype(np.float64)
    h: Floats = sums.astype(np.float64)
    diagonal = np.diag_indices(len(h))
    h[diagonal] += DAMPING * (h[diagonal].mean() or 1.0)
    order = np.argsort(-h[diagonal], kind="stable")  # what is largest is rounded while there is most left to correct it
    left, h = left[order], h[np.ix_(order, order)]
    # H⁻¹ = Uᵀ U; row i of U tells how an error in weight i is best spread over those after it.
    upper: Floats = np.linalg.cholesky(np.linalg.inv(h)).T
    found = np.zeros_like(left)
    for start in range(0, len(left), TOGETHER):
        end = min(start + TOGETHER, len(left))
        errors = np.zeros((end - start, left.shape[1]))
        for i in range(start, end):
            found[i] = np.clip(np.rint(left[i] / steps), -most, most)
            errors[i - start] = (left[i] - found[i] * steps) / upper[i, i]
            left[i + 1 : end] -= np.outer(upper[i, i + 1 : end], errors[i - start])
        left[end:] -= upper[start:end, end:].T @ errors
    whole = np.zeros(found.shape, np.int8)
    whole[order] = found.astype(np.int8)
    return whole
