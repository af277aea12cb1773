"""Statistics of latencies measured in rounds. Pure functions.

Times of one burst resemble each other more than times of different bursts, and rounds that follow each other resemble
each other more than distant ones: a neighbour on the same machine stays for seconds. So what is resampled are blocks of
consecutive rounds (a circular block bootstrap: Politis and Romano, 1992), never single times: draw blocks with
replacement until there are as many rounds as were measured, pool their times, take the median. The 2.5 % and 97.5 %
quantiles of 1,000 such medians are the interval.

Two models are compared within rounds. In each round they ran right after each other, so the ratio of their two medians
there sees the same machine; the median of these ratios over the rounds is the speed-up. A disturbance only ever adds
time, so the fast rounds (their 20th percentile, the floor) tell what a model takes when it is left alone; on a noisy
machine they tell two models apart long before the medians do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rounds = Sequence[Sequence[float]]
"""The times of each round, in milliseconds."""
RESAMPLES = 1000
MIN_ROUNDS = 8
"""Fewer rounds than this make no interval that can be trusted."""
ENOUGH_ROUNDS = 16
"""With fewer rounds than this nothing is claimed about two models, unless the difference is plain."""
FEW_ROUNDS = 3
"""A plain difference needs so many rounds, each of which shows it."""
PLAIN = 1.5
"""A plain difference: half as much again."""
SURE = 99.5
"""Percent of the interval that has to exclude "no difference" before one is claimed."""
FLOOR = 20.0
"""Percentile of the rounds that stands for the undisturbed machine."""


def percentile(times: Sequence[float] | Floats, percent: float) -> float:
    """Linear interpolation between order statistics, as numpy's default."""
    return float(np.percentile(np.asarray(times, dtype=np.float64), percent))


def block_length(rounds: int) -> int:
    """The usual cube root of the number of rounds, rounded up: 2 for 8 rounds, 3 for 27, 5 for 125."""
    return max(1, int(np.ceil(round(rounds ** (1 / 3), 6))))


