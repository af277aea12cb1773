"""docs/results.md, its picture, and README's table, from the records alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from pathlib import Path

from benchmarks.evidence.aims import aims
from benchmarks.evidence.measure import PROJECT
from benchmarks.evidence.picture import picture, points
from benchmarks.evidence.records import Records, read_paper, read_records
from benchmarks.evidence.rows import all_rows
from benchmarks.evidence.tables import (
    ablation_table,
    elsewhere_table,
    features_table,
    gains,
    readme_table,
    second_table,
    whole_table,
)
from benchmarks.marked import between

RESULTS = PROJECT / "docs" / "results"
TABLES = ("full", "short", "shortest")
"""A part of the page each, where they have records: the one with most images first. README shows that one."""

INTRODUCTION = """\
# Photographs: what methods, distillations and heads are worth

Written by `python -m benchmarks.evidence report` from the records in [results/evidence](results/evidence). What the
figures mean is in [findings.md](findings.md). Home-made backbones are an [appendix](home-made-backbones.md).
"""
SHORT = """\
**The budget `{name}`, not the whole experiment**: what one shared CPU core could do. The paper trains 20 epochs on 500
images a class. All of it, with a GPU: `make evidence BUDGET=full`. Differences under two standard errors say nothing.
"""
SO_FAR = """\
**{measured} of its {planned} rows have been measured**, each a student under a head; teachers stand below them. `make
evidence BUDGET={name}` goes on with the others.{next}
"""
NEXT = " The next table has {rows}, with fewer images."
FEATURES = """\
## Features alone, 100 images a class

The same ten tasks and the same pair, all 10,000 test images, one seed: heads on features. Prompts, KD token and teacher
trained in the first task, on 1,000 images, 5 epochs. By `benchmarks/heads_photographs.py`; machine, versions and commit
in [heads-photographs.json](results/heads-photographs.json), more of it in [choosing.md](choosing.md).
"""
SECOND = """\
## A second set, to which nothing was tuned

Drawings: the 24 kinds of Google's emoji that have at least 24 pictures, as the npm package emoji-datasource-google
16.0.0 carries them (`benchmarks/evidence/drawings.py`). Three tasks of eight classes; 16 pictures a class to learn from
and 8 others to test on, 192 in all (one standard error: 3.5 points). The pair and all options are those of the
photographs; accuracy is that of the run.
"""
AGAIN = """\
## To measure it

    make evidence                             the budget `short`, in the background; says how long, where the log is
    make evidence BUDGET=full MINUTES=15      with a GPU: 20 epochs, 3 seeds, as many rows as fit, in this order
    python -m benchmarks.evidence latency     afterwards, when the machine is quiet
    python -m benchmarks.evidence report      this page

Every row is a record of its own: a killed job goes on with the same command, and a GPU that is there for a quarter of
an hour goes on where the last one stopped. CIFAR-100 must be there as an image folder (`DATA=…`); the pair is fetched.
To a machine without a network bring `weights/` along (`python -m cdl_deploy.training.recipes.public_backbone --out
weights`). `full` has not been run.

