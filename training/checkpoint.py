"""Checkpoints: what the learners of a run have trained, saved and loaded again.

    checkpoints/last.safetensors        after every epoch: what has changed since the last finished task, Adam's state,
                                        and in its header the record and how far the task at hand has come
    checkpoints/task-01.safetensors …   after every task, for good: everything trained
    heldout/task-01.safetensors …       a few test images of every task

`last.safetensors` is the one source of truth. It is written in one atomic step, so whatever interrupts a run leaves
weights and record that belong together; `run.json` follows from it, and is behind it where a run was killed in between.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdl_deploy.data.images import load_image
from cdl_deploy.errors import RunError
from cdl_deploy.printable import as_typed
from cdl_deploy.run.record import RunRecord
from cdl_deploy.training.backbones.loading import rebuild_backbone
from cdl_deploy.training.data.task_data import TaskImages
from cdl_deploy.training.data.transforms import PixelTransform
from cdl_deploy.training.distillation import DISTILLATIONS
from cdl_deploy.training.growing import carried_over, frozen_names
from cdl_deploy.training.heads import HEADS
from cdl_deploy.training.heads.closed_form import closed_form_names
from cdl_deploy.training.methods import METHODS
from cdl_deploy.training.models.learner import Role
from cdl_deploy.training.models.teacher_student import TeacherStudent, build_teacher_student
from cdl_deploy.training.run_directory import RunDirectory

HELDOUT_IMAGES_PER_TASK = 32


@dataclass
class Position:
    """How far a run has come in the task at hand. The finished tasks are in its record."""

    begun: int = 0
    """Tasks whose parameters exist."""
    epochs: dict[Role, int] = field(default_factory=dict)
    """Done in the task at hand, by role."""
    steps: int = 0
    """Done of the next epoch, in which the run was stopped."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Spent on the task at hand, by learner and on its evaluation."""
    adam: dict[str, Tensor] = field(default_factory=dict)
    """The optimizer's state of the learner that was interrupted."""

    def restore_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Put the state of an interrupted optimizer, if there is one, into a fresh one."""
        if not self.adam:
            return
        state: dict[int, dict[str, Any]] = {}
        for name, value in self.adam.items():
            _, index, moment = name.split("/")
            state.setdefault(int(index), {})[moment] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.adam = {}


def save_last(
    directory: RunDirectory,
    record: RunRecord,
    pair: TeacherStudent,
    position: Position,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """The state after an epoch, or a task. `optimizer` is that of a learner in the middle of a task.

    What stands in the checkpoint of the task before is not written again, so an epoch costs the same in every task.
    """
    tensors = pair.trained_state()
    if position.begun and position.begun == len(record.tasks):
        tensors = {}
    elif position.begun > 1:
        unchanged = frozen_names(tensors) | closed_form_names(tensors)
        tensors = {name: value for name, value in tensors.items() if name not in unchanged}
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
    header = {
        "record": record.to_dict(),
        **_growth(record, position.begun),
        "stage_done": position.epochs,
        "steps_done": position.steps,
        "seconds": position.seconds,
    }
    directory.save_tensors(directory.last_checkpoint, tensors, header)


def load_last(directory: RunDirectory, record: RunRecord, pair: TeacherStudent) -> Position:
    """Make `pair`, learners that have seen no task, what the last checkpoint has; without one, nothing was learned."""
    file = directory.last_checkpoint
    if not file.exists():
        if record.tasks:
            raise RunError(f"{file} is missing: the run directory is incomplete")
        return Position()
    tensors, header = directory.load_tensors(file)
    with directory.readable(file):
        adam = {name: value for name, value in tensors.items() if name.startswith("adam/")}
        state = {name: value for name, value in tensors.items() if name not in adam}
        begun = len(header["tasks"])
        position = Position(begun, header["stage_done"], header["steps_done"], header["seconds"], adam)
    if begun and begun == len(record.tasks):
        file = directory.task_checkpoint(begun)
        state = directory.load_tensors(file)[0]
    elif begun > 1:
        before = directory.load_tensors(directory.task_checkpoint(begun - 1))[0]
        state |= carried_over(before) | {name: before[name] for name in closed_form_names(before)}
    with directory.readable(file):
        pair.load_trained_state(state, header["tasks"], header["known"])
    _forget(record, pair)
    return position


def save_task(directory: RunDirectory, record: RunRecord, pair: TeacherStudent) -> None:
    """Everything trained, after the last of the record's finished tasks."""
    done = len(record.tasks)
    directory.save_tensors(directory.task_checkpoint(done), pair.trained_state(), _growth(record, done))


def load_task(directory: RunDirectory, record: RunRecord) -> TeacherStudent:
    """The learners of a run after the last of the record's finished tasks."""
    pair = rebuild_teacher_student(directory, record)
    done = len(record.tasks)
    file = directory.task_checkpoint(done)
    state, header = directory.load_tensors(file)
    with directory.readable(file):
        if {name: header[name] for name in ("tasks", "known")} != _growth(record, done):
            raise RunError(f"{file} is not of the run in {directory.root}: its tasks have other numbers of classes")
        pair.load_trained_state(state, header["tasks"], header["known"])
    _forget(record, pair)
    return pair


