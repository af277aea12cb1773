"""The table of docs/results.md: every method with every distillation and head on photographs, and what it costs.

    python -m benchmarks.evidence start --budget shortest      in the background; says what, how long, and where the log is
    python -m benchmarks.evidence run --budget full --minutes 15
    python -m benchmarks.evidence latency --budget shortest    when the machine is quiet: all exported files together
    python -m benchmarks.evidence report                       docs/results.md and its picture from the records

`run` measures what has no record in docs/results/evidence/BUDGET yet. Needs the pair of
`python -m cdl_deploy.training.recipes.public_backbone --out weights` and Split CIFAR-100 as an image folder.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent

from benchmarks.evidence.budget import BUDGETS  # noqa: E402
from benchmarks.evidence.measure import PARTS, Place, measure_all  # noqa: E402

MODELS = {"teacher": "vit_small_patch14_dinov2", "student": "vit_384x6_patch14_98"}
RECORDS = PROJECT / "docs" / "results" / "evidence"


def place_of(given: argparse.Namespace) -> Place:
    """Where the rows of the command line live."""
    models = {
        **MODELS,
        "image_size": 98,
        **{f"{role}_weights": str(given.weights / f"{role}.safetensors") for role in MODELS},
    }
    return Place(
        given.data, given.runs / given.budget, RECORDS / given.budget, BUDGETS[given.budget], models,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    run = commands.add_parser("run")
    run.add_argument("--minutes", type=float, help="begin nothing new after this long")
    run.add_argument("--only", nargs="+", default=[], help="rows, such as coda-kdp-first")
    run.add_argument("--budget", choices=BUDGETS, default="shortest")
    run.add_argument("--data", type=Path, default=Path("data/cifar100"))
    run.add_argument("--weights", type=Path, default=Path("weights"))
    run.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    run.add_argument("--parts", nargs="+", choices=PARTS, default=[])
    given = parser.parse_args()
    until = time.monotonic() + 60 * given.minutes if given.minutes else float("inf")
    measure_all(place_of(given), until, tuple(given.only), tuple(given.parts))


if __name__ == "__main__":
    main()
