"""Training as it happens, on standard error of a terminal: task, learner, epoch, loss terms, images/s, time left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.progress import Task as BarTask
from rich.text import Text

from cdl_deploy.training.models.learner import Role
from cdl_deploy.training.progress import Progress, Stage
from cdl_deploy.training.run_directory import Record


class _TimeLeft(ProgressColumn):
    """Time left of the whole run, from the images still to be learned from at the speed so far."""

    def render(self, task: BarTask) -> Text:
        left = task.fields.get("left")
        if left is None:
            return Text("")
        minutes, seconds = divmod(round(left), 60)
        return Text(f"{minutes}:{seconds:02d} left", style="progress.remaining")


class TrainingProgress(Progress):
    """Draws one bar for the stage at hand; its time left is the run's."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.line = bar.add_task("preparing", total=None, detail="", left=None)
        self.record: Record | None = None
        self.began = 0.0
        self.seen = 0
        self.terms: dict[str, float] = {}
        self.speeds: dict[Role, float] = {}

    def checking(self, done: int, total: int) -> None:
        self.bar.update(self.line, description="checking images", completed=done, total=total)

    def planned(self, record: Record) -> None:
        self.record = record

    def stage_started(self, stage: Stage, first_epoch: int) -> None:
        self.began, self.seen, self.terms = time.perf_counter(), 0, {}
        self.bar.reset(
            self.line,
            total=stage.epochs * stage.images,
            completed=first_epoch * stage.images,
            description=f"task {stage.task}/{stage.tasks} {stage.role}",
            detail="",
        )

    def step(self, stage: Stage, epoch: int, images: int, losses: Mapping[str, float]) -> None:
        self.seen += images
        speed = self.seen / max(time.perf_counter() - self.began, 1e-9)
        self.speeds[stage.role] = speed
        for name, value in losses.items():
            self.terms[name] = value if name not in self.terms else 0.9 * self.terms[name] + 0.1 * value
        terms = " ".join(f"{name} {value:.3f}" for name, value in self.terms.items())
        self.bar.update(
            self.line,
            advance=images,
            detail=f"epoch {epoch + 1}/{stage.epochs}  {speed:.0f} images/s  {terms}",
            left=self._seconds_left(stage),
        )

    def evaluating(self, task: int, role: Role, done: int, total: int) -> None:
        assert self.record is not None
        description = f"task {task}/{len(self.record.planned_tasks)} testing the {role}"
        self.bar.update(self.line, description=description, detail="", completed=done, total=total)

    def task_finished(self, record: Record) -> None:
        parts = []
        for role in ("student", "teacher"):
            if record.matrices.get(role):
                row = record.matrices[role][-1]
                parts.append(f"{role} {sum(row) / len(row):.1f} %")
        task = record.tasks[-1]
        self.bar.console.print(
            f"task {task['number']}/{len(record.planned_tasks)} done: {', '.join(parts)} "
            f"over {len(record.classes)} classes",
            highlight=False,
        )

    def _seconds_left(self, stage: Stage) -> float | None:
        """What is left of this stage, and of the stages to come as if every task had as many images as this one."""
        line = self.bar.tasks[0]
        roles: list[Role] = (
            ["teacher", "student"] if self.record and "teacher" in self.record.backbones else ["student"]
        )
        after = roles[roles.index(stage.role) + 1 :] + roles * (stage.tasks - stage.task)
        own = ((line.total or 0) - line.completed) / self.speeds[stage.role]
        known = self.speeds[stage.role]
        return own + sum(stage.epochs * stage.images / self.speeds.get(role, known) for role in after)


@contextmanager
def show_training() -> Iterator[TrainingProgress]:
    """A live line while the run goes on; one line stays for every finished task."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        _TimeLeft(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as bar:
        yield TrainingProgress(bar)
