"""A report as tables for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cdl_deploy.bench.report import BenchReport, Comparison, file_size


def report_tables(report: BenchReport) -> RenderableType:
    """Latency, models, machine and notes, to be printed by a `rich.console.Console`; the headline is not among them."""
    machine = report.machine
    where = (
        f"{machine.cpu}, {machine.usable_cores} of {machine.cores} cores, load {machine.load_average}; "
        f"onnxruntime {machine.onnxruntime}, Python {machine.python}; {report.seconds:.0f} s"
    )
    notes = [Text(f"note: {note}", style="yellow") for note in report.notes]
    return Group(_latency(report), _models(report), Text(where, style="dim"), *notes)


def _latency(report: BenchReport) -> Table:
    table = Table(title="latency of one run, ms", title_justify="left", title_style="")
    table.add_column("model", overflow="fold")
    threads = len(report.options.threads) > 1
    names = [
        *(["threads"] if threads else []),
        "batch",
        "p50",
        "±",
        "p90",
        "p95",
        "p99",
        "mean",
        "images/s",
        "speed-up",
    ]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    compared = {(c.model, c.threads, c.batch): c for c in report.comparisons}
    for m in report.measurements:
        times = [_time(t) for t in (m.p90_ms, m.p95_ms, m.p99_ms, m.mean_ms)]
        within = "?" if m.within_percent is None else f"{m.within_percent:.1f} %"
        speedup = _speedup(compared.get((m.model, m.threads, m.batch)))
        cells = [str(m.batch), _time(m.p50_ms), within, *times, f"{m.images_per_second:,.0f}", speedup]
        table.add_row(m.model, *([str(m.threads)] if threads else []), *cells)
    return table


def _models(report: BenchReport) -> Table:
    table = Table(title="models", title_justify="left", title_style="")
    table.add_column("model", overflow="fold")
    for name in ("file", "parameters", "load ms", "first run ms", "peak memory MB", "accuracy %"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in report.models:
        peaks = [m.peak_bytes for m in report.measurements if m.model == model.name and m.peak_bytes is not None]
        table.add_row(
            model.name,
            file_size(model.file_bytes),
            f"{model.parameters:,}" if model.parameters is not None else "–",
            _time(model.load_ms),
            _time(model.first_inference_ms),
            f"{max(peaks) / 1e6:.0f}" if peaks else "–",
            f"{model.accuracy:.1f}" if model.accuracy is not None else "–",
        )
    return table


def _time(milliseconds: float) -> str:
    """Three significant digits or whole milliseconds, so that a column stays narrow."""
    return (
        f"{milliseconds:.0f}"
        if milliseconds >= 100
        else f"{milliseconds:.3g}"
        if milliseconds < 0.1
        else (f"{milliseconds:.2f}" if milliseconds < 10 else f"{milliseconds:.1f}")
    )


def _speedup(comparison: Comparison | None) -> str:
    if comparison is None:
        return "1"
    return f"{comparison.speedup:.2f}" + {"same": " (=)", "unclear": " (?)"}.get(comparison.verdict, "")
