"""What a benchmark found: records, the headline, JSON and CSV. Times are milliseconds of one run of a whole batch."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from dataclasses import dataclass

from cdl_deploy.bench.headline import headline
from cdl_deploy.bench.machine import Machine
from cdl_deploy.bench.options import BenchOptions
from cdl_deploy.bench.watch import Watch
from cdl_deploy.printable import no_formula

REPORT_VERSION = 2


@dataclass(frozen=True)
class BenchProgress:
    """Where a running benchmark is; given to `on_progress` between measurements, never during one."""

    phase: str
    """`"load"`, `"warm up"` or `"measure"`."""
    detail: str
    """The model or the condition at hand."""
    elapsed: float
    """Seconds since the start."""
    rounds: int
    """Complete rounds so far."""
    precise: int
    """Medians that are precise enough."""
    medians: int
    """Medians in all."""


@dataclass(frozen=True)
class ModelRecord:
    """One model, apart from its latency."""

    name: str
    """Short name, unique in the report."""
    path: str
    """The file measured; for a PyTorch model its run directory."""
    kind: str
    """`"onnx"`, `"torch"`, or `"runtime"` for another runtime."""
    role: str | None
    """`"student"`, `"teacher"`, or None for a model that cdl did not export."""
    file_bytes: int
    """Size of the file, with external weights beside it if there are any."""
    sha256: str | None
    """Hash of the file; None for a PyTorch model."""
    input: str
    """What it is fed with: names, types and shapes."""
    parameters: int | None
    """Number of parameters: as the file says, or else counted in it; None where neither is to be had."""
    macs: int | None
    """Multiply-accumulate operations an image; None where they cannot be counted."""
    uncounted: tuple[str, ...]
    """Operators because of which they cannot."""
    accuracy: float | None
    """Final average accuracy in percent as the run measured it; for a quantised model less what quantising took on
    held-out images. None if the file does not say."""
    classes: int | None
    """Number of classes, if the file says."""
    load_ms: float
    """Opening the model, without imports: median over fresh processes."""
    first_inference_ms: float
    """The first run after that, at the smallest batch size: median over fresh processes."""
    loads_ms: tuple[float, ...]
    """Every time of `load_ms`."""
    firsts_ms: tuple[float, ...]
    """Every time of `first_inference_ms`."""
    bytes_before: int | None
    """Memory of the process before the model was loaded: Python, numpy, onnxruntime or PyTorch."""
    runtime: str | None = None
    """Name and version of another runtime than onnxruntime: `"mnn 3.6.1"`."""


@dataclass(frozen=True)
class Measurement:
    """The latency of one model at one batch size and thread count."""

    model: str
    """Name of the model."""
    stage: str
    """`"graph"`: fed with what the graph takes; `"jpeg"`: from image files, decoded and preprocessed."""
    threads: int
    """Threads of one inference."""
    streams: int
    """Inferences at the same time in one process."""
    batch: int
    """Images in one run."""
    samples: int
    """Runs counted."""
    rounds: int
    """Bursts they come from."""
    p50_ms: float
    """Median."""
    low_ms: float | None
    """Lower end of the median's 95 % interval; None after a single round."""
    high_ms: float | None
    """Upper end."""
    within_percent: float | None
    """Half the interval's width in percent of the median."""
    precise: bool
    """Whether that is as small as was asked for, over enough rounds."""
    p90_ms: float
    """90 % of runs took at most this."""
    p95_ms: float
    """95 % of runs took at most this."""
    p99_ms: float
    """99 % of runs took at most this."""
    mean_ms: float
    """Mean."""
    images_per_second: float
    """Batch size over mean, times the streams: each starts its next run when one ends."""
    drift_percent: float
    """How much slower the last third of the rounds was than the first."""
    spread_percent: float
    """Width of the middle half of the rounds' medians, in percent of their median: how noisy the machine was."""
    steady: bool
    """Whether warm-up ended because times were steady, rather than because its time was up."""
    peak_bytes: int | None
    """Peak memory of the process after running this and all smaller batch sizes."""
    round_medians_ms: tuple[float, ...]
    """Median of every round, in order."""
    quantiles_ms: tuple[float, ...]
    """The distribution: 0 %, 1 %, … 100 % of runs took at most this."""


