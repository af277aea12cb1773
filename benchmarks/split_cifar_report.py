"""docs/results.md and its pictures, from the records in docs/results alone.

    python benchmarks/split_cifar_report.py

The records come from split_cifar.py (the table), split_cifar_variants.py (ablation, candidates, answers),
split_cifar_cost.py (what students cost) and pretrain_photos.py (backbones); those of a longer schedule and of a second
pair of backbones from split_cifar.py --records docs/results/longer and docs/results/second-pair. What has no record has
no row.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.split_cifar import DISTILLATIONS, METHODS, METRICS, RESULTS, hashes, read_records, values  # noqa: E402
from benchmarks.split_cifar_pictures import cost_picture, picture  # noqa: E402
from benchmarks.split_cifar_variants import ABLATION, CANDIDATES  # noqa: E402

MINI = PROJECT / "docs" / "digits.json"
"""What the package's own pair does on the digits."""

FULL_EPOCHS = 20
"""Epochs a task in the paper."""


def read_paper(folder: Path) -> dict[tuple[str, str], float]:
    """Final average accuracy of the paper's ViT-S students (teacher ViT-B) on CIFAR-100, by method and distillation."""
    with (folder / "paper.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if (row["dataset"], row["student"]) == ("cifar100", "vit_small")]
    return {(row["cl_method"], row["distillation"]): float(row["final_average_accuracy"]) for row in rows}


def spread(found: list[float]) -> str:
    """Mean ± standard deviation; a single number has none."""
    if not found:
        return "–"
    return f"{mean(found):.2f}" + (f" ± {stdev(found):.2f}" if len(found) > 1 else "")


def gain(found: dict[int, float], base: dict[int, float]) -> str:
    """Mean difference over the seeds that both have, and in how many of them it is positive."""
    shared = [found[seed] - base[seed] for seed in sorted(found.keys() & base.keys())]
    if not shared:
        return "–"
    return f"{mean(shared):+.2f} ({sum(value > 0 for value in shared)} of {len(shared)})"


def table(records: list[dict[str, Any]], paper: dict[tuple[str, str], float], method: str) -> str:
    """Markdown for one method: a line a distillation, and the teacher's."""
    lines = [
        "| | final average accuracy | over none (seeds won) | over kd (seeds won) | average incremental | forgetting, "
        "paper's | forgetting, standard | paper: accuracy | paper: over none | paper: over kd |",
        "|" + "---|" * 10,
    ]
    bases = {name: values(records, method, name, "student", METRICS[0]) for name in ("none", "kd")}
    for distill in DISTILLATIONS:
        found = values(records, method, distill, "student", METRICS[0])
        if not found:
            continue
        cells = [f"{'**kdp**' if distill == 'kdp' else distill}", spread(list(found.values()))]
        cells += ["" if distill == name else gain(found, base) for name, base in bases.items()]
        cells += [spread(list(values(records, method, distill, "student", metric).values())) for metric in METRICS[1:]]
        published = paper[method, distill]
        cells += [f"{published:.2f}"]
        cells += ["" if distill == name else f"{published - paper[method, name]:+.2f}" for name in bases]
        lines.append("| " + " | ".join(cells) + " |")
    taught = {
        metric: {
            seed: value
            for distill in DISTILLATIONS
            for seed, value in values(records, method, distill, "teacher", metric).items()
        }
        for metric in METRICS
    }
    if taught[METRICS[0]]:
        cells = ["teacher", spread(list(taught[METRICS[0]].values())), "", ""]
        cells += [spread(list(taught[metric].values())) for metric in METRICS[1:]]
        lines.append("| " + " | ".join([*cells, "", "", ""]) + " |")
    return "\n".join(lines)


def metric_by_seed(by_seed: dict[int, dict[str, Any]], role: str, metric: str) -> dict[int, float]:
    """A metric of the student or of the teacher, from records by seed."""
    return {seed: record[role][metric] for seed, record in by_seed.items()}


def coda_kdp(records: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """What variants are compared with, by seed."""
    return {r["seed"]: r for r in records if (r["method"], r["distillation"]) == ("coda", "kdp")}


def variant_table(
    names: list[str], trained: dict[str, dict[int, dict[str, Any]]], base: dict[int, dict[str, Any]]
) -> str:
    """Markdown: CODA + KDP with one option changed, against CODA + KDP of the same seeds."""
    lines = [
        "| | changed | final average accuracy | over kdp (seeds won) | forgetting, paper's | its teacher |",
        "|" + "---|" * 6,
    ]
    seeds = {seed for name in names for seed in trained.get(name, {})}
    default = {seed: record for seed, record in base.items() if seed in seeds}
    plain = metric_by_seed(default, "student", METRICS[0])
    options = {**ABLATION, **CANDIDATES}
    for name, by_seed in {"kdp": default, **{name: trained[name] for name in names if name in trained}}.items():
        found = metric_by_seed(by_seed, "student", METRICS[0])
        forgotten = spread(list(metric_by_seed(by_seed, "student", "forgetting").values()))
        taught = spread(list(metric_by_seed(by_seed, "teacher", METRICS[0]).values()))
        changed, more = ("", "") if name == "kdp" else (f"`{' '.join(options[name])}`", gain(found, plain))
        lines.append("| " + " | ".join([name, changed, spread(list(found.values())), more, forgotten, taught]) + " |")
    return "\n".join(lines)


def answer_table(answers: dict[str, dict[str, Any]], ways: list[str]) -> str:
    """Markdown: what every kind of run answers in each way; mean over its seeds of final average accuracy, and
    forgetting in brackets."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for name, record in answers.items():
        kinds.setdefault(name.rpartition("-")[0], []).append(record["answers"])
    lines = ["| run | seeds | " + " | ".join(ways) + " |", "|" + "---|" * (2 + len(ways))]
    named = {kind: kind.replace("-", " + ") for method in METHODS for kind in kinds if kind.startswith(f"{method}-")}
    for kind, name in {**named, **{kind: f"coda + kdp, {kind}" for kind in kinds if kind not in named}}.items():
        found = kinds[kind]
        if not all(way in record for record in found for way in ways):
            continue
        accuracies = [mean(record[way][METRICS[0]] for record in found) for way in ways]
        forgotten = [mean(record[way]["forgetting"] for record in found) for way in ways]
        cells = [f"{right:.2f} ({lost:.1f})" for right, lost in zip(accuracies, forgotten, strict=True)]
        lines.append(f"| {name} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cost_table(cost: dict[str, Any]) -> str:
    """Markdown: one line a model, the teacher last."""
    models = cost["models"]
    batches = list(next(iter(models.values()))["latency"])
    lines = [
        "| model | accuracy of the ONNX file | "
        + " | ".join(f"ms, batch {batch} | times the teacher's speed" for batch in batches)
        + " | MB | update, kB |",
        "|" + "---|" * (4 + 2 * len(batches)),
    ]
    for name, row in models.items():
        cells = [name, f"{row['accuracy']:.2f} %"]
        for batch in batches:
            speed = row["latency"][batch].get("speedup")
            cells += [f"{row['latency'][batch]['p50_ms']:.3g}", f"{speed:.2f}" if speed else ""]
        update = row["update_bytes"]
        cells += [f"{row['bytes'] / 1e6:.2f}", f"{update / 1e3:.0f}" if update else "–"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def time_table(records: list[dict[str, Any]]) -> str:
    """Markdown: seconds a run by stage, mean over its seeds. A teacher that was taken over costs nothing."""
    stages = ("teacher", "student", "evaluation")
    lines = ["| run | teacher | student | evaluation |", "|" + "---|" * 4]
    for method in METHODS:
        for distill in DISTILLATIONS:
            kind = [r for r in records if (r["method"], r["distillation"]) == (method, distill)]
            own = [record["stage_seconds"] for record in kind]
            if own:
                cells = [f"{mean(spent.get(stage, 0) for spent in own):.0f}" for stage in stages]
                lines.append(f"| {method} + {distill} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def backbone_lines(folder: Path) -> list[str]:
    """One line a pretrained backbone."""
    lines = []
    for file in sorted((folder / "backbones").glob("*.json")):
        made = json.loads(file.read_text())
        how = ["bf16" if made["bf16"] else "float32", *([] if made["augment"] else ["crops and flips only"])]
        lines.append(
            f"* `{made['model']}`: {made['parameters'] / 1e6:.1f} M parameters, {made['epochs']} epochs in "
            f"{made['seconds'] / 60:.0f} minutes ({made['machine']}), seed {made['seed']}, batch {made['batch_size']}, "
            f"{', '.join(how)}, commit {made['commit']}; "
            f"**{made['validation_top1']:.1f} %** top-1 of {made['classes']} classes on {made['validation_images']:,} "
            "validation images."
        )
    return lines


def digits_lines(folder: Path) -> list[str]:
    """The pair of photographs on the embedded digits, beside the package's own, which learned rendered letters."""
    file = folder / "digits.json"
    if not file.exists():
        return []
    records = [json.loads(path.read_text()) for path in (file, MINI)]
    this, own = (
        [
            spread([row[role]["final_average_accuracy"] for row in record["rows"] if row["run"] == run])
            for run, role in (("kdp", "student"), ("none", "student"), ("kdp", "teacher"))
        ]
        for record in records
    )
    return [
        f"* On the package's digits ([digits.md](digits.md)) the KDP student of this pair has {this[0]} %, the student "
        f"alone {this[1]} %, the teacher {this[2]} %; of the package's own pair, pretrained on rendered letters, "
        f"{own[0]}, {own[1]} and {own[2]} %. Commits {', '.join(record['commit'] for record in records)}."
    ]


def by_name_and_seed(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Records of `variants/NAME-SEED.json`."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for file in sorted(folder.glob("*-*.json")):
        name, _, seed = file.stem.rpartition("-")
        found.setdefault(name, {})[int(seed)] = json.loads(file.read_text())
    return found


def distinct(records: list[dict[str, Any]], key: str) -> list[Any]:
    """What the records have under a key, sorted."""
    return sorted({record[key] for record in records})


def about(records: list[dict[str, Any]]) -> list[str]:
    """What the table is made of."""
    first = records[0]
    hours = sum(record["seconds"] for record in records) / 3600
    backbones = next(record for record in records if "teacher" in record["backbones"])["backbones"]
    pair = "; ".join(
        f"{role} `{info['model']}`, {info['parameters'] / 1e6:.1f} M parameters" for role, info in backbones.items()
    )
    short = first["epochs"] < FULL_EPOCHS
    return [
        "Written by `python benchmarks/split_cifar_report.py` from the records in [results/](results). What the "
        "figures mean is in [findings.md](findings.md).",
        "",
        f"* Ten tasks of ten classes in an order shuffled by the seed, all 10,000 test images; percent. Seeds "
        f"{distinct(records, 'seed')}, "
        f"{first['epochs']} epoch{'s' if first['epochs'] > 1 else ''} a task"
        f"{', ' + ' '.join(first['options']) if first['options'] else ''}.",
        *(
            [
                f"* **A short schedule**: the paper trains {FULL_EPOCHS} epochs a task, with backbones pretrained on "
                "ImageNet at 224×224. This is what the machine below could do. The whole table, with a GPU: "
                "`python benchmarks/split_cifar.py --data data/cifar100 --weights weights --runs runs --jobs 4 -- "
                "--resident --compile`."
            ]
            if short
            else []
        ),
        f"* Backbones: {pair}. The paper's are ViT-B and ViT-S: compare gains, not levels.",
        f"* {'; '.join(distinct(records, 'machine'))}; torch {first['versions']['torch']}, "
        f"timm {first['versions']['timm']}; commit {', '.join(distinct(records, 'commit'))}; "
        f"{hours:.1f} hours of runs in all.",
        "",
    ]


def report(folder: Path) -> str:
    """docs/results.md from the records in `folder`."""
    records, paper = read_records(folder), read_paper(folder)
    if not records:
        raise SystemExit(f"no records in {folder}: python benchmarks/split_cifar.py")
    lines = ["# Split CIFAR-100 at 32×32", "", *about(records)]
    if backbones := backbone_lines(folder):
        lines += [
            "## Backbones",
            "",
            "Pretrained on Tiny-ImageNet at 32×32 by `python -m cdl_deploy.training.recipes.pretrain_photos`. The "
            "weights are not in the package: the images may be used for research only.",
            "",
            *backbones,
            *digits_lines(folder),
            "",
        ]
    lines += ["## The table", "", "![accuracy of every student](results/accuracy.png)", "", *tables(records, paper)]
    lines += [
        "### Where the time went",
        "",
        "Seconds a run, all tasks together. `kd` teaches the teacher, which the others of its method and seed take "
        "over; its evaluation includes the teacher's.",
        "",
        time_table(records),
        "",
    ]
    if (folder / "longer").exists():
        lines += longer_section(folder / "longer", paper)
    if (folder / "second-pair").exists():
        lines += second_pair_section(folder / "second-pair", paper)
    cost = folder / "cost.json"
    if cost.exists():
        found = json.loads(cost.read_text())
        lines += cost_section(found, pair_in_words(found, folder))
    variants = by_name_and_seed(folder / "variants")
    base = coda_kdp(records)
    shown = {name: list(options) for name, options in (("ablation", ABLATION), ("candidates", CANDIDATES))}
    if any(name in variants for name in shown["ablation"]):
        lines += ["## What KDP is made of", "", "CODA + KDP with one thing changed, the same teacher."]
        lines += ["", variant_table(shown["ablation"], variants, base), ""]
    answers = {file.stem: json.loads(file.read_text()) for file in sorted((folder / "answers").glob("*.json"))}
    ways = [f"alpha {share}" for share in ("0", "0.25", "0.5", "0.75", "1")]
    if answers:
        lines += [
            "The same KDP students, asked with another α of the prediction (0: the class head alone, 1: the KD head "
            "alone). Final average accuracy, forgetting in brackets:",
            "",
            answer_table(answers, ways),
            "",
        ]
    if any(name in variants for name in shown["candidates"]) or answers:
        lines += [
            "## Better than the paper?",
            "",
            "Each an option, off by default; CODA + KDP. `block-K` and `combined` move the query of the teacher too.",
            "",
            variant_table(shown["candidates"], variants, base),
            "",
        ]
    if answers:
        lines += [
            "`--calibration statistics` changes nothing in training: the runs of the table, calibrated after every "
            "task. Final average accuracy, forgetting in brackets:",
            "",
            answer_table(answers, ["as trained", "calibrated"]),
            "",
        ]
    return "\n".join(lines)


def tables(records: list[dict[str, Any]], paper: dict[tuple[str, str], float], note: str = "") -> list[str]:
    """A table a method, its heading followed by the note."""
    lines = []
    for method in METHODS:
        if any(record["method"] == method for record in records):
            lines += [f"### {method}{note}", "", table(records, paper, method), ""]
    return lines


def variants_too(folder: Path, records: list[dict[str, Any]]) -> list[str]:
    """The variants of another schedule or another pair, in one table."""
    variants = by_name_and_seed(folder / "variants")
    return [variant_table([*ABLATION, *CANDIDATES], variants, coda_kdp(records)), ""] if variants else []


def longer_section(folder: Path, paper: dict[tuple[str, str], float]) -> list[str]:
    """What more epochs change."""
    records = read_records(folder)
    epochs = records[0]["epochs"]
    return [
        "## A longer schedule",
        "",
        f"The same with {epochs} epochs a task, seeds {distinct(records, 'seed')}, commit "
        f"{', '.join(distinct(records, 'commit'))}: `--epochs {epochs} --records docs/results/longer`.",
        "",
        *tables(records, paper, f", {epochs} epochs a task"),
        *variants_too(folder, records),
    ]


def second_pair_section(folder: Path, paper: dict[tuple[str, str], float]) -> list[str]:
    """Whether another pair of the same shapes says the same."""
    records = read_records(folder)
    return [
        "## A second pair",
        "",
        f"The same with backbones of the same shapes, pretrained anew, seeds {distinct(records, 'seed')}, commit "
        f"{', '.join(distinct(records, 'commit'))}: `--records docs/results/second-pair`.",
        "",
        *backbone_lines(folder),
        "",
        *tables(records, paper, ", second pair"),
        *variants_too(folder, records),
    ]


def pair_in_words(cost: dict[str, Any], folder: Path) -> str:
    """Which of the two pairs of backbones the students in the cost table had."""
    for place, name in ((folder, "the table"), (folder / "second-pair", "the second pair")):
        if any(hashes(record) == cost["backbones"] for record in read_records(place)):
            return name
    raise SystemExit(f"the backbones of {folder / 'cost.json'} are those of no record: measure it again")


def cost_section(cost: dict[str, Any], pair: str) -> list[str]:
    """What it costs: from `cdl bench-latency`, and accuracy from `cdl evaluate` on the exported files."""
    machine = cost["machine"]
    threads = "/".join(map(str, cost["threads"]))
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    return [
        "## What it costs",
        "",
        f"`python benchmarks/split_cifar_cost.py`, the runs of {pair}, seed {cost['seed']}: exported ONNX files on "
        f"{machine['cpu']} ({', '.join(machine['instructions'])}), "
        f"threads: {threads}; {versions}; commit {cost['commit']}. The update leads from nine tasks to ten. "
        "`folded`: prompts selected once, for task 10; `block-K`: the query after K blocks of the same pass. Accuracy "
        "is `cdl evaluate` of each file; times, and the notes below, are of `cdl bench-latency`.",
        "",
        "![accuracy against latency](results/cost.png)",
        "",
        cost_table(cost),
        "",
        *(f"* {note}" for note in cost["notes"]),
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    text = report(RESULTS)
    picture(read_records(RESULTS), RESULTS / "accuracy.png")
    if (RESULTS / "cost.json").exists():
        cost_picture(json.loads((RESULTS / "cost.json").read_text()), RESULTS / "cost.png")
    (RESULTS.parent / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
