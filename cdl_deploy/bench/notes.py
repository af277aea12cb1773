"""What a reader should not trust in a report, said in the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cdl_deploy.bench.machine import Machine
from cdl_deploy.bench.options import BenchOptions
from cdl_deploy.bench.report import Measurement
from cdl_deploy.bench.statistics import MIN_ROUNDS
from cdl_deploy.bundle import Bundle

BUSY = 0.1
"""Share of the CPU in other hands that is worth a note."""
DRIFT = 5.0
"""Percent of change from the first rounds to the last that is worth a note."""
P99_SAMPLES = 100
"""With fewer times than this, the 99th percentile is little more than the slowest of them."""


def make_notes(
    machine: Machine, options: BenchOptions, measurements: Sequence[Measurement], bundles: Mapping[str, Bundle | None]
) -> Iterator[str]:
    """One sentence for each thing that a reader should know before believing the numbers."""
    for share, when in ((machine.busy_before, "before"), (machine.busy_after, "after")):
        if share is not None and share > BUSY:
            yield (
                f"other programs used {share:.0%} of the CPU just {when} the benchmark: "
                "times are longer and less certain than on a quiet machine"
            )
    if machine.busy_before is None and (machine.load_average or 0) > machine.usable_cores / 2:
        yield (
            f"the load average was {machine.load_average} on {machine.usable_cores} cores before the benchmark: "
            "times are longer and less certain than on a quiet machine"
        )
    for threads in options.threads:
        if threads > machine.usable_cores:
            yield f"{threads} threads on {machine.usable_cores} usable cores: they wait for each other"
    yield from _about(measurements, options)
    yield from _about_classes(bundles)


def _about(measurements: Sequence[Measurement], options: BenchOptions) -> Iterator[str]:
    def where(m: Measurement) -> str:
        many = len(options.threads) > 1
        return f"{m.model} at batch {m.batch}" + (f", {m.threads} thread{'s' * (m.threads > 1)}" if many else "")

    imprecise = [f"{where(m)} ({_precision(m)})" for m in measurements if not m.precise]
    if imprecise:
        yield (
            f"the time limit of {options.time_limit:g} s came before p50 was within ±{options.precision:g} % "
            f"(--time-limit): {'; '.join(imprecise)}"
        )
    few = [f"{where(m)} ({m.samples} times)" for m in measurements if m.samples < P99_SAMPLES]
    if few:
        yield f"p99 is little more than the slowest time: {'; '.join(few)}"
    unsettled = [where(m) for m in measurements if not m.steady]
    if unsettled:
        yield f"times had not settled when warm-up ended: {'; '.join(unsettled)}"
    drifted = [
        f"{where(m)} ({m.drift_percent:+.0f} %)"
        for m in measurements
        if m.rounds >= MIN_ROUNDS and abs(m.drift_percent) > max(DRIFT, 2 * (m.within_percent or 0))
    ]
    if drifted:
        yield f"times changed from the first rounds to the last, by throttling or other load: {'; '.join(drifted)}"


def _precision(m: Measurement) -> str:
    within = f"±{m.within_percent:.1f} %" if m.within_percent is not None else "unknown"
    return f"{within} from {m.rounds} round{'s' * (m.rounds > 1)}" if m.rounds < MIN_ROUNDS else within


def _about_classes(bundles: Mapping[str, Bundle | None]) -> Iterator[str]:
    known = [(name, bundle) for name, bundle in bundles.items() if bundle is not None]
    for name, bundle in known[1:]:
        first_name, first = known[0]
        if set(bundle.classes) != set(first.classes):
            yield (
                f"{first_name} knows {len(first.classes)} classes and {name} knows {len(bundle.classes)}, "
                "not the same ones: their accuracies do not compare"
            )
