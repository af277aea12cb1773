"""Random numbers that are the same for ever: whole numbers only, so also on any machine and in any language.

What is drawn here is part of a model (a random projection is stored as its seed), and NumPy does not promise that its
generators draw the same in every version (NEP 19).

Words are SplitMix64's (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014): word i is a
function of seed and i. A normal number is the sum of the twelve 16-bit parts of three words, made central:

    x_i = (2 · Σ parts − 12 · 65535) / 131072      mean 0, variance 1 − 2⁻³², within ±6, excess kurtosis −0.1

which float32 holds exactly: a graph in float32 and sums in float64 have the same projection. Logarithm and cosine, of
which the usual ways to a normal number are made, differ in the last digit between machines.

Differs: RanPAC and the Gaussian model draw from N(0, 1) itself; the sum of twelve is close enough, and tested.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cdl_deploy.closed_form.teacher_sums import Floats

GAMMA = np.uint64(0x9E3779B97F4A7C15)
EVEN = np.uint64(0x0000FFFF0000FFFF)
LOW = np.uint64(0xFFFFFFFF)
CHUNK = 1 << 16


def words(seed: int, first: int, count: int) -> NDArray[np.uint64]:
    """Words `first` to `first` + `count` of SplitMix64 with this seed, which is below 2⁶⁴."""
    place = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    value = np.uint64(seed) + place * GAMMA
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def normals(seed: int, *shape: int) -> Floats:
    """An array of this shape, row by row, of independent numbers with mean 0 and variance 1."""
    count = int(np.prod(shape))
    result = np.empty(count)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        triple = words(seed, 3 * start, 3 * size).reshape(size, 3)
        lanes = ((triple & EVEN) + ((triple >> np.uint64(16)) & EVEN)).sum(axis=1, dtype=np.uint64)
        total = (lanes & LOW) + (lanes >> np.uint64(32))
        result[start : start + size] = (2 * total.astype(np.int64) - 12 * 65535) / 131072
    return result.reshape(shape)
