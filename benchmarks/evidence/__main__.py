"""`make evidence`: docs/results.md's table, every method, distillation and head on photographs, and what each costs.

    python -m benchmarks.evidence start                         in the background: says what, how long, where the log is
    python -m benchmarks.evidence run --budget full --minutes 15   here and now; with a GPU, as many rows as fit
    python -m benchmarks.evidence latency                       all exported files together, when the machine is quiet
    python -m benchmarks.evidence drawings --data data/drawings    make the second set of images
    python -m benchmarks.evidence report                        docs/results.md, its picture and README's table

`run` measures what has no record in docs/results/evidence/BUDGET yet, and can be killed at any moment: the same command
goes on. `start` first fetches the pair of backbones (cdl_deploy.training.recipes.public_backbone) where it is missing.
Split CIFAR-100 must be there as an image folder (train/CLASS/…, test/CLASS/…): `--data`.

Budgets: `full`, 20 epochs and 3 seeds, is for a GPU; `short` and `shortest` are for a CPU, and the table says so;
`drawings` is the second set.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

from benchmarks.evidence.budget import BUDGETS, Budget
from benchmarks.evidence.measure import PARTS, PROJECT, Place, measure_all
from benchmarks.evidence.rows import all_rows

MODELS = {"teacher": "vit_small_patch14_dinov2", "student": "vit_384x6_patch14_98"}
RECORDS = PROJECT / "docs" / "results" / "evidence"


def place_of(given: argparse.Namespace) -> Place:
    """Where the rows of the command line live."""
    weights = {f"{role}_weights": str(given.weights / f"{role}.safetensors") for role in MODELS}
    models = {**MODELS, "image_size": 98, **weights}
    return Place(data_of(given), given.runs / given.budget, given.records / given.budget, BUDGETS[given.budget], models)


def data_of(given: argparse.Namespace) -> Path:
    """The images; SystemExit with a line where they are not there."""
    data: Path = given.data or Path("data") / ("drawings" if given.budget == "drawings" else "cifar100")
    missing = [split for split in ("train", "test") if not (data / split).is_dir()]
    if missing:
        what = "python -m benchmarks.evidence drawings makes it" if given.budget == "drawings" else (
            "lay CIFAR-100 there, a folder a class, or name its folder with --data (make evidence DATA=…)"
        )  # fmt: skip
        refuse(f"{data} has no {' and no '.join(missing)}: {what}")
    return data


def refuse(line: str) -> NoReturn:
    print(line, file=sys.stderr)
    raise SystemExit(2)


def in_words(budget: Budget) -> str:
    """What a budget measures."""
    rows = all_rows(budget)
    images = "all training images" if budget.images is None else f"{budget.images} training images a class"
    return (
        f"{sum(len(row.heads) for row in rows)} rows of {len(budget.seeds)} seed(s), {images}, {budget.epochs} epochs: "
        f"{budget.hours}"
    )


def start(given: argparse.Namespace) -> None:
    """The whole of it in the background, with low priority, in a session of its own."""
    place = place_of(given)
    place.runs.mkdir(parents=True, exist_ok=True)
    log = place.runs / "log.txt"
    own = ["--budget", given.budget, "--data", place.data, "--weights", given.weights, "--runs", given.runs]
    own += ["--records", given.records, *(["--minutes", given.minutes] if given.minutes else [])]
    command = ["nice", "-n", "19", sys.executable, "-m", "benchmarks.evidence", "run", *map(str, own)]
    with log.open("a") as out:
        child = subprocess.Popen(
            command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True, cwd=Path.cwd(),
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
        )  # fmt: skip
    print(f"Measuring the budget '{given.budget}' in the background: {in_words(place.budget)}.")
    print(f"Log: {log}. Records: {place.records}. Runs, which may be removed afterwards: {place.runs}.")
    print(
        f"To stop it: kill -- -{child.pid}. The same command goes on.\n"
        "When it is done: python -m benchmarks.evidence latency, and then report"
    )


def run(given: argparse.Namespace) -> None:
    """Whatever is missing, here."""
    place = place_of(given)
    if given.seeds:
        if unknown := set(given.seeds) - set(place.budget.seeds):
            seeds = ", ".join(map(str, place.budget.seeds))
            refuse(f"--seeds {min(unknown)} is none of the budget '{given.budget}', expected {seeds}")
        place = replace(place, budget=replace(place.budget, seeds=tuple(given.seeds)))
    until = time.monotonic() + 60 * given.minutes if given.minutes else float("inf")
    place.runs.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(place.runs / ".lock", timeout=0):
            if not (given.weights / "student.safetensors").exists():
                recipe = "cdl_deploy.training.recipes.public_backbone"
                subprocess.run([sys.executable, "-m", recipe, "--out", str(given.weights)], check=True)
            measure_all(place, until, tuple(given.only), tuple(given.parts))
    except Timeout:
        refuse(f"another process measures in {place.runs}: wait for it, or give other --runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for name, text in (("start", "in the background"), ("run", "here"), ("latency", "of all exported files")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--budget", choices=BUDGETS, default="short")
        command.add_argument("--data", type=Path, help="image folder (data/cifar100, data/drawings)")
        command.add_argument("--weights", type=Path, default=Path("weights"))
        command.add_argument("--runs", type=Path, default=Path("runs/evidence"))
        command.add_argument("--records", type=Path, default=RECORDS)
        if name == "latency":
            command.add_argument("--seconds", type=float, default=240.0)
            continue
        command.add_argument("--minutes", type=float, help="begin nothing new after this long")
        if name == "run":
            command.add_argument("--only", nargs="+", default=[], help="rows, such as coda-kdp-first")
            command.add_argument("--parts", nargs="+", choices=PARTS, default=[])
            command.add_argument("--seeds", nargs="+", type=int, help="of the budget's seeds these")
    drawn = commands.add_parser("drawings", help="make the second set of images")
    drawn.add_argument("--data", type=Path, default=Path("data/drawings"), help="folder to write (%(default)s)")
    drawn.add_argument("--package", type=Path, help="the npm package, fetched elsewhere")
    commands.add_parser("report", help="pages and pictures from the records")
    given = parser.parse_args()
    if given.what == "start":
        start(given)
    elif given.what == "run":
        run(given)
    elif given.what == "latency":
        from benchmarks.evidence.latency import measure_latency

        measure_latency(place_of(given), given.seconds)
    elif given.what == "drawings":
        from benchmarks.evidence.drawings import prepare

        prepare(given.data, given.package)
    else:
        from benchmarks.evidence.report import write

        write()


if __name__ == "__main__":
    main()
