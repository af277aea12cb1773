"""How good a frozen backbone's tokens are: closed-form classifiers on an image folder's features, which are kept.

The probe is linear discriminant analysis with one covariance, shrunk as Ledoit and Wolf do: what streaming LDA comes to
when all classes are there. Beside it stands the nearest class mean.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from cdl_deploy.data.labelled import Item, LabelledImages
from cdl_deploy.data.preprocessing import ResizeCrop
from cdl_deploy.data.sources import fingerprint
from cdl_deploy.errors import DataError, OptionError
from cdl_deploy.files import write_atomic
from cdl_deploy.seeds import derive_seed
from cdl_deploy.training.backbones import Backbone
from cdl_deploy.training.backbones.packed import can_pack
from cdl_deploy.training.data.loading import load_known
from cdl_deploy.training.data.transforms import evaluation_transform

Features = dict[str, npt.NDArray[Any]]
OnImages = Callable[[int, int], None]
"""Called with (images done, images in all)."""
BATCH = 100


@dataclass(frozen=True)
class Choice:
    """Which images of a data set a probe sees."""

    train_a_class: int = 100
    test_a_class: int | None = None
    """None: all."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, count in (("images-a-class", self.train_a_class), ("test-images-a-class", self.test_a_class)):
            if count is not None and count < 1:
                raise OptionError(f"--{name} is {count}, expected at least 1")

    @property
    def rule(self) -> str:
        """In words."""
        return (
            "of each class's files in alphabetical order, those at the first places of the permutation that "
            "numpy.random.default_rng(derive_seed(seed, 'probe', split, class)) draws"
        )


def choose(
    images: LabelledImages, a_class: int | None, seed: int, split: str, classes: Sequence[str]
) -> LabelledImages:
    """`a_class` images of each class, or all; in the order of classes and files. Raises DataError for too few."""
    if a_class is None:
        return images
    items: list[Item] = []
    for name in classes:
        found = images.of_class(name)
        if len(found) < a_class:
            raise DataError(
                f"class '{name}' has {len(found)} {split} images, expected at least {a_class}: ask for fewer"
            )
        places = np.random.default_rng(derive_seed(seed, "probe", split, name)).permutation(len(found))[:a_class]
        items += [found[place] for place in sorted(places.tolist())]
    return LabelledImages(images.source, items, [name for name in classes for _ in range(a_class)])


def decode(items: Sequence[Item], preprocessing: ResizeCrop, pool: ThreadPoolExecutor) -> Tensor:
    """Pixels [B, 3, size, size] uint8."""
    transform = evaluation_transform(preprocessing)
    return torch.stack(list(pool.map(lambda item: transform(load_known(item)), items)))


@torch.no_grad()
def extract(
    backbone: Backbone,
    images: LabelledImages,
    preprocessing: ResizeCrop,
    blocks: Sequence[int] = (),
    on_images: OnImages = lambda done, of: None,
) -> Features:
    """Of every image [n, D]: the class token (`class`) and the mean of the patches (`patches`), after the final norm.

    The same of the tokens after the first b blocks, for every b of `blocks`, passed through the final norm
    (`blockb_class`, `blockb_patches`), and the mean of those patches as they are (`blockb_raw_patches`).
    """
    device, first = backbone.mean.device, backbone.layout.first_patch
    kept: dict[str, list[Tensor]] = {}
    with ThreadPoolExecutor() as pool, backbone.packed_layers() if can_pack(device) else nullcontext():
        for start in range(0, len(images.items), BATCH):
            pixels = decode(images.items[start : start + BATCH], preprocessing, pool).to(device)
            hidden: dict[int, Tensor] = {}
            backbone.run_blocks(backbone.embed(pixels), 0, backbone.depth, after=hidden.__setitem__)
            for count in (*blocks, backbone.depth):
                prefix = "" if count == backbone.depth else f"block{count}_"
                tokens = backbone.final_norm(hidden[count - 1])
                kept.setdefault(f"{prefix}class", []).append(tokens[:, 0].clone())  # a view would keep all tokens
                kept.setdefault(f"{prefix}patches", []).append(tokens[:, first:].mean(dim=1))
                if prefix:
                    kept.setdefault(f"{prefix}raw_patches", []).append(hidden[count - 1][:, first:].mean(dim=1))
            on_images(min(start + BATCH, len(images.items)), len(images.items))
    return {name: torch.cat(parts).cpu().numpy() for name, parts in kept.items()}


