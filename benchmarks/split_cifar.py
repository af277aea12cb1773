"""Split CIFAR-100, the paper's benchmark, with backbones of our own at 32x32: every method with every distillation.

    python benchmarks/split_cifar.py run --data data/cifar100 --weights weights --grid full --seeds 0,1,2 --jobs 4
    python benchmarks/split_cifar.py report

`run` trains whatever has no record yet, each run by `cdl train`, and keeps its figures in docs/results/. Interrupted,
it goes on where it stopped. `report` writes docs/results.md and its picture from those records alone. `--weights`: the
folder that training/recipes/pretrain_photos.py wrote. `--grid small` is what two CPU cores can do in some hours: CODA
and L2P with none, kd and kdp, few epochs. The teacher does not depend on the distillation: the first run of a method
and a seed teaches it, the others take it over (`--teacher-run`). `--runs` keeps the run directories.
"""

from __future__ import annotations

import argparse
import csv
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
from statistics import mean, stdev
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "docs" / "results"
METHODS = ("coda", "l2p", "dualprompt", "apt")
DISTILLATIONS = ("none", "kd", "dkd", "fitnets", "reviewkd", "deit", "kdp")
METRICS = ("final_average_accuracy", "average_incremental_accuracy", "forgetting", "forgetting_standard")
GRIDS = {
    "full": {(method, distill) for method in METHODS for distill in DISTILLATIONS},
    "small": {(method, distill) for method in ("coda", "l2p") for distill in ("none", "kd", "kdp")},
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


def command(setup: Setup, method: str, distill: str, seed: int, out: Path, teacher_run: Path | None) -> list[str]:
    """The `cdl train` of one run."""
    student = STUDENT_OF[setup.teacher]
    taught = ["--teacher-run", str(teacher_run)] if teacher_run and distill != "none" else []
    return [
        "train", "--data", str(setup.data), "--tasks", "10", "--method", method, "--distill", distill,
        "--teacher", setup.teacher, "--teacher-weights", str(setup.weights / f"{setup.teacher}.safetensors"),
        "--student", student, "--student-weights", str(setup.weights / f"{student}.safetensors"),
        "--epochs", str(setup.epochs), "--seed", str(seed), *taught, *setup.options, "--out", str(out), "--json",
    ]  # fmt: skip


def train_all(setup: Setup, method: str, distillations: list[str], seed: int, folder: Path) -> None:
    """The runs of a method and a seed, one after another: the first that has a teacher lends it to the others."""
    teacher_run: Path | None = None
    for distill in distillations:
        file = RESULTS / f"{method}-{distill}-{seed}.json"
        out = folder / file.stem
        if not file.exists():
            keep(setup, file, method, distill, seed, *train(setup, method, distill, seed, out, teacher_run))
        if distill != "none" and teacher_run is None and out.exists():
            teacher_run = out


def train(
    setup: Setup, method: str, distill: str, seed: int, out: Path, teacher_run: Path | None
) -> tuple[dict[str, Any], float]:
    """One run, from where it was interrupted if it was; its record and the seconds spent here."""
    began = time.perf_counter()
    environment = dict(os.environ)
    if setup.threads:
        environment["OMP_NUM_THREADS"] = str(setup.threads)
    if (out / "run.json").exists():
        arguments = ["train", str(out), "--resume", "--json"]
    else:
        arguments = command(setup, method, distill, seed, out, teacher_run)
    done = subprocess.run(
        [sys.executable, "-m", "cdl_deploy", *arguments], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{out.name}: {done.stderr}")
    return json.loads(done.stdout), time.perf_counter() - began


def keep(
    setup: Setup, file: Path, method: str, distill: str, seed: int, record: dict[str, Any], seconds: float
) -> None:
    """A run's figures, into docs/results."""
    figures: dict[str, Any] = {
        "method": method,
        "distillation": distill,
        "seed": seed,
        "epochs": setup.epochs,
        "options": list(setup.options),
        "teacher_taken": record["config"]["models"]["teacher_run"] is not None,
        "seconds": round(seconds),
        "commit": commit(),
        "machine": machine(),
        "versions": {name: version(name) for name in ("torch", "timm")},
        "backbones": {
            role: {key: info[key] for key in ("model", "sha256", "parameters")}
            for role, info in record["backbones"].items()
        },
    }
    for role in ("student", "teacher"):
        if record[role]:
            figures[role] = {key: round(record[role][key], 3) for key in METRICS}
            figures[role]["accuracy_matrix"] = [
                [round(value, 2) for value in row] for row in record[role]["accuracy_matrix"]
            ]
    file.write_text(json.dumps(figures, indent=1) + "\n")
    accuracy = figures["student"]["final_average_accuracy"]
    print(f"{file.stem}: student {accuracy:.2f} %, {figures['seconds']} s", file=sys.stderr, flush=True)


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True)
    return done.stdout.strip()


def machine() -> str:
    """The device in words."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, shared"


def read_records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*-*-*.json"))]


def read_paper(folder: Path) -> dict[tuple[str, str], float]:
    """Final average accuracy of the paper's ViT-S students (teacher ViT-B), by method and distillation."""
    with (folder / "paper.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["student"] == "vit_small"]
    return {(row["method"], row["distillation"]): float(row["final_average_accuracy"]) for row in rows}


def values(records: list[dict[str, Any]], method: str, distill: str, role: str, metric: str) -> dict[int, float]:
    """A metric by seed."""
    return {
        record["seed"]: record[role][metric]
        for record in records
        if (record["method"], record["distillation"]) == (method, distill) and role in record
    }


def spread(found: list[float]) -> str:
    """Mean ± standard deviation; a single number has none."""
    if not found:
        return "–"
    return f"{mean(found):.2f}" + (f" ± {stdev(found):.2f}" if len(found) > 1 else "")


def gain(found: dict[int, float], base: dict[int, float]) -> str:
    """Mean difference over the seeds that both have, and in how many of them it is positive."""
    shared = [found[seed] - base[seed] for seed in sorted(found.keys() & base.keys())]
    if not shared:
        return "–"
    return f"{mean(shared):+.2f} ({sum(value > 0 for value in shared)} of {len(shared)})"


def table(records: list[dict[str, Any]], paper: dict[tuple[str, str], float], method: str) -> str:
    """Markdown for one method: a line a distillation, and the teacher's."""
    lines = [
        "| | final average accuracy | over none (seeds won) | over kd (seeds won) | average incremental | forgetting, "
        "paper's | forgetting, standard | paper: accuracy | paper: over none | paper: over kd |",
        "|" + "---|" * 10,
    ]
    bases = {name: values(records, method, name, "student", METRICS[0]) for name in ("none", "kd")}
    for distill in DISTILLATIONS:
        found = values(records, method, distill, "student", METRICS[0])
        if not found:
            continue
        cells = [f"{'**kdp**' if distill == 'kdp' else distill}", spread(list(found.values()))]
        cells += ["" if distill == name else gain(found, base) for name, base in bases.items()]
        cells += [spread(list(values(records, method, distill, "student", metric).values())) for metric in METRICS[1:]]
        published = paper[method, distill]
        cells += [f"{published:.2f}"]
        cells += ["" if distill == name else f"{published - paper[method, name]:+.2f}" for name in bases]
        lines.append("| " + " | ".join(cells) + " |")
    taught = {
        metric: {
            seed: value
            for distill in DISTILLATIONS
            for seed, value in values(records, method, distill, "teacher", metric).items()
        }
        for metric in METRICS
    }
    if taught[METRICS[0]]:
        cells = ["teacher", spread(list(taught[METRICS[0]].values())), "", ""]
        cells += [spread(list(taught[metric].values())) for metric in METRICS[1:]]
        lines.append("| " + " | ".join([*cells, "", "", ""]) + " |")
    return "\n".join(lines)


def picture(records: list[dict[str, Any]], file: Path) -> None:
    """Final average accuracy of every student, a panel a method, the teacher as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [method for method in METHODS if any(record["method"] == method for record in records)]
    figure = Figure((2.2 + 2.6 * len(shown), 3.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, method in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        names = [name for name in DISTILLATIONS if values(records, method, name, "student", METRICS[0])]
        for place, name in enumerate(names):
            found = list(values(records, method, name, "student", METRICS[0]).values())
            colour = "#d55e00" if name == "kdp" else "#0072b2"
            axis.plot(found, [place] * len(found), "o", color=colour, alpha=0.5, markersize=5)
            axis.plot(mean(found), place, "|", color=colour, markersize=16, markeredgewidth=2.5)
        taught = [v for n in DISTILLATIONS for v in values(records, method, n, "teacher", METRICS[0]).values()]
        if taught:
            axis.axvline(mean(taught), color="black", linestyle="--", linewidth=1)
            axis.text(mean(taught), -0.7, "teacher ", ha="right", fontsize=8)
        axis.set_yticks(range(len(names)), names)
        axis.set(title=method, xlabel="final average accuracy (%)", ylim=(len(names) - 0.4, -1))
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(file)


def report(folder: Path) -> str:
    """docs/results.md from the records in `folder`."""
    records, paper = read_records(folder), read_paper(folder)
    if not records:
        raise SystemExit(f"no records in {folder}: python benchmarks/split_cifar.py run")
    first = records[0]
    seeds = sorted({record["seed"] for record in records})
    hours = sum(record["seconds"] for record in records) / 3600
    backbones = next(record for record in records if "teacher" in record["backbones"])["backbones"]
    about = "; ".join(
        f"{role} `{info['model']}`, {info['parameters'] / 1e6:.1f} M parameters" for role, info in backbones.items()
    )
    commits = ", ".join(sorted({record["commit"] for record in records}))
    machines = "; ".join(sorted({record["machine"] for record in records}))
    lines = [
        "# Split CIFAR-100 at 32×32",
        "",
        "Written by `python benchmarks/split_cifar.py report` from the records in [results/](results), "
        "which its `run` made.",
        "",
        f"* Ten tasks of ten classes in an order shuffled by the seed, all 10,000 test images; percent. Seeds {seeds}, "
        f"{first['epochs']} epochs a task{', ' + ' '.join(first['options']) if first['options'] else ''}.",
        f"* Backbones: {about}. The paper's are ViT-B and ViT-S at 224×224 with ImageNet weights: compare gains, not "
        "levels.",
        f"* {machines}; torch {first['versions']['torch']}, timm {first['versions']['timm']}; commit {commits}; "
        f"{hours:.1f} hours of runs in all.",
        "",
        "![accuracy of every student](results/accuracy.png)",
        "",
    ]
    for method in METHODS:
        if any(record["method"] == method for record in records):
            lines += [f"## {method}", "", table(records, paper, method), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    run = commands.add_parser("run", help="train what has no record yet")
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--weights", type=Path, required=True)
    run.add_argument("--teacher", choices=STUDENT_OF, default="vit_small_patch4_32")
    run.add_argument("--grid", choices=GRIDS, default="full")
    run.add_argument("--seeds", default="0,1,2")
    run.add_argument("--epochs", type=int, default=20)
    run.add_argument("--jobs", type=int, default=1)
    run.add_argument("--threads", type=int, help="CPU threads of each run")
    run.add_argument("--runs", type=Path, help="keep the run directories in this folder")
    run.add_argument("options", nargs="*", metavar="-- OPTIONS", help="more options for every cdl train")
    commands.add_parser("report", help="write docs/results.md from the records")
    given = parser.parse_args()
    if given.what == "run":
        RESULTS.mkdir(parents=True, exist_ok=True)
        setup = Setup(given.data, given.weights, given.teacher, given.epochs, tuple(given.options), given.threads)
        distillations = {m: [d for d in DISTILLATIONS if (m, d) in GRIDS[given.grid]] for m in METHODS}
        work = [(m, int(seed)) for seed in given.seeds.split(",") for m in METHODS if distillations[m]]
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
            runs = given.runs or Path(folder)
            list(pool.map(lambda item: train_all(setup, item[0], distillations[item[0]], item[1], runs), work))
        return
    text = report(RESULTS)
    picture(read_records(RESULTS), RESULTS / "accuracy.png")
    (RESULTS.parent / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
