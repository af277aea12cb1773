"""A task in seconds: ten new classes for a finished run, closed form against learned, a bare pass and `cdl predict`.

    python benchmarks/add_task.py                    # ViT-S at 224, 10 classes x 100 images: about an hour on 2 cores
    python benchmarks/add_task.py --images 6 --tests 1   # fewer images: minutes
    python benchmarks/add_task.py --quick            # the packaged pair at 32, to see that it works

Random weights and synthetic JPEGs: nothing here depends on what is seen. Each part is a process of its own in one
thread; ratios are of CPU seconds, which a shared machine changes less than wall-clock seconds, both are printed.

* bare pass: the backbone in onnxruntime (one thread, batch 16), images decoded, resized and cropped beforehand.
* closed form: `cdl train --add` to a run with `--head slda`, frozen (`--method none`) and with CODA prompts that
  trained in the first task (`--adapt first`), whose query is a pass of its own or, with `--query block:4`, part of the
  same. From opening the run to its record;
  the tests, which grow with all classes, are said apart.
* learned: `cdl train --add` with the defaults before closed forms (KDP, 20 epochs, ViT-B teacher), one epoch on
  `--learned-images` images; EXTRAPOLATED by images and epochs.
* cdl learn: the exported file learns the same images, without PyTorch.
* memory: peak of the process, against that of `cdl predict` with the exported file over the same images.

Exits 1 where a bar is missed: 100x faster than learned, 1.3x of the bare pass, 1.1x of cdl predict's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from cdl_deploy.bench.machine import cpu_model  # noqa: E402
from cdl_deploy.runtime.cores import usable_cores  # noqa: E402

CLASSES, EPOCHS = 10, 20
FASTER, OF_BARE, MEMORY = 100.0, 1.3, 1.1
PEAK = "peak_memory()"
ADD = f"""
import json, sys, time
from cdl_deploy.process_memory import peak_memory
import cdl_deploy
from cdl_deploy.training import loop
spent = dict(evaluate=0.0, learn_epoch=0.0)
def timed(name):
    inner = getattr(loop, name)
    def outer(*words):
        cpu = time.process_time()
        try:
            return inner(*words)
        finally:
            spent[name] += time.process_time() - cpu
    setattr(loop, name, outer)
for name in spent:
    timed(name)
began, cpu = time.perf_counter(), time.process_time()
options = json.loads(sys.argv[3])
record = cdl_deploy.train(sys.argv[1], add=sys.argv[2], **options)
print(json.dumps(dict(wall=time.perf_counter() - began, cpu=time.process_time() - cpu, start=cpu, peak={PEAK},
    tests=spent["evaluate"], epochs=spent["learn_epoch"])))
"""
PREDICT = f"""
import json, sys, time
from cdl_deploy.process_memory import peak_memory
from cdl_deploy.cli import main
began, cpu = time.perf_counter(), time.process_time()
try:
    main(sys.argv[1:])
finally:
    spent = dict(wall=time.perf_counter() - began, cpu=time.process_time() - cpu, tests=0.0)
    print(json.dumps(dict(peak={PEAK}, **spent)), file=sys.stderr)
"""
BARE = f"""
import json, sys, time
from cdl_deploy.process_memory import peak_memory
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
pixels = np.random.default_rng(0).standard_normal((16, 3, int(sys.argv[3]), int(sys.argv[3]))).astype(np.float32)
name, count = session.get_inputs()[0].name, int(sys.argv[2])
session.run(None, {{name: pixels[:1]}})
began, cpu = time.perf_counter(), time.process_time()
for start in range(0, count, 16):
    session.run(None, {{name: pixels[: min(16, count - start)]}})
print(json.dumps(dict(wall=time.perf_counter() - began, cpu=time.process_time() - cpu, peak={PEAK})))
"""


def child(code: str, *words: str, stream: str = "stdout") -> dict[str, Any]:
    """The JSON that a process of one thread ends with."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(getattr(done, stream).splitlines()[-1]))


