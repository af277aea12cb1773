"""One more sum: what a teacher said about the images, for ridge towards (1−β) · one-hot + β · teacher.

A teacher's column c is its output (logit or probability, always the same kind) for class c. A teacher knows the classes
of its time: for the images that it saw before class c came, column c is 0, which is also what ridge's one-hot target
says there. So all sums below grow by columns of zeros, and stay additive whatever classes the two sides know.

With z_i [C] the teacher's row for image i, the raw sum is Σ_i φ_i z_iᵀ. It is kept about the class means, as
`Statistics` keeps Σ φφᵀ, because that does not cancel when means are large:

    Σ_i φ_i z_iᵀ = cross + Σ_c n_c μ_c z̄_cᵀ
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TeacherSums:
    """Sums over images of φ and the teacher's outputs, about the class means."""

    means: Floats
    """[C, C]: row c is z̄_c, the mean output over the images of class c; column k is the output for class k."""
    cross: Floats
    """[D, C]: Σ_i (φ_i − μ_c(i)) (z_i − z̄_c(i))ᵀ."""
    square: Floats
    """[C]: Σ_i (z_i − z̄_c(i))², for each column."""

    def arranged(self, places: NDArray[np.intp], size: int) -> TeacherSums:
        """The same sums where class c has place `places[c]` among `size` classes; the others are zero."""
        means = np.zeros((size, size))
        means[np.ix_(places, places)] = self.means
        cross = np.zeros((len(self.cross), size))
        cross[:, places] = self.cross
        square = np.zeros(size)
        square[places] = self.square
        return TeacherSums(means, cross, square)

    def kept(self, places: NDArray[np.intp]) -> TeacherSums:
        """The rows and columns of these classes only."""
        return TeacherSums(self.means[np.ix_(places, places)], self.cross[:, places], self.square[places])

    def merged(self, other: TeacherSums, share: Floats, weight: Floats, delta: Floats) -> TeacherSums:
        """Both together, where `share` [C] is n_b/n, `weight` [C] is n_a n_b/n and `delta` [C, D] is μ_b − μ_a."""
        step = other.means - self.means
        return TeacherSums(
            means=self.means + step * share[:, None],
            cross=self.cross + other.cross + (delta * weight[:, None]).T @ step,
            square=self.square + other.square + weight @ step**2,
        )

    def subtracted(self, other: TeacherSums, share: Floats, weight: Floats, delta: Floats) -> TeacherSums:
        """What is left: `share` [C] is n_b/n_a, with `weight` and `delta` as in `merged` for a = what is left."""
        means = self.means + (self.means - other.means) * share[:, None]
        step = other.means - means
        return TeacherSums(
            means=means,
            cross=self.cross - other.cross - (delta * weight[:, None]).T @ step,
            square=np.maximum(self.square - other.square - weight @ step**2, 0),
        )
