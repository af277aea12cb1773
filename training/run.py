"""A whole run: tasks one after another, a checkpoint after every epoch, evaluation after every task.

This file is the training path from above; `stage.py` is one learner learning one task, `run_directory.py` the files.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdl_deploy.data.images import load_image
from cdl_deploy.data.preprocessing import ResizeCrop
from cdl_deploy.data.sources import ImageSource, fingerprint
from cdl_deploy.training.config import OptimConfig, RunConfig, default_batch_size
from cdl_deploy.training.data.loading import TrainingImages
from cdl_deploy.training.data.resident import ResidentImages, training_images
from cdl_deploy.training.data.task_data import TaskData, TaskImages, TaskPlan, hold_out, open_sources
from cdl_deploy.training.data.transforms import evaluation_transform
from cdl_deploy.training.evaluation import accuracy_row
from cdl_deploy.training.machine import compile_blocks, in_precision, resolve_auto
from cdl_deploy.training.models.growing import carried_over, frozen_names
from cdl_deploy.training.models.learner import Role
from cdl_deploy.training.models.teacher_student import TeacherStudent
from cdl_deploy.training.plots import plot_run
from cdl_deploy.training.precomputed_teacher import PrecomputedTeacher, open_precomputed_teacher
from cdl_deploy.training.prediction_head import fit_prediction_head
from cdl_deploy.training.preparation import checking, never, prepare
from cdl_deploy.training.processes import Processes, connected
from cdl_deploy.training.progress import Progress, Stage, Stop, Stopped
from cdl_deploy.training.restore import rebuild_teacher_student
from cdl_deploy.training.run_directory import Record, RunDirectory
from cdl_deploy.training.seeds import generator
from cdl_deploy.training.stage import Position, make_optimizer, run_stage
from cdl_deploy.training.tracking import tracked

HELDOUT_IMAGES_PER_TASK = 32


def train(config: RunConfig, out: Path, progress: Progress | None = None, stop: Stop = never) -> Record:
    """Train a new run in the directory `out`, which must not exist or be empty.

    Everything that can be wrong with the configuration, the images and the weights is found before `out` is made.
    Raises Stopped where `stop` ends the run early; `resume` goes on from there.
    """
    with connected(config.optim.device) as processes:
        progress = processes.progress(progress)
        with processes.agreed():
            directory = processes.directory(out)
            directory.check_free()
            prepared = prepare(config, processes, progress, stop)
            directory.create()
        record, source_key = prepared.record, prepared.plans[0].source_key
        with directory.lock():
            for role, backbone in prepared.backbones.items():
                directory.save_tensors(directory.backbone_file(role), backbone.vit.state_dict())
            directory.write_record(record)
            run = Run(
                directory,
                record,
                {source_key: prepared.source},
                prepared.pair,
                processes,
                progress,
                stop,
                prepared.taught,
            )
            return run.go()


def resume(out: Path, progress: Progress | None = None, stop: Stop = never) -> Record:
    """Continue the run in `out` after its last checkpoint; the result is as if it had not been interrupted."""
    record = RunDirectory(out).latest_record()
    if record.finished and record == RunDirectory(out).read_record():
        return record
    with connected(record.config["optim"]["device"]) as processes:
        progress = processes.progress(progress)
        with processes.agreed():
            directory = processes.directory(out)
            plans = [TaskPlan.from_dict(plan) for plan in record.plans]
            sources = open_sources(plans, len(record.tasks), checking(progress, stop, processes))
            pair = rebuild_teacher_student(directory, record)
            taught = open_precomputed_teacher(RunConfig.from_dict(record.config), record)
        with directory.lock():
            run = Run(directory, record, sources, pair, processes, progress, stop, taught)
            run.restore()
            return run.go()


class Run:
    """The state of a run between epochs."""

    def __init__(
        self,
        directory: RunDirectory,
        record: Record,
        sources: Mapping[tuple[str, float | None, bool], ImageSource],
        pair: TeacherStudent,
        processes: Processes,
        progress: Progress,
        stop: Stop,
        taught: PrecomputedTeacher | None = None,
    ) -> None:
        self.taught = taught
        self.config, self.directory, self.record = RunConfig.from_dict(record.config), directory, record
        self.plans = [TaskPlan.from_dict(plan) for plan in record.plans]
        self.data = TaskData(self.plans, record.tasks, sources, directory.load_heldout, record.skipped_images)
        self.pair, self.processes, self.progress, self.stop = pair, processes, progress, stop
        for learner in pair.learners.values():
            learner.to(processes.device)
        if any(plan.optim.get("compile", self.config.optim.compile) for plan in self.plans[len(record.tasks) :]):
            compile_blocks(pair)
        self.preprocessing = ResizeCrop.from_record(record.preprocessing)
        self.resident_tests: dict[int, TaskImages] = {}
        """Test images that are on the device, by task."""
        self.begun = 0
        """Tasks whose parameters exist."""
        self.stage_done: dict[Role, int] = {}
        """Epochs done in the current task, by role."""
        self.steps_done = 0
        """Steps done of the epoch in which the run was stopped."""
        self.optimizer_state: dict[str, Tensor] = {}
        """The optimizer's state where a stage was interrupted."""
        self.seconds: dict[str, float] = {}
        """Time spent on the current task, by stage."""

    def go(self) -> Record:
        """Learn every task that is not done."""
        done = len(self.record.tasks)
        left = range(done + 1, len(self.plans) + 1)
        names = self.optim(done + 1).trackers if left and self.processes.is_main else ()
        with tracked(self.progress, names, self.directory.root, self.record) as self.progress:
            self.progress.planned(self.record)
            for number in left:
                self.learn_task(number)
        return self.record

    def learn_task(self, number: int) -> None:
        """Teacher, then student, then evaluation; `number` counts from 1."""
        images = self.data.train(number)
        optim = self.task_optim(number, len(images.items))
        if self.begun < number:
            known = self.data.known(number)
            self.pair.begin_task(len(self.plans[number - 1].classes), self.config.optim.seed, known)
            self.begun, self.stage_done, self.steps_done, self.seconds = number, {}, 0, {}
        augmentation = self.record.preprocessing["augmentation"]
        own, held_out = self.divided(number, images)
        source: TrainingImages | None = None
        for role, learner in self.pair.learners.items():
            start = Position(self.stage_done.get(role, 0), self.steps_done)
            if start.epoch == optim.epochs:
                continue
            if role == "teacher" and self.taught and self.taught.has_task(number, self.plans[number - 1], images):
                self.taught.load_task(learner, number)
                self.stage_done[role] = optim.epochs
                continue
            optimizer = make_optimizer(learner, optim.lr)
            if start != (0, 0):
                self.restore_optimizer_state(optimizer)
            assert optim.batch_size is not None
            if source is None or own is not images:  # where both learn from the same images, they are decoded once
                learned = images if role == "teacher" else own
                source = training_images(learned, self.preprocessing, augmentation, optim, self.processes.device)
            stage = Stage(number, len(self.plans), role, optim.epochs, len(source), optim.batch_size)
            began, before = time.perf_counter(), self.seconds.get(role, 0.0)

            def save(
                done: Position,
                role: Role = role,
                optimizer: torch.optim.Optimizer = optimizer,
                began: float = began,
                before: float = before,
            ) -> None:
                self.stage_done[role], self.steps_done = done
                self.seconds[role] = before + time.perf_counter() - began
                finished = done.epoch == optim.epochs
                if finished:  # before the save, so that resuming finds it done
                    self.pair.learners[role].end_task()
                self.save_last(None if finished else optimizer)

            with in_precision(self.pair, optim.precision):
                run_stage(
                    self.pair,
                    stage,
                    source,
                    optim,
                    optimizer,
                    start,
                    save,
                    self.progress,
                    self.stop,
                    self.processes,
                )
        self.finish_task(number, images, own, held_out, optim)

    def divided(self, number: int, images: TaskImages) -> tuple[TaskImages, TaskImages]:
        """The images of a task that the student learns from, and those held out that choose its α."""
        share = self.config.method.alpha_holdout
        return hold_out(images, share, generator(self.config.optim.seed, "alpha-holdout", number))

    def task_optim(self, number: int, images: int) -> OptimConfig:
        """`optim`, resolved for this machine; the batch size by the number of the task's images."""
        optim = resolve_auto(
            self.optim(number), self.processes.device, in_memory=False, processes=self.processes.count_here
        )
        return replace(optim, batch_size=optim.batch_size or default_batch_size(images))

    def optim(self, number: int) -> OptimConfig:
        """The run's optimisation with what differs for this task."""
        return replace(self.config.optim, **self.plans[number - 1].optim)

    def finish_task(
        self, number: int, images: TaskImages, learned: TaskImages, held_out: TaskImages, optim: OptimConfig
    ) -> None:
        """Evaluate, and write everything a finished task leaves.

        Of its `images` the student has `learned` from some, and others were `held_out`.
        """
        began = time.perf_counter()
        evaluation, workers = evaluation_transform(self.preprocessing), optim.workers or 0
        fit_prediction_head(self.pair, learned, held_out, evaluation, self.config.optim.seed, workers)
        tests = [self.data.test(task) for task in range(1, number + 1)]
        for role, learner in self.pair.learners.items():
            row = self.taught.accuracy_row(number, tests) if role == "teacher" and self.taught else None
            row = row or accuracy_row(
                self.pair.encoder,
                learner,
                self.on_device(tests) if optim.resident else tests,
                evaluation,
                workers,
                lambda done, total, role=role: self.evaluating(number, role, done, total),  # type: ignore[misc]
                self.processes,
            )
            self.record.matrices.setdefault(role, []).append(row)
        self.seconds["evaluation"] = time.perf_counter() - began
        plan = self.plans[number - 1]
        self.record.tasks.append(
            {
                "number": number,
                "classes": list(plan.classes),
                "known_classes": list(plan.known_classes),
                "data": plan.data,
                "train_images": len(images.items),
                "test_images": len(tests[-1].labels),
                "data_fingerprint": fingerprint(images.items),
                "test_fingerprint": fingerprint(tests[-1].items),
                "kept_tests": [task for task, test in enumerate(tests, start=1) if test.pixels is not None],
                "optim": {"epochs": optim.epochs, "batch_size": optim.batch_size, "lr": optim.lr},
                "teacher_run": self.config.models.teacher_run,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            }
        )
        self.progress.evaluated(self.record)
        self.keep_images(number, tests[-1])
        self.stage_done, self.optimizer_state = {}, {}
        self.directory.save_tensors(
            self.directory.task_checkpoint(number), self.pair.trained_state(), self.task_header(number)
        )
        self.save_last(None)
        self.write_summary()
        self.progress.task_finished(self.record)

    def on_device(self, tests: list[TaskImages]) -> list[TaskImages]:
        """The test images of the tasks so far, each decoded once."""
        for number, test in enumerate(tests, start=1):
            if test.pixels is None and number not in self.resident_tests:
                resident = ResidentImages(test, self.preprocessing, self.processes.device)
                self.resident_tests[number] = resident.as_task_images()
        return [self.resident_tests.get(number, test) for number, test in enumerate(tests, start=1)]

    def evaluating(self, number: int, role: Role, done: int, total: int) -> None:
        """Between two batches of test images. A stop is not lost: the stages are saved."""
        self.progress.evaluating(number, role, done, total)
        if self.processes.count == 1 and self.stop():
            raise Stopped

    def task_header(self, count: int) -> dict[str, Any]:
        """What a checkpoint with `count` tasks must say for learners to take its rows."""
        return {
            "tasks": [len(plan.classes) for plan in self.plans[:count]],
            "known": self.data.known(count) if count else [],
        }

    def keep_images(self, number: int, test: TaskImages) -> None:
        """Keep a few test images of a task, preprocessed but not normalised: export compares models on them, and later
        tasks are tested on them where the folder is gone."""
        if not self.processes.is_main:
            return
        transform = evaluation_transform(self.preprocessing)
        step = max(1, len(test.items) // HELDOUT_IMAGES_PER_TASK)
        chosen = range(0, len(test.items), step)[:HELDOUT_IMAGES_PER_TASK]
        tensors = {
            f"task_{number}/images": torch.stack([transform(load_image(test.items[i])) for i in chosen]),
            f"task_{number}/labels": torch.tensor([test.labels[i] for i in chosen]),
        }
        self.directory.save_tensors(self.directory.heldout_file(number), tensors)

    def save_last(self, optimizer: torch.optim.Optimizer | None) -> None:
        """The state after an epoch. `optimizer` is that of an unfinished stage.

        What stands in the checkpoint of the task before is not written again, so an epoch costs the same in every task.
        """
        self.progress.saving()
        tensors = self.pair.trained_state()
        if self.begun and self.begun == len(self.record.tasks):
            tensors = {}
        elif self.begun > 1:
            known = frozen_names(tensors)
            tensors = {name: value for name, value in tensors.items() if name not in known}
        if optimizer is not None:
            for index, optimizer_state in optimizer.state_dict()["state"].items():
                tensors |= {f"adam/{index}/{name}": torch.as_tensor(value) for name, value in optimizer_state.items()}
        header = {
            "record": self.record.to_dict(),
            **self.task_header(self.begun),
            "stage_done": self.stage_done,
            "steps_done": self.steps_done,
            "seconds": self.seconds,
        }
        self.directory.save_tensors(self.directory.last_checkpoint, tensors, header)

    def restore(self) -> None:
        """Take up where the last checkpoint ends; without one the run begins at its first task."""
        if not self.directory.last_checkpoint.exists():
            return
        tensors, header = self.directory.load_tensors(self.directory.last_checkpoint)
        self.optimizer_state = {name: value for name, value in tensors.items() if name.startswith("adam/")}
        state = {name: value for name, value in tensors.items() if name not in self.optimizer_state}
        begun = len(header["tasks"])
        if begun and begun == len(self.record.tasks):
            state = self.directory.load_tensors(self.directory.task_checkpoint(begun))[0]
        elif begun > 1:
            state |= carried_over(self.directory.load_tensors(self.directory.task_checkpoint(begun - 1))[0])
        self.pair.load_trained_state(state, header["tasks"], header["known"])
        for learner in self.pair.learners.values():
            learner.to(self.processes.device)
        self.begun, self.stage_done, self.seconds = begun, header["stage_done"], header["seconds"]
        self.steps_done = header["steps_done"]
        if self.record.tasks:
            self.write_summary()

    def restore_optimizer_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Put the interrupted stage's state into a fresh optimizer."""
        state: dict[int, dict[str, Any]] = {}
        for name, value in self.optimizer_state.items():
            _, index, moment = name.split("/")
            state.setdefault(int(index), {})[moment] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.optimizer_state = {}

    def write_summary(self) -> None:
        """Pictures, CSVs and, when all else is in its place, run.json."""
        if not self.processes.is_main:
            return
        method = self.config.method
        title = f"{self.config.data.data}: {method.method} + {method.distill}, seed {self.config.optim.seed}"
        plot_run(self.record.matrices, title, self.directory.root)
        self.directory.write_record(self.record)