@dataclass(frozen=True)
class Comparison:
    """One model against the reference under the same conditions."""

    model: str
    """Name of the model."""
    reference: str
    """Name of the model it is compared with: the teacher, or else the last one given."""
    stage: str
    """Where both started: `"graph"` or `"jpeg"`."""
    threads: int
    """Threads of one inference."""
    streams: int
    """Inferences at the same time."""
    batch: int
    """Images in one run."""
    speedup: float
    """Median over the rounds of (the reference's time / the model's time): above 1, the model is faster."""
    low: float | None
    """Lower end of its 95 % interval; None after too few rounds."""
    high: float | None
    """Upper end."""
    verdict: str
    """`"faster"`, `"slower"`, `"same"` or `"unclear"`, as `cdl_deploy.bench.statistics.compare_rounds` decides."""


@dataclass(frozen=True)
class Change:
    """One measurement against the same one of an earlier report."""

    model: str
    """Name of the model."""
    stage: str
    """`"graph"` or `"jpeg"`."""
    threads: int
    """Threads of one inference."""
    streams: int
    """Inferences at the same time."""
    batch: int
    """Images in one run."""
    before_ms: float
    """Median then."""
    now_ms: float
    """Median now."""
    ratio: float
    """Median of the rounds now over then; above 1: slower."""
    low: float | None
    """Lower end of its 95 % interval; None after too few rounds."""
    high: float | None
    """Upper end."""
    verdict: str
    """`"slower"` is a regression; `"faster"`, `"same"`, `"unclear"`."""


@dataclass(frozen=True)
class BenchReport:
    """Everything a benchmark found."""

    machine: Machine
    """Where it ran."""
    watch: Watch
    """What else went on there meanwhile."""
    options: BenchOptions
    """What was asked for."""
    seconds: float
    """How long it took."""
    models: tuple[ModelRecord, ...]
    """The models, in the order given."""
    measurements: tuple[Measurement, ...]
    """By stage, thread count, streams, batch size and model."""
    comparisons: tuple[Comparison, ...]
    """Every model against the reference; empty for a single model."""
    notes: tuple[str, ...]
    """What cannot be trusted, and why; empty if nothing stood out."""
    created: str
    """When it began: ISO 8601, UTC."""
    baseline: tuple[Change, ...] | None = None
    """Every measurement against an earlier report, where one was given."""

    @property
    def headline(self) -> str:
        """The result in one line: the first model against the reference, under the first condition."""
        return headline(self)

    @property
    def regressions(self) -> list[Change]:
        """What became slower since the baseline."""
        return [change for change in self.baseline or () if change.verdict == "slower"]

    def model(self, name: str) -> ModelRecord:
        """The record of a model."""
        return next(model for model in self.models if model.name == name)

    def condition(self, item: Measurement | Comparison | Change) -> str:
        """`batch 8, 2 threads`: the condition in words, of which those are left out that are the same everywhere."""
        return ", ".join(
            [
                f"batch {item.batch}",
                *([f"{item.threads} thread{'s' * (item.threads > 1)}"] if len(self.options.threads) > 1 else []),
                *([f"{item.streams} stream{'s' * (item.streams > 1)}"] if len(self.options.streams) > 1 else []),
                *(["from JPEG" if item.stage == "jpeg" else "graph only"] if len(self.options.stages) > 1 else []),
            ]
        )

    def to_json(self) -> str:
        """The whole report as indented JSON."""
        record = {"report_version": REPORT_VERSION, "headline": self.headline, **dataclasses.asdict(self)}
        return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False, default=str)

    def to_csv(self) -> str:
        """One line a measurement, with the model's own figures and its speed-up over the reference."""
        many = {"round_medians_ms", "quantiles_ms"}
        columns = [f.name for f in dataclasses.fields(Measurement) if f.name not in many]
        facts = ["file_bytes", "parameters", "macs", "accuracy", "load_ms", "first_inference_ms"]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*columns, *facts, "reference", "speedup", "speedup_low", "speedup_high", "verdict"])
        compared = {key_of(comparison): comparison for comparison in self.comparisons}
        for m in self.measurements:
            model, c = self.model(m.model), compared.get(key_of(m))
            row = [getattr(m, name) for name in columns] + [getattr(model, name) for name in facts]
            row = [no_formula(value) for value in row]
            writer.writerow(row + ([no_formula(c.reference), c.speedup, c.low, c.high, c.verdict] if c else [""] * 5))
        return text.getvalue()


Key = tuple[str, str, int, int, int]


def key_of(item: Measurement | Comparison | Change) -> Key:
    """Model and condition: what tells two measurements of a report apart."""
    return item.model, item.stage, item.threads, item.streams, item.batch
