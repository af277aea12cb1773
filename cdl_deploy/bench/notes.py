"""What a reader should not trust in a report, said in the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cdl_deploy.bench.machine import Machine
from cdl_deploy.bench.options import BenchOptions
from cdl_deploy.bench.report import Measurement, ModelRecord
from cdl_deploy.bench.statistics import MIN_ROUNDS
from cdl_deploy.bench.watch import Watch
from cdl_deploy.runtime.bundle import Bundle
from cdl_deploy.targets import targets

BUSY = 0.1
"""Share of the processor in other hands that is worth a note."""
STOLEN = 0.02
"""Share of the processor given to other guests that is worth a note."""
SPREAD = 10.0
"""Percent by which the middle half of the rounds may differ before the machine is called noisy."""
DRIFT = 5.0
"""Percent of change from the first rounds to the last that is worth a note."""
P99_SAMPLES = 100
"""With fewer times than this, the 99th percentile is little more than the slowest of them."""
OVERRUN = 1.25
"""Times the time limit that is worth a note."""
SLOW_GOVERNORS = ("powersave", "conservative", "ondemand")


def make_notes(
    machine: Machine,
    watch: Watch,
    options: BenchOptions,
    measurements: Sequence[Measurement],
    models: Sequence[ModelRecord],
    bundles: Mapping[str, Bundle | None],
    seconds: float,
) -> Iterator[str]:
    """One sentence for each thing that a reader should know before believing the numbers."""
    yield from _about_machine(machine, watch)
    for threads in options.threads:
        if threads > machine.usable_cores:
            yield f"{threads} threads on {machine.usable_cores} usable cores: they wait for each other"
    if seconds > OVERRUN * options.time_limit:
        yield (
            f"it took {seconds:.0f} s instead of {options.time_limit:g} s (--time-limit): every model is loaded, "
            "warmed up and measured once under every condition, however long that takes"
        )
    yield from _about(measurements, options)
    yield from _about_models(models, options, measurements)
    yield from _about_classes(bundles)
    yield from _about_selection(bundles)


def _about_machine(machine: Machine, watch: Watch) -> Iterator[str]:
    if watch.others_share is not None and watch.others_share > BUSY:
        yield (
            f"other programs used {watch.others_share:.0%} of the processor meanwhile: "
            "times are longer and less certain than on a quiet machine"
        )
    elif watch.others_share is None and (watch.load_average or 0) > machine.usable_cores / 2:
        yield (
            f"the load average was {watch.load_average} on {machine.usable_cores} cores before the benchmark: "
            "times are longer and less certain than on a quiet machine"
        )
    if watch.stolen_share is not None and watch.stolen_share > STOLEN:
        yield f"this is a virtual machine, and its host gave {watch.stolen_share:.0%} of the processor to others"
    if watch.throttled:
        yield f"the processor slowed itself down because of heat or power ({watch.throttled} times)"
    drift = watch.machine_drift_percent
    if drift is not None and abs(drift) > DRIFT:
        more = "slower" if drift > 0 else "faster"
        yield (
            f"the machine itself became {abs(drift):.0f} % {more} from the first rounds to the last (a fixed "
            "calculation did): its clock or its other users changed"
        )
    if machine.governor in SLOW_GOVERNORS:
        yield f"the clock rate follows the load (governor {machine.governor}): short runs may be slower than long ones"


def _about(measurements: Sequence[Measurement], options: BenchOptions) -> Iterator[str]:
    def where(m: Measurement) -> str:
        parts = [f"batch {m.batch}"]
        if len(options.threads) > 1:
            parts.append(f"{m.threads} thread{'s' * (m.threads > 1)}")
        if len(options.streams) > 1:
            parts.append(f"{m.streams} stream{'s' * (m.streams > 1)}")
        if len(options.stages) > 1:
            parts.append("from JPEG" if m.stage == "jpeg" else "graph only")
        return f"{m.model} at {', '.join(parts)}"

    noisy = [f"{where(m)} ({m.spread_percent:.0f} %)" for m in measurements if m.spread_percent > SPREAD]
    if noisy:
        yield (
            f"noisy: the middle half of the rounds differs by more than {SPREAD:g} %, so a median depends on when it "
            f"was taken; ratios between models were taken within rounds and depend on it less: {_some(noisy)}"
        )
    imprecise = [f"{where(m)} ({_precision(m)})" for m in measurements if not m.precise]
    if imprecise:
        yield (
            f"the time limit of {options.time_limit:g} s came before p50 was within ±{options.precision:g} % "
            f"(--time-limit): {_some(imprecise)}"
        )
    few = [f"{where(m)} ({m.samples} time{'s' * (m.samples > 1)})" for m in measurements if m.samples < P99_SAMPLES]
    if few:
        yield f"p99 is little more than the slowest time: {_some(few)}"
    unsettled = [where(m) for m in measurements if not m.steady]
    if unsettled:
        yield f"times had not settled when warm-up ended: {_some(unsettled)}"
    drifted = [
        f"{where(m)} ({m.drift_percent:+.0f} %)"
        for m in measurements
        if m.rounds >= MIN_ROUNDS and abs(m.drift_percent) > max(DRIFT, 2 * (m.within_percent or 0))
    ]
    if drifted:
        yield f"times changed from the first rounds to the last, by throttling or other load: {_some(drifted)}"


def _some(items: Sequence[str]) -> str:
    """All of up to four; otherwise the first three and how many more."""
    return "; ".join(items if len(items) <= 4 else [*items[:3], f"and {len(items) - 3} more"])


def _precision(m: Measurement) -> str:
    within = f"±{m.within_percent:.1f} %" if m.within_percent is not None else "unknown"
    return f"{within} from {m.rounds} round{'s' * (m.rounds > 1)}" if m.rounds < MIN_ROUNDS else within


def _about_models(
    models: Sequence[ModelRecord], options: BenchOptions, measurements: Sequence[Measurement]
) -> Iterator[str]:
    for model in models:
        measured = {m.batch for m in measurements if m.model == model.name}
        left_out = [str(batch) for batch in sorted(options.batches) if batch not in measured]
        if left_out:
            yield f"{model.name} takes batches of {min(measured)} only: not measured at batch {', '.join(left_out)}"
        if model.uncounted:
            yield f"{model.name}: MACs not counted, as its shapes do not tell those of {', '.join(model.uncounted)}"
        if "jpeg" in options.stages and model.role is None:
            yield (
                f"{model.name} does not say how it preprocesses: from JPEG, images were resized to its input and "
                "normalised as for ImageNet"
            )
        if model.runtime is not None:
            yield f"{model.name} ran in {model.runtime}"
    others = {model.runtime.split()[0] for model in models if model.runtime is not None}
    one = sorted(name for name in others if not targets()[name].threads)
    if one and options.threads != (1,):
        yield f"{', '.join(one)}: the number of threads is its own, whatever --threads says"
    torch = [model.name for model in models if model.kind == "torch"]
    if torch and len(torch) < len(models):
        yield f"{', '.join(torch)}: memory is that of a process with PyTorch; size is that of the run's weights"


def _about_classes(bundles: Mapping[str, Bundle | None]) -> Iterator[str]:
    known = [(name, bundle) for name, bundle in bundles.items() if bundle is not None]
    for name, bundle in known[1:]:
        first_name, first = known[0]
        if set(bundle.classes) != set(first.classes):
            yield (
                f"{first_name} knows {len(first.classes)} classes and {name} knows {len(bundle.classes)}, "
                "not the same ones: their accuracies do not compare"
            )


def _about_selection(bundles: Mapping[str, Bundle | None]) -> Iterator[str]:
    for name, bundle in bundles.items():
        if bundle is not None and bundle.accuracy is not None and bundle.method.select not in (None, "in-graph"):
            yield (
                f"{name}: its prompts were chosen at export ({bundle.method.select}), and its accuracy is the run's, "
                "where each image chose: cdl evaluate measures its own"
            )
