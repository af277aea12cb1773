"""A report as tables for a terminal of 100 columns."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cdl_deploy.bench.headline import count, file_size, ratio_in_words, short_time
from cdl_deploy.bench.report import BenchReport, Comparison, key_of
from cdl_deploy.printable import printable

MARKS = {"same": " =", "unclear": " ?"}


def report_tables(report: BenchReport) -> RenderableType:
    """Latency, models, baseline, machine and notes, to be printed by a `rich.console.Console`; without the headline."""
    machine, watch = report.machine, report.watch
    load = f", load {watch.load_average}" if watch.load_average is not None else ""
    where = (
        f"{machine.cpu}, {machine.usable_cores} of {machine.cores} cores{load}; "
        f"onnxruntime {machine.onnxruntime}, Python {machine.python}; {report.seconds:.0f} s"
    )
    notes = [Text(f"note: {note}", style="yellow") for note in report.notes]
    changes = [_changes(report)] if report.baseline is not None else []
    return Group(*_latency(report), _models(report), *changes, Text(where, style="dim"), *notes)


def _latency(report: BenchReport) -> list[RenderableType]:
    """A table for each stage; where everything has the same threads and streams, without those columns."""
    tables: list[RenderableType] = []
    options, compared = report.options, {key_of(c): c for c in report.comparisons}
    threads, streams = len(options.threads) > 1, len(options.streams) > 1
    titles = {"graph": "latency of one run, ms", "jpeg": "latency from JPEG to answer, ms"}
    for stage in options.stages:
        fixed = [*([] if threads else [_many(options.threads[0], "thread")])]
        fixed += [] if streams or options.streams == (1,) else [_many(options.streams[0], "stream")]
        table = _table(f"{titles[stage]} ({', '.join(fixed)})" if fixed else titles[stage])
        table.add_column("model", overflow="fold", min_width=8)
        names = [*(["thr."] if threads else []), *(["str."] if streams else []), "batch"]
        for name in (*names, "p50", "± %", "p90", "p95", "p99", "mean", "images/s", "speed-up"):
            table.add_column(name, justify="right", no_wrap=True)
        for m in report.measurements:
            if m.stage != stage:
                continue
            at = [*([str(m.threads)] if threads else []), *([str(m.streams)] if streams else []), str(m.batch)]
            within = "?" if m.within_percent is None else f"{m.within_percent:.1f}"
            times = [short_time(t) for t in (m.p90_ms, m.p95_ms, m.p99_ms, m.mean_ms)]
            speedup = _speedup(compared.get(key_of(m)))
            at = [printable(m.model), *at]
            table.add_row(*at, short_time(m.p50_ms), within, *times, _rate(m.images_per_second), speedup)
        tables.append(table)
    if any(c.verdict in MARKS for c in report.comparisons):
        tables.append(Text("speed-up over the reference: = no difference, ? not clear", style="dim"))
    return tables


def _models(report: BenchReport) -> Table:
    table = _table("models")
    table.add_column("model", overflow="fold", min_width=8)
    for name in ("file", "params", "MACs", "load ms", "first ms", "peak MB", "accuracy"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in report.models:
        peaks = [m.peak_bytes for m in report.measurements if m.model == model.name and m.peak_bytes is not None]
        table.add_row(
            printable(model.name),
            file_size(model.file_bytes),
            count(model.parameters),
            count(model.macs),
            short_time(model.load_ms),
            short_time(model.first_inference_ms),
            f"{max(peaks) / 1e6:.0f}" if peaks else "–",
            f"{model.accuracy:.1f} %" if model.accuracy is not None else "–",
        )
    return table


def _changes(report: BenchReport) -> Table:
    """Every measurement against the baseline; regressions stand out."""
    table = _table("against the baseline, median ms")
    table.add_column("model", overflow="fold", min_width=8)
    table.add_column("condition", overflow="fold")
    for name in ("before", "now", "ratio", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for change in report.baseline or ():
        bounds = "–" if change.low is None or change.high is None else f"{change.low:.2f}–{change.high:.2f}"
        verdict = "REGRESSION" if change.verdict == "slower" else change.verdict
        table.add_row(
            printable(change.model),
            report.condition(change),
            short_time(change.before_ms),
            short_time(change.now_ms),
            f"{change.ratio:.2f}",
            bounds,
            verdict,
            style="bold red" if change.verdict == "slower" else None,
        )
    return table


def regression_line(report: BenchReport) -> str:
    """What became slower, in one line."""
    found = [
        f"{change.model} at {report.condition(change)} is {ratio_in_words(1, change.ratio, 'faster', 'slower')}"
        for change in report.regressions
    ]
    if found:
        return f"regression: {'; '.join(found)} than the baseline"
    unclear = [f"{c.model} at {report.condition(c)}" for c in report.baseline or () if c.verdict == "unclear"]
    beside = f"; not clear: {'; '.join(unclear)}" if unclear else ""
    return f"no regression against the baseline{beside}"


def _table(title: str) -> Table:
    """Narrow enough for ten numbers in 80 columns."""
    return Table(title=title, title_justify="left", title_style="", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _many(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number > 1)}"


def _rate(images_per_second: float) -> str:
    return f"{images_per_second:,.0f}" if images_per_second >= 100 else f"{images_per_second:.1f}"


def _speedup(comparison: Comparison | None) -> str:
    return "1" if comparison is None else f"{comparison.speedup:.2f}{MARKS.get(comparison.verdict, '')}"
