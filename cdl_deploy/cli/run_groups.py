"""Runs side by side: those that differ only in the seed are one group, and a group has means and deviations."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from cdl_deploy.errors import RunError
from cdl_deploy.printable import as_typed, no_formula
from cdl_deploy.run.latest import latest_record
from cdl_deploy.run.record import RunRecord
from cdl_deploy.run.record_parts import Role

ROLES: tuple[Role, ...] = ("student", "teacher")
METRICS = (
    "final_average_accuracy",
    "average_incremental_accuracy",
    "forgetting",
    "forgetting_standard",
    "backward_transfer",
)
"""As a run record names them; percent."""
NOT_COMPARED = {"seed", "device", "workers", "log"}
"""Settings of the optimisation that are no difference between two groups: of these, what is learned depends on the seed
alone."""
OF_TRAINING = {"epochs", "batch_size", "lr", "schedule", "last_batch", "cache_views"}
"""Settings of the optimisation that are no difference either where nothing trains."""


@dataclass(frozen=True)
class ComparedRun:
    """One run directory with its record, and what distinguishes it from others."""

    path: Path
    record: RunRecord
    settings: dict[str, Any]
    """Everything that counts, by name: fields of the configuration, the number of finished tasks, …"""
    identity: str
    """The settings, and what no name could be found for, as text: equal for runs that differ in the seed alone."""

    @property
    def seed(self) -> int:
        """What all randomness of the run is drawn from."""
        return self.record.config.optim.seed

    def metric(self, role: Role, metric: str) -> float:
        """Of a learner that the run has."""
        result = self.record.results(role)
        assert result is not None
        return float(getattr(result, metric))


@dataclass
class RunGroup:
    """Runs that differ in the seed alone, each seed once."""

    runs: list[ComparedRun]
    name: str = ""
    differs: dict[str, Any] = field(default_factory=dict)
    """Settings in which the groups that are compared are not all alike."""

    @property
    def seeds(self) -> list[int]:
        """In the order of the runs."""
        return [run.seed for run in self.runs]

    def roles(self) -> list[Role]:
        """Student, and teacher where there is one."""
        return [role for role in ROLES if all(run.record.results(role) for run in self.runs)]

    def values(self, role: Role, metric: str) -> list[float]:
        """One a run."""
        return [run.metric(role, metric) for run in self.runs]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. `std` is the sample's (n − 1), null for one run."""
        roles: dict[str, Any] = dict.fromkeys(ROLES)
        for role in self.roles():
            roles[role] = {metric: mean_and_std(self.values(role, metric)) for metric in METRICS}
        runs = [
            {
                "path": str(run.path),
                "seed": run.seed,
                "status": run.record.status,
                **{role: {m: run.metric(role, m) for m in METRICS} for role in self.roles()},
            }
            for run in self.runs
        ]
        return {"name": self.name, "differs": self.differs, "seeds": self.seeds, **roles, "runs": runs}


def mean_and_std(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and the sample's standard deviation, which one value does not have."""
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else None}


def read_run(path: Path) -> ComparedRun:
    """A run to compare. Raises RunError where no task is finished, or the record is damaged."""
    record = latest_record(path)
    if not record.tasks:
        raise RunError(
            f"{path} has no finished task yet: finish it with cdl train {as_typed(path)} --resume, or leave it out"
        )
    left_out = NOT_COMPARED if record.config.method.trains_in(1) else NOT_COMPARED | OF_TRAINING
    settings = {
        name: value
        for section, values in record.config.to_dict().items()
        for name, value in values.items()
        if not (section == "optim" and name in left_out)
    }
    done, planned = len(record.tasks), len(record.plans)
    settings["finished tasks"] = done if done == planned else f"{done} of {planned}"
    plans = [
        {
            **plan.to_dict(),
            "classes": len(plan.classes),
            "known_classes": len(plan.known_classes),
            "optim": {name: value for name, value in plan.optim.items() if name not in left_out},
            "fingerprint": None,  # of the classes that the seed has put into this task
        }
        for plan in record.plans
    ]
    weights = {role: info.sha256 for role, info in record.backbones.items()}
    return ComparedRun(path, record, settings, json.dumps([settings, plans, weights], sort_keys=True))


def group_runs(paths: Iterable[Path]) -> list[RunGroup]:
    """Groups in the order of their first run. A second run of the same settings and seed begins a group of its own."""
    runs = [read_run(path) for path in {path.resolve(): path for path in paths}.values()]
    groups: list[RunGroup] = []
    for run in runs:
        for group in groups:
            if group.runs[0].identity == run.identity and run.seed not in group.seeds:
                group.runs.append(run)
                break
        else:
            groups.append(RunGroup([run]))
    names = {name for group in groups for name in group.runs[0].settings}
    found = [group.runs[0].settings for group in groups]
    different = [name for name in sorted(names) if len({json.dumps(it[name]) for it in found if name in it}) > 1]
    for group in groups:
        settings = group.runs[0].settings
        group.differs = {name: settings.get(name) for name in different}
        trains = group.runs[0].record.config.method.trains_in(1)
        parts = [f"{settings['method']} + {settings['distill']}" if trains else "frozen"]
        preset, covered = preset_of(group.differs)
        parts += [f"preset {preset}"] if preset else []
        parts += [
            name.replace("_", "-") + ("" if value is True else f" {value}")
            for name, value in group.differs.items()
            if name not in ("method", "distill", *covered) and value is not None and value is not False
        ]
        group.name = ", ".join(parts)
    taken = [group.name for group in groups]
    for group in groups:
        if taken.count(group.name) > 1:
            group.name += f", {group.runs[0].path}"
    return groups


def preset_of(differs: dict[str, Any]) -> tuple[str | None, set[str]]:
    """The preset whose values a group has where groups differ, and the settings that its name stands for.

    Only where they differ in several settings of `--preset paper`: one or two are told better by themselves.
    """
    from cdl_deploy.run.config import RunConfig
    from cdl_deploy.run.presets import PAPER

    paper = {name: value for values in PAPER.values() for name, value in values.items() if name in differs}
    plain = {name: value for values in RunConfig().to_dict().values() for name, value in values.items()}
    found = {name: differs[name] for name in paper}
    if len(paper) > 2:
        for preset, values in (("paper", paper), ("default", {name: plain[name] for name in paper})):
            if found == values:
                return preset, set(paper)
    return None, set()


def groups_csv(groups: Sequence[RunGroup]) -> str:
    """A line a group and learner; the deviation of a single run is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = [f"{metric}_{part}" for metric in METRICS for part in ("mean", "std")]
    writer.writerow(["runs", "learner", "seeds", *columns, "paths"])
    for group in groups:
        for role in group.roles():
            figures = [mean_and_std(group.values(role, metric)) for metric in METRICS]
            cells = ["" if value is None else f"{value:.4f}" for figure in figures for value in figure.values()]
            seeds, paths = (" ".join(map(str, values)) for values in (group.seeds, [run.path for run in group.runs]))
            writer.writerow([*map(no_formula, (group.name, role, seeds)), *cells, no_formula(paths)])
    return file.getvalue()
