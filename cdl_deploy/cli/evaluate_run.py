"""`cdl evaluate RUN`: every checkpoint of a run is exported, and the exported graphs are tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdl_deploy.data.labelled import Item, known_images
from cdl_deploy.errors import DataError, RunError
from cdl_deploy.evaluation.matrix import Difference, TaskTest, accuracy_row, largest_difference, surrounded
from cdl_deploy.evaluation.predictions import Unreadable
from cdl_deploy.folders import scratch_folder
from cdl_deploy.printable import as_typed
from cdl_deploy.require_extra import require_extra
from cdl_deploy.run.latest import latest_record
from cdl_deploy.run.record import RunRecord
from cdl_deploy.run.record_parts import Role

if TYPE_CHECKING:
    from cdl_deploy.evaluation import LabelledImages

KIND = "cdl-deploy evaluation of a run"
FORMAT_VERSION = 1
OnStep = Callable[[str, int, int], None]
"""Told what is being done, how many images are done, and how many there are."""


@dataclass
class RoleMatrix:
    """One learner of a run."""

    recorded: list[list[float]]
    """What training measured."""
    measured: list[list[float]] = field(default_factory=list)
    """What the exported graphs reach."""


@dataclass
class RunEvaluation:
    """A run's matrices, measured and recorded, in percent."""

    run: Path
    source: str
    """Where the test images come from: `the run's own test images`, or a folder."""
    images: list[int]
    """Test images by task."""
    kept: list[int]
    """Tasks tested on the few images that the run keeps."""
    roles: dict[str, RoleMatrix]
    unreadable: list[Unreadable] = field(default_factory=list)

    def difference(self, role: str) -> Difference:
        """Where the exported graphs differ most from what training measured."""
        matrix = self.roles[role]
        return largest_difference(matrix.measured, matrix.recorded, self.images)

    def metrics(self, role: str) -> tuple[dict[str, float], dict[str, float]]:
        """Final average accuracy, forgetting and so on: measured, and recorded."""
        from cdl_deploy.run.metrics import summary

        return summary(self.roles[role].measured), summary(self.roles[role].recorded)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        roles = {
            role: {
                **self.metrics(role)[0],
                "accuracy_matrix": matrix.measured,
                "recorded": {**self.metrics(role)[1], "accuracy_matrix": matrix.recorded},
                "largest_difference": asdict(self.difference(role)),
            }
            for role, matrix in self.roles.items()
        }
        return {
            "format_version": FORMAT_VERSION,
            "kind": KIND,
            "run": str(self.run),
            "source": self.source,
            "images": self.images,
            "kept_tests": self.kept,
            **roles,
            "unreadable": [asdict(item) for item in self.unreadable],
        }


