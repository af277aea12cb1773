"""What does it cost to learn where a model runs, and is it as good as learning all at once?

    python benchmarks/learn.py
    python benchmarks/learn.py --only time
    python benchmarks/learn.py --only accuracy

time      ViT-S/16 at 224 with random weights, 10 known classes, two threads: `cdl learn` of one new class of 20 images,
          against `cdl predict` of the same 20, each a process of its own, in turn; median of the rounds.
size      the same with 1,000 known classes: `Learner.save` after one more addition, and the peak memory of a process
          that does nothing else, against the file.
accuracy  scikit-learn's digits with the packaged student, frozen: a run of the first five, exported, then learns the
          other five one by one (`exact`) or in one addition (`at once`). `new alone`, `all held`: a softmax head on the
          same features, trained by gradients as Teachable Machine does, on the new class's images alone as they come,
          or on all images of all classes, which must be kept for it.

Exits 1 where learning takes more than 1.2 times as long as predicting and 0.3 s, 1,000 classes take 2 s or more than
the file and 150 MB, an update is more than 2.5 % of the file, or exact is not at once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import cdl_deploy  # noqa: E402
from benchmarks.closed_form_file import export  # noqa: E402
from cdl_deploy import Classifier, Learner  # noqa: E402
from cdl_deploy.bench.machine import cpu_model  # noqa: E402
from cdl_deploy.closed_form.features import FeatureMap  # noqa: E402
from cdl_deploy.closed_form.head_rule import HeadRule  # noqa: E402
from cdl_deploy.closed_form.history import History  # noqa: E402
from cdl_deploy.closed_form.statistics import gather  # noqa: E402
from cdl_deploy.closed_form.statistics_file import StoredStatistics, write_statistics  # noqa: E402
from cdl_deploy.export import ExportOptions, export_run  # noqa: E402
from cdl_deploy.export.features_hash import features_hash  # noqa: E402
from cdl_deploy.export.onnx_file import save_onnx  # noqa: E402
from cdl_deploy.learn.addition import Rows  # noqa: E402
from cdl_deploy.runtime.bundle import StatisticsFile, encode_metadata, read_bundle, statistics_path  # noqa: E402

IMAGES, KNOWN, MANY, A_CLASS = 20, 10, 1000, 5
FACTOR, EXTRA, WRITE, MEMORY, UPDATE = 1.2, 0.3, 2.0, 150e6, 0.025
"""The bars: of predicting, seconds beside that, seconds, bytes beside the file, share of the file."""
SAVE = """
import sys, time, numpy as np
from cdl_deploy import Learner
from cdl_deploy.process_memory import peak_memory
from cdl_deploy.closed_form.statistics import gather
learner = Learner(sys.argv[1])
rows = np.random.default_rng(1).normal(size=(20, learner.total.dimension))
learner._do(lambda state: state.add(gather(rows, np.zeros(20, int), ("one more",))))
began, busy = time.perf_counter(), time.process_time()
learner.save()
took, busy = time.perf_counter() - began, time.process_time() - busy
print(took, busy, peak_memory())
"""


def learnable(path: Path, classes: int) -> None:
    """A model of so many classes with statistics beside it; the sums are random, the features those of the graph."""
    export(path, "frozen", tasks=classes // 10)
    model, bundle = onnx.load(path), read_bundle(path)
    assert bundle.features is not None
    features = replace(bundle.features, sha256=features_hash(model))
    D = bundle.features.dimension
    labels = np.repeat(np.arange(classes), A_CLASS)
    rows = np.random.default_rng(0).normal(size=(len(labels), D))
    sums = gather(rows, labels, bundle.classes)
    stored = StoredStatistics(History(sums), FeatureMap.parse(bundle.features.parts), HeadRule(), features.sha256)
    digest = write_statistics(statistics_path(path), stored)
    named = StatisticsFile(statistics_path(path).name, digest)
    save_onnx(model, path, encode_metadata(replace(bundle, features=features, statistics=named)))


def measured(command: list[str]) -> tuple[float, str]:
    """Seconds that a process took, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONPATH": str(PROJECT)}, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr}")
    return time.perf_counter() - began, done.stdout


def compare_times(folder: Path, rounds: int) -> bool:
    """Whether learning is fast enough."""
    path = folder / "student.onnx"
    learnable(path, KNOWN)
    random = np.random.default_rng(0)
    images = folder / "photos/screw"
    images.mkdir(parents=True)
    for number in range(IMAGES):
        pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).resize((640, 480)).save(images / f"{number}.jpg")
    cdl = [sys.executable, "-c", "from cdl_deploy.cli import main; main()"]
    learn = [*cdl, "learn", str(path), str(images.parent), "-o", str(folder / "new.onnx"), "--threads", "2"]
    predict = [*cdl, "predict", str(path), str(images), "--threads", "2", "--format", "jsonl"]
    pairs = [(measured(predict)[0], measured(learn)[0]) for _ in range(rounds)]
    ours, theirs = median(pair[1] for pair in pairs), median(pair[0] for pair in pairs)
    bar = FACTOR * theirs + EXTRA
    measured([*learn, "--patch", str(folder / "out.cdlup")])
    share = (folder / "out.cdlup").stat().st_size / path.stat().st_size
    print(f"update of one class: {100 * share:.2f} % of the file\n")
    print(
        "| predict 20 images | learn 20 images | bar |\n|---|---|---|\n"
        f"| {theirs:.2f} s | {ours:.2f} s | {bar:.2f} s |\n"
    )
    return ours <= bar and share <= UPDATE


