"""What a training step costs: ours against the same step done the reference's way, and task 50 against task 2.

    python benchmarks/training_step.py                  # everything; about 15 minutes on 2 cores
    python benchmarks/training_step.py --part speed --role student --batch 16
    python benchmarks/training_step.py --part speed --role student --models dinov3

ViT-B/16 teacher and ViT-S/16 student at 224, random weights, CODA-Prompt and KDP, in the second of two tasks with ten
classes each. `reference_step.py` says what the reference's way is; before anything is measured, its losses and
gradients are compared with ours. Every way runs in a process of its own; their steps take turns in random order, and
medians are compared.

* speed: images/s of a teacher step and of a student step.
* memory: the highest resident memory of a whole process that takes two steps, PyTorch and both models included. On a
  GPU: the most that PyTorch had allocated there.
* task-steps: the step in task 50 against the step in task 2, with two classes a task.
* whole-tasks: a task added to a run of one task and to a run of 49: the shipped pair, 80 images of noise,
  `--task-epochs` epochs; everything from opening the run to its record, without the evaluation, which tests the classes
  of all tasks by definition.

`--precision` is ours, by default bf16 on a GPU; the reference's way is always fp32. With CUDA the share of the GPU's
matrix rate is printed: the multiplications that PyTorch counts in our step, over its time, as a share of what one large
bf16 product reaches.
Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.reference_step import (  # noqa: E402  found once the line above has run
    collect_backbone_gradients,
    reference_losses,
    reference_step,
)
from cdl_deploy.process_memory import peak_memory  # noqa: E402
from cdl_deploy.run.config import DataConfig, MethodConfig, OptimConfig, RunConfig  # noqa: E402
from cdl_deploy.training.backbones import build_backbone  # noqa: E402
from cdl_deploy.training.backbones.loading import create_vit  # noqa: E402
from cdl_deploy.training.backbones.protocol import Backbone  # noqa: E402
from cdl_deploy.training.loop import add_task, train  # noqa: E402
from cdl_deploy.training.machine import in_precision  # noqa: E402
from cdl_deploy.training.models.learner import Role  # noqa: E402
from cdl_deploy.training.models.teacher_student import TeacherStudent, build_teacher_student  # noqa: E402
from cdl_deploy.training.preparation import Addition  # noqa: E402
from cdl_deploy.training.processes import Processes  # noqa: E402
from cdl_deploy.training.step import make_optimizer, stage_losses, take_step  # noqa: E402

MODELS: dict[str, dict[Role, str]] = {
    "plain": {"teacher": "vit_base_patch16_224", "student": "vit_small_patch16_224"},
    "dinov3": {"teacher": "vit_base_patch16_dinov3", "student": "vit_small_patch16_dinov3"},
}
"""What `--models` names."""
chosen = {"models": "plain"}
ROLES: tuple[Role, ...] = ("teacher", "student")
REFERENCE, FULL, EARLY = "the reference's way", "full query", "block:4"
SPEED_BARS = {"cpu": {FULL: 1.5, EARLY: 1.9}, "cuda": {FULL: 3.0, EARLY: 3.0}}
MEMORY_BAR, TASKS_BAR = 0.6, 1.1
EARLY_TASK, LATE_TASK = 2, 50
PARTS = ("all", "agreement", "speed", "memory", "task-steps", "whole-tasks")


# ---- a process that takes steps --------------------------------------------------------------------------------------


def make_pair(query: str, tasks: int, classes: int, device: str) -> TeacherStudent:
    """Both learners in the last of `tasks` tasks, backbones and all with random values."""
    backbones: dict[Role, Backbone] = {}
    for role, name in MODELS[chosen["models"]].items():
        torch.manual_seed(0)
        backbones[role] = build_backbone(create_vit(name, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    pair = build_teacher_student(backbones, MethodConfig(query=query), seed=0)
    for _ in range(tasks):
        pair.begin_task(classes, seed=0)
    for learner in pair.learners.values():
        learner.to(device)
    return pair


class Stepper:
    """Takes steps of one learner, in one way, on the same random images."""

    def __init__(
        self, way: str, role: Role, batch: int, device: str, tasks: int, classes: int, precision: str = "fp32"
    ) -> None:
        self.way, self.role = way, role
        self.pair = make_pair(way if way == EARLY else "full", tasks, classes, device)
        self.optimizer = make_optimizer(self.pair.learners[role], 1e-3)
        torch.manual_seed(1)
        first = (tasks - 1) * classes
        self.images = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8).to(device)
        self.labels = torch.randint(first, first + classes, (batch,)).to(device)
        self.processes = Processes(torch.device(device))
        if way == REFERENCE:
            collect_backbone_gradients(self.pair)
        else:
            self.stack = ExitStack()  # as long as the process lives
            self.stack.enter_context(in_precision(self.pair, precision))

    def step(self) -> None:
        """One step."""
        if self.way == REFERENCE:
            reference_step(self.pair, self.role, self.optimizer, self.images, self.labels)
            return
        count = len(self.labels)
        take_step(self.pair, self.role, self.optimizer, self.images, self.labels, self.processes, count)


def work(task: dict[str, Any]) -> None:
    """Answer every line on standard input with the seconds of a step and the memory it took so far."""
    torch.set_num_threads(task.pop("threads"))
    device = task["device"]
    stepper = Stepper(**task)
    say({"ready": True})
    for line in sys.stdin:
        if line.strip() == "count":
            say({"operations": count_operations(stepper)})
            continue
        began = time.perf_counter()
        stepper.step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        resident = peak_memory() or 0
        say({"seconds": seconds, "bytes": torch.cuda.max_memory_allocated() if device == "cuda" else resident})


def count_operations(stepper: Stepper) -> float:
    """Floating-point operations of the matrix products of one step, by PyTorch's count."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        stepper.step()
    return float(counter.get_total_flops())


