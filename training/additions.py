"""One more task for a finished run: new classes, or new images of known ones, whenever they come.

The run's images are not needed again, nor was the number of tasks ever fixed: adding tasks one by one gives the same
learners as one run with all of them, bit for bit on one CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cdl_deploy.data.sources import ImageSource, open_source
from cdl_deploy.errors import DataError, OptionError, RunError, nearest
from cdl_deploy.training.config import OptimConfig
from cdl_deploy.training.data.task_data import TaskPlan
from cdl_deploy.training.preparation import checking, never
from cdl_deploy.training.processes import connected
from cdl_deploy.training.progress import Progress, Stop
from cdl_deploy.training.restore import load_run
from cdl_deploy.training.run import Run
from cdl_deploy.training.run_directory import Record, RunDirectory
from cdl_deploy.training.trackers import check_trackers

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
    allow_known: bool = False
    """Train known classes on with the images there are of them, instead of refusing them."""
    optim: dict[str, Any] = field(default_factory=dict)
    """Fields of OptimConfig that differ from the run's for this task."""


def add_task(root: Path, addition: Addition, progress: Progress | None = None, stop: Stop = never) -> Record:
    """Learn the classes of `addition` as the next task of the finished run in `root`.

    Whatever is wrong with it is found before the run is touched. Raises RunError where the run has tasks left,
    DataError for images or classes that do not fit, Stopped where `stop` ends it early; `resume` goes on from there.
    """
    record = RunDirectory(root).latest_record()
    if not record.finished:
        raise RunError(f"{root} has tasks left to learn: finish it first with cdl train {root} --resume")
    for name in FIXED:
        if name in addition.optim:
            raise OptionError(f"--{name} cannot change in the middle of a run: leave it out")
    holdout = addition.holdout
    if holdout is None and not (Path(addition.data) / "train").is_dir():
        holdout = record.config["data"]["holdout"]
    optim = OptimConfig(**{**record.config["optim"], **addition.optim})
    with connected(optim.device) as processes:
        progress = processes.progress(progress)
        with processes.agreed():
            check_trackers(optim.trackers)
            directory = processes.directory(root)
            source = open_source(addition.data, holdout, addition.skip_bad, checking(progress, stop, processes))
            new, known = split_classes(source, record, addition)
            changed = {name: value for name, value in addition.optim.items() if value != record.config["optim"][name]}
            plan = TaskPlan(new, addition.data, holdout, addition.skip_bad, known, changed)
            _, pair = load_run(root)
            skipped = [*record.skipped_images, *source.skipped]
            models = {**record.config["models"], "teacher_run": None}  # from here on its teacher learns by itself
            config = {**record.config, "models": models}
            plans = [*record.plans, plan.to_dict()]
            record = replace(record, config=config, plans=plans, skipped_images=skipped)
        with directory.lock():
            run = Run(directory, record, {plan.source_key: source}, pair, processes, progress, stop)
            run.begun = len(record.tasks)
            run.save_last(None)  # from here on the task is the run's, whatever interrupts it
            directory.write_record(record)
            return run.go()


def split_classes(source: ImageSource, record: Record, addition: Addition) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The new and the known among the classes to add. Raises DataError for those that cannot be."""
    for name in addition.classes:
        if name not in source.classes:
            raise DataError(f"--classes: no class '{name}' in {addition.data}{nearest(name, source.classes)}")
    chosen = tuple(dict.fromkeys(addition.classes)) or source.classes
    taught = {name: task["number"] for task in record.tasks for name in task["classes"]}
    new = tuple(name for name in chosen if name not in taught)
    known = tuple(name for name in chosen if name in taught)
    if known and not addition.allow_known:
        names = ", ".join(f"'{name}' (task {taught[name]})" for name in known)
        raise DataError(
            f"{addition.data} has classes that the run knows: {names}; leave them out with --classes, "
            "or train them on with --allow-known"
        )
    if len(chosen) < 2:
        raise DataError(
            f"one class, '{chosen[0]}', cannot be a task: what is learned is to tell a task's classes apart; "
            "add another, or new images of a known one with --allow-known"
        )
    return new, known