def compare_sizes(folder: Path) -> bool:
    """Whether many classes are written fast enough, and in little memory."""
    path = folder / "many.onnx"
    learnable(path, MANY)
    size = path.stat().st_size
    _, said = measured([sys.executable, "-c", SAVE, str(path)])
    seconds, busy, peak = map(float, said.split())
    print("| classes | solve and write | of processor time | peak memory | file | beside the file |")
    print(6 * "|---" + "|")
    beside = f"{peak / 1e6:.0f} MB | {size / 1e6:.0f} MB | {(peak - size) / 1e6:.0f} MB"
    print(f"| {MANY + 1:,} | {seconds:.2f} s | {busy:.2f} s | {beside} |\n")
    return seconds < WRITE and peak <= size + MEMORY


def folder_of_digits(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """scikit-learn's digits as image files, by split and class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    loaded = load_digits()
    parts = train_test_split(loaded.images, loaded.target, test_size=0.3, random_state=0, stratify=loaded.target)
    found: dict[str, dict[str, list[Path]]] = {"train": {}, "test": {}}
    for split, images, labels in (("train", parts[0], parts[2]), ("test", parts[1], parts[3])):
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / split / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.uint8(image * 255 / 16)).resize((64, 64)).save(path)
            found[split].setdefault(str(label), []).append(path)
    return found


def compare_accuracy(folder: Path) -> bool:
    """Whether classes that come one by one are known as well as those that came at once."""
    files = folder_of_digits(folder / "digits")
    run, out = folder / "run", folder / "out"
    cdl_deploy.train(folder / "digits", tasks=2, method="none", distill="none", class_order="natural", out=run)
    export_run(run, out, ExportOptions(teacher=False, latency=False), after=1)
    path = out / "student.onnx"
    one, once = Learner(path), Learner(path)
    later = {name: paths for name, paths in sorted(files["train"].items()) if name not in one.classes}
    known = {name: paths for name, paths in files["train"].items() if name in one.classes}
    for name, paths in later.items():
        one.add(name, paths)
    once.add_classes(later)
    test = one.reader.held(files["test"])
    found = {}
    for way, learner in (("exact", one), ("at once", once)):
        learner.save(out / "learned.onnx")
        classifier = Classifier(out / "learned.onnx")
        said = [item.label for item in classifier.predict([path for paths in files["test"].values() for path in paths])]
        found[way] = 100 * float(np.mean([label == true for label, true in zip(said, test.labels, strict=True)]))
    train = one.reader.held(known | later)
    stages = [tuple(known), *((name,) for name in later)]
    found["new alone"] = by_gradient(train, test, stages)
    found["all held"] = by_gradient(train, test, [tuple(known | later)])
    print(
        f"digits, {len(later)} classes one by one after {len(known)}; right on {len(test.labels)} test images, in "
        f"percent\n\n| {' | '.join(found)} |\n|{'---|' * len(found)}\n"
        f"| {' | '.join(f'{share:.2f}' for share in found.values())} |\n"
    )
    return abs(found["exact"] - found["at once"]) < 0.05


def by_gradient(train: Rows, test: Rows, stages: Sequence[tuple[str, ...]], epochs: int = 50) -> float:
    """A softmax head trained with Adam, on the images of each stage's classes alone; percent right."""
    import torch

    torch.manual_seed(0)
    names = sorted(set(train.labels))
    mean, spread = train.features.mean(axis=0), train.features.std(axis=0) + 1e-6
    rows, tests = (torch.from_numpy((part.features - mean) / spread).float() for part in (train, test))
    places = torch.tensor([names.index(label) for label in train.labels])
    head = torch.nn.Linear(rows.shape[1], len(names))
    for stage in stages:
        own = torch.tensor([at for at, label in enumerate(train.labels) if label in stage])
        optimiser = torch.optim.Adam(head.parameters(), lr=1e-3)
        for _ in range(epochs):
            for some in own[torch.randperm(len(own))].split(32):
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(head(rows[some]), places[some]).backward()
                optimiser.step()
    with torch.no_grad():
        said = head(tests).argmax(dim=1).tolist()
    return 100 * float(np.mean([names[place] == label for place, label in zip(said, test.labels, strict=True)]))


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("time", "size", "accuracy"))
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    print(f"{cpu_model()}, two threads\n")
    good = True
    with tempfile.TemporaryDirectory() as name:
        if asked.only in (None, "time"):
            good &= compare_times(Path(name), asked.rounds)
        if asked.only in (None, "size"):
            good &= compare_sizes(Path(name))
        if asked.only in (None, "accuracy"):
            good &= compare_accuracy(Path(name))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