def cached_features(
    file: Path,
    weights_sha256: str,
    backbone: Backbone,
    splits: dict[str, LabelledImages],
    preprocessing: ResizeCrop,
    blocks: Sequence[int] = (),
    on_images: OnImages = lambda done, of: None,
    known: Features | None = None,
) -> tuple[Features, dict[str, Any]]:
    """Features and labels of every split, named `train_class`, `train_labels`, …, and what they cost.

    `file` keeps them: where it holds those of the same weights, images and preprocessing, nothing is computed, nor
    where they are `known` from a longer network.
    """
    about = {
        "weights_sha256": weights_sha256,
        "images": {name: fingerprint(split.items) for name, split in splits.items()},
        "preprocessing": asdict(preprocessing),
        "blocks": list(blocks),
    }
    if file.exists() and (kept := _read(file)) is not None and kept[1]["of"] == about:
        return kept
    if known is not None:
        nothing = {"of": about, "seconds": None, "images_per_second": None}
        _write(file, known, nothing)
        return known, nothing
    features: Features = {}
    began, count = time.perf_counter(), 0
    for name, split in splits.items():
        found = extract(backbone, split, preprocessing, blocks, on_images)
        features |= {f"{name}_{feature}": values for feature, values in found.items()}
        features[f"{name}_labels"] = split.labels
        count += len(split.items)
    seconds = time.perf_counter() - began
    cost = {"of": about, "seconds": round(seconds, 1), "images_per_second": round(count / seconds, 1)}
    _write(file, features, cost)
    return features, cost


def of_first_blocks(features: Features, count: int) -> Features:
    """What a network has that is the first `count` blocks and the final norm of the one these features are of."""
    labels = {name: values for name, values in features.items() if name.endswith("_labels")}
    infix = f"_block{count}_"
    kept = {
        name.replace(infix, "_"): values
        for name, values in features.items()
        if infix in name and not name.endswith("_raw_patches")
    }
    return {**kept, **labels}


def begins_with(longer: Backbone, shorter: Backbone) -> bool:
    """Whether `shorter` is the first blocks and the final norm of `longer`, to the last bit."""
    theirs = longer.vit.state_dict()
    return all(name in theirs and torch.equal(value, theirs[name]) for name, value in shorter.vit.state_dict().items())


def _write(file: Path, features: Features, about: dict[str, Any]) -> None:
    content = {**features, "about": np.array(json.dumps(about))}
    write_atomic(file, lambda path: np.savez(path, allow_pickle=False, **content))


def _read(file: Path) -> tuple[Features, dict[str, Any]] | None:
    """What `cached_features` wrote, or None where the file is something else."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            content = {name: archive[name] for name in archive.files}
        about = json.loads(str(content.pop("about")))
    except (OSError, ValueError, KeyError):
        return None
    return (content, about) if isinstance(about, dict) and "of" in about else None


def probe(features: Features, parts: Sequence[str]) -> dict[str, float]:
    """Accuracy in percent on the test images, by probe; the parts of the features stand side by side."""
    train, test = (
        np.concatenate([features[f"{split}_{part}"] for part in parts], axis=1) for split in ("train", "test")
    )
    train_labels, test_labels = features["train_labels"], features["test_labels"]
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(train, train_labels)
    means = np.stack([train[train_labels == label].mean(axis=0) for label in np.unique(train_labels)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    nearest = np.unique(train_labels)[np.argmax(test @ means.T, axis=1)]
    return {
        "slda": round(100 * float(lda.score(test, test_labels)), 2),
        "ncm": round(100 * float((nearest == test_labels).mean()), 2),
    }
