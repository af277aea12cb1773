"""What does a closed-form head cost in a file? Latency and updates of ViT-S/16 at 224, against a learned head.

    python benchmarks/closed_form_file.py
    python benchmarks/closed_form_file.py --cases frozen --rounds 200

The weights are random; no file is faster or smaller for that. The learned head reads the same features; its file has no
outputs `features` and `distance`. After ten tasks of ten classes:

latency   one image on one thread, each file in a process of its own (two sessions in one spoil each other), in turn:
          the median of the ratios of processor time, pair by pair.
update    of one task more, `.cdlup`, in percent of the fp32 model. `first`: prompts trained in the first task alone.

Exits 1 where a ratio is above 1.01 or an update above 2.5 %.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.export_graphs import ask, start_worker  # noqa: E402
from benchmarks.random_exports import CLASSES, MODEL, Recipe, describe, random_backbone  # noqa: E402
from cdl_deploy.bench.machine import cpu_model  # noqa: E402
from cdl_deploy.closed_form.mahalanobis import mahalanobis  # noqa: E402
from cdl_deploy.export.graph import ExportGraph  # noqa: E402
from cdl_deploy.export.learned_sums import LearnedSums  # noqa: E402
from cdl_deploy.export.onnx_file import export_onnx, save_onnx  # noqa: E402
from cdl_deploy.run.config import MethodConfig  # noqa: E402
from cdl_deploy.runtime.bundle import encode_metadata  # noqa: E402
from cdl_deploy.runtime.cores import usable_cores  # noqa: E402
from cdl_deploy.training.heads.linear import LinearHead  # noqa: E402
from cdl_deploy.training.models.learner import Role  # noqa: E402
from cdl_deploy.training.models.teacher_student import build_teacher_student  # noqa: E402
from cdl_deploy.update.patch import make_update  # noqa: E402

TASKS = 10
SLOWER, UPDATE = 1.01, 2.5
"""The bars."""
CASES = {
    "frozen": ("none", "none", "first", "class+patches"),
    "CODA, first": ("coda", "none", "first", "class+patches"),
    "CODA + KDP, first": ("coda", "kdp", "first", "class+patches+kd"),
    "CODA + KDP, all": ("coda", "kdp", "all", "class+patches+kd"),
}
"""Method, distillation, adapt, features."""


def export(path: Path, case: str, tasks: int = TASKS, closed_form: bool = True) -> Path:
    """The student after `tasks` tasks of ten classes."""
    method, distill, adapt, features = CASES[case]
    head = "slda" if closed_form else "learned"
    config = MethodConfig(method=method, distill=distill, head=head, features=features if closed_form else None)
    roles: tuple[Role, ...] = ("student",) if distill == "none" else ("student", "teacher")
    pair = build_teacher_student({role: random_backbone(MODEL, seed) for seed, role in enumerate(roles)}, config, 0)
    learner = pair.student
    if not closed_form:
        learner.class_head = LinearHead(learner.backbone.width, "linear", tuple(features.split("+")))
    for number in range(tasks):
        pair.begin_task(CLASSES, 0, adapts=not closed_form or adapt == "all" or number == 0)
        learner.end_task()
    bundle = describe(pair, learner, Recipe(tasks=tasks), path, MODEL, 0)
    distance = None
    if learner.closed_form is not None:
        own, random = learner.closed_form, np.random.default_rng(0)
        count = 2 * CLASSES * tasks
        rows = random.normal(size=(count, own.width * len(own.features)))
        own.add(own.sums_of(rows, np.arange(count) % (CLASSES * tasks), None))
        own.solve()
        distance = mahalanobis(own.statistics, rounded=True)
        sums = LearnedSums(own.statistics, own.map, own.rule, rows.shape[1], distance)
        bundle = replace(bundle, features=sums.features("0" * 64))
    with torch.no_grad():
        model = export_onnx(ExportGraph(pair, learner, pixels=True, distance=distance), bundle)
    save_onnx(model, path, encode_metadata(bundle))
    return path


def latency(learned: Path, closed: Path, rounds: int) -> tuple[float, float, float]:
    """Median milliseconds of processor time of each, and the median of their ratios."""
    workers = [start_worker(path) for path in (learned, closed)]
    times: list[list[float]] = []
    try:
        for number in range(rounds):
            pair = [0.0, 0.0]
            for index in (0, 1) if number % 2 else (1, 0):
                ask(workers[index])  # fills the caches, uncounted
                pair[index] = 1e3 * ask(workers[index])
            times.append(pair)
    finally:
        for worker in workers:
            worker.communicate()
    ours, theirs = ([pair[index] for pair in times] for index in (1, 0))
    return median(theirs), median(ours), median(b / a for a, b in times)


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=60)
    asked = parser.parse_args()
    print(
        f"{cpu_model()}, {usable_cores()} cores, one thread; torch {version('torch')}, onnxruntime "
        f"{version('onnxruntime')}\n\n"
        "| | learned, ms | closed form, ms | ratio | file, MB | update, MB | of the file |\n"
        "|---|---|---|---|---|---|---|"
    )
    missed = False
    for case in asked.cases:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            learned = export(folder / "learned.onnx", case, closed_form=False)
            closed, more = (export(folder / f"{tasks}.onnx", case, tasks) for tasks in (TASKS, TASKS + 1))
            theirs, ours, ratio = latency(learned, closed, asked.rounds)
            make_update(closed, more, folder / "student.cdlup")
            size, update = (file.stat().st_size for file in (more, folder / "student.cdlup"))
        share = 100 * update / size
        missed |= ratio > SLOWER or share > UPDATE
        print(
            f"| {case} | {theirs:.1f} | {ours:.1f} | {ratio:.3f} | {size / 1e6:.1f} | {update / 1e6:.2f} | "
            f"{share:.2f} % |",
            flush=True,
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
