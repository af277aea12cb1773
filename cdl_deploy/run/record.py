"""The record of a run, RUN/run.json: what was trained, from what, and how well it did. Read and written here alone.

A checkpoint carries the same record in its header. docs/run-directory.md explains every entry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cdl_deploy.documents import parse_json
from cdl_deploy.errors import OptionError, RunError
from cdl_deploy.files import write_json
from cdl_deploy.regular_file import read_regular
from cdl_deploy.run.config import RunConfig, option_sections
from cdl_deploy.run.migrations import migrated_record
from cdl_deploy.run.record_parts import (
    BackboneInfo,
    FinishedTask,
    Matrix,
    RecordedPreprocessing,
    Results,
    Role,
    TaskPlan,
)
from cdl_deploy.typed_json import MisfitError, RefusedError, convert
from cdl_deploy.version import __version__

FORMAT_VERSION = 2
FILE = "run.json"
LARGEST = 128 << 20
"""Bytes of a record that is read: a run of 1,000 tasks and 100,000 classes has a fourth."""


@dataclass
class RunRecord:
    """What a run says about itself."""

    config: RunConfig
    """Resolved: no `auto` is left in it but that of the augmentation."""
    preprocessing: RecordedPreprocessing
    backbones: dict[Role, BackboneInfo]
    plans: list[TaskPlan]
    """Of every task, finished or not."""
    tasks: list[FinishedTask] = field(default_factory=list)
    matrices: dict[Role, Matrix] = field(default_factory=dict)
    """Accuracy matrix of each learner; a row a finished task."""
    skipped_images: list[str] = field(default_factory=list)
    """Unreadable images that --skip-bad left out."""
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    """Files that are no images by their names, by class and suffix: `LeftOut.to_dict`."""
    forgotten: list[str] = field(default_factory=list)
    """Classes that were taken away again. They keep their positions among the logits, and have no sums any more."""
    unrecorded: frozenset[tuple[str, str]] = frozenset()
    """Section and name of options that the version which began the run did not have. They have their defaults and stay
    unwritten, so that the run's fingerprint stays what it is."""
    notes: list[str] = field(default_factory=list, compare=False, repr=False)
    """What one has to know of the networks of a run that begins, a line each; not kept."""
    read_results: dict[Role, Results] = field(default_factory=dict, compare=False, repr=False)
    """What the file says of the metrics; empty for a record that was not read from one."""

    @property
    def planned_tasks(self) -> list[list[str]]:
        """New classes by task."""
        return [list(plan.classes) for plan in self.plans]

    @property
    def finished(self) -> bool:
        """Whether every planned task is done."""
        return len(self.tasks) == len(self.plans)

    @property
    def status(self) -> Literal["finished", "unfinished"]:
        """`finished` where every planned task is done."""
        return "finished" if self.finished else "unfinished"

    @property
    def classes(self) -> list[str]:
        """Class names of the finished tasks, in the order of the logits."""
        return [name for task in self.tasks for name in task.classes]

    @property
    def known_classes(self) -> list[str]:
        """Those of `classes` that were not forgotten."""
        return [name for name in self.classes if name not in self.forgotten]

    @property
    def known_positions(self) -> list[int]:
        """Where they stand among the logits of the trained learners."""
        return [i for i, name in enumerate(self.classes) if name not in self.forgotten]

    def results(self, role: Role) -> Results | None:
        """How well a learner did; None where there is no such learner, or no finished task."""
        matrix, read = self.matrices.get(role), self.read_results.get(role)
        if read is not None and read.accuracy_matrix == matrix:
            return read
        return Results.of(matrix) if matrix else None

    def recorded_config(self) -> dict[str, dict[str, Any]]:
        """The configuration by section and name, as run.json holds it."""
        return {
            section: {name: value for name, value in values.items() if (section, name) not in self.unrecorded}
            for section, values in self.config.to_dict().items()
        }

    def recorded_backbones(self) -> dict[str, dict[str, Any]]:
        """The backbones by role, as run.json holds them."""
        return {role: info.to_dict() for role, info in self.backbones.items()}

    def to_dict(self) -> dict[str, Any]:
        """What run.json holds."""
        roles: dict[str, Any] = {"student": None, "teacher": None}
        roles |= {role: Results.of(matrix).to_dict() for role, matrix in self.matrices.items() if matrix}
        return {
            "format_version": FORMAT_VERSION,
            "kind": "cdl-deploy run",
            "producer": {"name": "cdl-deploy", "version": __version__},
            "status": self.status,
            **roles,
            "tasks": [task.to_dict() for task in self.tasks],
            "plans": [plan.to_dict() for plan in self.plans],
            "config": self.recorded_config(),
            "preprocessing": self.preprocessing.to_dict(),
            "backbones": self.recorded_backbones(),
            "skipped_images": list(self.skipped_images),
            **({"left_out": self.left_out} if self.left_out else {}),
            **({"forgotten": list(self.forgotten)} if self.forgotten else {}),
        }


