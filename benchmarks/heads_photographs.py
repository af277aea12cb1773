"""Closed-form heads on photographs: Split CIFAR-100 with the public pair, and whether adaptation helps the features.

    python benchmarks/heads_photographs.py --weights weights --data data/cifar100 --part baselines
    python benchmarks/heads_photographs.py --weights weights --data data/cifar100 --part adapted --runs runs/heads

`--weights`: the folder of `python -m cdl_deploy.training.recipes.public_backbone` with the features that
backbone_probes.py has kept (features_teacher.npz, features_student.npz): 100 training images a class, all test images.

baselines  frozen backbones, ten tasks of ten classes: nearest class mean, slda, ridge and RanPAC (ridge on 2,000 random
           features); the upper bound is a linear probe trained on all classes at once, logistic regression on the same
           features with C chosen on a fifth of the training images.
adapted    prompts and distillation train in the first task on few images and a short schedule; then the student's
           features of all classes, under the same closed-form head and on the same images as the frozen student's.

Goes on with what docs/results/heads-photographs.json does not have yet. No image is written anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.marked import between  # noqa: E402
from cdl_deploy.closed_form.features import FeatureMap, RandomProjection  # noqa: E402
from cdl_deploy.closed_form.head_rule import HeadRule, solve_head  # noqa: E402
from cdl_deploy.closed_form.overconfidence import measure_overconfidence  # noqa: E402
from cdl_deploy.closed_form.statistics import Statistics, gather  # noqa: E402
from cdl_deploy.evaluation.calibration import confidence_bins  # noqa: E402

RECORD = PROJECT / "docs" / "results" / "heads-photographs.json"
PAGE = PROJECT / "docs" / "choosing.md"
MODELS = {"teacher": "vit_small_patch14_dinov2", "student": "vit_384x6_patch14_98"}
FEATURES = {"class": ("class",), "class+patches": ("class", "patches")}
TASKS, SEED, SIZE = 10, 0, 98
HEADS: dict[str, tuple[HeadRule, int]] = {
    "ncm": (HeadRule("ncm"), 0),
    "slda": (HeadRule("slda"), 0),
    "ridge": (HeadRule("ridge"), 0),
    "RanPAC": (HeadRule("ridge"), 2000),
}
HEADS_SHORT = ("ncm", "slda", "ridge")
ADAPTED = {"CODA": ("coda", "none"), "CODA + KDP": ("coda", "kdp")}
Vectors = NDArray[np.floating]
Labels = NDArray[np.int64]


class Record:
    def __init__(self) -> None:
        self.values: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {}

    def has(self, part: str, name: str) -> bool:
        return name in self.values.get(part, {})

    def set(self, part: str, name: str, figures: Any) -> None:
        if RECORD.exists():  # the other part may have gone on meanwhile
            self.values = json.loads(RECORD.read_text()) | {k: v for k, v in self.values.items() if k == "budget"}
        self.values.setdefault(part, {})[name] = figures
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True)
        self.values["about"] = {
            "data": "Split CIFAR-100, ten tasks of ten classes, images at 98",
            "models": MODELS,
            "warning": "not official DINOv2 weights; fine-tuned as the encoder of a saliency model",
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, shared; one thread",
            "commit": commit.stdout.strip(),
            "versions": {name: version(name) for name in ("torch", "timm", "numpy", "scikit-learn")},
        }
        RECORD.write_text(json.dumps(self.values, indent=1) + "\n")
        print(f"{part}: {name}: {figures}", flush=True)


# ---- heads on features -----------------------------------------------------------------------------------------------


def sums(vectors: Vectors, labels: Labels, names: tuple[str, ...], rule: HeadRule) -> Statistics:
    """Of a task, with how sure its head may be."""
    return replace(gather(vectors, labels, names).seen(), overconfidence=measure_overconfidence(vectors, labels, rule))


def accuracy_of(
    head: str, train: tuple[Vectors, Labels], test: tuple[Vectors, Labels], stages: bool = True
) -> dict[str, float]:
    """Final accuracy; forgetting over ten tasks (where `stages`) and calibration error. Labels 0 to C − 1."""
    rule, random = HEADS[head]
    projection = RandomProjection(random, SEED) if random else None
    map_ = FeatureMap(("class",), normalise=rule.kind == "ncm", projection=projection)
    (x, y), (u, v) = ((map_.transform(vectors), labels) for vectors, labels in (train, test))
    count = int(y.max()) + 1
    order = np.random.default_rng(SEED).permutation(count)
    task_of = np.empty(count, np.int64)
    task_of[order] = np.arange(count) * TASKS // count
    began = time.perf_counter()
    total: Statistics | None = None
    rows: list[list[float]] = []
    for task in range(TASKS):
        chosen = np.isin(y, order[task_of[order] == task])
        names = tuple(map(str, range(count)))
        some = sums(x[chosen], y[chosen], names, rule)
        total = some if total is None else total.merge(some)
        last = task == TASKS - 1
        if not (stages or last):
            continue
        layer = solve_head(total, rule, calibrate=last and not random).calibrated.arranged(
            sorted(total.classes, key=int)
        )
        known = np.array(list(map(int, layer.classes)))
        seen = np.isin(v, known)
        scores = layer.scores(u[seen])
        hits = known[scores.argmax(axis=1)] == v[seen]
        rows.append([float(hits[task_of[v[seen]] == t].mean() * 100) for t in range(task + 1)])
    found = {"accuracy": round(100 * float(hits.mean()), 2), "seconds": round(time.perf_counter() - began, 1)}
    if stages:
        final = rows[-1]
        found["forgetting"] = round(
            float(np.mean([max(row[t] for row in rows[t:-1]) - final[t] for t in range(TASKS - 1)])), 2
        )
    if not random:
        exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
        bins = confidence_bins((exponents / exponents.sum(axis=1, keepdims=True)).max(axis=1), hits)
        gaps = [it.images * abs(it.accuracy - it.confidence) for it in bins if it.images]  # type: ignore[operator]
        found["ece"] = round(sum(gaps) / len(v), 2)
    return found


def joint_probe(train: tuple[Vectors, Labels], test: tuple[Vectors, Labels]) -> dict[str, float]:
    """Logistic regression on all classes at once, features standardised; C chosen on a fifth of the training images."""
    import torch

    values: tuple[Any, ...] = (*train, *test)
    x, y, u, v = values
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-6
    x, u = ((torch.from_numpy((it - mean) / std).float()) for it in (x, u))
    y, v = torch.from_numpy(y), torch.from_numpy(v)
    began = time.perf_counter()
    held = torch.from_numpy(np.random.default_rng(SEED).permutation(len(y)) < len(y) // 5)
    count = int(y.max()) + 1

    def fit(x: Any, y: Any, decay: float) -> Any:
        weight = torch.zeros(count, x.shape[1] + 1, requires_grad=True)
        solver = torch.optim.LBFGS([weight], max_iter=40, history_size=10, line_search_fn="strong_wolfe")

        def closure() -> Any:
            solver.zero_grad()
            logits = x @ weight[:, :-1].T + weight[:, -1]
            loss = torch.nn.functional.cross_entropy(logits, y) + decay / 2 * weight[:, :-1].square().sum()
            loss.backward()
            return loss

        solver.step(closure)
        return weight.detach()

    def score(weight: Any, x: Any, y: Any) -> float:
        return 100 * float(((x @ weight[:, :-1].T + weight[:, -1]).argmax(dim=1) == y).double().mean())

    decays = (3e-3, 1e-2)
    chosen = max(decays, key=lambda it: score(fit(x[~held], y[~held], it), x[held], y[held]))
    found = score(fit(x, y, chosen), u, v)
    return {"accuracy": round(found, 2), "decay": chosen, "seconds": round(time.perf_counter() - began, 1)}


def cached(weights: Path, role: str, features: str, split: str) -> tuple[Vectors, Labels]:
    kept = np.load(weights / f"features_{role}.npz")
    parts = [kept[f"{split}_{part}"] for part in FEATURES[features]]
    return np.concatenate(parts, axis=1), kept[f"{split}_labels"]


def baselines(record: Record, weights: Path) -> None:
    for head in (*HEADS, "joint linear probe"):
        for role in ("student", "teacher"):
            for features in reversed(FEATURES):
                name = f"{role}, {features}, {head}"
                if not record.has("baselines", name):
                    train, test = (cached(weights, role, features, split) for split in ("train", "test"))
                    if head in HEADS:
                        record.set("baselines", name, accuracy_of(head, train, test, stages=HEADS[head][1] == 0))
                    else:
                        record.set("baselines", name, joint_probe(train, test))


# ---- prompts and distillation that train in the first task -----------------------------------------------------------


def adapted(record: Record, given: argparse.Namespace) -> None:
    """Each of ADAPTED trains in the first task alone; then all classes' features, and heads on them."""
    import torch

    import cdl_deploy
    from cdl_deploy.data.labelled import LabelledImages
    from cdl_deploy.training.checkpoint import load_task
    from cdl_deploy.training.data.loading import load_known
    from cdl_deploy.training.data.transforms import evaluation_transform
    from cdl_deploy.training.recipes.backbone_probes import choose
    from cdl_deploy.training.run_directory import RunDirectory

    classes = tuple(sorted(it.name for it in (given.data / "train").iterdir()))

    def listed(split: str) -> LabelledImages:
        """All files: the run that trains on some of them checks those."""
        found = [(it, name) for name in classes for it in sorted((given.data / split / name).iterdir())]
        return LabelledImages(str(given.data), [it for it, _ in found], [name for _, name in found])

    kept = np.load(given.weights / "features_student.npz")
    train = choose(listed("train"), 100, 0, "train", classes)
    test = listed("test")
    order = np.random.default_rng(SEED).permutation(len(classes))
    rows = {
        "train": np.concatenate([100 * c + np.arange(given.images) for c in range(len(classes))]),
        "test": np.concatenate([100 * c + np.arange(given.test_images) for c in range(len(classes))]),
    }
    labels = {split: kept[f"{split}_labels"][rows[split]] for split in rows}
    budget = {
        "what": "a short schedule: prompts, KD token, KD prompts and teacher train in the first task of ten classes",
        "training_images_a_class_in_task_1": given.first_images,
        "epochs": given.epochs,
        "images_a_class_for_the_head": given.images,
        "test_images": len(labels["test"]),
        "seed": SEED,
    }
    record.values["budget"] = budget
    every: dict[str, dict[str, dict[str, Vectors]]] = {
        "frozen": {s: {part: kept[f"{s}_{part}"][rows[s]] for part in ("class", "patches")} for s in rows}
    }

    def heads_on(name: str, features: dict[str, dict[str, Vectors]]) -> None:
        sets = [("class",), ("class", "patches")]
        if "kd" in features["train"]:
            sets += [("class", "kd"), ("class", "patches", "kd")]
        for parts in sets:
            joined = {s: np.concatenate([features[s][part] for part in parts], axis=1) for s in rows}
            for head in HEADS_SHORT:
                figures = accuracy_of(
                    head, (joined["train"], labels["train"]), (joined["test"], labels["test"]), stages=False
                )
                del figures["seconds"]
                record.set("adapted", f"{name}, {'+'.join(parts)}, {head}", figures)

    heads_on("frozen", every["frozen"])
    folder = given.runs / "first-task"
    for c in order[:10]:
        for split, images, a_class in (("train", train, given.first_images), ("test", test, 2)):
            place = folder / split / classes[c]
            place.mkdir(parents=True, exist_ok=True)
            for item in images.items[100 * c : 100 * c + a_class]:
                link = place / Path(str(item)).name
                if not link.exists():
                    link.symlink_to(Path(str(item)).resolve())
    for name, (method, distill) in ADAPTED.items():
        root = given.runs / f"photographs-{method}-{distill}"
        file = root.with_suffix(".npz")
        if not file.exists():
            if not (root / "done").exists():
                began = time.perf_counter()
                cdl_deploy.train(
                    folder, out=root, tasks=1, method=method, distill=distill, head="slda", adapt="first",
                    epochs=given.epochs, seed=SEED, device="cpu", image_size=SIZE,
                    teacher=MODELS["teacher"], teacher_weights=given.weights / "teacher.safetensors",
                    student=MODELS["student"], student_weights=given.weights / "student.safetensors",
                )  # fmt: skip
                (root / "done").write_text(str(time.perf_counter() - began))
                print(f"{name}: trained in {time.perf_counter() - began:.0f} s", flush=True)
            run = RunDirectory(root).latest_record()
            pair = load_task(RunDirectory(root), run)
            student, transform = pair.student, evaluation_transform(run.preprocessing.resize_crop)
            found: dict[str, Vectors] = {}
            began = time.perf_counter()
            for split, images in (("train", train), ("test", test)):
                parts = []
                with torch.no_grad(), student.backbone.packed_layers():
                    for start in range(0, len(rows[split]), 50):
                        some = rows[split][start : start + 50]
                        pixels = torch.stack([transform(load_known(images.items[row])) for row in some])
                        query = torch.from_numpy(kept[f"{split}_class"][some])  # the frozen student's class token
                        if start == 0:
                            full = pair.encoder(pixels).query
                            assert full is not None and float((full - query).abs().max()) < 1e-3
                        tokens = student.backbone.embed(pixels)
                        output = student(tokens, query, "test")
                        parts.append(output.features.numpy())
                        print(f"{name}: {split} {start + len(some)}, {time.perf_counter() - began:.0f} s", flush=True)
                stacked = np.concatenate(parts)
                found |= {f"{split}_class": stacked[:, 0], f"{split}_patches": stacked[:, 1]}
                if stacked.shape[1] > 2:
                    found[f"{split}_kd"] = stacked[:, -1]
            np.savez(file, **dict[str, Any](found))
        loaded = np.load(file)
        every[name] = {
            split: {
                part: loaded[f"{split}_{part}"] for part in ("class", "patches", "kd") if f"{split}_{part}" in loaded
            }
            for split in rows
        }
        heads_on(name, every[name])


