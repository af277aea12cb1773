"""How near `cdl predict` comes to the slower of its halves: decoding alone and `session.run` alone, on the same cores.

    python benchmarks/predict.py --out predict.json
    python benchmarks/predict.py --models student.onnx --photos DIR --seconds 60

Without arguments it makes 5,000 JPEGs of 1024×768 (windows of scikit-learn's two photographs) and two students: the
packaged mini one, and a ViT-S/16 at 224 with random weights. Each measurement is a process of its own: `decode` (read
and preprocess the files, in as many threads as there are cores), `run` (the model on one batch, over and over; the
faster of onnxruntime's own threads and one session used by several threads) and `predict` (rows of a folder into a
JSON Lines file). Both halves need the same cores, so at best `predict` reaches 1/(1/decode + 1/run).

The images are divided among the rounds; in a round the measurements take turns, in random order, on the same images,
each until they or `--seconds` end (`run`: at most five seconds). The figure is the median over the rounds of predict /
the slower half, all of one round: a machine with other users is another one a minute later. For the same reason a
second is one in which nobody else used the processor: what other programs and the host took is left out (Linux), what
lay idle is not. Files are read once beforehand, so that all find them in the page cache.

Where no program may run for long, in pieces that are then put together:

    python benchmarks/predict.py --make DIR
    python benchmarks/predict.py --models DIR/mini.onnx --photos DIR/photos --rounds 5 --only 1,2 --out a.json
    python benchmarks/predict.py --models DIR/mini.onnx --photos DIR/photos --rounds 5 --only 3,4,5 --out b.json
    python benchmarks/predict.py --combine a.json b.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cdl_deploy.bench.machine import cpu_model
from cdl_deploy.bench.watch import cpu_ticks
from cdl_deploy.data.paths import expand_paths
from cdl_deploy.files import write_json
from cdl_deploy.rows.file import RowFile
from cdl_deploy.runtime.classifier import Classifier
from cdl_deploy.runtime.cores import usable_cores
from cdl_deploy.runtime.predict import predict_rows
from cdl_deploy.runtime.session import open_session

BATCH = 16
COUNT = 5_000
RUN_SECONDS = 5.0
SIZE = (1024, 768)
BAR = 0.9


def make_photographs(folder: Path, number_of: int, size: tuple[int, int]) -> None:
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

    for number in range(0, number_of, 1000):
        (folder / f"{number // 1000}").mkdir(parents=True)
    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(make, range(number_of)))


def make_students(folder: Path) -> list[Path]:
    """The packaged mini student, and a ViT-S/16 with random weights, each trained for a moment and exported."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model("vit_small_patch16_224").state_dict(), folder / "vit_s.safetensors")
    rng = np.random.default_rng(0)
    for split, images in (("train", 2), ("test", 1)):
        for name in ("a", "b"):
            (folder / "few" / split / name).mkdir(parents=True)
            for i in range(images):
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


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began, self._own, self._ticks = time.perf_counter(), time.process_time(), cpu_ticks()

    @property
    def passed(self) -> float:
        """On the wall."""
        return time.perf_counter() - self._began

    @property
    def ours(self) -> float:
        """Of the processor: what this process used and what lay idle, divided by the cores."""
        ticks, used = cpu_ticks(), time.process_time() - self._own
        if ticks is None or self._ticks is None:
            return self.passed
        every, busy, stolen = (now - then for now, then in zip(ticks, self._ticks, strict=True))
        idle = (every - busy - stolen) / os.sysconf("SC_CLK_TCK")
        return (used + idle) / usable_cores()


def rate(work: Callable[[Any], int], items: Iterable[Any], threads: int, seconds: float) -> float:
    """Images a second: `work` on each item, in threads, until the items or the time end."""
    source, one_at_a_time, clock = iter(items), threading.Lock(), Clock()

    def loop(_: int) -> int:
        done = 0
        while clock.passed < seconds:
            with one_at_a_time:
                item = next(source, None)
            if item is None:
                break
            done += work(item)
        return done

    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(loop, range(threads)))
    return done / clock.ours


def measure(what: str, model: Path, photos: Path, seconds: float, part: int, parts: int) -> float:
    """Images a second of one half, or of the whole, on every `parts`-th image from the `part`-th."""
    cores = usable_cores()
    paths = list(expand_paths([str(photos)]))[part::parts]
    for path in paths:  # from the disk: whatever came first in a round would pay for the others
        Path(path).read_bytes()
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
        return rate(lambda _: len(session.run(None, feed)[0]), count(), threads, min(seconds, RUN_SECONDS))
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        some = islice(expand_paths([str(photos)]), part, None, parts)
        until = (path for path in some if clock.passed < seconds)
        with RowFile(Path(folder) / "rows.jsonl", "jsonl", 1) as file:
            for row in predict_rows(classifier, file.remaining(until, classifier), BATCH, top_k=1):
                file.write(row)
        return file.done / clock.ours


