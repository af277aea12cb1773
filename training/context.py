"""What the training loop works on: a run, and in it the task at hand."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cdl_deploy.data.sources import ImageSource
from cdl_deploy.run.config import OptimConfig, default_batch_size
from cdl_deploy.run.record import RunRecord
from cdl_deploy.run.record_parts import SourceKey, TaskPlan
from cdl_deploy.training.checkpoint import Position, save_last
from cdl_deploy.training.data.loading import TrainingImages
from cdl_deploy.training.data.resident import training_images
from cdl_deploy.training.data.task_data import TaskData, TaskImages, hold_out
from cdl_deploy.training.machine import resolve_auto
from cdl_deploy.training.models.learner import Role
from cdl_deploy.training.models.teacher_student import TeacherStudent
from cdl_deploy.training.precomputed_teacher import PrecomputedTeacher
from cdl_deploy.training.processes import Processes
from cdl_deploy.training.progress import Progress, Stop
from cdl_deploy.training.run_directory import RunDirectory
from cdl_deploy.training.seeds import generator


class KeptFeatures:
    """What a closed-form head reads of test images, task by task, so that they are looked at once."""

    LARGEST = 2**28
    """Bytes that are kept at most; what is beyond is computed again."""

    def __init__(self) -> None:
        self.bytes = 0
        self.tasks: dict[int, tuple[TaskImages, list[tuple[Tensor, Tensor]]]] = {}

    def of(self, number: int, images: TaskImages) -> list[tuple[Tensor, Tensor]] | None:
        """Batches of features [B, F] and labels [B] of a task's test images, if they are still these."""
        before, kept = self.tasks.get(number, (None, None))
        return kept if before is not None and before.same_as(images) else None

    def keep(self, number: int, images: TaskImages, computed: list[tuple[Tensor, Tensor]]) -> None:
        """For the tasks to come, as far as there is room."""
        size = sum(features.nbytes for features, _ in computed)
        if self.bytes + size <= self.LARGEST:
            self.tasks[number] = images, computed
            self.bytes += size


@dataclass
class Run:
    """A run's files and learners, and how far they have come."""

    directory: RunDirectory
    record: RunRecord
    pair: TeacherStudent
    sources: dict[SourceKey, ImageSource]
    """The images of every task that is left, by `TaskPlan.source_key`."""
    processes: Processes
    progress: Progress
    stop: Stop
    precomputed: PrecomputedTeacher | None = None
    position: Position = field(default_factory=Position)

    def __post_init__(self) -> None:
        record = self.record
        self.config, self.plans = record.config, record.plans
        self.data = TaskData(self.plans, record.tasks, self.sources, self.directory.load_heldout, record.skipped_images)
        self.preprocessing = record.preprocessing.views
        self.tests_on_device: dict[int, TaskImages] = {}
        self.test_features: dict[Role, KeptFeatures] = {}
        """Of learners whose features no later task changes."""
        positions = {name: i for i, name in enumerate(record.classes)}
        self.forgotten_positions = {positions[name] for name in record.forgotten}
        """Among the logits."""
        self.clock = time.perf_counter()
        """When what is being timed began."""

    @property
    def tasks_left(self) -> range:
        """Their numbers; tasks count from 1."""
        return range(len(self.record.tasks) + 1, len(self.plans) + 1)

    def save(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """The last checkpoint; `optimizer` is that of a learner in the middle of a task."""
        self.progress.saving()
        save_last(self.directory, self.record, self.pair, self.position, optimizer)

    def optim(self, number: int) -> OptimConfig:
        """The run's optimisation with what differs for a task."""
        return replace(self.config.optim, **self.plans[number - 1].optim)


@dataclass
class Task:
    """The task at hand."""

    number: int
    plan: TaskPlan
    optim: OptimConfig
    """Resolved for this machine."""
    images: TaskImages
    """To train on: all of them, which the teacher learns from,"""
    learned: TaskImages
    """those that the student learns from,"""
    held_out: TaskImages
    """and those that choose its α."""
    adapts: bool = True
    """Whether prompts, distillation and learned heads train in it; otherwise it is one pass over its images."""
    loaded: tuple[TaskImages, TrainingImages] | None = None
    """What was made of one of these for the learner before."""

    @property
    def epochs(self) -> int:
        """Of each learner."""
        return self.optim.epochs if self.adapts else 0

    @property
    def batch_size(self) -> int:
        """By default by the number of the task's images."""
        return self.optim.batch_size or default_batch_size(len(self.images.items))


def begin_task(run: Run, number: int) -> Task:
    """Grow the learners, unless the run was interrupted in this very task."""
    plan, images, processes = run.plans[number - 1], run.data.train(number), run.processes
    optim = resolve_auto(run.optim(number), processes.device, in_memory=False, processes=processes.count_here)
    adapts = run.config.method.trains_in(number)
    if run.position.begun < number:
        run.pair.begin_task(len(plan.classes), run.config.optim.seed, run.data.known(number), adapts)
        run.position = Position(begun=number)
    drawn = generator(run.config.optim.seed, "alpha-holdout", number)
    return Task(number, plan, optim, images, *hold_out(images, run.config.method.alpha_holdout, drawn), adapts)


def images_to_learn(run: Run, task: Task, role: Role) -> TrainingImages:
    """As batches. Where both learn from the same images, they are decoded once."""
    images = task.images if role == "teacher" else task.learned
    if task.loaded is None or task.loaded[0] is not images:
        augmentation = run.record.preprocessing.augmentation
        loaded = training_images(images, run.preprocessing, augmentation, task.optim, run.processes.device)
        task.loaded = images, loaded
    return task.loaded[1]
