"""What can be done to a finished run without learning: take its last task back, forget a class, give it other heads.

undo_task       the last addition is taken back exactly: what is left is what there was before it, bit for bit
forget_class    a class's sums are taken away; it is never predicted again
new_heads       a copy of the run whose heads are solved from its images, in one pass over each task
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from cdl_deploy.counted import counted
from cdl_deploy.data.class_names import known_as
from cdl_deploy.data.left_out import LeftOut
from cdl_deploy.errors import OptionError, RunError, nearest
from cdl_deploy.folders import scratch_folder
from cdl_deploy.printable import as_typed
from cdl_deploy.run.record import RunRecord
from cdl_deploy.training.checkpoint import Position, complete, load_task, rebuild_teacher_student, save_last
from cdl_deploy.training.context import Run
from cdl_deploy.training.data.task_data import check_planned, open_sources
from cdl_deploy.training.loop import is_written, learn, write_record
from cdl_deploy.training.models.teacher_student import TeacherStudent
from cdl_deploy.training.precomputed_teacher import PrecomputedTeacher
from cdl_deploy.training.preparation import checking, never
from cdl_deploy.training.processes import Processes, connected
from cdl_deploy.training.progress import Progress, Stop
from cdl_deploy.training.run_directory import RunDirectory


def undo_task(root: Path) -> RunRecord:
    """Take the last addition to the run in `root` back. Raises RunError where there is none."""
    with _finished(root) as (directory, record):
        last = record.plans[-1]
        if not last.added:
            also = f"; that '{record.forgotten[-1]}' was forgotten cannot be undone" if record.forgotten else ""
            tasks = counted(len(record.tasks), "task")
            raise RunError(f"{root} has no addition to undo: what it knows it learned when it was made, {tasks}{also}")
        left_out = LeftOut.of(record.left_out)
        left_out.take_away(LeftOut.of(last.left_out))
        shorter = replace(
            record,
            skipped_images=_without(record.skipped_images, last.skipped_images),
            left_out=left_out.to_dict(),
            plans=record.plans[:-1],
            tasks=record.tasks[:-1],
            matrices={role: matrix[:-1] for role, matrix in record.matrices.items()},
            forgotten=[name for name in record.forgotten if name not in last.classes],
        )
        pair = load_task(directory, shorter)  # what is gone back to must be there
        shorter = replace(shorter, forgotten=_without_sums(shorter, pair))
        save_last(directory, shorter, pair, Position(begun=len(shorter.tasks)))
        complete(directory, shorter)
        write_record(_run(directory, shorter, pair))
        return shorter


def _without(paths: Sequence[str], last: Sequence[str]) -> list[str]:
    """All but those at the end that the last addition brought; an earlier task may have left the same ones out."""
    kept = len(paths) - len(last)
    return list(paths[:kept] if list(paths[kept:]) == list(last) else paths)


def _without_sums(record: RunRecord, pair: TeacherStudent) -> list[str]:
    """The forgotten classes, those among them that the task taken back had brought images of."""
    head = pair.student.closed_form
    if head is None:
        return record.forgotten
    summed = {int(position) for position in head.statistics.classes}
    gone = [name for position, name in enumerate(record.classes) if position not in summed]
    return [*record.forgotten, *(name for name in gone if name not in record.forgotten)]


def forget_class(root: Path, name: str) -> RunRecord:
    """Take the class `name` away from the run in `root`: from the sums of every task's checkpoint, and for ever.

    Raises RunError where the heads are learned, OptionError for a class that the run does not know.
    """
    with _finished(root) as (directory, record):
        learned = [role for role, kind in record.config.method.heads.items() if kind == "learned"]
        if "student" in learned or ("teacher" in learned and "teacher" in record.backbones):
            raise RunError(
                f"{root} has learned heads, which cannot forget a class: give it closed-form ones with cdl head "
                f"{as_typed(root)} --head slda --out RUN2"
            )
        name = known_as(name, record.known_classes)
        if name not in record.known_classes:
            raise OptionError(f"--forget: {root} knows no class '{name}'{nearest(name, record.known_classes)}")
        if len(record.known_classes) < 3:
            raise OptionError(f"--forget: {root} would have one class left, and nothing to tell it from: keep '{name}'")
        changed = replace(record, forgotten=[*record.forgotten, name])
        pair = load_task(directory, changed)
        save_last(directory, changed, pair, Position(begun=len(changed.tasks)))  # from here on it is forgotten
        complete(directory, changed)  # and here its sums go from the files
        write_record(_run(directory, changed, pair))
        return changed


@contextmanager
def _finished(root: Path) -> Iterator[tuple[RunDirectory, RunRecord]]:
    """A finished run that nobody else writes to while this lasts."""
    directory = RunDirectory(root)
    directory.read_record()  # refuses what is no run before a lock is made in it
    with directory.lock():
        record = directory.latest_record()
        if not record.tasks or not record.finished:
            raise RunError(f"{root} has tasks left to learn: finish it first with cdl train {as_typed(root)} --resume")
        if not is_written(directory, record):
            complete(directory, record)
        yield directory, record


def _run(directory: RunDirectory, record: RunRecord, pair: TeacherStudent) -> Run:
    """What `write_record` writes down."""
    return Run(directory, record, pair, {}, Processes(pair.encoder.backbone.mean.device), Progress(), never)


def new_heads(
    root: Path, out: Path, options: Mapping[str, Any], progress: Progress | None = None, stop: Stop = never
) -> RunRecord:
    """The run in `root` with the heads that `options` (of REHEAD_OPTIONS) say, as a new run in `out`.

    Prompts and what the distillation trained stay what they were after each task; the images of every task are looked
    at once. Raises DataError where they are gone, RunError where they are others.
    """
    known = PrecomputedTeacher(root, ("teacher", "student"))
    record, method = known.record, known.record.config.method
    if not record.tasks or not record.finished:
        raise RunError(f"{root} has tasks left to learn: finish it first with cdl train {as_typed(root)} --resume")
    if record.forgotten:
        raise RunError(f"{root} has forgotten classes, whose images are not to be looked at again: train a new run")
    given = {"features": None, "teacher_features": None, "random_features": 0, "teacher_head": None, **options}
    adapt = method.adapt or ("all" if all(task.optim.epochs for task in record.tasks) else None)
    changed = replace(method, **given, adapt=adapt if method.adapting else None, calibration="none", alpha_holdout=0.0)
    if "learned" in changed.heads.values():
        raise OptionError("a learned head needs training: cdl train --head learned; cdl head gives slda, ridge or ncm")
    config = replace(record.config, method=changed)
    plans = [replace(plan, added=False, skipped_images=[], left_out={}) for plan in record.plans]
    fresh = replace(record, config=config, plans=plans, tasks=[], matrices={}, unrecorded=frozenset(), read_results={})
    with connected(config.optim.device) as processes:
        progress, directory = processes.progress(progress), processes.directory(out)
        with processes.agreed():
            directory.check_free()
            sources = open_sources(plans, 0, checking(progress, stop, processes))
            check_planned(fresh, sources)
            pair = rebuild_teacher_student(RunDirectory(root), fresh)
        with _appearing(out) if processes.is_main else nullcontext(out) as staging:
            directory = processes.directory(staging)
            with processes.holding(directory):
                for role, learner in pair.learners.items():
                    directory.save_tensors(directory.backbone_file(role), learner.backbone.vit.state_dict())
                directory.write_record(fresh)
                return learn(Run(directory, fresh, pair, sources, processes, progress, stop, known))


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when all went well: a run that was left in the middle would go on with training."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(".cdl-head-", out.parent) as staging:
            try:
                yield staging
            except RunError as error:
                raise RunError(str(error).replace(str(staging), str(out))) from None
            RunDirectory(out).check_free()
            if out.is_dir():
                out.rmdir()
            staging.rename(out)
    except OSError as error:
        raise RunError(f"--out {out}: {error.strerror or error}; the run in {out} was not made") from None
