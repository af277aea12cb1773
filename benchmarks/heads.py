"""What each part is worth on the embedded digits: prompts, distillation, features and heads, over seeds.

    python benchmarks/heads.py --runs runs/heads --seeds 0,1,2

Trains each run once (`cdl train`) and gives it every closed-form head by `cdl head`, each one pass over its images.
Does what docs/results/heads-digits.json does not have yet, so that it goes on where it was interrupted, and writes the
table of docs/digits.md between its markers and the README's. `--write` only writes the tables. Prints the bars.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.marked import between  # noqa: E402  found once the line above has run

RECORD = PROJECT / "docs" / "results" / "heads-digits.json"
PAGE = PROJECT / "docs" / "digits.md"
README = PROJECT / "README.md"
MARK = "benchmarks/heads.py"
EPOCHS = 5

RUNS: dict[str, dict[str, str]] = {
    "frozen": {"method": "none", "distill": "none", "head": "learned"},
    "frozen pair": {"method": "none", "distill": "kd", "head": "slda"},
    "CODA, first": {"method": "coda", "distill": "none", "head": "slda", "adapt": "first"},
    "KDP, first": {"method": "coda", "distill": "kdp", "head": "slda", "adapt": "first"},
    "CODA, all": {"method": "coda", "distill": "none", "head": "learned"},
    "frozen, KD": {"method": "none", "distill": "kd", "head": "learned"},
    "KDP, all": {"method": "coda", "distill": "kdp", "head": "learned"},
}
"""What is trained. `frozen pair` is there for its teacher: its student is that of `frozen`, as nothing trains."""
HEADS: dict[str, dict[str, Any]] = {
    "slda": {"head": "slda"},
    "ncm": {"head": "ncm"},
    "ridge": {"head": "ridge"},
    "RanPAC": {"head": "ridge", "random_features": 2000},
}
FEATURES = {"all": None, "class": "class"}
"""`all` is the default: class+patches, and kd where there is a KD token."""
CHEAP = ("frozen", "frozen pair", "CODA, first", "KDP, first")
DEAR = ("CODA, all", "KDP, all", "frozen, KD")
ORDER = (
    (CHEAP, "all", ("slda",)),
    (CHEAP, "all", ("RanPAC", "ncm", "ridge")),
    (DEAR, "all", ("slda", "RanPAC", "ncm", "ridge")),
    (CHEAP, "class", ("slda", "ncm", "ridge", "RanPAC")),
    (DEAR, "class", ("slda", "ncm", "ridge", "RanPAC")),
)
"""What is measured first."""
LEARNED_ONLY = ("frozen", "frozen, KD")
BARS = {"student": 97.5, "below teacher": 1.0, "forgetting": 1.5}


def figures(record: Any, root: Path) -> dict[str, dict[str, float]]:
    """Of both roles, after the last task, in percent."""
    found: dict[str, dict[str, float]] = {}
    for role in record.matrices:
        results, fitted = record.results(role), record.tasks[-1].heads.get(role)
        found[role] = {
            "final_average_accuracy": round(results.final_average_accuracy, 3),
            "forgetting": round(results.forgetting, 3),
            "ece": round(fitted.ece if fitted is not None else calibration_error(root, record, role), 3),
        }
        if fitted is not None:
            found[role] |= {"features": fitted.features, "dimension": fitted.dimension, "chosen": fitted.chosen}
    return found


def calibration_error(root: Path, record: Any, role: Any) -> float:
    """Of a learned head, on all test images; a run records it of closed-form heads only."""
    from cdl_deploy.training.checkpoint import load_task
    from cdl_deploy.training.context import Run
    from cdl_deploy.training.data.transforms import evaluation_transform
    from cdl_deploy.training.evaluation import measure_learner
    from cdl_deploy.training.preparation import never
    from cdl_deploy.training.processes import Processes
    from cdl_deploy.training.progress import Progress
    from cdl_deploy.training.run_directory import RunDirectory

    pair = load_task(RunDirectory(root), record)
    run = Run(RunDirectory(root), record, pair, {}, Processes(pair.encoder.backbone.mean.device), Progress(), never)
    tests = [run.data.test(number) for number in range(1, len(record.tasks) + 1)]
    tested = measure_learner(pair.encoder, pair.learners[role], tests, evaluation_transform(run.preprocessing))
    assert tested.ece is not None
    return tested.ece


class Record:
    """docs/results/heads-digits.json: a row a run, seed, head and features."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"] if file.exists() else []

    def has(self, run: str, seed: int, head: str, features: str) -> bool:
        wanted = (run, seed, head, features)
        return any((row["run"], row["seed"], row["head"], row["features"]) == wanted for row in self.rows)

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True)
        about = {
            "command": "python benchmarks/heads.py --runs runs/heads --seeds 0,1,2",
            "train": {name: {**options, "epochs": EPOCHS, "tasks": 5} for name, options in RUNS.items()},
            "commit": commit.stdout.strip(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, shared; one thread",
            "versions": {name: version(name) for name in ("torch", "timm", "numpy", "scikit-learn")},
        }
        self.file.write_text(json.dumps({**about, "rows": self.rows}, indent=1) + "\n")
        print(row, file=sys.stderr, flush=True)

    def values(self, run: str, head: str, features: str, role: str, key: str) -> list[float]:
        wanted = (run, head, features)
        return [
            row[role][key]
            for row in sorted(self.rows, key=lambda row: row["seed"])
            if (row["run"], row["head"], row["features"]) == wanted and role in row
        ]


def measure(record: Record, runs: Path, seeds: list[int], until: float) -> None:
    """Whatever is missing: first slda of every run and seed, then the other heads, then the other features."""
    import cdl_deploy
    from cdl_deploy.training import loop
    from cdl_deploy.training.revisions import new_heads

    setattr(loop, "plot_run", lambda *_: None)  # noqa: B010 pictures of two hundred runs that nobody looks at take as long as the runs
    for names, features, heads in ORDER:
        for seed in seeds:
            for name in names:
                options: dict[str, Any] = {**RUNS[name]}
                root = runs / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}".lower()
                work = [(head, HEADS[head]) for head in heads if name not in LEARNED_ONLY]
                missing = [item for item in work if not record.has(name, seed, item[0], features)]
                own = options["head"] == "learned" and not record.has(name, seed, "learned", "class")
                if time.monotonic() > until:
                    return
                if (missing or own) and not (root / "done").exists():
                    shutil.rmtree(root, ignore_errors=True)
                    began = time.perf_counter()
                    trained = cdl_deploy.train(
                        "digits", tasks=5, epochs=EPOCHS, seed=seed, device="cpu", out=root, **options
                    )
                    seconds = round(time.perf_counter() - began, 1)
                    own_head, own_features = ("learned", "class") if options["head"] == "learned" else ("slda", "all")
                    if not record.has(name, seed, own_head, own_features):
                        found = figures(trained, root)
                        record.add(run=name, seed=seed, head=own_head, features=own_features, seconds=seconds, **found)
                    missing = [it for it in missing if not record.has(name, seed, it[0], features)]
                    (root / "done").touch()
                for head, given in missing:
                    if time.monotonic() > until:
                        return
                    out = root.with_suffix(".head")
                    shutil.rmtree(out, ignore_errors=True)
                    began = time.perf_counter()
                    changed = new_heads(root, out, {**given, "features": FEATURES[features]})
                    seconds = round(time.perf_counter() - began, 1)
                    found = figures(changed, out)
                    record.add(run=name, seed=seed, head=head, features=features, seconds=seconds, **found)
                    shutil.rmtree(out)