@dataclass(frozen=True)
class _Content:
    """The entries of run.json that are read."""

    config: dict[str, dict[str, Any]]
    plans: list[TaskPlan]
    tasks: list[FinishedTask]
    preprocessing: RecordedPreprocessing
    backbones: dict[Role, BackboneInfo]
    skipped_images: list[str]
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)
    student: Results | None = None
    teacher: Results | None = None


def read_record(root: Path) -> RunRecord:
    """The record of the run in `root`. Raises RunError where it is missing, damaged, or of a newer format."""
    return parse_record(read_record_file(root), root / FILE)


def read_record_file(root: Path) -> Any:
    """The JSON value in RUN/run.json. Raises RunError where there is no such file, or it holds none."""
    missing = f"it has no {FILE}" if root.exists() else "it does not exist"
    return read_json(root / FILE, f"{root} is no run directory: {missing}; make one with cdl train")


def read_json(path: Path, missing: str) -> Any:
    """The JSON value in a file. Raises RunError: with `missing` where there is no such file."""
    try:
        return parse_json(read_regular(path, LARGEST))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(missing) from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise RunError(f"cannot read {path}: {error}") from None


def write_record(root: Path, record: RunRecord) -> None:
    """Write RUN/run.json, whole or not at all."""
    write_json(root / FILE, record.to_dict())


def parse_record(values: Any, path: Path) -> RunRecord:
    """The record that a JSON value holds, of any format up to this version's. Raises RunError naming `path`."""
    version = values.get("format_version") if isinstance(values, dict) else None
    if type(version) is not int:
        raise RunError(f"{path} is no run record: it has no format_version")
    check_format(version, path)
    values = migrated_record(values)
    try:
        content: _Content = convert(_Content, values, "", exact=True)
        config = _config(content.config)
        for number, plan in enumerate(content.plans):
            _check_types("optim", plan.optim, f"plans[{number}].optim")
            RunConfig.from_dict({"optim": plan.optim})
    except MisfitError as error:
        where, _, name = error.where.rpartition(".")
        place = f" in {where}" if where else ""
        raise RunError(
            f"{path} is damaged: '{name}' is missing{place}" if error.missing else f"{path} is damaged: {error}"
        ) from None
    except (RefusedError, OptionError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
    results: dict[Role, Results | None] = {"student": content.student, "teacher": content.teacher}
    present = {role: result for role, result in results.items() if result is not None}
    if "student" not in content.backbones:
        raise RunError(f"{path} is damaged: 'student' is missing in backbones")
    if len(content.tasks) > len(content.plans):
        raise RunError(f"{path} is damaged: it has {len(content.tasks)} tasks, but {len(content.plans)} plans")
    for role, result in present.items():
        rows = [len(row) for row in result.accuracy_matrix]
        if rows != list(range(1, len(rows) + 1)) or len(rows) < len(content.tasks):
            raise RunError(f"{path} is damaged: {role}.accuracy_matrix is no triangle of {len(content.tasks)} tasks")
    known = {(section, name) for section, given in config.to_dict().items() for name in given}
    return RunRecord(
        config=config,
        preprocessing=content.preprocessing,
        backbones=content.backbones,
        plans=content.plans,
        tasks=content.tasks,
        matrices={role: [list(row) for row in result.accuracy_matrix] for role, result in present.items()},
        skipped_images=content.skipped_images,
        left_out=content.left_out,
        forgotten=content.forgotten,
        unrecorded=frozenset(known - {(section, name) for section, given in content.config.items() for name in given}),
        read_results=present,
    )


def check_format(version: int, path: Path) -> None:
    """Raise RunError for a format this version of the package does not know."""
    if version > FORMAT_VERSION:
        raise RunError(
            f"{path} has format version {version}, this cdl-deploy {__version__} reads up to {FORMAT_VERSION}: "
            "upgrade cdl-deploy"
        )


def _config(sections: dict[str, dict[str, Any]]) -> RunConfig:
    for section, given in sections.items():
        _check_types(section, given, f"config.{section}")
    return RunConfig.from_dict(sections, recorded=True)


def _check_types(section: str, given: dict[str, Any], where: str) -> None:
    """Raise MisfitError for a value of the wrong type; names that are unknown are left to RunConfig."""
    hints = {declared.name: declared.hint for declared in option_sections().get(section, [])}
    for name, value in given.items():
        if name in hints:
            convert(hints[name], value, f"{where}.{name}", exact=True)
