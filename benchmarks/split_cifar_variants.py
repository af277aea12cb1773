"""Why KDP does what it does on Split CIFAR-100, and what might do better: one thing changed at a time.

    python benchmarks/split_cifar_variants.py train --data data/cifar100 --weights weights --runs runs --seeds 0
    python benchmarks/split_cifar_variants.py answers --runs runs --jobs 2

`train` trains CODA + KDP students with one option changed, each against the same teacher as the run `coda-kd-SEED` that
`split_cifar.py run --runs` left in the folder. `answers` trains nothing: it takes the runs in the folder after each of
their tasks and asks how they answer with another α of the prediction, and calibrated between tasks, which is what `cdl
train --calibration statistics` does once a task is learned. Records go to docs/results/variants and
docs/results/answers, or into the folder that `--records` names; `split_cifar_report.py` makes the page. What has a
record is left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.split_cifar import METHODS, RESULTS, STUDENT_OF, Setup, commit, keep, machine, train  # noqa: E402

ABLATION = {
    "alpha-0.25": ("--alpha", "0.25"),
    "alpha-0.75": ("--alpha", "0.75"),
    "head-only": ("--kd-token-start", "none", "--kd-prompt-length", "0"),
    "token-only": ("--kd-prompt-length", "0"),
    "length-12": ("--kd-prompt-length", "6"),
    "depth-2": ("--kd-prompt-blocks", "2"),
    "as-published": ("--kd-token-start", "uniform", "--kd-lr-scale", "1"),
}
"""What KDP is made of: α, the extra head, the token, the length and depth of the prompts."""

CANDIDATES = {
    "all-seen": ("--kd-classes", "seen"),
    "cosine": ("--student-head", "cosine"),
    "alpha-by-task": ("--alpha-holdout", "0.1"),
    "orthogonal": ("--kd-prompt-start", "orthogonal"),
    "scaled": ("--kd-prompt-scale", "0.1"),
    "block-1": ("--query", "block:1", "--query-regulariser", "1"),
    "block-4": ("--query", "block:4", "--query-regulariser", "1"),
}
"""What might do better than the paper; `answers` measures calibration, which needs no training."""
CANDIDATES["combined"] = (*CANDIDATES["block-1"], *CANDIDATES["cosine"], *CANDIDATES["all-seen"])

TEACHERS = {"block-1": None, "block-4": None, "combined": "block-1"}
"""Where the query moves, the teacher's does as well: it is taught anew, or another variant's. Others: `coda-kd`'s."""