WHAT = ("decode", "run, own threads", "run, shared session", "predict")


def compare(model: Path, photos: Path, rounds: int, only: Sequence[int], seconds: float) -> dict[str, Any]:
    """Images a second in each of the rounds `only`, numbered from 1; each figure from a process of its own."""
    found: dict[str, dict[int, float]] = {what: {} for what in WHAT}
    for number in only:
        order = list(WHAT)
        random.Random(number).shuffle(order)
        for what in order:
            words = [sys.executable, __file__, "--measure", what, "--models", str(model), "--photos", str(photos)]
            words += ["--seconds", str(seconds), "--rounds", str(rounds), "--only", str(number)]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            found[what][number] = round(float(done.stdout), 2)
            print(f"{model.stem}, round {number}, {what}: {found[what][number]:.1f} images/s", file=sys.stderr)
    return {"model": model.stem, "images_per_second": found}


def summarise(model: dict[str, Any]) -> dict[str, Any]:
    """What the rounds of one model come to."""
    found = model["images_per_second"]
    ratios, at_best = [], []
    for number in found["predict"]:
        decode = found["decode"][number]
        run = max(found["run, own threads"][number], found["run, shared session"][number])
        ratios.append(found["predict"][number] / min(decode, run))
        at_best.append(1 / (1 / decode + 1 / run) / min(decode, run))
    middle = {what: round(statistics.median(values.values()), 1) for what, values in found.items()}
    return {
        **model,
        "median_images_per_second": middle,
        "of_the_slower": round(statistics.median(ratios), 3),
        "of_the_slower_by_round": [round(ratio, 3) for ratio in ratios],
        "at_best": round(statistics.median(at_best), 3),
    }


def combine(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One record of several whose rounds are others, or whose models are."""
    models: dict[str, dict[str, Any]] = {}
    for record in records:
        if any(record[name] != records[0][name] for name in ("images", "machine", "versions", "seconds", "rounds")):
            sys.exit("these files are of other images, machines, versions, --seconds or --rounds")
        for item in record["models"]:
            known = models.setdefault(item["model"], {"model": item["model"], "images_per_second": {}})
            for what, rounds in item["images_per_second"].items():
                known["images_per_second"].setdefault(what, {}).update({str(n): rate for n, rate in rounds.items()})
    return {**records[0], "models": [summarise(model) for model in models.values()]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", help="default: a mini student and a ViT-S")
    parser.add_argument("--photos", type=Path, help="a folder of images; default: made here")
    parser.add_argument("--size", default="x".join(map(str, SIZE)), help="of the photographs that are made, in pixels")
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--rounds", type=int, default=5, help="into which the images are divided")
    parser.add_argument("--only", metavar="N,N,…", help="rounds to measure; default: all")
    parser.add_argument("--seconds", type=float, default=30.0, help="at most, of each measurement")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--make", type=Path, metavar="DIR", help="make photographs and students here, and nothing else")
    parser.add_argument("--combine", type=Path, nargs="+", metavar="FILE", help="files of --out, put together")
    parser.add_argument("--measure", choices=WHAT, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    only = list(map(int, arguments.only.split(","))) if arguments.only else list(range(1, arguments.rounds + 1))
    if arguments.measure:
        model, part = arguments.models[0], only[0] - 1
        print(measure(arguments.measure, model, arguments.photos, arguments.seconds, part, arguments.rounds))
        return 0
    if arguments.combine:
        record = combine([json.loads(path.read_text(encoding="utf-8")) for path in arguments.combine])
    else:
        with tempfile.TemporaryDirectory() as name:
            folder = arguments.make or Path(name)
            photos, models = arguments.photos, arguments.models
            if photos is None:
                photos = folder / "photos"
                width, height = map(int, arguments.size.split("x"))
                make_photographs(photos, arguments.count, (width, height))
            models = models or make_students(folder)
            if arguments.make:
                return 0
            found = [compare(model, photos, arguments.rounds, only, arguments.seconds) for model in models]
            paths = list(expand_paths([str(photos)]))
            with Image.open(paths[0]) as image:
                images = {"count": len(paths), "size": "x".join(map(str, image.size))}
        record = {
            "images": images,
            "machine": {"cpu": cpu_model(), "cores": usable_cores(), "platform": platform.platform()},
            "versions": {name: version(name) for name in ("cdl-deploy", "onnxruntime", "pillow", "numpy")},
            "commit": subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
            ).stdout.strip(),
            "seconds": arguments.seconds,
            "rounds": arguments.rounds,
            "models": [summarise(model) for model in found],
        }
    if arguments.out:
        write_json(arguments.out, record)
    print(json.dumps(record, indent=2))
    return int(any(item["of_the_slower"] < BAR for item in record["models"]))


if __name__ == "__main__":
    sys.exit(main())
