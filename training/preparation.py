"""What a run, or a task that is added to one, begins with: images, classes, learners and the record, all checked."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cdl_deploy.data.class_names import composed, seen_as
from cdl_deploy.data.left_out import LeftOut
from cdl_deploy.data.sources import ImageSource, OnCheck, located, located_labels, open_source
from cdl_deploy.errors import DataError, OptionError, RunError, nearest
from cdl_deploy.printable import as_typed
from cdl_deploy.run.config import MethodConfig, OptimConfig, RunConfig, check_name
from cdl_deploy.run.record import RunRecord
from cdl_deploy.run.record_parts import BackboneInfo, RecordedPreprocessing, TaskPlan, TeacherView
from cdl_deploy.training.backbones.loading import load_backbone
from cdl_deploy.training.backbones.protocol import POOLED, Backbone
from cdl_deploy.training.data.shape import check_benchmark, check_last_batch, check_whole
from cdl_deploy.training.data.task_data import with_fingerprint
from cdl_deploy.training.data.tasks import make_tasks
from cdl_deploy.training.distillation import DISTILLATIONS, has_teacher
from cdl_deploy.training.machine import resolve_auto
from cdl_deploy.training.methods import METHODS
from cdl_deploy.training.models.learner import Role
from cdl_deploy.training.models.teacher_student import TeacherStudent, build_teacher_student
from cdl_deploy.training.precomputed_teacher import PrecomputedTeacher, open_precomputed_teacher
from cdl_deploy.training.processes import Processes
from cdl_deploy.training.progress import Progress, Stop, Stopped
from cdl_deploy.training.run_directory import RunDirectory
from cdl_deploy.training.trackers import check_trackers


@dataclass(frozen=True)
class PreparedRun:
    """A run that may begin."""

    record: RunRecord
    """With the resolved configuration; no task is finished."""
    source: ImageSource
    plans: list[TaskPlan]
    backbones: dict[Role, Backbone]
    pair: TeacherStudent
    """Learners that have seen no task, on the CPU."""
    precomputed: PrecomputedTeacher | None
    """Takes the place of the teacher's stages, where the configuration names a run that has one."""


def prepare(config: RunConfig, processes: Processes, progress: Progress, stop: Stop) -> PreparedRun:
    """Open the images, deal out the classes, load the backbones; nothing is written.

    Raises CdlError for whatever cannot be.
    """
    check_name("--method", config.method.method, tuple(METHODS))
    check_name("--distill", config.method.distill, tuple(DISTILLATIONS))
    check_trackers(config.optim.trackers)
    config = located_config(config)
    data = config.data
    source = open_source(data.data, data.holdout, data.skip_bad, data.labels, checking(progress, stop, processes))
    check_benchmark(data, source)
    plans = [
        with_fingerprint(TaskPlan(classes, data.data, data.holdout, data.skip_bad, labels=data.labels), source)
        for classes in make_tasks(source.classes, data, config.optim.seed)
    ]
    check_whole(data.crop, source, source.classes)
    for number, plan in enumerate(plans, start=1):
        check_last_batch(number, plan.classes, source, config.method, config.optim)
    config = replace(config, method=laid_out(config.method, len(plans)))
    backbones, infos = load_backbones(config)
    pair = build_teacher_student(backbones, config.method, config.optim.seed)
    optim = replace(config.optim, device=processes.device_name)
    config = replace(config, optim=resolve_auto(optim, processes.device, in_memory(source), processes.count_here))
    record = RunRecord(
        config=config,
        preprocessing=resolve_preprocessing(config, infos, source),
        backbones=dict(infos),
        plans=list(plans),
        skipped_images=list(source.skipped),
        left_out=source.others.to_dict(),
        notes=[*source.notes, *notes_on(pair, infos)],
    )
    return PreparedRun(record, source, plans, backbones, pair, open_precomputed_teacher(config, record))


