"""Write docs/reproduce.md: a command for every row of the paper's tables, and what it would cost on one GPU.

python tools/reproduce_doc.py           write it
python tools/reproduce_doc.py --check   exit 1 if it is out of date; a test does this

The rows are those of docs/results/paper.csv. Nothing is measured here: hours are counted operations over an assumed
rate, as the page says.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "reproduce.md"
ROWS = DOCS / "results" / "paper.csv"

RATE = 67e12
"""Multiplications and additions in fp32 a second of an NVIDIA H100 SXM, without tensor cores, by its data sheet."""
SHARE = 0.4
"""Of `RATE` that training is assumed to reach."""
TOKENS = 197
DEPTHS = {"vit_small": 12, "vit_base": 12, "vit_large": 24}
WIDTHS = {"vit_small": 384, "vit_base": 768, "vit_large": 1024}
PATCH = 16 * 16 * 3


@dataclass(frozen=True)
class DataSet:
    """What a data set has, and how long the paper learns from it."""

    title: str
    folder: str
    more: str
    """Options beside the benchmark's."""
    train: int
    test: int
    epochs: int


DATA = {
    "cifar100": DataSet("CIFAR-100", "data/cifar100", "", 50_000, 10_000, 20),
    "imagenet-r": DataSet("ImageNet-R", "data/imagenet-r", " --holdout 0.2", 24_000, 6_000, 35),
}
METHODS = {"coda": "CODA-Prompt", "dualprompt": "DualPrompt", "l2p": "L2P", "apt": "APT"}
TAUGHT = "kd"
"""The row of each method that teaches the teacher; the others take it over."""


@dataclass(frozen=True)
class Pass:
    """Floating-point operations of one image at 224 × 224 through a ViT, prompts and heads left out."""

    linear: float
    """Patches, and the matrix products with weights."""
    attention: float
    """Products of queries, keys and values."""

    @property
    def forward(self) -> float:
        """One pass."""
        return self.linear + self.attention

    @property
    def backward(self) -> float:
        """Back to the prompts. Weights are frozen: their products count once, those of attention twice."""
        return self.linear + 2 * self.attention


def vit(name: str) -> Pass:
    """Of a ViT by its size: 12·N·D² multiplications a block with weights, 2·N²·D in attention."""
    width, depth = WIDTHS[name], DEPTHS[name]
    return Pass(
        linear=2 * (depth * 12 * TOKENS * width**2 + (TOKENS - 1) * PATCH * width),
        attention=2 * depth * 2 * TOKENS**2 * width,
    )


def compared(distillation: str, student: str, teacher: str) -> float:
    """What FitNets and ReviewKD add to a step: their layers on all tokens, forward and twice as much backward."""
    width, wider = WIDTHS[student], WIDTHS[teacher]
    if distillation == "fitnets":
        return 3 * 2 * TOKENS * width * wider
    if distillation == "reviewkd":
        depth = DEPTHS[student]
        return 3 * 2 * TOKENS * ((2 * depth - 1) * width**2 + depth * width * wider)
    return 0.0


def hours(row: dict[str, str]) -> float:
    """Of one GPU, without loading images and writing checkpoints."""
    data, tasks, student = DATA[row["dataset"]], int(row["tasks"]), vit(row["student"])
    query = 0.0 if row["cl_method"] == "apt" else student.forward
    step, test = query + student.forward + student.backward, query + student.forward
    if row["teacher"]:
        teacher = vit(row["teacher"])
        step += teacher.forward + compared(row["distillation"], row["student"], row["teacher"])
        if row["distillation"] == TAUGHT:  # the teacher's own stage, and its tests
            step += query + teacher.forward + teacher.backward
            test += query + teacher.forward
    tested = data.test * (tasks + 1) / 2  # after task i the images of tasks 1 to i
    return (data.train * data.epochs * step + tested * test) / (RATE * SHARE) / 3600


def command(row: dict[str, str]) -> str:
    """As it is typed."""
    data, distillation = DATA[row["dataset"]], row["distillation"]
    size = row["student"].removeprefix("vit_")
    run = f"runs/{row['dataset']}-{size}-{row['cl_method']}"
    taken = f" --teacher-run {run}-{TAUGHT}" if row["teacher"] and distillation != TAUGHT else ""
    return (
        f"cdl train --preset paper --benchmark {row['dataset']} --data {data.folder}{data.more} "
        f"--student {row['student']} --method {row['cl_method']} --distill {distillation}{taken} "
        f"--out {run}-{distillation}"
    )


