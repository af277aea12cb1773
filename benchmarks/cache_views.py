"""`--cache-views`: the student's stage from the second epoch on, from what is kept, against training without it.

    python benchmarks/cache_views.py                      # about 4 minutes on 2 cores
    python benchmarks/cache_views.py --query block:4
    python benchmarks/cache_views.py --part digits        # accuracy with and without, 3 seeds: about an hour

* speed: ViT-B/16 teacher and ViT-S/16 student at 224, random weights, CODA and KDP, in the second of two tasks with ten
  classes each; synthetic JPEGs, decoded and cropped in every step without a cache. Both ways are processes of their own
  that take their steps by turns in random order; medians, of wall-clock and, since other work may share the cores, of
  CPU seconds. The cached way first computes a view, which is the first epoch's part of the work and is said apart; its
  steps read their rows from the files that `cdl train` writes. Exits 1 where the bar of 2.5 is missed.
* digits: the command of `make demo`, and the same with a learned head, which trains in every task and not in the first
  alone: each without and with some numbers of views, over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks import training_step  # noqa: E402  found once the line above has run
from benchmarks.training_step import describe_machine, make_pair, say  # noqa: E402
from cdl_deploy.run.config import MethodConfig, OptimConfig, RunConfig  # noqa: E402
from cdl_deploy.run.record import RunRecord  # noqa: E402
from cdl_deploy.run.record_parts import RecordedPreprocessing, TaskPlan  # noqa: E402
from cdl_deploy.training.cached_views import with_cached_views  # noqa: E402
from cdl_deploy.training.context import Run, Task, images_to_learn  # noqa: E402
from cdl_deploy.training.data.loading import Batch  # noqa: E402
from cdl_deploy.training.data.task_data import TaskImages  # noqa: E402
from cdl_deploy.training.machine import in_precision  # noqa: E402
from cdl_deploy.training.preparation import never  # noqa: E402
from cdl_deploy.training.processes import Processes  # noqa: E402
from cdl_deploy.training.progress import Progress, Stage  # noqa: E402
from cdl_deploy.training.run_directory import RunDirectory  # noqa: E402
from cdl_deploy.training.step import make_optimizer, take_step  # noqa: E402

CLASSES, BAR = 10, 2.5
WITHOUT, CACHED = "without", "--cache-views 1"
DIGITS = ["--data", "digits", "--tasks", "5", "--method", "coda", "--distill", "kdp", "--device", "cpu", "--epochs"]


# ---- a process that takes steps --------------------------------------------------------------------------------------


class Stepper:
    """The student's stage of a task, one step at a time, as `learn_epoch` takes them."""

    def __init__(self, way: str, query: str, images: list[str], batch: int, threads: int, folder: str) -> None:
        torch.set_num_threads(threads)
        self.pair = make_pair(query, 2, CLASSES, "cpu")
        names = [str(number) for number in range(2 * CLASSES)]
        optim = OptimConfig(device="cpu", precision="fp32", workers=0, batch_size=batch, cache_views=int(way == CACHED))
        record = RunRecord(
            config=RunConfig(method=MethodConfig(query=query), optim=optim),
            preprocessing=RecordedPreprocessing(224, 248, "bicubic", "photo"),
            backbones={},
            plans=[TaskPlan(tuple(names[:CLASSES]), "photos"), TaskPlan(tuple(names[CLASSES:]), "photos")],
        )
        processes = Processes(torch.device("cpu"))
        run = Run(RunDirectory(Path(folder)), record, self.pair, {}, processes, Progress(), never)
        learned = TaskImages([Path(name) for name in images], [CLASSES + i % CLASSES for i in range(len(images))])
        task = Task(2, record.plans[1], optim, learned, learned, TaskImages([], []))
        stage = Stage(2, 2, "student", optim.epochs, len(images), batch)
        self.images = with_cached_views(run, task, stage, images_to_learn(run, task, "student"))
        self.batch, self.processes = batch, processes
        self.optimizer = make_optimizer(self.pair.student, 1e-3)
        self.batches = self.endless()
        self.stack = ExitStack()  # as long as the process lives
        self.stack.enter_context(in_precision(self.pair, "fp32"))

    def endless(self) -> Iterator[tuple[Batch, torch.Tensor]]:
        """Batches of one epoch after another."""
        for epoch in count():
            yield from self.images.batches(self.batch, 0, (2, "student", epoch))

    def step(self) -> None:
        """One step on the next batch. Of the way with a cache, the first one computes the view of all images."""
        batch, labels = next(self.batches)
        take_step(self.pair, "student", self.optimizer, batch, labels, self.processes, len(labels))