def complete(directory: RunDirectory, record: RunRecord) -> None:
    """Finish what a killed command left undone in the files of a run whose last checkpoint says `record`.

    Sums of forgotten classes go from the checkpoints of the tasks, and so do tasks that were taken back.
    """
    for number in range(1, len(record.tasks) + 1) if record.forgotten else ():
        earlier = replace(record, tasks=record.tasks[:number])
        save_task(directory, earlier, load_task(directory, earlier))
    number = len(record.plans) + 1
    for file in (directory.task_checkpoint(number), directory.heldout_file(number)):
        file.unlink(missing_ok=True)


def _forget(record: RunRecord, pair: TeacherStudent) -> None:
    """Make sure that closed-form heads know nothing of forgotten classes, whatever a checkpoint still has of them."""
    positions = [i for i, name in enumerate(record.classes) if name in record.forgotten]
    for learner in pair.learners.values():
        head = learner.closed_form
        known = [position for position in positions if head is not None and head.forget(position)]
        if head is not None and known:
            head.solve()


def _growth(record: RunRecord, count: int) -> dict[str, Any]:
    """What a checkpoint with `count` tasks must say for learners to take its rows: the classes that each task brought,
    and the positions among the logits of the known ones of the last."""
    plans = record.plans
    positions = {name: i for i, name in enumerate(name for plan in plans for name in plan.classes)}
    known = [positions[name] for name in plans[count - 1].known_classes] if count else []
    return {"tasks": [len(plan.classes) for plan in plans[:count]], "known": known}


def rebuild_teacher_student(directory: RunDirectory, record: RunRecord) -> TeacherStudent:
    """Teacher and student of a run, from the weights the run stored, before any task.

    Raises RunError where the run is of a method, a distillation or a head of another package, which is not installed.
    """
    method = record.config.method
    chosen: list[tuple[str, str, Collection[str]]] = [
        ("--method", method.method, METHODS),
        ("--distill", method.distill, DISTILLATIONS),
        ("--student-head", method.student_head, ("method", *HEADS)),
    ]
    for option, name, known in chosen:
        if name not in known:
            raise RunError(
                f"{directory.root} was trained with {option} {name}, which no package here has: install the one that "
                "registers it"
            )
    roles: list[Role] = ["student", "teacher"]
    backbones = {}
    for role in roles:
        if role in record.backbones:
            file = directory.backbone_file(role)
            with directory.readable(file):
                backbones[role] = rebuild_backbone(record.backbones[role], file)
    return build_teacher_student(backbones, record.config.method, record.config.optim.seed)


def load_run(root: Path, after: int | None = None) -> tuple[RunRecord, TeacherStudent]:
    """A run's record and its learners after the last finished task, or as they were `after` an earlier one, on the CPU.

    Raises RunError where none is finished, or not so many.
    """
    directory = RunDirectory(root)
    record = directory.latest_record()
    if not record.tasks:
        raise RunError(f"{root} has no finished task yet: continue it with cdl train {as_typed(root)} --resume")
    if after is not None:
        record = _up_to(root, record, after)
    return record, load_task(directory, record)


def _up_to(root: Path, record: RunRecord, task: int) -> RunRecord:
    """The record as it was after `task`."""
    if not 1 <= task <= len(record.tasks):
        raise RunError(f"{root} has {len(record.tasks)} finished tasks, so there is nothing after task {task}")
    matrices = {role: matrix[:task] for role, matrix in record.matrices.items()}
    return replace(record, tasks=record.tasks[:task], matrices=matrices)


def save_heldout(directory: RunDirectory, number: int, test: TaskImages, transform: PixelTransform) -> None:
    """Keep a few test images of a task, preprocessed but not normalised: export compares models on them, and later
    tasks are tested on them where the folder is gone."""
    step = max(1, len(test.items) // HELDOUT_IMAGES_PER_TASK)
    chosen = range(0, len(test.items), step)[:HELDOUT_IMAGES_PER_TASK]
    tensors = {
        f"task_{number}/images": torch.stack([transform(load_image(test.items[i])) for i in chosen]),
        f"task_{number}/labels": torch.tensor([test.labels[i] for i in chosen]),
    }
    directory.save_tensors(directory.heldout_file(number), tensors)


def load_heldout(root: Path, record: RunRecord) -> tuple[Tensor, Tensor]:
    """Held-out images [n, 3, height, width] uint8 of every finished task, and their labels [n]."""
    directory = RunDirectory(root)
    numbers = range(1, len(record.tasks) + 1)
    tensors: dict[str, Tensor] = {}
    for number in numbers:
        tensors |= directory.load_heldout(number)
    images = torch.cat([tensors[f"task_{number}/images"] for number in numbers])
    return images, torch.cat([tensors[f"task_{number}/labels"] for number in numbers])