def located_config(config: RunConfig) -> RunConfig:
    """The same with absolute paths of all that a run reads again when it goes on, from wherever that is said."""
    data, models = config.data, config.models
    data = replace(data, data=located(data.data), labels=located_labels(data.labels))
    if models.teacher_run is not None:
        models = replace(models, teacher_run=os.path.abspath(models.teacher_run))
    return replace(config, data=data, models=models)


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
    """The student's backbone and, where there is one, the teacher's, each for images of its size."""
    models = config.models
    student, info = load_backbone(
        models.student, models.student_weights, config.data.image_size, models.pixel_range, models.student_blocks
    )
    backbones: dict[Role, Backbone] = {"student": student}
    infos: dict[Role, BackboneInfo] = {"student": info}
    if has_teacher(config):
        backbones["teacher"], infos["teacher"] = load_backbone(
            models.teacher, models.teacher_weights, models.teacher_image_size or info.image_size, models.pixel_range
        )
    elif models.teacher_image_size is not None:
        raise OptionError(
            f"--teacher-image-size {models.teacher_image_size}: there is no teacher with --distill "
            f"{config.method.distill}: leave it out"
        )
    return backbones, infos


def notes_on(pair: TeacherStudent, infos: dict[Role, BackboneInfo]) -> list[str]:
    """What stands for an image in networks that have no class token, or several, and how tokens are compared."""
    found = []
    for role, info in infos.items():
        pooling = pair.learners[role].backbone.pooling
        if pooling is not None:
            found.append(f"query and heads of the {role} read {POOLED.get(pooling, pooling)}, not a class token")
        if "radio" in info.model:
            found.append(f"the {role} {info.model} has several class tokens: the first is read")
    return [*found, *pair.student.distillation.notes()]


def in_memory(source: ImageSource) -> bool:
    """Whether no file needs to be read or decoded."""
    return not any(isinstance(item, Path) for item in source.train.items)


def resolve_preprocessing(
    config: RunConfig, infos: dict[Role, BackboneInfo], source: ImageSource
) -> RecordedPreprocessing:
    """The evaluation transform, from the student's own data configuration or as it is asked for, and the training
    augmentation.

    A teacher that sees images of another size has a transform from its own configuration, or of the same part of the
    image as the student's where that is asked for.
    """
    student, teacher, view = infos["student"], infos.get("teacher"), None
    data, size = config.data, student.image_size
    resize = size if data.crop == "none" else data.resize or int(size / student.crop_pct)
    if resize < size:
        raise OptionError(
            f"--resize is {resize}, less than the {size} pixels that are cropped from it: give at least {size}, or a "
            "smaller --image-size"
        )
    if teacher is not None and teacher.image_size != size:
        own = int(teacher.image_size / teacher.crop_pct)
        if data.crop == "none" or data.resize:
            own = resize * teacher.image_size // size
        view = TeacherView(teacher.image_size, own, data.interpolation or teacher.interpolation)
    chosen = data.augmentation
    if chosen == "auto":
        chosen = "photo" if source.photographs else "gentle"
    return RecordedPreprocessing(size, resize, data.interpolation or student.interpolation, chosen, view)


