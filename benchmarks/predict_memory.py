"""Peak memory of `cdl predict` over few and over many files: it must not grow with their number.

    python benchmarks/predict_memory.py --counts 1000,20000

Each count is a process of its own: `cdl predict student.onnx FOLDER --output rows.jsonl`, in as many threads as there
are cores. The files are links to 200 JPEGs of many sizes (100×100 to 1600×1200; noise over gradients), so that buffers
of all lengths are taken and given back. Without `--model` the model is the packaged mini student, trained for a moment.
Exits with 1 if the largest count needs over a tenth more than the smallest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from cdl_deploy.bench.machine import cpu_model
from cdl_deploy.runtime.cores import usable_cores

KINDS = 200
ALLOWED = 1.1
CHILD = """
import sys
from cdl_deploy.process_memory import peak_memory
from cdl_deploy.cli import main
try:
    main(sys.argv[1:])
finally:
    print(peak_memory(), file=sys.stderr)
"""


def make_photographs(folder: Path) -> list[Path]:
    """`KINDS` JPEGs, each of a size of its own."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    paths = []
    for number in range(KINDS):
        width, height = int(rng.integers(100, 1601)), int(rng.integers(100, 1201))
        gradient = np.add.outer(np.linspace(0, 150, height), np.linspace(0, 75, width))[:, :, None]
        pixels = np.clip(gradient + rng.integers(0, 30, (height, width, 3)), 0, 255).astype(np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=85)
    return paths


def make_student(folder: Path) -> Path:
    """The packaged mini student, trained on the embedded digits for a moment, and exported."""
    train = ["train", "--data", "digits", "--tasks", "5", "--distill", "none", "--epochs", "1", "--out"]
    for words in ([*train, str(folder / "run")], ["export", str(folder / "run"), "--onnx", "--out", str(folder / "x")]):
        subprocess.run([sys.executable, "-m", "cdl_deploy.cli", *words], check=True, capture_output=True)
    return folder / "x/student.onnx"


def peak_bytes(model: Path, images: Path, count: int, folder: Path) -> int:
    """Of one `cdl predict` over `count` images."""
    rows = folder / f"{count}.jsonl"
    words = ["predict", str(model), str(images), "--output", str(rows)]
    done = subprocess.run([sys.executable, "-c", CHILD, *words], check=True, capture_output=True, text=True)
    with rows.open("rb") as file:
        found = sum(1 for _ in file)
    if found != count:
        sys.exit(f"{found} rows for {count} images")
    return int(done.stderr.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an exported model")
    parser.add_argument("--counts", default="1000,20000")
    arguments = parser.parse_args()
    counts = sorted(map(int, arguments.counts.split(",")))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"{cpu_model()}, {usable_cores()} cores, onnxruntime {version('onnxruntime')}, commit {commit}", flush=True)
    peaks = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.model or make_student(folder)
        originals = make_photographs(folder / "originals")
        for count in counts:
            images = folder / f"{count}"
            for number in range(count):
                place = images / f"{number // 1000:04d}"
                place.mkdir(parents=True, exist_ok=True)
                os.link(originals[number % KINDS], place / f"{number % 1000:03d}.jpg")
            began = time.monotonic()
            peaks.append(peak_bytes(model, images, count, folder))
            print(f"{count:9,} images: peak {peaks[-1] / 1e6:.0f} MB, {time.monotonic() - began:.0f} s", flush=True)
    growth = peaks[-1] / peaks[0]
    good = growth <= ALLOWED
    print(f"{counts[-1]:,} images / {counts[0]:,} images: {growth:.3f}, {'' if good else 'NOT '}at most {ALLOWED}")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