def draw_members(rounds: int, seed: int) -> NDArray[np.int64]:
    """[RESAMPLES, rounds]: which rounds are drawn in each resample, in blocks that wrap around the end."""
    length = block_length(rounds)
    starts = np.random.default_rng(seed).integers(0, rounds, (RESAMPLES, -(-rounds // length)))
    drawn: NDArray[np.int64] = ((starts[:, :, None] + np.arange(length)) % rounds).reshape(RESAMPLES, -1)[:, :rounds]
    return drawn


def draw_rounds(rounds: int, seed: int) -> NDArray[np.int64]:
    """[RESAMPLES, rounds]: how often each round is drawn in each resample."""
    counts = np.zeros((RESAMPLES, rounds), dtype=np.int64)
    np.add.at(counts, (np.arange(RESAMPLES)[:, None], draw_members(rounds, seed)), 1)
    return counts


def resampled_medians(rounds: Rounds, draws: NDArray[np.int64]) -> Floats:
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


def interval(values: Floats, percent: float = 95.0) -> tuple[float, float]:
    """The middle `percent` of resampled values."""
    tail = (100 - percent) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def half_width_percent(low: float, high: float, middle: float) -> float:
    """Half the interval's width in percent of `middle`: the 2 in "within ±2 %"."""
    return (high - low) / 2 / middle * 100


def drift_percent(round_medians: Sequence[float]) -> float:
    """How much slower (positive) the last third of the rounds was than the first third, in percent."""
    third = max(1, len(round_medians) // 3)
    return float(np.median(round_medians[-third:]) / np.median(round_medians[:third]) - 1) * 100


def spread_percent(round_medians: Sequence[float]) -> float:
    """How far apart the rounds are: the middle half of their medians, its width in percent of the middle."""
    low, middle, high = np.percentile(np.asarray(round_medians, dtype=np.float64), [25, 50, 75])
    return float((high - low) / middle) * 100


@dataclass(frozen=True)
class Ratio:
    """One thing against another, from the medians of their rounds."""

    ratio: float
    """How many times as long the second one took."""
    low: float | None
    """Lower end of its 95 % interval; None where there are too few rounds for one."""
    high: float | None
    """Upper end."""
    verdict: str
    """`"faster"` or `"slower"`: the first one is; `"same"`; or `"unclear"`."""


def compare_rounds(model: Sequence[float], reference: Sequence[float], min_effect: float, seed: int) -> Ratio:
    """Compare two models by the medians of their rounds; round i of one ran beside round i of the other.

    There are two views of the difference: the median of the paired ratios, and the ratio of the floors. `faster` or
    `slower` is claimed where one of them is beyond `min_effect` percent, its 99.5 % interval excludes 1, and the other
    view shows at least half as much. So two copies of one file on a noisy machine are not told apart, and a
    real difference of a few percent is still found. `same` is claimed where the 95 % interval of the first view
    lies within ± `min_effect`; everything else is `unclear`. With fewer than 16 rounds a difference counts where each
    of at least 3 rounds shows a ratio beyond 1.5.
    """
    mine, other = np.asarray(model, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    ratios, count = other / mine, len(mine)
    ratio = float(np.median(ratios))
    if count < MIN_ROUNDS:
        return Ratio(ratio, None, None, _plain(ratios))
    drawn = draw_members(count, seed)
    paired = np.median(ratios[drawn], axis=1)
    floors = np.percentile(other[drawn], FLOOR, axis=1) / np.percentile(mine[drawn], FLOOR, axis=1)
    low, high = interval(paired)
    if count < ENOUGH_ROUNDS:
        return Ratio(ratio, low, high, _plain(ratios))
    floor = percentile(other, FLOOR) / percentile(mine, FLOOR)
    return Ratio(ratio, low, high, _verdict(((ratio, paired), (floor, floors)), (low, high), min_effect))


def compare_runs(now: Sequence[float], before: Sequence[float], min_effect: float, machine: float, seed: int) -> Ratio:
    """Compare two benchmarks of one model, run at different times: `ratio` is now over before, above 1 is slower.

    Rounds are not paired here, so those of each are resampled on their own, and a neighbour that was there one time
    only moves the medians: a claim takes both views. `machine` is how many times as long a fixed calculation takes now:
    a claim must hold both with and without dividing by that, because a slower machine is no slower model, and the
    calculation itself is noisy.
    """
    new, old = np.asarray(now, dtype=np.float64), np.asarray(before, dtype=np.float64)
    ratio = float(np.median(new) / np.median(old))
    if min(len(new), len(old)) < MIN_ROUNDS:
        apart = np.array([old.min() / new.max(), old.max() / new.min()])
        enough = min(len(new), len(old)) >= FEW_ROUNDS
        return Ratio(ratio, None, None, _plain(apart, 2) if enough else "unclear")
    first, second = new[draw_members(len(new), seed)], old[draw_members(len(old), seed + 1)]
    medians = np.median(first, axis=1) / np.median(second, axis=1)
    floors = np.percentile(first, FLOOR, axis=1) / np.percentile(second, FLOOR, axis=1)
    floor = percentile(new, FLOOR) / percentile(old, FLOOR)
    low, high = interval(medians)
    verdicts = set()
    for scale in (1.0, machine):
        views = ((scale / ratio, scale / medians), (scale / floor, scale / floors))
        verdicts.add(_verdict(views, (scale / high, scale / low), min_effect, all))
    return Ratio(ratio, low, high, verdicts.pop() if len(verdicts) == 1 else "unclear")


def _verdict(
    views: Sequence[tuple[float, Floats]],
    bounds: tuple[float, float],
    min_effect: float,
    needed: Callable[[Iterable[bool]], bool] = any,
) -> str:
    """From two views (ratio, resampled ratios) and the 95 % interval of the first; above 1 is faster.

    `needed`: whether one of the two must be sure, `any`, or both, `all`.
    """
    margin = 1 + min_effect / 100
    half = margin**0.5
    sure = [(ratio, *interval(resampled, SURE)) for ratio, resampled in views]
    if all(ratio > half for ratio, _, _ in sure) and needed(ratio > margin and low > 1 for ratio, low, _ in sure):
        return "faster"
    less = 1 / margin
    if all(ratio < 1 / half for ratio, _, _ in sure) and needed(ratio < less and high < 1 for ratio, _, high in sure):
        return "slower"
    return "same" if less <= bounds[0] and bounds[1] <= margin else "unclear"


def _plain(ratios: Floats, least: int = FEW_ROUNDS) -> str:
    """What a few rounds say by themselves."""
    if len(ratios) < least:
        return "unclear"
    return "faster" if ratios.min() > PLAIN else "slower" if ratios.max() < 1 / PLAIN else "unclear"
