"""Measure what has no record yet, row by row; a record is a JSON file that is written whole.

A row is a run (`cdl_deploy.train`, resumed where it was interrupted), given its other heads as `cdl head` does,
exported with an int8 file, and the files tested by `cdl_deploy.evaluate`. Killed at any moment, the same command goes
on: finished runs and records are kept, a run goes on from its last checkpoint, an export begins again.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.evidence.budget import Budget, cut
from benchmarks.evidence.rows import HEADS, JOINT, Row, ablation_rows, all_rows
from cdl_deploy.bench.machine import describe_machine
from cdl_deploy.files import write_json

PROJECT = Path(__file__).resolve().parent.parent.parent
METRICS = ("final_average_accuracy", "average_incremental_accuracy", "forgetting", "forgetting_standard")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """Where a set of rows lives, and what its runs have in common."""

    data: Path
    """Image folder, with train/ and test/."""
    runs: Path
    """Folder for run directories, exported files and links to images; none of it is committed."""
    records: Path
    budget: Budget
    models: dict[str, Any]
    """Teacher and student, as `cdl_deploy.train` takes them."""
    say: Say = lambda text: print(text, file=sys.stderr, flush=True)

    @property
    def row_data(self) -> Path:
        return cut(self.data, self.runs / "images", self.budget.images, self.budget.row_tests)

    @property
    def final_data(self) -> Path:
        return cut(self.data, self.runs / "final-images", 1, self.budget.final_tests)

    def record(self, name: str) -> Path:
        return self.records / f"{name}.json"

    def distilled(self, student: str) -> Path:
        """Where the weights of a distilled student are, if they are."""
        return self.weights / f"{student}-distilled.safetensors"

    @property
    def weights(self) -> Path:
        """The folder of the pair's."""
        return Path(self.models.get("student_weights", "weights/student.safetensors")).parent


def measure_all(
    place: Place, until: float = float("inf"), only: tuple[str, ...] = (), parts: tuple[str, ...] = ()
) -> None:
    """What has no record of every row and seed, a part of the table after another; nothing begins after `until`
    (time.monotonic)."""
    wanted, changed = (
        [row for row in rows(place.budget) if not only or row.name in only] for rows in (all_rows, ablation_rows)
    )
    here = [row for row in wanted if row.distilled is None or place.distilled(row.distilled).exists()]
    for row in wanted:
        if row not in here:
            place.say(
                f"{row.name}: left out, its student is not there; to make it: python -m "
                f"cdl_deploy.training.recipes.public_backbone --out {place.weights} --student {row.distilled} "
                "--distil IMAGES"
            )
    for part in parts or PARTS:
        for work in PARTS[part](place, changed if part == "ablation" else here):
            if time.monotonic() > until:
                place.say("out of time: the same command goes on")
                return
            work()


def row_work(place: Place, rows: list[Row]) -> Iterator[Callable[[], None]]:
    """Runs, and their records under the head they were trained with."""
    for row in rows:
        for seed in place.budget.seeds:
            root = place.runs / f"{row.name}-{seed}"
            missing = not place.record(f"{row.name}-{row.own_head}-{seed}").exists()
            trained = root.with_suffix(".times.json").exists()
            if missing or (not trained and any(other.teacher_of == row.name for other in rows)):
                yield partial(train, place, row, seed, root)
            if missing:
                yield partial(keep_head, place, row, row.own_head, seed, root)


def head_work(place: Place, rows: list[Row]) -> Iterator[Callable[[], None]]:
    """The other heads of the runs that are here."""
    for row in sorted(rows, key=lambda row: row.method == "none"):
        for seed in place.budget.seeds:
            root = place.runs / f"{row.name}-{seed}"
            for head in row.heads[1:]:
                if root.with_suffix(".times.json").exists() and not place.record(f"{row.name}-{head}-{seed}").exists():
                    yield partial(keep_head, place, row, head, seed, root)


def joint_work(place: Place, rows: list[Row]) -> Iterator[Callable[[], None]]:
    """The upper bound, of student and teacher."""
    for role in ("student", "teacher"):
        if not place.record(f"{JOINT}-{role}").exists():
            yield partial(joint, place, role)


