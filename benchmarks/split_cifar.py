"""Split CIFAR-100, the paper's benchmark, with backbones of our own at 32x32: every method with every distillation.

    python benchmarks/split_cifar.py --data data/cifar100 --weights weights --runs runs --seeds 0,1,2 --jobs 4
    python benchmarks/split_cifar_report.py

Trains whatever has no record yet, each run by `cdl train`, and keeps its figures in docs/results/, of which
split_cifar_report.py makes the page. Interrupted, it goes on where it stopped. `--weights`: the folder that
training/recipes/pretrain_photos.py wrote. `--grid small` is what two CPU cores can do in an hour: CODA and L2P with
none, kd and kdp, few epochs; `--grid coda` is its half. The teacher does not depend on the distillation: the first run
of a method and a seed teaches it, the others take it over (`--teacher-run`). `--runs` keeps the run directories, which
split_cifar_variants.py and split_cifar_cost.py need. `--records` keeps the figures elsewhere: those of a longer
schedule (docs/results/longer, a section of the page), or a second time those that are there, to compare them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from cdl_deploy.run.record import RunRecord, read_record  # noqa: E402

RESULTS = PROJECT / "docs" / "results"
METHODS = ("coda", "l2p", "dualprompt", "apt")
DISTILLATIONS = ("none", "kd", "dkd", "fitnets", "reviewkd", "deit", "kdp")
METRICS = ("final_average_accuracy", "average_incremental_accuracy", "forgetting", "forgetting_standard")
GRIDS = {
    "full": {(method, distill) for method in METHODS for distill in DISTILLATIONS},
    "small": {(method, distill) for method in ("coda", "l2p") for distill in ("none", "kd", "kdp")},
    "coda": {("coda", distill) for distill in ("none", "kd", "kdp")},
}
STUDENT_OF = {"vit_small_patch4_32": "vit_tiny_patch4_32", "vit_192x9_patch8_32": "vit_128x6_patch8_32"}


@dataclass(frozen=True)
class Setup:
    """What all runs of a table have in common."""

    data: Path
    weights: Path
    teacher: str
    epochs: int
    options: tuple[str, ...]
    threads: int | None


def backbone_options(weights: Path, teacher: str) -> list[str]:
    """Of `cdl train`: a teacher and its student, from the folder of pretrain_photos.py."""
    models = {"teacher": teacher, "student": STUDENT_OF[teacher]}
    return [
        option
        for role, model in models.items()
        for option in (f"--{role}", model, f"--{role}-weights", str(weights / f"{model}.safetensors"))
    ]


def command(setup: Setup, method: str, distill: str, seed: int, out: Path, teacher_run: Path | None) -> list[str]:
    """The `cdl train` of one run."""
    taught = ["--teacher-run", str(teacher_run)] if teacher_run and distill != "none" else []
    return [
        "train", "--data", str(setup.data), "--tasks", "10", "--method", method, "--distill", distill,
        *backbone_options(setup.weights, setup.teacher), "--epochs", str(setup.epochs), "--seed", str(seed), *taught,
        *setup.options, "--out", str(out),
    ]  # fmt: skip


def train_all(setup: Setup, method: str, distillations: list[str], seed: int, folder: Path, records: Path) -> None:
    """The runs of a method and a seed, one after another: the first that has a teacher lends it to the others."""
    teacher_run: Path | None = None
    for distill in distillations:
        file = records / f"{method}-{distill}-{seed}.json"
        out = folder / file.stem
        if not file.exists():
            keep(setup, file, method, distill, seed, *train(setup, method, distill, seed, out, teacher_run))
        if distill != "none" and teacher_run is None and out.exists():
            teacher_run = out


def train(
    setup: Setup, method: str, distill: str, seed: int, out: Path, teacher_run: Path | None
) -> tuple[RunRecord, float]:
    """One run, from where it was interrupted if it was; its record and the seconds spent here."""
    began = time.perf_counter()
    environment = dict(os.environ)
    if setup.threads:
        environment["OMP_NUM_THREADS"] = str(setup.threads)
    if (out / "run.json").exists():
        arguments = ["train", str(out), "--resume"]
    else:
        arguments = command(setup, method, distill, seed, out, teacher_run)
    done = subprocess.run(
        [sys.executable, "-m", "cdl_deploy", *arguments], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{out.name}: {done.stderr}")
    return read_record(out), time.perf_counter() - began


def keep(setup: Setup, file: Path, method: str, distill: str, seed: int, record: RunRecord, seconds: float) -> None:
    """A run's figures, into a record."""
    figures: dict[str, Any] = {
        "method": method,
        "distillation": distill,
        "seed": seed,
        "epochs": setup.epochs,
        "options": list(setup.options),
        "teacher_taken": record.config.models.teacher_run is not None,
        "seconds": round(seconds),
        "stage_seconds": stage_seconds(record),
        "commit": commit(),
        "machine": machine(),
        "versions": {name: version(name) for name in ("torch", "timm")},
        "backbones": {
            role: {key: getattr(info, key) for key in ("model", "sha256", "parameters")}
            for role, info in record.backbones.items()
        },
    }
    for role, matrix in record.matrices.items():
        figures[role] = {key: round(getattr(record.results(role), key), 3) for key in METRICS}
        figures[role]["accuracy_matrix"] = [[round(value, 2) for value in row] for row in matrix]
    file.write_text(json.dumps(figures, indent=1) + "\n")
    accuracy = figures["student"]["final_average_accuracy"]
    print(f"{file.stem}: student {accuracy:.2f} %, {figures['seconds']} s", file=sys.stderr, flush=True)


def stage_seconds(record: RunRecord) -> dict[str, int]:
    """What the tasks of a run took: learning by role, and evaluation after each."""
    names = dict.fromkeys(name for task in record.tasks for name in task.seconds)
    return {name: round(sum(task.seconds.get(name, 0) for task in record.tasks)) for name in names}


def read_records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*-*-*.json"))]


def values(records: list[dict[str, Any]], method: str, distill: str, role: str, metric: str) -> dict[int, float]:
    """A metric by seed."""
    return {
        record["seed"]: record[role][metric]
        for record in records
        if (record["method"], record["distillation"]) == (method, distill) and role in record
    }


def hashes(record: dict[str, Any]) -> dict[str, str]:
    """Of the backbones, by role, in a record of the table: they tell which pair it was."""
    return {role: info["sha256"] for role, info in record["backbones"].items()}


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True)
    return done.stdout.strip()


def machine() -> str:
    """The device in words."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, shared"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--teacher", choices=STUDENT_OF, default="vit_small_patch4_32")
    parser.add_argument("--grid", choices=GRIDS, default="full")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, help="CPU threads of each run")
    parser.add_argument("--runs", type=Path, help="keep the run directories in this folder")
    parser.add_argument("--records", type=Path, default=RESULTS, help="folder of the records (docs/results)")
    parser.add_argument("options", nargs="*", metavar="-- OPTIONS", help="more options for every cdl train")
    given = parser.parse_args()
    given.records.mkdir(parents=True, exist_ok=True)
    setup = Setup(given.data, given.weights, given.teacher, given.epochs, tuple(given.options), given.threads)
    distillations = {m: [d for d in DISTILLATIONS if (m, d) in GRIDS[given.grid]] for m in METHODS}
    work = [(m, int(seed)) for seed in given.seeds.split(",") for m in METHODS if distillations[m]]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
        runs = given.runs or Path(folder)
        list(pool.map(lambda i: train_all(setup, i[0], distillations[i[0]], i[1], runs, given.records), work))


if __name__ == "__main__":
    main()
