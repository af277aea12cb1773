"""A teacher that another run has taught. Runs that differ in the student alone need not teach it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from cdl_deploy.data.sources import fingerprint
from cdl_deploy.errors import OptionError, RunError
from cdl_deploy.run.config import RunConfig, teacher_options
from cdl_deploy.run.options import flag
from cdl_deploy.run.record import RunRecord
from cdl_deploy.run.record_parts import RecordedPreprocessing, Role, TaskPlan
from cdl_deploy.training.data.task_data import TaskImages
from cdl_deploy.training.distillation import has_teacher
from cdl_deploy.training.models.learner import Learner
from cdl_deploy.training.run_directory import RunDirectory


class PrecomputedTeacher:
    """The teacher of a run, task by task; or, for a run that only gets other heads, both of its learners."""

    def __init__(self, root: Path, roles: tuple[Role, ...] = ("teacher",)) -> None:
        self.directory = RunDirectory(root)
        self.record = self.directory.latest_record()
        self.roles = roles

    def check(self, ours: RunRecord) -> None:
        """Raises OptionError unless it could be the teacher of a run that begins as `ours`."""
        run, theirs = f"--teacher-run {self.directory.root}", self.record
        if not has_teacher(ours.config):
            raise OptionError(
                f"{run}: --distill {ours.config.method.distill} has no teacher: leave it out, or give --train-teacher"
            )
        if "teacher" not in theirs.backbones:
            raise OptionError(f"{run} has no teacher: it was trained with --distill {theirs.config.method.distill}")
        for name in teacher_options(ours.config.method):
            had, has = (record.config.method.value(name) for record in (theirs, ours))
            if had != has:
                raise OptionError(f"{run} has {flag(name)} {had}, this run {has}: give the same")
        roles: tuple[Role, ...] = ("teacher", "student")
        for role in roles:  # the student's class token is the query that the teacher's keys meet
            had, has = theirs.backbones[role], ours.backbones[role]
            if had.sha256 != has.sha256:
                here = f", and this run {has.words}" if has.words != had.words else ""
                raise OptionError(f"{run} has another {role}, {had.words}{here}: its weights must be the same")
        if theirs.preprocessing != ours.preprocessing:
            raise OptionError(
                f"{run} saw its images otherwise: {_difference(theirs.preprocessing, ours.preprocessing)}"
            )
        learned = [task.classes for task in theirs.tasks]
        for number, classes in enumerate(ours.planned_tasks, start=1):
            if learned[number - 1 : number] != [classes]:
                found = f"learned {', '.join(learned[number - 1])}" if number <= len(learned) else "has not learned it"
                raise OptionError(
                    f"{run}: in task {number} it {found}; this run learns {', '.join(classes)}: give it the same "
                    "classes in the same order (--seed, --class-order, --task-file)"
                )

    def has_task(self, number: int, plan: TaskPlan, images: TaskImages) -> bool:
        """Whether it learned task `number`.

        Raises RunError where it learned the same classes from other images.
        """
        if number > len(self.record.tasks):
            return False
        task = self.record.tasks[number - 1]
        if (task.classes, task.known_classes) != (list(plan.classes), list(plan.known_classes)):
            return False
        if task.data_fingerprint != fingerprint(images.items):
            raise RunError(
                f"the {self.roles[0]} of {self.directory.root} learned task {number} from "
                f"{task.train_images} images that are not the {len(images.items)} of {plan.data}: "
                "train it on the same folder"
            )
        return True

    def load_task(self, learner: Learner, number: int) -> None:
        """Make `learner`, a teacher that has begun task `number`, what this one was after it."""
        file = self.directory.task_checkpoint(number)
        tensors, header = self.directory.load_tensors(file)
        begin = f"{learner.role}/"
        own = {name.removeprefix(begin): v for name, v in tensors.items() if name.startswith(begin)}
        heads = {name for name in own if name.startswith("closed_form.")}  # solved anew from the task's images
        own = {name: value for name, value in own.items() if name not in heads}
        own |= {name: v for name, v in learner.trained_state().items() if name.startswith("closed_form.")}
        with self.directory.readable(file):
            learner.load_trained_state(own, header["tasks"], header["known"])

    def accuracy_row(self, role: Role, number: int, tests: Sequence[TaskImages]) -> list[float] | None:
        """Its accuracy after task `number` on every task so far, if that was measured on just these test images."""
        if self.roles != ("teacher",) or role != "teacher":
            return None
        tasks = self.record.tasks[:number]
        seen = [task.test_fingerprint for task in tasks]
        if len(tasks) < number or seen != [fingerprint(test.items) for test in tests]:
            return None
        return self.record.matrices["teacher"][number - 1]


def open_precomputed_teacher(config: RunConfig, ours: RunRecord) -> PrecomputedTeacher | None:
    """The teacher that `config` names, checked against the run that begins; None where it is to be taught."""
    if config.models.teacher_run is None:
        return None
    try:
        taught = PrecomputedTeacher(Path(config.models.teacher_run))
    except RunError as error:
        raise OptionError(f"--teacher-run: {error}") from None
    taught.check(ours)
    return taught


def _difference(theirs: RecordedPreprocessing, ours: RecordedPreprocessing) -> str:
    both = ((item.name, getattr(theirs, item.name), getattr(ours, item.name)) for item in fields(ours))
    return ", ".join(f"{name} {had}, here {has}" for name, had, has in both if had != has)