TOO_DEEP = {"vit_192x9_patch8_32": {"block-4"}}
"""CODA's prompts are in five blocks, from the query's on: a student of six blocks has no fourth to ask."""

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""α of the prediction."""


def train_variant(setup: Setup, runs: Path, records: Path, name: str, seed: int) -> None:
    """One student, and its record."""
    file = records / "variants" / f"{name}-{seed}.json"
    if file.exists():
        return
    own = replace(setup, options=(*setup.options, *{**ABLATION, **CANDIDATES}[name]))
    teacher = TEACHERS.get(name, "coda-kd")
    lent = runs / f"{teacher}-{seed}"
    teacher_run = lent if teacher and lent.exists() else None
    record, seconds = train(own, "coda", "kdp", seed, runs / f"{name}-{seed}", teacher_run)
    keep(own, file, "coda", "kdp", seed, record, seconds)


def answers_of(root: Path) -> dict[str, dict[str, list[float]]]:
    """By how a run's student answers (as trained, calibrated, and with every α there is): its accuracy on each task
    right after that task (`diagonal`), and on each after the last (`last`)."""
    import torch

    from cdl_deploy.training.checkpoint import load_run
    from cdl_deploy.training.data.task_data import TaskData, TaskImages
    from cdl_deploy.training.data.transforms import evaluation_transform
    from cdl_deploy.training.distillation.extra_token import ExtraToken, mixed
    from cdl_deploy.training.evaluation import evaluation_batches, fit_prediction_head
    from cdl_deploy.training.models.calibration import TaskCalibration
    from cdl_deploy.training.models.learner import learner_output
    from cdl_deploy.training.processes import Processes
    from cdl_deploy.training.run_directory import RunDirectory

    directory = RunDirectory(root)
    whole = directory.read_record()
    data = TaskData(whole.plans, whole.tasks, {}, directory.load_heldout, whole.skipped_images)
    transform = evaluation_transform(whole.preprocessing.resize_crop)
    calibration, found = TaskCalibration(), dict[str, dict[str, list[float]]]()
    for number, plan in enumerate(whole.plans, start=1):
        _, pair = load_run(root, after=number)
        student = pair.student
        student.calibration = calibration
        calibration.begin_task(len(plan.classes))
        images = data.kept_training(number)
        if images is None:
            raise SystemExit(f"the images of task {number} of {root} are gone: {plan.data}")
        fit_prediction_head(pair, images, TaskImages([], []), transform, whole.config.optim.seed, 0)
        for task in range(1 if number == len(whole.plans) else number, number + 1):
            tests, right = data.test(task), dict[str, int]()
            for pixels, labels in evaluation_batches(tests, transform, 0, Processes(torch.device("cpu"))):
                with torch.no_grad():
                    output = learner_output(pair.encoder, student, pixels)
                raw = student.uncalibrated(output)
                answers = {"as trained": raw, "calibrated": calibration(raw)}
                if isinstance(student.distillation, ExtraToken):
                    for share in SHARES:
                        answers[f"alpha {share:g}"] = mixed(output.class_logits, output.extra_logits, share)
                for name, logits in answers.items():
                    right[name] = right.get(name, 0) + int((logits.argmax(dim=1) == labels).sum())
            for name, count in right.items():
                accuracy, rows = round(100 * count / len(tests.labels), 2), found.setdefault(name, {})
                if task == number:
                    rows.setdefault("diagonal", []).append(accuracy)
                if number == len(whole.plans):
                    rows.setdefault("last", []).append(accuracy)
    return found


def answer(root: Path, records: Path) -> None:
    """The record of a run's answers, written by a process of its own."""
    began = time.perf_counter()
    found = answers_of(root)
    record: dict[str, Any] = {
        "run": root.name,
        "commit": commit(),
        "machine": machine(),
        "seconds": round(time.perf_counter() - began),
        "answers": {
            name: {
                "final_average_accuracy": round(mean(rows["last"]), 3),
                "forgetting": round(mean(a - b for a, b in zip(rows["diagonal"], rows["last"], strict=True)), 3),
                **rows,
            }
            for name, rows in found.items()
        },
    }
    (records / "answers" / f"{root.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    accuracies = {name: figures["final_average_accuracy"] for name, figures in record["answers"].items()}
    print(f"{root.name}: {accuracies}", file=sys.stderr, flush=True)


def answer_in_process(root: Path, records: Path, threads: int | None) -> None:
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    command = [sys.executable, __file__, "answers", "--run", str(root), "--records", str(records)]
    subprocess.run(command, env=environment, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    trained = commands.add_parser("train", help="students with one option changed")
    trained.add_argument("--data", type=Path, required=True)
    trained.add_argument("--weights", type=Path, required=True)
    trained.add_argument("--teacher", choices=STUDENT_OF, default="vit_small_patch4_32")
    trained.add_argument("--only", nargs="+", choices=[*ABLATION, *CANDIDATES], help="default: all")
    trained.add_argument("--seeds", default="0,1,2")
    trained.add_argument("--epochs", type=int, default=20)
    answered = commands.add_parser("answers", help="the runs in the folder with other answers")
    answered.add_argument("--run", type=Path, help="this run alone, here")
    answered.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    for command in (trained, answered):
        command.add_argument("--runs", type=Path, help="where split_cifar.py --runs left its runs")
        command.add_argument("--records", type=Path, default=RESULTS, help="folder of the records (docs/results)")
        command.add_argument("--jobs", type=int, default=1)
        command.add_argument("--threads", type=int, help="CPU threads of each")
    given = parser.parse_args()
    for folder in ("variants", "answers"):
        (given.records / folder).mkdir(parents=True, exist_ok=True)
    if given.what == "answers" and given.run:
        answer(given.run, given.records)
        return
    if given.runs is None:
        parser.error("--runs is missing: the folder of split_cifar.py run --runs")
    with ThreadPoolExecutor(given.jobs) as pool:
        if given.what == "answers":
            roots = sorted(path for method in given.methods for path in given.runs.glob(f"{method}-*-[0-9]"))
            left = [path for path in roots if not (given.records / "answers" / f"{path.name}.json").exists()]
            list(pool.map(lambda root: answer_in_process(root, given.records, given.threads), left))
            return
        setup = Setup(given.data, given.weights, given.teacher, given.epochs, (), given.threads)
        possible = [n for n in (*CANDIDATES, *ABLATION) if n not in TOO_DEEP.get(given.teacher, ())]
        work = [(name, int(seed)) for seed in given.seeds.split(",") for name in given.only or possible]
        list(pool.map(lambda item: train_variant(setup, given.runs, given.records, *item), work))


if __name__ == "__main__":
    main()