LINES = [
    # run, role, what it is, adapt
    ("frozen pair", "student", "student, frozen", "none"),
    ("CODA, first", "student", "student, CODA", "first"),
    ("KDP, first", "student", "student, CODA + KDP", "first"),
    ("CODA, all", "student", "student, CODA", "all"),
    ("KDP, all", "student", "student, CODA + KDP", "all"),
    ("frozen pair", "teacher", "teacher, frozen", "none"),
    ("KDP, first", "teacher", "teacher, CODA", "first"),
    ("KDP, all", "teacher", "teacher, CODA", "all"),
]


def spread(values: list[float]) -> str:
    if not values:
        return "–"
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


LEARNED_BEFORE = {"CODA, all": "none", "KDP, all": "kdp"}


def learned_before(run: str, role: str, key: str) -> list[float]:
    """Of the table above in docs/digits.md, by benchmarks/digits.py: the same runs with learned heads."""
    rows = json.loads((PROJECT / "docs" / "digits.json").read_text())["rows"]
    return [row[role][key] for row in rows if row["run"] == LEARNED_BEFORE[run] and role in row]


def cell(record: Record, run: str, head: str, features: str, role: str) -> str:
    """Accuracy, forgetting, calibration error."""
    if run == "frozen pair" and head == "learned":  # the student's without the teacher's help
        run = "frozen" if role == "student" else "frozen, KD"
    values = [record.values(run, head, features, role, key) for key in ("final_average_accuracy", "forgetting", "ece")]
    if not values[0] and head == "learned" and run in LEARNED_BEFORE:
        accuracy, forgetting = (learned_before(run, role, key) for key in ("final_average_accuracy", "forgetting"))
        return f"{spread(accuracy)} ({mean(forgetting):.1f}) †"
    if not values[0]:
        return "–"
    few = "" if len(values[0]) == len({row["seed"] for row in record.rows}) else f" [{len(values[0])}]"
    return f"{spread(values[0])} ({mean(values[1]):.1f}; {mean(values[2]):.1f}){few}"


