"""A report in one line that needs no explanation, and the numbers of its tables in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdl_deploy.bench.report import BenchReport, Comparison, ModelRecord


def headline(report: BenchReport) -> str:
    """The first model against the reference, under the first condition: speed, accuracy kept, size. Where several
    runtimes were measured, the first model in the reference's own, if there is another than itself.

    `student: 3.1× faster than teacher at batch 1 (0.52 ms against 1.61 ms), keeps 96.6 % of its accuracy (91.0 %
    against 94.2 %), 5.2× smaller (4.1 MB against 21.2 MB)`
    """
    if not report.comparisons:
        m = report.measurements[0]
        return (
            f"{m.model}: {milliseconds(m.p50_ms)} at {report.condition(m)} (median), "
            f"{m.images_per_second:,.0f} images/s, {file_size(report.model(m.model).file_bytes)}"
        )
    own = (it for it in report.comparisons if _runtime(report, it.model) == _runtime(report, it.reference))
    comparison = next(own, report.comparisons[0])
    model, reference = report.model(comparison.model), report.model(comparison.reference)
    where = report.condition(comparison)
    p50 = {m.model: m.p50_ms for m in report.measurements if report.condition(m) == where}
    parts = [
        f"{model.name}: {_speed(comparison)} {reference.name} at {where} "
        f"({milliseconds(p50[model.name])} against {milliseconds(p50[reference.name])})",
        *_accuracy(model, reference),
        f"{_size_ratio(model.file_bytes, reference.file_bytes)} "
        f"({file_size(model.file_bytes)} against {file_size(reference.file_bytes)})",
    ]
    return ", ".join(parts)


def _runtime(report: BenchReport, name: str) -> str | None:
    return report.model(name).runtime


def _speed(comparison: Comparison) -> str:
    if comparison.verdict == "same":
        return "as fast as"
    if comparison.verdict == "unclear":
        if comparison.low is not None and comparison.high is not None and comparison.low <= 1 <= comparison.high:
            return "no clear difference in speed from"
        return f"about {ratio_in_words(comparison.speedup, 1, 'faster', 'slower')} than"
    return f"{ratio_in_words(comparison.speedup, 1, 'faster', 'slower')} than"


def _accuracy(model: ModelRecord, reference: ModelRecord) -> list[str]:
    """Nothing where either does not know its accuracy."""
    if model.accuracy is None or not reference.accuracy:
        return []
    kept = model.accuracy / reference.accuracy
    return [f"keeps {kept * 100:.1f} % of its accuracy ({model.accuracy:.1f} % against {reference.accuracy:.1f} %)"]


def _size_ratio(model: int, reference: int) -> str:
    if abs(model / reference - 1) < 0.005:
        return "the same size"
    return ratio_in_words(reference, model, "smaller", "larger")


def ratio_in_words(numerator: float, denominator: float, above: str, below: str) -> str:
    """`3.1× faster` or `1.25× slower`: two decimals where one would hide the difference."""
    ratio, word = (numerator / denominator, above) if numerator >= denominator else (denominator / numerator, below)
    return f"{ratio:.2f}× {word}" if ratio < 1.995 else f"{ratio:.1f}× {word}"


def milliseconds(value: float) -> str:
    """Three significant digits, or whole milliseconds: `0.523 ms`, `38.4 ms`, `1,234 ms`."""
    return f"{short_time(value)} ms"


def short_time(value: float) -> str:
    """Three significant digits or whole milliseconds, so that a column stays narrow."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def file_size(size: int) -> str:
    """`4.1 MB`, or kB below a tenth of one; 1 MB is a million bytes."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def count(value: int | None) -> str:
    """`3.8 M`, `1.1 G`, `380 k`: how many, in three digits."""
    if value is None:
        return "–"
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return str(value)
