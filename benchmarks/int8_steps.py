"""How near an int8 file comes to its float file, and what each step of its making is worth.

    python benchmarks/int8_steps.py --model student.onnx --calibrate DIR --data DIR

`--model`: a float file of `cdl export`. `--calibrate`: training images, `--data`: test images of its classes, a folder
for each class; so many of either are drawn, with `--seed`. Prints, of the float file and of int8 files that take one
step more each: right answers, answers that are the float file's, and the error of logits (standard deviation of the
difference, of the float logits' own). Heads are the float file's; `cdl export` solves a closed-form one anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from cdl_deploy.data.images import is_image_name, load_image
from cdl_deploy.export.calibration import calibrated, evened
from cdl_deploy.export.preprocessing import PIXELS_NAME
from cdl_deploy.export.quantise import Feeds, calibrate, prepare, quantise_static
from cdl_deploy.export.sensitivity import logits_of
from cdl_deploy.runtime.bundle import INPUT_NAME
from cdl_deploy.runtime.bundle_parts import SCORES


def images(folder: Path, count: int, seed: int) -> list[Path]:
    """So many of the images in folders of classes, drawn."""
    files = sorted(file for file in folder.glob("*/*") if is_image_name(file.name))
    return [files[at] for at in np.random.default_rng(seed).permutation(len(files))[:count]]


class Batches:
    """Each image alone: they may differ in size."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __iter__(self) -> Iterator[Feeds]:
        for file in self.files:
            yield {INPUT_NAME: np.asarray(load_image(file))[None]}


def steps(model: onnx.ModelProto, few: Batches) -> Iterator[tuple[str, onnx.ModelProto]]:
    """What it is, and the file."""
    prepared = prepare(model, static=True)
    quantise: Callable[..., onnx.ModelProto] = partial(quantise_static, exact=(PIXELS_NAME,))
    yield "int8, every number to the nearest", quantise(prepared, calibrate(prepared, few))
    norms = evened(prepared, few, hidden=False)
    yield "channels behind norms evened", quantise(norms, calibrate(norms, few))
    even = evened(prepared, few)
    yield "and companions for large hidden units", quantise(even, calibrate(even, few))
    ready, ranges, rounding = calibrated(prepared, few)
    yield "and weights rounded together: as exported", quantise(ready, ranges, rounding=rounding)
    yield "the same, attention's scores in float", quantise(ready, ranges, [SCORES], rounding=rounding)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibrate", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--calibration-images", type=int, default=128)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model = onnx.load(given.model)
    about: dict[str, Any] = {it.key: it.value for it in model.metadata_props}
    classes = json.loads(about["cdl.classes"])
    few = Batches(images(given.calibrate, given.calibration_images, given.seed))
    files = images(given.data, given.images, given.seed)
    labels = np.array([classes.index(file.parent.name) for file in files])
    expected = logits_of(model, Batches(files))
    print("| | right, % | as fp32, % | error |\n|---|---|---|---|")
    print(f"| fp32 | {100 * (expected.argmax(axis=1) == labels).mean():.1f} | 100 | 0 |", flush=True)
    for words, small in steps(model, few):
        logits = logits_of(small, Batches(files))
        found = logits.argmax(axis=1)
        right, same = 100 * (found == labels).mean(), 100 * (found == expected.argmax(axis=1)).mean()
        error = (logits - expected).std() / expected.std()
        print(f"| {words} | {right:.1f} | {same:.1f} | {error:.3f} |", flush=True)


if __name__ == "__main__":
    main()