def say(value: dict[str, Any]) -> None:
    """To the process that measures."""
    print(json.dumps(value), flush=True)


class Worker:
    """Such a process, from outside."""

    script = __file__

    def __init__(self, **task: Any) -> None:
        command = [sys.executable, self.script, "--worker", json.dumps(task)]
        command += ["--models", chosen["models"]] if chosen["models"] != "plain" else []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a worker has ended: see above")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, what: str = "step") -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# ---- what is measured ------------------------------------------------------------------------------------------------


def check_agreement() -> float:
    """The largest difference, in any loss term or trained gradient, between the reference's way and ours (fp32)."""
    worst = 0.0
    for role in ROLES:
        found = []
        for way in (REFERENCE, FULL):
            stepper = Stepper(way, role, 2, "cpu", 2, 10)
            losses = reference_losses if way == REFERENCE else stage_losses
            terms = losses(stepper.pair, role, stepper.images, stepper.labels)
            torch.stack(list(terms.values())).sum().backward()
            trained = [value for group in stepper.optimizer.param_groups for value in group["params"]]
            found.append([*terms.values(), *(value.grad for value in trained)])
        for ours, theirs in zip(*found, strict=True):
            assert ours is not None and theirs is not None
            ours, theirs = ours.detach(), theirs.detach()
            worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6)))
    return worst


def compare_speed(
    role: Role, batch: int, rounds: int, device: str, threads: int, precision: str
) -> list[dict[str, Any]]:
    """Median seconds and images/s of every way; ratios over the reference's."""
    common = {"role": role, "batch": batch, "device": device, "threads": threads, "precision": precision}
    common |= {"tasks": 2, "classes": 10}
    with ExitStack() as stack:
        workers = {way: stack.enter_context(Worker(way=way, **common)) for way in (REFERENCE, FULL, EARLY)}
        seconds = take_turns(workers, rounds, warm_up=1 if device == "cpu" else 5)
        operations = {way: worker.ask("count")["operations"] for way, worker in workers.items() if device == "cuda"}
    unit = seconds[REFERENCE]
    rows = []
    for way, times in seconds.items():
        row = {
            "role": role,
            "way": way,
            "seconds": median(times),
            "images_per_second": batch / median(times),
            "ratio": median(unit) / median(times),
            "lowest_ratio": min(unit) / max(times),
        }
        if device == "cuda":
            row["matrix_rate_share"] = operations[way] / median(times) / matrix_rate() if way != REFERENCE else None
        rows.append(row)
    return rows


def take_turns(workers: dict[Any, Worker], rounds: int, warm_up: int) -> dict[Any, list[float]]:
    """Seconds of `rounds` steps of every worker, which take turns in random order."""
    order, rng = list(workers), random.Random(0)
    for _ in range(warm_up):
        for worker in workers.values():
            worker.ask()
    seconds: dict[Any, list[float]] = {key: [] for key in workers}
    for _ in range(rounds):
        rng.shuffle(order)
        for key in order:
            seconds[key].append(workers[key].ask()["seconds"])
    return seconds