def file_work(place: Place, rows: list[Row], small: bool) -> Iterator[Callable[[], None]]:
    """Exported students, in fp32 or in int8 with the teacher beside it, of the runs that are here."""
    for row in rows:
        for seed in place.budget.seeds:
            for head in row.heads:
                name = f"{row.name}-{head}-{seed}"
                if not place.record(name).exists():
                    continue
                files = json.loads(place.record(name).read_text()).get("files", {})
                run = place.runs / (f"{row.name}-{seed}" if head == row.own_head else name)
                if ("student.int8" if small else "student") not in files and run.exists():
                    yield partial(keep_files, place, row, name, run, small)


PARTS: dict[str, Callable[[Place, list[Row]], Iterator[Callable[[], None]]]] = {
    "rows": row_work,
    "heads": head_work,
    "joint": joint_work,
    "files": partial(file_work, small=False),
    "ablation": row_work,
    "small files": partial(file_work, small=True),
}
"""Of the table, in the order in which they are worth their time."""


@contextmanager
def clock(into: dict[str, Any]) -> Iterator[None]:
    """Seconds of the wall clock, and of the processor, which another process's load does not lengthen."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    into["seconds"] = round(time.perf_counter() - wall, 1)
    into["processor_seconds"] = round(time.process_time() - processor, 1)


def options_of(place: Place, row: Row, seed: int) -> dict[str, Any]:
    """What `cdl_deploy.train` is told."""
    budget = place.budget
    own = {"head": "learned"} if row.own_head == "learned" else HEADS[row.own_head]
    common = {
        "tasks": place.budget.tasks,
        "seed": seed,
        "epochs": budget.epochs,
        **own,
        **place.models,
        **dict(budget.options),
    }
    if row.cut:
        blocks, size = row.cut
        whole = {"student": common["teacher"], "student_weights": common["teacher_weights"]}
        common |= {**whole, "student_blocks": blocks, "image_size": size}
    if row.own_head == "slda-early":
        common |= row.earlier
    if row.distilled:
        file = place.distilled(row.distilled)
        own_size = json.loads(file.with_suffix(".json").read_text())["image_size"]
        common |= {"student": row.distilled, "student_weights": str(file), "image_size": own_size}
    if not row.has_teacher:
        common = {name: value for name, value in common.items() if not name.startswith("teacher")}
    if row.frozen:
        return {**common, "method": "none", "distill": "none", **row.options}
    if budget.views:
        common["cache_views"] = budget.views
    if row.teacher_of is not None:
        common["teacher_run"] = str(place.runs / f"{row.teacher_of}-{seed}")
    return {**common, "method": row.method, "distill": row.distill, "adapt": row.adapt, **row.options}


def train(place: Place, row: Row, seed: int, root: Path) -> None:
    """The run of a row, from where it was interrupted if it was."""
    import cdl_deploy
    from cdl_deploy.run.record import read_record

    times = root.with_suffix(".times.json")
    if (root / "run.json").exists() and read_record(root).finished and times.exists():
        return
    place.say(f"{root.name}: training")
    spent: dict[str, Any] = {}
    with clock(spent):
        if (root / "run.json").exists():
            spent["resumed"] = True  # what an earlier process spent is not in these seconds
            cdl_deploy.train(root, resume=True)
        else:
            shutil.rmtree(root, ignore_errors=True)
            options = options_of(place, row, seed)
            cdl_deploy.train(place.row_data, out=root, **options)
    write_json(times, spent)
    place.say(f"{root.name}: trained, {spent}")


def keep_head(place: Place, row: Row, head: str, seed: int, root: Path) -> None:
    """The record of a row under one head: the run's figures, and those of its exported files."""
    from cdl_deploy.run.record import read_record
    from cdl_deploy.training.revisions import new_heads

    name = f"{row.name}-{head}-{seed}"
    run, spent = root, json.loads(root.with_suffix(".times.json").read_text())
    if head != row.own_head:
        run, times = place.runs / name, place.runs / f"{name}.times.json"
        if not times.exists():
            shutil.rmtree(run, ignore_errors=True)
            spent = {}
            with clock(spent):
                new_heads(root, run, row.told(head))
            write_json(times, spent)
        spent = json.loads(times.read_text())
    record = read_record(run)
    figures: dict[str, Any] = {
        "row": row.name, "method": row.method, "distillation": row.distill, "adapt": row.adapt, "head": head,
        "seed": seed, "data": place.data.name, "budget": place.budget.about, "training": spent,
        "stage_seconds": stage_seconds(record), "teacher_taken": row.teacher_of, "changed": row.options,
        "backbones": {
            role: {key: getattr(info, key) for key in ("model", "sha256", "parameters")}
            for role, info in record.backbones.items()
        },
        **about_here(),
    }  # fmt: skip
    for role, matrix in record.matrices.items():
        figures[role] = {key: round(getattr(record.results(role), key), 3) for key in METRICS}
        figures[role]["accuracy_matrix"] = [[round(value, 2) for value in line] for line in matrix]
    write_json(place.record(name), figures)
    place.say(f"{name}: {[figures[role][METRICS[0]] for role in record.matrices]}")