def laid_out(method: MethodConfig, tasks: int) -> MethodConfig:
    """What follows from the number of tasks: CODA's components, where so many are shared out among them, and how many
    entries DualPrompt has from the beginning. Raises OptionError for fewer components than tasks."""
    if method.method == "coda" and method.components is not None:
        if method.components < tasks:
            raise OptionError(f"--components {method.components} are fewer than the {tasks} tasks: ask for more")
        method = replace(method, components_per_task=method.components // tasks)
    if method.method == "dualprompt" and method.unseen_keys == "chosen" and method.entries is None:
        method = replace(method, entries=tasks)
    return method


FIXED = ("seed",)
"""Fields of OptimConfig that a run keeps."""


@dataclass(frozen=True)
class Addition:
    """What to add."""

    data: str
    """Image folder, as `cdl train --data` takes it."""
    classes: tuple[str, ...] = ()
    """Which of its classes, in the order of their logits; by default all, in alphabetical order."""
    holdout: float | None = None
    """Share held out where the folder has no splits; by default what the run was made with."""
    skip_bad: bool = False
    labels: str | None = None
    """A file that says of which class each image is, in place of folders."""
    allow_known: bool = False
    """Train known classes on with the images there are of them, instead of refusing them."""
    optim: dict[str, Any] = field(default_factory=dict)
    """Fields of OptimConfig that differ from the run's for this task."""


@dataclass(frozen=True)
class PreparedTask:
    """A task that may be added."""

    record: RunRecord
    """The run's, with the task among its plans."""
    source: ImageSource
    plan: TaskPlan


def prepare_task(
    directory: RunDirectory, addition: Addition, processes: Processes, progress: Progress, stop: Stop
) -> PreparedTask:
    """Open the images of `addition` and find its classes; nothing is written.

    Raises CdlError for whatever cannot be.
    """
    record = directory.latest_record()
    if not record.finished:
        raise RunError(
            f"{directory.root} has tasks left to learn: finish it first with cdl train "
            f"{as_typed(directory.root)} --resume"
        )
    optim = task_optim(record, addition)
    check_trackers(optim.trackers)
    data, labels, holdout = located(addition.data), located_labels(addition.labels), addition.holdout
    if holdout is None and labels is None and not (Path(data) / "train").is_dir():
        holdout = record.config.data.holdout
    source = open_source(data, holdout, addition.skip_bad, labels, checking(progress, stop, processes))
    new, known = split_classes(source, record, addition)
    changed = {name: value for name, value in addition.optim.items() if value != getattr(record.config.optim, name)}
    check_whole(record.config.data.crop, source, (*known, *new), "this run cannot learn it")
    check_last_batch(len(record.plans) + 1, (*known, *new), source, record.config.method, optim)
    plan = TaskPlan(
        new,
        data,
        holdout,
        addition.skip_bad,
        known,
        changed,
        added=True,
        labels=labels,
        skipped_images=list(source.skipped),
        left_out=source.others.to_dict(),
    )
    plan = with_fingerprint(plan, source)
    left_out = LeftOut.of(record.left_out)
    left_out.merge(source.others)
    models = replace(record.config.models, teacher_run=None)  # from here on its teacher learns by itself
    record = replace(
        record,
        config=replace(record.config, models=models),
        plans=[*record.plans, plan],
        skipped_images=[*record.skipped_images, *plan.skipped_images],
        left_out=left_out.to_dict(),
        forgotten=[name for name in record.forgotten if name not in known],
        notes=list(source.notes),
    )
    return PreparedTask(record, source, plan)


def task_optim(record: RunRecord, addition: Addition) -> OptimConfig:
    """The run's optimisation with what differs for the task to add. Raises OptionError for what a run keeps."""
    for name in FIXED:
        if name in addition.optim:
            raise OptionError(f"--{name} cannot change in the middle of a run: leave it out")
    return replace(record.config.optim, **addition.optim)


def split_classes(
    source: ImageSource, record: RunRecord, addition: Addition
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The new and the known among the classes to add. Raises DataError for those that cannot be."""
    asked = tuple(composed(name) for name in addition.classes)
    for name in asked:
        if name not in source.classes:
            raise DataError(f"--classes: no class '{name}' in {addition.data}{nearest(name, source.classes)}")
    chosen = tuple(dict.fromkeys(asked)) or source.classes
    taught = {name: task.number for task in record.tasks for name in task.classes}
    new = tuple(name for name in chosen if name not in taught)
    known = tuple(name for name in chosen if name in taught)
    refused = [name for name in known if name not in record.forgotten]
    if refused and not addition.allow_known:
        names = ", ".join(f"'{name}' (task {taught[name]})" for name in refused)
        raise DataError(
            f"{addition.data} has classes that the run knows: {names}; leave them out with --classes, "
            "or train them on with --allow-known"
        )
    taught_as = {seen_as(name): name for name in taught}
    for name in new:
        if seen_as(name) in taught_as and addition.labels is None:
            raise DataError(
                f"class '{name}' in {addition.data} differs in case or spaces alone from '{taught_as[seen_as(name)]}', "
                "which the run knows: rename it; where both are meant, say so in a file of labels (--labels FILE)"
            )
    return new, known
