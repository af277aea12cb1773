"""The tables of docs/results.md and of README, in Markdown. What has no record has no row; what was not measured, –."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.evidence.records import METRIC, Records, gain, processor_of, spread
from benchmarks.evidence.rows import CHANGES, DISTILLATIONS, FROZEN, Change, Row, same_head

NAMES = {
    "coda": "CODA", "l2p": "L2P",
    "none": "alone", "kd": "KD", "kdp": "KDP", "dkd": "DKD", "fitnets": "FitNets", "reviewkd": "ReviewKD",
}  # fmt: skip


def label(row: Row, role: str = "student") -> str:
    """A row in words."""
    if row.distilled and role == "student":
        shape = row.cut or re.findall(r"x(\d+)_patch14_(\d+)", row.distilled)[0]
        return "distilled student, {} blocks at {} px".format(*shape)
    if row.frozen:
        return f"frozen {role}" + (", {} blocks at {} px".format(*row.cut) if row.cut else "")
    return f"{NAMES[row.method]}, {'teacher' if role == 'teacher' else NAMES[row.distill]}"


HEAD_WORDS = {"slda-no-kd": "slda, without the KD token", "slda-early": "slda, earlier blocks too"}


def head_words(head: str) -> str:
    return HEAD_WORDS.get(head, head)


def teaches(row: Row) -> bool:
    """Whether it has a teacher of its own."""
    return row.has_teacher and row.teacher_of is None


def ruled(*headings: str) -> list[str]:
    return ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]


def final(records: Records, row: Row, head: str, role: str) -> str:
    """Final accuracy, marked where it is not of the exported file on all the images that those are tested on."""
    found = spread(list(records.best(row.name, head, role).values()))
    return found if records.exported(row.name, head, role) or records.budget.images is None else f"{found} †"


def milliseconds(records: Records, name: str) -> str:
    """Of one image."""
    found = (records.latency or {}).get("models", {}).get(name)
    return f"{found['p50_ms']:.1f}" if found else "–"


def megabytes(records: Records, row: Row, head: str, file: str) -> str:
    size = records.of_file(row.name, head, file, "bytes")
    return f"{mean(size) / 1e6:.1f}" if size else "–"


LARGEST_LOAD = 0.25
"""Of a run's time by the wall clock, what other programs may have had: how they shared it out is not known."""


def seconds(record: dict[str, Any], stage: str, row: Row, head: str, processor: str | None) -> float | None:
    """Processor seconds of a run's learning: its share of the whole run by the wall clock's stages.

    None for a run that was resumed, or that waited so much that a stage's share by the clock says little, or that had
    another processor than the rest.
    """
    stages, spent = record["stage_seconds"], record["training"]
    if record.get("processor") != processor:
        return None
    if head != row.own_head or stage not in stages or spent.get("resumed"):
        return None
    if spent["processor_seconds"] < (1 - LARGEST_LOAD) * spent["seconds"]:
        return None
    return float(spent["processor_seconds"] * stages[stage] / max(1, sum(stages.values())))


def whole_table(records: Records) -> str:
    """A line a row and head; the upper bound; the teachers."""
    lines = ruled(
        "", "adapt", "head", "final accuracy", "average incremental", "forgetting, paper's", "forgetting, standard",
        "training, s", "ms, batch 1", "MB", "int8: accuracy", "ms", "MB",
    )  # fmt: skip
    lines += [line(records, row, head, "student") for row, head in records.shown()]
    for role in ("student", "teacher"):
        if role in records.joint:
            found = records.joint[role]["accuracy"]
            lines.append(f"| joint linear probe, frozen {role} | – | all at once | {found:.1f} |" + " – |" * 9)
    lines += [line(records, row, head, "teacher") for row, head in records.shown() if teaches(row)]
    return "\n".join(lines)


def line(records: Records, row: Row, head: str, role: str) -> str:
    """One line of the whole table."""
    cells = [label(row, role), row.adapt, head_words(head), final(records, row, head, role)]
    for metric in ("average_incremental_accuracy", "forgetting", "forgetting_standard"):
        cells.append(spread(records.of_role(row.name, head, role, metric)))
    spent = records.figures(row.name, head, lambda record: seconds(record, role, row, head, records.processor))
    cells.append(spread(spent, 0))
    name = f"{row.name}-{head}" + (".teacher" if role == "teacher" else "")
    cells += [milliseconds(records, name), megabytes(records, row, head, role)]
    if role == "teacher":
        return "| " + " | ".join([*cells, "–", "–", "–"]) + " |"
    cells.append(spread(records.of_file(row.name, head, "student.int8", "accuracy")))
    cells += [milliseconds(records, f"{name}.int8"), megabytes(records, row, head, "student.int8")]
    return "| " + " | ".join(cells) + " |"


def elsewhere_table(latency: dict[str, Any]) -> str:
    """Milliseconds of every file on one processor, by the names of the records."""
    lines = ruled("row, head, file", "ms, batch 1", "95 % interval of the median")
    for name, found in latency["models"].items():
        interval = f"{found['low_ms']:.1f} to {found['high_ms']:.1f}" if found["low_ms"] else "–"
        lines.append(f"| {name} | {found['p50_ms']:.1f} | {interval} |")
    return "\n".join(lines)


