"""Does a model answer alike whether the graph preprocesses an image or the training transform does?

    cdl train --data digits --tasks 5 --out /tmp/digits
    python benchmarks/preprocessing_agreement.py /tmp/digits                # about a minute

1,000 images with sides of 32 to 300 pixels, scikit-learn's scanned digits, enlarged, tinted and grainy: the exported
student gets them as they are, one by one, for they differ in size; the trained one gets what torchvision and PIL make
of them. Exits 1 where less than 99.9 % get the same class. As many pieces of scikit-learn's two photographs are counted
beside them, without a bar: they show no class that the model knows, so its two best classes are often nearly alike.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from cdl_deploy.export import ExportOptions, export_run
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.data.transforms import evaluation_transform
from cdl_deploy.training.models.learner import learner_logits

BAR = 0.999
SIDES = (32, 300)


def digits(count: int, seed: int) -> Iterator[Image.Image]:
    """Digits that the run may have learned, of a size and a tint that it has not."""
    random = np.random.default_rng(seed)
    scans = load_digits().images
    for _ in range(count):
        width, height = sides(random)
        scan = Image.fromarray((scans[int(random.integers(len(scans)))] * 15).astype(np.uint8))
        grey = np.asarray(scan.resize((width, height), Image.Resampling.BICUBIC), np.float64)[..., None]
        tinted = grey * random.uniform(0.7, 1, 3) + random.normal(0, 6, (height, width, 1))
        yield Image.fromarray(np.clip(tinted, 0, 255).astype(np.uint8))


def pieces(count: int, seed: int) -> Iterator[Image.Image]:
    """Pieces of photographs."""
    random = np.random.default_rng(seed)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for _ in range(count):
        width, height = sides(random)
        photograph = photographs[int(random.integers(len(photographs)))]
        left = int(random.integers(photograph.width - width + 1))
        top = int(random.integers(photograph.height - height + 1))
        yield photograph.crop((left, top, left + width, top + height))


def sides(random: np.random.Generator) -> tuple[int, int]:
    """Width and height."""
    width, height = random.integers(SIDES[0], SIDES[1] + 1, 2).tolist()
    return width, height


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    record, pair = load_run(a.run)
    preprocessing = record.preprocessing.resize_crop
    transform = evaluation_transform(preprocessing)
    with tempfile.TemporaryDirectory(prefix="cdl-agreement-") as folder:
        export_run(a.run, Path(folder) / "out", ExportOptions(teacher=False))
        session = onnxruntime.InferenceSession(Path(folder) / "out/student.onnx", providers=["CPUExecutionProvider"])
        shares = {}
        for name, images in {"digits": digits(a.images, a.seed), "pieces": pieces(a.images, a.seed)}.items():
            same, worst = 0, 0.0
            for image in images:
                ours = session.run(["logits"], {"image": np.asarray(image)[None]})[0]
                with torch.no_grad():
                    theirs = learner_logits(pair.encoder, pair.student, transform(image)[None]).numpy()
                same += int(ours.argmax() == theirs.argmax())
                worst = max(worst, float(np.abs(ours - theirs).max()))
            shares[name] = same / a.images
            bar = f" (bar {BAR:.1%}: {'met' if shares[name] >= BAR else 'not met'})" if name == "digits" else ""
            print(f"{name}: the same class for {shares[name]:.2%} of {a.images}{bar}, logits at most {worst:.2g} apart")
    print(
        f"{asdict(preprocessing)}, seed {a.seed}, onnxruntime {version('onnxruntime')}, Pillow {version('pillow')}, "
        f"torchvision {version('torchvision')}"
    )
    return int(shares["digits"] < BAR)


if __name__ == "__main__":
    sys.exit(main())
