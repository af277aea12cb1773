"""What a run tells, as curves for trackers: which values, under which names and numbers.

Every step of either learner has a number, and so have the tests after every task, in the order in which a run comes to
them; numbers count from 0 over the whole run. They follow from the record and the position alone, so a run that is
resumed, or gets another task a year later, goes on with the number that comes next.

    teacher/cross_entropy, student/distillation, …     every loss term, at every step
    teacher/lr, teacher/task, teacher/epoch, …         at the first step of every epoch; tasks and epochs count from 1
    accuracy/student/task_01, …, accuracy/student/mean and forgetting/student (the paper's), after every task; percent
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cdl_deploy.errors import RunError
from cdl_deploy.run.metrics import final_average_accuracy, forgetting
from cdl_deploy.run.record import RunRecord
from cdl_deploy.training.models.learner import Role
from cdl_deploy.training.progress import Progress, Stage
from cdl_deploy.training.trackers import TRACKERS, Tracker


@contextmanager
def tracked(progress: Progress, names: Sequence[str], run: Path, record: RunRecord) -> Iterator[Progress]:
    """`progress`, with the trackers called `names` listening in; they are closed at the end, whatever it is."""
    if not names:
        yield progress
        return
    tracking = Tracking(progress, names, run, record)
    finished = False
    try:
        yield tracking
        finished = True
    finally:
        tracking.close(finished)


class Tracking(Progress):
    """Passes everything on to `progress`, and values to trackers, which are opened with the first of them."""

    def __init__(self, progress: Progress, names: Sequence[str], run: Path, record: RunRecord) -> None:
        self.progress, self.names, self.run, self.record = progress, names, run, record
        self.trackers: list[Tracker] = []
        self.opened_at: int | None = None
        self.number = 0
        """Of the step to come."""
        self.waiting: dict[str, float] = {}
        """What is to be written along with it."""

    def checking(self, done: int, total: int) -> None:
        self.progress.checking(done, total)

    def planned(self, record: RunRecord) -> None:
        self.progress.planned(record)

    def stage_started(self, stage: Stage, first_epoch: int, first_step: int) -> None:
        steps = -(-max(stage.images, stage.task_images) // stage.batch_size)  # the teacher learns from all of them
        before = stage.epochs * steps * roles(self.record).index(stage.role)
        self.number = numbers_taken(self.record) + before + first_epoch * stage.steps + first_step
        self.progress.stage_started(stage, first_epoch, first_step)

    def epoch_started(self, stage: Stage, epoch: int, lr: float) -> None:
        self.waiting = {
            f"{stage.role}/{name}": v for name, v in (("lr", lr), ("task", stage.task), ("epoch", epoch + 1))
        }
        self.progress.epoch_started(stage, epoch, lr)

    def caching(self, stage: Stage, view: int, done: int) -> None:
        self.progress.caching(stage, view, done)

    def step(self, stage: Stage, epoch: int, images: int, losses: Mapping[str, float]) -> None:
        self.write(self.number, {**self.waiting, **{f"{stage.role}/{name}": value for name, value in losses.items()}})
        self.number, self.waiting = self.number + 1, {}
        self.progress.step(stage, epoch, images, losses)

    def stage_finished(self, stage: Stage) -> None:
        self.progress.stage_finished(stage)

    def evaluating(self, task: int, role: Role, done: int, total: int) -> None:
        self.progress.evaluating(task, role, done, total)

    def evaluated(self, record: RunRecord) -> None:
        self.write(numbers_taken(record) - 1, accuracies(record))
        self.progress.evaluated(record)

    def saving(self) -> None:
        with self.guarded():
            for tracker in self.trackers:
                tracker.flush()
        self.progress.saving()

    def task_finished(self, record: RunRecord) -> None:
        self.progress.task_finished(record)

    def write(self, number: int, values: Mapping[str, float]) -> None:
        """To every tracker. Raises RunError where one cannot write."""
        with self.guarded():
            if self.opened_at is None:
                self.opened_at = number
                self.trackers += [TRACKERS[name](self.run, self.record, number) for name in self.names]
            for tracker in self.trackers:
                tracker.write(number, values)

    def close(self, finished: bool) -> None:
        """Close the trackers. An error that ends the run already is not hidden by another."""
        for tracker in self.trackers:
            try:
                with self.guarded():
                    tracker.close(finished)
            except RunError:
                if finished:
                    raise

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Around what writes: errors of the file system become one of the run."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise RunError(f"cannot write {self.run / 'logs'}: {reason}; the last checkpoint is intact") from None


def roles(record: RunRecord) -> list[Role]:
    """In the order in which they learn."""
    return ["teacher", "student"] if "teacher" in record.backbones else ["student"]


def numbers_taken(record: RunRecord) -> int:
    """By the steps and tests of all finished tasks."""
    taken = 0
    for task in record.tasks:
        steps = -(-task.train_images // task.optim.batch_size)
        taken += len(roles(record)) * task.optim.epochs * steps + 1
    return taken


def accuracies(record: RunRecord) -> dict[str, float]:
    """What the last row of every matrix says."""
    values: dict[str, float] = {}
    for role, matrix in record.matrices.items():
        values |= {f"accuracy/{role}/task_{number:02d}": value for number, value in enumerate(matrix[-1], start=1)}
        values[f"accuracy/{role}/mean"] = final_average_accuracy(matrix)
        values[f"forgetting/{role}"] = forgetting(matrix)
    return values
