"""What training tells while it runs. The library prints nothing; whoever calls it may subclass `Progress`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cdl_deploy.run.record import RunRecord
from cdl_deploy.training.data.loading import steps_of
from cdl_deploy.training.models.learner import Role

Stop = Callable[[], bool]
"""Asked after every step whether the run is to stop there."""


class Stopped(Exception):  # noqa: N818  nothing went wrong
    """The run did what `Stop` asked for; everything learned so far is in its last checkpoint."""


@dataclass(frozen=True)
class Stage:
    """One learner learning one task."""

    task: int
    """Counted from 1."""
    tasks: int
    role: Role
    epochs: int
    images: int
    """To learn from."""
    batch_size: int
    task_images: int = 0
    """Training images of the task, those held out from this learner among them."""
    drop_last: bool = False
    """Whether an epoch has whole batches only."""

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return steps_of(self.images, self.batch_size, self.drop_last)


class Progress:
    """Does nothing; every method is a hook."""

    def checking(self, done: int, total: int) -> None:
        """Images of a folder are being decoded once."""

    def planned(self, record: RunRecord) -> None:
        """The run directory exists; nothing has been learned yet, or the run is being resumed."""

    def stage_started(self, stage: Stage, first_epoch: int, first_step: int) -> None:
        """A learner starts to learn a task, or continues with this step; both count from 0."""

    def epoch_started(self, stage: Stage, epoch: int, lr: float) -> None:
        """An epoch begins with its first step, at this learning rate."""

    def caching(self, stage: Stage, view: int, done: int) -> None:
        """What the epochs of a view learn from is being computed, before the first of them; so many images are done."""

    def step(self, stage: Stage, epoch: int, images: int, losses: Mapping[str, float]) -> None:
        """`images` more images were learned from; the loss terms by name."""

    def stage_finished(self, stage: Stage) -> None:
        """The learner has finished the task."""

    def evaluating(self, task: int, role: Role, done: int, total: int) -> None:
        """Test images of the tasks seen are being classified."""

    def evaluated(self, record: RunRecord) -> None:
        """The last entry of `record.tasks` is new, and so is the last row of every matrix; neither is saved yet."""

    def saving(self) -> None:
        """A checkpoint is about to be written: a run that goes on from it will not tell again what was told so far."""

    def task_finished(self, record: RunRecord) -> None:
        """Everything that a finished task leaves is saved."""
