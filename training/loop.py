"""Training, from above: for every task, for each learner, for every epoch; a checkpoint after each of them.

    train       a new run
    resume      an interrupted one goes on after its last checkpoint, as if nothing had been
    add_task    one more task for a finished one: new classes, or new images of known ones, whenever they come

A task's images are not needed after it, nor is the number of tasks ever fixed: one run with all tasks and tasks added
one by one give the same learners, bit for bit on one CPU. What a run begins with is preparation.py, what is at
hand context.py, a step of a learner step.py, what a task ends with evaluation.py, how it is saved checkpoint.py.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from cdl_deploy.data.sources import fingerprint, located, located_labels
from cdl_deploy.run.config import RunConfig
from cdl_deploy.run.record import RunRecord
from cdl_deploy.run.record_parts import FinishedTask, FittedHead, TaskOptim
from cdl_deploy.training.cached_views import check_views, discard_views, with_cached_views
from cdl_deploy.training.checkpoint import (
    Position,
    complete,
    load_last,
    load_task,
    rebuild_teacher_student,
    save_heldout,
    save_task,
)
from cdl_deploy.training.context import Run, Task, begin_task, images_to_learn
from cdl_deploy.training.data.loading import TrainingImages, to_device
from cdl_deploy.training.data.task_data import TaskImages, check_planned, open_sources, relocated
from cdl_deploy.training.data.transforms import evaluation_transform
from cdl_deploy.training.evaluation import evaluate
from cdl_deploy.training.fitting import fit_task
from cdl_deploy.training.machine import compile_blocks, in_precision
from cdl_deploy.training.models.learner import Role
from cdl_deploy.training.models.teacher_student import TeacherStudent
from cdl_deploy.training.plots import PICTURES, plot_run
from cdl_deploy.training.precomputed_teacher import open_precomputed_teacher
from cdl_deploy.training.preparation import Addition, checking, never, prepare, prepare_task, task_optim
from cdl_deploy.training.processes import connected
from cdl_deploy.training.progress import Progress, Stage, Stop, Stopped
from cdl_deploy.training.run_directory import RunDirectory
from cdl_deploy.training.step import LossLog, make_optimizer, set_learning_rate, take_step
from cdl_deploy.training.tracking import tracked


def train(config: RunConfig, out: Path, progress: Progress | None = None, stop: Stop = never) -> RunRecord:
    """Train a new run in the directory `out`, which must not exist or be empty.

    Everything that can be wrong with the configuration, the images and the weights is found before `out` is made.
    Raises Stopped where `stop` ends the run early; `resume` goes on from there.
    """
    with connected(config.optim.device) as processes:
        progress, directory = processes.progress(progress), processes.directory(out)
        with processes.agreed():
            directory.check_free()
            prepared = prepare(config, processes, progress, stop)
            sources = {prepared.plans[0].source_key: prepared.source}
            check_views(prepared.record, prepared.pair, sources, processes, out)
            directory.create()
        with processes.holding(directory):
            with processes.agreed():
                directory.check_free()  # still
            for role, backbone in prepared.backbones.items():
                directory.save_tensors(directory.backbone_file(role), backbone.vit.state_dict())
            directory.write_record(prepared.record)
            run = Run(
                directory, prepared.record, prepared.pair, sources, processes, progress, stop, prepared.precomputed
            )
            return learn(run)


def resume(
    out: Path,
    progress: Progress | None = None,
    stop: Stop = never,
    data: str | None = None,
    labels: str | None = None,
) -> RunRecord:
    """Continue the run in `out` after its last checkpoint; the result is as if it had not been interrupted.

    `data`: where the image folder is now, if it was moved, and `labels`, its labels file. Raises DataError where the
    images of a task that is left are not those that it was planned with.
    """
    record = RunDirectory(out).latest_record()
    if record.finished and is_written(RunDirectory(out), record):
        return record
    with connected(record.config.optim.device) as processes:
        progress, directory = processes.progress(progress), processes.directory(out)
        with processes.holding(directory):
            with processes.agreed():
                record = directory.latest_record()  # whoever held the lock before may have gone on with the run
                if data is not None:
                    record = relocated(record, located(data), located_labels(labels))
                sources = open_sources(record.plans, len(record.tasks), checking(progress, stop, processes))
                check_planned(record, sources)
                pair = rebuild_teacher_student(directory, record)
                position = load_last(directory, record, pair)
                check_learns(record, pair)
                check_views(record, pair, sources, processes, out)
                precomputed = open_precomputed_teacher(record.config, record)
            run = Run(directory, record, pair, sources, processes, progress, stop, precomputed, position)
            if record.tasks and not is_written(directory, record):
                if processes.is_main:
                    complete(directory, record)
                write_record(run)
            return learn(run)


def add_task(root: Path, addition: Addition, progress: Progress | None = None, stop: Stop = never) -> RunRecord:
    """Learn the classes of `addition` as the next task of the finished run in `root`.

    Whatever is wrong with it is found before the run is touched. Raises RunError where the run has tasks left,
    DataError for images or classes that do not fit, Stopped where `stop` ends it early; `resume` goes on from there.
    """
    device = task_optim(RunDirectory(root).latest_record(), addition).device
    with connected(device) as processes:
        progress, directory = processes.progress(progress), processes.directory(root)
        with processes.holding(directory):
            with processes.agreed():
                prepared = prepare_task(directory, addition, processes, progress, stop)
                if processes.is_main and not is_written(directory, before := directory.latest_record()):
                    complete(directory, before)
                record, sources = prepared.record, {prepared.plan.source_key: prepared.source}
                pair = load_task(directory, record)
                check_learns(record, pair)
                check_views(record, pair, sources, processes, root)
            run = Run(directory, record, pair, sources, processes, progress, stop)
            run.position.begun = len(record.tasks)
            run.save()  # from here on the task is the run's, come what may
            directory.write_record(record)
            return learn(run)


def check_learns(record: RunRecord, pair: TeacherStudent) -> None:
    """Raise RunError where a task is left to train, and what an earlier version trained cannot go on."""
    if any(record.config.method.trains_in(number) for number in range(len(record.tasks) + 1, len(record.plans) + 1)):
        pair.student.distillation.check_learns()


def learn(run: Run) -> RunRecord:
    """Learn every task that is left: first the teacher, where there is one, then the student, which it teaches."""
    for learner in run.pair.learners.values():
        learner.to(run.processes.device)
    if any(run.optim(number).compile for number in run.tasks_left):
        compile_blocks(run.pair)
    trackers = run.optim(run.tasks_left[0]).trackers if run.tasks_left and run.processes.is_main else ()
    with tracked(run.progress, trackers, run.directory.root, run.record) as run.progress:
        run.progress.planned(run.record)
        for number in run.tasks_left:
            task = begin_task(run, number)
            for role, learner in run.pair.learners.items():
                done = run.position.epochs.get(role, 0)
                if done == task.epochs or is_precomputed(run, task, role):
                    continue
                images = images_to_learn(run, task, role)
                stage = Stage(
                    number,
                    len(run.plans),
                    role,
                    task.epochs,
                    len(images),
                    task.batch_size,
                    len(task.images.items),
                    task.optim.drop_last,
                )
                images = with_cached_views(run, task, stage, images)
                optimizer = make_optimizer(learner, task.optim.lr)
                run.position.restore_optimizer(optimizer)
                run.progress.stage_started(stage, done, run.position.steps)
                run.clock = time.perf_counter()
                with in_precision(run.pair, task.optim.precision):
                    for epoch in range(done, stage.epochs):
                        learn_epoch(run, task, stage, images, optimizer, epoch)
                run.progress.stage_finished(stage)
            discard_views(run)
            run.clock = time.perf_counter()
            fit_task(run, task)
            tests, heads = evaluate(run, task)
            finish_task(run, task, tests, heads)
    return run.record


def learn_epoch(
    run: Run, task: Task, stage: Stage, images: TrainingImages, optimizer: torch.optim.Optimizer, epoch: int
) -> None:
    """One pass over the task's images, or what is left of it, and a checkpoint.

    Where `stop` says so, in one process or in several, the step at hand is finished and saved, and Stopped raised.
    """
    processes, device, size = run.processes, run.processes.device, task.batch_size
    first, run.position.steps = run.position.steps, 0
    lr = set_learning_rate(optimizer, task.optim, epoch)
    if not first:
        run.progress.epoch_started(stage, epoch, lr)
    scope = (task.number, stage.role, epoch)
    batches = images.batches(size, task.optim.seed, scope, first, processes.share, stage.drop_last)
    log = LossLog(stage, epoch, device, partial(run.progress.step, stage, epoch))
    for step, (pixels, labels) in enumerate(batches, start=first):
        pixels, labels = to_device(pixels, device), to_device(labels, device)
        count = min(size, len(images) - step * size)
        log.add(step, count, *take_step(run.pair, stage.role, optimizer, pixels, labels, processes, count))
        if processes.any(run.stop()) and step + 1 < stage.steps:
            log.flush()
            save_epoch(run, stage, optimizer, epoch, step + 1)
            raise Stopped
    log.flush()
    save_epoch(run, stage, optimizer, epoch + 1)
    if processes.any(run.stop()):
        raise Stopped


def save_epoch(run: Run, stage: Stage, optimizer: torch.optim.Optimizer, epochs: int, steps: int = 0) -> None:
    """A checkpoint of a learner that has done so many epochs of its task, and so many steps of the next."""
    began, run.clock = run.clock, time.perf_counter()
    seconds = run.position.seconds
    seconds[stage.role] = seconds.get(stage.role, 0.0) + run.clock - began
    run.position.epochs[stage.role], run.position.steps = epochs, steps
    if epochs == stage.epochs:
        run.pair.learners[stage.role].end_task()  # before the save, so that resuming finds it done
    run.save(None if epochs == stage.epochs else optimizer)


def is_precomputed(run: Run, task: Task, role: Role) -> bool:
    """Whether another run has taught this learner the task; if so, it has learned it now."""
    known = run.precomputed if run.precomputed and role in run.precomputed.roles else None
    if known is None or not known.has_task(task.number, task.plan, task.images):
        return False
    known.load_task(run.pair.learners[role], task.number)
    run.position.epochs[role] = task.epochs
    return True


def finish_task(run: Run, task: Task, tests: list[TaskImages], heads: dict[Role, FittedHead]) -> None:
    """Write down what a finished task leaves. It is finished, whatever comes, as soon as `save` has returned."""
    optim, position = task.optim, run.position
    run.record.tasks.append(
        FinishedTask(
            number=task.number,
            classes=list(task.plan.classes),
            known_classes=list(task.plan.known_classes),
            data=task.plan.data,
            train_images=len(task.images.items),
            test_images=len(tests[-1].labels),
            data_fingerprint=fingerprint(task.images.items),
            test_fingerprint=fingerprint(tests[-1].items),
            kept_tests=[number for number, test in enumerate(tests, start=1) if test.pixels is not None],
            optim=TaskOptim(task.epochs, task.batch_size, optim.lr),
            teacher_run=run.config.models.teacher_run,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds={name: round(value, 3) for name, value in position.seconds.items()},
            heads=heads,
        )
    )
    run.progress.evaluated(run.record)
    if run.processes.is_main:
        save_heldout(run.directory, task.number, tests[-1], evaluation_transform(run.preprocessing))
    save_task(run.directory, run.record, run.pair)
    run.position = Position(begun=task.number, seconds=position.seconds)
    run.save()
    write_record(run)
    run.progress.task_finished(run.record)


def write_record(run: Run) -> None:
    """run.json and the CSVs, which follow from the last checkpoint, then the pictures, which follow from them."""
    if run.processes.is_main:
        for picture in pictures(run.directory):
            picture.unlink(missing_ok=True)  # there are none, rather than old ones, until the new ones are there
        run.directory.write_record(run.record)
        title = f"{run.config.data.data}: {run.config.method.title}, seed {run.config.optim.seed}"
        plot_run({str(role): matrix for role, matrix in run.record.matrices.items()}, title, run.directory.root)


def is_written(directory: RunDirectory, record: RunRecord) -> bool:
    """Whether all that follows from the last checkpoint is there."""
    return record == directory.read_record() and all(picture.exists() for picture in pictures(directory))


def pictures(directory: RunDirectory) -> list[Path]:
    """Where a run's pictures lie, or will lie."""
    return [directory.root / f"{name}.png" for name in PICTURES]