def tables(record: Record) -> str:
    """Markdown: the baselines, then what adaptation and distillation change."""
    found = record.values.get("baselines", {})
    heads = (*HEADS, "joint linear probe")
    lines = ["| frozen backbone, features | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for role in ("student", "teacher"):
        for features in FEATURES:
            cells = [found.get(f"{role}, {features}, {head}", {}).get("accuracy") for head in heads]
            shown = " | ".join("–" if it is None else f"{it:.1f}" for it in cells)
            lines.append(f"| {role}, {features} | {shown} |")
    text = "\n".join(lines)
    adapted, budget = record.values.get("adapted", {}), record.values.get("budget")
    if not budget or all(name.startswith("frozen") for name in adapted):  # nothing to compare yet
        return text
    names = list(dict.fromkeys(name.rsplit(", ", 1)[0] for name in adapted))
    rows = ["| student's features | ncm | slda | ridge |", "|---|---|---|---|"]
    for name in names:
        rows.append(
            f"| {name} | " + " | ".join(f"{adapted[f'{name}, {it}']['accuracy']:.1f}" for it in HEADS_SHORT) + " |"
        )
    return f"""{text}

**A short schedule**, one seed: prompts, KD token, KD prompts and teacher train in the first task alone, on
{budget["training_images_a_class_in_task_1"]} images of each of its ten classes, {budget["epochs"]} epochs; the head
sees {budget["images_a_class_for_the_head"]} images of each of the hundred classes; {budget["test_images"]:,} test
images, the same for all lines.

{chr(10).join(rows)}"""


def write(record: Record) -> None:
    """The tables, between the markers of docs/choosing.md."""
    PAGE.write_text(between(PAGE.read_text(), "benchmarks/heads_photographs.py", tables(record)))
    print(tables(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--data", type=Path, default=Path("data/cifar100"))
    parser.add_argument("--part", choices=("baselines", "adapted", "write"), default="baselines")
    parser.add_argument("--runs", type=Path, default=Path("runs/heads"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--first-images", type=int, default=20, help="of each class of the first task, to train on")
    parser.add_argument("--images", type=int, default=10, help="of each class, for the head")
    parser.add_argument("--test-images", type=int, default=10, help="of each class")
    given = parser.parse_args()
    record = Record()
    if given.part == "baselines":
        baselines(record, given.weights)
    elif given.part == "adapted":
        given.runs.mkdir(parents=True, exist_ok=True)
        adapted(record, given)
    write(record)


if __name__ == "__main__":
    main()
