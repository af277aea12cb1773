"""Statistics of latencies measured in rounds. Pure functions.

Times of one burst resemble each other more than times of different bursts, so the unit of resampling is the round, not
the iteration (a cluster bootstrap): draw as many rounds as there are, with replacement, pool their times, take the
median; the 2.5 % and 97.5 % quantiles of 1,000 such medians are the interval.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 1000
MIN_ROUNDS = 8
"""Fewer rounds than this make no interval that can be trusted."""


def percentile(times: Sequence[float] | Floats, percent: float) -> float:
    """Linear interpolation between order statistics, as numpy's default."""
    return float(np.percentile(np.asarray(times, dtype=np.float64), percent))


def draw_rounds(rounds: int, seed: int) -> NDArray[np.int64]:
    """[RESAMPLES, rounds]: how often each round is drawn in each resample."""
    return np.random.default_rng(seed).multinomial(rounds, np.full(rounds, 1 / rounds), size=RESAMPLES)


def resampled_medians(rounds: Sequence[Sequence[float]], draws: NDArray[np.int64]) -> Floats:
    """[RESAMPLES] medians of the pooled times, each round counted as often as `draws` [RESAMPLES, rounds] says."""
    times = np.concatenate([np.asarray(burst, dtype=np.float64) for burst in rounds])
    order = np.argsort(times, kind="stable")
    times = times[order]
    owner = np.repeat(np.arange(len(rounds)), [len(burst) for burst in rounds])[order]
    medians = np.empty(len(draws))
    for start in range(0, len(draws), 50):  # in slices: [RESAMPLES, times] at once can take gigabytes
        below = np.cumsum(draws[start : start + 50][:, owner], axis=1)
        half = below[:, -1:] / 2
        # The mean of the lower and the upper middle, which are the same element for an odd count.
        lower, upper = np.argmax(below >= half, axis=1), np.argmax(below > half, axis=1)
        medians[start : start + 50] = (times[lower] + times[upper]) / 2
    return medians


def interval(values: Floats) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def half_width_percent(low: float, high: float, middle: float) -> float:
    """Half the interval's width in percent of `middle`: the 2 in "within ±2 %"."""
    return (high - low) / 2 / middle * 100


def drift_percent(round_medians: Sequence[float]) -> float:
    """How much slower (positive) the last third of the rounds was than the first third, in percent."""
    third = max(1, len(round_medians) // 3)
    return float(np.median(round_medians[-third:]) / np.median(round_medians[:third]) - 1) * 100
