"""What a benchmark found: records, the headline, JSON and CSV. Times are milliseconds of one run of a whole batch."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from dataclasses import dataclass

from cdl_deploy.bench.machine import Machine
from cdl_deploy.bench.options import BenchOptions

REPORT_VERSION = 1


@dataclass(frozen=True)
class Progress:
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
    """The file measured."""
    role: str | None
    """`"student"`, `"teacher"`, or None for a model that cdl did not export."""
    file_bytes: int
    """Size of the file, with external weights beside it if there are any."""
    parameters: int | None
    """Number of parameters, if the file says."""
    accuracy: float | None
    """Final average accuracy in percent as the run measured it, if the file says."""
    classes: int | None
    """Number of classes, if the file says."""
    load_ms: float
    """Opening the file in a fresh process (at the first thread count), without importing onnxruntime."""
    first_inference_ms: float
    """The first run after that, at the smallest batch size."""


@dataclass(frozen=True)
class Measurement:
    """The latency of one model at one batch size and thread count."""

    model: str
    """Name of the model."""
    threads: int
    """Threads of one inference."""
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
    """Batch size over mean."""
    drift_percent: float
    """How much slower the last third of the rounds was than the first."""
    steady: bool
    """Whether warm-up ended because times had settled, rather than because its time was up."""
    peak_bytes: int | None
    """Peak memory of the process after running this and all smaller batch sizes."""
    round_medians_ms: tuple[float, ...]
    """Median of every round, in order."""


@dataclass(frozen=True)
class Comparison:
    """One model against the reference under the same conditions."""

    model: str
    """Name of the model."""
    reference: str
    """Name of the model it is compared with: the teacher, or else the last one given."""
    threads: int
    """Threads of one inference."""
    batch: int
    """Images in one run."""
    speedup: float
    """Median of the reference over median of the model: above 1, the model is faster."""
    low: float | None
    """Lower end of its 95 % interval, from resampling the rounds of both together; None after a single round."""
    high: float | None
    """Upper end."""
    verdict: str
    """`"faster"` or `"slower"` if the interval excludes 1 and the difference exceeds the precision asked for,
    `"same"` if not, `"unclear"` after a single round."""


@dataclass(frozen=True)
class BenchReport:
    """Everything a benchmark found."""

    machine: Machine
    """Where it ran."""
    options: BenchOptions
    """What was asked for."""
    seconds: float
    """How long it took."""
    models: tuple[ModelRecord, ...]
    """The models, in the order given."""
    measurements: tuple[Measurement, ...]
    """By thread count, batch size and model."""
    comparisons: tuple[Comparison, ...]
    """Every model against the reference; empty for a single model."""
    notes: tuple[str, ...]
    """What cannot be trusted, and why; empty if nothing stood out."""
    created: str
    """When it began: ISO 8601, UTC."""

    @property
    def headline(self) -> str:
        """The result in one line: the first model against the reference, at the first batch size and thread count."""
        if not self.comparisons:
            m = self.measurements[0]
            return f"{m.model}: p50 {_ms(m.p50_ms)} at {self._condition(m)}, {m.images_per_second:,.0f} images/s"
        comparison = self.comparisons[0]
        model, reference = (self._model(name) for name in (comparison.model, comparison.reference))
        p50 = {m.model: m.p50_ms for m in self.measurements if self._condition(m) == self._condition(comparison)}
        parts = [
            f"{model.name}: {_speed(comparison)} {reference.name} at {self._condition(comparison)} "
            f"(p50 {_ms(p50[model.name])} against {_ms(p50[reference.name])})",
            f"{_size(model.file_bytes, reference.file_bytes)} "
            f"({file_size(model.file_bytes)} against {file_size(reference.file_bytes)})",
        ]
        if model.accuracy is not None and reference.accuracy is not None:
            parts.append(f"accuracy {model.accuracy:.1f} % against {reference.accuracy:.1f} %")
        return ", ".join(parts)

    def to_json(self) -> str:
        """The whole report as indented JSON."""
        record = {"report_version": REPORT_VERSION, "headline": self.headline, **dataclasses.asdict(self)}
        return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)

    def to_csv(self) -> str:
        """One line a measurement, with the model's own figures and its speed-up over the reference."""
        columns = [f.name for f in dataclasses.fields(Measurement) if f.name != "round_medians_ms"]
        facts = ["file_bytes", "parameters", "accuracy", "load_ms", "first_inference_ms"]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*columns, *facts, "reference", "speedup"])
        compared = {(c.model, c.threads, c.batch): c for c in self.comparisons}
        for m in self.measurements:
            model, comparison = self._model(m.model), compared.get((m.model, m.threads, m.batch))
            row = [getattr(m, name) for name in columns] + [getattr(model, name) for name in facts]
            writer.writerow(row + ([comparison.reference, comparison.speedup] if comparison else ["", ""]))
        return text.getvalue()

    def _model(self, name: str) -> ModelRecord:
        return next(model for model in self.models if model.name == name)

    def _condition(self, item: Measurement | Comparison) -> str:
        threads = f", {item.threads} thread{'s' * (item.threads > 1)}" if len(self.options.threads) > 1 else ""
        return f"batch {item.batch}{threads}"


def _speed(comparison: Comparison) -> str:
    if comparison.verdict == "same":
        return "no measurable difference in speed from"
    about = "about " if comparison.verdict == "unclear" else ""
    return f"{about}{_ratio(comparison.speedup, 1, 'faster', 'slower')} than"


def _ratio(numerator: float, denominator: float, above: str, below: str) -> str:
    """`3.1x faster` or `1.25x slower`: two decimals where one would hide the difference."""
    ratio, word = (numerator / denominator, above) if numerator >= denominator else (denominator / numerator, below)
    return f"{ratio:.2f}x {word}" if ratio < 1.995 else f"{ratio:.1f}x {word}"


def _size(model: int, reference: int) -> str:
    if abs(model / reference - 1) < 0.005:
        return "the same size"
    return _ratio(reference, model, "smaller", "larger")


def _ms(milliseconds: float) -> str:
    digits = 3 if milliseconds < 0.1 else 2 if milliseconds < 100 else 0
    return f"{milliseconds:,.{digits}f} ms"


def file_size(size: int) -> str:
    """`4.1 MB`, or kB below a tenth of one; 1 MB is a million bytes."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
