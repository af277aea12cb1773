"""Times on their way to a report: what one model gave under one condition, and what that amounts to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from cdl_deploy.bench import statistics as stats
from cdl_deploy.bench.options import BenchOptions, Condition
from cdl_deploy.bench.report import Comparison, Measurement


@dataclass
class Cell:
    """One model under one condition, while it is measured."""

    model: str
    condition: Condition
    steady: bool = False
    peak_bytes: int | None = None
    bursts: list[list[float]] = field(default_factory=list)
    """Milliseconds of every run, by round."""

    @property
    def name(self) -> str:
        """For progress: what is at hand, in a few words."""
        at = self.condition
        extra = f", {at.streams} streams" if at.streams > 1 else ""
        start = " from JPEG" if at.stage == "jpeg" else ""
        return f"{self.model}{start} at batch {at.batch}, threads {at.threads}{extra}"

    @property
    def medians(self) -> list[float]:
        """Median of every round, in milliseconds."""
        return [median(burst) for burst in self.bursts]

    def interval(self, seed: int) -> tuple[float, float, float] | None:
        """(low, high, half the width in percent of the median) of the median's 95 % interval; None after one round."""
        if len(self.bursts) < 2:
            return None
        medians = stats.resampled_medians(self.bursts, stats.draw_rounds(len(self.bursts), seed))
        low, high = stats.interval(medians)
        return low, high, stats.half_width_percent(low, high, median(t for burst in self.bursts for t in burst))


def summarise(cell: Cell, options: BenchOptions) -> Measurement:
    """The numbers of one cell."""
    times, at = [t for burst in cell.bursts for t in burst], cell.condition
    low, high, within = cell.interval(options.seed) or (None, None, None)
    mean = sum(times) / len(times)
    enough = len(cell.bursts) >= stats.MIN_ROUNDS
    return Measurement(
        model=cell.model,
        stage=at.stage,
        threads=at.threads,
        streams=at.streams,
        batch=at.batch,
        samples=len(times),
        rounds=len(cell.bursts),
        p50_ms=stats.percentile(times, 50),
        low_ms=low,
        high_ms=high,
        within_percent=within,
        precise=within is not None and within <= options.precision and enough,
        p90_ms=stats.percentile(times, 90),
        p95_ms=stats.percentile(times, 95),
        p99_ms=stats.percentile(times, 99),
        mean_ms=mean,
        images_per_second=at.streams * at.batch / mean * 1000,
        drift_percent=stats.drift_percent(cell.medians),
        spread_percent=stats.spread_percent(cell.medians),
        steady=cell.steady,
        peak_bytes=cell.peak_bytes,
        round_medians_ms=tuple(cell.medians),
        quantiles_ms=tuple(stats.percentile(times, percent) for percent in range(101)),
    )


def compare(cell: Cell, against: Cell, options: BenchOptions) -> Comparison:
    """One model against the reference under the same condition, over the rounds that both ran in."""
    found = stats.compare_rounds(cell.medians, against.medians, options.min_effect, options.seed)
    at = cell.condition
    return Comparison(
        model=cell.model,
        reference=against.model,
        stage=at.stage,
        threads=at.threads,
        streams=at.streams,
        batch=at.batch,
        speedup=found.ratio,
        low=found.low,
        high=found.high,
        verdict=found.verdict,
    )


def compare_all(cells: Sequence[Cell], reference: str, options: BenchOptions) -> list[Comparison]:
    """Every model against the reference, where both were measured."""
    against = {cell.condition: cell for cell in cells if cell.model == reference}
    return [
        compare(cell, against[cell.condition], options)
        for cell in cells
        if cell.model != reference and cell.condition in against
    ]
