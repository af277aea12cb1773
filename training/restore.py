"""From a run directory back to learners. Export reads runs through this; it needs torch and timm, nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cdl_deploy.errors import RunError
from cdl_deploy.run.record import RunRecord
from cdl_deploy.training.backbones.loading import rebuild_backbone
from cdl_deploy.training.models.learner import Role
from cdl_deploy.training.models.teacher_student import TeacherStudent, build_teacher_student
from cdl_deploy.training.run_directory import RunDirectory


def rebuild_teacher_student(directory: RunDirectory, record: RunRecord) -> TeacherStudent:
    """Teacher and student of a run, from the weights the run stored, before any task."""
    config = record.config
    roles: list[Role] = ["student", "teacher"]
    backbones = {
        role: rebuild_backbone(record.backbones[role], directory.backbone_file(role))
        for role in roles
        if role in record.backbones
    }
    return build_teacher_student(backbones, config.method, config.optim.seed)


def load_run(root: Path, after: int | None = None) -> tuple[RunRecord, TeacherStudent]:
    """A run's record and its learners after the last finished task, or as they were `after` an earlier one, on the CPU.

    Raises RunError where none is finished, or not so many.
    """
    directory = RunDirectory(root)
    record = directory.read_record()
    if not record.tasks:
        raise RunError(f"{root} has no finished task yet: continue it with cdl train {root} --resume")
    if after is not None:
        record = _up_to(root, record, after)
    pair = rebuild_teacher_student(directory, record)
    state, header = directory.load_tensors(directory.task_checkpoint(len(record.tasks)))
    pair.load_trained_state(state, header["tasks"], header["known"])
    return record, pair


def _up_to(root: Path, record: RunRecord, task: int) -> RunRecord:
    """The record as it was after `task`."""
    if not 1 <= task <= len(record.tasks):
        raise RunError(f"{root} has {len(record.tasks)} finished tasks, so there is nothing after task {task}")
    matrices = {role: matrix[:task] for role, matrix in record.matrices.items()}
    return replace(record, tasks=record.tasks[:task], matrices=matrices)


def load_heldout(root: Path, record: RunRecord) -> tuple[Tensor, Tensor]:
    """Held-out images [n, 3, height, width] uint8 of every finished task, and their labels [n]."""
    directory = RunDirectory(root)
    numbers = range(1, len(record.tasks) + 1)
    tensors: dict[str, Tensor] = {}
    for number in numbers:
        tensors |= directory.load_heldout(number)
    images = torch.cat([tensors[f"task_{number}/images"] for number in numbers])
    return images, torch.cat([tensors[f"task_{number}/labels"] for number in numbers])
