"""What a run is made of before it learns anything: images, tasks, learners and the record, all of it checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cdl_deploy.data.preprocessing import ResizeCrop
from cdl_deploy.data.sources import ImageSource, OnCheck, open_source
from cdl_deploy.training.backbones.loading import BackboneInfo, load_backbone
from cdl_deploy.training.config import RunConfig, check_name
from cdl_deploy.training.data.task_data import TaskPlan
from cdl_deploy.training.data.tasks import make_tasks
from cdl_deploy.training.distillation import DISTILLATIONS, needs_teacher
from cdl_deploy.training.machine import resolve_auto
from cdl_deploy.training.methods import METHODS
from cdl_deploy.training.models.backbone import Backbone
from cdl_deploy.training.models.learner import Role
from cdl_deploy.training.models.teacher_student import TeacherStudent, build_teacher_student
from cdl_deploy.training.precomputed_teacher import PrecomputedTeacher, open_precomputed_teacher
from cdl_deploy.training.processes import Processes
from cdl_deploy.training.progress import Progress, Stop, Stopped
from cdl_deploy.training.run_directory import Record
from cdl_deploy.training.trackers import check_trackers


@dataclass(frozen=True)
class PreparedRun:
    """A run that may begin."""

    record: Record
    """With the resolved configuration; no task is finished."""
    source: ImageSource
    plans: list[TaskPlan]
    backbones: dict[Role, Backbone]
    pair: TeacherStudent
    """Learners that have seen no task, on the CPU."""
    taught: PrecomputedTeacher | None
    """Takes the place of the teacher's stages, where the configuration names a run that has one."""


def prepare(config: RunConfig, processes: Processes, progress: Progress, stop: Stop) -> PreparedRun:
    """Open the images, deal out the classes, load the backbones; nothing is written.

    Raises CdlError for whatever cannot be.
    """
    check_name("--method", config.method.method, tuple(METHODS))
    check_name("--distill", config.method.distill, tuple(DISTILLATIONS))
    check_trackers(config.optim.trackers)
    data = config.data
    source = open_source(data.data, data.holdout, data.skip_bad, checking(progress, stop, processes))
    plans = [
        TaskPlan(classes, data.data, data.holdout, data.skip_bad)
        for classes in make_tasks(source.classes, data, config.optim.seed)
    ]
    backbones, infos = load_backbones(config)
    pair = build_teacher_student(backbones, config.method, config.optim.seed)
    optim = replace(config.optim, device=processes.device_name)
    config = replace(config, optim=resolve_auto(optim, processes.device, in_memory(source), processes.count_here))
    record = Record(
        config=config.to_dict(),
        preprocessing=resolve_preprocessing(config, infos["student"], source),
        backbones={role: info.to_dict() for role, info in infos.items()},
        plans=[plan.to_dict() for plan in plans],
        skipped_images=list(source.skipped),
    )
    return PreparedRun(record, source, plans, backbones, pair, open_precomputed_teacher(config, record))


def never() -> bool:
    """A `Stop` that does not."""
    return False


def checking(progress: Progress, stop: Stop, processes: Processes) -> OnCheck:
    """Tell `progress` about images that were checked, and stop there; one among several processes cannot."""

    def on_check(done: int, total: int) -> None:
        progress.checking(done, total)
        if processes.count == 1 and stop():
            raise Stopped

    return on_check


def load_backbones(config: RunConfig) -> tuple[dict[Role, Backbone], dict[Role, BackboneInfo]]:
    """The student's backbone and, where something is distilled, the teacher's, for images of one size."""
    models = config.models
    student, info = load_backbone(models.student, models.student_weights, config.data.image_size, models.pixel_range)
    backbones: dict[Role, Backbone] = {"student": student}
    infos: dict[Role, BackboneInfo] = {"student": info}
    if needs_teacher(config.method.distill):
        backbones["teacher"], infos["teacher"] = load_backbone(
            models.teacher, models.teacher_weights, info.image_size, models.pixel_range
        )
    return backbones, infos


def in_memory(source: ImageSource) -> bool:
    """Whether no file needs to be read or decoded."""
    return not any(isinstance(item, Path) for item in source.train.items)


def resolve_preprocessing(config: RunConfig, student: BackboneInfo, source: ImageSource) -> dict[str, Any]:
    """The evaluation transform, from the student's own data configuration, and the training augmentation."""
    size = student.image_size
    preprocessing = ResizeCrop.square(size, int(size / student.crop_pct), student.interpolation)
    chosen = config.data.augmentation
    if chosen == "auto":
        chosen = "photo" if source.photographs else "gentle"
    return {**preprocessing.to_record(), "augmentation": chosen}
