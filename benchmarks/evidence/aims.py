"""What was aimed at, and whether the records reach it."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

from benchmarks.evidence.records import Records, Which, processor_of
from benchmarks.evidence.rows import FROZEN, Row, same_head

TEACHER, BELOW, SHARE, CLOSED = 60.0, 1.0, 0.25, 0.5


def verdict(reached: bool | None) -> str:
    if reached is None:
        return "**not measured**"
    return "reached" if reached else "**not reached**"


def below(lines: list[str]) -> str:
    """A list within a line of a list."""
    return "".join(f"\n  * {line}" for line in lines)


def aims(records: Records, results: Path) -> list[str]:
    """A line an aim: what it is, reached or not, and by which figures."""
    return [*teacher_aim(records, results), *student_aim(records), *forgetting_aim(records), *gap_aim(records, results)]


def mean_of(found: dict[int, float]) -> float | None:
    return mean(found.values()) if found else None


def difference(records: Records, one: Which, other: Which) -> float | None:
    """How much more accurate one is, on the same images."""
    first, second = map(mean_of, records.both(one, other))
    return None if first is None or second is None else first - second


def compared(records: Records) -> list[tuple[Row, str]]:
    """The students that are held against their teacher, with their heads: those that nothing trains in the tasks, and
    KDP's that borrow the teacher of KD's row."""
    return [
        (row, head)
        for row, head in records.shown()
        if row.frozen or (row.distill == "kdp" and row.teacher_of is not None)
    ]


def teacher_aim(records: Records, results: Path) -> list[str]:
    found = {
        f"{'frozen' if row is FROZEN else row.name}, {head}": value
        for row, head in records.shown()
        if (value := mean_of(records.best(row.name, head, "teacher"))) is not None
    }
    best = max(found, key=lambda name: found[name]) if found else None
    whole = json.loads((results / "heads-photographs.json").read_text())["baselines"]
    frozen = whole["teacher, class+patches, slda"]["accuracy"]
    here = f"; under the table's budget its best is {found[best]:.1f} ({best})" if best else ""
    reached = max([frozen, *found.values()]) >= TEACHER
    return [
        f"* **Teacher at least {TEACHER:.0f} %**: {verdict(reached)}. Its features alone, frozen, with slda and 100 "
        f"images a class, have {frozen:.1f} %{here}."
    ]


def student_aim(records: Records) -> list[str]:
    """The frozen student and KDP's, in fp32 and int8, each against the teacher of its own kind."""
    lines = []
    for row, head in compared(records):
        lent = (row.teachers_row, same_head(head), "teacher")
        own = (row.name, head, "student")
        one, other = records.both(own, lent)
        pairs = {"": (mean_of(one), mean_of(other))}
        if records.exported(*lent) and (found := records.of_file(row.name, head, "student.int8", "accuracy")):
            pairs[".int8"] = (mean(found), mean_of(records.best(*lent)))
        for suffix, (student, teacher) in pairs.items():
            if student is None or teacher is None:
                continue
            name, theirs = f"{row.name}-{head}{suffix}", f"{lent[0]}-{lent[1]}.teacher"
            timed = records.time_share(name, theirs)
            cost = "its latency was not measured"
            if timed:
                elsewhere = "" if timed[1] is records.latency else f" ({processor_of(timed[1])})"
                cost = f"at {timed[0]:.2f} of its latency{elsewhere}"
            near = teacher - student <= BELOW
            if not near:
                said = f"{verdict(False)}, {teacher - student:.1f} below"
            elif timed is None:
                said = "**not known**"
            else:
                said = verdict(True) if timed[0] <= SHARE else f"{verdict(False)}, too slow"
            words = f"{row.name}, {head}{', int8' if suffix else ''}"
            words += "" if records.exported(*own) and records.exported(*lent) else " (of the runs)"
            lines.append(f"{words}: {student:.1f} against {teacher:.1f}, {cost}: {said}")
    lines = lines or ["no pair of student and teacher has been measured: " + verdict(None)]
    return [
        f"* **The exported student within {BELOW:.1f} point of its teacher at no more than {SHARE:g} of its latency**. "
        "Half the depth at the same width is about half the latency, whatever trains, and eleven blocks on half the "
        "patches are little more; int8 is about half of that where the processor has VNNI. A quarter in fp32 wants "
        "fewer patches still, or a student of half the width (`--student vit_192x12_patch14_98`), which must be "
        "pretrained on a GPU." + below(lines)
    ]


def forgetting_aim(records: Records) -> list[str]:
    """Of the same students as `student_aim`, over the seeds that both have."""
    found = []
    for row, head in compared(records):
        ours, theirs = (
            {
                seed: record[role]["forgetting"]
                for seed, record in records.rows.get(which, {}).items()
                if "forgetting" in record.get(role, {})
            }
            for which, role in (((row.name, head), "student"), ((row.teachers_row, same_head(head)), "teacher"))
        )
        if seeds := ours.keys() & theirs.keys():
            one, other = (mean(of[seed] for seed in seeds) for of in (ours, theirs))
            found.append(f"{row.name}, {head}: {one:.1f} against {other:.1f}, {verdict(one < other)}")
    few = records.budget.row_tests
    on = f" Measured on {few} test images a class: a point or two say nothing." if few else ""
    return [
        f"* **The student forgets less than its teacher** (the paper's measure).{on}" + below(found or [verdict(None)])
    ]


def gap_aim(records: Records, results: Path) -> list[str]:
    """How much of the gap between frozen student and frozen teacher KDP's features close, under the same head."""
    found = []
    for row, head in records.shown():
        if row.distill != "kdp" or head == "learned":
            continue
        frozen = [(FROZEN.name, same_head(head), role) for role in ("student", "teacher")]
        gain, gap = (difference(records, one, frozen[0]) for one in ((row.name, head, "student"), frozen[1]))
        if gain is not None and gap is not None and gap > 0:
            closed = gain / gap
            found.append(f"{row.name}, {head}: {100 * closed:.0f} %, {verdict(closed >= CLOSED)}")
    if records.budget.images != 100:  # features alone say it of them
        whole = json.loads((results / "heads-photographs.json").read_text())
        student, teacher = (
            whole["baselines"][f"{role}, class+patches, slda"]["accuracy"] for role in ("student", "teacher")
        )
        ours = whole["adapted"]["CODA + KDP, class+patches+kd, slda"]["accuracy"]
        closed = (ours - student) / (teacher - student)
        found.append(
            f"with 100 images a class, CODA, adapt first, slda: {ours:.1f} between {student:.1f} and {teacher:.1f}, "
            f"{100 * closed:.0f} %, {verdict(closed >= CLOSED)}"
        )
    return [
        "* **KDP's features close at least half of the gap between frozen student and frozen teacher under the same "
        "head** (a negative share: the gap grew)." + below(found)
    ]
