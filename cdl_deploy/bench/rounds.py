"""The benchmark itself: start the workers, warm them up, let them take turns until every median is precise."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import product
from statistics import median
from typing import Any

from cdl_deploy.bench import statistics as stats
from cdl_deploy.bench.client import WorkerClient
from cdl_deploy.bench.machine import busy_share, describe_machine
from cdl_deploy.bench.notes import make_notes
from cdl_deploy.bench.options import BenchOptions, ModelSpec
from cdl_deploy.bench.report import BenchReport, Comparison, Measurement, ModelRecord, Progress
from cdl_deploy.bundle import FORMAT_KEY, Bundle, decode_metadata
from cdl_deploy.errors import OptionError

BURST_SECONDS = 0.1
WARM_SHARE = 0.25
"""Share of the time limit that warming up may take at most."""
CHECK_GROWTH = 1.2
"""Intervals are computed anew when there are this many times as many rounds as at the last check."""


@dataclass
class _Cell:
    """One model under one condition, while it is measured."""

    client: WorkerClient
    batch: int
    steady: bool = False
    peak_bytes: int | None = None
    bursts: list[list[float]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.client.model.name} at batch {self.batch}, threads {self.client.threads}"


def bench_latency(
    models: Sequence[ModelSpec],
    options: BenchOptions | None = None,
    on_progress: Callable[[Progress], object] | None = None,
) -> BenchReport:
    """Measure every model at every batch size and thread count; see `cdl_deploy.bench` for how and why.

    `on_progress` is called between measurements. Raises `BundleError` for a model that cannot be read or run, or whose
    process dies; `OptionError` without models or for a name given twice. No process is left behind.
    """
    options = options if options is not None else BenchOptions()
    if not models or len({model.name for model in models}) < len(models):
        raise OptionError(f"models are {[m.name for m in models]}, expected at least one, each with a name of its own")
    bench = _Bench(options, on_progress)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    machine = describe_machine()
    with ExitStack() as stack:
        records, bundles = bench.load(models, stack)
        bench.warm_up()
        bench.measure()
    machine = replace(machine, busy_after=busy_share())
    measurements = bench.measurements()
    return BenchReport(
        machine=machine,
        options=options,
        seconds=round(bench.elapsed(), 1),
        models=tuple(records),
        measurements=measurements,
        comparisons=bench.comparisons(_reference(records)),
        notes=tuple(make_notes(machine, options, measurements, bundles)),
        created=created,
    )


def _reference(records: Sequence[ModelRecord]) -> str:
    """The teacher if there is exactly one, otherwise the last model."""
    teachers = [record.name for record in records if record.role == "teacher"]
    return teachers[0] if len(teachers) == 1 else records[-1].name


class _Bench:
    """The state of one benchmark."""

    def __init__(self, options: BenchOptions, on_progress: Callable[[Progress], object] | None) -> None:
        self._options, self._on_progress = options, on_progress
        self._begin = time.monotonic()
        self._conditions: dict[tuple[int, int], list[_Cell]] = {}
        self._within: dict[str, float] = {}
        self._rounds = 0

    def elapsed(self) -> float:
        return time.monotonic() - self._begin

    def load(self, models: Sequence[ModelSpec], stack: ExitStack) -> tuple[list[ModelRecord], dict[str, Bundle | None]]:
        """Start every worker, one after the other, so that none loads while another is timed."""
        records, bundles = [], {}
        for threads, model in product(self._options.threads, models):
            self._tell("load", model.name)
            client = stack.enter_context(WorkerClient(model, threads))
            loaded = client.load(self._options.seed)
            first = client.first(min(self._options.batches))
            for batch in self._options.batches:
                self._conditions.setdefault((threads, batch), []).append(_Cell(client, batch))
            if threads == self._options.threads[0]:
                bundle = decode_metadata(model.path, loaded["metadata"]) if FORMAT_KEY in loaded["metadata"] else None
                bundles[model.name] = bundle
                records.append(_record(model, bundle, loaded, first))
        return records, bundles

    def warm_up(self) -> None:
        """Small batches first, so that the peak memory seen after each belongs to it."""
        cells = sorted((cell for cells in self._conditions.values() for cell in cells), key=lambda cell: cell.batch)
        for cell in cells:
            self._tell("warm up", cell.name)
            seconds = WARM_SHARE * self._options.time_limit / len(cells)
            cell.steady, cell.peak_bytes = cell.client.warm(cell.batch, seconds)

    def measure(self) -> None:
        """Rounds in random order until every median is precise or the time is up; at least one round."""
        order, limit = random.Random(self._options.seed), self._options.time_limit
        cells = sum(map(len, self._conditions.values()))
        # Short bursts if the time is short, so that there are enough rounds for an interval.
        seconds = max(0.005, min(BURST_SECONDS, 0.5 * (limit - self.elapsed()) / (cells * stats.MIN_ROUNDS)))
        cost: dict[tuple[int, int], float] = {}
        unfinished, check = list(self._conditions), stats.MIN_ROUNDS
        while unfinished:
            order.shuffle(unfinished)
            for condition in unfinished:
                if self.elapsed() + cost.get(condition, 0) > limit and self._rounds:
                    return
                begin = self.elapsed()
                # The models of one condition run side by side in time: their ratio sees the same disturbances.
                for cell in order.sample(self._conditions[condition], len(self._conditions[condition])):
                    self._tell("measure", cell.name)
                    cell.bursts.append(cell.client.burst(cell.batch, seconds))
                cost[condition] = self.elapsed() - begin
            self._rounds += 1
            if self._rounds >= check:
                unfinished = [condition for condition in unfinished if not self._precise(condition)]
                check = int(self._rounds * CHECK_GROWTH) + 1

    def _precise(self, condition: tuple[int, int]) -> bool:
        for cell in self._conditions[condition]:
            within = _interval(cell.bursts, self._options.seed)[2]
            self._within[cell.name] = within if within is not None else float("inf")
        return all(self._within[cell.name] <= self._options.precision for cell in self._conditions[condition])

    def measurements(self) -> tuple[Measurement, ...]:
        return tuple(
            _summary(cell, self._options) for condition in self._conditions for cell in self._conditions[condition]
        )

    def comparisons(self, reference: str) -> tuple[Comparison, ...]:
        found = []
        for cells in self._conditions.values():
            against = next(cell for cell in cells if cell.client.model.name == reference)
            found += [_compare(cell, against, self._options) for cell in cells if cell is not against]
        return tuple(found)

    def _tell(self, phase: str, detail: str) -> None:
        if self._on_progress is not None:
            precise = sum(within <= self._options.precision for within in self._within.values())
            medians = sum(map(len, self._conditions.values()))
            self._on_progress(Progress(phase, detail, self.elapsed(), self._rounds, precise, medians))


def _record(model: ModelSpec, bundle: Bundle | None, loaded: dict[str, Any], first_ms: float) -> ModelRecord:
    return ModelRecord(
        name=model.name,
        path=str(model.path),
        role=bundle.role if bundle else None,
        file_bytes=loaded["file_bytes"],
        parameters=bundle.parameters if bundle else None,
        accuracy=bundle.accuracy.final_average_accuracy if bundle and bundle.accuracy else None,
        classes=len(bundle.classes) if bundle else None,
        load_ms=loaded["load_ms"],
        first_inference_ms=first_ms,
    )


def _interval(bursts: list[list[float]], seed: int) -> tuple[float | None, float | None, float | None]:
    """(low, high, half the width in percent of the median) of the median's 95 % interval; None after one round."""
    if len(bursts) < 2:
        return None, None, None
    medians = stats.resampled_medians(bursts, stats.draw_rounds(len(bursts), seed))
    low, high = stats.interval(medians)
    return low, high, stats.half_width_percent(low, high, median(t for burst in bursts for t in burst))