def make_images(folder: Path, first: int, classes: int, a_class: int, tests: int, size: int) -> Path:
    """JPEGs of noise over gradients, a third larger than the model takes."""
    rng = np.random.default_rng(first)
    side = size * 4 // 3
    for name in range(first, first + classes):
        for split, count in (("train", a_class), ("test", tests)):
            place = folder / split / f"class-{name:03d}"
            place.mkdir(parents=True)
            for number in range(count):
                gradient = np.add.outer(np.linspace(0, 9 * name % 150, side), np.linspace(0, 75, side))[:, :, None]
                pixels = np.clip(gradient + rng.integers(0, 60, (side, side, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.jpg", quality=85)
    return folder


def make_weights(model: str, file: Path) -> Path:
    """Random ones."""
    import safetensors.torch
    import timm
    import torch

    torch.manual_seed(0)
    vit = timm.create_model(model, pretrained=False, num_classes=0)
    safetensors.torch.save_file(vit.state_dict(), file)
    return file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100, help="of each of the ten classes (100)")
    parser.add_argument("--tests", type=int, default=5, help="test images of each class (5)")
    parser.add_argument("--learned-images", type=int, default=16, help="measured of the learned way (16)")
    parser.add_argument("--quick", action="store_true", help="the packaged pair at 32, 10 images a class")
    parser.add_argument("--save", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    student, teacher, size = "vit_small_patch16_224", "vit_base_patch16_224", 224
    if given.quick:
        given.images, given.tests, student, teacher, size = 10, 1, "mini_student", "mini_teacher", 32
    count = CLASSES * given.images
    import cdl_deploy

    measured: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = make_images(folder / "first", 0, 2, 2, 1, size)
        new = make_images(folder / "new", 100, CLASSES, given.images, given.tests, size)
        few = make_images(folder / "few", 100, 2, given.learned_images // 2, 1, size)
        models: dict[str, Any] = {"student": student, "teacher": teacher, "device": "cpu", "epochs": 1, "tasks": 1}
        if not given.quick:
            for role in ("student", "teacher"):
                models[f"{role}_weights"] = make_weights(models[role], folder / f"{role}.safetensors")
        runs = {
            "frozen": {"method": "none", "distill": "none", "head": "slda"},
            "CODA, adapt first": {"method": "coda", "distill": "none", "head": "slda"},
            "CODA, adapt first, block:4": {"method": "coda", "distill": "none", "head": "slda", "query": "block:4"},
            "learned": {"method": "coda", "distill": "kdp", "head": "learned"},
        }
        for label, options in runs.items():
            root = folder / label.replace(", ", "-").replace(" ", "-").replace(":", "-")
            wanted: dict[str, Any] = {**models, **options}
            cdl_deploy.train(first, out=root, **wanted)
            images, more = (few, {"epochs": 1}) if label == "learned" else (new, {})
            measured[label] = child(ADD, str(root), str(images), json.dumps(more))
            print(label, measured[label], file=sys.stderr, flush=True)
        frozen = folder / "frozen"
        cdl_deploy.export(frozen, folder / "tensor", input="tensor")
        cdl_deploy.export(frozen, folder / "image")
        measured["bare pass"] = child(BARE, str(folder / "tensor/student.onnx"), str(count), str(size))
        words = ("predict", str(folder / "image/student.onnx"), str(new / "train"), "--output", str(folder / "r.jsonl"))
        measured["cdl predict"] = child(PREDICT, *words, stream="stderr")
        words = ("learn", str(folder / "image/student.onnx"), str(new / "train"), "-o", str(folder / "learned.onnx"))
        measured["cdl learn"] = child(PREDICT, *words, stream="stderr")
    steps = measured["learned"]["epochs"] * EPOCHS * count / given.learned_images
    bare, memory = measured["bare pass"]["cpu"], measured["cdl predict"]["peak"]
    print(
        f"{cpu_model()}, {usable_cores()} cores, one thread, shared; torch {version('torch')}, onnxruntime "
        f"{version('onnxruntime')}\n{student} at {size}, {CLASSES} classes x {given.images} images, "
        f"{time.strftime('%Y-%m-%d')}\n\n"
        "| | CPU s | wall s | of a bare pass | learned is longer by | peak, MB | of cdl predict's |\n"
        "|---|---|---|---|---|---|---|\n"
        f"| bare pass, onnxruntime | {bare:.1f} | {measured['bare pass']['wall']:.1f} | 1.00 | {steps / bare:.0f}x | "
        f"{measured['bare pass']['peak'] / 1e6:.0f} | {measured['bare pass']['peak'] / memory:.2f} |\n"
        f"| cdl predict | | | | | {memory / 1e6:.0f} | 1.00 |"
    )
    bars = []
    for label in ("frozen", "CODA, adapt first", "CODA, adapt first, block:4", "cdl learn"):
        it = measured[label]
        tests, own = it["tests"], it["cpu"] - it["tests"]
        print(
            f"| closed form, {label} | {own:.1f} (+ {tests:.1f} tests) | {it['wall']:.1f} | {own / bare:.2f} | "
            f"{steps / own:.0f}x | {it['peak'] / 1e6:.0f} | {it['peak'] / memory:.2f} |"
        )
        for what, value, bar, good in (
            ("times as fast as learned", steps / own, FASTER, steps / own >= FASTER),
            ("of a bare pass", own / bare, OF_BARE, own / bare <= OF_BARE),
            ("of cdl predict's memory", it["peak"] / memory, MEMORY, it["peak"] / memory <= MEMORY),
        ):
            bars.append((good, f"{label}: {value:.2f} {what}, bar {bar}: {'reached' if good else 'MISSED'}"))
    print(
        f"| learned, KDP, {EPOCHS} epochs, EXTRAPOLATED from {given.learned_images} images x 1 epoch | {steps:.0f} | | "
        f"{steps / bare:.0f} | 1x | {measured['learned']['peak'] / 1e6:.0f} | "
        f"{measured['learned']['peak'] / memory:.2f} |\n"
    )
    print("\n".join(text for _, text in bars))
    if given.save:
        about = {"student": student, "teacher": teacher, "size": size, "images": given.images, "cpu": cpu_model()}
        given.save.write_text(
            json.dumps({**about, "learned_cpu_seconds": steps, "measured": measured}, indent=1) + "\n"
        )
    return int(not all(good for good, _ in bars))


if __name__ == "__main__":
    sys.exit(main())