def gains(records: Records, paper: dict[tuple[str, str], float]) -> str:
    """What KDP adds, beside the paper's."""
    lines = ruled("", "adapt", "head", "KDP over the student alone", "paper's", "KDP over KD", "paper's")
    for row, head in records.shown():
        if row.distill != "kdp":
            continue
        cells = [NAMES[row.method], row.adapt, head_words(head)]
        for other in ("none", "kd"):
            base = (f"{row.method}-{other}-{row.adapt}", same_head(head), "student")
            own = (row.name, head, "student")
            whole = records.budget.images is None or (records.exported(*own) and records.exported(*base))
            cells += [
                gain(*records.both(own, base)) + ("" if whole else " †"),
                f"{paper[row.method, 'kdp'] - paper[row.method, other]:+.2f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def second_table(records: Records) -> str:
    """The second set: student and teacher of every row."""
    lines = ruled("", "adapt", "head", "student", "teacher", "student's forgetting, standard")
    for row, head in records.shown():
        found = [records.of_role(row.name, head, role, METRIC) for role in ("student", "teacher")]
        found.append(records.of_role(row.name, head, "student", "forgetting_standard"))
        words = "frozen" if row is FROZEN else label(row)
        lines.append("| " + " | ".join([words, row.adapt, head_words(head), *map(spread, found)]) + " |")
    return "\n".join(lines)


def ablation_table(records: Records) -> str:
    """CODA with one thing changed, slda where one task adapts, a learned head where all do; nothing where nothing was
    measured."""
    lines = ruled("", "adapt", "head", "changed", "student", "teacher", "student's forgetting, standard")
    base = {f"{distill}-{adapt}": Change(distill, adapt, "") for adapt in ("first", "all") for distill in DISTILLATIONS}
    changed = sorted({**base, **CHANGES}.items(), key=lambda item: item[1].adapt != "first")
    for name, change in changed:
        for head in change.heads:
            found = [records.of_role(f"coda-{name}", head, role, METRIC) for role in ("student", "teacher")]
            found.append(records.of_role(f"coda-{name}", head, "student", "forgetting_standard"))
            if found[0]:
                words = [f"CODA, {NAMES[change.distill]}", change.adapt, head, change.words]
                lines.append("| " + " | ".join([*words, *map(spread, found)]) + " |")
    return "\n".join(lines) if any(row.removeprefix("coda-") in CHANGES for row, _ in records.rows) else ""


def features_table(results: Path) -> str:
    """Features under the same heads, with more images: the records of heads_photographs.py."""
    record = json.loads((results / "heads-photographs.json").read_text())
    heads = ("ncm", "slda", "ridge", "RanPAC", "joint linear probe")
    lines = ruled("class token and patches", *heads)
    for role in ("student", "teacher"):
        found = [record["baselines"][f"{role}, class+patches, {head}"]["accuracy"] for head in heads]
        lines.append(f"| frozen {role} | " + " | ".join(f"{it:.1f}" for it in found) + " |")
    adapted = {"CODA, class+patches": "CODA, alone", "CODA + KDP, class+patches": "CODA, KDP",
               "CODA + KDP, class+patches+kd": "CODA, KDP, and the KD token"}  # fmt: skip
    for name, words in adapted.items():
        found = [record["adapted"][f"{name}, {head}"]["accuracy"] for head in heads[:3]]
        lines.append(f"| {words} | " + " | ".join(f"{it:.1f}" for it in found) + " | – | – |")
    return "\n".join(lines)


def latency_share(records: Records, file: str, head: str) -> str:
    """Of the frozen teacher's with a head that reads as much: on the processor on which most files were timed, or
    marked, on another."""
    teacher = f"{FROZEN.name}-{head if head in FROZEN.heads else same_head(head)}.teacher"
    if (found := records.time_share(file, teacher, first=records.most_timed)) is None:
        return "–"
    share, timed = found
    return f"{share:.2f}" + ("" if timed is records.most_timed else " ‡")


def readme_table(records: Records) -> str:
    """What a newcomer needs: the frozen pair, and CODA's rows under slda or a learned head; L2P's are like them."""
    lines = ruled(
        "", "adapt", "head", "final accuracy", "forgetting", "MB", "latency", "int8: accuracy", "MB", "latency"
    )
    wanted = [
        (row, head)
        for row, head in records.shown()
        if head in ("slda", "slda-early", "learned") and row.method != "l2p"
    ]
    taught = [(row, head, "teacher") for row, head in wanted if teaches(row)]
    for row, head, role in [*((row, head, "student") for row, head in wanted), *taught]:
        name, small = f"{row.name}-{head}", f"{role}.int8"
        cells = [label(row, role), row.adapt, head_words(head), final(records, row, head, role)]
        cells.append(spread(records.of_role(row.name, head, role, "forgetting")))
        cells.append(megabytes(records, row, head, role))
        cells.append(latency_share(records, name + (".teacher" if role == "teacher" else ""), head))
        cells.append(spread(records.of_file(row.name, head, small, "accuracy")))
        cells.append(megabytes(records, row, head, small))
        cells.append(latency_share(records, f"{name}.int8", head) if role == "student" else "–")
        lines.append("| " + " | ".join(cells) + " |")
    timed = processor_of(records.most_timed)
    elsewhere = "; ‡ on another processor" if any("‡" in line for line in lines) else ""
    return "\n".join([*lines, "", f"Latency: share of the frozen teacher's, batch 1, {timed}{elsewhere}."])
