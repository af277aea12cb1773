"""How near `cdl predict` comes to the slower of its halves: decoding alone and `session.run` alone, on the same cores.

    python benchmarks/predict.py --out docs/predict.json
    python benchmarks/predict.py --models student.onnx --photos DIR --seconds 60

Without arguments it makes 5,000 JPEGs of 1024×768 (windows of scikit-learn's two photographs) and two students: the
packaged mini one, and a ViT-S/16 at 224 with random weights. Each measurement is a process of its own: `decode` (read
and preprocess the files, in as many threads as there are cores), `run` (the model on one batch, over and over; the
faster of onnxruntime's own threads and one session used by several threads) and `predict` (rows of a folder into a
JSON Lines file). Rounds are interleaved, the figures are medians, and every measurement takes all the images or
`--seconds`, whichever is less. Both halves need the same cores, so at best `predict` reaches 1/(1/decode + 1/run).
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cdl_deploy.bench.machine import cpu_model, usable_cores
from cdl_deploy.bundle import open_session
from cdl_deploy.classifier import Classifier
from cdl_deploy.files import write_json
from cdl_deploy.predict import predict_rows
from cdl_deploy.row_file import RowFile
from cdl_deploy.sources import expand_paths

BATCH = 16
COUNT = 5_000
SIZE = (1024, 768)
BAR = 0.9


def make_photographs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Windows of two real photographs, enlarged and mirrored at random: about as hard to decode as photographs are."""
    from sklearn.datasets import load_sample_images

    originals = [Image.fromarray(image) for image in load_sample_images().images]

    def make(number: int) -> None:
        rng = random.Random(number)
        original = rng.choice(originals)
        width = rng.uniform(0.5, 1.0) * original.width
        height = width * size[1] / size[0]
        height, width = min(height, original.height), min(width, original.height * size[0] / size[1])
        left, top = rng.uniform(0, original.width - width), rng.uniform(0, original.height - height)
        image = original.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image.save(folder / f"{number // 1000}" / f"{number:05d}.jpg", quality=90)

    for number in range(0, count, 1000):
        (folder / f"{number // 1000}").mkdir(parents=True)
    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(make, range(count)))


def make_students(folder: Path) -> list[Path]:
    """The packaged mini student, and a ViT-S/16 with random weights, each trained for a moment and exported."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model("vit_small_patch16_224").state_dict(), folder / "vit_s.safetensors")
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("test", 1)):
        for name in ("a", "b"):
            (folder / "few" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "few" / split / name / f"{i}.png")
    few = ["--data", str(folder / "few"), "--tasks", "2", "--distill", "none", "--epochs", "1"]
    students = {
        "mini": [],
        "vit-s": ["--student", "vit_small_patch16_224", "--student-weights", str(folder / "vit_s.safetensors")],
    }
    paths = []
    for name, options in students.items():
        run = folder / name
        for words in (
            ["train", *few, *options, "--out", str(run)],
            ["export", str(run), "--onnx", "--out", str(run / "x")],
        ):
            subprocess.run([sys.executable, "-m", "cdl_deploy.cli", *words], check=True, stdout=subprocess.DEVNULL)
        paths.append((run / "x" / "student.onnx").rename(folder / f"{name}.onnx"))
    return paths


def rate(work: Callable[[Any], int], items: Sequence[Any], threads: int, seconds: float) -> float:
    """Images a second: `work` on each item, in threads, until the items or the time end."""
    began = time.perf_counter()

    def unless_late(item: Any) -> int:
        return work(item) if time.perf_counter() - began < seconds else 0

    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(unless_late, items))
    return done / (time.perf_counter() - began)


def measure(what: str, model: Path, photos: Path, seconds: float) -> float:
    """Images a second of one half, or of the whole."""
    cores = usable_cores()
    paths = list(expand_paths([str(photos)]))
    classifier = Classifier(model, threads=1)
    batch = np.stack([classifier.prepare(path) for path in paths[:BATCH]])
    classifier.probabilities(batch)
    if what == "decode":
        batches = [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]
        return rate(lambda some: len([classifier.prepare(path) for path in some]), batches, cores, seconds)
    if what.startswith("run"):
        threads, own = (1, cores) if what == "run, own threads" else (cores, 1)
        session = open_session(model, threads=own)
        feed = {classifier.interface.input: batch}
        session.run(None, feed)
        return rate(lambda _: len(session.run(None, feed)[0]), range(len(paths) // BATCH), threads, seconds)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        until = (path for path in expand_paths([str(photos)]) if time.perf_counter() - began < seconds)
        with RowFile(Path(folder) / "rows.jsonl", "jsonl", 1) as file:
            for row in predict_rows(classifier, file.remaining(until, classifier), BATCH, top_k=1):
                file.write(row)
        return file.done / (time.perf_counter() - began)


WHAT = ("decode", "run, own threads", "run, shared session", "predict")


def compare(model: Path, photos: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Medians over interleaved rounds, each figure from a process of its own."""
    found: dict[str, list[float]] = {what: [] for what in WHAT}
    for number in range(rounds):
        order = list(WHAT)
        random.Random(number).shuffle(order)
        for what in order:
            words = [sys.executable, __file__, "--measure", what, "--models", str(model), "--photos", str(photos)]
            done = subprocess.run([*words, "--seconds", str(seconds)], check=True, stdout=subprocess.PIPE, text=True)
            found[what].append(float(done.stdout))
            print(f"{model.stem}, round {number + 1}, {what}: {found[what][-1]:.1f} images/s", file=sys.stderr)
    middle = {what: statistics.median(values) for what, values in found.items()}
    decode, run = middle["decode"], max(middle["run, own threads"], middle["run, shared session"])
    return {
        "model": model.stem,
        "images_per_second": {what: [round(value, 2) for value in values] for what, values in found.items()},
        "decode": round(decode, 1),
        "run": round(run, 1),
        "predict": round(middle["predict"], 1),
        "of_the_slower": round(middle["predict"] / min(decode, run), 3),
        "at_best": round(1 / (1 / decode + 1 / run) / min(decode, run), 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", help="default: a mini student and a ViT-S")
    parser.add_argument("--photos", type=Path, help="a folder of images; default: made here")
    parser.add_argument("--size", default="x".join(map(str, SIZE)), help="of the photographs that are made, in pixels")
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=WHAT, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(measure(arguments.measure, arguments.models[0], arguments.photos, arguments.seconds))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        photos, models = arguments.photos, arguments.models
        if photos is None:
            photos = Path(folder) / "photos"
            width, height = map(int, arguments.size.split("x"))
            make_photographs(photos, arguments.count, (width, height))
        models = models or make_students(Path(folder))
        found = [compare(model, photos, arguments.rounds, arguments.seconds) for model in models]
    record = {
        "images": {"count": arguments.count, "size": arguments.size} if arguments.photos is None else str(photos),
        "machine": {"cpu": cpu_model(), "cores": usable_cores(), "platform": platform.platform()},
        "versions": {name: version(name) for name in ("cdl-deploy", "onnxruntime", "pillow", "numpy")},
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "models": found,
    }
    if arguments.out:
        write_json(arguments.out, record)
    print(json.dumps(record, indent=2))
    return int(any(item["of_the_slower"] < BAR for item in found))


if __name__ == "__main__":
    sys.exit(main())