The recipe makes the distilled students with `--distil IMAGES` (these were Tiny-ImageNet's, at 32 pixels); without them
their rows are left out. Other backbones for it: `--tune-teacher IMAGES` tunes the teacher's last blocks on labelled
images, `--tune IMAGES` distils a student towards the teacher's tokens, `--student vit_192x12_patch14_98` one of half
the width.
"""
ABLATION = """\
CODA, one thing changed each. Where one task adapts, slda is on the features, and the teacher is the same; where all do,
heads are learned. Accuracy is that of the run.
"""


def measured(results: Path) -> list[Records]:
    """What there are tables of. SystemExit where nothing has been measured."""
    found = [it for name in TABLES if (it := read_records(results / "evidence", name)) is not None]
    if not found:
        raise SystemExit(f"no records in {results / 'evidence'}: python -m benchmarks.evidence run")
    return found


def counted(count: int | None, what: str) -> str:
    return f"all {what}" if count is None else f"{count} {what} a class"


def several(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def schedule(records: Records) -> str:
    """How much a row learns from."""
    budget, seeds = records.budget, sorted({record["seed"] for record in records.every})
    parts = [counted(budget.images, "training images"), f"{budget.epochs} epochs a task that trains"]
    if budget.views:
        parts.append(f"{budget.views} fixed {several('view', budget.views)} of an image")
    return f"{', '.join(parts)}, {several('seed', len(seeds))} {', '.join(map(str, seeds))}"


def about(records: Records) -> list[str]:
    """What the table is made of, in a list."""
    every, budget = records.every, records.budget
    lines = [f"* Images at 98 pixels unless a row says otherwise; {schedule(records)}; accuracy in percent."]
    tested = [record["files"]["student"]["images"] for record in every if "student" in record.get("files", {})]
    if tested and budget.images is not None:
        error = 100 * sqrt(0.3 * 0.7 / tested[0])
        images = counted(budget.row_tests, "test images")
        lines.append(
            f"* Final accuracy: of the exported file on {tested[0]:,} test images, the same for all (standard error: "
            f"{error:.1f} points); where there is no file yet, of the run on {images}, marked †. Accuracy after each "
            f"task, and so forgetting and the average incremental accuracy: {images}. A closed-form head on a backbone "
            "that stands still forgets nothing, its sums are exact: what it is said to forget is what more classes to "
            "choose from cost the old ones."
        )
    backbones = next(record["backbones"] for record in every if "teacher" in record["backbones"])
    pair = "; ".join(
        f"{role} `{it['model']}`, {it['parameters'] / 1e6:.1f} M parameters" for role, it in backbones.items()
    )
    hours = sum(record["training"]["processor_seconds"] for record in every) / 3600
    versions = ", ".join(f"{name} {version}" for name, version in every[0]["versions"].items())
    return [
        *lines,
        f"* {pair}: a public ViT-S and its first half. **They are not official DINOv2 weights**, but were fine-tuned "
        "as the encoder of a saliency model ([what they know](results/public-backbone/probes.json)).",
        f"* {'; '.join(sorted({record['machine'] for record in every}))}; {versions}; commit "
        f"{', '.join(sorted({record['commit'] for record in every}))}; {hours:.1f} processor hours of training. "
        "Seconds are the processor's, which another process's load does not lengthen, and of what trains: a head's "
        "pass over its images and the evaluation are not in them; where another processor trained, there are none.",
    ]


def latency(records: Records) -> list[str]:
    """What the milliseconds are of."""
    found = records.latency
    if not found:
        return ["Latency was not measured: `python -m benchmarks.evidence latency`.", ""]
    said = f"Latency: `cdl bench-latency` of all files together, {found['about']}; commit {found['commit']}. It notes:"
    lines = [said, "", *(f"* {note}" for note in found["notes"]), ""]
    for other in records.elsewhere:
        lines += [f"On another processor, {other['about']}; commit {other['commit']}; its files alone:", ""]
        lines += [elsewhere_table(other), "", *(f"* {note}" for note in other["notes"]), ""]
    return lines


def introduction(records: Records, following: Sequence[Records]) -> list[str]:
    """That it is not the whole experiment, and how many of its rows are there and in the table that follows."""
    budget, rows = records.budget, len(records.shown())
    if budget.images is None:
        return []
    planned = sum(len(row.heads) for row in all_rows(budget))
    if rows == planned:
        return [SHORT.format(name=budget.name)]
    more = [NEXT.format(rows=len(other.shown())) for other in following[:1] if len(other.shown()) > rows]
    so_far = SO_FAR.format(measured=rows, planned=planned, name=budget.name, next="".join(more))
    return [SHORT.format(name=budget.name), so_far]


def part(records: Records, results: Path, following: Sequence[Records] = ()) -> list[str]:
    """The table of a budget, its picture, gains and aims."""
    images = counted(records.budget.images, "training images")
    lines = [
        f"## Split CIFAR-100, ten tasks of ten classes, {images}",
        "",
        *introduction(records, following),
        *about(records),
        "",
    ]
    if points(records):
        lines += [f"![accuracy against latency](results/evidence-{records.budget.name}.png)", ""]
    lines += [whole_table(records), "", *latency(records)]
    lines += [
        f"### KDP's gains, beside the paper's: {images}",
        "",
        "Points of final accuracy, under the same head; † of the runs, whose test images are fewer.",
        "",
    ]
    return [
        *lines, gains(records, read_paper(results)), "", f"### Aims: {images}", "", *aims(records, results), ""
    ]  # fmt: skip


def report(results: Path) -> str:
    """docs/results.md from the records in `results`."""
    tables, second = measured(results), read_records(results / "evidence", "drawings")
    lines = [INTRODUCTION]
    for number, records in enumerate(tables, start=1):
        lines += part(records, results, tables[number:])
    lines += [FEATURES, features_table(results), ""]
    if second:
        lines += [SECOND, f"{schedule(second).capitalize()}.", "", second_table(second), ""]
    for made in (*tables, second):
        if made and (found := ablation_table(made)):
            where = (
                "the drawings"
                if made is second
                else f"Split CIFAR-100, {counted(made.budget.images, 'training images')}"
            )
            lines += [f"## What KDP is made of: {where}", "", ABLATION, found, ""]
    lines.append(AGAIN)
    return "\n".join(lines)


def write() -> None:
    """The page, its pictures, and README's table between its markers."""
    tables, readme = measured(RESULTS), PROJECT / "README.md"
    for records in tables:
        if points(records):
            picture(records, RESULTS / f"evidence-{records.budget.name}.png")
    page = report(RESULTS)
    (RESULTS.parent / "results.md").write_text(page)
    readme.write_text(between(readme.read_text(), "benchmarks/evidence", readme_table(tables[0])))
    print(page)