def evaluate_run(
    run: Path,
    images: LabelledImages | None = None,
    *,
    skip_unknown: bool = False,
    teacher: bool = True,
    batch_size: int = 32,
    threads: int | None = None,
    on_step: OnStep = lambda text, done, total: None,
) -> RunEvaluation:
    """Export the learners of `run` after every task, and test each graph on the test images of the tasks so far.

    `images`: in place of the run's own test images; `skip_unknown` leaves those of unknown classes out. Raises RunError
    for a run without a finished task, DataError for a task without images, MissingExtraError without PyTorch.
    """
    with require_extra("cdl evaluate RUN", "train,export"):
        import cdl_deploy.training.run_directory  # noqa: F401  PyTorch, which both extras have
    with require_extra("cdl evaluate RUN", "export"):
        from cdl_deploy.export import ExportOptions, export_run
    from cdl_deploy.runtime.classifier import Classifier

    record = latest_record(run)
    if not record.tasks:
        raise RunError(f"{run} has no finished task yet: continue it with cdl train {as_typed(run)} --resume")
    both: tuple[Role, ...] = ("student", "teacher")
    roles = [role for role in both if role in record.matrices and (teacher or role == "student")]
    with require_extra("cdl evaluate RUN", "train"):  # scikit-learn, where the run learned from its digits
        given = None if images is None else _given_tests(run, record, images, skip_unknown)
        shown = {role: given or _own_tests(run, record, role) for role in roles}
    tests = shown["student"]
    result = RunEvaluation(
        run,
        "the run's own test images" if images is None else images.source,
        [len(test.items) for test in tests],
        [number for number, test in enumerate(tests, 1) if test.kept],
        {role: RoleMatrix([list(row) for row in record.matrices[role]]) for role in roles},
    )
    bad: dict[str, Unreadable] = {}
    for number in range(1, len(tests) + 1):
        total = sum(result.images[:number])
        with scratch_folder("cdl-evaluate-") as folder:
            on_step(f"task {number}/{len(tests)}: exporting", 0, total)
            bundle = folder / "bundle"
            export_run(run, bundle, ExportOptions(teacher="teacher" in roles, latency=False), after=number)
            for role in roles:
                doing = f"task {number}/{len(tests)}: testing the {role}"
                row, unreadable = accuracy_row(
                    Classifier(bundle / f"{role}.onnx", threads=1),
                    shown[role][:number],
                    batch_size,
                    threads,
                    lambda done, doing=doing, total=total: on_step(doing, done, total),  # type: ignore[misc]
                )
                result.roles[role].measured.append(row)
                bad |= {item.path: item for item in unreadable}
    result.unreadable = list(bad.values())
    return result


def _own_tests(run: Path, record: RunRecord, role: Role) -> list[TaskTest]:
    """What training tested a learner on: all test images where they still are what they were, otherwise those kept."""
    from cdl_deploy.training.data.task_data import TaskData
    from cdl_deploy.training.data.transforms import in_views
    from cdl_deploy.training.run_directory import RunDirectory

    directory = RunDirectory(run)
    data = TaskData(record.plans, record.tasks, {}, directory.load_heldout, record.skipped_images)
    tests = []
    for number in range(1, len(record.tasks) + 1):
        test = data.test(number)
        items: Sequence[Item] = test.items
        if test.pixels is not None:
            seen = in_views(test.pixels, record.preprocessing.views)[0 if role == "student" else -1]
            items = [surrounded(pixels, record.preprocessing.of(role).resize) for pixels in seen.numpy()]
        tests.append(_without_forgotten(record, number, TaskTest(items, test.labels, kept=test.pixels is not None)))
    return tests


def _without_forgotten(record: RunRecord, number: int, test: TaskTest) -> TaskTest:
    """The images of classes that are in the exported graphs, with labels that are columns of these."""
    if not record.forgotten:
        return test
    column = {position: place for place, position in enumerate(record.known_positions)}
    kept = [i for i, label in enumerate(test.labels) if label in column]
    if not kept:
        raise RunError(
            f"every class of task {number} was forgotten, so there is no accuracy after it: evaluate an exported model"
        )
    return TaskTest([test.items[i] for i in kept], [column[test.labels[i]] for i in kept], test.kept)


def _given_tests(run: Path, record: RunRecord, images: LabelledImages, skip_unknown: bool) -> list[TaskTest]:
    """A folder's images by the task that taught their class."""
    known = known_images(images, record.known_classes, skip_unknown, str(run))
    position = {name: index for index, name in enumerate(record.known_classes)}
    tests = []
    for task in record.tasks:
        own = known.restricted(lambda name, task=task: name in task.classes)  # type: ignore[misc]
        if not own.items:
            names = ", ".join(task.classes[:3]) + (", …" if len(task.classes) > 3 else "")
            raise DataError(
                f"{images.source} has no image of task {task.number} ({names}): a run's matrix needs images of "
                "every task; evaluate an exported model on these instead"
            )
        tests.append(TaskTest(own.items, [position[name] for name in own.names]))
    return tests
