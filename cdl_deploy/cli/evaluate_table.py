"""An evaluation as tables: what it comes to, then tasks, classes and mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cdl_deploy.cli.cells import OneLine, ending
from cdl_deploy.counted import counted
from cdl_deploy.evaluation.agreement import Agreement
from cdl_deploy.evaluation.report import ClassResult, Evaluation

FEW = 10
"""Classes that are shown where there are many: the weakest."""
SHOWN = 20
"""Up to so many classes all are shown."""


def evaluation_tables(report: Evaluation, all_classes: bool = False) -> RenderableType:
    """Shares are in percent; a dash stands where there is no image to take one of."""
    parts: list[RenderableType] = [_summary(report)]
    if len(report.tasks) > 1:
        parts.append(_tasks(report))
    parts.append(_classes(report, all_classes))
    if report.mistakes:
        parts.append(_mistakes(report))
    if report.against is not None:
        parts.append(_against(report.against, report.model))
    return Group(*parts)


def runtimes_table(reports: Mapping[str, Evaluation]) -> Group:
    """One row a runtime, each compared with onnxruntime on the same images."""
    table = Table()
    table.add_column("runtime", no_wrap=True)
    for name in ("images", "right", "95 % interval", "ECE", "same class"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, report in reports.items():
        low, high = report.interval
        same = "–" if report.against is None else f"{report.against.same:.1f}"
        numbers = (f"{report.accuracy:.1f}", f"{low:.1f} to {high:.1f}", f"{report.calibration_error:.1f}", same)
        table.add_row(name, f"{report.images:,}", *numbers)
    first = next(iter(reports.values()))
    title = f"{ending(first.model, 40)} on {ending(first.source, 30)} (%); the same class as in onnxruntime"
    return _titled(title, table)


def _titled(title: str, table: Table) -> Group:
    """A line of its own: the title of a table is broken where the table ends."""
    return Group(Text(title), table)


def _summary(report: Evaluation) -> Group:
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True, style="bold")
    table.add_column()
    low, high = report.interval
    interval = f"95 % interval {low:.1f} to {high:.1f}"
    table.add_row(
        "accuracy (%)", f"{report.accuracy:.1f}", f"of {counted(report.images, 'image')}, among all classes; {interval}"
    )
    if report.mean_over_tasks is not None and len(report.tasks) > 1:
        stored = report.accuracy_at_export
        known = "" if stored is None else f"; the run measured {stored:.1f} when it was trained"
        table.add_row("mean over tasks (%)", f"{report.mean_over_tasks:.1f}", f"final average accuracy{known}")
    sure = f"on average {report.confidence:.1f} % sure"
    table.add_row(
        "calibration error", f"{report.calibration_error:.1f}", f"points (ECE, {len(report.bins)} bins); {sure}"
    )
    if report.unknown is not None:
        far = report.unknown
        table.add_row(
            "AUROC (%)",
            f"{far.auroc:.1f}",
            f"of the distance: {far.unknown_images:,} unknown images, {ending(far.source, 40)}",
        )
        table.add_row(
            "false alarms (%)",
            f"{far.false_alarms:.1f}",
            f"of {far.known_images:,} known images, above {far.threshold:g}",
        )
        table.add_row("found unknown (%)", f"{far.found:.1f}", "of the unknown images, above it")
    absent = [item.name for item in report.classes if not item.images]
    if absent:
        table.add_row(
            "without images",
            str(len(absent)),
            OneLine(f"of {counted(len(report.classes), 'class')}: {', '.join(absent)}"),
        )
    if report.left_out:
        table.add_row("left out", str(len(report.left_out)), OneLine(f"unknown classes: {', '.join(report.left_out)}"))
    return _titled(f"{ending(report.model, 50)} on {ending(report.source, 40)}", table)


def _tasks(report: Evaluation) -> Group:
    table = Table()
    for name in ("task", "classes", "images", "accuracy", "right task", "within task"):
        table.add_column(name, justify="right", no_wrap=True)
    for task in report.tasks:
        if not task.classes:  # all are forgotten
            continue
        shares = (share(value) for value in (task.accuracy, task.right_task, task.within_task))
        table.add_row(str(task.number), str(task.classes), f"{task.images:,}", *shares)
    return _titled("by task (%): right; named a class of the right task; right if the task were known", table)


def _classes(report: Evaluation, all_classes: bool) -> Group:
    shown: Sequence[ClassResult] = report.classes
    title = "by class (%)"
    if len(shown) > SHOWN and not all_classes:
        tested = [item for item in shown if item.accuracy is not None]
        shown = sorted(tested, key=lambda item: item.accuracy or 0.0)[:FEW]
        title = f"the {len(shown)} weakest of {len(report.classes)} classes (%); --all-classes shows every one"
    table = Table()
    table.add_column("class")
    for name in (*(["task"] if report.tasks else []), "images", "accuracy", "precision"):
        table.add_column(name, justify="right", no_wrap=True)
    for item in shown:
        task = [str(item.task)] if report.tasks else []
        table.add_row(OneLine(item.name), *task, f"{item.images:,}", share(item.accuracy), share(item.precision))
    return _titled(title, table)


def _mistakes(report: Evaluation) -> Group:
    table = Table()
    table.add_column("class")
    table.add_column("taken for")
    if report.tasks:
        table.add_column("tasks", no_wrap=True)
    table.add_column("images", justify="right", no_wrap=True)
    table.add_column("of the class (%)", justify="right", no_wrap=True)
    for mistake in report.mistakes:
        true, named = report.classes[mistake.true], report.classes[mistake.named]
        tasks = f"{true.task} → {named.task}" if true.task != named.task else f"within {true.task}"
        between = [tasks] if report.tasks else []
        table.add_row(OneLine(true.name), OneLine(named.name), *between, f"{mistake.images:,}", f"{mistake.share:.1f}")
    return _titled("most frequent mistakes", table)


def _against(against: Agreement, model: str) -> Group:
    first, second = _short_names(model, against.model)
    among = f"among {counted(against.shared_classes, 'class')}"
    if against.only_first or against.only_second:
        among = f"among the {against.shared_classes} classes that both know"
    table = Table()
    table.add_column("")
    table.add_column("images", justify="right", no_wrap=True)
    table.add_column("%", justify="right", no_wrap=True)
    rows = (
        ("both give the same class", round(against.same * against.images / 100)),
        ("both right", against.both_right),
        (f"only {first} right", against.only_first_right),
        (f"only {second} right", against.only_second_right),
        ("both wrong", against.both_wrong),
    )
    for words, count in rows:
        table.add_row(OneLine(words, 30), f"{count:,}", f"{100 * count / against.images:.1f}")
    title = f"against {second}: {counted(against.images, 'image')}, {among}"
    return Group(_titled(title, table), _verdict(against, first, second))


def _short_names(first: str, second: str) -> tuple[str, str]:
    """The names of two files, or where they are the same the ends of their paths."""
    names = Path(first).name, Path(second).name
    return (names[0], names[1]) if names[0] != names[1] else (ending(first, 30), ending(second, 30))


def _verdict(against: Agreement, first: str, second: str) -> Text:
    difference = against.accuracy_first - against.accuracy_second
    chance = f"exact McNemar test, p = {against.p_value:.2g}"
    if against.p_value >= 0.05:
        return Text(f"These images do not tell which of the two is better ({chance}).")
    better = first if difference > 0 else second
    return Text(f"{better} is better by {abs(difference):.1f} points ({chance}).")


def share(value: float | None) -> str:
    """One decimal, or a dash for None."""
    return "–" if value is None else f"{value:.1f}"
