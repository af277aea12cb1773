"""What a run would do, without a trace: its tasks, what trains, and time and memory from a few real steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdl_deploy.errors import OptionError
from cdl_deploy.process_memory import peak_memory
from cdl_deploy.run.config import OptimConfig, RunConfig, default_batch_size
from cdl_deploy.run.record import RunRecord
from cdl_deploy.training.cached_views import check_views, compute_rows
from cdl_deploy.training.data.loading import Batch, TrainingImages, steps_of, to_device
from cdl_deploy.training.data.resident import training_images
from cdl_deploy.training.data.task_data import TaskData, TaskImages
from cdl_deploy.training.data.transforms import evaluation_transform
from cdl_deploy.training.evaluation import accuracy_row
from cdl_deploy.training.machine import compile_blocks, in_precision
from cdl_deploy.training.models.learner import Learner, Role
from cdl_deploy.training.models.teacher_student import TeacherStudent
from cdl_deploy.training.preparation import never, prepare
from cdl_deploy.training.processes import Processes, connected
from cdl_deploy.training.progress import Progress, Stop, Stopped
from cdl_deploy.training.run_directory import RunDirectory
from cdl_deploy.training.step import make_optimizer, take_step

STEPS = 3
"""Steps of each learner that are timed, after one that is not."""
ENOUGH_SECONDS = 30.0
"""After so long no further step is begun."""
TEST_IMAGES = 32
"""Images that each learner classifies to be timed."""


@dataclass(frozen=True)
class PlannedTask:
    """One task as it would be learned."""

    number: int
    classes: list[str]
    train_images: int
    test_images: int
    batch_size: int
    steps: int
    """An epoch, for each learner."""


@dataclass(frozen=True)
class Estimate:
    """How long the run would take here and what it would hold, and from what that was concluded."""

    seconds: float
    """All tasks: the stages of both learners and the tests. Without writing checkpoints and pictures."""
    seconds_by_part: dict[str, float]
    """`checking` the images, `teacher`, `student`, closed-form `heads`, `tests`."""
    memory_bytes: int
    """The most this process has held, PyTorch and both models included."""
    views_bytes: int
    """The most that `--cache-views` keeps on disk at a time."""
    gpu_memory_bytes: int | None
    """The most PyTorch has reserved on the GPU, where there is one."""
    images_per_second: dict[str, float]
    """By learner, while learning, and of `tests` by both."""
    task: int
    """The task that was measured, the one with most images."""
    steps: dict[str, int]
    """That were timed, by learner; none where nothing trains."""
    tested: int
    """Images that were classified."""


@dataclass(frozen=True)
class Plan:
    """What `cdl train --dry-run` shows."""

    record: RunRecord
    """As the run would begin with it: the resolved configuration, the models, and no finished task."""
    tasks: list[PlannedTask]
    parameters: dict[str, dict[str, int]]
    """By learner: `backbone` (frozen) and what trains in the measured task, `prompts`, `class head`, `distillation`."""
    estimate: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        record = self.record
        return {
            "dry_run": True,
            "tasks": [asdict(task) for task in self.tasks],
            "parameters": self.parameters,
            "estimate": asdict(self.estimate),
            "config": record.config.to_dict(),
            "preprocessing": record.preprocessing.to_dict(),
            "backbones": record.recorded_backbones(),
            "skipped_images": record.skipped_images,
        }


def plan_run(config: RunConfig, out: Path | None = None, progress: Progress | None = None, stop: Stop = never) -> Plan:
    """Do all that `train` does before it makes the directory `out`, then a few steps that are forgotten.

    Nothing is written. Raises what `train` raises for anything that cannot be, and Stopped where `stop` says so.
    """
    with connected(config.optim.device) as processes:
        if processes.count > 1:
            raise OptionError("--dry-run measures one process: start it without accelerate launch or torchrun")
        if out is not None:
            RunDirectory(out).check_free()
        began = time.perf_counter()
        prepared = prepare(config, processes, progress or Progress(), stop)
        checking = time.perf_counter() - began
        record, plans, pair = prepared.record, prepared.plans, prepared.pair
        sources = {plans[0].source_key: prepared.source}
        kept = check_views(record, pair, sources, processes, out or Path())
        optim = record.config.optim
        data = TaskData(plans, [], sources, lambda number: {}, record.skipped_images)
        tasks = []
        for number, plan in enumerate(plans, start=1):
            images, tests = len(data.train(number).items), len(data.test(number).items)
            size = optim.batch_size or default_batch_size(images)
            steps_an_epoch = steps_of(images, size, optim.drop_last)
            tasks.append(PlannedTask(number, list(plan.classes), images, tests, size, steps_an_epoch))
        measured = max(tasks, key=lambda task: task.train_images)
        pair.begin_task(len(measured.classes), optim.seed)
        for learner in pair.learners.values():
            learner.to(processes.device)
        trains = any(record.config.method.trains_in(task.number) for task in tasks)
        parameters = {str(role): count_parameters(learner, trains) for role, learner in pair.learners.items()}
        if optim.compile:
            compile_blocks(pair)
        measurement = Measurement(pair, record, optim, measured, processes, stop)
        train, test = (_as_first_task(images) for images in (data.train(measured.number), data.test(measured.number)))
        steps, speeds = {}, {}
        for role in pair.learners if trains else ():
            steps[str(role)], speeds[str(role)] = measurement.learning(role, train)
        tested, speeds["tests"] = measurement.testing(test)
        memory = peak_memory() or 0
        on_gpu = processes.device.type == "cuda"
    trained = [task for task in tasks if record.config.method.trains_in(task.number)]
    images_learned = sum(optim.epochs * task.train_images for task in trained)
    images_tested = sum(tested_in(number, tasks, record, pair) for number in range(len(tasks)))
    learned = {role: images_learned / speeds[role] for role in steps}
    if prepared.precomputed and learned:
        learned["teacher"] = 0.0
    parts = {"checking": checking, **learned}
    if any(learner.closed_form is not None for learner in pair.learners.values()):
        parts["heads"] = sum(task.train_images for task in tasks) / speeds["tests"]
    parts["tests"] = images_tested / speeds["tests"]
    estimate = Estimate(
        seconds=sum(parts.values()),
        seconds_by_part=parts,
        memory_bytes=memory,
        views_bytes=kept,
        gpu_memory_bytes=torch.cuda.max_memory_reserved() if on_gpu else None,
        images_per_second=speeds,
        task=measured.number,
        steps=steps,
        tested=tested,
    )
    return Plan(record, tasks, parameters, estimate)


def tested_in(position: int, tasks: list[PlannedTask], record: RunRecord, pair: TeacherStudent) -> int:
    """Test images that a task looks at: those of all tasks so far, or, where no feature has changed, its own."""
    closed_form = all(learner.closed_form is not None for learner in pair.learners.values())
    stay = closed_form and not record.config.method.trains_in(tasks[position].number)
    return sum(task.test_images for task in tasks[position if stay else 0 : position + 1])


def count_parameters(learner: Learner, trains: bool = True) -> dict[str, int]:
    """Numbers of the frozen backbone, and of what trains in the current task, by part; nothing does unless `trains`."""
    parts = {"prompts": learner.method, "class head": learner.class_head, "distillation": learner.distillation}
    counts = {"backbone": sum(value.numel() for value in learner.backbone.parameters())}
    for name, part in parts.items():
        counts[name] = sum(value.numel() for value in part.parameters() if trains and value.requires_grad)
    return counts


class Measurement:
    """A few steps and tests of learners in their first task."""

    def __init__(
        self,
        pair: TeacherStudent,
        record: RunRecord,
        optim: OptimConfig,
        task: PlannedTask,
        processes: Processes,
        stop: Stop,
    ) -> None:
        self.pair, self.processes, self.stop = pair, processes, stop
        self.optim = replace(optim, batch_size=task.batch_size)
        self.preprocessing = record.preprocessing.views
        self.augmentation = record.preprocessing.augmentation

    def learning(self, role: Role, images: TaskImages) -> tuple[int, float]:
        """Steps that were timed, and images a second, loading included, and computing views in the epochs that do."""
        optimizer = make_optimizer(self.pair.learners[role], self.optim.lr)
        source = training_images(images, self.preprocessing, self.augmentation, self.optim, self.processes.device)
        loaded = endless_batches(source, self.optim, role)
        device, timed, seconds, steps = self.processes.device, 0, 0.0, 0
        views = min(self.optim.cache_views, self.optim.epochs)
        again = views / self.optim.epochs if views else 1.0
        started = time.perf_counter()
        with in_precision(self.pair, self.optim.precision):
            for number in range(1 + STEPS):
                began = time.perf_counter()
                pixels, labels = next(loaded)
                batch, labels = to_device(pixels, device), to_device(labels, device)
                if views:
                    assert isinstance(batch, Tensor)
                    batch = compute_rows(self.pair, role, batch, labels)
                ready = time.perf_counter()
                take_step(self.pair, role, optimizer, batch, labels, self.processes, len(labels))[1].tolist()
                if number:  # the first is slower than all others: memory is taken, blocks are compiled
                    spent = time.perf_counter() - ready + (ready - began) * again
                    timed, seconds, steps = timed + len(labels), seconds + spent, steps + 1
                if self.stop():
                    raise Stopped
                if steps and time.perf_counter() - started > ENOUGH_SECONDS:
                    break
        return steps, timed / seconds

    def testing(self, images: TaskImages) -> tuple[int, float]:
        """Images that were classified, and how many a second all learners together classify."""
        transform, encoder = evaluation_transform(self.preprocessing), self.pair.encoder
        chosen = TaskImages(images.items[:TEST_IMAGES], images.labels[:TEST_IMAGES])
        first = TaskImages(chosen.items[:4], chosen.labels[:4])
        seconds = 0.0
        for learner in self.pair.learners.values():
            accuracy_row(encoder, learner, [first], transform)
            began = time.perf_counter()
            accuracy_row(encoder, learner, [chosen], transform)
            seconds += time.perf_counter() - began
        return len(chosen.items), len(chosen.items) / seconds


def endless_batches(images: TrainingImages, optim: OptimConfig, role: Role) -> Iterator[tuple[Batch, Tensor]]:
    """Batches as the run would load them, epoch after epoch."""
    assert optim.batch_size is not None
    for epoch in count():
        yield from images.batches(optim.batch_size, optim.seed, ("dry run", role, epoch), drop_last=optim.drop_last)


def _as_first_task(images: TaskImages) -> TaskImages:
    """The same images with labels from 0, as if there were no task before."""
    lowest = min(images.labels)
    return TaskImages(images.items, [label - lowest for label in images.labels])
