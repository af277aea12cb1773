"""Training as it happens, on standard error of a terminal: task, learner, epoch, loss terms, images/s, time left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from cdl_deploy.cli.output import echo, make_console
from cdl_deploy.cli.progress_line import ProgressLine
from cdl_deploy.counted import counted
from cdl_deploy.data.left_out import LeftOut
from cdl_deploy.printable import printable
from cdl_deploy.run.record import RunRecord
from cdl_deploy.run.record_parts import Role
from cdl_deploy.training.progress import Progress, Stage

TEST_SHARE, TEST_SPEEDUP = 0.25, 2.0
"""Until the first evaluation: test images for every training image, and how much faster one is classified."""
WARM_UP = 2
"""Steps of a stage that its speed leaves out."""


class TimeLeft:
    """Seconds left of a whole run, from the images still to be learned from and tested, at the speeds so far.

    Tasks to come count by their classes, each with as many images as those of the task at hand. A learner that has not
    learned yet is taken to be as fast as the other.
    """

    def __init__(self, record: RunRecord) -> None:
        self.roles: list[Role] = ["teacher", "student"] if "teacher" in record.backbones else ["student"]
        self.classes = [len(classes) for classes in record.planned_tasks]
        self.speeds: dict[Role, float] = {}
        """Images a second, while learning."""
        self.test_speed: float | None = None
        self.tests_per_class: float | None = None

    def seconds(self, stage: Stage, done: int) -> float:
        """`done`: images learned from in this stage, every epoch counted."""
        per_class = stage.images / max(1, self.classes[stage.task - 1])
        known = self.speeds[stage.role]
        left = (stage.epochs * stage.images - done) / known
        for role in self.roles[self.roles.index(stage.role) + 1 :]:
            left += stage.epochs * stage.images / self.speeds.get(role, known)
        tests = self._tests(stage.task, per_class)
        for task in range(stage.task + 1, len(self.classes) + 1):
            images = per_class * self.classes[task - 1]
            left += sum(stage.epochs * images / self.speeds.get(role, known) for role in self.roles)
            tests += self._tests(task, per_class)
        return left + tests / (self.test_speed or TEST_SPEEDUP * known)

    def _tests(self, task: int, per_class: float) -> float:
        """Images classified after a task: those of every class so far, by every learner."""
        each = self.tests_per_class if self.tests_per_class is not None else TEST_SHARE * per_class
        return len(self.roles) * each * sum(self.classes[:task])


class Notes(Progress):
    """Says, where nobody watches, what one has to know before the end: what was left out."""

    def planned(self, record: RunRecord) -> None:
        for text in notes_on(record):
            echo(f"note: {text}", err=True)


def notes_on(record: RunRecord) -> Iterator[str]:
    """What one has to know of a run before it has learned anything, a line each."""
    text = LeftOut.of(record.left_out).text()
    if text:
        yield printable(text)
    for role, info in record.backbones.items():
        if info.weights is not None:
            yield printable(f"the {role}'s weights {info.source}: {info.weights}")
        if info.pixels == "assumed":
            yield printable(
                f"{info.source} does not say with which mean and deviation the {role}'s weights were trained: "
                f"{list(info.mean)} and {list(info.std)} of timm's {info.model} assumed; give the model with its tag"
            )
    yield from map(printable, record.notes)


class TrainingProgress(Progress):
    """Keeps the live line up to date, and leaves one line for every finished task."""

    def __init__(self, console: Console, line: ProgressLine) -> None:
        self.console, self.line = console, line
        self.record: RunRecord | None = None
        self.time_left: TimeLeft | None = None
        self.done = 0
        self.steps = 0
        self.timed = 0
        self.began = 0.0

    def checking(self, done: int, total: int) -> None:
        self.line.doing, self.line.share = f"checking images {done:,} of {total:,}", done / total

    def planned(self, record: RunRecord) -> None:
        self.record, self.time_left = record, TimeLeft(record)
        for text in notes_on(record):
            self.console.print(f"note: {text}", highlight=False, soft_wrap=True, markup=False)

    def stage_started(self, stage: Stage, first_epoch: int, first_step: int) -> None:
        self.done = first_epoch * stage.images + first_step * stage.batch_size
        self.steps, self.timed = 0, 0
        line = self.line
        line.task, line.doing, line.role = f"{stage.task}/{stage.tasks}", "", stage.role
        line.epoch, line.terms, line.speed = f"{first_epoch + 1}/{stage.epochs}", {}, None
        line.share = self.done / (stage.epochs * stage.images)

    def caching(self, stage: Stage, view: int, done: int) -> None:
        line = self.line
        line.doing, line.share = f"{stage.role}: view {view + 1}", done / stage.images
        self.steps, self.timed = 0, 0  # the speed is that of steps

    def step(self, stage: Stage, epoch: int, images: int, losses: Mapping[str, float]) -> None:
        line, now = self.line, time.perf_counter()
        line.doing = ""
        self.done, self.steps = self.done + images, self.steps + 1
        if self.steps <= WARM_UP:
            self.began = now
        else:
            self.timed += images
            line.speed = self.timed / max(now - self.began, 1e-9)
            if self.time_left is not None:
                self.time_left.speeds[stage.role] = line.speed
                line.left = self.time_left.seconds(stage, self.done)
        line.share = self.done / (stage.epochs * stage.images)
        line.epoch = f"{epoch + 1}/{stage.epochs}"
        before = line.terms
        line.terms = {
            name: 0.9 * before[name] + 0.1 * value if name in before else value for name, value in losses.items()
        }

    def evaluating(self, task: int, role: Role, done: int, total: int) -> None:
        line, now = self.line, time.perf_counter()
        if line.doing != f"testing the {role}":
            line.doing, line.epoch, line.terms, line.speed = f"testing the {role}", "", {}, None
            self.began, self.timed = now, done
        elif self.time_left is not None and done > self.timed:
            line.speed = (done - self.timed) / max(now - self.began, 1e-9)
            self.time_left.test_speed = line.speed
            self.time_left.tests_per_class = total / sum(self.time_left.classes[:task])
        line.share = done / total

    def task_finished(self, record: RunRecord) -> None:
        parts = []
        roles: tuple[Role, ...] = ("student", "teacher")
        for role in roles:
            if record.matrices.get(role):
                row = record.matrices[role][-1]
                parts.append(f"{role} {sum(row) / len(row):.1f} %")
        task = record.tasks[-1]
        self.console.print(
            f"task {task.number}/{len(record.planned_tasks)} done: {', '.join(parts)} "
            f"over {counted(len(record.classes), 'class')}",
            highlight=False,
        )


@contextmanager
def show_training() -> Iterator[TrainingProgress]:
    """A live line while the run goes on; one line stays for every finished task."""
    console, line = make_console(stderr=True), ProgressLine()
    with Live(line, console=console, transient=True, refresh_per_second=4):
        yield TrainingProgress(console, line)
