"""The statistics against brute force, numbers worked out by hand, and simulated machines. Nothing here is timed."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdl_deploy.bench import statistics as stats

bursts = st.lists(st.lists(st.floats(0.1, 10), min_size=1, max_size=5), min_size=1, max_size=6)


@given(rounds=bursts, seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_resampled_medians_are_those_of_a_bare_loop(rounds, seed):
    draws = stats.draw_rounds(len(rounds), seed)[:20]
    expected = [statistics.median([t for r, n in zip(rounds, row, strict=True) for t in r * n]) for row in draws]
    np.testing.assert_allclose(stats.resampled_medians(rounds, draws), expected, rtol=1e-12)


def test_blocks():
    assert [stats.block_length(rounds) for rounds in (1, 7, 8, 9, 27, 28, 125)] == [1, 2, 2, 3, 3, 4, 5]
    members = stats.draw_members(8, 0)
    assert members.shape == (stats.RESAMPLES, 8)
    # Blocks of two: every second round follows the one before it, and the last is followed by the first.
    np.testing.assert_array_equal(members[:, 1::2], (members[:, ::2] + 1) % 8)
    draws = stats.draw_rounds(8, 0)
    for row, counts in zip(members[:20], draws[:20], strict=True):
        assert [list(row).count(number) for number in range(8)] == list(counts)
    assert (draws.sum(axis=1) == 8).all()
    np.testing.assert_array_equal(draws, stats.draw_rounds(8, 0))
    # Every round is as likely as every other.
    assert abs(draws.mean(axis=0) - 1).max() < 0.1


@pytest.mark.parametrize("persistence", [0.0, 0.5])
def test_interval_covers_the_true_median(persistence):
    """Bursts with an offset each, which lasts over several rounds: the interval must hold the median."""
    rng, hits, rounds = np.random.default_rng(0), 0, 40
    for trial in range(200):
        offsets = [rng.normal()]
        for _ in range(rounds - 1):
            offsets.append(persistence * offsets[-1] + np.sqrt(1 - persistence**2) * rng.normal())
        times = [list(10 + 0.1 * offset + rng.normal(0, 0.05, 9)) for offset in offsets]
        low, high = stats.interval(stats.resampled_medians(times, stats.draw_rounds(rounds, trial)))
        hits += low <= 10 <= high
    assert hits >= 168  # 84 %: the bootstrap of few blocks is known to be a little too narrow


def test_small_statistics():
    assert stats.percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5
    assert stats.half_width_percent(98, 102, 100) == 2
    assert stats.drift_percent([1.0, 1.0, 1.0, 1.1, 1.2, 1.2]) == pytest.approx(20)
    assert stats.drift_percent([3.0]) == 0
    assert stats.spread_percent([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(200 / 3)  # (4 − 2) / 3
    assert stats.spread_percent([7.0]) == 0
    assert stats.interval(np.arange(101.0)) == (2.5, 97.5)
    assert stats.interval(np.arange(101.0), 50) == (25, 75)


def test_a_few_rounds_decide_only_what_is_plain():
    assert stats.compare_rounds([1, 1, 1], [1.6, 2, 1.7], 3, 0) == stats.Ratio(1.7, None, None, "faster")
    assert stats.compare_rounds([2, 2, 2], [1, 1.2, 1.3], 3, 0) == stats.Ratio(0.6, None, None, "slower")
    assert stats.compare_rounds([1, 1, 1], [1.6, 2, 1.4], 3, 0).verdict == "unclear"  # one round shows 1.4 only
    assert stats.compare_rounds([1, 1], [3, 3], 3, 0).verdict == "unclear"
    some = stats.compare_rounds([1.0] * 10, [1.2] * 10, 3, 0)
    assert (some.ratio, some.low, some.high, some.verdict) == (pytest.approx(1.2), 1.2, 1.2, "unclear")
    assert stats.compare_rounds([1.0] * 10, [1.6] * 10, 3, 0).verdict == "faster"


def test_verdicts_of_many_rounds():
    rng = np.random.default_rng(1)
    quiet, other = (1 + rng.normal(0, 0.01, 30) for _ in range(2))
    same = stats.compare_rounds(quiet, other, 3, 0)
    assert same.verdict == "same"
    assert same.low is not None
    assert same.high is not None
    assert same.low < 1 < same.high
    slower = stats.compare_rounds(quiet * 1.1, other, 3, 0)
    assert slower.verdict == "slower"
    assert slower.high is not None
    assert slower.high < 1
    assert stats.compare_rounds(quiet / 1.1, other, 3, 0).verdict == "faster"
    # A certain difference that is smaller than the least one asked for is none; it is one where less is asked for.
    assert stats.compare_rounds(quiet * 1.02, quiet, 3, 0).verdict == "same"
    assert stats.compare_rounds(quiet * 1.02, quiet, 1, 0).verdict == "slower"
    # All the fast rounds are alike, half of the slow ones take twice as long in one of the two: no claim.
    half = np.where(np.arange(30) % 2 == 0, 1.0, 2.0)
    assert stats.compare_rounds(half, np.ones(30), 3, 0).verdict == "unclear"


@given(
    times=st.lists(st.tuples(st.floats(0.5, 5), st.floats(0.5, 5)), min_size=3, max_size=30),
    scale=st.floats(0.01, 100),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
def test_what_is_faster_one_way_is_slower_the_other_way(times, scale, seed):
    first, second = np.array(times).T
    there, back = stats.compare_rounds(first, second, 3, seed), stats.compare_rounds(second, first, 3, seed)
    assert {there.verdict, back.verdict} in ({"faster", "slower"}, {"same"}, {"unclear"}, {"same", "unclear"})
    scaled = stats.compare_rounds(first * scale, second * scale, 3, seed)  # another unit of time
    assert scaled.ratio == pytest.approx(there.ratio)
    if there.low is not None:
        assert scaled.low == pytest.approx(there.low)


def noisy_machine(rng: np.random.Generator, rounds: int, persistence: float, share: float, size: float) -> np.ndarray:
    """[rounds, 2] burst medians of one model measured twice: a neighbour comes, stays for some bursts, and goes."""
    times = np.empty((rounds, 2))
    disturbed = rng.random() < share
    for number in range(rounds):
        for place in rng.permutation(2):
            if rng.random() > persistence:
                disturbed = rng.random() < share
            times[number, place] = 1 + rng.normal(0, 0.01) + (abs(rng.normal(0, size)) if disturbed else 0)
    # Two processes that run one file differ for good by some tenths of a percent.
    return times * (1 + rng.normal(0, 0.004, 2))


@pytest.mark.parametrize("machine", [(0.0, 0.2, 0.2), (0.7, 0.5, 0.5), (0.9, 0.3, 1.0)], ids=["calm", "busy", "phases"])
def test_a_copy_is_never_called_slower_and_a_slowed_model_always_is(machine):
    """Simulated: 60 trials each, on machines from calm to very noisy."""
    wrong = found = clear = 0
    for trial in range(60):
        rng = np.random.default_rng(trial)
        model, copy = noisy_machine(rng, 60, *machine).T
        wrong += stats.compare_rounds(model, copy, 3, trial).verdict in ("slower", "faster")
        verdict = stats.compare_rounds(model * 1.15, copy, 3, trial).verdict
        found += verdict == "slower"
        clear += verdict != "faster"
    assert wrong == 0
    assert clear == 60
    assert found >= 57  # the rest is unclear


def test_runs_at_different_times():
    rng = np.random.default_rng(2)
    before, now = (1 + rng.normal(0, 0.01, 24) for _ in range(2))
    assert stats.compare_runs(now, before, 3, 1.0, 0).verdict == "same"
    slower = stats.compare_runs(now * 1.1, before, 3, 1.0, 0)
    assert slower.verdict == "slower"
    assert slower.ratio == pytest.approx(1.1, abs=0.01)
    assert slower.low is not None
    assert slower.low > 1.08
    assert stats.compare_runs(now / 1.1, before, 3, 1.0, 0).verdict == "faster"
    # The machine itself is as much slower: no regression of the model.
    assert stats.compare_runs(now * 1.1, before, 3, 1.1, 0).verdict == "unclear"
    # A machine that became faster does not hide one, but does not make one either.
    assert stats.compare_runs(now * 1.1, before, 3, 0.95, 0).verdict == "slower"
    assert stats.compare_runs(now, before, 3, 0.9, 0).verdict == "unclear"
    assert stats.compare_runs([1, 1, 1], [2, 2, 2], 3, 1.0, 0).verdict == "faster"
    assert stats.compare_runs([1, 1, 2.1], [2, 2, 2], 3, 1.0, 0).verdict == "unclear"
    assert stats.compare_runs([1, 1], [2, 2], 3, 1.0, 0).verdict == "unclear"


@pytest.mark.parametrize("machine", [(0.0, 0.2, 0.2), (0.7, 0.5, 0.5)], ids=["calm", "busy"])
def test_a_run_is_no_regression_against_itself(machine):
    """Simulated: two benchmarks of one file; 60 trials."""
    verdicts = []
    for trial in range(60):
        rng = np.random.default_rng(trial)
        now, before = (noisy_machine(rng, 40, *machine)[:, 0] for _ in range(2))
        verdicts.append(stats.compare_runs(now, before, 3, 1.0, trial).verdict)
    assert "slower" not in verdicts