def matrix_rate() -> float:
    """Operations a second of one large bf16 product on the GPU."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(12):
        torch.cuda.synchronize()
        began = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / median(times[2:])


def compare_memory(role: Role, batch: int, device: str, threads: int, precision: str) -> list[dict[str, Any]]:
    """The memory that two steps of every way take, one process after another."""
    rows: list[dict[str, Any]] = []
    for way in (REFERENCE, FULL, EARLY):
        task = {"role": role, "batch": batch, "device": device, "threads": threads, "precision": precision}
        task |= {"tasks": 2, "classes": 10}
        with Worker(way=way, **task) as worker:
            worker.ask()
            found = worker.ask()["bytes"]
        rows.append({"role": role, "way": way, "bytes": found, "ratio": found / rows[0]["bytes"] if rows else 1.0})
    return rows


def compare_task_steps(
    role: Role, batch: int, rounds: int, device: str, threads: int, precision: str
) -> dict[str, Any]:
    """The step of a learner in task 50 against task 2, with two classes a task."""
    task = {"way": FULL, "role": role, "batch": batch, "device": device, "threads": threads, "precision": precision}
    task |= {"classes": 2}
    with ExitStack() as stack:
        workers = {n: stack.enter_context(Worker(tasks=n, **task)) for n in (EARLY_TASK, LATE_TASK)}
        seconds = take_turns(workers, rounds, warm_up=1)
        memory = {number: worker.ask()["bytes"] for number, worker in workers.items()}
    return {
        "what": f"{role} step, ViT-B/16 → ViT-S/16",
        "time_ratio": median(seconds[LATE_TASK]) / median(seconds[EARLY_TASK]),
        "memory_ratio": memory[LATE_TASK] / memory[EARLY_TASK],
        "seconds": {str(number): median(times) for number, times in seconds.items()},
    }


def compare_whole_tasks(rounds: int, threads: int, epochs: int) -> dict[str, Any]:
    """A task added to a run of 1 and to a run of 49 tasks, by turns, each time to a fresh copy in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="cdl-tasks-") as name:
        folder = Path(name)
        write_noise(folder / "old", 2 * (LATE_TASK - 1))
        write_noise(folder / "new", 2, first=2 * (LATE_TASK - 1))
        runs = {EARLY_TASK: folder / "one", LATE_TASK: folder / "many"}
        for number, run in runs.items():
            in_a_process("make", str(folder / "old"), str(run), str(number - 1), str(threads), "1")
        found: dict[int, list[dict[str, Any]]] = {number: [] for number in runs}
        order, rng = list(runs), random.Random(0)
        for _ in range(rounds):
            rng.shuffle(order)
            for number in order:
                copy = folder / "copy"
                shutil.copytree(runs[number], copy)
                found[number].append(
                    in_a_process("add", str(folder / "new"), str(copy), "0", str(threads), str(epochs))
                )
                shutil.rmtree(copy)
    seconds = {number: median(row["seconds"] for row in rows) for number, rows in found.items()}
    memory = {number: median(row["bytes"] for row in rows) for number, rows in found.items()}
    return {
        "what": "whole task, shipped pair at 32",
        "time_ratio": seconds[LATE_TASK] / seconds[EARLY_TASK],
        "memory_ratio": memory[LATE_TASK] / memory[EARLY_TASK],
        "seconds": {str(number): value for number, value in seconds.items()},
        "evaluation_seconds": {str(n): median(row["evaluation"] for row in rows) for n, rows in found.items()},
        "stages_seconds": {str(n): median(row["stages"] for row in rows) for n, rows in found.items()},
    }


def write_noise(root: Path, classes: int, first: int = 0) -> None:
    """An image folder: 40 training and 2 test images a class."""
    rng = np.random.default_rng(first)
    for number in range(first, first + classes):
        for split, count in (("train", 40), ("test", 2)):
            (root / split / f"{number:03d}").mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / f"{number:03d}" / f"{i}.png")