def work(task: dict[str, Any]) -> None:
    """Answer every line on standard input with the seconds and CPU seconds of a step."""
    stepper = Stepper(**task)
    say({"ready": True})
    for _ in sys.stdin:
        began, cpu = time.perf_counter(), time.process_time()
        stepper.step()
        say({"wall": time.perf_counter() - began, "CPU": time.process_time() - cpu})


class Worker(training_step.Worker):
    """Such a process, from outside."""

    script = __file__


# ---- what is measured ------------------------------------------------------------------------------------------------


def write_photos(folder: Path, images: int) -> list[str]:
    """Noise in large spots, as JPEGs of about the size of ImageNet's."""
    rng, names = np.random.default_rng(0), []
    for number in range(images):
        spots = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        spots.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
        names.append(str(folder / f"{number}.jpg"))
    return names


def compare_speed(query: str, images: int, batch: int, rounds: int, threads: int) -> bool:
    """Print images/s of both ways; whether the bar is reached."""
    order, rng = [WITHOUT, CACHED], random.Random(0)
    with tempfile.TemporaryDirectory(prefix="cdl-views-") as name, ExitStack() as stack:
        folder = Path(name)
        common = {"query": query, "images": write_photos(folder, images), "batch": batch, "threads": threads}
        workers = {
            way: stack.enter_context(Worker(way=way, folder=str(folder / str(index)), **common))
            for index, way in enumerate(order)
        }
        first = {way: worker.ask() for way, worker in workers.items()}  # the cached one computes a view here
        for _ in range(-(-images // batch) - 1):  # to the end of the first epoch
            workers[CACHED].ask()
        times: dict[str, list[dict[str, float]]] = {way: [] for way in order}
        for _ in range(rounds):
            rng.shuffle(order)
            for way in order:
                times[way].append(workers[way].ask())
        size = sum(file.stat().st_size for file in (folder / "1" / "views").iterdir())
    ratios = {}
    print(f"student's stage, --query {query}, batch {batch}, {images} images, medians of {rounds} steps by turns")
    for clock in ("wall", "CPU"):
        medians = {way: median(step[clock] for step in steps) for way, steps in times.items()}
        ratios[clock] = medians[WITHOUT] / medians[CACHED]
        for way, seconds in medians.items():
            print(f"  {clock:4} {way:15} {batch / seconds:6.2f} images/s  {seconds / batch * 1000:6.0f} ms an image")
        view = (first[CACHED][clock] - medians[CACHED]) / images * 1000
        print(f"  {clock:4} {'a view, once':15} {'':17} {view:6.0f} ms an image")
        print(f"  {clock:4} ratio from the second epoch on {ratios[clock]:.2f} (bar {BAR})")
    print(f"  {size / images / 1e3:.0f} kB on disk an image and view")
    return ratios["wall"] >= BAR


def digits(seeds: list[int], views: list[int], epochs: int, heads: list[str]) -> None:
    """Print the final average accuracy of student and teacher on the digits, mean and deviation over the seeds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    for head in heads:
        for number in views:
            found: dict[str, list[float]] = {"student": [], "teacher": []}
            seconds = []
            for seed in seeds:
                with tempfile.TemporaryDirectory(prefix="cdl-views-") as name:
                    command = [sys.executable, "-m", "cdl_deploy.cli", "train", *DIGITS, str(epochs), "--head", head]
                    command += ["--cache-views", str(number), "--seed", str(seed), "--out", name, "--json"]
                    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                record = json.loads(done.stdout)
                for role, values in found.items():
                    values.append(record[role]["final_average_accuracy"])
                seconds.append(sum(task["seconds"].get("student", 0.0) for task in record["tasks"]))
            figures = ", ".join(
                f"{role} {mean(values):.1f} ± {stdev(values) if len(values) > 1 else 0:.1f} %"
                f" ({' '.join(f'{value:.1f}' for value in values)})"
                for role, values in found.items()
            )
            stage = f"student's stages {median(seconds):.0f} s"
            print(f"  --head {head}, --epochs {epochs}, --cache-views {number}: {figures}; {stage}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("speed", "digits"), default="speed")
    parser.add_argument("--query", default="full", help="full or block:4")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seeds", default="0,1,2", help="of the digits")
    parser.add_argument("--views", default="0,1,2,4", help="of the digits")
    parser.add_argument("--heads", default="slda,learned", help="of the digits")
    parser.add_argument("--epochs", type=int, default=5, help="of the digits")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.worker:
        work(json.loads(a.worker))
        return
    print(", ".join(f"{key} {value}" for key, value in describe_machine("cpu", a.threads).items()), flush=True)
    if a.part == "digits":
        seeds, views = ([int(number) for number in text.split(",")] for text in (a.seeds, a.views))
        digits(seeds, views, a.epochs, a.heads.split(","))
    elif not compare_speed(a.query, a.images, a.batch, a.rounds, a.threads):
        sys.exit("the bar is missed")


if __name__ == "__main__":
    main()
