"""A whole run: tasks one after another, a checkpoint after every epoch, evaluation after every task.

This file is the training path from above; `stage.py` is one learner learning one task, `run_directory.py` the files.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdl_deploy.errors import OptionError
from cdl_deploy.training.backbones.loading import BackboneInfo, load_backbone
from cdl_deploy.training.config import RunConfig, check_name, default_batch_size
from cdl_deploy.training.data.sources import ImageSource, Item, LabelledImages, fingerprint, load_image, open_source
from cdl_deploy.training.data.tasks import make_tasks
from cdl_deploy.training.data.transforms import Preprocessing, evaluation_transform, training_transform
from cdl_deploy.training.distillation import DISTILLATIONS, needs_teacher
from cdl_deploy.training.evaluation import accuracy_row
from cdl_deploy.training.methods import METHODS
from cdl_deploy.training.models.backbone import Backbone
from cdl_deploy.training.models.learner import Role
from cdl_deploy.training.models.pair import Pair, build_pair
from cdl_deploy.training.plots import plot_run
from cdl_deploy.training.progress import Progress, Stage
from cdl_deploy.training.restore import rebuild_pair
from cdl_deploy.training.run_directory import Record, RunDirectory
from cdl_deploy.training.stage import TaskImages, make_optimizer, run_stage

HELDOUT_IMAGES_PER_TASK = 32


def train(config: RunConfig, out: Path, progress: Progress | None = None) -> Record:
    """Train a new run in the directory `out`, which must not exist or be empty.

    Everything that can be wrong with the configuration, the images and the weights is found before `out` is made.
    """
    progress = progress or Progress()
    check_name("--method", config.method.method, tuple(METHODS))
    check_name("--distill", config.method.distill, tuple(DISTILLATIONS))
    device = pick_device(config.optim.device)
    directory = RunDirectory(out)
    directory.check_free()
    source = open_source(config.data.data, config.data.holdout, config.data.skip_bad, progress.checking)
    tasks = make_tasks(source.classes, config.data, config.optim.seed)
    backbones, infos = load_backbones(config)
    pair = build_pair(backbones, config.method, config.optim.seed)
    counts = [sum(len(source.train.of_class(source.classes.index(name))) for name in task) for task in tasks]
    config = resolve(config, device, min(counts))
    record = Record(
        config=config.to_dict(),
        preprocessing=resolve_preprocessing(config, infos["student"], source),
        backbones={role: info.to_dict() for role, info in infos.items()},
        planned_tasks=[list(task) for task in tasks],
        skipped_images=list(source.skipped),
    )
    directory.create()
    with directory.lock():
        for role, backbone in backbones.items():
            directory.save_tensors(directory.backbone_file(role), backbone.vit.state_dict())
        directory.write_record(record)
        return Run(config, directory, record, source, pair, device, progress).go()


def resume(out: Path, progress: Progress | None = None) -> Record:
    """Continue the run in `out` after its last finished epoch; the result is as if it had not been interrupted."""
    progress = progress or Progress()
    directory = RunDirectory(out)
    record = directory.read_record()
    config = RunConfig.from_dict(record.config)
    device = pick_device(config.optim.device)
    source = open_source(config.data.data, config.data.holdout, config.data.skip_bad, progress.checking)
    pair = rebuild_pair(directory, record)
    with directory.lock():
        run = Run(config, directory, record, source, pair, device, progress)
        run.restore()
        return run.go()


class Run:
    """The state of a run between epochs."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        record: Record,
        source: ImageSource,
        pair: Pair,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.config, self.directory, self.record, self.source = config, directory, record, source
        self.pair, self.device, self.progress = pair, device, progress
        for learner in pair.learners.values():
            learner.to(device)
        self.preprocessing = Preprocessing(**{k: record.preprocessing[k] for k in ("size", "resize", "interpolation")})
        self.begun = 0
        """Tasks whose parameters exist."""
        self.stage_done: dict[Role, int] = {}
        """Epochs done in the current task, by role."""
        self.moments: dict[str, Tensor] = {}
        """Adam's moments where a stage was interrupted."""
        self.seconds: dict[str, float] = {}
        """Time spent on the current task, by stage."""

    def go(self) -> Record:
        """Learn every task that is not done."""
        self.progress.planned(self.record)
        for number in range(len(self.record.tasks) + 1, len(self.record.planned_tasks) + 1):
            self.learn_task(number)
        return self.record

    def learn_task(self, number: int) -> None:
        """Teacher, then student, then evaluation; `number` counts from 1."""
        classes = self.record.planned_tasks[number - 1]
        images = self.task_images(self.source.train, number)
        if self.begun < number:
            self.pair.begin_task(len(classes), self.config.optim.seed)
            self.begun, self.stage_done, self.seconds = number, {}, {}
        augmentation = self.record.preprocessing["augmentation"]
        transform = training_transform(self.preprocessing, augmentation)
        for role, learner in self.pair.learners.items():
            done = self.stage_done.get(role, 0)
            if done == self.config.optim.epochs:
                continue
            optimizer = make_optimizer(learner, self.config.optim.lr)
            if done:
                self.restore_moments(optimizer)
            stage = Stage(number, len(self.record.planned_tasks), role, self.config.optim.epochs, len(images.items))
            began, before = time.perf_counter(), self.seconds.get(role, 0.0)

            def save(
                epochs: int,
                role: Role = role,
                optimizer: torch.optim.Optimizer = optimizer,
                began: float = began,
                before: float = before,
            ) -> None:
                self.stage_done[role] = epochs
                self.seconds[role] = before + time.perf_counter() - began
                if epochs == self.config.optim.epochs:  # before the save, so that resuming finds it done
                    self.pair.learners[role].end_task()
                self.save_last(optimizer if epochs < self.config.optim.epochs else None)

            run_stage(self.pair, stage, images, transform, self.config.optim, optimizer, done, save, self.progress)
        self.finish_task(number, images)

    def finish_task(self, number: int, images: TaskImages) -> None:
        """Evaluate, and write everything a finished task leaves."""
        tests = [self.task_images(self.source.test, task) for task in range(1, number + 1)]
        began = time.perf_counter()
        for role, learner in self.pair.learners.items():
            row = accuracy_row(
                self.pair.encoder,
                learner,
                tests,
                evaluation_transform(self.preprocessing),
                self.config.optim.workers,
                lambda done, total, role=role: self.progress.evaluating(number, role, done, total),  # type: ignore[misc]
            )
            self.record.matrices.setdefault(role, []).append(row)
        self.seconds["evaluation"] = time.perf_counter() - began
        self.record.tasks.append(
            {
                "number": number,
                "classes": self.record.planned_tasks[number - 1],
                "train_images": len(images.items),
                "test_images": len(tests[-1].items),
                "data_fingerprint": fingerprint(images.items),
                "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            }
        )
        self.save_heldout(tests)
        self.stage_done, self.moments = {}, {}
        self.directory.save_tensors(
            self.directory.task_checkpoint(number), self.pair.trained_state(), {"tasks": self.task_sizes(number)}
        )
        self.save_last(None)
        self.write_summary()
        self.progress.task_finished(self.record)

    def task_images(self, split: LabelledImages, number: int) -> TaskImages:
        """One task's images of a split, labelled by the position of their class among the logits."""
        first = sum(self.task_sizes(number - 1))
        items: list[Item] = []
        labels: list[int] = []
        for offset, name in enumerate(self.record.planned_tasks[number - 1]):
            own = split.of_class(self.source.classes.index(name))
            items += own
            labels += [first + offset] * len(own)
        return TaskImages(items, labels)

    def task_sizes(self, count: int) -> list[int]:
        """Classes of the first `count` tasks."""
        return [len(classes) for classes in self.record.planned_tasks[:count]]

    def save_heldout(self, tests: list[TaskImages]) -> None:
        """Keep a few test images of every task, preprocessed but not normalised, for export to compare models on."""
        transform = evaluation_transform(self.preprocessing)
        tensors: dict[str, Tensor] = {}
        for number, test in enumerate(tests, start=1):
            step = max(1, len(test.items) // HELDOUT_IMAGES_PER_TASK)
            chosen = range(0, len(test.items), step)[:HELDOUT_IMAGES_PER_TASK]
            pixels = [transform(load_image(test.items[i])) for i in chosen]
            tensors[f"task_{number}/images"] = torch.stack(pixels)
            tensors[f"task_{number}/labels"] = torch.tensor([test.labels[i] for i in chosen])
        self.directory.save_tensors(self.directory.heldout_file, tensors)

    def save_last(self, optimizer: torch.optim.Optimizer | None) -> None:
        """The state after an epoch. `optimizer` is that of an unfinished stage."""
        tensors = self.pair.trained_state()
        if optimizer is not None:
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"adam/{index}/{name}": torch.as_tensor(value) for name, value in moments.items()}
        header = {
            "record": self.record.to_dict(),
            "tasks": self.task_sizes(self.begun),
            "stage_done": self.stage_done,
            "seconds": self.seconds,
        }
        self.directory.save_tensors(self.directory.last_checkpoint, tensors, header)

    def restore(self) -> None:
        """Take up where the last checkpoint ends; without one the run begins at its first task."""
        if not self.directory.last_checkpoint.exists():
            return
        tensors, header = self.directory.load_tensors(self.directory.last_checkpoint)
        self.record = Record.from_dict(header["record"])
        self.moments = {name: value for name, value in tensors.items() if name.startswith("adam/")}
        self.pair.load_trained_state({n: v for n, v in tensors.items() if n not in self.moments}, header["tasks"])
        for learner in self.pair.learners.values():
            learner.to(self.device)
        self.begun, self.stage_done, self.seconds = len(header["tasks"]), header["stage_done"], header["seconds"]
        if self.record.tasks:
            self.write_summary()

    def restore_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Put the interrupted stage's moments into a fresh optimizer."""
        state: dict[int, dict[str, Any]] = {}
        for name, value in self.moments.items():
            _, index, moment = name.split("/")
            state.setdefault(int(index), {})[moment] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.moments = {}

    def write_summary(self) -> None:
        """run.json, CSVs and the picture."""
        self.directory.write_record(self.record)
        method = self.config.method
        title = f"{self.config.data.data}: {method.method} + {method.distill}, seed {self.config.optim.seed}"
        plot_run(self.record.matrices, title, self.directory.root / "accuracy.png")


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA, then Apple's MPS, then the CPU. Raises OptionError for a device that is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise OptionError(f"--device {name} cannot be used here ({reason}): use auto or cpu") from None
    return device


def load_backbones(config: RunConfig) -> tuple[dict[Role, Backbone], dict[Role, BackboneInfo]]:
    """The student's backbone and, where something is distilled, the teacher's, for images of one size."""
    models = config.models
    student, info = load_backbone(models.student, models.student_weights, config.data.image_size)
    backbones: dict[Role, Backbone] = {"student": student}
    infos: dict[Role, BackboneInfo] = {"student": info}
    if needs_teacher(config.method.distill):
        backbones["teacher"], infos["teacher"] = load_backbone(models.teacher, models.teacher_weights, info.image_size)
    return backbones, infos


def resolve(config: RunConfig, device: torch.device, images: int) -> RunConfig:
    """The configuration with `auto` values settled; `images` are those of the smallest task."""
    batch_size = config.optim.batch_size or default_batch_size(images)
    return replace(config, optim=replace(config.optim, device=str(device), batch_size=batch_size))


def resolve_preprocessing(config: RunConfig, student: BackboneInfo, source: ImageSource) -> dict[str, Any]:
    """The evaluation transform, from the student's own data configuration, and the training augmentation."""
    size = student.image_size
    preprocessing = Preprocessing(size, int(size / student.crop_pct), student.interpolation)
    chosen = config.data.augmentation
    if chosen == "auto":
        chosen = "photo" if source.photographs else "gentle"
    return {**asdict(preprocessing), "augmentation": chosen}