def _summary(cell: _Cell, options: BenchOptions) -> Measurement:
    times = [t for burst in cell.bursts for t in burst]
    low, high, within = _interval(cell.bursts, options.seed)
    round_medians = tuple(median(burst) for burst in cell.bursts)
    mean = sum(times) / len(times)
    return Measurement(
        model=cell.client.model.name,
        threads=cell.client.threads,
        batch=cell.batch,
        samples=len(times),
        rounds=len(cell.bursts),
        p50_ms=stats.percentile(times, 50),
        low_ms=low,
        high_ms=high,
        within_percent=within,
        precise=within is not None and within <= options.precision and len(cell.bursts) >= stats.MIN_ROUNDS,
        p90_ms=stats.percentile(times, 90),
        p95_ms=stats.percentile(times, 95),
        p99_ms=stats.percentile(times, 99),
        mean_ms=mean,
        images_per_second=cell.batch / mean * 1000,
        drift_percent=stats.drift_percent(round_medians),
        steady=cell.steady,
        peak_bytes=cell.peak_bytes,
        round_medians_ms=round_medians,
    )


def _compare(cell: _Cell, against: _Cell, options: BenchOptions) -> Comparison:
    speedup = median(t for b in against.bursts for t in b) / median(t for b in cell.bursts for t in b)
    low = high = None
    verdict = "unclear"
    if len(cell.bursts) > 1:
        # One set of draws for both: a round that was disturbed counts for both or for neither.
        draws = stats.draw_rounds(len(cell.bursts), options.seed)
        ratios = stats.resampled_medians(against.bursts, draws) / stats.resampled_medians(cell.bursts, draws)
        low, high = stats.interval(ratios)
        margin = 1 + options.precision / 100
        verdict = "same"
        if low > 1 and speedup > margin:
            verdict = "faster"
        elif high < 1 and speedup < 1 / margin:
            verdict = "slower"
    return Comparison(
        cell.client.model.name, against.client.model.name, cell.client.threads, cell.batch, speedup, low, high, verdict
    )