def tables(record: Record) -> str:
    """Markdown."""
    heads = ["learned", *(head for head in HEADS)]
    parts = []
    for features, title in (("all", "class + patches, and the KD token where there is one"), ("class", "class token")):
        lines = [
            f"Closed-form heads read: {title}. A learned head always reads the class token (and KDP's the KD token).",
            "",
            "| features | adapt | " + " | ".join(heads) + " |",
            "|---|---|" + "---|" * len(heads),
        ]
        for run, role, what, adapt in LINES:
            cells = [cell(record, run, head, "class" if head == "learned" else features, role) for head in heads]
            if any(it != "–" for it in cells):
                lines.append(f"| {what} | {adapt} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def bars(record: Record, run: str = "frozen pair", head: str = "slda") -> list[str]:
    """The bars of the issue, of the student that `cdl train` makes and of KDP's."""
    lines = []
    for name in dict.fromkeys((run, "KDP, first")):
        student = record.values(name, head, "all", "student", "final_average_accuracy")
        teacher = record.values(name, head, "all", "teacher", "final_average_accuracy")
        forgotten = record.values(name, head, "all", "student", "forgetting")
        if not student or not teacher:
            continue
        what = "frozen backbone" if name == "frozen pair" else name
        for text, value, reached in (
            (f"student at least {BARS['student']} %", mean(student), mean(student) >= BARS["student"]),
            (
                f"at most {BARS['below teacher']} below its teacher",
                mean(teacher) - mean(student),
                mean(teacher) - mean(student) <= BARS["below teacher"],
            ),
            (f"forgetting at most {BARS['forgetting']}", mean(forgotten), mean(forgotten) <= BARS["forgetting"]),
        ):
            lines.append(f"{what} + {head}: {text}: {value:.2f}, {'reached' if reached else 'MISSED'}")
    return lines


def into(text: str, block: str) -> str:
    """`text` with `block` between the markers, which are appended where there are none."""
    if f"<!-- {MARK} -->" not in text:
        text = f"{text.rstrip()}\n\n<!-- {MARK} -->\n<!-- /{MARK} -->\n"
    return between(text, MARK, block)


def readme_table(record: Record) -> str:
    """For README: what experts compare with, beside KDP."""
    frozen = ("frozen pair", None, "frozen pair")
    rows = [  # what trains, head, runs of: the student alone, with KDP, the teacher
        ("prompts in every task | learned", "learned", ("CODA, all", "KDP, all", "KDP, all")),
        ("prompts in the first task | slda", "slda", ("CODA, first", "KDP, first", "KDP, first")),
        ("nothing: a frozen backbone | nearest class mean", "ncm", frozen),
        ("nothing | ridge", "ridge", frozen),
        ("nothing | RanPAC: ridge on 2,000 random features", "RanPAC", frozen),
        ("nothing | slda", "slda", frozen),
    ]
    key = "final_average_accuracy"
    lines = [
        "| what trains | head | student alone, 0.3 M parameters | student with its teacher's help (KDP) "
        "| the teacher, 3.7 M |",
        "|---|---|---|---|---|",
    ]
    for what, head, runs in rows:
        cells = []
        for run, role in zip(runs, ("student", "student", "teacher"), strict=True):
            features = "class" if head == "learned" else "all"
            values = record.values(run, head, features, role, key) if run else []
            if run in LEARNED_BEFORE and len(values) < 3:
                values = learned_before(run, role, key)
            few = f", {len(values)} of 3 seeds" if 0 < len(values) < 3 else ""
            bold = "**" if (run, head, role) == ("frozen pair", "slda", "student") else ""
            cells.append(f"{bold}{spread(values)}{bold}{few}")
        if any(it != "–" for it in cells):
            lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(record: Record) -> None:
    """The table of docs/digits.md and, where it has the markers, README.md."""
    about = json.loads(record.file.read_text())
    seeds = sorted({row["seed"] for row in record.rows})
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    block = f"""## Heads: what each part is worth

Written by `{about["command"]}` at commit {about["commit"]}, {about["machine"]}; {versions}. Seeds
{", ".join(map(str, seeds))}, {EPOCHS} epochs in a task that trains. Each cell: final average accuracy in percent,
mean ± std over seeds (forgetting; calibration error, both in points), [n] where there are fewer seeds. RanPAC is ridge
on 2,000 random features. `adapt` says in which tasks prompts, distillation and teacher train: in `none` nothing does
but a learned head. †: from the table above, its commit, three seeds. Nothing of a frozen backbone depends on the seed
but which classes a task has, and all seeds are tested on the same 364 images: an image is 0.3 points, whatever ± says.

{tables(record)}

The bars of the issue:

{chr(10).join(f"* {line}" for line in bars(record))}"""
    PAGE.write_text(into(PAGE.read_text(), block))
    README.write_text(between(README.read_text(), MARK, readme_table(record)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/heads"), help="where the runs are kept (runs/heads)")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin nothing after so many")
    parser.add_argument("--write", action="store_true", help="write the tables of what is there")
    given = parser.parse_args()
    record = Record(RECORD)
    if not given.write:
        given.runs.mkdir(parents=True, exist_ok=True)
        seeds = [int(seed) for seed in given.seeds.split(",")]
        measure(record, given.runs, seeds, time.monotonic() + 60 * given.minutes)
    write(record)
    print(tables(record))
    print("\n".join(bars(record)))


if __name__ == "__main__":
    main()