def render() -> str:
    """The whole page."""
    with ROWS.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    total = sum(map(hours, rows))
    passes = {name.removeprefix("vit_"): f"{vit(name).forward / 1e9:.1f}" for name in WIDTHS}
    facts = {"share": f"{100 * SHARE:.0f} %", "rate": f"{RATE / 1e12:.0f}", "total": f"{total:.0f}", "taught": TAUGHT}
    parts = [INTRODUCTION.format(**facts, **passes).rstrip()]
    for dataset, data in DATA.items():
        for student in ("vit_small", "vit_base"):
            own = [row for row in rows if (row["dataset"], row["student"]) == (dataset, student)]
            teacher = next(row["teacher"] for row in own if row["teacher"])
            spent = sum(map(hours, own))
            parts.append(
                f"## {data.title}, {student}, teacher {teacher}\n\n"
                f"{data.epochs} epochs a task, {own[0]['tasks']} tasks. All rows together: {spent:.0f} hours.\n\n"
                "| method | distillation | accuracy | forgetting | hours | command |\n|---|---|---|---|---|---|"
            )
            parts[-1] += "".join(
                f"\n| {METHODS[row['cl_method']]} | {row['distillation']} | {row['final_average_accuracy']} "
                f"| {row['forgetting_paper']} | {hours(row):.1f} | `{command(row)}` |"
                for row in own
            )
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """\
# The paper's tables, row by row

Written by `python tools/reproduce_doc.py` from [results/paper.csv](results/paper.csv), the published figures (arXiv
2407.13911). **None of these commands was run: no GPU was at hand.** What they set is in [method.md](method.md), "What
the `paper` preset changes"; what we know of the paper's runs ends there.

* **Models** come from timm's hub by their full tags: `vit_small` stands for
  `vit_small_patch16_224.augreg_in21k_ft_in1k`. With `--student vit_base` the teacher is `vit_large`, and the batch 32.
* **Teachers**: the row `{taught}` of each method teaches one, the other rows take it over, task by task
  (`--teacher-run`): run it first, or leave the option out. With the same seed it is the same teacher. A row is one run;
  add `--seed 1` and another `--out` for more.
* **CIFAR-100**: `data/cifar100/train/CLASS/…` and `test/CLASS/…`, 32 × 32 pixels in a lossless format, 100 classes.
  Named as they are (`apple` to `worm`), their natural order is that of the labels.
* **ImageNet-R**: `data/imagenet-r/CLASS/…` as published, 200 folders named by wnid, whose natural order is that of the
  labels. It has no test split; `--holdout 0.2` holds out a fifth of every class by name. The paper's list of test
  images is not known here: where you have it, make folders `train` and `test` of it and leave the option out.
* **Other orders**: `--class-order FILE` takes a list of all classes, one a line. The natural orders as such files:
  [class-orders/cifar100.txt](class-orders/cifar100.txt), [class-orders/imagenet-r.txt](class-orders/imagenet-r.txt).
* **Hours are an estimate**, of one NVIDIA H100 SXM: operations over {share} of the {rate} TFLOP/s in fp32 that its data
  sheet gives without tensor cores, since the preset is fp32. The share is an assumption, not a measurement; `cdl train
  … --dry-run` measures a few steps on the machine at hand. Operations are images × epochs × those of a step, and the
  tests after every task. A step of a teacher is the query (an unprompted pass of the student; APT has none), a pass
  forward and one back; a step of a student the same, and a pass of the teacher. A pass forward of ViT-S, ViT-B, ViT-L
  at 224 pixels is {small}, {base} and {large} GFLOP; back, the products with frozen weights count once and those of
  attention twice. Prompts, heads, loading of images and checkpoints are left out. All rows together: {total} hours.
"""


def main() -> int:
    """Exit status."""
    page = render()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page:
        print(f"{PAGE.name} is out of date: run python tools/reproduce_doc.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