def in_a_process(*arguments: str) -> dict[str, Any]:
    """`whole_task` in a process of its own."""
    command = [sys.executable, __file__, "--whole-task", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def whole_task(what: str, data: str, run: str, tasks: str, threads: str, epochs: str) -> None:
    """Make a run of `tasks` tasks with one short epoch each, or add one task to it and time that."""
    torch.set_num_threads(int(threads))
    if what == "make":
        names = [f"{number:03d}" for number in range(2 * int(tasks))]
        listed = Path(f"{run}.yaml")
        listed.write_text(json.dumps([names[i : i + 2] for i in range(0, len(names), 2)]))
        optim = OptimConfig(epochs=int(epochs), batch_size=64, device="cpu")
        train(RunConfig(DataConfig(data, task_file=str(listed)), optim=optim), Path(run))
        say({})
        return
    began = time.perf_counter()
    record = add_task(Path(run), Addition(data, optim={"epochs": int(epochs), "batch_size": 16}))
    seconds = time.perf_counter() - began
    spent = record.tasks[-1].seconds
    say(
        {
            "seconds": seconds - spent["evaluation"],
            "stages": spent["teacher"] + spent["student"],
            "evaluation": spent["evaluation"],
            "bytes": peak_memory() or 0,
        }
    )


# ---- all of it -------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, default="all")
    parser.add_argument("--models", choices=tuple(MODELS), default="plain", help="ViTs at 224: augreg's, or DINOv3's")
    parser.add_argument("--role", choices=ROLES, help="one learner only")
    parser.add_argument("--batch", type=int, help="images a step for speed; default 16, and 64 on a GPU")
    parser.add_argument("--memory-batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, help="default 3, and 30 on a GPU")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="of ours; default fp32, and bf16 on a GPU")
    parser.add_argument("--task-epochs", type=int, default=OptimConfig().epochs, help="of a whole task")
    parser.add_argument("--save", type=Path, help="also write the report to this file, as JSON")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--whole-task", nargs=6, help=argparse.SUPPRESS)
    a = parser.parse_args()
    chosen["models"] = a.models
    if a.worker:
        work(json.loads(a.worker))
        return
    if a.whole_task:
        whole_task(*a.whole_task)
        return
    on_gpu = a.device == "cuda"
    batch, rounds = a.batch or (64 if on_gpu else 16), a.rounds or (30 if on_gpu else 3)
    precision = a.precision or ("bf16" if on_gpu else "fp32")
    roles: tuple[Role, ...] = (a.role,) if a.role else ROLES
    report: dict[str, Any] = {"machine": describe_machine(a.device, a.threads)}
    print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    missed = []
    if a.part in ("all", "agreement"):
        apart = report["agreement"] = check_agreement()
        print(f"losses and gradients, the reference's way against ours: at most {apart:.1e} apart (relative)")
    if a.part in ("all", "speed"):
        report["speed"] = [
            row for role in roles for row in compare_speed(role, batch, rounds, a.device, a.threads, precision)
        ]
        print(f"\nspeed, batch {batch}, {precision} against fp32, medians of {rounds} steps by turns")
        for row in report["speed"]:
            bar = SPEED_BARS[a.device].get(row["way"])
            missed += [row] if bar is not None and row["ratio"] < bar else []
            share = f", {row['matrix_rate_share']:.0%} of the matrix rate" if row.get("matrix_rate_share") else ""
            print(
                f"  {row['role']:8} {row['way']:20} {row['images_per_second']:8.2f} images/s  {row['ratio']:.2f}×"
                + (f"  (bar {bar:.1f}×){share}" if bar is not None else "")
            )
    if a.part in ("all", "memory"):
        report["memory"] = [
            row for role in roles for row in compare_memory(role, a.memory_batch, a.device, a.threads, precision)
        ]
        print(f"\npeak memory, batch {a.memory_batch}")
        for row in report["memory"]:
            unit = row["way"] == REFERENCE
            missed += [row] if not unit and row["ratio"] > MEMORY_BAR else []
            note = "" if unit else f"  (bar {MEMORY_BAR}×)"
            print(f"  {row['role']:8} {row['way']:20} {row['bytes'] / 1e6:8,.0f} MB  {row['ratio']:.2f}×{note}")
    if a.part in ("all", "task-steps"):
        small = max(1, batch // 4)
        report["tasks"] = [compare_task_steps(role, small, rounds, a.device, a.threads, precision) for role in roles]
    if a.part in ("all", "whole-tasks"):
        report["tasks"] = [
            *report.get("tasks", []),
            compare_whole_tasks(3 if on_gpu else rounds, a.threads, a.task_epochs),
        ]
    if "tasks" in report:
        print(f"\ntask {LATE_TASK} against task {EARLY_TASK}, CODA, two classes a task (bar {TASKS_BAR}×)")
        for row in report["tasks"]:
            missed += [row] if max(row["time_ratio"], row["memory_ratio"]) > TASKS_BAR else []
            print(f"  {row['what']:38} time {row['time_ratio']:.2f}×  memory {row['memory_ratio']:.2f}×")
    if a.save:
        a.save.write_text(json.dumps(report, indent=2) + "\n")
    if missed:
        print(f"\n{len(missed)} bar(s) missed")
    sys.exit(1 if missed else 0)


def describe_machine(device: str, threads: int) -> dict[str, str]:
    """What the figures depend on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True)
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "machine": torch.cuda.get_device_name() if device == "cuda" else f"{threads} threads of {names[0]}",
        "system": platform.system(),
        "torch": version("torch"),
        "timm": version("timm"),
        "commit": commit.stdout.strip(),
    }


if __name__ == "__main__":
    main()
