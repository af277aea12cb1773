"""The records of a budget, and figures over their seeds."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.evidence.budget import BUDGETS, Budget
from benchmarks.evidence.rows import FROZEN, JOINT, Row, all_rows

METRIC = "final_average_accuracy"
Which = tuple[str, str, str]
"""Row, head, role."""


@dataclass(frozen=True)
class Records:
    """What has been measured under one budget."""

    budget: Budget
    rows: dict[tuple[str, str], dict[int, dict[str, Any]]]
    """By row and head, by seed."""
    joint: dict[str, dict[str, Any]]
    """By role."""
    latency: dict[str, Any] | None
    """The table's column of milliseconds."""
    elsewhere: tuple[dict[str, Any], ...] = ()
    """Latency on other processors; of other files, perhaps."""

    @property
    def most_timed(self) -> dict[str, Any]:
        """The latencies, of one processor, of as many files as there are."""
        return max((self.latency or {}, *self.elsewhere), key=lambda found: len(found.get("models", {})))

    def time_share(
        self, file: str, of: str, first: dict[str, Any] | None = None
    ) -> tuple[float, dict[str, Any]] | None:
        """A file's median latency as a share of another's, and among which latencies both were timed: of those that
        come `first`, else the table's, else another processor's."""
        for timed in (first, self.latency, *self.elsewhere):
            models = (timed or {}).get("models", {})
            if timed and file in models and of in models:
                return models[file]["p50_ms"] / models[of]["p50_ms"], timed
        return None

    @property
    def every(self) -> list[dict[str, Any]]:
        return [record for by_seed in self.rows.values() for record in by_seed.values()]

    @property
    def processor(self) -> str | None:
        """What most rows were trained on: times of several processors do not stand in one column. None: early records
        do not say."""
        return Counter(record.get("processor") for record in self.every).most_common(1)[0][0]

    def figures(self, row: str, head: str, get: Callable[[dict[str, Any]], float | None]) -> list[float]:
        """A figure of each seed that has it."""
        found = (get(record) for record in self.rows.get((row, head), {}).values())
        return [value for value in found if value is not None]

    def of_role(self, row: str, head: str, role: str, metric: str) -> list[float]:
        return self.figures(row, head, lambda record: record.get(role, {}).get(metric))

    def of_file(self, row: str, head: str, file: str, key: str) -> list[float]:
        return self.figures(row, head, lambda record: record.get("files", {}).get(file, {}).get(key))

    def best(self, row: str, head: str, role: str) -> dict[int, float]:
        """Final accuracy by seed: of the exported files, which are tested on most images, where all seeds have one,
        else of the runs."""
        found, exported = {}, self.exported(row, head, role)
        for seed, record in self.rows.get((row, head), {}).items():
            value = record["files"][role]["accuracy"] if exported else record.get(role, {}).get(METRIC)
            if value is not None:
                found[seed] = value
        return found

    def both(self, one: Which, other: Which) -> tuple[dict[int, float], dict[int, float]]:
        """Final accuracies of two that are compared, by seed, on the same images: of exported files where both have
        one, else of the runs."""
        if self.exported(*one) and self.exported(*other):
            return self.best(*one), self.best(*other)
        first, second = (
            {
                seed: record[role][METRIC]
                for seed, record in self.rows.get((row, head), {}).items()
                if METRIC in record.get(role, {})
            }
            for row, head, role in (one, other)
        )
        return first, second

    def exported(self, row: str, head: str, role: str) -> bool:
        """Whether there is a file of every seed."""
        seeds = self.rows.get((row, head), {})
        return bool(seeds) and len(self.of_file(row, head, role, "accuracy")) == len(seeds)

    def shown(self) -> list[tuple[Row, str]]:
        """Rows and heads that have a record, in the order of the table."""
        pairs = [(row, head) for row in (FROZEN, *all_rows(self.budget)[1:]) for head in row.heads]
        return [pair for pair in pairs if (pair[0].name, pair[1]) in self.rows]


def processor_of(timed: dict[str, Any]) -> str:
    """On which latencies were measured, in words."""
    return str(timed.get("about", "not measured")).split(", batch")[0]


def read_records(folder: Path, name: str) -> Records | None:
    """Of a budget; None where nothing has been measured."""
    rows: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    joint: dict[str, dict[str, Any]] = {}
    for file in sorted((folder / name).glob("*.json")):
        if file.stem.startswith("latency"):
            continue
        record = json.loads(file.read_text())
        if record["row"] == JOINT:
            joint[record["role"]] = record
        else:
            rows.setdefault((record["row"], record["head"]), {})[record["seed"]] = record
    if not rows:
        return None
    latency = folder / name / "latency.json"
    elsewhere = (json.loads(file.read_text()) for file in sorted((folder / name).glob("latency-*.json")))
    timed = json.loads(latency.read_text()) if latency.exists() else None
    return Records(BUDGETS[name], rows, joint, timed, tuple(elsewhere))


def read_paper(results: Path) -> dict[tuple[str, str], float]:
    """Final average accuracy of the paper's ViT-S students (teacher ViT-B) on CIFAR-100, by method and distillation."""
    with (results / "paper.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if (row["dataset"], row["student"]) == ("cifar100", "vit_small")]
    return {(row["cl_method"], row["distillation"]): float(row["final_average_accuracy"]) for row in rows}


def spread(found: list[float], digits: int = 1) -> str:
    """Mean ± standard deviation over seeds; a single number has none."""
    if not found:
        return "–"
    return f"{mean(found):.{digits}f}" + (f" ± {stdev(found):.{digits}f}" if len(found) > 1 else "")


def gain(found: dict[int, float], base: dict[int, float]) -> str:
    """Mean difference over the seeds that both have."""
    shared = [found[seed] - base[seed] for seed in sorted(found.keys() & base.keys())]
    if not shared:
        return "–"
    return f"{mean(shared):+.1f}" + (f" ({sum(value > 0 for value in shared)} of {len(shared)})" if shared[1:] else "")