def keep_files(place: Place, row: Row, name: str, run: Path, small: bool) -> None:
    """Files of a run, into its record."""
    found = files_of(place, run, small, small and row.has_teacher and row.teacher_of is None)
    figures = json.loads(place.record(name).read_text())
    figures["files"] = {**figures.get("files", {}), **found}
    write_json(place.record(name), figures)
    place.say(f"{name}: { {file: entry['accuracy'] for file, entry in found.items()} }")


def files_of(place: Place, run: Path, small: bool, teacher: bool) -> dict[str, Any]:
    """Export the student, or its int8 file and the teacher, and measure what each weighs and gets right.

    The files stay beside the run: `latency` measures all of them together, on a quiet machine.
    """
    import torch

    import cdl_deploy
    from cdl_deploy.export import ExportOptions, Shrink, export_run

    out = run.with_suffix(".small" if small else ".files")
    shutil.rmtree(out, ignore_errors=True)
    # What int8 loses is shown, so nothing is kept from it.
    shrink = Shrink(("int8",), max_drop=100) if small else Shrink()
    export_run(run, out, ExportOptions(teacher=teacher, shrink=shrink, latency=False))
    found = {}
    for file in sorted(out.glob("*.onnx")):
        if small and file.stem == "student":
            continue
        evaluation = cdl_deploy.evaluate(file, place.final_data, threads=torch.get_num_threads())
        found[file.stem] = {
            "accuracy": round(evaluation.accuracy, 3),
            "images": evaluation.images,
            "bytes": file.stat().st_size,
        }
    return found


def stage_seconds(record: Any) -> dict[str, int]:
    """What the tasks of a run took by the wall clock: learning by role, and evaluation after each."""
    names = dict.fromkeys(name for task in record.tasks for name in task.seconds)
    return {name: round(sum(task.seconds.get(name, 0) for task in record.tasks)) for name in names}


def about_here() -> dict[str, Any]:
    """Commit, machine and versions."""
    import torch

    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, shared; "
    machine += f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    return {
        "commit": done.stdout.strip(),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else machine,
        "processor": describe_machine().processor,
        "versions": {name: version(name) for name in ("torch", "timm", "numpy", "onnxruntime")},
    }


def joint(place: Place, role: str) -> None:
    """Logistic regression on the frozen features of all classes at once."""
    import numpy as np
    import torch

    from benchmarks.heads_photographs import joint_probe
    from cdl_deploy.data.preprocessing import ResizeCrop
    from cdl_deploy.data.sources import open_source
    from cdl_deploy.training.recipes.backbone_probes import extract
    from cdl_deploy.training.recipes.public_backbone import read_backbone

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone, about = read_backbone(Path(place.models[f"{role}_weights"]), device)
    resize = ResizeCrop.square(about["image_size"], about["image_size"], "bicubic")
    few = open_source(str(place.row_data), None, skip_bad=False).train
    tests = open_source(str(place.final_data), None, skip_bad=False).test
    pairs = []
    for images in (few, tests):
        found = extract(backbone, images, resize)
        pairs.append((np.concatenate([found["class"], found["patches"]], axis=1), images.labels))
    figures: dict[str, Any] = {
        "row": JOINT, "role": role, "features": "class+patches", **joint_probe(*pairs), "images": len(tests.labels),
        "budget": place.budget.about, "data": place.data.name, **about_here(),
    }  # fmt: skip
    write_json(place.record(f"{JOINT}-{role}"), figures)
    place.say(f"{JOINT}-{role}: {figures['accuracy']}")
